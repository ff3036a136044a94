//! Thin, typed helpers over melior's `OperationBuilder`, shared by the emitters.
//!
//! A [`Val`] carries its element type and number of lanes, so that one function serves scalars (one lane) and vectors. Memory is
//! addressed through `llvm` pointers: the launch ABI hands over raw addresses, and a memref descriptor around each would only be
//! taken apart again. Everything else is `arith`, `vector`, `scf` and `cf`.
//!
//! Keeps: one insertion point; constants in the entry block, once each.

mod control;
mod memory;

pub use control::{OpenFor, OpenIf};

use melior::Context;
use melior::ir::attribute::{
    ArrayAttribute, Attribute, DenseElementsAttribute, DenseI32ArrayAttribute,
    DenseI64ArrayAttribute, FloatAttribute, IntegerAttribute, StringAttribute, TypeAttribute,
};
use melior::ir::block::BlockLike;
use melior::ir::operation::{OperationBuilder, OperationRef};
use melior::ir::r#type::IntegerType;
use melior::ir::{
    Block, BlockRef, Identifier, Location, Region, RegionLike, RegionRef, Type, Value,
};
use std::collections::HashMap;

/// What one lane holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    F64,
    F32,
    F16,
    BF16,
    I1,
    I8,
    I16,
    I32,
    I64,
    Ptr,
}

impl Elem {
    pub fn bits(self) -> u32 {
        match self {
            Elem::F64 | Elem::I64 | Elem::Ptr => 64,
            Elem::F32 | Elem::I32 => 32,
            Elem::F16 | Elem::BF16 | Elem::I16 => 16,
            Elem::I8 => 8,
            Elem::I1 => 1,
        }
    }
    pub fn is_float(self) -> bool {
        matches!(self, Elem::F64 | Elem::F32 | Elem::F16 | Elem::BF16)
    }
    /// The integer of the same width.
    pub fn as_int(self) -> Elem {
        match self {
            Elem::F64 | Elem::I64 | Elem::Ptr => Elem::I64,
            Elem::F32 | Elem::I32 => Elem::I32,
            Elem::F16 | Elem::BF16 | Elem::I16 => Elem::I16,
            Elem::I8 => Elem::I8,
            Elem::I1 => Elem::I1,
        }
    }
}

/// A value of the module under construction: a scalar (`lanes == 1`) or a vector.
#[derive(Clone, Copy, Debug)]
pub struct Val<'c> {
    pub raw: Value<'c, 'c>,
    pub elem: Elem,
    pub lanes: u32,
}

/// What a memory access may touch, as alias scopes: two accesses with different scopes never overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scope(pub u32);

/// `arith.cmpi` predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum IntCompare {
    Eq = 0,
    Ne = 1,
    Slt = 2,
    Sle = 3,
    Sgt = 4,
    Sge = 5,
    Ult = 6,
    Ule = 7,
    Ugt = 8,
    Uge = 9,
}

/// `arith.cmpf` predicates in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum FloatCompare {
    Oeq = 1,
    Ogt = 2,
    Oge = 3,
    Olt = 4,
    Ole = 5,
    Uno = 14,
    Une = 13,
}

/// `llvm.atomicrmw` operations in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum AtomicOp {
    Add = 1,
    And = 3,
    Or = 5,
    Max = 7,
    Min = 8,
    UMax = 9,
    UMin = 10,
    FAdd = 11,
}

pub struct Builder<'c> {
    pub context: &'c Context,
    location: Location<'c>,
    block: BlockRef<'c, 'c>,
    entry: BlockRef<'c, 'c>,
    region: RegionRef<'c, 'c>,
    constants: HashMap<(Elem, u32, u64), Value<'c, 'c>>,
    iotas: HashMap<u32, Value<'c, 'c>>,
    names: HashMap<&'static str, Identifier<'c>>,
    rolled: Option<Attribute<'c>>,
    /// Whether float products and sums that are made now may become one operation with one rounding.
    pub contract: bool,
    /// The scopes that were declared.
    scope_atoms: Vec<Attribute<'c>>,
    /// For each scope, declared or joined: the attribute lists (its own, all others).
    scopes: Vec<(Attribute<'c>, Attribute<'c>)>,
}

/// References into the module under construction.
///
/// SAFETY of every `'c` made here: an operation, block or region is owned by the module, which the emitter keeps until it hands
/// it over, and no [`Val`] or block leaves the emitter.
fn block_ref<'c>(block: BlockRef<'c, '_>) -> BlockRef<'c, 'c> {
    unsafe { BlockRef::from_raw(block.to_raw()) }
}

