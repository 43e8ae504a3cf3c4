//! From latents or a recipe to embeddings: what a folder or a recipe file stands for, wherever its seeds and VAE are now.

use std::path::{Path, PathBuf};

use super::folder::{Listed, all_shards, read_run};
use super::pipeline::shard_name;
use super::{Moved, OutputKind, Recipe};
use crate::data::{Io, LatentSet, Manifest, PairSet};
use crate::error::{Error, Result};
use crate::model::Vae;

/// A data set that can be made into embeddings.
#[derive(Debug)]
pub struct Source {
    /// Its recipe, with the paths under which its files were found.
    pub recipe: Recipe,
    /// The seed pairs.
    pub seeds: PairSet,
    /// The VAE.
    pub vae: Vae,
    /// The latents of its pairs, where they are stored, and the arithmetic that they were made in.
    pub latents: Option<(LatentSet, String)>,
}

impl Source {
    /// Opens a folder that `synth` made (of latents, a recipe, or embeddings to be made in another type) or a recipe
    /// file. `moved` says where seeds and VAE are, if not where the recipe says.
    ///
    /// # Errors
    /// Files that are missing or not those of the recipe; latents of another recipe, or not of all pairs.
    pub fn open(path: &Path, moved: &Moved, io: Io) -> Result<Source> {
        let file = if path.is_dir() { path.join("recipe.json") } else { path.to_path_buf() };
        let recipe = Recipe::read(&file)?;
        let (seeds, vae) = recipe.open_moved(&file, io, moved)?;
        let latents = if path.is_dir() { latents(path, &recipe, io)? } else { None };
        Ok(Source { recipe: recipe.located(&file, moved)?, seeds, vae, latents })
    }
}

/// The latents in a folder; None if it holds something else.
fn latents(folder: &Path, recipe: &Recipe, io: Io) -> Result<Option<(LatentSet, String)>> {
    let run = read_run(folder)?;
    let Some(Listed { path, manifest, .. }) = run.first() else { return Ok(None) };
    let mut settings = recipe.settings();
    settings["output"] = manifest.settings["output"].clone();
    if let Some((setting, there, here)) = manifest.difference(&settings) {
        let what = format!("setting `{setting}` (of recipe.json)");
        return Err(Error::Mismatch { path: path.clone(), what, expected: there, found: here });
    }
    if manifest.settings["output"]["kind"] != serde_json::json!(OutputKind::Latents) {
        return Ok(None);
    }
    let shards = shards(folder, manifest);
    if let Some(missing) = shards.iter().find(|path| !path.exists()) {
        return Err(Error::Incomplete {
            path: missing.clone(),
            missing: "No such file, which is a shard of the run".into(),
            hint: "bring the shards of all parts together, or run the synth command again: it makes what is missing"
                .into(),
        });
    }
    let names: Vec<String> = shards.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let arithmetic = serde_json::from_value(manifest.settings["output"]["precision"].clone());
    let arithmetic = arithmetic.map_err(|e| Error::Format {
        path: path.clone(),
        format: "manifest",
        detail: format!("setting `output.precision`: {e}"),
    })?;
    Ok(Some((LatentSet::open(&names, io)?, arithmetic)))
}

fn shards(folder: &Path, manifest: &Manifest) -> Vec<PathBuf> {
    (0..all_shards(manifest)).map(|i| folder.join(shard_name(i))).collect()
}
