//! Roles and channels.

use super::*;
use crate::syntax::ast::{Arg, AssignOp, Attr, Block, ElemType, Expr, ExprKind};

impl Lower<'_, '_, '_> {
    pub(super) fn channel(&mut self, name: &Ident, ty: &ast::Type, attrs: &[Attr]) {
        self.check_attrs(attrs, "a channel", &["slots", "parts", "ring", "layout"]);
        if self.role.is_some() || self.frames.len() > 1 {
            self.report(say::channel_not_at_top(name.span));
        }
        let shape = self.tile_shape(&ty.shape);
        if let ElemType::Name(n) = &ty.elem {
            self.used_generics.insert(n.name.clone());
        }
        let dtype = match &ty.elem {
            ElemType::Index => {
                self.report(say::tile_of_index(ty.span));
                None
            }
            _ => header::elem_dtype(ty, &self.cx, self.sink),
        };
        let mut slots = None;
        let mut parts = 1;
        let mut ring = None;
        for a in attrs {
            match (a.name.name.as_str(), a.args.as_slice()) {
                ("slots", [n]) => match self.static_int(&n.value) {
                    Some(n) if (1..=64).contains(&n) => slots = Some(n as u32),
                    Some(n) => self.report(say::slots_out_of_range(a.span, n)),
                    None => {}
                },
                ("parts", [n]) => match self.static_int(&n.value) {
                    Some(n) if (1..=16).contains(&n) => parts = n as u32,
                    Some(n) => self.report(say::slots_out_of_range(a.span, n)),
                    None => {}
                },
                ("ring", [c]) => match &c.value.kind {
                    ExprKind::Name(path) => match self.resolve(path) {
                        Binding::Channel(id) if self.k.channels[id.index()].ring.is_some() => self
                            .report(say::attribute_argument(
                                a,
                                "a channel with slots of its own",
                            )),
                        Binding::Channel(id) => ring = Some(id),
                        Binding::Error => {}
                        _ => self.report(say::not_a_channel(c.value.span, &path_text(path))),
                    },
                    _ => self.report(say::attribute_argument(a, "the name of a channel")),
                },
                ("slots" | "parts", _) => self.report(say::attribute_argument(a, "a number")),
                ("ring", _) => self.report(say::attribute_argument(a, "the name of a channel")),
                _ => {}
            }
        }
        let (Some(shape), Some(dtype)) = (shape, dtype) else {
            self.declare(name, Binding::Error, None);
            return;
        };
        if shape.is_empty() || shape[0] % parts as u64 != 0 {
            self.report(say::parts_do_not_divide(
                name.span, &name.name, parts, &shape,
            ));
        }
        self.k.channels.push(ir::Channel {
            name: name.name.clone(),
            shape,
            dtype,
            slots,
            parts,
            ring,
            shared: false,
            span: name.span,
        });
        let id = ChannelId(self.k.channels.len() as u32 - 1);
        self.declare(name, Binding::Channel(id), Some("channel"));
    }

    pub(super) fn role(&mut self, name: &Ident, attrs: &[Attr], body: &Block, span: Span) {
        self.check_attrs(attrs, "a role", &["copies", "turns"]);
        if self.role.is_some() || self.frames.len() > 1 {
            self.report(say::role_not_at_top(name.span));
            return;
        }
        let (mut copies, mut turns) = (1, 1);
        for a in attrs {
            match (a.name.name.as_str(), a.args.as_slice()) {
                ("copies", [n]) => match self.static_int(&n.value) {
                    Some(n) if (1..=16).contains(&n) => copies = n as u32,
                    Some(n) => self.report(say::copies_out_of_range(a.span, n)),
                    None => {}
                },
                ("turns", [n]) => match self.static_int(&n.value) {
                    Some(n) if (1..=4).contains(&n) => turns = n as u32,
                    Some(n) => self.report(say::turns_out_of_range(a.span, n)),
                    None => {}
                },
                ("copies" | "turns", _) => self.report(say::attribute_argument(a, "a number")),
                _ => {}
            }
        }
        let block = self.new_block();
        let copy_id = self.block_arg(block, Some("copy_id"));
        self.role = Some(name.span);
        self.has_roles = true;
        self.inside(block, |l| {
            l.declare_text("copy_id".into(), name.span, Binding::Value(copy_id), None);
            l.block(body);
        });
        self.role = None;
        let kind = OpKind::Role {
            name: name.name.clone(),
            copies,
            turns,
            body: block,
        };
        self.effect(kind, span);
    }

    fn find_channel(&mut self, name: &Ident) -> Option<ChannelId> {
        let path = ast::Path {
            segments: vec![name.clone()],
            span: name.span,
        };
        match self.resolve(&path) {
            Binding::Channel(id) => {
                if self.role.is_none() {
                    self.report(say::channel_outside_role(name.span, &name.name));
                }
                Some(id)
            }
            Binding::Error => None,
            _ => {
                self.report(say::not_a_channel(name.span, &name.name));
                None
            }
        }
    }

    pub(super) fn put(&mut self, channel: &Ident, value: &Expr, attrs: &[Attr], span: Span) {
        self.check_attrs(attrs, "`put`", &["oob", "missing", "via", "vector"]);
        let oob = self.oob(attrs);
        let id = self.find_channel(channel);
        let term = self.expr(value, None);
        let Some(id) = id else { return };
        let (shape, dtype) = {
            let c = &self.k.channels[id.index()];
            (c.shape.clone(), c.dtype)
        };
        let target = format!("the channel `{}`", channel.name);
        let Some(t) = self.fit(term, &shape, dtype, value, &target) else {
            return;
        };
        let view = match &t.node {
            tile::Node::View(v) => {
                let v = v.clone();
                let oob = self.gather_oob(&v, oob, span).or(oob);
                self.effect(
                    OpKind::Put {
                        channel: id,
                        src: v,
                        oob: oob.unwrap_or(ir::Oob::Never),
                    },
                    span,
                );
                return;
            }
            _ => {
                let tile = self.temporary(shape, dtype, span);
                let dst = self.whole(tile, span);
                self.store(dst.clone(), t, AssignOp::Set, oob, span);
                dst
            }
        };
        let kind = OpKind::Put {
            channel: id,
            src: view,
            oob: ir::Oob::Never,
        };
        self.effect(kind, span);
    }

    fn slot_tile(&mut self, id: ChannelId, name: &str, span: Span) -> TileId {
        let c = &self.k.channels[id.index()];
        let (shape, dtype) = (c.shape.clone(), c.dtype);
        let tile = self.new_tile(name, ir::Space::Slot, shape, dtype, span);
        self.slots.insert(tile, id);
        tile
    }

    pub(super) fn get(&mut self, channel: &Ident, name: &Ident, span: Span) {
        let Some(id) = self.find_channel(channel) else {
            self.declare(name, Binding::Error, None);
            return;
        };
        let tile = self.slot_tile(id, &name.name, name.span);
        self.effect(OpKind::Get { channel: id, tile }, span);
        let binding = Binding::Tile {
            tile,
            mutable: false,
        };
        self.declare(name, binding, Some("tile"));
    }

    /// `take(ch)`: the next tile as a copy; the slot goes back at once.
    pub(super) fn take_call(&mut self, args: &[Arg], e: &Expr) -> Term {
        let [
            Arg {
                name: None, value, ..
            },
        ] = args
        else {
            self.report(say::wrong_number_of_arguments(
                e.span,
                "take",
                1,
                args.len(),
            ));
            return Term::Error;
        };
        if self.in_map.is_some() {
            self.report(say::tile_call_in_map(e.span, "take"));
            return Term::Error;
        }
        let name = match &value.kind {
            ExprKind::Name(path) if path.segments.len() == 1 => &path.segments[0],
            _ => {
                self.report(say::not_a_channel(
                    value.span,
                    &super::super::text::expr(value),
                ));
                return Term::Error;
            }
        };
        let Some(channel) = self.find_channel(name) else {
            return Term::Error;
        };
        let slot = self.slot_tile(channel, &name.name, e.span);
        self.effect(
            OpKind::Get {
                channel,
                tile: slot,
            },
            e.span,
        );
        let (shape, dtype) = {
            let c = &self.k.channels[channel.index()];
            (c.shape.clone(), c.dtype)
        };
        let tile = self.temporary(shape, dtype, e.span);
        let dst = self.whole(tile, e.span);
        let src = self.whole(slot, e.span);
        let oob = ir::Oob::Never;
        self.effect(OpKind::Copy { dst, src, oob }, e.span);
        let kind = OpKind::Release {
            tile: slot,
            part: None,
        };
        self.effect(kind, e.span);
        self.tile_term(tile, e.span)
    }

    /// `release x;`, `release x[0 :+ 32];`
    pub(super) fn release(&mut self, target: &Expr, span: Span) {
        // `release k[0 :+ 32]` names rows; the other axes are whole.
        let mut padded = target.clone();
        if let ExprKind::Index { base, slots } = &mut padded.kind
            && let Some(Binding::Tile { tile, .. }) = self.base_of(base)
        {
            let rank = self.k.tile(tile).shape.len();
            while slots.len() < rank {
                slots.push(ast::IndexSlot::Full(target.span));
            }
        }
        let place = match self.place(&padded) {
            Some(view::Place::View(v)) => v,
            Some(_) => {
                self.report(say::release_target(target.span));
                return;
            }
            None => return,
        };
        let ir::Base::Tile(tile) = place.base else {
            self.report(say::release_target(target.span));
            return;
        };
        let Some(&channel) = self.slots.get(&tile) else {
            self.report(say::release_target(target.span));
            return;
        };
        let c = &self.k.channels[channel.index()];
        let rows = c.shape[0] / c.parts.max(1) as u64;
        let whole = place
            .slots
            .iter()
            .zip(&c.shape)
            .all(|(s, n)| s.len() == Some(*n));
        let rest_whole = place.slots[1..]
            .iter()
            .zip(&c.shape[1..])
            .all(|(s, n)| s.len() == Some(*n));
        let part = match &place.slots[0] {
            _ if whole => None,
            ir::Slot::Span { start, len } if rest_whole && *len == rows => {
                match self.const_index(*start) {
                    Some(s) if (s as u64).is_multiple_of(rows) => Some((s as u64 / rows) as u32),
                    _ => {
                        let d = say::release_part(target.span, &c.name, c.parts, rows);
                        self.report(d);
                        return;
                    }
                }
            }
            _ => {
                let d = say::release_part(target.span, &c.name, c.parts, rows);
                self.report(d);
                return;
            }
        };
        self.effect(OpKind::Release { tile, part }, span);
    }
}
