//! NumPy's formats: .npy, and .npz, a zip of them. Both are read in one pass with the memory of a block.
//!
//! The header is a Python literal of which NumPy writes one form, parsed here: the crates that read it depend on a parser
//! generator, and read values one by one.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};

use flate2::Crc;
use flate2::read::DeflateDecoder;
use zip::{CompressionMethod, ZipArchive};

use super::column::{Buffer, ColumnInfo, ColumnReader, Kind};
use crate::data::open_input;
use crate::error::{Error, Result};

const MAGIC: &[u8] = b"\x93NUMPY";
/// Longest header that is read. NumPy's own limit is 10,000 characters.
const MAX_HEADER: usize = 1 << 16;

fn bad(path: &Path, detail: impl Into<String>) -> Error {
    Error::Format { path: path.to_path_buf(), format: "npy", detail: detail.into() }
}

fn bad_zip(path: &Path, detail: impl Into<String>) -> Error {
    Error::Format { path: path.to_path_buf(), format: "npz", detail: detail.into() }
}

/// What a header says of its values.
#[derive(Clone, Debug, PartialEq)]
struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<u64>,
    /// Bytes before the values.
    len: u64,
}

/// How values are stored in the file.
#[derive(Clone, Copy, Debug)]
struct Stored {
    kind: Kind,
    /// Bytes per value: of integers narrower than I64 fewer than `kind` says.
    size: usize,
    signed: bool,
    big_endian: bool,
}

impl Header {
    fn read(path: &Path, from: &mut impl Read) -> Result<Header> {
        let mut first = [0; 8];
        exact(path, from, &mut first)?;
        if !first.starts_with(MAGIC) {
            return Err(bad(path, "it does not start with the signature of NumPy files"));
        }
        let wide = match first[6] {
            1 => false,
            2 | 3 => true,
            other => return Err(bad(path, format!("expected format version 1, 2 or 3, found {other}"))),
        };
        let mut len = [0; 4];
        exact(path, from, &mut len[..if wide { 4 } else { 2 }])?;
        let len = u32::from_le_bytes(len) as usize;
        if len > MAX_HEADER {
            return Err(bad(path, format!("a header of {len} bytes, at most {MAX_HEADER} are read")));
        }
        let mut text = vec![0; len];
        exact(path, from, &mut text)?;
        let text = String::from_utf8_lossy(&text);
        let (descr, fortran, shape) = parse(&text).ok_or_else(|| {
            let shown: String = text.trim().chars().take(120).flat_map(char::escape_debug).collect();
            bad(path, format!("a header that describes no plain array: {shown}"))
        })?;
        Ok(Header { descr, fortran, shape, len: 8 + if wide { 4 } else { 2 } + len as u64 })
    }

    fn stored(&self, path: &Path, name: &str) -> Result<Stored> {
        let wrong = || Error::WrongDtype {
            path: path.to_path_buf(),
            tensor: name.to_string(),
            expected: "floats of 2, 4 or 8 bytes, or integers",
            found: format!("'{}'", self.descr),
        };
        let mut chars = self.descr.chars();
        let big_endian = match chars.next() {
            Some('<' | '|') => false,
            Some('>') => true,
            _ => return Err(wrong()),
        };
        let (kind, size) = match chars.as_str() {
            "f2" => (Kind::F16, 2),
            "f4" => (Kind::F32, 4),
            "f8" => (Kind::F64, 8),
            "i1" | "u1" => (Kind::I64, 1),
            "i2" | "u2" => (Kind::I64, 2),
            "i4" | "u4" => (Kind::I64, 4),
            "i8" | "u8" => (Kind::I64, 8),
            _ => return Err(wrong()),
        };
        Ok(Stored { kind, size, signed: !self.descr.contains('u'), big_endian })
    }

    fn info(&self, path: &Path, name: &str) -> Result<(ColumnInfo, Stored)> {
        let stored = self.stored(path, name)?;
        let Some((&rows, tail)) = self.shape.split_first() else {
            return Err(Error::shape(format!("{}: axes", path.display()), "1 or more", "0 (a single value)"));
        };
        // With at most one axis longer than 1 both orders are the same.
        if self.fortran && self.shape.iter().filter(|&&axis| axis > 1).count() > 1 {
            let detail = "it is in Fortran order, where a row is scattered over the file: save \
                          numpy.ascontiguousarray(x) instead";
            return Err(bad(path, detail));
        }
        let axis = |&n: &u64| usize::try_from(n).map_err(|_| bad(path, format!("an axis of {n}")));
        let tail = tail.iter().map(axis).collect::<Result<Vec<_>>>()?;
        let info = ColumnInfo { rows, tail, kind: stored.kind }.check(path, name)?;
        Ok((info, stored))
    }
}

