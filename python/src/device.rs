//! Arrays in the memory of a GPU: in from any library by DLPack or `__cuda_array_interface__`, out the same way.
//! Nothing is copied.

use std::any::Any;
use std::sync::Arc;

use dlpark::ffi::{
    DLDataType, DLDataTypeCode, DLDevice, DLDeviceType, DLManagedTensor, DLManagedTensorVersioned,
};
use dlpark::metadata::Fixed;
use dlpark::python::{DlpackExporter, ExportRequest, ImportRequest, ImportedDlpack, export_dlpack};
use dlpark::{DlpackFlags, Managed, ManagedTensorBase};
use lensmith::Dtype;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::array::{Embeddings, Memory, matrix, name, not_contiguous, wrong_dtype};
use crate::engine::Opened;
use crate::error::{value, with_kind, wrong_type};

/// An array [n, d] or [n] in the memory of a GPU, which torch, cupy and others see without a copy.
///
/// `torch.from_dlpack(array)`, `array.torch()` and `cupy.asarray(array)` share its memory; `array.numpy()` is a copy on the
/// host. It is complete when it is given out: any stream may use it.
#[pyclass(frozen, module = "lensmith")]
pub struct DeviceArray {
    pub array: lensmith::DeviceArray,
    /// One number a row, without an axis of columns.
    flat: bool,
    opened: Arc<Opened>,
    process: u32,
}

/// Who keeps memory of another library.
#[allow(dead_code)]
enum Kept {
    Object(Py<PyAny>),
    Tensor(ImportedDlpack),
}

// SAFETY: only kept, and released when the interpreter allows it.
unsafe impl Send for Kept {}
// SAFETY: as above.
unsafe impl Sync for Kept {}

impl DeviceArray {
    pub fn new(array: lensmith::DeviceArray, opened: &Arc<Opened>) -> DeviceArray {
        DeviceArray { array, flat: false, opened: opened.clone(), process: std::process::id() }
    }

    /// One number a row.
    pub fn flat(array: lensmith::DeviceArray, opened: &Arc<Opened>) -> DeviceArray {
        DeviceArray { flat: true, ..DeviceArray::new(array, opened) }
    }

    fn sizes(&self) -> Vec<i64> {
        let (rows, cols) = (self.array.rows() as i64, self.array.cols() as i64);
        if self.flat { vec![rows] } else { vec![rows, cols] }
    }

    /// Fails in a process that was forked, where the GPU's memory is not.
    fn here(&self) -> PyResult<&lensmith::DeviceArray> {
        match self.process == std::process::id() {
            true => Ok(&self.array),
            false => Err(with_kind("Fork", "an array on a GPU cannot be used in a forked process".into())),
        }
    }

    fn tensor<M: ManagedTensorBase>(&self) -> PyResult<Managed<M>> {
        let array = self.here()?;
        let (rows, cols) = (array.rows() as i64, array.cols() as i64);
        let kept = Arc::new(array.clone());
        let code = if array.dtype() == Dtype::Bf16 { DLDataTypeCode::BFLOAT } else { DLDataTypeCode::FLOAT };
        let kind = DLDataType { code, bits: 8 * array.dtype().size() as u8, lanes: 1 };
        macro_rules! finished {
            ($prepared:expr) => {{
                let mut tensor = $prepared.map_err(|error| value(error.to_string()))?.initialize(kept);
                tensor.set_data(array.address() as *mut _);
                tensor.set_dtype(kind);
                tensor.set_device(DlpackExporter::device(self));
                // SAFETY: the flags are those of the memory, which the tensor's context keeps; shape, strides and type are
                // those that it has.
                unsafe {
                    tensor.set_flags_unchecked(self.flags());
                    Ok(tensor.finish())
                }
            }};
        }
        match self.flat {
            true => finished!(Fixed::new([rows], [1]).prepare_as::<M>()),
            false => finished!(Fixed::new([rows, cols], [cols, 1]).prepare_as::<M>()),
        }
    }
}

