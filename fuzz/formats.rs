//! Readers of everything but shards over files of arbitrary bytes; shared by the fuzz targets and by the tests. Each gives
//! how many readers accepted the file, and panics if one of them does or has more to say than a line.

use std::fs;
use std::path::Path;

use lensmith::convert::{ColumnSource, ImportJob, ImportLayout, column_names, import};
use lensmith::data::{Checkpoint, Io, Manifest, file_fingerprint};
use lensmith::model::{RewardModel, Vae};
use lensmith::synth::{Moved, Recipe};

fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("the scratch file can be written");
}

/// 1 if a reader accepted the file; its message is proved to be one line.
fn accepted<T>(result: lensmith::Result<T>) -> usize {
    match result {
        Ok(_) => 1,
        Err(error) => {
            let message = error.to_string();
            assert!(!message.contains('\n') && message.len() < 8000, "{message:?}");
            0
        }
    }
}

/// Manifests and recipes.
pub fn documents(path: &Path, bytes: &[u8]) -> usize {
    put(path, bytes);
    let manifest = Manifest::read(path);
    if let Ok(manifest) = &manifest {
        let again = manifest.to_bytes(path).expect("what was read can be written");
        put(path, &again);
        assert_eq!(Manifest::read(path).ok().as_ref(), Some(manifest));
        put(path, bytes);
    }
    let recipe = Recipe::read(path);
    if let Ok(recipe) = &recipe {
        recipe.options().plan(recipe.plan.seeds as usize).expect("a recipe that was read is in range");
        accepted(recipe.open(path, Io::Read, &Moved::default()));
    }
    accepted(manifest) + accepted(recipe)
}

/// Models.
pub fn checkpoints(path: &Path, bytes: &[u8]) -> usize {
    put(path, bytes);
    accepted(file_fingerprint(path)) - 1 + accepted(Vae::load(path)) + accepted(RewardModel::load(path))
}

/// npy, npz, Arrow and Parquet, as the name of `path` tells: every column as embeddings.
pub fn columns(path: &Path, bytes: &[u8]) -> usize {
    put(path, bytes);
    let files = vec![path.to_str().expect("a scratch path is UTF-8").to_string()];
    let names = column_names(&files, None);
    let mut found = names.as_ref().map_or(Vec::new(), |names| names.iter().take(4).cloned().collect());
    accepted(names);
    if found.is_empty() {
        found.push(String::new());
    }
    let out = path.with_extension("out");
    let import_column = |(i, name): (usize, String)| {
        let embeddings = ColumnSource { files: files.clone(), format: None, name };
        let io = if i % 2 == 0 { Io::Mmap } else { Io::Read };
        let layout = ImportLayout::Embeddings { embeddings };
        let job = ImportJob { layout, out: out.clone(), dtype: None, shard_rows: None, overwrite: true, io };
        accepted(import(&job, &mut |_, _| {}))
    };
    let taken = found.into_iter().enumerate().map(import_column).sum();
    let _ = fs::remove_dir_all(&out);
    taken
}
