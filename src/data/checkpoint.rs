//! Checkpoints: safetensors files whose tensors are PyTorch state dicts.
//!
//! - A VAE is a module of `encoder` and `decoder`, each `Sequential(Linear, ReLU, Linear)`:
//!   `encoder.0.weight` `[hidden, d]`, `encoder.2.weight` `[2 latent, hidden]`, `decoder.0.weight` `[hidden,
//!   latent]`, `decoder.2.weight` `[d, hidden]`, and a bias beside each.
//! - A reward model is one `Sequential(Linear, ReLU, Linear)`: `0.weight` `[hidden, d]`, `2.weight` `[1,
//!   hidden]`, and a bias beside each. Of an ensemble of K, rows k hidden to (k + 1) hidden of `0.weight` and row k of
//!   `2.weight` belong to head k: `[K hidden, d]` and `[K, hidden]`.
//! - A reward model of linear heads is `score.weight` `[K, d]`, as Transformers' models for sequence classification call
//!   it, and `score.bias`, without which it is 0.
//!
//! Both take raw embeddings: the standardisation is folded into the first and last layers. Files that PyTorch
//! wrote, which lack our metadata, load as well, in F32, F16 or BF16.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use xxhash_rust::xxh3::Xxh3;

use crate::data::format::{Header, hex};
use crate::data::map::Io;
use crate::data::place::open_input;
use crate::data::source::Source;
use crate::data::writer::write_tensors;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::model::{Linear, RewardModel, Vae};

/// Metadata of a checkpoint: free text under stated keys, such as the training settings as JSON.
pub type Provenance = BTreeMap<String, String>;

/// The prefix of linear heads, whose bias may be missing.
const LINEAR_HEAD: &str = "score";
/// The metadata key under which a file says what it holds.
const KIND: &str = "lensmith.kind";

