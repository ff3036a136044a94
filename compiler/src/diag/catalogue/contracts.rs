//! `TL05xx`: contracts that do not hold, with the way that breaks them.

use crate::diag::Diagnostic;
use crate::source::Span;
use crate::tile::analysis::contracts::Why;
use tessera_artifact::DType;

pub fn float_atomic(contract: Span, span: Span, name: &str, dtype: DType) -> Diagnostic {
    Diagnostic::error(
        "TL0501",
        span,
        format!("`det(bitwise)` does not hold: {dtype} atomics on `{name}` add up in any order"),
    )
    .also(contract, "promised here")
    .help(
        "collect parts in a `scratch` parameter and sum them in a fixed order, or drop the promise",
    )
}

pub fn read_of_other_blocks(contract: Span, read: Span, write: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0502",
        read,
        format!("`det(bitwise)` is not proved: `{name}` is read here, and other blocks may write it at the same time"),
    )
    .also(write, "written here")
    .also(contract, "promised here")
    .help("let each block read only its own part, or write to another tensor")
}

pub fn carried_between_items(contract: Span, tile: Span, name: &str, items: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0503",
        tile,
        format!("`det(bitwise)` does not hold: `{name}` carries a value from one item to the next"),
    )
    .also(items, "which items a block gets is open")
    .also(contract, "promised here")
    .help("declare it inside the loop over `items`, or give it a value at its start")
}

pub fn depends_on_dim(contract: Span, span: Span, param: &str, dim: &str, why: &Why) -> Diagnostic {
    let mut d = Diagnostic::error(
        "TL0504",
        span,
        format!("`batch_invariant({dim})` is not proved: `{param}` depends on `{dim}`"),
    );
    // From the store back to the dim; long chains are told by their ends.
    let mut steps: Vec<(Span, String)> = vec![];
    let mut next = Some(why);
    while let Some(w) = next {
        if steps.last() != Some(&(w.span, w.text.clone())) {
            steps.push((w.span, w.text.clone()));
        }
        next = w.cause.as_deref();
    }
    let skip = steps.len().saturating_sub(6);
    let kept: Vec<(Span, String)> = if skip > 0 {
        let (head, tail) = (&steps[..3], &steps[steps.len() - 3..]);
        head.iter().chain(tail).cloned().collect()
    } else {
        steps
    };
    for (at, text) in kept {
        if at == span && d.labels[0].text.is_empty() {
            d = d.label(text);
        } else {
            d = d.also(at, text);
        }
    }
    d.also(contract, "promised here").help(format!(
        "let no trip count, order or other row that an output element sees depend on `{dim}`"
    ))
}
