//! Rows of embeddings that Python and the engine share.
//!
//! In come arrays with the buffer protocol (numpy) or DLPack (torch, jax, cupy); out goes [`Embeddings`], which has both.
//! Nothing is copied either way: each side keeps the other's object alive for as long as it uses the memory.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;

use dlpark::ffi::{
    DLDataType, DLDataTypeCode, DLDevice, DLDeviceType, DLManagedTensor, DLManagedTensorVersioned,
};
use dlpark::metadata::Fixed;
use dlpark::python::{DlpackExporter, ExportRequest, ImportRequest, ImportedDlpack, export_dlpack};
use dlpark::{DlpackFlags, Managed, ManagedTensorBase};
use lensmith::{Dtype, PairSet, Rows, RowsBuf, Values};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::error::{panicked, value, wrong_type};

/// Who keeps memory alive.
#[allow(dead_code)]
enum Owner {
    Rows(RowsBuf),
    Buffer(PyUntypedBuffer),
    Dlpack(ImportedDlpack),
    Files(Arc<PairSet>),
    Part(Arc<Memory>),
}

/// A row-major matrix `[rows, cols]` in memory.
pub struct Memory {
    data: *mut u8,
    rows: usize,
    cols: usize,
    dtype: Dtype,
    /// Whether Python may write: memory that was made for it alone.
    writable: bool,
    _owner: Owner,
}

