//! The safetensors format as bytes: an 8-byte little-endian header length, a JSON header, the payload.
//!
//! Headers are parsed and checked (tensors contiguous, without holes, sizes equal to shape times dtype) by the
//! safetensors crate. Here their length is bounded before that and the length of the file checked after it, and a header
//! that is refused gets a message that says what to look for.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo as RawInfo};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::error::{Error, Result};

/// Bytes of the header length that opens every file.
pub(super) const LEN_BYTES: usize = 8;
/// Longest header that is read: a longer one is a corrupt length or an attack, since parsing takes forty times its length
/// in memory. The names of a hundred thousand tensors fit.
const MAX_HEADER: u64 = 8_000_000;
/// The payload starts at a multiple of this: a page, so that a map of it suits SIMD and pinned copies.
const PAYLOAD_ALIGN: usize = 4096;
/// Most characters of foreign text that a message repeats.
const MAX_QUOTE: usize = 200;

/// One tensor of a file, as its header declares it, checked to be inside the file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: Dtype,
    /// Sizes of the axes, slowest first.
    pub shape: Vec<usize>,
    /// Its bytes, counted from the start of the file.
    pub range: Range<usize>,
}

/// The header of a safetensors file.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// The tensors in the order of their bytes.
    pub tensors: Vec<TensorInfo>,
    /// The entry `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// First byte of the payload, counted from the start of the file.
    pub payload: usize,
}

impl Header {
    /// Reads the header of a file whose whole contents are `bytes`; `path` is for messages. Fails with
    /// [`Error::Format`] on anything that the format does not allow; no input makes it panic.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Header> {
        let len = bytes.len() as u64;
        let end = header_end(bytes, len).map_err(|detail| bad(path, detail))?;
        Header::from_prefix(path, &bytes[..end], len)
    }

    /// As [`Header::parse`], from the first [`header_end`] bytes of a file of `len` bytes.
    pub(super) fn from_prefix(path: &Path, prefix: &[u8], len: u64) -> Result<Header> {
        let json = &prefix[LEN_BYTES..];
        let refuse = |detail| bad(path, detail);
        let text = std::str::from_utf8(json)
            .map_err(|e| refuse(format!("the header is not UTF-8 text after byte {}", e.valid_up_to())))?;
        // Parsing includes the checks of every tensor.
        let parsed: Metadata = serde_json::from_str(text).map_err(|e| refuse(diagnose(text, &e)))?;
        let UniqueKeys = serde_json::from_str(text).map_err(|e| refuse(e.to_string()))?;

        let payload = prefix.len();
        let expected = parsed.data_len().checked_add(payload).map(|n| n as u64);
        if expected != Some(len) {
            let expected = expected.map_or("more bytes than can be counted".into(), |n| format!("{n} bytes"));
            let fault =
                if parsed.data_len() as u64 > len - payload as u64 { "truncated" } else { "too long" };
            return Err(refuse(format!("{fault}: expected {expected}, found {len}")));
        }
        let tensors = parsed.offset_keys().into_iter().filter_map(|name| {
            let info = parsed.info(&name)?;
            let (from, to) = info.data_offsets;
            Some(TensorInfo {
                dtype: info.dtype,
                shape: info.shape.clone(),
                range: payload + from..payload + to,
                name,
            })
        });
        let tensors = tensors.collect();
        let metadata = parsed.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(Header { tensors, metadata, payload })
    }

    /// The tensor called `name`; [`Error::MissingTensor`] if there is none.
    pub fn tensor(&self, path: &Path, name: &str) -> Result<&TensorInfo> {
        self.find(name).ok_or_else(|| Error::MissingTensor {
            path: path.to_path_buf(),
            tensor: name.to_string(),
            found: self.tensors.iter().map(|t| quote(&t.name)).collect(),
        })
    }

    /// The tensor called `name`, if there is one.
    pub(super) fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|t| t.name == name)
    }
}

