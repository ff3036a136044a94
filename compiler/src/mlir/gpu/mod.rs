//! Emits one kernel for an NVIDIA GPU: tile IR in, an MLIR module with one `llvm.func` out.
//!
//! A CTA runs the kernel's body from top to bottom: scalar code in every thread alike, tile ops with their elements dealt out over the
//! threads, a barrier where one tile op must see what another did. Tiles that only stream through lie in registers
//! (`schedule::infer_registers`), all others in shared memory. CTAs come from a one-dimensional launch
//! and take the items of the kernel's grid in turn, so that neither the hardware's limits on a grid nor the scratch memory of a CTA
//! bound the grid. No tensor cores, no roles: this is the plain back end that others are compared with.
//!
//! A launch may start while the one before it is still under way ([`PtxCode::waits`](tessera_artifact::PtxCode)): every thread waits
//! for that to be over before anything but the parameter and the CTA's own shared memory is touched, and then lets the next launch start
//! likewise.
//!
//! Needs: a verified kernel after `expand_math` and `fuse_roles`. Keeps: the interpreter's bits (but for the payload of a NaN), since
//! every result element is made by the same operations in the same order; only atomics on floats come in any order.

mod access;
mod cluster;
mod collect;
mod control;
mod copy;
mod dot;
mod flying;
mod fold;
mod fragment;
mod gather;
mod hopper;
mod lookup;
mod memory;
mod network;
mod ops;
mod overlap;
mod pairs;
mod pointwise;
mod register_fold;
mod rings;
mod select;
mod slots;
mod sort;
mod staged;
mod streamed;
mod sync;
mod topk;
mod turns;
mod vectors;
mod wgmma;

use super::build::{Builder, Elem, IntCompare, Val};
use super::scalar::{Unsupported, stored_as};
use crate::diag::Diagnostic;
use crate::mlir::cpu::Trap;
use crate::schedule::layout::Layout;
use crate::schedule::{Plan, Registers, infer_registers};
use crate::source::Span;
use crate::target::nvptx::GpuFacts;
use crate::tile::ir::*;
use access::{Memory, Stride};
use melior::Context;
use melior::ir::attribute::{Attribute, StringAttribute, TypeAttribute};
use melior::ir::operation::OperationBuilder;
use melior::ir::{BlockLike, BlockRef, Identifier, Location, Module, Region};
use memory::MemoryPlan;
pub use memory::Place;
use std::collections::{BTreeMap, BTreeSet};
use tessera_artifact::{HostExpr, HostOp, ParamMode};

/// A kernel as MLIR, ready for `target::llvm`.
pub struct Emitted<'c> {
    pub module: Module<'c>,
    /// The entry function.
    pub symbol: String,
    /// Of a CTA.
    pub threads: u32,
    /// Dynamic shared memory.
    pub shared_bytes: u32,
    /// Per CTA.
    pub scratch_bytes: u64,
    /// What can go wrong while it runs: trap `i` is reported as `i + 1` in the error record.
    pub traps: Vec<Trap>,
    /// Barriers in the code, a measure of how well dependences were seen.
    pub barriers: usize,
    /// Those in shared memory and in scratch: name, place, bytes.
    pub tiles: Vec<(String, Place, u64)>,
}

pub const DEFAULT_WARPS: u32 = 4;
/// Of one multiprocessor, in kernels that select: 64 registers for each.
const SELECTING_THREADS: u32 = 1024;

type Emit<T = ()> = Result<T, Box<Diagnostic>>;

/// A parameter as the entry function finds it in its argument words.
enum ParamPlace<'c> {
    Tensor {
        memory: Memory<'c>,
        extents: Vec<Val<'c>>,
    },
    Scalar(Val<'c>),
}

