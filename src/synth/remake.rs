//! Pairs made again from their recipe, held against what the shards say.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use rand::RngCore;

use super::folder::{SHARD_AGAIN, advise};
use super::verify::{VerifyOptions, VerifyStep};
use super::{LatentBatch, PairBatch, Recipe, Synthesizer};
use crate::backend::Backend;
use crate::data::{Io, LATENT_CANDIDATE, LATENT_SEED, LATENT_Z, LatentSet, PairOptions, PairSet};
use crate::error::{Error, Result};
use crate::matrix::Side;
use crate::model::Vae;
use crate::noise::{Purpose, Stream};

/// Which pairs are made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    /// A random sample of so many, or all where there are no more.
    Sample(u64),
    /// All of them.
    All,
}

impl Recompute {
    /// No pair at all.
    pub const NONE: Recompute = Recompute::Sample(0);
}

impl Default for Recompute {
    fn default() -> Recompute {
        Recompute::Sample(16)
    }
}

impl FromStr for Recompute {
    type Err = Error;

    fn from_str(text: &str) -> Result<Recompute> {
        match (text, text.parse()) {
            ("all", _) => Ok(Recompute::All),
            (_, Ok(count)) => Ok(Recompute::Sample(count)),
            (_, Err(_)) => Err(Error::option("--recompute", "a number of pairs, or all", text)),
        }
    }
}

impl fmt::Display for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Recompute::Sample(count) => count.fmt(f),
            Recompute::All => f.pad("all"),
        }
    }
}

/// A shard that is here.
pub(super) struct Here {
    pub path: PathBuf,
    /// Numbers of its pairs.
    pub pairs: Range<u64>,
}

/// Makes pairs of the shards `here` again, which are in rising order, and gives how many were equal in every bit.
pub(super) fn remake<B: Backend>(
    (recipe, seeds, vae): (&Recipe, &PairSet, &Vae),
    backend: &B,
    here: &[Here],
    options: &VerifyOptions,
    progress: &mut dyn FnMut(VerifyStep),
) -> Result<u64> {
    let make = Synthesizer::new(backend, vae, seeds, (recipe.plan, recipe.perturbation), recipe.mode)?;
    let all: u64 = here.iter().map(|shard| shard.pairs.end - shard.pairs.start).sum();
    let sample = match options.recompute {
        Recompute::Sample(count) if count < all => Some(draw(count, all, options.seed)),
        _ => None,
    };
    let total = sample.as_ref().map_or(all, |s| s.len() as u64);
    let mut done = 0;
    progress(VerifyStep::Pairs { done, total });
    // Pairs of the shards before this one.
    let mut before = 0;
    for shard in here {
        let count = shard.pairs.end - shard.pairs.start;
        let ranges: Vec<Range<u64>> = match &sample {
            None => vec![shard.pairs.clone()],
            Some(sample) => {
                let drawn = sample.range(before..before + count).map(|at| shard.pairs.start + at - before);
                drawn.map(|pair| pair..pair + 1).collect()
            }
        };
        before += count;
        if ranges.is_empty() {
            continue;
        }
        let written = Written::open(shard, &make, options.io)?;
        for range in ranges {
            let compared = written.compare(&make, shard, range, &mut |pairs| {
                done += pairs;
                progress(VerifyStep::Pairs { done, total });
            });
            if let Err(error) = compared {
                // Of two explanations the simpler one.
                seeds.require_unchanged()?;
                written.require_unchanged()?;
                return Err(error);
            }
        }
        written.require_unchanged()?;
    }
    seeds.require_unchanged()?;
    Ok(done)
}

/// `count` different numbers below `all`, which are more (Floyd's algorithm).
fn draw(count: u64, all: u64, seed: u64) -> BTreeSet<u64> {
    let mut stream = Stream::new(seed, Purpose::Shuffle, 3 << 32);
    let mut drawn = BTreeSet::new();
    for most in all - count..all {
        let at = stream.next_u64() % (most + 1);
        if !drawn.insert(at) {
            drawn.insert(most);
        }
    }
    drawn
}

/// A shard to compare with.
enum Written {
    Embeddings(PairSet),
    Latents(LatentSet),
}

impl Written {
    /// Opens a shard of whichever kind, and checks that its sizes are the recipe's.
    fn open<B: Backend>(shard: &Here, make: &Synthesizer<'_, B>, io: Io) -> Result<Written> {
        let source = [shard.path.to_string_lossy().into_owned()];
        let (header, _) = crate::data::inspect_shard(&shard.path)?;
        let latents = header.tensors.iter().any(|t| t.name == LATENT_Z[0]);
        let (written, found, width) = if latents {
            let set = LatentSet::open(&source, io)?;
            let found = (set.len(), set.latent());
            (Written::Latents(set), found, make.latent())
        } else {
            let set = PairSet::open(&source, &PairOptions { io, ..PairOptions::default() })?;
            let found = (set.len(), set.dim());
            (Written::Embeddings(set), found, make.dim())
        };
        let expected = ((shard.pairs.end - shard.pairs.start) as usize, width);
        if found != expected {
            return Err(Error::Mismatch {
                path: shard.path.clone(),
                what: "number of pairs and width".into(),
                expected: format!("{expected:?}"),
                found: format!("{found:?}; {SHARD_AGAIN}"),
            });
        }
        Ok(written)
    }

