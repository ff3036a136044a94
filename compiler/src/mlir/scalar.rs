//! The pure scalar ops of the tile IR on values of any number of lanes, shared by the emitters.
//!
//! A value of a tile IR type is held as ([`held_as`]): f64, f32 (also tf32), the raw bits of bf16 and f16 in i16, the raw code of
//! an 8-bit or 4-bit float in i8, integers as themselves, `index` as i64, bool as i1. So moving a value never changes a bit, and
//! arithmetic on the 16-bit floats is: widen, one f32 operation, one rounding.
//!
//! Keeps: the meaning that `tile::ir` states, to the bit, but for the payload of a NaN that an operation makes.

use super::build::{Builder, Elem, FloatCompare, IntCompare, Val};
use crate::tile::ir::{BinaryOp, Const, FoldOp, Predicate, Type, UnaryOp};
use tessera_artifact::DType;

/// The element that carries a value of this type.
pub fn held_as(ty: Type) -> Elem {
    match ty {
        Type::Index => Elem::I64,
        Type::Scalar(d) => match d {
            DType::Bool => Elem::I1,
            d => stored_as(d),
        },
    }
}

/// The element in memory; an e2m1 of a packed tensor is half of one.
pub fn stored_as(dtype: DType) -> Elem {
    match dtype {
        DType::F64 => Elem::F64,
        DType::F32 | DType::Tf32 => Elem::F32,
        DType::BF16 | DType::F16 | DType::I16 | DType::U16 => Elem::I16,
        DType::E4M3 | DType::E5M2 | DType::E2M1 | DType::UE8M0 => Elem::I8,
        DType::I8 | DType::U8 | DType::Bool => Elem::I8,
        DType::I32 | DType::U32 => Elem::I32,
        DType::I64 | DType::U64 => Elem::I64,
    }
}

fn is_signed(ty: Type) -> bool {
    match ty {
        Type::Index => true,
        Type::Scalar(d) => d.is_signed_int(),
    }
}

fn is_float(ty: Type) -> bool {
    matches!(ty, Type::Scalar(d) if d.is_float())
}

fn float_dtype(ty: Type) -> DType {
    match ty {
        Type::Scalar(d) => d,
        Type::Index => unreachable!("callers ask only for floats"),
    }
}

/// An op that no emitter lowers at this type; the caller knows the span.
#[derive(Debug)]
pub struct Unsupported(pub String);

pub type Lowered<'c> = Result<Val<'c>, Unsupported>;

fn unsupported<T>(what: impl Into<String>) -> Result<T, Unsupported> {
    Err(Unsupported(what.into()))
}

/// The type's name as the author writes it.
pub fn type_name(ty: Type) -> &'static str {
    match ty {
        Type::Index => "index",
        Type::Scalar(d) => d.name(),
    }
}

/// The bits of a constant as [`held_as`] holds it.
pub fn constant_bits(c: Const) -> u64 {
    match c {
        Const::Index(i) => i as u64,
        Const::Bool(b) => b as u64,
        Const::Int(i, _) => i as u64,
        Const::Float(x, DType::F64) => x.to_bits(),
        Const::Float(x, DType::F32 | DType::Tf32) => (x as f32).to_bits() as u64,
        Const::Float(x, d) => narrow_constant(x, d),
    }
}

/// The code of a value that the type holds exactly.
fn narrow_constant(x: f64, d: DType) -> u64 {
    match d {
        DType::BF16 => half::bf16::from_f64(x).to_bits() as u64,
        DType::F16 => half::f16::from_f64(x).to_bits() as u64,
        DType::UE8M0 if x.is_nan() => 255,
        DType::UE8M0 => (x.log2() + 127.0).clamp(0.0, 254.0) as u64,
        d => {
            let (exponent_bits, mantissa_bits, bias) = small_float(d);
            let sign = (x.is_sign_negative() as u64) << (exponent_bits + mantissa_bits);
            let largest = (1u64 << (exponent_bits + mantissa_bits)) - 1;
            if x.is_nan() {
                return sign | largest;
            }
            // Codes rise with magnitude; the value is exact, so a search finds it.
            let value = |code: u64| {
                let (e, m) = (code >> mantissa_bits, code & ((1 << mantissa_bits) - 1));
                let fraction = m as f64 / (1u64 << mantissa_bits) as f64;
                match e {
                    0 => fraction * 2f64.powi(1 - bias),
                    e => (1.0 + fraction) * 2f64.powi(e as i32 - bias),
                }
            };
            let magnitude = (0..=largest)
                .find(|&c| value(c) >= x.abs())
                .unwrap_or(largest);
            sign | magnitude
        }
    }
}

