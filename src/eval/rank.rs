//! Rank correlation of rewards with gold scores.

use serde::{Deserialize, Serialize};

/// Spearman's correlation of rewards with gold scores, in [-1, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankCorrelation {
    /// Mean over the prompts of the correlation among the candidates of each; None if no prompt has one.
    pub within_prompts: Option<f64>,
    /// Prompts behind that mean.
    pub prompts: u64,
    /// Prompts without a correlation: all their rewards or all their gold scores are equal.
    pub skipped: u64,
    /// Over the candidates of all prompts at once, which also asks whether the reward tells prompts apart; None if all
    /// rewards or all gold scores are equal.
    pub overall: Option<f64>,
}

/// Rank correlation of rewards and gold scores, both `[prompts * per_prompt]`, prompt after prompt.
///
/// # Panics
/// If there is not one reward per gold score, or not the same number of candidates for every prompt.
pub fn rank_correlation<R, G>(rewards: &[R], gold: &[G], per_prompt: usize) -> RankCorrelation
where
    R: Copy + Into<f64>,
    G: Copy + Into<f64>,
{
    assert_eq!(rewards.len(), gold.len(), "one reward per gold score");
    assert!(per_prompt > 0 && gold.len().is_multiple_of(per_prompt), "{per_prompt} candidates per prompt");
    let rewards: Vec<f64> = rewards.iter().map(|&r| r.into()).collect();
    let gold: Vec<f64> = gold.iter().map(|&g| g.into()).collect();
    let prompts = rewards.chunks_exact(per_prompt).zip(gold.chunks_exact(per_prompt));
    let found: Vec<f64> = prompts.filter_map(|(rewards, gold)| spearman(rewards, gold)).collect();
    RankCorrelation {
        within_prompts: (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64),
        prompts: found.len() as u64,
        skipped: (gold.len() / per_prompt - found.len()) as u64,
        overall: spearman(&rewards, &gold),
    }
}

/// Spearman's rank correlation (Spearman 1904): Pearson's correlation of the [`average_ranks`]. None if all values of
/// either side are equal, or there are none; NaN if a value is NaN.
///
/// # Panics
/// If the sides have different lengths.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    assert_eq!(a.len(), b.len(), "as many values on either side");
    if a.iter().chain(b).any(|value| value.is_nan()) {
        return Some(f64::NAN);
    }
    // Ranks with ties shared have the mean that ranks without ties have. Ranks are multiples of 1/2, so the deviations of
    // equal values are exactly 0.
    let center = (a.len() as f64 + 1.0) / 2.0;
    let deviations =
        |values| -> Vec<f64> { average_ranks(values).into_iter().map(|rank| rank - center).collect() };
    let (a, b) = (deviations(a), deviations(b));
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let (variance_a, variance_b) = (product(&a, &a), product(&b, &b));
    if variance_a == 0.0 || variance_b == 0.0 {
        return None;
    }
    Some((product(&a, &b) / (variance_a * variance_b).sqrt()).clamp(-1.0, 1.0))
}

/// The ranks of values in ascending order, from 1; equal values share the mean of their ranks. Values must not be NaN.
pub fn average_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut place = 0;
    for equal in order.chunk_by(|&i, &j| values[i] == values[j]) {
        // The mean of the ranks place + 1 to place + equal.len().
        let rank = place as f64 + (equal.len() as f64 + 1.0) / 2.0;
        for &i in equal {
            ranks[i] = rank;
        }
        place += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_share_ties() {
        assert_eq!(average_ranks(&[3.0, -1.0, 3.0, 0.0, -0.0, 3.0]), [5.0, 1.0, 5.0, 2.5, 2.5, 5.0]);
        assert_eq!(average_ranks(&[]), [0.0; 0]);
    }

    #[test]
    fn only_the_order_counts() {
        let a = [0.1, 2.0, -3.0, 7.0];
        assert_eq!(spearman(&a, &a.map(f64::exp)), Some(1.0));
        assert_eq!(spearman(&a, &a.map(|x| -x)), Some(-1.0));
        assert_eq!(spearman(&a, &[5.0; 4]), None);
        assert_eq!(spearman(&[1.0], &[1.0]), None);
        assert_eq!(spearman(&[], &[]), None);
        assert!(spearman(&a, &[1.0, f64::NAN, 2.0, 3.0]).unwrap().is_nan());
    }

    #[test]
    fn prompts_that_do_not_vary_are_skipped() {
        // The first prompt's rewards are right, the second's all equal, the third's wrong.
        let rewards = [1.0f32, 2.0, 3.0, 9.0, 9.0, 9.0, 6.0, 5.0, 4.0];
        let gold = [1.0f64, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0];
        let found = rank_correlation(&rewards, &gold, 3);
        assert_eq!((found.within_prompts, found.prompts, found.skipped), (Some(0.0), 2, 1));
        let none = rank_correlation(&[1.0f32; 4], &[1.0f32, 2.0, 3.0, 4.0], 2);
        let want = RankCorrelation { within_prompts: None, prompts: 0, skipped: 2, overall: None };
        assert_eq!(none, want);
    }
}
