//! Matrices that stay in a GPU's memory while the caller holds them.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::dtype::Dtype;

/// A row-major matrix `[rows, cols]` in the memory of a GPU, the engine's or somebody else's.
///
/// What the engine gives out is complete when the call returns: any stream may use it at once. What it takes it reads when
/// all work that was given to the GPU before is done.
#[derive(Clone)]
pub struct DeviceArray {
    device: usize,
    address: u64,
    rows: usize,
    cols: usize,
    dtype: Dtype,
    /// Keeps the memory.
    _owner: Arc<dyn Any + Send + Sync>,
}

impl DeviceArray {
    /// A matrix at `address` in the memory of GPU `device`, in the driver's order, which `owner` keeps.
    ///
    /// # Safety
    /// There are `rows * cols` initialised values of `dtype` at `address`, one after the other, which stay as they are for
    /// as long as `owner` lives. The address is a multiple of the values' size.
    #[allow(unsafe_code, reason = "the memory is the caller's; safety is said above")]
    pub unsafe fn from_raw(
        device: usize,
        address: u64,
        (rows, cols): (usize, usize),
        dtype: Dtype,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> DeviceArray {
        DeviceArray { device, address, rows, cols, dtype, _owner: owner }
    }

    /// The number of the GPU in the driver's order.
    pub fn device(&self) -> usize {
        self.device
    }

    /// Where it begins in the GPU's memory.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Storage type of the values.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }
}

impl fmt::Debug for DeviceArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceArray { device, rows, cols, dtype, .. } = self;
        write!(f, "DeviceArray({rows} x {cols}, {dtype}, cuda:{device})")
    }
}
