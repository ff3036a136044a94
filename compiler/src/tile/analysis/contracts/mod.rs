//! `ensures det(bitwise)` and `batch_invariant(D)`: proved or refused, with the way that breaks the proof.
//!
//! **Deterministic**: every op has one result for one input but float atomics, whose order is open, reads of memory that other
//! blocks write in the same launch, and tiles that a persistent kernel carries from one item to the next (which items a block
//! gets is open). Folds and products have the order that the IR states.
//!
//! **Batch invariant in D**: an output element with given coordinates has the same bits for every D that makes the
//! coordinates valid, if the inputs at equal coordinates are equal. Every value is *known* to depend on no D, under a set of
//! conditions `e >= 0` that grow true with D (such as `row < D` for a row that a copy would fill with zeros past the end),
//! or *broken* with the reason. A store is sound if the stored coordinates being valid implies all conditions of the value. So
//! rows may be masked by their own validity and positions may be absolute, but no trip count, order or
//! other row's validity may come through. A condition on an axis that is summed over breaks the sum.
//!
//! Both are about one instance. Instances that share the range of a dim between them agree if what they do to one element is
//! stated in the same order, which is the author's to see to and the tests' (`expect_same`).
//!
//! Needs: IR whose bounds are checked (copies that are proved are marked).

mod control;
mod determinism;
mod tiles;
mod values;

use super::forms::{Forms, is_integer};
use super::init;
use super::linear::{Atom, Linear};
use crate::diag::Sink;
use crate::diag::catalogue::contracts as say;
use crate::source::Span;
use crate::tile::ir::*;
use determinism::deterministic;
use std::collections::HashMap;
use std::rc::Rc;
use tiles::{at_coordinates, join_tiles};
use values::merge;

pub fn check(k: &Kernel, sink: &mut Sink) {
    for contract in &k.contracts {
        match contract {
            Contract::Deterministic(span) => deterministic(k, *span, sink),
            Contract::BatchInvariant(dim, span) => batch_invariant(k, *dim, *span, sink),
        }
    }
}

// ---- det(bitwise) ---------------------------------------------------------------------------------------

// ---- batch_invariant(D) ------------------------------------------------------------------------------------

/// Why a value depends on the dim.
#[derive(Debug)]
pub struct Why {
    pub span: Span,
    pub text: String,
    pub cause: Option<Rc<Why>>,
}

#[derive(Clone, Debug)]
enum State {
    /// Independent of the dim where all of these are `>= 0`.
    Known(Vec<Linear>),
    Broken(Rc<Why>),
}

/// The same for the elements of a tile: a condition is `form + Σ axes[i] · coordinate_i >= 0`.
#[derive(Clone, Debug, PartialEq)]
struct TileTag {
    form: Linear,
    axes: Vec<i128>,
}

#[derive(Clone, Debug)]
enum TileState {
    Known(Vec<TileTag>),
    Broken(Rc<Why>),
}

impl TileState {
    fn same(&self, o: &TileState) -> bool {
        match (self, o) {
            (TileState::Known(a), TileState::Known(b)) => a == b,
            (TileState::Broken(_), TileState::Broken(_)) => true,
            _ => false,
        }
    }
}

fn why(span: Span, text: impl Into<String>, cause: Option<Rc<Why>>) -> Rc<Why> {
    Rc::new(Why {
        span,
        text: text.into(),
        cause,
    })
}

fn batch_invariant(k: &Kernel, dim: DimId, contract: Span, sink: &mut Sink) {
    let known = Forms::new(k);
    // One value only: nothing can depend on it.
    let Some((target, _)) = known.dims[dim.index()].leading() else {
        return;
    };
    let mut c = Cone {
        k,
        known,
        target,
        dim: k.dims[dim.index()].name.clone(),
        values: HashMap::new(),
        tiles: vec![TileState::Known(vec![]); k.tiles.len()],
        channels: vec![TileState::Known(vec![]); k.channels.len()],
        control: vec![],
        found: vec![],
    };
    c.block(k.body);
    let dim = c.dim;
    // The first break says most; later ones often follow from it.
    if let Some((span, param, reason)) = c.found.into_iter().next() {
        sink.report(say::depends_on_dim(contract, span, &param, &dim, &reason));
    }
}

/// What runs only sometimes, for reasons of the dim.
enum Control {
    /// Where all of these are `>= 0`.
    Rows(Vec<Linear>),
    Broken(Rc<Why>),
    /// A loop whose trips depend on the dim; its variable.
    Trips(Linear, Rc<Why>),
}

