//! `TL085x`..`TL089x`: found while a reference, a test or a bench runs.

use crate::diag::Diagnostic;
use crate::source::Span;

pub fn unknown_name(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error("TL0850", span, format!("`{name}` is not known in this reference"))
        .help("a reference sees the kernel's tensors, dims, scalars and generics, the module's constants, and its own `let`s and loop variables")
}

pub fn not_in_a_reference(span: Span, what: &str) -> Diagnostic {
    Diagnostic::error("TL0851", span, format!("{what} cannot stand in a reference"))
        .help("a reference is plain mathematics in f64: `map`, `for`, `if`, `let`, `reduce`, assignments to elements")
}

pub fn reference_index(
    span: Span,
    tensor: &str,
    axis: usize,
    index: i64,
    extent: i64,
) -> Diagnostic {
    Diagnostic::error(
        "TL0852",
        span,
        format!("index {index} is outside axis {axis} of `{tensor}`"),
    )
    .label(format!("`{tensor}` has {extent} elements along this axis"))
    .help("guard the access with `c ? x : y`, which evaluates only the side it takes")
}

pub fn reference_rank(span: Span, tensor: &str, found: usize, expected: usize) -> Diagnostic {
    Diagnostic::error(
        "TL0853",
        span,
        format!("`{tensor}` has {expected} axes and is indexed with {found}"),
    )
}

pub fn reference_type(span: Span, what: &str, found: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0854",
        span,
        format!("{what} is needed here, and this is {found}"),
    )
}

pub fn reference_arithmetic(span: Span, what: &str) -> Diagnostic {
    Diagnostic::error("TL0855", span, what.to_owned())
}

pub fn never_assigned(span: Span, name: &str, index: &[i64]) -> Diagnostic {
    Diagnostic::error(
        "TL0856",
        span,
        format!("`{name}{index:?}` is read before it is assigned"),
    )
}

pub fn reference_steps(span: Span, limit: u64) -> Diagnostic {
    Diagnostic::error("TL0857", span, format!("this reference needs more than {limit} steps"))
        .help("test at smaller sizes, or keep sums that several elements share in a `let` or a local array")
}

pub fn unknown_argument(span: Span, name: &str, kernel: &str, known: &[String]) -> Diagnostic {
    Diagnostic::error(
        "TL0860",
        span,
        format!("`{name}` is no dim, scalar or generic of kernel `{kernel}`"),
    )
    .note(match known.is_empty() {
        true => format!("kernel `{kernel}` has none"),
        false => format!("it has {}", known.join(", ")),
    })
}

pub fn no_value(span: Span, names: &[String], kernel: &str) -> Diagnostic {
    let quoted: Vec<_> = names.iter().map(|n| format!("`{n}`")).collect();
    Diagnostic::error(
        "TL0861",
        span,
        format!("no value for {} of kernel `{kernel}`", quoted.join(", ")),
    )
    .help(format!("add `with {} = …;`", names.join(" = …, ")))
}

pub fn wrong_value(span: Span, name: &str, expected: &str, found: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0862",
        span,
        format!("`{name}` needs {expected}, and this is {found}"),
    )
}

pub fn unknown_tensor(span: Span, name: &str, kernel: &str, known: &[String]) -> Diagnostic {
    Diagnostic::error(
        "TL0863",
        span,
        format!("kernel `{kernel}` has no tensor `{name}` here"),
    )
    .note(format!("its tensors are {}", known.join(", ")))
}

pub fn bad_distribution(span: Span, what: &str) -> Diagnostic {
    Diagnostic::error("TL0864", span, what.to_owned()).help(
        "distributions are normal(mean, deviation), uniform(low, high), constant(c), integers(low, high), iota(), permutation() and values(a, b, …)",
    )
}

pub fn unknown_reference(span: Span, name: &str, kernel: &str, known: &[String]) -> Diagnostic {
    let known = match known.is_empty() {
        true => "it has none".to_owned(),
        false => format!("it has {}", known.join(", ")),
    };
    Diagnostic::error(
        "TL0865",
        span,
        format!("kernel `{kernel}` has no reference `{name}`"),
    )
    .note(known)
    .help("`zeros` is always there")
}

