//! Launches: what is asked for, what a device refuses, and the order of blocks.

use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use super::clocks::Knowledge;
use super::fault::{Fault, FaultKind, Other, Place, Trouble};
use super::memory::Memory;
use super::run::{Cluster, Stop};
use super::shadow::Shadow;
use crate::counters::{Counters, PcCount, Touched};
use crate::program::{Kernel, Module};
use crate::tensor_map::TensorMap;

/// A launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch<'a> {
    /// Name of the kernel.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// Whether all blocks are on the device at once (`CU_LAUNCH_ATTRIBUTE_COOPERATIVE`), so that they may wait for each
    /// other. They take turns, each up to where it waits; so counts are the same in every run.
    pub cooperative: bool,
    /// Bytes of the arguments, laid out as [`Kernel::params`] says.
    pub args: Vec<u8>,
}

impl<'a> Launch<'a> {
    /// A launch without shared memory and arguments.
    pub fn new(kernel: &'a str, grid: [u32; 3], block: [u32; 3]) -> Launch<'a> {
        Launch { kernel, grid, block, shared: 0, cluster: [1; 3], cooperative: false, args: Vec::new() }
    }

    /// Sets the bytes of dynamic shared memory.
    pub fn shared(mut self, bytes: u32) -> Self {
        self.shared = bytes;
        self
    }

    /// Puts all blocks on the device at once.
    pub fn cooperative(mut self) -> Self {
        self.cooperative = true;
        self
    }

    /// Adds an argument, aligned to its size (at most 8).
    pub fn arg(mut self, bytes: &[u8]) -> Self {
        let align = bytes.len().next_power_of_two().clamp(1, 8);
        self.args.resize(self.args.len().next_multiple_of(align), 0);
        self.args.extend(bytes);
        self
    }

    /// Adds a tensor map, a parameter of 128 bytes at a multiple of 64.
    pub fn tensor_map(mut self, map: &TensorMap) -> Self {
        self.args.resize(self.args.len().next_multiple_of(64), 0);
        self.args.extend(map.encode());
        self
    }
}

/// An order in which warps or blocks take turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Rising. Blocks run on several threads of the host.
    #[default]
    Any,
    /// Rising, one at a time.
    Forward,
    /// Falling, one at a time.
    Backward,
    /// Drawn from a seed, one at a time.
    Random(u64),
}

/// When `cp.async` writes shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copies {
    /// When the thread waits for it.
    #[default]
    Late,
    /// At once.
    Early,
}

/// How a launch is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Turns of warps within a block.
    pub warps: Order,
    /// Order of blocks.
    pub blocks: Order,
    /// When copies land.
    pub copies: Copies,
    /// Looks for races. Costs about half of the time of memory-bound kernels.
    pub races: bool,
    /// Counts instructions, sectors and bank conflicts; without, the outcome's counters are empty.
    pub counters: bool,
    /// Draws the errors of approximate instructions.
    pub seed: u64,
    /// Instructions that a warp may execute.
    pub step_limit: u64,
    /// Bytes of shared memory that the kernel was allowed; 48 KiB unless a launch opts into more.
    pub shared_limit: u32,
    /// Bytes that a block can have at most.
    pub shared_most: u32,
    /// The launch may start before the one ahead of it in its stream has ended (programmatic stream serialization):
    /// threads use global memory behind `griddepcontrol.wait` alone.
    pub early: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            warps: Order::Any,
            blocks: Order::Any,
            copies: Copies::Late,
            races: true,
            counters: true,
            seed: 0,
            step_limit: 1 << 32,
            shared_limit: 48 * 1024,
            shared_most: 227 * 1024,
            early: false,
        }
    }
}

/// What a launch did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its counters.
    pub counters: Counters,
    /// Of a cooperative launch those of each round of turns: what blocks do between two barriers of the grid.
    pub rounds: Vec<Counters>,
}

/// By address and block: what its threads knew when they released it, and the scope of that.
pub(crate) type Released = HashMap<u64, HashMap<u32, (Arc<Knowledge>, u8)>>;

