//! Shards made and written at once: for each device a stream of two threads, of which one makes batches and the other
//! writes them, a few batches apart.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use super::progress::Busy;
use super::{LatentBatch, PairBatch, Sink, SynthJob, Synthesizer};
use crate::backend::Backend;
use crate::data::{ShardRecord, ShardWriter, inspect_shard, verify_shard};
use crate::error::{Error, Result};

/// Batches of one stream: one being made, one being written, one between them.
const BATCHES: usize = 3;
/// Messages between the threads of a stream: the batches, and the starts and ends of small shards.
const WAITING: usize = 4 * BATCHES;

pub(super) const FINGERPRINT: &str = "lensmith.fingerprint";
pub(super) const FIRST_PAIR: &str = "lensmith.first_pair";

/// A shard of a run.
pub(super) struct Shard<'a> {
    pub index: u64,
    pub path: PathBuf,
    pub pairs: Range<u64>,
    /// Of the run.
    pub fingerprint: &'a str,
}

impl Shard<'_> {
    fn metadata(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (FINGERPRINT.to_string(), self.fingerprint.to_string()),
            (FIRST_PAIR.to_string(), self.pairs.start.to_string()),
        ])
    }

    /// The record of this shard if an earlier run finished it; `recorded` is what a manifest says of it.
    pub fn finished(&self, recorded: Option<&ShardRecord>) -> Result<Option<ShardRecord>> {
        if !std::fs::exists(&self.path).map_err(Error::io("open", &self.path))? {
            return Ok(None);
        }
        let (header, record) = inspect_shard(&self.path)?;
        for (key, expected) in self.metadata() {
            let found = header.metadata.get(&key).cloned().unwrap_or_default();
            if found != expected {
                let what = format!("metadata `{key}`");
                return Err(Error::Mismatch { path: self.path.clone(), what, expected, found });
            }
        }
        let Some(record) = record.filter(|r| r.rows == self.pairs.end - self.pairs.start) else {
            return Ok(None);
        };
        if recorded == Some(&record) {
            return Ok(Some(record));
        }
        // The manifest does not know it yet: every byte is read before it counts.
        match verify_shard(&self.path, crate::data::Io::Read) {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                tracing::warn!("{error}: the shard is made anew");
                Ok(None)
            }
        }
    }
}

/// What happens while shards are written.
pub(super) enum Event {
    /// So much more is on its way to the disk.
    Wrote { pairs: u64, bytes: u64 },
    /// This shard has its name.
    Done(u64, ShardRecord),
}

/// What batches are made of.
pub(super) trait Output: Send + Sized {
    fn empty(job: &SynthJob<'_>) -> Self;
    fn make<B: Backend>(
        make: &Synthesizer<'_, B>,
        pairs: Range<u64>,
        job: &SynthJob<'_>,
        sink: &mut dyn Sink<Self>,
    ) -> Result<()>;
    /// Appends the batch to the tensors of [`SynthJob`].
    fn write(&self, writer: &mut ShardWriter) -> Result<()>;
    fn pairs(&self) -> u64;
    fn bytes(&self) -> u64;
}

impl Output for PairBatch {
    fn empty(job: &SynthJob<'_>) -> PairBatch {
        PairBatch::empty(job.dtype, job.recipe.vae.size.dim)
    }

    fn make<B: Backend>(
        make: &Synthesizer<'_, B>,
        pairs: Range<u64>,
        job: &SynthJob<'_>,
        sink: &mut dyn Sink<PairBatch>,
    ) -> Result<()> {
        make.embeddings_into(pairs, job.dtype, sink)
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

impl Output for LatentBatch {
    fn empty(_: &SynthJob<'_>) -> LatentBatch {
        LatentBatch::default()
    }

    fn make<B: Backend>(
        make: &Synthesizer<'_, B>,
        pairs: Range<u64>,
        _: &SynthJob<'_>,
        sink: &mut dyn Sink<LatentBatch>,
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

/// From the thread that makes to the one that writes.
enum Message<T> {
    Begin(usize),
    Batch(T),
    End,
}

/// The maker's end of a stream.
struct ToWriter<T> {
    messages: SyncSender<Message<T>>,
    spare: Receiver<T>,
}

/// The other thread of a stream has stopped and left its error, which is the one that counts.
fn gone<E>(_: E) -> Error {
    Error::Device { device: "writer".into(), reason: "it stopped".into() }
}

/// What all streams share.
struct Shared<'a> {
    job: &'a SynthJob<'a>,
    shards: &'a [Shard<'a>],
    next: AtomicUsize,
    stop: AtomicBool,
    failure: Mutex<Option<Error>>,
    /// Nanoseconds at work.
    making: AtomicU64,
    writing: AtomicU64,
}

impl Shared<'_> {
    /// Keeps the first error and ends every stream.
    fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.store(true, Ordering::Release);
    }