/// An object of which no key comes twice: of two tensors of one name a reader would see either.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<UniqueKeys, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = UniqueKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueKeys, A::Error> {
                let mut seen = HashSet::new();
                while let Some((key, IgnoredAny)) = map.next_entry::<Cow<'_, str>, IgnoredAny>()? {
                    if let Some(twice) = seen.replace(key) {
                        return Err(A::Error::custom(format!("`{}` is there twice", quote(&twice))));
                    }
                }
                Ok(UniqueKeys)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// How files start that `import` reads; none of them gives the length of a header that is read.
const OTHERS: [(&[u8], &str); 4] = [
    (b"PAR1", "a Parquet file"),
    (b"\x93NUMPY", "a .npy file"),
    (b"PK\x03\x04", "a zip as .npz files are"),
    (b"ARROW1", "an Arrow file"),
];

/// Where the header of a file of `len` bytes ends, from its `first` bytes. The error is the detail of an
/// [`Error::Format`].
pub(super) fn header_end(first: &[u8], len: u64) -> Result<usize, String> {
    if len == 0 {
        return Err("the file is empty".into());
    }
    let other = OTHERS.iter().find(|(start, _)| first.starts_with(start)).map(|(_, name)| *name);
    // A mark, and the length of a schema: less than 16 MiB.
    let stream = matches!(first, [0xff, 0xff, 0xff, 0xff, _, _, _, 0, ..]).then_some("an Arrow stream");
    if let Some(name) = other.or(stream) {
        return Err(format!("it is {name}, which `lensmith import` makes shards of"));
    }
    let Some(size) = first.first_chunk::<LEN_BYTES>() else {
        return Err(format!("truncated: expected at least {LEN_BYTES} bytes, found {len}"));
    };
    let size = u64::from_le_bytes(*size);
    if size == 0 {
        return Err("the header length is 0".into());
    }
    if size > MAX_HEADER {
        return Err(format!(
            "the first 8 bytes give a header of {size} bytes, more than the {MAX_HEADER} that are read"
        ));
    }
    let end = LEN_BYTES as u64 + size;
    if end > len {
        return Err(format!(
            "truncated, or the header length is wrong: expected {end} bytes or more, found {len}"
        ));
    }
    usize::try_from(end).map_err(|_| format!("a header of {size} bytes does not fit this machine"))
}

/// [`Error::Format`] for a safetensors file.
pub(super) fn bad(path: &Path, detail: impl Into<String>) -> Error {
    Error::Format { path: path.to_path_buf(), format: "safetensors", detail: detail.into() }
}

/// A checksum as 32 hexadecimal digits.
pub(super) fn hex(digest: u128) -> String {
    format!("{digest:032x}")
}

/// Foreign text made fit for a message: one line, bounded.
pub(super) fn quote(text: &str) -> String {
    let mut line: String = text.chars().take(MAX_QUOTE).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_QUOTE).is_some() {
        line.push_str("...");
    }
    line
}

/// Why a header was refused. Where sizes disagree, the crate's error does not name the tensor: it is looked for here.
fn diagnose(json: &str, verdict: &serde_json::Error) -> String {
    let entries: BTreeMap<String, serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    for (name, value) in entries {
        let Ok(info) = serde_json::from_value::<RawInfo>(value) else { continue };
        let (from, to) = info.data_offsets;
        let name = quote(&name);
        let Some(needed) = payload_bytes(info.dtype, &info.shape) else {
            return format!("the header gives tensor `{name}` an impossible shape");
        };
        if to.checked_sub(from) != Some(needed) {
            let (dtype, shape) = (info.dtype, quote(&format!("{:?}", info.shape)));
            return format!(
                "the header gives tensor `{name}` bytes {from} to {to}, but {dtype} {shape} takes {needed}"
            );
        }
    }
    // escape_debug doubles the quotes and backslashes that a verdict may hold; only line breaks matter here.
    let verdict = verdict.to_string().replace(|c: char| c.is_control(), " ");
    let short: String = verdict.chars().take(MAX_QUOTE).collect();
    format!("the header is not what the format demands: {short}")
}

