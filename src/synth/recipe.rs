//! A recipe: everything that determines a synthetic data set, in a few kilobytes. Any pair of it can be made alone.
//!
//! It names the seed pairs and the VAE by paths and checksums, and holds the options in full, so that defaults of later
//! versions change nothing. Paths and storage of the output do not belong to [`Recipe::settings`]: two recipes of one
//! fingerprint make the same bytes wherever their files are.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::plan::{Pairing, Plan};
use crate::backend::{DecodeMode, LatentSource, Likelihood, Perturbation};
use crate::data::{
    Checkpoint, Io, MOST_RECIPE, Manifest, PairOptions, PairSet, SourceFile, absolute as absolute_path,
    file_fingerprint, is_url, read_small, require_utf8, write_atomic,
};
use crate::error::{Error, Result};
use crate::model::{Vae, VaeSize};

const FORMAT: u32 = 1;

/// The VAE that a recipe decodes with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeSource {
    /// Where it is; relative paths are relative to the recipe's folder.
    pub path: PathBuf,
    /// xxh3-128 of the file, 32 hex digits.
    pub xxh3: String,
    /// Its sizes.
    pub size: VaeSize,
}

/// Where a recipe's seed pairs are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedSource {
    /// Files, folders or patterns as given; relative paths are relative to the recipe's folder.
    pub sources: Vec<String>,
    /// Tensor of the preferred responses.
    pub chosen: String,
    /// Tensor of the others.
    pub rejected: String,
    /// The files found, with sizes and checksums.
    pub files: Vec<SourceFile>,
    /// What their store called their versions, where they are objects. As long as it does, they are not read for their
    /// checksums again: each of a thousand parts would read all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Vec<String>>,
}

/// Where the files of a recipe are now; what is empty or None is where the recipe says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Files, folders or patterns of the seed pairs, in the recipe's order.
    pub seeds: Vec<String>,
    /// The VAE.
    pub vae: Option<PathBuf>,
    /// Whether the recipe may name files anywhere. Without it they lie around the recipe or in the working folder.
    pub allow_outside: bool,
}

/// Everything that determines a synthetic data set but its storage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Version of this format.
    pub format: u32,
    /// The seed pairs.
    pub seeds: SeedSource,
    /// The VAE.
    pub vae: VaeSource,
    /// How candidates are drawn and filtered. Its `top_k` equals the plan's `per_side`.
    pub perturbation: Perturbation,
    /// How latents are decoded.
    pub mode: DecodeMode,
    /// Which pairs are made; holds the run's 64-bit seed.
    pub plan: Plan,
}

/// The options of a synthesis, with the paper's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SynthesisOptions {
    /// Pairs per seed, m.
    #[serde(rename = "fold")]
    pub pairs_per_seed: Option<u64>,
    /// Samples per seed and side, k.
    pub per_side: Option<u32>,
    /// Which samples meet.
    pub pairing: Pairing,
    /// Variance of the perturbation.
    pub sigma2: f64,
    /// Candidates drawn per candidate kept.
    pub oversample: u32,
    /// What ranks candidates.
    pub likelihood: Likelihood,
    /// What they start from.
    pub source: LatentSource,
    /// How latents are decoded.
    pub mode: DecodeMode,
    /// The run's seed.
    pub seed: u64,
}

impl Default for SynthesisOptions {
    fn default() -> SynthesisOptions {
        SynthesisOptions {
            pairs_per_seed: Some(4),
            per_side: None,
            pairing: Pairing::Combine,
            sigma2: 0.01,
            oversample: 4,
            likelihood: Likelihood::Posterior,
            source: LatentSource::Sample,
            mode: DecodeMode::Plain,
            seed: 0,
        }
    }
}

impl SynthesisOptions {
    /// Checks the values and gives the plan and the perturbation for `seeds` seed pairs.
    pub fn plan(&self, seeds: usize) -> Result<(Plan, Perturbation)> {
        check_perturbation(self.sigma2, self.oversample)?;
        let plan = Plan::new(seeds as u64, self.pairs_per_seed, self.per_side, self.pairing, self.seed)?;
        let perturbation = Perturbation {
            sigma2: self.sigma2,
            top_k: plan.per_side,
            oversample: self.oversample,
            likelihood: self.likelihood,
            source: self.source,
        };
        Ok((plan, perturbation))
    }
}

