//! `TL03xx`: accesses that may leave their tensor or tile, divisors that may be 0.

use crate::diag::Diagnostic;
use crate::source::Span;
use crate::tile::analysis::Example;

/// One axis of an access.
pub struct Access<'a> {
    pub name: &'a str,
    pub axis: usize,
    pub extent: &'a str,
    pub len: u64,
    pub is_tile: bool,
    pub write: bool,
}

pub fn copy_may_leave(span: Span, a: &Access, example: &Example) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0301",
        span,
        format!("this copy can reach past the end of `{}`", a.name),
    )
    .label(format!(
        "axis {} of `{}` is {} long",
        a.axis, a.name, a.extent
    ));
    let d = with_example(d, a, example);
    if a.is_tile {
        d.help("keep the rectangle inside the tile; if it always is, say why: `assume …;`")
    } else if a.write {
        d.help("add `@oob(skip)` to leave out what is outside, or state the range in `dims` or `requires`")
    } else {
        d.help("add `@oob(zero)` to read 0 there, or state the range in `dims` or `requires`")
    }
}

pub fn element_may_leave(span: Span, a: &Access, example: &Example) -> Diagnostic {
    let verb = if a.write { "written" } else { "read" };
    let d = Diagnostic::error(
        "TL0302",
        span,
        format!("an element outside `{}` may be {verb} here", a.name),
    )
    .label(format!(
        "axis {} of `{}` is {} long",
        a.axis, a.name, a.extent
    ));
    let d = with_example(d, a, example);
    match (example, a.write, a.is_tile) {
        (Example::Memory(_), true, false) => {
            d.help("add `@oob(skip)`, or check the value: `assert i >= 0 && i < n;`")
        }
        (Example::Memory(_), ..) => {
            d.help("check the value: `i >= 0 && i < n ? x[i] : 0.0`, or `assert` it")
        }
        (_, true, false) => d.help("add `@oob(skip)`, or state the range in `dims` or `requires`"),
        _ => d.help(
            "guard it: `i < n ? x[i] : 0.0`, or state the range in `dims`, `requires` or `assume`",
        ),
    }
}

fn with_example(d: Diagnostic, a: &Access, example: &Example) -> Diagnostic {
    match example {
        Example::Found {
            values,
            first,
            last,
            extent,
        } => {
            let values: Vec<String> = values.iter().map(|(n, v)| format!("{n} = {v}")).collect();
            let reach = if first == last {
                format!("element {first}")
            } else {
                format!("elements {first}..={last}")
            };
            let with = if values.is_empty() {
                String::new()
            } else {
                format!("with {} ", values.join(", "))
            };
            d.note(format!(
                "{with}this is {reach} of axis {}, which has {extent}",
                a.axis
            ))
        }
        Example::Memory(source) if source.is_empty() => {
            d.note("the index is computed from data, and nothing says which values it has")
        }
        Example::Memory(source) => d.note(format!(
            "the index comes from `{source}`, and nothing says which values it has"
        )),
        Example::NotFound => d.note(format!(
            "no launch was found that goes outside axis {}, but none of the ranges rules it out",
            a.axis
        )),
    }
}

pub fn divisor_may_be_zero(span: Span, name: Option<&str>) -> Diagnostic {
    let d = Diagnostic::error("TL0303", span, "the divisor may be 0 here");
    match name {
        Some(name) => d.help(format!("divide by `max({name}, 1)`, or state its range")),
        None => d.help("divide by `max(…, 1)`, or state the range of what it is made of"),
    }
}
