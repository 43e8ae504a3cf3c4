//! `lensmith import`: files of other tools become shards.
//!
//! Most of it finds out which layout is meant (pairs, plain embeddings, best-of-N sets, rewards to make pairs of)
//! and which file holds each of its columns.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::args::Common;
use super::console::Console;
use super::table::{bytes, count};
use crate::convert::{Annotation, ColumnSource, Format, ImportJob, ImportLayout, import};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Make shards of npy, npz, safetensors, Parquet or Arrow files
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith import train.parquet --chosen chosen_embedding --rejected rejected_embedding --out pairs/
  lensmith import --chosen-file chosen.npy --rejected-file rejected.npy --out pairs/
  lensmith import saved_dataset/train/ --out pairs/           a folder of Hugging Face datasets
  lensmith import embeddings.npy --rewards-file rewards.npy --annotate best-worst --out pairs/
  lensmith import responses.npz --best-of-n --embeddings e --rewards r --out candidates/
  lensmith import all.npy --plain --out embeddings/

--annotate makes pairs of [prompts, responses, d] and rewards [prompts, responses]; `group` is the
prompt. best-worst: highest reward against lowest. random-pair: two drawn by --seed, never twice
the same two, the higher preferred; equal rewards are drawn again. bradley-terry: two drawn
likewise, a preferred to b with probability 1/(1 + exp(r_b - r_a)). all-pairs: every two of
different reward. A prompt whose rewards are all equal gives no pair, except to bradley-terry.

The folder gets manifest.json and shards pairs-00000.safetensors and so on (embeddings-, candidates-).
Interrupted, the same command goes on after the shards that are finished, to the same bytes.")]
pub struct Import {
    /// Files, folders or patterns that hold the columns; joined in the order given
    #[arg(value_name = "DATA")]
    data: Vec<String>,
    /// Output folder
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    /// Format: npy, npz, safetensors, parquet or arrow [default: as the names of the files tell]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Storage type of embeddings: f32, f16, bf16, or keep (F64 becomes F32)
    #[arg(long, default_value = "keep", value_name = "TYPE")]
    dtype: Target,
    /// Rows per shard [default: about 256 MiB]
    #[arg(long, value_name = "N")]
    shard_rows: Option<u64>,
    /// Replace shards that are in the folder
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    columns: Columns,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    layout: Layout,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Columns (tensors, arrays) of DATA")]
struct Columns {
    /// Preferred responses, [n, d]
    #[arg(long, default_value = "chosen", value_name = "NAME")]
    chosen: String,
    /// Other responses, [n, d]
    #[arg(long, default_value = "rejected", value_name = "NAME")]
    rejected: String,
    /// Which pairs belong together, integers [n] [default: `group` if there is one]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["plain", "best_of_n", "annotate"])]
    group: Option<String>,
    /// Embeddings for --plain, --annotate and --best-of-n [default: embeddings; candidates with --best-of-n]
    #[arg(long, value_name = "NAME")]
    embeddings: Option<String>,
    /// Rewards for --annotate and --best-of-n [default: rewards; gold with --best-of-n]
    #[arg(long, value_name = "NAME")]
    rewards: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Columns in files of their own")]
struct Files {
    /// File, folder or pattern with the preferred responses
    #[arg(long, value_name = "FILE", conflicts_with_all = ["plain", "best_of_n", "annotate"])]
    chosen_file: Vec<String>,
    /// File, folder or pattern with the other responses
    #[arg(long, value_name = "FILE", conflicts_with_all = ["plain", "best_of_n", "annotate"])]
    rejected_file: Vec<String>,
    /// File, folder or pattern with the groups
    #[arg(long, value_name = "FILE", conflicts_with_all = ["plain", "best_of_n", "annotate"])]
    group_file: Vec<String>,
    /// File, folder or pattern with the rewards
    #[arg(long, value_name = "FILE")]
    rewards_file: Vec<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Layout [default: pairs]")]
struct Layout {
    /// Plain embeddings [n, d]
    #[arg(long, conflicts_with_all = ["best_of_n", "annotate"])]
    plain: bool,
    /// Sets for best-of-N: embeddings [prompts, responses, d] with rewards [prompts, responses]
    #[arg(long, conflicts_with = "annotate")]
    best_of_n: bool,
    /// Pairs from embeddings with rewards: best-worst, random-pair, bradley-terry or all-pairs
    #[arg(long, value_name = "RULE")]
    annotate: Option<Annotation>,
    /// Most pairs of a prompt [default: 1]
    #[arg(long, requires = "annotate", value_name = "K")]
    pairs_per_prompt: Option<u64>,
}

/// A storage type, or that of the source.
#[derive(Clone, Copy, Debug)]
struct Target(Option<Dtype>);

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Target> {
        if text.eq_ignore_ascii_case("keep") {
            return Ok(Target(None));
        }
        let wrong = |_| Error::argument("--dtype", "f32, f16, bf16 or keep", text);
        text.parse().map(|dtype| Target(Some(dtype))).map_err(wrong)
    }
}

impl Import {
    /// Column `name` of `files`, or of DATA if `files`, which `option` sets, is empty.
    fn source(&self, option: &'static str, files: &[String], name: &str) -> Result<ColumnSource> {
        let files = if files.is_empty() { &self.data } else { files };
        if files.is_empty() {
            return Err(Error::argument(option, "the files that hold the column, here or as DATA", "none"));
        }
        Ok(ColumnSource { files: files.to_vec(), format: self.format, name: name.into() })
    }

