//! A device: memory, modules, streams with their queues, events, graphs, pinned memory of the host.

use std::collections::{BTreeMap, VecDeque};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;

use ptx::{Counters, Fault, FaultKind, Launch, Memory, Options};
use xxhash_rust::xxh3::xxh3_64;

use crate::codes;
use crate::kernels::{self, Kernels, Source};
use crate::settings::{Queue, Settings};

/// What a call returns.
pub type Answer<T> = Result<T, i32>;

/// Addresses of a device begin at a multiple of this; below lies nothing.
const SPAN: u32 = 36;
const FIRST: u64 = 0x1000_0000_0000;

/// Allocations of all devices: first address, bytes and device.
static OWNERS: Mutex<BTreeMap<u64, (u64, usize)>> = Mutex::new(BTreeMap::new());

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The other device whose memory holds an address.
fn owner(address: u64) -> Option<usize> {
    let owners = lock(&OWNERS);
    let (base, (bytes, device)) = owners.range(..=address).next_back()?;
    (address - base < *bytes).then_some(*device)
}

/// A launch that was asked for.
#[derive(Clone)]
pub struct Work {
    source: Arc<Source>,
    kernel: Arc<str>,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    args: Vec<u8>,
    /// Shared memory that the function was allowed.
    limit: u32,
    manner: Manner,
}

/// What launch attributes ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// It may start before the launch ahead has ended.
    pub early: bool,
    /// All of its blocks are on the device at once.
    pub cooperative: bool,
}

/// Memory of the host, as an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Host {
    at: usize,
    bytes: usize,
}

impl Host {
    fn overlaps(self, other: Host) -> bool {
        self.at < other.at + other.bytes && other.at < self.at + self.bytes
    }
    fn within(self, other: Host) -> bool {
        self.at >= other.at && self.at + self.bytes <= other.at + other.bytes
    }
    /// The bytes there now.
    ///
    /// # Safety
    /// The program keeps the memory until the copy is done, as the driver's interface demands.
    unsafe fn read(self) -> Vec<u8> {
        // SAFETY: the caller answers for the memory.
        unsafe { std::slice::from_raw_parts(self.at as *const u8, self.bytes) }.to_vec()
    }
    /// # Safety
    /// As [`Host::read`], and nobody else reads or writes it meanwhile.
    unsafe fn write(self, bytes: &[u8]) {
        // SAFETY: the caller answers for the memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at as *mut u8, self.bytes) };
    }
}

enum Op {
    Launch(Work),
    Graph(Arc<Vec<Work>>),
    /// The hash is of the bytes when the copy was asked for.
    ToDevice {
        to: u64,
        from: Host,
        hash: u64,
    },
    ToHost {
        to: Host,
        from: u64,
    },
    Within {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Set {
        at: u64,
        value: u8,
        bytes: usize,
    },
    Record {
        event: u64,
        serial: u64,
    },
    Wait {
        event: u64,
        serial: u64,
    },
}

impl Op {
    fn host(&self) -> Option<Host> {
        match self {
            Op::ToDevice { from: host, .. } | Op::ToHost { to: host, .. } => Some(*host),
            _ => None,
        }
    }
}

/// A capture under way.
struct Recording {
    work: Vec<Work>,
    thread: ThreadId,
    mode: u32,
    broken: bool,
}

#[derive(Default)]
struct Stream {
    queue: VecDeque<Op>,
    recording: Option<Recording>,
}

/// Serial numbers of an event's last record, and of the last that was reached.
#[derive(Default)]
struct Event {
    recorded: u64,
    reached: u64,
    destroyed: bool,
}

/// A kernel of a module.
struct Function {
    name: Arc<str>,
    /// None where the device has no kernels to run.
    source: Option<Arc<Source>>,
    limit: u32,
}

struct Pinned {
    host: Host,
    registered: bool,
    /// Its address on the device, if it has one.
    mapped: Option<u64>,
}

/// Everything behind the lock of a device.
pub struct State {
    memory: Memory,
    used: usize,
    streams: BTreeMap<u64, Stream>,
    events: BTreeMap<u64, Event>,
    graphs: BTreeMap<u64, Arc<Vec<Work>>>,
    modules: BTreeMap<u64, Option<Arc<Kernels>>>,
    functions: BTreeMap<u64, Function>,
    pinned: Vec<Pinned>,
    /// The code that every call returns since a launch failed.
    failed: Option<i32>,
    /// The report of that launch.
    pub fault: String,
    handles: u64,
    serial: u64,
    random: u64,
    calls: BTreeMap<&'static str, u64>,
}

/// A device.
pub struct Device {
    pub number: usize,
    pub settings: Settings,
    state: Mutex<State>,
}

fn say(words: &str) {
    eprintln!("stand-in for libcuda: {words}");
}

/// Says why, and refuses.
pub fn refuse<T>(code: i32, words: impl AsRef<str>) -> Answer<T> {
    say(words.as_ref());
    Err(code)
}

impl Device {
    pub fn new(number: usize, settings: Settings) -> Device {
        let random = match settings.queue {
            Queue::Random(seed) => seed ^ 0x9e37_79b9_7f4a_7c15,
            _ => 0,
        };
        let state = State {
            memory: Memory::starting_at(FIRST + ((number as u64) << SPAN)),
            used: 0,
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            graphs: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            pinned: Vec::new(),
            failed: None,
            fault: String::new(),
            handles: 0,
            serial: 0,
            random,
            calls: BTreeMap::new(),
        };
        Device { number, settings, state: Mutex::new(state) }
    }

