//! Every operation of the CUDA backend once, at the paper's sizes and at two numbers of rows, for programs that count
//! what launches do (tools/model_kernels). Before the launches of an operation a line of JSON goes to a file, which the
//! counters of the launches may go to as well.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use lensmith::backend::cuda::{Cuda, Device};
use lensmith::backend::{
    Adam, Backend, DecodeMode, Divergence, NoiseKey, PairData, PairRows, Perturbation, Precision, Residual,
    RewardData, RewardObjective, RewardSide, Sample, Synthetic, VaeObjective,
};
use lensmith::dtype::Dtype;
use lensmith::error::{Error, Result};
use lensmith::matrix::{RowsBuf, Side};
use lensmith::model::{FoldedReward, RewardModel, RewardSize, Standardizer, Vae, VaeSize};
use lensmith::noise::{NoiseCounter, Purpose, fill_normals};
use serde_json::json;

const DIM: usize = 4096;
const DTYPES: [Dtype; 3] = [Dtype::Bf16, Dtype::F16, Dtype::F32];
/// Pairs of a training step.
const BATCH: usize = 128;

/// Runs everything with `rows` and with twice as many rows; F32, which takes many more instructions, with half of that.
/// `older`: only what older GPUs have kernels of their own for.
///
/// # Errors
/// What the device fails with, and a file that cannot be written.
pub fn run(rows: usize, older: bool, marks: &Path) -> Result<()> {
    let vae = Vae::init(VaeSize::new(DIM, 64, 16)?, 1);
    let reward = RewardModel::init(RewardSize::new(DIM, 256)?, 2);
    let tensor_cores = Device::open(0)?.summary().capability >= (8, 0);
    let precisions = [(Precision::Bf16, rows), (Precision::F32, rows / 2)];
    let precisions = precisions.into_iter().skip(usize::from(!tensor_cores));
    for (precision, rows) in precisions.filter(|(precision, _)| !older || *precision == Precision::Bf16) {
        let both = precision == Precision::Bf16 || !tensor_cores;
        let cuda = Cuda::open(0, precision)?;
        let every = Every { cuda, vae: &vae, reward: &reward, marks, precision, both, older };
        every.mark("start", 0)?;
        for rows in [rows, 2 * rows] {
            every.inference(rows)?;
        }
        if !older {
            every.training()?;
        }
    }
    Ok(())
}

/// Steps of an epoch in one launch.
const STEPS: usize = 3;

/// An epoch of each precision, where the device takes it as one launch; else one launch for each kernel of a step.
///
/// # Errors
/// As [`run`].
pub fn epochs(marks: &Path) -> Result<()> {
    let vae = Vae::init(VaeSize::new(DIM, 64, 16)?, 1);
    let reward = RewardModel::init(RewardSize::new(DIM, 256)?, 2);
    let tensor_cores = Device::open(0)?.summary().capability >= (8, 0);
    for precision in [Precision::Bf16, Precision::F32].into_iter().skip(usize::from(!tensor_cores)) {
        let cuda = Cuda::open(0, precision)?;
        let every = Every { cuda, vae: &vae, reward: &reward, marks, precision, both: false, older: false };
        every.vae("vae_epoch_{p}", STEPS)?;
        every.mark("end", 0)?;
    }
    Ok(())
}

struct Every<'a> {
    cuda: Cuda,
    vae: &'a Vae,
    reward: &'a RewardModel,
    marks: &'a Path,
    precision: Precision,
    /// Whether to run kernels that both precisions share.
    both: bool,
    /// Whether to run only `encode` and `score`.
    older: bool,
}

fn embeddings(dtype: Dtype, rows: usize, stream: u64) -> Result<RowsBuf> {
    let mut values = vec![0f32; rows * DIM];
    let counter =
        NoiseCounter { purpose: Purpose::Simulation, side: Side::Chosen, row: stream, candidate: 5 };
    fill_normals(11, counter, &mut values);
    RowsBuf::from_f32(dtype, &values, DIM)
}

