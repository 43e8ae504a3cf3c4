//! Launches with attributes, by `cuLaunchKernelEx`: that start early, and whose blocks are all there at once.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;

use ptx_driver as _;

type Handle = *mut c_void;

// Declared as in cuda.h; the library is part of this program.
unsafe extern "C" {
    fn cuInit(flags: c_uint) -> c_int;
    fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) -> c_int;
    fn cuCtxSetCurrent(context: Handle) -> c_int;
    fn cuCtxSynchronize() -> c_int;
    fn cuModuleLoadData(module: *mut Handle, image: *const c_void) -> c_int;
    fn cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char) -> c_int;
    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: Handle) -> c_int;
    fn cuMemAlloc_v2(at: *mut u64, bytes: usize) -> c_int;
    fn cuStreamCreate(stream: *mut Handle, flags: c_uint) -> c_int;
    fn cuStreamBeginCapture_v2(stream: Handle, mode: c_uint) -> c_int;
    fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) -> c_int;
    fn cuGraphInstantiateWithFlags(made: *mut Handle, graph: Handle, flags: u64) -> c_int;
    fn cuGraphLaunch(graph: Handle, stream: Handle) -> c_int;
    fn cuLaunchKernelEx(
        config: *const Config,
        function: Handle,
        arguments: *mut Handle,
        extra: *mut Handle,
    ) -> c_int;
    fn ptx_driver_add(settings: *const c_char) -> c_int;
    fn ptx_driver_fault(device: c_int, to: *mut u8, room: usize) -> usize;
}

#[repr(C)]
struct Config {
    sizes: [c_uint; 7],
    stream: Handle,
    attributes: *mut Attribute,
    count: c_uint,
}

#[repr(C)]
struct Attribute {
    id: c_uint,
    pad: c_uint,
    value: [u32; 16],
}

const TEXT: &str = "
.version 8.5
.target sm_90
.address_size 64
.visible .entry waits(.param .u64 p) {
  .reg .b64 %rd<2>;
  griddepcontrol.wait;
  ld.param.u64 %rd0, [p];
  st.global.u32 [%rd0], 7;
  ret;
}
.visible .entry meets(.param .u64 p) { ret; }
.visible .entry hurries(.param .u64 p) {
  .reg .b64 %rd<2>;
  ld.param.u64 %rd0, [p];
  st.global.u32 [%rd0], 7;
  griddepcontrol.wait;
  ret;
}
";

/// A device with the text loaded, a stream and 4 bytes of memory.
struct Opened {
    device: c_int,
    stream: Handle,
    at: u64,
    module: Handle,
}

fn open(settings: &str) -> Opened {
    let settings = CString::new(settings).expect("no zero byte");
    let text = CString::new(TEXT).expect("no zero byte");
    // SAFETY: all places are valid for what the calls write.
    unsafe {
        assert_eq!(cuInit(0), 0);
        let device = ptx_driver_add(settings.as_ptr());
        let (mut context, mut stream, mut at, mut module) = (null_mut(), null_mut(), 0, null_mut());
        assert_eq!(cuDevicePrimaryCtxRetain(&mut context, device), 0);
        assert_eq!(cuCtxSetCurrent(context), 0);
        assert_eq!(cuModuleLoadData(&mut module, text.as_ptr().cast()), 0);
        assert_eq!(cuStreamCreate(&mut stream, 1), 0);
        assert_eq!(cuMemAlloc_v2(&mut at, 4), 0);
        Opened { device, stream, at, module }
    }
}

impl Opened {
    fn function(&self, name: &str) -> Handle {
        let (name, mut function) = (CString::new(name).expect("no zero byte"), null_mut());
        // SAFETY: the module is loaded.
        assert_eq!(unsafe { cuModuleGetFunction(&mut function, self.module, name.as_ptr()) }, 0);
        function
    }

    /// Launches a kernel of one thread with an attribute.
    fn launch(&self, name: &str, id: c_uint, value: u32) -> c_int {
        self.launch_blocks(name, 1, id, value)
    }

