//! From the syntax tree to slots: names are looked up once, shapes of calls are checked.

use super::*;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Function {
    Exp,
    Exp2,
    Log,
    Log2,
    Log1p,
    Sin,
    Cos,
    Tanh,
    Sqrt,
    Rsqrt,
    Sigmoid,
    Softplus,
    Silu,
    Abs,
    Floor,
    Ceil,
    Round,
    IsNan,
    Pow,
    Min,
    Max,
    Clamp,
    Fma,
    Cdiv,
}

impl Function {
    pub(super) fn of(name: &str) -> Option<(Function, usize)> {
        use Function::*;
        Some(match name {
            "exp" => (Exp, 1),
            "exp2" => (Exp2, 1),
            "log" => (Log, 1),
            "log2" => (Log2, 1),
            "log1p" => (Log1p, 1),
            "sin" => (Sin, 1),
            "cos" => (Cos, 1),
            "tanh" => (Tanh, 1),
            "sqrt" => (Sqrt, 1),
            "rsqrt" => (Rsqrt, 1),
            "sigmoid" => (Sigmoid, 1),
            "softplus" => (Softplus, 1),
            "silu" => (Silu, 1),
            "abs" => (Abs, 1),
            "floor" => (Floor, 1),
            "ceil" => (Ceil, 1),
            "round" => (Round, 1),
            "is_nan" => (IsNan, 1),
            "pow" => (Pow, 2),
            "min" => (Min, 2),
            "max" => (Max, 2),
            "cdiv" => (Cdiv, 2),
            "clamp" => (Clamp, 3),
            "fma" => (Fma, 3),
            _ => return None,
        })
    }
}

pub(super) struct Resolver<'k> {
    pub(super) known: &'k dyn Fn(&str) -> Option<Known>,
    pub(super) scopes: Vec<HashMap<String, Slot>>,
    pub(super) arrays: Vec<String>,
    pub(super) locals: Vec<Local>,
    pub(super) scalars: usize,
}

