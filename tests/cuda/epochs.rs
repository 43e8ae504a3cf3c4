//! Epochs in one launch: the bits of their steps, launch by launch, on any number of blocks and in any order.

use std::sync::Arc;

use lensmith::backend::cuda::driver::Driver;
use lensmith::backend::cuda::{Cuda, Start};
use lensmith::backend::{Adam, Backend, Divergence, PairData, Precision, Reduction, VaeLoss, VaeObjective};
use lensmith::dtype::Dtype;
use lensmith::matrix::RowsBuf;
use lensmith::model::{Vae, VaeSize};

use crate::common::device::{Races, Schedule, Simulated, gpu, precisions, tested_gpu};
use crate::common::{data_buf, standardizer};
use crate::watched::Watched;

/// A model, its data and a batch.
#[derive(Clone, Copy, Debug)]
struct Case {
    dim: usize,
    hidden: usize,
    latent: usize,
    pairs: usize,
    batch: usize,
    dtypes: [Dtype; 2],
    divergence: Divergence,
    reconstruction: Reduction,
    /// Blocks that it takes at least.
    least: u32,
}

const SMALL: Case = Case {
    dim: 40,
    hidden: 48,
    latent: 16,
    pairs: 21,
    batch: 8,
    dtypes: [Dtype::Bf16, Dtype::F32],
    divergence: Divergence::W2,
    reconstruction: Reduction::Sum,
    least: 1,
};

/// Short last batches; sums over dimensions in slices, of which the last is short, and over rows; several tiles of
/// every layer; dimensions that no load of 16 bytes fits.
const CASES: [Case; 4] = [
    SMALL,
    Case { dim: 393, hidden: 80, latent: 32, pairs: 11, dtypes: [Dtype::F16; 2], least: 7, ..SMALL },
    Case {
        dim: 70,
        hidden: 16,
        pairs: 140,
        batch: 130,
        divergence: Divergence::W2Squared,
        least: 2,
        ..SMALL
    },
    Case { dim: 300, hidden: 128, pairs: 9, batch: 9, reconstruction: Reduction::Mean, least: 5, ..SMALL },
];

impl Case {
    fn size(&self) -> VaeSize {
        VaeSize::new(self.dim, self.hidden, self.latent).expect("sizes")
    }

    fn rows(&self) -> [RowsBuf; 2] {
        [0, 1].map(|s| data_buf(self.dtypes[s], 5 + s as u64, self.pairs, self.dim))
    }

    /// Losses of three epochs, then the parameters, as bits.
    fn train(&self, b: &Cuda) -> Vec<u64> {
        let objective = VaeObjective {
            reconstruction: self.reconstruction,
            beta: 0.5,
            gamma: 0.1,
            divergence: self.divergence,
            batch: self.batch,
            adam: Adam { weight_decay: 0.1, ..Adam::with_lr(1e-2) },
            seed: 3,
        };
        let vae = Vae::init(self.size(), 7);
        let rows = self.rows();
        let [chosen, rejected] = rows.each_ref().map(|s| b.embeddings(s.view().into()).expect("uploads"));
        let data = PairData { chosen: &chosen, rejected: &rejected };
        let mut trainer = b.vae_trainer(&vae, &standardizer(self.dim), &objective).expect("starts");
        let order: Vec<u32> = (0..self.pairs as u32).map(|i| (i * 5 + 3) % self.pairs as u32).collect();
        let mut out = Vec::new();
        for epoch in 0..3 {
            let VaeLoss { total, reconstruction, kl, divergence } =
                b.vae_epoch(&mut trainer, &data, &order, epoch).expect("trains");
            out.extend([total, reconstruction, kl, divergence].map(f64::to_bits));
        }
        let trained = b.vae_parameters(&trainer).expect("parameters");
        let layers = trained.encoder.iter().chain(&trained.decoder);
        out.extend(layers.flat_map(|l| l.weight.iter().chain(&l.bias)).map(|v| u64::from(v.to_bits())));
        let untrained = vae.encoder.iter().chain(&vae.decoder).flat_map(|l| l.weight.iter().chain(&l.bias));
        let changed = untrained.zip(&out[12..]).filter(|(a, b)| u64::from(a.to_bits()) != **b).count();
        assert!(changed * 10 > 9 * (out.len() - 12), "{self:?}: {changed} parameters changed");
        assert!(out.iter().all(|bits| !f64::from_bits(*bits).is_nan()), "{self:?}");
        out
    }

