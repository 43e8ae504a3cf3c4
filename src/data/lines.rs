//! Files of lines: read a line at a time in bounded memory, and written whole or not at all.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::atomic::AtomicFile;
use super::fault::{change, number};
use super::place::open_input;
use crate::error::{Error, Result};

/// Most bytes of a line.
const MOST_LINE: u64 = 64 << 20;
/// Bytes that are written at a time.
const PIECE: usize = 1 << 20;
const FORMAT: &str = "JSON lines";

/// The lines of a file or of memory, with their numbers from 1; blank ones are left out.
pub(super) struct Lines<'a> {
    /// What messages call it.
    name: &'a Path,
    input: Box<dyn BufRead + 'a>,
    number: u64,
}

impl<'a> Lines<'a> {
    /// Fails if there is no regular file at `path`.
    pub fn open(path: &'a Path) -> Result<Lines<'a>> {
        let (file, _) = open_input(path, FORMAT)?;
        Ok(Lines { name: path, input: Box::new(BufReader::with_capacity(PIECE, file)), number: 0 })
    }

    /// The lines of `bytes`, which messages call `name`.
    pub fn of(bytes: &'a [u8], name: &'a Path) -> Lines<'a> {
        Lines { name, input: Box::new(bytes), number: 0 }
    }

    /// The next line with its number; None at the end.
    fn read(&mut self) -> Result<Option<(u64, Vec<u8>)>> {
        loop {
            let mut line = Vec::new();
            let limited = &mut self.input.by_ref().take(MOST_LINE + 1);
            limited.read_until(b'\n', &mut line).map_err(Error::io("read", self.name))?;
            self.number += 1;
            if line.is_empty() {
                return Ok(None);
            }
            if line.len() as u64 > MOST_LINE {
                let detail = format!("line {}: it is longer than {MOST_LINE} bytes", self.number);
                return Err(Error::Format { path: self.name.to_path_buf(), format: FORMAT, detail });
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some((self.number, line)));
            }
        }
    }
}

impl Iterator for Lines<'_> {
    type Item = Result<(u64, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// A file that is written line by line and appears at its path when it is complete.
#[derive(Debug)]
pub struct LineFile {
    out: AtomicFile,
    /// Bytes written.
    at: u64,
    waiting: Vec<u8>,
}

impl LineFile {
    /// Fails as [`AtomicFile::create`] does.
    pub fn create(path: &Path) -> Result<LineFile> {
        Ok(LineFile { out: AtomicFile::create(path)?, at: 0, waiting: Vec::new() })
    }

    /// Appends a line, which has no line end of its own.
    pub fn line(&mut self, text: &str) -> Result<()> {
        self.waiting.extend_from_slice(text.as_bytes());
        self.waiting.push(b'\n');
        if self.waiting.len() >= PIECE { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        let file = self.out.file();
        change(|| file.write_all_at(&self.waiting, self.at), |()| format!("write {}", number(file)))
            .map_err(Error::io("write", self.out.path()))?;
        self.at += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    /// Forces all to the disk and gives the file its name.
    pub fn finish(mut self) -> Result<()> {
        self.write()?;
        self.out.commit()
    }
}
