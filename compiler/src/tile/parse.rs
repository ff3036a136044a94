//! Reads the text of [`super::print`]. For tests and reproducers, so an error is a line and a few words.
//!
//! Needs: text as `print` writes it; line breaks and indentation are free, `//` starts a comment. The result is not verified.

use super::build::Builder;
use super::ir::*;
use super::print::*;
use super::scalar;
use std::collections::HashMap;
use std::fmt;
use tessera_artifact::{DType, HostExpr, ParamMode};

#[derive(Clone, Debug, PartialEq)]
pub struct ParseError {
    pub line: usize,
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for ParseError {}

type Result<T> = std::result::Result<T, ParseError>;

pub fn parse(text: &str) -> Result<Kernel> {
    let tokens = tokens(text)?;
    let builder = Builder::new("", Default::default());
    let mut p = Parser {
        tokens,
        at: 0,
        b: builder,
        values: HashMap::new(),
    };
    p.kernel()?;
    Ok(p.b.finish())
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// Names, numbers, `%3`.
    Word(String),
    Text(String),
    Mark(&'static str),
    End,
}

const MARKS: [&str; 14] = [
    ":+", "<-", "+=", ">=", "{", "}", "[", "]", "(", ")", ",", "=", ":", ";",
];

fn tokens(text: &str) -> Result<Vec<(Token, usize)>> {
    let mut out = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let error = |message: String| ParseError {
            line: number + 1,
            message,
        };
        let mut rest = line.trim_start();
        while !rest.is_empty() && !rest.starts_with("//") {
            if rest.starts_with('"') {
                let end = string_end(rest).ok_or_else(|| error("a string does not end".into()))?;
                let value = unescape(&rest[1..end])
                    .ok_or_else(|| error("an unknown escape in a string".into()))?;
                out.push((Token::Text(value), number + 1));
                rest = rest[end + 1..].trim_start();
                continue;
            }
            if let Some(mark) = MARKS.iter().find(|m| rest.starts_with(**m)) {
                out.push((Token::Mark(mark), number + 1));
                rest = rest[mark.len()..].trim_start();
                continue;
            }
            let end = rest
                .find(|c: char| !(c.is_alphanumeric() || "_%.-+".contains(c)))
                .unwrap_or(rest.len());
            if end == 0 {
                return Err(error(format!(
                    "unexpected `{}`",
                    rest.chars().next().unwrap_or(' ')
                )));
            }
            out.push((Token::Word(rest[..end].to_string()), number + 1));
            rest = rest[end..].trim_start();
        }
    }
    Ok(out)
}

/// Offset of the quote that closes the string at the start of `s`.
fn string_end(s: &str) -> Option<usize> {
    let mut escaped = false;
    s.char_indices().skip(1).find_map(|(i, c)| {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == '"' {
            return Some(i);
        }
        None
    })
}

/// What `{:?}` of a string writes.
fn unescape(s: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = s.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next()? {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            '0' => '\0',
            'u' => {
                let hex: String = chars.by_ref().skip(1).take_while(|&c| c != '}').collect();
                char::from_u32(u32::from_str_radix(&hex, 16).ok()?)?
            }
            c @ ('\\' | '"' | '\'') => c,
            _ => return None,
        });
    }
    Some(out)
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    b: Builder,
    values: HashMap<String, ValueId>,
}

impl Parser {
    // ---- tokens ---------------------------------------------------------------------------------------

    fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        let line = self
            .tokens
            .get(self.at)
            .or(self.tokens.last())
            .map_or(1, |t| t.1);
        Err(ParseError {
            line,
            message: message.into(),
        })
    }

    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |t| &t.0)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn take(&mut self, mark: &'static str) -> bool {
        let found = *self.peek() == Token::Mark(mark);
        self.at += found as usize;
        found
    }

    fn mark(&mut self, mark: &'static str) -> Result<()> {
        if self.take(mark) {
            Ok(())
        } else {
            self.error(format!("expected `{mark}`, found {:?}", self.peek()))
        }
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Token::Word(w) if w == word);
        self.at += found as usize;
        found
    }

    fn keyword(&mut self, word: &str) -> Result<()> {
        if self.take_word(word) {
            Ok(())
        } else {
            self.error(format!("expected `{word}`, found {:?}", self.peek()))
        }
    }

    fn word(&mut self) -> Result<String> {
        match self.next() {
            Token::Word(w) => Ok(w),
            other => {
                self.at -= 1;
                self.error(format!("expected a word, found {other:?}"))
            }
        }
    }

    fn text(&mut self) -> Result<String> {
        match self.next() {
            Token::Text(t) => Ok(t),
            other => {
                self.at -= 1;
                self.error(format!("expected a string, found {other:?}"))
            }
        }
    }

    fn number<T: std::str::FromStr>(&mut self) -> Result<T> {
        let w = self.word()?;
        match w.parse() {
            Ok(n) => Ok(n),
            Err(_) => self.error(format!("`{w}` is no number of this kind")),
        }
    }

    fn dtype(&mut self) -> Result<DType> {
        let w = self.word()?;
        match DType::from_name(&w) {
            Some(d) => Ok(d),
            None => self.error(format!("`{w}` is no element type")),
        }
    }

    /// `t3`, `p0`, `d1`, `c2`
    fn id(&mut self, letter: char) -> Result<u32> {
        let w = self.word()?;
        match w.strip_prefix(letter).and_then(|n| n.parse().ok()) {
            Some(n) => Ok(n),
            None => self.error(format!("expected `{letter}` and a number, found `{w}`")),
        }
    }

    fn tile_id(&mut self) -> Result<TileId> {
        let id = self.id('t')?;
        if (id as usize) < self.b.kernel.tiles.len() {
            Ok(TileId(id))
        } else {
            self.error(format!("there is no tile t{id}"))
        }
    }

    fn param_id(&mut self) -> Result<ParamId> {
        let id = self.id('p')?;
        if (id as usize) < self.b.kernel.params.len() {
            Ok(ParamId(id))
        } else {
            self.error(format!("there is no parameter p{id}"))
        }
    }

    fn channel_id(&mut self) -> Result<ChannelId> {
        let id = self.id('c')?;
        if (id as usize) < self.b.kernel.channels.len() {
            Ok(ChannelId(id))
        } else {
            self.error(format!("there is no channel c{id}"))
        }
    }

    fn dim_id(&mut self) -> Result<DimId> {
        let id = self.id('d')?;
        if (id as usize) < self.b.kernel.dims.len() {
            Ok(DimId(id))
        } else {
            self.error(format!("there is no dim d{id}"))
        }
    }

    /// `[a, b, c]`
    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        self.mark("[")?;
        let mut out = Vec::new();
        while !self.take("]") {
            if !out.is_empty() {
                self.mark(",")?;
            }
            out.push(item(self)?);
        }
        Ok(out)
    }

    // ---- declarations -----------------------------------------------------------------------------------

    fn kernel(&mut self) -> Result<()> {
        self.keyword("kernel")?;
        self.b.kernel.name = self.text()?;
        self.mark("{")?;
        while !self.take_word("body") {
            self.declaration()?;
        }
        let body = self.b.kernel.body;
        self.ops(body)?;
        self.mark("}")
    }

    fn declaration(&mut self) -> Result<()> {
        match self.word()?.as_str() {
            "docs" => self.b.kernel.docs = self.text()?,
            "generic" => {
                let name = self.text()?;
                self.mark("=")?;
                let value = match self.word()?.as_str() {
                    "int" => GenericValue::Int(self.number()?),
                    "bool" => GenericValue::Bool(self.number()?),
                    "dtype" => GenericValue::DType(self.dtype()?),
                    other => return self.error(format!("unknown kind of generic `{other}`")),
                };
                self.b.kernel.generics.push((name, value));
            }
            "dim" => {
                self.id('d')?;
                let name = self.text()?;
                let lo = self.number()?;
                self.keyword("to")?;
                let hi = self.number()?;
                self.keyword("step")?;
                let step = self.number()?;
                let scalar = if self.take_word("scalar") {
                    Some(ParamId(self.id('p')?))
                } else {
                    None
                };
                self.b.push_dim(Dim {
                    name,
                    lo,
                    hi,
                    step,
                    scalar,
                    span: Default::default(),
                });
            }
            "param" => {
                self.id('p')?;
                let name = self.text()?;
                let kind = self.param_kind()?;
                self.b.param(name, kind);
            }
            "require" => {
                let cond = self.host()?;
                let text = self.text()?;
                let message = if self.take_word("message") {
                    Some(self.text()?)
                } else {
                    None
                };
                self.b.kernel.requires.push(Requirement {
                    cond,
                    text,
                    message,
                    span: Default::default(),
                });
            }
            "grid" => {
                let grid = self.list(Self::host)?;
                let persistent = self.take_word("persistent");
                let warps = if self.take_word("warps") {
                    Some(self.number()?)
                } else {
                    None
                };
                self.b.kernel.launch = Launch {
                    grid,
                    persistent,
                    warps,
                };
            }
            "contract" => {
                let contract = match self.word()?.as_str() {
                    "deterministic" => Contract::Deterministic(Default::default()),
                    "batch_invariant" => {
                        Contract::BatchInvariant(self.dim_id()?, Default::default())
                    }
                    other => return self.error(format!("unknown contract `{other}`")),
                };
                self.b.kernel.contracts.push(contract);
            }
            "deny" => {
                let lint = self.text()?;
                self.b.kernel.deny.push(lint);
            }
            "budget" => match self.word()?.as_str() {
                "shared" => self.b.kernel.budget.shared_bytes = Some(self.number()?),
                "registers" => self.b.kernel.budget.registers = Some(self.number()?),
                other => return self.error(format!("unknown budget `{other}`")),
            },
            "tile" => {
                self.id('t')?;
                let name = self.text()?;
                let space = match self.word()?.as_str() {
                    "shared" => Space::Shared,
                    "reg" => Space::Reg,
                    "cluster" => Space::Cluster,
                    "slot" => Space::Slot,
                    other => return self.error(format!("unknown space `{other}`")),
                };
                let shape = self.list(Self::number)?;
                let dtype = self.dtype()?;
                self.b.tile(name, space, dtype, &shape);
            }
            "channel" => {
                self.id('c')?;
                let name = self.text()?;
                let shape = self.list(Self::number)?;
                let dtype = self.dtype()?;
                self.keyword("parts")?;
                let parts = self.number()?;
                let slots = if self.take_word("slots") {
                    Some(self.number()?)
                } else {
                    None
                };
                let ring = if self.take_word("ring") {
                    Some(ChannelId(self.id('c')?))
                } else {
                    None
                };
                self.b.channel(Channel {
                    name,
                    shape,
                    dtype,
                    slots,
                    parts,
                    ring,
                    span: Default::default(),
                });
            }
            other => return self.error(format!("unknown declaration `{other}`")),
        }
        Ok(())
    }

    fn param_kind(&mut self) -> Result<ParamKind> {
        let mode = match self.word()?.as_str() {
            "scalar" => return Ok(ParamKind::Scalar(self.dtype()?)),
            "index" => return Ok(ParamKind::Index),
            "in" => ParamMode::In,
            "out" => ParamMode::Out,
            "inout" => ParamMode::InOut,
            "scratch" => ParamMode::Scratch,
            "flags" => ParamMode::Flags,
            other => return self.error(format!("unknown kind of parameter `{other}`")),
        };
        let shape = self.list(Self::host)?;
        let dtype = self.dtype()?;
        self.keyword("align")?;
        let align = self.number()?;
        let contiguous = !self.take_word("strided");
        Ok(ParamKind::Tensor(Tensor {
            mode,
            dtype,
            shape,
            align,
            contiguous,
        }))
    }

    fn host(&mut self) -> Result<HostExpr> {
        let w = self.word()?;
        Ok(match w.as_str() {
            "float" => HostExpr::Float(self.number()?),
            "true" => HostExpr::Bool(true),
            "false" => HostExpr::Bool(false),
            "dim" => HostExpr::Dim(self.text()?),
            "scalar" => HostExpr::Scalar(self.text()?),
            _ => {
                if let Ok(i) = w.parse() {
                    return Ok(HostExpr::Int(i));
                }
                let Some(op) = HOST_OPS.into_iter().find(|&o| host_op_name(o) == w) else {
                    return self.error(format!("unknown host expression `{w}`"));
                };
                self.mark("(")?;
                let mut args = Vec::new();
                while !self.take(")") {
                    if !args.is_empty() {
                        self.mark(",")?;
                    }
                    args.push(self.host()?);
                }
                HostExpr::Op(op, args)
            }
        })
    }

    // ---- ops ----------------------------------------------------------------------------------------------

    fn value(&mut self) -> Result<ValueId> {
        let w = self.word()?;
        match self.values.get(&w) {
            Some(v) => Ok(*v),
            None => self.error(format!("`{w}` is no value defined above")),
        }
    }

    fn values(&mut self, n: usize) -> Result<Vec<ValueId>> {
        let mut out = vec![self.value()?];
        while out.len() < n {
            self.mark(",")?;
            out.push(self.value()?);
        }
        Ok(out)
    }

    fn define(&mut self, word: String, value: ValueId) -> Result<()> {
        if let Token::Text(_) = self.peek() {
            let name = self.text()?;
            self.b.name(value, name);
        }
        self.values.insert(word, value);
        Ok(())
    }

    /// `(%0, %1) { … }` with index arguments.
    fn block(&mut self) -> Result<BlockId> {
        let mut names = Vec::new();
        if self.take("(") {
            loop {
                let word = self.word()?;
                let name = if let Token::Text(_) = self.peek() {
                    Some(self.text()?)
                } else {
                    None
                };
                names.push((word, name));
                if self.take(")") {
                    break;
                }
                self.mark(",")?;
            }
        }
        let block = self.b.block(&vec![Type::Index; names.len()]);
        for (i, (word, name)) in names.into_iter().enumerate() {
            let value = self.b.block_arg(block, i);
            if let Some(name) = name {
                self.b.name(value, name);
            }
            self.values.insert(word, value);
        }
        self.b.push(block);
        let done = self.ops(block);
        self.b.pop();
        done.map(|()| block)
    }

    fn ops(&mut self, _block: BlockId) -> Result<()> {
        self.mark("{")?;
        while !self.take("}") {
            self.op()?;
        }
        Ok(())
    }

    fn op(&mut self) -> Result<()> {
        let word = self.word()?;
        if !word.starts_with('%') {
            let kind = self.effect(&word)?;
            self.b.effect(kind);
            return Ok(());
        }
        let name = if let Token::Text(_) = self.peek() {
            Some(self.text()?)
        } else {
            None
        };
        self.mark("=")?;
        let opcode = self.word()?;
        let (kind, ty) = self.pure_or_load(&opcode)?;
        let value = self.b.value(kind, ty);
        self.define(word, value)?;
        if let Some(name) = name {
            self.b.name(value, name);
        }
        Ok(())
    }

    fn pure_or_load(&mut self, opcode: &str) -> Result<(OpKind, Type)> {
        let kind = match opcode {
            "const" => OpKind::Const(self.constant()?),
            "scalar" => {
                let param = self.param_id()?;
                let ty = match self.b.kernel.param(param).kind {
                    ParamKind::Scalar(d) => Type::Scalar(d),
                    _ => Type::Index,
                };
                return Ok((OpKind::Scalar(param), ty));
            }
            "dim" => OpKind::Dim(self.dim_id()?),
            "block" => OpKind::BlockIndex(self.number()?),
            "fma" | "select" => {
                let v = self.values(3)?;
                if opcode == "fma" {
                    OpKind::Fma(v[0], v[1], v[2])
                } else {
                    OpKind::Select(v[0], v[1], v[2])
                }
            }
            "cast" => {
                let a = self.value()?;
                self.keyword("to")?;
                let ty = if self.take_word("index") {
                    Type::Index
                } else {
                    Type::Scalar(self.dtype()?)
                };
                OpKind::Cast(a, ty)
            }
            "bitcast" => {
                let a = self.value()?;
                self.keyword("to")?;
                OpKind::Bitcast(a, self.dtype()?)
            }
            "load" => return self.load(),
            _ => {
                if let Some(op) = UNARY.into_iter().find(|&o| unary_name(o) == opcode) {
                    OpKind::Unary(op, self.value()?)
                } else if let Some(op) = BINARY.into_iter().find(|&o| binary_name(o) == opcode) {
                    let v = self.values(2)?;
                    OpKind::Binary(op, v[0], v[1])
                } else if let Some(p) = PREDICATES
                    .into_iter()
                    .find(|&p| predicate_name(p) == opcode)
                {
                    let v = self.values(2)?;
                    OpKind::Compare(p, v[0], v[1])
                } else {
                    return self.error(format!("unknown op `{opcode}`"));
                }
            }
        };
        let ty = scalar::result_type(&kind, &|v| self.b.kernel.ty(v))
            .expect("every kind made above is pure");
        Ok((kind, ty))
    }

    fn constant(&mut self) -> Result<Const> {
        if self.take_word("index") {
            return Ok(Const::Index(self.number()?));
        }
        let dtype = self.dtype()?;
        Ok(match dtype {
            DType::Bool => Const::Bool(self.number()?),
            DType::F64 => Const::Float(self.number()?, dtype),
            d if d.is_float() => Const::Float(self.number::<f32>()? as f64, d),
            d => Const::Int(self.number()?, d),
        })
    }

    fn load(&mut self) -> Result<(OpKind, Type)> {
        let at_tile = matches!(self.peek(), Token::Word(w) if w.starts_with('t'));
        if at_tile {
            let tile = self.tile_id()?;
            let index = self.list(Self::value)?;
            let ty = Type::Scalar(self.b.kernel.tile(tile).dtype);
            return Ok((OpKind::LoadTile { tile, index }, ty));
        }
        let param = self.param_id()?;
        let index = self.list(Self::value)?;
        let guard = self.guard()?;
        match self.b.kernel.tensor(param) {
            Some(t) => {
                let ty = Type::Scalar(t.dtype);
                Ok((
                    OpKind::LoadGlobal {
                        param,
                        index,
                        guard,
                    },
                    ty,
                ))
            }
            None => self.error("a load of a scalar parameter"),
        }
    }

    fn guard(&mut self) -> Result<Option<ValueId>> {
        if self.take_word("if") {
            self.value().map(Some)
        } else {
            Ok(None)
        }
    }

    fn fold_op(&mut self) -> Result<FoldOp> {
        let w = self.word()?;
        match FOLDS.into_iter().find(|&o| fold_name(o) == w) {
            Some(op) => Ok(op),
            None => self.error(format!("unknown fold `{w}`")),
        }
    }

    fn oob(&mut self) -> Result<Oob> {
        self.keyword("oob")?;
        match self.word()?.as_str() {
            "never" => Ok(Oob::Never),
            "zero" => Ok(Oob::Zero),
            "skip" => Ok(Oob::Skip),
            "error" => Ok(Oob::Error),
            other => self.error(format!("unknown out-of-bounds rule `{other}`")),
        }
    }

    fn view(&mut self) -> Result<View> {
        let at_tile = matches!(self.peek(), Token::Word(w) if w.starts_with('t'));
        let base = if at_tile {
            Base::Tile(self.tile_id()?)
        } else {
            Base::Param(self.param_id()?)
        };
        let slots = self.list(Self::slot)?;
        Ok(View { base, slots })
    }

    fn slot(&mut self) -> Result<Slot> {
        if self.take_word("gather") {
            let index = Box::new(self.view()?);
            self.mark(":+")?;
            return Ok(Slot::Gather {
                index,
                len: self.number()?,
            });
        }
        let start = self.value()?;
        if self.take(":+") {
            return Ok(Slot::Span {
                start,
                len: self.number()?,
            });
        }
        Ok(Slot::At(start))
    }

    fn tile_view(&mut self) -> Result<TileView> {
        let tile = self.tile_id()?;
        let slots = self.list(Self::slot)?;
        Ok(TileView { tile, slots })
    }

    fn operand(&mut self) -> Result<Operand> {
        let view = self.tile_view()?;
        let transposed = self.take_word("transposed");
        Ok(Operand { view, transposed })
    }

    fn effect(&mut self, opcode: &str) -> Result<OpKind> {
        Ok(match opcode {
            "store" | "scatter" => {
                let scatter = opcode == "scatter";
                let at_tile = matches!(self.peek(), Token::Word(w) if w.starts_with('t'));
                if at_tile && !scatter {
                    let tile = self.tile_id()?;
                    let index = self.list(Self::value)?;
                    self.mark("=")?;
                    return Ok(OpKind::StoreTile {
                        tile,
                        index,
                        value: self.value()?,
                    });
                }
                let param = self.param_id()?;
                let index = self.list(Self::value)?;
                self.mark("=")?;
                let value = self.value()?;
                OpKind::StoreGlobal {
                    param,
                    index,
                    value,
                    guard: self.guard()?,
                    scatter,
                }
            }
            "atomic" => {
                let op = self.fold_op()?;
                let param = self.param_id()?;
                let index = self.list(Self::value)?;
                self.mark("=")?;
                let value = self.value()?;
                OpKind::Atomic {
                    op,
                    param,
                    index,
                    value,
                    guard: self.guard()?,
                }
            }
            "map" => {
                let extents = self.list(Self::number)?;
                OpKind::Map {
                    extents,
                    body: self.block()?,
                }
            }
            "copy" => {
                let dst = self.view()?;
                self.mark("<-")?;
                let src = self.view()?;
                OpKind::Copy {
                    dst,
                    src,
                    oob: self.oob()?,
                }
            }
            "dot" => {
                let acc = self.tile_view()?;
                let accumulate = self.take("+=");
                if !accumulate {
                    self.mark("=")?;
                }
                let a = self.operand()?;
                self.mark(",")?;
                OpKind::Dot {
                    acc,
                    a,
                    b: self.operand()?,
                    accumulate,
                }
            }
            "reduce" => {
                let dst = self.tile_id()?;
                self.mark("=")?;
                let op = self.fold_op()?;
                let src = self.tile_id()?;
                self.keyword("axis")?;
                let axis = self.number()?;
                let order = if self.take_word("ascending") {
                    Order::Ascending
                } else {
                    self.keyword("tree")?;
                    Order::Tree(self.number()?)
                };
                OpKind::Reduce {
                    dst,
                    src,
                    axis,
                    op,
                    order,
                }
            }
            "scan" => {
                let dst = self.tile_id()?;
                self.mark("=")?;
                let op = self.fold_op()?;
                let src = self.tile_id()?;
                self.keyword("axis")?;
                OpKind::Scan {
                    dst,
                    src,
                    axis: self.number()?,
                    op,
                }
            }
            "topk" => {
                let values = self.tile_id()?;
                self.mark(",")?;
                let indices = self.tile_id()?;
                self.mark("=")?;
                let smallest = self.take_word("smallest");
                if !smallest {
                    self.keyword("largest")?;
                }
                OpKind::TopK {
                    values,
                    indices,
                    src: self.tile_id()?,
                    smallest,
                }
            }
            "for" => {
                let lo = self.value()?;
                self.keyword("to")?;
                let hi = self.value()?;
                let kind = if self.take_word("pipeline") {
                    let stages = if self.take_word("stages") {
                        Some(self.number()?)
                    } else {
                        None
                    };
                    LoopKind::Pipeline { stages }
                } else {
                    LoopKind::Sequential
                };
                OpKind::For {
                    lo,
                    hi,
                    kind,
                    body: self.block()?,
                }
            }
            "if" => {
                let cond = self.value()?;
                let then = self.block()?;
                let otherwise = if self.take_word("else") {
                    Some(self.block()?)
                } else {
                    None
                };
                OpKind::If {
                    cond,
                    then,
                    otherwise,
                }
            }
            "items" => OpKind::ForItems {
                body: self.block()?,
            },
            "assert" => {
                let cond = self.value()?;
                OpKind::Assert {
                    cond,
                    message: self.text()?,
                }
            }
            "assume" => OpKind::Assume {
                cond: self.value()?,
            },
            "print" => {
                let text = self.text()?;
                let mut args = Vec::new();
                while self.take(",") {
                    let at_tile = matches!(self.peek(), Token::Word(w) if w.starts_with('t'));
                    args.push(if at_tile {
                        PrintArg::Tile(self.tile_id()?)
                    } else {
                        PrintArg::Value(self.value()?)
                    });
                }
                OpKind::Print { text, args }
            }
            "role" => {
                let name = self.text()?;
                self.keyword("copies")?;
                let copies = self.number()?;
                let turns = match self.take_word("turns") {
                    true => self.number()?,
                    false => 1,
                };
                OpKind::Role {
                    name,
                    copies,
                    turns,
                    body: self.block()?,
                }
            }
            "put" => {
                let channel = self.channel_id()?;
                self.mark("<-")?;
                let src = self.view()?;
                OpKind::Put {
                    channel,
                    src,
                    oob: self.oob()?,
                }
            }
            "get" => {
                let channel = self.channel_id()?;
                self.keyword("as")?;
                OpKind::Get {
                    channel,
                    tile: self.tile_id()?,
                }
            }
            "release" => {
                let tile = self.tile_id()?;
                let part = if self.take_word("part") {
                    Some(self.number()?)
                } else {
                    None
                };
                OpKind::Release { tile, part }
            }
            "signal" => {
                let param = self.param_id()?;
                OpKind::Signal {
                    param,
                    index: self.list(Self::value)?,
                }
            }
            "wait" => {
                let param = self.param_id()?;
                let index = self.list(Self::value)?;
                self.mark(">=")?;
                OpKind::Wait {
                    param,
                    index,
                    at_least: self.value()?,
                }
            }
            other => return self.error(format!("unknown op `{other}`")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::verify::verify;

    /// One of every declaration and op.
    const EVERYTHING: &str = r#"kernel "m::everything" {
  docs "says \"what\"\nit is"
  generic "T" = dtype bf16
  generic "N" = int -3
  generic "B" = bool true
  dim d0 "M" 0 to 1048576 step 8
  dim d1 "pos" -4 to 9 step 1 scalar p3
  param p0 "a" in [dim "M", add(mul(dim "pos", 64), 1)] bf16 align 16
  param p1 "o" inout [dim "M", 64] f32 align 4 strided
  param p2 "eps" scalar f32
  param p3 "pos" index
  param p4 "f" flags [4] i32 align 4
  param p5 "idx" in [dim "M"] i32 align 4
  require gt(scalar "eps", float 0.0) "eps > 0.0" message "eps is positive"
  require select(true, false, not(false)) "odd"
  grid [cdiv(dim "M", 64), 2] persistent warps 8
  contract deterministic
  contract batch_invariant d0
  deny "in_kernel_checks"
  budget shared 1024
  budget registers 200
  tile t0 "acc" reg [64, 64] f32
  tile t1 "x" shared [64, 64] bf16
  tile t2 "y" slot [64, 64] bf16
  tile t3 "sum" reg [64] f32
  tile t4 "v" reg [64, 4] f32
  tile t5 "i" reg [64, 4] i32
  tile t6 "s" reg [] f32
  tile t7 "w" reg [64, 64] f32
  channel c0 "key" [64, 64] bf16 parts 2 slots 3
  channel c1 "qry" [64, 64] bf16 parts 1 ring c0
  body {
    %0 = const index 0
    role "load" copies 1 (%1 "copy_id") {
      items (%2 "i", %3 "j") {
        %4 = dim d0
        %5 = scalar p2
        put c0 <- p0[%2 :+ 64, %0 :+ 64] oob zero
        put c1 <- p0[gather p5[%0 :+ 64] :+ 64, %0 :+ 64] oob skip
        signal p4[%0]
      }
    }
    role "use" copies 2 (%6) {
      items (%7, %8) {
        get c0 as t2
        copy t1[%0 :+ 64, %0 :+ 64] <- t2[%0 :+ 64, %0 :+ 64] oob never
        dot t0[%0 :+ 64, %0 :+ 64] += t1[%0 :+ 64, %0 :+ 64], t2[%0 :+ 64, %0 :+ 64] transposed
        release t2 part 1
        release t2
        reduce t3 = sum t0 axis 1 ascending
        reduce t3 = max t0 axis 0 tree 8
        scan t7 = sum t0 axis 1
        topk t4, t5 = largest t0
        topk t4, t5 = smallest t0
        %9 = load t6[]
        %10 = const bool true
        map [64, 64] (%11 "r", %12 "c") {
          %13 "x" = load t1[%11, %12]
          %14 = cast %13 to f32
          %15 = const f32 -0.0
          %16 = const f32 1e-6
          %17 = const f32 inf
          %18 = fma %14, %15, %16
          %19 = exp2 %18
          %20 = lt %19, %17
          %21 = select %20, %19, %9
          %22 = bitcast %21 to u32
          %23 = const u32 65535
          %24 = xor %22, %23
          %25 = bitcast %24 to f32
          store t7[%11, %12] = %25
          %26 = load p1[%11, %12] if %20
          %27 = is_nan %26
          store p1[%11, %12] = %26 if %27
          scatter p1[%11, %12] = %26
          atomic sum p1[%11, %12] = %26 if %27
          %28 = rem %11, %12
          %29 = cast %28 to f32
        }
        %30 = const index 4
        for %0 to %30 (%31 "k") {
          if %10 {
            assert %10 "fine"
          } else {
            assume %10
          }
        }
        for %0 to %30 pipeline stages 3 (%32) {
        }
        for %0 to %30 pipeline (%33) {
        }
        wait p4[%0] >= %30
        %34 = block 1
        print "here", %34, t3
      }
    }
  }
}
"#;

    #[test]
    fn text_round_trips() {
        let kernel = parse(EVERYTHING).unwrap();
        verify(&kernel).unwrap();
        let text = print(&kernel);
        assert_eq!(text, EVERYTHING);
        assert_eq!(print(&parse(&text).unwrap()), text);
    }

    #[test]
    fn errors_name_the_line() {
        let broken = EVERYTHING.replace("store t7[%11", "store t7[%99");
        let error = parse(&broken).unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 71: `%99` is no value defined above"
        );
        assert!(parse("kernel \"x").is_err());
        assert!(parse("kernel \"x\" {").is_err());
        assert!(parse("kernel \"x\" { body { %0 = load p3[] } }").is_err());
    }

    /// Each edit of a valid text breaks one rule, and the verifier says which op.
    #[test]
    fn verifier_rejects() {
        for (from, to, message) in [
            ("lt %19, %17", "lt %19, %12", "cannot compare"),
            (
                "store t7[%11, %12] = %25",
                "store t7[%11] = %25",
                "the tile has 2 axes",
            ),
            (
                "copy t1[%0 :+ 64, %0 :+ 64] <- t2",
                "copy t1[%0 :+ 32, %0 :+ 64] <- t2",
                "copies [64, 64] to [32, 64]",
            ),
            (
                "transposed\n",
                "\n        copy t2[%0 :+ 64, %0 :+ 64] <- t1[%0 :+ 64, %0 :+ 64] oob never\n",
                "a slot is read only",
            ),
            ("axis 0 tree 8", "axis 0 tree 6", "power of two"),
            (
                "reduce t3 = max t0 axis 0",
                "reduce t3 = and t0 axis 0",
                "cannot fold",
            ),
            (
                "topk t4, t5 = largest t0",
                "topk t4, t4 = largest t0",
                "indices are i32",
            ),
            ("map [64, 64]", "map [64]", "2 arguments instead of 1"),
            (
                "          %28 = rem %11, %12",
                "          get c0 as t2",
                "only scalar ops stand in a map",
            ),
            ("if %10 {", "if %30 {", "a condition is a bool"),
            (
                "print \"here\", %34, t3",
                "print \"here\", %34, t3\n get c0 as t1",
                "slot",
            ),
            (
                "grid [cdiv(dim \"M\", 64), 2] persistent",
                "grid [cdiv(dim \"M\", 64), 2]",
                "persistent",
            ),
            ("wait p4[%0]", "wait p5[%0]", "flags"),
            (
                "scatter p1[%11, %12] = %26",
                "scatter p1[%11, %12] = %13",
                "another type",
            ),
            (
                "%29 = cast %28 to f32",
                "%29 = bitcast %28 to f32",
                "bitcast",
            ),
            ("const f32 1e-6", "const bf16 1e-6", "not exact"),
            (
                "body {",
                "body {\n role \"r\" copies 1 (%50) { get c0 as t2 }",
                "another role",
            ),
        ] {
            assert!(EVERYTHING.contains(from), "{from}");
            let text = EVERYTHING
                .replacen(from, to, 1)
                .replace("%29 = cast %28 to f32\n        }\n        %30", "}\n %30");
            let kernel = parse(&text).unwrap_or_else(|e| panic!("{to}: {e}"));
            let found = verify(&kernel).expect_err(to);
            assert!(
                found.iter().any(|v| v.message.contains(message)),
                "{to}: {found:?}"
            );
        }
    }

    #[test]
    fn verifier_sees_values_out_of_scope() {
        let mut kernel = parse(EVERYTHING).unwrap();
        // The last op of the first role's item loop now reads a value of the map in the second role.
        let inner = kernel
            .values
            .iter()
            .position(|v| v.name.as_deref() == Some("x"))
            .unwrap();
        let signal = kernel
            .live_ops()
            .into_iter()
            .find(|&o| matches!(kernel.op(o).kind, OpKind::Signal { .. }))
            .unwrap();
        kernel.ops[signal.index()].kind = OpKind::Signal {
            param: ParamId(4),
            index: vec![ValueId(inner as u32)],
        };
        let found = verify(&kernel).unwrap_err();
        assert!(
            found[0].message.contains("used where it is not defined"),
            "{found:?}"
        );
    }
}
