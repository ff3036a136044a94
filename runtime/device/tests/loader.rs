//! The loader of kernel objects: every kind of reference that code generation makes, and broken objects.
#![cfg(target_arch = "x86_64")]

use std::sync::Arc;

use object::elf;
use object::write::{Object, Relocation, StandardSection, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SymbolFlags, SymbolKind, SymbolScope,
};
use proptest::prelude::*;
use tessera_device::cpu::loader::{CodeObject, LoadError};

const CONSTANT: i64 = 0x0123_4567_89ab_cdef;

/// A function whose last instruction before `tail` ends in the 32-bit field of a reference.
struct Function {
    name: &'static str,
    head: &'static [u8],
    tail: &'static [u8],
    symbol: &'static str,
    r_type: elf::RelocationType,
}

/// Each function has the kernel signature: args in rdi, scratch in rsi, cta_begin in rdx, cta_end in rcx.
const FUNCTIONS: [Function; 4] = [
    // *args[0] = cta_begin + cta_end + CONSTANT
    Function {
        name: "sum",
        head: &[0x48, 0x8b, 0x07, 0x48, 0x01, 0xca, 0x48, 0x03, 0x15],
        tail: &[0x48, 0x89, 0x10, 0xc3],
        symbol: "constant",
        r_type: elf::R_X86_64_PC32,
    },
    // memset(args[0], 42, cta_begin)
    Function {
        name: "fill",
        head: &[0x48, 0x8b, 0x3f, 0xbe, 42, 0, 0, 0, 0xe9],
        tail: &[],
        symbol: "memset",
        r_type: elf::R_X86_64_PLT32,
    },
    // memmove(args[0], args[1], cta_begin), its address loaded from a slot
    Function {
        name: "copy",
        head: &[0x48, 0x8b, 0x77, 0x08, 0x48, 0x8b, 0x3f, 0xff, 0x25],
        tail: &[],
        symbol: "memmove",
        r_type: elf::R_X86_64_GOTPCRELX,
    },
    // *args[0] = **table, where table[0] = &constant
    Function {
        name: "by_table",
        head: &[0x48, 0x8b, 0x07, 0x48, 0x8b, 0x0d],
        tail: &[0x48, 0x8b, 0x09, 0x48, 0x89, 0x08, 0xc3],
        symbol: "table",
        r_type: elf::R_X86_64_PC32,
    },
];

fn empty() -> Object<'static> {
    Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little)
}

fn symbol(name: &str, section: SymbolSection, kind: SymbolKind) -> Symbol {
    Symbol {
        name: name.into(),
        value: 0,
        size: 0,
        kind,
        scope: SymbolScope::Linkage,
        weak: false,
        section,
        flags: SymbolFlags::None,
    }
}

fn relocation(
    offset: u64,
    symbol: object::write::SymbolId,
    addend: i64,
    r_type: elf::RelocationType,
) -> Relocation {
    Relocation {
        offset,
        symbol,
        addend,
        flags: RelocationFlags::Elf { r_type },
    }
}

fn add_function(object: &mut Object, function: &Function) {
    let text = object.section_id(StandardSection::Text);
    let id = object.add_symbol(symbol(
        function.name,
        SymbolSection::Undefined,
        SymbolKind::Text,
    ));
    let code = [function.head, &[0; 4], function.tail].concat();
    let at = object.add_symbol_data(id, text, &code, 16);
    let target = object
        .symbol_id(function.symbol.as_bytes())
        .unwrap_or_else(|| {
            object.add_symbol(symbol(
                function.symbol,
                SymbolSection::Undefined,
                SymbolKind::Unknown,
            ))
        });
    let offset = at + function.head.len() as u64;
    object
        .add_relocation(text, relocation(offset, target, -4, function.r_type))
        .expect("the object format knows this relocation");
}

fn sample() -> Vec<u8> {
    let mut object = empty();
    let constants = object.section_id(StandardSection::ReadOnlyData);
    let constant = object.add_symbol(symbol(
        "constant",
        SymbolSection::Undefined,
        SymbolKind::Data,
    ));
    // Not at the start of its section, so that a lost symbol value shows.
    object.append_section_data(constants, &[0xee; 24], 8);
    object.add_symbol_data(constant, constants, &CONSTANT.to_le_bytes(), 8);
    let tables = object.section_id(StandardSection::ReadOnlyDataWithRel);
    let table = object.add_symbol(symbol("table", SymbolSection::Undefined, SymbolKind::Data));
    object.add_symbol_data(table, tables, &[0; 8], 8);
    object
        .add_relocation(tables, relocation(0, constant, 0, elf::R_X86_64_64))
        .expect("the object format knows this relocation");
    for function in &FUNCTIONS {
        add_function(&mut object, function);
    }
    object.write().expect("a sound object")
}

fn load(bytes: &[u8]) -> Arc<CodeObject> {
    Arc::new(CodeObject::load(bytes).expect("a sound object loads"))
}

