//! A GPU as a driver: one stream for kernels and uploads, one for downloads, pinned staging for both, and an arena that
//! keeps freed memory for the next who asks.

#![allow(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::fmt;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::CudaContext;
use cudarc::driver::result::{self, DriverError, event, stream};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};

use super::device::{Device, code};
use super::driver::{Driver, Fault, Graph, Limits, Mark, Outcome};
use super::launch::Launch;

/// Bytes of one of the pinned buffers that copies go through: enough to hide the start of a copy.
const STAGE: usize = 8 << 20;
/// Copies up to this size go without staging: the driver takes the bytes before it returns.
const SMALL: usize = 64 << 10;
/// Allocations above this are multiples of it, smaller ones powers of two.
const LARGE: usize = 2 << 20;
const SMALLEST: usize = 512;

/// An opened GPU that runs launches.
pub struct Gpu {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    limits: Limits,
    functions: HashMap<&'static str, sys::CUfunction>,
    compute: sys::CUstream,
    copies: sys::CUstream,
    /// Held while launches are made, so that a recording holds its own alone.
    order: Mutex<()>,
    up: Mutex<Stage>,
    down: Mutex<Stage>,
    /// Blocks that a multiprocessor runs of a kernel with so much shared memory, as far as they were asked for.
    resident: Mutex<HashMap<(&'static str, usize), u32>>,
    /// Freed memory by its size.
    free: Mutex<BTreeMap<usize, Vec<u64>>>,
    context: Arc<CudaContext>,
    /// Holds the modules of the functions.
    device: Device,
}

// SAFETY: streams, functions and pinned addresses are handles that the driver lets any thread use; what must not be
// used by two threads at a time is behind a mutex.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// Two pinned buffers, each with the event of its last copy.
struct Stage {
    buffers: [*mut c_void; 2],
    events: [sys::CUevent; 2],
}

fn fault(what: &str) -> impl Fn(DriverError) -> Fault {
    move |e| Fault::Other(format!("{what} failed ({})", code(&e)))
}

impl Stage {
    fn new() -> Result<Stage, DriverError> {
        let pinned = || {
            // SAFETY: any bytes are fine, as a copy writes them before they are read.
            unsafe { result::malloc_host(STAGE, 0) }
        };
        let timeless = || event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        Ok(Stage { buffers: [pinned()?, pinned()?], events: [timeless()?, timeless()?] })
    }

    /// The first `len` bytes of buffer `i`, whose last copy must be done.
    ///
    /// # Safety
    /// No copy may be using the buffer.
    unsafe fn bytes(&mut self, i: usize, len: usize) -> &mut [u8] {
        assert!(len <= STAGE, "a piece of at most one buffer");
        // SAFETY: the buffer has STAGE bytes, is this object's own, and no copy uses it.
        unsafe { slice::from_raw_parts_mut(self.buffers[i].cast(), len) }
    }
}

impl Gpu {
    /// Makes a driver of a device.
    pub fn new(device: Device) -> Outcome<Gpu> {
        let context = device.context().clone();
        context.bind_to_thread().map_err(fault("binding the context"))?;
        let attribute = |which| {
            // SAFETY: the device belongs to the live context.
            unsafe { result::device::get_attribute(context.cu_device(), which) }
                .map_err(fault("asking for an attribute"))
        };
        let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let processors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let limits = Limits {
            shared: usize::try_from(shared).unwrap_or(0),
            processors: u32::try_from(processors).unwrap_or(1).max(1),
            tensor_cores: device.summary().capability.0 >= 8,
        };
        let mut functions = HashMap::new();
        for (name, function) in device.functions() {
            // SAFETY: the function belongs to a module that `device` keeps loaded.
            unsafe {
                result::function::set_function_attribute(
                    function,
                    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared,
                )
            }
            .map_err(fault("allowing shared memory"))?;
            functions.insert(name, function);
        }
        let new_stream = || stream::create(stream::StreamKind::NonBlocking).map_err(fault("making a stream"));
        let new_stage = || Stage::new().map_err(fault("pinning host memory"));
        let inner = Inner {
            name: format!("cuda:{}", device.index()),
            limits,
            functions,
            compute: new_stream()?,
            copies: new_stream()?,
            order: Mutex::default(),
            up: Mutex::new(new_stage()?),
            down: Mutex::new(new_stage()?),
            resident: Mutex::default(),
            free: Mutex::default(),
            context,
            device,
        };
        Ok(Gpu { inner: Arc::new(inner) })
    }
}

impl Inner {
    fn bind(&self) -> Outcome<()> {
        self.context.bind_to_thread().map_err(fault("binding the context"))
    }

    /// Gives all freed memory back to the driver.
    fn release(&self) -> Outcome<()> {
        let cached = std::mem::take(&mut *lock(&self.free));
        // SAFETY: the stream is live.
        unsafe { stream::synchronize(self.compute) }.map_err(fault("waiting for the GPU"))?;
        for address in cached.into_values().flatten() {
            // SAFETY: allocated by this driver, in nobody's hands, and nothing runs that could use it.
            unsafe { result::free_sync(address) }.map_err(fault("freeing device memory"))?;
        }
        Ok(())
    }

