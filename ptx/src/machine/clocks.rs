//! What happened before what, among the threads of a block.
//!
//! Every warp counts; a count ends at each event that orders its lanes with others. An access is known by its thread
//! and the count that the thread was in. It happened before an access of another thread if that thread has learnt,
//! through barriers, warp synchronisation, mbarriers or fences, that the first has ended that count.

use std::collections::HashMap;
use std::sync::Arc;

/// What a thread knew when it released it to others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Knowledge {
    /// For each warp, the count that all of its lanes have ended.
    pub warps: Vec<u32>,
    /// Single threads that have ended more.
    pub threads: Vec<(u32, u32)>,
}

/// Counts and knowledge of a block.
#[derive(Debug)]
pub(crate) struct Clocks {
    count: Vec<u32>,
    lane: Vec<[u32; 32]>,
    /// Known to every thread of the block.
    floor: Vec<u32>,
    /// Known within the warp.
    own: Vec<u32>,
    /// Known to a lane of other lanes of its warp.
    seen: Vec<Option<Box<[[u32; 32]; 32]>>>,
    /// Known to a warp of other warps.
    cross: Option<Vec<Vec<u32>>>,
    /// Known to a warp of single threads.
    single: Option<Vec<HashMap<u32, u32>>>,
    /// Known to the block of other blocks.
    pub foreign: HashMap<u32, Arc<Knowledge>>,
}

impl Clocks {
    pub fn new(warps: usize) -> Clocks {
        Clocks {
            count: vec![1; warps],
            lane: vec![[1; 32]; warps],
            floor: vec![0; warps],
            own: vec![0; warps],
            seen: vec![None; warps],
            cross: None,
            single: None,
            foreign: HashMap::new(),
        }
    }

    /// The count that a lane is in.
    #[inline]
    pub fn now(&self, warp: u32, lane: u32) -> u32 {
        self.lane[warp as usize][lane as usize]
    }

    /// Whether an access of a thread in a count happened before what lane `lane` of `warp` does now.
    #[inline]
    pub fn before(&self, thread: u32, count: u32, warp: u32, lane: u32) -> bool {
        let (from, l) = (thread / 32, thread % 32);
        if count <= self.floor[from as usize] {
            return true;
        }
        if from == warp {
            if l == lane || count <= self.own[warp as usize] {
                return true;
            }
            if let Some(seen) = &self.seen[warp as usize]
                && count <= seen[lane as usize][l as usize]
            {
                return true;
            }
        }
        self.before_slow(thread, count, warp)
    }

    /// Whether all lanes of a warp know that one of theirs has ended a count.
    #[inline]
    pub fn known_to_warp(&self, thread: u32, count: u32) -> bool {
        let warp = (thread / 32) as usize;
        count <= self.floor[warp].max(self.own[warp])
    }

    #[cold]
    fn before_slow(&self, thread: u32, count: u32, warp: u32) -> bool {
        let cross = self.cross.as_ref().is_some_and(|c| count <= c[warp as usize][(thread / 32) as usize]);
        cross
            || self
                .single
                .as_ref()
                .is_some_and(|s| s[warp as usize].get(&thread).is_some_and(|known| count <= *known))
    }

    /// All threads of the block met.
    pub fn block_barrier(&mut self) {
        for w in 0..self.count.len() {
            self.floor[w] = self.count[w];
            self.count[w] += 1;
            self.lane[w] = [self.count[w]; 32];
        }
    }

    /// Whole warps met at a barrier. Those that only arrived are known to the others but know nothing new.
    pub fn warps_barrier(&mut self, arrived: &[u32], waiting: &[u32]) {
        let n = self.count.len();
        let cross = self.cross.get_or_insert_with(|| vec![vec![0; n]; n]);
        let mut joined = vec![0; n];
        for w in arrived.iter().chain(waiting) {
            let w = *w as usize;
            for v in 0..n {
                joined[v] = joined[v].max(cross[w][v]);
            }
            joined[w] = joined[w].max(self.count[w]);
        }
        for w in waiting {
            let w = *w as usize;
            cross[w].copy_from_slice(&joined);
            self.own[w] = self.count[w];
        }
        let mut single = HashMap::new();
        if let Some(all) = &mut self.single {
            for w in arrived.iter().chain(waiting) {
                single.extend(all[*w as usize].iter().map(|(t, c)| (*t, *c)));
            }
            for w in waiting {
                all[*w as usize].extend(single.iter().map(|(t, c)| (*t, *c)));
            }
        }
        for w in arrived.iter().chain(waiting) {
            self.bump(*w as usize, u32::MAX);
        }
    }

