//! The kernels of `kernels/`, as nvcc compiled them, against plain loops at small sizes.
//!
//! They are compiled by nvcc from `../kernels` (or the folder in PTX_KERNELS), once: results stay in the target folder.
//! Without nvcc or kernels the tests print that they did nothing; with PTX_REQUIRE_KERNELS=1 that is a failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use half::bf16;
use ptx::{Launch, Memory, Module, Options, Order, launch};
use rand::{Rng, SeedableRng, rngs::SmallRng};

fn nvcc(root: &Path) -> Option<PathBuf> {
    let named = std::env::var_os("NVCC").map(PathBuf::from);
    let home = ["CUDA_HOME", "CUDA_PATH"]
        .iter()
        .filter_map(std::env::var_os)
        .map(|h| Path::new(&h).join("bin/nvcc"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = std::env::split_paths(&path).map(|p| p.join("nvcc")).collect();
    named.into_iter().chain(home).chain([root.join(".cuda/bin/nvcc")]).chain(on_path).find(|p| p.is_file())
}

/// The newest change of a folder's files.
fn changed(folder: &Path) -> Option<std::time::SystemTime> {
    let files = fs::read_dir(folder).ok()?.flatten();
    files.filter_map(|f| f.metadata().ok()?.modified().ok()).max()
}

/// A module of `kernels/STEM.cu`, for compute capability 8.0.
fn module(stem: &str) -> Option<Module> {
    let kernels = std::env::var_os("PTX_KERNELS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels"), PathBuf::from);
    let source = kernels.join(format!("{stem}.cu"));
    let found = source.is_file().then(|| nvcc(&kernels.join(".."))).flatten();
    let Some(nvcc) = found else {
        assert!(std::env::var_os("PTX_REQUIRE_KERNELS").is_none(), "no nvcc or no {}", source.display());
        eprintln!("skipped: no nvcc, or no {}", source.display());
        return None;
    };
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{stem}.ptx"));
    let made = fs::metadata(&out).and_then(|m| m.modified()).ok();
    let fresh = made.is_some_and(|made| {
        [&kernels, &kernels.join("include")].iter().all(|f| changed(f).is_some_and(|c| c < made))
    });
    if !fresh {
        let part = out.with_extension(format!("{}.ptx", std::process::id()));
        let done = Command::new(nvcc)
            .args(["-ptx", "-arch=compute_80", "-O3", "-std=c++17", "-fmad=false", "-lineinfo", "-o"])
            .arg(&part)
            .arg(&source)
            .output()
            .expect("nvcc runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        fs::rename(part, &out).expect("a file of the same folder");
    }
    let text = fs::read_to_string(out).expect("nvcc wrote it");
    Some(Module::parse(&text).unwrap_or_else(|e| panic!("{stem}: {e}")))
}

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// The same, rounded to BF16.
fn random_bf16(n: usize, seed: u64) -> Vec<f32> {
    random(n, seed).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect()
}

fn f32s(v: &[f32]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn bf16s(v: &[f32]) -> Vec<u8> {
    v.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
}

fn read(memory: &Memory, at: u64, n: usize) -> Vec<f32> {
    let bytes = memory.read(at, 4 * n);
    assert_eq!(memory.unwritten(at, 4 * n), 0, "every value is written");
    bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).collect()
}

/// Launches a kernel with the number of threads that it was compiled for, under several schedules.
fn run(module: &Module, name: &str, grid: [u32; 3], shared: u32, memory: &mut Memory, args: &[Vec<u8>]) {
    let kernel = module.kernel(name).unwrap_or_else(|| panic!("no kernel {name}"));
    let threads = kernel.max_threads.map_or(32, |t| t.iter().product());
    let mut request = Launch::new(name, grid, [threads, 1, 1]).shared(shared);
    for a in args {
        request = request.arg(a);
    }
    for (warps, blocks) in
        [(Order::Any, Order::Any), (Order::Backward, Order::Backward), (Order::Random(7), Order::Random(7))]
    {
        let options = Options { warps, blocks, shared_limit: 1 << 18, ..Options::default() };
        let outcome = launch(module, memory, &request, &options).unwrap_or_else(|f| panic!("{f}"));
        if std::env::var_os("PTX_SHOW").is_some() {
            eprintln!("{name}: {}", outcome.counters.total);
        }
    }
}

fn p(address: u64) -> Vec<u8> {
    address.to_le_bytes().to_vec()
}

fn u(v: u32) -> Vec<u8> {
    v.to_le_bytes().to_vec()
}

/// act(W x + b) for every row, in F64; `round` is applied to the result.
fn layer(x: &[f64], inputs: usize, w: &[f32], b: &[f32], relu: bool) -> Vec<f64> {
    x.chunks(inputs)
        .flat_map(|row| {
            w.chunks(inputs).zip(b).map(move |(w, b)| {
                let v = row.iter().zip(w).fold(f64::from(*b), |s, (x, w)| s + x * f64::from(*w));
                if relu { v.max(0.0) } else { v }
            })
        })
        .collect()
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|x| f64::from(*x)).collect()
}

fn close(got: &[f32], want: &[f64], bound: f64, what: &str) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let fine = (f64::from(*g) - w).abs() <= bound;
        assert!(fine, "{what}: value {i} is {g}, expected {w}");
    }
}

