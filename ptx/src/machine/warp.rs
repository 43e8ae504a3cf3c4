//! A warp: registers of 32 lanes, where each lane is, and what it waits for.

use std::sync::Arc;

use super::clocks::Knowledge;
use super::launch::Shared;
use crate::program::Special;

/// A copy that `cp.async` started.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub lane: u32,
    /// How many groups the thread had committed before it.
    pub group: u32,
    /// Offset in shared memory.
    pub to: u64,
    pub bytes: u32,
    pub data: [u8; 16],
    pub pc: u32,
}

/// A lane's wait at a barrier.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parked {
    pub barrier: u8,
    pub generation: u32,
}

#[derive(Debug)]
pub(crate) struct Warp {
    pub index: u32,
    pub r32: Vec<[u32; 32]>,
    pub r64: Vec<[u64; 32]>,
    /// A mask of lanes each.
    pub preds: Vec<u32>,
    /// Lanes that wrote each of [`crate::Kernel`]'s suspect registers.
    pub written: Vec<u32>,
    pub pc: [u32; 32],
    /// Lanes with a thread that has not ended.
    pub alive: u32,
    /// Lanes that can run.
    pub ready: u32,
    /// Lanes that wait at an instruction of the whole warp.
    pub gathering: u32,
    /// Lanes that wait at a barrier.
    pub parked: u32,
    pub park: [Parked; 32],
    pub local: Vec<Vec<u8>>,
    pub local_written: Vec<Vec<u64>>,
    pub pending: Vec<Pending>,
    pub committed: [u32; 32],
    /// Steps so far.
    pub steps: u64,
    /// What each lane knew at its last fence, and the scope of that.
    pub fenced: Vec<Option<(Arc<Knowledge>, u8)>>,
    /// Places that lanes read by strong operations since their last fence.
    pub observed: Vec<(u32, u64)>,
    /// Products of a warpgroup under way: (group, slots of their sums), and the number of committed groups.
    pub products: Vec<(u32, Vec<i32>)>,
    /// The same slots, a bit each.
    busy: Vec<u64>,
    pub product_groups: u32,
    /// Whether `wgmma.fence` was passed, which the first product needs.
    pub product_fence: bool,
    /// Groups of bulk copies that each lane committed.
    pub bulk_groups: [u32; 32],
    /// Member masks of lanes that wait at an instruction of the whole warp.
    pub members: [u32; 32],
    /// The phase of the cluster barrier that each lane arrived in.
    pub cluster_phase: [u32; 32],
    /// Lanes that may use global memory: those that waited for the launch ahead, or all.
    pub waited: u32,
    /// The last strong load of global memory: its instruction and what its first lane found.
    pub poll: (u32, u64),
}

impl Warp {
    pub fn new(shared: &Shared, index: u32, block: u32, rank: u32) -> Warp {
        let kernel = shared.kernel;
        let threads: u32 = shared.block.iter().product();
        let mine = (threads - index * 32).min(32);
        let alive = if mine == 32 { u32::MAX } else { (1 << mine) - 1 };
        let mut warp = Warp {
            index,
            r32: vec![[0xdead_beef; 32]; kernel.slots32 as usize],
            r64: vec![[0xdead_beef_dead_beef; 32]; kernel.slots64 as usize],
            preds: vec![0; kernel.slots_pred as usize],
            written: vec![0; kernel.suspects.len()],
            pc: [0; 32],
            alive,
            ready: alive,
            gathering: 0,
            parked: 0,
            park: [Parked::default(); 32],
            local: Vec::new(),
            local_written: Vec::new(),
            pending: Vec::new(),
            committed: [0; 32],
            steps: 0,
            fenced: vec![None; 32],
            observed: Vec::new(),
            products: Vec::new(),
            busy: Vec::new(),
            product_groups: 0,
            product_fence: false,
            bulk_groups: [0; 32],
            members: [0; 32],
            cluster_phase: [0; 32],
            waited: if shared.options.early { 0 } else { u32::MAX },
            poll: (u32::MAX, 0),
        };
        if kernel.local_bytes > 0 {
            warp.local = vec![vec![0; kernel.local_bytes as usize]; 32];
            warp.local_written = vec![vec![0; (kernel.local_bytes as usize).div_ceil(64)]; 32];
        }
        for (special, slot) in &kernel.specials32 {
            for lane in 0..32 {
                warp.r32[*slot as usize][lane as usize] =
                    special_value(shared, *special, index, lane, block, rank);
            }
        }
        for (_, slot) in &kernel.specials64 {
            warp.r64[*slot as usize] = [1; 32];
        }
        warp
    }

    /// A product of a warpgroup begins, in a group, with sums in these slots.
    pub fn begin_product(&mut self, group: u32, slots: Vec<i32>) {
        self.products.push((group, slots));
        self.find_busy();
    }

    /// Ends the products of groups before a number.
    pub fn end_products(&mut self, before: u32) {
        self.products.retain(|(group, _)| *group >= before);
        self.find_busy();
    }

    fn find_busy(&mut self) {
        self.busy.clear();
        self.busy.resize(self.r32.len().div_ceil(64), 0);
        for slot in self.products.iter().flat_map(|(_, slots)| slots).filter(|slot| **slot >= 0) {
            self.busy[*slot as usize / 64] |= 1 << (slot % 64);
        }
    }

    /// Whether a product under way has a sum in a slot.
    pub fn is_busy(&self, slot: i32) -> bool {
        self.busy[slot as usize / 64] >> (slot % 64) & 1 != 0
    }
}

/// PTX ISA 10.
fn special_value(shared: &Shared, s: Special, warp: u32, lane: u32, block: u32, rank: u32) -> u32 {
    let thread = warp * 32 + lane;
    let index = |size: [u32; 3], n: u32, axis: u8| match axis {
        0 => n % size[0],
        1 => n / size[0] % size[1],
        _ => n / (size[0] * size[1]),
    };
    let threads: u32 = shared.block.iter().product();
    let ctaid = shared.block_index(block);
    let bit = 1u32 << lane;
    match s {
        Special::Tid(a) => index(shared.block, thread, a),
        Special::Ntid(a) => shared.block[a as usize],
        Special::Ctaid(a) => ctaid[a as usize],
        Special::Nctaid(a) => shared.grid[a as usize],
        Special::LaneId => lane,
        Special::WarpId => warp,
        Special::NWarpId => threads.div_ceil(32),
        Special::SmId => block % 132,
        Special::NSmId => 132,
        Special::GridId => 1,
        Special::LaneMaskEq => bit,
        Special::LaneMaskLt => bit - 1,
        Special::LaneMaskLe => bit | (bit - 1),
        Special::LaneMaskGt => !(bit | (bit - 1)),
        Special::LaneMaskGe => !(bit - 1),
        Special::DynamicShared => shared.dynamic,
        Special::TotalShared => shared.shared_bytes,
        Special::ClusterId(a) => ctaid[a as usize] / shared.cluster[a as usize],
        Special::NClusterId(a) => shared.grid[a as usize] / shared.cluster[a as usize],
        Special::ClusterCtaid(a) => ctaid[a as usize] % shared.cluster[a as usize],
        Special::ClusterNctaid(a) => shared.cluster[a as usize],
        Special::ClusterCtaRank => rank,
        Special::ClusterNctaRank => shared.cluster.iter().product(),
    }
}
