//! `kernels/perturb.cu` against the CPU backend: the same candidates, and the same bits of z'.

use std::sync::Arc;

use lensmith::backend::cpu::{Cpu, Posteriors};
use lensmith::backend::cuda::layout;
use lensmith::backend::cuda::params::{Noise, Perturb, Select, Start};
use lensmith::backend::{
    Backend, LatentSource, Likelihood, NoiseKey, Perturbation as Options, Precision, Sample,
};
use lensmith::noise::{NoiseCounter, Purpose, Side, fill_normals};

use crate::device::{Launch, Machine, Races, Schedule};

/// Posteriors of `rows` rows with means and variances that differ in every element.
fn posteriors(rows: usize, latent: usize) -> Posteriors {
    let normals = |candidate| {
        let mut v = vec![0f32; rows * latent];
        for (row, chunk) in v.chunks_exact_mut(latent).enumerate() {
            let address =
                NoiseCounter { purpose: Purpose::Simulation, side: Side::Chosen, row: row as u64, candidate };
            fill_normals(5, address, chunk);
        }
        v
    };
    let logvar: Vec<f32> = normals(1).iter().map(|v| 0.8 * v - 2.0).collect();
    Posteriors { mu: normals(0).into(), logvar: logvar.into(), latent }
}

const THREADS: u32 = 128;

fn likelihood_number(likelihood: Likelihood) -> u32 {
    match likelihood {
        Likelihood::Posterior => 0,
        Likelihood::Prior => 1,
        Likelihood::None => 2,
    }
}

/// The kernel's candidates.
fn select(
    races: Races,
    schedule: Schedule,
    blocks: u32,
    p: &Posteriors,
    key: NoiseKey,
    options: &Options,
) -> Result<Vec<u32>, String> {
    let machine = Machine::new(races, schedule);
    let (mu, logvar) = (machine.upload(&p.mu), machine.upload(&p.logvar));
    let out = machine.empty::<u32>(p.rows() * options.top_k as usize);
    let shared = layout::select(p.latent, options.top_k as usize, options.drawn() as usize).shared;
    let params = Select {
        mu: mu.address(),
        logvar: logvar.address(),
        out: out.address(),
        rows: p.rows() as u64,
        noise: Noise::new(key, options.sigma()),
        latent: p.latent as u32,
        keep: options.top_k,
        drawn: options.drawn(),
        likelihood: likelihood_number(options.likelihood),
        mean: u32::from(options.source == LatentSource::Mean),
        ..Select::default()
    };
    let launch = Launch { grid: [blocks, 1, 1], block: [THREADS, 1, 1], shared };
    machine.launch("select_f32", launch, params)?;
    assert_eq!(out.unwritten(), 0);
    Ok(out.download())
}

fn perturb(
    races: Races,
    schedule: Schedule,
    p: &Posteriors,
    key: NoiseKey,
    options: &Options,
    samples: &[Sample],
) -> Result<Vec<f32>, String> {
    let machine = Machine::new(races, schedule);
    let (mu, logvar) = (machine.upload(&p.mu), machine.upload(&p.logvar));
    let places: Vec<[u32; 2]> = samples.iter().map(|s| [s.row, s.candidate]).collect();
    let places = machine.upload(&places);
    let out = machine.empty::<f32>(samples.len() * p.latent);
    let launch = Launch { grid: [2, 1, 1], block: [THREADS, 1, 1], shared: 0 };
    let sampled = machine.empty::<f32>(p.mu.len());
    let starts = match options.source {
        LatentSource::Mean => &mu,
        LatentSource::Sample => {
            let params = Start {
                mu: mu.address(),
                logvar: logvar.address(),
                out: sampled.address(),
                rows: p.rows() as u64,
                noise: Noise::new(key, 0.0),
                latent: p.latent as u32,
                ..Start::default()
            };
            machine.launch("start_f32", launch, params)?;
            assert_eq!(sampled.unwritten(), 0);
            &sampled
        }
    };
    let params = Perturb {
        starts: starts.address(),
        samples: places.address(),
        out: out.address(),
        count: samples.len() as u64,
        noise: Noise::new(key, options.sigma()),
        latent: p.latent as u32,
        ..Perturb::default()
    };
    machine.launch("perturb_f32", launch, params)?;
    assert_eq!(out.unwritten(), 0);
    Ok(out.download())
}