struct Emitter<'k, 'c> {
    kernel: &'k Kernel,
    b: Builder<'c>,
    threads: u32,
    params: Vec<ParamPlace<'c>>,
    dims: Vec<Val<'c>>,
    block_index: [Val<'c>; 3],
    values: Vec<Option<Val<'c>>>,
    tiles: Vec<Option<Memory<'c>>>,
    plan: MemoryPlan,
    /// Ops with a barrier before them.
    barriers: BTreeSet<OpId>,
    barriers_emitted: usize,
    /// Number of this thread in its CTA.
    thread: Val<'c>,
    /// Number of this warpgroup in its role, the same for a whole warp as far as ptxas can tell.
    group: Val<'c>,
    /// The error record.
    record: Val<'c>,
    /// The item of the grid in hand.
    cta: Val<'c>,
    /// Start of the CTA's shared memory.
    shared: Val<'c>,
    traps: Vec<Trap>,
    /// Of a kernel with roles.
    network: Option<network::Network<'c>>,
    /// Of tiles in registers.
    layouts: BTreeMap<TileId, Layout>,
    /// Of maps over registers, by body.
    map_layouts: BTreeMap<BlockId, Layout>,
    /// Variables of tiles in registers.
    fragments: BTreeMap<TileId, Vec<Val<'c>>>,
    /// In a map over registers.
    here: Option<fragment::Here<'c>>,
    /// Of each tile in a slot that the map goes along: the neighbours in hand, in a word or two.
    slot_runs: BTreeMap<TileId, Vec<Val<'c>>>,
    /// What goes together in that map.
    noted: pairs::Noted<'c>,
    /// Tiles in registers that maps have changed since the last products.
    changed: BTreeSet<TileId>,
    /// Registers that neighbours share, of which not all are there yet.
    unfinished: Vec<fragment::Unfinished<'c>>,
    /// Takes the number of the trap.
    fail: BlockRef<'c, 'c>,
    span: Span,
}

const SHARED: &str = "tessera_shared";

/// Emits `kernel` for `gpu`. `context` has the dialects `llvm`, `nvvm`, `arith`, `scf`, `cf` loaded.
///
/// # Errors
/// `TL09xx`: an op that this back end does not lower, with its place.
pub fn emit<'c>(
    context: &'c Context,
    kernel: &Kernel,
    network: Option<&Plan>,
    gpu: &GpuFacts,
) -> Result<Emitted<'c>, Box<Diagnostic>> {
    let threads = match network {
        Some(network) => network.threads,
        None => threads_of(kernel, gpu)?,
    };
    let registers = match network {
        Some(network) => network.in_registers.clone(),
        None => self::registers(kernel, gpu)?,
    };
    let limit = gpu.max_shared_bytes_per_block as u64;
    let plan = memory::plan(kernel, network, &registers, threads, limit);
    if plan.shared_bytes > gpu.max_shared_bytes_per_block as u64 {
        return Err(unsupported(
            kernel.span,
            format!(
                "a fold or a sort that needs {} bytes of shared memory",
                plan.shared_bytes
            ),
        ));
    }
    let barriers = sync::barriers(kernel, &plan, &registers, network.is_some());
    let location = Location::unknown(context);
    let module = Module::new(location);
    let symbol = symbol_of(kernel);
    let region = Region::new();
    let (builder, arguments) = Builder::new(context, location, &region, &[(Elem::Ptr, 1)]);
    let mut emitter = Emitter::new(kernel, builder, threads, plan, registers, barriers);
    let words = emitter.function(arguments[0], network)?;
    let Emitter {
        plan,
        traps,
        barriers_emitted,
        ..
    } = emitter;

    let parse = |text: &str| {
        Attribute::parse(context, text).expect("the attribute's text is fixed and well formed")
    };
    let id = |name: &str| Identifier::new(context, name);
    let string = |text: &str| Attribute::from(StringAttribute::new(context, text));
    let ty = |text: &str| {
        Attribute::from(TypeAttribute::new(
            melior::ir::Type::parse(context, text)
                .expect("the type's text is fixed and well formed"),
        ))
    };
    let shared = OperationBuilder::new("llvm.mlir.global", location)
        .add_attributes(&[
            (id("sym_name"), string(SHARED)),
            (id("global_type"), ty("!llvm.array<0 x i8>")),
            (id("linkage"), parse("#llvm.linkage<external>")),
            (id("addr_space"), parse("3 : i32")),
            (id("alignment"), parse("1024 : i64")),
        ])
        .add_regions([Region::new()])
        .build()
        .expect("a global has no inferred types");
    module.body().append_operation(shared);
    // As many CTAs side by side as their shared memory and an even share of registers allow.
    let side_by_side =
        (SELECTING_THREADS / threads).min(limit as u32 / plan.shared_bytes.max(1) as u32);
    let moves_registers = network.is_some_and(|n| n.roles.iter().any(|r| r.registers.is_some()));
    // What roles exchange is within the budget: the plan has seen to it.
    let most = kernel.budget.registers.filter(|_| !moves_registers);
    let least = match select::selects(kernel, threads) {
        _ if most.is_some() => None,
        true if side_by_side > 1 => Some(side_by_side),
        // Without it ptxas may not know how many registers there are at entry, ignores that roles move them, and spills.
        _ => moves_registers.then_some(1),
    };
    let occupancy = least.map(|least| (id("nvvm.minctasm"), parse(&format!("{least} : i32"))));
    let most = most.map(|most| (id("nvvm.maxnreg"), parse(&format!("{most} : i32"))));
    let clusters = network.filter(|n| n.cluster > 1).map(|n| {
        let dims = format!("array<i32: {}, 1, 1>", n.cluster);
        (id("nvvm.cluster_dim"), parse(&dims))
    });
    let function = OperationBuilder::new("llvm.func", location)
        .add_attributes(&(occupancy.into_iter().chain(most).chain(clusters)).collect::<Vec<_>>())
        .add_attributes(&[
            (id("sym_name"), string(&symbol)),
            (id("function_type"), ty("!llvm.func<void (ptr)>")),
            (id("linkage"), parse("#llvm.linkage<external>")),
            (id("nvvm.kernel"), parse("unit")),
            (
                id("nvvm.reqntid"),
                parse(&format!("array<i32: {threads}, 1, 1>")),
            ),
            (
                id("arg_attrs"),
                parse(&format!(
                    "[{{llvm.byval = !llvm.array<{words} x i64>, llvm.align = 64 : i64, nvvm.grid_constant}}]"
                )),
            ),
        ])
        .add_regions([region])
        .build()
        .expect("a function has no inferred types");
    module.body().append_operation(function);
    Ok(Emitted {
        module,
        symbol,
        threads,
        shared_bytes: plan.shared_bytes as u32,
        scratch_bytes: plan.scratch_bytes,
        traps,
        barriers: barriers_emitted,
        tiles: plan.in_memory(kernel),
    })
}

