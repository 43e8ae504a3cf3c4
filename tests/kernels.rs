//! The compiled kernels, the build logic that makes them (with a stand-in for nvcc), and what opening a GPU
//! says (with a stand-in for the driver).
//!
//! Without nvcc the tests of compiled kernels print why they are skipped; LENSMITH_REQUIRE_CUDA=1 makes that
//! a failure.

#![cfg(target_os = "linux")]

#[path = "../build/mod.rs"]
mod build;

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lensmith::backend::cuda::kernels;
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Whether the build has kernels; if not, says so or fails.
fn compiled(test: &str) -> bool {
    if kernels::TOOLKIT.is_none() {
        let required = std::env::var("LENSMITH_REQUIRE_CUDA").is_ok_and(|value| value == "1");
        assert!(!required, "{test}: built without nvcc, and LENSMITH_REQUIRE_CUDA=1");
        skipped(test, "built without nvcc; run tools/setup_cuda and build again");
    }
    kernels::TOOLKIT.is_some()
}

/// Prints past the test harness's capture of output.
fn skipped(test: &str, why: &str) {
    writeln!(std::io::stderr(), "SKIPPED {test}: {why}").expect("standard error takes text");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn images_hold_the_kernels_for_all_architectures() {
    if !compiled("images_hold_the_kernels_for_all_architectures") {
        return;
    }
    let adam = kernels::IMAGES.iter().find(|image| image.source == "adam.cu").expect("an image of adam.cu");
    assert_eq!(adam.symbols, [kernels::ADAM_F32]);
    if std::env::var_os("LENSMITH_CUDA_ARCHS").is_none() && kernels::TOOLKIT >= Some((13, 0)) {
        assert_eq!(adam.architectures, ["sm_75", "sm_80", "sm_90a", "sm_100", "sm_120"]);
        assert_eq!((adam.lowest, adam.ptx), (75, Some("compute_75")));
    }
    for image in kernels::IMAGES {
        assert_eq!(image.bytes[..4], 0xBA55_ED50_u32.to_le_bytes(), "{} is no fatbin", image.source);
        assert_eq!(image.bytes.as_ptr() as usize % 16, 0, "{} is not aligned", image.source);
    }
    let expectations = fs::read_to_string(Path::new(ROOT).join("kernels/expectations.txt")).unwrap();
    for line in expectations.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split_whitespace().next().unwrap_or_default();
        let known = kernels::IMAGES.iter().any(|image| image.symbols.contains(&name));
        assert!(name.is_empty() || known, "kernels/expectations.txt: no kernel `{name}`");
    }
}

/// Runs tools/check_kernels on the images of this build, changed by `change`.
fn check_kernels(change: impl Fn(&mut Vec<u8>)) -> Output {
    let folder = TempDir::new().unwrap();
    let mut command = Command::new(Path::new(ROOT).join("tools/check_kernels"));
    for image in kernels::IMAGES {
        let path = folder.path().join(image.source);
        let mut bytes = image.bytes.to_vec();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        command.arg(path);
    }
    command.output().expect("tools/check_kernels runs")
}

#[test]
fn machine_code_is_as_expected() {
    if !compiled("machine_code_is_as_expected") {
        return;
    }
    let output = check_kernels(|_| {});
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    if stderr.contains("no cuobjdump") {
        let required = std::env::var("LENSMITH_REQUIRE_CUDA").is_ok_and(|value| value == "1");
        assert!(!required, "{stderr}");
        skipped("machine_code_is_as_expected", stderr.trim());
        return;
    }
    assert!(output.status.success(), "{stdout}{stderr}");
    for image in kernels::IMAGES {
        for symbol in image.symbols {
            for architecture in image.architectures {
                let row =
                    stdout.lines().any(|line| line.split_whitespace().take(2).eq([*symbol, *architecture]));
                assert!(row, "no machine code of {symbol} for {architecture}:\n{stdout}");
            }
        }
    }
    assert_eq!(check_kernels(|bytes| bytes.truncate(64)).status.code(), Some(2));
}

