//! Random tile programs with arguments, for property tests: interpreter before = after passes, interpreter = compiled code.
//!
//! A program is drawn from a list of bytes; where the list ends every choice is the first, which is the simplest. So a shorter or
//! smaller list is a simpler program, and a property tester that shrinks lists shrinks programs. Every program is valid: verified,
//! in bounds, initialised, free of races, at least one CTA; sizes are small.

use super::build::Builder;
use super::interp::{Arg, Args, Buffer};
use super::ir::*;
use tessera_artifact::{DType, HostExpr, ParamMode};

pub struct Program {
    pub kernel: Kernel,
    pub args: Args,
}

/// What programs may hold, so that a back end that lacks something can be tested on the rest.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    pub transcendentals: bool,
    /// e4m3, e5m2, e2m1, ue8m0.
    pub tiny_floats: bool,
    pub topk: bool,
    pub roles: bool,
    /// Infinities and NaN among the inputs.
    pub specials: bool,
}

impl Features {
    pub const ALL: Features = Features {
        transcendentals: true,
        tiny_floats: true,
        topk: true,
        roles: true,
        specials: true,
    };
}

/// The program of a list of choices.
pub fn program(choices: &[u8], features: Features) -> Program {
    Generator::new(choices, features).run()
}

struct Choices<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Choices<'_> {
    fn below(&mut self, n: usize) -> usize {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte as usize % n.max(1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }
}

struct Generator<'a> {
    c: Choices<'a>,
    features: Features,
    b: Builder,
    ctas: u64,
    args: Vec<Arg>,
    /// Tiles whose every element is set.
    ready: Vec<TileId>,
    seed: u64,
    depth: u32,
}

const SIZES: [u64; 8] = [1, 4, 8, 3, 16, 5, 7, 19];

impl<'a> Generator<'a> {
    fn new(bytes: &'a [u8], features: Features) -> Self {
        let mut c = Choices { bytes, at: 0 };
        let ctas = 1 + c.below(3) as u64;
        let mut b = Builder::new("generated", Default::default());
        b.dim("G", 1, 64, 1);
        let mut g = Generator {
            c,
            features,
            b,
            ctas,
            args: Vec::new(),
            ready: Vec::new(),
            seed: 1,
            depth: 0,
        };
        // Gives the dim its value.
        g.tensor(ParamMode::In, DType::F32, &[ctas], Some("G"));
        g.b.grid(vec![HostExpr::dim("G")]);
        g
    }

    fn run(mut self) -> Program {
        if self.features.roles && self.c.below(6) == 5 {
            self.network();
        } else {
            self.source();
            while !self.c.is_empty() && self.b.kernel.tiles.len() < 24 {
                self.statement();
            }
            self.store_results();
        }
        Program {
            kernel: self.b.finish(),
            args: Args(self.args),
        }
    }

    // ---- parameters ---------------------------------------------------------------------------------------------

