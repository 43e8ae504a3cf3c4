//! Memory in whole pages, so that files can be read and written past the page cache straight from it.

use bytemuck::{Pod, Zeroable};

/// Bytes of a page: what direct reads and writes are aligned to, in memory and in files.
pub const PAGE: usize = 4096;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// A stretch of bytes that starts at a page boundary.
#[derive(Clone, Default)]
pub struct Pages {
    pages: Vec<Page>,
    len: usize,
}

impl Pages {
    /// `len` zero bytes.
    pub fn zeros(len: usize) -> Pages {
        Pages { pages: bytemuck::zeroed_vec(len.div_ceil(PAGE)), len }
    }

    /// Changes the length and keeps the allocation. Bytes that come to the end are what was there before: zeros, or
    /// the remains of a longer stretch.
    pub fn resize(&mut self, len: usize) {
        let pages = len.div_ceil(PAGE);
        if pages > self.pages.len() {
            self.pages.resize(pages, Page::zeroed());
        }
        self.len = len;
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.pages)[..self.len]
    }

    /// The bytes, for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.pages)[..self.len]
    }
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pages({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_start_at_a_boundary_and_keep_what_they_held() {
        let mut pages = Pages::zeros(5000);
        assert!(pages.bytes().as_ptr().addr().is_multiple_of(PAGE));
        assert_eq!((pages.bytes().len(), pages.bytes()[4999]), (5000, 0));
        pages.bytes_mut()[4000] = 7;
        pages.resize(10);
        assert_eq!(pages.bytes().len(), 10);
        pages.resize(20_000);
        assert_eq!((pages.bytes()[4000], pages.bytes()[19_999]), (7, 0));
    }
}
