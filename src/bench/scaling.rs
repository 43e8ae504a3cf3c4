//! How costs grow: per row over numbers of rows, and per byte over dimensions.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::operations::{KEEP, origin, perturbation, random_rows, samples};
use super::{Models, Options};
use crate::backend::{Roofline, Sample};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::matrix::{RowSet, RowsBuf};
use crate::model::FoldedReward;

/// Numbers of rows.
const ROWS: [u64; 4] = [10_000, 100_000, 1_000_000, 10_000_000];
/// Dimensions.
const DIMS: [usize; 5] = [512, 1024, 2048, 4096, 8192];
/// Bytes of the block of rows that is gone through again and again: larger than caches.
const BLOCK: usize = 128 << 20;
/// Bytes that are gone through at each dimension.
const BYTES: u64 = 2 << 30;
/// Times that each point is measured, the median of which counts; fewer where that takes long.
const TRIALS: usize = 5;
const LONG: f64 = 4.0;
/// The operation that moves no rows.
const FOLDED: &str = "draw and score, folded";

/// The cost of one operation at one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The operation.
    pub what: String,
    /// Dimension of the embeddings.
    pub dim: usize,
    /// Rows gone through.
    pub rows: u64,
    /// Seconds for each row.
    pub seconds_per_row: f64,
    /// Seconds for each byte of the rows as BF16; None for what reads and writes no row.
    pub seconds_per_byte: Option<f64>,
}

impl Point {
    /// The cost that should not change with the dimension: of a byte, or of a row where rows have no bytes.
    pub fn cost_over_dims(&self) -> f64 {
        self.seconds_per_byte.unwrap_or(self.seconds_per_row)
    }
}

/// Costs of encoding, decoding and folded scoring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// Over numbers of rows, at one dimension.
    pub over_rows: Vec<Point>,
    /// Over dimensions.
    pub over_dims: Vec<Point>,
    /// Sizes left out since they would have taken longer than allowed.
    pub left_out: Vec<String>,
}

impl Scaling {
    /// By how much the costs of one operation differ over the points: (largest - smallest) / smallest.
    pub fn spread(points: &[Point], what: &str, cost: impl Fn(&Point) -> f64) -> Option<f64> {
        let costs: Vec<f64> = points.iter().filter(|p| p.what == what).map(cost).collect();
        let (low, high) = (costs.iter().copied().reduce(f64::min)?, costs.iter().copied().reduce(f64::max)?);
        Some((high - low) / low)
    }

    /// Names of the operations, in the order in which they were measured.
    pub fn operations(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for point in self.over_rows.iter().chain(&self.over_dims) {
            if !names.contains(&point.what.as_str()) {
                names.push(&point.what);
            }
        }
        names
    }
}

/// What is measured: one call goes through the rows `first..first + rows` of an unending set.
type Through<'a> = Box<dyn FnMut(u64, usize) -> Result<()> + 'a>;

/// Measures all points that take at most `seconds` each.
pub fn measure<B: Roofline + 'static>(
    b: &B,
    options: &Options,
    seconds: f64,
    says: &mut dyn FnMut(&str),
) -> Result<Scaling> {
    let mut scaling = Scaling { over_rows: Vec::new(), over_dims: Vec::new(), left_out: Vec::new() };
    let models = options.models(options.dim)?;
    at_dim(b, options, &models, block_rows(options.dim), &mut |what, block, through| {
        let mut per_row = 0.0;
        for rows in ROWS {
            if per_row * rows as f64 > seconds {
                scaling.left_out.push(format!("{what}, {rows} rows"));
                continue;
            }
            says(&format!("{what}, {rows} rows"));
            let point = point(b, options.dim, what, rows, block, through)?;
            per_row = point.seconds_per_row;
            scaling.over_rows.push(point);
        }
        Ok(())
    })?;
    for dim in DIMS {
        let models = options.models(dim)?;
        at_dim(b, options, &models, block_rows(dim), &mut |what, block, through| {
            says(&format!("{what}, d = {dim}"));
            let rows = (BYTES / (2 * dim as u64)).max(1);
            scaling.over_dims.push(point(b, dim, what, rows, block, through)?);
            Ok(())
        })?;
    }
    Ok(scaling)
}

/// Rows of a block.
fn block_rows(dim: usize) -> usize {
    (BLOCK / (2 * dim)).max(1)
}

