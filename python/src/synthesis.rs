//! Synthetic pairs: by number, in batches, or as a folder.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use lensmith::{
    Dtype, Io, Moved, OutputKind, PairBatch, PairIndex, PairOptions, PairSource, PairStream, Part, Progress,
    Recipe, StoredRun, SynthJob, SynthesisOptions,
};
use pyo3::prelude::*;
use self_cell::self_cell;
use serde_json::json;

use crate::array::{Embeddings, Memory, dtype_of, name};
use crate::device::DeviceArray;
use crate::engine::{Engine, Opened};
use crate::error::{json, raise, settings, value};
use crate::models;
use crate::pairs::Pairs;

/// What an index borrows from.
struct Sources {
    opened: Arc<Opened>,
    seeds: Py<Pairs>,
}

self_cell!(
    struct Index {
        owner: Sources,
        #[not_covariant]
        dependent: PairIndex,
    }
);

self_cell!(
    struct Stream {
        owner: Sources,
        #[not_covariant]
        dependent: PairStream,
    }
);

/// What was made once for a process and is used again, and that process.
type Kept<T> = Mutex<Option<(u32, Arc<T>)>>;

/// Synthetic pairs of a plan.
#[pyclass(frozen, module = "lensmith._lensmith")]
pub struct Synthesis {
    engine: Py<Engine>,
    pub seeds: Py<Pairs>,
    pub vae: Arc<lensmith::Vae>,
    pub options: SynthesisOptions,
    dtype: Dtype,
    pub pairs: u64,
    /// Posteriors and candidates of all seeds, made at the first batch out of order, and the process that made them.
    index: Kept<Index>,
    /// The stream whose ranges are made.
    stream: Kept<Stream>,
}

#[pymethods]
impl Synthesis {
    #[new]
    fn new(
        engine: Py<Engine>,
        vae: &Bound<'_, models::Vae>,
        seeds: Py<Pairs>,
        options: &str,
        dtype: &str,
    ) -> PyResult<Synthesis> {
        let options: SynthesisOptions = settings(options)?;
        let vae = vae.get().model.clone();
        let n = seeds.get().pairs();
        let (dim, found) = (vae.size().dim, PairSource::dim(seeds.get()));
        if dim != found {
            return Err(value(format!(
                "seeds: expected embeddings of {dim} values, those of the VAE, found {found}"
            )));
        }
        let pairs = options.plan(n).map_err(raise)?.0.pairs();
        let dtype = dtype_of(dtype)?;
        let (index, stream) = (Mutex::new(None), Mutex::new(None));
        Ok(Synthesis { engine, seeds, vae, options, dtype, pairs, index, stream })
    }

    /// Pairs that there are.
    #[getter]
    fn pairs(&self) -> u64 {
        self.pairs
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        name(self.dtype)
    }

    #[getter]
    fn options(&self) -> String {
        json(&self.options)
    }

    /// Pairs `start` to `stop`, in order.
    fn range(&self, py: Python<'_>, start: u64, stop: u64) -> PyResult<(Embeddings, Embeddings)> {
        if start >= stop || stop > self.pairs {
            let all = self.pairs;
            return Err(value(format!(
                "pairs: expected 0 <= start < stop <= {all}, found {start} and {stop}"
            )));
        }
        let opened = self.engine.get().get()?;
        let stream = self.kept(py, &self.stream, &opened, |sources| {
            Stream::try_new(sources, |Sources { opened, seeds }| {
                opened.engine.stream(&self.options, seeds.get(), &self.vae, 1, self.dtype)
            })
        })?;
        let make = |_: &lensmith::Engine| stream.with_dependent(|_, stream| stream.range(start..stop));
        opened.sized(py, self.bytes(stop - start), make).map(sides)
    }

    /// The pairs with these numbers, in this order.
    #[pyo3(signature = (numbers, pinned = false))]
    fn take(&self, py: Python<'_>, numbers: Vec<u64>, pinned: bool) -> PyResult<(Embeddings, Embeddings)> {
        self.require_numbers(&numbers)?;
        let opened = self.engine.get().get()?;
        let index = self.index(py, &opened)?;
        let make = |_: &lensmith::Engine| {
            index.with_dependent(|_, index| match pinned {
                true => index.take_pinned(&numbers, self.dtype),
                false => index.take(&numbers, self.dtype),
            })
        };
        opened.sized(py, self.bytes(numbers.len() as u64), make).map(sides)
    }

