//! Problems that elaboration finds: names and generics (`TL01xx`), types, shapes and statements (`TL02xx`), instances and
//! dims (`TL06xx`), roles and channels (`TL07xx`), references, tests and benches (`TL08xx`).

mod header;
mod names;
mod roles;
mod statements;
mod types;

pub use header::*;
pub use names::*;
pub use roles::*;
pub use statements::*;
pub use types::*;

use crate::diag::Diagnostic;
use crate::source::Span;

/// `a`, `b` and `c`.
pub(super) fn list(words: &[impl AsRef<str>]) -> String {
    let quoted: Vec<String> = words.iter().map(|w| format!("`{}`", w.as_ref())).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((one, [])) => one.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

fn did_you_mean(d: Diagnostic, span: Span, near: Option<&str>) -> Diagnostic {
    match near {
        Some(near) => d.suggest(format!("did you mean `{near}`?"), span, near),
        None => d,
    }
}

fn shape(extents: &[u64]) -> String {
    let extents: Vec<String> = extents.iter().map(u64::to_string).collect();
    format!("[{}]", extents.join(", "))
}

fn plural(n: usize, word: &str) -> String {
    format!("{n} {word}{}", if n == 1 { "" } else { "s" })
}
