//! Loads compiled CPU kernels: an ELF x86-64 relocatable object, as LLVM writes it, becomes executable memory. No linker, no
//! dynamic loader, no temporary file.
//!
//! Needs: position-independent code in the small code model, no writable or thread-local data; the only symbols it may leave
//! undefined are [`EXTERNALS`]. Keeps: memory is writable or executable, never both; every offset is checked before it is used, so a
//! broken object is an error. What the code then does is the compiler's word: the archive's hashes vouch for the bytes.
//!
//! Source: System V ABI, AMD64 supplement, "Relocation".

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};
use object::elf;
use object::read::elf::{ElfFile64, FileHeader, SectionHeader};
use object::{
    LittleEndian, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget,
    SectionIndex, SymbolIndex, SymbolSection,
};

/// The signature of every kernel: the arguments as 64-bit words, scratch memory of one thread, and the range of CTAs to run.
pub type KernelEntry =
    unsafe extern "C" fn(args: *const u64, scratch: *mut u8, cta_begin: i64, cta_end: i64);

/// Executable memory holding the functions of one object.
pub struct CodeObject {
    memory: Mmap,
    functions: BTreeMap<String, usize>,
}

/// One function of a [`CodeObject`], which it keeps alive.
#[derive(Clone)]
pub struct Kernel {
    entry: KernelEntry,
    _code: Arc<CodeObject>,
}

/// Why an object was not loaded. Nothing of it has run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    /// The machine that this program runs on is no x86-64.
    WrongHost,
    /// Not an ELF relocatable object for x86-64, or one whose parts contradict each other.
    Malformed(String),
    /// The object refers to something outside it that kernels may not use.
    UndefinedSymbol(String),
    /// Sound, but uses something that kernels never need (writable data, thread-local storage, a rare relocation).
    Unsupported(String),
    /// An address does not fit the field that the object reserves for it.
    OutOfRange { section: String, offset: u64 },
    /// No such function; `known` lists those there are.
    NoFunction { name: String, known: Vec<String> },
    /// The operating system refused the memory.
    Memory(String),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongHost => write!(
                f,
                "compiled CPU kernels are x86-64 code, and this machine is another"
            ),
            Self::Malformed(what) => write!(f, "the kernel object is damaged: {what}"),
            Self::UndefinedSymbol(name) => {
                write!(
                    f,
                    "the kernel object calls `{name}`, which kernels may not use (only {})",
                    EXTERNAL_NAMES.join(", ")
                )
            }
            Self::Unsupported(what) => write!(f, "the kernel object cannot be loaded: {what}"),
            Self::OutOfRange { section, offset } => {
                write!(
                    f,
                    "the kernel object cannot be loaded: an address does not fit at offset {offset} of section `{section}`"
                )
            }
            Self::NoFunction { name, known } if known.is_empty() => {
                write!(f, "no function `{name}`: the object has none")
            }
            Self::NoFunction { name, known } => write!(
                f,
                "no function `{name}`; the object has {}",
                known.join(", ")
            ),
            Self::Memory(why) => write!(f, "no executable memory for a kernel object: {why}"),
        }
    }
}

impl std::error::Error for LoadError {}

