//! nvcc at work: every file once, for all its architectures; again only when something that it is made from changed.
//! Images are kept in the target folder too, so that profiles and features, each with an output folder of its own,
//! share them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use xxhash_rust::xxh3::xxh3_64;

use super::failed;
use super::sources::{Architecture, EXPECTATIONS, Kernels, Sources};
use super::toolkit::Toolkit;

/// What every file is compiled with, beside its architectures. Contraction is written where it is wanted, so that
/// results do not depend on what the compiler finds to contract.
pub const FLAGS: &str = "-fatbin -O3 -std=c++17 -fmad=false -lineinfo -Werror all-warnings -Xptxas -v";

/// From this CUDA release on nvcc packs images to a fifth of their size, and every driver that opens them unpacks them.
const SMALL_IMAGES: (u32, u32) = (13, 0);

/// What one `.cu` file became.
#[derive(Debug)]
pub struct Image {
    /// The fatbin's name in the output folder.
    pub name: String,
    /// Architectures whose machine code it holds.
    pub architectures: Vec<Architecture>,
    /// The architecture whose PTX it holds, for GPUs that came later.
    pub ptx: Option<Architecture>,
}

/// Compiles all kernels, several at a time. A file for none of the architectures gives no image.
pub fn all(
    root: &Path,
    out: &Path,
    sources: &Sources,
    toolkit: &Toolkit,
    architectures: &[Architecture],
    jobs: usize,
) -> Result<Vec<Option<Image>>, String> {
    let count = sources.kernels.len();
    let workers = jobs.clamp(1, count);
    let threads = (jobs / workers).max(1);
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(kernels) = sources.kernels.get(i) else { break };
                    let made = one(root, out, sources, kernels, toolkit, architectures, threads);
                    results.lock().expect("no worker panics").push((i, made));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no worker panics");
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, made)| made).collect()
}

fn one(
    root: &Path,
    out: &Path,
    sources: &Sources,
    kernels: &Kernels,
    toolkit: &Toolkit,
    architectures: &[Architecture],
    threads: usize,
) -> Result<Option<Image>, String> {
    let name = format!("kernels/{}.cu", kernels.stem);
    let architectures: Vec<_> = architectures.iter().copied().filter(|a| kernels.targets.suit(*a)).collect();
    let image = format!("{}.fatbin", kernels.stem);
    let path = out.join(&image);
    let record = out.join(format!("{}.made", kernels.stem));
    if architectures.is_empty() {
        return Ok(None);
    }
    // PTX of a suffixed architecture runs nowhere else.
    let ptx = architectures.iter().copied().find(|a| a.suffix.is_none());
    let mut arguments = arguments(&architectures, ptx);
    if toolkit.release >= SMALL_IMAGES {
        arguments.push("--compress-mode=size".into());
    }
    let flags = ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"].map(std::env::var);
    let made_from = (arguments.join(" "), &toolkit.version, flags, kernels.hash, sources.headers);
    let key = format!("{:016x}", xxh3_64(format!("{made_from:?}").as_bytes()));

    let said = match kept(&path, &record, &key).or_else(|| Shared::of(out)?.take(&key, &path, &record)) {
        Some(said) => said,
        None => {
            let _ = fs::remove_file(&record);
            arguments.extend(["--threads".into(), threads.to_string(), "-o".into()]);
            let output = Command::new(&toolkit.nvcc)
                .current_dir(root)
                .args(&arguments)
                .arg(&path)
                .arg(&name)
                .output()
                .map_err(|e| format!("cannot run {}: {e}", toolkit.nvcc.display()))?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if !output.status.success() {
                let shown: Vec<&str> = said.lines().filter(|line| !line.starts_with("ptxas info")).collect();
                let stdout = String::from_utf8_lossy(&output.stdout);
                return Err(format!("{name}: nvcc failed\n{}\n{stdout}", shown.join("\n")));
            }
            fs::write(&record, format!("{key}\n{said}")).map_err(|e| failed("write", &record, &e))?;
            if let Some(shared) = Shared::of(out) {
                shared.put(&key, &path, &record);
            }
            said
        }
    };
    check(&name, kernels, &architectures, &said, &sources.may_spill)?;
    Ok(Some(Image { name: image, architectures, ptx }))
}

