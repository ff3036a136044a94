//! Trees as the parser could have made them, without places: names that are no keywords, lists that are not empty where the grammar wants
//! one element, no chained comparisons (the printer puts parentheses there).

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tessera_artifact::DType;
use tessera_compiler::source::Span;
use tessera_compiler::syntax::ast::*;

fn span() -> Span {
    Span::default()
}

fn ident() -> BoxedStrategy<Ident> {
    prop::sample::select(vec![
        "a",
        "b",
        "m0",
        "BM",
        "K",
        "x_1",
        "_t",
        "key",
        "step",
        "out",
        "run",
        "floor",
        "max",
        "index",
        "after",
        "e4",
        "row_of_the_long_name",
    ])
    .prop_map(|name| Ident {
        name: name.to_owned(),
        span: span(),
    })
    .boxed()
}

fn path() -> BoxedStrategy<Path> {
    vec(ident(), 1..3)
        .prop_map(|segments| Path {
            segments,
            span: span(),
        })
        .boxed()
}

fn text() -> BoxedStrategy<String> {
    prop_oneof!["[ -~]{0,12}", Just("é \" \\ \n\t//".to_owned())].boxed()
}

fn dtype() -> BoxedStrategy<DType> {
    prop::sample::select(DType::ALL.to_vec()).boxed()
}

fn node(kind: ExprKind) -> Expr {
    Expr { kind, span: span() }
}

fn leaf() -> BoxedStrategy<Expr> {
    prop_oneof![
        4 => path().prop_map(ExprKind::Name),
        2 => (0i128..1000).prop_map(ExprKind::Int),
        1 => Just(ExprKind::Int(u64::MAX as i128)),
        2 => (0.0f64..1000.0).prop_map(ExprKind::Float),
        1 => prop::sample::select(vec![0.0, 1e-300, 1e300, 1e16, 0.1, 5e-324]).prop_map(ExprKind::Float),
        1 => any::<bool>().prop_map(ExprKind::Bool),
        1 => dtype().prop_map(ExprKind::DType),
        1 => text().prop_map(ExprKind::Str),
    ]
    .prop_map(node)
    .boxed()
}

const OPERATORS: [BinaryOp; 18] = [
    BinaryOp::Add,
    BinaryOp::Sub,
    BinaryOp::Mul,
    BinaryOp::Div,
    BinaryOp::Rem,
    BinaryOp::Shl,
    BinaryOp::Shr,
    BinaryOp::BitAnd,
    BinaryOp::BitOr,
    BinaryOp::BitXor,
    BinaryOp::And,
    BinaryOp::Or,
    BinaryOp::Eq,
    BinaryOp::Ne,
    BinaryOp::Lt,
    BinaryOp::Le,
    BinaryOp::Gt,
    BinaryOp::Ge,
];

fn args_of(e: BoxedStrategy<Expr>, least: usize) -> BoxedStrategy<Vec<Arg>> {
    let arg = (
        option::of(ident()),
        e.clone(),
        option::weighted(0.1, (e, any::<bool>())),
    );
    vec(
        arg.prop_map(|(name, value, range_end)| Arg {
            name,
            value,
            range_end,
            span: span(),
        }),
        least..4,
    )
    .boxed()
}

fn slots_of(e: BoxedStrategy<Expr>) -> BoxedStrategy<Vec<IndexSlot>> {
    let slot = prop_oneof![
        4 => e.clone().prop_map(IndexSlot::At),
        2 => (e.clone(), e.clone()).prop_map(|(start, len)| IndexSlot::Span { start, len }),
        1 => Just(IndexSlot::Full(span())),
        1 => e.prop_map(IndexSlot::Gather),
    ];
    vec(slot, 1..4).boxed()
}

fn range_of(e: BoxedStrategy<Expr>) -> BoxedStrategy<Range> {
    (e.clone(), e, any::<bool>())
        .prop_map(|(lo, hi, inclusive)| Range {
            lo,
            hi,
            inclusive,
            span: span(),
        })
        .boxed()
}

