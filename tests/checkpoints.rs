//! Checkpoints: PyTorch's names and shapes, the way there and back, other storage types, foreign files.

use std::fs;
use std::path::Path;

use half::bf16;
use lensmith::data::{Checkpoint, Provenance};
use lensmith::dtype::Element;
use lensmith::model::{RewardModel, RewardSize, Vae, VaeSize};
use lensmith::{Error, Result};
use safetensors::SafeTensors;

fn saved<M: Checkpoint>(model: &M) -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    model.save(&path, &Provenance::from([("note".into(), "kept".into())])).expect("saves");
    let bytes = fs::read(&path).expect("reads");
    (folder, bytes)
}

fn names_and_shapes(bytes: &[u8]) -> Vec<(String, Vec<usize>)> {
    let file = SafeTensors::deserialize(bytes).expect("the safetensors crate reads it");
    let mut found: Vec<_> = file.tensors().iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect();
    found.sort();
    found
}

fn vae() -> Vae {
    Vae::init(VaeSize::new(37, 32, 16).expect("valid"), 3)
}

fn reward() -> RewardModel {
    RewardModel::init(RewardSize::new(37, 48).expect("valid"), 3)
}

#[test]
fn a_vae_is_the_state_dict_of_two_sequentials() {
    let (_folder, bytes) = saved(&vae());
    let want: [(&str, &[usize]); 8] = [
        ("decoder.0.bias", &[32]),
        ("decoder.0.weight", &[32, 16]),
        ("decoder.2.bias", &[37]),
        ("decoder.2.weight", &[37, 32]),
        ("encoder.0.bias", &[32]),
        ("encoder.0.weight", &[32, 37]),
        ("encoder.2.bias", &[32]),
        ("encoder.2.weight", &[32, 32]),
    ];
    let want: Vec<_> = want.iter().map(|(n, s)| (n.to_string(), s.to_vec())).collect();
    assert_eq!(names_and_shapes(&bytes), want);
}

#[test]
fn a_reward_model_is_the_state_dict_of_a_sequential() {
    let (_folder, bytes) = saved(&reward());
    let want: [(&str, &[usize]); 4] =
        [("0.bias", &[48]), ("0.weight", &[48, 37]), ("2.bias", &[1]), ("2.weight", &[1, 48])];
    let want: Vec<_> = want.iter().map(|(n, s)| (n.to_string(), s.to_vec())).collect();
    assert_eq!(names_and_shapes(&bytes), want);
}

#[test]
fn saving_and_loading_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    let provenance = Provenance::from([("note".into(), "kept".into())]);
    vae().save(&path, &provenance).expect("saves");
    let (loaded, metadata) = Vae::load(&path).expect("loads");
    assert_eq!(loaded, vae());
    assert_eq!(metadata.get("note").map(String::as_str), Some("kept"));
    reward().save(&path, &provenance).expect("replaces");
    assert_eq!(RewardModel::load(&path).expect("loads").0, reward());
}

/// Files written by `torch.save` of safetensors, without our metadata, hold the models of the golden values, which
/// the parity tests compare with PyTorch's outputs.
#[test]
fn files_written_by_pytorch_load() {
    for shape in ["d40", "d33"] {
        let golden = Path::new("tests/golden");
        let bytes = fs::read(golden.join(format!("{shape}.safetensors"))).expect("reads");
        let file = SafeTensors::deserialize(&bytes).expect("the golden file is whole");
        let values = |name: String| -> Vec<f32> {
            bytemuck::pod_collect_to_vec(file.tensor(&name).expect("the golden file has it").data())
        };
        let (vae, _) = Vae::load(&golden.join(format!("{shape}_torch_vae.safetensors"))).expect("loads");
        for (prefix, layer) in Vae::LAYOUTS[0].iter().zip(vae.layers()) {
            assert_eq!(layer.weight, values(format!("vae.folded.{prefix}.weight")), "{shape} {prefix}");
            assert_eq!(layer.bias, values(format!("vae.folded.{prefix}.bias")), "{shape} {prefix}");
        }
        let path = golden.join(format!("{shape}_torch_reward.safetensors"));
        let (reward, _) = RewardModel::load(&path).expect("loads");
        for (prefix, layer) in RewardModel::LAYOUTS[0].iter().zip(reward.layers()) {
            assert_eq!(layer.weight, values(format!("reward.folded.{prefix}.weight")), "{shape} {prefix}");
            assert_eq!(layer.bias, values(format!("reward.folded.{prefix}.bias")), "{shape} {prefix}");
        }
    }
}

