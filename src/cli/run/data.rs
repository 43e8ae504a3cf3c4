//! The data of a run: files, opened and checked, and the rows that one split takes of them.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::args::{Common, PairArgs};
use crate::cli::inputs::{open_held_out, require_model_dim};
use crate::cli::method::Settings;
use crate::data::{
    CandidateSet, Checkpoint, PairOptions, PairSet, PairSource, RowBlock, ShardFile, SourceFile,
};
use crate::error::{Error, Result};
use crate::eval::{Candidates, Experiment, Split, SplitOptions, check_arm, split};
use crate::matrix::{RowSet, Side};
use crate::model::{RewardModel, VaeSize};
use crate::train::Shuffle;

/// What the method is run on.
#[derive(Clone, Debug, Args)]
pub struct DataArgs {
    /// Preference pairs: safetensors files, folders or patterns
    #[arg(required = true, value_name = "PAIRS")]
    pub pairs: Vec<String>,
    #[command(flatten)]
    pub tensors: PairArgs,
    /// Tensor that says which pairs belong to one prompt [default: `group`, where there is one]
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Seed pairs to take; the rest is for validation and test [default: all, if --test is given]
    #[arg(long, value_name = "N")]
    seeds: Option<usize>,
    /// Pairs to take for early stopping
    #[arg(
        long,
        value_name = "N",
        default_value_t = SplitOptions::default().validation,
        conflicts_with = "validation"
    )]
    validation_pairs: usize,
    /// Pairs for early stopping, from files of their own
    #[arg(long, value_name = "PAIRS", num_args = 1..)]
    validation: Vec<String>,
    /// Held-out pairs, from files of their own
    #[arg(long, value_name = "PAIRS", num_args = 1..)]
    test: Vec<String>,
    /// Best-of-N sets (`candidates` [prompts, N, d], `gold` [prompts, N])
    #[arg(long, value_name = "SETS", num_args = 1..)]
    pub candidates: Vec<String>,
    /// Reward model that stands for the truth: synthetic pairs are held against its order too
    #[arg(long, value_name = "FILE")]
    pub gold_model: Option<PathBuf>,
}

impl DataArgs {
    /// The pairs as the user gave them.
    pub fn sources(&self) -> Vec<String> {
        self.tensors.partial.sources(&self.pairs)
    }

    /// Opens and checks all sets.
    pub fn open(&self, common: &Common) -> Result<Data> {
        let options = PairOptions { group: self.group.clone(), ..self.tensors.options(common) };
        let given = |sources: &[String]| self.tensors.partial.sources(sources);
        let pairs = PairSet::open(&given(&self.pairs), &options)?;
        let sources = pairs.scan()?.sources;
        let held = PairOptions { group: None, ..options };
        let validation = open_held_out(&given(&self.validation), &held, pairs.dim())?;
        let test = open_held_out(&given(&self.test), &held, pairs.dim())?;
        let candidates = match self.candidates.as_slice() {
            [] => None,
            sets => Some(CandidateSet::open(sets, "candidates", "gold", common.io)?),
        };
        if let Some(set) = candidates.as_ref().filter(|c| c.dim() != pairs.dim()) {
            let what = format!("{}: embedding dimension", self.candidates.join(", "));
            return Err(Error::shape(what, format!("{}, that of the pairs", pairs.dim()), set.dim()));
        }
        if self.seeds.is_none() && test.is_none() {
            return Err(Error::argument(
                "--seeds",
                format!("how many of the {} pairs are seeds, or --test with held-out pairs", pairs.len()),
                "neither",
            ));
        }
        let gold = match &self.gold_model {
            Some(path) => {
                let (model, _) = RewardModel::load(path)?;
                require_model_dim(path, &model, pairs.dim())?;
                Some(model)
            }
            None => None,
        };
        Ok(Data { pairs, validation, test, candidates, gold, sources })
    }

    /// The split of a seed.
    pub fn split(&self, data: &Data, seed: u64) -> Result<Split> {
        data.split(self.seeds, self.validation_pairs, seed)
    }

    /// Fails on the sizes, plans and splits that training would fail on, before anything is written.
    pub fn check(&self, data: &Data, split: &Split, settings: &Settings) -> Result<()> {
        VaeSize::new(data.pairs.dim(), settings.vae.hidden, settings.vae.latent)?;
        let size = (split.seeds.len(), data.pairs.dim());
        let held_out = data.validation.is_some() || !split.validation.is_empty();
        let of = (&settings.synthesis, &settings.reward, &settings.additions);
        settings.arms.iter().try_for_each(|&arm| check_arm(arm, of, size, held_out))
    }
}

/// The sets of a run. Validation and test pairs have sets of their own or are taken from `pairs`.
pub struct Data {
    pub pairs: PairSet,
    pub validation: Option<PairSet>,
    pub test: Option<PairSet>,
    pub candidates: Option<CandidateSet>,
    /// What stands for the true reward.
    pub gold: Option<RewardModel>,
    /// The files of `pairs` with their checksums.
    pub sources: Vec<SourceFile>,
}