    /// The same pairs in the memory of the engine's GPU, where they stay.
    fn take_on_device(&self, py: Python<'_>, numbers: Vec<u64>) -> PyResult<(DeviceArray, DeviceArray)> {
        self.require_numbers(&numbers)?;
        let opened = self.engine.get().get()?;
        let index = self.index(py, &opened)?;
        let make = |_: &lensmith::Engine| {
            index.with_dependent(|_, index| index.take_on_device(&numbers, self.dtype))
        };
        let [chosen, rejected] = opened.soon(py, make)?;
        Ok((DeviceArray::new(chosen, &opened), DeviceArray::new(rejected, &opened)))
    }

    /// Writes a folder as the program does and gives what was done as JSON. `seeds` and `vae` are the files of its seeds and
    /// its VAE; `relative` names them in the recipe instead, relative to it. `on_progress` gets pairs written and to write.
    #[allow(clippy::too_many_arguments)]
    fn write(
        &self,
        py: Python<'_>,
        files: (Vec<String>, String, String),
        vae: PathBuf,
        relative: Option<(String, PathBuf)>,
        out: PathBuf,
        stored: (String, String),
        shard_rows: Option<u64>,
        part: (u64, u64),
        overwrite: bool,
        on_progress: Option<Py<PyAny>>,
    ) -> PyResult<String> {
        let stored = Stored::new(&stored, part)?;
        let (seeds, chosen, rejected) = files;
        let (opened, failed) = (self.engine.get().get()?, Mutex::new(None));
        let summary = opened.work(py, &failed, |engine| {
            let options = PairOptions { chosen, rejected, ..PairOptions::default() };
            let (recipe, seeds, model) = Recipe::new(&seeds, &options, &vae, &self.options)?;
            let mut recipe = recipe.with_absolute_paths()?;
            if let Some((seeds, vae)) = relative {
                recipe.seeds.sources = vec![seeds];
                recipe.vae.path = vae;
            }
            let job = SynthJob { shard_rows, overwrite, ..stored.job(&recipe, &out) };
            engine.synthesize(&job, &seeds, &model, &mut |progress| {
                told(&opened, &failed, on_progress.as_ref(), progress);
            })
        })?;
        Ok(json(&summary))
    }

    /// Seconds in which the engine's own stream makes all pairs in batches: what iteration from Python is held against.
    fn time_stream(&self, py: Python<'_>, batch: usize) -> PyResult<f64> {
        let (opened, seeds) = (self.engine.get().get()?, self.seeds.get());
        opened.run(py, |engine| {
            let start = Instant::now();
            for batch in engine.stream(&self.options, seeds, &self.vae, batch, self.dtype)? {
                std::hint::black_box(batch?);
            }
            Ok(start.elapsed().as_secs_f64())
        })
    }

    /// How often a reward model orders synthetic pairs as their seeds, as JSON.
    fn order_preservation(&self, py: Python<'_>, model: &Bound<'_, models::RewardModel>) -> PyResult<String> {
        let (seeds, model) = (self.seeds.get(), &model.get().model);
        let found = self
            .engine
            .get()
            .get()?
            .run(py, |engine| engine.order_preservation(&self.options, seeds, &self.vae, model))?;
        Ok(json(&found))
    }
}

/// The seeds, the VAE and the options (as JSON) of a recipe, or of the folder that it lies in, held against its checksums.
#[pyfunction]
pub fn open_recipe(
    py: Python<'_>,
    engine: &Bound<'_, Engine>,
    path: PathBuf,
    allow_outside: bool,
) -> PyResult<(Pairs, models::Vae, String)> {
    let file = if py.detach(|| lensmith::is_folder(&path)).map_err(raise)? {
        path.join("recipe.json")
    } else {
        path
    };
    let (recipe, seeds, vae) = engine.get().get()?.run(py, |_| {
        let recipe = Recipe::read(&file)?;
        let moved = Moved { allow_outside, ..Moved::default() };
        let (seeds, vae) = recipe.open(&file, Io::default(), &moved)?;
        Ok((recipe, seeds, vae))
    })?;
    // Names in a recipe are relative to its folder.
    let folder = file.parent().unwrap_or(Path::new("")).to_path_buf();
    let at = |source: &String| folder.join(source).to_string_lossy().into_owned();
    let paths = recipe.seeds.sources.iter().map(at).collect();
    let (chosen, rejected) = (recipe.seeds.chosen.clone(), recipe.seeds.rejected.clone());
    let pairs = Pairs::of_files(seeds, paths, PairOptions { chosen, rejected, ..PairOptions::default() });
    let vae = models::Vae { model: Arc::new(vae), metadata: models::Metadata::new() };
    Ok((pairs, vae, json(&recipe.options())))
}

