//! Roles and channels: who puts and who gets, the same loops around both, no deadlock, nothing else shared.
//!
//! All roles have the same loop nest around the puts and gets of a channel, so a balance per trip is a balance for every input,
//! and a run with a few trips of each loop shows every deadlock: after more trips than a ring has slots the state repeats.
//!
//! Needs: verified IR. Keeps: everything.

use super::forms::{Forms, is_integer};
use super::linear::Linear;
use crate::diag::Sink;
use crate::diag::catalogue::channels as say;
use crate::source::Span;
use crate::tile::ir::*;
use crate::tile::visit::Access;

pub fn check(k: &Kernel, sink: &mut Sink) {
    let roles = roles(k);
    if roles.is_empty() {
        for c in &k.channels {
            sink.report(say::channel_without_roles(c.span, &c.name));
        }
        return;
    }
    shared_state(k, &roles, sink);
    let before = sink.iter().count();
    ends(k, &roles, sink);
    if sink.iter().count() == before {
        balance(k, &roles, sink);
    }
    if sink.iter().count() == before {
        deadlock(k, &roles, sink);
    }
}

struct Role<'k> {
    name: &'k str,
    copies: u32,
    body: BlockId,
}

fn roles(k: &Kernel) -> Vec<Role<'_>> {
    let ops = k.block(k.body).ops.iter();
    ops.filter_map(|&op| match &k.op(op).kind {
        OpKind::Role {
            name, copies, body, ..
        } => Some(Role {
            name,
            copies: *copies,
            body: *body,
        }),
        _ => None,
    })
    .collect()
}

fn each_op(k: &Kernel, b: BlockId, f: &mut dyn FnMut(&Op)) {
    for &id in &k.block(b).ops {
        let op = k.op(id);
        f(op);
        for inner in op.kind.blocks() {
            each_op(k, inner, f);
        }
    }
}

/// How a role touches a tensor, and the part of each axis where a copy writes it, if that is constant.
struct Touch {
    role: usize,
    access: Access,
    span: Span,
    parts: Vec<Option<(i64, u64)>>,
}

/// A written tensor that two roles touch, unless they copy to parts of it that lie apart. (A tile of two roles is refused where it is named.)
fn shared_state(k: &Kernel, roles: &[Role], sink: &mut Sink) {
    let mut tensors: Vec<Vec<Touch>> = k.params.iter().map(|_| vec![]).collect();
    for (role, Role { body, .. }) in roles.iter().enumerate() {
        each_op(k, *body, &mut |op| {
            let flags = matches!(op.kind, OpKind::Signal { .. } | OpKind::Wait { .. });
            if !flags {
                op.kind.for_each_tensor(&mut |p, access| {
                    tensors[p.index()].push(Touch {
                        role,
                        access,
                        span: op.span,
                        parts: parts(k, &op.kind, p),
                    });
                });
            }
        });
    }
    for (p, uses) in tensors.iter().enumerate() {
        let writes = || uses.iter().filter(|u| u.access == Access::Write);
        let meets = |w: &Touch, u: &Touch| w.role != u.role && !lie_apart(&w.parts, &u.parts);
        let found = writes().find_map(|w| uses.iter().find(|u| meets(w, u)).map(|u| (w, u)));
        if let Some((writer, other)) = found {
            let names = [roles[writer.role].name, roles[other.role].name];
            sink.report(say::tensor_of_two_roles(
                other.span,
                &k.params[p].name,
                writer.span,
                names,
            ));
        }
    }
}

/// Start and length of the part that a copy writes, by axis; nothing of other ops.
fn parts(k: &Kernel, kind: &OpKind, p: ParamId) -> Vec<Option<(i64, u64)>> {
    let OpKind::Copy { dst, src, .. } = kind else {
        return vec![];
    };
    if dst.base != Base::Param(p) || src.base == Base::Param(p) {
        return vec![];
    }
    let part = |slot: &Slot| match slot {
        Slot::At(at) => Some((k.const_index(*at)?, 1)),
        Slot::Span { start, len } => Some((k.const_index(*start)?, *len)),
        Slot::Gather { .. } => None,
    };
    dst.slots.iter().map(part).collect()
}

