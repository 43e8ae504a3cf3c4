//! Scratch that belongs to threads rather than to tasks, so that it stays in the second-level cache.

use std::sync::{Mutex, PoisonError};

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