    fn function(&self, kernel: &str) -> Outcome<sys::CUfunction> {
        let found = self.functions.get(kernel).copied();
        found.ok_or_else(|| Fault::Other(format!("{kernel} is not among the GPU's kernels")))
    }

    fn launch(&self, launch: &Launch) -> Outcome<()> {
        let function = self.function(launch.kernel)?;
        let mut pointers: Vec<*mut c_void> =
            launch.args.words().iter().map(|words| words.as_ptr().cast_mut().cast()).collect();
        let [x, y, z] = launch.grid;
        // SAFETY: the typed launch functions give each kernel the arguments of its parameters; the driver copies them
        // before it returns. Buffers are freed to the arena only, whose memory is used again in the stream's order.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (launch.threads, 1, 1),
                u32::try_from(launch.shared).unwrap_or(u32::MAX),
                self.compute,
                &mut pointers,
            )
        }
        .map_err(|e| Fault::Other(format!("launching {} failed ({})", launch.kernel, code(&e))))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_err() || self.release().is_err() {
            return;
        }
        // SAFETY: all made by this object, used by nobody else, and nothing runs any more.
        unsafe {
            for stage in [&self.up, &self.down] {
                let stage = lock(stage);
                for i in 0..2 {
                    let _ = result::free_host(stage.buffers[i]);
                    let _ = event::destroy(stage.events[i]);
                }
            }
            let _ = stream::destroy(self.compute);
            let _ = stream::destroy(self.copies);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the arena keeps memory by.
fn size_class(bytes: usize) -> usize {
    if bytes > LARGE { bytes.next_multiple_of(LARGE) } else { bytes.next_power_of_two().max(SMALLEST) }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({})", self.inner.device.summary())
    }
}

/// An event behind what was launched.
struct Event {
    raw: sys::CUevent,
    owner: Arc<Inner>,
}

// SAFETY: events are handles that the driver lets any thread use.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Mark for Event {
    fn raw(&self) -> *mut c_void {
        self.raw.cast()
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.owner.context.bind_to_thread().is_ok() {
            // SAFETY: made by this object and destroyed once.
            let _ = unsafe { event::destroy(self.raw) };
        }
    }
}

/// An instantiated graph.
struct Recorded {
    raw: sys::CUgraphExec,
    owner: Arc<Inner>,
}

// SAFETY: the graph is launched under the owner's lock only.
unsafe impl Send for Recorded {}
// SAFETY: as above.
unsafe impl Sync for Recorded {}

impl Graph for Recorded {
    fn replay(&self) -> Outcome<()> {
        self.owner.bind()?;
        let _order = lock(&self.owner.order);
        // SAFETY: graph and stream are live; the buffers it names belong to whoever holds the graph.
        unsafe { result::graph::launch(self.raw, self.owner.compute) }.map_err(fault("launching a graph"))
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if self.owner.context.bind_to_thread().is_ok() {
            // SAFETY: made by this object and destroyed once.
            let _ = unsafe { result::graph::exec_destroy(self.raw) };
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

    fn resident(&self, kernel: &'static str, threads: u32, shared: usize) -> Outcome<u32> {
        let inner = &self.inner;
        let key = (kernel, shared);
        if let Some(&known) = lock(&inner.resident).get(&key) {
            return Ok(known);
        }
        inner.bind()?;
        let mut blocks = 0;
        // SAFETY: writes one integer to a valid place; the function belongs to a module that the device keeps loaded.
        unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                inner.function(kernel)?,
                i32::try_from(threads).unwrap_or(i32::MAX),
                shared,
            )
        }
        .result()
        .map_err(fault("asking for a kernel's occupancy"))?;
        // A block that does not fit at all is for the launch to refuse, which says why.
        let blocks = u32::try_from(blocks).unwrap_or(0).max(1);
        lock(&inner.resident).insert(key, blocks);
        Ok(blocks)
    }

    fn allocate(&self, bytes: usize, _: &'static str) -> Outcome<u64> {
        let inner = &self.inner;
        let class = size_class(bytes);
        if let Some(address) = lock(&inner.free).get_mut(&class).and_then(Vec::pop) {
            return Ok(address);
        }
        inner.bind()?;
        // SAFETY: whoever asked writes the memory before reading it.
        let attempt = || unsafe { result::malloc_sync(class) };
        let out_of_memory = |e: &DriverError| e.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        let address = match attempt() {
            Err(e) if out_of_memory(&e) => {
                inner.release()?;
                attempt()
            }
            other => other,
        };
        address.map_err(|e| match out_of_memory(&e) {
            true => Fault::OutOfMemory { wanted: class, free: result::mem_get_info().map_or(0, |m| m.0) },
            false => fault("allocating device memory")(e),
        })
    }

