//! What the devices are like, and what is to fail: a line of `key=value`, divided by commas.

use std::path::PathBuf;
use std::str::FromStr;

use ptx::{Copies, Order};

/// When queued work runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// When somebody waits for it, and no more than that.
    Late,
    /// When it is asked for.
    Early,
    /// A part of it at any call, drawn from a seed; the rest when somebody waits.
    Random(u64),
}

/// A function that is to fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its name.
    pub function: String,
    /// The code that it returns.
    pub code: i32,
    /// Which of its calls on the device fails, from 1; all if none is named.
    pub call: Option<u64>,
    /// The device; all if none is named.
    pub device: Option<usize>,
}

/// Settings of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `count`: devices alike.
    pub count: usize,
    /// `name`.
    pub name: String,
    /// `capability`, as in 9.0.
    pub capability: (i32, i32),
    /// `release`: the CUDA release that the driver knows, as in 13.0.
    pub release: (i32, i32),
    /// `memory`: bytes of the device.
    pub memory: usize,
    /// `shared`: bytes of shared memory that a block may opt into.
    pub shared: u32,
    /// `processors`.
    pub processors: i32,
    /// `occupancy`: blocks of a multiprocessor; by shared memory and threads if not given.
    pub occupancy: Option<i32>,
    /// `cooperative`: whether there are launches whose blocks are all there at once.
    pub cooperative: bool,
    /// `kernels`: a folder with folders of PTX files by architecture, as in `sm_80`.
    pub kernels: Option<PathBuf>,
    /// `races`: 1 to look for races.
    pub races: bool,
    /// `order`: turns of warps and blocks: any, forward, backward, random:SEED.
    pub order: Order,
    /// `copies`: when `cp.async` lands: late, early.
    pub copies: Copies,
    /// `seed` of approximate instructions.
    pub seed: u64,
    /// `steps`: instructions that a warp may execute in a launch.
    pub steps: u64,
    /// `queue`: late, early, random:SEED.
    pub queue: Queue,
    /// `staged`: most bytes that a copy to the host may have into memory that the program had allocated as pinned;
    /// larger ones must go to registered memory.
    pub staged: usize,
    /// `unwritten`: 1 to let the host copy bytes that nothing wrote.
    pub unwritten: bool,
    /// `fail`: FUNCTION:CODE, of the call @N, of the device #N, divided by semicolons.
    pub fail: Vec<Failure>,
    /// `crash_kernel`: a launch of it ends the process.
    pub crash_kernel: Option<String>,
    /// `crash_where` and `hang_where`, VARIABLE:VALUE;VALUE: the first call ends the process, or never returns, where
    /// the variable has one of the values.
    pub crash_where: Option<(String, Vec<String>)>,
    /// See `crash_where`.
    pub hang_where: Option<(String, Vec<String>)>,
    /// `counters`: a file to which each launch adds a line of JSON.
    pub counters: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            count: 1,
            name: "Imaginary GPU".into(),
            capability: (9, 0),
            release: (13, 0),
            memory: 24 << 30,
            shared: 227 << 10,
            processors: 2,
            occupancy: None,
            cooperative: true,
            kernels: None,
            races: true,
            order: Order::Any,
            copies: Copies::Late,
            seed: 0,
            steps: 1 << 32,
            queue: Queue::Late,
            staged: usize::MAX,
            unwritten: false,
            fail: Vec::new(),
            crash_kernel: None,
            crash_where: None,
            hang_where: None,
            counters: None,
        }
    }
}

fn number<T: FromStr>(key: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{key}: expected a number, found `{value}`"))
}

fn flag(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(format!("{key}: expected 0 or 1, found `{value}`")),
    }
}

fn pair(key: &str, value: &str) -> Result<(i32, i32), String> {
    let (major, minor) =
        value.split_once('.').ok_or_else(|| format!("{key}: expected MAJOR.MINOR, found `{value}`"))?;
    Ok((number(key, major)?, number(key, minor)?))
}

fn failure(text: &str) -> Result<Failure, String> {
    let (function, rest) =
        text.split_once(':').ok_or_else(|| format!("fail: expected FUNCTION:CODE, found `{text}`"))?;
    let (rest, device) = match rest.split_once('#') {
        Some((rest, device)) => (rest, Some(number("fail", device)?)),
        None => (rest, None),
    };
    let (code, call) = match rest.split_once('@') {
        Some((code, call)) => (code, Some(number("fail", call)?)),
        None => (rest, None),
    };
    Ok(Failure { function: function.into(), code: number("fail", code)?, call, device })
}

