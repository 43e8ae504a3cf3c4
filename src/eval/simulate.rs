//! Simulated preference data with a known gold reward, for trying the method without any data.
//!
//! A prompt is a vector u, a response to it a vector v, both of K = 64 standard normal factors. A world,
//! drawn once per seed, turns them into an embedding e in R^d and a gold reward R(u, v). Capitals are normal
//! draws of the world with mean 0 and the variance given (1 if none is):
//!
//! | what | formula |
//! |---|---|
//! | factors | f_k = s_k (p u_k + q v_k), s_k = (k + 1)^(-1/2), p^2 = 0.6, q^2 = 0.4 |
//! | signal | x_j = g(sum_k A_jk f_k / (sum_k s_k^2)^(1/2)), g(x) = x / (1 + x^2 / 4)^(1/2) |
//! | embedding | e_j = mu_j + tau_j (x_j + 1.5 eps_j), eps_j standard normal, drawn anew for every response |
//! | scales | tau_j = 0.1 exp(0.3 N_j), mu_j = 0.1 M_j; both 20-fold where \|N_j\| > 3 (0.3 % of all j) |
//! | gold | R = z (0.7 W v + sum_h C_h tanh(B_h v + D_h u)), h = 1 .. 16; variances 1/K, 1/16, 4/K, 1/K |
//! | label | the first of two is preferred with probability sigmoid(3 (R_1 - R_2)) (Bradley-Terry) |
//!
//! So the two responses to a prompt share its part of the embedding, as they do in a language model, with a
//! decaying spectrum and a few outlier dimensions; the reward hangs on all factors of the response alike, not
//! on those with the largest variance, and in part on how response and prompt go together. z gives the gold
//! rewards of the responses to one prompt standard deviation 1. All labels are noisy, those of test pairs
//! too: the gold reward itself agrees with about 88 % of them. Best-of-N goes by R itself. Embeddings are
//! stored as BF16.
//!
//! Four dials lead to where Theorem 1 of the paper holds, a gold reward that is linear in the embedding and lies in the
//! range of a decoder with 16 latent units: `rank` (factors with s_k above 0), `noise` (the 1.5), `network` (a factor of
//! the tanh sum) and `curvature` (a factor of the x^2 in g). With `network` and `curvature` 0 the gold reward of two
//! responses to one prompt differs by w (e_1 - e_2), [`Simulated::gold_direction`].
//!
//! The constants were chosen by one thing alone, the difficulty for a reward model trained on 1,000 pairs
//! without augmentation at d = 4096: it should end about half-way between a random choice and the oracle. No
//! way of augmenting was looked at in choosing them.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};
use crate::matrix::{RowSet, RowsBuf, Side, ValuesMut};
use crate::memory;
use crate::noise::math::exp;
use crate::noise::{NoiseCounter, Purpose, Stream, fill_normals};

/// Factors of a prompt and of a response, K.
const FACTORS: usize = 64;
/// Hidden units of the gold reward's network, H.
const UNITS: usize = 16;
/// Share of the factors' variance that the responses to a prompt have in common, p^2.
const SHARED: f32 = 0.6;
/// Weight of the gold reward's linear part, l; its network has weight 1.
const LINEAR: f32 = 0.7;
/// Log-odds of the better of two responses that differ by one standard deviation of gold, b.
const SHARPNESS: f32 = 3.0;

/// Sizes of a simulated preference set, and how far it is from the conditions of Theorem 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SimulationOptions {
    /// Dimension of the embeddings, d.
    pub dim: usize,
    pub seeds: usize,
    pub validation: usize,
    pub test: usize,
    /// Prompts of the best-of-N set.
    pub prompts: usize,
    /// Candidates per prompt, N.
    pub per_prompt: usize,
    /// Factors that embeddings and gold rewards depend on, 1 to 64.
    pub rank: usize,
    /// Standard deviation of the noise of an embedding, as a multiple of the signal's.
    pub noise: f32,
    /// Weight of the gold reward's network beside its linear part.
    pub network: f32,
    /// How far the signal is from linear in the factors.
    pub curvature: f32,
    /// Seed of the world and of everything drawn in it.
    pub seed: u64,
}