    /// The code that a call of a function is to fail with.
    fn injected(&self, function: &str, call: u64) -> Option<i32> {
        let suits = |f: &&crate::settings::Failure| {
            f.function == function
                && f.call.is_none_or(|n| n == call)
                && f.device.is_none_or(|d| d == self.number)
        };
        self.settings.fail.iter().find(suits).map(|f| f.code)
    }

    /// Runs a call of the interface: fails where it is to fail, and after a fault.
    pub fn call<T>(
        &self,
        function: &'static str,
        run: impl FnOnce(&Device, &mut State) -> Answer<T>,
    ) -> Answer<T> {
        let mut state = lock(&self.state);
        let call = state.calls.entry(function).or_default();
        *call += 1;
        let call = *call;
        if let Some(code) = self.injected(function, call) {
            return Err(code);
        }
        if let Some(code) = state.failed {
            return Err(code);
        }
        if let Queue::Random(_) = self.settings.queue {
            state.some_work(self);
        }
        let answer = run(self, &mut state)?;
        if self.settings.queue == Queue::Early {
            state.all_work(self);
        }
        // What ran early may have failed, as on a device.
        state.failed.map_or(Ok(answer), Err)
    }

    /// What the host may look at without a call.
    pub fn look<T>(&self, run: impl FnOnce(&mut State) -> T) -> T {
        run(&mut lock(&self.state))
    }

    fn options(&self, limit: u32) -> Options {
        let s = &self.settings;
        Options {
            warps: s.order,
            blocks: s.order,
            copies: s.copies,
            races: s.races,
            counters: s.counters.is_some(),
            seed: s.seed,
            step_limit: s.steps,
            shared_limit: limit,
            shared_most: s.shared,
            early: false,
        }
    }
}

/// The code that a device reports for a fault.
fn code_of(fault: &Fault) -> i32 {
    match fault.kind {
        FaultKind::OutOfBounds => codes::ILLEGAL_ADDRESS,
        FaultKind::Misaligned => codes::MISALIGNED_ADDRESS,
        FaultKind::StepLimit => codes::LAUNCH_TIMEOUT,
        _ => codes::LAUNCH_FAILED,
    }
}

/// Adds the counters of a launch, or of a round of a cooperative one, to a file, as a line of JSON.
fn note(path: &std::path::Path, work: &Work, round: Option<usize>, counters: &Counters) {
    let t = &counters.total;
    let pipes: Vec<String> =
        ptx::Pipe::ALL.iter().map(|p| format!("\"{}\":{}", p.name(), t.issued[*p as usize])).collect();
    let numbers = [
        ("shared", u64::from(work.shared)),
        ("shared_used", counters.shared_used),
        ("warps", counters.warps),
        ("lanes", t.lanes),
        ("approximations", t.approximations),
        ("products_half", t.products[0]),
        ("products_tf32", t.products[1]),
        ("wgmma_half", t.warpgroup_products[0]),
        ("wgmma_tf32", t.warpgroup_products[1]),
        ("shared_wavefronts", t.shared_wavefronts),
        ("shared_ideal", t.shared_ideal),
        ("read_sectors", t.read_sectors),
        ("read_bytes", t.read_bytes),
        ("write_sectors", t.write_sectors),
        ("write_bytes", t.write_bytes),
        ("unique_read_sectors", counters.unique_read_sectors),
        ("unique_write_sectors", counters.unique_write_sectors),
        ("barriers", t.barriers),
    ];
    let numbers: Vec<String> = numbers.iter().map(|(name, n)| format!("\"{name}\":{n}")).collect();
    let line = format!(
        "{{\"kernel\":\"{}\",{}\"grid\":{:?},\"block\":{:?},\"issued\":{{{}}},{}}}\n",
        work.kernel,
        round.map_or(String::new(), |i| format!("\"round\":{i},")),
        work.grid,
        work.block,
        pipes.join(","),
        numbers.join(",")
    );
    let file = OpenOptions::new().create(true).append(true).open(path);
    if let Err(e) = file.and_then(|mut f| f.write_all(line.as_bytes())) {
        say(&format!("cannot write {}: {e}", path.display()));
    }
}

impl State {
    fn handle(&mut self, device: &Device) -> u64 {
        self.handles += 1;
        (device.number as u64 + 1) << 40 | self.handles
    }