impl Resolver<'_> {
    fn find(&self, name: &str) -> Option<Slot> {
        self.scopes
            .iter()
            .rev()
            .find_map(|scope| scope.get(name).copied())
    }

    fn bind_scalar(&mut self, name: &str) -> usize {
        let slot = self.scalars;
        self.scalars += 1;
        self.scopes
            .last_mut()
            .expect("the outermost scope stays")
            .insert(name.to_owned(), Slot::Scalar(slot));
        slot
    }

    pub(super) fn local(&mut self, name: &str) -> usize {
        self.locals.push(Local {
            name: name.to_owned(),
            elements: HashMap::new(),
            initial: None,
        });
        self.locals.len() - 1
    }

    pub(super) fn block(&mut self, block: &ast::Block) -> Result<Vec<Step>> {
        self.scopes.push(HashMap::new());
        let steps = block.stmts.iter().map(|stmt| self.stmt(stmt)).collect();
        self.scopes.pop();
        steps
    }

    fn stmt(&mut self, stmt: &ast::Stmt) -> Result<Step> {
        Ok(match &stmt.kind {
            StmtKind::Let { names, value, .. } => {
                let [name] = &names[..] else {
                    return Err(Box::new(say::not_in_a_reference(
                        stmt.span,
                        "a `let` of several names",
                    )));
                };
                let value = self.expr(value)?;
                Step::Set {
                    slot: self.bind_scalar(&name.name),
                    value,
                }
            }
            StmtKind::Tile { name, ty, init, .. } => {
                let initial = init.as_ref().map(|e| self.expr(e)).transpose()?;
                for extent in &ty.shape {
                    self.expr(extent)?;
                }
                let local = self.local(&name.name);
                self.scopes
                    .last_mut()
                    .expect("the outermost scope stays")
                    .insert(name.name.clone(), Slot::Local(local));
                Step::Declare { local, initial }
            }
            StmtKind::Assign {
                target, op, value, ..
            }
            | StmtKind::Atomic {
                target, op, value, ..
            } => self.assign(target, *op, value, stmt.span)?,
            StmtKind::Scatter { target, value, .. } => {
                self.assign(target, AssignOp::Set, value, stmt.span)?
            }
            StmtKind::Map {
                vars,
                extents,
                body,
                ..
            } => {
                let zero = |span| Node {
                    kind: Kind::Value(Value::Int(0)),
                    span,
                };
                let bounds = extents
                    .iter()
                    .map(|e| Ok((zero(e.span), self.expr(e)?, false)))
                    .collect::<Result<Vec<_>>>()?;
                self.looping(vars, bounds, body)?
            }
            StmtKind::For {
                var, range, body, ..
            } => {
                let bounds = vec![(
                    self.expr(&range.lo)?,
                    self.expr(&range.hi)?,
                    range.inclusive,
                )];
                self.looping(std::slice::from_ref(var), bounds, body)?
            }
            StmtKind::If {
                cond,
                then,
                otherwise,
            } => Step::If {
                cond: self.expr(cond)?,
                then: self.block(then)?,
                otherwise: otherwise.as_ref().map_or(Ok(vec![]), |b| self.block(b))?,
            },
            StmtKind::Assert {
                cond,
                message,
                assume: false,
            } => Step::Assert {
                cond: self.expr(cond)?,
                message: message
                    .clone()
                    .unwrap_or_else(|| "assertion failed".to_owned()),
                span: stmt.span,
            },
            other => {
                return Err(Box::new(say::not_in_a_reference(
                    stmt.span,
                    statement_name(other),
                )));
            }
        })
    }

    fn looping(
        &mut self,
        vars: &[ast::Ident],
        bounds: Vec<(Node, Node, bool)>,
        body: &ast::Block,
    ) -> Result<Step> {
        self.scopes.push(HashMap::new());
        let slots = vars
            .iter()
            .zip(bounds)
            .map(|(var, (lo, hi, inclusive))| (self.bind_scalar(&var.name), lo, hi, inclusive))
            .collect();
        let body = self.block(body);
        self.scopes.pop();
        Ok(Step::Loop { slots, body: body? })
    }

    pub(super) fn assign(
        &mut self,
        target: &Expr,
        op: AssignOp,
        value: &Expr,
        span: Span,
    ) -> Result<Step> {
        let value = self.expr(value)?;
        let (name, slots) = match &target.kind {
            ExprKind::Name(path) => (path, None),
            ExprKind::Index { base, slots } => match &base.kind {
                ExprKind::Name(path) => (path, Some(slots)),
                _ => {
                    return Err(Box::new(say::not_in_a_reference(
                        target.span,
                        "this target",
                    )));
                }
            },
            _ => {
                return Err(Box::new(say::not_in_a_reference(
                    target.span,
                    "this target",
                )));
            }
        };
        let name = single(name)?;
        let found = self.find(name);
        let target = match (found, slots) {
            (Some(Slot::Scalar(slot)), None) => Target::Scalar(slot),
            (Some(Slot::Array(array)), Some(slots)) => Target::Element {
                array,
                index: self.index(slots)?,
            },
            (Some(Slot::Local(local)), Some(slots)) => Target::Local {
                local,
                index: self.index(slots)?,
            },
            // A name that is only ever assigned by element is a local array of the whole reference.
            (None, Some(slots)) if (self.known)(name).is_none() => {
                let local = self.local(name);
                self.scopes[0].insert(name.to_owned(), Slot::Local(local));
                Target::Local {
                    local,
                    index: self.index(slots)?,
                }
            }
            (None, _) => return Err(Box::new(say::unknown_name(target.span, name))),
            (Some(_), _) => {
                return Err(Box::new(say::reference_type(
                    target.span,
                    "an element",
                    "a whole",
                )));
            }
        };
        Ok(Step::Store {
            target,
            op,
            value,
            span,
        })
    }

    pub(super) fn index(&mut self, slots: &[IndexSlot]) -> Result<Vec<Node>> {
        slots
            .iter()
            .map(|slot| match slot {
                IndexSlot::At(e) => self.expr(e),
                IndexSlot::Span { start, .. } => Err(Box::new(say::not_in_a_reference(
                    start.span,
                    "a slice outside `dotv`",
                ))),
                IndexSlot::Full(span) => Err(Box::new(say::not_in_a_reference(
                    *span,
                    "a slice outside `dotv`",
                ))),
                IndexSlot::Gather(e) => Err(Box::new(say::not_in_a_reference(e.span, "a gather"))),
            })
            .collect()
    }

    fn expr(&mut self, e: &Expr) -> Result<Node> {
        let kind = match &e.kind {
            ExprKind::Int(i) => Kind::Value(Value::Int(*i)),
            ExprKind::Float(x) => Kind::Value(Value::Float(*x)),
            ExprKind::Bool(b) => Kind::Value(Value::Bool(*b)),
            ExprKind::Name(path) => self.name(path, e.span)?,
            ExprKind::Unary(op, a) => Kind::Unary(*op, self.boxed(a)?),
            ExprKind::Binary(op, a, b) => Kind::Binary(*op, self.boxed(a)?, self.boxed(b)?),
            ExprKind::Select(c, a, b) => {
                Kind::Select(self.boxed(c)?, self.boxed(a)?, self.boxed(b)?)
            }
            ExprKind::Index { base, slots } => self.element(base, slots, e.span)?,
            ExprKind::Call { callee, args } => self.call(callee, args, e.span)?,
            ExprKind::Method {
                receiver,
                name,
                args,
            } => self.method(receiver, &name.name, args, e.span)?,
            ExprKind::Reduce {
                op,
                var,
                range,
                body,
            } => {
                let (lo, hi) = (self.boxed(&range.lo)?, self.boxed(&range.hi)?);
                self.scopes.push(HashMap::new());
                let slot = self.bind_scalar(&var.name);
                let body = self.boxed(body);
                self.scopes.pop();
                let op = match op.name.as_str() {
                    "sum" => Fold::Sum,
                    "prod" => Fold::Prod,
                    "max" | "maxof" => Fold::Max,
                    "min" | "minof" => Fold::Min,
                    "all" => Fold::All,
                    "any" => Fold::Any,
                    other => {
                        let what =
                            format!("`reduce {other}` (sum, prod, max, min, all and any do)");
                        return Err(Box::new(say::not_in_a_reference(e.span, &what)));
                    }
                };
                Kind::Reduce {
                    op,
                    slot,
                    lo,
                    hi,
                    inclusive: range.inclusive,
                    body: body?,
                }
            }
            ExprKind::Str(_) | ExprKind::DType(_) | ExprKind::Tuple(_) | ExprKind::Error => {
                return Err(Box::new(say::reference_type(e.span, "a number", "none")));
            }
        };
        Ok(Node { kind, span: e.span })
    }

    fn boxed(&mut self, e: &Expr) -> Result<Box<Node>> {
        self.expr(e).map(Box::new)
    }

    pub(super) fn name(&mut self, path: &ast::Path, span: Span) -> Result<Kind> {
        let text = path
            .segments
            .iter()
            .map(|s| s.name.as_str())
            .collect::<Vec<_>>()
            .join("::");
        match self.find(&text) {
            Some(Slot::Scalar(slot)) => return Ok(Kind::Scalar(slot)),
            Some(Slot::Array(array)) => {
                return Ok(Kind::Element {
                    array,
                    index: vec![],
                });
            }
            Some(Slot::Local(local)) => {
                return Ok(Kind::LocalElement {
                    local,
                    index: vec![],
                });
            }
            None => {}
        }
        Ok(Kind::Value(match (self.known)(&text) {
            Some(Known::Int(i)) => Value::Int(i),
            Some(Known::Float(x)) => Value::Float(x),
            Some(Known::Bool(b)) => Value::Bool(b),
            Some(Known::DType(_)) => {
                return Err(Box::new(say::reference_type(span, "a number", "a dtype")));
            }
            None => return Err(Box::new(say::unknown_name(span, &text))),
        }))
    }

    pub(super) fn element(&mut self, base: &Expr, slots: &[IndexSlot], span: Span) -> Result<Kind> {
        let ExprKind::Name(path) = &base.kind else {
            return Err(Box::new(say::not_in_a_reference(
                span,
                "an index into this",
            )));
        };
        let name = single(path)?;
        match self.find(name) {
            Some(Slot::Array(array)) => Ok(Kind::Element {
                array,
                index: self.index(slots)?,
            }),
            Some(Slot::Local(local)) => Ok(Kind::LocalElement {
                local,
                index: self.index(slots)?,
            }),
            Some(Slot::Scalar(_)) => Err(Box::new(say::reference_type(
                base.span, "a tensor", "a number",
            ))),
            None => Err(Box::new(say::unknown_name(base.span, name))),
        }
    }

    pub(super) fn call(&mut self, callee: &Expr, args: &[ast::Arg], span: Span) -> Result<Kind> {
        let name = match &callee.kind {
            ExprKind::DType(dtype) => return self.convert(*dtype, args, span),
            ExprKind::Name(path) => path
                .segments
                .iter()
                .map(|s| s.name.as_str())
                .collect::<Vec<_>>()
                .join("::"),
            _ => return Err(Box::new(say::not_in_a_reference(span, "this call"))),
        };
        if let Some(Known::DType(dtype)) = (self.known)(&name) {
            return self.convert(dtype, args, span);
        }
        let values: Vec<&Expr> = args.iter().map(|a| &a.value).collect();
        match (name.as_str(), &values[..]) {
            ("index", [x]) => Ok(Kind::ToInt(self.boxed(x)?)),
            ("dotv", [a, b]) => Ok(Kind::Dot(self.row(a)?, self.row(b)?)),
            ("bits", [x]) => match self.dtype(x) {
                Some(dtype) => Ok(Kind::Value(Value::Int(dtype.bits() as i128))),
                None => Err(Box::new(say::reference_type(x.span, "a dtype", "none"))),
            },
            _ => {
                let Some((function, arity)) = Function::of(&name) else {
                    return Err(Box::new(say::unknown_name(callee.span, &name)));
                };
                // `min` and `max` take any number from two on.
                let fits = values.len() == arity
                    || (matches!(function, Function::Min | Function::Max) && values.len() > 2);
                if !fits {
                    let what = format!(
                        "`{name}` takes {arity} arguments, and {} are given",
                        values.len()
                    );
                    return Err(Box::new(say::reference_arithmetic(span, &what)));
                }
                let args = values
                    .into_iter()
                    .map(|a| self.expr(a))
                    .collect::<Result<_>>()?;
                Ok(Kind::Call(function, args))
            }
        }
    }

    fn dtype(&self, e: &Expr) -> Option<DType> {
        match &e.kind {
            ExprKind::DType(dtype) => Some(*dtype),
            ExprKind::Name(path) => match (self.known)(single(path).ok()?) {
                Some(Known::DType(dtype)) => Some(dtype),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn convert(&mut self, dtype: DType, args: &[ast::Arg], span: Span) -> Result<Kind> {
        let [arg] = args else {
            return Err(Box::new(say::reference_arithmetic(
                span,
                &format!("`{dtype}(…)` converts one number"),
            )));
        };
        let value = self.boxed(&arg.value)?;
        Ok(if dtype.is_float() {
            Kind::ToFloat(value)
        } else {
            Kind::ToInt(value)
        })
    }

    fn method(
        &mut self,
        receiver: &Expr,
        name: &str,
        args: &[ast::Arg],
        span: Span,
    ) -> Result<Kind> {
        match (name, args) {
            ("cast", [arg]) => match self.dtype(&arg.value) {
                Some(dtype) if dtype.is_float() => Ok(Kind::ToFloat(self.boxed(receiver)?)),
                Some(_) => Ok(Kind::ToInt(self.boxed(receiver)?)),
                None => Err(Box::new(say::reference_type(
                    arg.value.span,
                    "a dtype",
                    "none",
                ))),
            },
            _ => Err(Box::new(say::not_in_a_reference(
                span,
                &format!("`.{name}(…)`"),
            ))),
        }
    }

    pub(super) fn row(&mut self, e: &Expr) -> Result<Row> {
        let wrong = || {
            Box::new(say::reference_type(
                e.span,
                "a row of a tensor, as in `q[i, :]`,",
                "none",
            ))
        };
        let (base, slots): (&Expr, &[IndexSlot]) = match &e.kind {
            ExprKind::Index { base, slots } => (base, slots),
            ExprKind::Name(_) => (e, &[]),
            _ => return Err(wrong()),
        };
        let ExprKind::Name(path) = &base.kind else {
            return Err(wrong());
        };
        let Some(Slot::Array(array)) = self.find(single(path)?) else {
            return Err(wrong());
        };
        let mut row = Row {
            array,
            index: vec![],
            start: None,
            len: None,
            span: e.span,
        };
        if slots.is_empty() {
            row.index.push(None);
        }
        for slot in slots {
            match slot {
                IndexSlot::At(e) => row.index.push(Some(self.expr(e)?)),
                IndexSlot::Full(_) => row.index.push(None),
                IndexSlot::Span { start, len } => {
                    row.index.push(None);
                    row.start = Some(self.boxed(start)?);
                    row.len = Some(self.boxed(len)?);
                }
                IndexSlot::Gather(_) => return Err(wrong()),
            }
        }
        match row.index.iter().filter(|i| i.is_none()).count() {
            1 => Ok(row),
            _ => Err(wrong()),
        }
    }
}

fn single(path: &ast::Path) -> Result<&str> {
    match &path.segments[..] {
        [one] => Ok(&one.name),
        _ => Err(Box::new(say::not_in_a_reference(path.span, "a path"))),
    }
}

fn statement_name(kind: &StmtKind) -> &'static str {
    match kind {
        StmtKind::Pipeline { .. } => "`pipeline`",
        StmtKind::ForItems { .. } => "a loop over items",
        StmtKind::Role { .. } => "`role`",
        StmtKind::Channel { .. } => "`channel`",
        StmtKind::Put { .. } => "`put`",
        StmtKind::Get { .. } => "`get`",
        StmtKind::Release { .. } => "`release`",
        StmtKind::Copy { .. } => "`copy`",
        StmtKind::Signal { .. } => "`signal`",
        StmtKind::Wait { .. } => "`wait`",
        StmtKind::Assert { .. } => "`assume`",
        StmtKind::Print { .. } => "`print`",
        StmtKind::Return { .. } => "`return`",
        StmtKind::Asm { .. } => "`asm`",
        _ => "this statement",
    }
}
