//! Writing shards, whose checksums travel in their headers, and checking them.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::atomic::AtomicFile;
use super::direct::{DirectFile, TensorCursor};
use super::format::{self, Header, Layout, TensorInfo, hex};
use super::map::Io;
use super::place::file_name;
use super::source::Source;
use crate::dtype::Dtype as RowDtype;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::matrix::{RowSet, Rows, Side};

/// A tensor of a shard to be written: its shape is `[rows]` followed by `shape_tail`.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: Dtype,
    /// The axes after the first.
    pub shape_tail: Vec<usize>,
}

/// A whole tensor for [`write_tensors`]: name, element type, shape, bytes (little endian).
pub type NamedTensor<'a> = (String, Dtype, Vec<usize>, &'a [u8]);

/// What was written to a shard, as a manifest keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardRecord {
    /// File name without its folder.
    pub file: String,
    /// Length of the first axis of the first tensor.
    pub rows: u64,
    /// Length of the file.
    pub bytes: u64,
    /// xxh3-128 of each tensor's bytes, by name, as 32 hexadecimal digits.
    pub tensors: BTreeMap<String, String>,
}

impl ShardRecord {
    fn new(
        path: &Path,
        bytes: u64,
        tensors: &[TensorInfo],
        digests: BTreeMap<String, String>,
    ) -> ShardRecord {
        let file = file_name(path);
        let rows = tensors.first().map_or(0, |t| t.shape.first().copied().unwrap_or(1));
        ShardRecord { file, rows: rows as u64, bytes, tensors: digests }
    }
}

/// From this many bytes on, a thread that takes their checksum during the write pays.
const HASH_THREAD_BYTES: usize = 1 << 20;

/// Metadata entry with the checksum of the header, taken with its own digits as zeros.
const HEADER_KEY: &str = "xxh3";

/// Metadata entry with the checksum of a tensor.
fn tensor_key(name: &str) -> String {
    format!("xxh3.{name}")
}

/// Writes one shard piece by piece. Nothing is seen at the path before [`ShardWriter::finish`], and an
/// unfinished shard leaves nothing behind.
pub struct ShardWriter {
    out: AtomicFile,
    file: DirectFile,
    layout: Layout,
    metadata: BTreeMap<String, String>,
    cursors: Vec<TensorCursor>,
    /// Bytes of each tensor that are written.
    written: Vec<usize>,
    hashes: Vec<Xxh3>,
}

/// How shards are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WriteMode {
    /// Past the page cache (O_DIRECT) where the file system allows it.
    #[default]
    Direct,
    /// Through the page cache.
    Cached,
}

impl ShardWriter {
    /// Starts a shard of `rows` rows at `path`. The payload starts at a multiple of 4,096 bytes and holds the
    /// tensors one behind the other in the order given. Fails if names repeat or the file cannot be created.
    pub fn create(
        path: &Path,
        tensors: &[TensorSpec],
        rows: usize,
        metadata: &BTreeMap<String, String>,
    ) -> Result<ShardWriter> {
        ShardWriter::create_with(path, tensors, rows, metadata, WriteMode::default())
    }

    /// As [`ShardWriter::create`], past the page cache or through it.
    pub fn create_with(
        path: &Path,
        tensors: &[TensorSpec],
        rows: usize,
        metadata: &BTreeMap<String, String>,
        mode: WriteMode,
    ) -> Result<ShardWriter> {
        let shape = |tail: &[usize]| std::iter::once(rows).chain(tail.iter().copied()).collect();
        let tensors = tensors.iter().map(|t| (t.name.as_str(), t.dtype, shape(&t.shape_tail)));
        ShardWriter::start(path, tensors.collect(), metadata, mode)
    }

    fn start(
        path: &Path,
        tensors: Vec<(&str, Dtype, Vec<usize>)>,
        metadata: &BTreeMap<String, String>,
        mode: WriteMode,
    ) -> Result<ShardWriter> {
        // Zeros stand for the checksums, which are known last: the length of the header is fixed now.
        let mut metadata = metadata.clone();
        for (name, ..) in &tensors {
            metadata.insert(tensor_key(name), hex(0));
        }
        metadata.insert(HEADER_KEY.into(), hex(0));
        let count = tensors.len();
        let layout = Layout::new(path, tensors, &metadata)?;
        let out = AtomicFile::create(path)?;
        // What will be read again for an upload stays in the page cache.
        let direct = mode == WriteMode::Direct && !out.is_object();
        let file = DirectFile::new(&out, layout.total as u64, direct).map_err(Error::io("write", path))?;
        let cursors = layout.tensors.iter().map(|t| TensorCursor::new(t.range.start as u64)).collect();
        let (written, hashes) = (vec![0; count], vec![Xxh3::new(); count]);
        Ok(ShardWriter { out, file, layout, metadata, cursors, written, hashes })
    }

