//! `TL00xx`: text and syntax.

use crate::diag::{Diagnostic, Severity};
use crate::source::Span;

fn closer(opener: char) -> char {
    match opener {
        '(' => ')',
        '[' => ']',
        _ => '}',
    }
}

pub fn unclosed_comment(span: Span) -> Diagnostic {
    Diagnostic::error("TL0001", span, "this comment has no end").help("close it with `*/`")
}

pub fn unclosed_string(span: Span) -> Diagnostic {
    Diagnostic::error("TL0002", span, "this text has no closing `\"` on its line")
        .help("a text stays on one line: add the closing `\"`")
}

pub fn too_deep(span: Span, what: &str, limit: usize) -> Diagnostic {
    Diagnostic::error("TL0003", span, format!("more than {limit} {what}"))
        .help("name parts of it with `let`, or move parts to an `fn`")
}

pub fn unclosed_bracket(span: Span, opener: char) -> Diagnostic {
    Diagnostic::error("TL0004", span, format!("this `{opener}` is never closed"))
        .help(format!("add the matching `{}`", closer(opener)))
}

pub fn stray_closer(span: Span, closer: char) -> Diagnostic {
    Diagnostic::error("TL0005", span, format!("this `{closer}` closes nothing"))
        .help("remove it, or add the bracket that it should close")
}

/// What `unexpected` finds behind the last token.
pub const END: &str = "the end of the item";

/// A piece of the user's text in a message.
pub fn quoted(text: &str) -> String {
    const LONGEST: usize = 40;
    match text.char_indices().nth(LONGEST) {
        Some((i, _)) => format!("`{}…`", &text[..i]),
        None => format!("`{text}`"),
    }
}

/// Stands for all that come after the first `most` of its severity.
pub fn too_many(span: Span, severity: Severity, most: usize) -> Diagnostic {
    let what = match severity {
        Severity::Error => "errors",
        Severity::Warning => "warnings",
    };
    Diagnostic {
        severity,
        ..Diagnostic::error(
            "TL0008",
            span,
            format!("there are more than {most} {what}; those found from here on are left out"),
        )
    }
    .help("mend those above and run again")
}

/// Not what can stand here, and no likelier slip is known. `form` tells how the thing is written.
pub fn unexpected(span: Span, expected: &str, found: &str, form: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0010",
        span,
        format!("expected {expected}, found {found}"),
    )
    .help(form)
}

pub fn form_of_stmt(first: &str) -> String {
    let form = match first {
        "let" => "let x = value;` or `let mut x = value;",
        "reg" | "shared" | "global" | "cluster" => {
            return format!("a tile is written `{first} name: [rows, columns] f32;`, with `= value` to fill it");
        }
        "copy" => "copy destination <- source;",
        "map" => "map (i, j) in [rows, columns] { … }",
        "for" => "for i in low..high { … }",
        "pipeline" => "pipeline k in low..high @stages(3) { … }",
        "if" => "if condition { … } else { … }",
        "get" => "get channel as name;",
        "put" => "put channel <- tile;",
        "role" => "role name { … }",
        "channel" => "channel name: [rows, columns] bf16 @slots(2);",
        "release" => "release name;",
        "scatter" => "scatter y[index(p[i]), j] = value;",
        "atomic" => "atomic y[index(p[i])] += value;",
        "signal" => "signal flags[i] after tensor;",
        "wait" => "wait flags[i] >= count;",
        "assert" => "assert condition, \"message\";",
        "assume" => "assume condition;",
        "print" => "print \"text\", value;",
        "return" => "return value;",
        "asm" => "asm \"text\" reads(a) writes(b);",
        _ => return "a statement starts with a keyword such as `let`, `reg`, `copy`, `map` or `for`, or is `target = value;`".to_string(),
    };
    format!("`{first}` is written `{form}`")
}

pub const FORM_OF_EXPRESSION: &str = "an expression is a name, a number, a call, a part of a tensor, or several of them with operators";

pub fn form_of_generic() -> String {
    "a generic parameter is written `N: int = 64`; the kinds are `int`, `bool` and `dtype`"
        .to_string()
}