    /// The same where `together` says whether epochs may be one launch; also the blocks of such launches.
    fn train_on(
        &self,
        precision: Precision,
        options: Simulated,
        races: Races,
        together: bool,
    ) -> (Vec<u64>, Vec<u32>) {
        let inner: Arc<dyn Driver> = Arc::new(gpu(races, options));
        let watched = if together { Watched::together(inner) } else { Watched::over(inner, true) };
        let out = self.train(&watched.backend(precision));
        let launches = watched.cooperative();
        assert!(launches.iter().all(|l| l.start == Start::Together && l.kernel.starts_with("vae_epoch_")));
        assert_eq!(
            watched.recordings(),
            usize::from(launches.is_empty()),
            "either a graph or launches of epochs"
        );
        (out, launches.iter().map(|l| l.grid[0]).collect())
    }
}

/// Whatever the number of blocks.
#[test]
fn an_epoch_in_one_launch_has_the_bits_of_its_steps() {
    for &precision in precisions() {
        for case in CASES {
            let (want, none) = case.train_on(precision, Simulated::default(), Races::Ignored, false);
            assert!(none.is_empty(), "{none:?}");
            for processors in [case.least, case.least + 2, 200] {
                let options = Simulated { processors, ..Simulated::default() };
                let (got, blocks) = case.train_on(precision, options, Races::Ignored, true);
                assert_eq!(blocks.len(), 3, "a launch an epoch");
                if tested_gpu().is_none() {
                    assert!(
                        blocks.iter().all(|&n| n == processors || processors == 200 && n < 200),
                        "{blocks:?}"
                    );
                }
                assert!(got == want, "{case:?}, {precision}, {processors} multiprocessors");
            }
        }
    }
}

/// Blocks find what others wrote behind a barrier of the grid, in any order of blocks and warps.
#[test]
fn an_epoch_in_one_launch_has_no_races() {
    if tested_gpu().is_some() {
        return; // it has one schedule
    }
    for &precision in precisions() {
        let mut all = Schedule::ALL.into_iter().map(|schedule| {
            let options = Simulated { schedule, processors: 3, ..Simulated::default() };
            SMALL.train_on(precision, options, Races::Found, true)
        });
        let first = all.next().expect("a schedule");
        assert!(all.all(|other| other == first), "{precision}");
    }
}

/// Models whose moments the device's shared memory does not hold, hidden layers of 256 and more, and devices that do
/// not take such launches train step by step.
#[test]
fn an_epoch_that_does_not_fit_goes_step_by_step() {
    if tested_gpu().is_some() {
        return; // it has the sizes that it has
    }
    let small = Simulated { shared: 64 << 10, processors: 1, ..Simulated::default() };
    let cases = [
        (Case { dim: 70, ..SMALL }, small, true, 0),
        (SMALL, Simulated { shared: 228 << 10, processors: 1, ..Simulated::default() }, true, 3),
        (
            Case { hidden: 256, pairs: 3, ..SMALL },
            Simulated { processors: 64, ..Simulated::default() },
            true,
            0,
        ),
        (SMALL, Simulated::default(), false, 0),
    ];
    for (case, options, together, launches) in cases {
        let (_, blocks) = case.train_on(Precision::F32, options, Races::Ignored, together);
        assert_eq!(blocks.len(), launches, "{case:?}");
    }
}

/// Gradients are those of a step by itself, between epochs too.
#[test]
fn every_launch_of_epochs_leaves_gradients_to_steps() {
    let watched = Watched::together(Arc::new(gpu(Races::Ignored, Simulated::default())));
    let b = watched.backend(Precision::F32);
    let rows = SMALL.rows();
    let [chosen, rejected] = rows.each_ref().map(|s| b.embeddings(s.view().into()).expect("uploads"));
    let data = PairData { chosen: &chosen, rejected: &rejected };
    let objective = VaeObjective { batch: 8, adam: Adam::with_lr(0.0), ..VaeObjective::default() };
    let vae = Vae::init(SMALL.size(), 7);
    let mut trainer = b.vae_trainer(&vae, &standardizer(SMALL.dim), &objective).expect("starts");
    let order: Vec<u32> = (0..8).collect();
    let mut gradients = || {
        let before = watched.recordings();
        let loss = b.vae_epoch(&mut trainer, &data, &order, 0).expect("trains");
        let (own, vae) = b.vae_gradients(&mut trainer, &data, &order, 0).expect("gradients");
        assert_eq!(own.total.to_bits(), loss.total.to_bits(), "the same batch");
        let values: Vec<u32> = vae.decoder[1].weight.iter().map(|v| v.to_bits()).collect();
        (values, watched.recordings() - before)
    };
    let (first, recorded) = gradients();
    let (second, again) = gradients();
    assert_eq!((recorded, again), (1, 0), "a step is recorded once");
    assert!(first == second && first.iter().any(|&bits| bits != 0));
    assert_eq!(watched.cooperative().len(), 2);
}
