//! `TL06xx`: instances, dims, launch space, requirements; constant and host expressions.

use super::{list, plural};
use crate::diag::Diagnostic;
use crate::sema::{Const, FoldError, Instance, text};
use crate::source::Span;
use crate::syntax::ast::{self, Constraint, Dim, Expr, Ident, Param};
use crate::tile::ir;
use tessera_artifact::DType;

pub fn generic_without_value(span: Span, kernel: &ast::Kernel, missing: &[&str]) -> Diagnostic {
    let name = &kernel.name.name;
    let example: Vec<String> = missing.iter().map(|m| format!("{m} = …")).collect();
    Diagnostic::error(
        "TL0601",
        span,
        format!("{} of `{name}` has no value here", list(missing)),
    )
    .help(format!(
        "give it a default, or ask for instances: `instances {name} {{ ({}) }}`",
        example.join(", ")
    ))
}

pub fn duplicate_instance(span: Span, first: Span) -> Diagnostic {
    Diagnostic::error("TL0602", span, "this instance is listed twice")
        .also(first, "first here")
        .help("remove one of the two")
}

pub fn fixed_dim_out_of_range(span: Span, dim: &ir::Dim, value: i64) -> Diagnostic {
    let (name, step) = (&dim.name, dim.step);
    let range = match step {
        1 => format!("{}..={}", dim.lo, dim.hi),
        _ => format!("{}..={} step {step}", dim.lo, dim.hi),
    };
    Diagnostic::error(
        "TL0642",
        span,
        format!("this instance fixes `{name}` to {value}, which is not in its range"),
    )
    .also(dim.span, format!("`{name}` is in {range}"))
    .help("fix it to a value that a launch can have, or leave the dim free")
}

pub fn fixed_batch(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0643",
        span,
        format!("`{name}` is fixed here, which changes with the batch"),
    )
    .note("so are dims of `batch_invariant(..)` and what `requires` sets beside them; the code of a row must not depend on the batch")
    .help("fix dims that are constants of a model; ranges that use generics can split batches")
}

pub fn too_many_combinations(span: Span, count: usize, most: usize) -> Diagnostic {
    Diagnostic::error(
        "TL0645",
        span,
        format!("these values make {count} combinations, and {most} is the most"),
    )
    .note("`tlc bench --tune` compiles and measures each of them")
    .help("list fewer values, or rather those of fewer generics")
}

pub fn batches_left(instance: &Instance, batch: &str, left: i64) -> Diagnostic {
    let fixed: Vec<String> = (instance.dims.iter())
        .map(|(name, value)| format!("{name} = {value}"))
        .collect();
    let fixed = fixed.join(", ");
    Diagnostic::error(
        "TL0644",
        instance.span,
        format!("with {fixed}, no instance that fixes these dims takes `{batch}` = {left}"),
    )
    .note(format!(
        "another takes it, so the code of a row would depend on `{batch}`, against `batch_invariant({batch})`"
    ))
    .help(format!(
        "list instances with {fixed} for every `{batch}`, or remove them all"
    ))
}

pub fn instance_argument_without_name(span: Span, kernel: &ast::Kernel) -> Diagnostic {
    let names: Vec<&str> = kernel
        .generics
        .iter()
        .map(|g| g.name.name.as_str())
        .collect();
    Diagnostic::error("TL0603", span, "this argument has no name")
        .note(format!(
            "the generics of `{}` are {}",
            kernel.name.name,
            list(&names)
        ))
        .help("write `name = value`")
}

pub fn where_fails(c: &Constraint, instance: &Instance, values: &[String]) -> Diagnostic {
    let condition = text::constraint(c);
    let d = match &c.message {
        Some(message) => Diagnostic::error(
            "TL0604",
            c.span,
            format!("`{condition}` does not hold: {message}"),
        ),
        None => Diagnostic::error("TL0604", c.span, format!("`{condition}` does not hold")),
    };
    let d = if values.is_empty() {
        d
    } else {
        d.note(values.join(", "))
    };
    d.also(instance.span, "for this instance")
}

