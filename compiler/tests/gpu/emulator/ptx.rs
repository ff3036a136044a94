//! Reads the PTX that LLVM writes: one entry function, registers and labels as numbers.
//!
//! Special registers and constants are registers too, so that every operand is read the same way; an instruction on vectors becomes one
//! for each part.

use std::collections::{BTreeMap, HashMap};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ty {
    Pred,
    /// `b` and `u`: no sign.
    U(u32),
    S(u32),
    F(u32),
}

impl Ty {
    pub fn bits(self) -> u32 {
        match self {
            Ty::Pred => 1,
            Ty::U(n) | Ty::S(n) | Ty::F(n) => n,
        }
    }

    fn parse(text: &str) -> Option<Ty> {
        if text == "pred" {
            return Some(Ty::Pred);
        }
        let bits: u32 = text.get(1..)?.parse().ok()?;
        match text.as_bytes()[0] {
            b'b' | b'u' => Some(Ty::U(bits)),
            b's' => Some(Ty::S(bits)),
            b'f' => Some(Ty::F(bits)),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Param,
    Shared,
    Global,
}

/// Registers with the thread's number, the CTA's and the number of CTAs.
pub const THREAD: usize = 0;
pub const CTA: usize = 1;
pub const CTAS: usize = 2;
const SPECIAL: [&str; 3] = ["%tid.x", "%ctaid.x", "%nctaid.x"];

/// An operand as it is written.
enum Operand {
    Register(usize),
    /// Some left out: `_`.
    Vector(Vec<Option<usize>>),
    /// `[base + offset]`
    Memory {
        base: usize,
        offset: u64,
    },
    Label(usize),
}

/// What an instruction does, apart from its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Add,
    Sub,
    MulLow,
    MulHigh,
    MulWide,
    MadLow,
    MadWide,
    Fma,
    Div,
    Rem,
    Min,
    Max,
    /// A NaN operand gives NaN.
    MinNan,
    MaxNan,
    And,
    Or,
    Xor,
    Not,
    Neg,
    Abs,
    Shl,
    Shr,
    BitField,
    Sqrt,
    Reciprocal,
    Set(Compare),
    Select,
    Move,
    /// The source's bits from here on.
    Extract(u32),
    /// The source becomes the destination's bits from here on; from 0 on, the rest is cleared.
    Insert(u32),
    /// From a type, with the rounding to an integer.
    Convert(Ty, Round),
    Load(Space),
    Store(Space),
    Atomic(Rmw),
    Exchange,
    Branch,
    Return,
    Barrier,
    ShuffleDown,
    Fence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    Nearest,
    Zero,
    Down,
    Up,
    Even,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rmw {
    Add,
    And,
    Or,
    Max,
    Min,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// As the first six, or a NaN among the operands.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

#[derive(Clone, Debug)]
pub struct Instruction {
    /// Runs where the predicate register has this value.
    pub guard: Option<(usize, bool)>,
    pub kind: Kind,
    pub ty: Ty,
    /// Register of the result.
    pub to: Option<usize>,
    /// Registers of the operands; for accesses, the first holds the address.
    pub from: [usize; 3],
    /// Added to an address.
    pub offset: u64,
    /// What an address must be a multiple of.
    pub align: u64,
    /// Where a branch goes.
    pub target: usize,
    pub text: String,
}

#[derive(Clone, Debug)]
pub struct Program {
    pub name: String,
    pub threads: u32,
    pub param_bytes: usize,
    pub registers: usize,
    /// Registers that never change.
    pub constants: Vec<(usize, u64)>,
    pub code: Vec<Instruction>,
}

pub fn parse(text: &str) -> Result<Program, String> {
    let mut p = Program {
        name: String::new(),
        threads: 0,
        param_bytes: 0,
        registers: 0,
        constants: Vec::new(),
        code: Vec::new(),
    };
    let mut names = Names::default();
    for (number, name) in SPECIAL.iter().enumerate() {
        assert_eq!(names.register(name), number);
    }
    let mut labels: HashMap<usize, usize> = HashMap::new();
    let mut inside = false;
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or("").trim();
        if let Some(rest) = line.strip_prefix(".visible .entry ") {
            p.name = rest.trim_end_matches('(').to_owned();
        } else if let Some(rest) = (line.strip_prefix(".param .align 8 .b8 "))
            .or_else(|| line.strip_prefix(".param .align 64 .b8 "))
        {
            let size = rest
                .split(['[', ']'])
                .nth(1)
                .ok_or("no size of the parameter")?;
            p.param_bytes = size.parse().map_err(|_| format!("parameter size {size}"))?;
            names
                .symbols
                .push(rest.split('[').next().unwrap_or("").to_owned());
        } else if let Some(rest) = line.strip_prefix(".reqntid ") {
            let first = rest.split(',').next().unwrap_or("");
            p.threads = first
                .trim()
                .parse()
                .map_err(|_| format!("threads {first}"))?;
        } else if line.starts_with(".extern .shared") {
            let name = line.split(' ').next_back().unwrap_or("");
            names
                .symbols
                .push(name.split('[').next().unwrap_or("").to_owned());
        } else if line == "{" {
            inside = true;
        } else if !inside || line.is_empty() || line.starts_with('.') || line == "}" {
            continue;
        } else if let Some(label) = line.strip_suffix(':') {
            labels.insert(names.label(label), p.code.len());
        } else {
            let parts = names.instructions(line);
            p.code.extend(parts.map_err(|e| format!("`{line}`: {e}"))?);
        }
    }
    for instruction in &mut p.code {
        if instruction.kind == Kind::Branch {
            let label = labels.get(&instruction.target);
            instruction.target = *label.ok_or("a label that is not there")?;
        }
    }
    p.registers = names.registers.len();
    p.constants = names.constants.into_iter().map(|(x, r)| (r, x)).collect();
    Ok(p)
}

#[derive(Default)]
struct Names {
    registers: HashMap<String, usize>,
    constants: BTreeMap<u64, usize>,
    labels: HashMap<String, usize>,
    /// The parameter and shared memory; both start at address 0 of their space.
    symbols: Vec<String>,
}

impl Names {
    fn register(&mut self, name: &str) -> usize {
        let next = self.registers.len();
        *self.registers.entry(name.to_owned()).or_insert(next)
    }

    fn constant(&mut self, x: u64) -> usize {
        let register = self.register(&format!("constant {x}"));
        self.constants.insert(x, register);
        register
    }

    fn label(&mut self, name: &str) -> usize {
        let next = self.labels.len();
        *self.labels.entry(name.to_owned()).or_insert(next)
    }

    fn instructions(&mut self, line: &str) -> Result<Vec<Instruction>, String> {
        let text = line.to_owned();
        let mut line = line.strip_suffix(';').ok_or("no semicolon")?;
        let mut guard = None;
        if let Some(rest) = line.strip_prefix('@') {
            let (predicate, rest) = rest.split_once(' ').ok_or("a guard alone")?;
            let (predicate, wanted) = match predicate.strip_prefix('!') {
                Some(name) => (name, false),
                None => (predicate, true),
            };
            guard = Some((self.register(predicate), wanted));
            line = rest.trim();
        }
        let (op, rest) = line.split_once(['\t', ' ']).unwrap_or((line, ""));
        let (kind, ty) = kind_of(op)?;
        let operands = split(rest)
            .into_iter()
            .map(|o| self.operand(o))
            .collect::<Result<Vec<_>, _>>()?;
        let bytes = u64::from(ty.bits()).div_ceil(8);
        let zero = self.constant(0);
        let one = |kind, ty, operands: &[Operand]| {
            let mut i = Instruction {
                guard,
                kind,
                ty,
                to: None,
                from: [zero; 3],
                offset: 0,
                align: bytes,
                target: 0,
                text: text.clone(),
            };
            let no_result = match kind {
                Kind::Store(_) => true,
                Kind::Atomic(_) => operands.len() == 2,
                _ => false,
            };
            let mut sources = 0;
            for (n, operand) in operands.iter().enumerate() {
                match *operand {
                    Operand::Label(label) => i.target = label,
                    Operand::Register(r) if n == 0 && !no_result => i.to = Some(r),
                    Operand::Vector(_) => return Err("a vector where none can be".to_owned()),
                    // A shuffle has more, which say that the whole warp takes part.
                    _ if sources == i.from.len() => {}
                    Operand::Register(r) => {
                        i.from[sources] = r;
                        sources += 1;
                    }
                    Operand::Memory { base, offset } => {
                        (i.from[sources], i.offset) = (base, offset);
                        sources += 1;
                    }
                }
            }
            Ok(i)
        };
        // Each part of a vector by itself.
        let mut parts = Vec::new();
        match (kind, &operands[..]) {
            (Kind::Load(_) | Kind::Store(_), [a, b]) => {
                let (memory, value) = match kind {
                    Kind::Load(_) => (b, a),
                    _ => (a, b),
                };
                let (Operand::Vector(registers), &Operand::Memory { base, offset }) =
                    (value, memory)
                else {
                    return Ok(vec![one(kind, ty, &operands)?]);
                };
                for (n, register) in registers.iter().enumerate() {
                    let Some(register) = *register else { continue };
                    let memory = Operand::Memory {
                        base,
                        offset: offset.wrapping_add(n as u64 * bytes),
                    };
                    let mut part = match kind {
                        Kind::Load(_) => one(kind, ty, &[Operand::Register(register), memory])?,
                        _ => one(kind, ty, &[memory, Operand::Register(register)])?,
                    };
                    // The whole vector is aligned, not each part.
                    part.align = match n {
                        0 => bytes * registers.len() as u64,
                        _ => bytes,
                    };
                    parts.push(part);
                }
            }
            (Kind::Move, [Operand::Vector(to), Operand::Register(from)]) => {
                let bits = ty.bits() / to.len() as u32;
                for (n, register) in to.iter().enumerate() {
                    if let Some(register) = *register {
                        let operands = [Operand::Register(register), Operand::Register(*from)];
                        parts.push(one(Kind::Extract(n as u32 * bits), Ty::U(bits), &operands)?);
                    }
                }
            }
            (Kind::Move, [Operand::Register(to), Operand::Vector(from)]) => {
                let bits = ty.bits() / from.len() as u32;
                for (n, register) in from.iter().enumerate() {
                    let register = register.ok_or("`_` as a source")?;
                    let operands = [
                        Operand::Register(*to),
                        Operand::Register(*to),
                        Operand::Register(register),
                    ];
                    parts.push(one(Kind::Insert(n as u32 * bits), Ty::U(bits), &operands)?);
                }
            }
            _ => parts.push(one(kind, ty, &operands)?),
        }
        Ok(parts)
    }

    fn operand(&mut self, text: &str) -> Result<Operand, String> {
        if let Some(inner) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            let parts = inner.split(',').map(|part| match part.trim() {
                "_" => None,
                name => Some(self.register(name)),
            });
            return Ok(Operand::Vector(parts.collect()));
        }
        if text.starts_with('%') {
            return Ok(Operand::Register(self.register(text)));
        }
        if text.starts_with('$') {
            return Ok(Operand::Label(self.label(text)));
        }
        if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            let (base, offset) = inner.split_once('+').unwrap_or((inner, "0"));
            let offset: i64 = offset.parse().map_err(|_| format!("offset {offset}"))?;
            let base = match self.symbols.iter().any(|s| s == base) {
                true => self.constant(0),
                false => self.register(base),
            };
            return Ok(Operand::Memory {
                base,
                offset: offset as u64,
            });
        }
        if self.symbols.iter().any(|s| s == text) {
            return Ok(Operand::Register(self.constant(0)));
        }
        let number = if let Some(bits) = text.strip_prefix("0f") {
            u64::from(u32::from_str_radix(bits, 16).map_err(|e| e.to_string())?)
        } else if let Some(bits) = text.strip_prefix("0d") {
            u64::from_str_radix(bits, 16).map_err(|e| e.to_string())?
        } else {
            text.parse::<i128>()
                .map_err(|_| format!("operand {text}"))? as u64
        };
        Ok(Operand::Register(self.constant(number)))
    }
}

