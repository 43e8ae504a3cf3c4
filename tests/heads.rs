//! Reward models of several heads and of linear ones: what they score, how they are saved, and that training gives each
//! head what it would learn alone.

mod common;

use std::path::Path;

use lensmith::backend::cpu::Cpu;
use lensmith::backend::reference::Reference;
use lensmith::backend::{Adam, Backend, PairRows, Precision, RewardData, RewardObjective, RewardSide};
use lensmith::data::{Checkpoint, Provenance};
use lensmith::dtype::Dtype;
use lensmith::matrix::RowsBuf;
use lensmith::model::{Head, RewardModel, RewardSize, Standardizer};
use lensmith::train::{RewardTraining, Updates, Validation, train_reward};

use common::{data_buf, standardizer};

const DIM: usize = 37;

fn model(head: Head, hidden: usize, heads: usize) -> RewardModel {
    RewardModel::init(RewardSize::of_heads(DIM, head, hidden, heads).expect("sizes"), 5)
}

fn scores<B: Backend>(b: &B, model: &RewardModel, rows: &RowsBuf) -> Vec<f32> {
    let mut out = vec![0f32; rows.rows()];
    let model = b.load_reward(model).expect("loads");
    b.score(&model, &b.embeddings(rows.view().into()).expect("rows"), &mut out).expect("scores");
    out
}

#[test]
fn an_ensemble_scores_the_mean_of_its_heads() {
    let rows = data_buf(Dtype::F32, 1, 50, DIM);
    let cpu = Cpu::new(2, Precision::F32).expect("the CPU");
    for (head, hidden, heads) in [(Head::Mlp, 64, 5), (Head::Linear, 0, 1), (Head::Linear, 0, 7)] {
        let model = model(head, hidden, heads);
        let each: Vec<Vec<f32>> =
            (0..heads).map(|k| scores(&Reference::new(), &model.head(k), &rows)).collect();
        for got in [scores(&cpu, &model, &rows), scores(&Reference::new(), &model, &rows)] {
            for (i, got) in got.iter().enumerate() {
                let want = each.iter().map(|head| f64::from(head[i])).sum::<f64>() / heads as f64;
                assert!((f64::from(*got) - want).abs() < 2e-6, "{head:?} {heads}, row {i}: {got} for {want}");
            }
        }
    }
    // A linear head is w e + b.
    let linear = model(Head::Linear, 0, 1);
    let mut row = vec![0f32; DIM];
    rows.view().row(3).widen(&mut row);
    let dot = |w: &[f32]| w.iter().zip(&row).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
    let want = dot(&linear.layers[0].weight) + f64::from(linear.layers[0].bias[0]);
    assert!((f64::from(scores(&cpu, &linear, &rows)[3]) - want).abs() < 1e-6);
}

#[test]
fn the_spread_is_that_of_the_heads() {
    let rows = data_buf(Dtype::F32, 1, 50, DIM);
    let engine =
        lensmith::Engine::builder().device(lensmith::DeviceChoice::Cpu).threads(1).build().expect("a CPU");
    for (head, hidden, heads) in [(Head::Mlp, 64, 5), (Head::Linear, 0, 3), (Head::Mlp, 32, 1)] {
        let model = model(head, hidden, heads);
        let (mut rewards, mut spreads, mut alone) = (Vec::new(), Vec::new(), Vec::new());
        let set: lensmith::matrix::RowSet<'_> = rows.view().into();
        let both = &mut |r: &[f32], s: &[f32]| {
            rewards.extend_from_slice(r);
            spreads.extend_from_slice(s);
            Ok(())
        };
        engine.score_with_spread(&model, &set, both).expect("scores");
        engine
            .score(&model, &set, &mut |r| {
                alone.extend_from_slice(r);
                Ok(())
            })
            .expect("scores");
        assert_eq!(rewards, alone);
        let each: Vec<Vec<f32>> =
            (0..heads).map(|k| scores(&Reference::new(), &model.head(k), &rows)).collect();
        for (i, got) in spreads.iter().enumerate() {
            let mean = each.iter().map(|head| f64::from(head[i])).sum::<f64>() / heads as f64;
            let square =
                each.iter().map(|head| (f64::from(head[i]) - mean).powi(2)).sum::<f64>() / heads as f64;
            assert!((f64::from(*got) - square.sqrt()).abs() < 2e-6, "{head:?} {heads}, row {i}: {got}");
        }
        assert!(spreads.len() == 50 && (heads == 1) == spreads.iter().all(|s| *s == 0.0));
    }
}