/// Bytes of a tensor; `None` where that overflows or is not a whole number.
pub(super) fn payload_bytes(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let values = shape.iter().try_fold(1usize, |n, &axis| n.checked_mul(axis))?;
    let bits = values.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// A header to be written, and where it places the tensors.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Name, type, shape and byte range within the file of each tensor, in the order given.
    pub tensors: Vec<TensorInfo>,
    /// Bytes before the payload.
    pub payload: usize,
    /// Length of the file.
    pub total: usize,
}

impl Layout {
    /// Places tensors (name, dtype, shape) one behind the other, without holes as the format demands, after a
    /// header that is padded so that the first starts at a multiple of 4,096. Only the lengths of the
    /// metadata's texts matter. Fails if names repeat, a shape is impossible, or the header would be too long.
    pub fn new<'a>(
        path: &Path,
        tensors: impl IntoIterator<Item = (&'a str, Dtype, Vec<usize>)>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Layout> {
        let mut end = 0usize;
        let mut placed: Vec<TensorInfo> = Vec::new();
        for (name, dtype, shape) in tensors {
            if name == "__metadata__" || placed.iter().any(|t| t.name == name) {
                return Err(bad(path, format!("tensor name `{}` is taken", quote(name))));
            }
            let next = payload_bytes(dtype, &shape).and_then(|n| end.checked_add(n));
            let Some(next) = next.filter(|&n| n <= isize::MAX as usize) else {
                return Err(bad(path, format!("tensor `{}` of shape {shape:?} is too large", quote(name))));
            };
            placed.push(TensorInfo { name: name.to_string(), dtype, shape, range: end..next });
            end = next;
        }
        let json = HeaderJson { tensors: &placed, metadata, payload: 0 };
        let json = serde_json::to_vec(&json).map_err(|e| bad(path, e.to_string()))?;
        let payload = (LEN_BYTES + json.len()).next_multiple_of(PAYLOAD_ALIGN);
        if (payload - LEN_BYTES) as u64 > MAX_HEADER {
            return Err(bad(
                path,
                format!("the header would take {payload} bytes, at most {MAX_HEADER} are read"),
            ));
        }
        for tensor in &mut placed {
            tensor.range = tensor.range.start + payload..tensor.range.end + payload;
        }
        Ok(Layout { tensors: placed, payload, total: payload + end })
    }

    /// The bytes before the payload, with `metadata` whose texts have the lengths given to [`Layout::new`].
    pub fn header(&self, path: &Path, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
        let json = HeaderJson { tensors: &self.tensors, metadata, payload: self.payload };
        let mut bytes = ((self.payload - LEN_BYTES) as u64).to_le_bytes().to_vec();
        serde_json::to_writer(&mut bytes, &json).map_err(|e| bad(path, e.to_string()))?;
        if bytes.len() > self.payload {
            return Err(bad(path, format!("header of {} bytes, {} reserved", bytes.len(), self.payload)));
        }
        bytes.resize(self.payload, b' ');
        Ok(bytes)
    }
}

/// The header as JSON: metadata first, then the tensors in the order of their bytes, so that equal contents
/// give equal files (the safetensors crate writes its metadata in the order of a hash map).
struct HeaderJson<'a> {
    tensors: &'a [TensorInfo],
    metadata: &'a BTreeMap<String, String>,
    /// Start of the payload, from which the format counts byte ranges.
    payload: usize,
}

impl Serialize for HeaderJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry("__metadata__", self.metadata)?;
        }
        for tensor in self.tensors {
            let data_offsets = (tensor.range.start - self.payload, tensor.range.end - self.payload);
            let info = RawInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets };
            map.serialize_entry(&tensor.name, &info)?;
        }
        map.end()
    }
}
