//! Single operations in candle, for tools/bench_peers.py: prints rates as JSON. `--only decode|encode|score|version`,
//! `--dim D`, `--rows N`; threads by RAYON_NUM_THREADS.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use serde_json::{Map, Value, json};

/// Seconds that a trial takes at least.
const LONG_ENOUGH: f64 = 0.2;
const HIDDEN: usize = 64;
const LATENT: usize = 16;
const REWARD_HIDDEN: usize = 256;

struct Layer {
    /// `[inputs, outputs]`.
    weight: Tensor,
    bias: Tensor,
}

impl Layer {
    fn random(inputs: usize, outputs: usize, dtype: DType) -> Result<Layer> {
        let scale = 1.0 / (inputs as f32).sqrt();
        // As nn.Linear stores it: outputs by inputs, turned where it is used.
        let weight = Tensor::randn(0f32, scale, (outputs, inputs), &Device::Cpu)?.to_dtype(dtype)?.t()?;
        Ok(Layer { weight, bias: Tensor::randn(0f32, scale, outputs, &Device::Cpu)?.to_dtype(dtype)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight)?.broadcast_add(&self.bias)
    }
}

/// Two layers with a ReLU between them, over all rows in chunks; gives rows a second.
fn rate(layers: &[Layer; 2], rows: &Tensor, batch: usize, dtype: DType, out: DType) -> Result<f64> {
    let count = rows.dim(0)?;
    let all = || -> Result<()> {
        for first in (0..count).step_by(batch) {
            let x = rows.narrow(0, first, batch.min(count - first))?.to_dtype(dtype)?;
            let y = layers[1].forward(&layers[0].forward(&x)?.relu()?)?.to_dtype(out)?;
            std::hint::black_box(y);
        }
        Ok(())
    };
    all()?;
    let start = Instant::now();
    let mut calls = 0;
    while start.elapsed().as_secs_f64() < LONG_ENOUGH {
        all()?;
        calls += 1;
    }
    Ok((calls * count) as f64 / start.elapsed().as_secs_f64())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let number = |name, default| after(name).and_then(|v| v.parse().ok()).unwrap_or(default);
    let (dim, rows) = (number("--dim", 4096), number("--rows", 16384));
    let Some(only) = after("--only") else { return Ok(()) };
    let stored =
        |width: usize, dtype: DType| Tensor::randn(0f32, 1.0, (rows, width), &Device::Cpu)?.to_dtype(dtype);
    let mut rates = Map::new();
    for (dtype, name) in [(DType::F32, "F32"), (DType::BF16, "BF16")] {
        let layer = |inputs, outputs| Layer::random(inputs, outputs, dtype);
        let (layers, input, out) = match only.as_str() {
            "decode" => ([layer(LATENT, HIDDEN)?, layer(HIDDEN, dim)?], stored(LATENT, dtype)?, DType::BF16),
            "encode" => {
                ([layer(dim, HIDDEN)?, layer(HIDDEN, 2 * LATENT)?], stored(dim, DType::BF16)?, DType::F32)
            }
            "score" => (
                [layer(dim, REWARD_HIDDEN)?, layer(REWARD_HIDDEN, 1)?],
                stored(dim, DType::BF16)?,
                DType::F32,
            ),
            _ => break,
        };
        let mut best = 0f64;
        for batch in [256, 1024, 4096] {
            best = best.max(rate(&layers, &input, batch.min(rows), dtype, out)?);
        }
        rates.insert(format!("candle {name}"), json!(best));
    }
    if only == "version" {
        let lock = include_str!("../Cargo.lock");
        let version =
            lock.split("name = \"candle-core\"\nversion = \"").nth(1).and_then(|t| t.split('"').next());
        rates.insert("version".into(), json!(version));
    }
    println!("{}", Value::Object(rates));
    Ok(())
}