#[test]
fn heads_are_saved_by_the_names_of_state_dicts() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.safetensors");
    for (head, hidden, heads, names) in [
        (Head::Mlp, 32, 3, &["0.bias", "0.weight", "2.bias", "2.weight"][..]),
        (Head::Linear, 0, 1, &["score.bias", "score.weight"]),
        (Head::Linear, 0, 4, &["score.bias", "score.weight"]),
    ] {
        let model = model(head, hidden, heads);
        model.save(&path, &Provenance::new()).expect("saves");
        let bytes = std::fs::read(&path).expect("a file");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("tensors");
        let mut found = file.names();
        found.sort();
        assert_eq!(found, names);
        let first =
            file.tensor(if head == Head::Mlp { "0.weight" } else { "score.weight" }).expect("a weight");
        assert_eq!(first.shape(), [model.size().units(), DIM]);
        assert!(RewardModel::load(&path).expect("loads").0 == model);
    }
    // As Transformers writes it: without a bias.
    let weight = vec![0.5f32; DIM];
    let tensor = safetensors::tensor::TensorView::new(
        safetensors::Dtype::F32,
        vec![1, DIM],
        bytemuck::cast_slice(&weight),
    );
    write(&path, &[("score.weight", tensor.expect("a tensor"))]);
    let (loaded, _) = RewardModel::load(&path).expect("loads");
    assert_eq!((loaded.size().head, loaded.layers[0].bias.as_slice()), (Head::Linear, &[0.0][..]));
}