/// Whether one of two parts ends before the other starts, along some axis.
fn lie_apart(a: &[Option<(i64, u64)>], b: &[Option<(i64, u64)>]) -> bool {
    let before = |(a, len): (i64, u64), (b, _): (i64, u64)| a.saturating_add_unsigned(len) <= b;
    (a.iter().zip(b)).any(|(a, b)| match (*a, *b) {
        (Some(a), Some(b)) => before(a, b) || before(b, a),
        _ => false,
    })
}

/// One role puts, at least one other gets.
fn ends(k: &Kernel, roles: &[Role], sink: &mut Sink) {
    for (c, channel) in k.channels.iter().enumerate() {
        let mut puts: Vec<(usize, Span)> = vec![];
        let mut gets: Vec<(usize, Span)> = vec![];
        for (r, role) in roles.iter().enumerate() {
            each_op(k, role.body, &mut |op| match &op.kind {
                OpKind::Put { channel, .. } if channel.index() == c => puts.push((r, op.span)),
                OpKind::Get { channel, .. } if channel.index() == c => gets.push((r, op.span)),
                _ => {}
            });
        }
        match (puts.first(), gets.first()) {
            (None, _) => sink.report(say::nobody_puts(channel.span, &channel.name)),
            (_, None) => sink.report(say::nobody_gets(channel.span, &channel.name)),
            (Some((writer, at)), _) => {
                if let Some((other, span)) = puts.iter().find(|(r, _)| r != writer) {
                    let names = [roles[*writer].name, roles[*other].name];
                    sink.report(say::two_writers(*span, &channel.name, *at, names));
                }
                if roles[*writer].copies > 1 {
                    sink.report(say::writer_has_copies(
                        *at,
                        &channel.name,
                        roles[*writer].name,
                    ));
                }
                if let Some((_, span)) = gets.iter().find(|(r, _)| r == writer) {
                    sink.report(say::gets_its_own(*span, &channel.name, *at));
                }
            }
        }
    }
}

/// The loops around an op: items, or bounds as forms.
#[derive(Clone, Debug, PartialEq)]
enum Around {
    Items,
    Loop(Linear, Linear),
}

struct Uses {
    /// Channel, put or get, loops around, place.
    list: Vec<(usize, bool, Vec<Around>, Span)>,
}

fn uses(k: &Kernel, known: &mut Forms, role: &Role, sink: &mut Sink) -> Uses {
    let mut u = Uses { list: vec![] };
    for v in &k.block(role.body).args {
        known.variable(*v, 0, role.copies as i128 - 1);
    }
    collect(k, known, role.body, &mut vec![], false, &mut u, sink);
    u
}

fn collect(
    k: &Kernel,
    known: &mut Forms,
    b: BlockId,
    around: &mut Vec<Around>,
    branch: bool,
    u: &mut Uses,
    sink: &mut Sink,
) {
    for &id in &k.block(b).ops {
        let op = k.op(id);
        if let Some(v) = op.result
            && is_integer(k.ty(v))
        {
            known.form(v);
        }
        match &op.kind {
            OpKind::Put { channel, .. } | OpKind::Get { channel, .. } => {
                let put = matches!(op.kind, OpKind::Put { .. });
                if branch {
                    let name = &k.channels[channel.index()].name;
                    sink.report(say::channel_in_branch(op.span, name, put));
                }
                u.list.push((channel.index(), put, around.clone(), op.span));
            }
            OpKind::For { lo, hi, body, .. } => {
                let (l, h) = (known.form(*lo), known.form(*hi));
                if let Some(&var) = k.block(*body).args.first() {
                    let mark = known.facts.mark();
                    known.enter_loop(var, *lo, *hi);
                    around.push(Around::Loop(l, h));
                    collect(k, known, *body, around, branch, u, sink);
                    around.pop();
                    known.facts.back_to(mark);
                }
            }
            OpKind::ForItems { body } => {
                known.items(&k.block(*body).args.clone());
                around.push(Around::Items);
                collect(k, known, *body, around, branch, u, sink);
                around.pop();
            }
            OpKind::If {
                then, otherwise, ..
            } => {
                let either_way = put_either_way(k, &op.kind);
                let only_sometimes = either_way.is_none() || branch;
                collect(k, known, *then, around, only_sometimes, u, sink);
                if let Some(side) = otherwise {
                    // What both put counts once.
                    let same = &mut Uses { list: vec![] };
                    let u = if only_sometimes { &mut *u } else { same };
                    collect(k, known, *side, around, only_sometimes, u, sink);
                }
            }
            _ => {}
        }
    }
}

