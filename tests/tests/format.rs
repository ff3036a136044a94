//! The formatter: the tree stays, every comment stays, and a second formatting changes nothing; on the repository's programs, on
//! those with comments strewn in, and on generated trees.

mod trees;

use proptest::prelude::*;
use tessera_compiler::diag::Sink;
use tessera_compiler::syntax::{self, ast, format};
use tessera_tests::program::{all_programs, shape};
use tessera_tests::random::{Random, cases};

fn parse(text: &str) -> Option<ast::File> {
    let mut sink = Sink::default();
    let tree = syntax::parse(&mut sink, Default::default(), text);
    (!sink.has_errors()).then_some(tree)
}

fn formatted(text: &str) -> String {
    let mut sink = Sink::default();
    format::format(&mut sink, Default::default(), text)
        .unwrap_or_else(|| panic!("does not parse: {:?}\n{text}", sink.finish()))
}

/// The comments' texts. They keep their order but for those that move out of an expression.
fn comments(tree: &ast::File) -> Vec<&str> {
    let mut texts: Vec<&str> = tree.comments.iter().map(|c| c.text.as_str()).collect();
    texts.sort_unstable();
    texts
}

fn examine(text: &str, tree: &ast::File) -> Result<(), String> {
    let once = formatted(text);
    let again = parse(&once).ok_or_else(|| format!("formatted, it does not parse:\n{once}"))?;
    if shape(tree) != shape(&again) {
        return Err(format!(
            "formatting changes the tree:\n{text}\n--- to\n{once}"
        ));
    }
    if comments(tree) != comments(&again) {
        return Err(format!(
            "formatting changes the comments:\n{text}\n--- to\n{once}"
        ));
    }
    let twice = formatted(&once);
    if once != twice {
        return Err(format!(
            "a second formatting changes it:\n{once}\n--- to\n{twice}"
        ));
    }
    Ok(())
}

#[test]
fn programs_of_the_repository_keep_tree_and_comments() {
    let mut examined = 0;
    for (path, text) in all_programs() {
        let Some(tree) = parse(&text) else { continue };
        examined += 1;
        if let Err(what) = examine(&text, &tree) {
            panic!("{}: {what}", path.display());
        }
        let long = formatted(&text)
            .lines()
            .find(|l| l.chars().count() > format::WIDTH && !l.contains("//") && !l.contains('"'))
            .map(str::to_owned);
        assert_eq!(long, None, "{}: a line is too long", path.display());
    }
    assert!(examined > 10, "only {examined} programs parse");
}

/// Where a comment can stand: blanks outside of comments and texts.
fn gaps(text: &str) -> Vec<usize> {
    let mut gaps = vec![];
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let inside =
            |end: &str, open: usize| rest[open..].find(end).map_or(rest.len(), |n| open + n);
        at += if rest.starts_with("//") {
            // Its end of line belongs to it: what is put there is part of it.
            inside("\n", 2) + 1
        } else if rest.starts_with("/*") {
            inside("*/", 2) + 2
        } else if let Some(body) = rest.strip_prefix('"') {
            // Up to a quote that no backslash stands before.
            let mut escaped = false;
            let end = body.find(|c| {
                let closes = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                closes
            });
            end.map_or(rest.len(), |n| n + 2)
        } else {
            if rest.starts_with([' ', '\n']) {
                gaps.push(at);
            }
            rest.chars().next().map_or(1, char::len_utf8)
        };
    }
    gaps
}

/// A comment can stand between any two words, and formatting keeps it.
#[test]
fn strewn_comments_stay() {
    let programs: Vec<(String, String)> = all_programs()
        .into_iter()
        .filter_map(|(_, text)| parse(&text).map(|tree| (shape(&tree), text)))
        .collect();
    for case in 0..cases(300) {
        let mut random = Random::new(0xc0_77e5 + case as u64);
        let (shape_before, text) = &programs[random.below(programs.len())];
        let mut text = text.clone();
        for n in 0..random.between(1, 6) {
            let gaps = gaps(&text);
            if gaps.is_empty() {
                break;
            }
            let comment = match random.below(4) {
                0 => format!(" // comment {n}\n"),
                1 => format!("\n\n\n// comment {n}\n\n"),
                2 => format!(" /* comment {n} */ "),
                _ => format!(" /* comment\n {n} */"),
            };
            text.insert_str(random.pick(&gaps), &comment);
        }
        let Some(tree) = parse(&text) else {
            panic!("case {case}: with comments it does not parse:\n{text}");
        };
        assert!(
            shape(&tree) == *shape_before,
            "case {case}: comments change the tree:\n{text}"
        );
        if let Err(what) = examine(&text, &tree) {
            panic!("case {case}: {what}");
        }
    }
}

