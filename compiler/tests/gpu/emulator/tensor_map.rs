//! Tensor maps as this emulator encodes them, and the conditions under which the driver makes one.

use tessera_device::cuda::driver::{CallError, MAP_RANK, MAP_WORDS, TiledTensor};

/// In the first word: no other bits pass for a map.
const MAGIC: u64 = 0x7e55_e7a0_3a9b_0001;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    pub address: u64,
    pub element_bytes: u64,
    /// Axes are counted from the innermost.
    pub rank: usize,
    pub extents: [u64; MAP_RANK],
    /// In bytes; the first is that of an element.
    pub strides: [u64; MAP_RANK],
    pub boxes: [u64; MAP_RANK],
    pub swizzle: u64,
}

impl TensorMap {
    /// Of a box in shared memory.
    pub fn box_bytes(&self) -> usize {
        (self.boxes.iter().product::<u64>() * self.element_bytes) as usize
    }
}

/// As `cuTensorMapEncodeTiled` is documented.
pub fn encode(t: &TiledTensor) -> Result<[u64; MAP_WORDS], CallError> {
    let element = u64::from(t.dtype.bits() / 8);
    let row = u64::from(t.boxes[0]) * element;
    let axes = 0..t.rank;
    let outer = 1..t.rank;
    let good = (1..=MAP_RANK).contains(&t.rank)
        && t.dtype.bits().is_multiple_of(8)
        && t.address.is_multiple_of(16)
        && axes.clone().all(|i| (1..=1 << 32).contains(&t.extents[i]))
        && outer
            .clone()
            .all(|i| t.strides[i].is_multiple_of(16) && t.strides[i] < 1 << 40)
        && axes.clone().all(|i| (1..=256).contains(&t.boxes[i]))
        && row.is_multiple_of(16)
        && matches!(t.swizzle, 0 | 32 | 64 | 128)
        && (t.swizzle == 0 || row <= u64::from(t.swizzle));
    if !good {
        return Err(CallError::Failed {
            call: "cuTensorMapEncodeTiled",
            error: "CUDA_ERROR_INVALID_VALUE".to_owned(),
        });
    }
    let mut words = [0; MAP_WORDS];
    words[0] = MAGIC;
    words[1] = t.address;
    words[2] = element | (t.rank as u64) << 8 | u64::from(t.swizzle) << 16;
    for i in axes {
        // Up to 2^32 and 256, so that one less fits.
        words[3 + i] = (t.extents[i] - 1) | u64::from(t.boxes[i] - 1) << 32;
        words[8 + i] = if i == 0 { element } else { t.strides[i] };
    }
    Ok(words)
}

/// `None` if the words are no map.
pub fn decode(words: &[u64; MAP_WORDS]) -> Option<TensorMap> {
    if words[0] != MAGIC {
        return None;
    }
    let mut map = TensorMap {
        address: words[1],
        element_bytes: words[2] & 0xff,
        rank: (words[2] >> 8 & 0xff) as usize,
        extents: [1; MAP_RANK],
        strides: [0; MAP_RANK],
        boxes: [1; MAP_RANK],
        swizzle: words[2] >> 16,
    };
    for i in 0..map.rank {
        map.extents[i] = (words[3 + i] & 0xffff_ffff) + 1;
        map.boxes[i] = (words[3 + i] >> 32) + 1;
        map.strides[i] = words[8 + i];
    }
    Some(map)
}

#[test]
fn a_map_comes_back_and_other_words_are_none() {
    let tensor = TiledTensor {
        address: 0x1000,
        dtype: tessera_artifact::DType::BF16,
        rank: 2,
        extents: [1 << 32, 3, 1, 1, 1],
        strides: [0, 1 << 39, 0, 0, 0],
        boxes: [64, 256, 1, 1, 1],
        swizzle: 128,
    };
    let words = encode(&tensor).unwrap();
    let map = decode(&words).unwrap();
    assert_eq!((map.address, map.element_bytes, map.rank), (0x1000, 2, 2));
    assert_eq!(map.extents[..2], [1 << 32, 3]);
    assert_eq!(map.strides[..2], [2, 1 << 39]);
    assert_eq!((&map.boxes[..2], map.swizzle), (&[64, 256][..], 128));
    assert_eq!(decode(&[0; MAP_WORDS]), None);
    for wrong in [
        TiledTensor {
            address: 8,
            ..tensor
        },
        TiledTensor {
            swizzle: 64,
            ..tensor
        },
        TiledTensor {
            boxes: [4, 1, 1, 1, 1],
            ..tensor
        },
        TiledTensor {
            extents: [0; MAP_RANK],
            ..tensor
        },
    ] {
        assert!(encode(&wrong).is_err(), "{wrong:?}");
    }
}
