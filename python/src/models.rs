//! The VAE and the reward model.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use lensmith::{
    Checkpoint, Dtype, Linear, Matrix, PairSource, RewardTraining, RowSet, Rows, RowsBuf, SynthesisOptions,
    VaeLoss, VaeTraining,
};
use pyo3::PyClass;
use pyo3::prelude::*;
use pyo3::pyclass_init::PyClassInitializer;
use pyo3::types::PyByteArray;
use serde_json::json;

use crate::array::{Embeddings, Memory};
use crate::device::{self, DeviceArray};
use crate::engine::Engine;
use crate::error::{json, raise, settings, value};
use crate::pairs::Pairs;
use crate::synthesis::Synthesis;

pub type Metadata = BTreeMap<String, String>;

/// A layer as Python has it: weight `[outputs, inputs]` and bias `[outputs]` as float32 bytes, and both sizes.
type Layer<'py> = (Bound<'py, PyByteArray>, Bound<'py, PyByteArray>, usize, usize);

fn layer<'py>(py: Python<'py>, layer: &Linear) -> Layer<'py> {
    let bytes = |values: &[f32]| PyByteArray::new(py, bytemuck::cast_slice(values));
    (bytes(&layer.weight), bytes(&layer.bias), layer.outputs, layer.inputs)
}

/// A layer of two arrays, weight `[outputs, inputs]` and bias `[1, outputs]`, widened to float32.
fn linear((weight, bias): (Bound<'_, PyAny>, Bound<'_, PyAny>), name: &str) -> PyResult<Linear> {
    let wide = |array: &Bound<'_, PyAny>, what: &str| {
        let memory = Memory::import(array, &format!("{name}.{what}"))?;
        let mut values = vec![0f32; memory.rows() * memory.cols()];
        memory.view().values().widen(&mut values);
        if let Some(found) = values.iter().find(|value| !value.is_finite()) {
            return Err(value(format!("{name}.{what}: expected finite values, found {found}")));
        }
        Ok((values, memory.rows(), memory.cols()))
    };
    let (weight, outputs, inputs) = wide(&weight, "weight")?;
    let (bias, ..) = wide(&bias, "bias")?;
    Linear::new(weight, bias, inputs, outputs).map_err(|error| value(format!("{name}.{error}")))
}

/// What a file says of a model that was trained with these settings, under the names that the program gives.
fn facts(training: String) -> Metadata {
    let version = env!("CARGO_PKG_VERSION").to_string();
    Metadata::from([("lensmith.version".into(), version), ("lensmith.training".into(), training)])
}

/// A number for each row, as float32 bytes.
fn numbers<'py>(py: Python<'py>, values: &[f32]) -> Bound<'py, PyByteArray> {
    PyByteArray::new(py, bytemuck::cast_slice(values))
}

/// An object of Python.
fn given<T: PyClass + Into<PyClassInitializer<T>>>(py: Python<'_>, made: T) -> PyResult<Py<PyAny>> {
    Ok(Py::new(py, made)?.into_any())
}

fn matrix(matrix: &Matrix) -> PyResult<Embeddings> {
    let rows = RowsBuf::from_f32(Dtype::F32, &matrix.values, matrix.cols).map_err(raise)?;
    Ok(Embeddings(Memory::new(rows)))
}

/// A variational auto-encoder of embeddings.
#[pyclass(frozen, module = "lensmith._lensmith")]
pub struct Vae {
    pub model: Arc<lensmith::Vae>,
    pub metadata: Metadata,
}

#[pymethods]
impl Vae {
    /// Trains on pairs. `on_epoch` gets the epoch, from 1, and the losses as JSON. Gives the model and its history as JSON.
    #[staticmethod]
    fn fit(
        py: Python<'_>,
        engine: &Bound<'_, Engine>,
        pairs: &Bound<'_, Pairs>,
        options: &str,
        on_epoch: Option<Py<PyAny>>,
    ) -> PyResult<(Vae, String)> {
        let options: VaeTraining = settings(options)?;
        let (opened, pairs, failed) = (engine.get().get()?, pairs.get(), Mutex::new(None));
        let trained = opened.work(py, &failed, |engine| {
            engine.train_vae(pairs, &options, &mut |epoch, loss| {
                if let Some(on_epoch) = &on_epoch {
                    opened.call(&failed, |py| on_epoch.call1(py, (epoch, json(loss))).map(drop));
                }
            })
        })?;
        let metadata = facts(json(&options));
        let history = json(&trained.history);
        Ok((Vae { model: Arc::new(trained.vae), metadata }, history))
    }

