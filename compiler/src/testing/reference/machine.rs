//! Evaluates what `resolve` has made.

use super::*;

pub(super) struct Machine {
    pub(super) scalars: Vec<Value>,
    pub(super) arrays: Vec<Array>,
    pub(super) names: Vec<String>,
    pub(super) locals: Vec<Local>,
    pub(super) steps: u64,
}

impl Machine {
    pub(super) fn stmts(&mut self, steps: &[Step]) -> Result<()> {
        steps.iter().try_for_each(|step| self.step(step))
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Set { slot, value } => self.scalars[*slot] = self.eval(value)?,
            Step::Store {
                target,
                op,
                value,
                span,
            } => self.store(target, *op, value, *span)?,
            Step::Loop { slots, body } => self.run_loop(slots, body)?,
            Step::If {
                cond,
                then,
                otherwise,
            } => {
                let branch = if self.cond(cond)? { then } else { otherwise };
                self.stmts(branch)?;
            }
            Step::Declare { local, initial } => {
                let initial = initial.as_ref().map(|e| self.float(e)).transpose()?;
                self.locals[*local].elements.clear();
                self.locals[*local].initial = initial;
            }
            Step::Assert {
                cond,
                message,
                span,
            } => {
                if !self.cond(cond)? {
                    return Err(Box::new(say::reference_arithmetic(*span, message)));
                }
            }
        }
        Ok(())
    }

    /// All bounds are evaluated before the first iteration of the outermost, as in `map (i, j) in [M, N]`.
    fn run_loop(&mut self, slots: &[(usize, Node, Node, bool)], body: &[Step]) -> Result<()> {
        let Some(((slot, lo, hi, inclusive), inner)) = slots.split_first() else {
            return self.stmts(body);
        };
        let (lo, hi) = (self.int(lo)?, self.int(hi)? + *inclusive as i128);
        let mut i = lo;
        while i < hi {
            self.scalars[*slot] = Value::Int(i);
            self.run_loop(inner, body)?;
            i += 1;
        }
        Ok(())
    }

    fn store(&mut self, target: &Target, op: AssignOp, value: &Node, span: Span) -> Result<()> {
        let value = self.eval(value)?;
        match target {
            Target::Scalar(slot) => {
                let old = self.scalars[*slot];
                let arithmetic = |op| {
                    binary(op, old, value)
                        .map_err(|what| Box::new(say::reference_arithmetic(span, &what)))
                };
                self.scalars[*slot] = match op {
                    AssignOp::Set => value,
                    AssignOp::Add => arithmetic(BinaryOp::Add)?,
                    AssignOp::Sub => arithmetic(BinaryOp::Sub)?,
                    AssignOp::Mul => arithmetic(BinaryOp::Mul)?,
                    AssignOp::Div => arithmetic(BinaryOp::Div)?,
                    AssignOp::Max | AssignOp::Min => match (old, value) {
                        (Value::Int(a), Value::Int(b)) => Value::Int(if op == AssignOp::Max {
                            a.max(b)
                        } else {
                            a.min(b)
                        }),
                        _ => Value::Float(assign(op, to_float(old, span)?, to_float(value, span)?)),
                    },
                };
            }
            Target::Element { array, index } => {
                let at = self.offset(*array, index, span)?;
                let new = to_float(value, span)?;
                let old = self.arrays[*array].data[at];
                self.arrays[*array].data[at] = assign(op, old, new);
            }
            Target::Local { local, index } => {
                let at = self.coordinates(index)?;
                let new = to_float(value, span)?;
                let new = match op {
                    AssignOp::Set => new,
                    _ => assign(op, self.local(*local, &at, span)?, new),
                };
                self.locals[*local].elements.insert(at, new);
            }
        }
        Ok(())
    }

    pub(super) fn coordinates(&mut self, index: &[Node]) -> Result<Vec<i64>> {
        index
            .iter()
            .map(|i| self.int(i).map(|i| i as i64))
            .collect()
    }

    pub(super) fn local(&self, local: usize, at: &[i64], span: Span) -> Result<f64> {
        let local = &self.locals[local];
        match local.elements.get(at).copied().or(local.initial) {
            Some(x) => Ok(x),
            None => Err(Box::new(say::never_assigned(span, &local.name, at))),
        }
    }

    fn offset(&mut self, array: usize, index: &[Node], span: Span) -> Result<usize> {
        let rank = self.arrays[array].shape.len();
        if index.len() != rank {
            return Err(Box::new(say::reference_rank(
                span,
                &self.names[array],
                index.len(),
                rank,
            )));
        }
        let mut at = 0usize;
        for (axis, node) in index.iter().enumerate() {
            let i = self.int(node)?;
            let extent = self.arrays[array].shape[axis];
            if i < 0 || i >= extent as i128 {
                return Err(Box::new(say::reference_index(
                    node.span,
                    &self.names[array],
                    axis,
                    i as i64,
                    extent,
                )));
            }
            at = at * extent as usize + i as usize;
        }
        Ok(at)
    }

    fn int(&mut self, node: &Node) -> Result<i128> {
        match self.eval(node)? {
            Value::Int(i) => Ok(i),
            other => Err(Box::new(
                say::reference_type(node.span, "an integer", other.kind())
                    .help("convert with `index(…)`"),
            )),
        }
    }

    fn float(&mut self, node: &Node) -> Result<f64> {
        let value = self.eval(node)?;
        to_float(value, node.span)
    }

    pub(super) fn cond(&mut self, node: &Node) -> Result<bool> {
        match self.eval(node)? {
            Value::Bool(b) => Ok(b),
            other => Err(Box::new(say::reference_type(
                node.span,
                "a condition",
                other.kind(),
            ))),
        }
    }

    pub(super) fn eval(&mut self, node: &Node) -> Result<Value> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(Box::new(say::reference_steps(node.span, MAX_STEPS)));
        }
        Ok(match &node.kind {
            Kind::Value(value) => *value,
            Kind::Scalar(slot) => self.scalars[*slot],
            Kind::Element { array, index } => {
                let at = self.offset(*array, index, node.span)?;
                let array = &self.arrays[*array];
                match array.integer {
                    true => Value::Int(array.data[at] as i128),
                    false => Value::Float(array.data[at]),
                }
            }
            Kind::LocalElement { local, index } => {
                let at = self.coordinates(index)?;
                Value::Float(self.local(*local, &at, node.span)?)
            }
            Kind::Unary(op, a) => match (op, self.eval(a)?) {
                (UnaryOp::Neg, Value::Int(i)) => Value::Int(-i),
                (UnaryOp::Neg, Value::Float(x)) => Value::Float(-x),
                (UnaryOp::Not, Value::Bool(b)) => Value::Bool(!b),
                (UnaryOp::Not, Value::Int(i)) => Value::Int(!i),
                (_, other) => {
                    return Err(Box::new(say::reference_type(
                        a.span,
                        "another type",
                        other.kind(),
                    )));
                }
            },
            Kind::Binary(BinaryOp::And, a, b) => Value::Bool(self.cond(a)? && self.cond(b)?),
            Kind::Binary(BinaryOp::Or, a, b) => Value::Bool(self.cond(a)? || self.cond(b)?),
            Kind::Binary(op, a, b) => {
                let (a, b) = (self.eval(a)?, self.eval(b)?);
                binary(*op, a, b)
                    .map_err(|what| Box::new(say::reference_arithmetic(node.span, &what)))?
            }
            Kind::Select(c, a, b) => match self.cond(c)? {
                true => self.eval(a)?,
                false => self.eval(b)?,
            },
            Kind::Call(function, args) => self.call(*function, args, node.span)?,
            Kind::ToFloat(a) => Value::Float(self.float(a)?),
            Kind::ToInt(a) => match self.eval(a)? {
                Value::Int(i) => Value::Int(i),
                Value::Bool(b) => Value::Int(b as i128),
                // Saturates and takes NaN to 0, as casts do.
                Value::Float(x) => Value::Int(x.trunc() as i128),
            },
            Kind::Reduce {
                op,
                slot,
                lo,
                hi,
                inclusive,
                body,
            } => self.reduce(*op, *slot, (lo, hi, *inclusive), body)?,
            Kind::Dot(a, b) => Value::Float(self.dot(a, b, node.span)?),
        })
    }

    pub(super) fn reduce(
        &mut self,
        op: Fold,
        slot: usize,
        (lo, hi, inclusive): (&Node, &Node, bool),
        body: &Node,
    ) -> Result<Value> {
        let (lo, hi) = (self.int(lo)?, self.int(hi)? + inclusive as i128);
        if matches!(op, Fold::All | Fold::Any) {
            let stop = op == Fold::Any;
            let mut i = lo;
            while i < hi {
                self.scalars[slot] = Value::Int(i);
                if self.cond(body)? == stop {
                    return Ok(Value::Bool(stop));
                }
                i += 1;
            }
            return Ok(Value::Bool(!stop));
        }
        let mut total = match op {
            Fold::Sum => 0.0,
            Fold::Prod => 1.0,
            Fold::Max => f64::NEG_INFINITY,
            _ => f64::INFINITY,
        };
        // What the additions lost so far: references judge kernels, so they sum better than kernels do (Neumaier).
        let mut lost = 0.0;
        let mut i = lo;
        while i < hi {
            self.scalars[slot] = Value::Int(i);
            let x = self.float(body)?;
            match op {
                Fold::Sum => {
                    let sum: f64 = total + x;
                    if sum.is_finite() {
                        lost += if f64::abs(total) >= x.abs() {
                            (total - sum) + x
                        } else {
                            (x - sum) + total
                        };
                    }
                    total = sum;
                }
                Fold::Prod => total *= x,
                Fold::Max => total = max(total, x),
                _ => total = min(total, x),
            }
            i += 1;
        }
        Ok(Value::Float(total + lost))
    }

    fn dot(&mut self, a: &Row, b: &Row, span: Span) -> Result<f64> {
        let (a_at, a_step, a_len) = self.row(a)?;
        let (b_at, b_step, b_len) = self.row(b)?;
        if a_len != b_len {
            let what = format!("the rows have {a_len} and {b_len} elements");
            return Err(Box::new(say::reference_arithmetic(span, &what)));
        }
        self.steps += a_len as u64;
        let (x, y) = (&self.arrays[a.array].data, &self.arrays[b.array].data);
        Ok((0..a_len)
            .map(|i| x[a_at + i * a_step] * y[b_at + i * b_step])
            .sum())
    }

    /// Offset of the first element, step and length.
    pub(super) fn row(&mut self, row: &Row) -> Result<(usize, usize, usize)> {
        let shape = self.arrays[row.array].shape.clone();
        if row.index.len() != shape.len() {
            return Err(Box::new(say::reference_rank(
                row.span,
                &self.names[row.array],
                row.index.len(),
                shape.len(),
            )));
        }
        let (mut at, mut step, mut len) = (0usize, 1usize, 0usize);
        for (axis, (index, &extent)) in row.index.iter().zip(&shape).enumerate() {
            let (first, last) = match index {
                Some(node) => {
                    let i = self.int(node)?;
                    (i, i)
                }
                None => {
                    let start = row.start.as_ref().map_or(Ok(0), |e| self.int(e))?;
                    let count = row
                        .len
                        .as_ref()
                        .map_or(Ok(extent as i128), |e| self.int(e))?;
                    len = count.max(0) as usize;
                    step = shape[axis + 1..].iter().product::<i64>() as usize;
                    (start, start + count.max(1) - 1)
                }
            };
            if len > 0 || index.is_some() {
                for i in [first, last] {
                    if i < 0 || i >= extent as i128 {
                        return Err(Box::new(say::reference_index(
                            row.span,
                            &self.names[row.array],
                            axis,
                            i as i64,
                            extent,
                        )));
                    }
                }
            }
            at = at * extent as usize + first as usize;
        }
        Ok((at, step, len))
    }

    pub(super) fn call(&mut self, function: Function, args: &[Node], span: Span) -> Result<Value> {
        use Function::*;
        if matches!(function, Min | Max | Clamp | Abs | Cdiv) {
            let values = args
                .iter()
                .map(|a| self.eval(a))
                .collect::<Result<Vec<_>>>()?;
            if values.iter().all(|v| matches!(v, Value::Int(_))) {
                let ints: Vec<i128> = values
                    .iter()
                    .map(|v| if let Value::Int(i) = v { *i } else { 0 })
                    .collect();
                return Ok(Value::Int(match (function, &ints[..]) {
                    (Min, all) => all.iter().copied().min().unwrap_or(0),
                    (Max, all) => all.iter().copied().max().unwrap_or(0),
                    (Abs, [a]) => a.abs(),
                    (Clamp, [x, lo, hi]) => (*x).max(*lo).min(*hi),
                    (_, [_, 0]) => {
                        return Err(Box::new(say::reference_arithmetic(
                            span,
                            "the divisor is 0",
                        )));
                    }
                    (_, [a, b]) => -floor_div(-a, *b),
                    _ => 0,
                }));
            }
            let x = values
                .into_iter()
                .map(|v| to_float(v, span))
                .collect::<Result<Vec<_>>>()?;
            return Ok(Value::Float(match (function, &x[..]) {
                (Min, all) => all.iter().copied().reduce(min).unwrap_or(0.0),
                (Max, all) => all.iter().copied().reduce(max).unwrap_or(0.0),
                (Clamp, [x, lo, hi]) => min(max(*x, *lo), *hi),
                (Cdiv, [a, b]) => (a / b).ceil(),
                (_, all) => all[0].abs(),
            }));
        }
        let x = args
            .iter()
            .map(|a| self.float(a))
            .collect::<Result<Vec<_>>>()?;
        let a = x[0];
        Ok(Value::Float(match function {
            Exp => a.exp(),
            Exp2 => a.exp2(),
            Log => a.ln(),
            Log2 => a.log2(),
            Log1p => a.ln_1p(),
            Sin => a.sin(),
            Cos => a.cos(),
            Tanh => a.tanh(),
            Sqrt => a.sqrt(),
            Rsqrt => 1.0 / a.sqrt(),
            Sigmoid => 1.0 / (1.0 + (-a).exp()),
            Softplus => a.max(0.0) + (-a.abs()).exp().ln_1p(),
            Silu => a / (1.0 + (-a).exp()),
            Floor => a.floor(),
            Ceil => a.ceil(),
            Round => a.round_ties_even(),
            IsNan => return Ok(Value::Bool(a.is_nan())),
            Pow => a.powf(x[1]),
            Fma => a.mul_add(x[1], x[2]),
            Min | Max | Clamp | Abs | Cdiv => unreachable!("above"),
        }))
    }
}