#[pymethods]
impl DeviceArray {
    /// Number of rows and columns; of one number a row the number of rows alone.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.sizes())
    }

    /// Number of dimensions, 1 or 2.
    #[getter]
    fn ndim(&self) -> usize {
        self.sizes().len()
    }

    /// "float32", "float16" or "bfloat16".
    #[getter]
    fn dtype(&self) -> &'static str {
        name(self.array.dtype())
    }

    /// The GPU, as in "cuda:0", in the driver's order.
    #[getter]
    fn device(&self) -> String {
        format!("cuda:{}", self.array.device())
    }

    /// Bytes of the values.
    #[getter]
    fn nbytes(&self) -> usize {
        self.array.rows() * self.array.cols() * self.array.dtype().size()
    }

    fn __len__(&self) -> usize {
        self.array.rows()
    }

    fn __repr__(&self) -> String {
        format!("DeviceArray({:?}, {}, {})", self.sizes(), self.dtype(), self.device())
    }

    /// A copy in the memory of the host.
    fn host(&self, py: Python<'_>) -> PyResult<Embeddings> {
        let array = self.here()?;
        let rows = self.opened.soon(py, |engine| engine.to_host(array))?;
        Ok(Embeddings(Memory::new(rows)))
    }

    /// A copy on the host as a numpy array; bfloat16, which numpy lacks, as float32.
    fn numpy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let host = Bound::new(py, self.host(py)?)?;
        let out = match self.array.dtype() {
            Dtype::Bf16 => host.call_method0("float32")?,
            _ => host.call_method0("numpy")?,
        };
        if self.flat { out.call_method1("reshape", (-1,)) } else { Ok(out) }
    }

    /// A torch tensor over the same memory.
    fn torch<'py>(slf: Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let torch = slf
            .py()
            .import("lensmith._optional")?
            .call_method1("require", ("torch", "DeviceArray.torch()"))?;
        torch.call_method1("from_dlpack", (slf,))
    }

    /// The array by version 3 of the interface.
    #[getter]
    fn __cuda_array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let array = self.here()?;
        let kind = match array.dtype() {
            Dtype::F32 => "<f4",
            Dtype::F16 => "<f2",
            Dtype::Bf16 => {
                return Err(pyo3::exceptions::PyAttributeError::new_err(
                    "__cuda_array_interface__ has no bfloat16; DLPack has: torch.from_dlpack(array)",
                ));
            }
        };
        let out = PyDict::new(py);
        out.set_item("shape", self.shape(py)?)?;
        out.set_item("typestr", kind)?;
        // No rows have no place.
        let at = if array.rows() == 0 { 0 } else { array.address() };
        out.set_item("data", (at, false))?;
        out.set_item("strides", py.None())?;
        out.set_item("stream", py.None())?;
        out.set_item("version", 3)?;
        Ok(out)
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
        PyTuple::new(py, [2, self.array.device()])
    }
}

impl DlpackExporter for DeviceArray {
    fn device(&self) -> DLDevice {
        DLDevice { device_type: DLDeviceType::CUDA, device_id: self.array.device() as i32 }
    }

    fn flags(&self) -> DlpackFlags {
        DlpackFlags::empty()
    }

    fn prepare_export(&self, _: Python<'_>, _: &ExportRequest<'_>) -> PyResult<()> {
        self.here().map(drop)
    }

    fn export_legacy(&self, _: Python<'_>) -> PyResult<Managed<DLManagedTensor>> {
        self.tensor()
    }

    fn export_versioned(&self, _: Python<'_>) -> PyResult<Managed<DLManagedTensorVersioned>> {
        self.tensor()
    }
}

/// An array of Python that lies in the memory of a GPU; None for any other. `what` names it in errors, `own` is the
/// engine's GPU, if it has one.
pub fn import(
    array: &Bound<'_, PyAny>,
    own: Option<usize>,
    what: &str,
) -> PyResult<Option<lensmith::DeviceArray>> {
    if let Ok(array) = array.cast::<DeviceArray>() {
        return array.get().here().cloned().map(Some);
    }
    let by_dlpack = match array.hasattr("__dlpack_device__")? {
        true => {
            let (kind, number): (u32, i32) = array.call_method0("__dlpack_device__")?.extract()?;
            // Of host memory, pinned or not, the others take care.
            (kind == 2 || kind == 13).then_some(number)
        }
        false => None,
    };
    let by_interface = by_dlpack.is_none() && array.hasattr("__cuda_array_interface__")?;
    if by_dlpack.is_none() && !by_interface {
        return Ok(None);
    }
    let Some(own) = own else {
        return Err(value(format!(
            "{what}: expected an array in host memory, since the engine has no GPU, found one on a GPU; .cpu() brings it \
             there, Engine(\"cuda\") takes it"
        )));
    };
    match by_dlpack {
        Some(number) => from_dlpack(array, number as usize, what).map(Some),
        None => from_interface(array, own, what).map(Some),
    }
}

