//! Owned, typed device memory. A buffer keeps its driver alive and gives its memory back when it is dropped.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;

use super::driver::{Driver, DriverResult};

/// Device memory of `len` values of T.
pub struct Buffer<T> {
    driver: Arc<dyn Driver>,
    address: u64,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// Uninitialised memory. `what` it is for stands in errors.
    pub fn empty(driver: &Arc<dyn Driver>, len: usize, what: &'static str) -> DriverResult<Buffer<T>> {
        let address = driver.allocate(Self::bytes_of(len), what)?;
        Ok(Buffer { driver: driver.clone(), address, len, values: PhantomData })
    }

    /// Memory of zeros.
    pub fn zeros(driver: &Arc<dyn Driver>, len: usize, what: &'static str) -> DriverResult<Buffer<T>> {
        let buffer = Self::empty(driver, len, what)?;
        driver.clear(buffer.address, Self::bytes_of(len))?;
        Ok(buffer)
    }

    /// Memory that holds `values`.
    pub fn upload(driver: &Arc<dyn Driver>, values: &[T], what: &'static str) -> DriverResult<Buffer<T>> {
        let buffer = Self::empty(driver, values.len(), what)?;
        buffer.write(0, values)?;
        Ok(buffer)
    }

    /// Overwrites the values from `at` on; they must lie inside.
    pub fn write(&self, at: usize, values: &[T]) -> DriverResult<()> {
        assert!(at + values.len() <= self.len, "values {at} and on of {}", self.len);
        self.driver.upload(self.at(at), bytemuck::cast_slice(values))
    }

    /// A copy of all values on the host; waits for everything that was launched before.
    pub fn download(&self) -> DriverResult<Vec<T>> {
        let mut out = vec![T::zeroed(); self.len];
        self.download_into(&mut out)?;
        Ok(out)
    }

    /// The first values, as many as `out` takes.
    pub fn download_into(&self, out: &mut [T]) -> DriverResult<()> {
        assert!(out.len() <= self.len, "{} values of {}", out.len(), self.len);
        let event = self.driver.event()?;
        self.driver.download(&*event, bytemuck::cast_slice_mut(out), self.address)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Device address of the first value.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Device address of value `index`.
    pub fn at(&self, index: usize) -> u64 {
        self.address + (index * size_of::<T>()) as u64
    }
}

impl<T> Buffer<T> {
    /// No allocation is empty, so that every buffer has an address of its own.
    fn bytes_of(len: usize) -> usize {
        len.max(1) * size_of::<T>()
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        self.driver.free(self.address, Self::bytes_of(self.len));
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} values at {:#x})", self.len, self.address)
    }
}