impl Default for SimulationOptions {
    fn default() -> SimulationOptions {
        SimulationOptions {
            dim: 4096,
            seeds: 1000,
            validation: 300,
            test: 2000,
            prompts: 200,
            per_prompt: 16,
            rank: FACTORS,
            noise: 1.5,
            network: 1.0,
            curvature: 1.0,
            seed: 0,
        }
    }
}

impl SimulationOptions {
    /// Where Theorem 1 holds: as many factors as the VAE has latent units, no noise, all linear.
    pub fn of_theorem_1() -> SimulationOptions {
        SimulationOptions {
            rank: 16,
            noise: 0.0,
            network: 0.0,
            curvature: 0.0,
            ..SimulationOptions::default()
        }
    }
}

/// Pairs of responses with noisy labels.
#[derive(Clone, Debug)]
pub struct SimulatedPairs {
    /// Embeddings `[n, d]`, chosen and rejected.
    pub sides: [RowsBuf; 2],
    /// Share of the labels that agree with the gold reward: its own pair accuracy.
    pub gold_accuracy: f64,
}

impl SimulatedPairs {
    /// Chosen and rejected rows.
    pub fn view(&self) -> [RowSet<'_>; 2] {
        self.sides.each_ref().map(|side| side.view().into())
    }
}

/// A simulated preference set.
#[derive(Clone, Debug)]
pub struct Simulated {
    pub seeds: SimulatedPairs,
    pub validation: SimulatedPairs,
    pub test: SimulatedPairs,
    /// Embeddings of candidates, `[prompts * per_prompt, d]`.
    pub candidates: RowsBuf,
    /// Gold rewards of the candidates, `[prompts * per_prompt]`.
    pub gold: Vec<f32>,
    /// w `[d]`, of least norm, with w (e_1 - e_2) = R_1 - R_2 for the responses to a prompt, where signal and gold reward
    /// are linear; without noise exactly.
    pub gold_direction: Option<Vec<f32>>,
}

/// Draws a world and a preference set in it. A row depends on the seed, on d and on its number alone, not on
/// how many rows there are.
///
/// # Errors
/// Sizes that do not fit in memory.
///
/// # Panics
/// If `dim` is 0.
pub fn simulate(options: &SimulationOptions) -> Result<Simulated> {
    let pairs = [options.seeds, options.validation, options.test].map(|n| n as u128).iter().sum::<u128>();
    let rows = 2 * pairs + options.prompts as u128 * options.per_prompt as u128;
    memory::require("seeds", options.seeds, rows * options.dim as u128 * 4)?;
    if !(1..=FACTORS).contains(&options.rank) {
        return Err(Error::argument("rank", format!("1 to {FACTORS}"), options.rank));
    }
    let world = World::new(options);
    let (candidates, gold) = world.candidates(options.prompts, options.per_prompt);
    Ok(Simulated {
        seeds: world.pairs(Set::Seeds, options.seeds),
        validation: world.pairs(Set::Validation, options.validation),
        test: world.pairs(Set::Test, options.test),
        candidates,
        gold,
        gold_direction: world.gold_direction(),
    })
}

/// What a prompt is drawn for: the high part of its row number, so that no two sets share draws.
#[derive(Clone, Copy, Debug)]
enum Set {
    Seeds,
    Validation,
    Test,
    Candidates,
    Calibration,
}

/// What a draw becomes: the candidate number of its noise counter. Streams of labels use candidate 0.
#[derive(Clone, Copy, Debug)]
enum Draw {
    /// Row k holds A_jk for all j.
    Signal = 1,
    /// Rows 0 and 1: the log of tau, and mu.
    Scale,
    /// Row 0: W, C; then a row of B and a row of D per hidden unit.
    Gold,
    /// u of a prompt.
    Prompt,
    /// v of a response, side by side for a pair; row prompt * per_prompt + i of a best-of-N set.
    Response,
    /// eps of a response.
    Noise,
}

type Factors = [f32; FACTORS];

