//! Reads the PTX that LLVM writes: one entry function, registers and labels as numbers.
//!
//! Special registers and constants are registers too, so that every operand is read the same way; an instruction on vectors becomes one
//! for each part. What `hopper` knows of is read there.

use super::hopper::{self, Special};
use std::collections::{BTreeMap, HashMap, HashSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ty {
    Pred,
    /// `b` and `u`: no sign.
    U(u32),
    S(u32),
    F(u32),
    Bf16,
    E4M3,
    E5M2,
}

impl Ty {
    pub fn bits(self) -> u32 {
        match self {
            Ty::Pred => 1,
            Ty::U(n) | Ty::S(n) | Ty::F(n) => n,
            Ty::Bf16 => 16,
            Ty::E4M3 | Ty::E5M2 => 8,
        }
    }

    pub fn parse(text: &str) -> Option<Ty> {
        match text {
            "pred" => return Some(Ty::Pred),
            "bf16" => return Some(Ty::Bf16),
            "e4m3" => return Some(Ty::E4M3),
            "e5m2" => return Some(Ty::E5M2),
            _ => {}
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

/// Where a block's shared memory starts, as on the hardware: the driver keeps what is below.
pub const SHARED_BASE: u64 = 1024;
/// A generic address of a byte of the parameters is this and its place.
pub const PARAM_BASE: u64 = 1 << 62;

/// Registers that a launch fills, in this order.
pub const SPECIAL: [&str; 8] = [
    "%tid.x",
    "%ctaid.x",
    "%nctaid.x",
    "%cluster_ctarank",
    "%clusterid.x",
    "%nclusterid.x",
    "%laneid",
    "%cluster_ctaid.x",
];

/// An operand as it is written.
#[derive(Clone, Debug)]
pub enum Operand {
    Register(usize),
    /// Some left out: `_`.
    Vector(Vec<Option<usize>>),
    /// `[base + offset]`
    Memory {
        base: usize,
        offset: u64,
    },
    /// `[base + offset, {coordinates}]`
    Box {
        base: usize,
        offset: u64,
        at: Vec<usize>,
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
    /// The sign of the first, the magnitude of the second.
    CopySign,
    Shl,
    Shr,
    BitField,
    /// From a bit on, so many bits of the first source into the second.
    BitInsert(u32, u32),
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
    Fence,
    /// The program's special instruction of this number.
    Special(usize),
    /// `lop3` with its table, `prmt`.
    Logic(u8),
    Permute,
    PopCount,
    LeadingZeros,
    /// Funnel shifts, the second operand above the first.
    FunnelLeft,
    FunnelRight,
    Exp2,
    Log2,
    ApproxReciprocal,
    ApproxReciprocalSqrt,
    /// Two values of the second type, the first operand in the high half, to packed ones.
    Pack(Ty),
    /// Packed values to packed ones of another type.
    Unpack(Ty),
    /// Of two packed values each.
    MulPairs,
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
    /// Blocks of a cluster.
    pub cluster: u32,
    /// Shared memory that the code declares with its size.
    pub static_shared: usize,
    pub registers: usize,
    /// Registers that never change.
    pub constants: Vec<(usize, u64)>,
    /// Those that hold addresses of shared memory, which the block's rank belongs to.
    pub addresses: Vec<(usize, u64)>,
    pub code: Vec<Instruction>,
    pub specials: Vec<Special>,
}

impl Program {
    /// Its threads go different ways that meet at barriers of their own.
    pub fn parts(&self) -> bool {
        let meets = |s: &Special| {
            matches!(
                s,
                Special::BarrierInit { .. } | Special::Barrier { count: Some(_), .. }
            )
        };
        self.specials.iter().any(meets)
    }

    pub fn multiplies(&self) -> bool {
        let mut all = self.specials.iter();
        all.any(|s| matches!(s, Special::MatrixMultiply(_)))
    }
}

pub fn parse(text: &str) -> Result<Program, String> {
    let mut p = Program {
        name: String::new(),
        threads: 0,
        param_bytes: 0,
        cluster: 1,
        static_shared: 0,
        registers: 0,
        constants: Vec::new(),
        addresses: Vec::new(),
        code: Vec::new(),
        specials: Vec::new(),
    };
    let mut names = Names::default();
    for (number, name) in SPECIAL.iter().enumerate() {
        assert_eq!(names.register(name), number);
    }
    let plain: Vec<&str> = (text.lines())
        .map(|line| line.split("//").next().unwrap_or("").trim())
        .filter(|line| !line.starts_with(".loc") && !line.starts_with(".file"))
        .collect();
    let start = plain.iter().position(|line| *line == "{");
    let start = start.ok_or("no function")?;
    for line in &plain[..start] {
        header(line, &mut p, &mut names)?;
    }
    let (statements, parents) = statements(&plain[start + 1..].join("\n"))?;
    names.parents = parents;
    for (scope, text) in &statements {
        names.declare(*scope, text, &mut p)?;
    }
    for symbol in names.dynamic.clone() {
        // Behind what has a size.
        let at = SHARED_BASE + p.static_shared.next_multiple_of(1024) as u64;
        names.symbols.insert(symbol, (at, true));
    }
    let mut labels: HashMap<usize, usize> = HashMap::new();
    for (scope, text) in &statements {
        names.scope = *scope;
        if let Some(label) = text.strip_suffix(':') {
            labels.insert(names.label(label), p.code.len());
        } else if !text.starts_with('.') {
            let parts = names.instructions(text, &mut p.specials);
            p.code.extend(parts.map_err(|e| format!("`{text}`: {e}"))?);
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
    p.addresses = names.addresses.into_iter().map(|(x, r)| (r, x)).collect();
    Ok(p)
}

/// A line before the function's body.
fn header(line: &str, p: &mut Program, names: &mut Names) -> Result<(), String> {
    let number = |text: &str| -> Result<usize, String> {
        let digits: String = text
            .trim()
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        digits.parse().map_err(|_| format!("a number in `{line}`"))
    };
    if let Some(rest) = line.strip_prefix(".visible .entry ") {
        p.name = rest.trim_end_matches('(').to_owned();
    } else if line.starts_with(".param") {
        let (size, align, name) = variable(line)?;
        let at = p.param_bytes.next_multiple_of(align);
        names.symbols.insert(name, (at as u64, false));
        p.param_bytes = at + size;
    } else if let Some(rest) = line.strip_prefix(".reqntid ") {
        p.threads = number(rest)? as u32;
    } else if let Some(rest) = line.strip_prefix(".reqnctapercluster ") {
        p.cluster = number(rest)? as u32;
    } else if line.starts_with(".extern .shared") {
        names.dynamic.push(variable(line)?.2);
    } else if line.starts_with(".shared") {
        names.shared(line, p)?;
    }
    Ok(())
}

/// `.param .align 64 .b8 name[128]`: size, alignment and name.
fn variable(line: &str) -> Result<(usize, usize, String), String> {
    let bad = || format!("the variable `{line}`");
    let line = line.trim_end_matches([',', ';']);
    let words: Vec<&str> = line.split_whitespace().collect();
    let last = words.last().ok_or_else(bad)?;
    let ty = words
        .iter()
        .find_map(|w| w.strip_prefix('.').and_then(Ty::parse));
    let element = ty.ok_or_else(bad)?.bits() as usize / 8;
    let (name, count) = match last.split_once('[') {
        Some((name, "]")) => (name, 0),
        Some((name, count)) => (
            name,
            count.trim_end_matches(']').parse().map_err(|_| bad())?,
        ),
        None => (*last, 1),
    };
    // Behind `.ptr` it is what the pointer points at.
    let align = (words.iter().position(|w| *w == ".align"))
        .filter(|_| !words.contains(&".ptr"))
        .map(|i| words[i + 1].parse());
    let align = align.unwrap_or(Ok(element)).map_err(|_| bad())?;
    Ok((element * count, align, name.to_owned()))
}

/// Statements and labels (which keep their colon), each with its scope; and the scope around each scope. Scope 0 is the body.
#[allow(clippy::type_complexity, reason = "used once")]
fn statements(body: &str) -> Result<(Vec<(usize, String)>, Vec<usize>), String> {
    let mut found = vec![];
    let mut parents = vec![0];
    let mut scopes = vec![0];
    let mut text = String::new();
    let mut chars = body.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' if text.is_empty() => {
                parents.push(*scopes.last().expect("the body's scope closes last"));
                scopes.push(parents.len() - 1);
            }
            '}' if text.is_empty() => {
                scopes.pop();
                if scopes.is_empty() {
                    return Ok((found, parents));
                }
            }
            ';' => {
                let scope = *scopes.last().expect("the body's scope closes last");
                found.push((scope, std::mem::take(&mut text).trim().to_owned()));
            }
            ':' if chars.peek() != Some(&':') && !text.ends_with(':') && !text.contains(' ') => {
                let scope = *scopes.last().expect("the body's scope closes last");
                found.push((scope, std::mem::take(&mut text) + ":"));
            }
            c if c.is_whitespace() && (text.is_empty() || text.ends_with(' ')) => {}
            c if c.is_whitespace() => text.push(' '),
            c => text.push(c),
        }
    }
    Err("the function has no end".to_owned())
}

#[derive(Default)]
pub struct Names {
    registers: HashMap<String, usize>,
    constants: BTreeMap<u64, usize>,
    addresses: BTreeMap<u64, usize>,
    labels: HashMap<String, usize>,
    /// Addresses, each in its space, and whether that is shared memory.
    symbols: HashMap<String, (u64, bool)>,
    /// Shared memory whose size the launch gives.
    dynamic: Vec<String>,
    /// What inner scopes declare, and the scope around each.
    declared: HashSet<(usize, String)>,
    parents: Vec<usize>,
    /// Of the statement in hand.
    scope: usize,
}

impl Names {
    fn shared(&mut self, line: &str, p: &mut Program) -> Result<(), String> {
        let (size, align, name) = variable(line)?;
        let at = p.static_shared.next_multiple_of(align);
        self.symbols.insert(name, (SHARED_BASE + at as u64, true));
        p.static_shared = at + size;
        Ok(())
    }

    fn declare(&mut self, scope: usize, text: &str, p: &mut Program) -> Result<(), String> {
        if text.starts_with(".shared") {
            return self.shared(text, p);
        }
        if let Some(label) = text.strip_suffix(':') {
            self.declared.insert((scope, label.to_owned()));
        }
        let Some(rest) = text.strip_prefix(".reg").filter(|_| scope > 0) else {
            return Ok(());
        };
        let names = rest
            .trim()
            .split_once([' ', '\t'])
            .map_or("", |(_, names)| names);
        for name in names.split(',').map(str::trim) {
            match name.split_once('<') {
                None => {
                    self.declared.insert((scope, name.to_owned()));
                }
                Some((name, count)) => {
                    let count = count
                        .trim_end_matches('>')
                        .parse()
                        .map_err(|_| text.to_owned())?;
                    for i in 0..count {
                        let i: u32 = i;
                        self.declared.insert((scope, format!("{name}{i}")));
                    }
                }
            }
        }
        Ok(())
    }

    /// The name that the nearest scope has declared, told from the same name elsewhere.
    fn resolve(&self, name: &str) -> Option<String> {
        let mut scope = self.scope;
        loop {
            if self.declared.contains(&(scope, name.to_owned())) {
                return Some(format!("{name}#{scope}"));
            }
            if scope == 0 {
                return None;
            }
            scope = self.parents[scope];
        }
    }

    fn register(&mut self, name: &str) -> usize {
        let next = self.registers.len();
        *self.registers.entry(name.to_owned()).or_insert(next)
    }

    pub fn constant(&mut self, x: u64) -> usize {
        let register = self.register(&format!("constant {x}"));
        self.constants.insert(x, register);
        register
    }

    fn label(&mut self, name: &str) -> usize {
        let name = self.resolve(name).unwrap_or_else(|| name.to_owned());
        let next = self.labels.len();
        *self.labels.entry(name).or_insert(next)
    }

    fn instructions(
        &mut self,
        line: &str,
        specials: &mut Vec<Special>,
    ) -> Result<Vec<Instruction>, String> {
        let mut line = line;
        let text: String = line.chars().take(120).collect();
        let mut guard = None;
        if let Some(rest) = line.strip_prefix('@') {
            let (predicate, rest) = rest.split_once(' ').ok_or("a guard alone")?;
            let (predicate, wanted) = match predicate.strip_prefix('!') {
                Some(name) => (name, false),
                None => (predicate, true),
            };
            let predicate = self
                .resolve(predicate)
                .unwrap_or_else(|| predicate.to_owned());
            guard = Some((self.register(&predicate), wanted));
            line = rest.trim();
        }
        let (op, rest) = line.split_once(['\t', ' ']).unwrap_or((line, ""));
        let mut table_of_logic = 0;
        let mut operands = match op.split('.').next() {
            Some("bra") => vec![Operand::Label(self.label(rest.trim()))],
            _ => split(rest)
                .into_iter()
                .map(|o| self.operand(o))
                .collect::<Result<Vec<_>, _>>()?,
        };
        if let ("lop3.b32", Some(&Operand::Register(table))) = (op, operands.get(4)) {
            let table = self.known(table).ok_or("a table that is no number")?;
            operands.truncate(4);
            table_of_logic = table as u8;
        }
        let mut field = None;
        if let ("bfi.b32", &[_, _, _, Operand::Register(from), Operand::Register(len)]) =
            (op, &operands[..])
        {
            let number = |of| self.known(of).ok_or("a field of bits that is no number");
            field = Some((number(from)? as u32 & 0xff, number(len)? as u32 & 0xff));
            operands.truncate(3);
        }
        let special = hopper::read(op, &operands, self)?;
        let (kind, ty) = match &special {
            Some(_) => (Kind::Special(specials.len()), Ty::U(32)),
            None if op == "lop3.b32" => (Kind::Logic(table_of_logic), Ty::U(32)),
            None => match field {
                Some((from, len)) => (Kind::BitInsert(from, len), Ty::U(32)),
                None => kind_of(op)?,
            },
        };
        if let Some((special, to)) = special {
            specials.push(special);
            return Ok(vec![Instruction {
                guard,
                kind,
                ty,
                to,
                from: [self.constant(0); 3],
                offset: 0,
                align: 1,
                target: 0,
                text,
            }]);
        }
        if op == "cvta.param.u64" {
            operands.push(Operand::Register(self.constant(PARAM_BASE)));
        }
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
                    Operand::Vector(_) | Operand::Box { .. } => {
                        return Err("an operand where none can be".to_owned());
                    }
                    _ if sources == i.from.len() => return Err("a fourth source".to_owned()),
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
        let inner = text.strip_prefix('{').and_then(|t| t.strip_suffix('}'));
        let parts = match inner {
            Some(inner) => Some(split(inner)),
            // A value and a predicate.
            None => text.contains('|').then(|| text.split('|').collect()),
        };
        if let Some(parts) = parts {
            let registers = parts.into_iter().map(|part| match part.trim() {
                "_" => Ok(None),
                name => self.value(name).map(Some),
            });
            return Ok(Operand::Vector(registers.collect::<Result<_, _>>()?));
        }
        if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            let parts = split(inner);
            let (base, offset) = parts[0].split_once('+').unwrap_or((parts[0], "0"));
            let offset: i64 = offset.parse().map_err(|_| format!("offset {offset}"))?;
            let (base, offset) = (self.value(base)?, offset as u64);
            let [_, at] = parts[..] else {
                return Ok(Operand::Memory { base, offset });
            };
            let Operand::Vector(at) = self.operand(at)? else {
                return Err(format!("coordinates {at}"));
            };
            let at = at
                .into_iter()
                .collect::<Option<_>>()
                .ok_or("`_` as a coordinate")?;
            return Ok(Operand::Box { base, offset, at });
        }
        if text == "_" {
            let register = self.register("nobody reads it");
            return Ok(Operand::Register(register));
        }
        self.value(text).map(Operand::Register)
    }

    /// A register, or a number or address as one.
    fn value(&mut self, text: &str) -> Result<usize, String> {
        if let Some(name) = self.resolve(text) {
            return Ok(self.register(&name));
        }
        if text.starts_with('%') {
            return Ok(self.register(text));
        }
        match self.symbols.get(text) {
            Some(&(address, false)) => return Ok(self.constant(address)),
            Some(&(address, true)) => {
                let register = self.register(&format!("shared {address}"));
                self.addresses.insert(address, register);
                return Ok(register);
            }
            None => {}
        }
        let number = if let Some(bits) = text.strip_prefix("0f") {
            u64::from(u32::from_str_radix(bits, 16).map_err(|e| e.to_string())?)
        } else if let Some(bits) = text.strip_prefix("0d") {
            u64::from_str_radix(bits, 16).map_err(|e| e.to_string())?
        } else if let Some(bits) = text.strip_prefix("0x") {
            u64::from_str_radix(bits.trim_end_matches('U'), 16).map_err(|e| e.to_string())?
        } else {
            text.parse::<i128>()
                .map_err(|_| format!("operand {text}"))? as u64
        };
        Ok(self.constant(number))
    }

    /// The number that a register always holds.
    pub fn known(&self, register: usize) -> Option<u64> {
        let mut all = self.constants.iter();
        all.find(|(_, r)| **r == register).map(|(x, _)| *x)
    }
}

/// At the commas outside of braces and brackets.
fn split(operands: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = operands.split(move |c| {
        depth += i32::from("{[".contains(c)) - i32::from("}]".contains(c));
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
        if has("shared") || has("shared::cta") {
            Ok(Space::Shared)
        } else if has("global") {
            Ok(Space::Global)
        } else if has("param") {
            Ok(Space::Param)
        } else {
            Err(unknown())
        }
    };
    let kind = match parts[0] {
        "ex2" if has("f32") => Kind::Exp2,
        "lg2" if has("f32") => Kind::Log2,
        "rcp" if has("approx") && has("f32") => Kind::ApproxReciprocal,
        "rsqrt" if has("f32") => Kind::ApproxReciprocalSqrt,
        // What our code must never ask for; of approximations, just those above.
        _ if has("approx") || has("ftz") || has("full") || has("volatile") => return Err(unknown()),
        "prmt" => Kind::Permute,
        "popc" => Kind::PopCount,
        "clz" => Kind::LeadingZeros,
        "shf" if has("wrap") && has("l") => Kind::FunnelLeft,
        "shf" if has("wrap") && has("r") => Kind::FunnelRight,
        "add" => Kind::Add,
        "sub" => Kind::Sub,
        "mul" if has("wide") => Kind::MulWide,
        "mul" if has("hi") => Kind::MulHigh,
        "mul" if has("bf16x2") && has("rn") => return Ok((Kind::MulPairs, Ty::Bf16)),
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
        "copysign" if has("f32") => Kind::CopySign,
        "shl" => Kind::Shl,
        "shr" => Kind::Shr,
        "bfe" => Kind::BitField,
        "sqrt" if has("rn") => Kind::Sqrt,
        "rcp" if has("rn") => Kind::Reciprocal,
        "setp" if parts.len() != 3 => return Err(unknown()),
        "setp" => Kind::Set(compare_of(parts[1]).ok_or_else(unknown)?),
        "selp" => Kind::Select,
        "mov" => Kind::Move,
        "cvt" if parts.iter().any(|p| p.ends_with("x2")) => {
            let packed: Vec<&str> = parts.iter().filter_map(|p| p.strip_suffix("x2")).collect();
            let element = |name: &str| Ty::parse(name).ok_or_else(unknown);
            return match packed[..] {
                [to] if has("f32") && has("rn") => Ok((Kind::Pack(element(to)?), Ty::F(32))),
                [to, from] => Ok((Kind::Unpack(element(from)?), element(to)?)),
                _ => Err(unknown()),
            };
        }
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
        "cvta" if has("param") && !has("to") => Kind::Or,
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
        // Between threads that meet at barriers they change nothing; the proxies' fences are special.
        "fence" | "membar" | "nanosleep" => return Ok((Kind::Fence, Ty::Pred)),
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
