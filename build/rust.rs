//! The Rust text that embeds the images and names the kernels.

use std::fmt::Write;

use super::compile::{FLAGS, Image};
use super::sources::Sources;

/// The file that `src/backend/cuda/kernels.rs` includes.
pub fn text(sources: &Sources, images: &[Option<Image>], release: Option<(u32, u32)>) -> String {
    let mut out = String::from("// Written by build.rs.\n\n");
    let mut put = |line: String| writeln!(out, "{line}").expect("a string takes any text");
    put("/// The CUDA release that compiled the images, if they were compiled.".into());
    put(format!("pub const TOOLKIT: Option<(u32, u32)> = {release:?};"));
    put("/// What nvcc compiles a file with, beside its architectures.".into());
    let flags: Vec<&str> = FLAGS.split(' ').collect();
    put(format!("pub const FLAGS: &[&str] = &{flags:?};"));
    put("/// Hash of the sources in `kernels/`.".into());
    put(format!("pub const SOURCES: u64 = {:#018x};", sources.hash));
    for kernels in &sources.kernels {
        for symbol in &kernels.symbols {
            put(format!("/// A kernel of `kernels/{}.cu`.", kernels.stem));
            put(format!("pub const {}: &str = {symbol:?};", symbol.to_uppercase()));
        }
    }
    put("/// What was compiled, a `.cu` file each.".into());
    put("pub static IMAGES: &[Image] = &[".into());
    for (kernels, image) in sources.kernels.iter().zip(images) {
        let Some(image) = image else { continue };
        let architectures: Vec<String> = image.architectures.iter().map(|a| format!("\"{a}\"")).collect();
        put("    Image {".into());
        put(format!("        source: \"{}.cu\",", kernels.stem));
        put(format!("        symbols: &{:?},", kernels.symbols));
        put(format!("        architectures: &[{}],", architectures.join(", ")));
        put(format!("        lowest: {},", image.architectures[0].number));
        put(format!("        only: {},", kernels.targets.only));
        put(format!("        ptx: {:?},", image.ptx.map(|a| a.to_string().replace("sm_", "compute_"))));
        put(format!("        bytes: aligned!(\"{}\"),", image.name));
        put("    },".into());
    }
    put("];".into());
    out
}
