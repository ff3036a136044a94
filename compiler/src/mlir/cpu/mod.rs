//! Emits one kernel for a CPU: tile IR in, an MLIR module with one entry function out.
//!
//! The entry function loops over its CTAs; a CTA runs the kernel's body from top to bottom. Control flow between tile ops is `cf` (so
//! that a failed `assert` can leave from anywhere), loops inside a tile op are `scf`. Vector lanes run over the innermost axis of a
//! tile op. One file per family of ops.
//!
//! Needs: a verified kernel after `expand_math` and `fuse_roles`. Keeps: the interpreter's bits, whatever the vector width.

mod access;
mod alias;
mod control;
mod copy;
mod dot;
mod layout;
mod memory;
mod pointwise;
mod reduce;
mod stream;
mod topk;

use super::build::{Builder, Elem, Scope, Val};
use super::scalar::{Unsupported, stored_as};
use crate::diag::Diagnostic;
use crate::source::Span;
use crate::target::cpu::CpuFacts;
use crate::tile::ir::*;
use access::{Form, Memory, Stride};
pub use dot::variant_of_code;
use layout::Layout;
use melior::Context;
use melior::ir::attribute::{Attribute, StringAttribute, TypeAttribute};
use melior::ir::operation::OperationBuilder;
use melior::ir::{BlockLike, BlockRef, Identifier, Location, Module, Region};
use memory::{MemoryPlan, Place};
use std::collections::BTreeSet;
use tessera_artifact::{CpuVariant, HostExpr, HostOp, ParamMode};

/// A kernel as MLIR, ready for `target::llvm`.
pub struct Emitted<'c> {
    pub module: Module<'c>,
    /// The entry function.
    pub symbol: String,
    /// Per thread.
    pub scratch_bytes: u64,
    /// What can go wrong while it runs: trap `i` is reported as `i + 1` in the error record.
    pub traps: Vec<Trap>,
}

/// A check in the compiled code that may fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap {
    pub message: String,
    pub span: Span,
}

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
    machine: CpuFacts,
    params: Vec<ParamPlace<'c>>,
    dims: Vec<Val<'c>>,
    block_index: [Val<'c>; 3],
    values: Vec<Option<Form<'c>>>,
    tiles: Vec<Option<Memory<'c>>>,
    layouts: Vec<Layout>,
    memory: MemoryPlan,
    aliases: alias::Aliases,
    streams: stream::Streams<'c>,
    pack_slots: dot::PackSlots,
    key_slot: Option<usize>,
    /// Address of slot 0.
    scratch: Val<'c>,
    /// 64 lanes of zeros on the stack: what a guarded load reads where its guard is false.
    zeros: Option<Val<'c>>,
    /// Conditions that hold where code is being emitted.
    known: BTreeSet<ValueId>,
    /// Values that are neither NaN nor zero where code is being emitted.
    plain: BTreeSet<ValueId>,
    traps: Vec<Trap>,
    /// Takes the number of the trap.
    fail: BlockRef<'c, 'c>,
    next_scope: u32,
    span: Span,
}

