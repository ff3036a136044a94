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

use super::forms::{Forms, is_integer};
use super::linear::{Atom, Linear};
use crate::diag::Sink;
use crate::diag::catalogue::contracts as say;
use crate::source::Span;
use crate::tile::ir::*;
use std::collections::HashMap;
use std::rc::Rc;

pub fn check(k: &Kernel, sink: &mut Sink) {
    for contract in &k.contracts {
        match contract {
            Contract::Deterministic(span) => deterministic(k, *span, sink),
            Contract::BatchInvariant(dim, span) => batch_invariant(k, *dim, *span, sink),
        }
    }
}

// ---- det(bitwise) ---------------------------------------------------------------------------------------

fn deterministic(k: &Kernel, contract: Span, sink: &mut Sink) {
    for op in &k.ops {
        if let OpKind::Atomic {
            op: fold, param, ..
        } = &op.kind
            && let Some(t) = k.tensor(*param)
            && t.dtype.is_float()
            && matches!(fold, FoldOp::Sum | FoldOp::Prod)
        {
            sink.report(say::float_atomic(
                contract,
                op.span,
                &k.param(*param).name,
                t.dtype,
            ));
        }
    }
    let mut accesses = Accesses {
        k,
        known: Forms::new(k),
        list: vec![],
    };
    accesses.block(k.body);
    let Accesses {
        mut known, list, ..
    } = accesses;
    for read in list.iter().filter(|a| !a.write) {
        let other = list
            .iter()
            .find(|w| w.write && w.param == read.param && !same_block(k, &mut known, read, w));
        if let Some(write) = other {
            let name = &k.param(read.param).name;
            sink.report(say::read_of_other_blocks(
                contract, read.span, write.span, name,
            ));
            break;
        }
    }
    for op in &k.ops {
        if let OpKind::ForItems { body } = &op.kind {
            for tile in super::init::carried(k, *body) {
                let t = k.tile(tile);
                sink.report(say::carried_between_items(
                    contract, t.span, &t.name, op.span,
                ));
            }
        }
    }
}

/// An access of a tensor: per axis the first coordinate and the length; `None` where data decides.
struct Access {
    param: ParamId,
    axes: Vec<Option<(Linear, i128)>>,
    write: bool,
    span: Span,
}

struct Accesses<'k> {
    k: &'k Kernel,
    known: Forms<'k>,
    list: Vec<Access>,
}

impl Accesses<'_> {
    fn block(&mut self, b: BlockId) {
        for &op in &self.k.block(b).ops {
            self.op(op);
        }
    }

    fn op(&mut self, id: OpId) {
        let k = self.k;
        let op = k.op(id);
        if let Some(v) = op.result
            && is_integer(k.ty(v))
        {
            self.known.form(v);
        }
        match &op.kind {
            OpKind::LoadGlobal { param, index, .. } => self.element(*param, index, false, op.span),
            OpKind::StoreGlobal { param, index, .. } => self.element(*param, index, true, op.span),
            // Integer atomics give one sum in any order, but their elements are not a block's own.
            OpKind::Atomic { param, index, .. } => {
                let axes = index.iter().map(|_| None).collect();
                self.list.push(Access {
                    param: *param,
                    axes,
                    write: true,
                    span: op.span,
                });
            }
            OpKind::Copy { dst, src, .. } => {
                self.view(src, false, op.span);
                self.view(dst, true, op.span);
            }
            OpKind::Put { src, .. } => self.view(src, false, op.span),
            OpKind::Map { extents, body } => {
                for (v, n) in k.block(*body).args.iter().zip(extents) {
                    self.known.variable(*v, 0, *n as i128 - 1);
                }
            }
            OpKind::For { lo, hi, body, .. } => {
                if let Some(&var) = k.block(*body).args.first() {
                    let mark = self.known.facts.mark();
                    self.known.enter_loop(var, *lo, *hi);
                    self.block(*body);
                    self.known.facts.back_to(mark);
                }
                return;
            }
            OpKind::ForItems { body } => self.known.items(&k.block(*body).args.clone()),
            OpKind::Role { copies, body, .. } => {
                for v in &k.block(*body).args {
                    self.known.variable(*v, 0, *copies as i128 - 1);
                }
            }
            _ => {}
        }
        for b in op.kind.blocks() {
            self.block(b);
        }
    }

    fn element(&mut self, param: ParamId, index: &[ValueId], write: bool, span: Span) {
        let axes = index
            .iter()
            .map(|i| Some((self.known.form(*i), 1)))
            .collect();
        self.list.push(Access {
            param,
            axes,
            write,
            span,
        });
    }

    fn view(&mut self, v: &View, write: bool, span: Span) {
        for s in &v.slots {
            if let Slot::Gather { index, .. } = s {
                self.view(index, false, span);
            }
        }
        let Base::Param(param) = v.base else {
            return;
        };
        let axes = v
            .slots
            .iter()
            .map(|s| match s {
                Slot::At(i) => Some((self.known.form(*i), 1)),
                Slot::Span { start, len } => Some((self.known.form(*start), *len as i128)),
                Slot::Gather { .. } => None,
            })
            .collect();
        self.list.push(Access {
            param,
            axes,
            write,
            span,
        });
    }
}

