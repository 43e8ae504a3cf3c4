//! `lensmith inspect`: shows a shard, checkpoint, recipe or folder, or one pair of a recipe.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::args::{Common, MovedArgs};
use super::console::Console;
use super::run::report::{RUN, Report};
use super::sweep::results::{SWEEP, SweepReport};
use super::table::{bytes, count, table};
use crate::data::{
    MANIFEST, Manifest, RECIPE, ShardRecord, at_once, expand_folder, file_name, inspect_shard, is_folder,
    is_there, manifests,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::synth::Recipe;

/// What is in a shard, checkpoint, recipe or folder
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith inspect pairs.safetensors
  lensmith inspect synth/                              a folder of synth or import, parts too
  lensmith inspect runs/first/                         what run found
  lensmith inspect synth/recipe.json --pair 123456     make one pair alone and show it
  lensmith inspect synth/ --pair 7 --seeds /new/seeds.safetensors --vae /new/vae.safetensors")]
pub struct Inspect {
    /// A safetensors file, a recipe, manifest or run.json, or a folder
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Pair of a recipe to make and show
    #[arg(long, value_name = "J")]
    pair: Option<u64>,
    #[command(flatten)]
    files: MovedArgs,
}

impl Inspect {
    pub fn execute(&self, common: &Common, console: &Console) -> Result<()> {
        let path = &self.path;
        let name = file_name(path);
        if let Some(j) = self.pair {
            let recipe = if is_folder(path)? { path.join(RECIPE) } else { path.clone() };
            return self.show_pair(&recipe, j, common, console);
        }
        if is_folder(path)? {
            return show_folder(path, console);
        }
        if name.ends_with(".json") {
            return show_json(path, console);
        }
        let (header, record) = inspect_shard(path)?;
        let rows: Vec<Vec<String>> = header
            .tensors
            .iter()
            .map(|t| {
                vec![
                    t.name.clone(),
                    t.dtype.to_string(),
                    format!("{:?}", t.shape),
                    bytes(t.range.len() as u64),
                ]
            })
            .collect();
        let tensors: Vec<Value> = header
            .tensors
            .iter()
            .map(|t| json!({ "name": t.name, "dtype": t.dtype.to_string(), "shape": t.shape }))
            .collect();
        let value =
            json!({ "path": path, "tensors": tensors, "metadata": header.metadata, "record": record });
        console.result(&value, || {
            let mut text = table(&["tensor", "dtype", "shape", "size"], &rows);
            for (key, value) in &header.metadata {
                let short: String = value.chars().take(90).collect();
                let dots = if short.len() < value.len() { " ..." } else { "" };
                text.push_str(&format!("\n{key}: {short}{dots}"));
            }
            text
        });
        Ok(())
    }

    fn show_pair(&self, path: &Path, j: u64, common: &Common, console: &Console) -> Result<()> {
        let recipe = Recipe::read(path)?;
        if j >= recipe.plan.pairs() {
            return Err(Error::argument("--pair", format!("below {}", recipe.plan.pairs()), j));
        }
        let (seeds, vae) = recipe.open(path, common.io, &self.files.moved())?;
        let engine = common.engine()?;
        let made = engine.pair(&recipe.options(), &seeds, &vae, j, Dtype::F32)?;
        let id = recipe.plan.pair(j);
        let values = |side: &crate::matrix::RowsBuf| {
            let mut wide = vec![0f32; side.cols()];
            side.view().row(0).widen(&mut wide);
            wide
        };
        let (chosen, rejected) = (values(&made.chosen), values(&made.rejected));
        let value = json!({
            "pair": j, "seed": id.seed, "chosen_sample": id.chosen, "rejected_sample": id.rejected,
            "chosen": chosen, "rejected": rejected,
        });
        console.result(&value, || {
            let show = |name: &str, rank: u32, values: &[f32]| {
                let what = if rank == 0 { "the original".into() } else { format!("sample {rank}") };
                let head: Vec<String> = values.iter().take(6).map(|v| format!("{v:.5}")).collect();
                let norm = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
                format!("{name:9} {what:12} [{} ...] norm {norm:.4}", head.join(", "))
            };
            format!(
                "pair {j} of seed {}\n{}\n{}",
                id.seed,
                show("chosen", id.chosen, &chosen),
                show("rejected", id.rejected, &rejected)
            )
        });
        Ok(())
    }
}

/// Most shards and parts that are listed.
const SHOWN: usize = 20;

/// Shows what a folder holds: a run of the whole method, the shards of a run or of its parts, a recipe, or shards alone.
fn show_folder(folder: &Path, console: &Console) -> Result<()> {
    for name in [RUN, SWEEP, MANIFEST] {
        let path = folder.join(name);
        if is_there(&path)? {
            return show_json(&path, console);
        }
    }
    let parts = manifests(folder)?;
    if !parts.is_empty() {
        return show_parts(folder, &parts, console);
    }
    let recipe = folder.join(RECIPE);
    if is_there(&recipe)? {
        return show_json(&recipe, console);
    }
    let shards = expand_folder(folder)?;
    let mut values = Vec::new();
    let mut rows = Vec::new();
    let headers = at_once(&shards, |path| inspect_shard(path).map(|(header, _)| header))?;
    for (path, header) in shards.iter().zip(headers) {
        let tensors = header.tensors.iter().map(|t| format!("{} {} {:?}", t.name, t.dtype, t.shape));
        let tensors = tensors.collect::<Vec<_>>().join(", ");
        let size = header.tensors.iter().map(|t| t.range.end).max().unwrap_or(header.payload);
        values.push(json!({ "path": path, "tensors": tensors, "bytes": size }));
        let name = file_name(path);
        rows.push(vec![name, tensors, bytes(size as u64)]);
    }
    let more = rows.len().saturating_sub(SHOWN);
    rows.truncate(SHOWN);
    console.result(&json!({ "path": folder, "shards": values }), || {
        let mut text = table(&["shard", "tensors", "size"], &rows);
        if more > 0 {
            text.push_str(&format!("\nand {} more", count(more as u64)));
        }
        text
    });
    Ok(())
}

/// Shows the parts of a run that are not joined yet.
fn show_parts(folder: &Path, paths: &[PathBuf], console: &Console) -> Result<()> {
    let parts = at_once(paths, |path| Manifest::read(path))?;
    let row = |(path, manifest): (&PathBuf, &Manifest)| {
        let sum = |value: fn(&ShardRecord) -> u64| manifest.shards.iter().map(value).sum::<u64>();
        vec![
            file_name(path),
            state(manifest).into(),
            count(manifest.shards.len() as u64),
            count(sum(|shard| shard.rows)),
            bytes(sum(|shard| shard.bytes)),
        ]
    };
    let rows: Vec<Vec<String>> = paths.iter().zip(&parts).take(SHOWN).map(row).collect();
    let complete = parts.iter().filter(|part| part.complete).count() as u64;
    let more = match parts.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("\nand {} more; {} are complete", count(more as u64), count(complete)),
    };
    console.result(&json!({ "path": folder, "parts": parts }), || {
        let folder = folder.display();
        format!(
            "{folder}: parts of a run of {} pairs\n\n{}{more}\n\nonce all are there: lensmith merge-manifests {folder}\n{}",
            count(parts[0].pairs),
            table(&["manifest", "state", "shards", "pairs", "size"], &rows),
            pretty(&parts[0].settings)
        )
    });
    Ok(())
}