    fn busy(&self) -> Busy {
        let seconds = |nanoseconds: &AtomicU64| nanoseconds.load(Ordering::Relaxed) as f64 * 1e-9;
        Busy { make: seconds(&self.making), write: seconds(&self.writing) }
    }
}

/// Makes and writes shards, which the streams take in order as they get free. `hear` is told what happens, on the
/// calling thread, and how long the stages were at work; its error ends the run.
pub(super) fn write_shards<B: Backend, T: Output>(
    job: &SynthJob<'_>,
    makers: &[Synthesizer<'_, B>],
    shards: &[Shard<'_>],
    hear: &mut dyn FnMut(Event, &Busy) -> Result<()>,
) -> Result<()> {
    let shared = Shared {
        job,
        shards,
        next: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
        making: AtomicU64::new(0),
        writing: AtomicU64::new(0),
    };
    thread::scope(|scope| {
        let (events, heard) = channel();
        for maker in makers {
            let (messages, inbox) = sync_channel(WAITING);
            let (give_back, spare) = channel();
            for _ in 0..BATCHES {
                // The receiver is right here.
                let _ = give_back.send(T::empty(job));
            }
            let (shared, events) = (&shared, events.clone());
            scope.spawn(move || {
                let to = ToWriter { messages, spare };
                if let Err(error) = make_shards(shared, maker, &to) {
                    shared.fail(error);
                }
            });
            scope.spawn(move || {
                if let Err(error) = write_messages(shared, maker, &inbox, &give_back, &events) {
                    shared.fail(error);
                }
            });
        }
        drop(events);
        for event in heard {
            if let Err(error) = hear(event, &shared.busy()) {
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
fn make_shards<B: Backend, T: Output>(
    shared: &Shared<'_>,
    maker: &Synthesizer<'_, B>,
    to: &ToWriter<T>,
) -> Result<()> {
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let Some(shard) = shared.shards.get(number) else { return Ok(()) };
        to.messages.send(Message::Begin(number)).map_err(gone)?;
        let mut timed = Timed { to, shared, since: Instant::now() };
        T::make(maker, shard.pairs.clone(), shared.job, &mut timed)?;
        timed.stop();
        to.messages.send(Message::End).map_err(gone)?;
    }
}

/// Hands batches on and counts the time between the calls as work.
struct Timed<'a, T> {
    to: &'a ToWriter<T>,
    shared: &'a Shared<'a>,
    since: Instant,
}

impl<T> Timed<'_, T> {
    fn stop(&self) {
        self.shared.making.fetch_add(self.since.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}

impl<T> Sink<T> for Timed<'_, T> {
    fn spare(&mut self) -> Result<T> {
        self.stop();
        let spare = self.to.spare.recv().map_err(gone);
        self.since = Instant::now();
        spare
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

/// Writes what comes, shard after shard.
fn write_messages<B: Backend, T: Output>(
    shared: &Shared<'_>,
    maker: &Synthesizer<'_, B>,
    inbox: &Receiver<Message<T>>,
    give_back: &Sender<T>,
    events: &Sender<Event>,
) -> Result<()> {
    let mut open = None;
    for message in inbox {
        let start = Instant::now();
        match (message, open.take()) {
            (Message::Begin(number), _) => {
                let shard = &shared.shards[number];
                let (job, rows) = (shared.job, (shard.pairs.end - shard.pairs.start) as usize);
                let tensors = job.tensors();
                let writer =
                    ShardWriter::create_with(&shard.path, &tensors, rows, &shard.metadata(), job.write)?;
                open = Some((number, writer));
            }
            (Message::Batch(batch), Some((number, mut writer))) => {
                batch.write(&mut writer)?;
                open = Some((number, writer));
                // Both only fail where the run is ending.
                let _ = events.send(Event::Wrote { pairs: batch.pairs(), bytes: batch.bytes() });
                let _ = give_back.send(batch);
            }
            (Message::End, Some((number, writer))) => {
                // What was made of files that changed does not get a name.
                maker.require_unchanged()?;
                let record = writer.finish()?;
                let _ = events.send(Event::Done(shared.shards[number].index, record));
            }
            (Message::Batch(_) | Message::End, None) => unreachable!("a shard begins before its batches"),
        }
        shared.writing.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
    Ok(())
}
