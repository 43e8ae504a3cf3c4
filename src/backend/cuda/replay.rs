//! What trainers keep on the device from one epoch to the next: memory, and the recorded launches of a step.

use std::fmt;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::Cuda;
use super::driver::{Driver, DriverResult, Graph};
use super::launch::Launch;
use super::memory::Buffer;
use super::params::Step;

/// Device memory whose values change with every epoch. It stays where it is as long as they fit.
#[derive(Debug)]
pub struct Refilled<T> {
    driver: Arc<dyn Driver>,
    label: &'static str,
    buffer: Option<Buffer<T>>,
}

impl<T: Pod> Refilled<T> {
    /// No memory yet.
    pub fn new(cuda: &Cuda, label: &'static str) -> Refilled<T> {
        Refilled { driver: cuda.driver.clone(), label, buffer: None }
    }

    /// Room for `len` values, which may hold anything.
    pub fn room(&mut self, len: usize) -> DriverResult<&Buffer<T>> {
        if self.buffer.as_ref().is_some_and(|b| b.len() < len) {
            // Before there is more, so that the two need not fit side by side.
            self.buffer = None;
        }
        if self.buffer.is_none() {
            self.buffer = Some(Buffer::empty(&self.driver, len, self.label)?);
        }
        Ok(self.buffer.as_ref().expect("just made"))
    }

    /// Puts `values` in.
    pub fn fill(&mut self, values: &[T]) -> DriverResult<()> {
        self.room(values.len())?.write(0, values)
    }

    /// Where the values lie.
    pub fn address(&self) -> u64 {
        self.buffer.as_ref().map_or(0, Buffer::address)
    }
}

/// Which step of an epoch it is, and the losses of those before.
#[derive(Debug)]
pub struct Progress {
    /// All steps of the epoch.
    pub table: Refilled<Step>,
    /// Place in the table of the step after this.
    pub turn: Buffer<u32>,
    /// The step that runs.
    pub now: Buffer<Step>,
    /// Sums of the losses.
    pub totals: Buffer<f64>,
}

impl Progress {
    /// For `terms` losses.
    pub fn new(cuda: &Cuda, terms: usize) -> DriverResult<Progress> {
        let driver = &cuda.driver;
        Ok(Progress {
            table: Refilled::new(cuda, "steps"),
            turn: Buffer::empty(driver, 1, "turn")?,
            now: Buffer::empty(driver, 1, "step")?,
            totals: Buffer::empty(driver, terms, "totals")?,
        })
    }

    /// Starts an epoch of these steps, at least one.
    pub fn start(&mut self, steps: &[Step]) -> DriverResult<()> {
        // The last step passes the turn on as well.
        self.table.fill(&[steps, &[Step::zeroed()]].concat())?;
        self.turn.write(0, &[1])?;
        self.now.write(0, &steps[..1])?;
        self.totals.write(0, &vec![0.0; self.totals.len()])
    }
}

/// The recorded launches of a step. They hold addresses, sizes and types alone, so that equal launches do the same work on
/// whatever lies there.
pub struct Recording {
    launches: Vec<Launch>,
    graph: Box<dyn Graph>,
}

impl Recording {
    /// `held` if it is of these launches, else a new one.
    pub fn of(cuda: &Cuda, held: Option<Recording>, launches: Vec<Launch>) -> DriverResult<Recording> {
        match held {
            Some(recording) if recording.launches == launches => Ok(recording),
            _ => Ok(Recording { graph: cuda.driver.record(launches.clone())?, launches }),
        }
    }

    /// Runs them `times` times.
    pub fn replay(&self, times: usize) -> DriverResult<()> {
        (0..times).try_for_each(|_| self.graph.replay())
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recording({} launches)", self.launches.len())
    }
}