/// Candidates and latents of one setting: once with a search for races, and under all schedules.
fn compare(rows: usize, latent: usize, key: NoiseKey, options: &Options) {
    let cpu = Cpu::new(1, Precision::F32).expect("the CPU backend");
    let p = posteriors(rows, latent);
    let selection = cpu.select(&p, key, options).expect("a selection");
    let samples: Vec<Sample> = selection
        .candidates
        .iter()
        .enumerate()
        .map(|(i, &candidate)| Sample { row: (i / options.top_k as usize) as u32, candidate })
        .collect();
    let z = cpu.perturb(&p, key, options, &samples).and_then(|l| cpu.latents(&l)).expect("latents").values;
    let z: Vec<u32> = z.iter().map(|v| v.to_bits()).collect();

    let fast = Schedule::ALL.map(|s| (Races::Ignored, s));
    let check = [(Races::Found, Schedule::ALL[rows % Schedule::ALL.len()])];
    for (races, schedule) in check.into_iter().chain(fast) {
        let what = format!("{rows} rows, latent {latent}, {options:?}, {races:?}, {schedule:?}");
        // Two blocks, fewer than the rows need: each takes several tiles.
        let candidates =
            select(races, schedule, 2, &p, key, options).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(candidates, selection.candidates, "{what}");
        let got =
            perturb(races, schedule, &p, key, options, &samples).unwrap_or_else(|e| panic!("{what}: {e}"));
        let got: Vec<u32> = got.iter().map(|v| v.to_bits()).collect();
        assert!(got == z, "bits of z' differ: {what}");
    }
}

#[test]
fn candidates_and_latents_equal_the_cpu_backends() {
    let key = NoiseKey { seed: 0xfeed_5eed_1234_5678, side: Side::Rejected, first_row: (1 << 32) - 3 };
    let likelihoods = [Likelihood::Posterior, Likelihood::Prior, Likelihood::None];
    for (i, likelihood) in likelihoods.into_iter().enumerate() {
        for (j, source) in [LatentSource::Sample, LatentSource::Mean].into_iter().enumerate() {
            for (keep, oversample, rows) in
                [(1, 1, 7), (1, 4, 9), (2, 3, 37), (5, 4, 11), (31, 4, 5), (256, 3, 3)]
            {
                let sigma2 = if i == j { 0.01 } else { 0.25 };
                let options = Options { sigma2, top_k: keep, oversample, likelihood, source };
                compare(rows, 16, key, &options);
            }
        }
    }
}

#[test]
fn longer_latents_and_many_candidates() {
    let key = NoiseKey { seed: 3, side: Side::Chosen, first_row: 0 };
    let options = |keep, oversample| Options {
        sigma2: 0.09,
        top_k: keep,
        oversample,
        likelihood: Likelihood::Posterior,
        source: LatentSource::Sample,
    };
    compare(3, 48, key, &options(2, 2));
    compare(1, 160, key, &options(5, 1));
    // Far more candidates than the kernel's list holds: it is sorted and cut many times.
    compare(5, 16, key, &options(1, 700));
    compare(2, 16, key, &options(40, 17));
}

/// Without noise all candidates are equal: ties go to the lower number. NaN in one row leaves the others
/// alone.
#[test]
fn ties_and_nan_rank_as_on_the_cpu() {
    let cpu = Cpu::new(1, Precision::F32).expect("the CPU backend");
    let key = NoiseKey { seed: 1, side: Side::Chosen, first_row: 5 };
    let mut p = posteriors(6, 16);
    Arc::make_mut(&mut p.mu)[2 * 16 + 3] = f32::NAN;
    Arc::make_mut(&mut p.logvar)[4 * 16 + 9] = f32::INFINITY;
    for (sigma2, keep) in [(0.0, 7), (0.04, 7)] {
        let options = Options {
            sigma2,
            top_k: keep,
            oversample: 8,
            likelihood: Likelihood::Posterior,
            source: LatentSource::Sample,
        };
        let want = cpu.select(&p, key, &options).expect("a selection").candidates;
        let got = select(Races::Found, Schedule::PLAIN, 1, &p, key, &options).expect("a clean run");
        assert_eq!(got, want, "{options:?}");
    }
}
