//! A GPU in place of the machine, by the driver library: PTX_TEST_GPU names its number. What holds of the machine's
//! instructions is then asked of the device's.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::Library;

use super::Argument;

type Handle = *mut c_void;

/// The GPU that snippets run on, if one is named.
pub fn tested() -> Option<c_int> {
    let number = std::env::var("PTX_TEST_GPU").ok()?;
    Some(number.parse().unwrap_or_else(|_| panic!("PTX_TEST_GPU: `{number}` is no number of a GPU")))
}

/// A call of the driver by name, which must succeed.
macro_rules! call {
    ($name:ident($($value:expr => $kind:ty),* $(,)?)) => {{
        type Function = unsafe extern "C" fn($($kind),*) -> c_int;
        // SAFETY: the driver's function of this name has these parameters, and the values are what it asks for.
        let code = unsafe {
            let function = library().get::<Function>(stringify!($name).as_bytes()).expect(stringify!($name));
            function($($value),*)
        };
        assert_eq!(code, 0, "{} failed ({})", stringify!($name), name(code));
    }};
}

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let open = |name: &&str| {
            // SAFETY: loads the system's driver library, whose start-up code is its own.
            unsafe { Library::new(*name) }.ok()
        };
        ["libcuda.so", "libcuda.so.1"].iter().find_map(open).expect("a driver library, libcuda")
    })
}

fn name(code: c_int) -> String {
    type Function = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: the driver gives a text that it keeps, or leaves null.
    unsafe {
        let function = library().get::<Function>(b"cuGetErrorName").expect("cuGetErrorName");
        match function(code, &mut text) == 0 && !text.is_null() {
            true => CStr::from_ptr(text).to_string_lossy().into_owned(),
            false => code.to_string(),
        }
    }
}

/// Host memory that the driver pinned.
struct Pinned(Handle);

impl Pinned {
    fn new(bytes: usize) -> Pinned {
        let mut at = null_mut();
        call!(cuMemHostAlloc(&mut at => *mut Handle, bytes.max(1) => usize, 0 => c_uint));
        Pinned(at)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        call!(cuMemFreeHost(self.0 => Handle));
    }
}

/// Runs the kernel `k` of a text; gives what the buffers then hold, in the order of the arguments.
pub fn run(number: c_int, text: &str, grid: u32, block: u32, arguments: &[Argument<'_>]) -> Vec<Vec<u8>> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut device, mut context, mut stream) = (0, null_mut(), null_mut());
    call!(cuInit(0 => c_uint));
    call!(cuDeviceGet(&mut device => *mut c_int, number => c_int));
    call!(cuDevicePrimaryCtxRetain(&mut context => *mut Handle, device => c_int));
    call!(cuCtxSetCurrent(context => Handle));
    call!(cuStreamCreate(&mut stream => *mut Handle, 1 => c_uint));

    let text = CString::new(text).expect("no zero byte");
    let (mut module, mut function) = (null_mut(), null_mut());
    call!(cuModuleLoadData(&mut module => *mut Handle, text.as_ptr() => *const c_char));
    call!(cuModuleGetFunction(&mut function => *mut Handle, module => Handle, c"k".as_ptr() => *const c_char));

    // The bytes of each argument, aligned for any parameter; buffers by their addresses.
    let (mut values, mut buffers) = (Vec::<Vec<u64>>::new(), Vec::new());
    for argument in arguments {
        let bytes: Vec<u8> = match argument {
            Argument::Value(bytes) => bytes.to_vec(),
            Argument::In(_) | Argument::Out(_) => {
                let size = argument.size();
                let (mut at, host) = (0u64, Pinned::new(size));
                call!(cuMemAlloc_v2(&mut at => *mut u64, size.max(1) => usize));
                if let Argument::In(bytes) = argument {
                    // SAFETY: as many bytes were pinned, and no copy uses them yet.
                    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host.0.cast::<u8>(), size) };
                    call!(cuMemcpyHtoDAsync_v2(at => u64, host.0 => Handle, size => usize, stream => Handle));
                }
                buffers.push((at, host, size));
                at.to_le_bytes().to_vec()
            }
        };
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        for (word, part) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..part.len()].copy_from_slice(part);
            *word = u64::from_le_bytes(whole);
        }
        values.push(words);
    }
    let mut pointers: Vec<Handle> = values.iter_mut().map(|v| v.as_mut_ptr().cast()).collect();
    call!(cuLaunchKernel(
        function => Handle, grid => c_uint, 1 => c_uint, 1 => c_uint, block => c_uint, 1 => c_uint, 1 => c_uint,
        0 => c_uint, stream => Handle, pointers.as_mut_ptr() => *mut Handle, null_mut() => *mut Handle,
    ));
    for (at, host, size) in &buffers {
        call!(cuMemcpyDtoHAsync_v2(host.0 => Handle, *at => u64, *size => usize, stream => Handle));
    }
    call!(cuStreamSynchronize(stream => Handle));
    let out = buffers
        .iter()
        // SAFETY: as many bytes were copied there, and the copies are done.
        .map(|(_, host, size)| unsafe { std::slice::from_raw_parts(host.0.cast::<u8>(), *size) }.to_vec())
        .collect();
    for (at, host, _) in buffers {
        call!(cuMemFree_v2(at => u64));
        drop(host);
    }
    call!(cuModuleUnload(module => Handle));
    call!(cuStreamDestroy_v2(stream => Handle));
    out
}
