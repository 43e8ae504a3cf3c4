//! The kernels that the build compiled: a constant for each name, and the images that hold them.
//!
//! An image is made from one file of `kernels/`, since the driver takes exactly one entry of an image, the one that
//! suits the GPU best, and files differ in the architectures that they are written for.

/// Machine code made from one `.cu` file: a fatbin.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// The file, as in `adam.cu`.
    pub source: &'static str,
    /// Its kernels.
    pub symbols: &'static [&'static str],
    /// Architectures whose machine code it holds, rising, as in `sm_80`.
    pub architectures: &'static [&'static str],
    /// The lowest of them times ten, as in 80 for compute capability 8.0.
    pub lowest: u32,
    /// The architecture whose PTX it holds, as in `compute_80`: the driver compiles it for GPUs that came later.
    pub ptx: Option<&'static str>,
    /// The fatbin, aligned to 16 bytes.
    pub bytes: &'static [u8],
}

/// The bytes of a file that the build wrote, aligned as the driver expects headers to be.
#[allow(unused_macros, reason = "a build without kernels embeds none")]
macro_rules! aligned {
    ($file:literal) => {{
        #[repr(C, align(16))]
        struct Aligned<T: ?Sized>(T);
        const BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/", $file)));
        &BYTES.0
    }};
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