impl From<object::Error> for LoadError {
    fn from(error: object::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

unsafe extern "C" {
    fn memcpy(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void;
    fn memmove(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void;
    fn memset(to: *mut c_void, byte: i32, bytes: usize) -> *mut c_void;
}

const EXTERNAL_NAMES: [&str; 3] = ["memcpy", "memmove", "memset"];

/// The functions outside the object that code generation may call.
fn external(name: &str) -> Option<u64> {
    Some(match name {
        "memcpy" => memcpy as *const () as u64,
        "memmove" => memmove as *const () as u64,
        "memset" => memset as *const () as u64,
        _ => return None,
    })
}

type Elf<'data> = ElfFile64<'data, LittleEndian>;

/// `jmp *[rip]`, followed by the eight bytes of the address: a call reaches ±2 GiB only, and libc may be farther away.
const STUB_CODE: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];
const STUB_BYTES: usize = 16;
const SLOT_BYTES: usize = 8;
/// Far above any kernel object; keeps every sum below in range, whatever a damaged header says.
const MAX_BYTES: usize = 1 << 30;
const PAGE: u64 = 4096;

impl CodeObject {
    /// Places the object's code and constants in fresh memory, resolves every reference, and makes the memory executable.
    ///
    /// # Errors
    /// [`LoadError`]; an undefined symbol is named.
    pub fn load(bytes: &[u8]) -> Result<Self, LoadError> {
        if !cfg!(target_arch = "x86_64") {
            return Err(LoadError::WrongHost);
        }
        let elf = parse(bytes)?;
        let mut layout = Layout::plan(&elf)?;
        let references = collect_references(&elf, &layout)?;
        layout.add_indirections(&references)?;

        let mut memory =
            MmapMut::map_anon(layout.bytes.max(1)).map_err(|e| LoadError::Memory(e.to_string()))?;
        layout.copy_sections(&elf, &mut memory)?;
        let base = memory.as_ptr() as u64;
        for reference in &references {
            reference.apply(&layout, base, &mut memory)?;
        }
        layout.fill_indirections(base, &mut memory);
        let functions = functions(&elf, &layout)?;
        let memory = memory
            .make_exec()
            .map_err(|e| LoadError::Memory(e.to_string()))?;
        Ok(Self { memory, functions })
    }

    /// The functions that the object exports, by name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.functions.keys().map(String::as_str)
    }

    /// The address of an exported function; valid as long as `self` lives.
    pub fn address(&self, name: &str) -> Option<*const u8> {
        // In range: `functions` holds offsets inside sections that lie inside the memory.
        self.functions
            .get(name)
            .map(|&offset| self.memory[offset..].as_ptr())
    }

    /// An exported function with the signature of a kernel.
    ///
    /// # Errors
    /// [`LoadError::NoFunction`] lists the names there are.
    pub fn kernel(self: &Arc<Self>, name: &str) -> Result<Kernel, LoadError> {
        let address = self.address(name).ok_or_else(|| LoadError::NoFunction {
            name: name.to_owned(),
            known: self.names().map(str::to_owned).collect(),
        })?;
        // SAFETY: a function pointer is an address of code; `address` is one, in executable memory. Calling it is unsafe still.
        let entry = unsafe { std::mem::transmute::<*const u8, KernelEntry>(address) };
        Ok(Kernel {
            entry,
            _code: Arc::clone(self),
        })
    }
}

impl fmt::Debug for CodeObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeObject")
            .field("bytes", &self.memory.len())
            .field("functions", &self.functions)
            .finish()
    }
}

impl Kernel {
    /// Runs CTAs `cta_begin..cta_end` on the calling thread.
    ///
    /// # Safety
    /// The function has the signature of a kernel; `args` holds what its manifest entry says, every pointer among them valid for the
    /// accesses that the kernel makes; `scratch` has the size and alignment that the manifest states, used by no other thread meanwhile.
    pub unsafe fn call(&self, args: &[u64], scratch: *mut u8, cta_begin: i64, cta_end: i64) {
        // SAFETY: passed on to the caller.
        unsafe { (self.entry)(args.as_ptr(), scratch, cta_begin, cta_end) }
    }
}

fn parse(bytes: &[u8]) -> Result<Elf<'_>, LoadError> {
    if bytes.len() > MAX_BYTES {
        return Err(LoadError::Unsupported(format!(
            "it has {} bytes, more than {MAX_BYTES}",
            bytes.len()
        )));
    }
    let elf = Elf::parse(bytes)?;
    let header = elf.elf_header();
    if header.e_machine(LittleEndian) != elf::EM_X86_64
        || header.e_type(LittleEndian) != elf::ET_REL
    {
        return Err(LoadError::Malformed(
            "not a relocatable object for x86-64".to_owned(),
        ));
    }
    Ok(elf)
}

