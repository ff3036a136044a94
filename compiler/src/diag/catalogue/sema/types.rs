//! `TL02xx`, first half: types, shapes, operators, built-in functions, views.

use super::{plural, shape};
use crate::diag::Diagnostic;
use crate::sema::{Const, text};
use crate::source::Span;
use crate::syntax::ast::{Expr, ExprKind};
use tessera_artifact::DType;

pub fn types_differ(e: &Expr, a: &Expr, ta: &str, b: &Expr, tb: &str) -> Diagnostic {
    let d = Diagnostic::error("TL0201", e.span, format!("{ta} and {tb} do not mix"))
        .also(a.span, ta)
        .also(b.span, tb)
        .note("there is no implicit promotion");
    match (ta, tb) {
        ("index", other) => d.help(format!(
            "convert one: `index({})` or `{other}({})`",
            text::expr(b),
            text::expr(a)
        )),
        (other, "index") => d.help(format!(
            "convert one: `index({})` or `{other}({})`",
            text::expr(a),
            text::expr(b)
        )),
        _ => d.help(format!("convert one: `.cast({ta})` or `.cast({tb})`")),
    }
}

pub fn operand_shapes_differ(span: Span, a: &str, sa: Span, b: &str, sb: Span) -> Diagnostic {
    Diagnostic::error("TL0202", span, "these tiles have different shapes")
        .also(sa, a)
        .also(sb, b)
        .help("only scalars are broadcast; index the smaller one in a `map`")
}

pub fn shapes_differ(span: Span, mine: &str, target: &str, expected: &[u64]) -> Diagnostic {
    Diagnostic::error(
        "TL0203",
        span,
        format!("{mine}, but {target} is {}", shape(expected)),
    )
    .help("only scalars are spread over a tile; index with a `map`, or change one of the shapes")
}

pub fn needs_cast(e: &Expr, from: DType, to: DType, target: &str) -> Diagnostic {
    let cast = match &e.kind {
        ExprKind::Binary(..) | ExprKind::Select(..) | ExprKind::Unary(..) => {
            format!("({}).cast({to})", text::expr(e))
        }
        _ => format!("{}.cast({to})", text::expr(e)),
    };
    Diagnostic::error(
        "TL0204",
        e.span,
        format!("{target} is {to}, and not every {from} is one"),
    )
    .label(from.name())
    .suggest(format!("round it: `{cast}`"), e.span, cast)
}

pub fn needs_conversion(e: &Expr, from: &str, to: &str) -> Diagnostic {
    let call = format!("{to}({})", text::expr(e));
    Diagnostic::error(
        "TL0205",
        e.span,
        format!("this is {from}, and {to} is needed"),
    )
    .suggest(format!("convert it: `{call}`"), e.span, call)
}

pub fn no_conversion(e: &Expr, from: &str, to: &str) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0206",
        e.span,
        format!("there is no conversion from {from} to {to}"),
    );
    match to {
        "bool" => d.help("compare it with 0"),
        "index" if from == "bool" => d.help("write `c ? 1 : 0`"),
        "index" => d.help("go through an integer: `index(i32(x))`"),
        _ => d,
    }
}

pub fn integer_where_float(e: &Expr, value: i128, dtype: DType) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0207",
        e.span,
        format!("this is an integer, and {dtype} is needed"),
    );
    match &e.kind {
        ExprKind::Int(_) => d.suggest(format!("write `{value}.0`"), e.span, format!("{value}.0")),
        _ => {
            let call = format!("{dtype}({})", text::expr(e));
            d.label(value.to_string())
                .suggest(format!("write `{call}`"), e.span, call)
        }
    }
}

pub fn constant_of_wrong_type(span: Span, value: &Const, needed: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0208",
        span,
        format!("this is {}, and {needed} is needed", value.kind()),
    )
    .help("write a constant of that type")
}

pub fn literal_out_of_range(
    span: Span,
    value: i128,
    dtype: DType,
    lo: i128,
    hi: i128,
) -> Diagnostic {
    Diagnostic::error("TL0209", span, format!("{value} is no {dtype}"))
        .note(format!("{dtype} holds {lo} to {hi}"))
}