/// Everything that blocks share.
pub(crate) struct Shared<'a> {
    pub kernel: &'a Kernel,
    pub module: &'a Module,
    pub memory: &'a Memory,
    pub options: &'a Options,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub dynamic: u32,
    pub shared_bytes: u32,
    pub params: Vec<u8>,
    /// Constants with all lanes alike.
    pub consts32: Vec<[u32; 32]>,
    pub consts64: Vec<[u64; 32]>,
    pub shadow: Option<Shadow>,
    /// Where counters are wanted.
    pub touched: Option<Touched>,
    /// What threads released at an address of global memory, by block.
    pub released: Mutex<Released>,
    pub stop: AtomicBool,
}

impl Shared<'_> {
    pub fn block_index(&self, number: u32) -> [u32; 3] {
        let [x, y, _] = self.grid;
        [number % x, number / x % y, number / (x * y)]
    }

    fn thread_index(&self, thread: u32) -> [u32; 3] {
        let [x, y, _] = self.block;
        [thread % x, thread / x % y, thread / (x * y)]
    }

    fn place(&self, pc: u32) -> Place {
        place(self.module, self.kernel, pc)
    }

    pub fn fault(&self, block: u32, warp: u32, pc: u32, t: Trouble) -> Fault {
        Fault {
            kind: t.kind,
            kernel: self.kernel.name.clone(),
            block: Some(self.block_index(block)),
            thread: Some(self.thread_index(warp * 32 + t.lane)),
            place: Some(self.place(t.pc.unwrap_or(pc))),
            other: t.other.map(|(what, block, thread, pc)| {
                Box::new(Other {
                    what,
                    block: self.block_index(block),
                    thread: self.thread_index(thread),
                    place: self.place(pc),
                })
            }),
            message: t.message,
        }
    }
}

/// The place of an instruction.
pub(crate) fn place(module: &Module, kernel: &Kernel, pc: u32) -> Place {
    let pc = pc as usize;
    let name = |(file, line): (u32, u32)| {
        let path = module.files.get(&file).map_or("?", String::as_str);
        (path.to_string(), line)
    };
    let loc = kernel.locs.get(pc).and_then(Option::as_ref);
    Place {
        opcode: kernel.opcode(pc).to_string(),
        ptx_line: kernel.lines.get(pc).copied().unwrap_or(0),
        source: loc.map(|l| name((l.file, l.line))),
        inlined_at: loc.and_then(|l| l.inlined_at).map(name),
    }
}

fn refuse(kernel: &str, message: impl Into<String>) -> Box<Fault> {
    Box::new(Fault {
        kind: FaultKind::BadLaunch,
        kernel: kernel.to_string(),
        block: None,
        thread: None,
        place: None,
        other: None,
        message: message.into(),
    })
}

/// Points of a grid or block; what does not fit 64 bits counts as that many.
fn volume(size: [u32; 3]) -> u64 {
    size.iter().fold(1, |n, s| n.saturating_mul(u64::from(*s)))
}

/// The limits of devices of compute capability 7.5 to 10.0, CUDA C++ Programming Guide, technical specifications.
fn check(kernel: &Kernel, launch: &Launch, options: &Options) -> Result<(), Box<Fault>> {
    let fail = |message: String| Err(refuse(&kernel.name, message));
    let [gx, gy, gz] = launch.grid;
    if gx == 0 || gy == 0 || gz == 0 || gx > i32::MAX as u32 || gy > 65_535 || gz > 65_535 {
        return fail(format!(
            "grid {:?}: at least 1 and at most 2^31 - 1, 65,535, 65,535 blocks",
            launch.grid
        ));
    }
    if volume(launch.grid) > 1 << 26 {
        return fail(format!("grid {:?}: the machine runs at most 2^26 blocks", launch.grid));
    }
    let threads = volume(launch.block);
    if threads == 0 || threads > 1024 || launch.block[2] > 64 {
        return fail(format!("block {:?}: at least 1 and at most 1,024 threads, 64 in z", launch.block));
    }
    if let Some(most) = kernel.max_threads {
        let most = volume(most);
        if threads > most {
            return fail(format!("{threads} threads of a block, the kernel was compiled for at most {most}"));
        }
    }
    if kernel.required_threads.is_some_and(|r| r != launch.block) {
        return fail(format!(
            "block {:?}, the kernel was compiled for {:?}",
            launch.block, kernel.required_threads
        ));
    }
    let blocks = volume(launch.cluster);
    if blocks == 0 || blocks > 16 || (0..3).any(|i| !launch.grid[i].is_multiple_of(launch.cluster[i].max(1)))
    {
        return fail(format!(
            "cluster {:?} does not divide grid {:?} or is too large",
            launch.cluster, launch.grid
        ));
    }
    if kernel.cluster.is_some_and(|c| c != launch.cluster) {
        return fail(format!(
            "cluster {:?}, the kernel was compiled for {:?}",
            launch.cluster, kernel.cluster
        ));
    }
    if kernel.static_shared > 48 * 1024 {
        return fail(format!("{} bytes of static shared memory, at most 49,152", kernel.static_shared));
    }
    if launch.shared > options.shared_limit || launch.shared > options.shared_most {
        return fail(format!(
            "{} bytes of dynamic shared memory, opted into {}",
            launch.shared, options.shared_limit
        ));
    }
    let total = kernel.static_shared.next_multiple_of(kernel.dynamic_align) + launch.shared;
    if total > options.shared_most {
        return fail(format!("{total} bytes of shared memory, a block can have {}", options.shared_most));
    }
    if launch.args.len() < kernel.param_bytes() as usize {
        return fail(format!(
            "{} argument bytes, the kernel takes {}",
            launch.args.len(),
            kernel.param_bytes()
        ));
    }
    if launch.args.len() > (kernel.param_bytes() as usize).next_multiple_of(8) {
        return fail(format!(
            "{} argument bytes, the kernel takes {}",
            launch.args.len(),
            kernel.param_bytes()
        ));
    }
    Ok(())
}

