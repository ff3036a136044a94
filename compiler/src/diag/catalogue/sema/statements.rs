//! `TL02xx`, second half: declarations, assignments, copies, maps, loops.

use super::shape;
use crate::diag::Diagnostic;
use crate::sema::text;
use crate::source::Span;
use crate::syntax::ast::Expr;

pub fn extent_not_constant(e: &Expr) -> Diagnostic {
    Diagnostic::error(
        "TL0250",
        e.span,
        format!("`{}` must be known while compiling", text::expr(e)),
    )
    .note("tiles, maps and pieces have static extents; dims have their values at launch only")
    .help("use a generic for the extent and a loop or a launch axis for the rest")
}

pub fn tile_extent_not_positive(e: &Expr, n: i64) -> Diagnostic {
    Diagnostic::error(
        "TL0251",
        e.span,
        format!("`{}` is {n}; an extent is 1 or more", text::expr(e)),
    )
    .help("change the generics, or rule these values out with `where`")
}

pub fn tile_too_large(span: Span, extents: &[u64]) -> Diagnostic {
    Diagnostic::error(
        "TL0252",
        span,
        format!(
            "a tile of shape {} has more than 2^32 elements",
            shape(extents)
        ),
    )
    .help("work on pieces of it in a loop, or use a `scratch` parameter")
}

pub fn too_many_axes(span: Span, limit: usize) -> Diagnostic {
    Diagnostic::error(
        "TL0275",
        span,
        format!("a tile or tensor has at most {limit} axes"),
    )
    .help("join axes: `[A * B]` with the index `a * B + b`")
}

pub fn tile_of_index(span: Span) -> Diagnostic {
    Diagnostic::error("TL0253", span, "`index` is no element type of a tile").help("use `i32`")
}

pub fn global_tile(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0254",
        span,
        "memory outside the block is a parameter of the kernel",
    )
    .help("declare a `scratch` parameter with this shape")
}

pub fn let_with_shape(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error("TL0255", span, "`let` takes a scalar type or none")
        .help(format!("declare a tile: `reg {name}: [..] f32 = …;`"))
}

pub fn mutable_tile(span: Span, name: &str, extents: &[u64]) -> Diagnostic {
    Diagnostic::error(
        "TL0256",
        span,
        format!(
            "this is a tile of shape {}, and `let mut` is one value",
            shape(extents)
        ),
    )
    .help(format!(
        "declare a tile: `reg {name}: {} f32 = …;`",
        shape(extents)
    ))
}

pub fn mutable_tuple(span: Span) -> Diagnostic {
    Diagnostic::error("TL0257", span, "`let mut` takes one name")
        .help("bind both with `let`, then copy what changes")
}

pub fn assign_to_value(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error("TL0258", span, format!("`{name}` is not a variable")).help(format!(
        "declare it with `let mut {name} = …;`, or as a tile"
    ))
}

pub fn assign_to_immutable(span: Span, name: &str, declared: Span) -> Diagnostic {
    Diagnostic::error("TL0259", span, format!("`{name}` cannot be changed"))
        .also(declared, "bound here")
        .help("declare a tile with `reg` and copy it there")
}

pub fn cell_in_map(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0260",
        span,
        format!("every element of the map would write `{name}`"),
    )
    .note("the elements of a map have no order, so they share no variable")
    .help("write a tile and fold it: `sum(x)`")
}

pub fn statement_in_map(span: Span, what: &str) -> Diagnostic {
    Diagnostic::error("TL0261", span, format!("{what} cannot stand inside a map"))
        .note("a map holds `let`, assignments to elements, `scatter` and `atomic`")
}

pub fn map_variables(span: Span, vars: usize, extents: usize) -> Diagnostic {
    Diagnostic::error(
        "TL0262",
        span,
        format!("this map has {vars} variables over {extents} extents"),
    )
    .help("name one variable for each extent")
}

pub fn copy_shapes(span: Span, dst: &str, dst_span: Span, src: &str, src_span: Span) -> Diagnostic {
    Diagnostic::error("TL0263", span, "the two sides have different shapes")
        .also(dst_span, dst)
        .also(src_span, src)
        .help("make the pieces equally long; an axis with one coordinate, `x[i, :]`, drops out")
}

pub fn copy_to_element(dst: &Expr, src: &Expr) -> Diagnostic {
    let (dst_text, src_text) = (text::expr(dst), text::expr(src));
    Diagnostic::error(
        "TL0264",
        dst.span,
        format!("`{dst_text}` is one element, and `copy` moves rectangles"),
    )
    .help(format!("assign it: `{dst_text} = {src_text};`"))
}

pub fn copy_of_scalar(dst: &Expr, src: &Expr) -> Diagnostic {
    let (dst_text, src_text) = (text::expr(dst), text::expr(src));
    Diagnostic::error(
        "TL0265",
        src.span,
        format!("`{src_text}` is one value, and `copy` moves rectangles"),
    )
    .help(format!(
        "fill with an assignment: `{dst_text} = {src_text};`"
    ))
}

pub fn two_oob_rules(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0266",
        span,
        "two rules for what is outside contradict each other",
    )
    .help("keep one of the two")
}

pub fn element_oob(span: Span) -> Diagnostic {
    Diagnostic::error("TL0267", span, "one element takes `@oob(skip)` only")
        .help("read a guarded value with `i < n ? x[i] : 0.0`")
}

pub fn needs_tensor_element(span: Span, what: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0268",
        span,
        format!("`{what}` writes one element of a tensor"),
    )
    .help("name one element of an `out`, `inout` or `scratch` parameter; tiles are assigned")
}

pub fn atomic_operator(span: Span) -> Diagnostic {
    Diagnostic::error("TL0269", span, "`atomic` takes `+=`, `max=` or `min=`")
        .help("write `x += -e` for a difference")
}

pub fn stages_out_of_range(span: Span, n: i64) -> Diagnostic {
    Diagnostic::error(
        "TL0270",
        span,
        format!("{n} stages; a pipeline has 1 to 16"),
    )
    .help("give a number from 1 to 16")
}

pub fn loop_order(span: Span) -> Diagnostic {
    Diagnostic::error("TL0271", span, "loops run in ascending order only")
        .help("write `@order(ascending)` or nothing")
}

pub fn assertion_never_holds(span: Span, cond: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0272",
        span,
        format!("`{cond}` never holds for this instance"),
    )
    .help("put what is about generics only into `where`")
}

pub fn print_text(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0273",
        span,
        "the text of `print` comes first, and only once",
    )
    .help("write `print \"text\", a, b;`")
}

pub fn value_unused(span: Span) -> Diagnostic {
    Diagnostic::error("TL0274", span, "nothing takes this value").help("bind it: `let x = …;`")
}

pub fn asm_not_lowered(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0901",
        span,
        "`asm` is not lowered by any target of this version",
    )
    .help("write the operation in the language")
}
