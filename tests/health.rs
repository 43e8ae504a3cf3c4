//! The health report of a VAE against plain loops in F64, on every device that runs anywhere.

mod common;

use common::data_buf;
use lensmith::backend::{DeviceChoice, LatentSource, VaeObjective};
use lensmith::dtype::Dtype;
use lensmith::matrix::{RowSet, RowsBuf};
use lensmith::model::{Linear, Vae};
use lensmith::synth::SynthesisOptions;
use lensmith::train::VaeTraining;
use lensmith::{Engine, VaeHealth};

const PAIRS: usize = 60;
const DIM: usize = 40;

/// `layer` of a row, and ReLU if asked for.
fn forward(layer: &Linear, row: &[f64], relu: bool) -> Vec<f64> {
    let unit = |o: usize| {
        let weights = &layer.weight[o * layer.inputs..][..layer.inputs];
        let sum: f64 = weights.iter().zip(row).map(|(&w, x)| f64::from(w) * x).sum();
        let value = sum + f64::from(layer.bias[o]);
        if relu { value.max(0.0) } else { value }
    };
    (0..layer.outputs).map(unit).collect()
}

/// Mean and deviation, as divisor n.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / n;
    (mean, (values.map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
}

fn rows(buf: &RowsBuf) -> Vec<Vec<f64>> {
    let mut wide = vec![0f32; buf.cols()];
    let row = |r: usize| {
        buf.view().row(r).widen(&mut wide);
        wide.iter().map(|&v| f64::from(v)).collect()
    };
    (0..buf.rows()).map(row).collect()
}

/// Share of the variance that decoding the means explains, the means and logarithms of the variances, and what was decoded;
/// standardised by `scale`.
type Decoded = (f64, Vec<(Vec<f64>, Vec<f64>)>, Vec<Vec<f64>>);

fn look(vae: &Vae, all: &[Vec<f64>], scale: &[(f64, f64)]) -> Decoded {
    let (mut error, mut total) = (0.0, 0.0);
    let (mut posteriors, mut decoded) = (Vec::new(), Vec::new());
    for row in all {
        let mut mu = forward(&vae.encoder[1], &forward(&vae.encoder[0], row, true), false);
        let logvar = mu.split_off(mu.len() / 2);
        let out = forward(&vae.decoder[1], &forward(&vae.decoder[0], &mu, true), false);
        let out: Vec<f64> =
            out.iter().zip(scale).map(|(v, (mean, deviation))| (v - mean) / deviation).collect();
        for ((here, there), (mean, deviation)) in out.iter().zip(row).zip(scale) {
            let there = (there - mean) / deviation;
            error += (here - there).powi(2);
            total += there.powi(2);
        }
        posteriors.push((mu, logvar));
        decoded.push(out);
    }
    (1.0 - error / total, posteriors, decoded)
}

fn close(what: &str, got: f64, want: f64) {
    // F32 models and rows: their rounding, not the definition, is the difference.
    assert!((got - want).abs() <= 2e-5 * want.abs().max(1.0), "{what}: {got}, expected {want}");
}

#[test]
fn figures_are_those_of_plain_loops() {
    let sides = [1, 2].map(|seed| data_buf(Dtype::F32, seed, PAIRS, DIM));
    let others = [3, 4].map(|seed| data_buf(Dtype::F16, seed, 25, DIM));
    let seeds: [RowSet<'_>; 2] = sides.each_ref().map(|side| side.view().into());
    let held_out: [RowSet<'_>; 2] = others.each_ref().map(|side| side.view().into());
    // Without noise and from the means, samples are what the means decode to.
    let synthesis =
        SynthesisOptions { sigma2: 0.0, source: LatentSource::Mean, ..SynthesisOptions::default() };
    for device in [DeviceChoice::Cpu, DeviceChoice::Reference] {
        let engine = Engine::builder().device(device).build().expect("a device");
        let objective = VaeObjective { batch: 16, ..VaeObjective::default() };
        let training = VaeTraining { hidden: 32, latent: 16, epochs: 40, objective };
        let trained = engine.train_vae(&seeds, &training, &mut |_, _| {}).expect("a VAE");
        let vae = &trained.vae;
        let found: VaeHealth =
            engine.vae_health(vae, &seeds, Some(&held_out), &synthesis, &trained.history).expect("a report");

        let all = [rows(&sides[0]), rows(&sides[1])].concat();
        let column = |j: usize| moments(all.iter().map(move |row| row[j]));
        let scale: Vec<(f64, f64)> = (0..DIM).map(column).collect();
        let (explained, posteriors, decoded) = look(vae, &all, &scale);
        close("explained", found.explained_variance, explained);
        let (held, ..) = look(vae, &[rows(&others[0]), rows(&others[1])].concat(), &scale);
        close("held out", found.held_out_explained_variance.expect("it was asked for"), held);

        let kl = |(mu, logvar): &(Vec<f64>, Vec<f64>)| -> f64 {
            mu.iter().zip(logvar).map(|(m, l)| 0.5 * (m * m + l.exp() - 1.0 - l)).sum()
        };
        close("KL", found.kl, posteriors.iter().map(kl).sum::<f64>() / posteriors.len() as f64);
        let w2 = |i: usize| {
            let ((a, la), (b, lb)) = (&posteriors[i], &posteriors[PAIRS + i]);
            let means: f64 = a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum();
            let deviations: f64 =
                la.iter().zip(lb).map(|(x, y)| ((x / 2.0).exp() - (y / 2.0).exp()).powi(2)).sum();
            (means + deviations).sqrt()
        };
        close("W2", found.w2, (0..PAIRS).map(w2).sum::<f64>() / PAIRS as f64);
        let unit = |k: usize| moments(posteriors.iter().map(move |(mu, _)| mu[k])).1.powi(2);
        let variances: Vec<f64> = (0..16).map(unit).collect();
        let spread = (variances.iter().sum::<f64>() / 16.0).sqrt();
        close("spread", found.spread, spread);
        assert_eq!(found.active_units, variances.iter().filter(|v| **v > 0.01).count());
        let synthetic = (0..DIM).map(|j| moments(decoded.iter().map(move |row| row[j])).1.powi(2));
        close("synthetic variance", found.synthetic_variance, synthetic.sum::<f64>() / DIM as f64);
        assert_eq!((found.sigma, found.sigma_share, found.pairs, found.latent), (0.0, 0.0, PAIRS as u64, 16));
        assert!(found.improving.is_some());
    }
}
