//! tools/gpu_check with the stand-in for libcuda, on the test programs of this build: whatever crashes,
//! hangs, is missing or cannot be written, everything else is recorded, and the exit code says what happened.
//! Likewise the GPU parts of tools/bench_peers.py, with a stand-in for PyTorch.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::cli::{Lab, Said, bare};
use common::device::{program, settings, stand_in, tested_gpu};
use lensmith::backend::cuda::kernels;
use serde_json::{Value, json};

const STAGES: [&str; 7] = ["device", "probes", "kernels", "rates", "memcheck", "racecheck", "ncu"];
/// What runs with --small.
const PROGRAMS: [&str; 4] = ["single", "parity", "large", "gpu"];
/// All take options with one value each, then the command that they run.
const SANITIZER: &str = "#!/bin/sh\nwhile [ \"${1#--}\" != \"$1\" ]; do shift 2; done\nexec \"$@\"\n";
const NCU: &str = r#"#!/bin/sh
if [ "$1" = --import ]; then
    [ -s "$2" ] || exit 1
    printf '"ID","Section Name","Metric Name","Metric Unit","Metric Value"\n'
    printf '"0","GPU Speed Of Light Throughput","Duration","us","12.5"\n'
    exit 0
fi
while [ "${1#--}" != "$1" ]; do
    case "$1" in
    --export) echo profile >"$2"; shift 2 ;;
    --force-overwrite) shift ;;
    *) shift 2 ;;
    esac
done
exec "$@"
"#;
/// Writes what the stand-in takes for a fatbin, or fails where the source says so.
const NVCC: &str = r#"#!/bin/sh
while [ $# -gt 1 ]; do
    if [ "$1" = -o ]; then out=$2; fi
    shift
done
if grep -q 'syntax error' "$1"; then echo "$1(1): error: syntax error" >&2; exit 2; fi
printf '\120\355\125\272 and more' >"$out"
"#;

/// Programs of this build, a stand-in for the driver and stand-ins for the tools of the CUDA toolkit.
struct Machine {
    lab: Lab,
}

impl Machine {
    /// None where a GPU is tested, as the stand-in plays one; and where the build has no kernels, which is
    /// said, or a failure with LENSMITH_REQUIRE_CUDA=1.
    fn new() -> Option<Machine> {
        if tested_gpu().is_some() {
            return None;
        }
        if kernels::TOOLKIT.is_none() {
            let required = std::env::var("LENSMITH_REQUIRE_CUDA").is_ok_and(|value| value == "1");
            assert!(!required, "built without nvcc, and LENSMITH_REQUIRE_CUDA=1");
            eprintln!("SKIPPED: built without nvcc; run tools/setup_cuda and build again");
            return None;
        }
        let lab = Lab::new();
        let folder = |name: &str| fs::create_dir(lab.at(name)).expect("a folder");
        ["programs", "driver", "bin", "none"].into_iter().for_each(folder);
        for name in PROGRAMS {
            symlink(program(name), lab.at("programs").join(name)).expect("a link");
        }
        for (name, text) in [("compute-sanitizer", SANITIZER), ("ncu", NCU), ("nvcc", NVCC)] {
            let path = lab.put(&format!("bin/{name}"), text.as_bytes());
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permissions");
        }
        stand_in(&lab.at("driver"));
        Some(Machine { lab })
    }

    /// Runs the script on the words of `line`, in which `@` stands for the machine's folder.
    /// `driver`: further settings of the stand-in.
    fn run(&self, line: &str, driver: &str) -> Said {
        self.run_with_tools(line, driver, true)
    }

    fn run_with_tools(&self, line: &str, driver: &str, tools: bool) -> Said {
        self.command(line, driver, tools).output().expect("tools/gpu_check runs").into()
    }

    fn command(&self, line: &str, driver: &str, tools: bool) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/gpu_check");
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Where none are wanted, none of this machine either.
        let has_tools = |p: &PathBuf| ["compute-sanitizer", "ncu"].iter().any(|t| p.join(t).exists());
        let mut path: Vec<PathBuf> = std::env::split_paths(&path).filter(|p| !has_tools(p)).collect();
        if tools {
            path.insert(0, self.lab.at("bin"));
        }
        let mut command = bare(Command::new(script));
        command.args(self.lab.words(line)).args(["--small", "--jobs", "2", "--programs"]);
        command.arg(self.lab.at("programs"));
        command.env("PATH", std::env::join_paths(path).expect("a path"));
        command.env("CUDA_HOME", self.lab.at("none"));
        command.env("LD_LIBRARY_PATH", self.lab.at("driver")).env("PTX_DRIVER", settings(driver));
        command
    }

    fn record(&self, name: &str) -> Value {
        self.lab.value(name)
    }
}

