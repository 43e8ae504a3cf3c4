//! Every backend against PyTorch: the golden files hold what `tools/make_golden.py` computed in F64.

mod common;

use common::{Bound, Golden, assert_close, assert_close_scalar, assert_same_bits};
use lensmith::backend::cpu::Cpu;
use lensmith::backend::reference::Reference;
use lensmith::backend::{
    Adam, Backend, Divergence, LatentSource, Likelihood, NoiseKey, PairData, PairRows, Perturbation,
    Precision, Reduction, Residual, RewardData, RewardObjective, RewardSide, Sample, Synthetic,
    SyntheticPath, VaeLoss, VaeObjective,
};
use lensmith::matrix::{Matrix, RowSet, Rows, ValuesMut};
use lensmith::model::{RewardModel, RewardSize, Standardizer, Vae, VaeSize};
use lensmith::noise::{NoiseCounter, Purpose, Side, fill_normals, key_words, philox4x32_10};

/// What F32 is held to, relative to the largest value of a tensor.
const RTOL: f64 = 1e-5;
const FILES: [&str; 2] = ["d40", "d33"];
const TERMS: [&str; 4] = ["total", "reconstruction", "kl", "divergence"];

/// Runs every check on every backend.
macro_rules! on_every_backend {
    ($($check:ident),* $(,)?) => {
        mod reference {
            $(#[test] fn $check() { super::$check(&super::Reference::new()); })*
        }
        mod cpu {
            $(#[test] fn $check() { super::$check(&super::Cpu::new(2, super::Precision::F32).expect("the CPU backend")); })*
        }
        /// The CUDA backend, its kernels in the machine for PTX.
        #[cfg(target_os = "linux")]
        mod cuda {
            $(#[test] fn $check() { super::$check(&super::common::device::cuda(super::Precision::F32)); })*
        }
    };
}

on_every_backend!(
    encodes,
    decodes,
    scores,
    selects_and_perturbs,
    vae_losses_and_gradients,
    vae_trains,
    reward_losses_and_gradients,
    reward_trains,
);

fn largest(rtol: f64) -> Bound<'static> {
    Bound::Largest { rtol, floor: 0.0 }
}

/// A golden file with its models.
struct Case {
    name: &'static str,
    golden: Golden,
    size: VaeSize,
    reward_size: RewardSize,
    sides: [Vec<f32>; 2],
}

impl Case {
    fn all() -> impl Iterator<Item = Case> {
        FILES.into_iter().map(|name| {
            let golden = Golden::read(name);
            let count = |what| golden.count(&format!("/shape/{what}"));
            let size = VaeSize::new(count("dim"), count("hidden"), count("latent")).expect("sizes");
            let reward_size = RewardSize::new(size.dim, count("reward_hidden")).expect("sizes");
            let sides = [golden.f32s("chosen"), golden.f32s("rejected")];
            Case { name, golden, size, reward_size, sides }
        })
    }

    fn rows(&self, side: Side) -> RowSet<'_> {
        Rows::from_f32(&self.sides[side as usize], self.size.dim).expect("whole rows").into()
    }

    fn standardizer(&self) -> Standardizer {
        let narrow = |name: &str| self.golden.f64s(name).iter().map(|&v| v as f32).collect();
        Standardizer { mean: narrow("standardizer.mean"), std: narrow("standardizer.std") }
    }

    fn vae(&self, prefix: &str) -> Vae {
        let VaeSize { dim, hidden, latent } = self.size;
        let encoder = self.golden.layers(&format!("{prefix}.encoder."), dim, hidden, 2 * latent);
        let decoder = self.golden.layers(&format!("{prefix}.decoder."), latent, hidden, dim);
        Vae::new(encoder, decoder).expect("a VAE")
    }

    fn reward(&self, prefix: &str) -> RewardModel {
        let RewardSize { dim, hidden, .. } = self.reward_size;
        RewardModel::new(self.golden.layers(&format!("{prefix}."), dim, hidden, 1)).expect("a reward model")
    }

    fn objective(&self, reduction: &str, divergence: &str, batch: usize) -> VaeObjective {
        VaeObjective {
            reconstruction: if reduction == "mean" { Reduction::Mean } else { Reduction::Sum },
            beta: self.golden.number(&format!("/vae/beta/{reduction}")),
            gamma: self.golden.number("/vae/gamma"),
            divergence: if divergence == "w2" { Divergence::W2 } else { Divergence::W2Squared },
            batch,
            adam: Adam::with_lr(self.golden.number("/vae/lr")),
            seed: self.golden.count("/vae/seed") as u64,
        }
    }

    fn what<B: Backend>(&self, b: &B, what: &str) -> String {
        format!("{} {} {what}", b.info().name, self.name)
    }
}

fn tensors_of(vae: &Vae) -> Vec<(String, &[f32])> {
    let parts = [("encoder", &vae.encoder), ("decoder", &vae.decoder)];
    parts.into_iter().flat_map(|(part, layers)| layer_tensors(&format!("{part}."), layers)).collect()
}

fn layer_tensors<'a>(prefix: &str, layers: &'a [lensmith::model::Linear]) -> Vec<(String, &'a [f32])> {
    let parts = |(layer, index): (&'a lensmith::model::Linear, usize)| {
        [
            (format!("{prefix}{index}.weight"), layer.weight.as_slice()),
            (format!("{prefix}{index}.bias"), layer.bias.as_slice()),
        ]
    };
    layers.iter().zip([0, 2]).flat_map(parts).collect()
}

