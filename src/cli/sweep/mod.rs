//! `lensmith sweep`: the method over a grid of settings, several splits and arms.
//!
//! 1. `grid`: which flags take which values.
//! 2. `cell`: one arm on one split at one point, known by what it depends on: shared by all points that have it, computed
//!    once, and not again by a sweep that goes on.
//! 3. `results`: a line for each point, arm and split, and what they say.

mod cell;
mod grid;
pub mod results;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cell::{Cell, CellResult, SplitOf, VaeTask};
use clap::Args;
use clap::builder::PossibleValuesParser;
use grid::{Axis, Grid, PAPER_NAMES, Setting};
use results::{Row, SWEEP, SweepReport, summarise, write_results};
use serde_json::{Value, json};

use super::args::{Common, positive};
use super::console::Console;
use super::method::{self, MethodArgs, Settings};
use super::pages::{self, write_page};
use super::run::data::{Data, DataArgs, DataRows};
use super::{Cli, Command};
use crate::backend::DeviceChoice;
use crate::data::{FolderLock, PairSet, ShardFile, create_folder, file_fingerprint, write_atomic};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::report::REPORT;
use crate::synth::Part;

/// The method over a grid of settings, several splits and arms, with paired differences
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith sweep pairs.safetensors --seeds 1000 --fold 8 --paper gamma --out sweeps/gamma
  lensmith sweep pairs.safetensors --grid seeds=100,200,400 --grid mode=plain,residual \\
      --arms matched,plain,residual --splits 10 --out sweeps/seeds
  lensmith sweep pairs.safetensors --seeds 1000 --grid preset=paper,tuned --out sweeps/presets
  lensmith sweep pairs.safetensors --seeds 1000 --fold 8 --paper gamma --part 3/8 --out sweeps/gamma

Any flag of the method, --seeds and --validation-pairs can be an axis: --grid NAME=VALUE,VALUE;
several --grid are swept together, each --paper name by itself. The folder gets results.jsonl, results.csv and results.parquet (a line for
each point, arm and split), sweep.json and report.html. VAEs and arms that several points share are
trained once; a sweep that was killed goes on with what is missing, and another sweep into the same
folder takes what it shares. --part i/N computes a part of the cells, on any machine; once all parts
are there, the same command without it writes the results.")]
pub struct Sweep {
    #[command(flatten)]
    data: DataArgs,
    /// Values of a flag, as in gamma=0,0.1,1; several are swept together
    #[arg(long, value_name = "NAME=VALUES")]
    grid: Vec<String>,
    /// Ablations of the paper: gamma, sigma2, fold, seeds
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = PossibleValuesParser::new(PAPER_NAMES))]
    paper: Vec<String>,
    /// Random splits (and seeds) of every point
    #[arg(long, default_value_t = 3, value_name = "N")]
    splits: usize,
    /// Cells computed at once [default: one a core, or one a GPU]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Part i of N of the cells, i from 0; results are written without it, once all parts are there
    #[arg(long, value_name = "i/N", default_value = "0/1")]
    part: Part,
    /// Sweep folder
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    #[command(flatten)]
    method: MethodArgs,
}

/// Test pairs below which a size of the paper's seeds is left out: their accuracy would be chance.
const FEW_TEST_PAIRS: usize = 10;
/// Flags of the data that can be an axis.
const DATA_AXES: [&str; 2] = ["seeds", "validation-pairs"];

/// A point of a grid on one split, with its cells.
struct Place {
    grid: usize,
    point: Vec<Setting>,
    split: usize,
    seed: u64,
    cells: Vec<usize>,
}

/// Everything that a sweep computes.
#[derive(Default)]
struct Work {
    splits: Vec<SplitOf>,
    vaes: Vec<VaeTask>,
    cells: Vec<(Cell, Value)>,
    places: Vec<Place>,
}

