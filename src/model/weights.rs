//! Checkpoints: safetensors files whose tensors are PyTorch state dicts.
//!
//! A VAE holds `encoder.0.weight` `[hidden, d]`, `encoder.2.weight` `[2 latent, hidden]`, `decoder.0.weight`
//! `[hidden, latent]`, `decoder.2.weight` `[d, hidden]` and their biases: the state dict of a module with
//! `encoder = Sequential(Linear, ReLU, Linear)` and `decoder` alike. A reward model holds `0.weight` `[hidden, d]`,
//! `2.weight` `[1, hidden]` and biases: the state dict of `Sequential(Linear, ReLU, Linear)`. Both apply to raw
//! embeddings. Files written by PyTorch, without our metadata, load as well, in F32, F16 or BF16.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype as Stored;
use xxhash_rust::xxh3::xxh3_128;

use super::{Linear, RewardModel, Vae};
use crate::data::{FileBytes, Header, Io, write_tensors};
use crate::dtype::Element;
use crate::error::{Error, Result};

/// Metadata of a checkpoint: free text under stated keys, such as the training settings as JSON.
pub type Provenance = BTreeMap<String, String>;

const KIND: &str = "lensmith.kind";

/// A model that can be saved and loaded.
pub trait Checkpoint: Sized {
    /// The kind, as in error messages and metadata.
    const KIND: &'static str;
    /// The layers with their state-dict prefixes.
    fn layers(&self) -> Vec<(&'static str, &Linear)>;
    /// The prefixes that [`Checkpoint::layers`] gives, in order.
    fn prefixes() -> &'static [&'static str];
    /// The model of layers in that order.
    fn assemble(layers: Vec<Linear>) -> Result<Self>;

    /// Writes the model atomically: temporary name, fsync, rename.
    fn save(&self, path: &Path, provenance: &Provenance) -> Result<()> {
        let mut tensors = Vec::new();
        for (prefix, layer) in self.layers() {
            let (weight, bias) = (bytemuck::cast_slice(&layer.weight), bytemuck::cast_slice(&layer.bias));
            tensors.push((
                format!("{prefix}.weight"),
                Stored::F32,
                vec![layer.outputs, layer.inputs],
                weight,
            ));
            tensors.push((format!("{prefix}.bias"), Stored::F32, vec![layer.outputs], bias));
        }
        let mut metadata = provenance.clone();
        metadata.insert(KIND.into(), Self::KIND.into());
        write_tensors(path, &tensors, &metadata).map(|_| ())
    }

    /// Reads a model and its metadata.
    ///
    /// # Errors
    /// A file that is not safetensors, holds another kind of model, lacks a tensor, or has a parameter of the wrong
    /// size or that is not finite.
    fn load(path: &Path) -> Result<(Self, Provenance)> {
        let file = FileBytes::open(path, Io::Read)?;
        let header = Header::parse(path, file.bytes())?;
        let found = kind_of(&header);
        if found.as_deref().is_some_and(|kind| kind != Self::KIND) {
            return Err(Error::WrongCheckpoint {
                path: path.to_path_buf(),
                expected: Self::KIND,
                found: found.unwrap_or_default(),
            });
        }
        let mut layers = Vec::new();
        for prefix in Self::prefixes() {
            let (shape, weight) = parameter(path, &header, file.bytes(), &format!("{prefix}.weight"))?;
            let (_, bias) = parameter(path, &header, file.bytes(), &format!("{prefix}.bias"))?;
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
        Ok((model, header.metadata))
    }
}

/// Names the file in a size mismatch found while putting a model together; sizes in a file are not the user's
/// options.
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

/// What a file holds: its own word, else what its tensors look like.
fn kind_of(header: &Header) -> Option<String> {
    if let Some(kind) = header.metadata.get(KIND) {
        return Some(kind.clone());
    }
    let has = |name: &str| header.tensors.iter().any(|t| t.name == name);
    let kinds = [
        (Vae::KIND, has("encoder.0.weight") && has("decoder.2.weight")),
        (RewardModel::KIND, has("0.weight") && has("2.weight")),
        ("preference shard", has("chosen") && has("rejected")),
    ];
    kinds.iter().find(|k| k.1).map(|k| k.0.to_string())
}

/// A tensor's shape and values as F32.
fn parameter(path: &Path, header: &Header, bytes: &[u8], name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
    let info = header.tensor(path, name)?;
    let bytes = &bytes[info.range.clone()];
    let values = match info.dtype {
        Stored::F32 => widen::<f32>(bytes),
        Stored::F16 => widen::<f16>(bytes),
        Stored::BF16 => widen::<bf16>(bytes),
        other => {
            return Err(Error::WrongDtype {
                path: path.to_path_buf(),
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
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    Ok(format!("{:032x}", xxh3_128(&bytes)))
}

impl Checkpoint for Vae {
    const KIND: &'static str = "VAE";

    fn layers(&self) -> Vec<(&'static str, &Linear)> {
        Self::prefixes().iter().copied().zip(self.encoder.iter().chain(&self.decoder)).collect()
    }

    fn prefixes() -> &'static [&'static str] {
        &["encoder.0", "encoder.2", "decoder.0", "decoder.2"]
    }

    fn assemble(layers: Vec<Linear>) -> Result<Vae> {
        let [a, b, c, d] = layers.try_into().expect("one layer per prefix");
        Vae::new([a, b], [c, d])
    }
}

impl Checkpoint for RewardModel {
    const KIND: &'static str = "reward model";

    fn layers(&self) -> Vec<(&'static str, &Linear)> {
        Self::prefixes().iter().copied().zip(&self.layers).collect()
    }

    fn prefixes() -> &'static [&'static str] {
        &["0", "2"]
    }

    fn assemble(layers: Vec<Linear>) -> Result<RewardModel> {
        let [a, b] = layers.try_into().expect("one layer per prefix");
        RewardModel::new([a, b])
    }
}