pub fn operator_of_type(e: &Expr, sign: &str, ty: &str) -> Diagnostic {
    let quoted = if sign.contains(' ') && !sign.contains('?') {
        sign.to_string()
    } else {
        format!("`{sign}`")
    };
    let d = Diagnostic::error(
        "TL0210",
        e.span,
        format!("{quoted} is not defined for {ty}"),
    );
    match ty {
        "e4m3" | "e5m2" | "e2m1" | "ue8m0" => d.help("cast to f32 first"),
        "f32" | "bf16" | "f16" | "f64" if sign == "%" => d.help("use `x - floor(x / y) * y`"),
        "bool" => d.help("use `&&`, `||`, `!` or `==`"),
        "index" if matches!(sign, "<<" | ">>" | "&" | "|" | "^") => {
            d.help("use `*`, `/` and `%`, or convert to i32")
        }
        _ => d,
    }
}

pub fn builtin_of_types(e: &Expr, name: &str, types: &str) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0211",
        e.span,
        format!("`{name}` is not defined for {types}"),
    );
    match types {
        "index" | "i32" | "i64" | "u32" => d.help("convert to f32 first"),
        "e4m3" | "e5m2" | "e2m1" | "ue8m0" if name != "dot" => d.help("cast to f32 first"),
        _ => d,
    }
}

pub fn condition_not_bool(e: &Expr, ty: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0212",
        e.span,
        format!("a condition is a bool, this is {ty}"),
    )
    .help(format!("compare it: `{} != 0`", text::expr(e)))
}

pub fn tile_where_scalar(e: &Expr) -> Diagnostic {
    Diagnostic::error(
        "TL0213",
        e.span,
        format!(
            "`{}` is a tile, and one value is needed here",
            text::expr(e)
        ),
    )
    .help("index it in a `map`, or fold it: `sum`, `maxof`")
}

pub fn scalar_where_tile(e: &Expr, function: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0214",
        e.span,
        format!(
            "`{function}` takes a tile, and `{}` is one value",
            text::expr(e)
        ),
    )
    .help("use the value as it is, or bind a tile first")
}

pub fn tile_in_map(span: Span, name: &str, extents: &[u64]) -> Diagnostic {
    let vars = ["i", "j", "k", "l"];
    let index = vars[..extents.len().min(4)].join(", ");
    Diagnostic::error(
        "TL0215",
        span,
        format!(
            "`{name}` is a whole tile of shape {}; a map computes element by element",
            shape(extents)
        ),
    )
    .help(format!("index it: `{name}[{index}]`"))
}

pub fn tile_expression_in_map(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0216",
        span,
        "a rectangle of a tile or tensor cannot stand inside a map",
    )
    .help("index one element, or bind the rectangle to a tile before the map")
}

pub fn tile_call_in_map(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0217",
        span,
        format!("`{name}` makes a tile, so it cannot stand inside a map"),
    )
    .help(format!("bind it before the map: `let x = {name}(…);`"))
}

pub fn tuple_value(span: Span) -> Diagnostic {
    Diagnostic::error("TL0218", span, "a list of values is no value")
        .help("bind the values one by one")
}

pub fn reduce_outside_reference(span: Span) -> Diagnostic {
    Diagnostic::error("TL0219", span, "`reduce` belongs into references")
        .help("in a kernel use `sum(x, axis = 0)`, `rowmax(x)` or a loop over a `let mut`")
}

pub fn transpose_outside_dot(span: Span) -> Diagnostic {
    Diagnostic::error("TL0220", span, "`.t()` is for the operands of `dot`")
        .help("elsewhere write a `map` with the indices exchanged")
}

pub fn bitcast_width(e: &Expr, from: DType, to: DType) -> Diagnostic {
    Diagnostic::error(
        "TL0221",
        e.span,
        format!("{from} has {} bits and {to} has {}", from.bits(), to.bits()),
    )
    .note("`.bitcast` keeps the bits, so the widths must be equal")
}

