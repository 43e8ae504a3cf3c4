//! Rates of single CUDA kernels at the paper's sizes (d = 4096, hidden 64, latent 16, reward hidden 256), one JSON object
//! a line. tools/gpu_check runs and records them; by hand: `cargo bench --bench gpu -- --list`.

#[path = "gpu/every.rs"]
mod every;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lensmith::backend::Precision;
use lensmith::backend::cuda::rates::{Load, Measurement};
use lensmith::backend::cuda::{Cuda, Device, kernels};
use lensmith::error::Result;
use lensmith::model::{RewardModel, RewardSize, Vae, VaeSize};
use serde_json::{Value, json};

const USAGE: &str = "\
gpu [--kernel NAME]... [OPTIONS]     rates, of all that can be measured unless kernels are named
gpu --list                           what can be measured: name, kernel and the file that it is in
gpu --device                         what the GPU is; exit code 3 if there is none

  --small           sizes for the machine for PTX
  --once            runs each kernel once and measures nothing, for profilers and checkers
  --images FOLDER   takes STEM.fatbin or STEM.cubin from the folder in place of what was built from kernels/STEM.cu
  --every ROWS      in place of rates, runs every operation once with so many and twice as many rows
  --older           with --every: only what LENSMITH_CUDA_PATH=sm80 does by other kernels
  --epochs          with --every: only epochs of training in one launch
  --marks FILE      with --every: adds a line of JSON to the file before the launches of each operation
  --turns N         with --images: N trials of the old and the new kernel in turns, and whether both write the same

Exit codes: 0 done, 1 the device failed, 2 wrong usage, 3 no GPU.";

#[derive(Default)]
struct Options {
    list: bool,
    device: bool,
    small: bool,
    once: bool,
    images: Option<PathBuf>,
    turns: Option<usize>,
    every: Option<usize>,
    older: bool,
    epochs: bool,
    marks: Option<PathBuf>,
    kernels: Vec<Measurement>,
}

fn options(mut words: impl Iterator<Item = String>) -> std::result::Result<Options, String> {
    let mut options = Options::default();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
        match word.as_str() {
            // What cargo bench adds.
            "--bench" => {}
            "--list" => options.list = true,
            "--device" => options.device = true,
            "--small" => options.small = true,
            "--once" => options.once = true,
            "--older" => options.older = true,
            "--epochs" => options.epochs = true,
            "--images" => options.images = Some(value()?.into()),
            "--marks" => options.marks = Some(value()?.into()),
            "--turns" | "--every" => {
                let text = value()?;
                let number = text.parse().ok().filter(|&n| n > 0);
                let number = number.ok_or_else(|| format!("{word}: expected 1 or more, found `{text}`"))?;
                *(if word == "--turns" { &mut options.turns } else { &mut options.every }) = Some(number);
            }
            "--kernel" => {
                let name = value()?;
                let found = Measurement::named(&name);
                options
                    .kernels
                    .push(found.ok_or_else(|| format!("--kernel: no `{name}`; --list names them"))?);
            }
            _ => return Err(format!("unknown option {word}")),
        }
    }
    if options.turns.is_some() && options.images.is_none() {
        return Err("--turns wants --images".into());
    }
    if options.every.is_some() != options.marks.is_some() {
        return Err("--every and --marks want each other".into());
    }
    if options.kernels.is_empty() {
        options.kernels = Measurement::all();
    }
    Ok(options)
}

fn listed() {
    for one in Measurement::all() {
        let symbol = one.symbol();
        let holds = |image: &&kernels::Image| symbol.as_deref().is_some_and(|s| image.symbols.contains(&s));
        let source = kernels::IMAGES.iter().find(holds).map(|image| image.source);
        println!("{}", json!({ "name": one.to_string(), "kernel": symbol, "source": source }));
    }
}

/// What the GPU is, and what was built for it.
fn described() -> Result<Value> {
    let device = Device::open(0)?;
    let summary = device.summary().clone();
    // Memory, streams and staging too: a GPU that gives none cannot be checked.
    let detail = Cuda::on(device, Precision::F32)?;
    detail.wait()?;
    Ok(json!({
        "device": summary.to_string(),
        "name": summary.name,
        "capability": [summary.capability.0, summary.capability.1],
        "memory": summary.memory,
        "driver": [summary.driver.0, summary.driver.1],
        "kernels": format!("{:016x}", kernels::SOURCES),
        "toolkit": kernels::TOOLKIT.map(|(major, minor)| [major, minor]),
        "flags": kernels::FLAGS,
    }))
}

fn opened(precision: Precision, images: Option<&Path>) -> Result<Cuda> {
    match images {
        Some(folder) => Cuda::on(Device::open_with_images(0, folder)?, precision),
        None => Cuda::open(0, precision),
    }
}

fn measured(options: &Options, one: Measurement) -> Result<Option<Value>> {
    let (dim, load) = match options.small {
        true => (128, Load { rows: 70, latents: 100, bytes: 4096 }),
        false => (4096, Load { rows: 1 << 18, latents: 1 << 22, bytes: 4 << 30 }),
    };
    let vae = Vae::init(VaeSize::new(dim, 64, 16)?, 1);
    let reward = RewardModel::init(RewardSize::new(dim, 256)?, 2);
    let cuda = opened(one.precision(), options.images.as_deref())?;
    let workload = cuda.workload(one, (&vae, &reward), load)?;
    if let Some(turns) = options.turns {
        let old = opened(one.precision(), None)?;
        let before = old.workload(one, (&vae, &reward), load)?;
        let [old_rates, new_rates] = before.in_turns(&workload, turns)?;
        let same = before.output()? == workload.output()?;
        let name = one.to_string();
        return Ok(Some(json!({ "name": name, "old": old_rates, "new": new_rates, "same_output": same })));
    }
    if options.once {
        return workload.once().map(|()| None);
    }
    Ok(Some(json!(workload.measure()?)))
}

fn main() -> ExitCode {
    // `cargo test` builds this program for tests/gpu_check.rs, and runs it with options that are not its own.
    if std::env::var_os("CARGO").is_some() && !std::env::args().any(|word| word == "--bench") {
        return ExitCode::SUCCESS;
    }
    let options = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(reason) => {
            eprintln!("gpu: {reason}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if options.list {
        listed();
        return ExitCode::SUCCESS;
    }
    if options.device {
        return match described() {
            Ok(device) => {
                println!("{device}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("gpu: {error}");
                ExitCode::from(if Device::is_absent() { 3 } else { 1 })
            }
        };
    }
    if let (Some(rows), Some(marks)) = (options.every, &options.marks) {
        let run = if options.epochs { every::epochs(marks) } else { every::run(rows, options.older, marks) };
        return match run {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("gpu: {error}");
                ExitCode::FAILURE
            }
        };
    }
    for &one in &options.kernels {
        match measured(&options, one) {
            Ok(Some(found)) => println!("{found}"),
            Ok(None) => {}
            Err(error) => {
                eprintln!("gpu: {one}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