struct Cone<'k> {
    k: &'k Kernel,
    known: Forms<'k>,
    target: Atom,
    dim: String,
    values: HashMap<ValueId, State>,
    tiles: Vec<TileState>,
    channels: Vec<TileState>,
    control: Vec<Control>,
    /// Stores that depend on the dim: where, of which parameter, why.
    found: Vec<(Span, String, Rc<Why>)>,
}

impl Cone<'_> {
    fn block(&mut self, b: BlockId) {
        let mark = self.known.facts.mark();
        for &op in &self.k.block(b).ops {
            self.op(op);
        }
        self.known.facts.back_to(mark);
    }

    fn state(&self, v: ValueId) -> State {
        self.values.get(&v).cloned().unwrap_or(State::Known(vec![]))
    }

    fn depends(&self, e: &Linear) -> bool {
        self.known.facts.depends(e, self.target)
    }

    /// All of the operands' conditions; the first break.
    fn join(&self, values: &[ValueId], span: Span, text: &str) -> State {
        let mut tags = vec![];
        for &v in values {
            match self.state(v) {
                State::Known(more) => merge(&mut tags, more),
                State::Broken(cause) => {
                    // A chain of arithmetic is one step.
                    return State::Broken(match &cause.cause {
                        Some(_) if cause.text == text => cause,
                        _ => why(span, text, Some(cause)),
                    });
                }
            }
        }
        State::Known(tags)
    }

    /// Splits conditions into those about the dim that grow true with it, or fails.
    fn rows(&self, forms: Vec<Linear>) -> Option<Vec<Linear>> {
        let mut out = vec![];
        for f in forms {
            if self.depends(&f) {
                if !self.known.facts.rises(&f, self.target) {
                    return None;
                }
                out.push(f.tighten());
            }
        }
        Some(out)
    }

    fn op(&mut self, id: OpId) {
        let k = self.k;
        let op = k.op(id);
        let span = op.span;
        if let Some(v) = op.result {
            if is_integer(k.ty(v)) {
                self.known.form(v);
            }
            let state = self.value(&op.kind, v, span);
            self.values.insert(v, state);
            return;
        }
        match &op.kind {
            OpKind::StoreTile { tile, index, value } => self.store_tile(*tile, index, *value, span),
            OpKind::StoreGlobal {
                param,
                index,
                value,
                guard,
                scatter,
            } => self.store_global(*param, index, *value, *guard, *scatter, span),
            OpKind::Atomic { param, .. } => {
                let reason = why(span, "adds up what every row brings", None);
                self.found
                    .push((span, k.param(*param).name.clone(), reason));
            }
            OpKind::Map { extents, body } => {
                for (v, n) in k.block(*body).args.iter().zip(extents) {
                    self.known.variable(*v, 0, *n as i128 - 1);
                }
                self.block(*body);
            }
            OpKind::Copy { dst, src, oob } => {
                let state = self.view_state(src, *oob, span);
                self.write_view(dst, state, *oob, span);
            }
            OpKind::Dot {
                acc,
                a,
                b,
                accumulate,
            } => self.dot(acc, a, b, *accumulate, span),
            OpKind::Reduce { dst, src, axis, .. } => {
                let state = self.without_axis(*src, *axis, true, span);
                self.overwrite(*dst, state, span);
            }
            OpKind::Scan { dst, src, axis, .. } => {
                let state = self.without_axis(*src, *axis, false, span);
                self.overwrite(*dst, state, span);
            }
            OpKind::TopK {
                values,
                indices,
                src,
                ..
            } => {
                let axis = k.tile(*src).shape.len() as u32 - 1;
                let state = self.without_axis(*src, axis, false, span);
                self.overwrite(*values, state.clone(), span);
                self.overwrite(*indices, state, span);
            }
            OpKind::For { lo, hi, body, .. } => self.for_loop(*lo, *hi, *body, span),
            OpKind::If {
                cond,
                then,
                otherwise,
            } => self.branch(*cond, *then, *otherwise, span),
            OpKind::ForItems { body } => {
                self.known.items(&k.block(*body).args.clone());
                self.block(*body);
            }
            OpKind::Role { copies, body, .. } => {
                for v in &k.block(*body).args {
                    self.known.variable(*v, 0, *copies as i128 - 1);
                }
                self.block(*body);
            }
            OpKind::Put { channel, src, oob } => {
                let state = self.view_state(src, *oob, span);
                let old = self.channels[channel.index()].clone();
                self.channels[channel.index()] = join_tiles(old, state);
            }
            OpKind::Get { channel, tile } => {
                self.tiles[tile.index()] = self.channels[channel.index()].clone();
            }
            OpKind::Assert { cond, .. } | OpKind::Assume { cond } => {
                self.known.assume(*cond, true, Default::default());
            }
            _ => {}
        }
    }
}
