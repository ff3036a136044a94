//! `TL01xx`: names, modules, generics, functions, attributes.

use super::{did_you_mean, list, plural};
use crate::diag::Diagnostic;
use crate::sema::Const;
use crate::source::Span;
use crate::syntax::ast::{self, Attr, Ident};

pub fn unknown_name(span: Span, name: &str, near: Option<&str>) -> Diagnostic {
    let d = Diagnostic::error("TL0101", span, format!("nothing here is called `{name}`"));
    match near {
        Some(_) => did_you_mean(d, span, near),
        None => d.help("declare it with `let`, as a tile, a parameter or a generic"),
    }
}

pub fn duplicate_name(name: &Ident, before: Span, what: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0102",
        name.span,
        format!("the {what} `{}` is declared twice", name.name),
    )
    .also(before, "first here")
    .help("rename one of the two")
}

pub fn unknown_module(span: Span, path: &str, near: Option<&str>) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0103",
        span,
        format!("no file of this compile is `module {path};`"),
    );
    match near {
        Some(_) => did_you_mean(d, span, near),
        None => d.help("name its file on the command line, or its folder after `--lib`"),
    }
}

pub fn unknown_in_module(name: &Ident, module: &str, near: Option<&str>) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0104",
        name.span,
        format!("`{module}` has no `{}`", name.name),
    );
    did_you_mean(
        d.note("it stands in another module, or nowhere"),
        name.span,
        near,
    )
}

pub fn unknown_kernel(name: &Ident, near: Option<&str>) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0105",
        name.span,
        format!("no kernel is called `{}`", name.name),
    );
    did_you_mean(
        d.note("kernels are found in this module and by `use`"),
        name.span,
        near,
    )
}

pub fn unknown_function(span: Span, name: &str, near: Option<&str>) -> Diagnostic {
    let d = Diagnostic::error("TL0106", span, format!("no function is called `{name}`"));
    did_you_mean(
        d.note("functions are found in this module, by `use`, or by `module::name`"),
        span,
        near,
    )
}

pub fn not_a_function(span: Span, name: &str, kind: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0107",
        span,
        format!("`{name}` is {kind}, so it cannot be called"),
    )
    .help("only functions and dtypes are called")
}

pub fn not_callable(span: Span) -> Diagnostic {
    Diagnostic::error("TL0107", span, "only functions and dtypes can be called")
        .help("write the name of a function or a dtype in front of the parentheses")
}

pub fn item_is_no_value(span: Span, name: &str, kind: &str) -> Diagnostic {
    let d = Diagnostic::error("TL0108", span, format!("`{name}` is {kind}, not a value"));
    if kind == "a function" {
        d.help(format!("call it: `{name}(…)`"))
    } else {
        d
    }
}

pub fn shadows_builtin(name: &Ident) -> Diagnostic {
    Diagnostic::error(
        "TL0109",
        name.span,
        format!("`{}` is a built-in function", name.name),
    )
    .help("give yours another name")
}

/// `circle`: at least one.
pub fn constant_cycle(circle: &[(usize, &ast::Const)]) -> Diagnostic {
    let names: Vec<&str> = circle.iter().map(|(_, c)| c.name.name.as_str()).collect();
    let first = &circle[0].1.name;
    let d = Diagnostic::error(
        "TL0110",
        first.span,
        format!("the value of `{}` depends on itself", first.name),
    );
    let d = match names.len() {
        1 => d,
        _ => d.note(format!("the circle is {}", list(&names))),
    };
    d.help("give one constant of the circle a value of its own")
}

pub fn recursion(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error("TL0111", span, format!("`{name}` calls itself"))
        .note("functions are inlined where they are called, so they cannot be recursive")
}

pub fn unknown_generic(name: &Ident, kernel: &ast::Kernel) -> Diagnostic {
    let names: Vec<&str> = kernel
        .generics
        .iter()
        .map(|g| g.name.name.as_str())
        .collect();
    let d = Diagnostic::error(
        "TL0112",
        name.span,
        format!("`{}` has no generic `{}`", kernel.name.name, name.name),
    );
    if names.is_empty() {
        d.note("it has none")
    } else {
        d.note(format!("it has {}", list(&names)))
    }
}

pub fn generic_given_twice(name: &Ident) -> Diagnostic {
    Diagnostic::error(
        "TL0113",
        name.span,
        format!("`{}` is given twice", name.name),
    )
    .help("keep one of the two")
}

pub fn generic_of_wrong_kind(span: Span, generic: &ast::Generic, value: &Const) -> Diagnostic {
    let kind = match generic.kind {
        ast::GenericKind::Int => "int",
        ast::GenericKind::Bool => "bool",
        ast::GenericKind::DType => "dtype",
    };
    Diagnostic::error(
        "TL0114",
        span,
        format!(
            "`{}` is of kind {kind}, but this is {}",
            generic.name.name,
            value.kind()
        ),
    )
    .label(value.to_string())
    .also(generic.span, "declared here")
    .help("give a value of the kind that the generic has")
}

pub fn generic_not_inferred(span: Span, function: &str, generic: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0115",
        span,
        format!("no argument of `{function}` shows what `{generic}` is"),
    )
    .help(format!(
        "name it in the call: `{function}(…, {generic} = …)`"
    ))
}

