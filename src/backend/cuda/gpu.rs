//! A GPU as a [`Driver`], by the CUDA driver library.
//!
//! 1. Two streams: `compute` for kernels and uploads, `copies` for downloads, which wait for an event of the
//!    first and so overlap what is launched after it.
//! 2. An arena keeps freed memory, by size, for the next allocation: the stream's order makes reuse safe
//!    without waiting. [`Gpu::exact`] does without, for tools that watch where buffers end.
//! 3. Copies from and to ordinary host memory go through pinned buffers (`pinned.rs`); downloads into
//!    registered host memory go there directly.

#![allow(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::c_void;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cudarc::driver::CudaContext;
use cudarc::driver::result::{self, DriverError as CallError, event, stream};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};

use super::architecture::Architecture;
use super::device::{Device, Handle, code};
use super::driver::{BoxedMatrix, Driver, DriverError, DriverResult, Event, Graph, HostMemory, Limits};
use super::launch::{Launch, Start};
use super::layout::BOX_ROW;
use super::pinned::{Staging, lock};
use crate::dtype::Dtype;
use crate::matrix::RowsBuf;

/// Allocations above this are rounded up to multiples of it, smaller ones to powers of two.
const LARGE: usize = 2 << 20;
/// Least bytes of an allocation.
const SMALLEST: usize = 512;

/// An opened GPU that runs launches.
pub struct Gpu {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    limits: Limits,
    functions: HashMap<&'static str, Handle<sys::CUfunc_st>>,
    /// Kernels whose code can wait for the launch ahead ([`Start::Early`]).
    can_wait: HashSet<&'static str>,
    compute: Handle<sys::CUstream_st>,
    copies: Handle<sys::CUstream_st>,
    /// Held for every call that puts work on `compute`: what comes between the start and the end of a
    /// recording becomes a part of it.
    compute_lock: Mutex<()>,
    upload_buffers: Staging,
    download_buffers: Staging,
    /// Registered host memory: first address and bytes of each range.
    registered: Mutex<BTreeMap<usize, usize>>,
    /// Whether the driver has refused to register memory, and is not asked again.
    unregistrable: AtomicBool,
    /// Answers of [`Driver::occupancy`] by kernel and shared memory.
    occupancy: Mutex<HashMap<(&'static str, usize), u32>>,
    /// The arena: addresses of freed memory by size class; None if every buffer is allocated for itself.
    freed: Option<Mutex<BTreeMap<usize, Vec<u64>>>>,
    context: Arc<CudaContext>,
    /// Owns the modules that the functions belong to.
    device: Device,
}

fn failed(what: &str) -> impl Fn(CallError) -> DriverError {
    move |e| DriverError::Other(format!("{what} failed ({})", code(&e)))
}

fn refused(kernel: &str, error: &CallError) -> DriverError {
    DriverError::Other(format!("launching {kernel} failed ({})", code(error)))
}

impl Gpu {
    /// Streams, and leave for every kernel to use all shared memory of a block.
    pub fn new(device: Device) -> DriverResult<Gpu> {
        Gpu::with(device, Some(Mutex::default()))
    }

    /// The same without the arena: every buffer has exactly the bytes that were asked for, and is given back at once,
    /// so that compute-sanitizer and the like find accesses past its end. Slower: giving back waits for the device.
    pub fn exact(device: Device) -> DriverResult<Gpu> {
        Gpu::with(device, None)
    }

