//! The choice of a device at run time.

use std::fmt;
use std::str::FromStr;

use super::cpu::Cpu;
use super::reference::Reference;
use super::{Backend, DeviceInfo};
use crate::error::{Error, Result};

/// What `--device` may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The fastest device there is.
    Auto,
    /// The CPU backend.
    Cpu,
    /// The F64 oracle.
    Reference,
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeviceChoice> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "reference" => Ok(DeviceChoice::Reference),
            _ => Err(Error::option("--device", "auto, cpu or reference", text)),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DeviceChoice::Auto => "auto",
            DeviceChoice::Cpu => "cpu",
            DeviceChoice::Reference => "reference",
        })
    }
}

/// An opened device.
#[derive(Debug)]
pub enum AnyBackend {
    /// The CPU backend.
    Cpu(Cpu),
    /// The F64 oracle.
    Reference(Reference),
}

/// Runs `$body` with `$b` bound to the concrete backend.
macro_rules! dispatch {
    ($any:expr, $b:ident => $body:expr) => {
        match $any {
            $crate::backend::AnyBackend::Cpu($b) => $body,
            $crate::backend::AnyBackend::Reference($b) => $body,
        }
    };
}
pub(crate) use dispatch;

impl AnyBackend {
    /// Opens a device; `threads` 0 means one per core.
    pub fn open(choice: DeviceChoice, threads: usize) -> Result<AnyBackend> {
        match choice {
            DeviceChoice::Auto | DeviceChoice::Cpu => Cpu::new(threads).map(AnyBackend::Cpu),
            DeviceChoice::Reference => Ok(AnyBackend::Reference(Reference::new())),
        }
    }

    /// What the device is.
    pub fn info(&self) -> DeviceInfo {
        dispatch!(self, b => b.info())
    }
}