// SAFETY: the owner keeps the memory alive, and Rust only reads it. A user who writes to an array while the engine reads
// it gets mixed values, as with any library that releases the interpreter lock; values are plain numbers, of which every
// bit pattern is valid.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Rows that were made, which are Python's to write to.
    pub fn new(mut rows: RowsBuf) -> Arc<Memory> {
        let (count, cols, dtype) = (rows.rows(), rows.cols(), rows.dtype());
        let data = rows.bytes_mut().as_mut_ptr();
        Arc::new(Memory { data, rows: count, cols, dtype, writable: true, _owner: Owner::Rows(rows) })
    }

    /// Rows that are mapped from files, or lie in memory of `files`.
    ///
    /// # Safety
    /// `rows` lie in memory that `files` keep in place for as long as they live.
    pub unsafe fn of_files(rows: Rows<'_>, files: Arc<PairSet>) -> Arc<Memory> {
        Arc::new(Memory {
            data: rows.values().bytes().as_ptr().cast_mut(),
            rows: rows.rows(),
            cols: rows.cols(),
            dtype: rows.dtype(),
            writable: false,
            _owner: Owner::Files(files),
        })
    }

    /// Some of the rows.
    pub fn part(self: &Arc<Memory>, start: usize, stop: usize) -> Arc<Memory> {
        assert!(start <= stop && stop <= self.rows);
        let row = self.cols * self.dtype.size();
        Arc::new(Memory {
            // SAFETY: within or one past the end of the allocation, by the assertion.
            data: unsafe { self.data.add(start * row) },
            rows: stop - start,
            cols: self.cols,
            dtype: self.dtype,
            writable: self.writable,
            _owner: Owner::Part(self.clone()),
        })
    }

    /// What the engine reads.
    pub fn view(&self) -> Rows<'_> {
        let len = self.rows * self.cols * self.dtype.size();
        // SAFETY: the owner keeps `len` bytes in place, which were initialised by whoever made them.
        let bytes = unsafe { std::slice::from_raw_parts(self.data, len) };
        let values = Values::from_bytes(self.dtype, bytes).expect("alignment was checked");
        Rows::new(values, self.rows, self.cols).expect("sizes were checked")
    }

    /// Whether it lies in a file's map, where a write ends the process.
    fn is_of_files(&self) -> bool {
        match &self._owner {
            Owner::Files(_) => true,
            Owner::Part(whole) => whole.is_of_files(),
            _ => false,
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Takes an array of Python; `what` names it in errors.
    pub fn import(array: &Bound<'_, PyAny>, what: &str) -> PyResult<Arc<Memory>> {
        if let Ok(rows) = array.cast::<Embeddings>() {
            return Ok(rows.get().0.clone());
        }
        if array.get_type().name()? == "MaskedArray" {
            return Err(wrong_type(format!(
                "{what}: expected an array without a mask, found a masked one; .filled(...) makes one"
            )));
        }
        // SAFETY: the object is alive; the call only looks at its type.
        if unsafe { ffi::PyObject_CheckBuffer(array.as_ptr()) } != 0 {
            return from_buffer(PyUntypedBuffer::get(array)?, what);
        }
        if array.hasattr("__dlpack__")? {
            return from_dlpack(array, what);
        }
        let found = array.get_type().name()?;
        Err(wrong_type(format!(
            "{what}: expected an array [n, d] of float32, float16 or bfloat16 (numpy, torch, or anything with the \
             buffer protocol or DLPack), found {found}"
        )))
    }
}

/// Sizes of an array that is to be a matrix.
pub fn matrix(shape: &[usize], what: &str) -> PyResult<(usize, usize)> {
    match *shape {
        [rows, cols] if cols > 0 => Ok((rows, cols)),
        [_, _] => Err(value(format!("{what}: expected one or more columns, found shape {shape:?}"))),
        _ => Err(value(format!("{what}: expected 2 dimensions [n, d], found shape {shape:?}"))),
    }
}

pub fn not_contiguous(what: &str) -> PyErr {
    value(format!(
        "{what}: expected rows one after the other (C-contiguous), found strides; numpy.ascontiguousarray or \
         .contiguous() makes such a copy"
    ))
}

/// Fails on memory that cannot be read as values of `dtype`.
fn aligned(data: *mut u8, dtype: Dtype, what: &str) -> PyResult<*mut u8> {
    match data.is_null() {
        // No rows have no place.
        true => Ok(ptr::without_provenance_mut(dtype.size())),
        false if data.addr().is_multiple_of(dtype.size()) => Ok(data),
        false => Err(value(format!(
            "{what}: expected an address that is a multiple of {}; a copy has one",
            dtype.size()
        ))),
    }
}

pub fn wrong_dtype(what: &str, found: &str) -> PyErr {
    wrong_type(format!(
        "{what}: expected float32, float16 or bfloat16, found {found}; .astype(numpy.float32) or .float() converts"
    ))
}

fn from_buffer(buffer: PyUntypedBuffer, what: &str) -> PyResult<Arc<Memory>> {
    let format = buffer.format().to_string_lossy().into_owned();
    let dtype = match format.trim_start_matches(['@', '=', '<']) {
        "f" => Dtype::F32,
        "e" => Dtype::F16,
        other => {
            let found = match other {
                "d" => "float64",
                "O" => "object",
                "?" => "bool",
                "g" => "longdouble",
                "b" | "h" | "i" | "l" | "q" => "integers",
                "B" | "H" | "I" | "L" | "Q" => "unsigned integers or bytes",
                other => other,
            };
            return Err(wrong_dtype(what, found));
        }
    };
    let (rows, cols) = matrix(buffer.shape(), what)?;
    if !buffer.is_c_contiguous() {
        return Err(not_contiguous(what));
    }
    let data = aligned(buffer.buf_ptr().cast(), dtype, what)?;
    Ok(Arc::new(Memory { data, rows, cols, dtype, writable: false, _owner: Owner::Buffer(buffer) }))
}

/// Fails on tensors of torch whose values are not what lies in host memory.
fn check_torch(array: &Bound<'_, PyAny>, what: &str) -> PyResult<()> {
    let module = array.get_type().module()?;
    if !module.to_string().starts_with("torch") {
        return Ok(());
    }
    let device = array.getattr("device")?.getattr("type")?.to_string();
    if device != "cpu" {
        let found = array.getattr("device")?;
        return Err(value(format!(
            "{what}: expected an array in host memory, found one on {found}; .cpu() brings it there"
        )));
    }
    let layout = array.getattr("layout")?.to_string();
    if layout != "torch.strided" {
        return Err(value(format!("{what}: expected a dense tensor, found {layout}; .to_dense() makes one")));
    }
    if array.call_method0("is_neg")?.is_truthy()? {
        return Err(value(format!(
            "{what}: expected values as they lie in memory, found a negative view; .resolve_neg()"
        )));
    }
    Ok(())
}

fn from_dlpack(array: &Bound<'_, PyAny>, what: &str) -> PyResult<Arc<Memory>> {
    check_torch(array, what)?;
    let request = ImportRequest::new(array.as_borrowed())?;
    let device = request.device()?;
    if ![DLDeviceType::CPU, DLDeviceType::CUDAHOST].contains(&device.device_type) {
        let found =
            array.getattr("device").map_or_else(|_| format!("{device:?}"), |device| device.to_string());
        return Err(value(format!(
            "{what}: expected an array in host memory, found one on {found}; .cpu() brings it there"
        )));
    }
    let tensor = request.import(None, None)?;
    let view = match &tensor {
        ImportedDlpack::Legacy(tensor) => tensor.validate(),
        ImportedDlpack::Versioned(tensor) => tensor.validate(),
    };
    let view = view.map_err(|error| value(format!("{what}: {error}")))?;
    let kind = view.dtype();
    let dtype = match (kind.code, kind.bits, kind.lanes) {
        (DLDataTypeCode::FLOAT, 32, 1) => Dtype::F32,
        (DLDataTypeCode::FLOAT, 16, 1) => Dtype::F16,
        (DLDataTypeCode::BFLOAT, 16, 1) => Dtype::Bf16,
        _ => {
            let found =
                array.getattr("dtype").map_or_else(|_| format!("{kind:?}"), |dtype| dtype.to_string());
            return Err(wrong_dtype(what, &found));
        }
    };
    let shape: Vec<usize> = view.shape().iter().map(|&n| n as usize).collect();
    let (rows, cols) = matrix(&shape, what)?;
    let strides = view.strides_or_compact().map_err(|error| value(format!("{what}: {error}")))?;
    // The stride of an axis of one entry is never used.
    if (cols > 1 && strides[1] != 1) || (rows > 1 && strides[0] != cols as i64) {
        return Err(not_contiguous(what));
    }
    let data = aligned(view.data_ptr().cast_mut().cast(), dtype, what)?;
    Ok(Arc::new(Memory { data, rows, cols, dtype, writable: false, _owner: Owner::Dlpack(tensor) }))
}

/// The name of a type, as numpy and torch have it.
pub fn name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    }
}

