//! How much work a launch is: floating-point operations of its products, counted on the tile IR.
//!
//! Walks the body for every CTA with the index values that follow from dims and coordinates alone; a loop whose bounds come from
//! memory counts as unknown, and then so does the launch.

use std::collections::{BTreeMap, HashMap};

use crate::tile::ir::*;
use crate::tile::scalar;

/// CTAs and loop trips that are walked at most; beyond, the answer is not worth the wait.
const MAX_STEPS: u64 = 5_000_000;

/// `2 · m · n · k` summed over every `dot` of the launch; `None` where control depends on data.
pub fn dot_flops(kernel: &Kernel, dims: &BTreeMap<String, i64>) -> Option<u64> {
    let with_dots: Vec<bool> = (0..kernel.blocks.len())
        .map(|b| holds_dot(kernel, BlockId(b as u32)))
        .collect();
    if !with_dots[kernel.body.index()] {
        return Some(0);
    }
    let mut grid = [1i64; 3];
    for (axis, extent) in kernel.launch.grid.iter().enumerate() {
        grid[axis] = extent
            .eval_int(&|name| dims.get(name).copied(), &|_| None)
            .ok()?;
    }
    let mut counter = Counter {
        kernel,
        with_dots,
        dims,
        cta: [0; 3],
        values: HashMap::new(),
        steps: 0,
    };
    let mut total = 0u64;
    for z in 0..grid[2] {
        for y in 0..grid[1] {
            for x in 0..grid[0] {
                counter.cta = [x, y, z];
                counter.values.clear();
                total = total.checked_add(counter.block(kernel.body)?)?;
            }
        }
    }
    Some(total)
}

fn holds_dot(kernel: &Kernel, block: BlockId) -> bool {
    kernel
        .block(block)
        .ops
        .iter()
        .any(|&op| match &kernel.op(op).kind {
            OpKind::Dot { .. } => true,
            OpKind::For { body, .. } | OpKind::ForItems { body } | OpKind::Role { body, .. } => {
                holds_dot(kernel, *body)
            }
            OpKind::If {
                then, otherwise, ..
            } => holds_dot(kernel, *then) || otherwise.is_some_and(|b| holds_dot(kernel, b)),
            _ => false,
        })
}

struct Counter<'k> {
    kernel: &'k Kernel,
    with_dots: Vec<bool>,
    dims: &'k BTreeMap<String, i64>,
    cta: [i64; 3],
    /// Known values of this CTA.
    values: HashMap<ValueId, Const>,
    steps: u64,
}

impl Counter<'_> {
    fn block(&mut self, block: BlockId) -> Option<u64> {
        let mut total = 0u64;
        for &op in &self.kernel.block(block).ops {
            total = total.checked_add(self.op(op)?)?;
        }
        Some(total)
    }

    fn op(&mut self, id: OpId) -> Option<u64> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return None;
        }
        let op = self.kernel.op(id);
        match &op.kind {
            OpKind::Dot { a, b, .. } => {
                let (a_shape, b_shape) = (a.view.shape(), b.view.shape());
                let [m, k] = a_shape[..] else { return None };
                let [rows, columns] = b_shape[..] else {
                    return None;
                };
                let (m, k) = if a.transposed { (k, m) } else { (m, k) };
                let n = if b.transposed { rows } else { columns };
                Some(2 * m * n * k)
            }
            OpKind::For { lo, hi, body, .. } => {
                if !self.with_dots[body.index()] {
                    return Some(0);
                }
                let (lo, hi) = (self.index(*lo)?, self.index(*hi)?);
                let mut total = 0u64;
                for i in lo..hi {
                    self.values
                        .insert(self.kernel.block(*body).args[0], Const::Index(i));
                    total = total.checked_add(self.block(*body)?)?;
                }
                Some(total)
            }
            // The items of a persistent kernel are the points of its grid.
            OpKind::ForItems { body } => {
                let args = self.kernel.block(*body).args.clone();
                for (axis, arg) in args.into_iter().enumerate() {
                    self.values.insert(arg, Const::Index(self.cta[axis.min(2)]));
                }
                self.block(*body)
            }
            OpKind::Role { body, copies, .. } => {
                let mut total = 0u64;
                for copy in 0..*copies {
                    if let Some(&arg) = self.kernel.block(*body).args.first() {
                        self.values.insert(arg, Const::Index(copy as i64));
                    }
                    total = total.checked_add(self.block(*body)?)?;
                }
                Some(total)
            }
            OpKind::If {
                cond,
                then,
                otherwise,
            } => {
                let inside = self.with_dots[then.index()]
                    || otherwise.is_some_and(|b| self.with_dots[b.index()]);
                if !inside {
                    return Some(0);
                }
                match self.values.get(cond)? {
                    Const::Bool(true) => self.block(*then),
                    Const::Bool(false) => otherwise.map_or(Some(0), |b| self.block(b)),
                    _ => None,
                }
            }
            kind => {
                if let (Some(result), Some(value)) = (op.result, self.value(kind)) {
                    self.values.insert(result, value);
                }
                Some(0)
            }
        }
    }

    fn value(&self, kind: &OpKind) -> Option<Const> {
        match kind {
            OpKind::Const(c) => Some(*c),
            OpKind::Dim(dim) => self
                .dims
                .get(&self.kernel.dims[dim.index()].name)
                .map(|&v| Const::Index(v)),
            OpKind::BlockIndex(axis) => self.cta.get(*axis as usize).copied().map(Const::Index),
            other => scalar::fold(other, &|v| self.values.get(&v).copied()),
        }
    }

    fn index(&self, value: ValueId) -> Option<i64> {
        match self.values.get(&value)? {
            Const::Index(i) => Some(*i),
            _ => None,
        }
    }
}