/// Compares the tensors of a model or of its gradients with the golden ones. Errors are measured against the largest
/// value of each tensor, but never against less than `floor` times the largest of all.
fn compare_tensors(what: &str, golden: &Golden, prefix: &str, tensors: &[(String, &[f32])], floor: f64) {
    let expected: Vec<Vec<f64>> =
        tensors.iter().map(|(name, _)| golden.f64s(&format!("{prefix}.{name}"))).collect();
    let largest = expected.iter().flatten().fold(0f64, |a, v| a.max(v.abs()));
    for ((name, got), want) in tensors.iter().zip(&expected) {
        let bound = Bound::Largest { rtol: RTOL, floor: floor * largest };
        assert_close(&format!("{what} {name}"), got, want, bound);
    }
}

fn compare_loss(what: &str, loss: &VaeLoss, want: &[f64]) {
    let got = [loss.total, loss.reconstruction, loss.kl, loss.divergence];
    for ((term, got), &want) in TERMS.iter().zip(got).zip(want) {
        assert_close_scalar(&format!("{what} {term}"), got, want, largest(RTOL));
    }
}

#[test]
fn noise_is_the_documented_philox_and_box_muller() {
    let golden = Golden::read("noise");
    let (words, normals) = (golden.u32s("words"), golden.f64s("normals"));
    let addresses = golden.settings["addresses"].as_array().expect("addresses").clone();
    let count = words.len() / addresses.len();
    assert!(count > 64 && normals.len() == words.len());
    const PURPOSES: [Purpose; 9] = [
        Purpose::Posterior,
        Purpose::Perturb,
        Purpose::TrainVae,
        Purpose::Shuffle,
        Purpose::Init,
        Purpose::Pairing,
        Purpose::DirectPerturbation,
        Purpose::GaussianSampling,
        Purpose::Simulation,
    ];
    for (i, address) in addresses.iter().enumerate() {
        let field = |name: &str| address[name].as_u64().expect("a whole number");
        let seed = field("seed");
        let address = NoiseCounter {
            purpose: PURPOSES[field("purpose") as usize],
            side: Side::BOTH[field("side") as usize],
            row: field("row"),
            candidate: u32::try_from(field("candidate")).expect("32 bits"),
        };
        let expected = &words[i * count..(i + 1) * count];
        for (block, expected) in expected.chunks(4).enumerate() {
            let got = philox4x32_10(address.block(block as u32), key_words(seed));
            assert_eq!(&got[..expected.len()], expected, "address {i}, block {block}");
        }
        let mut got = vec![f32::NAN; count];
        fill_normals(seed, address, &mut got);
        let expected = &normals[i * count..(i + 1) * count];
        assert_close(&format!("normals {i}"), &got, expected, Bound::Each { atol: 4e-7, rtol: 4e-7 });
    }
}