/// The type with a name, as numpy, torch or safetensors have it.
pub fn dtype_of(text: &str) -> PyResult<Dtype> {
    match text.to_ascii_lowercase().trim_start_matches("torch.") {
        "float32" | "f32" => Ok(Dtype::F32),
        "float16" | "f16" => Ok(Dtype::F16),
        "bfloat16" | "bf16" => Ok(Dtype::Bf16),
        _ => Err(value(format!("dtype: expected float32, float16 or bfloat16, found {text}"))),
    }
}

/// A matrix [n, d] of embeddings that numpy and torch see without a copy.
///
/// `numpy.asarray(rows)`, `torch.from_dlpack(rows)`, `rows.numpy()` and `rows.torch()` share its memory. numpy has no
/// bfloat16: there `rows.float32()` makes a copy.
#[pyclass(frozen, module = "lensmith")]
pub struct Embeddings(pub Arc<Memory>);

#[pymethods]
impl Embeddings {
    /// An array [n, d] of float32, float16 or bfloat16, without a copy.
    #[new]
    fn new(array: &Bound<'_, PyAny>) -> PyResult<Embeddings> {
        Memory::import(array, "array").map(Embeddings)
    }

    /// Number of rows and columns.
    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.0.rows, self.0.cols)
    }

    /// Number of dimensions, 2.
    #[getter]
    fn ndim(&self) -> usize {
        2
    }

    /// "float32", "float16" or "bfloat16".
    #[getter]
    fn dtype(&self) -> &'static str {
        name(self.0.dtype)
    }

    /// Bytes of the values.
    #[getter]
    fn nbytes(&self) -> usize {
        self.0.rows * self.0.cols * self.0.dtype.size()
    }

    fn __len__(&self) -> usize {
        self.0.rows
    }

    fn __repr__(&self) -> String {
        format!("Embeddings({} x {}, {})", self.0.rows, self.0.cols, name(self.0.dtype))
    }

    /// A numpy array over the same memory; read-only where the memory is a file's or another array's.
    fn numpy<'py>(slf: Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("numpy")?.call_method1("asarray", (slf,))
    }

    /// A torch tensor over the same memory; of rows of a file a copy, since torch would write to what is read-only.
    fn torch<'py>(slf: Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let slf = match slf.get().0.is_of_files() {
            true => Bound::new(slf.py(), slf.get().copied(slf.py()))?,
            false => slf,
        };
        let torch = slf
            .py()
            .import("lensmith._optional")?
            .call_method1("require", ("torch", "Embeddings.torch()"))?;
        torch.call_method1("from_dlpack", (slf,))
    }

    /// A copy as a numpy array of float32.
    fn float32<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let widen = || {
            let mut out = RowsBuf::zeros(Dtype::F32, self.0.rows, self.0.cols);
            self.0.view().values().widen(bytemuck::cast_slice_mut(out.bytes_mut()));
            out
        };
        // Memory that the system refuses is a panic.
        let out = py.detach(|| catch_unwind(AssertUnwindSafe(widen))).map_err(panicked)?;
        Embeddings::numpy(Bound::new(py, Embeddings(Memory::new(out)))?)
    }

    /// The values as bytes, row after row.
    fn tobytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.view().values().bytes())
    }

    /// A copy of bytes as rows of `columns` values.
    #[staticmethod]
    fn from_bytes(data: &[u8], columns: usize, dtype: &str) -> PyResult<Embeddings> {
        let dtype = dtype_of(dtype)?;
        let row = columns.saturating_mul(dtype.size());
        if row == 0 || !data.len().is_multiple_of(row) {
            return Err(value(format!("data: expected rows of {row} bytes, found {} bytes", data.len())));
        }
        let mut rows = RowsBuf::zeros(dtype, data.len() / row, columns);
        rows.bytes_mut()[..data.len()].copy_from_slice(data);
        Ok(Embeddings(Memory::new(rows)))
    }

    fn __reduce__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, PyTuple>> {
        let (py, rows) = (slf.py(), slf.get());
        (slf.getattr("from_bytes")?, (rows.tobytes(py), rows.0.cols, name(rows.0.dtype))).into_pyobject(py)
    }

    /// Rows as numpy selects them.
    fn __getitem__<'py>(slf: Bound<'py, Self>, key: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Embeddings::numpy(slf)?.get_item(key)
    }

    #[pyo3(signature = (dtype = None, copy = None))]
    fn __array__<'py>(
        slf: Bound<'py, Self>,
        dtype: Option<Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        if slf.get().0.dtype == Dtype::Bf16 {
            return Err(wrong_type(
                "numpy has no bfloat16: .float32() makes a copy as float32, .torch() a tensor without a copy",
            ));
        }
        let view = py
            .import("numpy")?
            .call_method1("asarray", (py.import("builtins")?.call_method1("memoryview", (slf,))?,))?;
        match (dtype, copy) {
            (None, Some(true)) => view.call_method0("copy"),
            (None, _) => Ok(view),
            (Some(dtype), _) => view.call_method1("astype", (dtype,)),
        }
    }

    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(u32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Py<PyAny>> {
        export_dlpack(self, py, ExportRequest::parse(stream.as_ref(), max_version, dl_device, copy)?)
    }

    fn __dlpack_device__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, [1, 0])
    }

    /// # Safety
    /// The interpreter calls it with a view to fill.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let memory = &slf.get().0;
        let format = match memory.dtype {
            Dtype::F32 => c"f",
            Dtype::F16 => c"e",
            Dtype::Bf16 => {
                return Err(PyBufferError::new_err(
                    "the buffer protocol has no bfloat16: .float32() makes a copy as float32, .torch() a tensor",
                ));
            }
        };
        if flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE && !memory.writable {
            return Err(PyBufferError::new_err("these embeddings are read-only"));
        }
        let item = memory.dtype.size() as ffi::Py_ssize_t;
        let (rows, cols) = (memory.rows as ffi::Py_ssize_t, memory.cols as ffi::Py_ssize_t);
        // Shape and strides, which live until the view is released.
        let sizes = Box::into_raw(Box::new([rows, cols, cols * item, item])).cast::<ffi::Py_ssize_t>();
        let with = |flag: c_int| flags & flag == flag;
        // SAFETY: the interpreter gives a view to fill, and `sizes` has four entries.
        unsafe {
            (*view).buf = memory.data.cast::<c_void>();
            (*view).len = rows * cols * item;
            (*view).readonly = c_int::from(!memory.writable);
            (*view).itemsize = item;
            (*view).format =
                if with(ffi::PyBUF_FORMAT) { format.as_ptr().cast_mut() } else { ptr::null_mut() };
            (*view).ndim = 2;
            (*view).shape = if with(ffi::PyBUF_ND) { sizes } else { ptr::null_mut() };
            (*view).strides = if with(ffi::PyBUF_STRIDES) { sizes.add(2) } else { ptr::null_mut() };
            (*view).suboffsets = ptr::null_mut();
            (*view).internal = sizes.cast();
            (*view).obj = slf.into_any().into_ptr();
        }
        Ok(())
    }

    /// # Safety
    /// The interpreter calls it with a view that `__getbuffer__` filled.
    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: `internal` is the box that `__getbuffer__` made.
        drop(unsafe { Box::from_raw((*view).internal.cast::<[ffi::Py_ssize_t; 4]>()) });
    }
}