/// The draws that all prompts and responses share.
struct World {
    seed: u64,
    dim: usize,
    options: SimulationOptions,
    /// A with the scales s_k folded in, `[K, d]`.
    signal: Vec<f32>,
    /// tau, `[d]`.
    scale: Vec<f32>,
    /// mu, `[d]`.
    mean: Vec<f32>,
    /// l W.
    linear: Factors,
    /// C, B and D of each hidden unit.
    units: Vec<(f32, Factors, Factors)>,
    /// z.
    gold_scale: f32,
}

impl World {
    fn new(options: &SimulationOptions) -> World {
        let SimulationOptions { dim, seed, rank, .. } = *options;
        assert!(dim > 0, "an embedding has at least one dimension");
        let mut world = World {
            seed,
            dim,
            options: *options,
            signal: vec![0.0; FACTORS * dim],
            scale: vec![0.0; dim],
            mean: vec![0.0; dim],
            linear: [0.0; FACTORS],
            units: Vec::new(),
            gold_scale: 1.0,
        };
        let spectrum: Factors =
            std::array::from_fn(|k| if k < rank { 1.0 / ((k + 1) as f32).sqrt() } else { 0.0 });
        let norm = spectrum.iter().map(|s| s * s).sum::<f32>().sqrt();
        for (k, row) in world.signal.chunks_exact_mut(dim).enumerate() {
            fill_normals(seed, counter(Draw::Signal, Side::Chosen, k as u64), row);
            row.iter_mut().for_each(|a| *a *= spectrum[k] / norm);
        }
        fill_normals(seed, counter(Draw::Scale, Side::Chosen, 0), &mut world.scale);
        fill_normals(seed, counter(Draw::Scale, Side::Chosen, 1), &mut world.mean);
        for (tau, mu) in world.scale.iter_mut().zip(&mut world.mean) {
            let outlier = if tau.abs() > 3.0 { 20.0 } else { 1.0 };
            *tau = outlier * 0.1 * exp(0.3 * *tau);
            *mu *= outlier * 0.1;
        }
        world.draw_gold();
        world
    }

    fn draw_gold(&mut self) {
        let normals = |row: u64| -> Factors { draw(self.seed, counter(Draw::Gold, Side::Chosen, row)) };
        let k = (FACTORS as f32).sqrt();
        let outer = normals(1);
        self.linear = normals(0).map(|w| LINEAR * w / k);
        // What no embedding tells, no reward depends on.
        self.linear[self.options.rank..].fill(0.0);
        self.units = (0..UNITS)
            .map(|h| {
                let (b, d) = (normals(2 + 2 * h as u64), normals(3 + 2 * h as u64));
                (outer[h] / (UNITS as f32).sqrt(), b.map(|b| 2.0 * b / k), d.map(|d| d / k))
            })
            .collect();
        // The variance of a difference is twice that of its terms.
        const PROMPTS: u64 = 4096;
        let square = |prompt| {
            let [a, b] = self.golds(Set::Calibration, prompt);
            f64::from(a - b).powi(2)
        };
        let variance = (0..PROMPTS).map(square).sum::<f64>() / (2 * PROMPTS) as f64;
        self.gold_scale = (1.0 / variance.sqrt()) as f32;
    }

    /// Factors of a prompt.
    fn prompt(&self, set: Set, prompt: u64) -> Factors {
        draw(self.seed, counter(Draw::Prompt, Side::Chosen, row(set, prompt)))
    }

    /// Gold rewards of the two responses to a prompt, in the order in which they are drawn.
    fn golds(&self, set: Set, prompt: u64) -> [f32; 2] {
        let u = self.prompt(set, prompt);
        Side::BOTH
            .map(|side| self.gold(&u, &draw(self.seed, counter(Draw::Response, side, row(set, prompt)))))
    }

    /// R(u, v).
    fn gold(&self, u: &Factors, v: &Factors) -> f32 {
        let network: f32 = self.units.iter().map(|(c, b, d)| c * tanh(dot(b, v) + dot(d, u))).sum();
        self.gold_scale * (dot(&self.linear, v) + self.options.network * network)
    }

