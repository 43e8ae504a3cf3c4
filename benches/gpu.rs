//! Rates of the CUDA kernels at the paper's sizes (d = 4096, hidden 64, latent 16, reward hidden 256), as JSON:
//! `cargo bench --bench gpu`, or tools/gpu_check, which records them. `--small` takes sizes for an emulated device.
//! Exits with 3 where there is no GPU.

use std::process::ExitCode;

use lensmith::backend::cuda::Cuda;
use lensmith::backend::cuda::kernels;
use lensmith::backend::cuda::rates::{Load, Rate};
use lensmith::backend::{Backend, Precision};
use lensmith::model::{RewardModel, RewardSize, Vae, VaeSize};
use serde_json::json;

fn rates(precision: Precision, small: bool) -> lensmith::error::Result<(String, Vec<Rate>)> {
    let (dim, load) = match small {
        true => (72, Load { rows: 70, latents: 100, bytes: 4096 }),
        false => (4096, Load { rows: 1 << 18, latents: 1 << 22, bytes: 4 << 30 }),
    };
    let vae = Vae::init(VaeSize::new(dim, 64, 16)?, 1);
    let reward = RewardModel::init(RewardSize::new(dim, 256)?, 2);
    let cuda = Cuda::open(0, precision)?;
    Ok((cuda.info().detail, cuda.rates(&vae, &reward, load)?))
}

fn main() -> ExitCode {
    let small = std::env::args().any(|a| a == "--small");
    let mut all = Vec::new();
    let mut device = String::new();
    for precision in [Precision::F32, Precision::Bf16] {
        match rates(precision, small) {
            Ok((detail, rates)) => {
                device = detail;
                all.extend(rates);
            }
            Err(error) => {
                eprintln!("gpu: {error}");
                return ExitCode::from(3);
            }
        }
    }
    let rates: Vec<_> = all.iter().map(|rate| json!(rate)).collect();
    println!(
        "{}",
        json!({ "device": device, "kernels": format!("{:016x}", kernels::SOURCES), "rates": rates })
    );
    ExitCode::SUCCESS
}
