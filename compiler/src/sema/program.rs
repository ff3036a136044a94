//! All items of one compile, by module and name.
//!
//! Needs: parsed files. Keeps: the order of kernels is the order in the text.

use super::evaluate::{Evaluator, Static};
use super::order;
use crate::diag::Sink;
use crate::diag::catalogue::sema as say;
use crate::source::Span;
use crate::syntax::ast::{self, File, Ident, Item};
use std::collections::BTreeMap;

/// The items of all files of one compile.
pub struct Program<'a> {
    pub kernels: Vec<KernelItem<'a>>,
    pub(super) modules: Vec<Module<'a>>,
    by_path: BTreeMap<String, usize>,
    /// Values of `const` items, by module and name.
    constants: BTreeMap<(usize, String), Static>,
}

pub struct KernelItem<'a> {
    /// `module::name`.
    pub name: String,
    pub module: usize,
    pub ast: &'a ast::Kernel,
    /// Of a library's file, where nothing asks for it.
    pub is_library: bool,
    pub instances: Vec<&'a ast::Instances>,
    pub references: Vec<&'a ast::Reference>,
    pub tests: Vec<&'a ast::Test>,
    pub benches: Vec<&'a ast::Test>,
}

#[derive(Default)]
pub(super) struct Module<'a> {
    path: String,
    pub items: BTreeMap<String, (Entry<'a>, Span)>,
    uses: Vec<&'a ast::Use>,
}

#[derive(Clone, Copy)]
pub(super) enum Entry<'a> {
    Const(&'a ast::Const),
    Function(&'a ast::Function),
    Kernel(usize),
    /// A reference block has a name of its own.
    Reference(&'a ast::Reference),
}

impl Entry<'_> {
    pub fn kind(&self) -> &'static str {
        match self {
            Entry::Const(_) => "a constant",
            Entry::Function(_) => "a function",
            Entry::Kernel(_) => "a kernel",
            Entry::Reference(_) => "a reference",
        }
    }
}

impl<'a> Program<'a> {
    /// Gathers the items of `files` and reports what is wrong between them: duplicates, unknown modules and kernels.
    pub fn collect(files: &'a [File], sink: &mut Sink) -> Program<'a> {
        let mut program = Program {
            kernels: vec![],
            modules: vec![],
            by_path: BTreeMap::new(),
            constants: BTreeMap::new(),
        };
        let homes: Vec<usize> = files.iter().map(|f| program.module_of(f)).collect();
        for (file, &home) in files.iter().zip(&homes) {
            program.modules[home].uses.extend(&file.uses);
            for item in &file.items {
                program.declare(home, file.is_library, item, sink);
            }
        }
        for (file, &home) in files.iter().zip(&homes) {
            program.check_uses(file, sink);
            let asks =
                |item: &&Item| matches!(item, Item::Instances(_) | Item::Test(_) | Item::Bench(_));
            for item in file
                .items
                .iter()
                .filter(|item| !(file.is_library && asks(item)))
            {
                program.attach(home, item, sink);
            }
        }
        program.compute_constants(sink);
        program
    }

    fn compute_constants(&mut self, sink: &mut Sink) {
        for group in order::constants(self) {
            if group.circular {
                sink.report(say::constant_cycle(&group.members));
            }
            for (module, item) in group.members {
                let value = match group.circular {
                    true => Static::Error,
                    false => Evaluator::new(self, module).eval(&item.value, sink),
                };
                self.constants
                    .insert((module, item.name.name.clone()), value);
            }
        }
    }

    /// The value of a `const` item of a module.
    pub(super) fn constant(&self, module: usize, item: &ast::Const) -> Static {
        let value = self.constants.get(&(module, item.name.name.clone()));
        value
            .expect("constants are computed after those that they name, and before all else")
            .clone()
    }

    fn module_of(&mut self, file: &File) -> usize {
        let path = file.module.as_ref().map(path_text).unwrap_or_default();
        if !path.is_empty()
            && let Some(&id) = self.by_path.get(&path)
        {
            return id;
        }
        self.modules.push(Module {
            path: path.clone(),
            ..Module::default()
        });
        let id = self.modules.len() - 1;
        if !path.is_empty() {
            self.by_path.insert(path, id);
        }
        id
    }

    fn declare(&mut self, home: usize, is_library: bool, item: &'a Item, sink: &mut Sink) {
        let (name, entry) = match item {
            Item::Const(c) => (&c.name, Entry::Const(c)),
            Item::Function(f) => (&f.name, Entry::Function(f)),
            Item::Reference(r) => (&r.name, Entry::Reference(r)),
            Item::Kernel(k) => {
                let path = &self.modules[home].path;
                let name = if path.is_empty() {
                    k.name.name.clone()
                } else {
                    format!("{path}::{}", k.name.name)
                };
                // The archive knows kernels by this name, so it is unique over all files.
                if let Some(other) = self.kernels.iter().find(|o| o.name == name) {
                    sink.report(say::duplicate_name(&k.name, other.ast.name.span, "kernel"));
                    return;
                }
                self.kernels.push(KernelItem {
                    name,
                    module: home,
                    ast: k,
                    is_library,
                    instances: vec![],
                    references: vec![],
                    tests: vec![],
                    benches: vec![],
                });
                (&k.name, Entry::Kernel(self.kernels.len() - 1))
            }
            Item::Instances(_) | Item::Test(_) | Item::Bench(_) | Item::Error(_) => return,
        };
        if matches!(entry, Entry::Function(_)) && super::lower::is_builtin(&name.name) {
            sink.report(say::shadows_builtin(name));
            return;
        }
        if let Some((_, before)) = self.modules[home].items.get(&name.name) {
            sink.report(say::duplicate_name(name, *before, "item"));
            return;
        }
        self.modules[home]
            .items
            .insert(name.name.clone(), (entry, name.span));
    }

    fn check_uses(&self, file: &File, sink: &mut Sink) {
        for u in &file.uses {
            let path = path_text(&u.path);
            let Some(&module) = self.by_path.get(&path) else {
                let known = self.by_path.keys().map(String::as_str);
                sink.report(say::unknown_module(
                    u.path.span,
                    &path,
                    nearest(&path, known),
                ));
                continue;
            };
            for name in &u.names {
                if !self.modules[module].items.contains_key(&name.name) {
                    let known = self.modules[module].items.keys().map(String::as_str);
                    sink.report(say::unknown_in_module(
                        name,
                        &path,
                        nearest(&name.name, known),
                    ));
                }
            }
        }
    }

    /// Puts instances, references, tests and benches beside their kernel.
    fn attach(&mut self, home: usize, item: &'a Item, sink: &mut Sink) {
        let kernel = match item {
            Item::Instances(i) => &i.kernel,
            Item::Reference(r) => &r.kernel,
            Item::Test(t) | Item::Bench(t) => &t.kernel,
            _ => return,
        };
        let Some(id) = self.find_kernel(home, kernel) else {
            let known = self.kernels.iter().map(|k| k.ast.name.name.as_str());
            sink.report(say::unknown_kernel(kernel, nearest(&kernel.name, known)));
            return;
        };
        let k = &mut self.kernels[id];
        match item {
            Item::Instances(i) => k.instances.push(i),
            Item::Reference(r) => k.references.push(r),
            Item::Test(t) => k.tests.push(t),
            Item::Bench(t) => k.benches.push(t),
            _ => {}
        }
    }

    fn find_kernel(&self, home: usize, name: &Ident) -> Option<usize> {
        match self.find(home, std::slice::from_ref(name)) {
            Some((_, Entry::Kernel(id))) => Some(id),
            _ => None,
        }
    }

    /// A reference as seen from a module.
    pub fn reference(&self, home: usize, name: &Ident) -> Option<&'a ast::Reference> {
        match self.find(home, std::slice::from_ref(name)) {
            Some((_, Entry::Reference(reference))) => Some(reference),
            _ => None,
        }
    }