    /// The embedding of response `at` with factors `v` to a prompt with factors `u`.
    fn embed(&self, u: &Factors, v: &Factors, at: (Side, u64), out: &mut [f32]) {
        out.fill(0.0);
        for (row, (u, v)) in self.signal.chunks_exact(self.dim).zip(u.iter().zip(v)) {
            let f = SHARED.sqrt() * u + (1.0 - SHARED).sqrt() * v;
            out.iter_mut().zip(row).for_each(|(x, a)| *x += f * a);
        }
        let mut noise = vec![0f32; self.dim];
        fill_normals(self.seed, counter(Draw::Noise, at.0, at.1), &mut noise);
        for (j, x) in out.iter_mut().enumerate() {
            let signal = *x / (1.0 + self.options.curvature * 0.25 * *x * *x).sqrt();
            *x = self.mean[j] + self.scale[j] * (signal + self.options.noise * noise[j]);
        }
    }

    /// The solution of least norm of B w = z l W, where row k of B, `[rank, d]`, is what factor k of a response adds to an
    /// embedding: w = B^T (B B^T)^-1 z l W.
    fn gold_direction(&self) -> Option<Vec<f32>> {
        let SimulationOptions { rank, network, curvature, .. } = self.options;
        if network != 0.0 || curvature != 0.0 || rank > self.dim {
            return None;
        }
        let own = f64::from((1.0 - SHARED).sqrt());
        let rows: Vec<Vec<f64>> = self
            .signal
            .chunks_exact(self.dim)
            .take(rank)
            .map(|row| {
                row.iter().zip(&self.scale).map(|(&a, &t)| own * f64::from(a) * f64::from(t)).collect()
            })
            .collect();
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        // Gauss-Jordan elimination with pivots, on B B^T and the right-hand side beside it.
        let mut system: Vec<Vec<f64>> = (0..rank)
            .map(|i| {
                let mut line: Vec<f64> = (0..rank).map(|j| product(&rows[i], &rows[j])).collect();
                line.push(f64::from(self.gold_scale) * f64::from(self.linear[i]));
                line
            })
            .collect();
        for i in 0..rank {
            let pivot = (i..rank).max_by(|&a, &b| system[a][i].abs().total_cmp(&system[b][i].abs()))?;
            system.swap(i, pivot);
            let divisor = system[i][i];
            if divisor == 0.0 {
                return None;
            }
            system[i].iter_mut().for_each(|v| *v /= divisor);
            let line = system[i].clone();
            for (j, other) in system.iter_mut().enumerate().filter(|(j, _)| *j != i) {
                let factor = other[i];
                debug_assert_ne!(j, i);
                other.iter_mut().zip(&line).for_each(|(v, l)| *v -= factor * l);
            }
        }
        let column = |j: usize| rows.iter().zip(&system).map(|(row, line)| row[j] * line[rank]).sum::<f64>();
        Some((0..self.dim).map(|j| column(j) as f32).collect())
    }

    fn pairs(&self, set: Set, pairs: usize) -> SimulatedPairs {
        let swapped: Vec<bool> = (0..pairs as u64).map(|prompt| self.label(set, prompt)).collect();
        let agree = (0..pairs).filter(|&i| {
            let [a, b] = self.golds(set, i as u64);
            (a < b) == swapped[i]
        });
        let gold_accuracy = agree.count() as f64 / pairs.max(1) as f64;
        let sides = Side::BOTH.map(|side| {
            self.rows(pairs, |i, out| {
                let drawn = if swapped[i] { Side::BOTH[1 - side as usize] } else { side };
                let at = (drawn, row(set, i as u64));
                let v = draw(self.seed, counter(Draw::Response, at.0, at.1));
                self.embed(&self.prompt(set, i as u64), &v, at, out);
            })
        });
        SimulatedPairs { sides, gold_accuracy }
    }

    /// Whether the annotator prefers the second response.
    fn label(&self, set: Set, prompt: u64) -> bool {
        let [a, b] = self.golds(set, prompt);
        let first = 1.0 / (1.0 + exp(SHARPNESS * (b - a)));
        Stream::new(self.seed, Purpose::Simulation, row(set, prompt)).uniform() >= first
    }

