//! Expressions as one line of text, for messages and for the requirements that the manifest shows.

use crate::syntax::ast::{
    Arg, BinaryOp, Constraint, Expr, ExprKind, IndexSlot, Membership, UnaryOp,
};
use std::fmt::Write;

pub fn expr(e: &Expr) -> String {
    let mut out = String::new();
    write_expr(&mut out, e, 0);
    out
}

pub fn constraint(c: &Constraint) -> String {
    let mut out = expr(&c.expr);
    match &c.membership {
        None => {}
        Some(Membership::Range(r)) => {
            let dots = if r.inclusive { "..=" } else { ".." };
            let _ = write!(out, " in {}{dots}{}", expr(&r.lo), expr(&r.hi));
        }
        Some(Membership::Set(set)) => {
            let items: Vec<_> = set.iter().map(expr).collect();
            let _ = write!(out, " in {{{}}}", items.join(", "));
        }
    }
    out
}

pub fn binary_op(op: BinaryOp) -> &'static str {
    use BinaryOp::*;
    match op {
        Add => "+",
        Sub => "-",
        Mul => "*",
        Div => "/",
        Rem => "%",
        Shl => "<<",
        Shr => ">>",
        BitAnd => "&",
        BitOr => "|",
        BitXor => "^",
        And => "&&",
        Or => "||",
        Eq => "==",
        Ne => "!=",
        Lt => "<",
        Le => "<=",
        Gt => ">",
        Ge => ">=",
    }
}

fn level(op: BinaryOp) -> u32 {
    use BinaryOp::*;
    match op {
        Or => 2,
        And => 3,
        Eq | Ne | Lt | Le | Gt | Ge => 4,
        BitAnd | BitOr | BitXor => 5,
        Shl | Shr => 6,
        Add | Sub => 7,
        Mul | Div | Rem => 8,
    }
}

/// `outer`: the level of the operator around; parentheses where `e` binds weaker.
fn write_expr(out: &mut String, e: &Expr, outer: u32) {
    let own = match &e.kind {
        ExprKind::Select(..) => 1,
        ExprKind::Binary(op, ..) => level(*op),
        _ => 9,
    };
    if own < outer {
        out.push('(');
    }
    match &e.kind {
        ExprKind::Int(i) => {
            let _ = write!(out, "{i}");
        }
        ExprKind::Float(x) => {
            let _ = write!(out, "{x:?}");
        }
        ExprKind::Str(s) => {
            let _ = write!(out, "{s:?}");
        }
        ExprKind::Bool(b) => {
            let _ = write!(out, "{b}");
        }
        ExprKind::DType(d) => out.push_str(d.name()),
        ExprKind::Name(path) => {
            let names: Vec<_> = path.segments.iter().map(|s| s.name.as_str()).collect();
            out.push_str(&names.join("::"));
        }
        ExprKind::Unary(op, a) => {
            out.push(match op {
                UnaryOp::Neg => '-',
                UnaryOp::Not => '!',
            });
            write_expr(out, a, 9);
        }
        ExprKind::Binary(op, a, b) => {
            write_expr(out, a, own);
            let _ = write!(out, " {} ", binary_op(*op));
            write_expr(out, b, own + 1);
        }
        ExprKind::Select(c, a, b) => {
            write_expr(out, c, 2);
            out.push_str(" ? ");
            write_expr(out, a, 1);
            out.push_str(" : ");
            write_expr(out, b, 1);
        }
        ExprKind::Call { callee, args } => {
            write_expr(out, callee, 9);
            write_args(out, args);
        }
        ExprKind::Method {
            receiver,
            name,
            args,
        } => {
            write_expr(out, receiver, 9);
            let _ = write!(out, ".{}", name.name);
            write_args(out, args);
        }
        ExprKind::Index { base, slots } => {
            write_expr(out, base, 9);
            out.push('[');
            for (i, slot) in slots.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                match slot {
                    IndexSlot::At(e) => write_expr(out, e, 0),
                    IndexSlot::Span { start, len } => {
                        write_expr(out, start, 0);
                        out.push_str(" :+ ");
                        write_expr(out, len, 0);
                    }
                    IndexSlot::Full(_) => out.push(':'),
                    IndexSlot::Gather(e) => {
                        out.push_str("gather ");
                        write_expr(out, e, 9);
                    }
                }
            }
            out.push(']');
        }
        ExprKind::Reduce {
            op,
            var,
            range,
            body,
        } => {
            let dots = if range.inclusive { "..=" } else { ".." };
            let _ = write!(out, "reduce {}({} in ", op.name, var.name);
            write_expr(out, &range.lo, 0);
            out.push_str(dots);
            write_expr(out, &range.hi, 0);
            out.push_str(") { ");
            write_expr(out, body, 0);
            out.push_str(" }");
        }
        ExprKind::Tuple(items) => {
            out.push('(');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write_expr(out, item, 0);
            }
            out.push(')');
        }
        ExprKind::Error => out.push('…'),
    }
    if own < outer {
        out.push(')');
    }
}

fn write_args(out: &mut String, args: &[Arg]) {
    out.push('(');
    for (i, arg) in args.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        if let Some(name) = &arg.name {
            let _ = write!(out, "{} = ", name.name);
        }
        write_expr(out, &arg.value, 0);
        if let Some((end, inclusive)) = &arg.range_end {
            out.push_str(if *inclusive { "..=" } else { ".." });
            write_expr(out, end, 0);
        }
    }
    out.push(')');
}
