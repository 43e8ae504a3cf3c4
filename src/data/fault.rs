//! Where tests kill a process, have the disk fail, or write down what is done: at every change of a file or folder.
//!
//! `LENSMITH_FAULT=kill:12` ends the process before its thirteenth change as SIGKILL would, `LENSMITH_FAULT=fail:12` has
//! that change fail as on a full disk, `LENSMITH_FAULT=log:FILE` appends a line for each change. Only programs with the
//! feature `internals` look at it, which the tests have and users have not.

use std::io;

/// Makes a change. `what` describes it once it is made: a verb, the folder, names or the number of the file.
#[cfg(feature = "internals")]
pub fn change<T>(make: impl FnOnce() -> io::Result<T>, what: impl FnOnce(&T) -> String) -> io::Result<T> {
    use std::io::Write;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    static PLAN: OnceLock<Option<(String, String)>> = OnceLock::new();
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let plan = PLAN.get_or_init(|| {
        let plan = std::env::var("LENSMITH_FAULT").ok()?;
        plan.split_once(':').map(|(what, at)| (what.to_string(), at.to_string()))
    });
    let now = COUNT.fetch_add(1, Ordering::Relaxed).to_string();
    match plan.as_ref().map(|(what, at)| (what.as_str(), at)) {
        // No destructor runs and nothing is written, as with SIGKILL.
        Some(("kill", at)) if *at == now => std::process::abort(),
        Some(("fail", at)) if *at == now => Err(io::ErrorKind::StorageFull.into()),
        Some(("log", file)) => {
            let made = make()?;
            let mut log = std::fs::File::options().create(true).append(true).open(file)?;
            writeln!(log, "{}", what(&made)).map(|()| made)
        }
        _ => make(),
    }
}

#[cfg(not(feature = "internals"))]
pub fn change<T>(make: impl FnOnce() -> io::Result<T>, _: impl FnOnce(&T) -> String) -> io::Result<T> {
    make()
}

/// The number of an open file, for descriptions.
pub fn number(file: &std::fs::File) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.metadata().map_or(0, |meta| meta.ino())
}