fn expr() -> BoxedStrategy<Expr> {
    leaf()
        .prop_recursive(5, 40, 4, |e| {
            let e = e.boxed();
            let boxed = || e.clone().prop_map(Box::new);
            prop_oneof![
                6 => (prop::sample::select(OPERATORS.to_vec()), boxed(), boxed())
                    .prop_map(|(op, a, b)| ExprKind::Binary(op, a, b)),
                2 => (prop::sample::select(vec![UnaryOp::Neg, UnaryOp::Not]), boxed())
                    .prop_map(|(op, a)| ExprKind::Unary(op, a)),
                2 => (boxed(), boxed(), boxed()).prop_map(|(c, a, b)| ExprKind::Select(c, a, b)),
                2 => (boxed(), args_of(e.clone(), 0))
                    .prop_map(|(callee, args)| ExprKind::Call { callee, args }),
                2 => (boxed(), ident(), args_of(e.clone(), 0))
                    .prop_map(|(receiver, name, args)| ExprKind::Method { receiver, name, args }),
                2 => (boxed(), slots_of(e.clone()))
                    .prop_map(|(base, slots)| ExprKind::Index { base, slots }),
                1 => (ident(), ident(), range_of(e.clone()).prop_map(Box::new), boxed())
                    .prop_map(|(op, var, range, body)| ExprKind::Reduce { op, var, range, body }),
                1 => vec(e.clone(), 1..4).prop_map(ExprKind::Tuple),
            ]
            .prop_map(node)
        })
        .boxed()
}

fn args(least: usize) -> BoxedStrategy<Vec<Arg>> {
    args_of(expr(), least)
}

fn range() -> BoxedStrategy<Range> {
    range_of(expr())
}

/// `name` or `name[..]`
fn place() -> BoxedStrategy<Expr> {
    (ident(), option::of(slots_of(expr())))
        .prop_map(|(name, slots)| {
            let base = node(ExprKind::Name(Path {
                segments: vec![name],
                span: span(),
            }));
            match slots {
                None => base,
                Some(slots) => node(ExprKind::Index {
                    base: Box::new(base),
                    slots,
                }),
            }
        })
        .boxed()
}

fn attrs() -> BoxedStrategy<Vec<Attr>> {
    let attr = (ident(), args(0)).prop_map(|(name, args)| Attr {
        name,
        args,
        span: span(),
    });
    vec(attr, 0..3).boxed()
}

fn elem() -> BoxedStrategy<ElemType> {
    prop_oneof![
        dtype().prop_map(ElemType::DType),
        Just(ElemType::Index),
        Just(ElemType::Name(Ident {
            name: "T".into(),
            span: span()
        })),
    ]
    .boxed()
}

fn ty(space: bool, least: usize, most: usize) -> BoxedStrategy<Type> {
    let spaces = prop::sample::select(vec![
        Space::Shared,
        Space::Reg,
        Space::Global,
        Space::Cluster,
    ]);
    (spaces, vec(expr(), least..=most), elem())
        .prop_map(move |(word, shape, elem)| Type {
            space: space.then_some(word),
            shape,
            elem,
            span: span(),
        })
        .boxed()
}

fn op() -> BoxedStrategy<AssignOp> {
    use AssignOp::*;
    prop::sample::select(vec![Set, Add, Sub, Mul, Div, Max, Min]).boxed()
}

fn simple() -> BoxedStrategy<StmtKind> {
    use StmtKind as S;
    prop_oneof![
        (ident(), ty(true, 1, 3), attrs(), option::of(expr())).prop_map(
            |(name, ty, attrs, init)| S::Tile {
                name,
                ty,
                attrs,
                init
            }
        ),
        (
            any::<bool>(),
            vec(ident(), 1..4),
            option::of(ty(false, 0, 2)),
            expr()
        )
            .prop_map(|(mutable, names, ty, value)| S::Let {
                mutable,
                names,
                ty,
                value
            }),
        (ident(), ty(false, 1, 3), attrs()).prop_map(|(name, ty, attrs)| S::Channel {
            name,
            ty,
            attrs
        }),
        (ident(), expr(), attrs()).prop_map(|(channel, value, attrs)| S::Put {
            channel,
            value,
            attrs
        }),
        (ident(), ident()).prop_map(|(channel, name)| S::Get { channel, name }),
        place().prop_map(|target| S::Release { target }),
        (place(), expr(), attrs()).prop_map(|(dst, src, attrs)| S::Copy { dst, src, attrs }),
        (place(), op(), expr(), attrs()).prop_map(|(target, op, value, attrs)| S::Assign {
            target,
            op,
            value,
            attrs
        }),
        (place(), expr(), attrs()).prop_map(|(target, value, attrs)| S::Scatter {
            target,
            value,
            attrs
        }),
        (place(), op(), expr(), attrs()).prop_map(|(target, op, value, attrs)| S::Atomic {
            target,
            op,
            value,
            attrs
        }),
        (place(), vec(ident(), 0..3)).prop_map(|(flag, after)| S::Signal { flag, after }),
        (place(), expr()).prop_map(|(flag, at_least)| S::Wait { flag, at_least }),
        (expr(), option::of(text()), any::<bool>()).prop_map(|(cond, message, assume)| S::Assert {
            cond,
            message,
            assume
        }),
        vec(expr(), 1..4).prop_map(|args| S::Print { args }),
        option::of(expr()).prop_map(|value| S::Return { value }),
        (text(), vec((ident(), args(0)), 0..3))
            .prop_map(|(text, clauses)| S::Asm { text, clauses }),
        (path(), args(0)).prop_map(|(path, args)| {
            S::Call(node(ExprKind::Call {
                callee: Box::new(node(ExprKind::Name(path))),
                args,
            }))
        }),
    ]
    .boxed()
}

