//! Conversions against the number-format goldens (`tests/golden/README.md`), which come from independent float64 code compared
//! with ml_dtypes and torch.

use serde_json::Value;
use std::path::Path;
use tessera_artifact::{DType, numeric};

/// The tensors of a safetensors file: values as f64, whatever their type.
struct Golden(Vec<u8>);

impl Golden {
    fn open(name: &str) -> Golden {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/formats");
        let path = dir.join(format!("{name}.safetensors"));
        Golden(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    fn tensor(&self, name: &str) -> Vec<f64> {
        let header = u64::from_le_bytes(self.0[..8].try_into().unwrap()) as usize;
        let entries: Value = serde_json::from_slice(&self.0[8..8 + header]).unwrap();
        let entry = &entries[name];
        let offset = |i: usize| 8 + header + entry["data_offsets"][i].as_u64().unwrap() as usize;
        let bytes = &self.0[offset(0)..offset(1)];
        match entry["dtype"].as_str().unwrap() {
            "U8" => bytes.iter().map(|&b| b as f64).collect(),
            "F32" => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64)
                .collect(),
            "F64" => bytes
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            other => panic!("{other}"),
        }
    }
}

fn decodes(table: &[f64], dtype: DType) {
    assert!(!table.is_empty());
    for (code, &value) in table.iter().enumerate() {
        let got = numeric::to_f64(code as u64, dtype);
        let same = got.to_bits() == value.to_bits() || (got.is_nan() && value.is_nan());
        assert!(same, "{dtype} code {code:#x}: {got} instead of {value}");
    }
}

fn encodes(x: &[f64], codes: &[f64], dtype: DType) {
    assert_eq!(x.len(), codes.len());
    for (&x, &code) in x.iter().zip(codes) {
        assert_eq!(numeric::from_f64(x, dtype), code as u64, "{dtype} of {x:e}");
        let from_f32 = numeric::convert((x as f32).to_bits() as u64, DType::F32, dtype);
        assert_eq!(from_f32, code as u64, "{dtype} of {x:e} as f32");
    }
}

#[test]
fn e4m3() {
    let golden = Golden::open("e4m3");
    decodes(&golden.tensor("e4m3.decode_table"), DType::E4M3);
    encodes(
        &golden.tensor("e4m3.x"),
        &golden.tensor("e4m3.code_saturating"),
        DType::E4M3,
    );
}

#[test]
fn ue8m0() {
    let golden = Golden::open("ue8m0");
    decodes(&golden.tensor("ue8m0.decode_table"), DType::UE8M0);
    encodes(
        &golden.tensor("ue8m0.x"),
        &golden.tensor("ue8m0.code_round_up"),
        DType::UE8M0,
    );
}

#[test]
fn e2m1_and_its_packing() {
    let golden = Golden::open("fp4");
    decodes(&golden.tensor("fp4.decode_table"), DType::E2M1);
    let codes = golden.tensor("fp4.code");
    encodes(&golden.tensor("fp4.x"), &codes, DType::E2M1);
    for (&code, &value) in codes.iter().zip(&golden.tensor("fp4.value")) {
        assert_eq!(numeric::e2m1_to_f32(code as u8) as f64, value);
    }
    let packed: Vec<u8> = golden
        .tensor("fp4.packed_low_nibble_first")
        .iter()
        .map(|&b| b as u8)
        .collect();
    let mut ours = vec![0; packed.len()];
    for (i, &code) in codes.iter().enumerate() {
        numeric::write_e2m1(&mut ours, i, code as u8);
        assert_eq!(numeric::read_e2m1(&packed, i), code as u8);
    }
    assert_eq!(ours, packed);
}