/// Whether two accesses of different blocks never meet: for every axis of the grid there is an axis of the tensor of which
/// each block has a slice of its own.
fn same_block(k: &Kernel, known: &mut Forms, a: &Access, b: &Access) -> bool {
    (0..k.launch.grid.len()).all(|axis| {
        let block = known.blocks[axis].clone();
        let Some((atom, _)) = block.leading() else {
            return true; // one block along this axis
        };
        if known.facts.interval(&block) == (0, 0) {
            return true;
        }
        (0..a.axes.len()).any(|i| match (&a.axes[i], b.axes.get(i)) {
            (Some(x), Some(Some(y))) => {
                let c = x.0.coefficient(atom);
                c > 0
                    && c == y.0.coefficient(atom)
                    && [x, y].into_iter().all(|(start, len)| {
                        let local = start.add_scaled(&block, -c);
                        let low = local.clone().and_then(|l| known.facts.prove(&l));
                        let room = local
                            .and_then(|l| Linear::constant(c - len).sub(&l))
                            .and_then(|r| known.facts.prove(&r));
                        low.is_some() && room.is_some()
                    })
            }
            _ => false,
        })
    })
}

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

    // ---- values ---------------------------------------------------------------------------------------------

    fn value(&mut self, kind: &OpKind, v: ValueId, span: Span) -> State {
        match kind {
            OpKind::Const(_) | OpKind::Scalar(_) | OpKind::BlockIndex(_) => State::Known(vec![]),
            OpKind::Dim(_) => {
                let form = self.known.form(v);
                if self.depends(&form) {
                    State::Broken(why(span, format!("this is `{}`", self.dim), None))
                } else {
                    State::Known(vec![])
                }
            }
            OpKind::Select(c, a, b) => self.select(*c, *a, *b, span),
            OpKind::Binary(op @ (BinaryOp::Min | BinaryOp::Max), a, b)
                if is_integer(self.k.ty(v)) =>
            {
                self.clamp(*op, *a, *b, span)
            }
            OpKind::LoadTile { tile, index } => {
                let at = self.join(index, span, "the place that is read depends on it");
                let State::Known(mut tags) = at else {
                    return at;
                };
                match self.tiles[tile.index()].clone() {
                    TileState::Broken(cause) => {
                        let text = format!("`{}` is read here", self.k.tile(*tile).name);
                        State::Broken(why(span, text, Some(cause)))
                    }
                    TileState::Known(tile_tags) => {
                        let coords: Vec<Linear> =
                            index.iter().map(|i| self.known.form(*i)).collect();
                        for t in tile_tags {
                            match at_coordinates(&t, &coords) {
                                Some(f) => merge(&mut tags, vec![f]),
                                None => {
                                    return State::Broken(why(
                                        span,
                                        "this place is too involved to follow",
                                        None,
                                    ));
                                }
                            }
                        }
                        State::Known(self.unproved(tags))
                    }
                }
            }
            OpKind::LoadGlobal {
                param,
                index,
                guard,
            } => {
                let at = self.join(index, span, "the place that is read depends on it");
                let State::Known(mut tags) = at else {
                    return at;
                };
                if let Some(g) = guard {
                    match self.condition_rows(*g, true, span) {
                        Ok(rows) => merge(&mut tags, rows),
                        Err(cause) => {
                            let name = &self.k.param(*param).name;
                            let text = format!("`{name}` is read only where this holds");
                            return State::Broken(why(span, text, Some(cause)));
                        }
                    }
                }
                State::Known(self.unproved(tags))
            }
            kind => {
                let mut operands = vec![];
                kind.for_each_value(&mut |v| operands.push(v));
                self.join(&operands, span, "computed from it")
            }
        }
    }

    /// Drops the conditions that always hold here.
    fn unproved(&mut self, tags: Vec<Linear>) -> Vec<Linear> {
        tags.into_iter()
            .filter(|t| self.known.facts.prove(t).is_none())
            .collect()
    }

    /// A condition as rows that are valid; `Ok(vec![])` if the dim has no part in it.
    fn condition_rows(
        &mut self,
        cond: ValueId,
        positive: bool,
        span: Span,
    ) -> Result<Vec<Linear>, Rc<Why>> {
        match self.state(cond) {
            State::Known(tags) => Ok(tags),
            State::Broken(cause) => {
                let exact = self.known.exact_condition(cond, positive);
                match exact.and_then(|forms| self.rows(forms)) {
                    Some(rows) => Ok(rows),
                    None => Err(why(span, "the condition depends on it", Some(cause))),
                }
            }
        }
    }

    fn select(&mut self, c: ValueId, a: ValueId, b: ValueId, span: Span) -> State {
        let under = |s: &mut Self, v: ValueId, positive: bool| match s.state(v) {
            // What the condition implies need not be asked of the value.
            State::Known(tags) => {
                let mark = s.known.facts.mark();
                s.known.assume(c, positive, Default::default());
                let left = s.unproved(tags);
                s.known.facts.back_to(mark);
                State::Known(left)
            }
            broken => broken,
        };
        match self.state(c) {
            State::Known(mut tags) => {
                let (a, b) = (under(self, a, true), under(self, b, false));
                for s in [a, b] {
                    match s {
                        State::Known(more) => merge(&mut tags, more),
                        State::Broken(cause) => {
                            return State::Broken(why(span, "computed from it", Some(cause)));
                        }
                    }
                }
                State::Known(tags)
            }
            State::Broken(cause) => {
                for (side, positive) in [(a, true), (b, false)] {
                    let exact = self.known.exact_condition(c, positive);
                    if let Some(mut rows) = exact.and_then(|f| self.rows(f))
                        && let State::Known(tags) = under(self, side, positive)
                    {
                        merge(&mut rows, tags);
                        return State::Known(self.unproved(rows));
                    }
                }
                State::Broken(why(span, "the choice depends on it", Some(cause)))
            }
        }
    }

    /// `min(row, D - 1)` is `row` where that is valid.
    fn clamp(&mut self, op: BinaryOp, a: ValueId, b: ValueId, span: Span) -> State {
        let both = self.join(&[a, b], span, "computed from it");
        if matches!(both, State::Known(_)) || op == BinaryOp::Max {
            return both;
        }
        for (x, y) in [(a, b), (b, a)] {
            let State::Known(mut tags) = self.state(x) else {
                continue;
            };
            let gap = self.known.form(y).sub(&self.known.form(x));
            if let Some(rows) = gap.and_then(|g| self.rows(vec![g])) {
                merge(&mut tags, rows);
                return State::Known(self.unproved(tags));
            }
        }
        both
    }

    // ---- tiles ------------------------------------------------------------------------------------------------

    fn store_tile(&mut self, tile: TileId, index: &[ValueId], value: ValueId, span: Span) {
        let name = self.k.tile(tile).name.clone();
        let at = self.join(index, span, "the place that is written depends on it");
        let state = match (at, self.state(value)) {
            (State::Broken(cause), _) => TileState::Broken(cause),
            (_, State::Broken(cause)) => {
                TileState::Broken(why(span, format!("stored in `{name}`"), Some(cause)))
            }
            (State::Known(mut tags), State::Known(more)) => {
                merge(&mut tags, more);
                let coords: Vec<Linear> = index.iter().map(|i| self.known.form(*i)).collect();
                match self.to_coordinates(tags, &coords) {
                    Some(tags) => TileState::Known(tags),
                    None => {
                        let text =
                            format!("rows that may not exist go to other places of `{name}`");
                        TileState::Broken(why(span, text, None))
                    }
                }
            }
        };
        let whole = super::init::covers_tile(self.k, tile, index);
        self.put_tile(tile, state, whole, span);
    }

    /// Conditions on values stored at `coords` as conditions on the elements of the tile.
    fn to_coordinates(&self, tags: Vec<Linear>, coords: &[Linear]) -> Option<Vec<TileTag>> {
        let mut out = vec![];
        for tag in tags {
            let mut form = tag;
            let mut axes = vec![0; coords.len()];
            for (i, c) in coords.iter().enumerate() {
                // coordinate = c · atom + rest, so atom = (coordinate - rest) / c.
                if let Some((atom, 1)) = c.leading() {
                    let factor = form.coefficient(atom);
                    if factor != 0 {
                        axes[i] = factor;
                        form = form.add_scaled(c, -factor)?;
                    }
                }
            }
            // A map variable that is left over is another row's.
            if self.mentions_map_variable(&form) {
                return None;
            }
            out.push(TileTag { form, axes });
        }
        Some(out)
    }

    fn mentions_map_variable(&self, f: &Linear) -> bool {
        f.terms
            .iter()
            .any(|(a, _)| self.known.map_variables.contains(a))
    }

    /// Under the control in force.
    fn put_tile(&mut self, tile: TileId, state: TileState, whole: bool, span: Span) {
        let rank = self.k.tile(tile).shape.len();
        let mut state = if whole {
            state
        } else {
            join_tiles(self.tiles[tile.index()].clone(), state)
        };
        for c in &self.control {
            match c {
                Control::Rows(rows) => {
                    let tags = rows.iter().map(|f| TileTag {
                        form: f.clone(),
                        axes: vec![0; rank],
                    });
                    state = join_tiles(state, TileState::Known(tags.collect()));
                }
                Control::Broken(cause) => {
                    let text = format!("`{}` is written only sometimes", self.k.tile(tile).name);
                    state = TileState::Broken(why(span, text, Some(cause.clone())));
                }
                Control::Trips(..) => {}
            }
        }
        self.tiles[tile.index()] = state;
    }

    fn overwrite(&mut self, tile: TileId, state: TileState, span: Span) {
        self.put_tile(tile, state, true, span);
    }

    /// The elements of a view, coordinates in the order of its axes.
    fn view_state(&mut self, v: &View, oob: Oob, span: Span) -> TileState {
        let mut starts = vec![];
        let mut tags: Vec<TileTag> = vec![];
        let rank = v.shape().len();
        let mut axis_out = 0;
        for (axis, s) in v.slots.iter().enumerate() {
            let (at, len) = match s {
                Slot::At(i) => (*i, None),
                Slot::Span { start, len } => (*start, Some(*len)),
                Slot::Gather { index, .. } => {
                    let inner = self.view_state(index, Oob::Never, span);
                    match inner {
                        TileState::Broken(cause) => return TileState::Broken(cause),
                        TileState::Known(inner) => {
                            for t in inner {
                                let mut axes = vec![0; rank];
                                axes[axis_out] = t.axes.first().copied().unwrap_or(0);
                                tags.push(TileTag { form: t.form, axes });
                            }
                        }
                    }
                    starts.push((None, Some(axis_out)));
                    axis_out += 1;
                    continue;
                }
            };
            match self.state(at) {
                State::Broken(cause) => {
                    let text = "the place that is read depends on it";
                    return TileState::Broken(why(span, text, Some(cause)));
                }
                State::Known(more) => {
                    for form in more {
                        tags.push(TileTag {
                            form,
                            axes: vec![0; rank],
                        });
                    }
                }
            }
            let start = self.known.form(at);
            let out = len.map(|_| axis_out);
            axis_out += usize::from(len.is_some());
            if let Base::Param(_) = v.base
                && oob != Oob::Never
            {
                // Past the end of an axis that the dim rules, zeros come instead of data.
                let extent = self.known.extent(v.base, axis);
                if self.depends(&extent) {
                    let room = extent.sub(&start).and_then(|r| r.plus(-1));
                    match room.and_then(|r| self.rows(vec![r])) {
                        Some(rows) => {
                            for form in rows {
                                let mut axes = vec![0; rank];
                                if let Some(o) = out {
                                    axes[o] = -1;
                                }
                                tags.push(TileTag { form, axes });
                            }
                        }
                        None => {
                            let text = format!("what lies outside depends on `{}`", self.dim);
                            return TileState::Broken(why(span, text, None));
                        }
                    }
                }
            }
            starts.push((Some(start), out));
        }
        if let Base::Tile(t) = v.base {
            match self.tiles[t.index()].clone() {
                TileState::Broken(cause) => {
                    let text = format!("`{}` is read here", self.k.tile(t).name);
                    return TileState::Broken(why(span, text, Some(cause)));
                }
                TileState::Known(inner) => {
                    for tag in inner {
                        let mut form = Some(tag.form);
                        let mut axes = vec![0; rank];
                        for ((start, out), c) in starts.iter().zip(&tag.axes) {
                            match (start, out) {
                                (Some(s), _) => {
                                    form = form.and_then(|f| f.add_scaled(s, *c));
                                    if let Some(o) = out {
                                        axes[*o] = *c;
                                    }
                                }
                                (None, _) if *c == 0 => {}
                                (None, _) => form = None,
                            }
                        }
                        match form {
                            Some(form) => tags.push(TileTag { form, axes }),
                            None => {
                                let text = "rows that may not exist are gathered";
                                return TileState::Broken(why(span, text, None));
                            }
                        }
                    }
                }
            }
        }
        let shape = v.shape();
        tags.retain(|t| !self.holds_everywhere(t, &shape));
        tags.dedup();
        TileState::Known(tags)
    }

    /// Whether the condition is proved for every coordinate of the shape.
    fn holds_everywhere(&mut self, t: &TileTag, shape: &[u64]) -> bool {
        let worst = t.axes.iter().zip(shape).fold(0i128, |sum, (c, n)| {
            sum + if *c < 0 { c * (*n as i128 - 1) } else { 0 }
        });
        t.form
            .plus(worst)
            .is_some_and(|f| self.known.facts.prove(&f).is_some())
    }

    fn write_view(&mut self, dst: &View, state: TileState, oob: Oob, span: Span) {
        match dst.base {
            Base::Tile(tile) => {
                let place = self.view_place(dst, span);
                let state = match (place, state) {
                    (Err(cause), _) => TileState::Broken(cause),
                    (_, TileState::Broken(cause)) => {
                        let text = format!("copied to `{}`", self.k.tile(tile).name);
                        TileState::Broken(why(span, text, Some(cause)))
                    }
                    (Ok(slots), TileState::Known(tags)) => {
                        let tags = tags.into_iter().map(|t| {
                            // Coordinate of the view = coordinate of the tile - start.
                            let mut form = t.form;
                            let mut axes = vec![];
                            let mut source = t.axes.iter();
                            for (start, spans) in &slots {
                                if *spans {
                                    let c = *source.next().unwrap_or(&0);
                                    form = form.add_scaled(start, -c).unwrap_or_default();
                                    axes.push(c);
                                } else {
                                    axes.push(0);
                                }
                            }
                            TileTag { form, axes }
                        });
                        TileState::Known(tags.collect())
                    }
                };
                let whole = super::init::covers_view(self.k, dst) && oob != Oob::Skip;
                self.put_tile(tile, state, whole, span);
            }
            Base::Param(param) => {
                let name = self.k.param(param).name.clone();
                let slots = match self.view_place(dst, span) {
                    Ok(slots) => slots,
                    Err(cause) => return self.found.push((span, name, cause)),
                };
                let tags = match state {
                    TileState::Broken(cause) => {
                        return self.found.push((span, name, cause));
                    }
                    TileState::Known(tags) => tags,
                };
                // One element stands for all: its coordinates are new unknowns.
                let shape = dst.shape();
                let coords: Vec<Linear> = shape
                    .iter()
                    .map(|n| self.known.facts.fresh(0, *n as i128 - 1))
                    .collect();
                let mut at = vec![];
                let mut next = coords.iter();
                for (start, spans) in &slots {
                    at.push(match (spans, next.as_slice().first()) {
                        (true, Some(c)) => {
                            next.next();
                            start.add(c).unwrap_or_default()
                        }
                        _ => start.clone(),
                    });
                }
                let tags: Vec<Linear> = tags
                    .iter()
                    .filter_map(|t| at_coordinates(t, &coords))
                    .collect();
                self.check_store(param, &at, tags, false, span);
            }
        }
    }

    fn view_place(&mut self, v: &View, span: Span) -> Result<Vec<(Linear, bool)>, Rc<Why>> {
        let mut out = vec![];
        for s in &v.slots {
            let (at, spans) = match s {
                Slot::At(i) => (*i, false),
                Slot::Span { start, .. } => (*start, true),
                Slot::Gather { .. } => continue,
            };
            if let State::Broken(cause) = self.state(at) {
                return Err(why(
                    span,
                    "the place that is written depends on it",
                    Some(cause),
                ));
            }
            out.push((self.known.form(at), spans));
        }
        Ok(out)
    }

    fn store_global(
        &mut self,
        param: ParamId,
        index: &[ValueId],
        value: ValueId,
        guard: Option<ValueId>,
        scatter: bool,
        span: Span,
    ) {
        let name = self.k.param(param).name.clone();
        let mut tags = match self.state(value) {
            State::Known(tags) => tags,
            State::Broken(cause) => return self.found.push((span, name, cause)),
        };
        match self.join(index, span, "the place that is written depends on it") {
            State::Known(more) => merge(&mut tags, more),
            State::Broken(cause) => return self.found.push((span, name, cause)),
        }
        let mark = self.known.facts.mark();
        if let Some(g) = guard {
            match self.condition_rows(g, true, span) {
                // An element that exists is written whenever its row exists.
                Ok(rows) => merge(&mut tags, rows),
                Err(cause) => return self.found.push((span, name, cause)),
            }
            if scatter {
                self.known.assume(g, true, Default::default());
            }
        }
        let at: Vec<Linear> = index.iter().map(|i| self.known.form(*i)).collect();
        self.check_store(param, &at, tags, scatter, span);
        self.known.facts.back_to(mark);
    }

    /// A store is sound if its coordinates being valid implies every condition on the value and on the store itself.
    fn check_store(
        &mut self,
        param: ParamId,
        at: &[Linear],
        mut tags: Vec<Linear>,
        scatter: bool,
        span: Span,
    ) {
        let name = self.k.param(param).name.clone();
        let mut rows_of_control = vec![];
        for c in &self.control {
            match c {
                Control::Rows(rows) => rows_of_control.extend(rows.clone()),
                Control::Broken(cause) => {
                    let text = format!("`{name}` is written only sometimes");
                    let reason = why(span, text, Some(cause.clone()));
                    return self.found.push((span, name, reason));
                }
                // Each trip must write elements of its own.
                Control::Trips(var, cause) => {
                    let own = var
                        .leading()
                        .is_some_and(|(v, _)| at.iter().any(|a| a.coefficient(v) != 0));
                    if !own && !scatter {
                        let text = format!("every trip writes the same elements of `{name}`");
                        let reason = why(span, text, Some(cause.clone()));
                        return self.found.push((span, name, reason));
                    }
                }
            }
        }
        merge(&mut tags, rows_of_control);
        let mark = self.known.facts.mark();
        for (axis, a) in at.iter().enumerate() {
            let extent = self.known.extent(Base::Param(param), axis);
            self.known.facts.assume(a, Default::default());
            if let Some(room) = extent.sub(a).and_then(|r| r.plus(-1)) {
                self.known.facts.assume(&room, Default::default());
            }
        }
        let left = self.unproved(tags);
        self.known.facts.back_to(mark);
        // `scatter` promises distinct places, so a row writes its own element wherever that is.
        if !left.is_empty() && !scatter {
            let text = format!(
                "an element of `{name}` that exists gets a value that is free of `{}` only for some of its values",
                self.dim
            );
            self.found.push((span, name, why(span, text, None)));
        }
    }

    fn dot(&mut self, acc: &TileView, a: &Operand, b: &Operand, accumulate: bool, span: Span) {
        let view = |v: &TileView| View {
            base: Base::Tile(v.tile),
            slots: v.slots.clone(),
        };
        let mut tags: Vec<TileTag> = vec![];
        for (operand, keep) in [(a, 0usize), (b, 1usize)] {
            let state = self.view_state(&view(&operand.view), Oob::Never, span);
            match state {
                TileState::Broken(cause) => {
                    let state =
                        TileState::Broken(why(span, "an operand of this product", Some(cause)));
                    return self.put_tile(acc.tile, state, false, span);
                }
                TileState::Known(list) => {
                    for t in list {
                        let mut axes = t.axes.clone();
                        if operand.transposed {
                            axes.reverse();
                        }
                        // Axis 0 of `a` and 1 of `b` stay, the other one is summed over.
                        let (kept, summed) = (axes[keep], axes[1 - keep]);
                        if summed != 0 {
                            let text = format!(
                                "this product sums over rows that may not exist for every `{}`",
                                self.dim
                            );
                            let state = TileState::Broken(why(span, text, None));
                            return self.put_tile(acc.tile, state, false, span);
                        }
                        let mut axes = vec![0; 2];
                        axes[keep] = kept;
                        tags.push(TileTag { form: t.form, axes });
                    }
                }
            }
        }
        let target = view(acc);
        let place = self.view_place(&target, span);
        let state = match place {
            Err(cause) => TileState::Broken(cause),
            Ok(slots) => {
                let mapped = tags.into_iter().map(|t| {
                    let mut form = t.form;
                    let mut axes = vec![];
                    let mut source = t.axes.iter();
                    for (start, spans) in &slots {
                        let c = if *spans {
                            *source.next().unwrap_or(&0)
                        } else {
                            0
                        };
                        form = form.add_scaled(start, -c).unwrap_or_default();
                        axes.push(c);
                    }
                    TileTag { form, axes }
                });
                TileState::Known(mapped.collect())
            }
        };
        let whole = !accumulate && super::init::covers_view(self.k, &target);
        self.put_tile(acc.tile, state, whole, span);
    }

    /// A fold, scan or sort along an axis: conditions that differ along it break the result.
    fn without_axis(&mut self, src: TileId, axis: u32, drop: bool, span: Span) -> TileState {
        match self.tiles[src.index()].clone() {
            TileState::Broken(cause) => {
                let text = format!("`{}` is read here", self.k.tile(src).name);
                TileState::Broken(why(span, text, Some(cause)))
            }
            TileState::Known(tags) => {
                let mut out = vec![];
                for mut t in tags {
                    if t.axes[axis as usize] != 0 {
                        let text = format!(
                            "this combines rows that may not exist for every `{}`",
                            self.dim
                        );
                        return TileState::Broken(why(span, text, None));
                    }
                    if drop {
                        t.axes.remove(axis as usize);
                    }
                    out.push(t);
                }
                TileState::Known(out)
            }
        }
    }

    // ---- control ------------------------------------------------------------------------------------------------

    fn for_loop(&mut self, lo: ValueId, hi: ValueId, body: BlockId, span: Span) {
        let Some(&var) = self.k.block(body).args.first() else {
            return;
        };
        let bounds = match self.join(&[lo, hi], span, "this loop's bounds depend on it") {
            State::Known(_) => None,
            State::Broken(cause) => Some(cause),
        };
        let written = super::init::written(self.k, body);
        let mark = self.known.facts.mark();
        let form = self.known.enter_loop(var, lo, hi);
        if let Some(cause) = &bounds {
            // What one trip leaves for the next is as uncertain as the number of trips.
            for t in &written {
                self.tiles[t.index()] = TileState::Broken(cause.clone());
            }
            self.control.push(Control::Trips(form, cause.clone()));
            self.block(body);
            self.control.pop();
            for t in &written {
                self.tiles[t.index()] = TileState::Broken(cause.clone());
            }
        } else {
            let found = self.found.len();
            // States only grow: two or three rounds reach the end. What still moves then is given up.
            for round in 0..5 {
                let before = self.tiles.clone();
                self.found.truncate(found);
                self.block(body);
                let mut same = true;
                for t in &written {
                    let i = t.index();
                    let joined = join_tiles(before[i].clone(), self.tiles[i].clone());
                    if !joined.same(&before[i]) {
                        same = false;
                    }
                    self.tiles[i] = match round {
                        0..3 => joined,
                        _ if joined.same(&before[i]) => joined,
                        _ => {
                            let name = &self.k.tile(*t).name;
                            let text = format!(
                                "`{name}` changes from trip to trip in a way that is not followed"
                            );
                            TileState::Broken(why(span, text, None))
                        }
                    };
                }
                if same {
                    break;
                }
            }
            // A condition on this loop's variable means nothing after it.
            if let Some((v, _)) = form.leading() {
                for t in &written {
                    let i = t.index();
                    if let TileState::Known(tags) = &self.tiles[i]
                        && tags.iter().any(|t| t.form.coefficient(v) != 0)
                    {
                        let text = format!(
                            "`{}` holds rows of one trip of this loop",
                            self.k.tile(*t).name
                        );
                        self.tiles[i] = TileState::Broken(why(span, text, None));
                    }
                }
            }
        }
        self.known.facts.back_to(mark);
    }

    fn branch(&mut self, cond: ValueId, then: BlockId, otherwise: Option<BlockId>, span: Span) {
        let sides = [(Some(then), true), (otherwise, false)];
        if let State::Known(tags) = self.state(cond) {
            let before = self.tiles.clone();
            let mut after = vec![];
            self.control.push(Control::Rows(tags));
            for (block, positive) in sides {
                self.tiles = before.clone();
                if let Some(b) = block {
                    let mark = self.known.facts.mark();
                    self.known.assume(cond, positive, Default::default());
                    self.block(b);
                    self.known.facts.back_to(mark);
                }
                after.push(self.tiles.clone());
            }
            self.control.pop();
            let no = after.pop().unwrap_or_default();
            let yes = after.pop().unwrap_or_default();
            self.tiles = yes
                .into_iter()
                .zip(no)
                .map(|(a, b)| join_tiles(a, b))
                .collect();
            return;
        }
        // A condition that grows true with the dim is about rows that exist: only that side counts.
        for (block, positive) in sides {
            let exact = self.known.exact_condition(cond, positive);
            if let Some(rows) = exact.and_then(|f| self.rows(f)) {
                let Some(b) = block else {
                    continue;
                };
                let other = sides.iter().find(|(_, p)| *p != positive).and_then(|s| s.0);
                if other.is_some_and(|o| !self.k.block(o).ops.is_empty()) {
                    break;
                }
                // Not assumed: a store must show by its own coordinates that the condition holds.
                self.control.push(Control::Rows(rows));
                self.block(b);
                self.control.pop();
                return;
            }
        }
        let cause = match self.state(cond) {
            State::Broken(cause) => why(span, "the condition depends on it", Some(cause)),
            State::Known(_) => return,
        };
        self.control.push(Control::Broken(cause));
        for (block, positive) in sides {
            if let Some(b) = block {
                let mark = self.known.facts.mark();
                self.known.assume(cond, positive, Default::default());
                self.block(b);
                self.known.facts.back_to(mark);
            }
        }
        self.control.pop();
    }
}

fn merge(tags: &mut Vec<Linear>, more: Vec<Linear>) {
    for t in more {
        if !tags.contains(&t) {
            tags.push(t);
        }
    }
}

fn join_tiles(a: TileState, b: TileState) -> TileState {
    match (a, b) {
        (TileState::Broken(w), _) | (_, TileState::Broken(w)) => TileState::Broken(w),
        (TileState::Known(mut a), TileState::Known(b)) => {
            for t in b {
                if !a.contains(&t) {
                    a.push(t);
                }
            }
            TileState::Known(a)
        }
    }
}

fn at_coordinates(t: &TileTag, coords: &[Linear]) -> Option<Linear> {
    let mut form = t.form.clone();
    for (c, x) in t.axes.iter().zip(coords) {
        form = form.add_scaled(x, *c)?;
    }
    Some(form)
}
