//! The pages of a Parquet column, as far as needed to tell how much they unpack to. The decoder believes the header of each
//! page, whatever the file's metadata says, and gives no way to look at it before.
//!
//! Headers are structs of Thrift's compact protocol (parquet-format, `PageHeader`; thrift-compact-protocol.md).

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Longest header that is read: statistics in it may hold values.
const MOST_HEADER: usize = 1 << 20;
/// Deepest nesting of structs and lists in a header; parquet-format has three.
const MOST_DEPTH: usize = 16;

/// Bytes that the pages in `range` of a file unpack to, by their headers; None if one of these cannot be read.
pub(super) fn unpacked(file: &File, range: Range<u64>) -> Option<u64> {
    let (mut at, mut all) = (range.start, 0u64);
    let mut bytes = Vec::new();
    while at < range.end {
        let header = read_header(file, at, &mut bytes)?;
        all = all.saturating_add(header.unpacked);
        at = at.checked_add(header.len as u64)?.checked_add(header.packed)?;
    }
    Some(all)
}

/// What a page's header says.
#[derive(Debug, PartialEq)]
struct PageHeader {
    /// Its own bytes.
    len: usize,
    /// Bytes that follow it.
    packed: u64,
    /// Bytes that these unpack to.
    unpacked: u64,
}

/// Reads the header at byte `at`, first a little and then as much as may be.
fn read_header(file: &File, at: u64, bytes: &mut Vec<u8>) -> Option<PageHeader> {
    for most in [256, 1 << 14, MOST_HEADER] {
        bytes.resize(most, 0);
        let mut filled = 0;
        while filled < most {
            match file.read_at(&mut bytes[filled..], at + filled as u64).ok()? {
                0 => break,
                count => filled += count,
            }
        }
        if let Some(header) = PageHeader::parse(&bytes[..filled]) {
            return Some(header);
        }
    }
    None
}

impl PageHeader {
    fn parse(bytes: &[u8]) -> Option<PageHeader> {
        const UNPACKED: i64 = 2;
        const PACKED: i64 = 3;
        let mut rest = Thrift(bytes);
        let (mut packed, mut unpacked) = (None, None);
        let mut id = 0;
        while let Some((next, kind)) = rest.field(id)? {
            id = next;
            match (id, kind) {
                (UNPACKED, Thrift::I32) => unpacked = Some(u64::try_from(rest.integer()?).ok()?),
                (PACKED, Thrift::I32) => packed = Some(u64::try_from(rest.integer()?).ok()?),
                (_, Thrift::TRUE | Thrift::FALSE) => {}
                _ => rest.skip(kind, 0)?,
            }
        }
        Some(PageHeader { len: bytes.len() - rest.0.len(), packed: packed?, unpacked: unpacked? })
    }
}

/// What is left to read. Every method gives None at the end of the bytes.
struct Thrift<'a>(&'a [u8]);

impl Thrift<'_> {
    const TRUE: u8 = 1;
    const FALSE: u8 = 2;
    const I32: u8 = 5;

    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// Seven bits a byte, the lowest first.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// A number whose lowest bit is the sign.
    fn integer(&mut self) -> Option<i64> {
        let number = self.number()?;
        Some((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// Number and type of the next field of a struct, after the field `before`; `Some(None)` at the end of the struct.
    fn field(&mut self, before: i64) -> Option<Option<(i64, u8)>> {
        let byte = self.byte()?;
        let (delta, kind) = (byte >> 4, byte & 0x0f);
        match (delta, kind) {
            (_, 0) => Some(None),
            (0, _) => Some(Some((self.integer()?, kind))),
            _ => Some(Some((before.checked_add(i64::from(delta))?, kind))),
        }
    }

    /// Goes past a value, which is not the field of a struct if it is a boolean.
    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > MOST_DEPTH {
            return None;
        }
        match kind {
            Thrift::TRUE | Thrift::FALSE | 3 => drop(self.byte()?),
            4..=6 => drop(self.number()?),
            7 => drop(self.0.split_off(..8)?),
            8 => {
                let len = usize::try_from(self.number()?).ok()?;
                self.0.split_off(..len)?;
            }
            // Lists and sets.
            9 | 10 => {
                let byte = self.byte()?;
                let count = if byte >> 4 == 15 { self.number()? } else { u64::from(byte >> 4) };
                for _ in 0..count {
                    self.skip(byte & 0x0f, depth + 1)?;
                }
            }
            11 => {
                let count = self.number()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                for _ in 0..count {
                    self.skip(kinds >> 4, depth + 1)?;
                    self.skip(kinds & 0x0f, depth + 1)?;
                }
            }
            12 => {
                let mut id = 0;
                while let Some((next, kind)) = self.field(id)? {
                    id = next;
                    if !matches!(kind, Thrift::TRUE | Thrift::FALSE) {
                        self.skip(kind, depth + 1)?;
                    }
                }
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data page of 300 packed and 70,000 unpacked bytes, whose own header holds statistics and a boolean.
    const PAGE: &[u8] = &[
        0x15, 0x00, // 1: type, 0
        0x15, 0xe0, 0xc5, 0x08, // 2: 70,000
        0x15, 0xd8, 0x04, // 3: 300
        0x2c, // 5: a struct
        0x15, 0x14, 0x15, 0x00, // 1 and 2
        0x3c, 0x18, 0x03, b'm', b'a', b'x', 0x11, 0x00, // 5: a struct with a text and a boolean
        0x00, // its end
        0x00, // the end
    ];

    #[test]
    fn headers_of_pages_are_read() {
        let expected = PageHeader { len: PAGE.len(), packed: 300, unpacked: 70_000 };
        assert_eq!(PageHeader::parse(PAGE), Some(expected));
        let more = [PAGE, b"values"].concat();
        assert_eq!(PageHeader::parse(&more).map(|h| h.len), Some(PAGE.len()));
        for cut in 0..PAGE.len() {
            assert_eq!(PageHeader::parse(&PAGE[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn what_is_no_header_is_none() {
        // Without a size; of a negative size; lists in lists without end; a text longer than memory.
        let nested = [0x19; 100];
        for bytes in
            [&[0u8][..], &[0x25, 0x01, 0x15, 0x02, 0x00], &nested, &[0x18, 0xff, 0xff, 0xff, 0xff, 0x7f]]
        {
            assert_eq!(PageHeader::parse(bytes), None, "{bytes:?}");
        }
    }
}