/// The channels that both sides of a branch put into, in their order, if that is all that they do with channels.
pub fn put_either_way(k: &Kernel, kind: &OpKind) -> Option<Vec<ChannelId>> {
    let &OpKind::If {
        then,
        otherwise: Some(otherwise),
        ..
    } = kind
    else {
        return None;
    };
    let puts = |block: BlockId| {
        let mut all = 0;
        k.walk(block, &mut |_, op| {
            all += usize::from(matches!(
                k.op(op).kind,
                OpKind::Put { .. } | OpKind::Get { .. } | OpKind::Release { .. }
            ));
        });
        let own: Vec<ChannelId> = (k.block(block).ops.iter())
            .filter_map(|&op| match k.op(op).kind {
                OpKind::Put { channel, .. } => Some(channel),
                _ => None,
            })
            .collect();
        (own.len() == all && all > 0).then_some(own)
    };
    let own = puts(then)?;
    (puts(otherwise)? == own).then_some(own)
}

/// Under each nest of loops a reader gets as often as the writer puts.
fn balance(k: &Kernel, roles: &[Role], sink: &mut Sink) {
    let mut known = Forms::new(k);
    let all: Vec<Uses> = roles.iter().map(|r| uses(k, &mut known, r, sink)).collect();
    for (c, channel) in k.channels.iter().enumerate() {
        let count = |u: &Uses, put: bool| {
            let mut nests: Vec<(Vec<Around>, usize, Span)> = vec![];
            for (_, _, around, span) in u.list.iter().filter(|x| x.0 == c && x.1 == put) {
                match nests.iter_mut().find(|n| n.0 == *around) {
                    Some(n) => n.1 += 1,
                    None => nests.push((around.clone(), 1, *span)),
                }
            }
            nests
        };
        let Some((writer, puts)) = all.iter().enumerate().find_map(|(r, u)| {
            let puts = count(u, true);
            (!puts.is_empty()).then_some((r, puts))
        }) else {
            continue;
        };
        for (reader, u) in all.iter().enumerate() {
            let gets = count(u, false);
            if gets.is_empty() {
                continue;
            }
            let names = [roles[writer].name, roles[reader].name];
            for (around, n, span) in &puts {
                let m = gets.iter().find(|g| g.0 == *around);
                match m {
                    Some((_, m, at)) if m != n => {
                        sink.report(say::unbalanced(*at, &channel.name, *span, names, *n, *m));
                    }
                    Some(_) => {}
                    None => {
                        let at = gets[0].2;
                        sink.report(say::loops_differ(at, &channel.name, *span, names));
                    }
                }
            }
            for (around, _, at) in &gets {
                if !puts.iter().any(|p| p.0 == *around) {
                    sink.report(say::loops_differ(*at, &channel.name, puts[0].2, names));
                }
            }
        }
    }
}

// ---- deadlock --------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug)]
enum Event {
    Put(usize, Span),
    Get(usize, Span),
    Release(usize),
}