fn check_perturbation(sigma2: f64, oversample: u32) -> Result<()> {
    if !(sigma2.is_finite() && sigma2 >= 0.0) {
        return Err(Error::argument("sigma2", "a finite number, 0 or more", sigma2));
    }
    if !(1..=64).contains(&oversample) {
        return Err(Error::argument("oversample", "1 to 64", oversample));
    }
    Ok(())
}

impl Recipe {
    /// A recipe for seed pairs on disk and a saved VAE. Reads every seed row once: values must be finite, and their
    /// checksums become part of the recipe.
    pub fn new(
        sources: &[String],
        pairs: &PairOptions,
        vae: &Path,
        options: &SynthesisOptions,
    ) -> Result<(Recipe, PairSet, Vae)> {
        let seeds = PairSet::open(sources, pairs)?;
        let (plan, perturbation) = options.plan(seeds.len())?;
        let (model, _) = Vae::load(vae)?;
        require_dim(vae, &model, seeds.dim())?;
        let (files, versions) = (seeds.scan()?.sources, seeds.versions());
        let recipe = Recipe {
            format: FORMAT,
            seeds: SeedSource {
                sources: sources.to_vec(),
                chosen: pairs.chosen.clone(),
                rejected: pairs.rejected.clone(),
                files,
                versions,
            },
            vae: VaeSource { path: vae.to_path_buf(), xxh3: file_fingerprint(vae)?, size: model.size() },
            perturbation,
            mode: options.mode,
            plan,
        };
        Ok((recipe, seeds, model))
    }

    /// The options that this recipe was made with: they give the same plan and perturbation.
    pub fn options(&self) -> SynthesisOptions {
        let Perturbation { sigma2, top_k, oversample, likelihood, source } = self.perturbation;
        SynthesisOptions {
            pairs_per_seed: Some(self.plan.pairs_per_seed),
            per_side: Some(top_k),
            pairing: self.plan.pairing,
            sigma2,
            oversample,
            likelihood,
            source,
            mode: self.mode,
            seed: self.plan.seed,
        }
    }

    /// Opens the seeds and the VAE of a recipe read from `path`. Checksums tell whether they are still those it was made
    /// for, under whatever names.
    ///
    /// # Errors
    /// Files that are missing or others, and, unless `moved` allows them, files that the recipe names and that lie neither
    /// around the recipe (in its folder, or the one that this lies in) nor in the working folder: a recipe from elsewhere
    /// may name any path.
    pub fn open(&self, path: &Path, io: Io, moved: &Moved) -> Result<(PairSet, Vae)> {
        let gone = |what: &str, option: &str| {
            let missing = format!("No such file, which is {what} of {}", path.display());
            let hint = format!("if it has moved, {option} says where it is");
            move |error| match error {
                Error::Io { path, source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                    Error::Incomplete { path, missing, hint, parts: Vec::new() }
                }
                other => other,
            }
        };
        let near = (!moved.allow_outside).then(|| Near::new(path)).transpose()?;
        let near = near.as_ref();
        let (vae_path, vae) =
            self.open_vae(path, moved.vae.as_deref(), near).map_err(gone("the VAE", "`vae`"))?;
        let seeds = self.open_seeds(path, io, &moved.seeds, near).map_err(gone("a seed file", "`seeds`"))?;
        require_dim(&vae_path, &vae, seeds.dim())?;
        Ok((seeds, vae))
    }

    /// Where the VAE of a recipe read from `path` is.
    pub(crate) fn vae_path(&self, path: &Path) -> PathBuf {
        beside(path, &self.vae.path)
    }

    fn open_vae(&self, path: &Path, moved: Option<&Path>, near: Option<&Near>) -> Result<(PathBuf, Vae)> {
        let vae_path = moved.map_or_else(|| self.vae_path(path), Path::to_path_buf);
        if let Some(near) = near.filter(|_| moved.is_none()) {
            near.require(&vae_path)?;
        }
        let (vae, _) = Vae::load(&vae_path)?;
        let found = file_fingerprint(&vae_path)?;
        if found != self.vae.xxh3 {
            return Err(Error::Mismatch {
                path: vae_path,
                what: "checksum of the VAE".into(),
                expected: self.vae.xxh3.clone(),
                found,
            });
        }
        if vae.size() != self.vae.size {
            return Err(Error::Mismatch {
                path: path.to_path_buf(),
                what: "size of the VAE".into(),
                expected: format!("{:?}, as in {}", vae.size(), vae_path.display()),
                found: format!("{:?}", self.vae.size),
            });
        }
        Ok((vae_path, vae))
    }