#[test]
fn rows() {
    let Some(module) = module("rows") else { return };
    for row_bytes in [64u32, 26] {
        let mut memory = Memory::new();
        let source: Vec<u8> = (0..40 * row_bytes).map(|i| (i * 7 % 251) as u8).collect();
        let index: Vec<u32> = (0..25).map(|i| i * 17 % 40).collect();
        let from = memory.alloc_with(&source);
        let at = memory.alloc_with(&index.iter().flat_map(|i| i.to_le_bytes()).collect::<Vec<_>>());
        let out = memory.alloc(u64::from(25 * row_bytes));
        run(
            &module,
            "pick_rows",
            [2, 1, 1],
            0,
            &mut memory,
            &[p(from), p(at), p(out), p(25), u(row_bytes), u(0)],
        );
        let want: Vec<u8> = index
            .iter()
            .flat_map(|i| source[(i * row_bytes) as usize..][..row_bytes as usize].to_vec())
            .collect();
        assert_eq!(memory.read(out, want.len()), want);
    }
    let mut values = random(1001, 3);
    (values[700], values[998]) = (f32::NAN, f32::INFINITY);
    let mut memory = Memory::new();
    let (at, first) = (memory.alloc_with(&f32s(&values)), memory.alloc_with(&p(u64::MAX)));
    run(&module, "find_non_finite_f32", [2, 1, 1], 0, &mut memory, &[p(at), p(first), p(1001)]);
    assert_eq!(memory.read(first, 8), p(700));
}