#[test]
fn initialisation_is_bit_for_bit_the_documented_one() {
    for case in Case::all() {
        let seed = case.golden.count("/init_seed") as u64;
        let (vae, want) = (Vae::init(case.size, seed), case.vae("vae.initial"));
        for ((name, got), (_, want)) in tensors_of(&vae).iter().zip(tensors_of(&want)) {
            assert_same_bits(&format!("{} {name}", case.name), got, want);
        }
        let (reward, want) = (RewardModel::init(case.reward_size, seed), case.reward("reward.initial"));
        for ((name, got), (_, want)) in
            layer_tensors("", &reward.layers).iter().zip(layer_tensors("", &want.layers))
        {
            assert_same_bits(&format!("{} reward {name}", case.name), got, want);
        }
    }
}

#[test]
fn standardizer_and_folding() {
    // Fits and folds are done in F64 and rounded once.
    let bound = Bound::Each { atol: 1e-9, rtol: 1.2e-7 };
    for case in Case::all() {
        let [chosen, rejected] = Side::BOTH.map(|side| case.rows(side));
        let fitted = Standardizer::fit(&[&chosen, &rejected]);
        assert_close(
            &format!("{} mean", case.name),
            &fitted.mean,
            &case.golden.f64s("standardizer.mean"),
            bound,
        );
        assert_close(
            &format!("{} std", case.name),
            &fitted.std,
            &case.golden.f64s("standardizer.std"),
            bound,
        );

        let mut rows = case.sides[0].clone();
        fitted.apply(&mut rows);
        let standardizer = case.standardizer();
        let want: Vec<f64> = (0..rows.len())
            .map(|i| (i, i % case.size.dim))
            .map(|(i, j)| {
                (f64::from(case.sides[0][i]) - f64::from(standardizer.mean[j]))
                    / f64::from(standardizer.std[j])
            })
            .collect();
        let each = Bound::Each { atol: 1e-6, rtol: 2.4e-7 };
        assert_close(&format!("{} standardised", case.name), &rows, &want, each);

        let folded = case.vae("vae.initial").fold(&standardizer);
        let reward = case.reward("reward.initial").fold(&standardizer);
        let folded = tensors_of(&folded).into_iter().map(|(name, v)| (format!("vae.folded.{name}"), v));
        let reward = layer_tensors("reward.folded.", &reward.layers);
        for (name, got) in folded.chain(reward) {
            assert_close(&format!("{} {name}", case.name), got, &case.golden.f64s(&name), bound);
        }
    }
}

fn encodes<B: Backend>(b: &B) {
    for case in Case::all() {
        let vae = b.load_vae(&case.vae("vae.folded")).expect("loads");
        for side in Side::BOTH {
            let embeddings = b.embeddings(case.rows(side)).expect("uploads");
            let host = b.posteriors(&b.encode(&vae, &embeddings).expect("encodes")).expect("downloads");
            assert_eq!((host.mu.rows, host.mu.cols), (24, case.size.latent));
            for (name, got) in [("mu", &host.mu), ("logvar", &host.logvar)] {
                let name = format!("encode.{name}.{}", side as u8);
                let want = case.golden.f64s(&name);
                assert_close(&case.what(b, &name), &got.values, &want, largest(RTOL));
            }
        }
    }
}

fn decodes<B: Backend>(b: &B) {
    for case in Case::all() {
        let vae = b.load_vae(&case.vae("vae.folded")).expect("loads");
        let (z, rows) = (case.golden.f32s("decode.z"), case.golden.u32s("decode.rows"));
        let z = Matrix::new(z, rows.len(), case.size.latent).expect("a matrix");
        let latents = b.load_latents(&z, &rows).expect("uploads");
        assert_eq!(b.latents(&latents).expect("downloads"), z);
        let embeddings = b.embeddings(case.rows(Side::Chosen)).expect("uploads");
        let posteriors = b.encode(&vae, &embeddings).expect("encodes");
        let residual = Residual { embeddings: &embeddings, posteriors: &posteriors };
        for (name, residual) in [("plain", None), ("residual", Some(residual))] {
            let mut out = vec![f32::NAN; rows.len() * case.size.dim];
            b.decode(&vae, &latents, residual, ValuesMut::F32(&mut out)).expect("decodes");
            let want = case.golden.f64s(&format!("decode.{name}"));
            assert_close(&case.what(b, name), &out, &want, largest(RTOL));
        }
    }
}