/// What plain code keeps in registers.
///
/// # Errors
/// A number of warps that the GPU does not have.
pub fn registers(kernel: &Kernel, gpu: &GpuFacts) -> Result<Registers, Box<Diagnostic>> {
    let threads = threads_of(kernel, gpu)?;
    Ok(infer_registers(kernel, threads / gpu.threads_per_warp, gpu))
}

fn threads_of(kernel: &Kernel, gpu: &GpuFacts) -> Emit<u32> {
    let warps = kernel.launch.warps.unwrap_or(DEFAULT_WARPS);
    let most = gpu.max_threads_per_block / gpu.threads_per_warp;
    if (1..=most).contains(&warps) {
        return Ok(warps * gpu.threads_per_warp);
    }
    Err(Box::new(
        Diagnostic::error(
            "TL0903",
            kernel.span,
            format!("`{}` asks for {warps} warps", kernel.name),
        )
        .note(format!("a block of {} has 1 to {most} warps", gpu.arch)),
    ))
}

/// `dsv4::norm::rmsnorm` as a name that every tool takes.
/// An extent of the grid that is the same in every launch.
fn known_extent(kernel: &Kernel, axis: usize) -> Option<i64> {
    let dim = |name: &str| {
        let dim = kernel.dims.iter().find(|d| d.name == name)?;
        (dim.lo == dim.hi).then_some(dim.lo)
    };
    let extent = kernel.launch.grid.get(axis)?;
    extent.eval_int(&dim, &|_| None).ok()
}

fn symbol_of(kernel: &Kernel) -> String {
    kernel
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect()
}

fn unsupported(span: Span, what: impl std::fmt::Display) -> Box<Diagnostic> {
    Box::new(
        Diagnostic::error(
            "TL0902",
            span,
            format!("the GPU back end does not lower {what}"),
        )
        .help("the interpreter runs it: `run interp`"),
    )
}