    fn candidates(&self, prompts: usize, per_prompt: usize) -> (RowsBuf, Vec<f32>) {
        let factors = |i: usize| -> (Factors, Factors, (Side, u64)) {
            let at = (Side::Chosen, row(Set::Candidates, i as u64));
            let u = self.prompt(Set::Candidates, (i / per_prompt) as u64);
            (u, draw(self.seed, counter(Draw::Response, at.0, at.1)), at)
        };
        let rows = prompts * per_prompt;
        let gold = (0..rows).map(|i| {
            let (u, v, _) = factors(i);
            self.gold(&u, &v)
        });
        let gold = gold.collect();
        let embeddings = self.rows(rows, |i, out| {
            let (u, v, at) = factors(i);
            self.embed(&u, &v, at, out);
        });
        (embeddings, gold)
    }

    /// Rows made by `make`, many at a time, as BF16.
    fn rows(&self, rows: usize, make: impl Fn(usize, &mut [f32]) + Sync) -> RowsBuf {
        let mut buf = RowsBuf::zeros(Dtype::Bf16, rows, self.dim);
        let ValuesMut::Bf16(values) = buf.values_mut() else { unreachable!("made as BF16") };
        values.par_chunks_mut(self.dim).enumerate().for_each_init(
            || vec![0f32; self.dim],
            |row, (i, out)| {
                make(i, row);
                Element::narrow(row, out);
            },
        );
        buf
    }
}

fn row(set: Set, number: u64) -> u64 {
    (set as u64) << 40 | number
}

fn counter(draw: Draw, side: Side, row: u64) -> NoiseCounter {
    NoiseCounter { purpose: Purpose::Simulation, side, row, candidate: draw as u32 }
}

fn draw(seed: u64, counter: NoiseCounter) -> Factors {
    let mut out = [0f32; FACTORS];
    fill_normals(seed, counter, &mut out);
    out
}