impl<'c> Builder<'c> {
    /// Starts the body of a function: the region to give to it and its entry block's arguments.
    pub fn new(
        context: &'c Context,
        location: Location<'c>,
        region: &Region<'c>,
        arguments: &[(Elem, u32)],
    ) -> (Self, Vec<Val<'c>>) {
        let types: Vec<_> = arguments
            .iter()
            .map(|&(e, l)| (vector_type(context, e, l), location))
            .collect();
        let entry = block_ref(region.append_block(Block::new(&types)));
        let vals = arguments
            .iter()
            .enumerate()
            .map(|(i, &(elem, lanes))| Val {
                raw: unsafe { Value::from_raw(argument_raw(entry, i)) },
                elem,
                lanes,
            })
            .collect();
        let region = unsafe { RegionRef::from_raw(region.to_raw()) };
        let builder = Builder {
            context,
            location,
            block: entry,
            entry,
            region,
            constants: HashMap::new(),
            iotas: HashMap::new(),
            names: HashMap::new(),
            contract: false,
            rolled: None,
            scope_atoms: Vec::new(),
            scopes: Vec::new(),
        };
        (builder, vals)
    }

    pub fn set_location(&mut self, location: Location<'c>) {
        self.location = location;
    }

    // ---- blocks -----------------------------------------------------------------------------

    /// A new block of the function; its arguments are i64.
    pub fn new_block(&mut self, arguments: usize) -> (BlockRef<'c, 'c>, Vec<Val<'c>>) {
        self.new_block_of(Elem::I64, arguments)
    }

    /// The same with arguments of another type.
    pub fn new_block_of(
        &mut self,
        elem: Elem,
        arguments: usize,
    ) -> (BlockRef<'c, 'c>, Vec<Val<'c>>) {
        let types = vec![(self.ty(elem, 1), self.location); arguments];
        let block = block_ref(self.region.append_block(Block::new(&types)));
        let vals = (0..arguments)
            .map(|i| Val {
                raw: unsafe { Value::from_raw(argument_raw(block, i)) },
                elem,
                lanes: 1,
            })
            .collect();
        (block, vals)
    }

