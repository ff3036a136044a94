//! Reads of tiles and scratch memory that nothing has written, and what is written in vain.
//!
//! A tile counts as written once an op has written to it, wherever that was; beyond that the elements of straight-line
//! writes are counted, so that a tile of which a part was never written is found when all of it is read. A loop that may
//! run no trip writes *perhaps*. What depends on more (a branch of an earlier trip) is left to the interpreter, which
//! tracks single elements.
//!
//! Needs: verified IR. Keeps: everything.

use super::forms::{Forms, is_integer};
use crate::diag::Sink;
use crate::diag::catalogue::init as say;
use crate::source::Span;
use crate::tile::ir::*;
use crate::tile::visit::Access;
use tessera_artifact::ParamMode;

pub fn check(k: &Kernel, sink: &mut Sink) {
    let mut c = Init {
        k,
        known: Forms::new(k),
        tiles: vec![State::Unset; k.tiles.len()],
        params: vec![false; k.params.len()],
        in_branch_of_loop: false,
        in_loop: false,
        reported: vec![false; k.tiles.len()],
        sink,
    };
    c.block(k.body);
    never_written(k, sink);
    never_read(k, sink);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Unset,
    /// Written by an earlier trip of the loop we are in, perhaps.
    Carried,
    /// Only if the loop at this place runs.
    Perhaps(Span),
    /// So many elements at most.
    Partly(u64),
    Set,
}

struct Init<'k, 's> {
    k: &'k Kernel,
    known: Forms<'k>,
    tiles: Vec<State>,
    params: Vec<bool>,
    in_loop: bool,
    in_branch_of_loop: bool,
    reported: Vec<bool>,
    sink: &'s mut Sink,
}