impl<'k, 'c> Emitter<'k, 'c> {
    fn new(
        kernel: &'k Kernel,
        mut b: Builder<'c>,
        threads: u32,
        plan: MemoryPlan,
        registers: Registers,
        barriers: BTreeSet<OpId>,
    ) -> Self {
        let (fail, _) = b.new_block(1);
        let zero = b.i64(0);
        let thread = b.special_register("nvvm.read.ptx.sreg.tid.x");
        let shared = b.shared_memory(SHARED);
        Emitter {
            kernel,
            b,
            threads,
            params: Vec::new(),
            dims: Vec::new(),
            block_index: [zero; 3],
            values: vec![None; kernel.values.len()],
            tiles: Vec::new(),
            plan,
            barriers,
            barriers_emitted: 0,
            thread,
            group: zero,
            record: zero,
            cta: zero,
            shared,
            traps: Vec::new(),
            network: None,
            layouts: registers.tiles,
            map_layouts: registers.maps,
            fragments: BTreeMap::new(),
            here: None,
            slot_runs: BTreeMap::new(),
            noted: pairs::Noted::default(),
            unfinished: Vec::new(),
            changed: BTreeSet::new(),
            fail,
            span: kernel.span,
        }
    }

    /// The whole function: unpack the arguments, then item after item. Gives the number of argument words.
    fn function(&mut self, args: Val<'c>, network: Option<&Plan>) -> Emit<i64> {
        let maps = args;
        let map_words = network.map_or(0, |n| 16 * n.maps.len() as i64);
        let args = self.b.offset(args, 8 * map_words);
        if network.is_none() {
            self.await_launches();
        }
        let words = self.unpack(args, network.is_none())?;
        let grid: Vec<_> = (0..3)
            .map(|axis| match known_extent(self.kernel, axis as usize) {
                Some(extent) => self.b.i64(extent),
                None => self.word(args, words + axis, Elem::I64),
            })
            .collect();
        self.record = self.global_pointer(args, words + 3);
        let first = self.b.special_register("nvvm.read.ptx.sreg.ctaid.x");
        let step = self.b.special_register("nvvm.read.ptx.sreg.nctaid.x");
        self.place_tiles(args, words + 4, first);
        if let Some(plan) = network {
            let entry = self.b.block();
            let (start, _) = self.b.new_block(0);
            self.b.set_block(start);
            self.roles(plan.clone(), maps, grid)?;
            self.fail_block();
            self.b.set_block(entry);
            self.b.branch(start, &[]);
            return Ok(map_words + words + 5);
        }
        let total = self.b.muli(grid[0], grid[1]);
        let total = self.b.muli(total, grid[2]);

        let (header, header_args) = self.b.new_block(1);
        let (body, _) = self.b.new_block(0);
        let (exit, _) = self.b.new_block(0);
        let (start, _) = self.b.new_block(0);
        let entry = self.b.block();

        self.b.set_block(start);
        self.b.branch(header, &[first]);
        self.b.set_block(header);
        self.cta = header_args[0];
        let more = self.b.cmpi(IntCompare::Slt, self.cta, total);
        self.b.cond_branch(more, body, (exit, &[]));

        self.b.set_block(body);
        self.block_index = self.coordinates_of_cta(&grid);
        if select::selects(self.kernel, self.threads) {
            // What follows from it is not to be found once for all items: held elements leave no registers for that.
            self.thread = self.b.hold_word(self.thread);
        }
        self.block(self.kernel.body)?;
        let next = self.b.addi(self.cta, step);
        self.b.branch(header, &[next]);

        self.fail_block();
        self.b.set_block(exit);
        self.b.ret();
        // Last: constants and addresses have gathered in the entry block.
        self.b.set_block(entry);
        self.b.branch(start, &[]);
        Ok(words + 5)
    }

    /// Before anything but the parameter and the CTA's own shared memory is touched. The next launch may start then: if it could earlier,
    /// several launches would wait with what they need of multiprocessors in hand, which those before them lack.
    fn await_launches(&mut self) {
        self.b.wait_for_launches();
        self.b.let_next_launch_start();
    }

