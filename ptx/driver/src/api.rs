//! The functions of the driver's interface that programs here call, by their names in `cuda.h`; and a few of our own
//! for tests.

#![allow(non_snake_case, reason = "names of cuda.h")]
#![allow(clippy::missing_safety_doc, reason = "the CUDA Driver API documents what callers answer for")]
#![allow(missing_docs, reason = "as above")]

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::codes;
use crate::device::{self, Answer, DEVICES, Device, Manner, State, environment, lock, of_handle};

thread_local! {
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// An answer as a code. A panic is a defect of this library: it is printed, and the call fails.
pub(crate) fn code(run: impl FnOnce() -> Answer<()>) -> c_int {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => codes::SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => codes::UNKNOWN,
    }
}

/// Writes a result.
///
/// # Safety
/// `to` is null or a place for a value.
pub(crate) unsafe fn give<T>(to: *mut T, value: T) -> Answer<()> {
    if to.is_null() {
        return Err(codes::INVALID_VALUE);
    }
    // SAFETY: the caller answers for the place.
    unsafe { to.write(value) };
    Ok(())
}

fn by_number(number: c_int) -> Answer<Arc<Device>> {
    let number = usize::try_from(number).map_err(|_| codes::INVALID_DEVICE)?;
    lock(&DEVICES).get(number).cloned().ok_or(codes::INVALID_DEVICE)
}

/// The device of the current context.
fn current() -> Answer<Arc<Device>> {
    of_handle(CURRENT.get()).ok_or(codes::INVALID_CONTEXT)
}

/// A call on the current context; objects that it names must belong to it.
pub(crate) fn on<T>(
    function: &'static str,
    objects: &[*mut c_void],
    run: impl FnOnce(&Device, &mut State) -> Answer<T>,
) -> Answer<T> {
    let device = current()?;
    if objects.iter().any(|o| (*o as u64) >> 40 != device.number as u64 + 1) {
        eprintln!("stand-in for libcuda: {function}: an object of another device, or none");
        return Err(codes::INVALID_HANDLE);
    }
    device.call(function, run)
}

/// A failure that is asked for of a function without a device.
fn injected(function: &str) -> Answer<()> {
    match environment().fail.iter().find(|f| f.function == function && f.device.is_none()) {
        Some(failure) => Err(failure.code),
        None => Ok(()),
    }
}

fn handle(value: u64) -> *mut c_void {
    value as *mut c_void
}

fn stage_is(place: &Option<(String, Vec<String>)>) -> bool {
    place
        .as_ref()
        .is_some_and(|(variable, values)| std::env::var(variable).is_ok_and(|now| values.contains(&now)))
}