/// Refuses a launch that a device refuses when it is asked for: unknown kernels, grids, blocks and clusters of sizes that
/// it does not have, too much shared memory, argument bytes that do not fit the kernel's parameters.
pub fn check_launch(module: &Module, launch: &Launch, options: &Options) -> Result<(), Box<Fault>> {
    match module.kernel(launch.kernel) {
        Some(kernel) => check(kernel, launch, options),
        None => Err(refuse(launch.kernel, "the module has no kernel of this name")),
    }
}

/// Runs a launch to its end.
///
/// Module variables get memory of their own, anew for every launch.
pub fn launch(
    module: &Module,
    memory: &mut Memory,
    launch: &Launch,
    options: &Options,
) -> Result<Outcome, Box<Fault>> {
    let Some(kernel) = module.kernel(launch.kernel) else {
        return Err(refuse(launch.kernel, "the module has no kernel of this name"));
    };
    check(kernel, launch, options)?;
    let mut consts64 = kernel.consts64.clone();
    let mut made = Vec::new();
    let mut addresses = HashMap::new();
    for (at, variable) in &kernel.relocations {
        let v = &module.variables[*variable as usize];
        let address = *addresses.entry(*variable).or_insert_with(|| {
            let bytes = v.bytes.unwrap_or(0).max(1);
            let address = memory.make(bytes, v.space == crate::parse::ast::Space::Const);
            let mut init = v.init.clone().unwrap_or_default();
            init.resize(bytes as usize, 0);
            memory.write(address, &init);
            made.push(address);
            address
        });
        consts64[*at as usize] = consts64[*at as usize].wrapping_add(address);
    }
    let shared_bytes = kernel.static_shared.next_multiple_of(kernel.dynamic_align) + launch.shared;
    let (result, touched) = {
        let sizes = memory.buffers.iter().map(|b| b.bytes);
        let shared = Shared {
            kernel,
            module,
            memory,
            options,
            grid: launch.grid,
            block: launch.block,
            cluster: launch.cluster,
            dynamic: launch.shared,
            shared_bytes,
            params: launch.args.clone(),
            consts32: kernel.consts32.iter().map(|c| [*c; 32]).collect(),
            consts64: consts64.iter().map(|c| [*c; 32]).collect(),
            touched: options.counters.then(|| Touched::new(sizes.clone())),
            shadow: options.races.then(|| Shadow::new(sizes, kernel.global_grain)),
            released: Mutex::new(HashMap::new()),
            stop: AtomicBool::new(false),
        };
        let mut rounds = Vec::new();
        let noted = |counts: &[PcCount]| {
            if let Some(touched) = shared.touched.as_ref().filter(|_| launch.cooperative) {
                rounds.push(Counters::new(module, kernel, counts, launch, touched));
            }
        };
        let counts = all_clusters(&shared, launch.cooperative, noted);
        (counts.map(|counts| (counts, rounds)), shared.touched)
    };
    for address in made {
        memory.free(address);
    }
    let (counts, mut rounds) = result?;
    let counters = touched.map(|touched| Counters::new(module, kernel, &counts, launch, &touched));
    let counters = counters.unwrap_or_default();
    // Sectors count in the round that first touches them.
    for i in (1..rounds.len()).rev() {
        rounds[i].unique_read_sectors -= rounds[i - 1].unique_read_sectors;
        rounds[i].unique_write_sectors -= rounds[i - 1].unique_write_sectors;
    }
    Ok(Outcome { counters, rounds })
}

