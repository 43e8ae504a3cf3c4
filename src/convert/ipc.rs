//! Arrow IPC, the stream format and the file format, which is a stream between two signatures.
//!
//! The frames of a file are found by their headers before any is decoded: that gives the number of rows, and finds a
//! file that was cut short before anything is allocated for what it claims to hold.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer as Bytes;
use arrow_ipc::reader::RecordBatchDecoder;
use arrow_ipc::{Endianness, Message, MessageHeader, MetadataVersion, convert, root_as_message};
use arrow_schema::SchemaRef;

use super::arrays::{self, Place, guarded};
use super::column::{Buffer, ColumnInfo, ColumnReader};
use crate::data::{FileBytes, Io, open_input};
use crate::error::{Error, Result};

/// The signature at both ends of the file format; the length of the footer is before the last one.
const MAGIC: &[u8] = b"ARROW1";
/// Longest header of a frame that is read.
const MAX_HEADER: u64 = 256 << 20;

const CHANGED: &str = "it changed while it was read";

fn bad(path: &Path, detail: impl std::fmt::Display) -> Error {
    Error::Format { path: path.to_path_buf(), format: "Arrow", detail: arrays::one_line(&detail.to_string()) }
}

/// A record batch in a file.
#[derive(Clone, Copy, Debug)]
struct Frame {
    header: u64,
    header_len: usize,
    body: u64,
    body_len: u64,
    rows: u64,
}

/// What a file holds.
struct Index {
    schema: SchemaRef,
    frames: Vec<Frame>,
}

impl Index {
    fn read(path: &Path) -> Result<Index> {
        let (file, meta) = open_input(path, "Arrow")?;
        let len = meta.len();
        let mut file = BufReader::new(file);
        let range = stream_range(path, &mut file, len)?;
        let mut schema = None;
        let mut frames = Vec::new();
        let mut at = range.start;
        let mut header = Vec::new();
        loop {
            let left = range.end - at;
            if left < 4 {
                if left > 0 {
                    return Err(bad(path, format!("truncated: {left} bytes after the last frame")));
                }
                // Allowed by the format, and also what a writer that was killed leaves behind.
                tracing::warn!(
                    "{}: no mark at the end of the stream: it may have been cut short",
                    path.display()
                );
                break;
            }
            let mut word = read_word(path, &mut file, at)?;
            let mut skip = 4;
            // Files from before 2019 lack the first four bytes.
            if word == u32::MAX {
                if left < 8 {
                    return Err(bad(path, format!("truncated: {left} bytes after the last frame")));
                }
                word = read_word(path, &mut file, at + 4)?;
                skip = 8;
            }
            if word == 0 {
                break;
            }
            let (start, header_len) = (at + skip, u64::from(word));
            let number = frames.len();
            if header_len > left - skip {
                let detail = format!(
                    "truncated in batch {number}: a header of {header_len} bytes, {} left",
                    left - skip
                );
                return Err(bad(path, detail));
            }
            if header_len > MAX_HEADER {
                return Err(bad(path, format!("a frame header of {header_len} bytes")));
            }
            header.resize(header_len as usize, 0);
            file.read_exact(&mut header).map_err(Error::io("read", path))?;
            let message = message(path, &header)?;
            let body = start + header_len;
            let body_len = u64::try_from(message.bodyLength())
                .map_err(|_| bad(path, format!("batch {number} claims {} bytes", message.bodyLength())))?;
            if body_len > range.end - body {
                let detail = format!(
                    "truncated in batch {number}: a body of {body_len} bytes, {} left",
                    range.end - body
                );
                return Err(bad(path, detail));
            }
            match message.header_type() {
                MessageHeader::Schema if schema.is_none() => {
                    let found = message.header_as_schema().ok_or_else(|| bad(path, "an empty schema"))?;
                    if found.endianness() != Endianness::Little {
                        return Err(bad(path, "its values are big endian"));
                    }
                    schema = Some(Arc::new(
                        guarded(|| convert::try_fb_to_schema(found))
                            .map_err(|e| bad(path, e))?
                            .map_err(|e| bad(path, e))?,
                    ));
                }
                MessageHeader::RecordBatch if schema.is_some() => {
                    let batch =
                        message.header_as_record_batch().ok_or_else(|| bad(path, "an empty batch"))?;
                    let rows = u64::try_from(batch.length())
                        .map_err(|_| bad(path, format!("batch {number} claims {} rows", batch.length())))?;
                    frames.push(Frame { header: start, header_len: header.len(), body, body_len, rows });
                }
                // Dictionaries belong to columns that are not read here.
                MessageHeader::DictionaryBatch if schema.is_some() => {}
                other => return Err(bad(path, format!("a frame of kind {other:?} where none may be"))),
            }
            at = body + body_len;
        }
        let schema = schema.ok_or_else(|| bad(path, "it holds no schema"))?;
        Ok(Index { schema, frames })
    }
}

