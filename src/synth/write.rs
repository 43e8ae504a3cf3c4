//! Making and writing shards at once. Each device has a stream of two threads: one makes batches, the other writes them,
//! with three batches going round between them, so that the slower of device and disk never waits for the other. The
//! streams take shards in order as they get free. Where shards go to a store, a third thread uploads those that are
//! written, each from a temporary file: at most three of a stream are there at once.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::generate::{BatchSink, LatentBatch, PairBatch, Synthesizer};
use crate::backend::Backend;
use crate::data::{PlannedShard, ShardRecord, ShardWriter, TensorSpec, WriteMode, is_url};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Batches of one stream: one being made, one being written, one between them.
const BATCHES: usize = 3;
/// Messages between the threads of a stream: the batches, and the starts and ends of small shards.
const MESSAGES: usize = 4 * BATCHES;

/// What shards hold and how they are written.
pub(super) struct ShardFormat {
    pub tensors: Vec<TensorSpec>,
    /// Of embeddings.
    pub dtype: Dtype,
    pub dim: usize,
    pub mode: WriteMode,
}

pub(super) enum WriteEvent {
    /// So much more was handed to the system.
    Wrote { pairs: u64, bytes: u64 },
    /// The shard of this number is whole and has its name.
    Finished(u64, ShardRecord),
}

/// A kind of batches: how they are made and written.
pub(super) trait Batch: Send + Sized {
    fn empty(format: &ShardFormat) -> Self;
    fn make<B: Backend>(
        make: &Synthesizer<'_, B>,
        pairs: Range<u64>,
        format: &ShardFormat,
        sink: &mut dyn BatchSink<Self>,
    ) -> Result<()>;
    /// Appends the batch to the tensors of [`ShardFormat`].
    fn write(&self, writer: &mut ShardWriter) -> Result<()>;
    fn pairs(&self) -> u64;
    fn bytes(&self) -> u64;
}

impl Batch for PairBatch {
    fn empty(format: &ShardFormat) -> PairBatch {
        PairBatch::empty(format.dtype, format.dim)
    }

    fn make<B: Backend>(
        make: &Synthesizer<'_, B>,
        pairs: Range<u64>,
        format: &ShardFormat,
        sink: &mut dyn BatchSink<PairBatch>,
    ) -> Result<()> {
        make.embeddings_into(pairs, format.dtype, sink)
    }

    fn write(&self, writer: &mut ShardWriter) -> Result<()> {
        writer.append_all(&[(0, self.chosen.bytes()), (1, self.rejected.bytes())])
    }

    fn pairs(&self) -> u64 {
        self.chosen.rows() as u64
    }

    fn bytes(&self) -> u64 {
        (self.chosen.bytes().len() + self.rejected.bytes().len()) as u64
    }
}

impl Batch for LatentBatch {
    fn empty(_: &ShardFormat) -> LatentBatch {
        LatentBatch::default()
    }

    fn make<B: Backend>(
        make: &Synthesizer<'_, B>,
        pairs: Range<u64>,
        _: &ShardFormat,
        sink: &mut dyn BatchSink<LatentBatch>,
    ) -> Result<()> {
        make.latents_into(pairs, sink)
    }

    fn write(&self, writer: &mut ShardWriter) -> Result<()> {
        writer.append_all(&[
            (0, bytemuck::cast_slice(&self.z[0])),
            (1, bytemuck::cast_slice(&self.z[1])),
            (2, bytemuck::cast_slice(&self.seed)),
            (3, bytemuck::cast_slice(&self.candidate[0])),
            (4, bytemuck::cast_slice(&self.candidate[1])),
        ])
    }

    fn pairs(&self) -> u64 {
        self.seed.len() as u64
    }

    fn bytes(&self) -> u64 {
        (8 * self.z[0].len() + 16 * self.seed.len()) as u64
    }
}

/// From the thread that makes batches to the one that writes them; a shard goes by its place in the list.
enum Message<T> {
    Begin(usize),
    Batch(T),
    End,
}

/// The end of a stream that the thread that makes batches holds.
struct ToWriter<T> {
    messages: SyncSender<Message<T>>,
    /// Batches that were written and may be filled again.
    empty: Receiver<T>,
}

/// The other thread of the stream is gone. It has left its own error with [`Shared::fail`] before, which is the one that
/// is reported.
fn gone<E>(_: E) -> Error {
    Error::Device { device: "writer".into(), reason: "it stopped".into() }
}

/// What all streams share.
struct Shared<'a> {
    format: &'a ShardFormat,
    shards: &'a [PlannedShard],
    /// The shard that the next free stream takes.
    next: AtomicUsize,
    stop: AtomicBool,
    failure: Mutex<Option<Error>>,
    /// Nanoseconds that all streams together were at work.
    making: AtomicU64,
    writing: AtomicU64,
}

impl Shared<'_> {
    /// Keeps the first error and ends every stream.
    fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.store(true, Ordering::Release);
    }

    fn wrote_for(&self, time: Duration) {
        self.writing.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    fn busy(&self) -> Busy {
        let seconds = |nanoseconds: &AtomicU64| nanoseconds.load(Ordering::Relaxed) as f64 * 1e-9;
        Busy { make: seconds(&self.making), write: seconds(&self.writing) }
    }
}