/// Stages and their status.
fn statuses(record: &Value) -> Vec<(&str, &str)> {
    let stages = record["stages"].as_array().expect("stages").iter();
    let text = |value: &Value| value.as_str().map(str::to_string).expect("text");
    stages
        .map(|s| {
            (
                s["stage"].as_str().expect("text"),
                s["status"].as_str().unwrap_or_else(|| panic!("{}", text(s))),
            )
        })
        .collect()
}

fn stage<'r>(record: &'r Value, name: &str) -> &'r Value {
    let stages = record["stages"].as_array().expect("stages");
    stages.iter().find(|s| s["stage"] == name).unwrap_or_else(|| panic!("no {name} in {record}"))
}

#[test]
fn all_stages_pass_and_leave_a_record() {
    let Some(machine) = Machine::new() else { return };
    let peers = json!({ "peers": { "device": "kept" }, "rates": "old" });
    machine.lab.put("out/imaginary-gpu.json", peers.to_string().as_bytes());
    let said = machine.run("--out @out", "");
    assert_eq!(said.code, Some(0), "{said:?}");
    let record = machine.record("out/imaginary-gpu.json");
    assert_eq!(statuses(&record), STAGES.map(|stage| (stage, "passed")), "{said:?}");
    assert_eq!(record["peers"], peers["peers"], "figures beside peers stay");
    assert_eq!(record["kernels"], format!("{:016x}", kernels::SOURCES));
    assert!(record["device"].as_str().is_some_and(|d| d.starts_with("Imaginary GPU, compute capability ")));
    let rates = record["rates"].as_array().expect("rates");
    let rate = |name: &str| rates.iter().find(|r| r["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    for name in
        ["floor_read", "floor_write", "floor_copy", "floor_mma_bf16", "memset", "memcpy", "select_f32"]
    {
        assert!(rate(name)["per_second"].as_f64().is_some_and(|r| r > 0.0), "{name}");
    }
    let score = rate("score_bf16_bf16");
    for share in ["of_memory", "of_tensor_cores"] {
        assert!(score[share].as_f64().is_some_and(|s| s > 0.0), "{share} of {score}");
    }
    assert!(rate("score_f32_bf16")["of_tensor_cores"].is_null());
    assert_eq!(record["ncu"]["encode_bf16_bf16"]["GPU Speed Of Light Throughput: Duration"], "12.5 us");
    assert!(machine.lab.at("out/encode_bf16_bf16.ncu-rep").exists());
    // Every test ran by itself, and was seen to run.
    let steps = stage(&record, "kernels")["steps"].as_array().expect("steps").len();
    assert!(steps >= 4, "{record}");
}

/// Half of the stages crash or hang at their first call of the driver, the others come through; then the
/// other half.
fn half_of_the_stages(setting: &str, status: &str) {
    let Some(machine) = Machine::new() else { return };
    for first in [0, 1] {
        let broken: Vec<&str> = STAGES.into_iter().skip(first).step_by(2).collect();
        let limits: Vec<String> = broken.iter().map(|stage| format!("{stage}=2")).collect();
        // Crashes end at once; only hangs wait for the limit.
        let limits =
            if status == "timed out" { format!("--limits {}", limits.join(",")) } else { String::new() };
        let said = machine.run(
            &format!("--out @{first} {limits}"),
            &format!("{setting}=LENSMITH_CHECK_STAGE:{}", broken.join(";")),
        );
        assert_eq!(said.code, Some(1), "{said:?}");
        let name = if first == 0 { "gpu-unknown" } else { "imaginary-gpu" };
        let record = machine.record(&format!("{first}/{name}.json"));
        let want = STAGES.map(|stage| (stage, if broken.contains(&stage) { status } else { "passed" }));
        assert_eq!(statuses(&record), want, "{said:?}");
        for broken in broken {
            let steps = stage(&record, broken)["steps"].as_array().expect("steps");
            let how = if status == "crashed" { "SIGABRT" } else { "killed after" };
            let lines = steps.iter().flat_map(|s| s["said"].as_array().into_iter().flatten());
            assert!(
                lines.clone().any(|l| l.as_str().is_some_and(|l| l.contains(how))),
                "{broken}: {steps:?}"
            );
        }
        let rates = record["rates"].as_array().expect("rates").len();
        assert_eq!(rates > 10, first == 0, "rates are there where their stage passed");
    }
}

#[test]
fn a_crash_costs_its_stage_alone() {
    half_of_the_stages("crash_where", "crashed");
}

#[test]
fn a_hang_costs_its_stage_alone() {
    half_of_the_stages("hang_where", "timed out");
}

#[test]
fn a_kernel_that_crashes_costs_its_rate_alone() {
    let Some(machine) = Machine::new() else { return };
    let said = machine.run("--out @out --stages device,rates", "crash_kernel=encode_bf16_bf16");
    assert_eq!(said.code, Some(1), "an error of a later program is no missing GPU: {said:?}");
    let record = machine.record("out/imaginary-gpu.json");
    assert_eq!(stage(&record, "rates")["status"], "crashed");
    let names: Vec<&str> =
        record["rates"].as_array().expect("rates").iter().filter_map(|r| r["name"].as_str()).collect();
    assert!(!names.contains(&"encode_bf16_bf16") && names.contains(&"decode_bf16_bf16"), "{names:?}");
}

#[test]
fn missing_tools_are_seen_and_may_be_left_out_by_name() {
    let Some(machine) = Machine::new() else { return };
    let said = machine.run_with_tools("--out @out --stages device,memcheck,racecheck,ncu", "", false);
    assert_eq!(said.code, Some(1), "{said:?}");
    let record = machine.record("out/imaginary-gpu.json");
    for (name, tool) in
        [("memcheck", "compute-sanitizer"), ("racecheck", "compute-sanitizer"), ("ncu", "ncu")]
    {
        let found = stage(&record, name);
        assert_eq!(
            (&found["status"], &found["reason"]),
            (&"not run".into(), &format!("no {tool} here").into())
        );
        assert!(said.out.contains(&format!("no {tool} here")), "{said:?}");
    }
    let line = "--out @out --stages device,memcheck,racecheck,ncu --without sanitizer,ncu";
    let said = machine.run_with_tools(line, "", false);
    assert_eq!(said.code, Some(0), "{said:?}");
    let record = machine.record("out/imaginary-gpu.json");
    assert_eq!(stage(&record, "ncu")["status"], "skipped", "{said:?}");
}

#[test]
fn a_folder_that_takes_nothing_costs_its_copy_alone() {
    let Some(machine) = Machine::new() else { return };
    // The part of a file that is being written goes to a device that is always full.
    fs::create_dir(machine.lab.at("full")).expect("a folder");
    symlink("/dev/full", machine.lab.at("full/.imaginary-gpu.json.part")).expect("a link");
    for (out, results, words) in [
        ("@full", "@kept-1", "No space left on device"),
        ("@kept-2", "/proc/none/of/it", "cannot write /proc/none"),
    ] {
        let said = machine.run(&format!("--out {out} --results {results} --stages device,probes"), "");
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(said.err.contains(words), "{said:?}");
        let kept = if out == "@full" { "kept-1" } else { "kept-2" };
        let record = machine.record(&format!("{kept}/imaginary-gpu.json"));
        assert_eq!(statuses(&record)[..2], [("device", "passed"), ("probes", "passed")]);
    }
    assert!(!machine.lab.at("full/imaginary-gpu.json").exists(), "half a record is none");
    // If the record cannot be written anywhere, it is printed.
    let said = machine.run("--out @full --stages device,probes", "");
    assert_eq!(said.code, Some(0), "{said:?}");
    let line = said.out.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{said:?}"));
    let record: Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(stage(&record, "probes")["status"], "passed");
    // It is written even if standard output cannot be.
    let mut command = machine.command("--out @unheard --stages device,probes", "", true);
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").expect("a device");
    let status = command.stdout(full()).stderr(full()).status().expect("tools/gpu_check runs");
    assert_eq!(status.code(), Some(0));
    assert_eq!(stage(&machine.record("unheard/imaginary-gpu.json"), "probes")["status"], "passed");
}

#[test]
fn only_a_missing_gpu_is_called_that() {
    let Some(machine) = Machine::new() else { return };
    for setting in ["count=0", "fail=cuInit:100", "fail=cuInit:34"] {
        let said = machine.run("--out @out", setting);
        assert_eq!(said.code, Some(3), "{said:?}");
        assert!(said.err.contains("no GPU to check: gpu: device cuda:0: "), "{said:?}");
        let record = machine.record("out/gpu-unknown.json");
        assert_eq!(statuses(&record), STAGES.map(|stage| (stage, "not run")));
    }
    // A driver that does not start, or is too old, hides whether there is a GPU.
    for (setting, words) in [("fail=cuInit:999", "does not start"), ("release=11.4", "CUDA 11.4")] {
        let said = machine.run("--out @failed --stages device", setting);
        assert_eq!(said.code, Some(1), "{said:?}");
        let record = machine.record("failed/gpu-unknown.json");
        assert_eq!(stage(&record, "device")["status"], "failed");
        assert!(record.to_string().contains(words), "{record}");
    }
}

#[test]
fn wrong_usage_is_told_apart() {
    let Some(machine) = Machine::new() else { return };
    for (line, words) in [
        ("--stages everything", "expected sanitizer or one of device"),
        ("--without rates,speed", "found speed"),
        ("--limits rates=soon", "expected STAGE=SECONDS"),
        ("--jobs 0", "expected 1 or more"),
    ] {
        let mut command = bare(Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/gpu_check")));
        let said: Said = command.args(machine.lab.words(line)).output().expect("it runs").into();
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.err.contains(words), "{said:?}");
    }
    let mut command = bare(Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/gpu_check")));
    let said: Said = command.arg("--programs").arg(machine.lab.at("none")).output().expect("it runs").into();
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("nothing built: run tools/gpu_check --build"), "{said:?}");
}

#[test]
fn edited_kernels_are_timed_beside_those_built() {
    let Some(machine) = Machine::new() else { return };
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    for file in ["encode_bf16.cu", "perturb.cu"] {
        machine.lab.put(&format!("edited/{file}"), &fs::read(kernels.join(file)).expect("a kernel"));
    }
    let said = machine.run("--compare @edited --turns 3 --out @out", "");
    assert_eq!(said.code, Some(0), "{said:?}");
    for name in ["encode_bf16_bf16", "select_f32"] {
        let line = said.out.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{said:?}"));
        assert!(line.contains("a second  x ") && line.ends_with("same output"), "{line}");
    }
    assert!(!said.out.contains("decode"), "files that are not there are not compared: {said:?}");
    let record = machine.record("out/imaginary-gpu-compared.json");
    let compared = record["compared"].as_array().expect("kernels");
    for one in compared {
        assert_eq!(
            (one["old"].as_array().map(Vec::len), one["new"].as_array().map(Vec::len)),
            (Some(3), Some(3))
        );
        assert!(one["ratio"].as_f64().is_some_and(|r| r > 0.0), "{one}");
    }
    assert_eq!(compared.len(), 2);

    let said = machine.run("--compare @edited --kernels decode_f32_bf16", "");
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("which are") && said.err.contains("encode_bf16_bf16"), "{said:?}");
    machine.lab.put("edited/encode_bf16.cu", b"syntax error");
    let said = machine.run("--compare @edited", "");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(
        said.err.contains("encode_bf16.cu: nvcc failed") && said.err.contains("syntax error"),
        "{said:?}"
    );
    assert_eq!(machine.run("--compare @edited", "count=0").code, Some(3));
}

/// What `benches/gpu` says where its options or images are wrong.
#[test]
fn images_are_looked_at_before_they_are_loaded() {
    let Some(machine) = Machine::new() else { return };
    let gpu = |line: &str| -> Said {
        let mut command = bare(Command::new(program("gpu")));
        command.args(machine.lab.words(line)).arg("--small").env_remove("CARGO");
        command.env("LD_LIBRARY_PATH", machine.lab.at("driver")).env("PTX_DRIVER", settings(""));
        command.output().expect("gpu runs").into()
    };
    machine.lab.put("other/other.fatbin", b"");
    machine.lab.put("twice/perturb.fatbin", b"");
    machine.lab.put("twice/perturb.cubin", b"");
    machine.lab.put("broken/perturb.fatbin", b"no image of any kind");
    for (folder, words) in [
        ("none", "expected STEM.fatbin or STEM.cubin, found neither"),
        ("nowhere", "cannot read"),
        ("other", "no kernels/other.cu to replace"),
        ("twice", "a second image of perturb.cu"),
        ("broken", "refuses the kernels of perturb.cu"),
    ] {
        let said = gpu(&format!("--kernel select_f32 --images @{folder}"));
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.err.contains("select_f32: device cuda:0: ") && said.err.contains(words), "{said:?}");
    }
    // An image of another file leaves this kernel's own.
    fs::write(machine.lab.at("other/adam.fatbin"), [0x50, 0xed, 0x55, 0xba]).expect("a file");
    fs::remove_file(machine.lab.at("other/other.fatbin")).expect("a file");
    let said = gpu("--kernel select_f32 --images @other --once");
    assert_eq!((said.code, said.out.as_str()), (Some(0), ""), "{said:?}");
    for line in ["--kernel nothing", "--turns 3", "--images @other --turns 0", "--fast", "--kernel"] {
        assert_eq!(gpu(line).code, Some(2), "{line}");
    }
}