impl Work {
    /// The cells of a part: a stretch of their list, but that cells with one VAE stay together, since each part trains the
    /// VAEs of its cells.
    fn part(&self, part: Part) -> Vec<usize> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut of: HashMap<&str, usize> = HashMap::new();
        for (i, (cell, _)) in self.cells.iter().enumerate() {
            let key = cell.vae.as_ref().map_or(&cell.key, |vae| &vae.key);
            let group = *of.entry(key).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            groups[group].push(i);
        }
        let range = part.of(groups.len() as u64);
        groups[range.start as usize..range.end as usize].concat()
    }
}

impl Sweep {
    pub fn execute(&self, common: &Common, console: &Console, arguments: &[OsString]) -> Result<()> {
        positive("--splits", self.splits)?;
        positive("--workers", self.workers.unwrap_or(1))?;
        let grids = self.grids()?;
        // An axis may be what the data lacks without it, as `seeds`.
        let first = grids[0].points().remove(0);
        let data = at_point(arguments, &first)?.0.data.open(common)?;
        let engines = self.engines(common)?;
        let name = self.name(&data, &engines[0])?;
        let work = self.work(arguments, &grids, &data, &name)?;
        create_folder(&self.out)?;
        if self.part != Part::WHOLE {
            return self.compute_part(console, &engines, &data, &work);
        }
        let _lock = FolderLock::acquire(&self.out, "sweep")?;
        let all: Vec<usize> = (0..work.cells.len()).collect();
        let cells = self.compute(console, &engines, (&data, &data.rows()?), &work, &all)?;

        // Point by point, arm by arm, split by split: the splits of a point stand together and have the same arms.
        let mut rows = Vec::new();
        for places in work.places.chunk_by(|a, b| (a.grid, &a.point) == (b.grid, &b.point)) {
            for arm in 0..places[0].cells.len() {
                rows.extend(places.iter().map(|place| Row {
                    grid: grids[place.grid].name(),
                    point: &place.point,
                    split: place.split,
                    seed: place.seed,
                    cell: &cells[place.cells[arm]],
                }));
            }
        }
        write_results(&self.out, &rows)?;
        let grids = grids.iter().map(|grid| {
            let own: Vec<&Row> = rows.iter().filter(|row| row.grid == grid.name()).collect();
            summarise(grid.name(), &own)
        });
        let report = SweepReport {
            format: 1,
            lensmith: env!("CARGO_PKG_VERSION").into(),
            device: engines[0].info(),
            sources: name,
            settings: json!(self.method.settings(common.seed)?),
            splits: self.splits,
            cells: work.cells.len(),
            grids: grids.collect(),
        };
        let text = serde_json::to_string_pretty(&report).expect("a report is plain data") + "\n";
        write_atomic(&self.out.join(SWEEP), text.as_bytes())?;
        write_page(&pages::sweep::page(&report), &self.out.join(REPORT))?;
        console.result(&report, || report.text(&self.out));
        Ok(())
    }

    fn grids(&self) -> Result<Vec<Grid>> {
        let axes = self.grid.iter().map(|text| Axis::parse(text)).collect::<Result<Vec<_>>>()?;
        let known = method::flags();
        for (i, axis) in axes.iter().enumerate() {
            if !(known.contains(&axis.flag) || DATA_AXES.contains(&axis.flag.as_str())) {
                let expected = format!("a flag of the method, or one of {}", DATA_AXES.join(", "));
                return Err(Error::argument("--grid", expected, &self.grid[i]));
            }
            if axes[..i].iter().any(|other| other.flag == axis.flag) {
                return Err(Error::argument("--grid", "every flag once", &axis.flag));
            }
        }
        let mut grids: Vec<Grid> = (!axes.is_empty()).then_some(Grid { axes }).into_iter().collect();
        for name in &self.paper {
            let grid = Grid::paper(name).expect("the command line takes no other names");
            if grids.iter().any(|other| other.name() == grid.name()) {
                return Err(Error::argument("--paper", "every name once, and no axis of --grid", name));
            }
            grids.push(grid);
        }
        match grids.is_empty() {
            true => Err(Error::argument("--grid", "NAME=VALUES, or --paper with a name", "neither")),
            false => Ok(grids),
        }
    }