    fn fail(&mut self, code: i32, words: String) {
        say(&words);
        self.failed = Some(code);
        self.fault = words;
    }

    // ---- work

    fn run(&mut self, device: &Device, op: Op) {
        match op {
            Op::Launch(work) => self.run_kernel(device, &work),
            Op::Graph(list) => list.iter().for_each(|work| self.run_kernel(device, work)),
            Op::ToDevice { to, from, hash } => {
                // SAFETY: the program keeps pinned memory until its copies are done; who gives it back earlier is
                // refused.
                let bytes = unsafe { from.read() };
                if xxh3_64(&bytes) != hash {
                    let words = format!(
                        "the host changed {} bytes at {:#x} before they were copied to the device",
                        from.bytes, from.at
                    );
                    return self.fail(codes::UNKNOWN, words);
                }
                if self.reachable(to, bytes.len(), "a copy to the device") {
                    self.memory.write(to, &bytes);
                }
            }
            Op::ToHost { to, from } => {
                if !self.reachable(from, to.bytes, "a copy to the host") {
                    return;
                }
                let missing = self.memory.unwritten(from, to.bytes);
                if missing > 0 && !device.settings.unwritten {
                    let words = format!(
                        "a copy to the host reads {} bytes at {from:#x}, {missing} of which nothing wrote",
                        to.bytes
                    );
                    return self.fail(codes::UNKNOWN, words);
                }
                let bytes = self.memory.read(from, to.bytes);
                // SAFETY: as above, and the program does not touch it before it has waited.
                unsafe { to.write(&bytes) };
            }
            Op::Within { to, from, bytes } => {
                if self.reachable(to, bytes, "a copy on the device")
                    && self.reachable(from, bytes, "a copy on the device")
                {
                    let held = self.memory.read(from, bytes);
                    self.memory.write(to, &held);
                }
            }
            Op::Set { at, value, bytes } => {
                if self.reachable(at, bytes, "a filling of memory") {
                    self.memory.write(at, &vec![value; bytes]);
                }
            }
            Op::Record { event, serial } => {
                if let Some(event) = self.events.get_mut(&event) {
                    event.reached = event.reached.max(serial);
                }
            }
            Op::Wait { event, serial } => self.reach(device, event, serial),
        }
    }

    /// Whether memory that a queued operation names is still there.
    fn reachable(&mut self, address: u64, bytes: usize, what: &str) -> bool {
        let there = self.memory.holds(address, bytes as u64);
        if !there {
            self.fail(
                codes::ILLEGAL_ADDRESS,
                format!("{what} of {bytes} bytes at {address:#x} is out of bounds"),
            );
        }
        there
    }

    fn run_kernel(&mut self, device: &Device, work: &Work) {
        if self.failed.is_some() {
            return;
        }
        let module = match work.source.module() {
            Ok(module) => module,
            Err(words) => return self.fail(codes::INVALID_PTX, words),
        };
        let request = Launch {
            kernel: &work.kernel,
            grid: work.grid,
            block: work.block,
            shared: work.shared,
            cluster: module.kernel(&work.kernel).and_then(|k| k.cluster).unwrap_or([1; 3]),
            cooperative: work.manner.cooperative,
            args: work.args.clone(),
        };
        let options = Options { early: work.manner.early, ..device.options(work.limit) };
        match ptx::launch(module, &mut self.memory, &request, &options) {
            Ok(outcome) => {
                if let Some(path) = &device.settings.counters {
                    note(path, work, None, &outcome.counters);
                    for (i, counters) in outcome.rounds.iter().enumerate() {
                        note(path, work, Some(i), counters);
                    }
                }
            }
            Err(fault) => self.fail(code_of(&fault), fault.to_string()),
        }
    }