/// # Safety
/// As [`lensmith::DeviceArray::from_raw`].
unsafe fn lent(
    device: usize,
    address: u64,
    (rows, cols): (usize, usize),
    dtype: Dtype,
    what: &str,
    owner: Arc<dyn Any + Send + Sync>,
) -> PyResult<lensmith::DeviceArray> {
    if !address.is_multiple_of(dtype.size() as u64) {
        return Err(value(format!("{what}: expected an address that is a multiple of {}", dtype.size())));
    }
    // SAFETY: the caller answers for the memory.
    Ok(unsafe { lensmith::DeviceArray::from_raw(device, address, (rows, cols), dtype, owner) })
}

fn from_dlpack(array: &Bound<'_, PyAny>, device: usize, what: &str) -> PyResult<lensmith::DeviceArray> {
    let tensor = ImportRequest::new(array.as_borrowed())?.import(None, None)?;
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
            let found = array.getattr("dtype").map_or_else(|_| format!("{kind:?}"), |d| d.to_string());
            return Err(wrong_dtype(what, &found));
        }
    };
    let shape: Vec<usize> = view.shape().iter().map(|&n| n as usize).collect();
    let (rows, cols) = matrix(&shape, what)?;
    let strides = view.strides_or_compact().map_err(|error| value(format!("{what}: {error}")))?;
    if (cols > 1 && strides[1] != 1) || (rows > 1 && strides[0] != cols as i64) {
        return Err(not_contiguous(what));
    }
    let address = view.data_ptr() as usize as u64;
    // SAFETY: the tensor keeps memory of this shape and type, which its owner leaves alone while the engine reads.
    unsafe { lent(device, address, (rows, cols), dtype, what, Arc::new(Kept::Tensor(tensor))) }
}

fn from_interface(array: &Bound<'_, PyAny>, own: usize, what: &str) -> PyResult<lensmith::DeviceArray> {
    let interface = array.getattr("__cuda_array_interface__")?;
    let item = |key: &str| {
        interface.get_item(key).map_err(|_| value(format!("{what}: __cuda_array_interface__ has no {key}")))
    };
    let shape: Vec<usize> = item("shape")?.extract()?;
    let kind: String = item("typestr")?.extract()?;
    let dtype = match kind.trim_start_matches(['<', '=', '|']) {
        "f4" => Dtype::F32,
        "f2" => Dtype::F16,
        other => return Err(wrong_dtype(what, other)),
    };
    let (rows, cols) = matrix(&shape, what)?;
    let strides = interface.call_method1("get", ("strides",))?;
    if !strides.is_none() {
        let strides: Vec<i64> = strides.extract()?;
        let size = dtype.size() as i64;
        if (cols > 1 && strides[1] != size) || (rows > 1 && strides[0] != size * cols as i64) {
            return Err(not_contiguous(what));
        }
    }
    let mask = interface.call_method1("get", ("mask",))?;
    if !mask.is_none() {
        return Err(wrong_type(format!("{what}: expected an array without a mask, found a masked one")));
    }
    let (address, _): (u64, bool) = item("data")?.extract()?;
    // The interface does not name the GPU; cupy, numba and torch do.
    let number = ["index", "id"]
        .iter()
        .find_map(|name| array.getattr("device").ok()?.getattr(*name).ok()?.extract::<usize>().ok());
    let owner = Arc::new(Kept::Object(array.clone().unbind()));
    // SAFETY: the array keeps memory of this shape and type, which its owner leaves alone while the engine reads.
    unsafe { lent(number.unwrap_or(own), address, (rows, cols), dtype, what, owner) }
}