    /// An engine for each worker.
    fn engines(&self, common: &Common) -> Result<Vec<Engine>> {
        let open = |device: DeviceChoice, threads: usize| {
            Engine::builder().device(device).threads(threads).precision(common.precision).build()
        };
        let first = common.engine()?;
        let devices = first.devices().len();
        if first.info().name != "cpu" {
            let numbers = 0..self.workers.unwrap_or(devices).max(1);
            return match common.device {
                DeviceChoice::CudaAll => {
                    numbers.map(|i| open(DeviceChoice::Cuda(i % devices), common.threads)).collect()
                }
                device => numbers.map(|_| open(device, common.threads)).collect(),
            };
        }
        let threads = first.info().threads;
        let workers = self.workers.unwrap_or(threads).max(1);
        (0..workers).map(|_| open(DeviceChoice::Cpu, (threads / workers).max(1))).collect()
    }

    /// What names the data in cells: checksums, not places.
    fn name(&self, data: &Data, engine: &Engine) -> Result<Value> {
        let sums = |set: &PairSet| -> Result<Value> {
            let files = set.scan()?.sources;
            Ok(json!(files.iter().map(|file| &file.xxh3).collect::<Vec<_>>()))
        };
        let files = data.candidates.iter().flat_map(|set| ShardFile::paths(set.files()));
        let candidates = files.map(file_fingerprint).collect::<Result<Vec<_>>>()?;
        Ok(json!({
            "arithmetic": engine.arithmetic(),
            "pairs": data.sources.iter().map(|file| &file.xxh3).collect::<Vec<_>>(),
            "validation": data.validation.as_ref().map(sums).transpose()?,
            "test": data.test.as_ref().map(sums).transpose()?,
            "candidates": candidates,
        }))
    }