impl Init<'_, '_> {
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
        self.reads(&op.kind, op.span);
        match &op.kind {
            OpKind::Map { extents, body } => {
                let points: u64 = extents.iter().product();
                self.map(*body, points);
            }
            OpKind::For { lo, hi, body, .. } => self.for_loop(*lo, *hi, *body, op.span),
            OpKind::If {
                then, otherwise, ..
            } => self.branch(*then, *otherwise),
            OpKind::ForItems { body } => {
                self.known.items(&k.block(*body).args.clone());
                let before = self.tiles.clone();
                self.block(*body);
                // Whether there is an item is the launch's affair; nothing after the loop sees its tiles.
                self.tiles = before;
            }
            kind => {
                for b in kind.blocks() {
                    self.block(b);
                }
            }
        }
        self.writes(&op.kind);
    }

    fn reads(&mut self, kind: &OpKind, span: Span) {
        let mut tiles = vec![];
        kind.for_each_tile(&mut |t, a| {
            if a == Access::Read && !tiles.contains(&t) {
                tiles.push(t);
            }
        });
        for t in tiles {
            let whole = !matches!(kind, OpKind::LoadTile { .. });
            self.read(t, span, whole);
        }
        let mut params = vec![];
        kind.for_each_tensor(&mut |p, a| {
            if a == Access::Read {
                params.push(p);
            }
        });
        for p in params {
            let scratch = self
                .k
                .tensor(p)
                .is_some_and(|t| t.mode == ParamMode::Scratch);
            if scratch && !self.params[p.index()] {
                self.params[p.index()] = true;
                let name = &self.k.param(p).name;
                self.sink.report(say::scratch_read_before_write(span, name));
            }
        }
        kind.for_each_tensor(&mut |p, a| {
            if a == Access::Write {
                self.params[p.index()] = true;
            }
        });
    }

    fn read(&mut self, t: TileId, span: Span, whole: bool) {
        let tile = self.k.tile(t);
        if self.reported[t.index()] {
            return;
        }
        let d = match self.tiles[t.index()] {
            State::Set => return,
            State::Carried if self.in_branch_of_loop => return,
            State::Unset | State::Carried => say::read_before_write(
                span,
                &tile.name,
                tile.span,
                self.tiles[t.index()] == State::Carried,
            ),
            State::Perhaps(at) => say::perhaps_unwritten(span, &tile.name, tile.span, at),
            State::Partly(n) if whole && n < tile.elements() => {
                say::partly_written(span, &tile.name, tile.span, n, tile.elements())
            }
            State::Partly(_) => return,
        };
        self.reported[t.index()] = true;
        self.sink.report(d);
    }

    fn writes(&mut self, kind: &OpKind) {
        let mut tiles = vec![];
        kind.for_each_tile(&mut |t, a| {
            if a == Access::Write {
                tiles.push(t);
            }
        });
        for t in tiles {
            let n = match kind {
                OpKind::StoreTile { .. } => 1,
                OpKind::Copy { dst, .. } => dst.shape().iter().product(),
                OpKind::Dot { acc, .. } => acc.shape().iter().product(),
                _ => u64::MAX,
            };
            self.wrote(t, n);
        }
    }

    fn wrote(&mut self, t: TileId, elements: u64) {
        let all = self.k.tile(t).elements();
        let state = &mut self.tiles[t.index()];
        let before = match *state {
            State::Set => return,
            State::Partly(n) => n,
            _ => 0,
        };
        let n = before.saturating_add(elements);
        // In a loop the places differ from trip to trip.
        *state = if n >= all || self.in_loop {
            State::Set
        } else {
            State::Partly(n)
        };
    }

    fn map(&mut self, body: BlockId, points: u64) {
        let k = self.k;
        for &id in &k.block(body).ops {
            let op = k.op(id);
            if let Some(v) = op.result
                && is_integer(k.ty(v))
            {
                self.known.form(v);
            }
            self.reads(&op.kind, op.span);
            if let OpKind::StoreTile { tile, .. } = op.kind {
                self.wrote(tile, points);
            }
        }
    }

    fn for_loop(&mut self, lo: ValueId, hi: ValueId, body: BlockId, span: Span) {
        let Some(&var) = self.k.block(body).args.first() else {
            return;
        };
        let (l, h) = (self.known.form(lo), self.known.form(hi));
        let trips = h.sub(&l).and_then(|e| e.plus(-1));
        let runs = trips.is_some_and(|e| self.known.facts.prove(&e).is_some());
        let before = self.tiles.clone();
        for t in written(self.k, body) {
            if self.tiles[t.index()] == State::Unset {
                self.tiles[t.index()] = State::Carried;
            }
        }
        let mark = self.known.facts.mark();
        self.known.enter_loop(var, lo, hi);
        let outer = std::mem::replace(&mut self.in_loop, true);
        self.block(body);
        self.in_loop = outer;
        self.known.facts.back_to(mark);
        for (now, before) in self.tiles.iter_mut().zip(before) {
            if *now == State::Carried {
                *now = before;
            } else if !runs && before != *now && before != State::Set {
                *now = match before {
                    State::Partly(_) => State::Set,
                    _ => State::Perhaps(span),
                };
            }
        }
    }

    fn branch(&mut self, then: BlockId, otherwise: Option<BlockId>) {
        let outer = self.in_branch_of_loop;
        self.in_branch_of_loop = self.in_loop;
        let before = self.tiles.clone();
        self.block(then);
        let yes = std::mem::replace(&mut self.tiles, before);
        if let Some(b) = otherwise {
            self.block(b);
        }
        self.in_branch_of_loop = outer;
        for (no, yes) in self.tiles.iter_mut().zip(yes) {
            *no = match (*no, yes) {
                (a, b) if a == b => a,
                (State::Set, State::Partly(n)) | (State::Partly(n), State::Set) => State::Partly(n),
                (State::Partly(a), State::Partly(b)) => State::Partly(a.max(b)),
                // Written on one side: whether that side ran is more than is followed here.
                (State::Set | State::Partly(_), _) | (_, State::Set | State::Partly(_)) => {
                    State::Set
                }
                (a, _) => a,
            };
        }
    }
}

fn never_written(k: &Kernel, sink: &mut Sink) {
    let mut written = vec![false; k.params.len()];
    for op in &k.ops {
        op.kind.for_each_tensor(&mut |p, a| {
            if a == Access::Write {
                written[p.index()] = true;
            }
        });
    }
    for (p, written) in k.params.iter().zip(written) {
        if let ParamKind::Tensor(t) = &p.kind
            && t.mode == ParamMode::Out
            && !written
        {
            sink.report(say::out_never_written(p.span, &p.name));
        }
    }
}

fn never_read(k: &Kernel, sink: &mut Sink) {
    let mut read = vec![false; k.tiles.len()];
    let mut written = vec![false; k.tiles.len()];
    for op in &k.ops {
        op.kind.for_each_tile(&mut |t, a| match a {
            Access::Read => {
                // `x += e` alone reads nothing for anybody else.
                read[t.index()] |=
                    !matches!(op.kind, OpKind::Dot { acc: TileView { tile, .. }, .. } if tile == t);
            }
            Access::Write => {
                // One of two results that nobody asked for.
                written[t.index()] |= !matches!(op.kind, OpKind::TopK { .. } | OpKind::Get { .. });
            }
        });
    }
    for (i, t) in k.tiles.iter().enumerate() {
        if written[i] && !read[i] && !t.name.starts_with(['%', '_']) {
            sink.report(say::tile_never_read(t.span, &t.name));
        }
    }
}

// ---- questions that other analyses ask --------------------------------------------------------------------

