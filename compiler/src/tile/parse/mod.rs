//! Reads the text of [`super::print`]. For tests and reproducers, so an error is a line and a few words.
//!
//! Needs: text as `print` writes it; line breaks and indentation are free, `//` starts a comment. The result is not verified.

mod ops;
mod tokens;

use super::build::Builder;
use super::ir::*;
use super::print::*;
use std::collections::HashMap;
use std::fmt;
use tessera_artifact::{DType, HostExpr, ParamMode};
use tokens::{Token, tokens};

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
                let cluster = if self.take_word("cluster") {
                    self.number()?
                } else {
                    1
                };
                self.b.kernel.launch = Launch {
                    grid,
                    persistent,
                    warps,
                    cluster,
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
                let shared = self.take_word("shared");
                self.b.channel(Channel {
                    name,
                    shape,
                    dtype,
                    slots,
                    parts,
                    ring,
                    shared,
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
}

#[cfg(test)]
mod tests;
