//! Tensor maps of a launch: what the driver is asked to encode, from the manifest's recipe and the argument.
//!
//! Needs: a recipe that passed the manifest's check. Keeps: what the hardware cannot do is a reason in words, and the launch goes on with
//! code that needs no such map. Source of the conditions: the CUDA driver API, `cuTensorMapEncodeTiled`.

use tessera_artifact::{DType, TensorMap};

use super::driver::{MAP_RANK, TiledTensor};
use crate::launch::TensorWords;

const MAX_EXTENT: u64 = 1 << 32;
const MAX_STRIDE: u64 = 1 << 40;
const ALIGN: u64 = 16;

/// # Errors
/// Why there can be no such map.
pub(super) fn tiled(
    recipe: &TensorMap,
    tensor: &TensorWords,
    words: &[u64],
) -> Result<TiledTensor, String> {
    let rank = tensor.shape.len();
    let address = words[tensor.word];
    let strides = &words[tensor.word + 1..][..rank];
    let bits = tensor.dtype.bits();
    if !address.is_multiple_of(ALIGN) {
        return Err(format!("its address, {address:#x}, is no multiple of 16"));
    }
    let mut map = TiledTensor {
        address,
        // Two codes to a byte.
        dtype: match tensor.dtype {
            DType::E2M1 => DType::U8,
            dtype => dtype,
        },
        rank,
        extents: [1; MAP_RANK],
        strides: [ALIGN; MAP_RANK],
        boxes: [1; MAP_RANK],
        swizzle: recipe.swizzle,
    };
    for (axis, &stride) in strides.iter().enumerate() {
        let innermost = axis + 1 == rank;
        let mut extent = tensor.shape[axis] as u64;
        if innermost && bits == 4 {
            if extent % 2 == 1 {
                return Err(format!("its rows of {extent} codes end within a byte"));
            }
            extent /= 2;
        }
        if !(1..=MAX_EXTENT).contains(&extent) {
            return Err(format!("axis {axis} has extent {extent}"));
        }
        let place = rank - 1 - axis;
        map.extents[place] = extent;
        map.boxes[place] = recipe.extents[axis];
        // Where there is one row, or one element of it, no stride is ever taken.
        if extent == 1 && (!innermost || bits != 4) {
            continue;
        }
        if innermost {
            if stride != 1 {
                return Err(format!("axis {axis} has stride {}", stride as i64));
            }
            continue;
        }
        let in_bits = u64::try_from(stride as i64)
            .ok()
            .and_then(|n| n.checked_mul(bits.into()));
        let bytes = in_bits.filter(|n| n % (8 * ALIGN) == 0).map(|n| n / 8);
        match bytes.filter(|bytes| *bytes < MAX_STRIDE) {
            Some(bytes) => map.strides[place] = bytes,
            None => {
                return Err(format!(
                    "axis {axis} has stride {}, no multiple of 16 bytes below 2^40",
                    stride as i64
                ));
            }
        }
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Axes;

    fn map(
        dtype: DType,
        shape: &[i64],
        address: u64,
        strides: &[i64],
    ) -> Result<TiledTensor, String> {
        let recipe = TensorMap {
            param: 0,
            extents: (1..=shape.len() as u32).map(|n| 16 * n).collect(),
            swizzle: 0,
        };
        let tensor = TensorWords {
            word: 1,
            dtype,
            shape: Axes::new(shape).unwrap(),
            writes: false,
        };
        let mut words = vec![7, address];
        words.extend(strides.iter().map(|&s| s as u64));
        tiled(&recipe, &tensor, &words)
    }

    #[test]
    fn axes_turn_around_and_strides_become_bytes() {
        let map = map(DType::BF16, &[3, 5, 40], 4096, &[400, 48, 1]).unwrap();
        assert_eq!((map.address, map.rank, map.dtype), (4096, 3, DType::BF16));
        assert_eq!(map.extents[..3], [40, 5, 3]);
        assert_eq!(map.strides[1..3], [96, 800]);
        assert_eq!(map.boxes[..3], [48, 32, 16]);
    }

    #[test]
    fn half_bytes_are_counted_in_bytes() {
        let map = map(DType::E2M1, &[5, 64], 0, &[96, 1]).unwrap();
        assert_eq!(
            (map.dtype, map.extents[0], map.strides[1]),
            (DType::U8, 32, 48)
        );
    }

    /// The stride of an axis of one element is never taken, so that any is good.
    #[test]
    fn one_row_may_have_any_stride() {
        let map = map(DType::F32, &[1, 64], 16, &[-3, 1]).unwrap();
        assert_eq!(map.strides[1], 16);
    }

    #[test]
    fn what_the_hardware_cannot_do_is_named() {
        for (made, why) in [
            (map(DType::F32, &[4], 8, &[1]), "0x8, is no multiple of 16"),
            (map(DType::F32, &[4], 16, &[2]), "axis 0 has stride 2"),
            (map(DType::F32, &[2, 4], 16, &[5, 1]), "axis 0 has stride 5"),
            (
                map(DType::F32, &[2, 4], 16, &[-4, 1]),
                "axis 0 has stride -4",
            ),
            (map(DType::F32, &[2, 4], 16, &[1 << 38, 1]), "below 2^40"),
            (map(DType::F32, &[0, 4], 16, &[4, 1]), "axis 0 has extent 0"),
            (
                map(DType::E2M1, &[2, 32], 16, &[33, 1]),
                "axis 0 has stride 33",
            ),
            (
                map(DType::E2M1, &[2, 33], 16, &[64, 1]),
                "33 codes end within a byte",
            ),
        ] {
            let found = made.unwrap_err();
            assert!(found.contains(why), "{found}");
        }
    }
}