/// The three entries of a header: a Python dictionary of plain literals.
fn parse(text: &str) -> Option<(String, bool, Vec<u64>)> {
    let mut rest = text.trim().strip_prefix('{')?;
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    loop {
        rest = rest.trim_start();
        if let Some(end) = rest.strip_prefix('}') {
            return if end.trim().is_empty() { Some((descr?, fortran?, shape?)) } else { None };
        }
        let (key, after) = quoted(rest)?;
        rest = after.trim_start().strip_prefix(':')?.trim_start();
        match key {
            "descr" => {
                let (value, after) = quoted(rest)?;
                (descr, rest) = (Some(value.to_string()), after);
            }
            "fortran_order" => {
                let word = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
                fortran = Some(match &rest[..word] {
                    "True" => true,
                    "False" => false,
                    _ => return None,
                });
                rest = &rest[word..];
            }
            "shape" => {
                let inner = rest.strip_prefix('(')?;
                let (numbers, after) = inner.split_once(')')?;
                let axes = numbers.split(',').map(str::trim).filter(|n| !n.is_empty());
                // Python 2 wrote long integers as 3L.
                shape = Some(axes.map(|n| n.trim_end_matches('L').parse().ok()).collect::<Option<_>>()?);
                rest = after;
            }
            _ => return None,
        }
        rest = rest.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(quote)
}

fn exact(path: &Path, from: &mut impl Read, out: &mut [u8]) -> Result<()> {
    from.read_exact(out).map_err(|source| match source.kind() {
        ErrorKind::UnexpectedEof => bad(path, format!("truncated: {} more bytes were expected", out.len())),
        _ => Error::Io { action: "read", path: path.to_path_buf(), source },
    })
}

/// Opens a .npy file as its one column.
pub(super) fn open(path: &Path, name: &str) -> Result<(ColumnInfo, Box<dyn ColumnReader + Send>)> {
    let (file, meta) = open_input(path, "npy")?;
    let len = meta.len();
    let mut file = BufReader::with_capacity(1 << 20, file);
    let header = Header::read(path, &mut file)?;
    let (info, stored) = header.info(path, name)?;
    let expected = header.len + info.rows * (info.width() * stored.size) as u64;
    if len != expected {
        let fault = if len < expected { "truncated" } else { "too long" };
        return Err(bad(path, format!("{fault}: expected {expected} bytes, found {len}")));
    }
    let reader = Values::new(path, file, &info, stored);
    Ok((info, Box::new(reader)))
}

/// Names of the arrays in a .npz file, without `.npy`.
pub(super) fn members(path: &Path) -> Result<Vec<String>> {
    let mut archive = archive(path)?;
    let mut names = Vec::new();
    for i in 0..archive.len() {
        let member = archive.by_index_raw(i).map_err(|e| bad_zip(path, e.to_string()))?;
        let name = member.name().map_err(|e| bad_zip(path, e.to_string()))?;
        names.push(name.trim_end_matches(".npy").to_string());
    }
    Ok(names)
}

fn archive(path: &Path) -> Result<ZipArchive<BufReader<File>>> {
    let (file, _) = open_input(path, "npz")?;
    ZipArchive::new(BufReader::new(file)).map_err(|e| bad_zip(path, e.to_string()))
}

/// Opens array `name` of a .npz file.
pub(super) fn open_member(path: &Path, name: &str) -> Result<(ColumnInfo, Box<dyn ColumnReader + Send>)> {
    let found = members(path)?;
    let Some(index) = found.iter().position(|n| n == name) else {
        return Err(Error::MissingTensor { path: path.to_path_buf(), tensor: name.into(), found });
    };
    let mut archive = archive(path)?;
    let member = archive.by_index_raw(index).map_err(|e| bad_zip(path, e.to_string()))?;
    let deflated = match member.compression() {
        CompressionMethod::Stored => false,
        CompressionMethod::Deflated => true,
        other => {
            let detail = format!("array `{name}` is compressed as {other}; stored and deflated are read");
            return Err(bad_zip(path, detail));
        }
    };
    if member.encrypted() {
        return Err(bad_zip(path, format!("array `{name}` is encrypted")));
    }
    let start = member.data_start().ok_or_else(|| bad_zip(path, format!("array `{name}` has no place")))?;
    let (packed, size, crc) = (member.compressed_size(), member.size(), member.crc32());
    drop(member);

    let (mut file, _) = open_input(path, "npz")?;
    file.seek(SeekFrom::Start(start)).map_err(Error::io("read", path))?;
    let packed = BufReader::with_capacity(1 << 20, file).take(packed);
    let unpacked =
        if deflated { Unpacked::Deflated(DeflateDecoder::new(packed)) } else { Unpacked::Stored(packed) };
    let mut member = Member {
        path: path.to_path_buf(),
        name: name.to_string(),
        from: unpacked,
        left: size,
        sum: Crc::new(),
        expected: crc,
    };
    let header = Header::read(path, &mut member)?;
    let (info, stored) = header.info(path, name)?;
    let expected = header.len + info.rows * (info.width() * stored.size) as u64;
    if size != expected {
        return Err(bad_zip(path, format!("array `{name}`: expected {expected} bytes, found {size}")));
    }
    let reader = Values::new(path, member, &info, stored);
    Ok((info, Box::new(reader)))
}

enum Unpacked {
    Stored(Take<BufReader<File>>),
    Deflated(DeflateDecoder<Take<BufReader<File>>>),
}

/// The bytes of an array in a zip; their checksum is compared when the last one is read.
struct Member {
    path: PathBuf,
    name: String,
    from: Unpacked,
    left: u64,
    sum: Crc,
    expected: u32,
}

impl Read for Member {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let most = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = match &mut self.from {
            Unpacked::Stored(from) => from.read(&mut out[..most]),
            Unpacked::Deflated(from) => from.read(&mut out[..most]),
        }?;
        self.sum.update(&out[..count]);
        self.left -= count as u64;
        if self.left == 0 && count > 0 && self.sum.sum() != self.expected {
            let message = format!("checksum of `{}` in {} does not match", self.name, self.path.display());
            return Err(std::io::Error::other(message));
        }
        Ok(count)
    }
}

