//! Opening a GPU: driver, version, GPU, compute capability, context, kernels. Each step that fails has an
//! error of its own, which says what would help.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};

use super::architecture::{self, Architecture};
use super::kernels::{IMAGES, Image, ReplacedImages, TOOLKIT};
use crate::error::{Error, Result};

/// The lowest compute capability that any kernel is written for, times ten.
const LOWEST: u32 = 75;

/// What a GPU says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The vendor's name for it.
    pub name: String,
    /// Compute capability, as in (9, 0).
    pub capability: (u32, u32),
    /// Bytes of device memory.
    pub memory: usize,
    /// The CUDA release that the driver knows, as in (13, 0).
    pub driver: (u32, u32),
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = self.memory as f64 / f64::from(1 << 30);
        let ((major, minor), driver) = (self.capability, self.driver);
        write!(f, "{}, compute capability {major}.{minor}, {gib:.1} GiB, ", self.name)?;
        write!(f, "driver for CUDA {}.{}", driver.0, driver.1)
    }
}

/// An opened GPU with the kernels that it can run.
#[derive(Debug)]
pub struct Device {
    index: usize,
    summary: Summary,
    architecture: Architecture,
    by_steps: bool,
    context: Arc<CudaContext>,
    modules: Vec<Module>,
}

impl Device {
    /// Opens GPU `index`, in the order of the driver.
    ///
    /// # Errors
    /// [`Error::Device`] with what is missing and what would help: the driver, a new enough one, the GPU, a
    /// GPU of compute capability 7.5, or kernels for it in this build.
    pub fn open(index: usize) -> Result<Device> {
        Device::with(index, &ReplacedImages::default())
    }

    /// Opens GPU `index` with kernels from a folder: `images` holds `STEM.fatbin` or `STEM.cubin` for files
    /// `kernels/STEM.cu` that were compiled anew, and the build's own are taken of the other files. The new
    /// kernels are launched as the build's own are: parameters, block size and shared memory must be the
    /// same.
    ///
    /// # Errors
    /// As [`Device::open`]; and where the folder cannot be read, holds no image, or one of no kernel file.
    pub fn open_with_images(index: usize, images: &Path) -> Result<Device> {
        let device = || format!("cuda:{index}");
        let replaced =
            ReplacedImages::read(images).map_err(|reason| Error::Device { device: device(), reason })?;
        Device::with(index, &replaced)
    }

    fn with(index: usize, replaced: &ReplacedImages) -> Result<Device> {
        open(index, replaced).map_err(|reason| Error::Device { device: format!("cuda:{index}"), reason })
    }

    /// Whether this machine offers no GPU at all: there is no driver library, or the driver lists no GPU. A
    /// GPU that is there and does not open is another matter, for [`Device::open`] to explain.
    pub fn is_absent() -> bool {
        matches!(start(), Err(Unready::NoGpu(_)))
    }

    /// How many GPUs the driver lists; at least one.
    ///
    /// # Errors
    /// [`Error::Device`] as [`Device::open`] for what any GPU lacks: the driver, a new enough one, a GPU at
    /// all.
    pub fn count() -> Result<usize> {
        let device = || "cuda:all".to_string();
        start().map(|(_, count)| count).map_err(|e| Error::Device { device: device(), reason: e.reason() })
    }

    /// Name, compute capability, memory and driver.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Its number in the order of the driver.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Which kernels it runs.
    pub(super) fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// Whether training goes step by step also where an epoch fits one launch.
    pub(super) fn by_steps(&self) -> bool {
        self.by_steps
    }

    /// The context of all its memory, streams and modules.
    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// The kernels that were loaded, by name, valid as long as the device.
    pub(super) fn functions(&self) -> impl Iterator<Item = (&'static str, Handle<sys::CUfunc_st>)> {
        self.modules.iter().flat_map(|module| module.functions.iter().copied())
    }
}

/// A handle of the driver, as of a stream or a kernel: a pointer that is handed to its functions and never
/// read through.
#[derive(Debug)]
pub(super) struct Handle<T>(pub(super) *mut T);

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Handle<T> {
        *self
    }
}

impl<T> Copy for Handle<T> {}