    /// Runs a stream until its queue is empty, or the event is reached.
    fn run_stream(&mut self, device: &Device, stream: u64, until: Option<(u64, u64)>) {
        loop {
            if self.failed.is_some() || until.is_some_and(|(event, serial)| self.is_reached(event, serial)) {
                return;
            }
            let Some(op) = self.streams.get_mut(&stream).and_then(|s| s.queue.pop_front()) else { return };
            self.run(device, op);
        }
    }

    fn is_reached(&self, event: u64, serial: u64) -> bool {
        self.events.get(&event).is_none_or(|e| e.reached >= serial)
    }

    /// Runs what lies before a record of an event.
    fn reach(&mut self, device: &Device, event: u64, serial: u64) {
        if self.is_reached(event, serial) {
            return;
        }
        let records =
            |op: &Op| matches!(op, Op::Record { event: e, serial: s } if (*e, *s) == (event, serial));
        let stream = self.streams.iter().find(|(_, s)| s.queue.iter().any(records)).map(|(id, _)| *id);
        if let Some(stream) = stream {
            self.run_stream(device, stream, Some((event, serial)));
        }
    }

    fn all_work(&mut self, device: &Device) {
        let all: Vec<u64> = self.streams.keys().copied().collect();
        all.into_iter().for_each(|stream| self.run_stream(device, stream, None));
    }

    fn draw(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % below.max(1) as u64) as usize
    }

    /// Runs up to three operations of streams drawn at random.
    fn some_work(&mut self, device: &Device) {
        for _ in 0..self.draw(4) {
            let busy: Vec<u64> =
                self.streams.iter().filter(|(_, s)| !s.queue.is_empty()).map(|(id, _)| *id).collect();
            if busy.is_empty() || self.failed.is_some() {
                return;
            }
            let stream = busy[self.draw(busy.len())];
            let next = self.streams.get_mut(&stream).and_then(|s| s.queue.pop_front());
            if let Some(op) = next {
                self.run(device, op);
            }
        }
    }

    fn push(&mut self, stream: u64, op: Op) -> Answer<()> {
        let stream = self.streams.get_mut(&stream).ok_or(codes::INVALID_HANDLE)?;
        if let Some(recording) = &mut stream.recording {
            recording.broken = true;
            return refuse(codes::CAPTURE_UNSUPPORTED, "a copy is put on a stream that is captured");
        }
        stream.queue.push_back(op);
        Ok(())
    }

    /// Refuses what a capture forbids: to the thread that captures, or, of the global mode, to all.
    fn no_capture(&mut self, what: &str) -> Answer<()> {
        let here = std::thread::current().id();
        for stream in self.streams.values_mut() {
            if let Some(recording) = &mut stream.recording
                && (recording.mode == 0 || recording.mode == 1 && recording.thread == here)
            {
                recording.broken = true;
                return refuse(codes::CAPTURE_UNSUPPORTED, format!("{what} while a stream is captured"));
            }
        }
        Ok(())
    }

    // ---- device memory

    pub fn allocate(&mut self, device: &Device, bytes: usize) -> Answer<u64> {
        self.no_capture("memory is allocated")?;
        if bytes == 0 {
            return Err(codes::INVALID_VALUE);
        }
        if bytes > device.settings.memory.saturating_sub(self.used) {
            return Err(codes::OUT_OF_MEMORY);
        }
        self.used += bytes;
        let address = self.memory.alloc(bytes as u64);
        lock(&OWNERS).insert(address, (bytes as u64, device.number));
        Ok(address)
    }

    pub fn free(&mut self, device: &Device, address: u64) -> Answer<()> {
        self.no_capture("memory is freed")?;
        let Some(bytes) = self.memory.size(address) else {
            return refuse(
                codes::INVALID_VALUE,
                format!("memory at {address:#x} is freed that is not allocated"),
            );
        };
        // The driver waits for the device first.
        self.all_work(device);
        self.used -= bytes as usize;
        lock(&OWNERS).remove(&address);
        self.memory.free(address);
        Ok(())
    }

    pub fn free_bytes(&self, device: &Device) -> usize {
        device.settings.memory - self.used
    }