/// Every kind of item, documented where it can be.
const EVERY_ITEM: &str = "\
edition 2026;
/// no place for this
module m;
/// nor for this
use other::{f, g};

/// const docs
const N = 4;
/// fn docs
///
/// two paragraphs
fn one(x: f32) -> f32 { return x; }

/// fn docs
fn two(x: f32) -> f32 {
    return x;
}
/// kernel docs
kernel k<A: int = 4>(
    x: in  [M, A] f32,
    y: out [M, A] f32,
)
dims   M in 0..=64
launch grid(M)
{
    map j in [A] { y[block(0), j] = x[block(0), j]; }
}
/// nor for this
instances k { (A = 4), (A = 8) }

/// reference docs
reference r for k {
    map (i, j) in [M, A] { y[i, j] = x[i, j]; }
}
/// one-line reference docs
reference s for k { map (i, j) in [M, A] { y[i, j] = 0.0; } }
/// test docs
test \"t\" for k {
    with M = 3;
    expect y against r;
}
/// one-line test docs
test \"u\" for k { with M = 3; }
/// bench docs
bench \"b\" for k {
    with M = 3;
}
";

/// A comment at each blank of every kind of item, above all beside its docs.
#[test]
fn a_comment_at_any_blank_stays() {
    let before = parse(EVERY_ITEM).expect("it parses");
    examine(EVERY_ITEM, &before).unwrap_or_else(|what| panic!("{what}"));
    let comments = [
        " // c\n",
        "\n// c\n",
        "\n\n// c\n\n",
        " /* c */ ",
        "\n/* c */ ",
        " /* c\n c */ ",
        "\n// c\n\n/* c */ // c\n",
    ];
    for at in gaps(EVERY_ITEM) {
        for comment in comments {
            let mut text = EVERY_ITEM.to_string();
            text.insert_str(at, comment);
            let tree = parse(&text).unwrap_or_else(|| panic!("it does not parse:\n{text}"));
            assert_eq!(shape(&tree), shape(&before), "another tree:\n{text}");
            examine(&text, &tree).unwrap_or_else(|what| panic!("{comment:?} at {at}: {what}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn generated_trees_print_and_parse_back(tree in trees::file()) {
        let text = format::print(&tree, "");
        let parsed = parse(&text);
        prop_assert!(parsed.is_some(), "does not parse:\n{}", text);
        let parsed = parsed.expect("checked");
        prop_assert_eq!(shape(&tree), shape(&parsed), "another tree:\n{}", text);
        if let Err(what) = examine(&text, &parsed) {
            prop_assert!(false, "{}", what);
        }
    }
}

#[test]
fn layout() {
    let ugly = "\
module a::b;
kernel   k<N:int=4,T:dtype=bf16>( x :in [M,N] T @align( 16 ), // the input
longer: out[M,N]f32,s:f32)
where N%8==0 \"eight\",N>4,
  T in{bf16,f16}
dims M in 0..=64 step 8
launch grid( M )
{


  let a=block( 0 );   // row
  let bb = -a+ ( 2*3 );// more
  /* before */ map i in [N] {longer[a,i]=x[a,i]>=0?1.0:-INF;}
  if a>3 {return;} else if a>2 { print \"x\",a ; }
  else {
    // nothing
  }
  copy longer[ a,0:+N ]<-x[a,:].cast(f32)*(s*LOG2E)@oob( skip );


}
";
    let neat = "\
module a::b;

kernel k<N: int = 4, T: dtype = bf16>(
    x:      in  [M, N] T @align(16), // the input
    longer: out [M, N] f32,
    s: f32,
)
where  N % 8 == 0 \"eight\", N > 4,
       T in {bf16, f16}
dims   M in 0..=64 step 8
launch grid(M)
{
    let a = block(0);      // row
    let bb = -a + (2 * 3); // more
    /* before */
    map i in [N] { longer[a, i] = x[a, i] >= 0 ? 1.0 : -INF; }
    if a > 3 {
        return;
    } else if a > 2 {
        print \"x\", a;
    } else {
        // nothing
    }
    copy longer[a, 0 :+ N] <- x[a, :].cast(f32) * (s * LOG2E) @oob(skip);
}
";
    assert_eq!(formatted(ugly), neat);
}