    /// Appends the next bytes (little endian) of tensor number `tensor`. Tensors may be appended to in turns; runs of
    /// whole pages at page boundaries, in memory and in the tensor, are written without a copy.
    /// Fails if there is no such tensor, if it would overflow, or if the disk is full.
    pub fn append(&mut self, tensor: usize, bytes: &[u8]) -> Result<()> {
        self.append_all(&[(tensor, bytes)])
    }

    /// Appends to several tensors. Large pieces are written while another thread takes their checksums.
    pub fn append_all(&mut self, pieces: &[(usize, &[u8])]) -> Result<()> {
        let path = self.out.path();
        for &(tensor, bytes) in pieces {
            let Some(info) = self.layout.tensors.get(tensor) else {
                let what = format!("{}: number of the tensor", path.display());
                return Err(Error::shape(what, format!("below {}", self.layout.tensors.len()), tensor));
            };
            let done = self.written[tensor];
            if bytes.len() > info.range.len() - done {
                let what = format!("{}: bytes of tensor `{}`", path.display(), info.name);
                return Err(Error::shape(what, info.range.len(), done + bytes.len()));
            }
            self.written[tensor] += bytes.len();
        }
        let (hashes, cursors, file) = (&mut self.hashes, &mut self.cursors, &mut self.file);
        let mut hash = || pieces.iter().for_each(|&(tensor, bytes)| hashes[tensor].update(bytes));
        let mut write = || pieces.iter().try_for_each(|&(tensor, bytes)| cursors[tensor].append(file, bytes));
        let written = if pieces.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() < HASH_THREAD_BYTES {
            hash();
            write()
        } else {
            thread::scope(|scope| {
                scope.spawn(hash);
                write()
            })
        };
        written.map_err(Error::io("write", path))
    }

    /// Writes the header with the checksums, forces everything to the disk and moves the shard to its place.
    /// Fails, and leaves nothing, if a tensor is not full or the length on disk is not the one computed.
    pub fn finish(mut self) -> Result<ShardRecord> {
        let path = self.out.path().to_path_buf();
        for cursor in &mut self.cursors {
            cursor.flush(&mut self.file).map_err(Error::io("write", &path))?;
        }
        let mut digests = BTreeMap::new();
        for ((info, &written), hash) in self.layout.tensors.iter().zip(&self.written).zip(&self.hashes) {
            if written != info.range.len() {
                let what = format!("{}: bytes of tensor `{}`", path.display(), info.name);
                return Err(Error::shape(what, info.range.len(), written));
            }
            let digest = hex(hash.digest128());
            self.metadata.insert(tensor_key(&info.name), digest.clone());
            digests.insert(info.name.clone(), digest);
        }
        let blank = self.layout.header(&path, &self.metadata)?;
        self.metadata.insert(HEADER_KEY.into(), hex(xxh3_128(&blank)));
        let header = self.layout.header(&path, &self.metadata)?;
        self.out.file().write_all_at(&header, 0).map_err(Error::io("write", &path))?;

        let len = self.out.file().metadata().map_err(Error::io("write", &path))?.len();
        if len != self.layout.total as u64 {
            let source =
                io::Error::other(format!("expected {} bytes on disk, found {len}", self.layout.total));
            return Err(Error::Io { action: "write", path, source });
        }
        self.out.commit()?;
        Ok(ShardRecord::new(&path, len, &self.layout.tensors, digests))
    }
}

