//! Rejection sampling: of the responses to each prompt the one that a reward model ranks first, as a row to train on, or
//! first and last as a preference pair.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::{ResponseRow, Talk};
use crate::error::{Error, Result};

/// What a row of the output holds; the names are those of TRL's data sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SelectForm {
    /// `prompt` and `completion` for supervised fine-tuning; of responses without a prompt `text` or `messages`.
    #[default]
    Sft,
    /// `messages`: prompt and response as one conversation.
    Messages,
    /// `prompt`, `chosen` and `rejected` for direct preference optimisation.
    Dpo,
}

/// Which responses are taken. Rewards of different prompts do not compare, so a least reward leaves out prompts as well as
/// poor responses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SelectOptions {
    /// What a row holds.
    pub form: SelectForm,
    /// Least reward of the response that is taken, less the penalty.
    pub min_reward: Option<f64>,
    /// Least difference of its reward to that of the last response, both less the penalty.
    pub min_margin: Option<f64>,
    /// Most uncertainty of a response: the standard deviation of its rewards over an ensemble's heads.
    pub max_uncertainty: Option<f64>,
    /// So many of these standard deviations are subtracted from a reward before responses are ranked.
    pub uncertainty_penalty: f64,
    /// Least length of a response.
    pub min_length: u64,
    /// Most length of a response.
    pub max_length: Option<u64>,
}

impl Default for SelectOptions {
    /// No limits, but no empty response either.
    fn default() -> SelectOptions {
        SelectOptions {
            form: SelectForm::Sft,
            min_reward: None,
            min_margin: None,
            max_uncertainty: None,
            uncertainty_penalty: 0.0,
            min_length: 1,
            max_length: None,
        }
    }
}

impl SelectOptions {
    /// Fails with [`Error::InvalidArgument`] where a number is out of range, or for uncertainty of a model with one of
    /// `heads`.
    pub fn check(&self, heads: usize) -> Result<()> {
        let finite = |field, value: Option<f64>| match value {
            Some(found) if !found.is_finite() => Err(Error::argument(field, "a finite number", found)),
            _ => Ok(()),
        };
        let positive = |field, value: Option<f64>| match value {
            Some(found) if !(0.0..f64::INFINITY).contains(&found) => {
                Err(Error::argument(field, "a finite number, 0 or more", found))
            }
            Some(found) if heads < 2 => {
                let found = format!("{found} with a model of one head, which has no uncertainty");
                Err(Error::argument(field, "none, or an ensemble", found))
            }
            _ => Ok(()),
        };
        finite("min_reward", self.min_reward)?;
        match self.min_margin {
            Some(found) if !(0.0..f64::INFINITY).contains(&found) => {
                return Err(Error::argument("min_margin", "a finite number, 0 or more", found));
            }
            _ => {}
        }
        positive("max_uncertainty", self.max_uncertainty)?;
        positive("uncertainty_penalty", Some(self.uncertainty_penalty).filter(|&penalty| penalty != 0.0))?;
        match self.max_length {
            Some(most) if most < self.min_length => Err(Error::argument(
                "max_length",
                format!("{} or more, the least length", self.min_length),
                most,
            )),
            _ => Ok(()),
        }
    }
}

/// The text of a row of the output.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum SelectedText {
    /// A response behind its prompt.
    Completion { prompt: Talk, completion: Talk },
    /// A text without a prompt.
    Text { text: Talk },
    /// A conversation.
    Messages { messages: Vec<Value> },
    /// A preference pair.
    Pair {
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt: Option<Talk>,
        chosen: Talk,
        rejected: Talk,
    },
}

/// The reward of a response. `uncertainty` is there with an ensemble alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum SelectedFigures {
    /// Of the one response.
    One {
        /// Its number among the responses to its prompt, from 0.
        candidate: usize,
        reward: f32,
        #[serde(skip_serializing_if = "Option::is_none")]
        uncertainty: Option<f32>,
    },
    /// Of both.
    Two {
        candidate_chosen: usize,
        candidate_rejected: usize,
        reward_chosen: f32,
        reward_rejected: f32,
        #[serde(skip_serializing_if = "Option::is_none")]
        uncertainty_chosen: Option<f32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        uncertainty_rejected: Option<f32>,
    },
}