pub fn empty_dim_range(d: &Dim, lo: i64, hi: i64) -> Diagnostic {
    Diagnostic::error(
        "TL0605",
        d.range.span,
        format!(
            "the range of `{}` is empty: {lo} is more than {hi}",
            d.name.name
        ),
    )
    .help("write the smaller bound first")
}

pub fn dim_range_too_large(d: &Dim, limit: i64) -> Diagnostic {
    Diagnostic::error(
        "TL0606",
        d.range.span,
        format!("the range of `{}` is too large", d.name.name),
    )
    .note(format!("a dim lies within ±{limit} (2^40)"))
}

pub fn dim_step_not_positive(span: Span, name: &str, step: i64) -> Diagnostic {
    Diagnostic::error(
        "TL0607",
        span,
        format!("the step of `{name}` is {step}; it must be 1 or more"),
    )
    .help("write `step 1`, or nothing")
}

pub fn no_multiple_in_dim_range(d: &Dim, step: i64) -> Diagnostic {
    Diagnostic::error(
        "TL0608",
        d.range.span,
        format!("no multiple of {step} is in the range of `{}`", d.name.name),
    )
    .help("widen the range, or lower the step")
}

pub fn dim_in_no_extent(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0609",
        span,
        format!(
            "no parameter has an extent that is just `{name}`, so the host cannot find its value"
        ),
    )
    .help(format!(
        "use `{name}` alone as an extent, or pass it: `{name}: index`"
    ))
}

pub fn index_without_range(p: &Param) -> Diagnostic {
    let name = &p.name.name;
    Diagnostic::error(
        "TL0610",
        p.name.span,
        format!("`{name}` is an index without a range"),
    )
    .help(format!("give it one: `dims {name} in 0..=1048576`"))
}

pub fn no_launch(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0611",
        span,
        format!("`{name}` does not say how many blocks it runs"),
    )
    .help("add `launch grid(1)`, or an extent per axis of blocks")
}

pub fn launch_without_grid(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0612",
        span,
        "the launch has no `grid(…)` and no `persistent(…)`",
    )
    .help("add `grid(1)`, or an extent per axis of blocks")
}

pub fn second_launch_space(span: Span) -> Diagnostic {
    Diagnostic::error("TL0613", span, "the launch space is given twice")
        .help("keep `grid(…)` or `persistent(…)`")
}

pub fn launch_extents(name: &Ident, given: usize) -> Diagnostic {
    let expected = if name.name == "warps" {
        "one number"
    } else {
        "one to three extents"
    };
    Diagnostic::error(
        "TL0614",
        name.span,
        format!("`{}` takes {expected}, not {given}", name.name),
    )
    .help("join axes: `grid(A * B)`, and split `block(0)` in the kernel")
}

pub fn unknown_launch_item(name: &Ident) -> Diagnostic {
    Diagnostic::error(
        "TL0615",
        name.span,
        format!("`launch` has no `{}`", name.name),
    )
    .note("it takes `grid(…)` or `persistent(…)`, and `warps(…)`, `raster(…)`, `cluster(…)`")
}

pub fn warps_out_of_range(span: Span, n: i64) -> Diagnostic {
    Diagnostic::error("TL0616", span, format!("{n} warps; a block has 1 to 32"))
        .help("give a number from 1 to 32")
}

pub fn cluster_out_of_range(span: Span, n: i64) -> Diagnostic {
    Diagnostic::error("TL0623", span, format!("clusters of {n}; a cluster has 1 or 2 blocks"))
        .help("give 2 where neighbours along the first axis of the grid share what they read, or leave it out")
}

pub fn requirement_never_holds(c: &Constraint) -> Diagnostic {
    Diagnostic::error(
        "TL0617",
        c.span,
        format!("`{}` never holds for this instance", text::constraint(c)),
    )
    .help("put what is about generics only into `where`")
}

pub fn unknown_contract(span: Span) -> Diagnostic {
    Diagnostic::error("TL0618", span, "this is no contract")
        .note("there are `det(bitwise)` and `batch_invariant(dim)`")
}

pub fn contract_of_no_dim(span: Span, name: &str, near: Option<&str>) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0619",
        span,
        format!("`{name}` is not a dim of this kernel"),
    );
    match near {
        Some(near) => d.help(format!("did you mean `{near}`?")),
        None => d.help("name one of the kernel's dims"),
    }
}

