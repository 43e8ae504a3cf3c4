//! From several responses with rewards to preference pairs: which two meet, and which of them is preferred.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::noise::{Purpose, Stream, math};

/// How pairs are made of a prompt's responses. Draws are keyed by the seed and the number of the
/// prompt, so that they are the same on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Annotation {
    /// The response of the highest reward against that of the lowest; with several pairs per prompt then the second
    /// highest against the second lowest, and so on. Of equal rewards the first response ranks higher. Two responses
    /// of equal reward make no pair, and no further pair of the prompt is made.
    BestWorst,
    /// Two responses drawn evenly, without drawing the same two again; the higher reward is preferred. Two of equal
    /// reward are drawn again.
    RandomPair,
    /// Two responses drawn evenly, without drawing the same two again; the first of them, a, is preferred to b with
    /// probability 1 / (1 + exp(r_b - r_a)): the model of Bradley and Terry as an annotator with noise.
    BradleyTerry,
    /// Every two responses of different reward; the higher is preferred.
    AllPairs,
}

impl Annotation {
    const ALL: [Annotation; 4] =
        [Annotation::BestWorst, Annotation::RandomPair, Annotation::BradleyTerry, Annotation::AllPairs];

    /// Most pairs that a prompt of `responses` responses can give.
    pub fn most_pairs(self, responses: u32) -> u64 {
        match self {
            Annotation::BestWorst => u64::from(responses / 2),
            _ => all_pairs(responses),
        }
    }

    /// The pairs (preferred, other) of prompt number `prompt`, at most `count` of them, in the order they are drawn;
    /// `rewards` are finite.
    pub(super) fn pairs(self, seed: u64, prompt: u64, rewards: &[f64], count: u64) -> Vec<(u32, u32)> {
        let responses = rewards.len() as u32;
        let reward = |response: u32| rewards[response as usize];
        let ordered = |a: u32, b: u32| if reward(a) >= reward(b) { (a, b) } else { (b, a) };
        let draw = |seed| Draw {
            stream: Stream::new(seed, Purpose::Annotation, prompt),
            left: all_pairs(responses),
            moved: HashMap::new(),
        };
        match self {
            Annotation::BestWorst => {
                let mut ranked: Vec<u32> = (0..responses).collect();
                // Stable, so that of equal rewards the first response ranks higher.
                ranked.sort_by(|&a, &b| reward(b).total_cmp(&reward(a)));
                let pairs = (0..ranked.len() / 2).map(|i| (ranked[i], ranked[ranked.len() - 1 - i]));
                pairs.take_while(|&(a, b)| reward(a) > reward(b)).take(count as usize).collect()
            }
            Annotation::RandomPair => {
                let mut draw = draw(seed);
                let drawn = std::iter::from_fn(|| draw.next()).map(pair_at);
                drawn
                    .filter(|&(a, b)| reward(a) != reward(b))
                    .map(|(a, b)| ordered(a, b))
                    .take(count as usize)
                    .collect()
            }
            Annotation::BradleyTerry => {
                let mut draw = draw(seed);
                let mut pairs = Vec::new();
                while (pairs.len() as u64) < count
                    && let Some(index) = draw.next()
                {
                    let (a, b) = pair_at(index);
                    // In F32 with the crate's own exp: the same label on every machine.
                    let probability = 1.0 / (1.0 + math::exp((reward(b) - reward(a)) as f32));
                    pairs.push(if draw.stream.uniform() < probability { (a, b) } else { (b, a) });
                }
                pairs
            }
            Annotation::AllPairs => {
                let every = (0..all_pairs(responses)).map(pair_at);
                every.filter(|&(a, b)| reward(a) != reward(b)).map(|(a, b)| ordered(a, b)).collect()
            }
        }
    }
}

impl fmt::Display for Annotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Annotation::BestWorst => "best-worst",
            Annotation::RandomPair => "random-pair",
            Annotation::BradleyTerry => "bradley-terry",
            Annotation::AllPairs => "all-pairs",
        })
    }
}

impl FromStr for Annotation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Annotation> {
        let found = Annotation::ALL.into_iter().find(|rule| rule.to_string() == text);
        found.ok_or_else(|| {
            Error::argument("rule", "best-worst, random-pair, bradley-terry or all-pairs", text)
        })
    }
}

/// How many pairs of two different responses there are.
fn all_pairs(responses: u32) -> u64 {
    u64::from(responses) * u64::from(responses.saturating_sub(1)) / 2
}

