//! `lensmith demo`.

use clap::Args;

use super::args::Common;
use super::console::Console;
use crate::error::Result;

/// Placeholder until the simulation lands
#[derive(Debug, Args)]
pub struct Demo {}

impl Demo {
    pub fn execute(&self, _: &Common, _: &Console) -> Result<()> {
        Ok(())
    }
}