// SAFETY: the driver lets any thread use a handle; which calls must not overlap is for their callers.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Handle<T> {}

/// An image in a context.
#[derive(Debug)]
struct Module {
    raw: Handle<sys::CUmod_st>,
    functions: Vec<(&'static str, Handle<sys::CUfunc_st>)>,
    /// Outlives the module.
    context: Arc<CudaContext>,
}

impl Module {
    fn load(
        context: &Arc<CudaContext>,
        image: &'static Image,
        replaced: &ReplacedImages,
    ) -> Result<Module, DriverError> {
        context.bind_to_thread()?;
        let bytes = replaced.bytes(image);
        // SAFETY: the image is a whole fatbin or cubin as nvcc wrote it, with its size in its header; the
        // driver has copied what it needs when the call returns.
        let raw = unsafe { result::module::load_data(bytes.as_ptr().cast()) }?;
        let mut module = Module { raw: Handle(raw), functions: Vec::new(), context: context.clone() };
        for &symbol in image.symbols {
            let name = CString::new(symbol).expect("a kernel's name has no zero byte");
            // SAFETY: the module was just loaded and is not unloaded before `module` is dropped.
            let function = unsafe { result::module::get_function(raw, name) }?;
            module.functions.push((symbol, Handle(function)));
        }
        Ok(module)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // A context that cannot be bound is destroyed, and its modules with it.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: loaded in this context and unloaded only here.
            let _ = unsafe { result::module::unload(self.raw.0) };
        }
    }
}

/// Why no GPU can be opened.
enum Unready {
    /// There is no driver, or no GPU.
    NoGpu(String),
    /// The driver does not work.
    Driver(String),
}

impl Unready {
    fn reason(self) -> String {
        let (Unready::NoGpu(reason) | Unready::Driver(reason)) = self;
        reason
    }
}

/// Starts the driver: the CUDA release that it knows, and the number of GPUs, at least one.
fn start() -> Result<((u32, u32), usize), Unready> {
    // SAFETY: loads a library of the system; what it runs on loading is the driver's own.
    if !unsafe { sys::is_culib_present() } {
        let driver = TOOLKIT.map_or("the NVIDIA driver", |release| needed_driver(release.0));
        return Err(Unready::NoGpu(format!(
            "no NVIDIA driver library (libcuda) found: install {driver}, give the container access to the GPU, \
             or use `device` cpu"
        )));
    }
    let driver = driver_release()
        .map_err(|e| Unready::Driver(format!("the driver does not tell its version ({})", code(&e))))?;
    if let Some(compiled_by) = TOOLKIT.filter(|release| release.0 > driver.0) {
        return Err(Unready::Driver(format!(
            "the NVIDIA driver is for CUDA {}.{}, the kernels were compiled by CUDA {}.{}: install {}, or set \
             CUDA_HOME to a CUDA {} toolkit and build again",
            driver.0,
            driver.1,
            compiled_by.0,
            compiled_by.1,
            needed_driver(compiled_by.0),
            driver.0,
        )));
    }
    result::init().map_err(|e| refused_to_start(&e))?;
    let count = result::device::get_count().map_err(|e| refused_to_start(&e))?;
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok((driver, count)),
        _ => Err(Unready::NoGpu(NO_GPU.into())),
    }
}