fn place(key: &str, value: &str) -> Result<Option<(String, Vec<String>)>, String> {
    let (variable, values) =
        value.split_once(':').ok_or_else(|| format!("{key}: expected VARIABLE:VALUE, found `{value}`"))?;
    Ok(Some((variable.into(), values.split(';').map(str::to_string).collect())))
}

impl FromStr for Settings {
    type Err = String;

    fn from_str(text: &str) -> Result<Settings, String> {
        let mut out = Settings::default();
        for setting in text.split(',').filter(|s| !s.is_empty()) {
            let (key, value) =
                setting.split_once('=').ok_or_else(|| format!("expected KEY=VALUE, found `{setting}`"))?;
            match key {
                "count" => out.count = number(key, value)?,
                "name" => out.name = value.into(),
                "capability" => out.capability = pair(key, value)?,
                "release" => out.release = pair(key, value)?,
                "memory" => out.memory = number(key, value)?,
                "shared" => out.shared = number(key, value)?,
                "processors" => out.processors = number(key, value)?,
                "occupancy" => out.occupancy = Some(number(key, value)?),
                "cooperative" => out.cooperative = flag(key, value)?,
                "kernels" => out.kernels = Some(value.into()),
                "races" => out.races = flag(key, value)?,
                "order" => {
                    out.order = match value.split_once(':') {
                        None if value == "any" => Order::Any,
                        None if value == "forward" => Order::Forward,
                        None if value == "backward" => Order::Backward,
                        Some(("random", seed)) => Order::Random(number(key, seed)?),
                        _ => {
                            return Err(format!(
                                "order: expected any, forward, backward or random:SEED, found `{value}`"
                            ));
                        }
                    }
                }
                "copies" => {
                    out.copies = match value {
                        "late" => Copies::Late,
                        "early" => Copies::Early,
                        _ => return Err(format!("copies: expected late or early, found `{value}`")),
                    }
                }
                "seed" => out.seed = number(key, value)?,
                "steps" => out.steps = number(key, value)?,
                "queue" => {
                    out.queue = match value.split_once(':') {
                        None if value == "late" => Queue::Late,
                        None if value == "early" => Queue::Early,
                        Some(("random", seed)) => Queue::Random(number(key, seed)?),
                        _ => {
                            return Err(format!(
                                "queue: expected late, early or random:SEED, found `{value}`"
                            ));
                        }
                    }
                }
                "staged" => out.staged = number(key, value)?,
                "unwritten" => out.unwritten = flag(key, value)?,
                "fail" => out.fail = value.split(';').map(failure).collect::<Result<_, _>>()?,
                "crash_kernel" => out.crash_kernel = Some(value.into()),
                "crash_where" => out.crash_where = place(key, value)?,
                "hang_where" => out.hang_where = place(key, value)?,
                "counters" => out.counters = Some(value.into()),
                _ => return Err(format!("unknown setting `{key}`")),
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read() {
        let text = "count=2,capability=7.5,order=random:3,queue=random:4,fail=cuInit:100;cuMemAlloc_v2:2@3#1,kernels=/k,\
                    copies=early,crash_where=STAGE:a;b";
        let read: Settings = text.parse().expect("settings");
        assert_eq!((read.count, read.capability), (2, (7, 5)));
        assert_eq!(
            (read.order, read.copies, read.queue),
            (Order::Random(3), Copies::Early, Queue::Random(4))
        );
        let failure =
            |function: &str, code, call, device| Failure { function: function.into(), code, call, device };
        assert_eq!(
            read.fail,
            [failure("cuInit", 100, None, None), failure("cuMemAlloc_v2", 2, Some(3), Some(1))]
        );
        assert_eq!(read.crash_where, Some(("STAGE".into(), vec!["a".into(), "b".into()])));
        assert_eq!("".parse(), Ok(Settings::default()));
    }

    #[test]
    fn what_is_no_setting_is_named() {
        for (text, word) in [
            ("colour=red", "unknown setting `colour`"),
            ("count", "KEY=VALUE"),
            ("count=many", "a number"),
            ("races=yes", "0 or 1"),
            ("order=up", "forward"),
            ("queue=never", "late"),
            ("copies=lost", "early"),
            ("capability=9", "MAJOR.MINOR"),
            ("fail=cuInit", "FUNCTION:CODE"),
        ] {
            let said = text.parse::<Settings>().expect_err(text);
            assert!(said.contains(word), "{said}");
        }
    }
}