/// A row of the output: text, the number of the row that it was taken from, and rewards.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Selected {
    /// What is trained on.
    #[serde(flatten)]
    pub text: SelectedText,
    /// Number of the row of the input, from 0.
    pub row: u64,
    /// Rewards.
    #[serde(flatten)]
    pub figures: SelectedFigures,
}

/// Prompts that gave no row, by the first limit that left none of their responses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// No response of the lengths that are wanted.
    pub length: u64,
    /// None of these of as little uncertainty.
    pub uncertainty: u64,
    /// The first of these with too low a reward.
    pub reward: u64,
    /// Its reward too close to that of the last, or equal to it in a preference pair.
    pub margin: u64,
    /// All of these the same text, where a preference pair or a margin needs two.
    pub same: u64,
}

/// What was selected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelectSummary {
    /// What a row holds.
    pub form: SelectForm,
    /// Prompts there were.
    pub prompts: u64,
    /// Rows, one for each of the prompts that are not left out.
    pub selected: u64,
    /// Prompts left out.
    pub left_out: LeftOut,
    /// Mean reward of the responses taken; of pairs, of the chosen ones.
    pub reward: f64,
    /// Mean reward of all responses: of one taken at random.
    pub random: f64,
}

/// A selection in progress, which rows are added to.
#[derive(Debug)]
pub struct Selection<'a> {
    options: &'a SelectOptions,
    left_out: LeftOut,
    prompts: u64,
    selected: u64,
    reward: f64,
    all: f64,
    responses: u64,
}

impl<'a> Selection<'a> {
    /// A selection without rows.
    pub fn new(options: &'a SelectOptions) -> Selection<'a> {
        let left_out = LeftOut::default();
        Selection { options, left_out, prompts: 0, selected: 0, reward: 0.0, all: 0.0, responses: 0 }
    }

    /// What is taken of a prompt's responses, with a reward and perhaps an uncertainty each; None where the limits leave
    /// nothing. Of equal rewards the lower number ranks higher.
    ///
    /// # Panics
    /// If there is not one reward per response.
    pub fn take(
        &mut self,
        row: &ResponseRow,
        rewards: &[f32],
        uncertainty: Option<&[f32]>,
    ) -> Option<Selected> {
        assert_eq!(rewards.len(), row.responses.len(), "one reward per response");
        self.prompts += 1;
        self.responses += rewards.len() as u64;
        self.all += rewards.iter().map(|&reward| f64::from(reward)).sum::<f64>();
        let count = match self.choose(row, rewards, uncertainty) {
            Ok((first, last)) => {
                let text = text(self.options.form, row, first, last);
                self.selected += 1;
                self.reward += f64::from(rewards[first]);
                let figures = figures(self.options.form, first, last, rewards, uncertainty);
                return Some(Selected { text, row: row.row, figures });
            }
            Err(count) => count,
        };
        *count(&mut self.left_out) += 1;
        None
    }

    /// The first response and the last one that is another text, within the limits; else the count of what left none.
    fn choose(
        &self,
        row: &ResponseRow,
        rewards: &[f32],
        uncertainty: Option<&[f32]>,
    ) -> Result<(usize, usize), Count> {
        let options = self.options;
        // Numbers are compared as they are written, in F32, so that a limit may be copied from the output.
        let deviation = |i: usize| uncertainty.map_or(0.0, |all| all[i]);
        let less = |i: usize| options.uncertainty_penalty * f64::from(deviation(i));
        let value = |i: usize| (f64::from(rewards[i]) - less(i)) as f32;
        let lengths = options.min_length..=options.max_length.unwrap_or(u64::MAX);
        let mut within: Vec<usize> =
            (0..rewards.len()).filter(|&i| lengths.contains(&row.lengths[i])).collect();
        if within.is_empty() {
            return Err(|left| &mut left.length);
        }
        within.retain(|&i| options.max_uncertainty.is_none_or(|most| deviation(i) <= most as f32));
        // Adding 0 makes -0 equal to 0.
        within.sort_by(|&a, &b| (value(b) + 0.0).total_cmp(&(value(a) + 0.0)));
        let Some(&first) = within.first() else { return Err(|left| &mut left.uncertainty) };
        if options.min_reward.is_some_and(|least| value(first) < least as f32) {
            return Err(|left| &mut left.reward);
        }
        let pair = options.form == SelectForm::Dpo;
        let last = within.iter().rev().find(|&&i| row.responses[i] != row.responses[first]);
        let Some(&last) = last else {
            return if pair || options.min_margin.is_some() {
                Err(|left| &mut left.same)
            } else {
                Ok((first, first))
            };
        };
        let margin = value(first) - value(last);
        if options.min_margin.is_some_and(|least| margin < least as f32) || (pair && margin <= 0.0) {
            return Err(|left| &mut left.margin);
        }
        Ok((first, last))
    }

    /// What came of it.
    ///
    /// # Errors
    /// [`Error::TooFew`] if no prompt gave a row; it says why.
    pub fn finish(self) -> Result<SelectSummary> {
        let left = self.left_out;
        if self.selected == 0 {
            let reasons = left.reasons();
            let what = format!("prompts that pass, of {} ({reasons})", self.prompts);
            return Err(Error::TooFew { what, needed: 1, found: 0 });
        }
        Ok(SelectSummary {
            form: self.options.form,
            prompts: self.prompts,
            selected: self.selected,
            left_out: left,
            reward: self.reward / self.selected as f64,
            random: self.all / self.responses as f64,
        })
    }
}

/// One of the counts.
type Count = fn(&mut LeftOut) -> &mut u64;

impl LeftOut {
    /// The counts that are not 0, as "3 by length, 1 by margin".
    pub fn reasons(&self) -> String {
        let counts = [
            (self.length, "length"),
            (self.uncertainty, "uncertainty"),
            (self.reward, "reward"),
            (self.margin, "margin"),
            (self.same, "having one text only"),
        ];
        let shown =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, by)| format!("{count} by {by}"));
        shown.collect::<Vec<_>>().join(", ")
    }
}