/// A model that can be saved and loaded.
pub trait Checkpoint: Sized {
    /// The kind, as in error messages and metadata.
    const KIND: &'static str;
    /// The state-dict prefix of each layer, for each number of layers that such a model may have.
    const LAYOUTS: &'static [&'static [&'static str]];
    /// The layers in the order of a layout, which are as many.
    fn layers(&self) -> Vec<&Linear>;
    /// The model made of layers in that order, one per prefix.
    fn assemble(layers: Vec<Linear>) -> Result<Self>;

    /// Writes the model atomically: temporary name, fsync, rename.
    fn save(&self, path: &Path, provenance: &Provenance) -> Result<()> {
        let mut tensors = Vec::new();
        let layers = self.layers();
        let layout = Self::LAYOUTS.iter().find(|layout| layout.len() == layers.len());
        for (prefix, layer) in layout.expect("a layout for every model").iter().zip(layers) {
            let (weight, bias) = (bytemuck::cast_slice(&layer.weight), bytemuck::cast_slice(&layer.bias));
            tensors.push((format!("{prefix}.weight"), Dtype::F32, vec![layer.outputs, layer.inputs], weight));
            tensors.push((format!("{prefix}.bias"), Dtype::F32, vec![layer.outputs], bias));
        }
        let mut metadata = provenance.clone();
        metadata.insert(KIND.into(), Self::KIND.into());
        write_tensors(path, &tensors, &metadata).map(|_| ())
    }

    /// Reads a model and its metadata.
    ///
    /// # Errors
    /// A file that is not safetensors, holds another kind of model, lacks a tensor, or has a parameter of the
    /// wrong size or that is not finite.
    fn load(path: &Path) -> Result<(Self, Provenance)> {
        let source = Source::open(path, Io::Read)?;
        let header = &source.header;
        let found = kind_of(header);
        if found.as_deref().is_some_and(|kind| kind != Self::KIND) {
            return Err(Error::WrongCheckpoint {
                path: path.to_path_buf(),
                expected: Self::KIND,
                found: found.unwrap_or_default(),
            });
        }
        let mut layers = Vec::new();
        let has = |name: &str| header.tensors.iter().any(|t| t.name == name);
        let there = |layout: &&&[&str]| has(&format!("{}.weight", layout[0]));
        for prefix in *Self::LAYOUTS.iter().find(there).unwrap_or(&Self::LAYOUTS[0]) {
            let (shape, weight) = parameter(&source, &format!("{prefix}.weight"))?;
            let bias = format!("{prefix}.bias");
            let bias = match has(&bias) || *prefix != LINEAR_HEAD {
                true => parameter(&source, &bias)?.1,
                false => vec![0.0; shape.first().copied().unwrap_or(0)],
            };
            let &[outputs, inputs] = shape.as_slice() else {
                let what = format!("{}: rank of `{prefix}.weight`", path.display());
                return Err(Error::shape(what, 2, shape.len()));
            };
            layers.push(
                Linear::new(weight, bias, inputs, outputs)
                    .map_err(|e| in_file(path, &format!("{prefix}."), e))?,
            );
        }
        let model = Self::assemble(layers).map_err(|e| in_file(path, "", e))?;
        Ok((model, source.header.metadata))
    }
}

/// Names the file in an error about sizes. Sizes read from a file are no options of the caller, so an error
/// about an option becomes one about shapes.
fn in_file(path: &Path, layer: &str, error: Error) -> Error {
    match error {
        Error::Shape { what, expected, found } => {
            Error::Shape { what: format!("{}: {layer}{what}", path.display()), expected, found }
        }
        Error::InvalidArgument { field, expected, found } => {
            Error::shape(format!("{}: {}", path.display(), field.trim_start_matches('-')), expected, found)
        }
        other => other,
    }
}

/// Whether a header is that of a model.
pub(super) fn is_checkpoint(header: &Header) -> bool {
    header.metadata.contains_key(KIND)
}

/// What a file holds: as its metadata says, else as the names of its tensors suggest.
fn kind_of(header: &Header) -> Option<String> {
    if let Some(kind) = header.metadata.get(KIND) {
        return Some(kind.clone());
    }
    let has = |name: &str| header.tensors.iter().any(|t| t.name == name);
    let kinds = [
        (Vae::KIND, has("encoder.0.weight") && has("decoder.2.weight")),
        (RewardModel::KIND, has("0.weight") && has("2.weight") || has("score.weight")),
        ("preference shard", has("chosen") && has("rejected")),
    ];
    kinds.iter().find(|k| k.1).map(|k| k.0.to_string())
}

/// A tensor's shape and values as F32.
fn parameter(source: &Source, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
    let path = &source.path;
    let info = source.header.tensor(path, name)?;
    let values = match info.dtype {
        Dtype::F32 => widen::<f32>(&source.bytes(info)?),
        Dtype::F16 => widen::<f16>(&source.bytes(info)?),
        Dtype::BF16 => widen::<bf16>(&source.bytes(info)?),
        other => {
            return Err(Error::WrongDtype {
                path: path.clone(),
                tensor: name.into(),
                expected: "F32, F16 or BF16",
                found: other.to_string(),
            });
        }
    };
    if let Some((at, &value)) = values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        let columns = info.shape.last().copied().unwrap_or(1).max(1);
        return Err(Error::NonFinite {
            path: path.to_path_buf(),
            tensor: name.into(),
            row: (at / columns) as u64,
            column: (at % columns) as u64,
            value,
        });
    }
    Ok((info.shape.clone(), values))
}

fn widen<T: Element>(bytes: &[u8]) -> Vec<f32> {
    let stored: Vec<T> = bytemuck::pod_collect_to_vec(bytes);
    let mut values = vec![0f32; stored.len()];
    T::widen(&stored, &mut values);
    values
}

/// The fingerprint of a checkpoint file: xxh3-128 of its bytes, 32 hex digits.
pub fn file_fingerprint(path: &Path) -> Result<String> {
    const BLOCK_BYTES: usize = 1 << 20;
    let (mut file, _) = open_input(path, "safetensors")?;
    let (mut hash, mut buffer) = (Xxh3::new(), vec![0; BLOCK_BYTES]);
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => return Ok(hex(hash.digest128())),
            count => hash.update(&buffer[..count]),
        }
    }
}

impl Checkpoint for Vae {
    const KIND: &'static str = "VAE";

    const LAYOUTS: &'static [&'static [&'static str]] =
        &[&["encoder.0", "encoder.2", "decoder.0", "decoder.2"]];

    fn layers(&self) -> Vec<&Linear> {
        self.encoder.iter().chain(&self.decoder).collect()
    }

    fn assemble(layers: Vec<Linear>) -> Result<Vae> {
        let [a, b, c, d] = layers.try_into().expect("one layer per prefix");
        Vae::new([a, b], [c, d])
    }
}

impl Checkpoint for RewardModel {
    const KIND: &'static str = "reward model";

    const LAYOUTS: &'static [&'static [&'static str]] = &[&["0", "2"], &[LINEAR_HEAD]];

    fn layers(&self) -> Vec<&Linear> {
        self.layers.iter().collect()
    }

    fn assemble(layers: Vec<Linear>) -> Result<RewardModel> {
        RewardModel::new(layers)
    }
}
