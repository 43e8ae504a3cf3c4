//! Best-of-N: the mean gold score of the candidate that a reward model ranks first, over prompts.

use serde::{Deserialize, Serialize};

/// Mean gold scores over prompts for every number of candidates, in units of the gold score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestOfNCurve {
    /// Number of prompts.
    pub prompts: u64,
    /// Candidates per prompt, M.
    pub per_prompt: u64,
    /// Of a candidate chosen at random: the mean over all, and both curves at N = 1.
    pub random: f64,
    /// One point for each N from 1 to M.
    pub points: Vec<BestOfNPoint>,
}

/// Best of N candidates that are drawn without replacement from the M of each prompt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestOfNPoint {
    /// Candidates drawn, N.
    pub candidates: u64,
    /// KL divergence of best-of-N from the policy that draws the candidates, log N - (N - 1) / N nats. It is exact where no
    /// two candidates have equal rewards, and else an upper bound (Beirami et al. 2024).
    pub kl: f64,
    /// Expected gold score of the drawn candidate with the highest reward.
    pub model: f64,
    /// Expected gold score of the drawn candidate with the highest gold score.
    pub oracle: f64,
}

/// The curve of best-of-N from rewards and gold scores, both `[prompts * per_prompt]`, prompt after prompt.
///
/// A point is the mean over all sets of N of the M candidates, not over some that are drawn: with candidates in ascending
/// order of reward, from 1 to M, the i-th is the best of a share C(i - 1, N - 1) / C(M, N) of the sets. That is the
/// unbiased estimator of Nakano et al. (2021, appendix I) for N candidates of the policy. Of equal rewards the lower
/// index ranks higher, and the point N = M is the gold score of the candidate that is ranked first. Points of a curve share their candidates: their
/// errors are correlated, and the last ones rest on the best candidate of each prompt alone.
///
/// # Panics
/// If there is not one reward per gold score, or not the same number of candidates for every prompt.
pub fn best_of_n_curve<R, G>(rewards: &[R], gold: &[G], per_prompt: usize) -> BestOfNCurve
where
    R: Copy + Into<f64>,
    G: Copy + Into<f64>,
{
    assert_eq!(rewards.len(), gold.len(), "one reward per gold score");
    assert!(per_prompt > 0 && gold.len().is_multiple_of(per_prompt), "{per_prompt} candidates per prompt");
    let prompts = gold.len() / per_prompt;
    // The estimator is linear in the gold scores, so those of each rank may be summed over prompts first.
    let (mut model, mut oracle) = (vec![0f64; per_prompt], vec![0f64; per_prompt]);
    for (rewards, gold) in rewards.chunks_exact(per_prompt).zip(gold.chunks_exact(per_prompt)) {
        let gold: Vec<f64> = gold.iter().map(|&g| g.into()).collect();
        let rewards: Vec<f64> = rewards.iter().map(|&r| r.into()).collect();
        for (sums, scores) in [(&mut model, &rewards), (&mut oracle, &gold)] {
            for (sum, candidate) in sums.iter_mut().zip(best_first(scores)) {
                *sum += gold[candidate];
            }
        }
    }
    let n = prompts.max(1) as f64;
    let random = gold.iter().map(|&g| g.into()).sum::<f64>() / (n * per_prompt as f64);
    let points = (1..=per_prompt).map(|drawn| BestOfNPoint {
        candidates: drawn as u64,
        kl: (drawn as f64).ln() - (drawn as f64 - 1.0) / drawn as f64,
        model: expected_best(&model, drawn) / n,
        oracle: expected_best(&oracle, drawn) / n,
    });
    BestOfNCurve { prompts: prompts as u64, per_prompt: per_prompt as u64, random, points: points.collect() }
}

/// Indices in descending order of score, of equal scores the lower index first.
fn best_first(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Adding 0 makes -0 equal to 0.
    order.sort_by(|&a, &b| (scores[b] + 0.0).total_cmp(&(scores[a] + 0.0)));
    order
}

/// The expected value of the first of `drawn` values that are drawn without replacement from `values`, the best first.
fn expected_best(values: &[f64], drawn: usize) -> f64 {
    let all = values.len();
    // The first of all is drawn with probability N / M. That the one after place j is the first drawn is
    // (M - j - N) / (M - j - 1) times as probable as that place j is: no factor is above 1, so nothing overflows.
    let mut probability = drawn as f64 / all as f64;
    let mut sum = 0.0;
    for (place, value) in values[..=all - drawn].iter().enumerate() {
        sum += probability * value;
        probability *= (all - place - drawn) as f64 / (all - place - 1).max(1) as f64;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const REWARDS: [f32; 6] = [0.1, 0.9, 0.3, 2.0, 2.0, -1.0];
    const GOLD: [f32; 6] = [1.0, 5.0, 6.0, 2.0, 8.0, -4.0];

    #[test]
    fn curve_of_three_candidates() {
        let curve = best_of_n_curve(&REWARDS, &GOLD, 3);
        assert_eq!((curve.prompts, curve.per_prompt, curve.random), (2, 3, 3.0));
        // Best of two: of the first prompt's sets 5, 6, 5, of the second's 2, 2, 8.
        let want = [(3.0, 3.0), ((16.0 + 12.0) / 6.0, (5.0 + 6.0 + 6.0 + 8.0 + 8.0 + 2.0) / 6.0), (3.5, 7.0)];
        for (n, (point, (model, oracle))) in curve.points.iter().zip(want).enumerate() {
            assert_eq!(point.candidates, n as u64 + 1);
            assert!((point.model - model).abs() < 1e-14, "{point:?}");
            assert!((point.oracle - oracle).abs() < 1e-14, "{point:?}");
        }
        assert_eq!(curve.points[0].kl, 0.0);
        assert_eq!(curve.points[1].kl, 2f64.ln() - 0.5);
    }

    #[test]
    fn probabilities_add_up_to_one() {
        for all in [1, 2, 7, 1000, 3000] {
            let ones = vec![1.0; all];
            for drawn in [1, 2, all / 3, all / 2, all - 1, all] {
                if (1..=all).contains(&drawn) {
                    let sum = expected_best(&ones, drawn);
                    assert!((sum - 1.0).abs() < 1e-12, "{drawn} of {all}: {sum}");
                }
            }
        }
    }

    #[test]
    fn both_zeros_are_equal() {
        assert_eq!(best_first(&[-0.0, 0.0, 1.0, -1.0]), [2, 0, 1, 3]);
    }
}