/// Where everything goes, as offsets from the start of the memory: sections, then one stub per external function called, then one
/// slot per symbol whose address is loaded from memory.
struct Layout {
    sections: HashMap<SectionIndex, Placed>,
    stubs: BTreeMap<Symbol, usize>,
    slots: BTreeMap<Symbol, usize>,
    bytes: usize,
}

struct Placed {
    name: String,
    offset: usize,
    bytes: usize,
    executable: bool,
}

/// What a reference refers to, found before anything is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Symbol {
    /// An offset from the start of the memory.
    Inside(usize),
    /// An address of this process.
    External(u64),
}

impl Symbol {
    fn address(self, base: u64) -> u64 {
        match self {
            Symbol::Inside(offset) => base + offset as u64,
            Symbol::External(address) => address,
        }
    }
}

impl Layout {
    fn plan(elf: &Elf<'_>) -> Result<Self, LoadError> {
        let mut layout = Self {
            sections: HashMap::new(),
            stubs: BTreeMap::new(),
            slots: BTreeMap::new(),
            bytes: 0,
        };
        for section in elf.sections() {
            let header = section.elf_section_header();
            let flags = header.sh_flags(LittleEndian);
            let name = section.name()?.to_owned();
            // Unwind tables are read only by unwinders that were told of them, and kernels don't unwind.
            if !flags.contains(elf::SHF_ALLOC)
                || header.sh_size(LittleEndian) == 0
                || name == ".eh_frame"
            {
                continue;
            }
            if flags.contains(elf::SHF_TLS) {
                return Err(LoadError::Unsupported(format!(
                    "section `{name}` is thread-local"
                )));
            }
            // Constants that hold addresses are written once, here, and read-only afterwards.
            if flags.contains(elf::SHF_WRITE) && !name.starts_with(".data.rel.ro") {
                return Err(LoadError::Unsupported(format!(
                    "section `{name}` is writable; kernels keep no state"
                )));
            }
            let bytes = section.data()?.len();
            if bytes as u64 != header.sh_size(LittleEndian) {
                return Err(LoadError::Malformed(format!(
                    "section `{name}` has no contents"
                )));
            }
            let align = header.sh_addralign(LittleEndian).max(1);
            if !align.is_power_of_two() || align > PAGE {
                return Err(LoadError::Malformed(format!(
                    "section `{name}` is aligned to {align}"
                )));
            }
            let offset = layout.reserve(bytes, align as usize)?;
            let executable = flags.contains(elf::SHF_EXECINSTR);
            layout.sections.insert(
                section.index(),
                Placed {
                    name,
                    offset,
                    bytes,
                    executable,
                },
            );
        }
        Ok(layout)
    }

    /// The offset of `bytes` more bytes.
    fn reserve(&mut self, bytes: usize, align: usize) -> Result<usize, LoadError> {
        let offset = self.bytes.next_multiple_of(align);
        self.bytes = offset + bytes;
        if self.bytes > MAX_BYTES {
            return Err(LoadError::Unsupported(format!(
                "it needs more than {MAX_BYTES} bytes"
            )));
        }
        Ok(offset)
    }

