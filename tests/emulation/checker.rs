//! The emulator itself: correct kernels pass under every schedule, seeded faults are reported with their lines.

use std::collections::BTreeMap;
use std::path::Path;

use crate::emulation::{Args, Build, Emulator, Launch, Schedule};

const N: usize = 256;

/// Runs one of the cases; gives the report, or the output and the bytes of it that were not written.
fn run(build: Build, kernel: &str, schedule: Schedule) -> Result<(Vec<f32>, u64), String> {
    let emulator = Emulator::get(build);
    let values: Vec<f32> = (0..N).map(|i| (i * i % 61) as f32 + 1.0).collect();
    let input = emulator.upload(&values, "in");
    // Kernels that count or add start from zero.
    let counts = ["atomic", "last_block"].iter().any(|w| kernel.contains(w));
    let output = if counts { emulator.upload(&[0f32; N], "out") } else { emulator.empty(N, "out") };
    let launch = Launch { grid: [2, 1, 1], block: [128, 1, 1], shared: 4096, schedule };
    emulator.launch(kernel, launch, &Args::new().buffer(&input).buffer(&output).value(128u32))?;
    Ok((output.download(), output.unwritten()))
}

fn kernels(prefix: &str) -> Vec<String> {
    let names = Emulator::get(Build::Check).kernels();
    names.into_iter().filter(|n| n.starts_with(prefix)).collect()
}

#[test]
fn correct_kernels_pass_under_every_schedule() {
    let names = kernels("correct_");
    assert!(names.len() >= 9, "{names:?}");
    for name in &names {
        let mut first: Option<Vec<u32>> = None;
        for build in [Build::Fast, Build::Check] {
            for schedule in Schedule::ALL {
                let (output, unwritten) =
                    run(build, name, schedule).unwrap_or_else(|e| panic!("{build:?} {schedule:?}: {e}"));
                assert_eq!(unwritten, 0, "{name}");
                let bits: Vec<u32> = output.iter().map(|v| v.to_bits()).collect();
                let first = first.get_or_insert_with(|| bits.clone());
                assert_eq!(*first, bits, "{name} depends on the schedule: {build:?} {schedule:?}");
            }
        }
    }
}

/// What the collectives give, against the definition of each.
#[test]
fn collectives_give_what_cuda_defines() {
    let (output, _) = run(Build::Fast, "correct_collectives", Schedule::PLAIN).expect("a clean run");
    for block in 0..2 {
        for warp in 0..4 {
            let base = block * 128 + warp * 32;
            let x: Vec<f32> = (0..32).map(|l| ((base + l) * (base + l) % 61) as f32 + 1.0).collect();
            let y: Vec<f32> = (0..32usize)
                .map(|l| {
                    let up = x[if l == 0 { 0 } else { l - 1 }];
                    let down = x[if l + 2 > 31 { l } else { l + 2 }];
                    x[l] + (x[3] + up + down + x[l ^ 4])
                })
                .collect();
            let z: Vec<f32> =
                (0..32).map(|l| y[l] + (y[l & !7 | 1] + y[if l % 4 == 0 { l + 3 } else { l }])).collect();
            for l in 0..32 {
                let thirds = (0..32).filter(|k| (warp * 32 + k) % 3 == 0).count() as f32;
                let any = f32::from(u8::from(warp == 0));
                let sum: usize = (0..32).map(|k| warp * 32 + k).sum();
                let want = z[l] + (z[l ^ 16] + thirds) + (any + 1.0) + (sum as f32 + (warp * 32 + 31) as f32);
                assert_eq!(output[base + l], want, "block {block} warp {warp} lane {l}");
            }
        }
    }
}

/// Of each fault: the texts of which its report must hold one, and the lines it must name.
struct Expected {
    texts: Vec<String>,
    lines: Vec<String>,
}

fn expectations() -> BTreeMap<String, Expected> {
    let mut all = BTreeMap::new();
    for file in ["faults_memory.cu", "faults_order.cu", "faults_warp.cu"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emulation/cases").join(file);
        let text = std::fs::read_to_string(path).expect("a source of faults");
        let mut current = String::new();
        for (i, line) in text.lines().enumerate() {
            if let Some(rest) = line.strip_prefix("GPU_KERNEL ") {
                current = rest.split('(').next().expect("a name").to_string();
                all.insert(current.clone(), Expected { texts: Vec::new(), lines: Vec::new() });
            }
            if let Some((_, marks)) = line.split_once("//! ") {
                let expected = all.get_mut(&current).expect("an expectation inside a kernel");
                expected.texts.extend(marks.split('|').map(str::to_string));
                expected.lines.push(format!("{file}:{}", i + 1));
            }
        }
    }
    all.get_mut("fault_shared_layout_too_large").expect("the case").texts.push("layout".into());
    all
}