/// What some bytes can be left out of.
trait Skip {
    fn skip(&mut self, bytes: u64) -> std::io::Result<()>;
}

impl Skip for BufReader<File> {
    fn skip(&mut self, bytes: u64) -> std::io::Result<()> {
        self.seek_relative(bytes as i64)
    }
}

impl Skip for Member {
    /// Reads them: they count for the checksum.
    fn skip(&mut self, bytes: u64) -> std::io::Result<()> {
        std::io::copy(&mut self.take(bytes), &mut std::io::sink()).map(drop)
    }
}

/// The values after a header.
struct Values<R> {
    path: PathBuf,
    from: R,
    width: usize,
    stored: Stored,
    bytes: Vec<u8>,
}

impl<R: Read + Skip> Values<R> {
    fn new(path: &Path, from: R, info: &ColumnInfo, stored: Stored) -> Values<R> {
        Values { path: path.to_path_buf(), from, width: info.width(), stored, bytes: Vec::new() }
    }
}

impl<R: Read + Skip + Send> ColumnReader for Values<R> {
    fn read(&mut self, rows: usize, out: &mut Buffer) -> Result<()> {
        let values = rows * self.width;
        let Stored { kind, size, signed, big_endian } = self.stored;
        if kind.is_float() || size == 8 && signed {
            let bytes = out.grow(values);
            exact(&self.path, &mut self.from, bytes)?;
            if big_endian {
                bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
            }
            return Ok(());
        }
        let Buffer::I64(out) = out else { unreachable!("integers are read as I64") };
        self.bytes.resize(values * size, 0);
        exact(&self.path, &mut self.from, &mut self.bytes)?;
        for value in self.bytes.chunks_exact_mut(size) {
            if big_endian {
                value.reverse();
            }
            let fill = if signed && value[size - 1] >= 0x80 { 0xff } else { 0 };
            let mut wide = [fill; 8];
            wide[..size].copy_from_slice(value);
            let wide = i64::from_le_bytes(wide);
            if !signed && wide < 0 {
                return Err(bad(&self.path, format!("the integer {} does not fit I64", wide as u64)));
            }
            out.push(wide);
        }
        Ok(())
    }

    fn skip(&mut self, rows: u64) -> Result<()> {
        let bytes = rows * (self.width * self.stored.size) as u64;
        self.from.skip(bytes).map_err(Error::io("read", &self.path))
    }
}

/// The header of a .npy file of little-endian values of `kind`, padded as NumPy does, so that values start at a
/// multiple of 64 bytes.
pub(super) fn header(kind: Kind, shape: &[u64]) -> Vec<u8> {
    let descr = match kind {
        Kind::F16 => "<f2",
        // There is no BF16 in NumPy: the caller widens.
        Kind::Bf16 | Kind::F32 => "<f4",
        Kind::F64 => "<f8",
        Kind::I64 => "<i8",
    };
    let axes: Vec<String> = shape.iter().map(u64::to_string).collect();
    let axes = if axes.len() == 1 { format!("{},", axes[0]) } else { axes.join(", ") };
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({axes}), }}");
    let total = (MAGIC.len() + 4 + text.len() + 1).next_multiple_of(64);
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend(((total - MAGIC.len() - 4) as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.resize(total - 1, b' ');
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_back() {
        for shape in [vec![3], vec![4, 5], vec![2, 3, 4]] {
            let bytes = header(Kind::F32, &shape);
            assert_eq!(bytes.len() % 64, 0);
            let found = Header::read(Path::new("x.npy"), &mut &bytes[..]).expect("a header");
            let expected = Header { descr: "<f4".into(), fortran: false, shape, len: bytes.len() as u64 };
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn literals_that_are_no_header_are_refused() {
        let good = "{'descr': '<f8', 'fortran_order': False, 'shape': (3L, 2), }";
        assert_eq!(parse(good), Some(("<f8".into(), false, vec![3, 2])));
        assert_eq!(parse("{'shape': (), 'fortran_order': True, 'descr': '|i1'}").map(|p| p.2), Some(vec![]));
        for text in [
            "",
            "{",
            "{}",
            "{'descr': '<f8'}",
            "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (3,), }",
            "{'descr': '<f8', 'fortran_order': 0, 'shape': (3,), }",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (-3,), }",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999,), }",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), } more",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), 'more': 1}",
            "{'descr': '\u{e9}",
            "\u{e9}",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
