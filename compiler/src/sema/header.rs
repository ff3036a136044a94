//! The head of a kernel with its generics bound: dims, parameters, launch space, requirements, contracts, budget.

use super::constant::Const;
use super::evaluate::{Evaluator, HostType, Static, names_in};
use super::instances::{self, Instance};
use super::program::{Program, nearest};
use super::text;
use crate::diag::Sink;
use crate::diag::catalogue::sema as say;
use crate::syntax::ast::{self, BinaryOp, Clause, ElemType, Expr, ExprKind};
use crate::tile::ir::{
    Budget, Contract, Dim, DimId, GenericValue, Kernel, Launch, Param, ParamId, ParamKind,
    Requirement, Tensor,
};
use tessera_artifact::{DType, HostExpr, ParamMode};

/// Shapes and grids stay far below this, so that no product of two extents leaves 64 bits unnoticed.
const LARGEST_DIM: i64 = 1 << 40;

/// Builds everything of the kernel but its body; reports what is wrong and goes on.
pub(super) fn build<'p, 'a>(
    program: &'p Program<'a>,
    kernel: usize,
    instance: &Instance,
    sink: &mut Sink,
) -> (Kernel, Evaluator<'p, 'a>) {
    let item = &program.kernels[kernel];
    let ast = item.ast;
    let mut k = Kernel {
        name: item.name.clone(),
        docs: ast.docs.join("\n"),
        generics: (instance.generics.iter().cloned())
            .chain((instance.dims.iter()).map(|(n, v)| (n.clone(), GenericValue::Int(*v))))
            .collect(),
        dims: vec![],
        params: vec![],
        requires: vec![],
        launch: Launch {
            grid: vec![],
            persistent: false,
            warps: None,
            cluster: 1,
        },
        contracts: vec![],
        deny: vec![],
        budget: Budget::default(),
        tiles: vec![],
        channels: vec![],
        values: vec![],
        ops: vec![],
        blocks: vec![],
        body: crate::tile::ir::BlockId(0),
        span: ast.name.span,
    };
    let mut cx = Evaluator::new(program, item.module).with_generics(&instance.generics);
    check_names(ast, sink);
    dims(ast, &mut k, &mut cx, sink);
    scalars(ast, &mut k, &mut cx, sink);
    params(ast, &mut k, &cx, sink);
    check_dims_have_values(&k, sink);
    clauses(ast, &mut k, &cx, sink);
    fix_dims(instance, &mut k, sink);
    (k, cx)
}

/// Gives the dims that the instance fixes their one value.
fn fix_dims(instance: &Instance, k: &mut Kernel, sink: &mut Sink) {
    for (name, value) in &instance.dims {
        if instances::batch_dims(k).iter().any(|d| d.name == *name) {
            sink.report(say::fixed_batch(instance.span, name));
        }
        let Some(dim) = k.dims.iter_mut().find(|d| d.name == *name) else {
            continue;
        };
        match dim.takes(*value) {
            true => (dim.lo, dim.hi) = (*value, *value),
            false => sink.report(say::fixed_dim_out_of_range(instance.span, dim, *value)),
        }
    }
}

/// Generics, dims and parameters share one name space (an `index` parameter and its dim are one thing).
fn check_names(ast: &ast::Kernel, sink: &mut Sink) {
    let mut seen: Vec<&ast::Ident> = vec![];
    let dims = ast.clauses.iter().filter_map(|c| match c {
        Clause::Dims(list, _) => Some(list),
        _ => None,
    });
    let is_index_scalar = |name: &str| {
        ast.params.iter().any(|p| {
            p.name.name == name && p.mode.is_none() && matches!(p.ty.elem, ElemType::Index)
        })
    };
    let generics = ast.generics.iter().map(|g| &g.name);
    let params = ast.params.iter().map(|p| &p.name);
    let dims = dims
        .flatten()
        .map(|d| &d.name)
        .filter(|d| !is_index_scalar(&d.name));
    for name in generics.chain(params).chain(dims) {
        match seen.iter().find(|s| s.name == name.name) {
            Some(before) => sink.report(say::duplicate_name(name, before.span, "name")),
            None => seen.push(name),
        }
    }
}