    fn open_seeds(&self, path: &Path, io: Io, moved: &[String], near: Option<&Near>) -> Result<PairSet> {
        let recorded = || {
            let at = |source: &String| beside(path, Path::new(source)).to_string_lossy().into_owned();
            self.seeds.sources.iter().map(at).collect()
        };
        let sources: Vec<String> = if moved.is_empty() { recorded() } else { moved.to_vec() };
        let options = PairOptions {
            chosen: self.seeds.chosen.clone(),
            rejected: self.seeds.rejected.clone(),
            group: None,
            io,
        };
        if let Some(near) = near.filter(|_| moved.is_empty()) {
            sources.iter().try_for_each(|source| near.require_source(source))?;
        }
        let seeds = PairSet::open(&sources, &options).map_err(|error| match error {
            // The wrong pattern is in the recipe, not in what the user gave.
            Error::InvalidArgument { .. } if moved.is_empty() => {
                Error::Format { path: path.to_path_buf(), format: "recipe", detail: error.to_string() }
            }
            other => other,
        })?;
        // What a pattern or a folder stands for may be links.
        if let Some(near) = near.filter(|_| moved.is_empty()) {
            seeds.files().iter().try_for_each(|file| near.require(&file.path))?;
        }
        let versions = self.seeds.versions.as_ref().filter(|_| moved.is_empty());
        if versions.is_some_and(|versions| seeds.versions().as_ref() == Some(versions)) {
            return Ok(seeds);
        }
        let found = seeds.scan()?.sources;
        // Only the data counts: a file that has moved may have another name, and a header of another length.
        let data = |f: &SourceFile| (f.rows, f.dtype.clone(), f.dim, f.xxh3.clone());
        let differs = found.iter().zip(&self.seeds.files).find(|(a, b)| data(a) != data(b));
        let (found, expected) = match differs {
            Some((found, expected)) => (format!("{found:?}"), format!("{expected:?}")),
            None if found.len() == self.seeds.files.len() => return Ok(seeds),
            None => (format!("{} files", found.len()), format!("{} files", self.seeds.files.len())),
        };
        let what = "the seed pairs".into();
        Err(Error::Mismatch { path: path.to_path_buf(), what, expected, found })
    }

    /// Reads a recipe.
    pub fn read(path: &Path) -> Result<Recipe> {
        let text = read_small(path, "recipe", MOST_RECIPE)?;
        let bad = |detail: String| Error::Format { path: path.to_path_buf(), format: "recipe", detail };
        let recipe: Recipe = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        if recipe.format != FORMAT {
            return Err(bad(format!("expected format {FORMAT}, found {}", recipe.format)));
        }
        let p = &recipe.plan;
        let rows = recipe.seeds.files.iter().try_fold(0u64, |rows, file| rows.checked_add(file.rows));
        if recipe.perturbation.top_k != p.per_side || rows != Some(p.seeds) {
            return Err(bad("its plan does not fit its seeds and perturbation".into()));
        }
        // The same bounds as for options, since the file may have been written by hand.
        let VaeSize { dim, hidden, latent } = recipe.vae.size;
        VaeSize::new(dim, hidden, latent)
            .and_then(|_| Plan::new(p.seeds, Some(p.pairs_per_seed), Some(p.per_side), p.pairing, p.seed))
            .and_then(|_| check_perturbation(recipe.perturbation.sigma2, recipe.perturbation.oversample))
            .map_err(|e| bad(e.to_string()))?;
        let dims = || recipe.seeds.files.iter().map(|file| file.dim);
        if let Some(found) = dims().find(|found| *found != dim as u64) {
            return Err(bad(format!("its VAE is of {dim} dimensions, and a seed file of {found}")));
        }
        Ok(recipe)
    }