    fn launch_blocks(&self, name: &str, blocks: c_uint, id: c_uint, value: u32) -> c_int {
        let mut attribute = Attribute { id, pad: 0, value: [0; 16] };
        attribute.value[0] = value;
        let sizes = [blocks, 1, 1, 1, 1, 1, 0];
        let config = Config { sizes, stream: self.stream, attributes: &mut attribute, count: 1 };
        let mut at = self.at;
        let mut arguments: [Handle; 1] = [(&raw mut at).cast()];
        // SAFETY: the kernel takes an address.
        unsafe { cuLaunchKernelEx(&config, self.function(name), arguments.as_mut_ptr(), null_mut()) }
    }

    fn ends(&self) -> c_int {
        // SAFETY: no arguments.
        unsafe { cuCtxSynchronize() }
    }

    fn fault(&self) -> String {
        let mut text = vec![0; 1 << 12];
        // SAFETY: room for as many bytes.
        let bytes = unsafe { ptx_driver_fault(self.device, text.as_mut_ptr(), text.len()) };
        String::from_utf8_lossy(&text[..bytes.min(text.len())]).into_owned()
    }
}

const EARLY: c_uint = 6;

#[test]
fn early_launches_are_held_to_their_wait() {
    let opened = open("capability=9.0");
    let mut version = 0;
    // SAFETY: a place for an integer.
    assert_eq!(unsafe { cuFuncGetAttribute(&mut version, 5, opened.function("waits")) }, 0);
    assert_eq!(version, 90);
    // One that waits, one that need not, one of an attribute that is not there.
    assert_eq!(opened.launch("waits", EARLY, 1), 0);
    assert_eq!(opened.launch("hurries", EARLY, 0), 0);
    assert_eq!(opened.launch("waits", 8, 1), 801);
    assert_eq!(opened.ends(), 0);
    assert_eq!(opened.launch("hurries", EARLY, 1), 0);
    assert_ne!(opened.ends(), 0);
    assert!(opened.fault().contains("MissingGridWait"), "{}", opened.fault());
}

#[test]
fn captured_launches_keep_it() {
    for (name, fails) in [("waits", false), ("hurries", true)] {
        let opened = open("capability=9.0");
        let (mut graph, mut made) = (null_mut(), null_mut());
        // SAFETY: places for handles; the stream is live.
        unsafe {
            assert_eq!(cuStreamBeginCapture_v2(opened.stream, 1), 0);
            assert_eq!(opened.launch("waits", EARLY, 0), 0);
            assert_eq!(opened.launch(name, EARLY, 1), 0);
            assert_eq!(cuStreamEndCapture(opened.stream, &mut graph), 0);
            assert_eq!(cuGraphInstantiateWithFlags(&mut made, graph, 0), 0);
            assert_eq!(cuGraphLaunch(made, opened.stream), 0);
        }
        assert_eq!(opened.ends() != 0, fails, "{name}");
        assert_eq!(opened.fault().contains("MissingGridWait"), fails, "{name}: {}", opened.fault());
    }
}

#[test]
fn devices_below_hopper_refuse_them() {
    let opened = open("capability=8.0");
    assert_eq!(opened.launch("waits", EARLY, 1), 801);
}

const COOPERATIVE: c_uint = 2;

#[test]
fn blocks_that_are_there_at_once_fit_the_device() {
    let opened = open("capability=8.0,processors=2,occupancy=3,races=0");
    assert_eq!(opened.launch_blocks("meets", 6, COOPERATIVE, 1), 0);
    assert_eq!(opened.launch_blocks("meets", 7, COOPERATIVE, 1), 720);
    assert_eq!(opened.launch_blocks("meets", 7, COOPERATIVE, 0), 0, "not asked for");
    assert_eq!(opened.ends(), 0);
    let opened = open("capability=9.0,cooperative=0");
    assert_eq!(opened.launch("meets", COOPERATIVE, 1), 801);
}