fn scores<B: Backend>(b: &B) {
    for case in Case::all() {
        let model = b.load_reward(&case.reward("reward.folded")).expect("loads");
        let parts = Side::BOTH.map(|s| Rows::from_f32(&case.sides[s as usize], case.size.dim).expect("rows"));
        let both = b.embeddings(RowSet::new(parts.to_vec()).expect("equal widths")).expect("uploads");
        let mut out = vec![f32::NAN; 48];
        b.score(&model, &both, &mut out).expect("scores");
        assert_close(&case.what(b, "scores"), &out, &case.golden.f64s("score"), largest(RTOL));
    }
}

fn selects_and_perturbs<B: Backend>(b: &B) {
    for case in Case::all() {
        let count = |what| case.golden.count(&format!("/select/{what}"));
        let (rows, keep, oversample) = (count("rows"), count("keep") as u32, count("oversample") as u32);
        let origin =
            NoiseKey { seed: count("seed") as u64, side: Side::Chosen, first_row: count("first_row") as u64 };
        let vae = b.load_vae(&case.vae("vae.folded")).expect("loads");
        let embeddings = b.embeddings(case.rows(Side::Chosen).slice(0..rows)).expect("uploads");
        let posteriors = b.encode(&vae, &embeddings).expect("encodes");
        for (source, source_name) in [(LatentSource::Sample, "sample"), (LatentSource::Mean, "mean")] {
            let how = |likelihood| Perturbation { sigma2: 0.01, top_k: keep, oversample, likelihood, source };
            for (likelihood, name) in [(Likelihood::Posterior, "posterior"), (Likelihood::Prior, "prior")] {
                let got = b.select(&posteriors, origin, &how(likelihood)).expect("selects");
                let want = case.golden.u32s(&format!("selected.{source_name}.{name}"));
                assert_eq!(got.top_k, keep as usize);
                assert_eq!(got.candidates, want, "{}", case.what(b, &format!("{source_name} {name}")));
            }
            let got = b.select(&posteriors, origin, &how(Likelihood::None)).expect("selects");
            assert_eq!(got.candidates, (0..rows).flat_map(|_| 0..keep).collect::<Vec<_>>());

            let drawn = keep * oversample;
            let samples: Vec<Sample> = (0..rows as u32)
                .flat_map(|row| (0..drawn).map(move |c| Sample { row, candidate: c }))
                .collect();
            let how = how(Likelihood::Posterior);
            let latents = b.perturb(&posteriors, origin, &how, &samples).expect("perturbs");
            let got = b.latents(&latents).expect("downloads");
            let want = case.golden.f64s(&format!("perturbed.{source_name}"));
            assert_close(
                &case.what(b, &format!("perturbed {source_name}")),
                &got.values,
                &want,
                largest(RTOL),
            );
        }
    }
}

fn vae_losses_and_gradients<B: Backend>(b: &B) {
    for case in Case::all() {
        let (initial, standardizer) = (case.vae("vae.initial"), case.standardizer());
        let [chosen, rejected] = Side::BOTH.map(|s| b.embeddings(case.rows(s)).expect("uploads"));
        let data = PairData { chosen: &chosen, rejected: &rejected };
        let epoch = case.golden.count("/vae/epoch_of_gradients") as u32;
        for reduction in ["mean", "sum"] {
            for divergence in ["w2", "w2-squared"] {
                let name = format!("{reduction}.{divergence}");
                let objective = case.objective(reduction, divergence, 8);
                let mut trainer = b.vae_trainer(&initial, &standardizer, &objective).expect("starts");
                for batch in ["8", "7", "1"] {
                    let rows = case.golden.u32s(&format!("vae.batch.{batch}"));
                    let (loss, gradients) =
                        b.vae_gradients(&mut trainer, &data, &rows, epoch).expect("gradients");
                    let what = case.what(b, &format!("{name}.{batch}"));
                    compare_loss(&what, &loss, &case.golden.f64s(&format!("vae.loss.{name}.{batch}")));
                    if batch == "8" || (batch == "7" && name == "mean.w2") {
                        let prefix = format!("vae.gradient.{name}.{batch}");
                        compare_tensors(&what, &case.golden, &prefix, &tensors_of(&gradients), 0.0);
                    } else {
                        assert!(gradients.is_finite(), "{what}");
                    }
                }
            }
        }
    }
}

