//! `TL04xx`: initialisation, races, what is written in vain.

use crate::diag::Diagnostic;
use crate::source::Span;

pub fn read_before_write(span: Span, name: &str, declared: Span, in_loop: bool) -> Diagnostic {
    let name = shown(name);
    let d = Diagnostic::error(
        "TL0401",
        span,
        format!("{name} is read before anything is written to it"),
    )
    .also(declared, "declared here, without a value");
    let d = if in_loop {
        d.note("the first trip of the loop reads it before the write further down")
    } else {
        d
    };
    d.help("give it a value where it is declared: `= 0.0`")
}

pub fn perhaps_unwritten(span: Span, name: &str, declared: Span, at: Span) -> Diagnostic {
    let name = shown(name);
    Diagnostic::error(
        "TL0402",
        span,
        format!("{name} may be read before anything is written to it"),
    )
    .also(at, "this loop writes it, and may run no trip")
    .also(declared, "declared here, without a value")
    .help("give it a value where it is declared: `= 0.0`")
}

pub fn partly_written(
    span: Span,
    name: &str,
    declared: Span,
    written: u64,
    all: u64,
) -> Diagnostic {
    let name = shown(name);
    Diagnostic::error(
        "TL0403",
        span,
        format!("all of {name} is read, and only part of it is written"),
    )
    .also(
        declared,
        format!("{all} elements, of which at most {written} are written before"),
    )
    .help("write the rest, or give it a value where it is declared")
}

fn shown(name: &str) -> String {
    if name.starts_with('%') {
        "this value".to_string()
    } else {
        format!("`{name}`")
    }
}

pub fn scratch_read_before_write(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0404",
        span,
        format!("`{name}` is scratch memory, and nothing is written to it before this"),
    )
    .note("scratch memory has no defined contents at launch")
    .help("write it first, or declare it `inout`")
}

pub fn out_never_written(span: Span, name: &str) -> Diagnostic {
    Diagnostic::warning(
        "TL0405",
        span,
        format!("nothing is ever written to `{name}`"),
    )
    .help("write it, or remove it")
}

pub fn tile_never_read(span: Span, name: &str) -> Diagnostic {
    Diagnostic::warning(
        "TL0406",
        span,
        format!("`{name}` is written and never read"),
    )
    .help(format!("remove it, or call it `_{name}`"))
}

pub fn map_writes_twice(span: Span, name: &str, var: &str, from_data: bool) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0410",
        span,
        format!("two elements of this map may write the same element of `{name}`"),
    );
    if from_data {
        return d
            .note("the indices come from data, so nothing shows that they are distinct")
            .help("if they are, promise it: `scatter …;`; if they add up: `atomic …;`");
    }
    d.note(format!(
        "its place does not tell `{var}`: `{var} = 0` and `{var} = 1` may write the same one"
    ))
    .help(format!(
        "use `{var}` in the index, or fold over it first: `sum(x, axis = …)`"
    ))
}

pub fn stores_may_meet(span: Span, other: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0411",
        span,
        format!("two elements of this map may write the same element of `{name}`"),
    )
    .also(other, "the other write")
    .note("the elements of a map have no order")
    .help("write in two maps, one after the other")
}

pub fn reads_neighbour(span: Span, store: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0412",
        span,
        format!("this may read what another element of the map writes to `{name}`"),
    )
    .also(store, "the write")
    .note("the elements of a map have no order")
    .help("read from a copy, or write to another tile")
}

pub fn blocks_write_same(span: Span, name: &str, axis: usize, persistent: bool) -> Diagnostic {
    let (who, coordinate) = if persistent {
        ("items", format!("coordinate {axis} of the item"))
    } else {
        ("blocks", format!("`block({axis})`"))
    };
    Diagnostic::error(
        "TL0413",
        span,
        format!("all {who} along axis {axis} write the same elements of `{name}`"),
    )
    .help(format!(
        "use {coordinate} in the index, or write only where it is 0: `if … == 0 {{ … }}`"
    ))
}

pub fn filled_twice(span: Span, first: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0415",
        span,
        format!("`{name}` is filled twice in one iteration of the pipeline"),
    )
    .also(first, "filled here first")
    .note("the pipeline keeps one copy of it for each iteration in flight")
    .help("use two tiles")
}
