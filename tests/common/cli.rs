//! The real binary, and the files it is given: a folder of small data, what a command said, and what it left behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lensmith::data::{NamedTensor, write_tensors};
use lensmith::dtype::Dtype;
use lensmith::matrix::RowsBuf;
use safetensors::Dtype as Stored;
use serde_json::Value;
use tempfile::TempDir;

use super::data;

/// The binary under test, with nothing of the environment that could change its bytes, on the CPU.
pub fn binary() -> Command {
    bare(Command::new(env!("CARGO_BIN_EXE_lensmith")))
}

/// A command, the binary or what runs it, in the environment that tests mean.
pub fn bare(mut command: Command) -> Command {
    // COLUMNS would set the width of help.
    for name in ["LENSMITH_SIMD", "PTX_DRIVER", "COLUMNS"] {
        command.env_remove(name);
    }
    command.env("LENSMITH_DEVICE", "cpu");
    command
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Exit code; None if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("standard output is text"),
            err: String::from_utf8(output.stderr).expect("standard error is text"),
        }
    }
}

impl Said {
    /// The one JSON object on standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.out.lines().count(), 1, "not one line of JSON: {:?}", self.out);
        let value: Value = serde_json::from_str(&self.out).expect("standard output is one JSON value");
        assert!(value.is_object(), "not an object: {value}");
        value
    }

    /// Panics unless the command succeeded without a word on standard error.
    #[track_caller]
    pub fn fine(self) -> Said {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert_eq!(self.err, "", "{self:?}");
        self
    }
}

/// A folder of its own for a test; gone when the test ends.
pub struct Lab(TempDir);

impl Lab {
    /// An empty folder.
    pub fn new() -> Lab {
        Lab(tempfile::tempdir().expect("a temporary folder"))
    }

    /// With a few seeds and a VAE, both as small as they can be.
    pub fn small() -> Lab {
        let lab = Lab::new();
        lab.pairs("seeds.safetensors", Dtype::F32, 40, 32, 1);
        lab.fine(
            "train-vae @seeds.safetensors --out @vae.safetensors --hidden 16 --latent 16 --vae-epochs 1",
        );
        lab
    }

    /// A path in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A path in it as text.
    pub fn text(&self, name: &str) -> String {
        self.at(name).to_str().expect("a path in UTF-8").to_string()
    }

    /// The words of `line`; `@` stands for the folder and a slash.
    pub fn words(&self, line: &str) -> Vec<String> {
        line.split_whitespace().map(|w| w.replace('@', &self.text(""))).collect()
    }

    /// Runs the binary on the words of `line`.
    pub fn run(&self, line: &str) -> Said {
        self.run_with(line, &[])
    }

    /// The same with environment variables.
    pub fn run_with(&self, line: &str, env: &[(&str, &str)]) -> Said {
        let mut command = binary();
        command.args(self.words(line)).envs(env.iter().copied());
        command.output().expect("the binary starts").into()
    }

    /// Runs the binary and demands success.
    #[track_caller]
    pub fn fine(&self, line: &str) -> Said {
        self.run(line).fine()
    }

    /// Writes a file.
    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.at(name);
        fs::create_dir_all(path.parent().expect("inside the folder")).expect("a folder");
        fs::write(&path, bytes).expect("a file");
        path
    }

    /// The bytes of a file.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.at(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The JSON in a file.
    pub fn value(&self, name: &str) -> Value {
        serde_json::from_slice(&self.bytes(name)).expect("JSON")
    }

    /// Writes tensors with a state dict's or a shard's layout, without checksums of any kind.
    pub fn tensors(&self, name: &str, tensors: &[Tensor<'_>]) -> PathBuf {
        self.put(name, &file(tensors))
    }

    /// Writes `rows` pairs of width `dim` with checksums, each dtype and `seed` with values of its own.
    pub fn pairs(&self, name: &str, dtype: Dtype, rows: usize, dim: usize, seed: u64) -> PathBuf {
        let path = self.at(name);
        fs::create_dir_all(path.parent().expect("inside the folder")).expect("a folder");
        let mut chosen = data(2 * seed + 1, rows, dim);
        // What is preferred is larger along some columns, so that there is something to learn.
        chosen.chunks_exact_mut(dim).for_each(|row| row.iter_mut().step_by(3).for_each(|v| *v += 0.4));
        let sides = [chosen, data(2 * seed + 2, rows, dim)];
        let sides = sides.map(|side| RowsBuf::from_f32(dtype, &side, dim).expect("whole rows"));
        let stored = stored(dtype);
        let views = sides.each_ref().map(|side| side.view().values().bytes());
        let tensors: Vec<NamedTensor<'_>> = ["chosen", "rejected"]
            .into_iter()
            .zip(views)
            .map(|(name, bytes)| (name.to_string(), stored, vec![rows, dim], bytes))
            .collect();
        write_tensors(&path, &tensors, &BTreeMap::new()).expect("a shard");
        path
    }
}

