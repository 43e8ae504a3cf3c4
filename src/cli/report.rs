//! `lensmith report`: the HTML page of a run or a sweep, once more.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::console::Console;
use super::pages::{self, write_page};
use super::run::report::{RUN, Report};
use super::sweep::results::{SWEEP, SweepReport};
use crate::data::is_there;
use crate::error::{Error, Result};
use crate::report::REPORT;

/// The HTML page of a run or a sweep, made again from its JSON
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lensmith report runs/first                          writes runs/first/report.html
  lensmith report sweeps/gamma --out gamma.html

`run`, `sweep` and `demo` write the page themselves; `bench --report FILE` writes one. A page is one
file without scripts that needs no network: tables, charts with their data as CSV, light and dark.")]
pub struct ReportArgs {
    /// Folder of a run or a sweep
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// The page [default: report.html in the folder]
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl ReportArgs {
    pub fn execute(&self, console: &Console) -> Result<()> {
        let out = self.out.clone().unwrap_or_else(|| self.folder.join(REPORT));
        let there = |name: &str| is_there(&self.folder.join(name));
        let page = if there(RUN)? {
            let report = Report::read(&self.folder.join(RUN))?;
            pages::run::page(&report, &report.data_name())
        } else if there(SWEEP)? {
            pages::sweep::page(&SweepReport::read(&self.folder.join(SWEEP))?)
        } else {
            return Err(Error::Format {
                path: self.folder.clone(),
                format: "run or sweep",
                detail: format!("it has neither {RUN} nor {SWEEP}"),
            });
        };
        write_page(&page, &out)?;
        console.result(&json!({ "out": out }), || format!("{}: the report", out.display()));
        Ok(())
    }
}