#[test]
fn probes() {
    let Some(module) = module("probe") else { return };
    let (a, b, c) = (random_bf16(256, 1), random_bf16(128, 2), random(128, 3));
    let mut memory = Memory::new();
    let at = [
        memory.alloc_with(&bf16s(&a)),
        memory.alloc_with(&bf16s(&b)),
        memory.alloc_with(&f32s(&c)),
        memory.alloc(512),
    ];
    let want: Vec<f64> = (0..128)
        .map(|i| {
            (0..16)
                .fold(f64::from(c[i]), |s, k| s + f64::from(a[i / 8 * 16 + k]) * f64::from(b[k * 8 + i % 8]))
        })
        .collect();
    for variant in 0..3 {
        let mut request = Launch::new("probe_mma", [1; 3], [32, 1, 1]).shared(2048);
        for x in [p(at[0]), p(at[1]), p(at[2]), p(at[3]), u(0), u(variant)] {
            request = request.arg(&x);
        }
        launch(&module, &mut memory, &request, &Options::default()).unwrap_or_else(|f| panic!("{f}"));
        close(&read(&memory, at[3], 128), &want, 1e-6, "probe_mma");
    }
    for bytes in [16u32, 7, 0] {
        let words: Vec<u32> = (0..7 * 64).map(|i| i * 77_777 + 1).collect();
        let from = memory.alloc_with(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
        let to = memory.alloc(7 * 64 * 4);
        let request = Launch::new("probe_copy", [1; 3], [64, 1, 1])
            .shared(7 * 64 * 4)
            .arg(&p(from))
            .arg(&p(to))
            .arg(&u(bytes))
            .arg(&u(0));
        launch(&module, &mut memory, &request, &Options::default()).unwrap_or_else(|f| panic!("{f}"));
        let got = memory.read(to, 7 * 64 * 4);
        for (i, (got, word)) in got.iter().zip(words.iter().flat_map(|w| w.to_le_bytes())).enumerate() {
            let size = if i < 1024 {
                16
            } else if i < 1536 {
                8
            } else {
                4
            };
            let want = if i % size < bytes as usize { word } else { 0 };
            assert_eq!(*got, want, "byte {i} of copies of {bytes}");
        }
    }
}

/// Encoder: two layers; F32 and BF16 kernels.
#[test]
fn encoders() {
    for (stem, name, tensor) in
        [("encode_f32", "encode_f32_f32", false), ("encode_bf16", "encode_bf16_bf16", true)]
    {
        let Some(module) = module(stem) else { return };
        let (rows, dim, hidden, latent) = (70, 136, 64, 16);
        let draw = |n, seed| if tensor { random_bf16(n, seed) } else { random(n, seed) };
        let store = |v: &[f32]| if tensor { bf16s(v) } else { f32s(v) };
        let (x, w1, w2) = (draw(rows * dim, 1), draw(hidden * dim, 2), draw(2 * latent * hidden, 3));
        let (b1, b2) = (random(hidden, 4), random(2 * latent, 5));
        let mut memory = Memory::new();
        let at = [store(&x), store(&w1), f32s(&b1), store(&w2), f32s(&b2)].map(|v| memory.alloc_with(&v));
        let out = [0; 2].map(|_| memory.alloc(4 * (rows * latent) as u64));
        let args = [
            p(at[0]),
            p(rows as u64),
            p(at[1]),
            p(at[2]),
            p(at[3]),
            p(at[4]),
            p(out[0]),
            p(out[1]),
            p(0),
            // Noise of nothing: seed, first row, side, standard deviation.
            p(5),
            p(0),
            u(0),
            u(0),
            u(dim as u32),
            u(hidden as u32),
            u(latent as u32),
            u(0),
        ];
        run(&module, name, [2, 1, 1], 100 * 1024, &mut memory, &args);
        let code = layer(&layer(&wide(&x), dim, &w1, &b1, true), hidden, &w2, &b2, false);
        for (half, out) in out.iter().enumerate() {
            let want: Vec<f64> =
                code.chunks(2 * latent).flat_map(|c| c[half * latent..][..latent].to_vec()).collect();
            let scale = want.iter().fold(0f64, |m, v| m.max(v.abs()));
            close(&read(&memory, *out, rows * latent), &want, scale * if tensor { 2e-2 } else { 2e-6 }, name);
        }
    }
}

#[test]
fn scores() {
    for (stem, name, tensor) in
        [("reward_f32", "score_f32_f32", false), ("reward_bf16", "score_bf16_bf16", true)]
    {
        let Some(module) = module(stem) else { return };
        let (rows, dim, width) = (70, 136, 64);
        let draw = |n, seed| if tensor { random_bf16(n, seed) } else { random(n, seed) };
        let store = |v: &[f32]| if tensor { bf16s(v) } else { f32s(v) };
        let (x, w1, b1, w2) = (draw(rows * dim, 1), draw(width * dim, 2), random(width, 3), random(width, 4));
        let mut memory = Memory::new();
        let at = [store(&x), store(&w1), f32s(&b1), f32s(&w2)].map(|v| memory.alloc_with(&v));
        let out = memory.alloc(4 * rows as u64);
        let args = [
            p(at[0]),
            p(rows as u64),
            p(at[1]),
            p(at[2]),
            p(at[3]),
            p(out),
            p(0),
            u(dim as u32),
            u(width as u32),
            0.25f32.to_le_bytes().to_vec(),
            u(0),
        ];
        run(&module, name, [2, 1, 1], 100 * 1024, &mut memory, &args);
        let want = layer(&layer(&wide(&x), dim, &w1, &b1, true), width, &w2, &[0.25], false);
        close(&read(&memory, out, rows), &want, if tensor { 0.3 } else { 2e-4 }, name);
    }
}

#[test]
fn decoders() {
    for (stem, name, tensor) in
        [("decode_f32", "decode_f32_f32", false), ("decode_bf16", "decode_bf16_f32", true)]
    {
        let Some(module) = module(stem) else { return };
        let (count, dim, hidden, latent, columns) = (70, 200, 64, 16, 128u32);
        let draw = |n, seed| if tensor { random_bf16(n, seed) } else { random(n, seed) };
        let store = |v: &[f32]| if tensor { bf16s(v) } else { f32s(v) };
        let (z, w1, w2) = (random_bf16(count * latent, 1), draw(hidden * latent, 2), draw(dim * hidden, 3));
        let (b1, b2) = (random(hidden, 4), random(dim, 5));
        let mut memory = Memory::new();
        let at = [f32s(&z), store(&w1), f32s(&b1), store(&w2), f32s(&b2)].map(|v| memory.alloc_with(&v));
        let out = memory.alloc(4 * (count * dim) as u64);
        // Latents that are stored; then no seeds to add to.
        let (source, seeds) = ([p(at[0]), vec![0; 48]].concat(), vec![0; 24]);
        let weights = [p(at[1]), p(at[2]), p(at[3]), p(at[4])].concat();
        let sizes = [u(dim as u32), u(hidden as u32), u(latent as u32), u(columns)].concat();
        let bytes = [source, p(count as u64), weights, seeds, p(out), sizes].concat();
        let threads =
            module.kernel(name).expect("it is there").max_threads.map_or(32, |t| t.iter().product());
        let request = Launch {
            args: bytes,
            ..Launch::new(name, [2, (dim as u32).div_ceil(columns), 1], [threads, 1, 1]).shared(100 * 1024)
        };
        for warps in [Order::Any, Order::Random(3)] {
            let options = Options { warps, shared_limit: 1 << 18, ..Options::default() };
            launch(&module, &mut memory, &request, &options).unwrap_or_else(|f| panic!("{f}"));
        }
        let want = layer(&layer(&wide(&z), latent, &w1, &b1, true), hidden, &w2, &b2, false);
        let scale = want.iter().fold(0f64, |m, v| m.max(v.abs()));
        close(&read(&memory, out, count * dim), &want, scale * if tensor { 2e-2 } else { 2e-6 }, name);
    }
}
