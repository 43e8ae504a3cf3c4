//! Where the fuzz targets write the file that is read.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

/// A folder in memory, where the system has one; of each process its own, so that workers do not collide.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let folder = folder.join(format!("lensmith-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a scratch folder");
    folder
});

/// A file in it.
pub fn file(name: &str) -> PathBuf {
    FOLDER.join(name)
}