/// Writes whole tensors as one file with the layout and the checksums of a shard; for checkpoints. Fails if
/// the bytes of a tensor are not as many as its shape says, or as [`ShardWriter`] does.
pub fn write_tensors(
    path: &Path,
    tensors: &[NamedTensor<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<ShardRecord> {
    let specs = tensors.iter().map(|(name, dtype, shape, _)| (name.as_str(), *dtype, shape.clone()));
    let mut writer = ShardWriter::start(path, specs.collect(), metadata, WriteMode::Cached)?;
    for (i, (.., bytes)) in tensors.iter().enumerate() {
        writer.append(i, bytes)?;
    }
    writer.finish()
}

/// Reads the header alone: the tensors, and the record of the writer, or `None` if the file holds no
/// checksums. Fails with [`Error::Mismatch`] if the header is not the one that was written.
pub fn inspect_shard(path: &Path) -> Result<(Header, Option<ShardRecord>)> {
    let source = Source::open(path, Io::Read)?;
    let record = recorded(&source)?;
    Ok((source.header, record))
}

/// Reads the whole shard and compares every checksum. Fails with [`Error::Mismatch`] naming the first tensor
/// that differs, or with [`Error::Format`] if the file holds no checksums.
pub fn verify_shard(path: &Path, io: Io) -> Result<ShardRecord> {
    const BLOCK_BYTES: usize = 16 << 20;
    let source = Source::open(path, io)?;
    let Some(record) = recorded(&source)? else {
        return Err(format::bad(path, "it holds no checksums to verify it by"));
    };
    let mut buffer = Vec::new();
    for info in &source.header.tensors {
        let mut hash = Xxh3::new();
        for at in info.range.clone().step_by(BLOCK_BYTES) {
            let len = BLOCK_BYTES.min(info.range.end - at);
            if let Some(bytes) = source.mapped(at as u64, len) {
                hash.update(bytes);
                source.release(at as u64, len);
            } else {
                buffer.resize(len, 0);
                source.read(at as u64, &mut buffer)?;
                hash.update(&buffer);
            }
        }
        let what = || format!("checksum of tensor `{}`", format::quote(&info.name));
        let found = hex(hash.digest128());
        if found != record.tensors[&info.name] {
            // A file that changed during this pass is reported as such, not as damaged.
            source.require_unchanged()?;
        }
        compare(path, what, &record.tensors[&info.name], found)?;
    }
    Ok(record)
}

fn compare(path: &Path, what: impl Fn() -> String, expected: &str, found: String) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::Mismatch { path: path.to_path_buf(), what: what(), expected: format::quote(expected), found })
}

/// The record that the header holds, once the header agrees with its own checksum.
fn recorded(source: &Source) -> Result<Option<ShardRecord>> {
    let header = &source.header;
    let Some(expected) = header.metadata.get(HEADER_KEY) else { return Ok(None) };
    let digest = |t: &TensorInfo| Some((t.name.clone(), header.metadata.get(&tensor_key(&t.name))?.clone()));
    let digests: Option<BTreeMap<_, _>> = header.tensors.iter().map(digest).collect();
    let Some(digests) = digests else { return Ok(None) };

    let mut bytes = vec![0; header.payload];
    source.read(0, &mut bytes)?;
    // Inside a JSON string quotes are escaped, so this text can only be the entry itself. In a header that another
    // program wrote with other spacing it is not found, so that the checksum differs.
    let entry = format!("\"{HEADER_KEY}\":\"{expected}\"");
    if let Some(at) = bytes.windows(entry.len()).position(|w| w == entry.as_bytes()) {
        let digits = at + entry.len() - 1 - expected.len()..at + entry.len() - 1;
        bytes[digits].fill(b'0');
    }
    compare(&source.path, || "checksum of the header".into(), expected, hex(xxh3_128(&bytes)))?;
    Ok(Some(ShardRecord::new(&source.path, source.len, &header.tensors, digests)))
}

/// Writes preference pairs as one shard, whole or not at all: `chosen` and `rejected`, `[n, d]`, in the rows' dtype,
/// or F32 where they have several; `group`, the prompt of each pair, beside them as a tensor of that name, if there is one.
pub fn write_pairs(path: &Path, sides: [&RowSet<'_>; 2], group: Option<&[i64]>) -> Result<ShardRecord> {
    write_pairs_until(path, sides, group, &Interrupt::default())
}

/// As [`write_pairs`]; fails with [`Error::Interrupted`], and leaves no file, once `interrupt` is raised.
pub fn write_pairs_until(
    path: &Path,
    sides: [&RowSet<'_>; 2],
    group: Option<&[i64]>,
    interrupt: &Interrupt,
) -> Result<ShardRecord> {
    let mut dtypes = sides.iter().flat_map(|side| side.parts()).map(Rows::dtype);
    let first = dtypes.next().unwrap_or(RowDtype::F32);
    let dtype = if dtypes.all(|d| d == first) { first } else { RowDtype::F32 };
    let (rows, dim) = (sides[0].rows(), sides[0].cols());
    let sides_of =
        |side: Side| TensorSpec { name: side.name().into(), dtype: dtype.into(), shape_tail: vec![dim] };
    let mut specs = Side::BOTH.map(sides_of).to_vec();
    if group.is_some() {
        specs.push(TensorSpec { name: "group".into(), dtype: Dtype::I64, shape_tail: vec![] });
    }
    let mut writer = ShardWriter::create(path, &specs, rows, &BTreeMap::new())?;
    let mut wide = vec![0f32; dim];
    for (tensor, side) in sides.into_iter().enumerate() {
        for r in 0..side.rows() {
            interrupt.check()?;
            let row = side.row(r);
            if row.dtype() == dtype {
                writer.append(tensor, row.bytes())?;
            } else {
                row.widen(&mut wide);
                writer.append(tensor, bytemuck::cast_slice(&wide))?;
            }
        }
    }
    if let Some(group) = group {
        writer.append(2, bytemuck::cast_slice(group))?;
    }
    writer.finish()
}