/// Makes and writes shards, one stream for each synthesizer. `on_event` is called on this thread with what has happened
/// and how long the stages were at work; its error ends the run.
pub(super) fn write_shards<B: Backend, T: Batch>(
    format: &ShardFormat,
    synthesizers: &[Synthesizer<'_, B>],
    shards: &[PlannedShard],
    on_event: &mut dyn FnMut(WriteEvent, &Busy) -> Result<()>,
) -> Result<()> {
    let shared = Shared {
        format,
        shards,
        next: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
        making: AtomicU64::new(0),
        writing: AtomicU64::new(0),
    };
    thread::scope(|scope| {
        let (events, received) = channel();
        for synthesizer in synthesizers {
            let (messages, inbox) = sync_channel(MESSAGES);
            let (give_back, empty) = channel();
            for _ in 0..BATCHES {
                // Cannot fail: the receiver is alive.
                let _ = give_back.send(T::empty(format));
            }
            let (shared, events) = (&shared, events.clone());
            scope.spawn(move || {
                let to = ToWriter { messages, empty };
                if let Err(error) = make_shards(shared, synthesizer, &to) {
                    shared.fail(error);
                }
            });
            let finish = Finish { shared, synthesizer, events };
            let uploads = shards.first().filter(|shard| is_url(&shard.path)).map(|_| {
                let (uploads, inbox) = sync_channel::<WrittenShard>(1);
                let finish = finish.clone();
                scope.spawn(move || {
                    if let Err(error) = inbox.into_iter().try_for_each(|shard| finish.timed(shard)) {
                        finish.shared.fail(error);
                    }
                });
                uploads
            });
            scope.spawn(move || {
                if let Err(error) = write_messages(&finish, &inbox, &give_back, uploads.as_ref()) {
                    finish.shared.fail(error);
                }
            });
        }
        drop(events);
        for event in received {
            if let Err(error) = on_event(event, &shared.busy()) {
                shared.fail(error);
            }
        }
    });
    match shared.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Makes the batches of one shard after another.
fn make_shards<B: Backend, T: Batch>(
    shared: &Shared<'_>,
    synthesizer: &Synthesizer<'_, B>,
    to: &ToWriter<T>,
) -> Result<()> {
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let Some(shard) = shared.shards.get(number) else { return Ok(()) };
        to.messages.send(Message::Begin(number)).map_err(gone)?;
        let mut timed = TimedSink { to, shared, since: Instant::now() };
        T::make(synthesizer, shard.rows.clone(), shared.format, &mut timed)?;
        timed.stop();
        to.messages.send(Message::End).map_err(gone)?;
    }
}

/// Hands batches on, and counts the time between its calls as time at work: the calls themselves may wait.
struct TimedSink<'a, T> {
    to: &'a ToWriter<T>,
    shared: &'a Shared<'a>,
    since: Instant,
}

impl<T> TimedSink<'_, T> {
    fn stop(&self) {
        self.shared.making.fetch_add(self.since.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}

impl<T> BatchSink<T> for TimedSink<'_, T> {
    fn take_empty(&mut self) -> Result<T> {
        self.stop();
        let batch = self.to.empty.recv().map_err(gone);
        self.since = Instant::now();
        batch
    }

    fn put(&mut self, batch: T) -> Result<()> {
        self.stop();
        if self.shared.stop.load(Ordering::Acquire) {
            return Err(gone(()));
        }
        let sent = self.to.messages.send(Message::Batch(batch)).map_err(gone);
        self.since = Instant::now();
        sent
    }
}

/// A shard whose rows are written, with its place in the list.
type WrittenShard = (usize, ShardWriter);

/// Gives shards their names.
struct Finish<'a, B: Backend> {
    shared: &'a Shared<'a>,
    synthesizer: &'a Synthesizer<'a, B>,
    events: Sender<WriteEvent>,
}

impl<B: Backend> Clone for Finish<'_, B> {
    fn clone(&self) -> Self {
        Finish { events: self.events.clone(), ..*self }
    }
}

impl<B: Backend> Finish<'_, B> {
    fn shard(&self, (number, writer): WrittenShard) -> Result<()> {
        // A shard that was made of files that changed does not get a name.
        self.synthesizer.require_unchanged()?;
        let record = writer.finish()?;
        // Fails only while the run is ending.
        let _ = self.events.send(WriteEvent::Finished(self.shared.shards[number].index, record));
        Ok(())
    }

    /// The same, as time at work of the store, which is then what shards are written to.
    fn timed(&self, shard: WrittenShard) -> Result<()> {
        let start = Instant::now();
        self.shard(shard)?;
        self.shared.wrote_for(start.elapsed());
        Ok(())
    }
}