/// The packed programs are unpacked where they are missing or others, and beside a repository that may not be
/// written.
#[test]
fn packed_programs_are_unpacked_once() {
    let lab = Lab::new();
    let script = r#"
import io, sys, tarfile
from pathlib import Path
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
import gpu_package
folder = Path(sys.argv[2])
gpu_package.ARCHIVE, gpu_package.FOLDER = folder / "gpu_check.tar.xz", folder / "gpu_check"

def pack(text):
    with tarfile.open(gpu_package.ARCHIVE, "w:xz") as archive:
        for name in [*gpu_package.PROGRAMS, "../escaped", "unknown"]:
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))

assert gpu_package.unpacked() is None
pack(b"first")
found = gpu_package.unpacked()
assert found == gpu_package.FOLDER, found
assert sorted(p.name for p in found.iterdir()) == sorted([*gpu_package.PROGRAMS, "archive"]), list(found.iterdir())
assert not (folder / "escaped").exists()
gpu = found / "gpu"
assert gpu.read_bytes() == b"first" and gpu.stat().st_mode & 0o100
gpu.write_bytes(b"touched")
assert gpu_package.unpacked() == found and gpu.read_bytes() == b"touched", "unpacked without need"
pack(b"second")
assert gpu_package.unpacked() == found and gpu.read_bytes() == b"second", "an older program stayed"
gpu_package.FOLDER = Path("/proc/none/of/it")
elsewhere = gpu_package.unpacked()
assert (elsewhere / "gpu").read_bytes() == b"second"
import shutil
shutil.rmtree(elsewhere)
"#;
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools");
    let mut python = Command::new("python3");
    python.arg("-c").arg(script).arg(tools).arg(lab.at(""));
    let said: Said = python.output().expect("python3 runs").into();
    assert_eq!(said.code, Some(0), "{said:?}");
}

