//! Training: one pass a step over the weights of the layers of d inputs or outputs, the narrow layers between them by
//! blocks of rows.

mod adam;
mod latent_block;
mod linear;
mod narrow;
mod output_layer;
mod reward;
mod samples;
mod vae;

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::simd::{Isa, Task};

pub use reward::RewardTrainer;
pub use samples::{Side, SyntheticSide};
pub use vae::VaeTrainer;

/// Shares a few large tasks among the threads, one at a time.
fn share<T: Task<Output = ()> + Send>(isa: Isa, tasks: impl IntoIterator<Item = T>) {
    each(tasks, |task| isa.run(task));
}

/// The same with what is to be done.
fn each<T: Send>(tasks: impl IntoIterator<Item = T>, work: impl Fn(T) + Sync + Send) {
    let tasks: Vec<T> = tasks.into_iter().collect();
    tasks.into_par_iter().with_max_len(1).for_each(work);
}

/// Scratch for each thread of the pool rather than for each task, so that it stays in the second-level cache. What it
/// holds is of no meaning to the next task.
#[derive(Debug, Default)]
struct PerThread<T>(Vec<Mutex<T>>);

impl<T: Default> PerThread<T> {
    /// One for each thread of this pool.
    fn resize(&mut self) {
        self.0.resize_with(rayon::current_num_threads(), Mutex::default);
    }

    /// Lends this thread's. A task must not ask for a second one.
    fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        let own = &self.0[rayon::current_thread_index().unwrap_or(0)];
        work(&mut own.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
