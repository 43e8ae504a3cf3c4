//! A driver that watches what is asked of another.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use lensmith::backend::Precision;
use lensmith::backend::cuda::driver::{BoxedMatrix, Driver, DriverResult, Event, Graph, HostMemory, Limits};
use lensmith::backend::cuda::{Cuda, Launch, Start};

use crate::common::device::{Races, Simulated, gpu};

/// A driver that counts allocations, launches and recordings, and reuses freed memory at once, as a GPU's does. It runs
/// training step by step, but for [`Watched::together`].
#[derive(Debug)]
pub struct Watched {
    inner: Arc<dyn Driver>,
    /// Whether recorded launches run.
    runs: bool,
    /// Whether it takes launches whose blocks are all there at once.
    together: bool,
    launched: Mutex<Vec<Launch>>,
    recorded: Mutex<Vec<Vec<&'static str>>>,
    allocated: AtomicUsize,
    freed: Mutex<BTreeMap<usize, Vec<u64>>>,
}

struct Nothing;

impl Graph for Nothing {
    fn replay(&self) -> DriverResult<()> {
        Ok(())
    }
}

impl Watched {
    pub fn new(races: Races, memory: usize, runs: bool) -> Arc<Watched> {
        Watched::over(Arc::new(gpu(races, Simulated { memory, ..Simulated::default() })), runs)
    }

    pub fn over(inner: Arc<dyn Driver>, runs: bool) -> Arc<Watched> {
        Arc::new(Watched::around(inner, runs, false))
    }

    /// With launches whose blocks are all there at once.
    pub fn together(inner: Arc<dyn Driver>) -> Arc<Watched> {
        Arc::new(Watched::around(inner, true, true))
    }

    fn around(inner: Arc<dyn Driver>, runs: bool, together: bool) -> Watched {
        let (launched, recorded, allocated, freed) = Default::default();
        Watched { inner, runs, together, launched, recorded, allocated, freed }
    }

    pub fn backend(self: &Arc<Watched>, precision: Precision) -> Cuda {
        Cuda::over(self.clone(), precision).expect("a device")
    }

    /// Recordings made so far.
    pub fn recordings(&self) -> usize {
        self.recorded.lock().expect("no panic").len()
    }

    /// The kernels of the last recording.
    pub fn last(&self) -> Vec<&'static str> {
        self.recorded.lock().expect("no panic").last().cloned().expect("a recording")
    }

    /// Launches whose blocks were all there at once.
    pub fn cooperative(&self) -> Vec<Launch> {
        self.launched
            .lock()
            .expect("no panic")
            .iter()
            .filter(|l| l.start == Start::Together)
            .cloned()
            .collect()
    }

    pub fn allocations(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }
}

impl Driver for Watched {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn detail(&self) -> String {
        self.inner.detail()
    }

    fn limits(&self) -> Limits {
        let limits = self.inner.limits();
        Limits { cooperative: self.together && limits.cooperative, ..limits }
    }

    fn occupancy(&self, kernel: &'static str, threads: u32, shared: usize) -> DriverResult<u32> {
        self.inner.occupancy(kernel, threads, shared)
    }

    fn tensor_map(&self, matrix: BoxedMatrix) -> DriverResult<[u64; 16]> {
        self.inner.tensor_map(matrix)
    }

    fn allocate(&self, bytes: usize, label: &'static str) -> DriverResult<u64> {
        self.allocated.fetch_add(1, Ordering::Relaxed);
        match self.freed.lock().expect("no panic").get_mut(&bytes).and_then(Vec::pop) {
            Some(address) => Ok(address),
            None => self.inner.allocate(bytes, label),
        }
    }

    fn free(&self, address: u64, bytes: usize) {
        self.freed.lock().expect("no panic").entry(bytes).or_default().push(address);
    }

    fn allocate_host(&self, bytes: usize) -> DriverResult<Box<dyn HostMemory>> {
        self.inner.allocate_host(bytes)
    }

    fn upload(&self, to: u64, from: &[u8]) -> DriverResult<()> {
        self.inner.upload(to, from)
    }

    fn event(&self) -> DriverResult<Box<dyn Event>> {
        self.inner.event()
    }

    fn download(&self, event: &dyn Event, to: &mut [u8], from: u64) -> DriverResult<()> {
        self.inner.download(event, to, from)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> DriverResult<()> {
        self.inner.copy(to, from, bytes)
    }

    fn clear(&self, at: u64, bytes: usize) -> DriverResult<()> {
        self.inner.clear(at, bytes)
    }

    fn synchronize(&self) -> DriverResult<()> {
        self.inner.synchronize()
    }

    fn index(&self) -> usize {
        self.inner.index()
    }

    fn launch(&self, launch: &Launch) -> DriverResult<()> {
        self.launched.lock().expect("no panic").push(launch.clone());
        self.inner.launch(launch)
    }

    fn record(&self, launches: Vec<Launch>) -> DriverResult<Box<dyn Graph>> {
        self.recorded.lock().expect("no panic").push(launches.iter().map(|l| l.kernel).collect());
        if self.runs { self.inner.record(launches) } else { Ok(Box::new(Nothing)) }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for (bytes, addresses) in std::mem::take(&mut *self.freed.lock().expect("no panic")) {
            addresses.into_iter().for_each(|address| self.inner.free(address, bytes));
        }
    }
}