/// The events of a role with `trips` runs of each loop.
fn events(k: &Kernel, b: BlockId, trips: u32, out: &mut Vec<Event>) {
    // Slots that this block has and gives back at its end, with the parts that are left.
    let mut held: Vec<(TileId, usize, u32)> = vec![];
    for &id in &k.block(b).ops {
        let op = k.op(id);
        match &op.kind {
            OpKind::Put { channel, .. } => out.push(Event::Put(channel.index(), op.span)),
            OpKind::Get { channel, tile } => {
                out.push(Event::Get(channel.index(), op.span));
                let parts = k.channels[channel.index()].parts;
                held.push((*tile, channel.index(), parts));
            }
            OpKind::Release { tile, part } => {
                if let Some(i) = held.iter().position(|h| h.0 == *tile) {
                    held[i].2 = match part {
                        None => 0,
                        Some(_) => held[i].2.saturating_sub(1),
                    };
                    if held[i].2 == 0 {
                        out.push(Event::Release(held[i].1));
                        held.remove(i);
                    }
                }
            }
            // Both sides put alike.
            OpKind::If { then, .. } => events(k, *then, trips, out),
            OpKind::For { body, .. } | OpKind::ForItems { body } => {
                for _ in 0..trips {
                    if out.len() < 1 << 16 {
                        events(k, *body, trips, out);
                    }
                }
            }
            _ => {}
        }
    }
    out.extend(held.iter().map(|h| Event::Release(h.1)));
}

fn deadlock(k: &Kernel, roles: &[Role], sink: &mut Sink) {
    let slots = k.channels.iter().filter_map(|c| c.slots).max().unwrap_or(1);
    let trips = slots.min(6) + 2;
    let scripts: Vec<Vec<Event>> = roles
        .iter()
        .map(|r| {
            let mut out = vec![];
            events(k, r.body, trips, &mut out);
            out
        })
        .collect();
    let n = k.channels.len();
    let mut at = vec![0usize; roles.len()];
    let mut written = vec![0u64; n];
    let mut got = vec![vec![0u64; n]; roles.len()];
    let mut released = vec![vec![0u64; n]; roles.len()];
    let readers: Vec<Vec<usize>> = (0..n)
        .map(|c| {
            let reads = |s: &Vec<Event>| s.iter().any(|e| matches!(e, Event::Get(x, _) if *x == c));
            (0..roles.len()).filter(|&r| reads(&scripts[r])).collect()
        })
        .collect();
    // Channels that share the slots of one ring, by the ring's own channel.
    let ring = |c: usize| k.channels[c].ring.map_or(c, |r| r.index());
    loop {
        let mut moved = false;
        for r in 0..roles.len() {
            while let Some(event) = scripts[r].get(at[r]) {
                match event {
                    Event::Put(c, _) => {
                        // A ring without a number of slots gets as many as it needs.
                        if let Some(slots) = k.channels[ring(*c)].slots {
                            let occupied: u64 = (0..n)
                                .filter(|&x| ring(x) == ring(*c))
                                .map(|x| {
                                    let back = readers[x].iter().map(|&q| released[q][x]).min();
                                    written[x] - back.unwrap_or(written[x])
                                })
                                .sum();
                            if occupied >= slots as u64 {
                                break;
                            }
                        }
                        written[*c] += 1;
                    }
                    Event::Get(c, _) => {
                        if got[r][*c] >= written[*c] {
                            break;
                        }
                        got[r][*c] += 1;
                    }
                    Event::Release(c) => released[r][*c] += 1,
                }
                at[r] += 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let stuck: Vec<(usize, Event)> = (0..roles.len())
        .filter_map(|r| scripts[r].get(at[r]).map(|e| (r, *e)))
        .collect();
    let Some((first, event)) = stuck.first() else {
        return;
    };
    let describe = |r: usize, e: &Event| match e {
        Event::Put(c, span) => {
            let c = &k.channels[*c];
            let slots = c.slots.unwrap_or(0);
            let text = format!(
                "`{}` waits here for a free slot of `{}`, which has {slots}",
                roles[r].name, c.name
            );
            (*span, text)
        }
        Event::Get(c, span) => {
            let text = format!(
                "`{}` waits here for `{}`",
                roles[r].name, k.channels[*c].name
            );
            (*span, text)
        }
        Event::Release(c) => (k.channels[*c].span, String::new()),
    };
    let (span, text) = describe(*first, event);
    let others: Vec<(Span, String)> = stuck[1..].iter().map(|(r, e)| describe(*r, e)).collect();
    sink.report(say::deadlock(span, &text, &others));
}