fn dims(ast: &ast::Kernel, k: &mut Kernel, cx: &mut Evaluator, sink: &mut Sink) {
    let list = ast.clauses.iter().filter_map(|c| match c {
        Clause::Dims(list, _) => Some(list),
        _ => None,
    });
    for d in list.flatten() {
        if k.dims.iter().any(|o| o.name == d.name.name) {
            continue; // reported with the other names
        }
        let lo = cx.constant_int(&d.range.lo, sink);
        let hi = cx.constant_int(&d.range.hi, sink);
        let step = d.step.as_ref().map(|s| (s.span, cx.constant_int(s, sink)));
        let (lo, mut hi) = match (lo, hi) {
            (Some(lo), Some(hi)) => (lo, hi),
            _ => (0, LARGEST_DIM),
        };
        if !d.range.inclusive {
            hi -= 1;
        }
        if lo > hi {
            sink.report(say::empty_dim_range(d, lo, hi));
        }
        if hi.abs() > LARGEST_DIM || lo.abs() > LARGEST_DIM {
            sink.report(say::dim_range_too_large(d, LARGEST_DIM));
        }
        let step = match step {
            None => 1,
            Some((_, None)) => 1,
            Some((_, Some(step))) if step >= 1 => step,
            Some((span, Some(step))) => {
                sink.report(say::dim_step_not_positive(span, &d.name.name, step));
                1
            }
        };
        // Only multiples of the step are in the range.
        let (lo, hi) = (
            lo.div_euclid(step) * step + if lo.rem_euclid(step) == 0 { 0 } else { step },
            hi.div_euclid(step) * step,
        );
        if lo > hi && step > 1 {
            sink.report(say::no_multiple_in_dim_range(d, step));
        }
        cx.bind(
            &d.name.name,
            Static::Host(HostExpr::dim(&d.name.name), HostType::Int),
        );
        k.dims.push(Dim {
            name: d.name.name.clone(),
            lo,
            hi: hi.max(lo),
            step,
            scalar: None,
            span: d.name.span,
        });
    }
}

/// Scalar parameters first: shapes may use those of type `index`.
fn scalars(ast: &ast::Kernel, k: &mut Kernel, cx: &mut Evaluator, sink: &mut Sink) {
    for (id, p) in ast.params.iter().enumerate() {
        if p.mode.is_some() || !p.ty.shape.is_empty() {
            continue;
        }
        let name = &p.name.name;
        if matches!(p.ty.elem, ElemType::Index) {
            match k.dims.iter_mut().find(|d| d.name == *name) {
                Some(dim) => dim.scalar = Some(ParamId(id as u32)),
                None => {
                    sink.report(say::index_without_range(p));
                    k.dims.push(Dim {
                        name: name.clone(),
                        lo: 0,
                        hi: LARGEST_DIM,
                        step: 1,
                        scalar: Some(ParamId(id as u32)),
                        span: p.name.span,
                    });
                }
            }
            cx.bind(name, Static::Host(HostExpr::dim(name), HostType::Int));
        } else {
            let ty = match elem_dtype(&p.ty, cx, sink) {
                Some(DType::Bool) => HostType::Bool,
                _ => HostType::Float,
            };
            cx.bind(name, Static::Host(HostExpr::Scalar(name.clone()), ty));
        }
    }
}

fn params(ast: &ast::Kernel, k: &mut Kernel, cx: &Evaluator, sink: &mut Sink) {
    for p in &ast.params {
        let kind = match p.mode {
            None if p.ty.shape.is_empty() => match p.ty.elem {
                ElemType::Index => ParamKind::Index,
                _ => ParamKind::Scalar(elem_dtype(&p.ty, cx, sink).unwrap_or(DType::F32)),
            },
            mode => {
                // The parser has reported a tensor without a mode.
                ParamKind::Tensor(tensor(p, mode.unwrap_or(ast::Mode::In), cx, sink))
            }
        };
        k.params.push(Param {
            name: p.name.name.clone(),
            kind,
            span: p.name.span,
        });
    }
}

