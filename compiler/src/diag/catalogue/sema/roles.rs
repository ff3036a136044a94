//! `TL07xx`: roles, channels, persistent items, work lists, flags.

use super::{plural, shape};
use crate::diag::Diagnostic;
use crate::source::Span;
use tessera_artifact::DType;

pub fn channel_not_at_top(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0701",
        span,
        "channels are declared at the top of the kernel, before the roles",
    )
    .help("move the declaration to the top of the kernel")
}

pub fn role_not_at_top(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0702",
        span,
        "roles stand next to each other at the top of the kernel",
    )
    .help("put the loop inside the role")
}

pub fn channel_outside_role(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error("TL0703", span, format!("`{name}` is used outside a role"))
        .note("only roles talk over channels; in a plain tile program use a tile")
}

pub fn not_a_channel(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error("TL0704", span, format!("`{name}` is not a channel"))
        .help("declare it: `channel c: [64] f32;`")
}

pub fn channel_is_no_value(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error("TL0705", span, format!("`{name}` is a channel, not a tile")).help(format!(
        "get its next tile first: `get {name} as x;` or `take({name})`"
    ))
}

pub fn slots_out_of_range(span: Span, n: i64) -> Diagnostic {
    Diagnostic::error("TL0706", span, format!("{n} is out of range"))
        .note("a channel has 1 to 64 slots of 1 to 16 parts")
}

pub fn parts_do_not_divide(span: Span, name: &str, parts: u32, extents: &[u64]) -> Diagnostic {
    Diagnostic::error(
        "TL0707",
        span,
        format!(
            "{parts} parts do not divide the first extent of `{name}`, {}",
            shape(extents)
        ),
    )
    .help("choose `@parts` as a divisor of the first extent")
}

pub fn copies_out_of_range(span: Span, n: i64) -> Diagnostic {
    Diagnostic::error("TL0708", span, format!("{n} copies; a role has 1 to 16"))
        .help("give a number from 1 to 16")
}

pub fn turns_out_of_range(span: Span, n: i64) -> Diagnostic {
    Diagnostic::error("TL0735", span, format!("{n} turns; a role has 1 to 4"))
        .help("give a number from 1 to 4")
}

pub fn release_target(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0709",
        span,
        "`release` gives back a tile that `get` bound, or one part of it",
    )
    .help("release the name that `get … as` gave")
}

pub fn release_part(span: Span, channel: &str, parts: u32, rows: u64) -> Diagnostic {
    Diagnostic::error("TL0710", span, format!("this is no part of `{channel}`"))
        .note(format!(
            "it has {}: each {rows} of the first extent, from a multiple of {rows}",
            plural(parts as usize, "part")
        ))
        .help("release all of it, or declare `@parts(n)` on the channel")
}

pub fn items_without_persistent(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0711",
        span,
        "`items` is the space of a persistent launch, and this kernel has a grid",
    )
    .help("write `launch persistent(…)`, or use `block(0)`")
}

pub fn items_variables(span: Span, given: usize, axes: usize) -> Diagnostic {
    Diagnostic::error(
        "TL0712",
        span,
        format!("`items` has {axes} coordinates here, and this names {given}"),
    )
    .help("name one variable for each extent of `persistent(…)`")
}

pub fn not_a_work_list(span: Span) -> Diagnostic {
    Diagnostic::error("TL0713", span, "this is nothing to loop over").help(
        "loop over `items` of a persistent launch, or the first n records of a tensor: `list[n]`",
    )
}

pub fn work_list_rank(span: Span, rank: usize) -> Diagnostic {
    Diagnostic::error(
        "TL0714",
        span,
        format!("a work list has rank 1 or 2, not {rank}"),
    )
    .help("pass `[n]` for single numbers, `[n, fields]` for records")
}

pub fn work_list_dtype(span: Span, dtype: DType) -> Diagnostic {
    Diagnostic::error(
        "TL0715",
        span,
        format!("the records of a work list are integers, not {dtype}"),
    )
    .help("use i32")
}

pub fn work_list_variables(span: Span, given: usize, shape: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0716",
        span,
        format!("{given} names do not fit the records of a list of shape {shape}"),
    )
    .help("name one variable for each column, or one for the record")
}

pub fn record_index(span: Span) -> Diagnostic {
    Diagnostic::error("TL0717", span, "a record is read column by column")
        .help("write `index(it[0])`, for example")
}

pub fn not_a_flag(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0718",
        span,
        "this is not one element of a `flags` parameter",
    )
    .help("declare it `flags [n] i32` and name one element: `signal f[i];`")
}

pub fn flags_are_no_tensor(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0719",
        span,
        format!("`{name}` holds flags, which only `signal` and `wait` touch"),
    )
    .help("use an `inout` parameter for data")
}

pub fn tile_of_two_roles(span: Span, name: &str, declared: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0721",
        span,
        format!("`{name}` is used in two places of a network of roles"),
    )
    .also(declared, "declared here")
    .note("roles share nothing but channels, not even with what stands before them")
    .help("declare it inside one role, and send it over a channel where another needs it")
}

pub fn block_of_persistent(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0732",
        span,
        "in a persistent kernel items have coordinates, blocks have none",
    )
    .help("loop over the items: `for t in items { … }`")
}

pub fn items_nested(span: Span) -> Diagnostic {
    Diagnostic::error("TL0733", span, "this loop over items is inside another")
        .help("loop over the items once, and over something else inside")
}

pub fn statement_after_role(span: Span, what: &str) -> Diagnostic {
    Diagnostic::error("TL0734", span, format!("{what} stands behind a role"))
        .note("roles are the whole of a kernel's work")
        .help("move it into a role")
}