pub fn form_of_item(first: &str) -> String {
    let form = match first {
        "kernel" => {
            "kernel name<N: int = 64>(x: in [M, N] f32, y: out [M, N] f32) dims M in 0..=65536 launch grid(M) { … }"
        }
        "fn" => "fn name(x: f32) -> f32 { return x; }",
        "const" => "const NAME = 64;",
        "instances" => "instances kernel_name { (T = bf16, N = 64), (T = f32, N = 64) }",
        "reference" => "reference name for kernel_name { … }",
        "test" => "test \"title\" for kernel_name { … }",
        "bench" => "bench \"title\" for kernel_name { … }",
        "use" => "use module::{name};",
        "module" => "module name;",
        _ => "edition 2026;",
    };
    format!("`{first}` is written `{form}`")
}

pub fn form_of_param(of_kernel: bool) -> String {
    if of_kernel {
        "a parameter is written `x: in [M, N] bf16` (`in`, `out`, `inout`, `scratch`, `flags`) or, for a scalar, `x: f32`".to_string()
    } else {
        "a parameter is written `x: f32` or `x: [M, N] f32`".to_string()
    }
}

pub fn form_of_clause(first: &str) -> String {
    let form = match first {
        "where" => "where N % 8 == 0 \"message\", BM in {64, 128}",
        "dims" => "dims M in 0..=65536 step 8, N in 1..=4096",
        "launch" => "launch grid(cdiv(M, BM), N), warps(4)",
        "requires" => "requires scale > 0.0",
        "ensures" => "ensures det(bitwise), batch_invariant(M)",
        "budget" => "budget smem <= 227KiB, regs <= 232",
        "deny" => "deny(convert_in_loop)",
        _ => "tune(N, K) { BM in {64, 128}; ST in {2, 3}; }",
    };
    format!("`{first}` is written `{form}`")
}

/// `None`: no line of a test starts so.
pub fn form_of_line(first: &str) -> Option<String> {
    let form = match first {
        "with" => "with M = 64, T = bf16;",
        "fill" => "fill x ~ normal(0, 1) @seed(1);",
        "expect" => "expect y against reference_name @rel(0.01) @abs(0.001);",
        "expect_same" => "expect_same y, rows = 0..1, bitwise;",
        "expect_error" => "expect_error \"part of the message\";",
        "run" => "run cpu, sm90;",
        "floor" => "floor gbps = 2700;",
        _ => return None,
    };
    Some(format!("`{first}` is written `{form}`"))
}

pub fn not_a_test_line(span: Span, found: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0025",
        span,
        format!("no line of a test or bench starts with {found}"),
    )
    .help(
        "the lines are `with`, `fill`, `expect`, `expect_same`, `expect_error`, `run` and `floor`",
    )
}

pub fn between_items(span: Span, found: &str) -> Diagnostic {
    Diagnostic::error("TL0026", span, format!("expected an item, found {found}")).help(
        "a file holds `kernel`, `fn`, `const`, `instances`, `reference`, `test`, `bench`, `use`, `module` and `edition`",
    )
}

/// Words that start what is an item here in other languages; `None` for any other.
pub fn foreign_item(span: Span, word: &str) -> Option<Diagnostic> {
    let ours = match word {
        "def" | "func" | "function" | "void" | "__global__" | "__device__" | "pub" | "proc" => {
            "the words are `kernel`, and `fn` for what kernels call"
        }
        "import" | "from" | "include" | "using" | "mod" => "write `use module::{name};`",
        "let" | "var" | "static" | "auto" => {
            "write `const NAME = value;`; it is known when the file is compiled"
        }
        "class" | "struct" | "enum" | "type" => {
            "there are no types of one's own: tensors, tiles and scalars are all"
        }
        _ => return None,
    };
    Some(Diagnostic::error("TL0027", span, format!("no item starts with `{word}`")).help(ours))
}

pub fn hash_comment(span: Span, mark: Span) -> Diagnostic {
    Diagnostic::error("TL0030", span, "a comment starts with `//`, not with `#`")
        .suggest("use `//`", mark, "//")
}

