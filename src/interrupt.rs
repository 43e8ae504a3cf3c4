//! A request, from another thread, that the work of an engine stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// A flag that an engine looks at while it works: between the steps of a training and the blocks of everything else.
///
/// Copies share one flag. While it is raised, every operation of the engine ends with [`Error::Interrupted`], within
/// milliseconds and without a result; a folder that was being written keeps its finished shards and can be continued.
///
/// ```
/// # fn main() -> lensmith::Result<()> {
/// let engine = lensmith::Engine::builder().build()?;
/// let interrupt = engine.interrupt();
/// // In another thread, or where a signal is noticed:
/// interrupt.raise();
/// interrupt.clear();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Asks the engine to stop.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Lets the engine work again.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether the engine is asked to stop.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails with [`Error::Interrupted`] while the flag is raised.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_raised() { Err(Error::Interrupted) } else { Ok(()) }
    }
}