    pub fn unwritten(&self, address: u64, bytes: usize) -> usize {
        match self.memory.holds(address, bytes as u64) {
            true => self.memory.unwritten(address, bytes),
            false => bytes,
        }
    }

    fn inside(&self, address: u64, bytes: usize, what: &str) -> Answer<()> {
        match self.memory.holds(address, bytes as u64) || bytes == 0 {
            true => Ok(()),
            false => match owner(address) {
                Some(other) => refuse(codes::INVALID_VALUE, format!("{what} uses memory of device {other}")),
                None => refuse(
                    codes::INVALID_VALUE,
                    format!("{what} of {bytes} bytes at {address:#x} is out of bounds"),
                ),
            },
        }
    }

    // ---- pinned memory of the host

    pub fn pin(&mut self, at: usize, bytes: usize, registered: bool) -> Answer<()> {
        let host = Host { at, bytes };
        if self.pinned.iter().any(|p| p.host.overlaps(host)) {
            return refuse(codes::ALREADY_REGISTERED, "memory is registered twice");
        }
        self.pinned.push(Pinned { host, registered, mapped: None });
        Ok(())
    }

    /// Forgets pinned memory; its bytes.
    pub fn unpin(&mut self, at: usize, registered: bool) -> Answer<usize> {
        let found = self.pinned.iter().position(|p| p.host.at == at && p.registered == registered);
        let Some(found) = found else {
            return refuse(codes::NOT_REGISTERED, "memory is unpinned that was not pinned on this device");
        };
        let host = self.pinned[found].host;
        if self.uses(host) {
            return refuse(codes::INVALID_VALUE, "memory is unpinned while a copy uses it");
        }
        if let Some(address) = self.pinned.remove(found).mapped {
            self.memory.free(address);
        }
        Ok(host.bytes)
    }

    /// Gives memory that was pinned an address on the device.
    pub fn map(&mut self, at: usize) {
        for pinned in self.pinned.iter_mut().filter(|p| p.host.at == at) {
            pinned.mapped = Some(self.memory.alloc(pinned.host.bytes as u64));
        }
    }

    /// The address on the device of memory of the host.
    pub fn mapped(&self, at: usize) -> Answer<u64> {
        match self.pinned.iter().find(|p| p.host.at == at).map(|p| p.mapped) {
            Some(Some(address)) => Ok(address),
            _ => refuse(
                codes::INVALID_VALUE,
                "memory has no address on the device: it was not allocated as mapped",
            ),
        }
    }

    /// Whether a copy that is not done uses memory of the host.
    fn uses(&self, host: Host) -> bool {
        let in_use = |op: &Op| op.host().is_some_and(|h| h.overlaps(host));
        self.streams.values().any(|s| s.queue.iter().any(in_use))
    }

    pub fn is_pinned(&self, at: usize, bytes: usize) -> bool {
        self.pinned.iter().any(|p| Host { at, bytes }.within(p.host))
    }

    /// Whether an asynchronous copy may use host memory: all of it pinned on this device. The driver copies other memory
    /// at once on some systems and late on others.
    fn copyable(&self, host: Host, staged: usize) -> Answer<()> {
        match self.pinned.iter().find(|p| host.within(p.host)) {
            None => refuse(codes::INVALID_VALUE, "an asynchronous copy uses host memory that is not pinned"),
            Some(pinned) if !pinned.registered && host.bytes > staged => {
                refuse(codes::INVALID_VALUE, "a copy is staged that should go to registered memory")
            }
            Some(_) => Ok(()),
        }
    }

    // ---- copies

    pub fn copy_in(&mut self, stream: u64, to: u64, at: usize, bytes: usize) -> Answer<()> {
        let from = Host { at, bytes };
        self.inside(to, bytes, "a copy to the device")?;
        self.copyable(from, usize::MAX)?;
        // SAFETY: pinned memory of this many bytes.
        let hash = xxh3_64(&unsafe { from.read() });
        self.push(stream, Op::ToDevice { to, from, hash })
    }

    pub fn copy_out(
        &mut self,
        device: &Device,
        stream: u64,
        at: usize,
        from: u64,
        bytes: usize,
    ) -> Answer<()> {
        let to = Host { at, bytes };
        self.inside(from, bytes, "a copy to the host")?;
        self.copyable(to, device.settings.staged)?;
        let in_use = self.uses(to);
        self.push(stream, Op::ToHost { to, from })?;
        if !in_use {
            // What a program reads before it waits is wrong for certain.
            // SAFETY: pinned memory of this many bytes, which the copy may write from now on.
            unsafe { to.write(&vec![0xa5; bytes]) };
        }
        Ok(())
    }