impl Data {
    /// Fails if a file was altered since it was opened; called before anything made from the data is saved.
    pub fn require_unchanged(&self) -> Result<()> {
        let sets = [Some(&self.pairs), self.validation.as_ref(), self.test.as_ref()];
        sets.into_iter().flatten().try_for_each(PairSet::require_unchanged)?;
        self.candidates.as_ref().map_or(Ok(()), CandidateSet::require_unchanged)
    }

    /// The files of all sets.
    pub fn paths(&self) -> Vec<&Path> {
        let sets = [Some(&self.pairs), self.validation.as_ref(), self.test.as_ref()];
        let pairs = sets.into_iter().flatten().flat_map(PairSet::paths);
        pairs.chain(self.candidates.iter().flat_map(|set| ShardFile::paths(set.files()))).collect()
    }

    /// Which rows of `pairs` are seeds, validation and test: all are seeds if `seeds` is None.
    pub fn split(&self, seeds: Option<usize>, validation: usize, seed: u64) -> Result<Split> {
        let n = self.pairs.len();
        let Some(seeds) = seeds else {
            return Ok(Split { seeds: (0..n).collect(), validation: Vec::new(), test: Vec::new() });
        };
        let validation = if self.validation.is_some() { 0 } else { validation };
        if self.test.is_some() && seeds.checked_add(validation) == Some(n) {
            // Nothing is left for a test set, which there is already.
            let mut rows: Vec<usize> = (0..n).collect();
            Shuffle::Split.apply(seed, &mut rows);
            let validation = rows.split_off(seeds);
            return Ok(Split { seeds: rows, validation, test: Vec::new() });
        }
        split(n, self.pairs.group().as_deref(), &SplitOptions { seeds, validation, seed })
    }

    /// The prompts of the test pairs of a split, where they are known.
    pub fn test_groups(&self, split: &Split) -> Option<Vec<i64>> {
        match &self.test {
            Some(test) => test.group(),
            None => self.pairs.group().map(|group| split.test.iter().map(|&row| group[row]).collect()),
        }
    }

    /// All rows of all sets.
    pub fn rows(&self) -> Result<DataRows<'_>> {
        let candidates = match &self.candidates {
            Some(set) => Some((set.rows(0..set.gold().len())?, set)),
            None => None,
        };
        Ok(DataRows {
            pairs: both_sides(&self.pairs)?,
            validation: self.validation.as_ref().map(both_sides).transpose()?,
            test: self.test.as_ref().map(both_sides).transpose()?,
            candidates,
        })
    }
}

fn both_sides(pairs: &PairSet) -> Result<[RowBlock<'_>; 2]> {
    Ok([pairs.rows(Side::Chosen, 0..pairs.len())?, pairs.rows(Side::Rejected, 0..pairs.len())?])
}

/// The rows of [`Data`], mapped or read into memory.
pub struct DataRows<'d> {
    pairs: [RowBlock<'d>; 2],
    validation: Option<[RowBlock<'d>; 2]>,
    test: Option<[RowBlock<'d>; 2]>,
    candidates: Option<(RowBlock<'d>, &'d CandidateSet)>,
}

impl DataRows<'_> {
    pub fn seeds(&self, split: &Split) -> [RowSet<'_>; 2] {
        self.pick(&split.seeds)
    }

    pub fn validation(&self, split: &Split) -> Option<[RowSet<'_>; 2]> {
        match &self.validation {
            Some(sides) => Some(sides.each_ref().map(RowBlock::view)),
            None => (!split.validation.is_empty()).then(|| self.pick(&split.validation)),
        }
    }

    pub fn test(&self, split: &Split) -> [RowSet<'_>; 2] {
        match &self.test {
            Some(sides) => sides.each_ref().map(RowBlock::view),
            None => self.pick(&split.test),
        }
    }

    /// The experiment of a split, but for its VAEs.
    pub fn experiment(&self, data: &Data, split: &Split, settings: &Settings) -> Experiment<'_> {
        let mut experiment = Experiment::new(self.seeds(split), settings.synthesis, settings.reward);
        experiment.validation = self.validation(split);
        experiment.test = Some(self.test(split));
        experiment.test_groups = data.test_groups(split);
        experiment.candidates = self.candidates();
        experiment.additions = settings.additions.clone();
        experiment
    }

    pub fn candidates(&self) -> Option<Candidates<'_>> {
        self.candidates.as_ref().map(|(rows, set)| Candidates {
            rows: rows.view(),
            gold: set.gold(),
            per_prompt: set.per_prompt(),
        })
    }

    pub fn pick(&self, rows: &[usize]) -> [RowSet<'_>; 2] {
        self.pairs.each_ref().map(|side| side.view().pick(rows))
    }
}
