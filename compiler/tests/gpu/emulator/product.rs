//! Matrix products of a warpgroup: read and summed as late as they may be, when the group is waited for. Until then nobody may write what
//! they read, nor touch the registers of their sums.
//!
//! Products and their sum over the K of one instruction are exact to f64, k ascending; it is added to the sum so far, and rounded to f32
//! once. Source of the layouts: PTX ISA, "Asynchronous warpgroup level matrix instructions".

use std::collections::HashMap;

use super::alu;
use super::copies::swizzled;
use super::hopper::{MatrixA, MatrixMultiply, Special};
use super::machine::{Breach, Cluster, WARP, WARPGROUP};
use super::order::{Agent, Time};
use super::ptx::{SHARED_BASE, Ty};

/// In a register whose sum is under way.
const POISON: u64 = 0xbad0_acc0_7fff_dead;

#[derive(Default)]
pub struct Products {
    /// Reads the operands.
    agent: Option<Agent>,
    open: Vec<Product>,
    groups: Vec<(Vec<Product>, Time)>,
    /// Of the registers of sums under way: their values in all threads, and how many products are to come.
    pub sums: HashMap<usize, Sum>,
    /// Registers of operands, and how many products are to read them.
    operands: HashMap<usize, usize>,
    /// The instruction of the last fence.
    fence: u64,
}

pub struct Sum {
    values: Vec<u32>,
    uses: usize,
}

struct Product {
    what: MatrixMultiply,
    a: Option<Operand>,
    b: Operand,
    goes_on: bool,
}

impl Products {
    pub fn in_flight(&self) -> bool {
        !self.open.is_empty() || !self.groups.is_empty()
    }

    pub fn holds(&self, register: &usize) -> bool {
        self.sums.contains_key(register) || self.operands.contains_key(register)
    }
}

/// Where the elements of an operand lie: `rows` (of A, columns of B) by `k`.
#[derive(Clone, Copy, Debug)]
struct Operand {
    /// In the cluster's shared memory.
    base: usize,
    start: usize,
    leading: usize,
    stride: usize,
    swizzle: usize,
    bytes: usize,
    /// K is the outer axis.
    by_k: bool,
}

impl Operand {
    /// # Errors
    /// A descriptor that is against the rules.
    fn new(descriptor: u64, base: usize, bytes: usize, by_k: bool) -> Result<Self, String> {
        let field = |from: u32| (descriptor >> from & 0x3fff) as usize * 16;
        let swizzle = match descriptor >> 62 {
            0 => 0,
            1 => 128,
            2 => 64,
            _ => 32,
        };
        let operand = Operand {
            base,
            start: field(0),
            leading: field(16),
            stride: field(32),
            swizzle,
            bytes,
            by_k,
        };
        let bad = |what: &str| Err(format!("the descriptor {descriptor:#x}: {what}"));
        if descriptor >> 49 & 7 != 0 {
            return bad("a base offset, which this emulator does not know");
        }
        // Rows of the pattern start where it does.
        let row = operand.start / swizzle.max(1);
        if swizzle != 0 && !row.is_multiple_of(8) {
            return bad(
                "its start is not at the first row of a swizzle's pattern, and the base offset is 0",
            );
        }
        let outer = if by_k {
            vec![operand.leading, operand.stride]
        } else {
            vec![operand.stride]
        };
        if swizzle != 0 && outer.iter().any(|s| !s.is_multiple_of(8 * swizzle)) {
            return bad("a stride that leaves a swizzle's pattern");
        }
        if swizzle != 0 && by_k && !operand.start.is_multiple_of(swizzle) {
            return bad("its start is within a row");
        }
        Ok(operand)
    }

    /// Address of an element; `row` of A or column of B.
    fn address(&self, row: usize, k: usize) -> usize {
        let (width, bytes) = (self.swizzle, self.bytes);
        let unit = 16 / bytes;
        let linear = match (self.by_k, width) {
            // Eight rows of 16 bytes lie together.
            (false, 0) => {
                row % 8 * 16 + row / 8 * self.stride + k / unit * self.leading + k % unit * bytes
            }
            (false, _) => row % 8 * width + row / 8 * self.stride + k * bytes,
            // Eight k of 16 bytes lie together.
            (true, 0) => {
                row % unit * bytes + row / unit * self.stride + k % 8 * 16 + k / 8 * self.leading
            }
            (true, _) => {
                let wide = width / bytes;
                row % wide * bytes + row / wide * self.leading + k % 8 * width + k / 8 * self.stride
            }
        };
        swizzled(self.start + linear, width)
    }

    fn place(&self, row: usize, k: usize, len: usize) -> Result<usize, String> {
        let address = self.address(row, k);
        let at = address.checked_sub(SHARED_BASE as usize);
        match at.filter(|at| at + self.bytes <= len) {
            Some(at) => Ok(self.base + at),
            None => Err(format!(
                "an operand's element ({row}, {k}) at shared address {address:#x}"
            )),
        }
    }
}