/// Loops as tools/check_kernels counts them: 7 instructions, of which an inner loop has 5, with a branch
/// within it, and beside them a path that only warps take whose lanes have come apart.
#[test]
fn loops_are_counted_as_they_run() {
    let names = [
        "MOV",
        "IADD3",
        "HMMA.16816.F32.BF16",
        "BRA.DIV UR4, 0x90",
        "@!P0 BRA 0x60",
        "FADD",
        "@P1 BRA 0x20",
        "@P2 BRA 0x10",
        "EXIT",
        "SHFL",
        "BRA 0x40",
        "BRA 0xb0",
    ];
    let mut listing = String::from("\tcode for sm_90a\n\t\tFunction : two\n");
    for (i, name) in names.iter().enumerate() {
        listing.push_str(&format!("        /*{:04x}*/        {name} ;        /* 0x0 */\n", 16 * i));
    }
    let count = "import sys; from machine_code import instructions, loops\n\
        outer, = loops(instructions(sys.argv[1].splitlines())['two', 'sm_90a'])\n\
        inner, = outer.inner\n\
        print(outer.cost(), inner.cost(), outer.cost([4]), hex(outer.head), hex(inner.head))";
    let mut python = Command::new("python3");
    python.args(["-c", count, &listing]).env("PYTHONPATH", Path::new(ROOT).join("tools"));
    let output = python.env("PYTHONDONTWRITEBYTECODE", "1").output().expect("python3 runs");
    assert_eq!(text(&output.stdout).trim(), "7 5 22 0x10 0x20", "{}", text(&output.stderr));
}

/// A repository of its own, with stand-ins for nvcc.
struct Repository {
    folder: TempDir,
}

const KERNEL: &str =
    "// archs: sm_75+\nextern \"C\" __global__ void __launch_bounds__(256, 2)\nfirst_f32(float* x) {}\n";

impl Repository {
    fn new(files: &[(&str, &str)]) -> Repository {
        let repository = Repository { folder: TempDir::new().unwrap() };
        fs::create_dir(repository.path("out")).unwrap();
        for (name, contents) in files {
            repository.write(name, contents);
        }
        repository
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, contents: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), contents).unwrap();
    }

    /// Puts the stand-in at `place/bin/nvcc` and gives `place`. A link, since a file just written may not run
    /// while another test forks.
    fn nvcc(&self, place: &str) -> String {
        fs::create_dir_all(self.path(place).join("bin")).unwrap();
        symlink(Path::new(ROOT).join("tests/kernels/nvcc"), self.path(place).join("bin/nvcc")).unwrap();
        self.path(place).display().to_string()
    }

    fn build(&self, environment: &[(&str, &str)]) -> build::Outcome {
        let own = [
            ("CARGO_MANIFEST_DIR".to_string(), self.folder.path().display().to_string()),
            ("OUT_DIR".to_string(), self.path("out").display().to_string()),
        ];
        let given = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        build::run(&own.into_iter().chain(given).collect())
    }

    fn error(&self, environment: &[(&str, &str)]) -> String {
        self.build(environment).result.expect_err("the build fails")
    }

    fn rust(&self) -> String {
        fs::read_to_string(self.path("out/kernels.rs")).unwrap()
    }

    fn calls(&self, place: &str) -> usize {
        fs::read_to_string(self.path(place).join("bin/calls")).unwrap_or_default().lines().count()
    }
}

fn starting<'a>(outcome: &'a build::Outcome, start: &'a str) -> Vec<&'a String> {
    outcome.lines.iter().filter(|line| line.starts_with(start)).collect()
}

#[test]
fn without_kernels_nothing_is_looked_for() {
    let repository = Repository::new(&[("kernels/README.md", "")]);
    let outcome = repository.build(&[("LENSMITH_REQUIRE_CUDA", "1"), ("NVCC", "/nowhere/nvcc")]);
    assert_eq!(outcome.result, Ok(()));
    assert!(
        starting(&outcome, "cargo::warning").is_empty() && starting(&outcome, "cargo::rustc-cfg").is_empty()
    );
    assert!(repository.rust().contains("TOOLKIT: Option<(u32, u32)> = None"));
    let bare = Repository::new(&[]);
    assert_eq!(bare.build(&[]).result, Ok(()));
}