    fn layout(&self, seed: u64) -> Result<ImportLayout> {
        let Layout { plain, best_of_n, annotate, pairs_per_prompt } = self.layout;
        let (columns, files) = (&self.columns, &self.files);
        let name = |given: &Option<String>, otherwise: [&str; 2]| {
            given.clone().unwrap_or_else(|| otherwise[usize::from(best_of_n)].to_string())
        };
        let embeddings = || {
            let name = name(&columns.embeddings, ["embeddings", "candidates"]);
            self.source("DATA", &[], &name)
        };
        let rewards = || {
            let name = name(&columns.rewards, ["rewards", "gold"]);
            let source = self.source("--rewards-file", &files.rewards_file, &name)?;
            // Files without column names hold one array each.
            if files.rewards_file.is_empty() && source.files.iter().any(|f| f.ends_with(".npy")) {
                let expected = "the file of the rewards: a .npy file holds one array";
                return Err(Error::argument("--rewards-file", expected, "none"));
            }
            Ok(source)
        };
        if plain {
            return Ok(ImportLayout::Embeddings { embeddings: embeddings()? });
        }
        if best_of_n {
            return Ok(ImportLayout::BestOfN { candidates: embeddings()?, gold: rewards()? });
        }
        if let Some(rule) = annotate {
            let (embeddings, rewards) = (embeddings()?, rewards()?);
            return Ok(ImportLayout::Annotated { embeddings, rewards, rule, pairs_per_prompt, seed });
        }
        for (option, given) in [("--embeddings", &columns.embeddings), ("--rewards", &columns.rewards)] {
            if given.is_some() {
                let expected = "--plain, --best-of-n or --annotate beside it";
                return Err(Error::argument(option, expected, "none of them"));
            }
        }
        let chosen = self.source("--chosen-file", &files.chosen_file, &columns.chosen)?;
        let rejected = self.source("--rejected-file", &files.rejected_file, &columns.rejected)?;
        if chosen.files == rejected.files && chosen.files.iter().any(|f| f.ends_with(".npy")) {
            let expected = "--chosen-file and --rejected-file (a .npy file holds one array), --plain, \
                            --best-of-n or --annotate";
            return Err(Error::argument("DATA", expected, "a .npy file for both sides of the pairs"));
        }
        let name = columns.group.as_deref();
        let group = match (name, files.group_file.is_empty()) {
            (None, true) => None,
            (name, _) => Some(self.source("--group-file", &files.group_file, name.unwrap_or("group"))?),
        };
        Ok(ImportLayout::Pairs { chosen, rejected, group })
    }

    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        let job = ImportJob {
            layout: self.layout(common.seed)?,
            out: self.out.clone(),
            dtype: self.dtype.0,
            shard_rows: self.shard_rows,
            overwrite: self.overwrite,
            io: common.io,
        };
        let bar = console.bar("import", 0, "rows");
        let summary = import(&job, &mut |done, rows| {
            bar.set_length(rows);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        console.result(&summary, || {
            let without = match summary.prompts_without_pair {
                0 => String::new(),
                some => format!("; {} prompts gave no pair", count(some)),
            };
            let what = if summary.kind == "candidates" { "prompts with candidates" } else { summary.kind };
            format!(
                "{}: {} {what} of dimension {}, {}, in {} shards, {}{without}",
                self.out.display(),
                count(summary.rows),
                summary.dim,
                summary.dtype,
                summary.shards,
                bytes(summary.bytes),
            )
        });
        Ok(())
    }
}