    /// The cells of all points on all splits, each once.
    fn work(&self, arguments: &[OsString], grids: &[Grid], data: &Data, name: &Value) -> Result<Work> {
        let mut work = Work::default();
        let (mut splits, mut cells, mut vaes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (number, grid) in grids.iter().enumerate() {
            let paper = number >= usize::from(!self.grid.is_empty());
            for point in grid.points() {
                let (own, common) = at_point(arguments, &point)?;
                for split in 0..self.splits {
                    let seed = common.seed.wrapping_add(split as u64);
                    let settings: Settings = own.method.settings(seed)?;
                    // The paper's sizes go beyond most data sets.
                    let may_not_fit = paper && grid.name() == "seeds";
                    let taken = match own.data.split(data, seed) {
                        Err(Error::TooFew { .. }) if may_not_fit => break,
                        taken => taken?,
                    };
                    if may_not_fit && data.test.is_none() && taken.test.len() < FEW_TEST_PAIRS {
                        break;
                    }
                    own.data.check(data, &taken, &settings)?;
                    let groups = data.test_groups(&taken);
                    let taken = SplitOf::new(taken, groups.as_deref());
                    let index = *splits.entry(taken.name.to_string()).or_insert_with(|| {
                        work.splits.push(taken);
                        work.splits.len() - 1
                    });
                    let mut place =
                        Place { grid: number, point: point.clone(), split, seed, cells: Vec::new() };
                    for &arm in &settings.arms {
                        let (cell, depends_on) =
                            Cell::new(arm, &settings, (index, &work.splits[index]), name);
                        if let Some(vae) = &cell.vae {
                            vaes.entry(vae.key.clone()).or_insert_with(|| work.vaes.push(vae.clone()));
                        }
                        place.cells.push(*cells.entry(cell.key.clone()).or_insert_with(|| {
                            work.cells.push((cell, depends_on));
                            work.cells.len() - 1
                        }));
                    }
                    work.places.push(place);
                }
            }
        }
        match work.places.is_empty() {
            true => Err(Error::argument("--paper", "a size that leaves pairs to test on", data.pairs.len())),
            false => Ok(work),
        }
    }

    /// Computes the cells of a part.
    fn compute_part(&self, console: &Console, engines: &[Engine], data: &Data, work: &Work) -> Result<()> {
        let Part { index, count } = self.part;
        let _lock = FolderLock::acquire(&self.out, &format!("sweep-{index}-of-{count}"))?;
        let own = work.part(self.part);
        self.compute(console, engines, (data, &data.rows()?), work, &own)?;
        let (own, all) = (own.len(), work.cells.len());
        let value = json!({ "out": self.out, "part": [index, count], "cells": own, "of": all });
        console.result(&value, || {
            format!(
                "{}, part {index}/{count}: {own} of {all} cells\nonce all {count} parts are there: the same command \
                 without --part",
                self.out.display()
            )
        });
        Ok(())
    }

    /// The results of the cells `wanted`. Computes those that are not there yet: first their VAEs, then the cells.
    fn compute(
        &self,
        console: &Console,
        engines: &[Engine],
        data: (&Data, &DataRows<'_>),
        work: &Work,
        wanted: &[usize],
    ) -> Result<Vec<CellResult>> {
        let out = &self.out;
        let mut results =
            wanted.iter().map(|&i| work.cells[i].0.read(out)).collect::<Result<Vec<Option<CellResult>>>>()?;
        let places: Vec<usize> = (0..wanted.len()).filter(|&at| results[at].is_none()).collect();
        let missing: Vec<usize> = places.iter().map(|&at| wanted[at]).collect();
        let mut vaes = Vec::new();
        for vae in &work.vaes {
            let is_of = |&i: &usize| work.cells[i].0.vae.as_ref().is_some_and(|own| own.key == vae.key);
            if missing.iter().any(is_of) && !vae.is_done(out)? {
                vaes.push(vae);
            }
        }
        let bar = console.bar("sweep", (wanted.len() + vaes.len()) as u64, "models");
        bar.inc((wanted.len() - missing.len()) as u64);
        share(engines, &vaes, |engine, vae| {
            vae.compute(out, engine, data, &work.splits[vae.split])?;
            bar.inc(1);
            Ok(())
        })?;
        let made = share(engines, &missing, |engine, &i| {
            let (cell, depends_on) = &work.cells[i];
            let result = cell.compute(out, engine, data, &work.splits[cell.split], depends_on)?;
            bar.inc(1);
            Ok(result)
        })?;
        bar.finish_and_clear();
        places.into_iter().zip(made).for_each(|(at, result)| results[at] = Some(result));
        Ok(results.into_iter().map(|result| result.expect("computed where it was missing")).collect())
    }
}

/// The sweep's own command with the settings of a point.
fn at_point(arguments: &[OsString], point: &[Setting]) -> Result<(Sweep, Common)> {
    let more: Vec<_> = point.iter().map(|s| (s.flag.clone(), s.value.clone())).collect();
    let text = point.iter().map(|s| format!("{}={}", s.flag, s.value)).collect::<Vec<_>>().join(" ");
    let wrong = |error: clap::Error| {
        let said = error.to_string();
        let first = said.lines().next().unwrap_or_default().trim_start_matches("error: ").to_string();
        Error::argument(
            "--grid",
            "flags of this command with values that they take",
            format!("{text} ({first})"),
        )
    };
    let cli: Cli = method::parse(arguments, &more).map_err(wrong)?;
    match cli.command {
        Command::Sweep(own) => Ok((own, cli.common)),
        _ => unreachable!("a point changes no command"),
    }
}

/// Shares tasks among engines, each with a thread of its own; gives their results in order. The first error ends all.
fn share<T: Sync, R: Send>(
    engines: &[Engine],
    tasks: &[T],
    work: impl Fn(&Engine, &T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let done = Mutex::new(Vec::with_capacity(tasks.len()));
    std::thread::scope(|scope| {
        for engine in engines {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(task) = tasks.get(at) else { break };
                    let result = work(engine, task);
                    stop.fetch_or(result.is_err(), Ordering::Relaxed);
                    done.lock().expect("no thread panics with it").push((at, result));
                }
            });
        }
    });
    // With an error fewer are done, and it is among them.
    let mut done = done.into_inner().expect("no thread panics with it");
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}