    fn with(device: Device, freed: Option<Mutex<BTreeMap<usize, Vec<u64>>>>) -> DriverResult<Gpu> {
        let context = device.context().clone();
        context.bind_to_thread().map_err(failed("binding the context"))?;
        let attribute = |which| {
            // SAFETY: the device belongs to the live context.
            unsafe { result::device::get_attribute(context.cu_device(), which) }
                .map_err(failed("asking for an attribute"))
        };
        let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let processors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let together = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)?;
        let limits = Limits {
            shared: usize::try_from(shared).unwrap_or(0),
            processors: u32::try_from(processors).unwrap_or(1).max(1),
            architecture: device.architecture(),
            cooperative: together != 0 && !device.by_steps(),
        };
        // From CUDA 12.3 on a capture takes launches that start early.
        let early = limits.architecture >= Architecture::Sm90 && device.summary().driver >= (12, 3);
        let (mut functions, mut can_wait) = (HashMap::new(), HashSet::new());
        for (name, function) in device.functions() {
            // SAFETY: the function belongs to a module that `device` keeps loaded.
            unsafe {
                result::function::set_function_attribute(
                    function.0,
                    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared,
                )
            }
            .map_err(failed("allowing shared memory"))?;
            if early {
                // What was compiled for an older architecture, and by the driver for this one, does not wait.
                let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION;
                // SAFETY: as above.
                let version = unsafe { result::function::get_function_attribute(function.0, which) };
                if version.map_err(failed("asking for a kernel's attribute"))? >= 90 {
                    can_wait.insert(name);
                }
            }
            functions.insert(name, function);
        }
        let new_stream =
            || stream::create(stream::StreamKind::NonBlocking).map_err(failed("making a stream"));
        let inner = Inner {
            name: format!("cuda:{}", device.index()),
            limits,
            functions,
            can_wait,
            compute: Handle(new_stream()?),
            copies: Handle(new_stream()?),
            compute_lock: Mutex::default(),
            upload_buffers: Staging::new(),
            download_buffers: Staging::new(),
            registered: Mutex::default(),
            unregistrable: AtomicBool::new(false),
            occupancy: Mutex::default(),
            freed,
            context,
            device,
        };
        Ok(Gpu { inner: Arc::new(inner) })
    }
}

impl Inner {
    fn bind(&self) -> DriverResult<()> {
        self.context.bind_to_thread().map_err(failed("binding the context"))
    }

    /// Empties the arena: gives all freed memory back to the driver.
    fn release(&self) -> DriverResult<()> {
        let cached = self.freed.as_ref().map(|freed| std::mem::take(&mut *lock(freed))).unwrap_or_default();
        // Without the lock another thread may be recording, which waiting for the stream would break off.
        let _guard = lock(&self.compute_lock);
        // SAFETY: the stream is live.
        unsafe { stream::synchronize(self.compute.0) }.map_err(failed("waiting for the GPU"))?;
        for address in cached.into_values().flatten() {
            // SAFETY: allocated by this driver, owned by no buffer, and the stream is idle.
            unsafe { result::free_sync(address) }.map_err(failed("freeing device memory"))?;
        }
        Ok(())
    }

    fn function(&self, kernel: &str) -> DriverResult<sys::CUfunction> {
        let found = self.functions.get(kernel).map(|function| function.0);
        found.ok_or_else(|| DriverError::Other(format!("{kernel} is not among the GPU's kernels")))
    }

    /// Registers host memory, which the GPU reads and writes directly for as long as the result is kept.
    fn register(owner: &Arc<Inner>, bytes: &mut [u8]) -> Result<Registered, CallError> {
        owner.context.bind_to_thread()?;
        let start = bytes.as_mut_ptr();
        // SAFETY: `RowsBuf::note` drops the result, which unregisters the bytes, before it frees or moves
        // them.
        unsafe { sys::cuMemHostRegister_v2(start.cast(), bytes.len(), 0) }.result()?;
        lock(&owner.registered).insert(start.addr(), bytes.len());
        Ok(Registered { start: Handle(start.cast()), owner: owner.clone() })
    }

    /// Whether all of `bytes` lies in one registered range.
    fn is_registered(&self, bytes: &[u8]) -> bool {
        let (at, registered) = (bytes.as_ptr().addr(), lock(&self.registered));
        let range = registered.range(..=at).next_back();
        range.is_some_and(|(&start, &len)| at + bytes.len() <= start + len)
    }