    /// The kernel of this name, qualified or bare.
    pub fn kernel(&self, name: &str) -> Option<usize> {
        self.kernels
            .iter()
            .position(|k| k.name == name)
            .or_else(|| self.kernels.iter().position(|k| k.ast.name.name == name))
    }

    /// An item as seen from a module: its own, then what `use` brings in, then by module path.
    pub(super) fn find(&self, home: usize, path: &[Ident]) -> Option<(usize, Entry<'a>)> {
        let (last, prefix) = path.split_last()?;
        let in_module = |m: usize| {
            self.modules[m]
                .items
                .get(&last.name)
                .map(|(entry, _)| (m, *entry))
        };
        if prefix.is_empty() {
            return in_module(home).or_else(|| {
                let from = self.modules[home]
                    .uses
                    .iter()
                    .find(|u| u.names.iter().any(|n| n.name == last.name))?;
                in_module(*self.by_path.get(&path_text(&from.path))?)
            });
        }
        let prefix: Vec<&str> = prefix.iter().map(|s| s.name.as_str()).collect();
        let prefix = prefix.join("::");
        let module = self.by_path.get(&prefix).copied().or_else(|| {
            let used = self.modules[home]
                .uses
                .iter()
                .map(|u| path_text(&u.path))
                .find(|p| p.rsplit("::").next() == Some(prefix.as_str()))?;
            self.by_path.get(&used).copied()
        });
        in_module(module?)
    }

    /// Names that a module sees, for suggestions.
    pub(super) fn visible(&self, home: usize) -> impl Iterator<Item = &str> {
        let m = &self.modules[home];
        m.items.keys().map(String::as_str).chain(
            m.uses
                .iter()
                .flat_map(|u| u.names.iter().map(|n| n.name.as_str())),
        )
    }
}

pub(super) fn path_text(path: &ast::Path) -> String {
    let names: Vec<&str> = path.segments.iter().map(|s| s.name.as_str()).collect();
    names.join("::")
}

/// The candidate that `name` is a likely slip of.
pub(super) fn nearest<'c>(
    name: &str,
    candidates: impl Iterator<Item = &'c str>,
) -> Option<&'c str> {
    let limit = name.chars().count().div_ceil(3).min(3);
    candidates
        .filter(|c| *c != name)
        .map(|c| (edit_distance(name, c), c))
        .filter(|(d, c)| *d <= limit && *d < c.chars().count())
        .min()
        .map(|(_, c)| c)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let cost = usize::from(!ca.eq_ignore_ascii_case(&cb));
            let next = (diagonal + cost).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}