fn block_of(kinds: BoxedStrategy<StmtKind>, most: usize) -> BoxedStrategy<Block> {
    vec(kinds.prop_map(|kind| Stmt { kind, span: span() }), 0..=most)
        .prop_map(|stmts| Block {
            stmts,
            span: span(),
        })
        .boxed()
}

fn statement() -> BoxedStrategy<StmtKind> {
    use StmtKind as S;
    simple()
        .prop_recursive(3, 12, 3, |inner| {
            let inner = inner.boxed();
            let body = || block_of(inner.clone(), 2);
            prop_oneof![
                3 => simple(),
                1 => (ident(), range(), attrs(), body())
                    .prop_map(|(var, range, attrs, body)| S::Pipeline { var, range, attrs, body }),
                1 => (ident(), range(), attrs(), body())
                    .prop_map(|(var, range, attrs, body)| S::For { var, range, attrs, body }),
                1 => (vec(ident(), 1..3), expr(), attrs(), body())
                    .prop_map(|(vars, items, attrs, body)| S::ForItems { vars, items, attrs, body }),
                1 => (vec(ident(), 1..3), vec(expr(), 1..3), attrs(), body())
                    .prop_map(|(vars, extents, attrs, body)| S::Map { vars, extents, attrs, body }),
                1 => (expr(), body(), option::of(body()))
                    .prop_map(|(cond, then, otherwise)| S::If { cond, then, otherwise }),
                1 => (ident(), attrs(), body()).prop_map(|(name, attrs, body)| S::Role { name, attrs, body }),
            ]
        })
        .boxed()
}

fn block() -> BoxedStrategy<Block> {
    block_of(statement(), 4)
}

fn docs() -> BoxedStrategy<Vec<String>> {
    vec(
        prop_oneof!["[a-z`/][ -~]{0,10}[a-z]", Just(String::new())],
        0..3,
    )
    .boxed()
}

fn generics() -> BoxedStrategy<Vec<Generic>> {
    let kinds = vec![GenericKind::Int, GenericKind::Bool, GenericKind::DType];
    let generic = (ident(), prop::sample::select(kinds), option::of(expr()));
    vec(
        generic.prop_map(|(name, kind, default)| Generic {
            name,
            kind,
            default,
            span: span(),
        }),
        0..3,
    )
    .boxed()
}

fn param() -> BoxedStrategy<Param> {
    let modes = vec![Mode::In, Mode::Out, Mode::InOut, Mode::Scratch, Mode::Flags];
    let tensor = (
        ident(),
        prop::sample::select(modes).prop_map(Some),
        ty(false, 1, 3),
        attrs(),
    );
    let scalar = (ident(), Just(None), ty(false, 0, 0), Just(vec![]));
    prop_oneof![tensor, scalar]
        .prop_map(|(name, mode, ty, attrs)| Param {
            name,
            mode,
            ty,
            attrs,
            span: span(),
        })
        .boxed()
}

fn constraints() -> BoxedStrategy<Vec<Constraint>> {
    let membership = prop_oneof![
        range().prop_map(Membership::Range),
        vec(expr(), 1..3).prop_map(Membership::Set),
    ];
    let one = (expr(), option::of(membership), option::of(text()));
    vec(
        one.prop_map(|(expr, membership, message)| Constraint {
            expr,
            membership,
            message,
            span: span(),
        }),
        1..4,
    )
    .boxed()
}