fn dot(a: &Factors, b: &Factors) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// From the crate's own exponential, so that data sets agree on every machine.
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::best_of_n_curve;

    const SMALL: SimulationOptions = SimulationOptions {
        dim: 48,
        seeds: 60,
        validation: 30,
        test: 400,
        prompts: 100,
        per_prompt: 16,
        rank: FACTORS,
        noise: 1.5,
        network: 1.0,
        curvature: 1.0,
        seed: 3,
    };

    fn widened(rows: &RowsBuf) -> Vec<f32> {
        let mut out = vec![0f32; rows.rows() * rows.cols()];
        rows.view().values().widen(&mut out);
        out
    }

    #[test]
    fn the_same_seed_gives_the_same_rows_however_many_are_asked_for() {
        let (a, b) = (
            simulate(&SMALL).expect("it fits"),
            simulate(&SimulationOptions { seeds: 20, prompts: 10, ..SMALL }).expect("it fits"),
        );
        for side in 0..2 {
            assert_eq!(a.test.sides[side], b.test.sides[side]);
            assert_eq!(widened(&a.seeds.sides[side])[..20 * 48], widened(&b.seeds.sides[side]));
        }
        assert_eq!(a.gold[..160], b.gold);
        let other = simulate(&SimulationOptions { seed: 4, ..SMALL }).expect("it fits");
        assert_ne!(a.seeds.sides, other.seeds.sides);
        assert_ne!(a.gold, other.gold);
        // Sets, sides and candidates are draws of their own.
        assert_ne!(a.seeds.sides[0], a.seeds.sides[1]);
        assert_ne!(widened(&a.seeds.sides[0])[..30 * 48], widened(&a.validation.sides[0]));
        assert!(a.gold.windows(2).all(|w| w[0] != w[1]));
    }

    #[test]
    fn shapes_and_moments() {
        let s = simulate(&SMALL).expect("it fits");
        for (pairs, n) in [(&s.seeds, 60), (&s.validation, 30), (&s.test, 400)] {
            assert!(pairs.sides.iter().all(|side| (side.rows(), side.cols()) == (n, 48)));
        }
        assert_eq!((s.candidates.rows(), s.gold.len()), (1600, 1600));
        let values = [widened(&s.test.sides[0]), widened(&s.candidates)].concat();
        assert!(values.iter().chain(&s.gold).all(|v| v.is_finite()));
        let world = World::new(&SMALL);
        for j in 0..48 {
            let column =
                values.iter().skip(j).step_by(48).map(|&v| f64::from((v - world.mean[j]) / world.scale[j]));
            let n = (values.len() / 48) as f64;
            let mean = column.clone().sum::<f64>() / n;
            let variance = column.map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            // Signal at most 1, noise 2.25.
            assert!(mean.abs() < 0.4 && (2.3..3.6).contains(&variance), "dimension {j}: {mean}, {variance}");
        }
        let spread = s.gold.chunks(16).map(|g| {
            let mean = g.iter().sum::<f32>() / 16.0;
            f64::from(g.iter().map(|g| (g - mean).powi(2)).sum::<f32>() / 15.0)
        });
        let spread = spread.sum::<f64>() / 100.0;
        assert!((spread - 1.0).abs() < 0.15, "{spread}");
    }

    #[test]
    fn responses_to_a_prompt_are_alike() {
        let s = simulate(&SMALL).expect("it fits");
        let world = World::new(&SMALL);
        let rows = widened(&s.candidates);
        let rows: Vec<f32> =
            rows.iter().enumerate().map(|(i, v)| (v - world.mean[i % 48]) / world.scale[i % 48]).collect();
        let distance = |a: usize, b: usize| -> f64 {
            let (a, b) = (&rows[a * 48..(a + 1) * 48], &rows[b * 48..(b + 1) * 48]);
            a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        let within: f64 = (0..99).map(|p| distance(16 * p, 16 * p + 1)).sum();
        let between: f64 = (0..99).map(|p| distance(16 * p, 16 * p + 17)).sum();
        assert!(within < 0.9 * between, "{within} {between}");
    }

    #[test]
    fn gold_orders_most_pairs_and_the_oracle_is_best() {
        let s = simulate(&SMALL).expect("it fits");
        assert!((0.8..0.95).contains(&s.test.gold_accuracy), "{}", s.test.gold_accuracy);
        let found = best_of_n_curve(&s.gold, &s.gold, 16);
        let best = found.points[15];
        assert_eq!(best.model, best.oracle);
        assert!(found.random.abs() < 0.5 && best.oracle > found.random + 1.4, "{found:?}");
        // The chosen response has the higher gold reward as often as the labels say.
        let world = World::new(&SMALL);
        let gap = |i: u64| {
            let [a, b] = world.golds(Set::Test, i);
            if world.label(Set::Test, i) { b - a } else { a - b }
        };
        let right = (0..400).filter(|&i| gap(i) > 0.0).count() as f64 / 400.0;
        assert_eq!(right, s.test.gold_accuracy);
    }

    #[test]
    fn under_the_conditions_of_theorem_1_the_direction_is_the_gold_reward() {
        let options = SimulationOptions {
            dim: 64,
            seeds: 10,
            validation: 5,
            test: 20,
            prompts: 40,
            ..SimulationOptions::of_theorem_1()
        };
        let s = simulate(&options).expect("it fits");
        let w = s.gold_direction.expect("all is linear");
        let rows = widened(&s.candidates);
        let reward = |i: usize| -> f64 {
            rows[64 * i..64 * (i + 1)].iter().zip(&w).map(|(e, w)| f64::from(*e) * f64::from(*w)).sum()
        };
        let mut worst = 0f64;
        for i in (0..640).filter(|i| i % 16 != 0) {
            let gold = f64::from(s.gold[i]) - f64::from(s.gold[i - 1]);
            worst = worst.max((reward(i) - reward(i - 1) - gold).abs());
        }
        // Embeddings are stored as BF16, to 8 bits.
        assert!(worst < 0.2, "{worst}");
        assert_eq!(simulate(&SMALL).expect("it fits").gold_direction, None);
        assert!(simulate(&SimulationOptions { rank: 65, ..SMALL }).is_err());
    }
}
