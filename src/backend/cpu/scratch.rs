//! Tasks shared among threads, and scratch that belongs to threads rather than to tasks, so that it stays in the
//! second-level cache.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::simd::{Isa, Task};

/// Shares a few large tasks among the threads, one at a time.
pub fn share<T: Task<Output = ()> + Send>(level: Isa, tasks: impl IntoIterator<Item = T>) {
    each(tasks, |task| level.run(task));
}

/// The same with what is to be done.
pub fn each<T: Send>(tasks: impl IntoIterator<Item = T>, work: impl Fn(T) + Sync + Send) {
    let tasks: Vec<T> = tasks.into_iter().collect();
    tasks.into_par_iter().with_max_len(1).for_each(work);
}

/// One for each thread of the pool. What it holds is of no meaning to the next task.
#[derive(Debug, Default)]
pub struct PerThread<T>(Vec<Mutex<T>>);

impl<T: Default> PerThread<T> {
    /// One for each thread of this pool.
    pub fn resize(&mut self) {
        self.0.resize_with(rayon::current_num_threads(), Mutex::default);
    }

    /// Lends this thread's. A task must not ask for a second one.
    pub fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        let own = &self.0[rayon::current_thread_index().unwrap_or(0)];
        work(&mut own.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