fn state(manifest: &Manifest) -> &'static str {
    if manifest.complete { "complete" } else { "interrupted" }
}

/// Shows a manifest, a recipe or the report of a run.
fn show_json(path: &Path, console: &Console) -> Result<()> {
    let name = file_name(path);
    if name == SWEEP {
        let report = SweepReport::read(path)?;
        console.result(&report, || report.text(path.parent().unwrap_or(path)));
        return Ok(());
    }
    if name == RUN {
        let report = Report::read(path)?;
        console.result(&report, || report.text(path));
    } else if name.starts_with("manifest") {
        let manifest = Manifest::read(path)?;
        console.result(&manifest, || {
            let rows: u64 = manifest.shards.iter().map(|s| s.rows).sum();
            let size: u64 = manifest.shards.iter().map(|s| s.bytes).sum();
            format!(
                "{}: {}, {} of {} pairs in {} shards of {} ({})\n{}",
                path.display(),
                state(&manifest),
                count(rows),
                count(manifest.pairs),
                manifest.shards.len(),
                count(manifest.shard_rows),
                bytes(size),
                pretty(&manifest.settings)
            )
        });
    } else {
        let recipe = Recipe::read(path)?;
        console.result(&recipe, || {
            format!(
                "{}: {} pairs from {} seeds, {}-fold, {} samples per side\n{}",
                path.display(),
                count(recipe.plan.pairs()),
                count(recipe.plan.seeds),
                recipe.plan.pairs_per_seed,
                recipe.plan.per_side,
                pretty(&recipe.settings())
            )
        });
    }
    Ok(())
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("settings are plain data")
}
