//! Addresses, loads and stores, atomics, and the scopes that say which of them cannot meet.

use super::*;

impl<'c> Builder<'c> {
    /// Declares `count` alias scopes that do not overlap each other.
    pub fn declare_scopes(&mut self, count: u32) {
        if count == 0 {
            return;
        }
        // One parse: the identity of a distinct attribute does not outlive it.
        let domain = "#llvm.alias_scope_domain<id = distinct[0]<>>";
        let list: Vec<_> = (1..=count)
            .map(|i| format!("#llvm.alias_scope<id = distinct[{i}]<>, domain = {domain}>"))
            .collect();
        let list = Attribute::parse(self.context, &format!("[{}]", list.join(", ")))
            .and_then(|list| ArrayAttribute::try_from(list).ok())
            .expect("the attribute's own syntax");
        let scopes: Vec<Attribute> = (0..count as usize)
            .map(|i| list.element(i).expect("as many as were written"))
            .collect();
        self.scope_atoms = scopes;
        self.scopes.clear();
        for i in 0..count {
            self.push_scope(&[i as usize]);
        }
    }

    /// A scope for accesses that may be to either of two declared ones.
    pub fn join_scopes(&mut self, a: Scope, b: Scope) -> Scope {
        self.push_scope(&[a.0 as usize, b.0 as usize])
    }

