//! What the GPU's emission needs of the builder beyond what all back ends share: special registers, address spaces, barriers,
//! shuffles, atomics in device scope, an `if` with a value.

use crate::mlir::build::{AtomicOp, Builder, Elem, Val, string};
use melior::ir::attribute::{
    Attribute, DenseI32ArrayAttribute, DenseI64ArrayAttribute, FlatSymbolRefAttribute,
};
use melior::ir::block::BlockLike;
use melior::ir::operation::OperationBuilder;
use melior::ir::{Block, BlockRef, Location, Region, RegionLike, Type, Value};

/// `relaxed` in PTX.
const MONOTONIC: i64 = 2;
const ACQUIRE: i64 = 4;
const ACQUIRE_RELEASE: i64 = 6;

/// Which lane's value a lane gets.
#[derive(Clone, Copy, Debug)]
pub enum Shuffle {
    /// That of the lane so many above; past the last, its own.
    Down,
    /// That of the lane so many below; before the first, its own.
    Up,
    /// That of the lane whose number differs in these bits.
    Xor,
}

#[derive(Clone, Copy, Debug)]
pub enum LaneFold {
    Sum,
    SignedMin,
    SignedMax,
    UnsignedMin,
    UnsignedMax,
}

/// An `if` with a value whose arms are being filled.
#[must_use = "an `if` is built when it is closed"]
pub struct OpenChoice<'c> {
    cond: Val<'c>,
    regions: [Region<'c>; 2],
    otherwise: BlockRef<'c, 'c>,
    outside: BlockRef<'c, 'c>,
}

/// A `while` whose body is being filled; it carries one value.
#[must_use = "a loop is built when it is closed"]
pub struct OpenWhile<'c> {
    pub carried: Val<'c>,
    init: Val<'c>,
    region: Region<'c>,
    outside: BlockRef<'c, 'c>,
}

