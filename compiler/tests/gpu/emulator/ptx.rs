//! Reads the PTX that LLVM writes: one entry function, registers and labels as numbers.

use std::collections::HashMap;

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

#[derive(Clone, Copy, Debug)]
pub enum Operand {
    Register(usize),
    Immediate(u64),
    Thread,
    Cta,
    Ctas,
    /// `[base + offset]`; without a base, the offset alone.
    Memory {
        base: Option<usize>,
        offset: i64,
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
    pub operands: Vec<Operand>,
    pub text: String,
}

#[derive(Clone, Debug)]
pub struct Program {
    pub name: String,
    pub threads: u32,
    pub param_bytes: usize,
    pub registers: usize,
    pub code: Vec<Instruction>,
}

pub fn parse(text: &str) -> Result<Program, String> {
    let mut p = Program {
        name: String::new(),
        threads: 0,
        param_bytes: 0,
        registers: 0,
        code: Vec::new(),
    };
    let mut names = Names::default();
    let mut labels: HashMap<usize, usize> = HashMap::new();
    let mut inside = false;
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or("").trim();
        if let Some(rest) = line.strip_prefix(".visible .entry ") {
            p.name = rest.trim_end_matches('(').to_owned();
        } else if let Some(rest) = line.strip_prefix(".param .align 8 .b8 ") {
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
            p.code.push(
                names
                    .instruction(line)
                    .map_err(|e| format!("`{line}`: {e}"))?,
            );
        }
    }
    for instruction in &mut p.code {
        for operand in &mut instruction.operands {
            if let Operand::Label(label) = operand {
                *label = *labels.get(label).ok_or("a label that is not there")?;
            }
        }
    }
    p.registers = names.registers.len();
    Ok(p)
}

#[derive(Default)]
struct Names {
    registers: HashMap<String, usize>,
    labels: HashMap<String, usize>,
    /// The parameter and shared memory; both start at address 0 of their space.
    symbols: Vec<String>,
}

impl Names {
    fn register(&mut self, name: &str) -> usize {
        let next = self.registers.len();
        *self.registers.entry(name.to_owned()).or_insert(next)
    }

    fn label(&mut self, name: &str) -> usize {
        let next = self.labels.len();
        *self.labels.entry(name.to_owned()).or_insert(next)
    }

    fn instruction(&mut self, line: &str) -> Result<Instruction, String> {
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
        let operands = rest
            .split(',')
            .map(str::trim)
            .filter(|o| !o.is_empty())
            .map(|o| self.operand(o))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Instruction {
            guard,
            kind,
            ty,
            operands,
            text,
        })
    }

    fn operand(&mut self, text: &str) -> Result<Operand, String> {
        match text {
            "%tid.x" => return Ok(Operand::Thread),
            "%ctaid.x" => return Ok(Operand::Cta),
            "%nctaid.x" => return Ok(Operand::Ctas),
            _ => {}
        }
        if text.starts_with('%') {
            return Ok(Operand::Register(self.register(text)));
        }
        if text.starts_with('$') {
            return Ok(Operand::Label(self.label(text)));
        }
        if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            let (base, offset) = match inner.split_once('+') {
                Some((base, offset)) => (
                    base,
                    offset.parse().map_err(|_| format!("offset {offset}"))?,
                ),
                None => (inner, 0),
            };
            let base = match self.symbols.iter().any(|s| s == base) {
                true => None,
                false => Some(self.register(base)),
            };
            return Ok(Operand::Memory { base, offset });
        }
        if self.symbols.iter().any(|s| s == text) {
            return Ok(Operand::Immediate(0));
        }
        let number = if let Some(bits) = text.strip_prefix("0f") {
            u64::from(u32::from_str_radix(bits, 16).map_err(|e| e.to_string())?)
        } else if let Some(bits) = text.strip_prefix("0d") {
            u64::from_str_radix(bits, 16).map_err(|e| e.to_string())?
        } else {
            text.parse::<i128>()
                .map_err(|_| format!("operand {text}"))? as u64
        };
        Ok(Operand::Immediate(number))
    }
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