fn vae_trains<B: Backend>(b: &B) {
    for case in Case::all() {
        let [chosen, rejected] = Side::BOTH.map(|s| b.embeddings(case.rows(s)).expect("uploads"));
        let data = PairData { chosen: &chosen, rejected: &rejected };
        let (initial, standardizer) = (case.vae("vae.initial"), case.standardizer());
        let (size, orders) = (case.golden.count("/vae/train/batch"), case.golden.u32s("vae.train.orders"));
        for (reduction, divergence) in [("mean", "w2"), ("sum", "w2-squared")] {
            let name = format!("vae.train.{reduction}.{divergence}");
            let what = case.what(b, &name);
            let objective = case.objective(reduction, divergence, size);
            let losses = case.golden.f64s(&format!("{name}.losses"));
            let start = || b.vae_trainer(&initial, &standardizer, &objective).expect("starts");
            let (mut by_step, mut by_epoch) = (start(), start());
            let mut steps = losses.chunks_exact(4);
            for (epoch, order) in orders.chunks_exact(24).enumerate() {
                let epoch = epoch as u32;
                let mut mean = [0.0; 4];
                for batch in order.chunks(size) {
                    let want = steps.next().expect("a loss for every step");
                    // Asking for gradients must not change what the next step does.
                    let (loss, _) = b.vae_gradients(&mut by_step, &data, batch, epoch).expect("gradients");
                    compare_loss(&format!("{what} {epoch} gradients"), &loss, want);
                    let loss = b.vae_epoch(&mut by_step, &data, batch, epoch).expect("trains");
                    compare_loss(&format!("{what} {epoch} step"), &loss, want);
                    for (mean, term) in mean.iter_mut().zip(want) {
                        *mean += term * batch.len() as f64 / order.len() as f64;
                    }
                }
                let loss = b.vae_epoch(&mut by_epoch, &data, order, epoch).expect("trains");
                compare_loss(&format!("{what} epoch {epoch}"), &loss, &mean);
            }
            assert_eq!(steps.len(), 0);
            for (how, trainer) in [("steps", &by_step), ("epochs", &by_epoch)] {
                let trained = b.vae_parameters(trainer).expect("parameters");
                let tensors = tensors_of(&trained);
                compare_tensors(
                    &format!("{what} {how}"),
                    &case.golden,
                    &format!("{name}.final"),
                    &tensors,
                    0.0,
                );
            }
        }
    }
}

/// Runs `$body` with reward data of originals and the golden latents, for a decode mode of `$case`.
macro_rules! with_reward_data {
    ($b:expr, $case:expr, $mode:expr, $data:ident => $body:expr) => {{
        let vae = $b.load_vae(&$case.vae("vae.folded")).expect("loads");
        let originals = Side::BOTH.map(|s| $b.embeddings($case.rows(s)).expect("uploads"));
        let posteriors = originals.each_ref().map(|e| $b.encode(&vae, e).expect("encodes"));
        let latents = Side::BOTH.map(|side| {
            let rows = $case.golden.u32s(&format!("reward.latent_rows.{}", side as u8));
            let z = $case.golden.f32s(&format!("reward.latents.{}", side as u8));
            let z = Matrix::new(z, rows.len(), $case.size.latent).expect("a matrix");
            $b.load_latents(&z, &rows).expect("uploads")
        });
        let side = |s: usize| {
            let residual = Residual { embeddings: &originals[s], posteriors: &posteriors[s] };
            let residual = ($mode == "residual").then_some(residual);
            RewardSide {
                originals: &originals[s],
                synthetic: Some(Synthetic { vae: &vae, latents: &latents[s], residual }),
            }
        };
        let $data = RewardData { chosen: side(0), rejected: side(1) };
        $body
    }};
}