    /// A model of its four layers.
    #[staticmethod]
    fn of_layers(layers: Vec<(Bound<'_, PyAny>, Bound<'_, PyAny>)>, metadata: Metadata) -> PyResult<Vae> {
        let names = ["encoder.0", "encoder.2", "decoder.0", "decoder.2"];
        let layers = layers.into_iter().zip(names).map(|(layer, name)| linear(layer, name));
        let layers: [Linear; 4] = layers
            .collect::<PyResult<Vec<_>>>()?
            .try_into()
            .map_err(|found: Vec<Linear>| value(format!("expected 4 layers, found {}", found.len())))?;
        let [a, b, c, d] = layers;
        let model = lensmith::Vae::new([a, b], [c, d]).map_err(raise)?;
        Ok(Vae { model: Arc::new(model), metadata })
    }

    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Vae> {
        let (model, metadata) = py.detach(|| lensmith::Vae::load(&path)).map_err(raise)?;
        Ok(Vae { model: Arc::new(model), metadata })
    }

    fn save(&self, py: Python<'_>, path: PathBuf, metadata: Metadata) -> PyResult<()> {
        py.detach(|| self.model.save(&path, &metadata)).map_err(raise)
    }

    #[getter]
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    /// Embedding dimension, hidden width, latent dimension.
    #[getter]
    fn size(&self) -> (usize, usize, usize) {
        let size = self.model.size();
        (size.dim, size.hidden, size.latent)
    }

    fn layers<'py>(&self, py: Python<'py>) -> Vec<Layer<'py>> {
        self.model.encoder.iter().chain(&self.model.decoder).map(|l| layer(py, l)).collect()
    }

    /// Whether two models have the same bits.
    fn equals(&self, other: &Bound<'_, Vae>) -> bool {
        *self.model == *other.get().model
    }

    /// Means and logarithms of the variances of the posteriors of `x` [n, d].
    ///
    /// Of an array on the engine's GPU both stay there, as `DeviceArray`.
    fn encode(
        &self,
        py: Python<'_>,
        engine: &Bound<'_, Engine>,
        x: &Bound<'_, PyAny>,
    ) -> PyResult<(Py<PyAny>, Py<PyAny>)> {
        let opened = engine.get().get()?;
        if let Some(x) = device::import(x, opened.gpu(), "x")? {
            let [mu, logvar] = opened.run(py, |engine| engine.encode_array(&self.model, &x))?;
            return Ok((
                given(py, DeviceArray::new(mu, &opened))?,
                given(py, DeviceArray::new(logvar, &opened))?,
            ));
        }
        let x = Memory::import(x, "x")?;
        let host = opened.run(py, |engine| engine.encode(&self.model, &RowSet::from(x.view())))?;
        Ok((given(py, matrix(&host.mu)?)?, given(py, matrix(&host.logvar)?)?))
    }

    /// Embeddings of latents `z` [n, latent]; of an array on the engine's GPU they stay there, as `DeviceArray`.
    fn decode(
        &self,
        py: Python<'_>,
        engine: &Bound<'_, Engine>,
        z: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let opened = engine.get().get()?;
        if let Some(z) = device::import(z, opened.gpu(), "z")? {
            let made = opened.run(py, |engine| engine.decode_array(&self.model, &z, Dtype::F32))?;
            return given(py, DeviceArray::new(made, &opened));
        }
        let z = Memory::import(z, "z")?;
        let mut latents = Matrix::zeros(z.rows(), z.cols());
        z.view().values().widen(&mut latents.values);
        given(py, matrix(&opened.run(py, |engine| engine.decode(&self.model, &latents))?)?)
    }

    /// Figures of its health, and warnings, as JSON.
    fn health(
        &self,
        py: Python<'_>,
        engine: &Bound<'_, Engine>,
        seeds: &Bound<'_, Pairs>,
        held_out: Option<&Bound<'_, Pairs>>,
        synthesis: &str,
        history: &str,
    ) -> PyResult<String> {
        let synthesis: SynthesisOptions = settings(synthesis)?;
        let history: Vec<VaeLoss> = settings(history)?;
        let (seeds, held_out) = (seeds.get(), held_out.map(|pairs| pairs.get() as &dyn PairSource));
        let health = engine
            .get()
            .get()?
            .run(py, |engine| engine.vae_health(&self.model, seeds, held_out, &synthesis, &history))?;
        Ok(json(&health))
    }
}

