//! Codes of `CUresult`, CUDA Driver API, "Data types used by CUDA driver".

use std::ffi::CStr;

macro_rules! codes {
    ($($name:ident $symbol:literal $code:literal $words:literal)*) => {
        $(#[allow(dead_code, reason = "settings ask for codes by number")]
        pub const $name: i32 = $code;)*

        /// Name and words of a code.
        pub fn describe(code: i32) -> Option<(&'static CStr, &'static CStr)> {
            match code {
                $($code => Some(($symbol, $words)),)*
                _ => None,
            }
        }
    };
}

codes! {
    SUCCESS c"CUDA_SUCCESS" 0 c"no error"
    INVALID_VALUE c"CUDA_ERROR_INVALID_VALUE" 1 c"invalid argument"
    OUT_OF_MEMORY c"CUDA_ERROR_OUT_OF_MEMORY" 2 c"out of memory"
    NOT_INITIALIZED c"CUDA_ERROR_NOT_INITIALIZED" 3 c"initialization error"
    STUB_LIBRARY c"CUDA_ERROR_STUB_LIBRARY" 34 c"the library is a stub"
    DEVICE_UNAVAILABLE c"CUDA_ERROR_DEVICE_UNAVAILABLE" 46 c"the device is busy or unavailable"
    NO_DEVICE c"CUDA_ERROR_NO_DEVICE" 100 c"no device"
    INVALID_DEVICE c"CUDA_ERROR_INVALID_DEVICE" 101 c"invalid device ordinal"
    INVALID_IMAGE c"CUDA_ERROR_INVALID_IMAGE" 200 c"the image is invalid"
    INVALID_CONTEXT c"CUDA_ERROR_INVALID_CONTEXT" 201 c"invalid context"
    NO_BINARY_FOR_GPU c"CUDA_ERROR_NO_BINARY_FOR_GPU" 209 c"no kernel image for the device"
    INVALID_PTX c"CUDA_ERROR_INVALID_PTX" 218 c"invalid PTX"
    UNSUPPORTED_PTX_VERSION c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION" 222 c"PTX of a newer version"
    INVALID_HANDLE c"CUDA_ERROR_INVALID_HANDLE" 400 c"invalid handle"
    NOT_FOUND c"CUDA_ERROR_NOT_FOUND" 500 c"not found"
    NOT_READY c"CUDA_ERROR_NOT_READY" 600 c"not ready"
    ILLEGAL_ADDRESS c"CUDA_ERROR_ILLEGAL_ADDRESS" 700 c"an illegal memory access"
    LAUNCH_TIMEOUT c"CUDA_ERROR_LAUNCH_TIMEOUT" 702 c"the launch took too long"
    ALREADY_REGISTERED c"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED" 712 c"the memory is registered already"
    NOT_REGISTERED c"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED" 713 c"the memory is not registered"
    MISALIGNED_ADDRESS c"CUDA_ERROR_MISALIGNED_ADDRESS" 716 c"a misaligned address"
    COOPERATIVE_LAUNCH_TOO_LARGE c"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE" 720 c"too many blocks for a cooperative launch"
    LAUNCH_FAILED c"CUDA_ERROR_LAUNCH_FAILED" 719 c"the launch failed"
    NOT_SUPPORTED c"CUDA_ERROR_NOT_SUPPORTED" 801 c"not supported"
    SYSTEM_DRIVER_MISMATCH c"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" 803 c"driver and library differ"
    CAPTURE_UNSUPPORTED c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" 900 c"not permitted while a stream is captured"
    CAPTURE_INVALIDATED c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" 901 c"the capture was invalidated"
    UNKNOWN c"CUDA_ERROR_UNKNOWN" 999 c"unknown error"
}
