//! Pairs that are made of rewards.

use lensmith::convert::{Annotation, ImportLayout};
use safetensors::Dtype as Stored;
use tempfile::tempdir;

use super::support::*;

fn annotated(rule: Annotation, pairs_per_prompt: Option<u64>, seed: u64) -> ImportLayout {
    ImportLayout::Annotated {
        embeddings: column(&golden("responses.npy"), ""),
        rewards: column(&golden("rewards.npy"), ""),
        rule,
        pairs_per_prompt,
        seed,
    }
}

/// Prompt, preferred and other response of every pair, found by their embeddings.
fn made(layout: ImportLayout, shard_rows: Option<u64>) -> Vec<(i64, usize, usize)> {
    let folder = tempdir().expect("a folder");
    let mut job = job(layout, folder.path());
    job.shard_rows = shard_rows;
    let summary = run(&job).expect("an import");
    let responses = f32_bytes(&values(2, PROMPTS * RESPONSES * DIM));
    let mut pairs = Vec::new();
    for shard in shards(folder.path()) {
        let found = tensors(&shard);
        assert_eq!(found["group"].0, Stored::I64);
        let prompts = found["group"].2.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b));
        for (row, prompt) in prompts.enumerate() {
            let response = |name: &str| {
                let bytes = &found[name].2[row * DIM * 4..][..DIM * 4];
                let own = &responses[prompt as usize * RESPONSES * DIM * 4..][..RESPONSES * DIM * 4];
                own.chunks(DIM * 4).position(|r| r == bytes).expect("a response of the prompt")
            };
            pairs.push((prompt, response("chosen"), response("rejected")));
        }
    }
    assert_eq!(summary.rows, pairs.len() as u64);
    pairs
}

#[test]
fn best_against_worst() {
    let rewards = values(3, PROMPTS * RESPONSES);
    let expected = (0..PROMPTS).map(|p| {
        let own = &rewards[p * RESPONSES..][..RESPONSES];
        let by = |a: &usize, b: &usize| own[*a].total_cmp(&own[*b]);
        let best = (0..RESPONSES).max_by(by).expect("a response");
        (p as i64, best, (0..RESPONSES).min_by(by).expect("a response"))
    });
    let expected: Vec<_> = expected.collect();
    assert_eq!(made(annotated(Annotation::BestWorst, None, 0), None), expected);
    assert_eq!(made(annotated(Annotation::BestWorst, None, 0), Some(4)), expected, "in two shards");
    let two = made(annotated(Annotation::BestWorst, Some(2), 0), None);
    assert_eq!(two.iter().step_by(2).copied().collect::<Vec<_>>(), expected);
}

#[test]
fn every_pair_is_ordered_by_reward() {
    let rewards = values(3, PROMPTS * RESPONSES);
    let pairs = made(annotated(Annotation::AllPairs, None, 0), Some(5));
    assert_eq!(pairs.len(), PROMPTS * RESPONSES * (RESPONSES - 1) / 2);
    for &(p, a, b) in &pairs {
        let own = &rewards[p as usize * RESPONSES..];
        assert!(own[a] > own[b], "{p} {a} {b}");
    }
    let mut unique = pairs.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), pairs.len());
}

#[test]
fn draws_follow_the_seed_alone() {
    for rule in [Annotation::RandomPair, Annotation::BradleyTerry] {
        let once = made(annotated(rule, Some(3), 5), None);
        assert_eq!(once.len(), 3 * PROMPTS);
        assert_eq!(made(annotated(rule, Some(3), 5), Some(1)), once);
        assert_ne!(made(annotated(rule, Some(3), 6), None), once);
    }
    // The very draws: data sets made before must stay what they are.
    assert_eq!(made(annotated(Annotation::RandomPair, None, 5), None), PINNED);
}

const PINNED: [(i64, usize, usize); PROMPTS] =
    [(0, 2, 1), (1, 3, 2), (2, 3, 2), (3, 3, 1), (4, 1, 0), (5, 1, 0)];

#[test]
fn more_pairs_than_there_are_is_wrong_usage() {
    let folder = tempdir().expect("a folder");
    for (rule, count) in [
        (Annotation::RandomPair, 7),
        (Annotation::BestWorst, 3),
        (Annotation::AllPairs, 1),
        (Annotation::BradleyTerry, 0),
    ] {
        let error = run(&job(annotated(rule, Some(count), 0), folder.path())).expect_err("too many");
        assert!(matches!(error, lensmith::Error::InvalidArgument { .. }), "{error}");
        assert!(error.to_string().contains("pairs_per_prompt"), "{error}");
    }
}