pub fn foreign_character(span: Span, c: char) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0031",
        span,
        format!("`{c}` has no meaning outside of comments and texts"),
    );
    let ours = match c {
        '≤' => "<=",
        '≥' => ">=",
        '≠' => "!=",
        '×' | '·' | '∗' => "*",
        '−' | '–' | '—' => "-",
        '←' => "<-",
        '→' => "->",
        '∞' => "INF",
        'π' => "PI",
        '“' | '”' | '„' => "\"",
        '\u{a0}' | '\u{feff}' | '\u{200b}' => {
            return d.suggest("remove this invisible character", span, " ");
        }
        _ => return d.help("names are ASCII letters, digits and `_`"),
    };
    d.suggest(format!("write `{ours}`"), span, ours)
}

pub fn wrong_arrow(span: Span, statement: &str, found: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0032",
        span,
        format!("`{statement}` takes `<-`, not `{found}`"),
    )
    .suggest(
        format!("`{statement}` moves a whole tile; write `<-`"),
        span,
        "<-",
    )
}

pub fn arrow_without_copy(span: Span, start: Span) -> Diagnostic {
    let before = Span {
        end: start.start,
        ..start
    };
    Diagnostic::error("TL0033", span, "`<-` belongs to `copy` and `put`")
        .suggest("to move a tile, write `copy` in front", before, "copy ")
        .suggest("to assign, write `=`", span, "=")
}

pub fn c_loop(span: Span, rewrite: Option<String>) -> Diagnostic {
    let d = Diagnostic::error("TL0034", span, "a loop runs over a range");
    match rewrite {
        Some(text) => d.suggest(format!("write `for {text} {{ … }}`"), span, text),
        None => d.help("write `for i in low..high { … }`"),
    }
}

pub fn loop_with_equals(span: Span) -> Diagnostic {
    Diagnostic::error("TL0034", span, "a loop runs over a range").suggest("write `in`", span, "in")
}

pub fn python_range(span: Span, args: &str, map: bool) -> Diagnostic {
    let parts: Vec<&str> = args.split(',').map(str::trim).collect();
    let d = Diagnostic::error("TL0034", span, "there is no `range` function");
    match (parts.as_slice(), map) {
        ([n], true) => d.suggest(format!("write `[{n}]`"), span, format!("[{n}]")),
        ([n], false) => d.suggest(format!("write `0..{n}`"), span, format!("0..{n}")),
        ([lo, hi], false) => d.suggest(format!("write `{lo}..{hi}`"), span, format!("{lo}..{hi}")),
        _ => d.help("write `low..high`; there is no step: multiply the variable"),
    }
}

pub fn map_over_range(span: Span, rewrite: Option<String>) -> Diagnostic {
    let d = Diagnostic::error("TL0035", span, "a map runs over extents in brackets");
    match rewrite {
        Some(text) => d.suggest(format!("write `{text}`"), span, text),
        None => d.help("write `map (i, j) in [rows, columns] { … }`; indices start at 0"),
    }
}

pub fn for_over_shape(span: Span, rewrite: Option<String>) -> Diagnostic {
    let d = Diagnostic::error("TL0035", span, "a loop runs over a range, not over extents");
    match rewrite {
        Some(text) => d.suggest(format!("write `{text}`"), span, text),
        None => d.help("write `map (i, j) in [rows, columns] { … }` where iterations don't depend on each other"),
    }
}

pub fn loose_variables(span: Span, names: &str) -> Diagnostic {
    Diagnostic::error("TL0036", span, "several variables stand in parentheses").suggest(
        format!("write `({names})`"),
        span,
        format!("({names})"),
    )
}

pub fn slice(span: Span, rewrite: Option<String>) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0037",
        span,
        "a part of a tensor is written `start :+ length`",
    );
    match rewrite {
        Some(text) => d.suggest(
            format!("write `{text}`: the length comes second, not the end"),
            span,
            text,
        ),
        None => d.help("give the start and the length: `m0 :+ 64`"),
    }
}