    fn random(&mut self) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.seed >> 11
    }

    fn value(&mut self, dtype: DType) -> f64 {
        let r = self.random();
        if dtype.is_int() || dtype == DType::Bool {
            return (r % 9) as f64 - if dtype.is_signed_int() { 4.0 } else { 0.0 };
        }
        match r % 32 {
            0 if self.features.specials => f64::NAN,
            1 if self.features.specials => f64::INFINITY,
            2 => -0.0,
            3 => 1e-39,
            // Ties for top-k and equal sums.
            4..=10 => (r / 32 % 5) as f64 - 2.0,
            _ => (r / 32 % 4001) as f64 / 500.0 - 4.0,
        }
    }

    fn tensor(
        &mut self,
        mode: ParamMode,
        dtype: DType,
        shape: &[u64],
        first: Option<&str>,
    ) -> ParamId {
        let mut exprs: Vec<HostExpr> = shape.iter().map(|&n| HostExpr::Int(n as i64)).collect();
        if let Some(name) = first {
            exprs[0] = HostExpr::dim(name);
        }
        let name = format!("p{}", self.args.len());
        let param = self.b.tensor(name, mode, dtype, exprs);
        let n: u64 = shape.iter().product();
        let values: Vec<f64> = if mode == ParamMode::In {
            (0..n).map(|_| self.value(dtype)).collect()
        } else {
            Vec::new()
        };
        self.args
            .push(Arg::Tensor(Buffer::from_f64(dtype, shape, values)));
        param
    }

    fn float_type(&mut self) -> DType {
        let mut all = vec![DType::F32, DType::BF16, DType::F16, DType::F64, DType::Tf32];
        if self.features.tiny_floats {
            all.extend([DType::E4M3, DType::E5M2, DType::E2M1, DType::UE8M0]);
        }
        self.c.pick(&all)
    }

    fn any_type(&mut self) -> DType {
        let ints = [DType::I32, DType::U8, DType::I64, DType::I16, DType::U32];
        if self.c.below(4) == 3 {
            self.c.pick(&ints)
        } else {
            self.float_type()
        }
    }

    // ---- statements -----------------------------------------------------------------------------------------------

    /// A tile filled from a tensor: a copy, ragged or gathered, or a map with a guarded load.
    fn source(&mut self) -> TileId {
        let dtype = self.any_type();
        let (m, n) = (self.c.pick(&SIZES), self.c.pick(&SIZES));
        self.source_of(dtype, m, n)
    }

    fn source_of(&mut self, dtype: DType, m: u64, n: u64) -> TileId {
        let tile = self.b.tile(
            format!("t{}", self.b.kernel.tiles.len()),
            Space::Reg,
            dtype,
            &[m, n],
        );
        // Packed rows of e2m1 must start on whole bytes.
        let columns = if dtype == DType::E2M1 { n + n % 2 } else { n };
        let missing = self.c.below(3) as u64;
        let rows = (self.ctas * m).saturating_sub(missing).max(1);
        let param = self.tensor(ParamMode::In, dtype, &[rows, columns], None);
        let block = self.b.block_index(0);
        let (size, zero) = (self.b.index(m as i64), self.b.index(0));
        let start = self.b.mul(block, size);
        match self.c.below(3) {
            0 => {
                let dst = self.b.whole_view(tile);
                let slots = vec![
                    Slot::Span { start, len: m },
                    Slot::Span {
                        start: zero,
                        len: n,
                    },
                ];
                self.b.copy(
                    dst,
                    View {
                        base: Base::Param(param),
                        slots,
                    },
                    Oob::Zero,
                );
            }
            1 => {
                let indices = self.tensor(ParamMode::In, DType::I32, &[m], None);
                if let Some(Arg::Tensor(buffer)) = self.args.last_mut() {
                    let list: Vec<f64> =
                        (0..m).map(|i| (i * 7 % (rows + 1)) as f64 - 1.0).collect();
                    *buffer = Buffer::from_f64(DType::I32, &[m], list);
                }
                let index = View {
                    base: Base::Param(indices),
                    slots: vec![Slot::Span {
                        start: zero,
                        len: m,
                    }],
                };
                let dst = self.b.whole_view(tile);
                let rows = Slot::Gather {
                    index: Box::new(index),
                    len: m,
                };
                let slots = vec![
                    rows,
                    Slot::Span {
                        start: zero,
                        len: n,
                    },
                ];
                self.b.copy(
                    dst,
                    View {
                        base: Base::Param(param),
                        slots,
                    },
                    Oob::Zero,
                );
            }
            _ => {
                let rows = self.b.index(rows as i64);
                self.b.map(&[m, n], |b, at| {
                    let row = b.add(start, at[0]);
                    let inside = b.compare(Predicate::Lt, row, rows);
                    let loaded = b.load_global(param, &[row, at[1]], Some(inside));
                    let zero = b.zero(dtype);
                    let value = b.select(inside, loaded, zero);
                    b.store_tile(tile, at, value);
                });
            }
        }
        self.ready.push(tile);
        tile
    }

    fn statement(&mut self) {
        match self.c.below(12) {
            0..=2 => self.elementwise(),
            3 => {
                self.source();
            }
            4 => self.dot(),
            5 | 6 => self.reduce(),
            7 => self.scan(),
            8 if self.features.topk => self.topk(),
            9 if self.depth < 2 => self.repeat(),
            10 if self.depth < 2 => self.branch(),
            _ => self.cast(),
        }
    }

    fn any_ready(&mut self) -> TileId {
        let i = self.c.below(self.ready.len());
        // The latest tiles first.
        self.ready[self.ready.len() - 1 - i]
    }

    fn new_tile(&mut self, dtype: DType, shape: &[u64]) -> TileId {
        self.b.tile(
            format!("t{}", self.b.kernel.tiles.len()),
            Space::Reg,
            dtype,
            shape,
        )
    }

    /// A map over a tile, in place or to a new one, with a few ops on it and others of its shape and type.
    fn elementwise(&mut self) {
        let src = self.any_ready();
        let tile = self.b.kernel.tile(src).clone();
        if !tile.dtype.has_arithmetic() || tile.shape.is_empty() {
            return self.cast();
        }
        let in_place = self.c.flag();
        let dst = if in_place {
            src
        } else {
            self.new_tile(tile.dtype, &tile.shape)
        };
        let alike = |g: &Self, t: &TileId| {
            let o = g.b.kernel.tile(*t);
            o.shape == tile.shape && o.dtype == tile.dtype
        };
        let others: Vec<TileId> = self
            .ready
            .iter()
            .copied()
            .filter(|t| alike(self, t))
            .collect();
        let steps = 1 + self.c.below(4);
        let body = self.b.block(&vec![Type::Index; tile.shape.len()]);
        self.b.push(body);
        let at = self.b.kernel.block(body).args.clone();
        let mut value = self.b.load_tile(src, &at);
        for _ in 0..steps {
            let other = match self.c.below(3) {
                0 => value,
                1 => {
                    let t = self.c.pick(&others);
                    self.b.load_tile(t, &at)
                }
                _ => self.constant(tile.dtype),
            };
            value = self.step(value, other, tile.dtype, at[at.len() - 1]);
        }
        self.b.store_tile(dst, &at, value);
        self.b.pop();
        self.b.effect(OpKind::Map {
            extents: tile.shape.clone(),
            body,
        });
        if !in_place {
            self.ready.push(dst);
        }
    }

    fn constant(&mut self, dtype: DType) -> ValueId {
        let x = self.c.pick(&[1.0, 2.0, -0.5, 0.0, 3.0]);
        if dtype.is_float() {
            self.b.float(x, dtype)
        } else {
            self.b.int(x as i128, dtype)
        }
    }

    fn step(&mut self, a: ValueId, other: ValueId, dtype: DType, column: ValueId) -> ValueId {
        use BinaryOp::*;
        if dtype.is_int() {
            return match self.c.below(9) {
                0..=6 => {
                    let op = self.c.pick(&[Add, Sub, Mul, Min, Max, And, Xor]);
                    self.b.binary(op, a, other)
                }
                7 => {
                    let op = self.c.pick(&[Div, Rem, Shl, Shr]);
                    let by = self.b.int(3, dtype);
                    self.b.binary(op, a, by)
                }
                _ => {
                    let op = self.c.pick(&[UnaryOp::Neg, UnaryOp::Abs, UnaryOp::Not]);
                    self.b.unary(op, a)
                }
            };
        }
        match self.c.below(8) {
            0..=2 => {
                let op = self.c.pick(&[Add, Sub, Mul, Min, Max, Div]);
                self.b.binary(op, a, other)
            }
            3 => self.b.fma(a, other, a),
            4 => {
                use UnaryOp::*;
                let op = self.c.pick(&[Neg, Abs, Floor, Ceil, RoundEven, Sqrt]);
                self.b.unary(op, a)
            }
            5 if self.features.transcendentals && dtype != DType::F64 => {
                use UnaryOp::*;
                let all = [
                    Exp, Exp2, Log, Log2, Log1p, Sin, Cos, Tanh, Rsqrt, Sigmoid, Softplus,
                ];
                let op = self.c.pick(&all);
                self.b.unary(op, a)
            }
            6 => {
                let p = self
                    .c
                    .pick(&[Predicate::Lt, Predicate::Ge, Predicate::Eq, Predicate::Ne]);
                let cond = self.b.compare(p, a, other);
                self.b.select(cond, a, other)
            }
            _ => {
                let limit = self.b.index(2);
                let cond = self.b.compare(Predicate::Lt, column, limit);
                let negated = self.b.unary(UnaryOp::Neg, a);
                self.b.select(cond, negated, other)
            }
        }
    }

    fn cast(&mut self) {
        let src = self.any_ready();
        let tile = self.b.kernel.tile(src).clone();
        let to = self.any_type();
        // Their values need not fit what a back end goes through.
        if tile.shape.is_empty() || to == DType::UE8M0 && tile.dtype == DType::I64 {
            return;
        }
        let dst = self.new_tile(to, &tile.shape);
        self.b.map(&tile.shape, |b, at| {
            let x = b.load_tile(src, at);
            let x = b.cast(x, Type::Scalar(to));
            b.store_tile(dst, at, x);
        });
        self.ready.push(dst);
    }

    fn dot(&mut self) {
        use DType::*;
        let mut kinds = vec![
            (F32, F32, F32),
            (BF16, BF16, F32),
            (F16, F16, F32),
            (Tf32, Tf32, F32),
            (I8, I8, I32),
            (F64, F64, F64),
        ];
        if self.features.tiny_floats {
            kinds.extend([
                (E4M3, E4M3, F32),
                (E4M3, E2M1, F32),
                (E5M2, E5M2, F32),
                (U8, I8, I32),
            ]);
        }
        let (a, b, out) = self.c.pick(&kinds);
        let (m, n, k) = (
            self.c.pick(&SIZES),
            self.c.pick(&SIZES),
            self.c.pick(&SIZES),
        );
        let (turn_a, turn_b) = (self.c.flag(), self.c.flag());
        let left = if turn_a {
            self.source_of(a, k, m)
        } else {
            self.source_of(a, m, k)
        };
        let right = if turn_b {
            self.source_of(b, n, k)
        } else {
            self.source_of(b, k, n)
        };
        let acc = self.new_tile(out, &[m, n]);
        let accumulate = self.c.flag();
        if accumulate {
            let one = if out.is_float() {
                self.b.float(1.5, out)
            } else {
                self.b.int(2, out)
            };
            self.b.fill(acc, one);
        }
        let (view, left, right) = (
            self.b.whole(acc),
            self.b.operand(left, turn_a),
            self.b.operand(right, turn_b),
        );
        self.b.dot(view, left, right, accumulate);
        self.ready.push(acc);
    }

    fn fold_op(&mut self, dtype: DType) -> FoldOp {
        use FoldOp::*;
        if dtype.is_int() {
            self.c.pick(&[Sum, Max, Min, Prod, And, Or])
        } else {
            self.c.pick(&[Sum, Max, Min, Prod])
        }
    }

    fn reduce(&mut self) {
        let src = self.any_ready();
        let tile = self.b.kernel.tile(src).clone();
        if !tile.dtype.has_arithmetic() || tile.shape.is_empty() {
            return self.cast();
        }
        let axis = self.c.below(tile.shape.len());
        let op = self.fold_op(tile.dtype);
        let order = self.c.pick(&[
            Order::Ascending,
            Order::Tree(1),
            Order::Tree(4),
            Order::Tree(32),
            Order::Tree(8),
        ]);
        let mut shape = tile.shape.clone();
        shape.remove(axis);
        let dst = self.new_tile(tile.dtype, &shape);
        self.b.effect(OpKind::Reduce {
            dst,
            src,
            axis: axis as u32,
            op,
            order,
        });
        self.ready.push(dst);
    }

    fn scan(&mut self) {
        let src = self.any_ready();
        let tile = self.b.kernel.tile(src).clone();
        if !tile.dtype.has_arithmetic() || tile.shape.is_empty() {
            return self.cast();
        }
        let axis = self.c.below(tile.shape.len()) as u32;
        let op = self.fold_op(tile.dtype);
        let dst = self.new_tile(tile.dtype, &tile.shape);
        self.b.effect(OpKind::Scan { dst, src, axis, op });
        self.ready.push(dst);
    }

    fn topk(&mut self) {
        let src = self.any_ready();
        let tile = self.b.kernel.tile(src).clone();
        let Some(&n) = tile.shape.last().filter(|_| tile.dtype.has_arithmetic()) else {
            return self.cast();
        };
        let k = 1 + self.c.below(n as usize) as u64;
        let mut shape = tile.shape.clone();
        *shape.last_mut().expect("the shape has a last axis") = k;
        let (values, indices) = (
            self.new_tile(tile.dtype, &shape),
            self.new_tile(DType::I32, &shape),
        );
        let smallest = self.c.flag();
        self.b.effect(OpKind::TopK {
            values,
            indices,
            src,
            smallest,
        });
        self.ready.extend([values, indices]);
    }

    /// A loop whose body changes tiles in place; tiles made inside are not seen after it (it may run zero times).
    fn repeat(&mut self) {
        let trips = self.c.below(4) as i64;
        let (lo, hi) = (self.b.index(0), self.b.index(trips));
        let stages = |stages| LoopKind::Pipeline { stages };
        let kinds = [LoopKind::Sequential, stages(None), stages(Some(2))];
        let kind = self.c.pick(&kinds);
        let body = self.b.block(&[Type::Index]);
        self.inside(body);
        self.b.effect(OpKind::For { lo, hi, kind, body });
    }

    fn branch(&mut self) {
        let (block, one) = (self.b.block_index(0), self.b.index(1));
        let cond = self.b.compare(Predicate::Lt, block, one);
        let then = self.b.block(&[]);
        self.inside(then);
        let otherwise = if self.c.flag() {
            let block = self.b.block(&[]);
            self.inside(block);
            Some(block)
        } else {
            None
        };
        self.b.effect(OpKind::If {
            cond,
            then,
            otherwise,
        });
    }

    fn inside(&mut self, block: BlockId) {
        self.depth += 1;
        let before = self.ready.len();
        self.b.push(block);
        for _ in 0..1 + self.c.below(3) {
            self.statement();
        }
        self.b.pop();
        self.ready.truncate(before);
        self.depth -= 1;
    }

    /// Every tile that is set goes to a tensor of its own, each CTA to its part.
    fn store_results(&mut self) {
        for tile in self.ready.clone() {
            let Tile { dtype, shape, .. } = self.b.kernel.tile(tile).clone();
            let mut padded = shape.clone();
            if let (DType::E2M1, Some(last)) = (dtype, padded.last_mut()) {
                *last += *last % 2;
            }
            if dtype == DType::E2M1 && shape.is_empty() {
                continue;
            }
            let full: Vec<u64> = std::iter::once(self.ctas).chain(padded).collect();
            let param = self.tensor(ParamMode::Out, dtype, &full, Some("G"));
            let (block, zero) = (self.b.block_index(0), self.b.index(0));
            let mut slots = vec![Slot::At(block)];
            slots.extend(shape.iter().map(|&len| Slot::Span { start: zero, len }));
            let src = self.b.whole_view(tile);
            self.b.copy(
                View {
                    base: Base::Param(param),
                    slots,
                },
                src,
                Oob::Never,
            );
        }
    }

    // ---- roles -----------------------------------------------------------------------------------------------------

    /// A loader, a few workers in a chain, each with copies, all over one loop.
    fn network(&mut self) {
        let (n, trips) = (self.c.pick(&SIZES), 1 + self.c.below(4) as u64);
        let persistent = self.c.flag();
        self.b.kernel.launch.persistent = persistent;
        let stages = 1 + self.c.below(3);
        let x = self.tensor(ParamMode::In, DType::F32, &[self.ctas, trips, n], Some("G"));
        let outs: Vec<(ParamId, u32)> = (0..stages)
            .map(|i| {
                // Copies may share a channel's tiles only at the end of the chain.
                let copies = if i + 1 == stages {
                    1 + self.c.below(3) as u32
                } else {
                    1
                };
                (
                    self.tensor(
                        ParamMode::Out,
                        DType::F32,
                        &[self.ctas, copies as u64, n],
                        Some("G"),
                    ),
                    copies,
                )
            })
            .collect();
        let channels: Vec<ChannelId> = (0..stages)
            .map(|i| {
                let slots = if self.c.flag() {
                    None
                } else {
                    Some(1 + self.c.below(3) as u32)
                };
                self.b.channel(Channel {
                    name: format!("c{i}"),
                    shape: vec![n],
                    dtype: DType::F32,
                    slots,
                    parts: 1,
                    shared: false,
                    ring: None,
                    span: Default::default(),
                })
            })
            .collect();
        self.b.role("load", 1, |b, _| {
            over_items(b, persistent, |b, cta| {
                let (lo, hi, zero) = (b.index(0), b.index(trips as i64), b.index(0));
                b.for_loop(lo, hi, LoopKind::Sequential, |b, j| {
                    let slots = vec![
                        Slot::At(cta),
                        Slot::At(j),
                        Slot::Span {
                            start: zero,
                            len: n,
                        },
                    ];
                    let src = View {
                        base: Base::Param(x),
                        slots,
                    };
                    b.effect(OpKind::Put {
                        channel: channels[0],
                        src,
                        oob: Oob::Never,
                    });
                });
            });
        });
        for (i, &(out, copies)) in outs.iter().enumerate() {
            let slot = self.b.tile(format!("s{i}"), Space::Slot, DType::F32, &[n]);
            let sum = self.b.tile(format!("sum{i}"), Space::Reg, DType::F32, &[n]);
            let early = self.c.flag();
            let channels = &channels;
            self.b.role(format!("work{i}"), copies, |b, copy| {
                over_items(b, persistent, |b, cta| {
                    let zero_value = b.float(0.0, DType::F32);
                    b.fill(sum, zero_value);
                    let (lo, hi, zero) = (b.index(0), b.index(trips as i64), b.index(0));
                    b.for_loop(lo, hi, LoopKind::Sequential, |b, _| {
                        b.effect(OpKind::Get {
                            channel: channels[i],
                            tile: slot,
                        });
                        b.map(&[n], |b, at| {
                            let (x, s) = (b.load_tile(slot, at), b.load_tile(sum, at));
                            let c = b.cast(copy, Type::Scalar(DType::F32));
                            let y = b.fma(x, s, c);
                            let y = b.add(y, x);
                            b.store_tile(sum, at, y);
                        });
                        if early {
                            b.effect(OpKind::Release {
                                tile: slot,
                                part: None,
                            });
                        }
                        if let Some(&next) = channels.get(i + 1) {
                            let src = b.whole_view(sum);
                            b.effect(OpKind::Put {
                                channel: next,
                                src,
                                oob: Oob::Never,
                            });
                        }
                    });
                    let slots = vec![
                        Slot::At(cta),
                        Slot::At(copy),
                        Slot::Span {
                            start: zero,
                            len: n,
                        },
                    ];
                    let src = b.whole_view(sum);
                    b.copy(
                        View {
                            base: Base::Param(out),
                            slots,
                        },
                        src,
                        Oob::Never,
                    );
                });
            });
        }
    }
}

fn over_items(b: &mut Builder, persistent: bool, f: impl FnOnce(&mut Builder, ValueId)) {
    if persistent {
        b.for_items(|b, at| f(b, at[0]));
    } else {
        let cta = b.block_index(0);
        f(b, cta);
    }
}

/// The bits of every tensor, NaNs made alike, to compare two runs.
pub fn results(args: &Args) -> Vec<Vec<u64>> {
    args.0
        .iter()
        .map(|a| match a {
            Arg::Tensor(b) => b.canonical_bits(),
            Arg::Scalar(bits) => vec![*bits],
            Arg::Index(i) => vec![*i as u64],
            Arg::Absent => Vec::new(),
        })
        .collect()
}