    pub fn copy_within(&mut self, stream: u64, to: u64, from: u64, bytes: usize) -> Answer<()> {
        self.inside(to, bytes, "a copy on the device")?;
        self.inside(from, bytes, "a copy on the device")?;
        self.push(stream, Op::Within { to, from, bytes })
    }

    pub fn set(&mut self, stream: u64, at: u64, value: u8, bytes: usize) -> Answer<()> {
        self.inside(at, bytes, "a filling of memory")?;
        self.push(stream, Op::Set { at, value, bytes })
    }

    // ---- modules and functions

    /// An image of the toolkit stands for the kernels of the device's folder; a text is parsed.
    pub fn load(&mut self, device: &Device, text: Option<String>) -> Answer<u64> {
        let kernels = match (text, &device.settings.kernels) {
            (Some(text), _) => {
                let source = Source::new("PTX".into(), text);
                if let Err(words) = source.module() {
                    return refuse(codes::INVALID_PTX, words);
                }
                Some(Arc::new(kernels::index([source])))
            }
            (None, Some(folder)) => match kernels::of_folder(folder, device.settings.capability) {
                Ok(kernels) => Some(kernels),
                Err(words) => return refuse(codes::NO_BINARY_FOR_GPU, words),
            },
            (None, None) => None,
        };
        let handle = self.handle(device);
        self.modules.insert(handle, kernels);
        Ok(handle)
    }

    pub fn unload(&mut self, module: u64) -> Answer<()> {
        self.modules.remove(&module).map(|_| ()).ok_or(codes::INVALID_HANDLE)
    }

    pub fn function(&mut self, device: &Device, module: u64, name: &str) -> Answer<u64> {
        let module = self.modules.get(&module).ok_or(codes::INVALID_HANDLE)?;
        let source = match module {
            None => None,
            Some(kernels) => match kernels.get(name) {
                Some(source) => Some(source.clone()),
                None => return refuse(codes::NOT_FOUND, format!("there is no kernel {name} in PTX")),
            },
        };
        let handle = self.handle(device);
        self.functions.insert(handle, Function { name: name.into(), source, limit: 48 << 10 });
        Ok(handle)
    }

    pub fn allow_shared(&mut self, device: &Device, function: u64, bytes: i32) -> Answer<()> {
        let function = self.functions.get_mut(&function).ok_or(codes::INVALID_HANDLE)?;
        function.limit =
            u32::try_from(bytes).ok().filter(|b| *b <= device.settings.shared).ok_or(codes::INVALID_VALUE)?;
        Ok(())
    }

    /// By threads and shared memory, static and dynamic, of which a block takes 1 KiB more than it asks for. Blocks of a
    /// cluster count like others.
    pub fn occupancy(&self, device: &Device, function: u64, threads: i32, shared: usize) -> Answer<i32> {
        let function = self.functions.get(&function).ok_or(codes::INVALID_HANDLE)?;
        let module = function.source.as_ref().and_then(|source| source.module().ok());
        let fixed = module.and_then(|m| m.kernel(&function.name)).map_or(0, |k| k.static_shared as usize);
        if !(1..=1024).contains(&threads) || shared > device.settings.shared as usize {
            return Err(codes::INVALID_VALUE);
        }
        let by_shared = (device.settings.shared as usize + 1024) / (shared + fixed + 1024);
        let computed = i32::try_from(by_shared).unwrap_or(i32::MAX).min(2048 / threads).min(32);
        Ok(device.settings.occupancy.unwrap_or(computed))
    }

    /// The architecture that a function's PTX is for, as in 80.
    pub fn ptx_version(&self, function: u64) -> Answer<i32> {
        let function = self.functions.get(&function).ok_or(codes::INVALID_HANDLE)?;
        let module = function.source.as_ref().and_then(|source| source.module().ok());
        let digits = module.map(|m| m.target.chars().filter(char::is_ascii_digit).collect::<String>());
        Ok(digits.and_then(|digits| digits.parse().ok()).unwrap_or(0))
    }

    // ---- launches

