//! The backend's state: one driver, which owns the device's stream and memory, and the precision of products.
//! What the backend does is in other files, as methods of [`Cuda`].

use std::sync::Arc;

use bytemuck::Pod;

use super::device::Device;
use super::driver::{Driver, DriverError, DriverResult};
use super::gpu::Gpu;
use super::memory::Buffer;
use crate::backend::Precision;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;

/// The CUDA backend on one device.
#[derive(Debug)]
pub struct Cuda {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) precision: Precision,
    pub(super) interrupt: Interrupt,
}

impl Cuda {
    /// Opens GPU `index`, in the order of the driver, for products in `precision`.
    ///
    /// # Errors
    /// [`Error::Device`] with what is missing and what would help; see [`Device::open`].
    pub fn open(index: usize, precision: Precision) -> Result<Cuda> {
        Cuda::on(Device::open(index)?, precision)
    }

    /// The backend on an opened GPU, for products in `precision`.
    ///
    /// # Errors
    /// [`Error::Device`] if the GPU has no memory for staging, or no tensor cores for BF16.
    pub fn on(device: Device, precision: Precision) -> Result<Cuda> {
        let name = format!("cuda:{}", device.index());
        let gpu =
            Gpu::new(device).map_err(|error| Error::Device { device: name, reason: error.to_string() })?;
        Cuda::over(Arc::new(gpu), precision)
    }

    /// Opens every GPU that the driver lists, in its order; at least one.
    ///
    /// # Errors
    /// As [`Cuda::open`], of the first that cannot be opened.
    pub fn open_all(precision: Precision) -> Result<Vec<Cuda>> {
        let count = Device::count()?;
        let opened = (0..count).map(|index| {
            Cuda::open(index, precision).map_err(|error| match error {
                // The GPUs before it opened, and could be used without it.
                Error::Device { device, reason } if index > 0 => {
                    let reason = format!("{reason}; CUDA_VISIBLE_DEVICES can leave this GPU out");
                    Error::Device { device, reason }
                }
                other => other,
            })
        });
        opened.collect::<Result<Vec<_>>>().map(sharing_one_interrupt)
    }

    /// The backend over any driver.
    ///
    /// # Errors
    /// [`Error::Device`] for BF16 where the driver has no tensor cores.
    pub fn over(driver: Arc<dyn Driver>, precision: Precision) -> Result<Cuda> {
        let cuda = Cuda { driver, precision, interrupt: Interrupt::default() };
        if precision == Precision::Bf16 && !cuda.driver.limits().architecture.has_tensor_cores() {
            return Err(cuda.error(DriverError::Other(format!(
                "{}: `precision` bf16 needs BF16 tensor cores (compute capability 8.0); use `precision` f32",
                cuda.driver.detail()
            ))));
        }
        Ok(cuda)
    }

    /// A driver's error as the crate's, with the device's name.
    pub(super) fn error(&self, error: DriverError) -> Error {
        let help = match error {
            DriverError::OutOfMemory { .. } => "; use fewer seed pairs at a time, or `device` cpu",
            DriverError::Other(_) => "",
        };
        Error::Device { device: self.driver.name().into(), reason: format!("{error}{help}") }
    }

    /// The device's number in the order of the driver.
    pub(super) fn index(&self) -> usize {
        self.driver.index()
    }

    /// The flag that stops this backend's work. An operation of a GPU takes milliseconds, so it is looked at between
    /// operations.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Runs `work` and turns a driver's error into the crate's.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> DriverResult<T>) -> Result<T> {
        self.interrupt.check()?;
        work().map_err(|error| self.error(error))
    }

    /// Uninitialised device memory.
    pub(super) fn buffer<T: Pod>(&self, len: usize, what: &'static str) -> DriverResult<Buffer<T>> {
        Buffer::empty(&self.driver, len, what)
    }
}

/// Lets one flag stop all devices of an engine.
fn sharing_one_interrupt(mut all: Vec<Cuda>) -> Vec<Cuda> {
    let interrupt = Interrupt::default();
    all.iter_mut().for_each(|cuda| cuda.interrupt = interrupt.clone());
    all
}
