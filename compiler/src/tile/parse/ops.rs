//! Bodies: blocks, ops, views.

use super::tokens::Token;
use super::{Parser, Result};
use crate::tile::ir::*;
use crate::tile::print::*;
use crate::tile::scalar;
use tessera_artifact::DType;

impl Parser {
    pub(super) fn value(&mut self) -> Result<ValueId> {
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

    pub(super) fn ops(&mut self, _block: BlockId) -> Result<()> {
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
