//! `kernels/adam.cu` against the arithmetic of the CPU backend, which Rust neither fuses nor reorders: the
//! same bits.

use lensmith::backend::cuda::params::{Adam, EndStep, Step};
use lensmith::noise::{NoiseCounter, Purpose, Side, fill_normals};

use crate::device::{Launch, Machine, Races, Schedule};

fn normals(n: usize, row: u64) -> Vec<f32> {
    let mut out = vec![0f32; n];
    fill_normals(
        9,
        NoiseCounter { purpose: Purpose::Simulation, side: Side::Chosen, row, candidate: 0 },
        &mut out,
    );
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The order in which a block of 64 threads adds: each thread its own, a butterfly in each warp, the warps.
fn sum_of_64_threads(values: &[f64]) -> f64 {
    let mut lanes: Vec<f64> =
        (0..64).map(|t| values.iter().skip(t).step_by(64).fold(0.0, |sum, v| sum + v)).collect();
    for step in [16, 8, 4, 2, 1] {
        lanes = (0..64).map(|t| lanes[t] + lanes[t ^ step]).collect();
    }
    lanes[0] + lanes[32]
}

#[test]
fn steps_have_the_bits_of_the_cpu() {
    let (beta1, keep1, beta2, keep2) = (0.9f32, 0.1f32, 0.999f32, 0.001f32);
    let (rate, inverse_root, eps, decay) = (3.7e-4f32, 5.3f32, 1e-8f32, 0.9997f32);
    let all = Schedule::ALL.map(|s| (Races::Ignored, s));
    for n in [1usize, 3, 4, 7, 64, 1023, 1500] {
        let start =
            [normals(n, 0), normals(n, 1), normals(n, 2), normals(n, 3).iter().map(|v| v * v).collect()];
        // Some so small that squares of gradients and second moments are below the smallest normal number.
        let mut start: [Vec<f32>; 4] = start;
        for i in (0..n).step_by(5) {
            start[1][i] *= 1e-20;
            start[3][i] *= 1e-40;
        }
        let [mut w, g, mut m, mut v]: [Vec<f32>; 4] = start.clone();
        for i in 0..n {
            m[i] = beta1 * m[i] + keep1 * g[i];
            v[i] = beta2 * v[i] + keep2 * (g[i] * g[i]);
            w[i] = decay * w[i] - rate * m[i] / (v[i].sqrt() * inverse_root + eps);
        }
        for (races, schedule) in [(Races::Found, Schedule::PLAIN)].into_iter().chain(all) {
            let machine = Machine::new(races, schedule);
            // Parts of a buffer may start anywhere.
            let skew = usize::from(schedule == Schedule::ALL[1]);
            let [dw, dg, dm, dv] =
                start.each_ref().map(|values| machine.upload(&[&vec![0.0; skew][..], values].concat()));
            let [step, next, later] = [(rate, 1), (0.5, 2), (0.25, 3)].map(|(rate, first)| Step {
                first,
                rate,
                inverse_root,
                ..Step::default()
            });
            let (now, table) = (machine.upload(&[step]), machine.upload(&[step, next, later]));
            let (turn, ticket) = (machine.upload(&[1u32]), machine.upload(&[0u32]));
            // More terms than blocks, of more values than a block has threads.
            let losses: Vec<f64> = (0..3 * 70).map(|i| f64::from(i) / 7.0).collect();
            let totals = machine.upload(&[1.0, 2.0, 3.0f64]);
            let device_losses = machine.upload(&losses);
            let [w_at, g_at, m_at, v_at] =
                [&dw, &dg, &dm, &dv].map(|buffer| buffer.address() + 4 * skew as u64);
            let params = Adam {
                w: w_at,
                g: g_at,
                m: m_at,
                v: v_at,
                end: EndStep {
                    losses: device_losses.address(),
                    totals: totals.address(),
                    table: table.address(),
                    turn: turn.address(),
                    now: now.address(),
                    count: 70,
                    terms: 3,
                },
                ticket: ticket.address(),
                n: n as u64,
                beta1,
                keep1,
                beta2,
                keep2,
                eps,
                decay,
            };
            // Two blocks of 64 threads: with a large n each thread takes several values.
            let launch = Launch { grid: [2, 1, 1], block: [64, 1, 1], shared: 16 };
            machine.launch("adam_f32", launch, params).unwrap_or_else(|e| panic!("{n} elements: {e}"));
            for (what, got, want) in
                [("w", dw.download(), &w), ("m", dm.download(), &m), ("v", dv.download(), &v)]
            {
                assert!(bits(&got[skew..]) == bits(want), "{what} of {n} elements, {races:?}, {schedule:?}");
            }
            assert_eq!(bits(&dg.download()[skew..]), bits(&g), "the gradient is only read");
            let first = now.download()[0].first;
            assert_eq!((first, turn.download(), ticket.download()), (2, vec![2], vec![0]), "the next step");
            let want: Vec<f64> =
                (0..3).map(|t| 1.0 + t as f64 + sum_of_64_threads(&losses[t * 70..][..70])).collect();
            assert_eq!(totals.download(), want, "sums of losses, {n} elements, {races:?}, {schedule:?}");
        }
    }
}