/// The text of a row: prompt and response as texts where both are, else as messages.
fn text(form: SelectForm, row: &ResponseRow, first: usize, last: usize) -> SelectedText {
    let (chosen, rejected) = (&row.responses[first], &row.responses[last]);
    let plain = |talk: &Talk| matches!(talk, Talk::Text(_));
    let texts = row.prompt.as_ref().is_none_or(plain) && plain(chosen) && plain(rejected);
    let said = |talk: &Talk, role| if texts { talk.clone() } else { Talk::Messages(talk.turns(role)) };
    let prompt = row.prompt.as_ref().map(|prompt| said(prompt, "user"));
    let response = |talk| said(talk, "assistant");
    match (form, prompt) {
        (SelectForm::Dpo, prompt) => {
            SelectedText::Pair { prompt, chosen: response(chosen), rejected: response(rejected) }
        }
        (SelectForm::Messages, prompt) => {
            let before = prompt.map_or(Vec::new(), |prompt| prompt.turns("user"));
            SelectedText::Messages { messages: [before, chosen.turns("assistant")].concat() }
        }
        (SelectForm::Sft, Some(prompt)) => SelectedText::Completion { prompt, completion: response(chosen) },
        (SelectForm::Sft, None) => match response(chosen) {
            Talk::Messages(messages) => SelectedText::Messages { messages },
            text => SelectedText::Text { text },
        },
    }
}