pub fn index_of_tile(span: Span) -> Diagnostic {
    Diagnostic::error("TL0222", span, "tiles do not hold `index` values")
        .help("convert an element where it is read: `index(x[i])`")
}

// ---- places ------------------------------------------------------------------------------------------

pub fn index_of_expression(span: Span) -> Diagnostic {
    Diagnostic::error("TL0223", span, "only tiles and tensors can be indexed")
        .help("bind the expression first: `let x = …;`")
}

pub fn cannot_index(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error("TL0223", span, format!("`{name}` is no tile or tensor"))
        .help("index a tile or a tensor")
}

pub fn wrong_number_of_indices(
    span: Span,
    name: &str,
    shape: &str,
    rank: usize,
    given: usize,
) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0224",
        span,
        format!(
            "`{name}` is {shape}: it takes {rank} {}, not {given}",
            if rank == 1 { "index" } else { "indices" }
        ),
    );
    if given < rank {
        d.help("write `:` for all of an axis")
    } else {
        d
    }
}

pub fn span_not_positive(span: Span, len: i64) -> Diagnostic {
    Diagnostic::error(
        "TL0225",
        span,
        format!("this length is {len}; it must be 1 or more"),
    )
    .help("write the length behind `:+`, not the end")
}

pub fn span_past_tile(
    span: Span,
    from: Option<i64>,
    len: i64,
    axis: usize,
    shape: &str,
) -> Diagnostic {
    let which = match from {
        Some(from) => format!("{from} .. {}", from + len),
        None => format!("{len} elements"),
    };
    Diagnostic::error(
        "TL0226",
        span,
        format!("{which} is more than axis {axis} of a tile of shape {shape}"),
    )
    .help("make the piece smaller, or the tile larger")
}

pub fn full_slot_of_dim(span: Span, extent: &str, axis: usize) -> Diagnostic {
    Diagnostic::error(
        "TL0227",
        span,
        format!("axis {axis} is `{extent}` long, which is known at launch only"),
    )
    .help("take a piece of static length: `i0 :+ BLOCK`")
}

pub fn gather_index(span: Span) -> Diagnostic {
    Diagnostic::error("TL0228", span, "`gather` takes a vector of integers")
        .help("for example `gather idx[t, 0 :+ 64]`")
}

pub fn gather_without_missing(span: Span) -> Diagnostic {
    Diagnostic::error("TL0229", span, "a gathered row can be missing")
        .note("an index below 0, or past the extent, reads nothing")
        .help("say what is there then: `@missing(zero)`")
}

pub fn gather_as_destination(span: Span) -> Diagnostic {
    Diagnostic::error("TL0230", span, "`gather` reads; it cannot be a destination")
        .help("write rows at indices from data with `scatter` in a `map`")
}

pub fn read_of_out(span: Span, name: &str, declared: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0231",
        span,
        format!("`{name}` is `out`, so it cannot be read"),
    )
    .also(declared, "declared here")
    .help("declare it `inout`")
}

pub fn write_to_in(span: Span, name: &str, declared: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0232",
        span,
        format!("`{name}` is `in`, so it cannot be written"),
    )
    .also(declared, "declared here")
    .help("declare it `out` or `inout`")
}

// ---- built-in functions ------------------------------------------------------------------------------------

pub fn no_such_grid_axis(span: Span, axis: i64, axes: usize) -> Diagnostic {
    Diagnostic::error(
        "TL0233",
        span,
        format!(
            "the launch has {}, counted from 0, and this asks for {axis}",
            super::header::launch_axes(axes)
        ),
    )
    .help("add an extent to the launch, or use an axis that it has")
}

pub fn axis_missing(span: Span, name: &str, extents: &[u64]) -> Diagnostic {
    Diagnostic::error(
        "TL0234",
        span,
        format!(
            "`{name}` of a tile of shape {} needs an axis",
            shape(extents)
        ),
    )
    .help(format!("write `{name}(x, axis = {})`", extents.len() - 1))
}