/// Writes the pairs of a recipe, or of the folder that it lies in, as [`Synthesis::write`] does; seeds and VAE are held
/// against its checksums.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn write_recipe(
    py: Python<'_>,
    engine: &Bound<'_, Engine>,
    path: PathBuf,
    allow_outside: bool,
    out: PathBuf,
    stored: (String, String),
    shard_rows: Option<u64>,
    part: (u64, u64),
    overwrite: bool,
    on_progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let stored = Stored::new(&stored, part)?;
    let (opened, failed) = (engine.get().get()?, Mutex::new(None));
    let summary = opened.work(py, &failed, |engine| {
        let moved = Moved { allow_outside, ..Moved::default() };
        let StoredRun { recipe, seeds, vae, .. } = StoredRun::open(&path, &moved, Io::default())?;
        let job = SynthJob { shard_rows, overwrite, ..stored.job(&recipe, &out) };
        engine.synthesize(&job, &seeds, &vae, &mut |progress| {
            told(&opened, &failed, on_progress.as_ref(), progress);
        })
    })?;
    Ok(json(&summary))
}

/// Joins the manifests of the parts of a run in a folder, and gives what was joined as JSON.
#[pyfunction]
pub fn merge_manifests(py: Python<'_>, folder: PathBuf) -> PyResult<String> {
    py.detach(|| lensmith::merge_manifests(&folder)).map_err(raise).map(|merged| json(&merged))
}

/// What is written of a recipe.
struct Stored {
    kind: OutputKind,
    dtype: Dtype,
    part: Part,
}

impl Stored {
    fn new((output, dtype): &(String, String), (index, count): (u64, u64)) -> PyResult<Stored> {
        let kind: OutputKind = serde_json::from_value(json!(output)).map_err(|_| {
            value(format!("output: expected \"embeddings\", \"latents\" or \"recipe\", found \"{output}\""))
        })?;
        if index >= count {
            return Err(value(format!(
                "part: expected (index, count) with index below count, found ({index}, {count})"
            )));
        }
        Ok(Stored { kind, dtype: dtype_of(dtype)?, part: Part { index, count } })
    }

    fn job<'a>(&self, recipe: &'a Recipe, out: &'a Path) -> SynthJob<'a> {
        SynthJob { kind: self.kind, dtype: self.dtype, part: self.part, ..SynthJob::new(recipe, out) }
    }
}

/// Tells `listener` how many pairs are written, of how many.
fn told(opened: &Opened, failed: &Mutex<Option<PyErr>>, listener: Option<&Py<PyAny>>, progress: &Progress) {
    if let Some(listener) = listener {
        let (done, total) = (progress.resumed + progress.done, progress.resumed + progress.total);
        opened.call(failed, |py| listener.call1(py, (done, total)).map(drop));
    }
}

fn sides(batch: PairBatch) -> (Embeddings, Embeddings) {
    (Embeddings(Memory::new(batch.chosen)), Embeddings(Memory::new(batch.rejected)))
}

impl Synthesis {
    fn require_numbers(&self, numbers: &[u64]) -> PyResult<()> {
        if numbers.is_empty() {
            return Err(value("pairs: expected one or more numbers, found none"));
        }
        match numbers.iter().find(|number| **number >= self.pairs) {
            None => Ok(()),
            Some(wrong) => {
                Err(value(format!("pairs: expected numbers from 0 to {}, found {wrong}", self.pairs - 1)))
            }
        }
    }

    fn index(&self, py: Python<'_>, opened: &Arc<Opened>) -> PyResult<Arc<Index>> {
        self.kept(py, &self.index, opened, |sources| {
            Index::try_new(sources, |Sources { opened, seeds }| {
                opened.engine.index(&self.options, seeds.get(), &self.vae)
            })
        })
    }

    /// Bytes of so many pairs.
    fn bytes(&self, pairs: u64) -> u64 {
        let row = self.vae.size().dim as u64 * self.dtype.size() as u64;
        pairs.saturating_mul(2 * row)
    }

    /// What `held` keeps for this process, made when it is first asked for.
    fn kept<T: Send>(
        &self,
        py: Python<'_>,
        held: &Kept<T>,
        opened: &Arc<Opened>,
        make: impl FnOnce(Sources) -> lensmith::Result<T> + Send,
    ) -> PyResult<Arc<T>> {
        let process = std::process::id();
        let lock = || held.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        {
            let mut state = lock();
            match &*state {
                Some((made_by, made)) if *made_by == process => return Ok(made.clone()),
                // Its engine's threads are in the parent: nothing here can end them.
                Some(_) => std::mem::forget(state.take()),
                None => {}
            }
        }
        let sources = Sources { opened: opened.clone(), seeds: self.seeds.clone_ref(py) };
        let made = Arc::new(opened.run(py, |_| make(sources))?);
        *lock() = Some((process, made.clone()));
        Ok(made)
    }
}
