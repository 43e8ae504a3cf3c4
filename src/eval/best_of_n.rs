//! Best-of-N: the mean gold score of the candidate that a reward model ranks first, over prompts.

use serde::{Deserialize, Serialize};

/// Mean gold scores over prompts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestOfN {
    /// Number of prompts.
    pub prompts: u64,
    /// Candidates per prompt, N.
    pub per_prompt: u64,
    /// Of the candidate with the highest reward (ties: the first).
    pub model: f64,
    /// Of a candidate chosen at random: the mean over all.
    pub random: f64,
    /// Of the candidate with the highest gold score.
    pub oracle: f64,
}

/// Best-of-N figures from rewards and gold scores, both `[prompts * per_prompt]`, prompt after prompt.
///
/// # Panics
/// If there is not one reward per gold score.
pub fn best_of_n(rewards: &[f32], gold: &[f32], per_prompt: usize) -> BestOfN {
    assert_eq!(rewards.len(), gold.len(), "one reward per gold score");
    let prompts = gold.len() / per_prompt.max(1);
    let (mut model, mut random, mut oracle) = (0f64, 0f64, 0f64);
    for (rewards, gold) in rewards.chunks_exact(per_prompt).zip(gold.chunks_exact(per_prompt)) {
        let mut best = 0;
        for (i, r) in rewards.iter().enumerate() {
            if *r > rewards[best] {
                best = i;
            }
        }
        model += f64::from(gold[best]);
        random += gold.iter().map(|&g| f64::from(g)).sum::<f64>() / per_prompt as f64;
        oracle += f64::from(gold.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    }
    let n = prompts.max(1) as f64;
    BestOfN {
        prompts: prompts as u64,
        per_prompt: per_prompt as u64,
        model: model / n,
        random: random / n,
        oracle: oracle / n,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_random_and_oracle() {
        let rewards = [0.1, 0.9, 0.3, 2.0, 2.0, -1.0];
        let gold = [1.0, 5.0, 6.0, 2.0, 8.0, -4.0];
        let found = best_of_n(&rewards, &gold, 3);
        assert_eq!((found.prompts, found.per_prompt), (2, 3));
        assert_eq!((found.model, found.random, found.oracle), (3.5, 3.0, 7.0));
    }
}