fn tensor(p: &ast::Param, mode: ast::Mode, cx: &Evaluator, sink: &mut Sink) -> Tensor {
    let dtype = match p.ty.elem {
        ElemType::Index => {
            sink.report(say::tensor_of_index(p));
            DType::I64
        }
        _ => elem_dtype(&p.ty, cx, sink).unwrap_or(DType::F32),
    };
    if let Some(extra) = p.ty.shape.get(crate::tile::verify::MAX_RANK) {
        sink.report(say::too_many_axes(
            extra.span,
            crate::tile::verify::MAX_RANK,
        ));
    }
    if mode == ast::Mode::Flags && !matches!(dtype, DType::I32 | DType::U32) {
        sink.report(say::flags_dtype(p, dtype));
    }
    let shape =
        p.ty.shape
            .iter()
            .map(|e| cx.host_int(e, sink).unwrap_or(HostExpr::Int(1)))
            .collect();
    let mut align = dtype.bits().div_ceil(8);
    let mut contiguous = true;
    for a in &p.attrs {
        match (a.name.name.as_str(), a.args.as_slice()) {
            ("align", [n]) => match cx.constant_int(&n.value, sink) {
                Some(n) if (1..=4096).contains(&n) && (n as u64).is_power_of_two() => {
                    align = align.max(n as u32)
                }
                Some(n) => sink.report(say::bad_align(a.span, n)),
                None => {}
            },
            ("align", _) => sink.report(say::attribute_argument(
                a,
                "a number of bytes: `@align(16)`",
            )),
            ("strided", []) => contiguous = false,
            ("strided", _) => sink.report(say::attribute_argument(a, "no argument")),
            ("contiguous", _) => sink.report(say::contiguous_attribute(a.span)),
            _ => sink.report(say::unknown_attribute(
                a,
                "a parameter",
                &["align", "strided"],
            )),
        }
    }
    Tensor {
        mode: match mode {
            ast::Mode::In => ParamMode::In,
            ast::Mode::Out => ParamMode::Out,
            ast::Mode::InOut => ParamMode::InOut,
            ast::Mode::Scratch => ParamMode::Scratch,
            ast::Mode::Flags => ParamMode::Flags,
        },
        dtype,
        shape,
        align,
        contiguous,
    }
}

/// The dtype of an element type; a name must be a generic of kind `dtype`.
pub(super) fn elem_dtype(ty: &ast::Type, cx: &Evaluator, sink: &mut Sink) -> Option<DType> {
    match &ty.elem {
        ElemType::DType(d) => Some(*d),
        ElemType::Index => None,
        ElemType::Name(name) => match cx.get(&name.name) {
            Some(Static::Const(Const::DType(d))) => Some(*d),
            Some(Static::Error) => None,
            found => {
                let known = DType::ALL.iter().map(|d| d.name());
                let near = nearest(&name.name, known);
                sink.report(say::not_a_dtype(name, found.is_some(), near));
                None
            }
        },
    }
}

/// The host finds a dim's value from an extent that is just its name.
fn check_dims_have_values(k: &Kernel, sink: &mut Sink) {
    for dim in &k.dims {
        let alone = k.params.iter().any(|p| match &p.kind {
            ParamKind::Tensor(t) => t
                .shape
                .iter()
                .any(|e| matches!(e, HostExpr::Dim(n) if *n == dim.name)),
            _ => false,
        });
        if dim.scalar.is_none() && !alone {
            sink.report(say::dim_in_no_extent(dim.span, &dim.name));
        }
    }
}

fn clauses(ast: &ast::Kernel, k: &mut Kernel, cx: &Evaluator, sink: &mut Sink) {
    for clause in &ast.clauses {
        match clause {
            Clause::Launch(items, span) => launch(items, *span, k, cx, sink),
            Clause::Requires(list, _) => requires(list, k, cx, sink),
            Clause::Ensures(list, _) => ensures(list, k, sink),
            Clause::Budget(list, _) => budget(list, k, cx, sink),
            Clause::Deny(names, _) => {
                for name in names {
                    if DENIABLE.contains(&name.name.as_str()) {
                        k.deny.push(name.name.clone());
                    } else {
                        sink.report(say::unknown_deny(name, &DENIABLE));
                    }
                }
            }
            Clause::Where(..) | Clause::Dims(..) | Clause::Tune(..) | Clause::Error(_) => {}
        }
    }
    if k.launch.grid.is_empty() {
        let written = ast.clauses.iter().any(|c| matches!(c, Clause::Launch(..)));
        if !written {
            sink.report(say::no_launch(ast.name.span, &ast.name.name));
        }
        k.launch.grid.push(HostExpr::Int(1));
    }
}

