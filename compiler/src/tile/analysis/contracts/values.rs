//! What scalar values depend on.

use super::*;

impl Cone<'_> {
    pub(super) fn value(&mut self, kind: &OpKind, v: ValueId, span: Span) -> State {
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
    pub(super) fn unproved(&mut self, tags: Vec<Linear>) -> Vec<Linear> {
        tags.into_iter()
            .filter(|t| self.known.facts.prove(t).is_none())
            .collect()
    }

    /// A condition as rows that are valid; `Ok(vec![])` if the dim has no part in it.
    pub(super) fn condition_rows(
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
}

pub(super) fn merge(tags: &mut Vec<Linear>, more: Vec<Linear>) {
    for t in more {
        if !tags.contains(&t) {
            tags.push(t);
        }
    }
}