/// Instructions that a cluster executes before others get a turn. Only who waits for other blocks needs that many.
const SLICE: u64 = 1 << 22;

/// Rounds of turns in which nobody does more than look for what others do, before that is a deadlock.
const STILL_ROUNDS: u32 = 1 << 10;

/// Clusters in the order of the options; `seed` differs between rounds.
fn ordered<T>(of: &mut [T], order: Order, round: u64) {
    match order {
        Order::Any | Order::Forward => {}
        Order::Backward => of.reverse(),
        Order::Random(seed) => {
            let mut state = seed ^ 0x9e37_79b9_7f4a_7c15 ^ round << 32;
            for i in (1..of.len()).rev() {
                of.swap(i, (crate::random::next(&mut state) % (i as u64 + 1)) as usize);
            }
        }
    }
}

/// Runs all blocks; of a cooperative launch `noted` gets the counts of each round.
fn all_clusters(
    shared: &Shared,
    cooperative: bool,
    mut noted: impl FnMut(&[PcCount]),
) -> Result<Vec<PcCount>, Box<Fault>> {
    let clusters = (0..3).map(|i| u64::from(shared.grid[i] / shared.cluster[i])).product::<u64>() as u32;
    let mut order: Vec<u32> = (0..clusters).collect();
    ordered(&mut order, shared.options.blocks, 0);
    let empty = || vec![PcCount::default(); shared.kernel.code.len()];
    let parked = Mutex::new(Vec::new());
    let first = |mut counts: Vec<PcCount>, number: &u32| -> Result<Vec<PcCount>, Box<Fault>> {
        if shared.stop.load(Relaxed) {
            return Ok(counts);
        }
        let mut cluster = Cluster::new(shared, *number);
        match cluster.run(shared, &mut counts, SLICE) {
            Ok(Stop::Done) => Ok(counts),
            Ok(Stop::Budget | Stop::Poll(_)) => {
                parked.lock().expect("no panic").push((*number, cluster));
                Ok(counts)
            }
            Err(fault) => {
                shared.stop.store(true, Relaxed);
                Err(fault)
            }
        }
    };
    let mut counts = if shared.options.blocks == Order::Any && clusters > 1 && !cooperative {
        order.par_iter().try_fold(empty, first).try_reduce(empty, |mut a, b| {
            a.iter_mut().zip(&b).for_each(|(a, b)| a.add(b));
            Ok(a)
        })?
    } else {
        order.iter().try_fold(empty(), first)?
    };
    noted(&counts);
    // Who did not end in the first turn may wait for other blocks: all of them take turns now.
    let mut parked = parked.into_inner().expect("no panic");
    let (mut round, mut still_rounds) = (0, 0);
    while !parked.is_empty() {
        round += 1;
        parked.sort_by_key(|(number, _)| *number);
        ordered(&mut parked, shared.options.blocks, round);
        let (mut left, mut still, mut own) = (Vec::new(), true, empty());
        for (number, mut cluster) in parked {
            let stop = cluster.run(shared, &mut own, SLICE / 64)?;
            still &= stop == Stop::Poll(true);
            if stop != Stop::Done {
                left.push((number, cluster));
            }
        }
        counts.iter_mut().zip(&own).for_each(|(a, b)| a.add(b));
        noted(&own);
        still_rounds = if still { still_rounds + 1 } else { 0 };
        if let Some((_, cluster)) = left.first().filter(|_| still_rounds == STILL_ROUNDS) {
            return Err(Box::new(cluster.deadlock(shared)));
        }
        parked = left;
    }
    Ok(counts)
}