fn reward_pairs(case: &Case) -> Vec<PairRows> {
    case.golden.u32s("reward.pairs").chunks_exact(2).map(|p| [p[0], p[1]]).collect()
}

fn reward_objective(case: &Case, synthetic: SyntheticPath) -> RewardObjective {
    RewardObjective {
        batch: case.golden.count("/reward/batch"),
        adam: Adam::with_lr(case.golden.number("/reward/lr")),
        synthetic,
        ..RewardObjective::default()
    }
}

/// Both ways in which samples take part, on the backend that has both.
fn ways<B: Backend>(b: &B) -> Vec<(&'static str, SyntheticPath)> {
    let paths = match b.info().name.as_str() {
        "cpu" => vec![SyntheticPath::Folded, SyntheticPath::Decoded],
        _ => vec![SyntheticPath::Folded],
    };
    ["plain", "residual"].into_iter().flat_map(|mode| paths.iter().map(move |&p| (mode, p))).collect()
}

fn reward_losses_and_gradients<B: Backend>(b: &B) {
    for case in Case::all() {
        for (mode, path) in ways(b) {
            with_reward_data!(b, case, mode, data => {
                let what = case.what(b, &format!("reward {mode}, {path}"));
                let initial = case.reward("reward.initial");
                let objective = reward_objective(&case, path);
                let mut trainer = b.reward_trainer(&initial, &case.standardizer(), &objective).expect("starts");
                let pairs = reward_pairs(&case);
                let (loss, gradients) = b.reward_gradients(&mut trainer, &data, &pairs[..8]).expect("gradients");
                let want = case.golden.f64s(&format!("reward.loss.{mode}"))[0];
                assert_close_scalar(&what, loss, want, largest(RTOL));
                // The last bias moves both rewards alike: its gradient is 0, so it needs the others' scale.
                let prefix = format!("reward.gradient.{mode}");
                let tensors = layer_tensors("", &gradients.layers);
                compare_tensors(&what, &case.golden, &prefix, &tensors, 1e-2);
            });
        }
    }
}

fn reward_trains<B: Backend>(b: &B) {
    for case in Case::all() {
        let pairs = reward_pairs(&case);
        let (initial, standardizer) = (case.reward("reward.initial"), case.standardizer());
        for (mode, path) in ways(b) {
            let objective = reward_objective(&case, path);
            with_reward_data!(b, case, mode, data => {
                let what = case.what(b, &format!("reward {mode}, {path}"));
                let losses = case.golden.f64s(&format!("reward.train.{mode}.losses"));
                let start = || b.reward_trainer(&initial, &standardizer, &objective).expect("starts");
                let (mut by_step, mut by_epoch) = (start(), start());
                let mut steps = losses.iter();
                for epoch in 0..case.golden.count("/reward/epochs") {
                    let mut mean = 0.0;
                    for batch in pairs.chunks(objective.batch) {
                        let &want = steps.next().expect("a loss for every step");
                        let (loss, _) = b.reward_gradients(&mut by_step, &data, batch).expect("gradients");
                        assert_close_scalar(&format!("{what} gradients"), loss, want, largest(RTOL));
                        let loss = b.reward_epoch(&mut by_step, &data, batch).expect("trains");
                        assert_close_scalar(&format!("{what} step"), loss, want, largest(RTOL));
                        mean += want * batch.len() as f64 / pairs.len() as f64;
                    }
                    let loss = b.reward_epoch(&mut by_epoch, &data, &pairs).expect("trains");
                    assert_close_scalar(&format!("{what} epoch {epoch}"), loss, mean, largest(RTOL));
                }
                assert_eq!(steps.len(), 0);
                for (how, trainer) in [("steps", &by_step), ("epochs", &by_epoch)] {
                    let trained = b.reward_parameters(trainer).expect("parameters");
                    let tensors = layer_tensors("", &trained.layers);
                    let prefix = format!("reward.train.{mode}.final");
                    compare_tensors(&format!("{what} {how}"), &case.golden, &prefix, &tensors, 0.0);
                }
            });
        }
    }
}