/// Writes a reward model whose tensors `change` may alter: (name, dtype, shape, bytes).
fn altered(
    change: impl Fn(&mut Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)>),
) -> Result<RewardModel> {
    let (reward, mut tensors) = (reward(), Vec::new());
    for (prefix, layer) in RewardModel::LAYOUTS[0].iter().zip(reward.layers()) {
        let shape = vec![layer.outputs, layer.inputs];
        let weight = bytemuck::cast_slice(&layer.weight).to_vec();
        tensors.push((format!("{prefix}.weight"), safetensors::Dtype::F32, shape, weight));
        let bias = bytemuck::cast_slice(&layer.bias).to_vec();
        tensors.push((format!("{prefix}.bias"), safetensors::Dtype::F32, vec![layer.outputs], bias));
    }
    change(&mut tensors);
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes);
            (name.clone(), view.expect("the shape fits the bytes"))
        })
        .collect();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    fs::write(&path, safetensors::serialize(views, None).expect("serialises")).expect("writes");
    RewardModel::load(&path).map(|(model, _)| model)
}

#[test]
fn half_precision_state_dicts_load() {
    let loaded = altered(|tensors| {
        for (_, dtype, _, bytes) in tensors {
            let wide: Vec<f32> = bytemuck::pod_collect_to_vec(bytes);
            let mut narrow = vec![bf16::ZERO; wide.len()];
            bf16::narrow(&wide, &mut narrow);
            *dtype = safetensors::Dtype::BF16;
            *bytes = bytemuck::cast_slice(&narrow).to_vec();
        }
    })
    .expect("loads");
    let rounded = |v: &f32| bf16::from_f32(*v).to_f32();
    assert_eq!(loaded.layers[0].weight, reward().layers[0].weight.iter().map(rounded).collect::<Vec<_>>());
}

#[test]
fn foreign_and_broken_files_are_told_apart() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    vae().save(&path, &Provenance::new()).expect("saves");
    let wrong = RewardModel::load(&path).expect_err("a VAE is no reward model");
    assert!(
        matches!(&wrong, Error::WrongCheckpoint { expected: "reward model", found, .. } if found == "VAE")
    );
    reward().save(&path, &Provenance::new()).expect("saves");
    assert!(matches!(Vae::load(&path), Err(Error::WrongCheckpoint { expected: "VAE", .. })));

    let missing = altered(|t| t.retain(|(name, ..)| name != "2.bias"));
    assert!(matches!(missing, Err(Error::MissingTensor { tensor, .. }) if tensor == "2.bias"));
    let infinite = altered(|t| t[0].3[4 * 37..4 * 38].copy_from_slice(&f32::INFINITY.to_le_bytes()));
    assert!(matches!(infinite, Err(Error::NonFinite { row: 1, column: 0, .. })), "{infinite:?}");
    let integers = altered(|t| t[1].1 = safetensors::Dtype::I32);
    assert!(matches!(integers, Err(Error::WrongDtype { tensor, .. }) if tensor == "0.bias"));
    let flat = altered(|t| t[0].2 = vec![48 * 37]);
    assert!(matches!(flat, Err(Error::Shape { .. })), "{flat:?}");
    let turned = altered(|t| t[0].2 = vec![37, 48]);
    assert!(matches!(turned, Err(Error::Shape { .. })), "{turned:?}");
}