pub fn no_such_axis(span: Span, axis: i64, extents: &[u64]) -> Diagnostic {
    Diagnostic::error(
        "TL0235",
        span,
        format!("a tile of shape {} has no axis {axis}", shape(extents)),
    )
    .help("axes count from 0")
}

pub fn tree_width(span: Span, w: i64) -> Diagnostic {
    Diagnostic::error(
        "TL0236",
        span,
        format!("the width of a tree is a power of two up to 65536, not {w}"),
    )
    .help("write `tree(32)`, for example")
}

pub fn unknown_order(span: Span) -> Diagnostic {
    Diagnostic::error("TL0237", span, "this is no order")
        .help("write `ascending` or, with its width, `tree(32)`")
}

pub fn several_results(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error("TL0238", span, format!("`{name}` has two results"))
        .help(format!("name both: `let (v, i) = {name}(…);`"))
}

pub fn one_result_for_several_names(span: Span, names: usize) -> Diagnostic {
    Diagnostic::error(
        "TL0239",
        span,
        format!("this has one result, and {} take it", plural(names, "name")),
    )
    .note("`topk`, `sort` and `argmax` have two")
}

pub fn two_results(span: Span, name: &str, names: usize) -> Diagnostic {
    Diagnostic::error(
        "TL0239",
        span,
        format!(
            "`{name}` has two results, and {} take them",
            plural(names, "name")
        ),
    )
    .help("name both: `let (values, indices) = …;`")
}

pub fn topk_count(span: Span, k: i64, extents: &[u64]) -> Diagnostic {
    Diagnostic::error(
        "TL0240",
        span,
        format!(
            "cannot take the first {k} of a tile of shape {}",
            shape(extents)
        ),
    )
    .help("take at most the extent of the last axis, and at least 1")
}

pub fn dot_inner_extents(
    span: Span,
    a: &str,
    sa: Span,
    inner_a: u64,
    b: &str,
    sb: Span,
    inner_b: u64,
) -> Diagnostic {
    Diagnostic::error(
        "TL0241",
        span,
        format!("the inner extents of this product differ: {inner_a} and {inner_b}"),
    )
    .also(sa, a)
    .also(sb, b)
    .help("`dot(a, b)` sums over the last axis of `a` and the first of `b`; transpose with `b.t()`")
}

pub fn dot_rank(span: Span, operand: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0242",
        span,
        format!("`dot` takes tiles of rank 2, and {operand}"),
    )
    .help("give the vector a second axis of extent 1")
}

pub fn dot_of_global(e: &Expr) -> Diagnostic {
    Diagnostic::error(
        "TL0243",
        e.span,
        format!(
            "`dot` reads tiles, and `{}` is in global memory",
            text::expr(e)
        ),
    )
    .help("copy it into a tile first")
}

pub fn dot_of_gather(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0243",
        span,
        "`dot` reads whole rectangles, not gathered rows",
    )
    .help("copy it into a tile first")
}

pub fn dot_into_global(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0244",
        span,
        "`dot` accumulates into a tile, and this is in global memory",
    )
    .help("accumulate into a `reg` tile and copy it at the end")
}

pub fn dot_accumulator_shape(span: Span, accumulator: &str, product: &[u64]) -> Diagnostic {
    Diagnostic::error(
        "TL0245",
        span,
        format!("the product is {}, but {accumulator}", shape(product)),
    )
    .help("declare the accumulator with the shape of the product")
}

pub fn dot_accumulator_dtype(target: &Expr, have: DType, need: DType) -> Diagnostic {
    Diagnostic::error(
        "TL0246",
        target.span,
        format!(
            "this product accumulates in {need}, and `{}` is {have}",
            text::expr(target)
        ),
    )
    .help(format!("declare it {need} and cast once at the end"))
}

pub fn dot_operand_is_accumulator(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0247",
        span,
        "an operand of this product is also its accumulator",
    )
    .help("accumulate into a tile of its own")
}