    fn free(&self, address: u64, bytes: usize) {
        lock(&self.inner.free).entry(size_class(bytes)).or_default().push(address);
    }

    fn upload(&self, to: u64, from: &[u8]) -> Outcome<()> {
        let inner = &self.inner;
        inner.bind()?;
        let failed = fault("copying to the GPU");
        let _order = lock(&inner.order);
        if from.len() <= SMALL {
            // SAFETY: the destination has room; from pageable memory the driver has taken the bytes when it returns.
            return unsafe { result::memcpy_htod_async(to, from, inner.compute) }.map_err(failed);
        }
        let mut stage = lock(&inner.up);
        for (piece, bytes) in from.chunks(STAGE).enumerate() {
            let i = piece % 2;
            let at = to + (piece * STAGE) as u64;
            // SAFETY: the event says when the buffer's last copy is done; the destination has room for all pieces.
            unsafe {
                event::synchronize(stage.events[i]).map_err(&failed)?;
                let pinned = stage.bytes(i, bytes.len());
                pinned.copy_from_slice(bytes);
                result::memcpy_htod_async(at, pinned, inner.compute).map_err(&failed)?;
                event::record(stage.events[i], inner.compute).map_err(&failed)?;
            }
        }
        Ok(())
    }

    fn mark(&self) -> Outcome<Box<dyn Mark>> {
        self.inner.bind()?;
        let made = event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let mark = Event { raw: made.map_err(fault("making an event"))?, owner: self.inner.clone() };
        let _order = lock(&self.inner.order);
        // SAFETY: event and stream are live.
        unsafe { event::record(mark.raw, self.inner.compute) }.map_err(fault("recording an event"))?;
        Ok(Box::new(mark))
    }

    fn download(&self, mark: &dyn Mark, to: &mut [u8], from: u64) -> Outcome<()> {
        let inner = &self.inner;
        inner.bind()?;
        let failed = fault("copying from the GPU");
        let wait = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        let mut stage = lock(&inner.down);
        // SAFETY: marks of this driver are its events.
        unsafe { stream::wait_event(inner.copies, mark.raw().cast(), wait) }.map_err(&failed)?;
        let pieces: Vec<&mut [u8]> = to.chunks_mut(STAGE).collect();
        let lengths: Vec<usize> = pieces.iter().map(|p| p.len()).collect();
        let start = |stage: &mut Stage, piece: usize| -> Outcome<()> {
            let i = piece % 2;
            // SAFETY: the buffer's last piece was taken out before; the source has bytes for all pieces.
            unsafe {
                let pinned = stage.bytes(i, lengths[piece]);
                result::memcpy_dtoh_async(pinned, from + (piece * STAGE) as u64, inner.copies)
                    .map_err(&failed)?;
                event::record(stage.events[i], inner.copies).map_err(&failed)
            }
        };
        for piece in 0..pieces.len().min(2) {
            start(&mut stage, piece)?;
        }
        for (piece, to) in pieces.into_iter().enumerate() {
            let i = piece % 2;
            // SAFETY: the event says when the piece is there.
            unsafe {
                event::synchronize(stage.events[i]).map_err(&failed)?;
                to.copy_from_slice(stage.bytes(i, to.len()));
            }
            if piece + 2 < lengths.len() {
                start(&mut stage, piece + 2)?;
            }
        }
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Outcome<()> {
        self.inner.bind()?;
        let _order = lock(&self.inner.order);
        // SAFETY: both have this many bytes.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.inner.compute) }
            .map_err(fault("copying on the GPU"))
    }

    fn clear(&self, at: u64, bytes: usize) -> Outcome<()> {
        self.inner.bind()?;
        let _order = lock(&self.inner.order);
        // SAFETY: the memory has this many bytes.
        unsafe { result::memset_d8_async(at, 0, bytes, self.inner.compute) }.map_err(fault("clearing memory"))
    }

    fn launch(&self, launch: &Launch) -> Outcome<()> {
        self.inner.bind()?;
        let _order = lock(&self.inner.order);
        self.inner.launch(launch)
    }

    fn record(&self, launches: Vec<Launch>) -> Outcome<Box<dyn Graph>> {
        let inner = &self.inner;
        inner.bind()?;
        let failed = fault("recording a graph");
        let _order = lock(&inner.order);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live, and nobody else uses it while the lock is held.
        unsafe { stream::begin_capture(inner.compute, mode) }.map_err(&failed)?;
        let made = launches.iter().try_for_each(|launch| inner.launch(launch));
        // SAFETY: the capture began above; it must end whatever the launches said.
        let graph = unsafe { stream::end_capture(inner.compute) }.map_err(&failed);
        made?;
        let graph = graph?;
        // SAFETY: the graph was just made, and is not needed beside what is instantiated from it.
        let raw = unsafe {
            let raw = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            raw
        };
        Ok(Box::new(Recorded { raw: raw.map_err(&failed)?, owner: inner.clone() }))
    }
}
