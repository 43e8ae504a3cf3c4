//! `lensmith demo`: a run on data that the program carries or makes itself.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::args::{Common, positive};
use super::console::Console;
use super::training::save;
use super::{Command, method};
use crate::data::{
    NamedTensor, create_folder, is_there, require_absent, write_atomic, write_pairs, write_tensors,
};
use crate::error::{Error, Result};
use crate::eval::{Simulated, SimulationOptions, simulate};
use crate::matrix::RowSet;
use crate::model::{Linear, RewardModel};

/// Wider simulated embeddings would not fit in the memory of most machines.
const WIDEST: usize = 1 << 16;
/// 2,312 pairs of HH-RLHF; examples/hh-harmless/README.md says where they come from.
const PAIRS: &[u8] = include_bytes!("../../examples/hh-harmless/pairs.safetensors");
/// The arms, in the order of the table.
const ARMS: &str = "none,matched,plain,residual,matched+ensemble";
/// What marks a folder as one that the demo may write again.
const MARK: &str = "demo.json";

/// See the whole method on human preferences: LENS, its baselines and a report, no files needed
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith demo                                      the table, and lensmith-demo/report.html
  lensmith demo --repeats 10 --seeds 400             more splits, more seeds
  lensmith demo --simulated                          made-up data: a gold reward that is known
  lensmith demo --simulated --rank 16 --noise 0 --network 0 --curvature 0
                                                     where Theorem 1 of the paper holds
  lensmith demo --json > demo.json                   every figure

The pairs are 2,312 human preferences of HH-RLHF (harmless, test split; MIT) as embeddings of a small
sentence encoder, MiniLM, 384 dimensions: see examples/hh-harmless. Simulated data is a random
formula. Neither says anything about your embeddings (`lensmith run` does).")]
pub struct Demo {
    /// Simulated data instead of human preferences
    #[arg(long)]
    simulated: bool,
    /// Random splits to repeat everything over
    #[arg(long, default_value_t = 3, value_name = "N")]
    repeats: usize,
    /// Seed pairs [default: 200; simulated 1000]
    #[arg(long, value_name = "N")]
    seeds: Option<usize>,
    /// Folder of the run and its report
    #[arg(long, short, default_value = "lensmith-demo", value_name = "FOLDER")]
    out: PathBuf,
    /// Dimension of simulated embeddings
    #[arg(long, default_value_t = SimulationOptions::default().dim, value_name = "D", requires = "simulated")]
    dim: usize,
    /// Factors that simulated embeddings and gold rewards depend on
    #[arg(long, default_value_t = SimulationOptions::default().rank, value_name = "K", requires = "simulated")]
    rank: usize,
    /// Standard deviation of the noise of simulated embeddings, as a multiple of the signal's
    #[arg(long, default_value_t = SimulationOptions::default().noise, value_name = "X", requires = "simulated")]
    noise: f32,
    /// Weight of the part of the simulated gold reward that is not linear
    #[arg(long, default_value_t = SimulationOptions::default().network, value_name = "X", requires = "simulated")]
    network: f32,
    /// How far simulated embeddings are from linear in their factors
    #[arg(long, default_value_t = SimulationOptions::default().curvature, value_name = "X", requires = "simulated")]
    curvature: f32,
}

impl Demo {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        positive("--repeats", self.repeats)?;
        if !(1..=WIDEST).contains(&self.dim) {
            return Err(Error::argument("--dim", format!("1 to {WIDEST}"), self.dim));
        }
        for (flag, value) in
            [("--noise", self.noise), ("--network", self.network), ("--curvature", self.curvature)]
        {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::argument(flag, "a finite number, 0 or more", value));
            }
        }
        let seeds = self.seeds.unwrap_or(if self.simulated { 1000 } else { 200 });
        if seeds < 2 {
            return Err(Error::argument("--seeds", "2 or more", seeds));
        }
        // A device that cannot be used is said before anything is written.
        let engine = common.engine()?;
        let mark = self.out.join(MARK);
        if !is_there(&mark)? {
            require_absent(&self.out, "the demo writes a folder of its own: choose another --out")?;
        }
        let made = self.simulated.then(|| simulate(&self.simulation(seeds, common.seed))).transpose()?;
        create_folder(&self.out)?;
        let text = json!({ "format": 1, "simulated": self.simulated, "lensmith": env!("CARGO_PKG_VERSION") });
        write_atomic(&mark, format!("{text}\n").as_bytes())?;

        let pairs = self.out.join("pairs.safetensors");
        let (seeds, repeats) = (seeds.to_string(), self.repeats.to_string());
        let mut line: Vec<OsString> = ["lensmith", "run", "--overwrite", "--fold", "8", "--vae-lr", "1e-3"]
            .map(OsString::from)
            .to_vec();
        let mut flags = |flag: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            line.extend([OsString::from(flag), value.as_ref().to_os_string()]);
        };
        flags("--arms", &ARMS);
        flags("--seeds", &seeds);
        flags("--repeats", &repeats);
        flags("--out", &self.out);
        match &made {
            Some(data) => {
                let validation = SimulationOptions::default().validation.min(data.validation.sides[0].rows());
                flags("--validation-pairs", &validation.to_string());
                let (candidates, gold) = write_simulated(data, &self.out, &pairs)?;
                flags("--candidates", &candidates);
                if let Some(gold) = gold {
                    flags("--gold-model", &gold);
                }
            }
            None => write_atomic(&pairs, PAIRS)?,
        }
        line.push(pairs.into());
        let cli = method::parse(&line, &[]).map_err(|e| Error::argument("demo", "options of `run`", e))?;
        match cli.command {
            Command::Run(run) => run.execute_on(|| Ok(engine), common, console),
            _ => unreachable!("the line runs"),
        }
    }

    fn simulation(&self, seeds: usize, seed: u64) -> SimulationOptions {
        let Demo { dim, rank, noise, network, curvature, .. } = *self;
        SimulationOptions {
            dim,
            seeds,
            rank,
            noise,
            network,
            curvature,
            seed,
            ..SimulationOptions::default()
        }
    }
}