pub fn unknown_attribute(span: Span, name: &str, known: &str) -> Diagnostic {
    Diagnostic::error("TL0866", span, format!("`@{name}` has no meaning here"))
        .note(format!("here stand {known}"))
}

pub fn too_many_cases(span: Span, cases: usize, limit: usize) -> Diagnostic {
    Diagnostic::error(
        "TL0867",
        span,
        format!("the `any`s of this test make {cases} cases, and {limit} is the most"),
    )
    .help("split the test")
}

pub fn wrong_argument(span: Span, what: &str) -> Diagnostic {
    Diagnostic::error("TL0868", span, what.to_owned())
}

pub fn unknown_target(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error("TL0869", span, format!("no target is called `{name}`"))
        .help("the targets are cpu and sm90")
}

/// A fault of ours; `what` names the stage and holds a reproducer.
pub fn internal(span: Span, kernel: &str, what: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0999",
        span,
        format!("the compiler has a fault, which kernel `{kernel}` shows"),
    )
    .note(what.trim_end().to_owned())
    .help("please report it with this text")
}

/// A network of roles that no sequential program stands for.
pub fn no_sequence(span: Span, kernel: &str, why: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0991",
        span,
        format!("kernel `{kernel}` cannot be compiled"),
    )
    .note(why.to_owned())
}

/// ` in case M = 3`, or nothing where there is one case.
fn in_case(case: &str) -> String {
    match case.is_empty() {
        true => String::new(),
        false => format!(" ({case})"),
    }
}

/// A tensor is not what the reference says. `worst`: coordinates, what the kernel computed and what is right.
pub fn not_as_expected(
    span: Span,
    tensor: &str,
    reference: &str,
    case: &str,
    facts: Vec<String>,
) -> Diagnostic {
    let mut d = Diagnostic::error(
        "TL0880",
        span,
        format!("`{tensor}` is not what `{reference}` says{}", in_case(case)),
    );
    d.notes = facts;
    d
}

pub fn bits_depend(
    span: Span,
    tensor: &str,
    first: &str,
    second: &str,
    fact: String,
) -> Diagnostic {
    Diagnostic::error(
        "TL0881",
        span,
        format!("`{tensor}` has other bits in another case"),
    )
    .note(format!("the cases are {first} and {second}"))
    .note(fact)
}

/// Two ways to run the kernel disagree: a fault of the compiler.
pub fn ways_differ(
    span: Span,
    tensor: &str,
    one: &str,
    other: &str,
    case: &str,
    fact: String,
) -> Diagnostic {
    Diagnostic::error(
        "TL0882",
        span,
        format!(
            "{one} and {other} give `{tensor}` different bits{}",
            in_case(case)
        ),
    )
    .note(fact)
    .help("this is a fault of the compiler, please report it; the kernel may be right")
}

pub fn run_failed(span: Span, way: &str, case: &str, what: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0883",
        span,
        format!("{way} stopped{}: {what}", in_case(case)),
    )
}

pub fn error_expected(span: Span, text: &str, case: &str, found: Option<&str>) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0884",
        span,
        format!(
            "the launch was to be refused with a message that holds \"{text}\"{}",
            in_case(case)
        ),
    );
    match found {
        Some(found) => d.note(format!("it was refused with: {found}")),
        None => d.note("it ran"),
    }
}

pub fn rows_missing(
    span: Span,
    tensor: &str,
    rows: (usize, usize),
    extent: i64,
    case: &str,
) -> Diagnostic {
    Diagnostic::error(
        "TL0885",
        span,
        format!(
            "`{tensor}` has no rows {}..{}{}",
            rows.0,
            rows.1,
            in_case(case)
        ),
    )
    .note(format!("its first axis has {extent} elements"))
}

pub fn expects_nothing(span: Span, title: &str) -> Diagnostic {
    Diagnostic::warning("TL0886", span, format!("test \"{title}\" expects nothing"))
        .help("add `expect`, `expect_same` or `expect_error`; it still compares interpreter and compiled code")
}