impl Cluster<'_> {
    /// A warpgroup is all at this instruction; whether it goes on.
    pub fn warpgroup(&mut self, special: &Special, threads: &[usize]) -> Result<bool, Breach> {
        let g = threads[0] / WARPGROUP;
        match special {
            Special::MatrixFence => self.products[g].fence = self.tick,
            Special::MatrixMultiply(what) => self.multiply(what, g)?,
            Special::MatrixCommit => {
                self.order.time += 1;
                let group = std::mem::take(&mut self.products[g].open);
                self.products[g].groups.push((group, self.order.time));
            }
            Special::MatrixWait { left } => self.finish_products(g, *left)?,
            Special::SetRegisters { more, count } => return self.set_registers(*more, *count, g),
            _ => {}
        }
        Ok(true)
    }

    fn uniform(&self, register: usize, g: usize) -> Result<u64, Breach> {
        let all = &self.registers[register * self.n + g * WARPGROUP..][..WARPGROUP];
        match all.iter().position(|x| *x != all[0]) {
            None => Ok(all[0]),
            Some(t) => Err((
                g * WARPGROUP + t,
                "an operand that is not the same in the whole warpgroup".to_owned(),
            )),
        }
    }

    fn multiply(&mut self, what: &MatrixMultiply, g: usize) -> Result<(), Breach> {
        let first = g * WARPGROUP;
        let fault = |what: String| (first, what);
        let groups = self.products.len();
        let products = &self.products[g];
        if products.fence == 0 {
            return Err(fault("no wgmma.fence before it".to_owned()));
        }
        let own: &[usize] = match &what.a {
            MatrixA::Registers(registers) => registers,
            MatrixA::Descriptor(_) => &[],
        };
        let fresh = what.sum.iter().filter(|r| !products.sums.contains_key(r));
        for register in fresh.chain(own) {
            if self.written[register * groups + g] > products.fence {
                return Err(fault(
                    "a register was written since the last wgmma.fence".to_owned(),
                ));
            }
        }
        if own.iter().any(|r| products.sums.contains_key(r)) {
            return Err(fault("an operand is a sum under way".to_owned()));
        }
        let base = first / self.block * self.shared_stride;
        let bytes = what.a_type.bits() as usize / 8;
        let a = match what.a {
            MatrixA::Descriptor(register) => {
                let descriptor = self.uniform(register, g)?;
                Some(Operand::new(descriptor, base, bytes, what.a_by_k).map_err(fault)?)
            }
            MatrixA::Registers(_) => None,
        };
        let b = self.uniform(what.b, g)?;
        let b = Operand::new(b, base, bytes, what.b_by_k).map_err(fault)?;
        let goes_on = self.uniform(what.goes_on, g)? & 1 == 1;
        let order = &mut self.order;
        let agent = *self.products[g].agent.get_or_insert_with(|| order.agent());
        for (operand, rows) in [(a, 64), (Some(b), what.n)] {
            let Some(operand) = operand else { continue };
            // By units of 16 bytes, along the axis in which they lie.
            let unit = 16 / bytes;
            let (rows, ks) = match operand.by_k {
                true => ((0..rows).step_by(unit), (0..what.k).step_by(1)),
                false => ((0..rows).step_by(1), (0..what.k).step_by(unit)),
            };
            for row in rows {
                for k in ks.clone() {
                    let at = operand.place(row, k, self.shared_bytes).map_err(fault)?;
                    for t in (first..first + WARPGROUP).step_by(WARP) {
                        let read = self.memory.async_read(&self.order, t, agent, at, 16);
                        read.map_err(|what| (t, what))?;
                    }
                }
            }
        }
        let (n, registers) = (self.n, &mut self.registers);
        let products = &mut self.products[g];
        for &register in &what.sum {
            let values = &mut registers[register * n + first..][..WARPGROUP];
            let sum = products.sums.entry(register).or_insert_with(|| Sum {
                values: values.iter().map(|x| *x as u32).collect(),
                uses: 0,
            });
            sum.uses += 1;
            values.fill(POISON);
        }
        for &register in own {
            *products.operands.entry(register).or_insert(0) += 1;
        }
        products.open.push(Product {
            what: what.clone(),
            a,
            b,
            goes_on,
        });
        Ok(())
    }

    fn finish_products(&mut self, g: usize, left: usize) -> Result<(), Breach> {
        let first = g * WARPGROUP;
        let over = self.products[g].groups.len().saturating_sub(left);
        let groups: Vec<(Vec<Product>, Time)> = self.products[g].groups.drain(..over).collect();
        let last = groups.last().map(|(_, time)| *time);
        for product in groups.into_iter().flat_map(|(group, _)| group) {
            self.sum_up(&product, g).map_err(|what| (first, what))?;
        }
        if let (Some(time), Some(agent)) = (last, self.products[g].agent) {
            for t in first..first + WARPGROUP {
                self.order.learn(t, agent, time);
            }
        }
        Ok(())
    }

    fn sum_up(&mut self, product: &Product, g: usize) -> Result<(), String> {
        let Product {
            what,
            a,
            b,
            goes_on,
        } = product;
        let (first, n, len) = (g * WARPGROUP, self.n, self.shared_bytes);
        let memory = &self.memory.bytes;
        let element = |at: usize, ty: Ty| {
            let x = match ty.bits() {
                8 => u64::from(memory[at]),
                _ => u64::from(u16::from_le_bytes([memory[at], memory[at + 1]])),
            };
            f64::from(alu::narrow(x, ty))
        };
        let sign = if what.negate_a == what.negate_b {
            1.0
        } else {
            -1.0
        };
        // By k, then by row or column.
        let mut left = vec![0.0; what.k * 64];
        match (&what.a, a) {
            (MatrixA::Registers(registers), _) => {
                let bits = what.a_type.bits() as usize;
                let per = 32 / bits;
                for (r, register) in registers.iter().enumerate() {
                    for t in 0..WARPGROUP {
                        let x = self.registers[register * n + first + t];
                        let row = t / WARP * 16 + t % WARP / 4 + r % 2 * 8;
                        for part in 0..per {
                            let k = r / 2 * 4 * per + t % 4 * per + part;
                            let code = x >> (part * bits) & alu::mask(bits as u32);
                            left[k * 64 + row] = f64::from(alu::narrow(code, what.a_type));
                        }
                    }
                }
            }
            (_, Some(a)) => {
                for k in 0..what.k {
                    for row in 0..64 {
                        left[k * 64 + row] = element(a.place(row, k, len)?, what.a_type);
                    }
                }
            }
            _ => return Err("an operand without its descriptor".to_owned()),
        }
        let mut right = vec![0.0; what.k * what.n];
        for k in 0..what.k {
            for column in 0..what.n {
                right[k * what.n + column] = element(b.place(column, k, len)?, what.b_type);
            }
        }
        let products = &mut self.products[g];
        let mut sums = vec![0.0f64; what.n];
        for row in 0..64 {
            sums.fill(0.0);
            for k in 0..what.k {
                let x = sign * left[k * 64 + row];
                for (sum, y) in sums.iter_mut().zip(&right[k * what.n..]) {
                    *sum += x * y;
                }
            }
            for (column, sum) in sums.iter().enumerate() {
                let t = row / 16 * WARP + row % 8 * 4 + column % 8 / 2;
                let register = what.sum[column / 8 * 4 + row % 16 / 8 * 2 + column % 2];
                let values = products
                    .sums
                    .get_mut(&register)
                    .ok_or("a sum that is lost")?;
                let value = &mut values.values[t];
                let before = if *goes_on {
                    f32::from_bits(*value)
                } else {
                    0.0
                };
                let after = (f64::from(before) + sum) as f32;
                *value = if after.is_nan() {
                    0x7fff_ffff
                } else {
                    after.to_bits()
                };
            }
        }
        for register in &what.sum {
            let sum = products
                .sums
                .get_mut(register)
                .ok_or("a sum that is lost")?;
            sum.uses -= 1;
            if sum.uses > 0 {
                continue;
            }
            let values = &mut self.registers[register * n + first..][..WARPGROUP];
            if values.iter().any(|x| *x != POISON) {
                return Err(
                    "a register of a sum was written while the product was under way".to_owned(),
                );
            }
            for (register, value) in values.iter_mut().zip(&sum.values) {
                *register = u64::from(*value);
            }
            products.sums.remove(register);
        }
        if let MatrixA::Registers(registers) = &what.a {
            for register in registers {
                if let Some(uses) = products.operands.get_mut(register) {
                    *uses -= 1;
                    if *uses == 0 {
                        products.operands.remove(register);
                    }
                }
            }
        }
        Ok(())
    }

    fn set_registers(&mut self, more: bool, count: usize, g: usize) -> Result<bool, Breach> {
        let first = g * WARPGROUP;
        let rank = first / self.block;
        let warps = first / WARP..first / WARP + WARPGROUP / WARP;
        let now = self.register_count[warps.start];
        if !(24..=256).contains(&count) || !count.is_multiple_of(8) {
            return Err((first, format!("{count} registers")));
        }
        if more != (count >= now) && count != now {
            return Err((first, format!("it has {now} registers")));
        }
        match more {
            true => {
                let wanted = (count - now) * WARPGROUP;
                if wanted > self.register_pool[rank] {
                    return Ok(false);
                }
                self.register_pool[rank] -= wanted;
            }
            false => self.register_pool[rank] += (now - count) * WARPGROUP,
        }
        self.register_count[warps].fill(count);
        Ok(true)
    }
}