    fn launch(&self, launch: &Launch) -> DriverResult<()> {
        let function = self.function(launch.kernel)?;
        let mut parameters: [*mut c_void; 1] = [launch.params.words().as_ptr().cast_mut().cast()];
        let [x, y, z] = launch.grid;
        let shared = u32::try_from(launch.shared).unwrap_or(u32::MAX);
        let (early, together) = (self.can_wait.contains(launch.kernel), launch.start == Start::Together);
        if together || early && launch.start == Start::Early {
            let id = match together {
                true => sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
                false => sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            };
            // The value of either is an integer at the start of the union.
            let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
            value.cooperative = 1;
            let mut attribute = sys::CUlaunchAttribute { id, pad: [0; 4], value };
            let config = sys::CUlaunchConfig {
                gridDimX: x,
                gridDimY: y,
                gridDimZ: z,
                blockDimX: launch.threads,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: shared,
                hStream: self.compute.0,
                attrs: &mut attribute,
                numAttrs: 1,
            };
            let arguments = parameters.as_mut_ptr();
            // SAFETY: as below; the driver copies configuration and attribute too.
            return unsafe { sys::cuLaunchKernelEx(&config, function, arguments, std::ptr::null_mut()) }
                .result()
                .map_err(|e| refused(launch.kernel, &e));
        }
        // SAFETY: the typed launch functions give each kernel the one structure that it takes; the driver
        // copies it before it returns. Buffers are freed to the arena only, whose memory is used again in
        // the stream's order.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (launch.threads, 1, 1),
                shared,
                self.compute.0,
                &mut parameters,
            )
        }
        .map_err(|e| refused(launch.kernel, &e))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_err() || self.release().is_err() {
            return;
        }
        // SAFETY: made by this object, used by nobody else, and nothing runs on them any more. The pinned
        // buffers go after this, with the context bound.
        unsafe {
            let _ = stream::synchronize(self.copies.0);
            let _ = stream::destroy(self.compute.0);
            let _ = stream::destroy(self.copies.0);
        }
    }
}

/// Bytes that are allocated for `bytes`; the arena keeps memory by this size.
fn size_class(bytes: usize) -> usize {
    if bytes > LARGE { bytes.next_multiple_of(LARGE) } else { bytes.next_power_of_two().max(SMALLEST) }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({})", self.inner.device.summary())
    }
}

struct CudaEvent {
    raw: Handle<sys::CUevent_st>,
    owner: Arc<Inner>,
}

impl Event for CudaEvent {
    fn raw(&self) -> *mut c_void {
        self.raw.0.cast()
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        if self.owner.context.bind_to_thread().is_ok() {
            // SAFETY: made by this object and destroyed once.
            let _ = unsafe { event::destroy(self.raw.0) };
        }
    }
}

/// A range of registered host memory.
struct Registered {
    start: Handle<c_void>,
    owner: Arc<Inner>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.owner.registered).remove(&self.start.0.addr());
        if self.owner.context.bind_to_thread().is_ok() {
            // SAFETY: registered by this object; every copy into it was waited for.
            let _ = unsafe { sys::cuMemHostUnregister(self.start.0) };
        }
    }
}

/// Pinned memory that the device reaches.
struct MappedMemory {
    host: Handle<c_void>,
    address: u64,
    owner: Arc<Inner>,
}

impl fmt::Debug for MappedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedMemory({:#x})", self.address)
    }
}

impl HostMemory for MappedMemory {
    fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for MappedMemory {
    fn drop(&mut self) {
        if self.owner.bind().is_ok() {
            let _guard = lock(&self.owner.compute_lock);
            // SAFETY: allocated by this object; nothing that was launched uses it behind the wait.
            unsafe {
                let _ = stream::synchronize(self.owner.compute.0);
                let _ = result::free_host(self.host.0);
            }
        }
    }
}

/// An instantiated graph.
struct CudaGraph {
    /// Launched only while `compute_lock` is held.
    raw: Handle<sys::CUgraphExec_st>,
    owner: Arc<Inner>,
}

impl Graph for CudaGraph {
    fn replay(&self) -> DriverResult<()> {
        self.owner.bind()?;
        let _guard = lock(&self.owner.compute_lock);
        // SAFETY: graph and stream are live; the trainer that holds the graph holds the buffers that it
        // names.
        unsafe { result::graph::launch(self.raw.0, self.owner.compute.0) }
            .map_err(failed("launching a graph"))
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if self.owner.context.bind_to_thread().is_ok() {
            // SAFETY: made by this object and destroyed once.
            let _ = unsafe { result::graph::exec_destroy(self.raw.0) };
        }
    }
}

impl Driver for Gpu {
    fn name(&self) -> &str {
        &self.inner.name
    }