    fn add_indirections(&mut self, references: &[Reference]) -> Result<(), LoadError> {
        for reference in references {
            match reference.kind {
                ReferenceKind::Relative32 | ReferenceKind::Relative64
                    if matches!(reference.symbol, Symbol::External(_))
                        && !self.stubs.contains_key(&reference.symbol) =>
                {
                    let offset = self.reserve(STUB_BYTES, STUB_BYTES)?;
                    self.stubs.insert(reference.symbol, offset);
                }
                ReferenceKind::Slot if !self.slots.contains_key(&reference.symbol) => {
                    let offset = self.reserve(SLOT_BYTES, SLOT_BYTES)?;
                    self.slots.insert(reference.symbol, offset);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn copy_sections(&self, elf: &Elf<'_>, memory: &mut [u8]) -> Result<(), LoadError> {
        for section in elf.sections() {
            if let Some(placed) = self.sections.get(&section.index()) {
                memory[placed.offset..placed.offset + placed.bytes]
                    .copy_from_slice(section.data()?);
            }
        }
        Ok(())
    }

    fn fill_indirections(&self, base: u64, memory: &mut [u8]) {
        for (symbol, &offset) in &self.stubs {
            memory[offset..offset + STUB_CODE.len()].copy_from_slice(&STUB_CODE);
            let address = offset + STUB_CODE.len();
            memory[address..address + 8].copy_from_slice(&symbol.address(base).to_le_bytes());
        }
        for (symbol, &offset) in &self.slots {
            memory[offset..offset + SLOT_BYTES]
                .copy_from_slice(&symbol.address(base).to_le_bytes());
        }
    }

    /// Where a symbol of the object lies.
    fn resolve(&self, elf: &Elf<'_>, index: SymbolIndex) -> Result<Symbol, LoadError> {
        let symbol = elf.symbol_by_index(index)?;
        match symbol.section() {
            SymbolSection::Section(section) => {
                let placed = self.sections.get(&section).ok_or_else(|| {
                    LoadError::Unsupported(format!(
                        "`{}` lies in a part that is not loaded",
                        name_of(&symbol)
                    ))
                })?;
                // One past the end is where a symbol of no size may stand.
                let within = usize::try_from(symbol.address())
                    .ok()
                    .filter(|&at| at <= placed.bytes)
                    .ok_or_else(|| {
                        LoadError::Malformed(format!(
                            "`{}` lies outside its section `{}`",
                            name_of(&symbol),
                            placed.name
                        ))
                    })?;
                Ok(Symbol::Inside(placed.offset + within))
            }
            SymbolSection::Undefined => {
                let name = name_of(&symbol);
                external(&name)
                    .map(Symbol::External)
                    .ok_or(LoadError::UndefinedSymbol(name))
            }
            _ => Err(LoadError::Unsupported(format!(
                "`{}` is neither defined nor external",
                name_of(&symbol)
            ))),
        }
    }
}

fn name_of<'data>(symbol: &impl ObjectSymbol<'data>) -> String {
    symbol.name_bytes().map_or_else(
        |_| "?".to_owned(),
        |name| String::from_utf8_lossy(name).into_owned(),
    )
}

/// A place in a section that waits for an address.
struct Reference {
    section: SectionIndex,
    /// From the start of the section; as wide as `kind` says and inside the section.
    offset: usize,
    symbol: Symbol,
    addend: i64,
    kind: ReferenceKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReferenceKind {
    Absolute64,
    AbsoluteUnsigned32,
    AbsoluteSigned32,
    Relative32,
    Relative64,
    /// 32 bits, relative, to a slot that holds the symbol's address.
    Slot,
}

impl ReferenceKind {
    fn of(r_type: elf::RelocationType) -> Option<Self> {
        Some(match r_type {
            elf::R_X86_64_64 => Self::Absolute64,
            elf::R_X86_64_32 => Self::AbsoluteUnsigned32,
            elf::R_X86_64_32S => Self::AbsoluteSigned32,
            elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => Self::Relative32,
            elf::R_X86_64_PC64 => Self::Relative64,
            elf::R_X86_64_GOTPCREL | elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX => {
                Self::Slot
            }
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Self::Absolute64 | Self::Relative64 => 8,
            Self::AbsoluteUnsigned32 | Self::AbsoluteSigned32 | Self::Relative32 | Self::Slot => 4,
        }
    }
}

fn collect_references(elf: &Elf<'_>, layout: &Layout) -> Result<Vec<Reference>, LoadError> {
    let mut references = Vec::new();
    for section in elf.sections() {
        let Some(placed) = layout.sections.get(&section.index()) else {
            continue;
        };
        if !section.elf_linked_rel()?.is_empty() {
            return Err(LoadError::Malformed(format!(
                "section `{}` has relocations without addends",
                placed.name
            )));
        }
        for (offset, relocation) in section.relocations() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else {
                return Err(LoadError::Malformed(format!(
                    "section `{}` has a relocation of no type",
                    placed.name
                )));
            };
            if r_type == elf::R_X86_64_NONE {
                continue;
            }
            let kind = ReferenceKind::of(r_type).ok_or_else(|| {
                LoadError::Unsupported(format!(
                    "relocation {r_type:?} in section `{}`",
                    placed.name
                ))
            })?;
            let RelocationTarget::Symbol(symbol) = relocation.target() else {
                return Err(LoadError::Malformed(format!(
                    "a relocation in section `{}` names no symbol",
                    placed.name
                )));
            };
            let offset = usize::try_from(offset).ok().filter(|&at| {
                at.checked_add(kind.bytes())
                    .is_some_and(|end| end <= placed.bytes)
            });
            let offset = offset.ok_or_else(|| {
                LoadError::Malformed(format!(
                    "a relocation lies outside its section `{}`",
                    placed.name
                ))
            })?;
            let symbol = layout.resolve(elf, symbol)?;
            references.push(Reference {
                section: section.index(),
                offset,
                symbol,
                addend: relocation.addend(),
                kind,
            });
        }
    }
    Ok(references)
}

impl Reference {
    fn apply(&self, layout: &Layout, base: u64, memory: &mut [u8]) -> Result<(), LoadError> {
        let placed = &layout.sections[&self.section];
        let at = placed.offset + self.offset;
        let target = match (self.kind, self.symbol) {
            (ReferenceKind::Slot, symbol) => base + layout.slots[&symbol] as u64,
            (
                ReferenceKind::Relative32 | ReferenceKind::Relative64,
                symbol @ Symbol::External(_),
            ) => base + layout.stubs[&symbol] as u64,
            (_, symbol) => symbol.address(base),
        };
        let absolute = target.wrapping_add_signed(self.addend);
        let relative = absolute.wrapping_sub(base + at as u64) as i64;
        let value = match self.kind {
            ReferenceKind::Absolute64 => Some(absolute),
            ReferenceKind::Relative64 => Some(relative as u64),
            ReferenceKind::AbsoluteUnsigned32 => u32::try_from(absolute).ok().map(u64::from),
            ReferenceKind::AbsoluteSigned32 => {
                i32::try_from(absolute as i64).ok().map(|v| v as u64)
            }
            ReferenceKind::Relative32 | ReferenceKind::Slot => {
                i32::try_from(relative).ok().map(|v| v as u64)
            }
        };
        let value = value.ok_or_else(|| LoadError::OutOfRange {
            section: placed.name.clone(),
            offset: self.offset as u64,
        })?;
        let bytes = self.kind.bytes();
        memory[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        Ok(())
    }
}

fn functions(elf: &Elf<'_>, layout: &Layout) -> Result<BTreeMap<String, usize>, LoadError> {
    let mut functions = BTreeMap::new();
    for symbol in elf.symbols() {
        let is_function = symbol.elf_symbol().st_type() == elf::STT_FUNC;
        let Some(section) = symbol.section_index() else {
            continue;
        };
        if !is_function || symbol.is_local() {
            continue;
        }
        let Symbol::Inside(offset) = layout.resolve(elf, symbol.index())? else {
            continue;
        };
        let placed = &layout.sections[&section];
        if !placed.executable || offset >= placed.offset + placed.bytes {
            return Err(LoadError::Malformed(format!(
                "function `{}` lies outside the code",
                name_of(&symbol)
            )));
        }
        if functions
            .insert(symbol.name()?.to_owned(), offset)
            .is_some()
        {
            return Err(LoadError::Malformed(format!(
                "function `{}` is defined twice",
                name_of(&symbol)
            )));
        }
    }
    Ok(functions)
}
