//! A cell of a sweep: one arm on one split with one list of settings. A cell is known by what its result depends on, so
//! that points which share it, and later sweeps into the same folder, compute it once.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_128;

use crate::cli::method::Settings;
use crate::cli::run::data::{Data, DataRows};
use crate::cli::training::save;
use crate::data::{Checkpoint, PairSource, create_folder, is_there, read_small, write_atomic};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::eval::{Additions, Arm, ArmResult, Augmentation, Split, VaeHealth};
use crate::model::Vae;
use crate::synth::SynthesisOptions;
use crate::train::VaeTraining;

/// Version of the layout of a cell's file.
const FORMAT: u32 = 1;
/// Most bytes that are read as a cell.
const MOST_BYTES: u64 = 16 << 20;

/// What a VAE is trained on and how.
#[derive(Clone, Debug)]
pub struct VaeTask {
    pub split: usize,
    pub training: VaeTraining,
    pub key: String,
}

/// One arm on one split.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Index of the split in the sweep's list.
    pub split: usize,
    pub arm: Arm,
    /// The settings that the arm depends on, the others as by default.
    pub settings: Settings,
    /// The VAE of arms with latents.
    pub vae: Option<VaeTask>,
    pub key: String,
}

/// A finished cell: its file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CellResult {
    pub format: u32,
    /// What the result depends on.
    pub depends_on: Value,
    pub result: ArmResult,
    /// The health of its VAE, if it has one.
    pub health: Option<VaeHealth>,
    /// xxh3-128 of all the above as JSON.
    pub checksum: String,
}

impl CellResult {
    fn sum(&self) -> String {
        let CellResult { format, depends_on, result, health, .. } = self;
        hash(&json!({ "format": format, "depends_on": depends_on, "result": result, "health": health }))
    }
}

/// A split of the data with the name that its cells know it by.
#[derive(Clone, Debug)]
pub struct SplitOf {
    pub split: Split,
    /// Its part of [`CellResult::depends_on`].
    pub name: Value,
}

impl SplitOf {
    /// Names a split by its rows, and by the prompts of its test pairs.
    pub fn new(split: Split, test_groups: Option<&[i64]>) -> SplitOf {
        let Split { seeds, validation, test } = &split;
        let name = json!({
            "seeds": seeds.len(), "validation": validation.len(), "test": test.len(),
            "rows": hash(&json!([seeds, validation, test])),
            "prompts": test_groups.map(|groups| hash(&json!(groups))),
        });
        SplitOf { split, name }
    }
}

fn hash(value: &Value) -> String {
    format!("{:032x}", xxh3_128(value.to_string().as_bytes()))
}

impl Cell {
    /// The cell of an arm; `settings` are those of the point, `data` names the files.
    pub fn new(arm: Arm, settings: &Settings, split: (usize, &SplitOf), data: &Value) -> (Cell, Value) {
        let augmentation = arm.augmentation;
        let latent = augmentation.latent_mode();
        let mut own = Settings { arms: vec![arm], ..settings.clone() };
        // What the arm does not use is set to one value, so that it changes no key.
        let SynthesisOptions { pairs_per_seed, per_side, pairing, sigma2, seed, .. } = settings.synthesis;
        if latent.is_none() {
            own.vae = VaeTraining::default();
            own.synthesis = match augmentation {
                Augmentation::None => SynthesisOptions { seed, ..SynthesisOptions::default() },
                Augmentation::Matched => {
                    SynthesisOptions { pairs_per_seed, seed, ..SynthesisOptions::default() }
                }
                Augmentation::Direct => SynthesisOptions {
                    pairs_per_seed,
                    per_side,
                    pairing,
                    sigma2,
                    seed,
                    ..SynthesisOptions::default()
                },
                _ => SynthesisOptions {
                    pairs_per_seed,
                    per_side,
                    pairing,
                    seed,
                    ..SynthesisOptions::default()
                },
            };
        }
        if let Some(mode) = latent {
            own.synthesis.mode = mode;
        }
        if augmentation == Augmentation::NoDivergence {
            own.vae.objective.gamma = 0.0;
        }
        if !(arm.noise || arm.across || arm.ensemble) {
            own.additions = Additions::default();
        }
        let (index, split) = split;
        let vae = latent.map(|_| {
            let on = json!({
                "format": FORMAT, "lensmith": env!("CARGO_PKG_VERSION"), "data": data, "split": split.name, "vae": own.vae,
            });
            VaeTask { split: index, training: own.vae, key: hash(&on) }
        });
        let depends_on = json!({
            "format": FORMAT, "lensmith": env!("CARGO_PKG_VERSION"), "data": data, "split": split.name, "arm": arm,
            "settings": own,
        });
        let cell = Cell { split: index, arm, settings: own, vae, key: hash(&depends_on) };
        (cell, depends_on)
    }