    fn bump(&mut self, warp: usize, mask: u32) {
        self.count[warp] += 1;
        for l in 0..32 {
            if mask >> l & 1 != 0 {
                self.lane[warp][l] = self.count[warp];
            }
        }
    }

    /// Lanes of a warp met (`bar.warp.sync`).
    pub fn warp_sync(&mut self, warp: u32, mask: u32, alive: u32) {
        let w = warp as usize;
        if mask & alive == alive {
            self.own[w] = self.count[w];
        } else {
            let seen = self.seen[w].get_or_insert_with(|| Box::new([[0; 32]; 32]));
            let mut joined = [0; 32];
            for l in (0..32).filter(|l| mask >> l & 1 != 0) {
                for m in 0..32 {
                    joined[m] = joined[m].max(seen[l][m]);
                }
                joined[l] = joined[l].max(self.lane[w][l]);
            }
            for l in (0..32).filter(|l| mask >> l & 1 != 0) {
                seen[l] = joined;
            }
        }
        self.bump(w, mask);
    }

    /// What a lane knows now, to be released; what it does later is not part of it.
    pub fn release(&mut self, warp: u32, lane: u32) -> Knowledge {
        let w = warp as usize;
        let mut warps = self.floor.clone();
        if let Some(cross) = &self.cross {
            for (known, other) in warps.iter_mut().zip(&cross[w]) {
                *known = (*known).max(*other);
            }
        }
        warps[w] = warps[w].max(self.own[w]);
        let mut threads = Vec::new();
        if let Some(single) = &self.single {
            threads.extend(single[w].iter().map(|(t, c)| (*t, *c)));
        }
        if let Some(seen) = &self.seen[w] {
            for (l, count) in seen[lane as usize].iter().enumerate() {
                if *count > warps[w] {
                    threads.push((warp * 32 + l as u32, *count));
                }
            }
        }
        threads.push((warp * 32 + lane, self.lane[w][lane as usize]));
        self.bump(w, 1 << lane);
        Knowledge { warps, threads }
    }

    /// Lane `lane` of a warp learns what a thread of the same block released.
    pub fn acquire(&mut self, warp: u32, known: &Knowledge) {
        let n = self.count.len();
        let w = warp as usize;
        let cross = self.cross.get_or_insert_with(|| vec![vec![0; n]; n]);
        for (mine, new) in cross[w].iter_mut().zip(&known.warps) {
            *mine = (*mine).max(*new);
        }
        self.own[w] = self.own[w].max(known.warps.get(w).copied().unwrap_or(0).min(self.count[w] - 1));
        let single = self.single.get_or_insert_with(|| vec![HashMap::new(); n]);
        for (thread, count) in &known.threads {
            let mine = single[w].entry(*thread).or_insert(0);
            *mine = (*mine).max(*count);
        }
    }

    /// Whether an access of a thread of another block happened before what this block does now.
    pub fn foreign_before(&self, block: u32, thread: u32, count: u32) -> bool {
        self.foreign.get(&block).is_some_and(|k| {
            k.warps.get((thread / 32) as usize).is_some_and(|known| count <= *known)
                || k.threads.iter().any(|(t, known)| *t == thread && count <= *known)
        })
    }
}

impl Knowledge {
    /// Joins what another thread of the same block knew.
    pub fn join(&mut self, other: &Knowledge) {
        if self.warps.len() < other.warps.len() {
            self.warps.resize(other.warps.len(), 0);
        }
        for (mine, new) in self.warps.iter_mut().zip(&other.warps) {
            *mine = (*mine).max(*new);
        }
        for (thread, count) in &other.threads {
            match self.threads.iter_mut().find(|(t, _)| t == thread) {
                Some((_, mine)) => *mine = (*mine).max(*count),
                None => self.threads.push((*thread, *count)),
            }
        }
    }
}