fn figures(
    form: SelectForm,
    first: usize,
    last: usize,
    rewards: &[f32],
    uncertainty: Option<&[f32]>,
) -> SelectedFigures {
    let of = |i: usize| uncertainty.map(|all| all[i]);
    match form {
        SelectForm::Dpo => SelectedFigures::Two {
            candidate_chosen: first,
            candidate_rejected: last,
            reward_chosen: rewards[first],
            reward_rejected: rewards[last],
            uncertainty_chosen: of(first),
            uncertainty_rejected: of(last),
        },
        _ => SelectedFigures::One { candidate: first, reward: rewards[first], uncertainty: of(first) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(texts: &[&str]) -> ResponseRow {
        ResponseRow {
            row: 7,
            prompt: Some(Talk::Text("p".into())),
            responses: texts.iter().map(|text| Talk::Text(text.to_string())).collect(),
            lengths: texts.iter().map(|text| text.len() as u64).collect(),
        }
    }

    /// Number of the response taken and of the last, or why there is none.
    fn chosen(
        options: SelectOptions,
        rewards: &[f32],
        uncertainty: Option<&[f32]>,
    ) -> Result<(usize, usize), LeftOut> {
        let mut left = LeftOut::default();
        let selection = Selection::new(&options);
        selection.choose(&row(&["a", "bb", "ccc", "a"]), rewards, uncertainty).map_err(|count| {
            *count(&mut left) += 1;
            left
        })
    }

    const REWARDS: [f32; 4] = [0.5, 2.0, 2.0, -1.0];
    const UNCERTAINTY: [f32; 4] = [0.1, 1.0, 0.4, 0.2];

    #[test]
    fn limits_apply_one_after_the_other() {
        let d = SelectOptions::default;
        assert_eq!(chosen(d(), &REWARDS, None), Ok((1, 3)));
        assert_eq!(chosen(SelectOptions { max_length: Some(1), ..d() }, &REWARDS, None), Ok((0, 0)));
        assert_eq!(chosen(SelectOptions { min_length: 3, ..d() }, &REWARDS, None), Ok((2, 2)));
        let by = |options, uncertainty: Option<&[f32]>| chosen(options, &REWARDS, uncertainty).unwrap_err();
        let of = LeftOut::default;
        assert_eq!(by(SelectOptions { min_length: 4, ..d() }, None), LeftOut { length: 1, ..of() });
        assert_eq!(by(SelectOptions { min_reward: Some(2.5), ..d() }, None), LeftOut { reward: 1, ..of() });
        assert_eq!(by(SelectOptions { min_margin: Some(3.5), ..d() }, None), LeftOut { margin: 1, ..of() });
        let short = SelectOptions { max_length: Some(1), ..d() };
        assert_eq!(
            by(SelectOptions { min_margin: Some(0.0), ..short.clone() }, None),
            LeftOut { same: 1, ..of() }
        );
        assert_eq!(by(SelectOptions { form: SelectForm::Dpo, ..short }, None), LeftOut { same: 1, ..of() });

        let sure = SelectOptions { max_uncertainty: Some(0.4), ..d() };
        assert_eq!(chosen(sure, &REWARDS, Some(&UNCERTAINTY)), Ok((2, 3)));
        let surer = SelectOptions { max_uncertainty: Some(0.05), ..d() };
        assert_eq!(by(surer, Some(&UNCERTAINTY)), LeftOut { uncertainty: 1, ..of() });
        let careful = SelectOptions { uncertainty_penalty: 4.0, ..d() };
        // 0.1, -2, 0.4, -1.8
        assert_eq!(chosen(careful, &REWARDS, Some(&UNCERTAINTY)), Ok((2, 1)));
    }

    #[test]
    fn equal_rewards_are_no_pair_and_both_zeros_are_equal() {
        let dpo = || SelectOptions { form: SelectForm::Dpo, ..SelectOptions::default() };
        let margin = LeftOut { margin: 1, ..LeftOut::default() };
        assert_eq!(chosen(dpo(), &[-0.0, 0.0, 0.0, -0.0], None), Err(margin));
        assert_eq!(chosen(SelectOptions::default(), &[-0.0, 0.0, 0.0, -0.0], None), Ok((0, 2)));
        // The last is another text than the first.
        assert_eq!(chosen(dpo(), &[3.0, 2.0, 1.0, 0.0], None), Ok((0, 2)));
    }

    #[test]
    fn rows_are_those_of_trl() {
        let json = |options: &SelectOptions, row: &ResponseRow| {
            let mut selection = Selection::new(options);
            let taken = selection.take(row, &[0.1, 2.0], Some(&[0.5, 0.25])).expect("a row");
            assert_eq!(selection.finish().expect("a row").reward, 2.0);
            serde_json::to_string(&taken).expect("JSON")
        };
        let with = |form| SelectOptions { form, ..SelectOptions::default() };
        let (sft, messages, dpo) = (with(SelectForm::Sft), with(SelectForm::Messages), with(SelectForm::Dpo));
        let plain = row(&["x", "y"]);
        let figures = "\"row\":7,\"candidate\":1,\"reward\":2.0,\"uncertainty\":0.25}";
        assert_eq!(json(&sft, &plain), format!("{{\"prompt\":\"p\",\"completion\":\"y\",{figures}"));
        let user = "{\"content\":\"p\",\"role\":\"user\"}";
        let said = |text| format!("{{\"content\":\"{text}\",\"role\":\"assistant\"}}");
        assert_eq!(json(&messages, &plain), format!("{{\"messages\":[{user},{}],{figures}", said("y")));
        let both = "\"row\":7,\"candidate_chosen\":1,\"candidate_rejected\":0,\"reward_chosen\":2.0,\
                    \"reward_rejected\":0.1,\"uncertainty_chosen\":0.25,\"uncertainty_rejected\":0.5}";
        let pair = "{\"prompt\":\"p\",\"chosen\":\"y\",\"rejected\":\"x\",";
        assert_eq!(json(&dpo, &plain), format!("{pair}{both}"));
        // A text beside messages becomes a turn.
        let talk = |prompt: Option<Talk>| ResponseRow {
            responses: plain.responses.iter().map(|text| Talk::Messages(text.turns("assistant"))).collect(),
            prompt,
            ..plain.clone()
        };
        let chat = talk(plain.prompt.clone());
        let want = format!("{{\"prompt\":[{user}],\"completion\":[{}],{figures}", said("y"));
        assert_eq!(json(&sft, &chat), want);
        // Without a prompt.
        let want = format!("{{\"messages\":[{}],{figures}", said("y"));
        assert_eq!(json(&sft, &talk(None)), want);
        let alone = ResponseRow { prompt: None, ..plain.clone() };
        assert_eq!(json(&sft, &alone), format!("{{\"text\":\"y\",{figures}"));
        assert_eq!(json(&dpo, &alone), format!("{{\"chosen\":\"y\",\"rejected\":\"x\",{both}"));
    }

    #[test]
    fn nothing_selected_is_an_error_that_says_why() {
        let options = SelectOptions { min_reward: Some(9.0), ..SelectOptions::default() };
        let mut selection = Selection::new(&options);
        for _ in 0..3 {
            assert_eq!(selection.take(&row(&["x", "y"]), &[0.0, 1.0], None), None);
        }
        let error = selection.finish().unwrap_err().to_string();
        assert_eq!(error, "prompts that pass, of 3 (3 by reward): 0, at least 1 needed");
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let d = SelectOptions::default;
        let field = |options: SelectOptions, heads| match options.check(heads) {
            Err(Error::InvalidArgument { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(SelectOptions { min_reward: Some(f64::NAN), ..d() }, 3), "min_reward");
        assert_eq!(field(SelectOptions { min_margin: Some(-1.0), ..d() }, 3), "min_margin");
        assert_eq!(
            field(SelectOptions { max_uncertainty: Some(f64::INFINITY), ..d() }, 3),
            "max_uncertainty"
        );
        assert_eq!(field(SelectOptions { max_uncertainty: Some(1.0), ..d() }, 1), "max_uncertainty");
        assert_eq!(field(SelectOptions { uncertainty_penalty: f64::NAN, ..d() }, 3), "uncertainty_penalty");
        assert_eq!(field(SelectOptions { uncertainty_penalty: 1.0, ..d() }, 1), "uncertainty_penalty");
        assert_eq!(field(SelectOptions { min_length: 5, max_length: Some(4), ..d() }, 1), "max_length");
        let all = SelectOptions {
            min_reward: Some(-1.0),
            min_margin: Some(0.0),
            max_uncertainty: Some(0.0),
            uncertainty_penalty: 2.0,
            max_length: Some(1),
            ..d()
        };
        assert!(all.check(2).is_ok() && d().check(1).is_ok());
    }
}