pub fn as_cast(span: Span, operand: &str, to: &str) -> Diagnostic {
    let d = Diagnostic::error("TL0038", span, "there is no `as`");
    if operand.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
        d.help(format!(
            "write `{to}({operand})` for a scalar, `.cast({to})` for a tile"
        ))
    } else {
        d.help(format!(
            "write `{to}(value)` for a scalar, `.cast({to})` for a tile"
        ))
    }
}

pub fn word_operator(span: Span, word: &str) -> Diagnostic {
    let ours = match word {
        "and" => "&&",
        "or" => "||",
        _ => "!",
    };
    Diagnostic::error("TL0039", span, format!("`{word}` is not an operator")).suggest(
        format!("write `{ours}`"),
        span,
        ours,
    )
}

pub fn reference(span: Span) -> Diagnostic {
    Diagnostic::error("TL0040", span, "there are no references and no pointers").suggest(
        "name the tile or tensor itself",
        span,
        "",
    )
}

pub fn python_select(span: Span) -> Diagnostic {
    Diagnostic::error("TL0041", span, "`if` is a statement, not an operator")
        .help("choose between values with `condition ? a : b`")
}

pub fn power(span: Span) -> Diagnostic {
    Diagnostic::error("TL0042", span, "`**` is not an operator")
        .help("write `pow(x, y)`, or `x * x`")
}

pub fn single_quotes(span: Span) -> Diagnostic {
    Diagnostic::error("TL0043", span, "texts stand in double quotes").help("write `\"text\"`")
}

pub fn stray_semicolon(span: Span) -> Diagnostic {
    Diagnostic::error("TL0044", span, "this `;` ends nothing").suggest("remove it", span, "")
}

pub fn bare_block(span: Span) -> Diagnostic {
    Diagnostic::error("TL0045", span, "a block needs a head")
        .help("blocks stand behind `for`, `map`, `pipeline`, `if`, `else` and `role`")
}

pub fn no_while(span: Span) -> Diagnostic {
    Diagnostic::error("TL0046", span, "there is no `while`")
        .help("write `for i in low..high { … }`: the number of rounds is known when a loop starts")
}

pub fn else_without_if(span: Span) -> Diagnostic {
    Diagnostic::error("TL0047", span, "this `else` has no `if`")
        .help("it stands right behind the block of an `if`")
}

pub fn else_without_block(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0055",
        span,
        "behind `else` stands a block or another `if`",
    )
    .help("write `else { … }`")
}

pub fn increment(span: Span, name: &str, op: &str) -> Diagnostic {
    let ours = format!("{name} {op}= 1");
    Diagnostic::error("TL0048", span, format!("there is no `{op}{op}`")).suggest(
        format!("write `{ours}`"),
        span,
        ours,
    )
}

pub fn c_declaration(span: Span, ty: &str, name: &str) -> Diagnostic {
    let d = Diagnostic::error(
        "TL0049",
        span,
        format!("a declaration doesn't start with the type `{ty}`"),
    );
    d.suggest(
        format!(
            "write `let {name} = …;`, `let mut` if it changes, or `reg {name}: [n] f32;` for a tile"
        ),
        span,
        "let",
    )
}

pub fn c_parameter(span: Span) -> Diagnostic {
    Diagnostic::error("TL0049", span, "a parameter starts with its name").help(form_of_param(true))
}

pub fn tile_without_colon(span: Span, rewrite: String) -> Diagnostic {
    Diagnostic::error(
        "TL0050",
        span,
        "the shape stands behind `:`, before the element type",
    )
    .suggest(format!("write `{rewrite}`"), span, rewrite)
}

pub fn missing_colon(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error("TL0051", span, format!("a `:` is missing behind `{name}`"))
        .suggest("add it", span, ":")
}

pub fn missing_shape_brackets(span: Span, name: &str, extent: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0014",
        span,
        format!("the shape of `{name}` stands in brackets"),
    )
    .suggest(format!("write `[{extent}]`"), span, format!("[{extent}]"))
}