/// Exponent bits, mantissa bits, bias.
fn small_float(d: DType) -> (u32, u32, i32) {
    match d {
        DType::E4M3 => (4, 3, 7),
        DType::E5M2 => (5, 2, 15),
        DType::E2M1 => (2, 1, 1),
        _ => unreachable!("only 8-bit and 4-bit floats are asked for"),
    }
}

impl<'c> Builder<'c> {
    pub fn constant(&mut self, c: Const, lanes: u32) -> Val<'c> {
        let ty = match c {
            Const::Index(_) => Type::Index,
            Const::Float(_, d) | Const::Int(_, d) => Type::Scalar(d),
            Const::Bool(_) => Type::BOOL,
        };
        self.bits(held_as(ty), lanes, constant_bits(c))
    }

    // ---- widening and rounding ----------------------------------------------------------------------

    /// A float of up to 32 bits as f32, exactly.
    pub fn widen(&mut self, v: Val<'c>, from: DType) -> Val<'c> {
        match from {
            DType::F32 | DType::Tf32 => v,
            DType::BF16 => {
                let wide = self.resize(v, Elem::I32, false);
                let bits = self.shl(wide, 16);
                self.bitcast(bits, Elem::F32)
            }
            DType::F16 => {
                let h = self.bitcast(v, Elem::F16);
                self.convert("arith.extf", h, Elem::F32)
            }
            DType::UE8M0 => {
                let code = self.resize(v, Elem::I32, false);
                let bits = self.shl(code, 23);
                let smallest = self.int(Elem::I32, v.lanes, 0x0040_0000);
                let nan = self.int(Elem::I32, v.lanes, 0x7fc0_0000);
                let none = self.zero(Elem::I32, v.lanes);
                let all = self.int(Elem::I32, v.lanes, 255);
                let is_smallest = self.cmpi(IntCompare::Eq, code, none);
                let is_nan = self.cmpi(IntCompare::Eq, code, all);
                let bits = self.select(is_smallest, smallest, bits);
                let bits = self.select(is_nan, nan, bits);
                self.bitcast(bits, Elem::F32)
            }
            DType::E4M3 | DType::E5M2 | DType::E2M1 => self.widen_small(v, from),
            _ => unreachable!("{from} is no float of up to 32 bits"),
        }
    }

    /// The exponent and mantissa bits placed in an f32 give the value times 2^(bias - 127), subnormals included.
    fn widen_small(&mut self, v: Val<'c>, from: DType) -> Val<'c> {
        let (exponent_bits, mantissa_bits, bias) = small_float(from);
        let lanes = v.lanes;
        let magnitude_bits = exponent_bits + mantissa_bits;
        let code = self.resize(v, Elem::I32, false);
        let mask = self.int(Elem::I32, lanes, (1 << magnitude_bits) - 1);
        let magnitude = self.andi(code, mask);
        let placed = self.shl(magnitude, 23 - mantissa_bits);
        let placed = self.bitcast(placed, Elem::F32);
        let scale = self.f32(lanes, 2f32.powi(127 - bias));
        let value = self.mulf(placed, scale);
        let bits = self.bitcast(value, Elem::I32);
        let bits = match from {
            DType::E4M3 => self.replace(bits, magnitude, IntCompare::Eq, 0x7f, 0x7fc0_0000),
            DType::E5M2 => {
                let bits = self.replace(bits, magnitude, IntCompare::Eq, 0x7c, 0x7f80_0000);
                self.replace(bits, magnitude, IntCompare::Ugt, 0x7c, 0x7fc0_0000)
            }
            _ => bits,
        };
        let sign = self.int(Elem::I32, lanes, 1 << magnitude_bits);
        let sign = self.andi(code, sign);
        let sign = self.shl(sign, 31 - magnitude_bits);
        let bits = self.ori(bits, sign);
        self.bitcast(bits, Elem::F32)
    }

    /// `predicate(key, against) ? with : value`
    fn replace(
        &mut self,
        value: Val<'c>,
        key: Val<'c>,
        predicate: IntCompare,
        against: i64,
        with: i64,
    ) -> Val<'c> {
        let against = self.int(key.elem, key.lanes, against);
        let with = self.int(value.elem, value.lanes, with);
        let hit = self.cmpi(predicate, key, against);
        self.select(hit, with, value)
    }

    /// f32 to a float of up to 32 bits: the rounding of `Cast`.
    pub fn narrow(&mut self, v: Val<'c>, to: DType) -> Val<'c> {
        match to {
            DType::F32 | DType::Tf32 => v,
            DType::BF16 => self.round_to_bf16(v),
            DType::F16 => {
                let h = self.convert("arith.truncf", v, Elem::F16);
                let code = self.bitcast(h, Elem::I16);
                self.nan_code(v, code, 0x7e00)
            }
            DType::UE8M0 => self.round_up_to_power(v),
            DType::E2M1 => self.narrow_to_e2m1(v),
            DType::E4M3 | DType::E5M2 => self.narrow_small(v, to),
            _ => unreachable!("{to} is no float of up to 32 bits"),
        }
    }

    fn round_to_bf16(&mut self, v: Val<'c>) -> Val<'c> {
        let lanes = v.lanes;
        let bits = self.bitcast(v, Elem::I32);
        let high = self.shr(bits, 16);
        let one = self.int(Elem::I32, lanes, 1);
        let odd = self.andi(high, one);
        let half = self.int(Elem::I32, lanes, 0x7fff);
        let bias = self.addi(odd, half);
        let rounded = self.addi(bits, bias);
        let rounded = self.shr(rounded, 16);
        let code = self.nan_code(v, rounded, 0x7fc0);
        self.resize(code, Elem::I16, false)
    }

    /// The one code that a NaN has; `code` for every other value.
    fn nan_code(&mut self, v: Val<'c>, code: Val<'c>, nan: i64) -> Val<'c> {
        let nan = self.int(code.elem, code.lanes, nan);
        let is_nan = self.cmpf(FloatCompare::Uno, v, v);
        self.select(is_nan, nan, code)
    }

    /// To 10 mantissa bits, ties to even.
    pub fn round_to_tf32(&mut self, v: Val<'c>) -> Val<'c> {
        let lanes = v.lanes;
        let bits = self.bitcast(v, Elem::I32);
        let kept = self.shr(bits, 13);
        let one = self.int(Elem::I32, lanes, 1);
        let odd = self.andi(kept, one);
        let half = self.int(Elem::I32, lanes, 0xfff);
        let bias = self.addi(odd, half);
        let rounded = self.addi(bits, bias);
        let mask = self.int(Elem::I32, lanes, !0x1fff);
        let rounded = self.andi(rounded, mask);
        // An infinity's bits pass unchanged; a NaN's would run over into another number.
        let rounded = self.nan_code(v, rounded, 0x7fc0_0000);
        self.bitcast(rounded, Elem::F32)
    }

    fn narrow_small(&mut self, v: Val<'c>, to: DType) -> Val<'c> {
        let (exponent_bits, mantissa_bits, bias) = small_float(to);
        let lanes = v.lanes;
        let (largest, largest_code): (f32, i64) = match to {
            DType::E4M3 => (448.0, 0x7e),
            _ => (57344.0, 0x7b),
        };
        let bits = self.bitcast(v, Elem::I32);
        let magnitude_mask = self.int(Elem::I32, lanes, 0x7fff_ffff);
        let magnitude = self.andi(bits, magnitude_mask);
        // Normal results: round the f32's bits to the short mantissa, then move the exponent's bias.
        let drop = 23 - mantissa_bits;
        let kept = self.shr(magnitude, drop);
        let one = self.int(Elem::I32, lanes, 1);
        let odd = self.andi(kept, one);
        let half = self.int(Elem::I32, lanes, (1 << (drop - 1)) - 1);
        let up = self.addi(magnitude, half);
        let up = self.addi(up, odd);
        let up = self.shr(up, drop);
        let normal = self.add_const(up, -((127 - bias as i64) << mantissa_bits));
        // Subnormal results: an addition whose unit in the last place is the smallest code does the rounding.
        let magic_value = 2f32.powi(23 + 1 - bias - mantissa_bits as i32);
        let magic = self.f32(lanes, magic_value);
        let absolute = self.bitcast(magnitude, Elem::F32);
        let sum = self.addf(absolute, magic);
        let sum = self.bitcast(sum, Elem::I32);
        let subnormal = self.add_const(sum, -(magic_value.to_bits() as i64));
        let smallest_normal = self.int(Elem::I32, lanes, 2f32.powi(1 - bias).to_bits() as i64);
        let is_subnormal = self.cmpi(IntCompare::Ult, magnitude, smallest_normal);
        let code = self.select(is_subnormal, subnormal, normal);
        let code = self.replace(
            code,
            magnitude,
            IntCompare::Uge,
            largest.to_bits() as i64,
            largest_code,
        );
        let sign = self.shr(bits, 31);
        let sign = self.shl(sign, exponent_bits + mantissa_bits);
        let signed = self.ori(code, sign);
        let result = self.replace(signed, magnitude, IntCompare::Ugt, 0x7f80_0000, 0x7f);
        self.resize(result, Elem::I8, false)
    }

    /// The codes 0, 0.5, 1, 1.5, 2, 3, 4, 6 lie on three lines, of which the least is the right one: below 2 the code is twice the
    /// magnitude, below 4 two more than it, then half of it and four. One rounding to an integer makes ties even, as codes want it.
    fn narrow_to_e2m1(&mut self, v: Val<'c>) -> Val<'c> {
        let lanes = v.lanes;
        // Sums with it have integers in their low bits, and their bits rise with them.
        const ROUNDER: f32 = 12_582_912.0;
        let magnitude = self.unary("llvm.intr.fabs", v);
        let line = |b: &mut Self, slope: f32, from: f32| {
            let (slope, from) = (b.f32(lanes, slope), b.f32(lanes, ROUNDER + from));
            let rounded = b.fma(magnitude, slope, from);
            b.bitcast(rounded, Elem::I32)
        };
        let (low, middle, high) = (
            line(self, 2.0, 0.0),
            line(self, 1.0, 2.0),
            line(self, 0.5, 4.0),
        );
        // What is beyond 6, NaN too.
        let last = self.int(Elem::I32, lanes, i64::from((ROUNDER + 7.0).to_bits()));
        let code = self.min_signed(low, middle);
        let code = self.min_signed(code, high);
        let code = self.min_signed(code, last);
        let mask = self.int(Elem::I32, lanes, 7);
        let code = self.andi(code, mask);
        let bits = self.bitcast(v, Elem::I32);
        let sign = self.shr(bits, 28);
        let mask = self.int(Elem::I32, lanes, 8);
        let sign = self.andi(sign, mask);
        // NaN is +6.
        let is_nan = self.cmpf(FloatCompare::Uno, v, v);
        let none = self.zero(Elem::I32, lanes);
        let sign = self.select(is_nan, none, sign);
        let code = self.ori(code, sign);
        self.resize(code, Elem::I8, false)
    }

    /// Up to the next power of two; NaN and what is beyond 2^127 give NaN, what is not above 2^-127 gives 2^-127.
    fn round_up_to_power(&mut self, v: Val<'c>) -> Val<'c> {
        let lanes = v.lanes;
        let bits = self.bitcast(v, Elem::I32);
        // Any mantissa bit carries into the exponent.
        let up = self.add_const(bits, 0x007f_ffff);
        let code = self.shr(up, 23);
        let code = self.replace(code, bits, IntCompare::Sle, 0x0040_0000, 0);
        let code = self.replace(code, bits, IntCompare::Sgt, 0x7f00_0000, 254);
        let is_nan = self.cmpf(FloatCompare::Uno, v, v);
        let nan = self.int(Elem::I32, lanes, 255);
        let code = self.select(is_nan, nan, code);
        self.resize(code, Elem::I8, false)
    }

    /// f64 to f32, with a result that is not exact made odd: a later rounding to fewer bits then rounds as if once.
    fn round_to_odd(&mut self, v: Val<'c>) -> Val<'c> {
        let lanes = v.lanes;
        let near = self.convert("arith.truncf", v, Elem::F32);
        let back = self.convert("arith.extf", near, Elem::F64);
        let bits = self.bitcast(near, Elem::I32);
        // Towards zero: one step back where rounding went away from it.
        let v_abs = self.unary("llvm.intr.fabs", v);
        let back_abs = self.unary("llvm.intr.fabs", back);
        let away = self.cmpf(FloatCompare::Ogt, back_abs, v_abs);
        let before = self.add_const(bits, -1);
        let toward = self.select(away, before, bits);
        let one = self.int(Elem::I32, lanes, 1);
        let odd = self.ori(toward, one);
        // False for NaN and for what is exact.
        let inexact_low = self.cmpf(FloatCompare::Olt, back, v);
        let inexact_high = self.cmpf(FloatCompare::Ogt, back, v);
        let inexact = self.ori(inexact_low, inexact_high);
        let bits = self.select(inexact, odd, bits);
        self.bitcast(bits, Elem::F32)
    }

    // ---- casts ------------------------------------------------------------------------------------------

    pub fn cast(&mut self, v: Val<'c>, from: Type, to: Type) -> Lowered<'c> {
        if from == to {
            return Ok(v);
        }
        match (is_float(from), is_float(to)) {
            (true, true) => Ok(self.float_to_float(v, float_dtype(from), float_dtype(to))),
            (true, false) => self.float_to_int(v, float_dtype(from), to),
            (false, true) => Ok(self.int_to_float(v, from, float_dtype(to))),
            (false, false) if to == Type::BOOL => {
                let zero = self.zero(v.elem, v.lanes);
                Ok(self.cmpi(IntCompare::Ne, v, zero))
            }
            (false, false) => Ok(self.resize(v, held_as(to), is_signed(from))),
        }
    }

    fn float_to_float(&mut self, v: Val<'c>, from: DType, to: DType) -> Val<'c> {
        match (from, to) {
            (DType::F64, DType::F32 | DType::Tf32) => self.convert("arith.truncf", v, Elem::F32),
            (DType::F64, to) => {
                let odd = self.round_to_odd(v);
                self.narrow(odd, to)
            }
            (from, DType::F64) => {
                let wide = self.widen(v, from);
                self.convert("arith.extf", wide, Elem::F64)
            }
            (from, to) => {
                let wide = self.widen(v, from);
                self.narrow(wide, to)
            }
        }
    }

    /// Truncates and saturates; NaN gives 0.
    fn float_to_int(&mut self, v: Val<'c>, from: DType, to: Type) -> Lowered<'c> {
        let wide = match from {
            DType::F64 => v,
            from => self.widen(v, from),
        };
        let lanes = v.lanes;
        if to == Type::BOOL {
            let zero = self.zero(wide.elem, lanes);
            return Ok(self.cmpf(FloatCompare::Une, wide, zero));
        }
        let signed = is_signed(to);
        let bits = held_as(to).bits();
        let (lowest, highest): (u64, u64) = match signed {
            true => (1u64 << (bits - 1), (1u64 << (bits - 1)) - 1),
            false => (0, u64::MAX >> (64 - bits)),
        };
        let top = 2f64.powi(bits as i32 - signed as i32);
        let float = |b: &mut Self, x: f64| match from {
            DType::F64 => b.bits(Elem::F64, lanes, x.to_bits()),
            _ => b.f32(lanes, x as f32),
        };
        let name = if signed {
            "arith.fptosi"
        } else {
            "arith.fptoui"
        };
        let elem = held_as(to);
        // Small integers by way of i32, which the hardware has.
        let via = if bits < 32 { Elem::I32 } else { elem };
        let name = if bits < 32 { "arith.fptosi" } else { name };
        let converted = self.convert(name, wide, via);
        let converted = self.resize(converted, elem, signed);
        let too_high = float(self, top);
        let high = self.cmpf(FloatCompare::Oge, wide, too_high);
        let highest = self.bits(elem, lanes, highest);
        let result = self.select(high, highest, converted);
        let too_low = float(self, if signed { -top } else { 0.0 });
        let low = self.cmpf(FloatCompare::Olt, wide, too_low);
        let lowest = self.bits(elem, lanes, lowest);
        let result = self.select(low, lowest, result);
        let is_nan = self.cmpf(FloatCompare::Uno, wide, wide);
        let zero = self.zero(elem, lanes);
        Ok(self.select(is_nan, zero, result))
    }

    /// Rounds once.
    fn int_to_float(&mut self, v: Val<'c>, from: Type, to: DType) -> Val<'c> {
        let signed = is_signed(from);
        let name = if signed {
            "arith.sitofp"
        } else {
            "arith.uitofp"
        };
        match to {
            DType::F64 => self.convert(name, v, Elem::F64),
            DType::F32 | DType::Tf32 => self.convert(name, v, Elem::F32),
            to if v.elem.bits() <= 16 => {
                let exact = self.convert(name, v, Elem::F32);
                self.narrow(exact, to)
            }
            to => {
                let v = if v.elem == Elem::I64 { self.jam(v) } else { v };
                let exact = self.convert(name, v, Elem::F64);
                let odd = self.round_to_odd(exact);
                self.narrow(odd, to)
            }
        }
    }

    /// An i64 or u64 too long for an f64 made short: the lost bits become one sticky bit.
    fn jam(&mut self, v: Val<'c>) -> Val<'c> {
        let low_mask = self.int(Elem::I64, v.lanes, 0xfff);
        let high_mask = self.int(Elem::I64, v.lanes, !0xfff);
        let low = self.andi(v, low_mask);
        let high = self.andi(v, high_mask);
        let sticky = self.int(Elem::I64, v.lanes, 0x800);
        let zero = self.zero(Elem::I64, v.lanes);
        let lost = self.cmpi(IntCompare::Ne, low, zero);
        let sticky = self.select(lost, sticky, zero);
        let jammed = self.ori(high, sticky);
        // Short: the upper 11 bits are all sign (or all zero).
        let top = self.int(Elem::I64, v.lanes, 53);
        let upper = self.binary("arith.shrsi", v, top);
        let one = self.int(Elem::I64, v.lanes, 1);
        let upper = self.addi(upper, one);
        let two = self.int(Elem::I64, v.lanes, 2);
        let short = self.cmpi(IntCompare::Ult, upper, two);
        self.select(short, v, jammed)
    }

    pub fn scalar_bitcast(&mut self, v: Val<'c>, from: Type, to: DType) -> Lowered<'c> {
        let to_elem = held_as(Type::Scalar(to));
        match (from, to) {
            (Type::Scalar(DType::Bool), DType::Bool) => Ok(v),
            (Type::Scalar(DType::Bool), _) => Ok(self.resize(v, to_elem, false)),
            (_, DType::Bool) => {
                let one = self.int(v.elem, v.lanes, 1);
                let bit = self.andi(v, one);
                Ok(self.resize(bit, Elem::I1, false))
            }
            _ if v.elem.bits() == to_elem.bits() => Ok(self.bitcast(v, to_elem)),
            _ => unsupported(format!(
                "a bitcast from {} to {to} changes the width",
                type_name(from)
            )),
        }
    }

    // ---- arithmetic ------------------------------------------------------------------------------------

    pub fn unary_op(&mut self, op: UnaryOp, v: Val<'c>, ty: Type) -> Lowered<'c> {
        use UnaryOp::*;
        match ty {
            Type::Scalar(d) if d.is_float() => self.float_unary(op, v, d),
            _ => match op {
                Neg => {
                    let zero = self.zero(v.elem, v.lanes);
                    Ok(self.subi(zero, v))
                }
                Not => {
                    let ones = self.int(v.elem, v.lanes, -1);
                    Ok(self.xori(v, ones))
                }
                Abs if !is_signed(ty) => Ok(v),
                Abs => {
                    let zero = self.zero(v.elem, v.lanes);
                    let negated = self.subi(zero, v);
                    let negative = self.cmpi(IntCompare::Slt, v, zero);
                    Ok(self.select(negative, negated, v))
                }
                other => unsupported(format!("`{other:?}` of {}", type_name(ty))),
            },
        }
    }

    fn float_unary(&mut self, op: UnaryOp, v: Val<'c>, d: DType) -> Lowered<'c> {
        use UnaryOp::*;
        let intrinsic = match op {
            // Sign bits only, so the 16-bit floats need no widening.
            Neg | Abs if !v.elem.is_float() => {
                if !d.has_arithmetic() {
                    return unsupported(format!("`{op:?}` of {d}"));
                }
                let sign = 1i64 << (d.bits() - 1);
                let mask = self.int(v.elem, v.lanes, if op == Neg { sign } else { sign - 1 });
                return Ok(if op == Neg {
                    self.xori(v, mask)
                } else {
                    self.andi(v, mask)
                });
            }
            Neg => "arith.negf",
            Abs => "llvm.intr.fabs",
            Sqrt => "llvm.intr.sqrt",
            Floor => "llvm.intr.floor",
            Ceil => "llvm.intr.ceil",
            RoundEven => "llvm.intr.roundeven",
            IsNan => {
                let wide = if d == DType::F64 { v } else { self.widen(v, d) };
                return Ok(self.cmpf(FloatCompare::Uno, wide, wide));
            }
            other => {
                return unsupported(format!("`{other:?}` of {d}, which nothing expanded"));
            }
        };
        self.in_f32(d, &[v], |b, x| b.unary(intrinsic, x[0]))
    }

    /// Computes in f64 for f64, else in f32 with one rounding at the end.
    fn in_f32(
        &mut self,
        d: DType,
        operands: &[Val<'c>],
        f: impl FnOnce(&mut Self, &[Val<'c>]) -> Val<'c>,
    ) -> Lowered<'c> {
        if !d.has_arithmetic() {
            return unsupported(format!("arithmetic on {d}"));
        }
        if d == DType::F64 {
            return Ok(f(self, operands));
        }
        let wide: Vec<_> = operands.iter().map(|&v| self.widen(v, d)).collect();
        let result = f(self, &wide);
        Ok(self.narrow(result, d))
    }

    pub fn binary_op(&mut self, op: BinaryOp, a: Val<'c>, b: Val<'c>, ty: Type) -> Lowered<'c> {
        use BinaryOp::*;
        if let Type::Scalar(d) = ty
            && d.is_float()
        {
            let name = match op {
                Add => "arith.addf",
                Sub => "arith.subf",
                Mul => "arith.mulf",
                Div => "arith.divf",
                Min => "llvm.intr.minimum",
                Max => "llvm.intr.maximum",
                other => return unsupported(format!("`{other:?}` of {d}")),
            };
            return self.in_f32(d, &[a, b], |s, x| s.binary(name, x[0], x[1]));
        }
        let signed = is_signed(ty);
        let name = match op {
            Add => "arith.addi",
            Sub => "arith.subi",
            Mul => "arith.muli",
            Div => return Ok(self.floor_div(a, b, signed).0),
            Rem => return Ok(self.floor_div(a, b, signed).1),
            Min if signed => "arith.minsi",
            Max if signed => "arith.maxsi",
            Min => "arith.minui",
            Max => "arith.maxui",
            And => "arith.andi",
            Or => "arith.ori",
            Xor => "arith.xori",
            Shl | Shr => {
                // A shift past the width is an error of the program; masked, it is at least a defined value.
                let width = self.int(b.elem, b.lanes, a.elem.bits() as i64 - 1);
                let by = self.andi(b, width);
                let name = match (op, signed) {
                    (Shl, _) => "arith.shli",
                    (_, true) => "arith.shrsi",
                    (_, false) => "arith.shrui",
                };
                return Ok(self.binary(name, a, by));
            }
            Pow => return unsupported(format!("`pow` of {}", type_name(ty))),
        };
        Ok(self.binary(name, a, b))
    }

    /// Floored quotient and modulo. A divisor of 0 is an error of the program: it must not trap, and gives (a, 0).
    fn floor_div(&mut self, a: Val<'c>, b: Val<'c>, signed: bool) -> (Val<'c>, Val<'c>) {
        let (elem, lanes) = (a.elem, a.lanes);
        let zero = self.zero(elem, lanes);
        let one = self.int(elem, lanes, 1);
        let by_zero = self.cmpi(IntCompare::Eq, b, zero);
        if !signed {
            let divisor = self.select(by_zero, one, b);
            let q = self.binary("arith.divui", a, divisor);
            let r = self.binary("arith.remui", a, divisor);
            return (q, r);
        }
        // MIN / -1 would trap too: divide by 1 and negate.
        let minus_one = self.int(elem, lanes, -1);
        let by_minus_one = self.cmpi(IntCompare::Eq, b, minus_one);
        let special = self.ori(by_zero, by_minus_one);
        let divisor = self.select(special, one, b);
        let q = self.binary("arith.divsi", a, divisor);
        let r = self.binary("arith.remsi", a, divisor);
        let inexact = self.cmpi(IntCompare::Ne, r, zero);
        let signs = self.xori(r, divisor);
        let differ = self.cmpi(IntCompare::Slt, signs, zero);
        let adjust = self.andi(inexact, differ);
        let q_down = self.subi(q, one);
        let q = self.select(adjust, q_down, q);
        let r_up = self.addi(r, divisor);
        let r = self.select(adjust, r_up, r);
        let negated = self.subi(zero, a);
        (self.select(by_minus_one, negated, q), r)
    }

    /// Floored quotient and modulo of an `index` by a positive constant.
    pub fn floor_div_const(&mut self, a: Val<'c>, by: i64) -> (Val<'c>, Val<'c>) {
        debug_assert!(by > 0);
        if by.count_ones() == 1 {
            let shift = self.int(a.elem, a.lanes, by.trailing_zeros() as i64);
            let mask = self.int(a.elem, a.lanes, by - 1);
            return (self.binary("arith.shrsi", a, shift), self.andi(a, mask));
        }
        let divisor = self.int(a.elem, a.lanes, by);
        let zero = self.zero(a.elem, a.lanes);
        let q = self.binary("arith.divsi", a, divisor);
        let r = self.binary("arith.remsi", a, divisor);
        let negative = self.cmpi(IntCompare::Slt, r, zero);
        let q_down = self.add_const(q, -1);
        let r_up = self.addi(r, divisor);
        (
            self.select(negative, q_down, q),
            self.select(negative, r_up, r),
        )
    }

    pub fn fma_op(&mut self, a: Val<'c>, b: Val<'c>, c: Val<'c>, ty: Type) -> Lowered<'c> {
        match ty {
            Type::Scalar(d) if d.is_float() => {
                self.in_f32(d, &[a, b, c], |s, x| s.fma(x[0], x[1], x[2]))
            }
            _ => {
                let product = self.muli(a, b);
                Ok(self.addi(product, c))
            }
        }
    }

    pub fn compare_op(&mut self, p: Predicate, a: Val<'c>, b: Val<'c>, ty: Type) -> Val<'c> {
        use Predicate::*;
        if let Type::Scalar(d) = ty
            && d.is_float()
        {
            let (a, b) = match d {
                DType::F64 => (a, b),
                d => (self.widen(a, d), self.widen(b, d)),
            };
            let p = match p {
                Eq => FloatCompare::Oeq,
                Ne => FloatCompare::Une,
                Lt => FloatCompare::Olt,
                Le => FloatCompare::Ole,
                Gt => FloatCompare::Ogt,
                Ge => FloatCompare::Oge,
            };
            return self.cmpf(p, a, b);
        }
        let p = match (p, is_signed(ty)) {
            (Eq, _) => IntCompare::Eq,
            (Ne, _) => IntCompare::Ne,
            (Lt, true) => IntCompare::Slt,
            (Le, true) => IntCompare::Sle,
            (Gt, true) => IntCompare::Sgt,
            (Ge, true) => IntCompare::Sge,
            (Lt, false) => IntCompare::Ult,
            (Le, false) => IntCompare::Ule,
            (Gt, false) => IntCompare::Ugt,
            (Ge, false) => IntCompare::Uge,
        };
        self.cmpi(p, a, b)
    }

    // ---- folds ---------------------------------------------------------------------------------------------

    pub fn fold_op(&mut self, op: FoldOp, a: Val<'c>, b: Val<'c>, dtype: DType) -> Lowered<'c> {
        let op = match op {
            FoldOp::Sum => BinaryOp::Add,
            FoldOp::Prod => BinaryOp::Mul,
            FoldOp::Max => BinaryOp::Max,
            FoldOp::Min => BinaryOp::Min,
            FoldOp::And => BinaryOp::And,
            FoldOp::Or => BinaryOp::Or,
        };
        self.binary_op(op, a, b, Type::Scalar(dtype))
    }

    /// The identity of a fold as [`held_as`] holds it.
    pub fn fold_identity(&mut self, op: FoldOp, dtype: DType, lanes: u32) -> Val<'c> {
        let elem = held_as(Type::Scalar(dtype));
        let float = |x: f64| constant_bits(Const::Float(x, dtype));
        let top = 1u64 << (elem.bits() - 1);
        let bits = match op {
            FoldOp::Sum | FoldOp::Or => 0,
            FoldOp::Prod if dtype.is_float() => float(1.0),
            FoldOp::Prod => 1,
            FoldOp::And => u64::MAX,
            FoldOp::Max if dtype.is_float() => float(f64::NEG_INFINITY),
            FoldOp::Min if dtype.is_float() => float(f64::INFINITY),
            FoldOp::Max if dtype.is_signed_int() => top,
            FoldOp::Min if dtype.is_signed_int() => top - 1,
            FoldOp::Max => 0,
            FoldOp::Min => u64::MAX,
        };
        let bits = bits & (u64::MAX >> (64 - elem.bits()));
        self.bits(elem, lanes, bits)
    }

    // ---- between memory and values --------------------------------------------------------------------------

    /// What [`stored_as`] loaded as what [`held_as`] holds.
    pub fn from_stored(&mut self, v: Val<'c>, dtype: DType) -> Val<'c> {
        match dtype {
            DType::Bool => {
                let zero = self.zero(Elem::I8, v.lanes);
                self.cmpi(IntCompare::Ne, v, zero)
            }
            _ => v,
        }
    }

    pub fn to_stored(&mut self, v: Val<'c>, dtype: DType) -> Val<'c> {
        match dtype {
            DType::Bool => self.resize(v, Elem::I8, false),
            _ => v,
        }
    }
}
