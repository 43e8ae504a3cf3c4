//! Where tests kill a process, or have the disk fail: before every change of a file or folder.
//!
//! `LENSMITH_FAULT=kill:12` ends the process before its thirteenth change as SIGKILL would, `LENSMITH_FAULT=fail:12` has
//! that change fail as on a full disk. Only programs with the feature `internals` look at it, which the tests have and
//! users have not.

use std::io;

/// Called before a change.
#[cfg(feature = "internals")]
pub fn point() -> io::Result<()> {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    static PLAN: OnceLock<Option<(String, usize)>> = OnceLock::new();
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let plan = PLAN.get_or_init(|| {
        let plan = std::env::var("LENSMITH_FAULT").ok()?;
        let (what, at) = plan.split_once(':')?;
        Some((what.to_string(), at.parse().ok()?))
    });
    match plan {
        Some((what, at)) if COUNT.fetch_add(1, Ordering::Relaxed) == *at => match what.as_str() {
            // No destructor runs and nothing is written, as with SIGKILL.
            "kill" => std::process::abort(),
            _ => Err(io::ErrorKind::StorageFull.into()),
        },
        _ => Ok(()),
    }
}

#[cfg(not(feature = "internals"))]
pub fn point() -> io::Result<()> {
    Ok(())
}