fn message<'a>(path: &Path, header: &'a [u8]) -> Result<Message<'a>> {
    root_as_message(header).map_err(|e| bad(path, format!("a frame header that cannot be read: {e}")))
}

fn read_word(path: &Path, file: &mut BufReader<File>, at: u64) -> Result<u32> {
    let mut word = [0; 4];
    file.seek(SeekFrom::Start(at))
        .and_then(|_| file.read_exact(&mut word))
        .map_err(Error::io("read", path))?;
    Ok(u32::from_le_bytes(word))
}

/// The part of the file that is a stream.
fn stream_range(path: &Path, file: &mut BufReader<File>, len: u64) -> Result<std::ops::Range<u64>> {
    let mut first = vec![0; MAGIC.len().min(len as usize)];
    file.read_exact(&mut first).map_err(Error::io("read", path))?;
    if len == 0 {
        return Err(bad(path, "the file is empty"));
    }
    if first != MAGIC {
        return Ok(0..len);
    }
    let trailer = MAGIC.len() as u64 + 4;
    let mut last = vec![0; trailer as usize];
    if len >= 8 + trailer {
        file.seek(SeekFrom::Start(len - trailer))
            .and_then(|_| file.read_exact(&mut last))
            .map_err(Error::io("read", path))?;
    }
    if !last.ends_with(MAGIC) {
        return Err(bad(path, "truncated: the signature at its end is missing"));
    }
    let footer = u64::from(u32::from_le_bytes([last[0], last[1], last[2], last[3]]));
    let end = len.checked_sub(trailer + footer).filter(|&end| end >= 8);
    Ok(8..end.ok_or_else(|| bad(path, format!("a footer of {footer} bytes in a file of {len}")))?)
}

/// Names of the columns.
pub(super) fn names(path: &Path) -> Result<Vec<String>> {
    Ok(Index::read(path)?.schema.fields().iter().map(|f| f.name().clone()).collect())
}

/// Opens column `name` of a file. With [`Io::Mmap`] batches that are not compressed are used where they lie; with
/// [`Io::Read`] one batch at a time is held in memory.
pub(super) fn open(path: &Path, name: &str, io: Io) -> Result<(ColumnInfo, Box<dyn ColumnReader + Send>)> {
    let Index { schema, mut frames } = Index::read(path)?;
    let Some((column, field)) = schema.fields().iter().enumerate().find(|(_, f)| f.name() == name) else {
        let found = schema.fields().iter().map(|f| f.name().clone()).collect();
        return Err(Error::MissingTensor { path: path.to_path_buf(), tensor: name.into(), found });
    };
    let place = Place { path, name, row: 0 };
    let (kind, depth) = arrays::kind(place, field.data_type())?;
    let fixed = arrays::fixed_shape(field.data_type());
    frames.retain(|frame| frame.rows > 0);
    let rows = frames.iter().try_fold(0u64, |n, frame| n.checked_add(frame.rows));
    let rows = rows.ok_or_else(|| bad(path, "it claims more rows than can be counted"))?;
    let source = match io {
        Io::Mmap => {
            let map = Arc::new(FileBytes::open(path, io)?);
            Source::Map(Bytes::from(bytes::Bytes::from_owner(Mapped(map.clone()))), map)
        }
        Io::Read => Source::File(open_input(path, "Arrow")?.0),
    };
    let mut reader = Column {
        path: path.to_path_buf(),
        name: name.to_string(),
        schema: schema.clone(),
        column,
        frames: frames.into_iter(),
        source,
        tail: Vec::new(),
        batch: None,
        frame: None,
        row: 0,
    };
    let tail = match fixed {
        Some(shape) => shape,
        None if rows == 0 => vec![0; depth],
        None => {
            let batch = reader.next_batch()?;
            let shape = arrays::first_shape(place, batch.column(0).as_ref())?;
            reader.batch = Some((batch, 0));
            shape
        }
    };
    reader.tail = tail.clone();
    Ok((ColumnInfo { rows, tail, kind }.check(path, name)?, Box::new(reader)))
}