/// `between`: from behind the name to the type.
pub fn scalar_with_mode(
    span: Span,
    between: Span,
    name: &str,
    mode: &str,
    elem: &str,
) -> Diagnostic {
    Diagnostic::error("TL0014", span, format!("`{name}` has no shape"))
        .help(format!(
            "for a tensor, write its extents in brackets: `{mode} [N] {elem}`"
        ))
        .suggest(format!("for a scalar, leave `{mode}` out"), between, ": ")
}

pub fn mode_in_function(span: Span, name: &str, mode: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0056",
        span,
        format!("`{mode}` belongs to parameters of kernels"),
    )
    .help(format!(
        "a function only reads its parameters: write `{name}: [N] f32` or `{name}: f32`"
    ))
}

pub fn unknown_mode(span: Span, found: &str) -> Diagnostic {
    Diagnostic::error("TL0058", span, format!("`{found}` is not a mode"))
        .help("the modes are `in`, `out`, `inout`, `scratch` and `flags`")
}

pub fn comparison_as_statement(span: Span) -> Diagnostic {
    Diagnostic::error(
        "TL0057",
        span,
        "`==` compares; alone, a comparison does nothing",
    )
    .suggest("to assign, write `=`", span, "=")
}

pub fn loose_unit(span: Span, number: &str, unit: &str) -> Diagnostic {
    Diagnostic::error("TL0013", span, "a unit stands right behind its number").suggest(
        format!("write `{number}{unit}`"),
        span,
        format!("{number}{unit}"),
    )
}

pub fn mode_before_name(span: Span, name: &str, mode: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0052",
        span,
        format!("the mode of `{name}` stands behind the `:`"),
    )
    .help(format!("write `{name}: {mode} [..] f32`"))
}

pub fn no_such_assignment(span: Span, found: &str, target: &str) -> Diagnostic {
    let d = Diagnostic::error("TL0053", span, format!("`{found}` is not an assignment"));
    if found == ":=" {
        d.suggest("write `=`", span, "=")
    } else {
        {
            let operator = found.trim_end_matches('=');
            d.help(format!("write `{target} = {target} {operator} value`"))
        }
    }
}

pub fn float_without_fraction(span: Span, digits: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0054",
        span,
        "a float has digits on both sides of its point",
    )
    .suggest(format!("write `{digits}.0`"), span, format!("{digits}.0"))
}

pub fn float_without_integer(span: Span, digits: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0054",
        span,
        "a float has digits on both sides of its point",
    )
    .suggest(format!("write `0.{digits}`"), span, format!("0.{digits}"))
}

pub fn missing_semicolon(span: Span) -> Diagnostic {
    Diagnostic::error("TL0011", span, "a `;` is missing here").suggest("add it", span, ";")
}

pub fn reserved_word(span: Span, word: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0012",
        span,
        format!("`{word}` is a word of the language and can't be a name"),
    )
    .suggest("choose another name", span, format!("{word}_"))
}

/// What is wrong with a number.
#[derive(Clone, Copy, Debug)]
pub enum NumberFault {
    Hex,
    TooLarge,
    Unit,
    FractionOfUnit,
}