    fn detail(&self) -> String {
        self.inner.device.summary().to_string()
    }

    fn limits(&self) -> Limits {
        self.inner.limits
    }

    fn occupancy(&self, kernel: &'static str, threads: u32, shared: usize) -> DriverResult<u32> {
        let inner = &self.inner;
        let key = (kernel, shared);
        if let Some(&known) = lock(&inner.occupancy).get(&key) {
            return Ok(known);
        }
        inner.bind()?;
        let mut blocks = 0;
        // SAFETY: writes one integer to a valid place; the function belongs to a module that the device keeps
        // loaded.
        unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                inner.function(kernel)?,
                i32::try_from(threads).unwrap_or(i32::MAX),
                shared,
            )
        }
        .result()
        .map_err(failed("asking for a kernel's occupancy"))?;
        // 0 for a block that does not fit: its launch fails with a reason, so it is let through here.
        let blocks = u32::try_from(blocks).unwrap_or(0).max(1);
        lock(&inner.occupancy).insert(key, blocks);
        Ok(blocks)
    }

    fn tensor_map(&self, matrix: BoxedMatrix) -> DriverResult<[u64; 16]> {
        use sys::CUtensorMapDataType_enum as Type;
        let BoxedMatrix { address, dtype, rows, columns, box_rows } = matrix;
        let of = match dtype {
            Dtype::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            Dtype::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            Dtype::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let sizes = [columns as u64, rows as u64];
        let strides = [(columns * dtype.size()) as u64];
        let boxed = [BOX_ROW / dtype.size() as u32, box_rows];
        self.inner.bind()?;
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the arrays have as many elements as the two dimensions ask for; the memory is not touched.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                of,
                2,
                address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                boxed.as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(failed("describing a matrix to the copy engine"))?;
        Ok(map.opaque)
    }

    fn allocate(&self, bytes: usize, what: &'static str) -> DriverResult<u64> {
        let inner = &self.inner;
        let class = if inner.freed.is_some() { size_class(bytes) } else { bytes };
        let kept = inner.freed.as_ref().and_then(|freed| lock(freed).get_mut(&class).and_then(Vec::pop));
        if let Some(address) = kept {
            return Ok(address);
        }
        inner.bind()?;
        // SAFETY: the caller writes the memory before reading it.
        let attempt = || unsafe { result::malloc_sync(class) };
        let out_of_memory = |e: &CallError| e.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        let address = match attempt() {
            Err(e) if out_of_memory(&e) => {
                inner.release()?;
                attempt()
            }
            other => other,
        };
        address.map_err(|e| match out_of_memory(&e) {
            true => DriverError::OutOfMemory {
                what,
                wanted: class,
                free: result::mem_get_info().map_or(0, |m| m.0),
            },
            false => failed("allocating device memory")(e),
        })
    }

    fn free(&self, address: u64, bytes: usize) {
        match &self.inner.freed {
            Some(freed) => lock(freed).entry(size_class(bytes)).or_default().push(address),
            None if self.inner.bind().is_ok() => {
                let _guard = lock(&self.inner.compute_lock);
                // SAFETY: allocated by this driver, and the call waits for what uses it. An error is one of a launch
                // before, which the next call reports.
                let _ = unsafe { result::free_sync(address) };
            }
            None => {}
        }
    }

    fn upload(&self, to: u64, from: &[u8]) -> DriverResult<()> {
        let inner = &self.inner;
        inner.bind()?;
        // SAFETY: the context is bound, the stream live, and the destination has room.
        unsafe { inner.upload_buffers.send(to, from, inner.compute.0, &inner.compute_lock) }
            .map_err(failed("copying to the GPU"))
    }

    fn event(&self) -> DriverResult<Box<dyn Event>> {
        self.inner.bind()?;
        let made = event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let made =
            CudaEvent { raw: Handle(made.map_err(failed("making an event"))?), owner: self.inner.clone() };
        let _guard = lock(&self.inner.compute_lock);
        // SAFETY: event and stream are live.
        unsafe { event::record(made.raw.0, self.inner.compute.0) }.map_err(failed("recording an event"))?;
        Ok(Box::new(made))
    }

    fn download(&self, event: &dyn Event, to: &mut [u8], from: u64) -> DriverResult<()> {
        let inner = &self.inner;
        inner.bind()?;
        let wait = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        let direct = inner.is_registered(to);
        // SAFETY: the event is of this driver, the source has bytes for all of `to`, and `to` is borrowed
        // until the copy is done.
        unsafe {
            stream::wait_event(inner.copies.0, event.raw().cast(), wait).and_then(|()| match direct {
                true => result::memcpy_dtoh_async(to, from, inner.copies.0)
                    .and_then(|()| stream::synchronize(inner.copies.0)),
                false => inner.download_buffers.receive(to, from, inner.copies.0),
            })
        }
        .map_err(failed("copying from the GPU"))
    }

    fn allocate_host(&self, bytes: usize) -> DriverResult<Box<dyn HostMemory>> {
        self.inner.bind()?;
        let failed = failed("pinning memory of the host");
        // SAFETY: the memory is written before it is read, and freed by the object that is made of it.
        let host = unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP) }.map_err(&failed)?;
        let mut made = MappedMemory { host: Handle(host), address: 0, owner: self.inner.clone() };
        // SAFETY: writes one address to a valid place; the memory was just allocated as mapped.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut made.address, host, 0) }.result().map_err(&failed)?;
        Ok(Box::new(made))
    }

    fn register(&self, memory: &mut RowsBuf) {
        if self.inner.unregistrable.load(Ordering::Relaxed) {
            return;
        }
        memory.attach_guard(|bytes| match Inner::register(&self.inner, bytes) {
            Ok(registered) => Some(Box::new(registered)),
            Err(refused) => {
                if !self.inner.unregistrable.swap(true, Ordering::Relaxed) {
                    let (name, code) = (self.name(), code(&refused));
                    tracing::warn!(
                        "{name}: the driver does not register host memory ({code}): downloads take a copy more \
                         (the limit of `ulimit -l` may be in the way)"
                    );
                }
                None
            }
        });
    }

    fn synchronize(&self) -> DriverResult<()> {
        self.inner.bind()?;
        let _guard = lock(&self.inner.compute_lock);
        result::ctx::synchronize().map_err(failed("waiting for the GPU"))
    }

    fn index(&self) -> usize {
        self.inner.device.index()
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> DriverResult<()> {
        self.inner.bind()?;
        let _guard = lock(&self.inner.compute_lock);
        // SAFETY: both have this many bytes.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.inner.compute.0) }
            .map_err(failed("copying on the GPU"))
    }

    fn clear(&self, at: u64, bytes: usize) -> DriverResult<()> {
        self.inner.bind()?;
        let _guard = lock(&self.inner.compute_lock);
        // SAFETY: the memory has this many bytes.
        unsafe { result::memset_d8_async(at, 0, bytes, self.inner.compute.0) }
            .map_err(failed("clearing memory"))
    }

    fn launch(&self, launch: &Launch) -> DriverResult<()> {
        self.inner.bind()?;
        let _guard = lock(&self.inner.compute_lock);
        self.inner.launch(launch)
    }

    fn record(&self, launches: Vec<Launch>) -> DriverResult<Box<dyn Graph>> {
        let inner = &self.inner;
        inner.bind()?;
        let failed = failed("recording a graph");
        let _guard = lock(&inner.compute_lock);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live, and nobody else uses it while the lock is held.
        unsafe { stream::begin_capture(inner.compute.0, mode) }.map_err(&failed)?;
        let made = launches.iter().try_for_each(|launch| inner.launch(launch));
        // SAFETY: the capture began above; it must end even if a launch failed.
        let graph = unsafe { stream::end_capture(inner.compute.0) }.map_err(&failed);
        made?;
        let graph = graph?;
        // SAFETY: the graph was just made; what is instantiated from it does not need it.
        let raw = unsafe {
            let raw = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            raw
        };
        Ok(Box::new(CudaGraph { raw: Handle(raw.map_err(&failed)?), owner: inner.clone() }))
    }
}