/// At the commas outside of braces.
fn split(operands: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = operands.split(move |c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|o| !o.is_empty()).collect()
}

fn kind_of(op: &str) -> Result<(Kind, Ty), String> {
    let parts: Vec<&str> = op.split('.').collect();
    let has = |what: &str| parts.contains(&what);
    let unknown = || format!("no `{op}` in this emulator");
    let types: Vec<Ty> = parts.iter().filter_map(|p| Ty::parse(p)).collect();
    let ty = types.first().copied();
    let space = || {
        if has("shared") {
            Ok(Space::Shared)
        } else if has("global") {
            Ok(Space::Global)
        } else if has("param") {
            Ok(Space::Param)
        } else {
            Err(unknown())
        }
    };
    // Approximations and flushed subnormals are what our code must never ask for.
    if has("approx") || has("ftz") || has("full") || has("volatile") {
        return Err(unknown());
    }
    let kind = match parts[0] {
        "add" => Kind::Add,
        "sub" => Kind::Sub,
        "mul" if has("wide") => Kind::MulWide,
        "mul" if has("hi") => Kind::MulHigh,
        "mul" => Kind::MulLow,
        "mad" if has("wide") => Kind::MadWide,
        "mad" if has("lo") => Kind::MadLow,
        "fma" if has("rn") => Kind::Fma,
        "div" => Kind::Div,
        "rem" => Kind::Rem,
        "min" if has("NaN") => Kind::MinNan,
        "max" if has("NaN") => Kind::MaxNan,
        "min" => Kind::Min,
        "max" => Kind::Max,
        "and" => Kind::And,
        "or" => Kind::Or,
        "xor" => Kind::Xor,
        "not" => Kind::Not,
        "neg" => Kind::Neg,
        "abs" => Kind::Abs,
        "shl" => Kind::Shl,
        "shr" => Kind::Shr,
        "bfe" => Kind::BitField,
        "sqrt" if has("rn") => Kind::Sqrt,
        "rcp" if has("rn") => Kind::Reciprocal,
        "setp" => Kind::Set(compare_of(parts[1]).ok_or_else(unknown)?),
        "selp" => Kind::Select,
        "mov" => Kind::Move,
        "cvt" => {
            let round = if has("rzi") {
                Round::Zero
            } else if has("rmi") {
                Round::Down
            } else if has("rpi") {
                Round::Up
            } else if has("rni") {
                Round::Even
            } else {
                Round::Nearest
            };
            let &[_, from] = &types[..] else {
                return Err(unknown());
            };
            Kind::Convert(from, round)
        }
        "ld" => Kind::Load(space()?),
        "st" => Kind::Store(space()?),
        "cvta" => Kind::Move,
        "atom" if has("cas") => Kind::Exchange,
        "atom" | "red" => Kind::Atomic(if has("add") {
            Rmw::Add
        } else if has("and") {
            Rmw::And
        } else if has("or") {
            Rmw::Or
        } else if has("max") {
            Rmw::Max
        } else if has("min") {
            Rmw::Min
        } else {
            return Err(unknown());
        }),
        "bra" => return Ok((Kind::Branch, Ty::Pred)),
        "ret" => return Ok((Kind::Return, Ty::Pred)),
        "bar" if has("sync") => return Ok((Kind::Barrier, Ty::Pred)),
        "shfl" if has("down") => Kind::ShuffleDown,
        "fence" | "membar" => return Ok((Kind::Fence, Ty::Pred)),
        _ => return Err(unknown()),
    };
    ty.map(|ty| (kind, ty)).ok_or_else(unknown)
}

fn compare_of(name: &str) -> Option<Compare> {
    use Compare::*;
    Some(match name {
        "eq" => Eq,
        "ne" => Ne,
        "lt" | "lo" => Lt,
        "le" | "ls" => Le,
        "gt" | "hi" => Gt,
        "ge" | "hs" => Ge,
        "equ" => Equ,
        "neu" => Neu,
        "ltu" => Ltu,
        "leu" => Leu,
        "gtu" => Gtu,
        "geu" => Geu,
        "num" => Num,
        "nan" => Nan,
        _ => return None,
    })
}
