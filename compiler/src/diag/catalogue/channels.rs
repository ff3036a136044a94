//! `TL072x`: what the roles of a kernel do to each other; budgets.

use crate::diag::Diagnostic;
use crate::source::Span;

pub fn channel_without_roles(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0720",
        span,
        format!("`{name}` is a channel, and the kernel has no roles"),
    )
    .help("put the producer and the consumer into a `role` each, or use a tile")
}

pub fn tensor_of_two_roles(span: Span, name: &str, write: Span, roles: [&str; 2]) -> Diagnostic {
    Diagnostic::error(
        "TL0722",
        span,
        format!(
            "`{name}` is written by role `{}` and used by role `{}`",
            roles[0], roles[1]
        ),
    )
    .also(write, "written here")
    .note("nothing orders the two roles here")
    .help("send the values over a channel, or copy to parts of it that lie apart")
}

pub fn nobody_puts(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0723",
        span,
        format!("no role puts anything into `{name}`"),
    )
    .help(format!(
        "add `put {name} <- …;` to one role, or remove the channel"
    ))
}

pub fn nobody_gets(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0724",
        span,
        format!("no role gets anything from `{name}`"),
    )
    .help(format!(
        "add `get {name} as x;` to another role, or remove the channel"
    ))
}

pub fn two_writers(span: Span, name: &str, first: Span, roles: [&str; 2]) -> Diagnostic {
    Diagnostic::error(
        "TL0725",
        span,
        format!(
            "two roles put into `{name}`, `{}` and `{}`",
            roles[0], roles[1]
        ),
    )
    .also(first, "the first")
    .help("give each its own channel")
}

pub fn writer_has_copies(span: Span, name: &str, role: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0726",
        span,
        format!("every copy of role `{role}` would put into `{name}`"),
    )
    .help("let a role without `@copies` put, or give each copy's part a channel of its own")
}

pub fn gets_its_own(span: Span, name: &str, put: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0727",
        span,
        format!("this role puts into `{name}` and gets from it"),
    )
    .also(put, "put here")
    .help("inside a role use a tile")
}

pub fn channel_in_branch(span: Span, name: &str, put: bool) -> Diagnostic {
    let (verb, past) = if put {
        ("put into", "puts")
    } else {
        ("get from", "gets")
    };
    Diagnostic::error(
        "TL0728",
        span,
        format!("this {verb} `{name}` happens only sometimes"),
    )
    .note(format!(
        "every path must have the same {past}, or the other roles wait for ever"
    ))
    .help("move it out of the `if`")
}

pub fn unbalanced(
    span: Span,
    name: &str,
    put: Span,
    roles: [&str; 2],
    puts: usize,
    gets: usize,
) -> Diagnostic {
    Diagnostic::error(
        "TL0729",
        span,
        format!("puts and gets of `{name}` do not balance"),
    )
    .also(put, format!("role `{}` puts {puts} in each trip", roles[0]))
    .note(format!("role `{}` gets {gets} in each trip", roles[1]))
    .help("every reader gets each tile once")
}

pub fn loops_differ(span: Span, name: &str, put: Span, roles: [&str; 2]) -> Diagnostic {
    Diagnostic::error("TL0730", span, format!("the loops around `{name}` differ between `{}` and `{}`", roles[0], roles[1]))
        .also(put, "put here")
        .note("both sides need the same loops with the same bounds, so that every tile that is put is got")
        .help("write the same loops around both")
}

pub fn deadlock(span: Span, text: &str, others: &[(Span, String)]) -> Diagnostic {
    let mut d =
        Diagnostic::error("TL0731", span, "these roles wait for each other for ever").label(text);
    for (span, text) in others {
        d = d.also(*span, text.clone());
    }
    d.help("give the channel more `@slots`, or change the order of puts and gets")
}

pub fn over_budget(
    span: Span,
    kernel: &str,
    total: &str,
    limit: &str,
    parts: &[String],
) -> Diagnostic {
    let mut d = Diagnostic::error(
        "TL0640",
        span,
        format!("`{kernel}` uses {total} of shared memory; its budget is {limit}"),
    );
    for p in parts {
        d = d.note(p.clone());
    }
    d.help("use smaller tiles or fewer stages, or raise the budget")
}

pub fn checked_in_kernel(span: Span, what: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0641",
        span,
        format!("the bounds of this {what} are checked in the kernel"),
    )
    .note("`deny(in_kernel_checks)` asks for a proof")
    .help("state steps and ranges in `dims`, so that the last piece is whole")
}
