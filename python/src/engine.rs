//! An opened device, and how its work is waited for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use lensmith::{DeviceChoice, Precision};
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{json, panicked, raise, with_kind};

/// How often a signal is looked for while work is waited for.
const POLL: Duration = Duration::from_millis(20);
/// Bytes to be made or read from which on work takes long.
const LARGE: u64 = 64 << 20;

/// A device with the whole method on it.
///
/// It may be used from several threads, and after a fork: a CPU engine starts threads of its own in the new process. A GPU
/// cannot be used after a fork.
#[pyclass(frozen, module = "lensmith._lensmith")]
pub struct Engine {
    device: DeviceChoice,
    threads: usize,
    precision: Precision,
    state: Mutex<State>,
}

enum State {
    Open { process: u32, engine: Arc<Opened> },
    Closed,
}

/// An engine of this process with the threads that copy and check rows around its work.
pub struct Opened {
    pub engine: lensmith::Engine,
    /// Whether its own threads do all its work.
    on_cpu: bool,
    pool: ThreadPool,
}

#[pymethods]
impl Engine {
    /// Opens a device: "auto", "cpu", "cuda", "cuda:N", "cuda:all" or "reference"; `threads` of the host, 0 for one a core;
    /// `precision` "f32" or "bf16".
    #[new]
    #[pyo3(signature = (device = "auto", threads = 0, precision = "f32"))]
    fn new(py: Python<'_>, device: &str, threads: usize, precision: &str) -> PyResult<Engine> {
        let device: DeviceChoice = device.parse().map_err(raise)?;
        let precision: Precision = precision.parse().map_err(raise)?;
        let engine = py.detach(|| open(device, threads, precision))?;
        let state = Mutex::new(State::Open { process: std::process::id(), engine });
        Ok(Engine { device, threads, precision, state })
    }

    /// What the device is: name, detail, threads; as JSON, one for each device.
    fn devices(&self) -> PyResult<String> {
        Ok(json(&self.get()?.engine.devices()))
    }

    /// The arithmetic that bits of results depend on.
    fn arithmetic(&self) -> PyResult<&'static str> {
        Ok(self.get()?.engine.arithmetic())
    }

    /// Ends its threads; what is made with it afterwards is an error.
    fn close(&self) {
        *self.lock() = State::Closed;
    }

    /// Device, threads and precision as they were asked for.
    fn asked(&self) -> (String, usize, String) {
        (self.device.to_string(), self.threads, self.precision.to_string())
    }
}

fn open(device: DeviceChoice, threads: usize, precision: Precision) -> PyResult<Arc<Opened>> {
    let builder = lensmith::Engine::builder().device(device).threads(threads).precision(precision);
    let engine = builder.sigbus_guard(true).build().map_err(raise)?;
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| with_kind("Device", error.to_string()))?;
    let on_cpu = engine.info().name == "cpu";
    Ok(Arc::new(Opened { engine, on_cpu, pool }))
}

impl Engine {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The engine of this process.
    pub fn get(&self) -> PyResult<Arc<Opened>> {
        let mut state = self.lock();
        match &*state {
            State::Closed => {
                Err(with_kind("Closed", "the engine is closed: open another, lensmith.Engine()".into()))
            }
            State::Open { process, engine } if *process == std::process::id() => Ok(engine.clone()),
            State::Open { engine, .. } => {
                let found = engine.engine.info().name;
                let device = match self.device {
                    DeviceChoice::Auto => DeviceChoice::Cpu,
                    asked => asked,
                };
                if found.starts_with("cuda") {
                    let message = format!(
                        "device {found}: a GPU that was opened before a fork cannot be used in the new process; start \
                         workers with \"spawn\", or open an engine in each"
                    );
                    return Err(with_kind("Fork", message));
                }
                let opened = open(device, self.threads, self.precision)?;
                let new = State::Open { process: std::process::id(), engine: opened.clone() };
                // The threads of the old engine are in the parent: nothing here can end them.
                std::mem::forget(std::mem::replace(&mut *state, new));
                Ok(opened)
            }
        }
    }
}

impl Opened {
    /// The number of the GPU that it works on, if it does on one.
    pub fn gpu(&self) -> Option<usize> {
        self.engine.info().name.strip_prefix("cuda:")?.parse().ok()
    }

    /// Does work that takes long, with the interpreter free for other threads. A signal, such as Ctrl-C, ends it and is
    /// raised; `failed` is an exception of a callback, which comes before the error that it caused.
    pub fn work<T: Send>(
        &self,
        py: Python<'_>,
        failed: &Mutex<Option<PyErr>>,
        work: impl FnOnce(&lensmith::Engine) -> lensmith::Result<T> + Send,
    ) -> PyResult<T> {
        let interrupt = self.engine.interrupt();
        let (result, signal) = py.detach(|| {
            thread::scope(|scope| {
                let (done, waiting) = sync_channel::<()>(1);
                let worker = scope.spawn(move || {
                    let result = catch_unwind(AssertUnwindSafe(|| self.pool.install(|| work(&self.engine))));
                    drop(done);
                    result
                });
                let mut signal = None;
                while let Err(RecvTimeoutError::Timeout) = waiting.recv_timeout(POLL) {
                    if signal.is_none()
                        && let Err(error) = Python::attach(|py| py.check_signals())
                    {
                        interrupt.raise();
                        signal = Some(error);
                    }
                }
                (worker.join().unwrap_or_else(Err), signal)
            })
        });
        let failed = failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if signal.is_some() || failed.is_some() {
            interrupt.clear();
        }
        if let Some(error) = signal.or(failed) {
            return Err(error);
        }
        result.map_err(panicked)?.map_err(raise)
    }

    /// The same without callbacks.
    pub fn run<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&lensmith::Engine) -> lensmith::Result<T> + Send,
    ) -> PyResult<T> {
        self.work(py, &Mutex::new(None), work)
    }

    /// Does work that takes milliseconds, while nothing looks for signals.
    pub fn soon<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&lensmith::Engine) -> lensmith::Result<T> + Send,
    ) -> PyResult<T> {
        let engine = &self.engine;
        // Operations of the engine run on its own threads: on these nothing changes threads again.
        let done = || match self.on_cpu {
            true => engine.install(|| work(engine)),
            false => self.pool.install(|| work(engine)),
        };
        py.detach(|| catch_unwind(AssertUnwindSafe(done))).map_err(panicked)?.map_err(raise)
    }

    /// One or the other, by the bytes that are made or read.
    pub fn sized<T: Send>(
        &self,
        py: Python<'_>,
        bytes: u64,
        work: impl FnOnce(&lensmith::Engine) -> lensmith::Result<T> + Send,
    ) -> PyResult<T> {
        if bytes > LARGE { self.run(py, work) } else { self.soon(py, work) }
    }

    /// Calls a Python function from a thread at work. An exception asks the work to stop and is kept in `failed`.
    pub fn call(&self, failed: &Mutex<Option<PyErr>>, call: impl FnOnce(Python<'_>) -> PyResult<()>) {
        if let Err(error) = Python::attach(call) {
            failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(error);
            self.engine.interrupt().raise();
        }
    }
}