    fn path(&self, folder: &Path) -> PathBuf {
        folder.join("cells").join(format!("{}.json", self.key))
    }

    /// The result, if the cell is finished.
    pub fn read(&self, folder: &Path) -> Result<Option<CellResult>> {
        let path = self.path(folder);
        if !is_there(&path)? {
            return Ok(None);
        }
        let bytes = read_small(&path, "cell of a sweep", MOST_BYTES)?;
        let bad = |detail: String| Error::Format { path: path.clone(), format: "cell of a sweep", detail };
        const MEND: &str = "delete it to compute it again";
        let cell: CellResult = serde_json::from_slice(&bytes).map_err(|e| bad(format!("{e}; {MEND}")))?;
        let found = hash(&cell.depends_on);
        if found != self.key {
            return Err(bad(format!("it holds the cell {found}; {MEND}")));
        }
        let sum = cell.sum();
        if sum != cell.checksum {
            return Err(bad(format!("expected the checksum {}, found {sum}; {MEND}", cell.checksum)));
        }
        Ok(Some(cell))
    }

    /// Trains and measures the arm, writes its file and gives what it holds.
    pub fn compute(
        &self,
        folder: &Path,
        engine: &Engine,
        (data, rows): (&Data, &DataRows<'_>),
        split: &SplitOf,
        depends_on: &Value,
    ) -> Result<CellResult> {
        let vae = self.vae.as_ref().map(|task| task.read(folder)).transpose()?;
        let mut experiment = rows.experiment(data, &split.split, &self.settings);
        experiment.vae = vae.as_ref().map(|(vae, _)| vae);
        experiment.vae_without_divergence = experiment.vae;
        let (mut result, _) = engine.experiment(&experiment, self.arm, &mut |_| ())?;
        data.require_unchanged()?;
        // Times depend on what else the machine does; a cell's bytes do not.
        result.seconds = 0.0;
        let held_out = experiment.validation.as_ref().map(|pairs| pairs as &dyn PairSource);
        let health = match &vae {
            Some((vae, history)) => {
                let of = (&self.settings.synthesis, history.as_slice());
                Some(engine.vae_health(vae, &experiment.seeds, held_out, of.0, of.1)?)
            }
            None => None,
        };
        let (depends_on, checksum) = (depends_on.clone(), String::new());
        let mut cell = CellResult { format: FORMAT, depends_on, result, health, checksum };
        cell.checksum = cell.sum();
        let text = serde_json::to_string(&cell).expect("a cell is plain data") + "\n";
        create_folder(&folder.join("cells"))?;
        write_atomic(&self.path(folder), text.as_bytes())?;
        Ok(cell)
    }
}

impl VaeTask {
    fn path(&self, folder: &Path) -> PathBuf {
        folder.join("vaes").join(format!("{}.safetensors", self.key))
    }

    /// Whether the VAE is there.
    pub fn is_done(&self, folder: &Path) -> Result<bool> {
        is_there(&self.path(folder))
    }

    /// Trains the VAE and writes its file.
    pub fn compute(
        &self,
        folder: &Path,
        engine: &Engine,
        (data, rows): (&Data, &DataRows<'_>),
        split: &SplitOf,
    ) -> Result<()> {
        let seeds = rows.seeds(&split.split);
        let trained = engine.train_vae(&seeds, &self.training, &mut |_, _| ())?;
        data.require_unchanged()?;
        create_folder(&folder.join("vaes"))?;
        let facts = [("training", json!(self.training)), ("history", json!(trained.history))];
        save(&trained.vae, &self.path(folder), facts)
    }

    /// The VAE and its learning curve.
    fn read(&self, folder: &Path) -> Result<(Vae, Vec<crate::backend::VaeLoss>)> {
        let path = self.path(folder);
        let broken = |error: Error| Error::Format {
            path: path.clone(),
            format: "VAE of a sweep",
            detail: format!("{error}; delete it to train it again"),
        };
        let (vae, facts) = Vae::load(&path).map_err(broken)?;
        let history = facts.get("lensmith.history").map(|text| serde_json::from_str(text));
        match history {
            Some(Ok(history)) => Ok((vae, history)),
            _ => Err(Error::Format {
                path,
                format: "VAE of a sweep",
                detail: "its metadata lacks the learning curve; delete it to train it again".into(),
            }),
        }
    }
}