    /// Writes the recipe atomically as JSON. Relative paths in it are kept: put them relative to `path` first.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).expect("a recipe is plain data");
        text.push('\n');
        write_atomic(path, text.as_bytes())
    }

    /// The recipe with absolute paths, for writing into another folder.
    pub fn with_absolute_paths(mut self) -> Result<Recipe> {
        let absolute = |p: &Path| {
            let path = absolute_path(p)?;
            require_utf8(&path).map(|()| path)
        };
        self.vae.path = absolute(&self.vae.path)?;
        for source in &mut self.seeds.sources {
            *source = absolute(Path::new(source.as_str()))?.to_string_lossy().into_owned();
        }
        Ok(self)
    }

    /// The recipe read from `path`, with absolute paths and the new places of files that moved.
    pub(super) fn located(mut self, path: &Path, moved: &Moved) -> Result<Recipe> {
        self.vae.path = moved.vae.clone().unwrap_or_else(|| self.vae_path(path));
        if moved.seeds.is_empty() {
            for source in &mut self.seeds.sources {
                *source = beside(path, Path::new(source.as_str())).to_string_lossy().into_owned();
            }
        } else {
            self.seeds.sources = moved.seeds.clone();
        }
        self.with_absolute_paths()
    }

    /// What determines the bytes: the recipe without the paths.
    pub fn settings(&self) -> Value {
        serde_json::json!({
            "seeds": self.seeds.files,
            "chosen_tensor": self.seeds.chosen,
            "rejected_tensor": self.seeds.rejected,
            "vae": { "xxh3": self.vae.xxh3, "size": self.vae.size },
            "perturbation": self.perturbation,
            "mode": self.mode,
            "plan": self.plan,
        })
    }

    /// The first setting in which this is not the recipe of a manifest: its name, the manifest's value, the recipe's.
    pub(crate) fn difference(&self, manifest: &Manifest) -> Option<(String, String, String)> {
        let mut settings = self.settings();
        settings["output"] = manifest.settings["output"].clone();
        manifest.difference(&settings)
    }

    /// xxh3-128 of [`Recipe::settings`], 32 hex digits: equal for equal data sets.
    pub fn fingerprint(&self) -> String {
        Manifest::digest(&self.settings())
    }
}

/// Where a recipe may name files without being asked about: around it, and in the working folder.
struct Near {
    recipe: PathBuf,
    folders: Vec<PathBuf>,
}

impl Near {
    fn new(recipe: &Path) -> Result<Near> {
        let place = canonical(recipe).map_err(Error::io("open", recipe))?;
        let around = place.ancestors().skip(1).take(2).last().map(Path::to_path_buf);
        let folders = around.into_iter().chain(std::env::current_dir().ok()).collect();
        Ok(Near { recipe: recipe.to_path_buf(), folders })
    }

    /// Fails for a path that leads elsewhere, through links too; not for one that leads nowhere.
    fn require(&self, path: &Path) -> Result<()> {
        let Ok(place) = canonical(path) else { return Ok(()) };
        if self.folders.iter().any(|folder| place.starts_with(folder)) {
            return Ok(());
        }
        let expected = format!(
            "to be given, or new places of the seeds and the VAE, since {} names {}, which lies neither around it nor in \
             the working folder",
            self.recipe.display(),
            path.display()
        );
        Err(Error::argument("allow_outside", expected, "neither"))
    }

    /// As [`Near::require`], for a source that may be a pattern: what comes before its first wildcard counts.
    fn require_source(&self, source: &str) -> Result<()> {
        let path = Path::new(source);
        if is_url(path) || path.exists() {
            return self.require(path);
        }
        let fixed: PathBuf = path
            .components()
            .take_while(|part| !part.as_os_str().to_string_lossy().contains(['*', '?', '[']))
            .collect();
        self.require(&fixed)
    }
}

/// The path without links and dots. A URL has none.
fn canonical(path: &Path) -> std::io::Result<PathBuf> {
    if is_url(path) { Ok(path.to_path_buf()) } else { fs::canonicalize(path) }
}

/// A path in a recipe read from `recipe`.
fn beside(recipe: &Path, path: &Path) -> PathBuf {
    match path.is_absolute() || is_url(path) {
        true => path.to_path_buf(),
        false => recipe.parent().unwrap_or(Path::new("")).join(path),
    }
}

fn require_dim(path: &Path, vae: &Vae, dim: usize) -> Result<()> {
    if vae.size().dim != dim {
        let what = format!("{}: embedding dimension of the VAE", path.display());
        return Err(Error::shape(what, format!("{dim}, that of the seed pairs"), vae.size().dim));
    }
    Ok(())
}