    /// Puts a launch on a stream.
    ///
    /// # Safety
    /// `arguments` points to a pointer for every parameter of the kernel, to as many bytes as it takes.
    pub unsafe fn launch(
        &mut self,
        device: &Device,
        (stream, function): (u64, u64),
        (grid, block, shared): ([u32; 3], [u32; 3], u32),
        manner: Manner,
        arguments: *const *const u8,
    ) -> Answer<()> {
        if manner.early && device.settings.capability < (9, 0) {
            return refuse(codes::NOT_SUPPORTED, "an early launch below compute capability 9.0");
        }
        if manner.cooperative {
            if !device.settings.cooperative {
                return refuse(codes::NOT_SUPPORTED, "a cooperative launch on a device without them");
            }
            let threads = block.iter().product::<u32>() as i32;
            let most =
                self.occupancy(device, function, threads, shared as usize)? * device.settings.processors;
            if grid.iter().map(|n| i64::from(*n)).product::<i64>() > i64::from(most) {
                let words = format!("a cooperative launch of {grid:?} blocks, the device holds {most}");
                return refuse(codes::COOPERATIVE_LAUNCH_TOO_LARGE, words);
            }
        }
        let function = self.functions.get(&function).ok_or(codes::INVALID_HANDLE)?;
        let (name, limit) = (function.name.clone(), function.limit);
        if device.settings.crash_kernel.as_deref() == Some(&*name) {
            std::process::abort();
        }
        let Some(source) = function.source.clone() else {
            return refuse(
                codes::NOT_SUPPORTED,
                format!("{name}: there is no PTX to run (setting `kernels`)"),
            );
        };
        let module = source.module().or_else(|words| refuse(codes::INVALID_PTX, words))?;
        let kernel = module.kernel(&name).ok_or(codes::NOT_FOUND)?;
        let mut args = vec![0; kernel.param_bytes() as usize];
        if arguments.is_null() && !kernel.params.is_empty() {
            return Err(codes::INVALID_VALUE);
        }
        for (i, param) in kernel.params.iter().enumerate() {
            let (at, bytes) = (param.offset as usize, param.bytes as usize);
            // SAFETY: the caller answers for pointers and sizes.
            let value = unsafe { std::slice::from_raw_parts(arguments.add(i).read(), bytes) };
            args[at..at + bytes].copy_from_slice(value);
        }
        for word in args.as_chunks::<8>().0 {
            if let Some(other) = owner(u64::from_le_bytes(*word)).filter(|other| *other != device.number) {
                return refuse(codes::INVALID_VALUE, format!("{name} uses memory of device {other}"));
            }
        }
        let request = Launch {
            kernel: &name,
            grid,
            block,
            shared,
            cluster: kernel.cluster.unwrap_or([1; 3]),
            cooperative: manner.cooperative,
            args: args.clone(),
        };
        if let Err(fault) = ptx::check_launch(module, &request, &device.options(limit)) {
            self.fault = fault.to_string();
            return refuse(codes::INVALID_VALUE, fault.to_string());
        }
        let work = Work { source: source.clone(), kernel: name, grid, block, shared, args, limit, manner };
        let stream = self.streams.get_mut(&stream).ok_or(codes::INVALID_HANDLE)?;
        match &mut stream.recording {
            Some(recording) => recording.work.push(work),
            None => stream.queue.push_back(Op::Launch(work)),
        }
        Ok(())
    }

    // ---- streams and events

    pub fn new_stream(&mut self, device: &Device) -> u64 {
        let handle = self.handle(device);
        self.streams.insert(handle, Stream::default());
        handle
    }

    pub fn destroy_stream(&mut self, device: &Device, stream: u64) -> Answer<()> {
        self.run_stream(device, stream, None);
        self.streams.remove(&stream).map(|_| ()).ok_or(codes::INVALID_HANDLE)
    }

    pub fn synchronize(&mut self, device: &Device, stream: u64) -> Answer<()> {
        let found = self.streams.get_mut(&stream).ok_or(codes::INVALID_HANDLE)?;
        if let Some(recording) = &mut found.recording {
            recording.broken = true;
            return refuse(codes::CAPTURE_UNSUPPORTED, "a stream that is captured is waited for");
        }
        self.no_capture("a stream is waited for")?;
        self.run_stream(device, stream, None);
        Ok(())
    }

    pub fn synchronize_all(&mut self, device: &Device) -> Answer<()> {
        self.no_capture("the device is waited for")?;
        self.all_work(device);
        Ok(())
    }

    pub fn new_event(&mut self, device: &Device) -> u64 {
        let handle = self.handle(device);
        self.events.insert(handle, Event::default());
        handle
    }