impl<'c> Builder<'c> {
    /// A special register as an i64.
    pub fn special_register(&mut self, op: &str) -> Val<'c> {
        let v = self.value(op, &[], (Elem::I32, 1), &[]);
        self.resize(v, Elem::I64, false)
    }

    fn pointer_type(&self, space: u32) -> Type<'c> {
        melior::dialect::llvm::r#type::pointer(self.context, space)
    }

    fn raw(&mut self, name: &str, operands: &[Val<'c>], ty: Type<'c>, elem: Elem) -> Val<'c> {
        let operands: Vec<_> = operands.iter().map(|v| v.raw).collect();
        let op = self.op(name, &operands, &[ty], &[]);
        first_result(op, elem)
    }

    /// An address of global memory as a pointer; LLVM finds back which memory it is.
    pub fn global_pointer(&mut self, address: Val<'c>) -> Val<'c> {
        let global = self.pointer_type(1);
        let p = self.raw("llvm.inttoptr", &[address], global, Elem::Ptr);
        let generic = self.pointer_type(0);
        self.raw("llvm.addrspacecast", &[p], generic, Elem::Ptr)
    }

    /// The address as an integer.
    pub fn pointer_bits(&mut self, p: Val<'c>) -> Val<'c> {
        let ty = self.ty(Elem::I64, 1);
        self.raw("llvm.ptrtoint", &[p], ty, Elem::I64)
    }

    /// The address of the module's dynamic shared memory.
    pub fn shared_memory(&mut self, symbol: &str) -> Val<'c> {
        let shared = self.pointer_type(3);
        let symbol: Attribute = FlatSymbolRefAttribute::new(self.context, symbol).into();
        let op = self.op(
            "llvm.mlir.addressof",
            &[],
            &[shared],
            &[("global_name", symbol)],
        );
        let p = first_result(op, Elem::Ptr);
        let generic = self.pointer_type(0);
        self.raw("llvm.addrspacecast", &[p], generic, Elem::Ptr)
    }

    /// LLVM may count on `cond`.
    pub fn assume(&mut self, cond: Val<'c>) {
        let sizes = DenseI32ArrayAttribute::new(self.context, &[]).into();
        self.op(
            "llvm.intr.assume",
            &[cond.raw],
            &[],
            &[("op_bundle_sizes", sizes)],
        );
    }

    /// All threads of the CTA meet, and see what the others did.
    pub fn barrier(&mut self) {
        self.op("nvvm.barrier0", &[], &[], &[]);
    }

    /// The value that another lane holds, for an integer of 32 bits.
    pub fn shuffle_lanes(&mut self, how: Shuffle, v: Val<'c>, distance: u32) -> Val<'c> {
        let all = self.int(Elem::I32, 1, -1);
        let distance = self.int(Elem::I32, 1, distance as i64);
        let (kind, last) = match how {
            Shuffle::Down => ("#nvvm<shfl_kind down>", 31),
            Shuffle::Up => ("#nvvm<shfl_kind up>", 0),
            Shuffle::Xor => ("#nvvm<shfl_kind bfly>", 31),
        };
        let clamp = self.int(Elem::I32, 1, last);
        let kind = Attribute::parse(self.context, kind)
            .expect("the attribute's text is fixed and well formed");
        self.value(
            "nvvm.shfl.sync",
            &[all, v, distance, clamp],
            (Elem::I32, 1),
            &[("kind", kind)],
        )
    }

    /// An integer of 32 bits folded over the lanes of a warp; every lane gets the result.
    pub fn fold_lanes(&mut self, how: LaneFold, v: Val<'c>) -> Val<'c> {
        let all = self.int(Elem::I32, 1, -1);
        let kind = match how {
            LaneFold::Sum => "#nvvm<redux_kind add>",
            LaneFold::SignedMin => "#nvvm<redux_kind min>",
            LaneFold::SignedMax => "#nvvm<redux_kind max>",
            LaneFold::UnsignedMin => "#nvvm<redux_kind umin>",
            LaneFold::UnsignedMax => "#nvvm<redux_kind umax>",
        };
        let kind = Attribute::parse(self.context, kind)
            .expect("the attribute's text is fixed and well formed");
        self.value(
            "nvvm.redux.sync",
            &[v, all],
            (Elem::I32, 1),
            &[("kind", kind)],
        )
    }

    /// The number of zeros below the lowest one of an integer that is not 0.
    pub fn trailing_zeros(&mut self, v: Val<'c>) -> Val<'c> {
        let poison = self.integer_attr(1, 1);
        self.value(
            "llvm.intr.cttz",
            &[v],
            (v.elem, 1),
            &[("is_zero_poison", poison)],
        )
    }

    fn ordering_attributes(&self, ordering: i64) -> [(&'static str, Attribute<'c>); 2] {
        [
            ("ordering", self.integer_attr(64, ordering)),
            ("syncscope", string(self.context, "device")),
        ]
    }

    /// Relaxed, in device scope; gives the old value.
    pub fn atomic_relaxed(&mut self, op: AtomicOp, at: Val<'c>, value: Val<'c>) -> Val<'c> {
        let mut attributes = vec![("bin_op", self.integer_attr(64, op as i64))];
        attributes.extend(self.ordering_attributes(MONOTONIC));
        self.value("llvm.atomicrmw", &[at, value], (value.elem, 1), &attributes)
    }

    /// Orders everything before it, of this thread and of those it met at a barrier, before everything after it, for the whole GPU.
    /// (The NVPTX back end drops the ordering of a read-modify-write, so that has to be a fence.)
    pub fn fence(&mut self) {
        let attributes = self.ordering_attributes(ACQUIRE_RELEASE);
        self.op("llvm.fence", &[], &[], &attributes);
    }

    /// A load that sees everything published before what it reads.
    pub fn load_acquire(&mut self, at: Val<'c>, elem: Elem) -> Val<'c> {
        let mut attributes = vec![("alignment", self.integer_attr(64, (elem.bits() / 8) as i64))];
        attributes.extend(self.ordering_attributes(ACQUIRE));
        self.value("llvm.load", &[at], (elem, 1), &attributes)
    }

    /// Stores `new` if `old` is there still; gives whether it was, and what was there.
    pub fn compare_exchange(
        &mut self,
        at: Val<'c>,
        old: Val<'c>,
        new: Val<'c>,
    ) -> (Val<'c>, Val<'c>) {
        let pair = Type::parse(
            self.context,
            &format!("!llvm.struct<(i{}, i1)>", old.elem.bits()),
        )
        .expect("the type's text is fixed and well formed");
        let attributes = [
            ("success_ordering", self.integer_attr(64, MONOTONIC)),
            ("failure_ordering", self.integer_attr(64, MONOTONIC)),
            ("syncscope", string(self.context, "device")),
        ];
        let op = self.op(
            "llvm.cmpxchg",
            &[at.raw, old.raw, new.raw],
            &[pair],
            &attributes,
        );
        let pair = first_result(op, Elem::I64);
        let mut field = |i: i64, elem: Elem| {
            let position = DenseI64ArrayAttribute::new(self.context, &[i]).into();
            self.value(
                "llvm.extractvalue",
                &[pair],
                (elem, 1),
                &[("position", position)],
            )
        };
        let found = field(0, old.elem);
        (field(1, Elem::I1), found)
    }

    // ---- structured control flow with values -----------------------------------------------------------

    /// Opens `cond ? .. : ..`; what follows goes into the first arm until [`Builder::otherwise_value`].
    pub fn begin_choice(&mut self, cond: Val<'c>) -> OpenChoice<'c> {
        let regions = [Region::new(), Region::new()];
        let then = lasting(regions[0].append_block(Block::new(&[])));
        let otherwise = lasting(regions[1].append_block(Block::new(&[])));
        let outside = self.block();
        self.set_block(then);
        OpenChoice {
            cond,
            regions,
            otherwise,
            outside,
        }
    }

    /// Closes the first arm with its value; what follows goes into the other.
    pub fn otherwise_value(&mut self, open: &OpenChoice<'c>, then: Val<'c>) {
        self.op("scf.yield", &[then.raw], &[], &[]);
        self.set_block(open.otherwise);
    }

    pub fn end_choice(&mut self, open: OpenChoice<'c>, otherwise: Val<'c>) -> Val<'c> {
        self.op("scf.yield", &[otherwise.raw], &[], &[]);
        self.set_block(open.outside);
        let ty = self.ty(otherwise.elem, otherwise.lanes);
        let op = OperationBuilder::new("scf.if", Location::unknown(self.context))
            .add_operands(&[open.cond.raw])
            .add_results(&[ty])
            .add_regions(open.regions)
            .build()
            .expect("result types are given, nothing is inferred");
        let op = self.block().append_operation(op);
        Val {
            lanes: otherwise.lanes,
            ..first_result(op, otherwise.elem)
        }
    }

    /// Opens a loop that runs at least once and carries one value; closed by [`Builder::end_while`].
    pub fn begin_while(&mut self, init: Val<'c>) -> OpenWhile<'c> {
        let ty = self.ty(init.elem, init.lanes);
        let region = Region::new();
        let block =
            lasting(region.append_block(Block::new(&[(ty, Location::unknown(self.context))])));
        let outside = self.block();
        self.set_block(block);
        OpenWhile {
            carried: Val {
                raw: argument(block),
                ..init
            },
            init,
            region,
            outside,
        }
    }

    /// Runs again with `next` while `again` holds.
    pub fn end_while(&mut self, open: OpenWhile<'c>, again: Val<'c>, next: Val<'c>) {
        let ty = self.ty(next.elem, next.lanes);
        let location = Location::unknown(self.context);
        self.op("scf.condition", &[again.raw, next.raw], &[], &[]);
        let after = Region::new();
        let block = lasting(after.append_block(Block::new(&[(ty, location)])));
        self.set_block(block);
        self.op("scf.yield", &[argument(block)], &[], &[]);
        self.set_block(open.outside);
        let op = OperationBuilder::new("scf.while", location)
            .add_operands(&[open.init.raw])
            .add_results(&[ty])
            .add_regions([open.region, after])
            .build()
            .expect("result types are given, nothing is inferred");
        self.block().append_operation(op);
    }
}

/// A block of the module under construction.
///
/// SAFETY: the module owns the block, the emitter keeps the module until it hands it over, and no block leaves the emitter.
fn lasting<'c>(block: BlockRef<'c, '_>) -> BlockRef<'c, 'c> {
    unsafe { BlockRef::from_raw(block.to_raw()) }
}

/// The first argument of a block made with one; lasts as the block does.
fn argument<'c>(block: BlockRef<'c, 'c>) -> Value<'c, 'c> {
    unsafe { Value::from_raw(mlir_sys::mlirBlockGetArgument(block.to_raw(), 0)) }
}

pub(super) fn first_result<'c>(
    op: melior::ir::operation::OperationRef<'c, 'c>,
    elem: Elem,
) -> Val<'c> {
    Val {
        raw: op
            .result(0)
            .expect("the operation was built with a result")
            .into(),
        elem,
        lanes: 1,
    }
}
