//! Every reader over one file of arbitrary bytes; shared by the fuzz target and by the tests.

use std::fmt::Debug;
use std::fs;
use std::path::Path;

use lensmith::data::{
    CandidateSet, EmbeddingSet, FileBytes, Header, Io, PairOptions, PairSet, inspect_shard, verify_shard,
};
use lensmith::matrix::Side;
use safetensors::SafeTensors;

/// Writes `bytes` to `path` and reads it in every way there is. Panics if a reader does, if it disagrees with
/// the safetensors crate about what is valid, if memory map and ordinary reads disagree, or if a message is
/// more than a line. Returns how many readers accepted the file.
pub fn exercise(path: &Path, bytes: &[u8]) -> usize {
    fs::write(path, bytes).expect("the scratch file can be written");
    let sources = [path.to_str().expect("a scratch path is UTF-8").to_string()];

    let header = Header::parse(path, bytes);
    let oracle = SafeTensors::deserialize(bytes);
    // What the crate takes and we do not: names that come twice.
    let stricter = header.as_ref().is_err_and(|e| e.to_string().contains("is there twice"));
    assert_eq!(
        header.is_ok(),
        oracle.is_ok() && !stricter,
        "{header:?} against {:?}",
        oracle.map(|t| t.len())
    );
    if let (Ok(header), Ok(oracle)) = (&header, &oracle) {
        assert_eq!(header.tensors.len(), oracle.len());
        for tensor in &header.tensors {
            let view = oracle.tensor(&tensor.name).expect("both know the tensor");
            assert_eq!(&bytes[tensor.range.clone()], view.data());
            assert_eq!((tensor.dtype, &tensor.shape[..]), (view.dtype(), view.shape()));
        }
    }

    let mut accepted = usize::from(outcome(header).is_ok());
    accepted += both(|io| FileBytes::open(path, io).map(|b| b.bytes().to_vec()));
    accepted += both(|io| verify_shard(path, io));
    accepted += usize::from(outcome(inspect_shard(path)).is_ok());
    accepted += both(|io| {
        let set = PairSet::open(&sources, &PairOptions { io, ..PairOptions::default() })?;
        let mut rows = Vec::new();
        for side in Side::BOTH {
            rows.push(stored(&set.rows(side, 0..set.len())?.view()));
            set.rows(side, set.len() / 2..set.len())?;
            assert!(set.rows(side, 0..set.len() + 1).is_err());
        }
        Ok((set.len(), set.dim(), set.group(), rows, outcome(set.scan())))
    });
    accepted += both(|io| {
        let set = CandidateSet::open(&sources, "candidates", "gold", io)?;
        assert_eq!(set.gold().len(), set.prompts() * set.per_prompt());
        assert!(set.gold().iter().all(|score| score.is_finite()));
        Ok((set.dim(), stored(&set.rows(0..set.gold().len())?.view()), set.gold().to_vec()))
    });
    accepted += both(|io| {
        let set = EmbeddingSet::open(&sources, "chosen", io)?;
        Ok((stored(&set.rows(0..set.len())?.view()), outcome(set.scan())))
    });
    accepted
}

/// The stored bytes of every row: compares NaN too.
fn stored(rows: &lensmith::matrix::RowSet<'_>) -> Vec<u8> {
    rows.parts().iter().flat_map(|part| part.values().bytes().to_vec()).collect()
}

/// The value, or the message once it is proved to be one line.
fn outcome<T>(result: lensmith::Result<T>) -> Result<T, String> {
    result.map_err(|error| {
        let message = error.to_string();
        assert!(!message.chars().any(char::is_control) && message.len() < 8000, "{message:?}");
        message
    })
}

/// Reads both ways, demands the same outcome, and counts acceptance.
fn both<T: Debug + PartialEq>(read: impl Fn(Io) -> lensmith::Result<T>) -> usize {
    let mapped = outcome(read(Io::Mmap));
    assert_eq!(mapped, outcome(read(Io::Read)), "memory map and ordinary reads disagree");
    usize::from(mapped.is_ok())
}