pub fn bad_budget(span: Span) -> Diagnostic {
    Diagnostic::error("TL0620", span, "this is no budget")
        .help("write `smem <= 227KiB` or `regs <= 232`")
}

pub fn registers_out_of_range(span: Span, n: i64) -> Diagnostic {
    Diagnostic::error(
        "TL0621",
        span,
        format!("{n} registers; a thread has 1 to 255"),
    )
    .help("give a number from 1 to 255")
}

pub fn unknown_deny(name: &Ident, known: &[&str]) -> Diagnostic {
    Diagnostic::error(
        "TL0622",
        name.span,
        format!("`{}` is nothing that can be denied", name.name),
    )
    .note(format!("there are {}", list(known)))
}

pub fn tensor_of_index(p: &Param) -> Diagnostic {
    Diagnostic::error(
        "TL0625",
        p.ty.span,
        "`index` is no element type of a tensor",
    )
    .help("use `i32` or `i64`, and `index(x[i])` where it is read")
}

pub fn flags_dtype(p: &Param, dtype: DType) -> Diagnostic {
    Diagnostic::error(
        "TL0626",
        p.ty.span,
        format!("flags are i32 or u32, not {dtype}"),
    )
    .help("write `flags [n] i32`")
}

pub fn bad_align(span: Span, n: i64) -> Diagnostic {
    Diagnostic::error(
        "TL0627",
        span,
        format!("an alignment is a power of two up to 4096, not {n}"),
    )
    .help("write `@align(16)`, for example")
}

// ---- constant and host expressions ------------------------------------------------------------------

pub fn not_constant(e: &Expr, names: &[String]) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0630",
        e.span,
        format!("`{}` must be known while compiling", text::expr(e)),
    );
    if names.is_empty() {
        return d;
    }
    d.note(format!("{} has its value at launch only", list(names)))
        .help("what the host should check stands in `requires`")
}

pub fn not_a_host_expression(span: Span) -> Diagnostic {
    Diagnostic::error("TL0631", span, "this cannot be computed before the launch")
        .note("here stand integers, dims, generics, `+ - * / %`, comparisons, `cdiv`, `min`, `max` and `? :`")
}

pub fn host_types_differ(e: &Expr) -> Diagnostic {
    Diagnostic::error("TL0632", e.span, format!("the operands of `{}` do not go together", text::expr(e)))
        .help("use integers with integers, floats with floats (`1.0`, not `1`), conditions with conditions")
}

pub fn expected_integer(span: Span, kind: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0633",
        span,
        format!("this must be an integer, not {kind}"),
    )
    .help("use an integer, or convert it: `index(x)`")
}

pub fn expected_condition(span: Span) -> Diagnostic {
    Diagnostic::error("TL0634", span, "this must be true or false")
        .help("compare it: `x > 0`, `x == bf16`, `x in {1, 2}`")
}

pub fn constant_overflows(span: Span) -> Diagnostic {
    Diagnostic::error("TL0635", span, "this integer does not fit 64 bits")
        .help("use a smaller number")
}

pub fn cannot_fold(e: &Expr, error: FoldError) -> Diagnostic {
    match error {
        FoldError::DivisionByZero => Diagnostic::error(
            "TL0636",
            e.span,
            format!("the divisor of `{}` is 0", text::expr(e)),
        )
        .help("change the generics or constants that it is made of"),
        FoldError::Overflow => constant_overflows(e.span),
        FoldError::Shift => Diagnostic::error("TL0637", e.span, "a shift is by 0 to 63 bits")
            .help("shift by less, or multiply"),
        FoldError::Types => host_types_differ(e),
    }
}

pub fn cannot_fold_operands(e: &Expr, error: FoldError, a: &Const, b: &Const) -> Diagnostic {
    let d = cannot_fold(e, error);
    if error == FoldError::Types {
        d.note(format!(
            "on the left {}, on the right {}",
            a.kind(),
            b.kind()
        ))
    } else {
        d
    }
}

pub fn launch_axes(n: usize) -> String {
    plural(n, "axis").replace("axiss", "axes")
}