/// The file format's name of a storage type.
pub fn stored(dtype: Dtype) -> Stored {
    match dtype {
        Dtype::F32 => Stored::F32,
        Dtype::F16 => Stored::F16,
        Dtype::Bf16 => Stored::BF16,
    }
}

/// A tensor for [`file`]: name, dtype, shape, bytes.
pub type Tensor<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);

/// A safetensors file made by hand; the bytes need not fit the shapes.
pub fn file(tensors: &[Tensor<'_>]) -> Vec<u8> {
    let mut entries = Vec::new();
    let (mut at, mut payload) = (0, Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let end = at + bytes.len();
        entries.push(format!(
            "\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{at},{end}]}}"
        ));
        at = end;
        payload.extend_from_slice(bytes);
    }
    raw(&format!("{{{}}}", entries.join(",")), &payload)
}

/// A safetensors file with exactly this header and payload.
pub fn raw(header: &str, payload: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), payload].concat()
}

/// Values as little-endian bytes.
pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Everything below a folder: files with their bytes, folders without.
pub type Listing = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Reads a folder and all below it, with paths relative to it.
pub fn listing(folder: &Path) -> Listing {
    let mut found = Listing::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(here) = open.pop() {
        for entry in fs::read_dir(&here).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(folder).expect("below the folder").to_path_buf();
            let kind = fs::symlink_metadata(&path).expect("what was listed").file_type();
            if kind.is_dir() {
                open.push(path);
                found.insert(name, None);
            } else if kind.is_file() {
                found.insert(name, Some(fs::read(&path).expect("a readable file")));
            }
        }
    }
    found
}

/// The same without the empty lock files, which stay behind.
pub fn outputs(folder: &Path) -> Listing {
    let is_lock = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with('.') && name.ends_with(".lock")
    };
    let mut found = listing(folder);
    found.retain(|path, bytes| !(is_lock(path) && bytes.as_ref().is_some_and(Vec::is_empty)));
    found
}

/// Panics unless two listings have the same names and bytes, and at least one file; says which first differs.
#[track_caller]
pub fn assert_same_files(what: &str, got: &Listing, want: &Listing) {
    let names = |l: &Listing| l.keys().map(|p| p.display().to_string()).collect::<Vec<_>>();
    assert!(want.values().any(Option::is_some), "{what}: nothing to compare with");
    assert_eq!(names(got), names(want), "{what}: other files");
    for (path, bytes) in want {
        if got[path] != *bytes {
            let (a, b) = (got[path].clone().unwrap_or_default(), bytes.clone().unwrap_or_default());
            let at = a.iter().zip(&b).position(|(x, y)| x != y).unwrap_or(a.len().min(b.len()));
            panic!("{what}: {} differs at byte {at} ({} against {} bytes)", path.display(), a.len(), b.len());
        }
    }
}

/// The shards of a listing alone.
pub fn shards(listing: &Listing) -> Listing {
    let is_shard = |p: &Path| p.file_name().unwrap_or_default().to_string_lossy().starts_with("pairs-");
    listing.iter().filter(|(p, _)| is_shard(p)).map(|(p, b)| (p.clone(), b.clone())).collect()
}
