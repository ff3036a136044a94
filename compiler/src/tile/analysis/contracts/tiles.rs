//! What the elements of tiles depend on, and what reaches outputs.

use super::*;

impl Cone<'_> {
    pub(super) fn store_tile(
        &mut self,
        tile: TileId,
        index: &[ValueId],
        value: ValueId,
        span: Span,
    ) {
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
        let whole = init::covers_tile(self.k, tile, index);
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

    pub(super) fn overwrite(&mut self, tile: TileId, state: TileState, span: Span) {
        self.put_tile(tile, state, true, span);
    }

    /// The elements of a view, coordinates in the order of its axes.
    pub(super) fn view_state(&mut self, v: &View, oob: Oob, span: Span) -> TileState {
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

    pub(super) fn write_view(&mut self, dst: &View, state: TileState, oob: Oob, span: Span) {
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
                let whole = init::covers_view(self.k, dst) && oob != Oob::Skip;
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

    pub(super) fn store_global(
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

    pub(super) fn dot(
        &mut self,
        acc: &TileView,
        a: &Operand,
        b: &Operand,
        accumulate: bool,
        span: Span,
    ) {
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
        let whole = !accumulate && init::covers_view(self.k, &target);
        self.put_tile(acc.tile, state, whole, span);
    }

    /// A fold, scan or sort along an axis: conditions that differ along it break the result.
    pub(super) fn without_axis(
        &mut self,
        src: TileId,
        axis: u32,
        drop: bool,
        span: Span,
    ) -> TileState {
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
}

pub(super) fn join_tiles(a: TileState, b: TileState) -> TileState {
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

pub(super) fn at_coordinates(t: &TileTag, coords: &[Linear]) -> Option<Linear> {
    let mut form = t.form.clone();
    for (c, x) in t.axes.iter().zip(coords) {
        form = form.add_scaled(x, *c)?;
    }
    Some(form)
}
