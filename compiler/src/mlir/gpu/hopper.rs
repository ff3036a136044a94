//! Hopper's instructions for the emission of networks: barriers in shared memory, bulk tensor copies, warpgroup products, named barriers.
//!
//! Addresses of shared memory are i32 here; an op that takes a pointer gets one made of it. Products and the wait for them are inline
//! assembly, because `nvvm`'s wait names no accumulators: LLVM would see no reason to read them after it.

use super::ops::first_result;
use crate::mlir::build::{Builder, Elem, Val, string};
use melior::ir::Type;
use melior::ir::attribute::{Attribute, DenseI32ArrayAttribute, DenseI64ArrayAttribute};
use melior::ir::r#type::IntegerType;

impl<'c> Builder<'c> {
    fn fixed(&self, text: &str) -> Attribute<'c> {
        Attribute::parse(self.context, text).expect("the attribute's text is fixed and well formed")
    }

    fn space_pointer(&mut self, address: Val<'c>, space: u32) -> Val<'c> {
        let ty = melior::dialect::llvm::r#type::pointer(self.context, space);
        let op = self.op("llvm.inttoptr", &[address.raw], &[ty], &[]);
        first_result(op, Elem::Ptr)
    }

    /// The address of an object of shared memory in its own space.
    pub fn shared_address(&mut self, symbol: &str) -> Val<'c> {
        let ty = melior::dialect::llvm::r#type::pointer(self.context, 3);
        let name = melior::ir::attribute::FlatSymbolRefAttribute::new(self.context, symbol).into();
        let op = self.op("llvm.mlir.addressof", &[], &[ty], &[("global_name", name)]);
        let pointer = first_result(op, Elem::Ptr).raw;
        let int = self.ty(Elem::I32, 1);
        let op = self.op("llvm.ptrtoint", &[pointer], &[int], &[]);
        first_result(op, Elem::I32)
    }

    /// An address of shared memory as a pointer for plain loads and stores.
    pub fn shared_pointer(&mut self, address: Val<'c>) -> Val<'c> {
        let p = self.space_pointer(address, 3);
        let ty = melior::dialect::llvm::r#type::pointer(self.context, 0);
        let op = self.op("llvm.addrspacecast", &[p.raw], &[ty], &[]);
        first_result(op, Elem::Ptr)
    }

    pub fn i32(&mut self, value: i64) -> Val<'c> {
        self.int(Elem::I32, 1, value)
    }

    /// The value that lane 0 holds, in all lanes: LLVM and ptxas then know that the warp agrees on it.
    pub fn of_first_lane(&mut self, v: Val<'c>) -> Val<'c> {
        let all = self.i32(-1);
        let zero = self.i32(0);
        let clamp = self.i32(31);
        let kind = self.fixed("#nvvm<shfl_kind idx>");
        self.value(
            "nvvm.shfl.sync",
            &[all, v, zero, clamp],
            (Elem::I32, 1),
            &[("kind", kind)],
        )
    }

    /// Two f32 as one register of bf16, rounded to nearest even. (ptxas takes the conversion of a single one for a reason to wait for
    /// products one by one.)
    pub fn round_pair_to_bf16(&mut self, low: Val<'c>, high: Val<'c>) -> Val<'c> {
        let ty = Type::parse(self.context, "vector<2xbf16>").expect("the type's own syntax");
        let mode = self.fixed("#nvvm.fp_rnd_mode<rn>");
        let op = self.op(
            "nvvm.convert.f32x2.to.bf16x2",
            &[high.raw, low.raw],
            &[ty],
            &[("rnd", mode)],
        );
        let pair = first_result(op, Elem::Ptr).raw;
        let int = self.ty(Elem::I32, 1);
        let op = self.op("llvm.bitcast", &[pair], &[int], &[]);
        first_result(op, Elem::I32)
    }

    /// Two bf16 in a register times two others, each rounded once.
    pub fn multiply_pairs_of_bf16(&mut self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        let pair = self.ty(Elem::BF16, 2);
        let [a, b] = [a, b].map(|word| {
            let op = self.op("llvm.bitcast", &[word.raw], &[pair], &[]);
            Val {
                lanes: 2,
                ..first_result(op, Elem::BF16)
            }
        });
        let product = self.mulf(a, b);
        let word = self.ty(Elem::I32, 1);
        let op = self.op("llvm.bitcast", &[product.raw], &[word], &[]);
        first_result(op, Elem::I32)
    }

    /// Two f32 as e4m3 codes in 16 bits, rounded to nearest even, at most the largest finite one.
    pub fn round_pair_to_e4m3(&mut self, low: Val<'c>, high: Val<'c>) -> Val<'c> {
        let rounding = self.fixed("#nvvm.fp_rnd_mode<rn>");
        let saturation = self.fixed("#nvvm.sat_mode<satfinite>");
        let to = self.fixed("f8E4M3FN");
        self.value(
            "nvvm.convert.f32x2.to.f8x2",
            &[high, low],
            (Elem::I16, 1),
            &[("rnd", rounding), ("sat", saturation), ("dstTy", to)],
        )
    }

    // ---- launches one behind the other ------------------------------------------------------------------

    /// The launch behind this one may start as soon as every CTA has come here.
    pub fn let_next_launch_start(&mut self) {
        self.assembly("griddepcontrol.launch_dependents;", "", &[], Elem::I64, 0);
    }

    /// Waits until the launches before this one are over and what they wrote is there. No access to memory moves to before it.
    pub fn wait_for_launches(&mut self) {
        self.assembly("griddepcontrol.wait;", "~{memory}", &[], Elem::I64, 0);
    }

    /// The same word, but made here: what is read from where it points to, be it memory that nobody writes during the launch, is not read
    /// earlier.
    pub fn hold_word(&mut self, word: Val<'c>) -> Val<'c> {
        self.assembly("", "=l,0", &[word], Elem::I64, 1)[0]
    }

    /// The same address in shared memory, but made here: what follows from it is computed where it is needed, and not kept in registers from before a
    /// loop on.
    pub fn hold_address(&mut self, address: Val<'c>) -> Val<'c> {
        self.assembly("", "=r,0", &[address], Elem::I32, 1)[0]
    }

    // ---- barriers in shared memory -------------------------------------------------------------------

    pub fn mbarrier_init(&mut self, at: Val<'c>, count: u32) {
        let p = self.space_pointer(at, 3);
        let count = self.i32(count as i64);
        self.op("nvvm.mbarrier.init", &[p.raw, count.raw], &[], &[]);
    }

    /// Makes the initialised barriers visible to bulk copies.
    pub fn fence_mbarrier_init(&mut self) {
        self.op("nvvm.fence.mbarrier.init", &[], &[], &[]);
    }

    pub fn mbarrier_arrive(&mut self, at: Val<'c>) {
        let p = self.space_pointer(at, 3);
        let state = self.ty(Elem::I64, 1);
        self.op("nvvm.mbarrier.arrive", &[p.raw], &[state], &[]);
    }

    /// Arrives, and says how many bytes of bulk copies the phase waits for.
    pub fn mbarrier_expect(&mut self, at: Val<'c>, bytes: u64) {
        let p = self.space_pointer(at, 3);
        let bytes = self.i32(bytes as i64);
        self.op(
            "nvvm.mbarrier.arrive.expect_tx",
            &[p.raw, bytes.raw],
            &[],
            &[],
        );
    }

    /// Waits until the phase of this parity is over.
    pub fn mbarrier_wait(&mut self, at: Val<'c>, parity: Val<'c>) {
        let p = self.space_pointer(at, 3);
        let ticks = self.i32(10_000_000);
        self.op(
            "nvvm.mbarrier.try_wait.parity",
            &[p.raw, parity.raw, ticks.raw],
            &[],
            &[],
        );
    }

    /// 1 where the phase of this parity is over, as seen now.
    pub fn mbarrier_test(&mut self, at: Val<'c>, parity: Val<'c>) -> Val<'c> {
        let text = "{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [$1], $2;\nselp.b32 $0, 1, 0, p;\n}";
        self.assembly(text, "=r,r,r,~{memory}", &[at, parity], Elem::I32, 1)[0]
    }

    // ---- clusters ------------------------------------------------------------------------------------

    /// All threads of the cluster meet. (Some of a warp may have come another way.)
    pub fn cluster_barrier(&mut self) {
        self.op("nvvm.cluster.arrive", &[], &[], &[]);
        self.op("nvvm.cluster.wait", &[], &[], &[]);
    }

    /// Where an address of shared memory lies in the CTA of that rank.
    pub fn map_shared(&mut self, address: Val<'c>, rank: Val<'c>) -> Val<'c> {
        let text = "mapa.shared::cluster.u32 $0, $1, $2;";
        self.assembly(text, "=r,r,r", &[address, rank], Elem::I32, 1)[0]
    }

    /// Arrives at another CTA's barrier. (With the scope of a cluster ptxas puts a barrier for all of the GPU's memory before it; what it orders
    /// are reads that are over.)
    pub fn mbarrier_arrive_across(&mut self, far: Val<'c>) {
        let text = "mbarrier.arrive.shared::cluster.b64 _, [$0];";
        self.assembly(text, "r,~{memory}", &[far], Elem::I64, 0);
    }

    /// Threads that meet at a barrier of their own.
    pub fn named_barrier(&mut self, id: Val<'c>, threads: u32) {
        let threads = self.i32(threads as i64);
        let sizes = DenseI32ArrayAttribute::new(self.context, &[1, 1, 0]).into();
        self.op(
            "nvvm.barrier",
            &[id.raw, threads.raw],
            &[],
            &[("operandSegmentSizes", sizes)],
        );
    }

    /// The lanes of a warp meet, and see what the others did.
    pub fn warp_barrier(&mut self) {
        let all = self.i32(-1);
        self.op("nvvm.bar.warp.sync", &[all.raw], &[], &[]);
    }

    pub fn set_registers(&mut self, count: u32, more: bool) {
        let action = if more { "increase" } else { "decrease" };
        let action = self.fixed(&format!("#nvvm<action {action}>"));
        let count = self.integer_attr(32, count as i64);
        self.op(
            "nvvm.setmaxregister",
            &[],
            &[],
            &[("action", action), ("regCount", count)],
        );
    }

    // ---- copies by threads ---------------------------------------------------------------------------

    /// Starts the copy of a piece of 8 or 16 bytes of global memory to shared memory, of which the first `size` are read and the rest are zeros.
    pub fn copy_async(&mut self, to: Val<'c>, from: Val<'c>, size: Val<'c>, piece: u64) {
        let to = self.space_pointer(to, 3);
        let global = melior::dialect::llvm::r#type::pointer(self.context, 1);
        let op = self.op("llvm.addrspacecast", &[from.raw], &[global], &[]);
        let from = first_result(op, Elem::Ptr).raw;
        let bytes = self.integer_attr(32, piece as i64);
        let cache = self.fixed(match piece {
            16 => "#nvvm<load_cache_modifier cg>",
            _ => "#nvvm<load_cache_modifier ca>",
        });
        self.op(
            "nvvm.cp.async.shared.global",
            &[to.raw, from, size.raw],
            &[],
            &[("size", bytes), ("modifier", cache)],
        );
    }

    /// Arrives once the thread's copies so far have; one of the arrivals that the barrier counts.
    pub fn arrive_when_copied(&mut self, barrier: Val<'c>) {
        let p = self.space_pointer(barrier, 3);
        let counted = self.fixed("true");
        self.op(
            "nvvm.cp.async.mbarrier.arrive",
            &[p.raw],
            &[],
            &[("noinc", counted)],
        );
    }

    /// Waits for all of the thread's copies.
    pub fn wait_for_copies(&mut self) {
        let none = self.integer_attr(32, 0);
        self.op("nvvm.cp.async.commit.group", &[], &[], &[]);
        self.op("nvvm.cp.async.wait.group", &[], &[], &[("n", none)]);
    }

    // ---- bulk tensor copies ----------------------------------------------------------------------------

    /// Brings a tensor map, a parameter of the kernel, to where copies read it.
    pub fn fetch_tensor_map(&mut self, map: Val<'c>) {
        let set = Attribute::unit(self.context);
        self.op(
            "nvvm.prefetch",
            &[map.raw],
            &[],
            &[("tensormap", set), ("in_param_space", set)],
        );
    }

    /// Starts the copy of a box of a tensor into shared memory; its bytes count for the barrier. `box_at`: innermost axis first, i32.
    /// `to_all`: a bit for each CTA of the cluster that gets it, each at the same place, i16.
    pub fn tma_load(
        &mut self,
        to: Val<'c>,
        map: Val<'c>,
        box_at: &[Val<'c>],
        barrier: Val<'c>,
        to_all: Option<Val<'c>>,
    ) {
        let to = self.space_pointer(to, 3);
        let cluster = melior::dialect::llvm::r#type::pointer(self.context, 7);
        let op = self.op("llvm.addrspacecast", &[to.raw], &[cluster], &[]);
        let to = first_result(op, Elem::Ptr).raw;
        let barrier = self.space_pointer(barrier, 3);
        let mut operands = vec![to, map.raw];
        operands.extend(box_at.iter().map(|v| v.raw));
        operands.push(barrier.raw);
        operands.extend(to_all.map(|mask| mask.raw));
        let many = i32::from(to_all.is_some());
        let sizes = [1, 1, box_at.len() as i32, 1, 0, many, 0, 0];
        let sizes = DenseI32ArrayAttribute::new(self.context, &sizes).into();
        let mode = self.fixed("#nvvm.tma_load_mode<tile>");
        let cta_only = self.fixed("false");
        self.op(
            "nvvm.cp.async.bulk.tensor.shared.cluster.global",
            &operands,
            &[],
            &[
                ("operandSegmentSizes", sizes),
                ("mode", mode),
                ("isCTAOnly", cta_only),
            ],
        );
    }

    /// Starts the copy of shared memory into a box of a tensor.
    pub fn tma_store(&mut self, map: Val<'c>, box_at: &[Val<'c>], from: Val<'c>) {
        let from = self.space_pointer(from, 3);
        let mut operands = vec![map.raw, from.raw];
        operands.extend(box_at.iter().map(|v| v.raw));
        let sizes = [1, 1, box_at.len() as i32, 0, 0];
        let sizes = DenseI32ArrayAttribute::new(self.context, &sizes).into();
        let mode = self.fixed("#nvvm.tma_store_mode<tile>");
        self.op(
            "nvvm.cp.async.bulk.tensor.global.shared.cta",
            &operands,
            &[],
            &[("operandSegmentSizes", sizes), ("mode", mode)],
        );
    }

    pub fn tma_store_commit(&mut self) {
        self.op("nvvm.cp.async.bulk.commit.group", &[], &[], &[]);
    }

    /// Waits until all but `left` groups of stores of this thread are done, or at least have read their source.
    pub fn tma_store_wait(&mut self, left: u32, only_read: bool) {
        let mut attributes = vec![("group", self.integer_attr(32, left as i64))];
        if only_read {
            attributes.push(("read", Attribute::unit(self.context)));
        }
        self.op("nvvm.cp.async.bulk.wait_group", &[], &[], &attributes);
    }

    /// What threads stored to shared memory before, bulk copies and products see after.
    pub fn fence_async_shared(&mut self) {
        let kind = self.fixed("#nvvm.proxy_kind<async.shared>");
        let space = self.fixed("#nvvm.shared_space<cta>");
        self.op(
            "nvvm.fence.proxy",
            &[],
            &[],
            &[("kind", kind), ("space", space)],
        );
    }

    /// Four 8x8 matrices of 16-bit elements from a warp's registers to the rows whose addresses the lanes give.
    pub fn store_matrices(&mut self, to: Val<'c>, words: &[Val<'c>]) {
        let to = self.space_pointer(to, 3);
        let mut operands = vec![to.raw];
        operands.extend(words.iter().map(|v| v.raw));
        let layout = self.fixed("#nvvm.mma_layout<row>");
        let shape = self.fixed("#nvvm.ld_st_matrix_shape<m = 8, n = 8>");
        let elem = self.fixed("#nvvm.ld_st_matrix_elt_type<b16>");
        self.op(
            "nvvm.stmatrix",
            &operands,
            &[],
            &[("layout", layout), ("shape", shape), ("eltType", elem)],
        );
    }

    // ---- products of a warpgroup ---------------------------------------------------------------------------

    /// Orders the registers of accumulators before the products that follow.
    pub fn wgmma_fence(&mut self) {
        self.op("nvvm.wgmma.fence.aligned", &[], &[], &[]);
    }

    pub fn wgmma_commit(&mut self) {
        self.op("nvvm.wgmma.commit.group.sync.aligned", &[], &[], &[]);
    }

    /// Waits until at most `left` groups of products are on their way, without touching accumulators.
    pub fn wgmma_wait(&mut self, left: u32) {
        let group = self.integer_attr(64, left as i64);
        self.op(
            "nvvm.wgmma.wait.group.sync.aligned",
            &[],
            &[],
            &[("group", group)],
        );
    }

    /// Waits until at most `left` groups of products are on their way; gives the accumulators of others as they are then.
    pub fn wgmma_wait_for(&mut self, left: u32, sums: &[Val<'c>]) -> Vec<Val<'c>> {
        let n = sums.len();
        let constraints: Vec<String> = (0..2 * n)
            .map(|i| {
                if i < n {
                    "=f".to_owned()
                } else {
                    (i - n).to_string()
                }
            })
            .collect();
        self.assembly(
            &format!("wgmma.wait_group.sync.aligned {left};"),
            &constraints.join(","),
            sums,
            Elem::F32,
            n,
        )
    }

    /// `sums (+)= a · b` for 64 rows and as many columns as `sums` has registers twice; `b` by its descriptor.
    pub fn wgmma(
        &mut self,
        product: Wgmma,
        sums: &[Val<'c>],
        a: Left<'c>,
        b: Val<'c>,
    ) -> Vec<Val<'c>> {
        let n = sums.len();
        let list: Vec<String> = (0..n).map(|i| format!("${i}")).collect();
        let Wgmma {
            operand,
            k,
            starts,
            b_by_rows,
        } = product;
        let transposes = match (b_by_rows, a) {
            (Some(b_by_rows), Left::Shared(_)) => format!(", 0, {}", u32::from(b_by_rows)),
            (Some(b_by_rows), Left::Registers(_)) => format!(", {}", u32::from(b_by_rows)),
            (None, _) => String::new(),
        };
        let (a_text, mut operands) = match a {
            Left::Shared(a) => (format!("${n}"), vec![a]),
            Left::Registers(a) => {
                let all: Vec<String> = (n..n + 4).map(|i| format!("${i}")).collect();
                (format!("{{{}}}", all.join(", ")), a.to_vec())
            }
        };
        let b_at = n + operands.len();
        let scale = u32::from(!starts);
        let text = format!(
            "{{\n.reg .pred p;\nsetp.ne.b32 p, {scale}, 0;\nwgmma.mma_async.sync.aligned.m64n{}k{k}.f32.{operand}.{operand} {{{}}}, {a_text}, ${b_at}, p, 1, 1{transposes};\n}}",
            2 * n,
            list.join(", "),
        );
        let mut constraints = vec!["=f".to_owned(); n];
        let of_a = if matches!(a, Left::Shared(_)) {
            "l"
        } else {
            "r"
        };
        constraints.extend(vec![of_a.to_owned(); operands.len()]);
        constraints.push("l".to_owned());
        operands.push(b);
        constraints.extend((0..n).map(|i| i.to_string()));
        operands.extend(sums);
        self.assembly(&text, &constraints.join(","), &operands, Elem::F32, n)
    }

    /// Words that products read until here: nothing else gets their registers before.
    pub fn keep_words(&mut self, values: &[Val<'c>]) {
        let n = values.len();
        let constraints: Vec<String> = (0..2 * n)
            .map(|i| match i < n {
                true => "=r".to_owned(),
                false => (i - n).to_string(),
            })
            .collect();
        self.assembly("", &constraints.join(","), values, Elem::I32, n);
    }

    /// The same values, but made here: LLVM sinks nothing that they are made of past what follows.
    pub fn hold(&mut self, values: &[Val<'c>]) -> Vec<Val<'c>> {
        let n = values.len();
        let constraints: Vec<String> = (0..2 * n)
            .map(|i| match i < n {
                true => "=f".to_owned(),
                false => (i - n).to_string(),
            })
            .collect();
        self.assembly("", &constraints.join(","), values, Elem::F32, n)
    }

    /// Inline assembly with an effect and `results` results of one type.
    fn assembly(
        &mut self,
        text: &str,
        constraints: &str,
        operands: &[Val<'c>],
        elem: Elem,
        results: usize,
    ) -> Vec<Val<'c>> {
        let one = self.ty(elem, 1);
        let ty = match results {
            0 => vec![],
            1 => vec![one],
            n => {
                let fields = vec![one.to_string(); n].join(", ");
                let ty = Type::parse(self.context, &format!("!llvm.struct<({fields})>"));
                vec![ty.expect("the type's own syntax")]
            }
        };
        let raw: Vec<_> = operands.iter().map(|v| v.raw).collect();
        let text = string(self.context, text);
        let constraints = string(self.context, constraints);
        let unit = Attribute::unit(self.context);
        let dialect = melior::ir::attribute::IntegerAttribute::new(
            IntegerType::new(self.context, 64).into(),
            0,
        )
        .into();
        let op = self.op(
            "llvm.inline_asm",
            &raw,
            &ty,
            &[
                ("asm_string", text),
                ("constraints", constraints),
                ("has_side_effects", unit),
                ("asm_dialect", dialect),
            ],
        );
        if results == 0 {
            return vec![];
        }
        let all = first_result(op, elem);
        if results == 1 {
            return vec![all];
        }
        (0..results)
            .map(|i| {
                let position = DenseI64ArrayAttribute::new(self.context, &[i as i64]).into();
                self.value(
                    "llvm.extractvalue",
                    &[all],
                    (elem, 1),
                    &[("position", position)],
                )
            })
            .collect()
    }
}

/// The left operand of a product instruction.
#[derive(Clone, Copy, Debug)]
pub enum Left<'c> {
    /// Its descriptor.
    Shared(Val<'c>),
    /// Four words.
    Registers([Val<'c>; 4]),
}

/// What one product instruction multiplies.
#[derive(Clone, Copy, Debug)]
pub struct Wgmma {
    /// PTX's name of the operands' type.
    pub operand: &'static str,
    /// Elements of k in one instruction.
    pub k: u32,
    /// Starts the sums instead of adding to them. (A constant in the text: ptxas then reads no old sums.)
    pub starts: bool,
    /// Of operands of 16 bits: `b` lies with its columns next to each other, instead of its k. `None`: the type knows only the latter.
    pub b_by_rows: Option<bool>,
}
