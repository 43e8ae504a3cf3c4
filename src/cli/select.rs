//! Options of `best-of-n` that write the responses which a reward model ranks first.

use std::path::{Path, PathBuf};

use clap::Args;

use super::args::Named;
use super::console::Console;
use super::table::count;
use crate::data::{
    CandidateSet, LineFile, ResponseColumns, ResponseSet, ShardFile, require_absent, require_apart,
};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::eval::{SelectForm, SelectOptions, SelectSummary};
use crate::model::RewardModel;

/// Responses to write.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Selection")]
pub struct SelectArgs {
    /// Write the responses that the model ranks first, as JSON lines
    #[arg(long, value_name = "FILE", requires = "texts")]
    pub select: Option<PathBuf>,
    /// Their texts: JSON lines with `prompt` and `responses`, in the order of the sets
    #[arg(long, value_name = "FILE", requires = "select")]
    texts: Option<PathBuf>,
    /// What a line holds: sft (prompt, completion), messages, or dpo (prompt, chosen, rejected)
    #[arg(long, default_value_t = Named(SelectForm::Sft), value_name = "FORM", requires = "select")]
    form: Named<SelectForm>,
    /// Least reward of the response that is taken
    #[arg(long, allow_negative_numbers = true, value_name = "X", requires = "select")]
    min_reward: Option<f64>,
    /// Least difference between its reward and that of the last response
    #[arg(long, allow_negative_numbers = true, value_name = "X", requires = "select")]
    min_margin: Option<f64>,
    /// Most uncertainty of a response: the standard deviation of its rewards over an ensemble's heads
    #[arg(long, allow_negative_numbers = true, value_name = "X", requires = "select")]
    max_uncertainty: Option<f64>,
    /// Subtract so many of these deviations from every reward before ranking
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.0, value_name = "X", requires = "select")]
    uncertainty_penalty: f64,
    /// Least length of a response, in characters or as --lengths has it
    #[arg(long, default_value_t = SelectOptions::default().min_length, value_name = "N", requires = "select")]
    min_length: u64,
    /// Most length of a response
    #[arg(long, value_name = "N", requires = "select")]
    max_length: Option<u64>,
    /// Column of the prompts [default: prompt, where the first line has it]
    #[arg(long, value_name = "NAME", requires = "select")]
    prompt: Option<String>,
    /// Responses are whole conversations: leave a column `prompt` aside
    #[arg(long, requires = "select", conflicts_with = "prompt")]
    no_prompt: bool,
    /// Column of the responses
    #[arg(
        long,
        default_value_t = ResponseColumns::default().responses,
        value_name = "NAME",
        requires = "select"
    )]
    responses: String,
    /// Column with the lengths of responses, such as their tokens
    #[arg(long, value_name = "NAME", requires = "select")]
    lengths: Option<String>,
    /// Replace the output if it exists
    #[arg(long, requires = "select")]
    overwrite: bool,
}

impl SelectArgs {
    /// Fails before any work if the output is in the way.
    pub fn check(&self) -> Result<()> {
        match self.select.as_ref().filter(|_| !self.overwrite) {
            Some(out) => require_absent(out, "--overwrite replaces it"),
            None => Ok(()),
        }
    }

    fn columns(&self) -> ResponseColumns {
        let prompt = self.prompt.clone().or(ResponseColumns::default().prompt).filter(|_| !self.no_prompt);
        ResponseColumns { prompt, responses: self.responses.clone(), lengths: self.lengths.clone() }
    }

    fn options(&self) -> SelectOptions {
        SelectOptions {
            form: self.form.0,
            min_reward: self.min_reward,
            min_margin: self.min_margin,
            max_uncertainty: self.max_uncertainty,
            uncertainty_penalty: self.uncertainty_penalty,
            min_length: self.min_length,
            max_length: self.max_length,
        }
    }

    /// The texts that `set` was made of; None without --select.
    pub fn responses(&self, set: &CandidateSet, model: (&Path, &RewardModel)) -> Result<Option<ResponseSet>> {
        let (Some(out), Some(texts)) = (&self.select, &self.texts) else { return Ok(None) };
        self.options().check(model.1.size().heads)?;
        let mut inputs = ShardFile::paths(set.files());
        inputs.extend([model.0, texts]);
        require_apart([out], &inputs).map_err(|error| match error {
            Error::InvalidArgument { expected, found, .. } => Error::argument("--select", expected, found),
            other => other,
        })?;
        let mut responses = ResponseSet::open(texts, &self.columns())?;
        responses.pair_with(set.prompts(), set.per_prompt(), set.made_of())?;
        Ok(Some(responses))
    }

    /// Writes the selected responses.
    pub fn write(
        &self,
        engine: &Engine,
        model: &RewardModel,
        set: &CandidateSet,
        responses: &ResponseSet,
        console: &Console,
    ) -> Result<SelectSummary> {
        let out = self.select.as_deref().unwrap_or(Path::new(""));
        let mut file = LineFile::create(out)?;
        let bar = console.bar("select", set.prompts() as u64, "prompts");
        let summary = engine.select(model, set, responses, &self.options(), &mut |taken| {
            bar.set_position(taken.row);
            file.line(&serde_json::to_string(taken).expect("rows are plain data"))
        })?;
        set.require_unchanged()?;
        file.finish()?;
        bar.finish_and_clear();
        Ok(summary)
    }

    /// What was written, for people.
    pub fn text(&self, summary: &SelectSummary) -> String {
        let out = self.select.as_deref().unwrap_or(Path::new("")).display();
        let (selected, prompts) = (count(summary.selected), count(summary.prompts));
        let left = match summary.left_out.reasons() {
            reasons if reasons.is_empty() => String::new(),
            reasons => format!("; left out: {reasons}"),
        };
        format!(
            "{out}: {selected} of {prompts} prompts{left}\nreward {:.4} of those taken, {:.4} at random",
            summary.reward, summary.random
        )
    }
}

/// Opens best-of-N sets; where responses are selected, they need no gold scores.
pub fn open_sets(
    sources: &[String],
    candidates: &str,
    gold: Option<&str>,
    select: bool,
    io: crate::data::Io,
) -> Result<(CandidateSet, bool)> {
    match CandidateSet::open(sources, candidates, gold.unwrap_or("gold"), io) {
        Err(Error::MissingTensor { tensor, .. }) if select && gold.is_none() && tensor == "gold" => {
            CandidateSet::without_gold(sources, candidates, io).map(|set| (set, false))
        }
        opened => opened.map(|set| (set, true)),
    }
}