#[test]
fn every_seeded_fault_is_reported_with_its_lines() {
    let expected = expectations();
    assert_eq!(expected.keys().cloned().collect::<Vec<_>>(), kernels("fault_"));
    assert!(expected.len() >= 20);
    let mut wrong = Vec::new();
    for (name, Expected { texts, lines }) in &expected {
        assert!(!texts.is_empty(), "{name} has no expectation");
        for schedule in Schedule::ALL {
            match run(Build::Check, name, schedule) {
                Ok(_) => wrong.push(format!("{name} passed, {schedule:?}")),
                Err(report) => {
                    if std::env::var_os("LENSMITH_SHOW_REPORTS").is_some() {
                        println!("{report}");
                    }
                    let right = texts.iter().any(|t| report.contains(t))
                        && lines.iter().all(|l| report.contains(l))
                        && report.starts_with(name.as_str());
                    if !right {
                        wrong
                            .push(format!("{name}, {schedule:?}: expected {texts:?} at {lines:?}: {report}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// The fast build finds fewer faults: by a report, poison in the output, or a result that depends on the schedule.
#[test]
fn fast_build_notices_most_faults() {
    let names = kernels("fault_");
    let mut missed = Vec::new();
    for name in &names {
        let mut outputs = Vec::new();
        let noticed = Schedule::ALL.iter().any(|&schedule| match run(Build::Fast, name, schedule) {
            Err(_) => true,
            Ok((output, _)) => {
                let poisoned = output.iter().any(|v| v.is_nan()) && !name.contains("fragment");
                outputs.push(output.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
                poisoned || outputs[0] != *outputs.last().expect("just pushed")
            }
        });
        if !noticed {
            missed.push(name.as_str());
        }
    }
    println!("noticed by the fast build: {} of {}; not: {missed:?}", names.len() - missed.len(), names.len());
    assert!(missed.len() * 4 <= names.len(), "{missed:?}");
}

#[test]
fn launches_are_checked_like_a_drivers() {
    let emulator = Emulator::get(Build::Fast);
    let buffer = emulator.upload(&[0f32; N], "in");
    let launch = Launch { grid: [2, 1, 1], block: [128, 1, 1], shared: 4096, schedule: Schedule::PLAIN };
    let args = || Args::new().buffer(&buffer).buffer(&buffer).value(128u32);
    let report = |kernel, launch, args: Args<'_>| emulator.launch(kernel, launch, &args).unwrap_err();
    assert!(report("no_such_kernel", launch, args()).contains("no_such_kernel"));
    assert!(report("correct_barriers", launch, args().value(1u32)).contains("4 arguments for 3"));
    assert!(report("correct_barriers", Launch { block: [1025, 1, 1], ..launch }, args()).contains("1,024"));
    assert!(report("correct_barriers", Launch { grid: [0, 1, 1], ..launch }, args()).contains("grid"));
    assert!(report("correct_barriers", Launch { shared: 232_449, ..launch }, args()).contains("232,448"));
    assert!(report("correct_barriers", Launch { shared: 511, ..launch }, args()).contains("512 bytes"));
}

/// Launches from several threads, failing ones among them, keep their results apart.
#[test]
fn threads_may_share_the_emulator() {
    let want = run(Build::Check, "correct_barriers", Schedule::PLAIN).expect("a clean run");
    std::thread::scope(|scope| {
        for t in 0..4 {
            let want = &want;
            scope.spawn(move || {
                for i in 0..5 {
                    if (t + i) % 2 == 0 {
                        let got =
                            run(Build::Check, "correct_barriers", Schedule::ALL[i]).expect("a clean run");
                        assert_eq!(got.0, want.0);
                    } else {
                        run(Build::Check, "fault_global_far", Schedule::ALL[i]).expect_err("a fault");
                        run(Build::Fast, "fault_global_far", Schedule::ALL[i]).expect_err("a fault");
                    }
                }
            });
        }
    });
}