    pub fn block_argument(&self, block: BlockRef<'c, 'c>, index: usize) -> Val<'c> {
        Val {
            raw: unsafe { Value::from_raw(argument_raw(block, index)) },
            elem: Elem::I64,
            lanes: 1,
        }
    }

    pub fn block(&self) -> BlockRef<'c, 'c> {
        self.block
    }

    pub fn entry(&self) -> BlockRef<'c, 'c> {
        self.entry
    }

    pub fn set_block(&mut self, block: BlockRef<'c, 'c>) {
        self.block = block;
    }

    pub fn branch(&mut self, to: BlockRef<'c, 'c>, arguments: &[Val<'c>]) {
        let operands: Vec<_> = arguments.iter().map(|v| v.raw).collect();
        let op = OperationBuilder::new("cf.br", self.location)
            .add_operands(&operands)
            .add_successors(&[&to])
            .build()
            .expect("a branch has no inferred types");
        self.block.append_operation(op);
    }

    /// Branches without arguments on both sides.
    pub fn cond_branch(
        &mut self,
        cond: Val<'c>,
        then: BlockRef<'c, 'c>,
        otherwise: (BlockRef<'c, 'c>, &[Val<'c>]),
    ) {
        let mut operands = vec![cond.raw];
        operands.extend(otherwise.1.iter().map(|v| v.raw));
        let sizes = DenseI32ArrayAttribute::new(self.context, &[1, 0, otherwise.1.len() as i32]);
        let name = self.name("operandSegmentSizes");
        let op = OperationBuilder::new("cf.cond_br", self.location)
            .add_operands(&operands)
            .add_attributes(&[(name, sizes.into())])
            .add_successors(&[&then, &otherwise.0])
            .build()
            .expect("a branch has no inferred types");
        self.block.append_operation(op);
    }

    pub fn ret(&mut self) {
        self.op("llvm.return", &[], &[], &[]);
    }

    // ---- operations ---------------------------------------------------------------------------

    pub fn name(&mut self, name: &'static str) -> Identifier<'c> {
        let context = self.context;
        *self
            .names
            .entry(name)
            .or_insert_with(|| Identifier::new(context, name))
    }

    pub fn ty(&self, elem: Elem, lanes: u32) -> Type<'c> {
        vector_type(self.context, elem, lanes)
    }

    pub fn op(
        &mut self,
        name: &str,
        operands: &[Value<'c, 'c>],
        results: &[Type<'c>],
        attributes: &[(&'static str, Attribute<'c>)],
    ) -> OperationRef<'c, 'c> {
        let attributes: Vec<_> = attributes.iter().map(|&(n, a)| (self.name(n), a)).collect();
        let op = OperationBuilder::new(name, self.location)
            .add_operands(operands)
            .add_results(results)
            .add_attributes(&attributes)
            .build()
            .expect("result types are given, nothing is inferred");
        self.block.append_operation(op)
    }

    pub fn value(
        &mut self,
        name: &str,
        operands: &[Val<'c>],
        (elem, lanes): (Elem, u32),
        attributes: &[(&'static str, Attribute<'c>)],
    ) -> Val<'c> {
        let operands: Vec<_> = operands.iter().map(|v| v.raw).collect();
        let ty = self.ty(elem, lanes);
        let op = self.op(name, &operands, &[ty], attributes);
        Val {
            raw: result(op, 0),
            elem,
            lanes,
        }
    }

    pub fn integer_attr(&self, bits: u32, value: i64) -> Attribute<'c> {
        IntegerAttribute::new(IntegerType::new(self.context, bits).into(), value).into()
    }

    // ---- constants ------------------------------------------------------------------------------

    /// A constant given by its bits, splat over the lanes.
    pub fn bits(&mut self, elem: Elem, lanes: u32, bits: u64) -> Val<'c> {
        let key = (elem, lanes, bits);
        if let Some(&raw) = self.constants.get(&key) {
            return Val { raw, elem, lanes };
        }
        let int = elem.as_int();
        let scalar_int = self.ty(int, 1);
        let width = int.bits();
        let signed = ((bits << (64 - width)) as i64) >> (64 - width);
        let element: Attribute = match elem {
            Elem::F32 => {
                let value = f32::from_bits(bits as u32);
                if value.is_nan() {
                    // A NaN attribute would lose its payload.
                    return self.bits_by_cast(elem, lanes, bits);
                }
                FloatAttribute::new(self.context, self.ty(Elem::F32, 1), value as f64).into()
            }
            Elem::F64 => {
                let value = f64::from_bits(bits);
                if value.is_nan() {
                    return self.bits_by_cast(elem, lanes, bits);
                }
                FloatAttribute::new(self.context, self.ty(Elem::F64, 1), value).into()
            }
            Elem::F16 | Elem::BF16 => return self.bits_by_cast(elem, lanes, bits),
            Elem::I1 => IntegerAttribute::new(scalar_int, (bits & 1) as i64).into(),
            _ => IntegerAttribute::new(scalar_int, signed).into(),
        };
        let ty = self.ty(elem, lanes);
        let attribute = if lanes == 1 {
            element
        } else {
            DenseElementsAttribute::splat(ty, element).into()
        };
        let here = std::mem::replace(&mut self.block, self.entry);
        let op = self.op("arith.constant", &[], &[ty], &[("value", attribute)]);
        self.block = here;
        let raw = result(op, 0);
        self.constants.insert(key, raw);
        Val { raw, elem, lanes }
    }

    fn bits_by_cast(&mut self, elem: Elem, lanes: u32, bits: u64) -> Val<'c> {
        let int = self.bits(elem.as_int(), lanes, bits);
        let here = std::mem::replace(&mut self.block, self.entry);
        let v = self.bitcast(int, elem);
        self.block = here;
        self.constants.insert((elem, lanes, bits), v.raw);
        v
    }

    pub fn i64(&mut self, value: i64) -> Val<'c> {
        self.bits(Elem::I64, 1, value as u64)
    }

    pub fn int(&mut self, elem: Elem, lanes: u32, value: i64) -> Val<'c> {
        self.bits(elem, lanes, value as u64)
    }

    pub fn f32(&mut self, lanes: u32, value: f32) -> Val<'c> {
        self.bits(Elem::F32, lanes, value.to_bits() as u64)
    }

    /// 0, or false.
    pub fn zero(&mut self, elem: Elem, lanes: u32) -> Val<'c> {
        self.bits(elem, lanes, 0)
    }

    /// `0, 1, 2, …` as i64.
    pub fn iota(&mut self, lanes: u32) -> Val<'c> {
        let (elem, context) = (Elem::I64, self.context);
        let raw = match self.iotas.get(&lanes) {
            Some(&raw) => raw,
            None => {
                let ty = vector_type(context, elem, lanes);
                let values: Vec<i64> = (0..lanes as i64).collect();
                let attribute = DenseElementsAttribute::i64_values(ty, &values).into();
                let here = std::mem::replace(&mut self.block, self.entry);
                let op = self.op("arith.constant", &[], &[ty], &[("value", attribute)]);
                self.block = here;
                let raw = result(op, 0);
                self.iotas.insert(lanes, raw);
                raw
            }
        };
        Val { raw, elem, lanes }
    }

    /// A vector of 32-bit constants.
    pub fn table_i32(&mut self, values: &[i32]) -> Val<'c> {
        let ty = self.ty(Elem::I32, values.len() as u32);
        let attribute = DenseElementsAttribute::i32_values(ty, values).into();
        let op = self.op("arith.constant", &[], &[ty], &[("value", attribute)]);
        Val {
            raw: result(op, 0),
            elem: Elem::I32,
            lanes: values.len() as u32,
        }
    }

    // ---- scalars and vectors ------------------------------------------------------------------------

    pub fn unary(&mut self, name: &str, a: Val<'c>) -> Val<'c> {
        self.value(name, &[a], (a.elem, a.lanes), &[])
    }

    pub fn binary(&mut self, name: &str, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        debug_assert_eq!((a.elem, a.lanes), (b.elem, b.lanes), "{name}");
        let contract = self.contract && matches!(name, "arith.mulf" | "arith.addf");
        let flags = contract.then(|| {
            let flags = Attribute::parse(self.context, "#arith.fastmath<contract>");
            (
                "fastmath",
                flags.expect("the attribute's text is fixed and well formed"),
            )
        });
        self.value(name, &[a, b], (a.elem, a.lanes), flags.as_slice())
    }

    pub fn addi(&mut self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        self.binary("arith.addi", a, b)
    }
    pub fn subi(&mut self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        self.binary("arith.subi", a, b)
    }
    pub fn muli(&mut self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        self.binary("arith.muli", a, b)
    }
    pub fn andi(&mut self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        self.binary("arith.andi", a, b)
    }
    pub fn ori(&mut self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        self.binary("arith.ori", a, b)
    }
    pub fn xori(&mut self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        self.binary("arith.xori", a, b)
    }
    pub fn addf(&mut self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        self.binary("arith.addf", a, b)
    }
    pub fn mulf(&mut self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        self.binary("arith.mulf", a, b)
    }
    pub fn fma(&mut self, a: Val<'c>, b: Val<'c>, c: Val<'c>) -> Val<'c> {
        self.value("llvm.intr.fma", &[a, b, c], (a.elem, a.lanes), &[])
    }

    fn shift(&mut self, name: &str, a: Val<'c>, by: u32) -> Val<'c> {
        let by = self.int(a.elem, a.lanes, by as i64);
        self.binary(name, a, by)
    }
    pub fn shl(&mut self, a: Val<'c>, by: u32) -> Val<'c> {
        self.shift("arith.shli", a, by)
    }
    /// Logical.
    pub fn shr(&mut self, a: Val<'c>, by: u32) -> Val<'c> {
        self.shift("arith.shrui", a, by)
    }

    pub fn add_const(&mut self, a: Val<'c>, b: i64) -> Val<'c> {
        if b == 0 {
            return a;
        }
        let b = self.int(a.elem, a.lanes, b);
        self.addi(a, b)
    }

    pub fn mul_const(&mut self, a: Val<'c>, b: i64) -> Val<'c> {
        if b == 1 {
            return a;
        }
        let b = self.int(a.elem, a.lanes, b);
        self.muli(a, b)
    }

    pub fn cmpi(&mut self, predicate: IntCompare, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        debug_assert_eq!((a.elem, a.lanes), (b.elem, b.lanes));
        let p = self.integer_attr(64, predicate as i64);
        self.value(
            "arith.cmpi",
            &[a, b],
            (Elem::I1, a.lanes),
            &[("predicate", p)],
        )
    }

    pub fn cmpf(&mut self, predicate: FloatCompare, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        debug_assert_eq!((a.elem, a.lanes), (b.elem, b.lanes));
        let p = self.integer_attr(64, predicate as i64);
        self.value(
            "arith.cmpf",
            &[a, b],
            (Elem::I1, a.lanes),
            &[("predicate", p)],
        )
    }

    pub fn select(&mut self, cond: Val<'c>, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        debug_assert_eq!((a.elem, a.lanes), (b.elem, b.lanes));
        self.value("arith.select", &[cond, a, b], (a.elem, a.lanes), &[])
    }

    pub fn min_signed(&mut self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        self.binary("arith.minsi", a, b)
    }
    pub fn max_signed(&mut self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        self.binary("arith.maxsi", a, b)
    }

    pub fn bitcast(&mut self, a: Val<'c>, elem: Elem) -> Val<'c> {
        if a.elem == elem {
            return a;
        }
        debug_assert_eq!(a.elem.bits(), elem.bits());
        self.value("arith.bitcast", &[a], (elem, a.lanes), &[])
    }

    /// Reinterprets a vector as one of another element width.
    pub fn vector_bitcast(&mut self, a: Val<'c>, elem: Elem) -> Val<'c> {
        let lanes = a.lanes * a.elem.bits() / elem.bits();
        if lanes > 1 {
            return self.value("vector.bitcast", &[a], (elem, lanes), &[]);
        }
        let one = Type::vector(&[1], self.ty(elem, 1));
        let op = self.op("vector.bitcast", &[a.raw], &[one], &[]);
        Val {
            raw: result(op, 0),
            elem,
            lanes,
        }
    }

    /// Integer to an integer of another width (or the same).
    pub fn resize(&mut self, a: Val<'c>, elem: Elem, signed: bool) -> Val<'c> {
        use std::cmp::Ordering::*;
        match elem.bits().cmp(&a.elem.bits()) {
            Equal => a,
            Less => self.value("arith.trunci", &[a], (elem, a.lanes), &[]),
            Greater if signed => self.value("arith.extsi", &[a], (elem, a.lanes), &[]),
            Greater => self.value("arith.extui", &[a], (elem, a.lanes), &[]),
        }
    }

    pub fn convert(&mut self, name: &str, a: Val<'c>, elem: Elem) -> Val<'c> {
        self.value(name, &[a], (elem, a.lanes), &[])
    }

    pub fn broadcast(&mut self, a: Val<'c>, lanes: u32) -> Val<'c> {
        if lanes == a.lanes {
            return a;
        }
        debug_assert_eq!(a.lanes, 1);
        self.value("vector.broadcast", &[a], (a.elem, lanes), &[])
    }

    pub fn extract(&mut self, a: Val<'c>, lane: u32) -> Val<'c> {
        if a.lanes == 1 {
            return a;
        }
        let at = DenseI64ArrayAttribute::new(self.context, &[lane as i64]).into();
        self.value(
            "vector.extract",
            &[a],
            (a.elem, 1),
            &[("static_position", at)],
        )
    }

    pub fn insert(&mut self, value: Val<'c>, into: Val<'c>, lane: u32) -> Val<'c> {
        let at = DenseI64ArrayAttribute::new(self.context, &[lane as i64]).into();
        self.value(
            "vector.insert",
            &[value, into],
            (into.elem, into.lanes),
            &[("static_position", at)],
        )
    }

    /// Lanes of `a` followed by `b`, picked by number.
    pub fn shuffle(&mut self, a: Val<'c>, b: Val<'c>, mask: &[i64]) -> Val<'c> {
        if let [lane] = *mask {
            let first = i64::from(a.lanes);
            return match lane < first {
                true => self.extract(a, lane as u32),
                false => self.extract(b, (lane - first) as u32),
            };
        }
        let attribute = DenseI64ArrayAttribute::new(self.context, mask).into();
        self.value(
            "vector.shuffle",
            &[a, b],
            (a.elem, mask.len() as u32),
            &[("mask", attribute)],
        )
    }

    /// Arithmetic shift of an integer.
    pub fn shift_right_signed(&mut self, a: Val<'c>, by: u32) -> Val<'c> {
        self.shift("arith.shrsi", a, by)
    }

    /// Lanes `from .. from + lanes`.
    pub fn slice(&mut self, a: Val<'c>, from: u32, lanes: u32) -> Val<'c> {
        if lanes == a.lanes {
            return a;
        }
        if lanes == 1 {
            return self.extract(a, from);
        }
        let mask: Vec<i64> = (from..from + lanes).map(i64::from).collect();
        self.shuffle(a, a, &mask)
    }

    /// A scalar as a vector of one, a narrow vector with lanes that hold nothing in particular.
    pub fn widen_lanes(&mut self, a: Val<'c>, lanes: u32) -> Val<'c> {
        if a.lanes == lanes {
            return a;
        }
        if a.lanes == 1 {
            return self.broadcast(a, lanes);
        }
        let mask: Vec<i64> = (0..lanes).map(|l| l.min(a.lanes - 1) as i64).collect();
        self.shuffle(a, a, &mask)
    }

    /// The lane of a vector of one.
    pub fn extract_only(&mut self, a: Val<'c>) -> Val<'c> {
        let at = DenseI64ArrayAttribute::new(self.context, &[0]).into();
        self.value(
            "vector.extract",
            &[a],
            (a.elem, 1),
            &[("static_position", at)],
        )
    }

    /// Calls an intrinsic that gives nothing.
    pub fn intrinsic_call(&mut self, name: &str, operands: &[Val<'c>]) {
        let attributes = self.intrinsic(name, operands.len());
        let operands: Vec<_> = operands.iter().map(|v| v.raw).collect();
        self.op("llvm.call_intrinsic", &operands, &[], &attributes);
    }

    /// Calls an intrinsic that gives a scalar.
    pub fn intrinsic_value(&mut self, name: &str, operands: &[Val<'c>], elem: Elem) -> Val<'c> {
        let attributes = self.intrinsic(name, operands.len());
        self.value("llvm.call_intrinsic", operands, (elem, 1), &attributes)
    }

    /// Two e4m3 codes as two f16, exactly.
    pub fn widen_pair_of_e4m3(&mut self, pair: Val<'c>) -> Val<'c> {
        let attributes = self.intrinsic("llvm.nvvm.e4m3x2.to.f16x2.rn", 1);
        self.value("llvm.call_intrinsic", &[pair], (Elem::F16, 2), &attributes)
    }

    fn intrinsic(&self, name: &str, operands: usize) -> [(&'static str, Attribute<'c>); 3] {
        let name = StringAttribute::new(self.context, name).into();
        let sizes = DenseI32ArrayAttribute::new(self.context, &[operands as i32, 0]).into();
        let bundles = DenseI32ArrayAttribute::new(self.context, &[]).into();
        [
            ("intrin", name),
            ("operandSegmentSizes", sizes),
            ("op_bundle_sizes", bundles),
        ]
    }

    /// The same value, out of LLVM's sight: what it is computed from comes before this point, what is computed from it after.
    /// No instruction; needed where the processor's modes change the meaning of arithmetic, which LLVM does not know of.
    pub fn pin(&mut self, a: Val<'c>) -> Val<'c> {
        // The constraint takes scalars and whole registers.
        let lanes = if a.lanes == 2 { 4 } else { a.lanes };
        let wide = self.widen_lanes(a, lanes);
        let nothing = StringAttribute::new(self.context, "").into();
        let constraints = StringAttribute::new(self.context, "=v,0").into();
        let unit = Attribute::unit(self.context);
        let pinned = self.value(
            "llvm.inline_asm",
            &[wide],
            (a.elem, lanes),
            &[
                ("asm_string", nothing),
                ("constraints", constraints),
                ("has_side_effects", unit),
            ],
        );
        self.slice(pinned, 0, a.lanes)
    }
}

pub fn vector_type(context: &Context, elem: Elem, lanes: u32) -> Type<'_> {
    let scalar = match elem {
        Elem::F64 => Type::float64(context),
        Elem::F32 => Type::float32(context),
        Elem::F16 => Type::float16(context),
        Elem::BF16 => Type::bfloat16(context),
        Elem::Ptr => melior::dialect::llvm::r#type::pointer(context, 0),
        int => IntegerType::new(context, int.bits()).into(),
    };
    match (lanes, elem) {
        (1, _) => scalar,
        (_, _) => Type::vector(&[lanes as u64], scalar),
    }
}

fn argument_raw(block: BlockRef<'_, '_>, index: usize) -> mlir_sys::MlirValue {
    unsafe { mlir_sys::mlirBlockGetArgument(block.to_raw(), index as isize) }
}

fn result<'c>(op: OperationRef<'c, 'c>, index: usize) -> Value<'c, 'c> {
    op.result(index)
        .expect("the operation was built with this many results")
        .into()
}

/// A string attribute.
pub fn string<'c>(context: &'c Context, text: &str) -> Attribute<'c> {
    StringAttribute::new(context, text).into()
}
