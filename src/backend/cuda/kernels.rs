//! The kernels that the build compiled: a constant for each name, the images that hold them, and images from
//! a folder that take their place.
//!
//! Each file of `kernels/` becomes an image of its own: the driver takes exactly one entry of an image, the
//! one that suits the GPU best, and files differ in the architectures that they are written for.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

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
    /// Whether it is for that one alone.
    pub only: bool,
    /// The architecture whose PTX it holds, as in `compute_80`: the driver compiles it for GPUs that came
    /// later.
    pub ptx: Option<&'static str>,
    /// The fatbin, aligned to 16 bytes.
    pub bytes: &'static [u8],
}

impl Image {
    /// Whether it is for GPUs of a compute capability, times ten.
    pub fn suits(&self, capability: u32) -> bool {
        if self.only { capability == self.lowest } else { capability >= self.lowest }
    }
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

/// Kernels that were compiled anew, to be timed or checked beside the build's: images by the kernel file that
/// they replace. Empty by default.
#[derive(Debug, Default)]
pub struct ReplacedImages {
    /// In words of 16 bytes, the alignment that the driver expects.
    images: BTreeMap<&'static str, Vec<u128>>,
}

impl ReplacedImages {
    /// Reads every `STEM.fatbin` and `STEM.cubin` of a folder.
    pub fn read(folder: &Path) -> Result<ReplacedImages, String> {
        let failed = |path: &Path, e: std::io::Error| format!("cannot read {}: {e}", path.display());
        let mut images = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(|e| failed(folder, e))? {
            let path = entry.map_err(|e| failed(folder, e))?.path();
            if !path.extension().is_some_and(|e| e == "fatbin" || e == "cubin") {
                continue;
            }
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let of_stem = |image: &&Image| image.source.strip_suffix(".cu") == Some(&*stem);
            let Some(image) = IMAGES.iter().find(of_stem) else {
                return Err(format!("{}: this build has no kernels/{stem}.cu to replace", path.display()));
            };
            let bytes = fs::read(&path).map_err(|e| failed(&path, e))?;
            let mut words = vec![0u128; bytes.len().div_ceil(16)];
            bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(&bytes);
            if images.insert(image.source, words).is_some() {
                return Err(format!("{}: a second image of {}", path.display(), image.source));
            }
        }
        match images.is_empty() {
            true => Err(format!("{}: expected STEM.fatbin or STEM.cubin, found neither", folder.display())),
            false => Ok(ReplacedImages { images }),
        }
    }

    /// The bytes to load for an image of the build: its replacement, or its own.
    pub fn bytes<'a>(&'a self, image: &'a Image) -> &'a [u8] {
        self.images.get(image.source).map_or(image.bytes, |words| bytemuck::cast_slice(words))
    }
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