fn to_float(value: Value, span: Span) -> Result<f64> {
    match value {
        Value::Float(x) => Ok(x),
        Value::Int(i) => Ok(i as f64),
        Value::Bool(_) => Err(Box::new(
            say::reference_type(span, "a number", "a condition").help("write `c ? 1.0 : 0.0`"),
        )),
    }
}

pub(super) fn max(a: f64, b: f64) -> f64 {
    tessera_artifact::numeric::max_f64(a, b)
}

pub(super) fn min(a: f64, b: f64) -> f64 {
    tessera_artifact::numeric::min_f64(a, b)
}

pub(super) fn assign(op: AssignOp, old: f64, new: f64) -> f64 {
    match op {
        AssignOp::Set => new,
        AssignOp::Add => old + new,
        AssignOp::Sub => old - new,
        AssignOp::Mul => old * new,
        AssignOp::Div => old / new,
        AssignOp::Max => max(old, new),
        AssignOp::Min => min(old, new),
    }
}

fn floor_div(a: i128, b: i128) -> i128 {
    let q = a / b;
    if a % b != 0 && (a < 0) != (b < 0) {
        q - 1
    } else {
        q
    }
}

fn binary(op: BinaryOp, a: Value, b: Value) -> std::result::Result<Value, String> {
    use BinaryOp::*;
    use Value::{Bool, Float, Int};
    let overflow = || "this overflows 128 bits".to_owned();
    Ok(match (op, a, b) {
        (Add, Int(a), Int(b)) => Int(a.checked_add(b).ok_or_else(overflow)?),
        (Sub, Int(a), Int(b)) => Int(a.checked_sub(b).ok_or_else(overflow)?),
        (Mul, Int(a), Int(b)) => Int(a.checked_mul(b).ok_or_else(overflow)?),
        (Div | Rem, Int(_), Int(0)) => return Err("the divisor is 0".to_owned()),
        (Div, Int(a), Int(b)) => Int(floor_div(a, b)),
        (Rem, Int(a), Int(b)) => Int(a - floor_div(a, b) * b),
        (Shl | Shr, Int(_), Int(n)) if !(0..=63).contains(&n) => {
            return Err(format!("a shift by {n}"));
        }
        (Shl, Int(a), Int(n)) => Int(a.checked_mul(1 << n).ok_or_else(overflow)?),
        (Shr, Int(a), Int(n)) => Int(a >> n),
        (BitAnd, Int(a), Int(b)) => Int(a & b),
        (BitOr, Int(a), Int(b)) => Int(a | b),
        (BitXor, Int(a), Int(b)) => Int(a ^ b),
        (BitAnd, Bool(a), Bool(b)) => Bool(a & b),
        (BitOr, Bool(a), Bool(b)) => Bool(a | b),
        (BitXor | Ne, Bool(a), Bool(b)) => Bool(a != b),
        (Eq, Bool(a), Bool(b)) => Bool(a == b),
        (Eq, Int(a), Int(b)) => Bool(a == b),
        (Ne, Int(a), Int(b)) => Bool(a != b),
        (Lt, Int(a), Int(b)) => Bool(a < b),
        (Le, Int(a), Int(b)) => Bool(a <= b),
        (Gt, Int(a), Int(b)) => Bool(a > b),
        (Ge, Int(a), Int(b)) => Bool(a >= b),
        (_, Int(_) | Float(_), Int(_) | Float(_)) => {
            let x = if let Int(i) = a {
                i as f64
            } else if let Float(x) = a {
                x
            } else {
                0.0
            };
            let y = if let Int(i) = b {
                i as f64
            } else if let Float(y) = b {
                y
            } else {
                0.0
            };
            match op {
                Add => Float(x + y),
                Sub => Float(x - y),
                Mul => Float(x * y),
                Div => Float(x / y),
                Rem => Float(x - (x / y).floor() * y),
                Eq => Bool(x == y),
                Ne => Bool(x != y),
                Lt => Bool(x < y),
                Le => Bool(x <= y),
                Gt => Bool(x > y),
                Ge => Bool(x >= y),
                _ => return Err("this operator takes integers".to_owned()),
            }
        }
        _ => {
            return Err(format!(
                "{} and {} do not go together here",
                a.kind(),
                b.kind()
            ));
        }
    })
}
