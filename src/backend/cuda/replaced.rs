//! Images from a folder in place of those that the build embedded: kernels compiled anew, to be timed or checked beside
//! the old ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::kernels::{IMAGES, Image};

/// Images by the kernel file that they replace; empty by default.
#[derive(Debug, Default)]
pub struct Replaced {
    /// In words of 16 bytes, so that the driver finds them aligned as it does those of the build.
    images: BTreeMap<&'static str, Vec<u128>>,
}

impl Replaced {
    /// Reads every `STEM.fatbin` and `STEM.cubin` of a folder.
    pub fn read(folder: &Path) -> Result<Replaced, String> {
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
            false => Ok(Replaced { images }),
        }
    }

    /// What is loaded in place of an image of the build: the replacement, or the image itself.
    pub fn bytes<'a>(&'a self, image: &'a Image) -> &'a [u8] {
        self.images.get(image.source).map_or(image.bytes, |words| bytemuck::cast_slice(words))
    }
}