pub fn bad_number(span: Span, text: &str, fault: NumberFault) -> Diagnostic {
    let d =
        |why: &str| Diagnostic::error("TL0013", span, format!("`{text}` is not a number: {why}"));
    match fault {
        NumberFault::Hex => d("hexadecimal digits must follow `0x`")
            .help("the digits are 0 to 9 and a to f, as in `0xff`"),
        NumberFault::TooLarge => {
            d("it is too large").help("integers go up to 2^64 - 1, floats up to about 1.8e308")
        }
        NumberFault::FractionOfUnit => d("only whole numbers take a unit")
            .help("write it in the next smaller unit: `1536B` for 1.5 KiB"),
        NumberFault::Unit => {
            let split = text
                .find(|c: char| !(c.is_ascii_digit() || c == '_' || c == '.'))
                .unwrap_or(text.len());
            let (number, unit) = text.split_at(split);
            let d = d(&format!("`{unit}` is not a unit"));
            match unit {
                "K" | "KB" | "kB" | "kb" | "Kb" | "k" | "Ki" => {
                    d.suggest("units are binary", span, format!("{number}KiB"))
                }
                "M" | "MB" | "mb" | "Mb" | "Mi" => {
                    d.suggest("units are binary", span, format!("{number}MiB"))
                }
                "G" | "GB" | "gb" | "Gb" | "Gi" => {
                    d.suggest("units are binary", span, format!("{number}GiB"))
                }
                "f" | "F" | "f32" | "f64" | "h" => d.suggest(
                    "a literal takes its type from its surroundings",
                    span,
                    if number.contains('.') {
                        number.to_string()
                    } else {
                        format!("{number}.0")
                    },
                ),
                "u" | "U" | "l" | "L" | "ul" | "UL" | "i32" | "i64" | "u32" | "u64" => d.suggest(
                    "a literal takes its type from its surroundings",
                    span,
                    number,
                ),
                _ => d.help(
                    "the units are `B`, `KiB`, `MiB` and `GiB`, written right behind the number",
                ),
            }
        }
    }
}

pub fn missing_shape(span: Span, name: &str, elem: &str) -> Diagnostic {
    Diagnostic::error("TL0014", span, format!("`{name}` has no shape")).suggest(
        "write the extents in brackets before the element type; one number is `let mut`",
        span,
        format!("[1] {elem}"),
    )
}

pub fn chained_comparison(span: Span) -> Diagnostic {
    Diagnostic::error("TL0015", span, "comparisons can't be chained").help("write `a < b && b < c`")
}

pub fn expression_too_deep(span: Span, limit: usize) -> Diagnostic {
    Diagnostic::error(
        "TL0016",
        span,
        format!("this expression nests more than {limit} operations"),
    )
    .help("name parts of it with `let`")
}

pub fn unknown_kind(span: Span, found: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0017",
        span,
        format!("`{found}` is not a kind of generic parameter"),
    )
    .help("a generic parameter is `int`, `bool` or `dtype`")
}

pub fn bad_escape(span: Span, found: char) -> Diagnostic {
    Diagnostic::error("TL0018", span, format!("`\\{found}` is not an escape"))
        .help("the escapes are `\\\"`, `\\\\`, `\\n` and `\\t`")
}

pub fn text_too_long(span: Span, bytes: usize, limit: usize) -> Diagnostic {
    Diagnostic::error(
        "TL0006",
        span,
        format!("this file has {bytes} bytes; at most {limit} are read"),
    )
    .help("split it into modules")
}

/// The parser's limit on work or stack for one item.
pub fn too_involved(span: Span) -> Diagnostic {
    Diagnostic::error("TL0007", span, "this item is too involved to be read")
        .help("split it: name parts of expressions with `let`, or move parts to an `fn`")
}

pub fn several_loop_variables(span: Span) -> Diagnostic {
    Diagnostic::error("TL0019", span, "a loop over a range has one variable")
        .help("nest two loops, or write `map (i, j) in [M, N]` where iterations don't depend on each other")
}

pub fn unknown_edition(span: Span) -> Diagnostic {
    Diagnostic::error("TL0020", span, "this edition is not known").suggest(
        "the only edition is 2026",
        span,
        "2026",
    )
}

pub fn second_header(span: Span, what: &str) -> Diagnostic {
    Diagnostic::error("TL0021", span, format!("a file has one `{what}` line"))
        .help("remove this one")
}

pub fn use_without_names(span: Span, module: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0022",
        span,
        format!("this takes nothing from `{module}`"),
    )
    .help(format!("name what to use: `use {module}::{{name}};`"))
}

pub fn typed_const(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0023",
        span,
        format!("the constant `{name}` takes no type"),
    )
    .help("constants are exact: integers or f64, rounded where they are used")
}

pub fn missing_mode(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error("TL0024", span, format!("the tensor `{name}` has no mode"))
        .help("write `in`, `out`, `inout`, `scratch` or `flags` before its shape")
}
