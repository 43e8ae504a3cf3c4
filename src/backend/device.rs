//! The choice of a device at run time.

use std::fmt;
use std::str::FromStr;

use super::cpu::Cpu;
use super::cuda::Cuda;
use super::reference::Reference;
use super::{Backend, DeviceInfo, Precision};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;

/// What `--device` may name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The fastest device there is.
    #[default]
    Auto,
    /// The CPU backend.
    Cpu,
    /// A GPU, by number in the driver's order.
    Cuda(usize),
    /// Every GPU that the driver lists: shards of pairs are spread over them, all else is done on the first.
    CudaAll,
    /// The F64 oracle.
    Reference,
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeviceChoice> {
        // Digits alone: the standard parser would take a sign too.
        let number = |digits: &str| {
            digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u16>().ok()).flatten()
        };
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            "cuda:all" => Ok(DeviceChoice::CudaAll),
            "reference" => Ok(DeviceChoice::Reference),
            _ => match text.strip_prefix("cuda:").and_then(number) {
                Some(index) => Ok(DeviceChoice::Cuda(index.into())),
                None => {
                    Err(Error::argument("device", "auto, cpu, cuda, cuda:N, cuda:all or reference", text))
                }
            },
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.pad("auto"),
            DeviceChoice::Cpu => f.pad("cpu"),
            DeviceChoice::Cuda(index) => f.pad(&format!("cuda:{index}")),
            DeviceChoice::CudaAll => f.pad("cuda:all"),
            DeviceChoice::Reference => f.pad("reference"),
        }
    }
}

/// An opened device, or several of one kind.
#[derive(Debug)]
pub enum AnyBackend {
    /// The CPU backend.
    Cpu(Cpu),
    /// The CUDA backend on each GPU; there is a first.
    Cuda(Vec<Cuda>),
    /// The F64 oracle.
    Reference(Reference),
}

/// Runs `$body` with `$all` bound to the concrete backends, a slice of one or more.
macro_rules! dispatch_all {
    ($any:expr, $all:ident => $body:expr) => {
        match $any {
            $crate::backend::AnyBackend::Cpu(one) => {
                let $all = std::slice::from_ref(one);
                $body
            }
            $crate::backend::AnyBackend::Cuda(gpus) => {
                let $all = gpus.as_slice();
                $body
            }
            $crate::backend::AnyBackend::Reference(one) => {
                let $all = std::slice::from_ref(one);
                $body
            }
        }
    };
}
pub(crate) use dispatch_all;

/// Runs `$body` with `$b` bound to the concrete backend, of several the first.
macro_rules! dispatch {
    ($any:expr, $b:ident => $body:expr) => {
        $crate::backend::device::dispatch_all!($any, all => {
            let $b = &all[0];
            $body
        })
    };
}
pub(crate) use dispatch;

impl AnyBackend {
    /// Opens a device; `threads` of the CPU, 0 meaning one per core. [`DeviceChoice::Auto`] takes the first
    /// GPU, and where there is none to use the CPU, with a line in the log that says why.
    /// [`DeviceChoice::CudaAll`] takes them all.
    ///
    /// # Errors
    /// [`Error::Device`] with what is missing; [`Error::InvalidArgument`] for a precision that the device has not.
    pub fn open(choice: DeviceChoice, threads: usize, precision: Precision) -> Result<AnyBackend> {
        if precision != Precision::F32 && choice == DeviceChoice::Reference {
            return Err(Error::argument("precision", "f32 on the reference device", precision));
        }
        match choice {
            DeviceChoice::Auto => match Cuda::open(0, precision) {
                Ok(cuda) => Ok(AnyBackend::Cuda(vec![cuda])),
                Err(error) => {
                    match error {
                        Error::Device { reason, .. } => tracing::warn!("computing on the CPU: {reason}"),
                        other => tracing::warn!("computing on the CPU: {other}"),
                    }
                    Cpu::new(threads, precision).map(AnyBackend::Cpu)
                }
            },
            DeviceChoice::Cpu => Cpu::new(threads, precision).map(AnyBackend::Cpu),
            DeviceChoice::Cuda(index) => Cuda::open(index, precision).map(|one| AnyBackend::Cuda(vec![one])),
            DeviceChoice::CudaAll => Cuda::open_all(precision).map(AnyBackend::Cuda),
            DeviceChoice::Reference => Ok(AnyBackend::Reference(Reference::new())),
        }
    }

    /// The flag that stops the work of all devices.
    pub fn interrupt(&self) -> &Interrupt {
        dispatch!(self, b => b.interrupt())
    }

    /// Does work on a thread of the CPU backend, for other devices on this one.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self {
            AnyBackend::Cpu(cpu) => cpu.install(work),
            AnyBackend::Cuda(_) | AnyBackend::Reference(_) => work(),
        }
    }

    /// What the device is; of several, the first.
    pub fn info(&self) -> DeviceInfo {
        dispatch!(self, b => b.info())
    }

    /// The arithmetic that bits of results depend on.
    pub fn arithmetic(&self) -> &'static str {
        dispatch!(self, b => b.arithmetic())
    }

    /// What each device is.
    pub fn infos(&self) -> Vec<DeviceInfo> {
        dispatch_all!(self, all => all.iter().map(Backend::info).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda:0", DeviceChoice::Cuda(0)),
            ("cuda:13", DeviceChoice::Cuda(13)),
            ("cuda:all", DeviceChoice::CudaAll),
            ("reference", DeviceChoice::Reference),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
    }

    #[test]
    fn other_names_are_wrong_usage() {
        let wrong = [
            "",
            "gpu",
            "Cuda",
            "cuda:",
            "cuda: 1",
            "cuda:+1",
            "cuda:-1",
            "cuda:1.0",
            "cuda:99999",
            "cuda:All",
        ];
        for text in wrong {
            let error = text.parse::<DeviceChoice>().unwrap_err();
            assert!(matches!(error, Error::InvalidArgument { .. }), "{text}");
            assert!(error.to_string().contains("cuda:N"), "{error}");
        }
    }
}