/// What the compiler said when it made the image at `path` from what `key` stands for, if that is what lies there. The
/// record, written after the image, holds the key and then the compiler's words.
fn kept(path: &Path, record: &Path, key: &str) -> Option<String> {
    let text = fs::read_to_string(record).ok().filter(|_| path.is_file())?;
    let (old, said) = text.split_once('\n')?;
    (old == key).then(|| said.to_string())
}

/// Images by key in Cargo's target folder. A failure to read or write there costs a compilation, nothing else.
struct Shared(PathBuf);

impl Shared {
    /// In the target folder above an output folder, which Cargo marks with a file of this name.
    fn of(out: &Path) -> Option<Shared> {
        let target = out.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file())?;
        Some(Shared(target.join("cuda-images")))
    }

    fn files(&self, key: &str) -> [PathBuf; 2] {
        ["fatbin", "made"].map(|extension| self.0.join(format!("{key}.{extension}")))
    }

    /// Copies an image and its record from here.
    fn take(&self, key: &str, path: &Path, record: &Path) -> Option<String> {
        let [image, made] = self.files(key);
        kept(&image, &made, key)?;
        fs::copy(image, path).ok()?;
        fs::copy(made, record).ok()?;
        kept(path, record, key)
    }

    /// Copies an image here, then its record, each under another name first: builds may run side by side.
    fn put(&self, key: &str, path: &Path, record: &Path) {
        let copy = |from: &Path, to: &Path| {
            let temporary = to.with_extension(format!("{}.tmp", std::process::id()));
            fs::copy(from, &temporary)?;
            fs::rename(temporary, to)
        };
        let [image, made] = self.files(key);
        let _ =
            fs::create_dir_all(&self.0).and_then(|()| copy(path, &image)).and_then(|()| copy(record, &made));
    }
}

fn arguments(architectures: &[Architecture], ptx: Option<Architecture>) -> Vec<String> {
    let mut out: Vec<String> = FLAGS.split(' ').map(str::to_string).collect();
    let virtual_name = |a: &Architecture| a.to_string().replace("sm_", "compute_");
    for one in architectures {
        out.extend(["-gencode".into(), format!("arch={},code={one}", virtual_name(one))]);
    }
    for one in ptx.iter().map(virtual_name) {
        out.extend(["-gencode".into(), format!("arch={one},code={one}")]);
    }
    out
}

/// Holds what ptxas said of each kernel against the source: all kernels for all architectures, and no spills.
fn check(
    name: &str,
    kernels: &Kernels,
    architectures: &[Architecture],
    said: &str,
    may_spill: &BTreeSet<String>,
) -> Result<(), String> {
    let mut compiled = BTreeSet::new();
    let mut function = String::new();
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut parts = rest.split('\'');
            let (symbol, on) = (parts.next().unwrap_or_default(), parts.nth(1).unwrap_or_default());
            compiled.insert((symbol.to_string(), on.to_string()));
        } else if let Some((_, rest)) = line.split_once("Function properties for ") {
            function = rest.trim().to_string();
        } else if line.contains(" bytes spill stores") {
            let spilt = line.split(',').skip(1).any(|part| !part.trim().starts_with("0 "));
            if spilt && !may_spill.contains(&function) {
                return Err(format!(
                    "{name}: kernel `{function}` spills registers ({}): use fewer, or mark it may-spill in \
                     {EXPECTATIONS}",
                    line.trim()
                ));
            }
        }
    }
    for symbol in &kernels.symbols {
        for one in architectures {
            if !compiled.contains(&(symbol.clone(), one.to_string())) {
                return Err(format!(
                    "{name}: no kernel `{symbol}` was compiled for {one}, though the file exports it"
                ));
            }
        }
    }
    match compiled.iter().find(|(symbol, _)| !kernels.symbols.contains(symbol)) {
        None => Ok(()),
        Some((symbol, _)) => Err(format!(
            "{name}: kernel `{symbol}` was compiled, but the scan found no extern \"C\" __global__ or KERNEL of that \
             name"
        )),
    }
}