const DENIABLE: [&str; 2] = ["convert_in_loop", "in_kernel_checks"];

fn launch(
    items: &[(ast::Ident, Vec<ast::Arg>)],
    span: crate::source::Span,
    k: &mut Kernel,
    cx: &Evaluator,
    sink: &mut Sink,
) {
    for (name, args) in items {
        match name.name.as_str() {
            "grid" | "persistent" => {
                if !k.launch.grid.is_empty() {
                    sink.report(say::second_launch_space(name.span));
                    continue;
                }
                if args.is_empty() || args.len() > 3 {
                    sink.report(say::launch_extents(name, args.len()));
                }
                k.launch.persistent = name.name == "persistent";
                k.launch.grid = args
                    .iter()
                    .take(3)
                    .map(|a| cx.host_int(&a.value, sink).unwrap_or(HostExpr::Int(1)))
                    .collect();
            }
            "warps" => match args.as_slice() {
                [n] => match cx.constant_int(&n.value, sink) {
                    Some(n) if (1..=32).contains(&n) => k.launch.warps = Some(n as u32),
                    Some(n) => sink.report(say::warps_out_of_range(name.span, n)),
                    None => {}
                },
                _ => sink.report(say::launch_extents(name, args.len())),
            },
            "cluster" => match args.as_slice() {
                [n] => match cx.constant_int(&n.value, sink) {
                    Some(n) if (1..=2).contains(&n) => k.launch.cluster = n as u32,
                    Some(n) => sink.report(say::cluster_out_of_range(name.span, n)),
                    None => {}
                },
                _ => sink.report(say::launch_extents(name, args.len())),
            },
            // A preference of a GPU schedule; it changes no meaning.
            "raster" => {}
            _ => sink.report(say::unknown_launch_item(name)),
        }
    }
    if k.launch.grid.is_empty() {
        sink.report(say::launch_without_grid(span));
    }
}

fn requires(list: &[ast::Constraint], k: &mut Kernel, cx: &Evaluator, sink: &mut Sink) {
    for c in list {
        match cx.condition(c, sink) {
            Some(HostExpr::Bool(true)) | None => {}
            Some(HostExpr::Bool(false)) => {
                sink.report(say::requirement_never_holds(c));
            }
            Some(cond) => k.requires.push(Requirement {
                cond,
                text: text::constraint(c),
                message: c.message.clone(),
                span: c.span,
            }),
        }
    }
}

fn ensures(list: &[ast::Constraint], k: &mut Kernel, sink: &mut Sink) {
    for c in list {
        let contract = call_of_names(&c.expr).and_then(|(name, args)| {
            match (name, args.as_slice()) {
                ("det", ["bitwise"]) => Some(Contract::Deterministic(c.span)),
                ("batch_invariant", [dim]) => {
                    match k.dims.iter().position(|d| d.name == *dim) {
                        Some(id) => Some(Contract::BatchInvariant(DimId(id as u32), c.span)),
                        None => {
                            let near = nearest(dim, k.dims.iter().map(|d| d.name.as_str()));
                            sink.report(say::contract_of_no_dim(c.span, dim, near));
                            // Reported; any dim will do to go on.
                            Some(Contract::Deterministic(c.span))
                        }
                    }
                }
                _ => None,
            }
        });
        match contract {
            Some(contract) => k.contracts.push(contract),
            None => sink.report(say::unknown_contract(c.span)),
        }
    }
}