/// Writes the batches that come, shard after shard. What is written goes to `uploads`, where there are some.
fn write_messages<B: Backend, T: Batch>(
    finish: &Finish<'_, B>,
    inbox: &Receiver<Message<T>>,
    give_back: &Sender<T>,
    uploads: Option<&SyncSender<WrittenShard>>,
) -> Result<()> {
    let (shared, events) = (finish.shared, &finish.events);
    let mut open = None;
    for message in inbox {
        let start = Instant::now();
        match (message, open.take()) {
            (Message::Begin(number), _) => {
                let shard = &shared.shards[number];
                let (format, rows) = (shared.format, (shard.rows.end - shard.rows.start) as usize);
                let metadata = shard.metadata();
                let writer =
                    ShardWriter::create_with(&shard.path, &format.tensors, rows, &metadata, format.mode)?;
                open = Some((number, writer));
            }
            (Message::Batch(batch), Some((number, mut writer))) => {
                batch.write(&mut writer)?;
                open = Some((number, writer));
                // Both fail only while the run is ending.
                let _ = events.send(WriteEvent::Wrote { pairs: batch.pairs(), bytes: batch.bytes() });
                let _ = give_back.send(batch);
            }
            (Message::End, Some(written)) => match uploads {
                Some(uploads) => uploads.send(written).map_err(gone)?,
                None => finish.shard(written)?,
            },
            (Message::Batch(_) | Message::End, None) => unreachable!("a shard begins before its batches"),
        }
        if uploads.is_none() {
            shared.wrote_for(start.elapsed());
        }
    }
    Ok(())
}

/// Seconds that making and writing were at work, summed over all streams; the rest of the time they waited for each
/// other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Busy {
    /// Reading, encoding, selecting, decoding and converting.
    pub make: f64,
    /// Checksums, writing and forcing to the disk.
    pub write: f64,
}

/// Which stage is at work for longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// The device that makes the pairs.
    Device,
    /// The disk that takes them.
    Disk,
}

/// The speed of a run, and that of each stage while it is at work.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Pairs per second.
    pub pairs_per_second: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Pairs per second of the time in which pairs are made: the device's own rate.
    pub device_pairs_per_second: f64,
    /// Bytes per second of the time in which bytes are written: the disk's own rate.
    pub disk_bytes_per_second: f64,
    /// The stage that is at work for longer.
    pub bound_by: Bound,
    /// Share of the time that this stage is at work: 1 is the most that device and disk allow.
    pub share_of_floor: f64,
}

/// The state of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Pairs that an earlier run had written already.
    pub resumed: u64,
    /// Pairs that this run makes.
    pub total: u64,
    /// Pairs that it has written.
    pub done: u64,
    /// Bytes that it has written.
    pub bytes: u64,
    /// Seconds since it started.
    pub seconds: f64,
    busy: Busy,
    streams: usize,
}

impl Progress {
    pub(super) fn start(resumed: u64, total: u64) -> Progress {
        Progress { resumed, total, done: 0, bytes: 0, seconds: 0.0, busy: Busy::default(), streams: 1 }
    }

    pub(super) fn wrote(&mut self, pairs: u64, bytes: u64) {
        self.done += pairs;
        self.bytes += bytes;
    }

    pub(super) fn measure(&mut self, since: Duration, busy: &Busy, streams: usize) {
        (self.seconds, self.busy, self.streams) = (since.as_secs_f64(), *busy, streams);
    }

    /// Seconds until all is written, at the rate so far; None before the first pairs.
    pub fn eta(&self) -> Option<f64> {
        (self.done > 0).then(|| self.seconds * (self.total - self.done) as f64 / self.done as f64)
    }

    /// The speed so far.
    pub fn speed(&self) -> Speed {
        // Times too short for the clock count as a nanosecond.
        let rate = |amount: u64, seconds: f64| amount as f64 / seconds.max(1e-9);
        let streams = self.streams as f64;
        let (make, write) = (self.busy.make / streams, self.busy.write / streams);
        Speed {
            pairs_per_second: rate(self.done, self.seconds),
            bytes_per_second: rate(self.bytes, self.seconds),
            device_pairs_per_second: rate(self.done, make),
            disk_bytes_per_second: rate(self.bytes, write),
            bound_by: if make >= write { Bound::Device } else { Bound::Disk },
            share_of_floor: (make.max(write) / self.seconds.max(1e-9)).min(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_stage_is_the_bound() {
        let mut progress = Progress::start(10, 100);
        assert_eq!(progress.eta(), None);
        progress.wrote(50, 1000);
        progress.measure(Duration::from_secs(10), &Busy { make: 4.0, write: 9.0 }, 1);
        let speed = progress.speed();
        assert_eq!((speed.bound_by, speed.share_of_floor), (Bound::Disk, 0.9));
        assert_eq!((speed.pairs_per_second, speed.device_pairs_per_second), (5.0, 12.5));
        assert_eq!(progress.eta(), Some(10.0));
        // Two streams, each at work for half of that.
        progress.measure(Duration::from_secs(10), &Busy { make: 18.0, write: 4.0 }, 2);
        let speed = progress.speed();
        assert_eq!((speed.bound_by, speed.share_of_floor), (Bound::Device, 0.9));
        assert_eq!(speed.device_pairs_per_second, 50.0 / 9.0);
    }
}