/// Ends the process, or never returns, where the settings ask for it.
fn crash_or_hang() {
    let settings = environment();
    if stage_is(&settings.crash_where) {
        std::process::abort();
    }
    while stage_is(&settings.hang_where) {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

// ---- start

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    code(|| {
        crash_or_hang();
        injected("cuDriverGetVersion")?;
        let (major, minor) = environment().release;
        // SAFETY: the caller answers for the place.
        unsafe { give(version, major * 1000 + minor * 10) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> c_int {
    code(|| {
        crash_or_hang();
        injected("cuInit")?;
        device::start();
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    // SAFETY: the caller answers for the place.
    code(|| unsafe { give(count, lock(&DEVICES).len() as c_int) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> c_int {
    code(|| {
        by_number(ordinal)?;
        // SAFETY: the caller answers for the place.
        unsafe { give(device, ordinal) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> c_int {
    code(|| {
        let device = by_number(device)?;
        let length = usize::try_from(length).map_err(|_| codes::INVALID_VALUE)?;
        let bytes = device.settings.name.bytes().take(length.saturating_sub(1)).chain([0]);
        for (i, byte) in bytes.enumerate() {
            // SAFETY: the caller gives room for `length` bytes.
            unsafe { name.add(i).write(byte as c_char) };
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> c_int {
    // SAFETY: the caller answers for the place.
    code(|| unsafe { give(bytes, by_number(device)?.settings.memory) })
}

/// Attributes by the numbers of `CUdevice_attribute`; those not named here are 0, as memory pools.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) -> c_int {
    code(|| {
        let settings = &by_number(device)?.settings;
        let found = match attribute {
            1 => 1024,                   // threads of a block
            8 => 48 << 10,               // shared memory of a block, unasked
            10 => 32,                    // lanes of a warp
            16 => settings.processors,   // multiprocessors
            75 => settings.capability.0, // compute capability
            76 => settings.capability.1,
            95 => c_int::from(settings.cooperative), // launches of blocks that wait for each other
            97 => settings.shared as c_int,          // shared memory of a block, opted into
            _ => 0,
        };
        // SAFETY: the caller answers for the place.
        unsafe { give(value, found) }
    })
}

// ---- contexts: the number of the device plus one, above the bits of handles

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: c_int) -> c_int {
    code(|| {
        let device = by_number(device)?;
        device.call("cuDevicePrimaryCtxRetain", |_, _| Ok(()))?;
        // SAFETY: the caller answers for the place.
        unsafe { give(context, handle((device.number as u64 + 1) << 40)) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> c_int {
    code(|| by_number(device).map(|_| ()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> c_int {
    code(|| {
        CURRENT.set(context as u64);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut *mut c_void) -> c_int {
    // SAFETY: the caller answers for the place.
    code(|| unsafe { give(context, handle(CURRENT.get())) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> c_int {
    code(|| on("cuCtxSynchronize", &[], |device, state| state.synchronize_all(device)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: c_int, name: *mut *const c_char) -> c_int {
    code(|| {
        let (found, _) = codes::describe(error).ok_or(codes::INVALID_VALUE)?;
        // SAFETY: the caller answers for the place.
        unsafe { give(name, found.as_ptr()) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: c_int, words: *mut *const c_char) -> c_int {
    code(|| {
        let (_, found) = codes::describe(error).ok_or(codes::INVALID_VALUE)?;
        // SAFETY: the caller answers for the place.
        unsafe { give(words, found.as_ptr()) }
    })
}

// ---- modules

/// The first word of a fatbin, and of an ELF file (a cubin).
const FATBIN: [u8; 4] = 0xba55_ed50_u32.to_le_bytes();
const ELF: [u8; 4] = *b"\x7fELF";

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut *mut c_void, image: *const c_void) -> c_int {
    code(|| {
        if image.is_null() {
            return Err(codes::INVALID_VALUE);
        }
        // SAFETY: every image has at least four bytes.
        let first: [u8; 4] = unsafe { image.cast::<[u8; 4]>().read_unaligned() };
        let text = match first {
            FATBIN | ELF if (image as usize).is_multiple_of(16) => None,
            FATBIN | ELF => return Err(codes::INVALID_IMAGE),
            _ => {
                // SAFETY: what is no image is a text with a zero byte at its end.
                let text =
                    unsafe { CStr::from_ptr(image.cast()) }.to_str().map_err(|_| codes::INVALID_IMAGE)?;
                Some(text.contains(".version").then(|| text.to_string()).ok_or(codes::INVALID_IMAGE)?)
            }
        };
        let made = on("cuModuleLoadData", &[], |device, state| state.load(device, text))?;
        // SAFETY: the caller answers for the place.
        unsafe { give(module, handle(made)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> c_int {
    code(|| {
        // SAFETY: a name is a text with a zero byte at its end.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| codes::INVALID_VALUE)?;
        let made = on("cuModuleGetFunction", &[module], |device, state| {
            state.function(device, module as u64, name)
        })?;
        // SAFETY: the caller answers for the place.
        unsafe { give(function, handle(made)) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: *mut c_void) -> c_int {
    code(|| on("cuModuleUnload", &[module], |_, state| state.unload(module as u64)))
}

/// Attribute 8: dynamic shared memory that a launch may ask for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(
    value: *mut c_int,
    attribute: c_int,
    function: *mut c_void,
) -> c_int {
    code(|| {
        let found = on("cuFuncGetAttribute", &[function], |_, state| match attribute {
            5 => state.ptx_version(function as u64),
            _ => Err(codes::INVALID_VALUE),
        })?;
        // SAFETY: the caller answers for the place.
        unsafe { give(value, found) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(function: *mut c_void, attribute: c_int, value: c_int) -> c_int {
    code(|| {
        on("cuFuncSetAttribute", &[function], |device, state| match attribute {
            8 => state.allow_shared(device, function as u64, value),
            _ => Err(codes::INVALID_VALUE),
        })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: *mut c_int,
    function: *mut c_void,
    threads: c_int,
    shared: usize,
) -> c_int {
    code(|| {
        let found = on("cuOccupancyMaxActiveBlocksPerMultiprocessor", &[function], |device, state| {
            state.occupancy(device, function as u64, threads, shared)
        })?;
        // SAFETY: the caller answers for the place.
        unsafe { give(blocks, found) }
    })
}

// ---- memory

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(at: *mut u64, bytes: usize) -> c_int {
    code(|| {
        let address = on("cuMemAlloc_v2", &[], |device, state| state.allocate(device, bytes))?;
        // SAFETY: the caller answers for the place.
        unsafe { give(at, address) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(at: u64) -> c_int {
    code(|| on("cuMemFree_v2", &[], |device, state| state.free(device, at)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int {
    code(|| {
        let device = current()?;
        let bytes = device.call("cuMemGetInfo_v2", |device, state| Ok(state.free_bytes(device)))?;
        // SAFETY: the caller answers for the places.
        unsafe { give(free, bytes).and_then(|()| give(total, device.settings.memory)) }
    })
}

/// CU_MEMHOSTALLOC_DEVICEMAP.
const DEVICE_MAP: c_uint = 2;
/// Alignment of pinned memory.
const PAGE: usize = 4096;

fn layout(bytes: usize) -> Answer<std::alloc::Layout> {
    std::alloc::Layout::from_size_align(bytes.max(1), PAGE).map_err(|_| codes::OUT_OF_MEMORY)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(at: *mut *mut c_void, bytes: usize, flags: c_uint) -> c_int {
    code(|| {
        let made = on("cuMemHostAlloc", &[], |_, state| {
            // SAFETY: at least one byte.
            let made = unsafe { std::alloc::alloc(layout(bytes)?) };
            if made.is_null() {
                return Err(codes::OUT_OF_MEMORY);
            }
            state.pin(made as usize, bytes, false)?;
            if flags & DEVICE_MAP != 0 {
                state.map(made as usize);
            }
            Ok(made as usize)
        })?;
        // SAFETY: the caller answers for the place.
        unsafe { give(at, made as *mut c_void) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(at: *mut c_void) -> c_int {
    code(|| {
        let bytes = on("cuMemFreeHost", &[], |_, state| state.unpin(at as usize, false))?;
        // SAFETY: allocated above with this layout, and no copy uses it any more.
        unsafe { std::alloc::dealloc(at.cast(), layout(bytes)?) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostRegister_v2(at: *mut c_void, bytes: usize, _flags: c_uint) -> c_int {
    code(|| on("cuMemHostRegister_v2", &[], |_, state| state.pin(at as usize, bytes, true)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostUnregister(at: *mut c_void) -> c_int {
    code(|| {
        let bytes = on("cuMemHostUnregister", &[], |_, state| state.unpin(at as usize, true))?;
        let start = at as usize / PAGE * PAGE;
        // SAFETY: asks about pages and changes nothing.
        let gone =
            unsafe { libc::msync(start as *mut c_void, at as usize - start + bytes, libc::MS_ASYNC) } != 0;
        if gone {
            eprintln!("stand-in for libcuda: memory is gone and was still registered");
            return Err(codes::INVALID_VALUE);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    stream: *mut c_void,
) -> c_int {
    code(|| {
        on("cuMemcpyHtoDAsync_v2", &[stream], |_, state| {
            state.copy_in(stream as u64, to, from as usize, bytes)
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    bytes: usize,
    stream: *mut c_void,
) -> c_int {
    code(|| {
        on("cuMemcpyDtoHAsync_v2", &[stream], |device, state| {
            state.copy_out(device, stream as u64, to as usize, from, bytes)
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: *mut c_void) -> c_int {
    code(|| {
        on("cuMemcpyDtoDAsync_v2", &[stream], |_, state| state.copy_within(stream as u64, to, from, bytes))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(at: u64, value: u8, bytes: usize, stream: *mut c_void) -> c_int {
    code(|| on("cuMemsetD8Async", &[stream], |_, state| state.set(stream as u64, at, value, bytes)))
}

// ---- streams and events

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut *mut c_void, _flags: c_uint) -> c_int {
    code(|| {
        let made = on("cuStreamCreate", &[], |device, state| Ok(state.new_stream(device)))?;
        // SAFETY: the caller answers for the place.
        unsafe { give(stream, handle(made)) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> c_int {
    code(|| on("cuStreamDestroy_v2", &[stream], |device, state| state.destroy_stream(device, stream as u64)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> c_int {
    code(|| on("cuStreamSynchronize", &[stream], |device, state| state.synchronize(device, stream as u64)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: *mut c_void, event: *mut c_void, _flags: c_uint) -> c_int {
    code(|| on("cuStreamWaitEvent", &[stream, event], |_, state| state.wait(stream as u64, event as u64)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut *mut c_void, _flags: c_uint) -> c_int {
    code(|| {
        let made = on("cuEventCreate", &[], |device, state| Ok(state.new_event(device)))?;
        // SAFETY: the caller answers for the place.
        unsafe { give(event, handle(made)) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: *mut c_void, stream: *mut c_void) -> c_int {
    code(|| on("cuEventRecord", &[event, stream], |_, state| state.record(event as u64, stream as u64)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: *mut c_void) -> c_int {
    code(|| on("cuEventSynchronize", &[event], |device, state| state.synchronize_event(device, event as u64)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: *mut c_void) -> c_int {
    code(|| on("cuEventQuery", &[event], |_, state| state.query_event(event as u64)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> c_int {
    code(|| on("cuEventDestroy_v2", &[event], |_, state| state.destroy_event(event as u64)))
}

// ---- launches and graphs

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    gx: c_uint,
    gy: c_uint,
    gz: c_uint,
    bx: c_uint,
    by: c_uint,
    bz: c_uint,
    shared: c_uint,
    stream: *mut c_void,
    arguments: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> c_int {
    code(|| {
        if !extra.is_null() {
            return Err(codes::INVALID_VALUE);
        }
        on("cuLaunchKernel", &[function, stream], |device, state| {
            let geometry = ([gx, gy, gz], [bx, by, bz], shared);
            let arguments = arguments.cast_const().cast();
            // SAFETY: the caller answers for the arguments.
            unsafe {
                state.launch(device, (stream as u64, function as u64), geometry, Manner::default(), arguments)
            }
        })
    })
}

/// `CUlaunchConfig`.
#[repr(C)]
pub struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: *mut c_void,
    attributes: *const LaunchAttribute,
    count: c_uint,
}

/// `CUlaunchAttribute`.
#[repr(C)]
pub struct LaunchAttribute {
    id: c_uint,
    /// A union of 64 bytes.
    value: [u64; 8],
}

/// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`, whose value is an integer.
const EARLY: c_uint = 6;
/// `CU_LAUNCH_ATTRIBUTE_COOPERATIVE`, whose value is an integer.
const COOPERATIVE: c_uint = 2;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernelEx(
    config: *const LaunchConfig,
    function: *mut c_void,
    arguments: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> c_int {
    code(|| {
        if config.is_null() || !extra.is_null() {
            return Err(codes::INVALID_VALUE);
        }
        // SAFETY: the caller answers for the structure.
        let &LaunchConfig { grid, block, shared, stream, attributes, count } = unsafe { &*config };
        let mut manner = Manner::default();
        for i in 0..count as usize {
            // SAFETY: the caller answers for as many attributes.
            match unsafe { &*attributes.add(i) } {
                LaunchAttribute { id: EARLY, value } => manner.early = value[0] as u32 != 0,
                LaunchAttribute { id: COOPERATIVE, value } => manner.cooperative = value[0] as u32 != 0,
                LaunchAttribute { id, .. } => {
                    eprintln!("stand-in for libcuda: cuLaunchKernelEx: launch attribute {id}");
                    return Err(codes::NOT_SUPPORTED);
                }
            }
        }
        on("cuLaunchKernelEx", &[function, stream], |device, state| {
            let arguments = arguments.cast_const().cast();
            let of = (stream as u64, function as u64);
            // SAFETY: the caller answers for the arguments.
            unsafe { state.launch(device, of, (grid, block, shared), manner, arguments) }
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(stream: *mut c_void, mode: c_uint) -> c_int {
    code(|| on("cuStreamBeginCapture_v2", &[stream], |_, state| state.begin_capture(stream as u64, mode)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: *mut c_void, graph: *mut *mut c_void) -> c_int {
    code(|| {
        let made =
            on("cuStreamEndCapture", &[stream], |device, state| state.end_capture(device, stream as u64))?;
        // SAFETY: the caller answers for the place.
        unsafe { give(graph, handle(made)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    made: *mut *mut c_void,
    graph: *mut c_void,
    _flags: u64,
) -> c_int {
    code(|| {
        let exec = on("cuGraphInstantiateWithFlags", &[graph], |device, state| {
            state.instantiate(device, graph as u64)
        })?;
        // SAFETY: the caller answers for the place.
        unsafe { give(made, handle(exec)) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(graph: *mut c_void) -> c_int {
    code(|| on("cuGraphDestroy", &[graph], |_, state| state.drop_graph(graph as u64)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(graph: *mut c_void, stream: *mut c_void) -> c_int {
    code(|| on("cuGraphLaunch", &[graph, stream], |_, state| state.launch_graph(graph as u64, stream as u64)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(graph: *mut c_void) -> c_int {
    code(|| on("cuGraphExecDestroy", &[graph], |_, state| state.drop_graph(graph as u64)))
}

// ---- for tests

/// Adds a device as a line of settings says; its number, or -1 with a message on the standard error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptx_driver_add(settings: *const c_char) -> c_int {
    // SAFETY: a text with a zero byte at its end.
    let text = unsafe { CStr::from_ptr(settings) }.to_string_lossy();
    match text.parse() {
        Ok(settings) => device::add(settings) as c_int,
        Err(words) => {
            eprintln!("stand-in for libcuda: {words}");
            -1
        }
    }
}

/// The report of the device's last fault: writes at most `room` bytes, gives the length of all.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptx_driver_fault(device: c_int, to: *mut u8, room: usize) -> usize {
    by_number(device).map_or(0, |device| {
        device.look(|state| {
            let bytes = state.fault.as_bytes();
            // SAFETY: the caller gives room for so many bytes.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len().min(room)) };
            bytes.len()
        })
    })
}

/// Whether memory of the host is pinned on a device: 1 or 0.
#[unsafe(no_mangle)]
pub extern "C" fn ptx_driver_pinned(device: c_int, at: usize, bytes: usize) -> c_int {
    by_number(device).map_or(0, |device| device.look(|state| c_int::from(state.is_pinned(at, bytes))))
}

/// Bytes of a range of device memory that nothing wrote, once all work is done.
#[unsafe(no_mangle)]
pub extern "C" fn ptx_driver_unwritten(device: c_int, at: u64, bytes: usize) -> usize {
    by_number(device).map_or(bytes, |device| {
        let waited = device.call("ptx_driver_unwritten", |device, state| state.synchronize_all(device));
        waited.map_or(bytes, |()| device.look(|state| state.unwritten(at, bytes)))
    })
}