fn write(path: &Path, tensors: &[(&str, safetensors::tensor::TensorView<'_>)]) {
    let bytes = safetensors::serialize(tensors.iter().map(|(n, t)| (*n, t)), None).expect("serialises");
    std::fs::write(path, bytes).expect("writes");
}

#[test]
fn sizes_that_no_heads_can_have_are_refused() {
    for (head, hidden, heads, field) in [
        (Head::Mlp, 48, 2, "reward.hidden"),
        (Head::Mlp, 64, 0, "reward.ensemble"),
        (Head::Linear, 0, 0, "reward.ensemble"),
        (Head::Linear, 0, usize::MAX, "reward.ensemble"),
        (Head::Mlp, 20, 1, "reward.hidden"),
    ] {
        let error = RewardSize::of_heads(DIM, head, hidden, heads).expect_err("refused").to_string();
        assert!(error.starts_with(field), "{error}");
    }
}

fn sides(rows: usize) -> [RowsBuf; 2] {
    [11, 12].map(|seed| data_buf(Dtype::F32, seed, rows, DIM))
}

/// Parameters after two passes over all pairs.
fn trained<B: Backend>(b: &B, model: &RewardModel, objective: &RewardObjective) -> (f64, RewardModel) {
    let rows = sides(90);
    let mut trainer = b.reward_trainer(model, &standardizer(DIM), objective).expect("starts");
    let [chosen, rejected] = rows.each_ref().map(|side| b.embeddings(side.view().into()).expect("rows"));
    let data = RewardData {
        chosen: RewardSide { originals: &chosen, synthetic: None },
        rejected: RewardSide { originals: &rejected, synthetic: None },
    };
    let pairs: Vec<PairRows> = (0..90).map(|i| [i, i]).collect();
    b.reward_epoch(&mut trainer, &data, &pairs).expect("trains");
    let loss = b.reward_epoch(&mut trainer, &data, &pairs).expect("trains");
    (loss, b.reward_parameters(&trainer).expect("parameters"))
}

fn values(model: &RewardModel) -> Vec<f32> {
    model.layers.iter().flat_map(|l| l.weight.iter().chain(&l.bias)).copied().collect()
}

#[test]
fn each_head_learns_what_it_would_learn_alone() {
    let adam = Adam { weight_decay: 0.1, ..Adam::with_lr(1e-3) };
    let objective =
        RewardObjective { batch: 16, adam, input_noise: 0.3, seed: 4, ..RewardObjective::default() };
    let cpu = Cpu::new(2, Precision::F32).expect("the CPU");
    for (head, hidden) in [(Head::Mlp, 64), (Head::Linear, 0)] {
        let ensemble = model(head, hidden, 3);
        let (loss, together) = trained(&cpu, &ensemble, &objective);
        let mut losses = 0.0;
        for k in 0..3 {
            let (loss, alone) = trained(&cpu, &ensemble.head(k), &objective);
            assert!(values(&alone) != values(&ensemble.head(k)), "training moves the parameters");
            assert!(alone == together.head(k), "{head:?} {k} differs from training alone");
            losses += loss / 3.0;
        }
        assert!((loss - losses).abs() < 1e-12, "{loss} is not the mean {losses}");
    }
}

#[test]
fn decay_and_noise_are_those_of_the_reference() {
    let cpu = Cpu::new(1, Precision::F32).expect("the CPU");
    for (head, hidden, heads, input_noise, weight_decay) in [
        (Head::Mlp, 32, 1, 0.0, 0.5),
        (Head::Mlp, 32, 2, 0.7, 0.0),
        (Head::Linear, 0, 3, 0.7, 0.5),
        (Head::Linear, 0, 1, 0.0, 0.0),
    ] {
        let adam = Adam { weight_decay, ..Adam::with_lr(1e-3) };
        let objective =
            RewardObjective { batch: 16, adam, input_noise, seed: 4, ..RewardObjective::default() };
        let start = model(head, hidden, heads);
        let (loss, got) = trained(&cpu, &start, &objective);
        let (want_loss, want) = trained(&Reference::new(), &start, &objective);
        assert!((loss - want_loss).abs() < 1e-5, "{loss} for {want_loss}");
        // Adam turns the rounding of a gradient near 0 into a part of its step of 1e-3.
        let far = values(&got).iter().zip(values(&want)).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(far < 2e-4, "{head:?} {heads}, noise {input_noise}, decay {weight_decay}: {far}");
    }
    // Without a gradient, decay alone: every parameter is 0.95 of what it was.
    let adam = Adam { weight_decay: 50.0, ..Adam::with_lr(1e-3) };
    assert!((adam.decay() - 0.95).abs() < 1e-7);
}

#[test]
fn validation_by_steps_changes_no_step() {
    let cpu = Cpu::new(2, Precision::F32).expect("the CPU");
    let rows = sides(90);
    let [chosen, rejected] = rows.each_ref().map(|side| cpu.embeddings(side.view().into()).expect("rows"));
    let data = RewardData {
        chosen: RewardSide { originals: &chosen, synthetic: None },
        rejected: RewardSide { originals: &rejected, synthetic: None },
    };
    let standardizer = Standardizer::fit(&[&rows[0].view().into(), &rows[1].view().into()]);
    let train = |validate_every: Option<usize>, updates: Updates, patience: Option<usize>| {
        let options = RewardTraining {
            hidden: 32,
            ensemble: 2,
            updates,
            patience,
            validate_every,
            across_prompts: 0.25,
            objective: RewardObjective { batch: 16, input_noise: 0.2, ..RewardObjective::default() },
            ..RewardTraining::default()
        };
        let pairs = (0..90).map(|i| [i, i]).collect();
        let held = Validation { chosen: &chosen, rejected: &rejected, pairs: 90 };
        train_reward(&cpu, &data, pairs, &standardizer, Some(held), &options, &mut |_| ()).expect("trains")
    };
    // Six steps an epoch.
    let epochs = train(None, Updates::Epochs(4), None);
    assert_eq!(epochs.history.iter().map(|p| p.step).collect::<Vec<_>>(), [6, 12, 18, 24]);
    for every in [1, 4, 5, 24, 100] {
        let steps = train(Some(every), Updates::Epochs(4), None);
        let mut want: Vec<u64> = (1..=24 / every as u64).map(|i| i * every as u64).collect();
        want.extend((24 % every != 0).then_some(24));
        assert_eq!(steps.history.iter().map(|p| p.step).collect::<Vec<_>>(), want);
        // Whenever it is looked at, the last model is the same.
        assert_eq!(steps.history.last().map(|p| p.validation), epochs.history.last().map(|p| p.validation));
        assert_eq!((steps.steps, steps.capped), (24, steps.best_step == 24));
        let best = steps.history.iter().min_by(|a, b| {
            let loss = |p: &lensmith::train::RewardPoint| p.validation.expect("evaluated").loss;
            loss(a).total_cmp(&loss(b))
        });
        assert_eq!(best.map(|p| p.step), Some(steps.best_step));
    }
    let cut = train(None, Updates::Steps(9), None);
    assert_eq!((cut.steps, cut.history.last().map(|p| p.epoch)), (9, Some(2)));
    // On its own training pairs the loss falls at every look: patience never ends it.
    assert_eq!(train(Some(2), Updates::Epochs(4), Some(1)).steps, 24);
}