impl Embeddings {
    fn copied(&self, py: Python<'_>) -> Embeddings {
        let mut out = RowsBuf::zeros(self.0.dtype, self.0.rows, self.0.cols);
        py.detach(|| out.bytes_mut().copy_from_slice(self.0.view().values().bytes()));
        Embeddings(Memory::new(out))
    }

    fn tensor<M: ManagedTensorBase>(&self) -> PyResult<Managed<M>> {
        let memory = &self.0;
        let (rows, cols) = (memory.rows as i64, memory.cols as i64);
        let prepared = Fixed::new([rows, cols], [cols, 1]).prepare_as::<M>();
        let mut tensor = prepared.map_err(|error| value(error.to_string()))?.initialize(memory.clone());
        let code = if memory.dtype == Dtype::Bf16 { DLDataTypeCode::BFLOAT } else { DLDataTypeCode::FLOAT };
        let bits = 8 * memory.dtype.size() as u8;
        tensor.set_data(memory.data.cast());
        tensor.set_dtype(DLDataType { code, bits, lanes: 1 });
        tensor.set_device(DLDevice::CPU);
        // SAFETY: the flags are those of the memory, which the tensor's context keeps alive; shape, strides and type are
        // those that it has.
        unsafe {
            tensor.set_flags_unchecked(self.flags());
            Ok(tensor.finish())
        }
    }
}

impl DlpackExporter for Embeddings {
    fn device(&self) -> DLDevice {
        DLDevice::CPU
    }

    fn flags(&self) -> DlpackFlags {
        if self.0.writable { DlpackFlags::empty() } else { DlpackFlags::READ_ONLY }
    }

    fn prepare_export(&self, _: Python<'_>, _: &ExportRequest<'_>) -> PyResult<()> {
        Ok(())
    }

    fn export_legacy(&self, _: Python<'_>) -> PyResult<Managed<DLManagedTensor>> {
        self.tensor()
    }

    fn export_versioned(&self, _: Python<'_>) -> PyResult<Managed<DLManagedTensorVersioned>> {
        self.tensor()
    }
}
