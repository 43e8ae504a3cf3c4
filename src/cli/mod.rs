//! The command line, over the library's public items: one file a command, and beside them
//!
//! 1. `args`: options that several commands share; `flags`: the flag of each field that a library error
//!    names.
//! 2. `inputs`, `training`, `writing`: what commands that open pairs, train models or write pairs share.
//! 3. `console` and `table`: results, progress, errors.
//!
//! Flags, their defaults' texts, colours and exit codes are known here only.

mod again;
mod args;
mod bench;
mod best_of_n;
mod console;
mod demo;
mod eval;
mod export;
mod flags;
mod import;
mod inputs;
mod inspect;
mod materialize;
mod merge_manifests;
mod method;
mod pages;
mod report;
mod run;
mod score;
mod select;
mod split;
mod sweep;
mod synth;
mod table;
mod train_reward;
mod train_vae;
mod training;
mod verify;
mod writing;

use std::ffi::OsString;
use std::io::Write;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::error::Result;
pub use crate::memory::Allocator;
use console::Console;

/// Latent-space synthesis of preference pairs: better reward models from few human preferences.
#[derive(Debug, Parser)]
#[command(
    name = "lensmith",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = EXAMPLES
)]
struct Cli {
    #[command(flatten)]
    common: args::Common,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  lensmith demo                                          the whole method on human preferences
  lensmith run pairs.safetensors --seeds 1000 --out r1   the whole method on your embeddings
  lensmith inspect pairs.safetensors                     what is in a file

Exit codes: 0 done, 1 failed, 2 wrong usage. Pairs are safetensors files with tensors `chosen` and
`rejected`, both [n, d], F32, F16 or BF16. A path may be the URL of an object in a store: s3://,
gs:// or az://, with credentials from the environment.";

#[derive(Debug, Subcommand)]
enum Command {
    Import(import::Import),
    Split(split::SplitPairs),
    TrainVae(train_vae::TrainVae),
    Synth(synth::Synth),
    TrainReward(train_reward::TrainReward),
    Score(score::Score),
    Eval(eval::Eval),
    BestOfN(best_of_n::BestOfNArgs),
    Run(run::Run),
    Sweep(sweep::Sweep),
    Report(report::ReportArgs),
    Export(export::Export),
    Inspect(inspect::Inspect),
    Materialize(materialize::Materialize),
    MergeManifests(merge_manifests::MergeManifests),
    Verify(verify::Verify),
    Demo(demo::Demo),
    Bench(bench::Bench),
}

/// Runs the command line `arguments` (the program's name first) and gives the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    crate::data::install_sigbus_guard();
    crate::data::ignore_file_size_signal();
    let arguments: Vec<_> = arguments.into_iter().collect();
    // Looked for before parsing, which may itself fail and must then know how to report it.
    let json = arguments.iter().any(|a| a == "--json");
    if let Some(text) = arguments.iter().find(|text| text.to_str().is_none()) {
        return console::not_utf8(text, json);
    }
    let cli = match method::parse(&arguments, &[]) {
        Ok(cli) => cli,
        // `lensmith` alone shows the help, as `lensmith --help` does. clap does that itself unless
        // LENSMITH_DEVICE is set, which it counts as an argument.
        Err(error) if arguments_are_missing(&error) => {
            // As everywhere, whether anybody can read it makes no difference.
            let _ = write!(std::io::stderr(), "{}", Cli::command().render_help());
            return 2;
        }
        Err(error) => return console::report_usage(&error, json),
    };
    let console = Console::new(&cli.common);
    match execute(&cli, &console, &arguments).and_then(|()| console::lost_output()) {
        Ok(()) => 0,
        Err(error) => {
            console.error(&error);
            console::exit_code(&error)
        }
    }
}

fn arguments_are_missing(error: &clap::Error) -> bool {
    matches!(error.kind(), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand)
}

fn execute(cli: &Cli, console: &Console, arguments: &[OsString]) -> Result<()> {
    let common = &cli.common;
    common.bind_threads()?;
    match &cli.command {
        Command::Import(command) => command.execute(common, console),
        Command::Split(command) => command.execute(common, console),
        Command::TrainVae(command) => command.execute(common, console),
        Command::Synth(command) => command.execute(common, console),
        Command::TrainReward(command) => command.execute(common, console),
        Command::Score(command) => command.execute(common, console),
        Command::Eval(command) => command.execute(common, console),
        Command::BestOfN(command) => command.execute(common, console),
        Command::Run(command) => command.execute(common, console),
        Command::Sweep(command) => command.execute(common, console, arguments),
        Command::Report(command) => command.execute(console),
        Command::Export(command) => command.execute(common, console),
        Command::Inspect(command) => command.execute(common, console),
        Command::Materialize(command) => command.execute(common, console),
        Command::MergeManifests(command) => command.execute(console),
        Command::Verify(command) => command.execute(common, console),
        Command::Demo(command) => command.execute(common, console),
        Command::Bench(command) => command.execute(common, console),
    }
}