/// Emits `kernel` for `variant`. `context` has the dialects `llvm`, `arith`, `vector`, `scf`, `cf` loaded.
///
/// # Errors
/// `TL09xx`: an op that this back end does not lower, with its place. MLIR's verifier has its say when the module is lowered.
pub fn emit<'c>(
    context: &'c Context,
    kernel: &Kernel,
    variant: CpuVariant,
) -> Result<Emitted<'c>, Box<Diagnostic>> {
    let location = Location::unknown(context);
    let module = Module::new(location);
    let symbol = symbol_of(kernel);
    let region = Region::new();
    let (builder, arguments) = Builder::new(
        context,
        location,
        &region,
        &[
            (Elem::Ptr, 1),
            (Elem::Ptr, 1),
            (Elem::I64, 1),
            (Elem::I64, 1),
        ],
    );
    let layouts: Vec<Layout> = kernel
        .tiles
        .iter()
        .map(|t| Layout::row_major(&t.shape))
        .collect();
    let facts = CpuFacts::of(variant);
    let aliases = alias::find(kernel);
    let mut memory = memory::plan(kernel, &layouts, &aliases.stands_for);
    let pack_slots = dot::plan_packing(kernel, &facts, &layouts, &aliases.stands_for, &mut memory);
    let key_slot = topk::plan_keys(kernel, &mut memory);
    let mut emitter = Emitter::new(kernel, builder, facts, layouts, memory, arguments[1]);
    emitter.aliases = aliases;
    emitter.pack_slots = pack_slots;
    emitter.key_slot = key_slot;
    emitter.function(arguments[0], arguments[2], arguments[3])?;
    let Emitter { memory, traps, .. } = emitter;

    let attribute = |text: &str| {
        Attribute::parse(context, text).expect("the attribute's text is fixed and well formed")
    };
    let string = |text: &str| Attribute::from(StringAttribute::new(context, text));
    let function_type = TypeAttribute::new(
        melior::ir::Type::parse(context, "!llvm.func<void (ptr, ptr, i64, i64)>")
            .expect("the type's text is fixed and well formed"),
    );
    let function = OperationBuilder::new("llvm.func", location)
        .add_attributes(&[
            (Identifier::new(context, "sym_name"), string(&symbol)),
            (
                Identifier::new(context, "function_type"),
                function_type.into(),
            ),
            (
                Identifier::new(context, "linkage"),
                attribute("#llvm.linkage<external>"),
            ),
            (
                // No libc stands behind a kernel: loops must not become calls.
                Identifier::new(context, "passthrough"),
                attribute("[\"nounwind\", \"no-builtins\"]"),
            ),
        ])
        .add_regions([region])
        .build()
        .expect("a function has no inferred types");
    module.body().append_operation(function);
    Ok(Emitted {
        module,
        symbol,
        scratch_bytes: memory.scratch_bytes,
        traps,
    })
}

/// `dsv4::norm::rmsnorm` as a name that every tool takes.
fn symbol_of(kernel: &Kernel) -> String {
    kernel
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect()
}

impl<'k, 'c> Emitter<'k, 'c> {
    fn new(
        kernel: &'k Kernel,
        mut b: Builder<'c>,
        machine: CpuFacts,
        layouts: Vec<Layout>,
        memory: MemoryPlan,
        scratch: Val<'c>,
    ) -> Self {
        // One scope for all that nobody writes, one per written tensor, per slot, per stack tile.
        let written = kernel.params.iter().filter(|p| is_written(p)).count();
        let stack = memory
            .places
            .iter()
            .filter(|p| matches!(p, Place::Stack { .. }))
            .count();
        b.declare_scopes((1 + written + memory.slots.len() + stack) as u32);
        let (fail, _) = b.new_block(1);
        let zero = b.i64(0);
        Emitter {
            kernel,
            b,
            machine,
            params: Vec::new(),
            dims: Vec::new(),
            block_index: [zero; 3],
            values: vec![None; kernel.values.len()],
            tiles: Vec::new(),
            layouts,
            memory,
            aliases: alias::Aliases::default(),
            streams: stream::Streams::default(),
            pack_slots: dot::PackSlots::default(),
            key_slot: None,
            scratch,
            zeros: None,
            known: BTreeSet::new(),
            plain: BTreeSet::new(),
            traps: Vec::new(),
            fail,
            next_scope: 1,
            span: kernel.span,
        }
    }

    /// The whole function: unpack the arguments, then CTA after CTA.
    fn function(&mut self, args: Val<'c>, cta_begin: Val<'c>, cta_end: Val<'c>) -> Emit {
        let words = self.unpack(args)?;
        self.place_tiles();
        self.find_streams();
        let grid = self.grid_extents()?;
        let (header, header_args) = self.b.new_block(1);
        let (body, _) = self.b.new_block(0);
        let (exit, _) = self.b.new_block(0);
        let (start, _) = self.b.new_block(0);
        let entry = self.b.block();

        self.b.set_block(start);
        self.b.branch(header, &[cta_begin]);
        self.b.set_block(header);
        let cta = header_args[0];
        let more = self.b.cmpi(super::build::IntCompare::Slt, cta, cta_end);
        self.b.cond_branch(more, body, (exit, &[]));

        self.b.set_block(body);
        self.block_index = self.coordinates(cta, grid);
        self.block(self.kernel.body)?;
        let next = self.b.add_const(cta, 1);
        self.b.branch(header, &[next]);

        self.fail_block(args, words, cta);
        self.b.set_block(exit);
        self.end_streams();
        self.b.ret();
        // Last: constants, addresses and stack memory have gathered in the entry block.
        self.b.set_block(entry);
        self.b.branch(start, &[]);
        Ok(())
    }

