//! Output. Results go to standard output; progress, warnings of the library and errors go to standard error.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::error::ContextKind;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::again;
use super::args::Common;
use super::flags::{flag_of, with_flags};
use super::table::count;
use crate::data::is_folder;
use crate::error::{Error, Result};

/// Version of the layout of JSON results that state none of their own.
const FORMAT: u32 = 1;

/// Where a command's output goes, and in which form.
#[derive(Debug)]
pub struct Console {
    json: bool,
    bars: bool,
    quiet: bool,
}

impl Console {
    /// Bars only on a terminal; neither bars nor warnings with `--json` or `--quiet`.
    pub fn new(common: &Common) -> Console {
        let silent = common.json || common.quiet;
        SILENT.store(silent, Ordering::Relaxed);
        // Fails where there is a subscriber already: in a program that calls the command as a function, or in
        // a second call. Either is fine.
        let _ = tracing::subscriber::set_global_default(Warnings);
        let bars = std::io::stderr().is_terminal() && !silent;
        Console { json: common.json, bars, quiet: common.quiet }
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    /// A command's result: one JSON object with the version of its layout (docs/json.md), or text for people.
    pub fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) {
        print_line(&if self.json {
            let mut value = serde_json::to_value(value).expect("results are plain data");
            if let Some(object) = value.as_object_mut() {
                object.entry("format").or_insert(FORMAT.into());
            }
            value.to_string()
        } else {
            text()
        });
    }

    /// A progress bar over `length` steps of `unit`; hidden unless standard error is a terminal.
    pub fn bar(&self, what: &str, length: u64, unit: &str) -> ProgressBar {
        if !self.bars {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
        let template = format!(
            "{{prefix:24}} {{wide_bar}} {{human_pos}}/{{human_len}} {unit}  {{rate}}/s  {{eta}}  {{msg}}"
        );
        let style = ProgressStyle::with_template(&template).expect("the template is well formed");
        let rate = |state: &ProgressState, to: &mut dyn fmt::Write| {
            let per_second = state.per_sec();
            let _ = if per_second < 100.0 {
                write!(to, "{per_second:.1}")
            } else {
                write!(to, "{}", count(per_second as u64))
            };
        };
        bar.set_style(style.with_key("rate", rate).progress_chars("━╸ "));
        bar.set_prefix(what.to_string());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    /// Progress of a long command where no bar shows it: a line on standard error, JSON with `--json`.
    pub fn event(&self, value: impl FnOnce() -> serde_json::Value, text: impl FnOnce() -> String) {
        if self.quiet {
            return;
        }
        if self.json {
            say(&value().to_string());
        } else if !self.bars {
            say(&format!("lensmith: {}", text()));
        }
    }

    /// An error on one line; with `--json` also as an object on standard output.
    pub fn error(&self, error: &Error) {
        report(self.json, &one_line(&message(error)), "", exit_code(error));
    }

    /// A warning on one line.
    pub fn warning(&self, text: &str) {
        if !self.json && !self.quiet {
            say(&format!("lensmith: {}", one_line(text)));
        }
    }
}

/// The exit code for an error: 2 for wrong usage, 1 for everything else.
pub fn exit_code(error: &Error) -> u8 {
    match error {
        Error::InvalidArgument { .. } => 2,
        _ => 1,
    }
}

/// The message of an error. The library names the field that is out of range; here it becomes a flag.
fn message(error: &Error) -> String {
    match error {
        Error::InvalidArgument { field, expected, found } => {
            let flags: Vec<&str> = field.split(' ').map(|word| flag_of(word).unwrap_or(word)).collect();
            let field = flags.join(" ");
            let option = if field.starts_with('-') { "option " } else { "" };
            format!("{option}{field}: expected {expected}, found {found}")
        }
        Error::Incomplete { path, hint, parts, .. } if !parts.is_empty() => {
            let folder = if is_folder(path).unwrap_or(false) { path } else { path.parent().unwrap_or(path) };
            error.to_string().replace(hint, &again::hint(folder, parts))
        }
        Error::Exists { hint, .. } | Error::Incomplete { hint, .. } => {
            error.to_string().replace(hint, &with_flags(hint))
        }
        Error::Diverged { hint, .. } => error.to_string().replace(hint, &with_flags(hint)),
        Error::Device { .. } => with_flags(&error.to_string()),
        other => other.to_string(),
    }
}

/// Prints the library's warnings on standard error, one line each. A subscriber of the whole process, since
/// warnings also come from worker threads.
struct Warnings;

/// Whether warnings are left out; not a field of [`Warnings`], which stays as it was first installed.
static SILENT: AtomicBool = AtomicBool::new(false);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::WARN)
    }

    fn event(&self, event: &Event<'_>) {
        if !SILENT.load(Ordering::Relaxed) {
            event.record(&mut PrintMessage);
        }
    }

    // No spans are enabled; these are never called.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Prints the field `message` of an event, which holds its text.
struct PrintMessage;

impl Visit for PrintMessage {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            say(&format!("lensmith: {}", one_line(&with_flags(&format!("{value:?}")))));
        }
    }
}

/// The first error of standard output but that of a reader that has gone away (`| head`).
static LOST: OnceLock<io::Error> = OnceLock::new();

/// Prints a result. What cannot be printed is told by [`lost_output`].
pub fn print_line(text: &str) {
    match writeln!(io::stdout(), "{}", printable(text)) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => drop(LOST.set(error)),
        _ => {}
    }
}

/// Fails if a result could not be printed.
pub fn lost_output() -> Result<()> {
    // A last error comes when what the system has not taken yet is flushed.
    if let Err(error) = io::stdout().flush()
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        let _ = LOST.set(error);
    }
    match LOST.get() {
        None => Ok(()),
        Some(error) => Err(Error::io("write", "standard output")(error.kind().into())),
    }
}

/// A line on standard error. Whether anybody can read it makes no difference to the work.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(text));
}

/// Text without control characters, which names from elsewhere may hold and terminals obey.
fn printable(text: &str) -> String {
    let shown =
        |c: char| if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

fn one_line(text: &str) -> String {
    text.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Reports an error of one line and what follows it; with `json` also as an object on standard output. Gives the exit code.
fn report(json: bool, message: &str, more: &str, exit_code: u8) -> u8 {
    if json {
        print_line(&json!({ "format": FORMAT, "error": message, "exit_code": exit_code }).to_string());
    }
    say(&format!("lensmith: {message}{more}"));
    exit_code
}

/// Reports an argument that is no text, as usage errors are; gives the exit code.
pub fn not_utf8(argument: &OsStr, json: bool) -> u8 {
    let message =
        format!("{argument:?} is not UTF-8: paths become part of manifests and recipes, which are text");
    report(json, &message, "", 2)
}

/// Prints help or a usage error (its first paragraph, on one line; with `json` as an object as well) and
/// gives the exit code.
pub fn report_usage(error: &clap::Error, json: bool) -> u8 {
    if !error.use_stderr() {
        let _ = error.print();
        return 0;
    }
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let message = one_line(first.trim_start_matches("error: "));
    let similar = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue];
    let more = match similar.into_iter().find_map(|kind| error.get(kind)) {
        Some(similar) => format!("; similar: {similar} (--help explains)"),
        None => " (--help explains)".into(),
    };
    report(json, &message, &more, 2)
}
