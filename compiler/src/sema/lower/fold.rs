//! Built-in functions that make tiles by one op: folds and scans; and those with two results.

use super::builtin::FOLDS;
use super::builtin::FoldAxis;
use super::builtin::callee_name;
use super::tile::TileExpr;
use super::*;
use crate::syntax::ast::{Arg, Expr, ExprKind};
use tessera_artifact::DType;

impl Lower<'_, '_, '_> {
    // ---- tiles made by one op --------------------------------------------------------------------------

    /// `dot`, folds and scans: written into `dst` if one is given and fits, else into a temporary. `None`: no such call.
    pub(super) fn producer(&mut self, e: &Expr, dst: Option<TileId>) -> Option<Term> {
        let ExprKind::Call { callee, args } = &e.kind else {
            return None;
        };
        let ExprKind::Name(path) = &callee.kind else {
            return None;
        };
        let [name] = path.segments.as_slice() else {
            return None;
        };
        let fold = FOLDS.iter().find(|(n, ..)| *n == name.name);
        if fold.is_none() && !matches!(name.name.as_str(), "dot" | "cumsum") {
            return None;
        }
        if self.in_map.is_some() {
            self.report(say::tile_call_in_map(e.span, &name.name));
            return Some(Term::Error);
        }
        let made = match (fold, name.name.as_str()) {
            (Some((_, op, axis)), _) => self.fold(name, *op, *axis, args, e, dst),
            (None, "dot") => self.dot_value(args, e, dst),
            _ => self.cumsum(args, e, dst),
        };
        Some(made.unwrap_or(Term::Error))
    }

    /// The tile that a producer writes: `dst` if shape and dtype are right and it is no operand.
    pub(super) fn destination(
        &mut self,
        dst: Option<TileId>,
        shape: &[u64],
        dtype: DType,
        operands: &[TileId],
        span: Span,
    ) -> TileId {
        match dst {
            Some(t)
                if self.k.tile(t).shape == shape
                    && self.k.tile(t).dtype == dtype
                    && !operands.contains(&t) =>
            {
                t
            }
            _ => self.temporary(shape.to_vec(), dtype, span),
        }
    }

    fn fold(
        &mut self,
        name: &Ident,
        op: ir::FoldOp,
        axis: FoldAxis,
        args: &[Arg],
        e: &Expr,
        dst: Option<TileId>,
    ) -> Option<Term> {
        let (source, named) = self.split_args(name, args, &["axis", "order"], e)?;
        let t = self.tile_arg(source, &name.name)?;
        let logical = matches!(op, ir::FoldOp::And | ir::FoldOp::Or);
        if logical != (t.dtype == DType::Bool) || (!logical && !t.dtype.has_arithmetic()) {
            self.report(say::builtin_of_types(e, &name.name, t.dtype.name()));
            return None;
        }
        let rank = t.shape.len();
        let axis = match (axis, named[0]) {
            (FoldAxis::First, None) => 0,
            (FoldAxis::Last, None) => rank - 1,
            (FoldAxis::Given, None) if rank == 1 => 0,
            (FoldAxis::Given, None) => {
                self.report(say::axis_missing(e.span, &name.name, &t.shape));
                return None;
            }
            (FoldAxis::First | FoldAxis::Last, Some(arg)) => {
                self.report(say::unknown_named_argument_span(
                    arg.span, "axis", &name.name,
                ));
                return None;
            }
            (FoldAxis::Given, Some(arg)) => self.axis(arg, &t.shape)?,
        };
        let order = match named[1] {
            Some(arg) => self.order(&arg.value)?,
            None => ir::Order::Ascending,
        };
        let src = self.materialise(t.clone(), source.span);
        let mut shape = t.shape;
        shape.remove(axis);
        let dst = self.destination(dst, &shape, t.dtype, &[src], e.span);
        self.effect(
            OpKind::Reduce {
                dst,
                src,
                axis: axis as u32,
                op,
                order,
            },
            e.span,
        );
        Some(if shape.is_empty() {
            Term::Scalar(self.load(ir::Base::Tile(dst), vec![], e.span))
        } else {
            self.tile_term(dst, e.span)
        })
    }

    pub(super) fn axis(&mut self, arg: &Arg, shape: &[u64]) -> Option<usize> {
        let axis = self.static_int(&arg.value)?;
        if axis < 0 || axis as usize >= shape.len() {
            self.report(say::no_such_axis(arg.value.span, axis, shape));
            return None;
        }
        Some(axis as usize)
    }

    pub(super) fn order(&mut self, e: &Expr) -> Option<ir::Order> {
        match &e.kind {
            ExprKind::Name(path) if path_text(path) == "ascending" => Some(ir::Order::Ascending),
            ExprKind::Call { callee, args } => match (&callee.kind, args.as_slice()) {
                (ExprKind::Name(path), [width]) if path_text(path) == "tree" => {
                    let w = self.static_int(&width.value)?;
                    if !(1..=1 << 16).contains(&w) || !(w as u64).is_power_of_two() {
                        self.report(say::tree_width(width.value.span, w));
                        return None;
                    }
                    Some(ir::Order::Tree(w as u32))
                }
                _ => {
                    self.report(say::unknown_order(e.span));
                    None
                }
            },
            _ => {
                self.report(say::unknown_order(e.span));
                None
            }
        }
    }

    pub(super) fn cumsum(&mut self, args: &[Arg], e: &Expr, dst: Option<TileId>) -> Option<Term> {
        let name = callee_name(e)?;
        let (source, named) = self.split_args(name, args, &["axis"], e)?;
        let t = self.tile_arg(source, "cumsum")?;
        if !t.dtype.has_arithmetic() {
            self.report(say::builtin_of_types(e, "cumsum", t.dtype.name()));
            return None;
        }
        let axis = match named[0] {
            Some(arg) => self.axis(arg, &t.shape)?,
            None if t.shape.len() == 1 => 0,
            None => {
                self.report(say::axis_missing(e.span, "cumsum", &t.shape));
                return None;
            }
        };
        let src = self.materialise(t.clone(), source.span);
        let dst = self.destination(dst, &t.shape, t.dtype, &[src], e.span);
        let kind = OpKind::Scan {
            dst,
            src,
            axis: axis as u32,
            op: ir::FoldOp::Sum,
        };
        self.effect(kind, e.span);
        Some(self.tile_term(dst, e.span))
    }

    /// One positional argument and the named ones in the order of `names`.
    fn split_args<'e>(
        &mut self,
        name: &Ident,
        args: &'e [Arg],
        names: &[&str],
        e: &Expr,
    ) -> Option<(&'e Expr, Vec<Option<&'e Arg>>)> {
        let mut named: Vec<Option<&Arg>> = vec![None; names.len()];
        let mut positional = vec![];
        for a in args {
            match &a.name {
                None => positional.push(&a.value),
                Some(n) => match names.iter().position(|x| *x == n.name) {
                    Some(i) => named[i] = Some(a),
                    None => {
                        self.report(say::unknown_named_argument(n, &name.name, names));
                        return None;
                    }
                },
            }
        }
        match positional.as_slice() {
            [one] => Some((one, named)),
            _ => {
                let n = positional.len();
                self.report(say::wrong_number_of_arguments(e.span, &name.name, 1, n));
                None
            }
        }
    }

    fn tile_arg(&mut self, e: &Expr, function: &str) -> Option<TileExpr> {
        match self.expr(e, None) {
            Term::Tile(t) => Some(t),
            Term::Error => None,
            _ => {
                self.report(say::scalar_where_tile(e, function));
                None
            }
        }
    }

    // ---- several results --------------------------------------------------------------------------------

    /// `let (v, i) = topk(x, K);`: the two results as bindings.
    pub(super) fn several(&mut self, e: &Expr, names: &[Ident]) -> Option<[Binding; 2]> {
        let name = callee_name(e).filter(|n| matches!(n.name.as_str(), "topk" | "sort" | "argmax"));
        let (Some(name), ExprKind::Call { args, .. }) = (name, &e.kind) else {
            // Look for errors inside all the same.
            self.expr(e, None);
            self.report(say::one_result_for_several_names(e.span, names.len()));
            return None;
        };
        if names.len() != 2 {
            self.report(say::two_results(e.span, &name.name, names.len()));
            return None;
        }
        if self.in_map.is_some() {
            self.report(say::tile_call_in_map(e.span, &name.name));
            return None;
        }
        let mut smallest = false;
        let mut positional = vec![];
        for a in args {
            match &a.name {
                None => positional.push(&a.value),
                Some(n) if n.name == "smallest" && name.name != "argmax" => {
                    match self.expr(&a.value, None) {
                        Term::Const(Const::Bool(b)) => smallest = b,
                        Term::Error => return None,
                        _ => {
                            self.report(say::expected_condition(a.value.span));
                            return None;
                        }
                    }
                }
                Some(n) => {
                    let known: &[&str] = if name.name == "argmax" {
                        &[]
                    } else {
                        &["smallest"]
                    };
                    self.report(say::unknown_named_argument(n, &name.name, known));
                    return None;
                }
            }
        }
        let expected = if name.name == "topk" { 2 } else { 1 };
        if positional.len() != expected {
            let d = say::wrong_number_of_arguments(e.span, &name.name, expected, positional.len());
            self.report(d);
            return None;
        }
        let t = self.tile_arg(positional[0], &name.name)?;
        if !t.dtype.has_arithmetic() {
            self.report(say::builtin_of_types(e, &name.name, t.dtype.name()));
            return None;
        }
        let extent = *t.shape.last()?;
        let k = match name.name.as_str() {
            "topk" => {
                let k = self.static_int(positional[1])?;
                if k < 1 || k as u64 > extent {
                    self.report(say::topk_count(positional[1].span, k, &t.shape));
                    return None;
                }
                k as u64
            }
            "sort" => extent,
            _ => 1,
        };
        let src = self.materialise(t.clone(), positional[0].span);
        let mut shape = t.shape;
        let last = shape.len() - 1;
        shape[last] = k;
        let scalar = name.name == "argmax" && shape.len() == 1;
        let drop_axis = name.name == "argmax" && !scalar;
        let tile_name = |i: usize| {
            if name.name == "argmax" {
                "%tmp"
            } else {
                names[i].name.as_str()
            }
        };
        let values = self.new_tile(
            tile_name(0),
            ir::Space::Reg,
            shape.clone(),
            t.dtype,
            names[0].span,
        );
        let indices = self.new_tile(
            tile_name(1),
            ir::Space::Reg,
            shape.clone(),
            DType::I32,
            names[1].span,
        );
        let kind = OpKind::TopK {
            values,
            indices,
            src,
            smallest,
        };
        self.effect(kind, e.span);
        let mut out = vec![];
        for (tile, name) in [values, indices].into_iter().zip(names) {
            out.push(if scalar {
                let zero = self.index_const(0, e.span);
                let v = self.load(ir::Base::Tile(tile), vec![zero], e.span);
                self.name_value(v, &name.name);
                Binding::Value(v)
            } else if drop_axis {
                // `[R, 1]` as `[R]`.
                let zero = self.index_const(0, e.span);
                let mut view = self.whole(tile, e.span);
                view.slots[last] = ir::Slot::At(zero);
                let dtype = self.k.tile(tile).dtype;
                let flat = self.new_tile(
                    &name.name,
                    ir::Space::Reg,
                    shape[..last].to_vec(),
                    dtype,
                    name.span,
                );
                let dst = self.whole(flat, e.span);
                let oob = ir::Oob::Never;
                self.effect(
                    OpKind::Copy {
                        dst,
                        src: view,
                        oob,
                    },
                    e.span,
                );
                Binding::Tile {
                    tile: flat,
                    mutable: false,
                }
            } else {
                Binding::Tile {
                    tile,
                    mutable: false,
                }
            });
        }
        out.try_into().ok()
    }
}