    /// `cta = block(0) + grid0 * (block(1) + grid1 * block(2))`
    fn coordinates(&mut self, cta: Val<'c>, grid: [Val<'c>; 3]) -> [Val<'c>; 3] {
        let zero = self.b.i64(0);
        match self.kernel.launch.grid.len() {
            0 | 1 => [cta, zero, zero],
            axes => {
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
        }
    }

    /// Loads the argument words; gives the number of the one that holds the address of the error record.
    fn unpack(&mut self, args: Val<'c>) -> Emit<i64> {
        let kernel = self.kernel;
        let mut word = 0;
        let mut scalars = Vec::new();
        let mut tensors: Vec<Option<(Val<'c>, Vec<Stride<'c>>)>> = Vec::new();
        for param in &kernel.params {
            match &param.kind {
                ParamKind::Tensor(t) => {
                    let base = self.word(args, word, Elem::Ptr);
                    let rank = t.shape.len();
                    let strides = (0..rank)
                        .map(|axis| {
                            if axis + 1 == rank && t.contiguous {
                                Stride::Const(1)
                            } else {
                                let at = word + 1 + axis as i64;
                                Stride::Dynamic(self.word(args, at, Elem::I64))
                            }
                        })
                        .collect();
                    tensors.push(Some((base, strides)));
                    scalars.push(None);
                    word += 1 + rank as i64;
                }
                ParamKind::Scalar(dtype) => {
                    let elem = stored_as(*dtype);
                    let raw = self.word(args, word, elem);
                    let v = self.b.from_stored(raw, *dtype);
                    tensors.push(None);
                    scalars.push(Some(v));
                    word += 1;
                }
                ParamKind::Index => {
                    let v = self.word(args, word, Elem::I64);
                    tensors.push(None);
                    scalars.push(Some(v));
                    word += 1;
                }
            }
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
        // The grid's three words are not read: its extents follow from the dims.
        for (param, (tensor, scalar)) in kernel.params.iter().zip(tensors.into_iter().zip(scalars))
        {
            let place = match (&param.kind, tensor, scalar) {
                (ParamKind::Tensor(t), Some((base, strides)), _) => {
                    let scope = if is_written(param) {
                        self.fresh_scope()
                    } else {
                        Scope(0)
                    };
                    let extents = t
                        .shape
                        .iter()
                        .map(|e| self.host_expr(e))
                        .collect::<Emit<Vec<_>>>()?;
                    ParamPlace::Tensor {
                        memory: Memory {
                            base,
                            dtype: t.dtype,
                            elem: stored_as(t.dtype),
                            strides,
                            scope: Some(scope),
                            packed: t.dtype.bits() < 8,
                            streamed: false,
                        },
                        extents,
                    }
                }
                (_, _, Some(v)) => ParamPlace::Scalar(v),
                _ => unreachable!("a parameter is a tensor or a scalar"),
            };
            self.params.push(place);
        }
        Ok(word + 3)
    }

    pub(super) fn word(&mut self, args: Val<'c>, index: i64, elem: Elem) -> Val<'c> {
        let at = self.b.offset(args, index * 8);
        self.b.load_invariant(at, (elem, 1), elem.bits() / 8)
    }

    fn fresh_scope(&mut self) -> Scope {
        self.next_scope += 1;
        Scope(self.next_scope - 1)
    }

    fn grid_extents(&mut self) -> Emit<[Val<'c>; 3]> {
        let mut grid = [self.b.i64(1); 3];
        for (axis, extent) in self.kernel.launch.grid.iter().enumerate() {
            grid[axis] = self.host_expr(extent)?;
        }
        Ok(grid)
    }

    /// An extent, which the host has checked to be in range.
    fn host_expr(&mut self, e: &HostExpr) -> Emit<Val<'c>> {
        match e {
            HostExpr::Int(i) => Ok(self.b.i64(*i)),
            HostExpr::Dim(name) => {
                let found = self.kernel.dims.iter().position(|d| d.name == *name);
                match found {
                    Some(i) => Ok(self.dims[i]),
                    None => Err(self.fault(format!("no dim `{name}`"))),
                }
            }
            HostExpr::Op(op, operands) => {
                let v = operands
                    .iter()
                    .map(|o| self.host_expr(o))
                    .collect::<Emit<Vec<_>>>()?;
                let index = Type::Index;
                let binary = match op {
                    HostOp::Add => BinaryOp::Add,
                    HostOp::Sub => BinaryOp::Sub,
                    HostOp::Mul => BinaryOp::Mul,
                    HostOp::FloorDiv => BinaryOp::Div,
                    HostOp::FloorMod => BinaryOp::Rem,
                    HostOp::Min => BinaryOp::Min,
                    HostOp::Max => BinaryOp::Max,
                    HostOp::CeilDiv => {
                        let zero = self.b.i64(0);
                        let negated = self.b.subi(zero, v[0]);
                        let q = self.index_binary(BinaryOp::Div, negated, v[1], &operands[1]);
                        return Ok(self.b.subi(zero, q));
                    }
                    HostOp::Neg => {
                        let zero = self.b.i64(0);
                        return Ok(self.b.subi(zero, v[0]));
                    }
                    other => {
                        return Err(self.unsupported(format!("`{other:?}` in a tensor's shape")));
                    }
                };
                if matches!(op, HostOp::FloorDiv | HostOp::FloorMod) {
                    return Ok(self.index_binary(binary, v[0], v[1], &operands[1]));
                }
                let result = self.b.binary_op(binary, v[0], v[1], index);
                self.lowered(result)
            }
            other => Err(self.unsupported(format!("`{other}` in a tensor's shape"))),
        }
    }

    fn index_binary(
        &mut self,
        op: BinaryOp,
        a: Val<'c>,
        b: Val<'c>,
        divisor: &HostExpr,
    ) -> Val<'c> {
        let (q, r) = match divisor {
            HostExpr::Int(by) if *by > 0 => self.b.floor_div_const(a, *by),
            _ => {
                let q = self.b.binary_op(BinaryOp::Div, a, b, Type::Index);
                let r = self.b.binary_op(BinaryOp::Rem, a, b, Type::Index);
                (
                    q.expect("`index` values divide"),
                    r.expect("`index` values divide"),
                )
            }
        };
        if op == BinaryOp::Div { q } else { r }
    }

    fn place_tiles(&mut self) {
        for (i, tile) in self.kernel.tiles.iter().enumerate() {
            let (base, scope) = match self.memory.places[i] {
                Place::Nowhere => {
                    self.tiles.push(None);
                    continue;
                }
                Place::Stack { bytes } => (self.b.alloca(bytes), self.fresh_scope()),
                Place::Slot(slot) => {
                    let offset = self.memory.slots[slot].offset as i64;
                    // Slots have the scopes after all others: one each, whichever tiles they hold.
                    let scope = Scope(self.slot_scope_base() + slot as u32);
                    (self.b.offset(self.scratch, offset), scope)
                }
            };
            let strides = self.layouts[i]
                .strides
                .iter()
                .map(|&s| Stride::Const(s))
                .collect();
            self.tiles.push(Some(Memory {
                base,
                dtype: tile.dtype,
                elem: stored_as(tile.dtype),
                strides,
                scope: Some(scope),
                packed: false,
                streamed: false,
            }));
        }
    }

    fn slot_scope_base(&self) -> u32 {
        let written = self.kernel.params.iter().filter(|p| is_written(p)).count();
        let stack = self
            .memory
            .places
            .iter()
            .filter(|p| matches!(p, Place::Stack { .. }))
            .count();
        (1 + written + stack) as u32
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

    fn form(&self, value: ValueId) -> Emit<Form<'c>> {
        match self.values[value.index()] {
            Some(form) => Ok(form),
            None => Err(self.fault(format!("{value:?} is used before it is made"))),
        }
    }

    /// A value outside every map.
    fn uniform(&self, value: ValueId) -> Emit<Val<'c>> {
        match self.form(value)? {
            Form::Uniform(v) => Ok(v),
            _ => Err(self.fault(format!("{value:?} differs by lane"))),
        }
    }

    // ---- diagnostics -----------------------------------------------------------------------------------

    fn unsupported(&self, what: impl std::fmt::Display) -> Box<Diagnostic> {
        Box::new(
            Diagnostic::error(
                "TL0901",
                self.span,
                format!("the CPU back end does not lower {what}"),
            )
            .help("the interpreter runs it: `run interp`"),
        )
    }

    fn fault(&self, what: impl std::fmt::Display) -> Box<Diagnostic> {
        Box::new(
            Diagnostic::error(
                "TL0999",
                self.span,
                format!("the CPU back end met an inconsistent kernel: {what}"),
            )
            .note("this is a fault of the compiler; please report it with the kernel"),
        )
    }

    fn lowered<T>(&self, result: Result<T, Unsupported>) -> Emit<T> {
        result.map_err(|Unsupported(what)| self.unsupported(what))
    }
}

fn is_written(param: &Param) -> bool {
    matches!(&param.kind, ParamKind::Tensor(t) if t.mode != ParamMode::In)
}