    fn require_unchanged(&self) -> Result<()> {
        match self {
            Written::Embeddings(set) => set.require_unchanged(),
            Written::Latents(set) => set.require_unchanged(),
        }
    }

    /// Makes `pairs` again and compares them with the shard's bytes; `equal` hears how many more were equal.
    fn compare<B: Backend>(
        &self,
        make: &Synthesizer<'_, B>,
        shard: &Here,
        pairs: Range<u64>,
        equal: &mut dyn FnMut(u64),
    ) -> Result<()> {
        match self {
            Written::Embeddings(set) => make.embeddings(pairs, set.files()[0].dtype, &mut |batch| {
                compare_embeddings(set, shard, batch)?;
                equal(batch.chosen.rows() as u64);
                Ok(())
            }),
            Written::Latents(set) => make.latents(pairs, &mut |batch| {
                compare_latents(set, shard, batch)?;
                equal(batch.seed.len() as u64);
                Ok(())
            }),
        }
    }
}

fn compare_embeddings(set: &PairSet, shard: &Here, batch: &PairBatch) -> Result<()> {
    let at = (batch.first - shard.pairs.start) as usize;
    for (side, made) in Side::BOTH.into_iter().zip([&batch.chosen, &batch.rejected]) {
        let block = set.rows(side, at..at + made.rows())?;
        let (there, made) = (block.view(), made.view());
        for row in 0..made.rows() {
            let (there, here) = (there.row(row).bytes(), made.row(row).bytes());
            require_same(shard, batch.first + row as u64, side.name(), there, here, made.dtype().size())?;
        }
    }
    Ok(())
}

fn compare_latents(set: &LatentSet, shard: &Here, batch: &LatentBatch) -> Result<()> {
    let at = (batch.first - shard.pairs.start) as usize;
    let there = set.rows(at..at + batch.seed.len()).map_err(|e| advise(e, SHARD_AGAIN))?;
    for row in 0..batch.seed.len() {
        let pair = batch.first + row as u64;
        let same =
            |tensor, there: &[u8], here: &[u8], size| require_same(shard, pair, tensor, there, here, size);
        let one = row..row + 1;
        let wide = row * set.latent()..(row + 1) * set.latent();
        let seeds = [&there.seed[one.clone()], &batch.seed[one.clone()]].map(bytemuck::cast_slice);
        same(LATENT_SEED, seeds[0], seeds[1], 8)?;
        for s in 0..2 {
            let numbers = [&there.candidate[s][one.clone()], &batch.candidate[s][one.clone()]]
                .map(bytemuck::cast_slice);
            same(LATENT_CANDIDATE[s], numbers[0], numbers[1], 4)?;
            let z = [&there.z[s][wide.clone()], &batch.z[s][wide.clone()]].map(bytemuck::cast_slice);
            same(LATENT_Z[s], z[0], z[1], 4)?;
        }
    }
    Ok(())
}

/// Fails unless the stored row of `pair` has the bytes of the one that was made; values take `size` bytes.
fn require_same(shard: &Here, pair: u64, tensor: &str, there: &[u8], here: &[u8], size: usize) -> Result<()> {
    if there == here {
        return Ok(());
    }
    let at = there.iter().zip(here).position(|(a, b)| a != b).map_or(0, |at| at / size);
    Err(Error::Mismatch {
        path: shard.path.clone(),
        what: format!("pair {pair} (tensor `{tensor}`), made again from the recipe,"),
        expected: "the same bytes".into(),
        found: format!(
            "other bytes from column {at} on; if the run had --precision bf16, check it with that; else {SHARD_AGAIN}"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_distinct_within_range_and_drawn_anew() {
        for (count, all) in [(0, 5), (1, 2), (16, 17), (100, 1000)] {
            let drawn = draw(count, all, 3);
            assert_eq!(drawn.len() as u64, count);
            assert!(drawn.iter().all(|&at| at < all));
        }
        assert_ne!(draw(16, 1000, 3), draw(16, 1000, 4));
        // Every number as likely: 400 draws of 5 of 20, 100 times each but for some 9.
        let mut hits = [0i32; 20];
        (0..400).for_each(|seed| draw(5, 20, seed).iter().for_each(|&at| hits[at as usize] += 1));
        assert!(hits.iter().all(|h| (h - 100).abs() < 50), "{hits:?}");
    }

    #[test]
    fn numbers_and_all_are_read() {
        for (text, value) in [("0", Recompute::NONE), ("16", Recompute::default()), ("all", Recompute::All)] {
            assert_eq!(text.parse::<Recompute>().unwrap(), value);
            assert_eq!(value.to_string(), text);
        }
        for text in ["", "some", "-1", "All"] {
            let error = text.parse::<Recompute>().unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains("--recompute"), "{error}");
        }
    }
}