fn clause() -> BoxedStrategy<Clause> {
    let dim =
        (ident(), range(), option::of(expr()), attrs()).prop_map(|(name, range, step, attrs)| {
            Dim {
                name,
                range,
                step,
                attrs,
                span: span(),
            }
        });
    prop_oneof![
        constraints().prop_map(|c| Clause::Where(c, span())),
        constraints().prop_map(|c| Clause::Requires(c, span())),
        constraints().prop_map(|c| Clause::Ensures(c, span())),
        constraints().prop_map(|c| Clause::Budget(c, span())),
        vec(dim, 1..4).prop_map(|d| Clause::Dims(d, span())),
        vec((ident(), args(0)), 1..3).prop_map(|l| Clause::Launch(l, span())),
        vec(ident(), 1..3).prop_map(|d| Clause::Deny(d, span())),
        (vec(ident(), 0..3), vec((ident(), vec(expr(), 1..3)), 0..3))
            .prop_map(|(d, t)| Clause::Tune(d, t, span())),
    ]
    .boxed()
}

fn test_line() -> BoxedStrategy<TestLine> {
    prop_oneof![
        args(1).prop_map(|a| TestLine::With(a, span())),
        (ident(), expr(), attrs()).prop_map(|(tensor, distribution, attrs)| TestLine::Fill {
            tensor,
            distribution,
            attrs,
            span: span()
        }),
        (ident(), ident(), attrs()).prop_map(|(tensor, against, attrs)| TestLine::Expect {
            tensor,
            against,
            attrs,
            span: span()
        }),
        (ident(), args(0)).prop_map(|(tensor, args)| TestLine::ExpectSame {
            tensor,
            args,
            span: span()
        }),
        text().prop_map(|text| TestLine::ExpectError { text, span: span() }),
        vec(ident(), 1..3).prop_map(|r| TestLine::Run(r, span())),
        args(1).prop_map(|a| TestLine::Floor(a, span())),
    ]
    .boxed()
}

fn test() -> BoxedStrategy<Test> {
    (docs(), text(), ident(), vec(test_line(), 0..4))
        .prop_map(|(docs, title, kernel, lines)| Test {
            docs,
            title,
            kernel,
            lines,
            span: span(),
        })
        .boxed()
}

fn item() -> BoxedStrategy<Item> {
    let function = (
        docs(),
        ident(),
        generics(),
        vec((ident(), ty(false, 0, 2)), 0..3),
        option::of(ty(false, 0, 2)),
        block(),
    );
    let kernel = (
        docs(),
        ident(),
        generics(),
        vec(param(), 0..4),
        vec(clause(), 0..4),
        block(),
    );
    prop_oneof![
        (docs(), ident(), expr()).prop_map(|(docs, name, value)| Item::Const(Const {
            docs,
            name,
            value,
            span: span()
        })),
        function.prop_map(
            |(docs, name, generics, params, result, body)| Item::Function(Function {
                docs,
                name,
                generics,
                params,
                result,
                body,
                span: span()
            })
        ),
        kernel.prop_map(
            |(docs, name, generics, params, clauses, body)| Item::Kernel(Kernel {
                docs,
                name,
                generics,
                params,
                clauses,
                body,
                span: span()
            })
        ),
        (ident(), vec(args(0).prop_map(|a| (a, span())), 0..3)).prop_map(|(kernel, list)| {
            Item::Instances(Instances {
                kernel,
                list,
                span: span(),
            })
        }),
        (docs(), ident(), ident(), block()).prop_map(|(docs, name, kernel, body)| Item::Reference(
            Reference {
                docs,
                name,
                kernel,
                body,
                span: span()
            }
        )),
        test().prop_map(Item::Test),
        test().prop_map(Item::Bench),
    ]
    .boxed()
}

/// A file with a few items of every kind.
pub fn file() -> BoxedStrategy<File> {
    let uses = (path(), vec(ident(), 1..3)).prop_map(|(path, names)| Use {
        path,
        names,
        span: span(),
    });
    (
        option::of(Just((2026, span()))),
        option::of(path()),
        vec(uses, 0..2),
        vec(item(), 0..3),
    )
        .prop_map(|(edition, module, uses, items)| File {
            edition,
            module,
            uses,
            items,
            is_library: false,
            comments: vec![],
            span: span(),
        })
        .boxed()
}