    /// `cta = block(0) + grid0 * (block(1) + grid1 * block(2))`
    fn coordinates_of_cta(&mut self, grid: &[Val<'c>]) -> [Val<'c>; 3] {
        let zero = self.b.i64(0);
        let cta = self.cta;
        let axes = self.kernel.launch.grid.len();
        if axes <= 1 {
            return [cta, zero, zero];
        }
        // Unsigned: neither is ever negative, and an empty grid runs no CTA.
        let rest = self.b.binary("arith.divui", cta, grid[0]);
        let first = self.b.binary("arith.remui", cta, grid[0]);
        if axes == 2 {
            return [first, rest, zero];
        }
        let second = self.b.binary("arith.remui", rest, grid[1]);
        let third = self.b.binary("arith.divui", rest, grid[1]);
        [first, second, third]
    }

    /// Loads the argument words; gives the number of the first grid extent. Loads of inputs may move where that is `free`: in plain
    /// code, but not between the products of a network, where they stand in their places for a reason.
    fn unpack(&mut self, args: Val<'c>, free: bool) -> Emit<i64> {
        let kernel = self.kernel;
        let mut word = 0;
        let mut scalars = Vec::new();
        let mut tensors: Vec<Option<(Val<'c>, Vec<Stride<'c>>)>> = Vec::new();
        for param in &kernel.params {
            let (tensor, scalar) = match &param.kind {
                ParamKind::Tensor(t) => {
                    let base = self.global_pointer(args, word);
                    let rank = t.shape.len();
                    let strides = (0..rank)
                        .map(|axis| {
                            if axis + 1 == rank && t.contiguous {
                                Stride::Const(1)
                            } else {
                                Stride::Dynamic(self.word(args, word + 1 + axis as i64, Elem::I64))
                            }
                        })
                        .collect();
                    word += rank as i64;
                    (Some((base, strides)), None)
                }
                ParamKind::Scalar(dtype) => {
                    let raw = self.word(args, word, stored_as(*dtype));
                    (None, Some(self.b.from_stored(raw, *dtype)))
                }
                ParamKind::Index => (None, Some(self.word(args, word, Elem::I64))),
            };
            word += 1;
            tensors.push(tensor);
            scalars.push(scalar);
        }
        for dim in &kernel.dims {
            let v = match dim.scalar {
                Some(param) => scalars[param.index()]
                    .ok_or_else(|| self.fault(format!("`{}` has no parameter", dim.name)))?,
                None => {
                    word += 1;
                    self.word(args, word - 1, Elem::I64)
                }
            };
            self.dims.push(v);
        }
        for (param, (tensor, scalar)) in kernel.params.iter().zip(tensors.into_iter().zip(scalars))
        {
            let place = match (&param.kind, tensor, scalar) {
                (ParamKind::Tensor(t), Some((base, strides)), _) => ParamPlace::Tensor {
                    memory: Memory {
                        base,
                        dtype: t.dtype,
                        strides,
                        packed: t.dtype.bits() < 8,
                        constant: free && t.mode == ParamMode::In,
                    },
                    extents: (t.shape.iter())
                        .map(|e| self.host_expr(e))
                        .collect::<Emit<Vec<_>>>()?,
                },
                (_, _, Some(v)) => ParamPlace::Scalar(v),
                _ => unreachable!("a parameter is a tensor or a scalar"),
            };
            self.params.push(place);
        }
        Ok(word)
    }

    fn word(&mut self, args: Val<'c>, index: i64, elem: Elem) -> Val<'c> {
        let at = self.b.offset(args, index * 8);
        self.b.load_invariant(at, (elem, 1), elem.bits() / 8)
    }

    /// A word that is an address in the GPU's memory, which is not followed before the launches before this one are over.
    fn global_pointer(&mut self, args: Val<'c>, index: i64) -> Val<'c> {
        let address = self.word(args, index, Elem::I64);
        let address = self.b.hold_word(address);
        self.b.global_pointer(address)
    }

    /// An extent, which the host has checked to be in range.
    fn host_expr(&mut self, e: &HostExpr) -> Emit<Val<'c>> {
        let (op, operands) = match e {
            HostExpr::Int(i) => return Ok(self.b.i64(*i)),
            HostExpr::Dim(name) => {
                let found = self.kernel.dims.iter().position(|d| d.name == *name);
                return match found {
                    Some(i) => Ok(self.dims[i]),
                    None => Err(self.fault(format!("no dim `{name}`"))),
                };
            }
            HostExpr::Op(op, operands) => (*op, operands),
            other => return Err(self.unsupported(format!("`{other}` in a tensor's shape"))),
        };
        let v = operands
            .iter()
            .map(|o| self.host_expr(o))
            .collect::<Emit<Vec<_>>>()?;
        let zero = self.b.i64(0);
        let (op, a) = match op {
            HostOp::Add => (BinaryOp::Add, v[0]),
            HostOp::Sub => (BinaryOp::Sub, v[0]),
            HostOp::Mul => (BinaryOp::Mul, v[0]),
            HostOp::FloorDiv => (BinaryOp::Div, v[0]),
            HostOp::FloorMod => (BinaryOp::Rem, v[0]),
            HostOp::Min => (BinaryOp::Min, v[0]),
            HostOp::Max => (BinaryOp::Max, v[0]),
            HostOp::Neg => return Ok(self.b.subi(zero, v[0])),
            // ceil(a / b) = -floor(-a / b)
            HostOp::CeilDiv => {
                let negated = self.b.subi(zero, v[0]);
                let q = self.b.binary_op(BinaryOp::Div, negated, v[1], Type::Index);
                let q = self.lowered(q)?;
                return Ok(self.b.subi(zero, q));
            }
            other => return Err(self.unsupported(format!("`{other:?}` in a tensor's shape"))),
        };
        let result = self.b.binary_op(op, a, v[1], Type::Index);
        self.lowered(result)
    }

    fn place_tiles(&mut self, args: Val<'c>, scratch_word: i64, cta: Val<'c>) {
        let scratch = (self.plan.scratch_bytes > 0).then(|| {
            let base = self.global_pointer(args, scratch_word);
            // Of the CTA, not of the item: a CTA's items take turns.
            let bytes = self.plan.scratch_bytes as i64;
            let at = self.b.mul_const(cta, bytes);
            self.b.gep(base, at, Elem::I8)
        });
        for (i, tile) in self.kernel.tiles.iter().enumerate() {
            let base = match (self.plan.places[i], scratch) {
                (Place::Private, _) => Some(self.b.alloca(8)),
                (Place::Shared(offset), _) => Some(self.b.offset(self.shared, offset as i64)),
                (Place::Scratch(offset), Some(scratch)) => {
                    Some(self.b.offset(scratch, offset as i64))
                }
                (Place::Nowhere | Place::Scratch(_), _) => None,
            };
            self.tiles.push(base.map(|base| Memory {
                base,
                dtype: tile.dtype,
                strides: access::row_major(&tile.shape),
                packed: false,
                constant: false,
            }));
        }
    }

    // ---- lookups -----------------------------------------------------------------------------------

    fn tile(&self, id: TileId) -> Emit<Memory<'c>> {
        match &self.tiles[id.index()] {
            Some(memory) => Ok(memory.clone()),
            None => Err(self.fault(format!("tile `{}` has no place", self.kernel.tile(id).name))),
        }
    }

    fn tensor(&self, id: ParamId) -> Emit<Memory<'c>> {
        match &self.params[id.index()] {
            ParamPlace::Tensor { memory, .. } => Ok(memory.clone()),
            ParamPlace::Scalar(_) => {
                Err(self.fault(format!("`{}` is no tensor", self.kernel.param(id).name)))
            }
        }
    }

