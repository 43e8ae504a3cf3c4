//! Pairs as an [`Engine`](crate::Engine) hands them out: in order, or by number.

use std::fmt;
use std::ops::Range;

use crate::backend::{Backend, DeviceArray};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::synth::{PairBatch, PairLookup};

/// Makes a range of pairs.
pub(crate) type MakePairs<'a> = Box<dyn Fn(Range<u64>) -> Result<PairBatch> + Send + Sync + 'a>;

/// Synthetic pairs in order, batch by batch; made by [`Engine::stream`](crate::Engine::stream).
pub struct PairStream<'a> {
    make: MakePairs<'a>,
    next: u64,
    pairs: u64,
    batch: u64,
}

impl fmt::Debug for PairStream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PairStream { next, pairs, batch, .. } = self;
        write!(f, "PairStream {{ next: {next}, pairs: {pairs}, batch: {batch} }}")
    }
}

impl<'a> PairStream<'a> {
    pub(crate) fn new(make: MakePairs<'a>, pairs: u64, batch: u64) -> PairStream<'a> {
        PairStream { make, next: 0, pairs, batch }
    }

    /// Pairs of the whole stream.
    pub fn pairs(&self) -> u64 {
        self.pairs
    }

    /// Pairs `range` at once, without moving the stream.
    ///
    /// # Errors
    /// A range that is empty or goes beyond the last pair; as for the stream's batches.
    pub fn range(&self, range: Range<u64>) -> Result<PairBatch> {
        (self.make)(range)
    }

    /// Goes on with pair `j`; at or beyond [`PairStream::pairs`] the stream is at its end.
    pub fn seek(&mut self, j: u64) {
        self.next = j;
    }
}

impl Iterator for PairStream<'_> {
    type Item = Result<PairBatch>;

    fn next(&mut self) -> Option<Result<PairBatch>> {
        if self.next >= self.pairs {
            return None;
        }
        let range = self.next..(self.next + self.batch).min(self.pairs);
        self.next = range.end;
        Some((self.make)(range))
    }
}

/// Makes the pairs of a list of numbers.
pub(crate) trait TakePairs: Send + Sync {
    fn take(&self, numbers: &[u64], dtype: Dtype, pinned: bool) -> Result<PairBatch>;
    fn take_on_device(&self, numbers: &[u64], dtype: Dtype) -> Result<[DeviceArray; 2]>;
}

impl<B: Backend> TakePairs for PairLookup<'_, B> {
    fn take(&self, numbers: &[u64], dtype: Dtype, pinned: bool) -> Result<PairBatch> {
        PairLookup::take(self, numbers, dtype, pinned)
    }

    fn take_on_device(&self, numbers: &[u64], dtype: Dtype) -> Result<[DeviceArray; 2]> {
        PairLookup::take_on_device(self, numbers, dtype)
    }
}

/// Synthetic pairs by their numbers, in any order; made by [`Engine::index`](crate::Engine::index).
pub struct PairIndex<'a> {
    take: Box<dyn TakePairs + 'a>,
    pairs: u64,
}

impl fmt::Debug for PairIndex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PairIndex {{ pairs: {} }}", self.pairs)
    }
}

impl<'a> PairIndex<'a> {
    pub(crate) fn new(take: Box<dyn TakePairs + 'a>, pairs: u64) -> PairIndex<'a> {
        PairIndex { take, pairs }
    }

    /// Pairs that there are.
    pub fn pairs(&self) -> u64 {
        self.pairs
    }

    /// The pairs with these numbers, in this order; a number may be there more than once.
    ///
    /// # Errors
    /// No number, a number beyond the last, a value that `dtype` cannot hold, or a file that changed.
    pub fn take(&self, numbers: &[u64], dtype: Dtype) -> Result<PairBatch> {
        self.take.take(numbers, dtype, false)
    }

    /// The same in memory that is registered with the engine's GPU for as long as the batch is kept, for copies to it that
    /// need none on the host. Without a GPU it is like any other.
    ///
    /// # Errors
    /// As [`PairIndex::take`].
    pub fn take_pinned(&self, numbers: &[u64], dtype: Dtype) -> Result<PairBatch> {
        self.take.take(numbers, dtype, true)
    }

    /// The same pairs in the memory of the engine's GPU, `[count, d]` a side, where nothing leaves it: chosen and rejected.
    ///
    /// # Errors
    /// As [`PairIndex::take`]; an engine that is no GPU's.
    pub fn take_on_device(&self, numbers: &[u64], dtype: Dtype) -> Result<[DeviceArray; 2]> {
        self.take.take_on_device(numbers, dtype)
    }
}