/// Tiles that a block, or one inside it, writes.
pub(super) fn written(k: &Kernel, b: BlockId) -> Vec<TileId> {
    let mut out = vec![];
    collect_written(k, b, &mut out);
    out
}

fn collect_written(k: &Kernel, b: BlockId, out: &mut Vec<TileId>) {
    for &id in &k.block(b).ops {
        let kind = &k.op(id).kind;
        kind.for_each_tile(&mut |t, a| {
            if a == Access::Write && !out.contains(&t) {
                out.push(t);
            }
        });
        for inner in kind.blocks() {
            collect_written(k, inner, out);
        }
    }
}

/// Whether a store at `index` writes every element of the tile: its indices are the variables of a map over the tile's shape.
pub(super) fn covers_tile(k: &Kernel, tile: TileId, index: &[ValueId]) -> bool {
    let shape = &k.tile(tile).shape;
    let mut used: Vec<ValueId> = vec![];
    index.iter().zip(shape).all(|(&v, &n)| {
        if n == 1 && matches!(k.def(v), Some(OpKind::Const(Const::Index(0)))) {
            return true;
        }
        let Def::Arg(block, i) = k.value(v).def else {
            return false;
        };
        let is_all = k.ops.iter().any(|op| match &op.kind {
            OpKind::Map { extents, body } if *body == block => {
                extents.get(i as usize).is_some_and(|e| *e >= n)
            }
            _ => false,
        });
        let fresh = !used.contains(&v);
        used.push(v);
        is_all && fresh
    })
}

/// Whether a view is all of its tile.
pub(super) fn covers_view(k: &Kernel, v: &View) -> bool {
    let Base::Tile(t) = v.base else {
        return false;
    };
    let zero = |v: ValueId| matches!(k.def(v), Some(OpKind::Const(Const::Index(0))));
    v.slots.iter().zip(&k.tile(t).shape).all(|(s, n)| match s {
        Slot::At(i) => *n == 1 && zero(*i),
        Slot::Span { start, len } => len == n && zero(*start),
        Slot::Gather { .. } => false,
    })
}

/// Tiles whose contents a block reads before it has written all of them, and writes: they carry something from one run of
/// the block to the next.
pub fn carried(k: &Kernel, body: BlockId) -> Vec<TileId> {
    let mut c = Carried {
        k,
        written: written(k, body),
        done: vec![],
        found: vec![],
    };
    c.block(body);
    c.found
}

struct Carried<'k> {
    k: &'k Kernel,
    written: Vec<TileId>,
    done: Vec<TileId>,
    found: Vec<TileId>,
}

impl Carried<'_> {
    fn block(&mut self, b: BlockId) {
        let k = self.k;
        for &id in &k.block(b).ops {
            let kind = &k.op(id).kind;
            kind.for_each_tile(&mut |t, a| {
                if a == Access::Read
                    && self.written.contains(&t)
                    && !self.done.contains(&t)
                    && !self.found.contains(&t)
                {
                    self.found.push(t);
                }
            });
            match kind {
                // What these write may not be written at all.
                OpKind::For { body, .. } | OpKind::ForItems { body } => {
                    let done = self.done.clone();
                    self.block(*body);
                    self.done = done;
                }
                OpKind::If {
                    then, otherwise, ..
                } => {
                    let before = self.done.clone();
                    self.block(*then);
                    let yes = std::mem::replace(&mut self.done, before.clone());
                    if let Some(o) = otherwise {
                        self.block(*o);
                    }
                    let no = std::mem::replace(&mut self.done, before);
                    self.done.extend(yes.into_iter().filter(|t| no.contains(t)));
                }
                kind => {
                    for inner in kind.blocks() {
                        self.block(inner);
                    }
                    self.finish(kind);
                }
            }
        }
    }

    fn finish(&mut self, kind: &OpKind) {
        match kind {
            OpKind::StoreTile { tile, index, .. } if covers_tile(self.k, *tile, index) => {
                self.done.push(*tile)
            }
            OpKind::Copy { dst, oob, .. } if *oob != Oob::Skip && covers_view(self.k, dst) => {
                if let Base::Tile(t) = dst.base {
                    self.done.push(t);
                }
            }
            OpKind::Dot {
                acc,
                accumulate: false,
                ..
            } => {
                let view = View {
                    base: Base::Tile(acc.tile),
                    slots: acc.slots.clone(),
                };
                if covers_view(self.k, &view) {
                    self.done.push(acc.tile);
                }
            }
            OpKind::Reduce { dst, .. } | OpKind::Scan { dst, .. } => self.done.push(*dst),
            OpKind::TopK {
                values, indices, ..
            } => self.done.extend([*values, *indices]),
            OpKind::Get { tile, .. } => self.done.push(*tile),
            _ => {}
        }
    }
}
