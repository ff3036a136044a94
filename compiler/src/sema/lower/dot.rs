//! `dot`.

use super::*;
use crate::syntax::ast::{Arg, Expr, ExprKind};
use tessera_artifact::DType;

impl Lower<'_, '_, '_> {
    /// The arguments if `e` is a call of `dot`.
    pub(super) fn dot_args(e: &Expr) -> Option<&[Arg]> {
        match &e.kind {
            ExprKind::Call { callee, args } => match &callee.kind {
                ExprKind::Name(path) if path_text(path) == "dot" => Some(args),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn dot_value(
        &mut self,
        args: &[Arg],
        e: &Expr,
        dst: Option<TileId>,
    ) -> Option<Term> {
        let (a, b, shape, dtype) = self.dot_operands(args, e)?;
        let operands = [a.view.tile, b.view.tile];
        let dst = self.destination(dst, &shape, dtype, &operands, e.span);
        let acc = self.whole_tile_view(dst, e.span);
        let kind = OpKind::Dot {
            acc,
            a,
            b,
            accumulate: false,
        };
        self.effect(kind, e.span);
        Some(self.tile_term(dst, e.span))
    }

    /// `acc += dot(a, b)`.
    pub(super) fn dot_accumulate(
        &mut self,
        acc: ir::View,
        target: &Expr,
        args: &[Arg],
        e: &Expr,
    ) -> Option<()> {
        let (a, b, shape, dtype) = self.dot_operands(args, e)?;
        let ir::Base::Tile(tile) = acc.base else {
            self.report(say::dot_into_global(target.span));
            return None;
        };
        if acc.shape() != shape {
            let d =
                say::dot_accumulator_shape(e.span, &self.describe(target, &acc.shape()), &shape);
            self.report(d);
            return None;
        }
        if self.k.tile(tile).dtype != dtype {
            let have = self.k.tile(tile).dtype;
            self.report(say::dot_accumulator_dtype(target, have, dtype));
            return None;
        }
        if a.view.tile == tile || b.view.tile == tile {
            self.report(say::dot_operand_is_accumulator(e.span));
            return None;
        }
        let kind = OpKind::Dot {
            acc: ir::TileView {
                tile,
                slots: acc.slots,
            },
            a,
            b,
            accumulate: true,
        };
        self.effect(kind, e.span);
        Some(())
    }

    fn whole_tile_view(&mut self, tile: TileId, span: Span) -> ir::TileView {
        ir::TileView {
            tile,
            slots: self.whole(tile, span).slots,
        }
    }

    /// Both operands, the shape of the product and the dtype it accumulates in.
    fn dot_operands(
        &mut self,
        args: &[Arg],
        e: &Expr,
    ) -> Option<(ir::Operand, ir::Operand, Vec<u64>, DType)> {
        let [a, b] = self.positional::<2>("dot", args, e)?;
        let x = self.dot_operand(a);
        let y = self.dot_operand(b);
        let (x, y) = (x?, y?);
        let (dx, dy) = (
            self.k.tile(x.view.tile).dtype,
            self.k.tile(y.view.tile).dtype,
        );
        if dx != dy {
            self.report(say::types_differ(e, a, dx.name(), b, dy.name()));
            return None;
        }
        let accumulator = match dx {
            DType::F64 => DType::F64,
            DType::I8 | DType::U8 => DType::I32,
            DType::UE8M0 | DType::Bool => {
                self.report(say::builtin_of_types(e, "dot", dx.name()));
                return None;
            }
            d if d.is_int() => {
                self.report(say::builtin_of_types(e, "dot", d.name()));
                return None;
            }
            _ => DType::F32,
        };
        let (xs, ys) = (operand_shape(&x), operand_shape(&y));
        if xs[1] != ys[0] {
            let (dx, dy) = (self.describe(a, &xs), self.describe(b, &ys));
            self.report(say::dot_inner_extents(
                e.span, &dx, a.span, xs[1], &dy, b.span, ys[0],
            ));
            return None;
        }
        Some((x, y, vec![xs[0], ys[1]], accumulator))
    }

    fn dot_operand(&mut self, e: &Expr) -> Option<ir::Operand> {
        let (inner, transposed) = match &e.kind {
            ExprKind::Method {
                receiver,
                name,
                args,
            } if name.name == "t" && args.is_empty() => (&**receiver, true),
            _ => (e, false),
        };
        let t = match self.expr(inner, None) {
            Term::Error => return None,
            Term::Tile(t) => t,
            _ => {
                self.report(say::scalar_where_tile(inner, "dot"));
                return None;
            }
        };
        if t.shape.len() != 2 {
            let d = say::dot_rank(e.span, &self.describe(inner, &t.shape));
            self.report(d);
            return None;
        }
        let view = match self.as_view(t, e.span) {
            ir::View {
                base: ir::Base::Tile(tile),
                slots,
            } if !slots.iter().any(|s| matches!(s, ir::Slot::Gather { .. })) => {
                ir::TileView { tile, slots }
            }
            ir::View {
                base: ir::Base::Param(_),
                ..
            } => {
                self.report(say::dot_of_global(inner));
                return None;
            }
            _ => {
                self.report(say::dot_of_gather(inner.span));
                return None;
            }
        };
        Some(ir::Operand { view, transposed })
    }
}

fn operand_shape(o: &ir::Operand) -> Vec<u64> {
    let mut shape = o.view.shape();
    if o.transposed {
        shape.reverse();
    }
    shape
}