#[test]
fn every_kind_of_reference_resolves() {
    let code = load(&sample());
    assert_eq!(
        code.names().collect::<Vec<_>>(),
        ["by_table", "copy", "fill", "sum"]
    );
    let run = |name: &str, args: &[u64], begin: i64, end: i64| {
        let kernel = code.kernel(name).expect("the sample has it");
        // SAFETY: the functions above access only what `args` points to, and no scratch.
        unsafe { kernel.call(args, std::ptr::null_mut(), begin, end) }
    };

    let mut sum = 0i64;
    run("sum", &[&raw mut sum as u64], 5, 7);
    assert_eq!(sum, CONSTANT + 12);

    let mut bytes = [0u8; 32];
    run("fill", &[bytes.as_mut_ptr() as u64], 20, 0);
    assert_eq!(bytes[..20], [42; 20]);
    assert_eq!(bytes[20..], [0; 12]);

    let source: Vec<u8> = (0..32).collect();
    run(
        "copy",
        &[bytes.as_mut_ptr() as u64, source.as_ptr() as u64],
        32,
        0,
    );
    assert_eq!(bytes[..], source);

    let mut constant = 0i64;
    run("by_table", &[&raw mut constant as u64], 0, 0);
    assert_eq!(constant, CONSTANT);
}

#[test]
fn a_kernel_outlives_the_handle_it_came_from() {
    let code = load(&sample());
    let kernel = code.kernel("sum").expect("the sample has it");
    drop(code);
    let mut sum = 0i64;
    // SAFETY: writes one word, to `sum`.
    unsafe { kernel.call(&[&raw mut sum as u64], std::ptr::null_mut(), -1, 1) };
    assert_eq!(sum, CONSTANT);
}

fn error(object: &Object) -> LoadError {
    let bytes = object.write().expect("a sound object");
    CodeObject::load(&bytes).expect_err("this object must be refused")
}

#[test]
fn other_undefined_symbols_are_named() {
    let mut object = empty();
    add_function(
        &mut object,
        &Function {
            symbol: "expf",
            ..FUNCTIONS[1]
        },
    );
    assert_eq!(
        error(&object),
        LoadError::UndefinedSymbol("expf".to_owned())
    );
    assert_eq!(
        error(&object).to_string(),
        "the kernel object calls `expf`, which kernels may not use (only memcpy, memmove, memset)"
    );
}

#[test]
fn writable_data_is_refused() {
    for section in [StandardSection::Data, StandardSection::Tls] {
        let mut object = empty();
        let id = object.section_id(section);
        object.append_section_data(id, &[1; 8], 8);
        assert!(
            matches!(error(&object), LoadError::Unsupported(_)),
            "{section:?}"
        );
    }
}

#[test]
fn rare_relocations_and_far_addresses_are_refused() {
    let mut object = empty();
    add_function(
        &mut object,
        &Function {
            r_type: elf::R_X86_64_TPOFF32,
            ..FUNCTIONS[1]
        },
    );
    assert!(matches!(error(&object), LoadError::Unsupported(_)));

    // The small code model without position independence: memory lies above 4 GiB, so a 32-bit address cannot hold it.
    for r_type in [elf::R_X86_64_32, elf::R_X86_64_32S] {
        let mut object = empty();
        add_function(
            &mut object,
            &Function {
                r_type,
                symbol: "fill",
                ..FUNCTIONS[1]
            },
        );
        assert_eq!(
            error(&object),
            LoadError::OutOfRange {
                section: ".text".to_owned(),
                offset: 9
            }
        );
    }
}

#[test]
fn a_missing_function_lists_those_there_are() {
    let missing = load(&sample())
        .kernel("gemm")
        .err()
        .expect("there is no such function");
    assert_eq!(
        missing.to_string(),
        "no function `gemm`; the object has by_table, copy, fill, sum"
    );
}

#[test]
fn other_files_are_refused() {
    for bytes in [&b""[..], b"\x7fELF", b"MZ", &[0; 64], &[0xff; 200]] {
        assert!(
            matches!(CodeObject::load(bytes), Err(LoadError::Malformed(_))),
            "{bytes:?}"
        );
    }
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = sample();
    for length in 0..bytes.len() {
        assert!(
            CodeObject::load(&bytes[..length]).is_err(),
            "{length} of {} bytes",
            bytes.len()
        );
    }
}

proptest! {
    /// Damage may leave the object sound (a byte of code), but it never leads the loader outside its memory.
    #[test]
    fn damage_never_panics(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = sample();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = CodeObject::load(&bytes);
    }

    /// Field by field: 64-bit extremes in headers, sections, symbols and relocations.
    #[test]
    fn extreme_fields_never_panic(at in any::<prop::sample::Index>(), value in prop::sample::select(vec![
        0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, i64::MAX as u64, 1 << 63, u64::MAX, u64::MAX - 7,
    ])) {
        let mut bytes = sample();
        let at = at.index(bytes.len() / 8) * 8;
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        let _ = CodeObject::load(&bytes);
    }
}