    fn event(&mut self, event: u64) -> Answer<&mut Event> {
        self.events.get_mut(&event).filter(|e| !e.destroyed).ok_or(codes::INVALID_HANDLE)
    }

    pub fn destroy_event(&mut self, event: u64) -> Answer<()> {
        self.event(event)?.destroyed = true;
        Ok(())
    }

    pub fn record(&mut self, event: u64, stream: u64) -> Answer<()> {
        let serial = self.serial + 1;
        self.event(event)?;
        self.push(stream, Op::Record { event, serial })?;
        self.serial = serial;
        self.event(event)?.recorded = serial;
        Ok(())
    }

    pub fn wait(&mut self, stream: u64, event: u64) -> Answer<()> {
        let serial = self.event(event)?.recorded;
        self.push(stream, Op::Wait { event, serial })
    }

    pub fn synchronize_event(&mut self, device: &Device, event: u64) -> Answer<()> {
        let serial = self.event(event)?.recorded;
        self.reach(device, event, serial);
        Ok(())
    }

    pub fn query_event(&mut self, event: u64) -> Answer<()> {
        let serial = self.event(event)?.recorded;
        if self.is_reached(event, serial) { Ok(()) } else { Err(codes::NOT_READY) }
    }

    // ---- graphs

    pub fn begin_capture(&mut self, stream: u64, mode: u32) -> Answer<()> {
        let stream = self.streams.get_mut(&stream).ok_or(codes::INVALID_HANDLE)?;
        if stream.recording.is_some() {
            return refuse(codes::INVALID_VALUE, "a stream is captured twice");
        }
        let thread = std::thread::current().id();
        stream.recording = Some(Recording { work: Vec::new(), thread, mode, broken: false });
        Ok(())
    }

    pub fn end_capture(&mut self, device: &Device, stream: u64) -> Answer<u64> {
        let stream = self.streams.get_mut(&stream).ok_or(codes::INVALID_HANDLE)?;
        let recording = stream.recording.take().ok_or(codes::INVALID_VALUE)?;
        if recording.broken {
            return refuse(codes::CAPTURE_INVALIDATED, "the capture was broken off");
        }
        if recording.mode != 2 && recording.thread != std::thread::current().id() {
            return refuse(codes::INVALID_VALUE, "a capture ends in another thread");
        }
        Ok(self.keep(device, recording.work.into()))
    }

    fn keep(&mut self, device: &Device, work: Arc<Vec<Work>>) -> u64 {
        let handle = self.handle(device);
        self.graphs.insert(handle, work);
        handle
    }

    pub fn instantiate(&mut self, device: &Device, graph: u64) -> Answer<u64> {
        let work = self.graphs.get(&graph).ok_or(codes::INVALID_HANDLE)?.clone();
        Ok(self.keep(device, work))
    }

    pub fn drop_graph(&mut self, graph: u64) -> Answer<()> {
        self.graphs.remove(&graph).map(|_| ()).ok_or(codes::INVALID_HANDLE)
    }

    pub fn launch_graph(&mut self, graph: u64, stream: u64) -> Answer<()> {
        let work = self.graphs.get(&graph).ok_or(codes::INVALID_HANDLE)?.clone();
        self.push(stream, Op::Graph(work))
    }
}

/// All devices of the process.
pub static DEVICES: Mutex<Vec<Arc<Device>>> = Mutex::new(Vec::new());

/// Settings of the environment, read once.
pub fn environment() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| {
        let text = std::env::var("PTX_DRIVER").unwrap_or_default();
        text.parse().unwrap_or_else(|words| {
            say(&format!("PTX_DRIVER: {words}"));
            std::process::exit(2)
        })
    })
}

/// Adds a device; its number.
pub fn add(settings: Settings) -> usize {
    let mut all = lock(&DEVICES);
    let number = all.len();
    all.push(Arc::new(Device::new(number, settings)));
    number
}

/// Adds the devices of the environment, once, unless the program added its own.
pub fn start() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let settings = environment();
        if lock(&DEVICES).is_empty() {
            (0..settings.count).for_each(|_| {
                add(settings.clone());
            });
        }
    });
}

/// The device of a handle, or of its number plus one.
pub fn of_handle(handle: u64) -> Option<Arc<Device>> {
    let number = usize::try_from(handle >> 40).ok()?.checked_sub(1)?;
    lock(&DEVICES).get(number).cloned()
}
