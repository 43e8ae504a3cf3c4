//! `cuTensorMapEncodeTiled`: maps of tensors as the machine's `cp.async.bulk.tensor` reads them.

#![allow(non_snake_case, reason = "names of cuda.h")]
#![allow(clippy::missing_safety_doc, reason = "the CUDA Driver API documents what callers answer for")]
#![allow(missing_docs, reason = "as above")]

use std::ffi::{c_int, c_uint, c_void};

use ptx::{Element, Fill, Swizzle, TensorMap};

use crate::api::{code, on};
use crate::codes;
use crate::device::refuse;

/// The values that a call names, by the numbers of `cuda.h`.
#[derive(Clone, Copy)]
struct Kinds {
    element: c_uint,
    interleave: c_uint,
    swizzle: c_uint,
    promotion: c_uint,
    fill: c_uint,
}

/// The entry of a list that a number names.
fn named<T: Copy>(all: &[T], number: c_uint, what: &str) -> Result<T, String> {
    all.get(number as usize)
        .copied()
        .ok_or(format!("a tensor map of {what} {number}, which is not supported"))
}

fn encode(
    address: u64,
    sizes: &[u64],
    strides: &[u64],
    tile: &[u32],
    steps: &[u32],
    kinds: Kinds,
) -> Result<[u8; 128], String> {
    let element = named(&Element::ALL, kinds.element, "CUtensorMapDataType")?;
    let swizzle = named(&Swizzle::ALL, kinds.swizzle, "CUtensorMapSwizzle")?;
    let fill = named(&[Fill::Zeros, Fill::Nan], kinds.fill, "CUtensorMapFloatOOBfill")?;
    named(&[()], kinds.interleave, "CUtensorMapInterleave")?;
    named(&[(); 4], kinds.promotion, "CUtensorMapL2promotion")?;
    // The step along the first dimension is ignored.
    if let Some(step) = steps.iter().skip(1).find(|step| **step != 1) {
        return Err(format!("a tensor map that takes one of {step} elements: only 1 is supported"));
    }
    Ok(TensorMap::new(element, address, sizes, strides, tile, swizzle, fill)?.encode())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    map: *mut c_void,
    element: c_uint,
    rank: c_uint,
    address: *mut c_void,
    sizes: *const u64,
    strides: *const u64,
    tile: *const c_uint,
    steps: *const c_uint,
    interleave: c_uint,
    swizzle: c_uint,
    promotion: c_uint,
    fill: c_uint,
) -> c_int {
    code(|| {
        on("cuTensorMapEncodeTiled", &[], |device, state| {
            let kinds = Kinds { element, interleave, swizzle, promotion, fill };
            let encoded = if device.settings.capability < (9, 0) {
                Err("tensor maps need compute capability 9.0".to_string())
            } else if map.is_null() || !(map as usize).is_multiple_of(64) {
                Err(format!("a tensor map is to be written to {map:p}, which is no multiple of 64"))
            } else if !(1..=5).contains(&rank) {
                Err(format!("a tensor map of {rank} dimensions: 1 to 5 are possible"))
            } else if sizes.is_null() || tile.is_null() || steps.is_null() || strides.is_null() && rank > 1 {
                Err("a tensor map without sizes, strides, a box or steps".to_string())
            } else {
                let rank = rank as usize;
                // SAFETY: the caller gives lists of so many entries; none of strides of a single dimension.
                let (sizes, strides, tile, steps) = unsafe {
                    let strides: &[u64] =
                        if rank == 1 { &[] } else { std::slice::from_raw_parts(strides, rank - 1) };
                    (
                        std::slice::from_raw_parts(sizes, rank),
                        strides,
                        std::slice::from_raw_parts(tile, rank),
                        std::slice::from_raw_parts(steps, rank),
                    )
                };
                encode(address as u64, sizes, strides, tile, steps, kinds)
            };
            match encoded {
                Ok(bytes) => {
                    // SAFETY: the caller gives room for a map, and its alignment was looked at.
                    unsafe { map.cast::<[u8; 128]>().write(bytes) };
                    Ok(())
                }
                Err(words) => {
                    state.fault.clone_from(&words);
                    refuse(codes::INVALID_VALUE, words)
                }
            }
        })
    })
}
