//! `cuMemHostGetDevicePointer`: memory of the host that kernels reach at an address of the device.
//!
//! What lies there is kept with the device's memory, beside the bytes that the program sees at its own address: copies and
//! kernels use the one, and nothing carries changes from one to the other.

#![allow(non_snake_case, reason = "names of cuda.h")]
#![allow(clippy::missing_safety_doc, reason = "the CUDA Driver API documents what callers answer for")]
#![allow(missing_docs, reason = "as above")]

use std::ffi::{c_int, c_uint, c_void};

use crate::api::{code, give, on};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostGetDevicePointer_v2(
    to: *mut u64,
    host: *mut c_void,
    _flags: c_uint,
) -> c_int {
    code(|| {
        let address = on("cuMemHostGetDevicePointer_v2", &[], |_, state| state.mapped(host as usize))?;
        // SAFETY: the caller answers for the place.
        unsafe { give(to, address) }
    })
}
