//! Structured control flow: what is begun is ended, with the values that leave it.

use super::*;

impl<'c> Builder<'c> {
    /// As [`Builder::begin_for`], for a loop that LLVM is not to unroll: its body is wide enough, or not worth copies of it.
    pub fn begin_rolled_for(
        &mut self,
        lo: Val<'c>,
        hi: Val<'c>,
        step: i64,
        init: &[Val<'c>],
    ) -> OpenFor<'c> {
        let mut open = self.begin_for(lo, hi, step, init);
        open.copies = Some(1);
        open
    }

    /// Opens `for i in lo..hi step step`, carrying `init`; what follows goes into the body until [`Builder::end_for`].
    pub fn begin_for(
        &mut self,
        lo: Val<'c>,
        hi: Val<'c>,
        step: i64,
        init: &[Val<'c>],
    ) -> OpenFor<'c> {
        let step = self.i64(step);
        let mut types = vec![(self.ty(Elem::I64, 1), self.location)];
        types.extend(
            init.iter()
                .map(|v| (self.ty(v.elem, v.lanes), self.location)),
        );
        let region = Region::new();
        let block = block_ref(region.append_block(Block::new(&types)));
        let argument = |i: usize| unsafe { Value::from_raw(argument_raw(block, i)) };
        let carried = init
            .iter()
            .enumerate()
            .map(|(i, v)| Val {
                raw: argument(i + 1),
                ..*v
            })
            .collect();
        let mut operands = vec![lo.raw, hi.raw, step.raw];
        operands.extend(init.iter().map(|v| v.raw));
        OpenFor {
            iv: Val {
                raw: argument(0),
                elem: Elem::I64,
                lanes: 1,
            },
            carried,
            operands,
            outside: std::mem::replace(&mut self.block, block),
            region,
            copies: None,
        }
    }

    /// Closes a loop; `next` are the carried values of the next iteration. Gives the last ones.
    pub fn end_for(&mut self, open: OpenFor<'c>, next: &[Val<'c>]) -> Vec<Val<'c>> {
        let operands: Vec<_> = next.iter().map(|v| v.raw).collect();
        self.op("scf.yield", &operands, &[], &[]);
        self.block = open.outside;
        let results: Vec<_> = open
            .carried
            .iter()
            .map(|v| self.ty(v.elem, v.lanes))
            .collect();
        let mut builder = OperationBuilder::new("scf.for", self.location)
            .add_operands(&open.operands)
            .add_results(&results)
            .add_regions([open.region]);
        let annotation = match open.copies {
            Some(1) => Some(self.rolled()),
            copies => copies.map(|copies| self.unrolled(copies)),
        };
        if let Some(annotation) = annotation {
            let name = self.name("loop_annotation");
            builder = builder.add_attributes(&[(name, annotation)]);
        }
        let op = builder
            .build()
            .expect("result types are given, nothing is inferred");
        let op = self.block.append_operation(op);
        open.carried
            .iter()
            .enumerate()
            .map(|(i, v)| Val {
                raw: result(op, i),
                ..*v
            })
            .collect()
    }

    /// The annotation of a loop that stays as it is.
    fn rolled(&mut self) -> Attribute<'c> {
        let context = self.context;
        *self.rolled.get_or_insert_with(|| {
            let text = "#llvm.loop_annotation<unroll = <disable = true>>";
            Attribute::parse(context, text).expect("the attribute's own syntax")
        })
    }

    /// The annotation of a loop that is to have so many copies of its body.
    fn unrolled(&self, copies: u32) -> Attribute<'c> {
        let text = format!("#llvm.loop_annotation<unroll = <count = {copies} : i32>>");
        Attribute::parse(self.context, &text).expect("the attribute's own syntax")
    }

    /// Opens `if cond`; what follows goes into it until [`Builder::otherwise`] or [`Builder::end_if`].
    pub fn begin_if(&mut self, cond: Val<'c>) -> OpenIf<'c> {
        let regions = [Region::new(), Region::new()];
        let then = block_ref(regions[0].append_block(Block::new(&[])));
        let otherwise = block_ref(regions[1].append_block(Block::new(&[])));
        OpenIf {
            cond,
            otherwise: Some(otherwise),
            outside: std::mem::replace(&mut self.block, then),
            regions,
        }
    }

    /// From here on: the other arm.
    pub fn otherwise(&mut self, open: &mut OpenIf<'c>) {
        self.op("scf.yield", &[], &[], &[]);
        if let Some(block) = open.otherwise.take() {
            self.block = block;
        }
    }

    pub fn end_if(&mut self, mut open: OpenIf<'c>) {
        if open.otherwise.is_some() {
            self.otherwise(&mut open);
        }
        self.op("scf.yield", &[], &[], &[]);
        self.block = open.outside;
        let op = OperationBuilder::new("scf.if", self.location)
            .add_operands(&[open.cond.raw])
            .add_regions(open.regions)
            .build()
            .expect("an `if` without results infers nothing");
        self.block.append_operation(op);
    }
}

/// A loop whose body is being filled.
#[must_use = "a loop is built when it is closed"]
pub struct OpenFor<'c> {
    pub iv: Val<'c>,
    pub carried: Vec<Val<'c>>,
    operands: Vec<Value<'c, 'c>>,
    outside: BlockRef<'c, 'c>,
    region: Region<'c>,
    /// Of its body, when compiled; `None`: as LLVM sees fit.
    pub copies: Option<u32>,
}

/// An `if` whose arms are being filled.
#[must_use = "an `if` is built when it is closed"]
pub struct OpenIf<'c> {
    cond: Val<'c>,
    otherwise: Option<BlockRef<'c, 'c>>,
    outside: BlockRef<'c, 'c>,
    regions: [Region<'c>; 2],
}