#[test]
fn without_nvcc_one_warning_tells_what_helps() {
    let repository = Repository::new(&[("kernels/first.cu", KERNEL)]);
    let outcome = repository.build(&[("PATH", "")]);
    assert_eq!(outcome.result, Ok(()));
    let warnings = starting(&outcome, "cargo::warning");
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("tools/setup_cuda") && warnings[0].contains("CUDA_HOME"), "{}", warnings[0]);
    assert_eq!(starting(&outcome, "cargo::rustc-cfg"), ["cargo::rustc-cfg=no_nvcc"]);
    assert_eq!(starting(&outcome, "cargo::rustc-check-cfg").len(), 1);
    // The names of kernels are defined even without nvcc.
    assert!(repository.rust().contains("pub const FIRST_F32: &str = \"first_f32\";"));
    assert!(repository.rust().contains("IMAGES: &[Image] = &[\n];"));

    let error = repository.error(&[("LENSMITH_REQUIRE_CUDA", "1")]);
    assert!(error.contains("tools/setup_cuda") && !error.contains('\n'), "{error}");
    assert_eq!(repository.build(&[("LENSMITH_REQUIRE_CUDA", "0")]).result, Ok(()));
}

#[test]
fn profiles_share_images_in_the_target_folder() {
    let repository = Repository::new(&[("kernels/first.cu", KERNEL), ("target/CACHEDIR.TAG", "")]);
    let nvcc = format!("{}/bin/nvcc", repository.nvcc("named"));
    let build = |out: &str| {
        fs::create_dir_all(repository.path(out)).unwrap();
        let out = repository.path(out).display().to_string();
        assert_eq!(repository.build(&[("NVCC", &nvcc), ("OUT_DIR", &out)]).result, Ok(()));
        assert_eq!(fs::read_to_string(Path::new(&out).join("first.fatbin")).unwrap(), "image\n");
        repository.calls("named")
    };
    assert_eq!(["debug/out", "release/out", "debug/out"].map(|p| build(&format!("target/{p}"))), [1, 1, 1]);
    // A changed source is compiled again; an image without its record is too.
    repository.write("kernels/first.cu", &KERNEL.replace("x)", "y)"));
    assert_eq!(build("target/debug/out"), 2);
    for entry in fs::read_dir(repository.path("target/cuda-images")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "made") {
            fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(build("target/other/out"), 3);
}

#[test]
fn nvcc_is_looked_for_in_order() {
    let repository = Repository::new(&[("kernels/first.cu", KERNEL)]);
    let places = ["named", "home", "cuda_path", "path", ".cuda"].map(|place| repository.nvcc(place));
    let [named, home, cuda_path, path, _] = places.map(|place| place.to_string());
    let (named, path) = (format!("{named}/bin/nvcc"), format!("/nowhere:{path}/bin"));
    let all = [("NVCC", &named), ("CUDA_HOME", &home), ("CUDA_PATH", &cuda_path), ("PATH", &path)];
    for (skip, place) in ["named", "home", "cuda_path", "path"].into_iter().enumerate() {
        let _ = fs::remove_file(repository.path("out/first.made"));
        let environment: Vec<_> = all[skip..].iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(repository.build(&environment).result, Ok(()));
        assert_eq!(repository.calls(place), 1, "{place}");
    }
    // A folder without its stamp is not a complete toolkit.
    assert_eq!(starting(&repository.build(&[]), "cargo::rustc-cfg").len(), 1);
    repository.write(".cuda/stamp", "");
    let _ = fs::remove_file(repository.path("out/first.made"));
    assert_eq!(repository.build(&[]).result, Ok(()));
    assert_eq!(repository.calls(".cuda"), 1);
    // One that is too old is passed over, and named where nothing else is found.
    repository.write("home/bin/release", "11.8");
    let _ = fs::remove_file(repository.path("out/first.made"));
    assert_eq!(repository.build(&[("CUDA_HOME", &home)]).result, Ok(()));
    assert_eq!(repository.calls(".cuda"), 2);
    fs::remove_file(repository.path(".cuda/stamp")).unwrap();
    let outcome = repository.build(&[("CUDA_HOME", &home)]);
    assert!(starting(&outcome, "cargo::warning")[0].contains("is CUDA 11.8, 12.0 or newer is needed"));
    // The compiler that NVCC names must work: there is no fallback.
    assert!(repository.error(&[("NVCC", "/nowhere/nvcc")]).contains("cannot run /nowhere/nvcc"));
    assert!(repository.error(&[("NVCC", "nvcc-13"), ("PATH", &path)]).contains("not in PATH"));
    assert!(repository.error(&[("NVCC", &format!("{home}/bin/nvcc"))]).contains("11.8"));
}

#[test]
fn architectures_follow_the_compiler_the_file_and_the_user() {
    let repository = Repository::new(&[("kernels/first.cu", KERNEL)]);
    let home = repository.nvcc("home");
    repository.write("home/bin/known", "75 80 90");

    let architectures = |asked: &str| {
        let outcome = repository.build(&[("CUDA_HOME", &home), ("LENSMITH_CUDA_ARCHS", asked)]);
        assert_eq!(outcome.result, Ok(()));
        let rust = repository.rust();
        let line = |name: &str| rust.lines().find_map(|l| l.trim().strip_prefix(name).map(str::to_string));
        (line("architectures: ").unwrap_or_default(), line("ptx: ").unwrap_or_default())
    };
    let ptx = |name: &str| format!("Some(\"{name}\"),");
    assert_eq!(architectures(""), (r#"&["sm_75", "sm_80", "sm_90a"],"#.into(), ptx("compute_75")));
    assert_eq!(architectures("90a, sm_80,80"), (r#"&["sm_80", "sm_90a"],"#.into(), ptx("compute_80")));
    assert_eq!(architectures("90a"), (r#"&["sm_90a"],"#.into(), "None,".into()));
    repository.write("kernels/first.cu", &KERNEL.replace("sm_75", "sm_80"));
    assert_eq!(architectures(""), (r#"&["sm_80", "sm_90a"],"#.into(), ptx("compute_80")));
    assert_eq!(architectures("75"), (String::new(), String::new()));

    for (asked, words) in [("120", "knows no sm_120"), ("x", "`x` is no architecture"), ("80,", "`` is no")] {
        let error = repository.error(&[("CUDA_HOME", &home), ("LENSMITH_CUDA_ARCHS", asked)]);
        assert!(error.contains(words) && !error.contains('\n'), "{error}");
    }
    repository.write("kernels/first.cu", &KERNEL.replace("sm_75+", "Turing"));
    assert!(repository.error(&[("CUDA_HOME", &home)]).contains("kernels/first.cu:1: `archs: Turing`"));
}

#[test]
fn compilers_are_asked_again_only_after_a_change() {
    let header = ("kernels/include/types.cuh", "using u32 = unsigned;");
    let notes = ("kernels/README.md", "");
    let repository = Repository::new(&[("kernels/first.cu", KERNEL), header, notes]);
    let home = repository.nvcc("home");
    let calls_after = |environment: &[(&str, &str)]| {
        let mut given = vec![("CUDA_HOME", home.as_str())];
        given.extend(environment);
        let outcome = repository.build(&given);
        assert_eq!(outcome.result, Ok(()));
        for file in ["kernels", "kernels/first.cu", header.0, notes.0] {
            assert!(outcome.lines.contains(&format!("cargo::rerun-if-changed={file}")), "{file}");
        }
        repository.calls("home")
    };
    assert_eq!(calls_after(&[]), 1);
    assert_eq!(calls_after(&[("NUM_JOBS", "8")]), 1);
    let hash = repository.rust();
    repository.write(notes.0, "Kernels.");
    assert_eq!((calls_after(&[]), repository.rust()), (1, hash.clone()));
    repository.write(header.0, "using u32 = unsigned int;");
    assert_eq!(calls_after(&[]), 2);
    assert_ne!(repository.rust(), hash);
    repository.write("kernels/first.cu", &format!("{KERNEL}\n"));
    assert_eq!(calls_after(&[]), 3);
    assert_eq!(calls_after(&[("LENSMITH_CUDA_ARCHS", "80")]), 4);
    fs::remove_file(repository.path("out/first.fatbin")).unwrap();
    assert_eq!(calls_after(&[("LENSMITH_CUDA_ARCHS", "80")]), 5);
}

#[test]
fn bad_kernels_stop_the_build() {
    let repository = Repository::new(&[("kernels/first.cu", KERNEL)]);
    let home = repository.nvcc("home");
    let environment = [("CUDA_HOME", home.as_str())];

    repository.write("home/bin/fail", "kernels/first.cu(3): error: expected a \";\"\n");
    let error = repository.error(&environment);
    assert!(
        error.contains("nvcc failed")
            && error.contains("first.cu(3): error")
            && !error.contains("ptxas info")
    );
    fs::remove_file(repository.path("home/bin/fail")).unwrap();

    repository.write("home/bin/spill", "16");
    for _ in 0..2 {
        let error = repository.error(&environment);
        assert!(error.contains("`first_f32` spills registers") && error.contains("16 bytes"), "{error}");
    }
    repository.write("kernels/expectations.txt", "# spills\nfirst_f32 * may-spill\n");
    assert_eq!(repository.build(&environment).result, Ok(()));

    fs::remove_file(repository.path("home/bin/spill")).unwrap();
    repository.write("home/bin/symbols", "_Z5firstPf");
    repository.write("kernels/first.cu", &format!("{KERNEL}// changed\n"));
    assert!(repository.error(&environment).contains("no kernel `first_f32` was compiled for sm_75"));
    repository.write("home/bin/symbols", "first_f32 by_pasting_f32");
    repository.write("kernels/first.cu", &format!("{KERNEL}// changed again\n"));
    assert!(
        repository
            .error(&environment)
            .contains("kernel `by_pasting_f32` was compiled, but the scan found no")
    );
    repository.write("kernels/second.cu", KERNEL);
    assert!(repository.error(&environment).contains("a second kernel `first_f32`"));
}

#[test]
fn scan_finds_exported_kernels_and_nothing_else() {
    let source = r#"
        // extern "C" __global__ void in_comment(float* x)
        /* KERNEL(in_block, float) */
        #include "types.cuh"
        __global__ void template_like(int) {}
        __device__ void helper() { const char* s = "KERNEL(no)" ; }
        extern "C" __global__ void plain(float* x) {}
        extern "C" __global__ __launch_bounds__(kThreads(128), 1) void bounded(const float* __restrict__ x) {}
        #define KERNEL(name, S) \
            extern "C" __global__ void __launch_bounds__(256) name(const S* x) { helper(); }
        KERNEL(by_macro_f32, float)
        KERNEL(by_macro_bf16, gpu::bf16)
        #undef KERNEL
    "#;
    let repository = Repository::new(&[("kernels/some.cu", source)]);
    assert_eq!(repository.build(&[]).result, Ok(()));
    let rust = repository.rust();
    let names: Vec<&str> = rust.lines().filter_map(|line| line.split("&str = \"").nth(1)).collect();
    assert_eq!(names, ["plain\";", "bounded\";", "by_macro_f32\";", "by_macro_bf16\";"]);
}

/// What `lensmith --device` says of the device where libcuda is the stand-in, with these settings.
fn with_driver(folder: &Path, device: &str, settings: &str) -> String {
    let said = says(folder, device, settings);
    assert!(said.contains(&format!("device {device}: ")), "{said}");
    said
}

fn says(folder: &Path, device: &str, settings: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_lensmith"))
        .args(["demo", "--device", device])
        .env("LD_LIBRARY_PATH", folder)
        .env("PTX_DRIVER", settings)
        .output()
        .expect("lensmith runs");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    said
}

#[test]
fn every_obstacle_on_the_way_to_a_gpu_has_its_words() {
    let folder = TempDir::new().unwrap();
    let library = std::env::current_exe().unwrap().with_file_name("libptx_driver.so");
    symlink(library, folder.path().join("libcuda.so")).unwrap();

    let expect = |device: &str, settings: &str, words: &[&str]| {
        let said = with_driver(folder.path(), device, settings);
        for word in words {
            assert!(said.contains(word), "no `{word}` in: {said}");
        }
    };
    expect("cuda:0", "fail=cuInit:100", &["sees no GPU", "CUDA_VISIBLE_DEVICES"]);
    expect("cuda:0", "fail=cuInit:34", &["stub", "LD_LIBRARY_PATH"]);
    expect("cuda:0", "fail=cuInit:803", &["different versions", "restart"]);
    expect("cuda:0", "fail=cuInit:999", &["does not start (CUDA_ERROR_UNKNOWN)"]);
    expect("cuda:0", "count=0", &["sees no GPU"]);
    expect("cuda:1", "", &["only one GPU, cuda:0"]);
    expect("cuda:7", "count=4", &["only 4 GPUs, cuda:0 to cuda:3"]);
    expect("cuda:0", "capability=6.1", &["Imaginary GPU", "capability 6.1", "7.5 or higher", "--device cpu"]);
    expect("cuda:all", "count=0", &["sees no GPU", "CUDA_VISIBLE_DEVICES"]);
    expect("cuda:all", "fail=cuInit:100", &["sees no GPU"]);
    expect("cuda:all", "fail=cuInit:803", &["different versions", "restart"]);
    if kernels::TOOLKIT.is_none() {
        expect("cuda:0", "", &["built without nvcc", "tools/setup_cuda"]);
    }
    if !compiled("every_obstacle_on_the_way_to_a_gpu_has_its_words") {
        return;
    }
    // A GPU that is there and takes the kernels, but has no memory to give.
    expect("cuda:0", "fail=cuMemAlloc_v2:999", &["allocating device memory failed (CUDA_ERROR_UNKNOWN)"]);
    expect("cuda:0", "fail=cuFuncSetAttribute:1", &["allowing shared memory failed"]);
    expect("cuda:0", "release=11.4", &["driver is for CUDA 11.4", "NVIDIA driver", "CUDA_HOME"]);
    expect("cuda:0", "fail=cuDevicePrimaryCtxRetain:46", &["exclusive mode"]);
    expect("cuda:0", "fail=cuDevicePrimaryCtxRetain:2", &["no memory left"]);
    expect("cuda:0", "fail=cuDevicePrimaryCtxRetain:999", &["opens no context"]);
    // Of several, the one that does not open is named.
    let second = "count=3,fail=cuDevicePrimaryCtxRetain:46#1";
    expect("cuda:1", second, &["exclusive mode"]);
    let said = says(folder.path(), "cuda:all", second);
    let words = ["device cuda:1: ", "exclusive mode", "CUDA_VISIBLE_DEVICES can leave this GPU out"];
    assert!(words.iter().all(|w| said.contains(w)), "{said}");
    let rebuild = "LENSMITH_CUDA_ARCHS=153";
    expect("cuda:0", "fail=cuModuleLoadData:209,capability=15.3", &["adam.cu are for sm_", rebuild]);
    expect("cuda:0", "fail=cuModuleLoadData:222,capability=15.3", &["cannot compile adam.cu", rebuild]);
    expect("cuda:0", "fail=cuModuleLoadData:209", &["LENSMITH_CUDA_ARCHS=90a"]);
    expect(
        "cuda:0",
        "fail=cuModuleLoadData:200",
        &["refuses the kernels of adam.cu (CUDA_ERROR_INVALID_IMAGE)"],
    );
    expect("cuda:0", "fail=cuModuleGetFunction:500", &["refuses the kernels of adam.cu"]);
}

#[test]
fn without_a_driver_the_driver_is_named() {
    // Only meaningful on machines without a driver.
    let devices = ["/dev/nvidiactl", "/dev/dxg", "/dev/nvmap"];
    if devices.iter().any(|device| Path::new(device).exists()) {
        skipped("without_a_driver_the_driver_is_named", "this machine has a driver");
        return;
    }
    for device in ["cuda:0", "cuda:all"] {
        let said = with_driver(Path::new("/nowhere"), device, "");
        assert!(said.contains("no NVIDIA driver library") && said.contains("--device cpu"), "{said}");
    }
}