    fn extents(&self, id: ParamId) -> Vec<Val<'c>> {
        match &self.params[id.index()] {
            ParamPlace::Tensor { extents, .. } => extents.clone(),
            ParamPlace::Scalar(_) => Vec::new(),
        }
    }

    fn value(&self, value: ValueId) -> Emit<Val<'c>> {
        match self.values[value.index()] {
            Some(v) => Ok(v),
            None => Err(self.fault(format!("{value:?} is used before it is made"))),
        }
    }

    fn values(&self, values: &[ValueId]) -> Emit<Vec<Val<'c>>> {
        values.iter().map(|&v| self.value(v)).collect()
    }

    // ---- diagnostics -----------------------------------------------------------------------------------

    fn unsupported(&self, what: impl std::fmt::Display) -> Box<Diagnostic> {
        unsupported(self.span, what)
    }

    fn fault(&self, what: impl std::fmt::Display) -> Box<Diagnostic> {
        Box::new(
            Diagnostic::error(
                "TL0999",
                self.span,
                format!("the GPU back end met an inconsistent kernel: {what}"),
            )
            .note("this is a fault of the compiler; please report it with the kernel"),
        )
    }

    fn lowered<T>(&self, result: Result<T, Unsupported>) -> Emit<T> {
        result.map_err(|Unsupported(what)| self.unsupported(what))
    }
}