impl Every<'_> {
    /// Names the launches up to the next mark, which go through `items` rows or steps. 0 for launches that only prepare
    /// others.
    fn mark(&self, name: &str, items: usize) -> Result<()> {
        self.cuda.wait()?;
        let name = name.replace("{p}", &self.precision.to_string()).to_lowercase();
        let line = json!({ "operation": name, "items": items });
        let file = OpenOptions::new().create(true).append(true).open(self.marks);
        file.and_then(|mut file| writeln!(file, "{line}")).map_err(Error::io("write", self.marks))
    }

    fn inference(&self, rows: usize) -> Result<()> {
        let b = &self.cuda;
        let (vae, reward) = (b.load_vae(self.vae)?, b.load_reward(self.reward)?);
        let folded = b.load_folded(&FoldedReward::new(self.vae, self.reward)?)?;
        let key = NoiseKey { seed: 1, side: Side::Chosen, first_row: 0 };
        let options = Perturbation { top_k: 3, ..Perturbation::default() };
        let samples: Vec<Sample> = (0..rows as u32).map(|row| Sample { row, candidate: 3 }).collect();
        let mut scores = vec![0f32; rows];
        for dtype in DTYPES {
            let host = embeddings(dtype, rows, 1)?;
            let mut out = RowsBuf::zeros(dtype, rows, DIM);
            self.mark(&format!("encode_{{p}}_{dtype}"), rows)?;
            let resident = b.embeddings(host.view().into())?;
            let posteriors = b.encode(&vae, &resident)?;
            self.mark(&format!("score_{{p}}_{dtype}"), rows)?;
            b.score(&reward, &resident, &mut scores)?;
            if self.older {
                continue;
            }
            self.mark(&format!("start_{{p}}_{dtype}"), 0)?;
            let latents = b.perturb(&posteriors, key, &options, &samples)?;
            self.mark(&format!("decode_{{p}}_{dtype}"), rows)?;
            b.decode(&vae, &latents, None, out.values_mut())?;
            if dtype == Dtype::Bf16 {
                let residual = Residual { embeddings: &resident, posteriors: &posteriors };
                self.mark("decode_{p}_bf16_residual", rows)?;
                b.decode(&vae, &latents, Some(residual), out.values_mut())?;
                self.mark("score_latents_{p}", rows)?;
                b.score_latents(&folded, &latents, None, &mut scores)?;
            }
            if self.precision == Precision::Bf16 {
                self.passes(&vae, &resident, dtype, rows)?;
            }
            if !self.both {
                continue;
            }
            if dtype == Dtype::Bf16 {
                self.mark("select_f32", rows)?;
                b.select(&posteriors, key, &options)?;
                self.mark("perturb_f32", rows)?;
                b.latents(&b.perturb(&posteriors, key, &options, &samples)?)?;
            }
            self.mark("start", 0)?;
            let mut pairs = b.rows(dtype, DIM);
            b.store_rows(&resident, &Synthetic { vae: &vae, latents: &latents, residual: None }, &mut pairs)?;
            let index: Vec<u32> = (0..2 * rows as u32).map(|i| i * 7 % (2 * rows as u32)).collect();
            self.mark(&format!("find_non_finite_{dtype}"), 2 * rows)?;
            b.first_non_finite(&pairs)?;
            self.mark(&format!("pick_rows_{dtype}"), 2 * rows)?;
            b.pick_rows(&pairs, &index, &mut RowsBuf::zeros(dtype, 2 * rows, DIM))?;
        }
        Ok(())
    }

    /// Operations that are one launch in BF16; of seeds in `dtype`, to samples in the same.
    fn passes(
        &self,
        vae: &<Cuda as Backend>::Vae,
        seeds: &<Cuda as Backend>::Embeddings<'_>,
        dtype: Dtype,
        rows: usize,
    ) -> Result<()> {
        let key = NoiseKey { seed: 1, side: Side::Chosen, first_row: 0 };
        let mut pairs = self.cuda.rows(dtype, DIM);
        for (mode, end) in [(DecodeMode::Plain, ""), (DecodeMode::Residual, "_residual")] {
            if mode == DecodeMode::Residual && dtype != Dtype::Bf16 {
                continue;
            }
            self.mark(&format!("synthesize_{{p}}_{dtype}{end}"), rows)?;
            self.cuda.synthesize(vae, seeds, (key, &Perturbation::default(), mode), &mut pairs)?;
        }
        if dtype == Dtype::Bf16 {
            self.mark("reconstruct_{p}", rows)?;
            self.cuda.reconstruct(vae, seeds, &Standardizer::identity(DIM), None)?;
        }
        Ok(())
    }

    /// An epoch of so many steps.
    fn vae(&self, name: &str, steps: usize) -> Result<()> {
        let b = &self.cuda;
        self.mark("start", 0)?;
        let host = [embeddings(Dtype::Bf16, BATCH, 1)?, embeddings(Dtype::Bf16, BATCH, 2)?];
        let [chosen, rejected] = [b.embeddings(host[0].view().into())?, b.embeddings(host[1].view().into())?];
        let standardizer = Standardizer { mean: vec![0.1; DIM], std: vec![1.1; DIM] };
        let objective = VaeObjective {
            batch: BATCH,
            divergence: Divergence::W2,
            adam: Adam::with_lr(1e-4),
            ..VaeObjective::default()
        };
        let mut trainer = b.vae_trainer(self.vae, &standardizer, &objective)?;
        let order: Vec<u32> = (0..(steps * BATCH) as u32).map(|i| i % BATCH as u32).collect();
        self.mark(name, steps)?;
        b.vae_epoch(&mut trainer, &PairData { chosen: &chosen, rejected: &rejected }, &order, 0)?;
        Ok(())
    }

    fn training(&self) -> Result<()> {
        self.vae("vae_step_{p}", 1)?;
        let b = &self.cuda;
        let vae = b.load_vae(self.vae)?;
        let host = [embeddings(Dtype::Bf16, BATCH, 1)?, embeddings(Dtype::Bf16, BATCH, 2)?];
        let [chosen, rejected] = [b.embeddings(host[0].view().into())?, b.embeddings(host[1].view().into())?];
        let standardizer = Standardizer { mean: vec![0.1; DIM], std: vec![1.1; DIM] };
        self.mark("start", 0)?;
        let options = Perturbation { top_k: 3, ..Perturbation::default() };
        let samples: Vec<Sample> = (0..BATCH as u32).map(|row| Sample { row, candidate: 3 }).collect();
        let drawn = |side, embeddings| {
            let key = NoiseKey { seed: 1, side, first_row: 0 };
            b.perturb(&b.encode(&vae, embeddings)?, key, &options, &samples)
        };
        let latents = [drawn(Side::Chosen, &chosen)?, drawn(Side::Rejected, &rejected)?];
        for (name, sampled) in [("reward_step_{p}", false), ("reward_step_{p}_folded", true)] {
            let side = |s: usize| {
                let synthetic = Synthetic { vae: &vae, latents: &latents[s], residual: None };
                let originals = if s == 0 { &chosen } else { &rejected };
                RewardSide { originals, synthetic: sampled.then_some(synthetic) }
            };
            // Every second pair is one of samples, if there are any.
            let row = |i: u32| if sampled && i % 2 == 1 { i + BATCH as u32 } else { i };
            let pairs: Vec<PairRows> = (0..BATCH as u32).map(|i| [row(i), row(i)]).collect();
            self.mark("start", 0)?;
            let objective = RewardObjective { batch: BATCH, ..RewardObjective::default() };
            let mut trainer = b.reward_trainer(self.reward, &standardizer, &objective)?;
            let data = RewardData { chosen: side(0), rejected: side(1) };
            self.mark(name, 1)?;
            b.reward_epoch(&mut trainer, &data, &pairs)?;
        }
        self.mark("end", 0)
    }
}