    fn push_scope(&mut self, atoms: &[usize]) -> Scope {
        let pick = |wanted: bool| -> Vec<Attribute<'c>> {
            let all = self.scope_atoms.iter().enumerate();
            all.filter(|(i, _)| atoms.contains(i) == wanted)
                .map(|(_, &a)| a)
                .collect()
        };
        let own = ArrayAttribute::new(self.context, &pick(true)).into();
        let others = ArrayAttribute::new(self.context, &pick(false)).into();
        self.scopes.push((own, others));
        Scope(self.scopes.len() as u32 - 1)
    }

    fn scope_attributes(&self, scope: Option<Scope>, out: &mut Vec<(&'static str, Attribute<'c>)>) {
        if let Some(&(own, others)) = scope.and_then(|s| self.scopes.get(s.0 as usize)) {
            out.push(("alias_scopes", own));
            out.push(("noalias_scopes", others));
        }
    }

    /// `base + index * sizeof(elem)`; `index` i64, a scalar or a vector (then the result is a vector of pointers).
    pub fn gep(&mut self, base: Val<'c>, index: Val<'c>, elem: Elem) -> Val<'c> {
        let raw_indices = DenseI32ArrayAttribute::new(self.context, &[i32::MIN]).into();
        let elem_ty = TypeAttribute::new(self.ty(elem, 1)).into();
        self.value(
            "llvm.getelementptr",
            &[base, index],
            (Elem::Ptr, index.lanes),
            &[("rawConstantIndices", raw_indices), ("elem_type", elem_ty)],
        )
    }

    /// `base + bytes`.
    pub fn offset(&mut self, base: Val<'c>, bytes: i64) -> Val<'c> {
        if bytes == 0 {
            return base;
        }
        let Ok(small) = i32::try_from(bytes) else {
            let index = self.i64(bytes);
            return self.gep(base, index, Elem::I8);
        };
        let raw_indices = DenseI32ArrayAttribute::new(self.context, &[small]).into();
        let elem_ty = TypeAttribute::new(self.ty(Elem::I8, 1)).into();
        self.value(
            "llvm.getelementptr",
            &[base],
            (Elem::Ptr, 1),
            &[("rawConstantIndices", raw_indices), ("elem_type", elem_ty)],
        )
    }

    pub fn load(
        &mut self,
        from: Val<'c>,
        (elem, lanes): (Elem, u32),
        align: u32,
        scope: Option<Scope>,
    ) -> Val<'c> {
        let mut attributes = vec![("alignment", self.integer_attr(64, align as i64))];
        self.scope_attributes(scope, &mut attributes);
        self.value("llvm.load", &[from], (elem, lanes), &attributes)
    }

    /// Of memory that nobody writes during the launch.
    pub fn load_invariant(&mut self, from: Val<'c>, of: (Elem, u32), align: u32) -> Val<'c> {
        let attributes = [
            ("alignment", self.integer_attr(64, align as i64)),
            ("invariant", Attribute::unit(self.context)),
        ];
        self.value("llvm.load", &[from], of, &attributes)
    }

    pub fn store(&mut self, value: Val<'c>, to: Val<'c>, align: u32, scope: Option<Scope>) {
        let mut attributes = vec![("alignment", self.integer_attr(64, align as i64))];
        self.scope_attributes(scope, &mut attributes);
        self.op("llvm.store", &[value.raw, to.raw], &[], &attributes);
    }

    /// Past the caches; `to` is aligned to `align`, at least a vector register.
    pub fn store_streaming(
        &mut self,
        value: Val<'c>,
        to: Val<'c>,
        align: u32,
        scope: Option<Scope>,
    ) {
        let mut attributes = vec![
            ("alignment", self.integer_attr(64, align as i64)),
            ("nontemporal", Attribute::unit(self.context)),
        ];
        self.scope_attributes(scope, &mut attributes);
        self.op("llvm.store", &[value.raw, to.raw], &[], &attributes);
    }

    /// An address as a number.
    pub fn address_bits(&mut self, p: Val<'c>) -> Val<'c> {
        self.value("llvm.ptrtoint", &[p], (Elem::I64, 1), &[])
    }

    /// Lanes where `mask` is false are 0 and not read.
    pub fn masked_load(&mut self, from: Val<'c>, mask: Val<'c>, elem: Elem, align: u32) -> Val<'c> {
        let zero = self.zero(elem, mask.lanes);
        let align = self.integer_attr(32, align as i64);
        self.value(
            "llvm.intr.masked.load",
            &[from, mask, zero],
            (elem, mask.lanes),
            &[("alignment", align)],
        )
    }

    pub fn masked_store(&mut self, value: Val<'c>, to: Val<'c>, mask: Val<'c>, align: u32) {
        let align = self.integer_attr(32, align as i64);
        self.op(
            "llvm.intr.masked.store",
            &[value.raw, to.raw, mask.raw],
            &[],
            &[("alignment", align)],
        );
    }

    pub fn gather(&mut self, from: Val<'c>, mask: Val<'c>, elem: Elem, align: u32) -> Val<'c> {
        let zero = self.zero(elem, mask.lanes);
        let align = self.integer_attr(32, align as i64);
        self.value(
            "llvm.intr.masked.gather",
            &[from, mask, zero],
            (elem, mask.lanes),
            &[("alignment", align)],
        )
    }

    pub fn scatter(&mut self, value: Val<'c>, to: Val<'c>, mask: Val<'c>, align: u32) {
        let align = self.integer_attr(32, align as i64);
        self.op(
            "llvm.intr.masked.scatter",
            &[value.raw, to.raw, mask.raw],
            &[],
            &[("alignment", align)],
        );
    }

    /// Sequentially consistent; gives the old value.
    pub fn atomic(&mut self, op: AtomicOp, at: Val<'c>, value: Val<'c>) -> Val<'c> {
        let attributes = [
            ("bin_op", self.integer_attr(64, op as i64)),
            ("ordering", self.integer_attr(64, 7)),
        ];
        self.value("llvm.atomicrmw", &[at, value], (value.elem, 1), &attributes)
    }

    /// Stack memory, allocated once in the entry block.
    pub fn alloca(&mut self, bytes: u64) -> Val<'c> {
        let count = self.i64(bytes as i64);
        let here = std::mem::replace(&mut self.block, self.entry);
        let elem_ty = TypeAttribute::new(self.ty(Elem::I8, 1)).into();
        let align = self.integer_attr(64, 64);
        let v = self.value(
            "llvm.alloca",
            &[count],
            (Elem::Ptr, 1),
            &[("elem_type", elem_ty), ("alignment", align)],
        );
        self.block = here;
        v
    }
}
