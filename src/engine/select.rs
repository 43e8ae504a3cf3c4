//! Rejection sampling by a reward model.

use super::Engine;
use crate::data::{ResponseSet, RowSource};
use crate::error::{Error, Result};
use crate::eval::{SelectForm, SelectOptions, SelectSummary, Selected, Selection};
use crate::model::RewardModel;

impl Engine {
    /// Of the responses to each prompt those that `model` ranks first, within the limits of `options`, handed to `sink` as
    /// rows to train on, in the order of the prompts. Row p N + i of `candidates` is response i to prompt p, of
    /// [`ResponseSet::per_prompt`] = N; `responses` were paired with them. Rewards are those of [`Engine::score`], with an
    /// ensemble those of [`Engine::score_with_spread`], all of which are in memory: 8 bytes a response.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for options out of range or uncertainty of a model of one head; [`Error::Shape`] where
    /// sizes do not fit, and for texts without a prompt as messages; [`Error::TooFew`] if no prompt is within the limits, after which nothing was handed out;
    /// [`Error::Changed`] for files that changed; what `sink` returns.
    pub fn select(
        &self,
        model: &RewardModel,
        candidates: &dyn RowSource,
        responses: &ResponseSet,
        options: &SelectOptions,
        sink: &mut dyn FnMut(&Selected) -> Result<()>,
    ) -> Result<SelectSummary> {
        options.check(model.size().heads)?;
        let (rows, per_prompt) = (candidates.rows(), responses.per_prompt());
        if rows != responses.prompts() * per_prompt {
            let expected = format!("{rows}, as of candidates");
            return Err(Error::shape("responses", expected, responses.prompts() * per_prompt));
        }
        if options.form == SelectForm::Messages {
            responses.require_turns()?;
        }
        let (mut rewards, mut uncertainty) = (Vec::with_capacity(rows), Vec::new());
        if model.size().heads > 1 {
            self.score_with_spread(model, candidates, &mut |mean, deviation| {
                rewards.extend_from_slice(mean);
                uncertainty.extend_from_slice(deviation);
                Ok(())
            })?;
        } else {
            self.score(model, candidates, &mut |mean| {
                rewards.extend_from_slice(mean);
                Ok(())
            })?;
        }
        let mut selection = Selection::new(options);
        for (prompt, row) in responses.rows()?.enumerate() {
            let of = prompt * per_prompt..(prompt + 1) * per_prompt;
            if let Some(taken) = selection.take(&row?, &rewards[of.clone()], uncertainty.get(of)) {
                sink(&taken)?;
            }
        }
        selection.finish()
    }
}
