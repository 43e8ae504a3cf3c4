//! What people and machines see: results on standard output, progress and errors on standard error.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span;

use super::args::Common;
use super::table::count;
use crate::error::Error;

/// How a command speaks.
#[derive(Debug)]
pub struct Console {
    json: bool,
    bars: bool,
    quiet: bool,
}

impl Console {
    /// Bars only on a terminal; neither bars nor notes with `--json` or `--quiet`.
    pub fn new(common: &Common) -> Console {
        let silent = common.json || common.quiet;
        if !silent {
            // Fails only where a program that embeds the command has a subscriber of its own.
            let _ = tracing::subscriber::set_global_default(Notes);
        }
        let bars = std::io::stderr().is_terminal() && !common.json && !common.quiet;
        Console { json: common.json, bars, quiet: common.quiet }
    }

    /// Whether results are JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// A command's result: one JSON object, or text for people.
    pub fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) {
        let text =
            if self.json { serde_json::to_string(value).expect("results are plain data") } else { text() };
        print_line(&text);
    }

    /// A progress bar over `length` steps of `unit`; hidden where nobody looks.
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

    /// How a long command gets on, where no bar shows it: a line on standard error, JSON with `--json`.
    pub fn event(&self, value: impl FnOnce() -> serde_json::Value, text: impl FnOnce() -> String) {
        if self.quiet {
            return;
        }
        if self.json {
            eprintln!("{}", value());
        } else if !self.bars {
            eprintln!("lensmith: {}", text());
        }
    }

    /// An error on one line; with `--json` also as an object on standard output.
    pub fn error(&self, error: &Error) {
        if self.json {
            print_line(&json!({ "error": error.to_string(), "exit_code": error.exit_code() }).to_string());
        }
        eprintln!("lensmith: {}", one_line(&error.to_string()));
    }
}

/// Prints the library's warnings on standard error, one line each.
struct Notes;

impl tracing::Subscriber for Notes {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with(env!("CARGO_CRATE_NAME")) && *metadata.level() <= tracing::Level::WARN
    }

    fn event(&self, event: &tracing::Event<'_>) {
        struct Message(String);
        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        eprintln!("lensmith: {}", one_line(&message.0));
    }

    // The library has no spans.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// Prints a line; a reader that has gone away (`| head`) is no error.
pub fn print_line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn one_line(text: &str) -> String {
    text.split('\n').map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Prints help or a usage error (its first paragraph, on one line; with `json` as an object as well) and gives the
/// exit code.
pub fn report_usage(error: &clap::Error, json: bool) -> u8 {
    if !error.use_stderr() {
        let _ = error.print();
        return 0;
    }
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let message = one_line(first.trim_start_matches("error: "));
    if json {
        print_line(&json!({ "error": message, "exit_code": 2 }).to_string());
    }
    eprintln!("lensmith: {message} (--help explains)");
    2
}