/// Writes simulated pairs as one set, candidates, and the gold reward where it is linear; gives the last two files.
fn write_simulated(data: &Simulated, folder: &Path, pairs: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let sets = [&data.seeds, &data.validation, &data.test].map(|set| set.view());
    let side = |i: usize| RowSet::new(sets.iter().flat_map(|set| set[i].parts().to_vec()).collect());
    write_pairs(pairs, [&side(0)?, &side(1)?], None)?;
    let path = folder.join("candidates.safetensors");
    let (rows, dim) = (data.candidates.rows(), data.candidates.cols());
    let per_prompt = SimulationOptions::default().per_prompt;
    let prompts = rows / per_prompt;
    let embeddings: Vec<u8> =
        (0..rows).flat_map(|r| data.candidates.view().row(r).bytes().to_vec()).collect();
    let tensors: [NamedTensor<'_>; 2] = [
        ("candidates".into(), safetensors::Dtype::BF16, vec![prompts, per_prompt, dim], &embeddings),
        ("gold".into(), safetensors::Dtype::F32, vec![prompts, per_prompt], bytemuck::cast_slice(&data.gold)),
    ];
    write_tensors(&path, &tensors, &Default::default())?;
    let Some(direction) = &data.gold_direction else { return Ok((path, None)) };
    let model = RewardModel::new([Linear::new(direction.clone(), vec![0.0], dim, 1)?])?;
    let gold = folder.join("gold.safetensors");
    save(
        &model,
        &gold,
        [("gold", json!("the simulated gold reward, but for what depends on the prompt alone"))],
    )?;
    Ok((path, Some(gold)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::DeviceChoice;
    use crate::cli::console::exit_code;

    #[test]
    fn the_pairs_that_the_program_carries_are_whole() {
        let file = safetensors::SafeTensors::deserialize(PAIRS).expect("a safetensors file");
        for side in ["chosen", "rejected"] {
            let tensor = file.tensor(side).expect("a side");
            assert_eq!((tensor.shape(), tensor.dtype()), (&[2312, 384][..], safetensors::Dtype::F16));
        }
        assert_eq!(file.tensor("group").expect("prompts").shape(), [2312]);
    }

    #[test]
    fn wrong_sizes_are_wrong_usage() {
        let common = Common {
            device: DeviceChoice::Cpu,
            precision: crate::backend::Precision::F32,
            threads: 1,
            seed: 0,
            io: crate::data::Io::Mmap,
            json: false,
            quiet: true,
        };
        let console = Console::new(&common);
        let simulated = |repeats, dim, seeds, noise| Demo {
            simulated: true,
            repeats,
            seeds: Some(seeds),
            out: "never-written".into(),
            dim,
            rank: 16,
            noise,
            network: 0.0,
            curvature: 0.0,
        };
        for (repeats, dim, seeds, noise) in [
            (0, 16, 20, 0.0),
            (1, 0, 20, 0.0),
            (1, WIDEST + 1, 20, 0.0),
            (1, 16, 1, 0.0),
            (1, 16, 20, f32::NAN),
            (1, 16, 20, -1.0),
        ] {
            let error = simulated(repeats, dim, seeds, noise).execute(&common, &console).unwrap_err();
            assert_eq!(exit_code(&error), 2, "{error}");
        }
        assert!(!Path::new("never-written").exists());
    }
}