type Each<'a> = &'a mut dyn FnMut(&str, usize, &mut Through<'_>) -> Result<()>;

/// Sets up each operation at the models' dimension on `block` rows, and hands it to `each` with the rows of its block.
fn at_dim<B: Roofline + 'static>(
    b: &B,
    options: &Options,
    models: &Models,
    block: usize,
    each: Each<'_>,
) -> Result<()> {
    let dim = models.vae.size().dim;
    let values = random_rows(options, block, dim, 0);
    let view: RowSet<'_> = values.view().into();
    let vae = b.load_vae(&models.vae)?;
    let embeddings = b.embeddings(view.clone())?;
    let mut encode: Through<'_> = Box::new(|_, rows| {
        if rows == block {
            return b.encode(&vae, &embeddings).map(drop);
        }
        b.encode(&vae, &b.embeddings(view.slice(0..rows))?).map(drop)
    });
    each("encode from BF16", block, &mut encode)?;

    let posteriors = b.encode(&vae, &embeddings)?;
    let how = perturbation();
    let selection = b.select(&posteriors, origin(options, 0), &how)?;
    let kept = samples(&selection.candidates, KEEP as usize);
    let one_each: Vec<Sample> = kept.iter().step_by(KEEP as usize).copied().collect();
    let mut out = RowsBuf::zeros(Dtype::Bf16, block, dim);
    let mut decode: Through<'_> = Box::new(|first, rows| {
        let latents = b.perturb(&posteriors, origin(options, first), &how, &one_each[..rows])?;
        out.resize_rows(rows);
        b.decode(&vae, &latents, None, out.values_mut())
    });
    each("draw and decode to BF16", block, &mut decode)?;

    let folded = b.load_folded(&FoldedReward::new(&models.vae, &models.reward)?)?;
    let mut rewards = vec![0f32; kept.len()];
    let mut score: Through<'_> = Box::new(|first, rows| {
        let latents = b.perturb(&posteriors, origin(options, first), &how, &kept[..rows])?;
        b.score_latents(&folded, &latents, None, &mut rewards[..rows])
    });
    each(FOLDED, kept.len(), &mut score)
}

/// Goes through `rows` rows, a block at a time, and gives the cost of one.
fn point<B: Roofline>(
    b: &B,
    dim: usize,
    what: &str,
    rows: u64,
    block: usize,
    through: &mut Through<'_>,
) -> Result<Point> {
    through(0, block)?;
    b.finish()?;
    // Few rows take less than the clock and the threads' start need: they are gone through several times.
    let times = (block as u64 * 4).div_ceil(rows);
    let mut seconds: Vec<f64> = Vec::new();
    while seconds.len() < TRIALS && seconds.iter().sum::<f64>() * (times as f64) < LONG {
        let start = Instant::now();
        for _ in 0..times {
            let mut first = 0;
            while first < rows {
                let now = (rows - first).min(block as u64) as usize;
                through(first, now)?;
                first += now as u64;
            }
        }
        b.finish()?;
        seconds.push(start.elapsed().as_secs_f64() / times as f64);
    }
    let per_row = super::Timing::of(seconds).median / rows as f64;
    Ok(Point {
        what: what.into(),
        dim,
        rows,
        seconds_per_row: per_row,
        seconds_per_byte: (what != FOLDED).then(|| per_row / (2 * dim) as f64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_relative_to_the_cheapest() {
        let point = |what: &str, per_row: f64| Point {
            what: what.into(),
            dim: 8,
            rows: 10,
            seconds_per_row: per_row,
            seconds_per_byte: None,
        };
        let points = [point("a", 2.0), point("a", 3.0), point("b", 9.0)];
        assert_eq!(Scaling::spread(&points, "a", |p| p.seconds_per_row), Some(0.5));
        assert_eq!(Scaling::spread(&points, "b", Point::cost_over_dims), Some(0.0));
        assert_eq!(Scaling::spread(&points, "c", |p| p.seconds_per_row), None);
    }

    #[test]
    fn every_point_is_measured_or_named_as_left_out() {
        let b = crate::backend::cpu::Cpu::new(1, crate::backend::Precision::F32).unwrap();
        let options = Options {
            dim: 16,
            hidden: 16,
            latent: 16,
            reward_hidden: 16,
            rows: 8,
            repeat: 1,
            seeds: 2,
            pairs_per_seed: 2,
            only: Vec::new(),
            limits: false,
            folder: ".".into(),
            pairs: None,
            seed: 1,
        };
        let models = options.models(16).unwrap();
        let mut visited = Vec::new();
        at_dim(&b, &options, &models, 100, &mut |what, block, through| {
            // A last block that is not whole.
            let point = point(&b, 16, what, 250, block, through)?;
            assert!(point.seconds_per_row > 0.0 && point.seconds_per_row.is_finite());
            assert_eq!(point.seconds_per_byte.is_none(), what == FOLDED);
            visited.push(what.to_string());
            Ok(())
        })
        .unwrap();
        assert_eq!(visited.len(), 3);
    }
}
