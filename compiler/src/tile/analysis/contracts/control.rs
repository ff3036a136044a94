//! Loops and branches: trip counts and conditions that depend on the dim break what they govern.

use super::*;

impl Cone<'_> {
    pub(super) fn for_loop(&mut self, lo: ValueId, hi: ValueId, body: BlockId, span: Span) {
        let Some(&var) = self.k.block(body).args.first() else {
            return;
        };
        let bounds = match self.join(&[lo, hi], span, "this loop's bounds depend on it") {
            State::Known(_) => None,
            State::Broken(cause) => Some(cause),
        };
        let written = init::written(self.k, body);
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

    pub(super) fn branch(
        &mut self,
        cond: ValueId,
        then: BlockId,
        otherwise: Option<BlockId>,
        span: Span,
    ) {
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