/// Lets `bytes::Bytes` own a map.
struct Mapped(Arc<FileBytes>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

enum Source {
    Map(Bytes, Arc<FileBytes>),
    File(File),
}

struct Column {
    path: PathBuf,
    name: String,
    schema: SchemaRef,
    column: usize,
    /// The batches that are not read yet.
    frames: std::vec::IntoIter<Frame>,
    source: Source,
    tail: Vec<usize>,
    /// The batch at hand, and how many of its rows are taken.
    batch: Option<(RecordBatch, usize)>,
    /// Where the batch at hand is in the file.
    frame: Option<Frame>,
    /// Row of the file that comes next.
    row: u64,
}

impl Column {
    /// Releases the pages of the batch at hand. With the SIGBUS guard, fails if pages were lost while they were read;
    /// without it, reading a lost page has ended the process.
    fn release_batch(&self) -> Result<()> {
        let Source::Map(_, map) = &self.source else { return Ok(()) };
        if !map.is_whole() {
            return Err(bad(&self.path, CHANGED));
        }
        if let Some(frame) = self.frame {
            map.release(frame.body as usize, frame.body_len as usize);
        }
        Ok(())
    }

    fn next_batch(&mut self) -> Result<RecordBatch> {
        let path = &self.path;
        let frame = self.frames.next().ok_or_else(|| bad(path, "it holds fewer rows than it claims"))?;
        self.frame = Some(frame);
        let (header, body) = match &self.source {
            Source::Map(bytes, _) => {
                // The file may have shrunk since its frames were found.
                let end = frame.body + frame.body_len;
                if end > bytes.len() as u64 {
                    return Err(bad(path, CHANGED));
                }
                let part = |at: u64, len: usize| bytes.slice_with_length(at as usize, len);
                (part(frame.header, frame.header_len), part(frame.body, frame.body_len as usize))
            }
            Source::File(file) => {
                use std::os::unix::fs::FileExt;
                let part = |at: u64, len: usize| {
                    let mut bytes = vec![0; len];
                    file.read_exact_at(&mut bytes, at).map_err(Error::io("read", path))?;
                    Ok(Bytes::from_vec(bytes))
                };
                (part(frame.header, frame.header_len)?, part(frame.body, frame.body_len as usize)?)
            }
        };
        let message = message(path, &header)?;
        let batch = message.header_as_record_batch().ok_or_else(|| bad(path, CHANGED))?;
        let version: MetadataVersion = message.version();
        let (dictionaries, projection) = (HashMap::new(), [self.column]);
        check_buffers(path, &batch, &body)?;
        let batch = guarded(|| {
            RecordBatchDecoder::try_new(&body, batch, self.schema.clone(), &dictionaries, &version)
                .and_then(|decoder| decoder.with_projection(Some(&projection)).read_record_batch())
        });
        let batch = batch.map_err(|e| bad(path, e))?.map_err(|e| bad(path, e))?;
        if batch.num_rows() as u64 != frame.rows {
            return Err(bad(path, format!("a batch of {} rows, expected {}", batch.num_rows(), frame.rows)));
        }
        Ok(batch)
    }
}

/// Fails unless every buffer is inside the body of its batch, and all together unpack to no more than
/// [`arrays::most_unpacked`]: the decoder trusts both.
fn check_buffers(path: &Path, batch: &arrow_ipc::RecordBatch<'_>, body: &[u8]) -> Result<()> {
    let (most, mut all) = (arrays::most_unpacked(body.len() as u64), 0u64);
    for buffer in batch.buffers().into_iter().flatten() {
        let (offset, len) = (buffer.offset(), buffer.length());
        let place = usize::try_from(offset).ok().zip(usize::try_from(len).ok());
        let bytes = place.and_then(|(offset, len)| body.get(offset..)?.get(..len));
        let Some(bytes) = bytes else {
            let body = body.len();
            return Err(bad(path, format!("a buffer of {len} bytes at {offset} in a body of {body}")));
        };
        if batch.compression().is_some()
            && let Some(unpacked) = bytes.first_chunk().map(|b| i64::from_le_bytes(*b))
            && unpacked > 0
        {
            all = all.saturating_add(unpacked as u64);
            if all > most {
                let body = body.len();
                return Err(bad(
                    path,
                    format!(
                        "a batch of {body} bytes that unpacks to {all} or more, at most {most} are taken"
                    ),
                ));
            }
        }
    }
    Ok(())
}

impl ColumnReader for Column {
    fn read(&mut self, rows: usize, out: &mut Buffer) -> Result<()> {
        let mut wanted = rows;
        while wanted > 0 {
            let Some((batch, taken)) = self.batch.as_mut().filter(|(batch, taken)| *taken < batch.num_rows())
            else {
                // The batch before is dropped first: two at a time would take twice the memory.
                self.batch = None;
                self.release_batch()?;
                self.batch = Some((self.next_batch()?, 0));
                continue;
            };
            let count = wanted.min(batch.num_rows() - *taken);
            let place = Place { path: &self.path, name: &self.name, row: self.row };
            arrays::extract(place, batch.column(0).as_ref(), *taken..*taken + count, &self.tail, out)?;
            *taken += count;
            self.row += count as u64;
            wanted -= count;
        }
        self.release_batch()
    }

    fn skip(&mut self, rows: u64) -> Result<()> {
        let mut left = rows;
        self.row += rows;
        while left > 0 {
            if let Some((batch, taken)) = &mut self.batch {
                let count = left.min((batch.num_rows() - *taken) as u64);
                *taken += count as usize;
                left -= count;
                if left == 0 {
                    break;
                }
                self.batch = None;
                self.release_batch()?;
            }
            // Whole batches are not decoded.
            match self.frames.as_slice().first() {
                Some(frame) if frame.rows <= left => {
                    left -= frame.rows;
                    self.frames.next();
                }
                _ => self.batch = Some((self.next_batch()?, 0)),
            }
        }
        Ok(())
    }
}