pub fn wrong_number_of_arguments(
    span: Span,
    name: &str,
    expected: usize,
    given: usize,
) -> Diagnostic {
    Diagnostic::error(
        "TL0116",
        span,
        format!(
            "`{name}` takes {}, not {given}",
            plural(expected, "argument")
        ),
    )
    .help("remove or add arguments; what has a name is written `name = value`")
}

pub fn unknown_named_argument(name: &Ident, function: &str, known: &[&str]) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0117",
        name.span,
        format!("`{function}` has no argument `{}`", name.name),
    );
    if known.is_empty() {
        d.note("it takes no named arguments")
    } else {
        d.note(format!("by name it takes {}", list(known)))
    }
}

pub fn unknown_named_argument_span(span: Span, name: &str, function: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0117",
        span,
        format!("`{function}` has no argument `{name}`"),
    )
    .note(format!("the name `{function}` fixes it"))
}

pub fn unknown_attribute(attr: &Attr, place: &str, known: &[&str]) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0118",
        attr.name.span,
        format!("`@{}` has no meaning on {place}", attr.name.name),
    );
    let known: Vec<String> = known.iter().map(|k| format!("@{k}")).collect();
    d.note(format!("{place} takes {}", list(&known)))
}

pub fn attribute_argument(attr: &Attr, expected: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0119",
        attr.span,
        format!("`@{}` takes {expected}", attr.name.name),
    )
    .help("change the argument")
}

pub fn contiguous_attribute(span: Span) -> Diagnostic {
    Diagnostic::error("TL0120", span, "`@contiguous` is not needed")
        .note("the last axis of every tensor is contiguous unless the parameter says `@strided`")
        .suggest("remove it", span, "")
}

pub fn not_a_dtype(name: &Ident, is_other: bool, near: Option<&str>) -> Diagnostic {
    if is_other {
        return Diagnostic::error(
            "TL0121",
            name.span,
            format!("`{}` is not a dtype", name.name),
        )
        .help(format!("declare it as one: `{}: dtype`", name.name));
    }
    let d = Diagnostic::error(
        "TL0121",
        name.span,
        format!("no dtype is called `{}`", name.name),
    );
    did_you_mean(
        d.note(
            "the dtypes are f64 f32 tf32 bf16 f16 e4m3 e5m2 e2m1 ue8m0, i8 to i64, u8 to u64, bool",
        ),
        name.span,
        near,
    )
}

pub fn unused_name(span: Span, name: &str, kind: &str) -> Diagnostic {
    Diagnostic::warning("TL0122", span, format!("the {kind} `{name}` is not used"))
        .help(format!("remove it, or call it `_{name}`"))
}

pub fn unused_generic(name: &Ident) -> Diagnostic {
    Diagnostic::warning(
        "TL0123",
        name.span,
        format!("the generic `{}` is not used", name.name),
    )
    .help("remove it, or use it")
}

pub fn unknown_method(name: &Ident, near: Option<&str>) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0124",
        name.span,
        format!("there is no method `{}`", name.name),
    );
    match near {
        Some(_) => did_you_mean(d, name.span, near),
        None => d.note("there are `.cast(T)`, `.bitcast(T)` and, in `dot`, `.t()`"),
    }
}

pub fn method_argument(name: &Ident, expected: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0125",
        name.span,
        format!("`.{}` takes {expected}", name.name),
    )
    .help(format!("write `.{}(bf16)`, for example", name.name))
}

pub fn function_without_return(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0126",
        span,
        format!("`{name}` does not end with `return`"),
    )
    .help("add `return …;` as its last statement")
}

pub fn return_in_the_middle(span: Span, in_function: bool) -> Diagnostic {
    if in_function {
        Diagnostic::error(
            "TL0127",
            span,
            "`return` must be the last statement of the function",
        )
        .help("choose the value with `c ? x : y`")
    } else {
        Diagnostic::error("TL0127", span, "a kernel returns nothing")
            .help("put the statements that should not run inside an `if`")
    }
}

pub fn argument_rank(
    span: Span,
    function: &str,
    param: &str,
    expected: usize,
    given: usize,
) -> Diagnostic {
    let rank = |n: usize| match n {
        0 => "a scalar".to_string(),
        n => format!("a tile of rank {n}"),
    };
    Diagnostic::error(
        "TL0128",
        span,
        format!(
            "`{param}` of `{function}` is {}, this is {}",
            rank(expected),
            rank(given)
        ),
    )
    .help("pass a tile of that rank, or index it")
}

pub fn argument_extent(
    span: Span,
    function: &str,
    param: &str,
    extent: &str,
    expected: i64,
    given: u64,
) -> Diagnostic {
    Diagnostic::error(
        "TL0129",
        span,
        format!("an extent of `{param}` of `{function}` should be {expected}, here it is {given}"),
    )
    .note(format!("{extent} = {expected}"))
}

pub fn result_rank(span: Span, function: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0130",
        span,
        format!("this is not of the shape that `{function}` says it returns"),
    )
    .help("change the type behind `->`, or what is returned")
}