/// `f(a, b)` with plain names only.
fn call_of_names(e: &Expr) -> Option<(&str, Vec<&str>)> {
    fn segment(e: &Expr) -> Option<&str> {
        match &e.kind {
            ExprKind::Name(path) if path.segments.len() == 1 => Some(&path.segments[0].name),
            _ => None,
        }
    }
    let ExprKind::Call { callee, args } = &e.kind else {
        return None;
    };
    let args = args
        .iter()
        .map(|a| segment(&a.value))
        .collect::<Option<_>>()?;
    Some((segment(callee)?, args))
}

fn budget(list: &[ast::Constraint], k: &mut Kernel, cx: &Evaluator, sink: &mut Sink) {
    for c in list {
        let (name, value) = match &c.expr.kind {
            ExprKind::Binary(BinaryOp::Le, a, b) => match &a.kind {
                ExprKind::Name(path) if path.segments.len() == 1 => {
                    (path.segments[0].name.as_str(), b)
                }
                _ => ("", b),
            },
            _ => {
                sink.report(say::bad_budget(c.span));
                continue;
            }
        };
        let Some(value) = cx.constant_int(value, sink) else {
            continue;
        };
        match name {
            "smem" if value >= 0 => k.budget.shared_bytes = Some(value as u64),
            "regs" if (1..=255).contains(&value) => k.budget.registers = Some(value as u32),
            "regs" => sink.report(say::registers_out_of_range(c.span, value)),
            _ => sink.report(say::bad_budget(c.span)),
        }
    }
}

/// Names that have values at launch only, so that a clause about generics can say so.
pub(super) fn bind_launch_names(ast: &ast::Kernel, cx: &mut Evaluator) {
    for clause in &ast.clauses {
        if let Clause::Dims(list, _) = clause {
            for d in list {
                let value = Static::Host(HostExpr::dim(&d.name.name), HostType::Int);
                cx.bind(&d.name.name, value);
            }
        }
    }
    for p in ast.params.iter().filter(|p| p.ty.shape.is_empty()) {
        let name = &p.name.name;
        let value = match p.ty.elem {
            ElemType::Index => Static::Host(HostExpr::dim(name), HostType::Int),
            _ => Static::Host(HostExpr::Scalar(name.clone()), HostType::Float),
        };
        cx.bind(name, value);
    }
}

/// Generics that nothing in the kernel speaks of.
pub(super) fn unused_generics(ast: &ast::Kernel, used: &dyn Fn(&str) -> bool, sink: &mut Sink) {
    let mut in_head: Vec<String> = vec![];
    let mut note = |e: &Expr| names_in(e, &mut |n| in_head.push(n.to_string()));
    for p in &ast.params {
        p.ty.shape.iter().for_each(&mut note);
    }
    for g in &ast.generics {
        g.default.iter().for_each(&mut note);
    }
    for clause in &ast.clauses {
        match clause {
            Clause::Dims(list, _) => {
                for d in list {
                    note(&d.range.lo);
                    note(&d.range.hi);
                    d.step.iter().for_each(&mut note);
                }
            }
            Clause::Launch(list, _) => list
                .iter()
                .flat_map(|(_, args)| args)
                .for_each(|a| note(&a.value)),
            Clause::Requires(list, _) => list.iter().for_each(|c| note(&c.expr)),
            // A `where` clause alone gives a generic no effect.
            _ => {}
        }
    }
    for p in &ast.params {
        if let ElemType::Name(n) = &p.ty.elem {
            in_head.push(n.name.clone());
        }
    }
    for g in &ast.generics {
        if !in_head.contains(&g.name.name) && !used(&g.name.name) {
            sink.report(say::unused_generic(&g.name));
        }
    }
}

/// `(BM = 128, BK = 64)` for the generics that an expression speaks of.
pub(super) fn generics_text(names: &[String], generics: &[(String, GenericValue)]) -> String {
    let bound: Vec<String> = generics
        .iter()
        .filter(|(n, _)| names.contains(n))
        .map(|(n, v)| match v {
            GenericValue::Int(i) => format!("{n} = {i}"),
            GenericValue::Bool(b) => format!("{n} = {b}"),
            GenericValue::DType(d) => format!("{n} = {d}"),
        })
        .collect();
    if bound.is_empty() {
        String::new()
    } else {
        format!(" ({})", bound.join(", "))
    }
}