/// What a reward model is trained on.
#[derive(FromPyObject)]
enum Training<'py> {
    Pairs(Bound<'py, Pairs>),
    Synthetic(Bound<'py, Synthesis>),
}

/// A reward model: one head, or the mean of several.
#[pyclass(frozen, module = "lensmith._lensmith")]
pub struct RewardModel {
    pub model: Arc<lensmith::RewardModel>,
    metadata: Metadata,
}

#[pymethods]
impl RewardModel {
    /// Trains on pairs, or on seed pairs and their synthetic pairs without making these. `on_point` gets each point of the
    /// learning curve as JSON. Gives the model and, as JSON, its history and how training ended.
    #[staticmethod]
    fn fit(
        py: Python<'_>,
        engine: &Bound<'_, Engine>,
        pairs: Training<'_>,
        validation: Option<&Bound<'_, Pairs>>,
        options: &str,
        on_point: Option<Py<PyAny>>,
    ) -> PyResult<(RewardModel, String)> {
        let options: RewardTraining = settings(options)?;
        let (opened, failed) = (engine.get().get()?, Mutex::new(None));
        let held_out = validation.map(|pairs| pairs.get() as &dyn PairSource);
        let mut show = |point: &lensmith::RewardPoint| {
            if let Some(on_point) = &on_point {
                opened.call(&failed, |py| on_point.call1(py, (json(point),)).map(drop));
            }
        };
        let mut metadata = facts(json(&options));
        let trained = match &pairs {
            Training::Pairs(pairs) => {
                let pairs = pairs.get();
                let originals = pairs.originals()?;
                metadata.insert("lensmith.data".into(), json!({ "pairs": pairs.pairs() }).to_string());
                opened.work(py, &failed, |engine| {
                    engine.train_reward(pairs, originals, held_out, &options, &mut show)
                })?
            }
            Training::Synthetic(synthesis) => {
                let synthesis = synthesis.get();
                metadata.insert("lensmith.synthesis".into(), json(&synthesis.options));
                let seeds = synthesis.seeds.get();
                let data = json!({ "pairs": synthesis.pairs, "seeds": seeds.pairs() });
                metadata.insert("lensmith.data".into(), data.to_string());
                opened.work(py, &failed, |engine| {
                    let (made, vae) = (&synthesis.options, &synthesis.vae);
                    engine.train_reward_on_synthetic(made, seeds, vae, held_out, &options, &mut show)
                })?
            }
        };
        let end = json!({
            "history": trained.history, "best_epoch": trained.best_epoch, "best_step": trained.best_step,
            "steps": trained.steps, "capped": trained.capped,
        });
        Ok((RewardModel { model: Arc::new(trained.model), metadata }, end.to_string()))
    }

    /// A model of its one or two layers.
    #[staticmethod]
    fn of_layers(
        layers: Vec<(Bound<'_, PyAny>, Bound<'_, PyAny>)>,
        metadata: Metadata,
    ) -> PyResult<RewardModel> {
        let names: &[&str] = if layers.len() == 1 { &["score"] } else { &["0", "2"] };
        let layers = layers.into_iter().zip(names).map(|(layer, name)| linear(layer, name));
        let model = lensmith::RewardModel::new(layers.collect::<PyResult<Vec<_>>>()?).map_err(raise)?;
        Ok(RewardModel { model: Arc::new(model), metadata })
    }

    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<RewardModel> {
        let (model, metadata) = py.detach(|| lensmith::RewardModel::load(&path)).map_err(raise)?;
        Ok(RewardModel { model: Arc::new(model), metadata })
    }

    fn save(&self, py: Python<'_>, path: PathBuf, metadata: Metadata) -> PyResult<()> {
        py.detach(|| self.model.save(&path, &metadata)).map_err(raise)
    }

    #[getter]
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    /// Embedding dimension, kind of head, hidden width, number of heads.
    #[getter]
    fn size(&self) -> (usize, String, usize, usize) {
        let size = self.model.size();
        (size.dim, size.head.to_string(), size.hidden, size.heads)
    }

    fn layers<'py>(&self, py: Python<'py>) -> Vec<Layer<'py>> {
        self.model.layers.iter().map(|l| layer(py, l)).collect()
    }

    /// Rewards of `x` [n, d], as float32 bytes; of an array on the engine's GPU a `DeviceArray` [n] there.
    fn score(&self, py: Python<'_>, engine: &Bound<'_, Engine>, x: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let opened = engine.get().get()?;
        if let Some(x) = device::import(x, opened.gpu(), "x")? {
            let rewards = opened.run(py, |engine| engine.score_array(&self.model, &x))?;
            return given(py, DeviceArray::flat(rewards, &opened));
        }
        let x = Memory::import(x, "x")?;
        let mut rewards = Vec::with_capacity(x.rows());
        opened.run(py, |engine| {
            if x.rows() == 0 {
                return Ok(());
            }
            engine.score(&self.model, &RowSet::from(x.view()), &mut |block| {
                rewards.extend_from_slice(block);
                Ok(())
            })
        })?;
        Ok(numbers(py, &rewards).into_any().unbind())
    }

    /// Rewards and their standard deviations over the heads, as float32 bytes.
    fn spread<'py>(
        &self,
        py: Python<'py>,
        engine: &Bound<'_, Engine>,
        x: &Bound<'_, PyAny>,
    ) -> PyResult<(Bound<'py, PyByteArray>, Bound<'py, PyByteArray>)> {
        let x = Memory::import(x, "x")?;
        let (mut rewards, mut spread) = (Vec::new(), Vec::new());
        engine.get().get()?.run(py, |engine| {
            if x.rows() == 0 {
                return Ok(());
            }
            engine.score_with_spread(&self.model, &RowSet::from(x.view()), &mut |mean, deviation| {
                rewards.extend_from_slice(mean);
                spread.extend_from_slice(deviation);
                Ok(())
            })
        })?;
        Ok((numbers(py, &rewards), numbers(py, &spread)))
    }

    /// Figures on pairs, as JSON.
    fn evaluate(
        &self,
        py: Python<'_>,
        engine: &Bound<'_, Engine>,
        pairs: &Bound<'_, Pairs>,
    ) -> PyResult<String> {
        let pairs = pairs.get();
        let figures =
            engine.get().get()?.run(py, |engine| engine.evaluate(&self.model, pairs, pairs.prompts()))?;
        Ok(json(&figures))
    }

    /// Best-of-N curve and rank correlation on candidates [prompts * N, d] with gold scores, as JSON.
    fn best_of_n(
        &self,
        py: Python<'_>,
        engine: &Bound<'_, Engine>,
        candidates: &Bound<'_, PyAny>,
        gold: Vec<f32>,
        per_prompt: usize,
    ) -> PyResult<String> {
        let rows = Memory::import(candidates, "candidates")?;
        let (curve, rank) = engine.get().get()?.run(py, |engine| {
            let rows: Rows<'_> = rows.view();
            engine.best_of_n(&self.model, &RowSet::from(rows), &gold, per_prompt)
        })?;
        Ok(json!({ "best_of_n": curve, "rank": rank }).to_string())
    }
}