/// Pair number `index` of (0, 1), (0, 2), (1, 2), (0, 3) ...: by the later response, then the earlier.
fn pair_at(index: u64) -> (u32, u32) {
    let mut later = ((((8.0 * index as f64 + 1.0).sqrt() + 1.0) / 2.0) as u64).max(1);
    // The root is rounded: it may be off by one.
    while later * (later - 1) / 2 > index {
        later -= 1;
    }
    while later * (later + 1) / 2 <= index {
        later += 1;
    }
    ((index - later * (later - 1) / 2) as u32, later as u32)
}

/// Numbers below a bound, evenly and without repeats: a Fisher-Yates shuffle of which only the entries that were moved are held.
struct Draw {
    stream: Stream,
    left: u64,
    moved: HashMap<u64, u64>,
}

impl Draw {
    fn next(&mut self) -> Option<u64> {
        let bound = u32::try_from(self.left).ok().filter(|&n| n > 0)?;
        let at = u64::from(self.stream.below(bound));
        self.left -= 1;
        let last = self.moved.remove(&self.left).unwrap_or(self.left);
        Some(if at == self.left { last } else { self.moved.insert(at, last).unwrap_or(at) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_numbered_without_gaps() {
        let expected: Vec<(u32, u32)> = (1..40).flat_map(|b| (0..b).map(move |a| (a, b))).collect();
        let found: Vec<(u32, u32)> = (0..expected.len() as u64).map(pair_at).collect();
        assert_eq!(found, expected);
        let last = all_pairs(90_000) - 1;
        assert_eq!(pair_at(last), (89_998, 89_999));
        assert_eq!(pair_at(last - 89_998), (0, 89_999));
    }

    #[test]
    fn best_and_worst_stop_at_equal_rewards() {
        let rule = Annotation::BestWorst;
        assert_eq!(rule.pairs(0, 0, &[1.0, 3.0, 3.0, 0.5, 0.5], 9), [(1, 4), (2, 3)]);
        assert_eq!(rule.pairs(0, 0, &[1.0, 3.0, 2.0], 1), [(1, 0)]);
        assert_eq!(rule.pairs(0, 0, &[2.0, 1.0, 1.0, 0.0], 9), [(0, 3)]);
        assert_eq!(rule.pairs(0, 0, &[7.0; 4], 9), []);
    }

    #[test]
    fn draws_cover_every_pair_once() {
        let rewards = [0.1, 0.7, 0.7, -1.0, 2.0];
        for prompt in 0..50 {
            let mut drawn = Annotation::RandomPair.pairs(3, prompt, &rewards, 99);
            assert!(drawn.iter().all(|&(a, b)| rewards[a as usize] > rewards[b as usize]), "{drawn:?}");
            drawn.sort_unstable();
            let mut all = Annotation::AllPairs.pairs(3, prompt, &rewards, 99);
            all.sort_unstable();
            assert_eq!(drawn, all, "nine of ten: two rewards are equal");
            assert_eq!(all.len(), 9);
            let first = Annotation::RandomPair.pairs(3, prompt, &rewards, 1);
            assert_eq!(first, Annotation::RandomPair.pairs(3, prompt, &rewards, 4)[..1]);
        }
    }

    #[test]
    fn draws_are_even() {
        let mut counts = HashMap::new();
        for prompt in 0..6000 {
            for pair in Annotation::RandomPair.pairs(1, prompt, &[0.0, 1.0, 2.0, 3.0], 1) {
                *counts.entry(pair).or_insert(0u32) += 1;
            }
        }
        // Binomial(6000, 1/6): standard deviation 29.
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|c| c.abs_diff(1000) < 5 * 29), "{counts:?}");
    }

    #[test]
    fn labels_follow_the_probability() {
        let rewards = [0.0, 1.0];
        let label = |prompt| Annotation::BradleyTerry.pairs(9, prompt, &rewards, 1)[0];
        let right = (0..10_000).filter(|&prompt| label(prompt) == (1, 0)).count();
        // 1 / (1 + e^-1) = 0.731 of 10,000: standard deviation 44.
        assert!(right.abs_diff(7311) < 5 * 44, "{right}");
        let equal = (0..10_000).filter(|&p| Annotation::BradleyTerry.pairs(9, p, &[1.0; 2], 1)[0] == (1, 0));
        assert!(equal.count().abs_diff(5000) < 5 * 50);
        let far = Annotation::BradleyTerry.pairs(9, 0, &[-1e300, 1e300], 1);
        assert_eq!(far, [(1, 0)], "a difference beyond F32 is still a difference");
    }
}