/// A stand-in for PyTorch: one part fails, one hangs, the others crash.
const TORCH: &str = r#"
import os, sys, time

__version__ = "0+stand-in"

class cuda:
    is_available = staticmethod(lambda: True)
    get_device_name = staticmethod(lambda: "Imaginary GPU")

def set_num_threads(_):
    part = sys.argv[sys.argv.index("--part") + 1]
    if part == "score":
        sys.exit("no memory left")
    if part == "decode":
        time.sleep(600)
    os.abort()
"#;

#[test]
fn parts_of_the_peers_fail_one_by_one() {
    let lab = Lab::new();
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools");
    for entry in fs::read_dir(tools).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            lab.put(&format!("root/tools/{name}"), &fs::read(&path).expect("a script"));
        }
    }
    for name in ["single", "operations", "parity", "cuda", "large", "gpu", "lensmith"] {
        lab.put(&format!("root/target/gpu_check/{name}"), b"");
    }
    for (name, text) in [("torch", TORCH), ("numpy", ""), ("safetensors", "")] {
        lab.put(&format!("modules/{name}.py"), text.as_bytes());
    }
    let before = json!({ "peers": { "device": "kept" } });
    lab.put("root/benches/results/imaginary-gpu.json", before.to_string().as_bytes());
    let run = |line: &str| -> Said {
        let mut command = bare(Command::new("python3"));
        command.arg(lab.at("root/tools/bench_peers.py")).args(lab.words(line));
        command.env("PYTHONPATH", lab.at("modules")).env("PYTHONDONTWRITEBYTECODE", "1");
        command.output().expect("python3 runs").into()
    };
    let parts = "--device cuda --only score --only decode --only encode";
    let said = run(&format!("{parts} --budget 2 --out @out"));
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("did not come through: score, decode, encode"), "{said:?}");
    for file in ["root/benches/results/imaginary-gpu.json", "out/imaginary-gpu.json"] {
        let record = lab.value(file);
        let parts = &record["peer_parts"];
        for (name, status, words) in [
            ("score", "failed", "no memory left"),
            ("decode", "timed out", "killed"),
            ("encode", "crashed", "SIGABRT"),
        ] {
            assert_eq!(parts[name]["status"], status, "{record}");
            assert!(parts[name]["said"].to_string().contains(words), "{record}");
        }
        assert_eq!(record["peers"].is_null(), file.starts_with("out"), "{record}");
    }
    // A part gets no more time than is left of the whole limit.
    let said = run(&format!("{parts} --limit 0.001 --out @late"));
    assert_eq!(said.code, Some(1), "{said:?}");
    let record = lab.value("late/imaginary-gpu.json");
    assert!(
        record["peer_parts"]["encode"]["status"].as_str().is_some_and(|s| s.starts_with("not run")),
        "{record}"
    );
    let said = run("--device cuda --dry-run");
    assert_eq!((said.code, said.out.lines().count()), (Some(0), 10), "{said:?}");
    assert_eq!(run("--device cuda --dim 64").code, Some(2));
}