fn open(index: usize, replaced: &ReplacedImages) -> Result<Device, String> {
    let (driver, count) = start().map_err(Unready::reason)?;
    match count {
        1 if index > 0 => return Err("there is only one GPU, cuda:0".into()),
        _ if index >= count => {
            return Err(format!("there are only {count} GPUs, cuda:0 to cuda:{}", count - 1));
        }
        _ => {}
    }
    let summary =
        summary(index, driver).map_err(|e| format!("the GPU does not tell what it is ({})", code(&e)))?;
    let capability = summary.capability.0 * 10 + summary.capability.1;
    if capability < LOWEST {
        return Err(format!(
            "{summary}: compute capability {}.{} or higher is needed (Turing, 2018); use `device` cpu",
            LOWEST / 10,
            LOWEST % 10
        ));
    }
    if cfg!(no_nvcc) {
        return Err(format!(
            "{summary}: lensmith was built without nvcc and has no kernels for it: run tools/setup_cuda, or set \
             CUDA_HOME, and build again"
        ));
    }
    let architecture = Architecture::choose(summary.capability)?;
    let by_steps = architecture::by_steps()?;
    let context = CudaContext::new(index).map_err(|e| match e.0 {
        CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            format!("{summary}: another process holds the GPU in exclusive mode: wait, or choose another GPU")
        }
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            format!("{summary}: no memory left on the GPU: end what else runs there, or choose another GPU")
        }
        _ => format!("{summary}: the driver opens no context on it ({})", code(&e)),
    })?;
    let mut modules = Vec::new();
    for image in IMAGES.iter().filter(|image| image.suits(capability)) {
        let module = Module::load(&context, image, replaced);
        modules.push(module.map_err(|e| refused_image(&summary, image, &e))?);
    }
    if modules.is_empty() {
        return Err(format!("{summary}: this build has no kernels for it: {}", build_for(&summary)));
    }
    Ok(Device { index, summary, architecture, by_steps, context, modules })
}

const NO_GPU: &str =
    "the NVIDIA driver sees no GPU: check CUDA_VISIBLE_DEVICES, and the container's access to the GPU";

/// The release of CUDA that the driver knows. Needs no GPU.
fn driver_release() -> Result<(u32, u32), DriverError> {
    let mut version = 0;
    // SAFETY: writes one integer to a valid place.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    let version = u32::try_from(version).unwrap_or(0);
    Ok((version / 1000, version % 1000 / 10))
}

/// The first driver that runs code of a CUDA release.
fn needed_driver(major: u32) -> &'static str {
    match major {
        ..=12 => "NVIDIA driver 525 or newer",
        13 => "NVIDIA driver 580 or newer",
        _ => "a newer NVIDIA driver",
    }
}

fn summary(index: usize, driver: (u32, u32)) -> Result<Summary, DriverError> {
    let device = result::device::get(i32::try_from(index).unwrap_or(i32::MAX))?;
    let attribute = |which: Attribute| {
        // SAFETY: `device` came from the driver.
        unsafe { result::device::get_attribute(device, which) }.map(|value| u32::try_from(value).unwrap_or(0))
    };
    Ok(Summary {
        name: result::device::get_name(device)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // SAFETY: `device` came from the driver.
        memory: unsafe { result::device::total_mem(device) }?,
        driver,
    })
}

fn refused_to_start(error: &DriverError) -> Unready {
    Unready::Driver(match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => return Unready::NoGpu(NO_GPU.into()),
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            return Unready::NoGpu(
                "the libcuda found is a toolkit's stub, not the driver: take its folder out of LD_LIBRARY_PATH"
                    .into(),
            );
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the driver library and the driver in the kernel are of different versions: restart the machine"
                .into()
        }
        _ => format!("the NVIDIA driver does not start ({}): nvidia-smi may say more", code(error)),
    })
}

fn refused_image(summary: &Summary, image: &Image, error: &DriverError) -> String {
    let source = image.source;
    match error.0 {
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            let held = image.architectures.join(", ");
            format!("{summary}: the kernels of {source} are for {held}: {}", build_for(summary))
        }
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | CUresult::CUDA_ERROR_INVALID_PTX
        | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
        | CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED => {
            let code = code(error);
            format!("{summary}: the driver cannot compile {source} for it ({code}): {}", build_for(summary))
        }
        _ => format!(
            "{summary}: the driver refuses the kernels of {source} ({}): install a newer driver, or build again",
            code(error)
        ),
    }
}

/// The command that makes kernels for a GPU.
fn build_for(summary: &Summary) -> String {
    let (major, minor) = summary.capability;
    // The build compiles for 9.0a too: the variant with instructions that later GPUs lack.
    let suffix = if (major, minor) == (9, 0) { "a" } else { "" };
    format!("build again with LENSMITH_CUDA_ARCHS={major}{minor}{suffix}, or install a newer driver")
}

/// The driver's name for an error, as in CUDA_ERROR_NO_DEVICE.
pub(super) fn code(error: &DriverError) -> String {
    error
        .error_name()
        .map_or_else(|_| "an error without a name".into(), |name| name.to_string_lossy().into_owned())
}
