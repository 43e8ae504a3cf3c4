//! `kernels/product_f32.cu` against sums in the order that it states, bit for bit: slices of k, added in
//! their order by the block that finishes last. Also `product_bf16.cu`, whose order within a slice is that of
//! tensor cores.

use half::bf16;
use lensmith::backend::Precision;
use lensmith::backend::cuda::layout;
use lensmith::backend::cuda::params::{Product, Products};

use crate::common::normals;
use crate::device::{Launch, Machine, Races, Schedule};

#[derive(Clone, Copy, Debug)]
struct Case {
    form: &'static str,
    /// m, n, k.
    sizes: [usize; 3],
    slices: usize,
    /// Rows that take part, of m (nt, nn) or k (tn).
    limit: Option<u32>,
    /// Bias and ReLU.
    bias: bool,
    mask: bool,
    add: bool,
    /// k of a second product, in the last slice (nt).
    second: Option<usize>,
    /// Column sums of a (tn).
    sums: bool,
}

const PLAIN: Case = Case {
    form: "nt",
    sizes: [70, 37, 300],
    slices: 3,
    limit: None,
    bias: false,
    mask: false,
    add: false,
    second: None,
    sums: false,
};

fn cases() -> Vec<Case> {
    vec![
        Case { bias: true, ..PLAIN },
        Case { slices: 1, bias: true, mask: true, ..PLAIN },
        Case { sizes: [130, 68, 203], slices: 4, limit: Some(67), second: Some(80), bias: true, ..PLAIN },
        Case { sizes: [40, 64, 100], slices: 2, limit: Some(0), second: Some(21), ..PLAIN },
        Case { form: "nn", sizes: [66, 130, 260], slices: 2, mask: true, ..PLAIN },
        Case { form: "nn", sizes: [5, 66, 40], slices: 1, add: true, ..PLAIN },
        Case { form: "nn", sizes: [65, 20, 500], slices: 5, add: true, ..PLAIN },
        Case { form: "tn", sizes: [70, 130, 150], slices: 2, sums: true, ..PLAIN },
        Case { form: "tn", sizes: [130, 9, 37], slices: 1, sums: true, ..PLAIN },
        Case { form: "tn", sizes: [33, 40, 256], slices: 3, limit: Some(77), ..PLAIN },
        Case { form: "tn", sizes: [3, 70, 130], slices: 2, sums: true, ..PLAIN },
    ]
}

/// What a case is made of; `rounded`: operands as BF16 has them.
struct Data {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    d: Vec<f32>,
    bias: Vec<f32>,
    mask: Vec<f32>,
    out: Vec<f32>,
}

impl Data {
    fn new(case: &Case) -> Data {
        let [m, n, k] = case.sizes;
        let l = case.second.unwrap_or(1);
        let draw = |stream, count| normals(7, stream, count);
        Data {
            a: draw(1, m * k),
            b: draw(2, n * k),
            c: draw(3, m * l),
            d: draw(4, n * l),
            bias: draw(5, n),
            mask: draw(6, m * n),
            out: draw(7, m * n),
        }
    }
}

/// The result, and the largest sum of magnitudes behind a value of it. Slices end with a multiple of
/// `granule`.
fn expected(case: &Case, data: &Data, granule: usize, rounded: bool) -> (Vec<f32>, f32) {
    let ([m, n, k], Data { a, b, c, d, bias, mask, out }) = (case.sizes, data);
    let value = |v: f32| if rounded { bf16::from_f32(v).to_f32() } else { v };
    let limit = case.limit.map_or(usize::MAX, |l| l as usize);
    let (rows, depth) = if case.form == "tn" { (m, k.min(limit)) } else { (m.min(limit), k) };
    let deep = depth.div_ceil(case.slices).next_multiple_of(granule);
    let (mut want, mut largest) = (Vec::new(), 0f32);
    for row in 0..m {
        for column in 0..n {
            let x = |i: usize| if case.form == "tn" { a[i * m + row] } else { a[row * k + i] };
            let w = |i: usize| if case.form == "nt" { b[column * k + i] } else { b[i * n + column] };
            let mut magnitudes = 0f32;
            // Of every sixteen the first eight in one chain, the rest in another.
            let mut chains = |from: usize, end: usize, x: &dyn Fn(usize) -> f32, w: &dyn Fn(usize) -> f32| {
                let mut sums = [0f32; 2];
                for i in from..end {
                    magnitudes += (x(i) * w(i)).abs();
                    let sum = &mut sums[(i - from) / 8 % 2];
                    *sum = value(x(i)).mul_add(value(w(i)), *sum);
                }
                sums[0] + sums[1]
            };
            let mut slices: Vec<f32> = (0..case.slices)
                .map(|s| {
                    let end = if row < rows { ((s + 1) * deep).min(depth) } else { 0 };
                    chains(s * deep, end, &x, &w)
                })
                .collect();
            if let Some(l) = case.second {
                slices.push(chains(0, l, &|i| c[row * l + i], &|i| d[column * l + i]));
            }
            let mut sum = slices.into_iter().reduce(|a, b| a + b).expect("a slice");
            if case.bias {
                sum = (sum + bias[column]).max(0.0);
            }
            if case.mask && mask[row * n + column] <= 0.0 {
                sum = 0.0;
            }
            want.push(if case.add { out[row * n + column] + sum } else { sum });
            largest = largest.max(magnitudes);
        }
    }
    (want, largest)
}

/// Sums of the columns of a `[k, m]`: eight of every eighth row, added in turn.
fn expected_sums(case: &Case, a: &[f32]) -> Vec<f32> {
    let [m, _, k] = case.sizes;
    let one = |column: usize, first: usize| -> f64 {
        (first..k).step_by(8).fold(0.0, |sum, row| sum + f64::from(a[row * m + column]))
    };
    (0..m).map(|column| (1..8).fold(one(column, 0), |sum, g| sum + one(column, g)) as f32).collect()
}

/// Blocks of a product: those of its tiles by slices, and with `sums` one for each row of tiles.
fn blocks(case: &Case) -> ([usize; 3], usize) {
    let [m, n, _] = case.sizes;
    let grid = [n.div_ceil(64), m.div_ceil(64), case.slices + usize::from(case.second.is_some())];
    (grid, if case.sums { grid[1] } else { 0 })
}

/// Runs cases twice with the same tickets, which the first run must leave as they were; gives out and sums of
/// each. Those of the form tn are one launch, of others there is one alone.
fn run(machine: &Machine, precision: &str, cases: &[(Case, Data)], schedule: Schedule) -> Vec<[Vec<f32>; 2]> {
    let shared = layout::product(if precision == "f32" { Precision::F32 } else { Precision::Bf16 });
    let kernel = format!("product_{}_{precision}", cases[0].0.form);
    let inputs: Vec<_> = cases
        .iter()
        .map(|(case, Data { a, b, c, d, bias, mask, .. })| {
            let ([m, n, _], (grid, _)) = (case.sizes, blocks(case));
            let limit = machine.upload(&[case.limit.unwrap_or(0)]);
            let partial = machine.empty::<f32>(grid[2] * m * n);
            let tickets = machine.upload(&vec![0u32; grid[0] * grid[1]]);
            ([a, b, c, d, bias, mask].map(|v| machine.upload(v)), limit, partial, tickets)
        })
        .collect();
    let [first, second] = [0, 1].map(|_| {
        let outputs: Vec<_> = cases
            .iter()
            .map(|(case, data)| {
                let [m, n, _] = case.sizes;
                let out = if case.add { machine.upload(&data.out) } else { machine.empty(m * n) };
                (out, machine.empty::<f32>(m))
            })
            .collect();
        let products = cases.iter().zip(&inputs).zip(&outputs).map(|(((case, _), inputs), (out, sums))| {
            let ([m, n, k], ([_, _, slices], _)) = (case.sizes, blocks(case));
            let ([a, b, c, d, bias, mask], limit, partial, tickets) = inputs;
            let [lda, ldb] = match case.form {
                "nt" => [k, k],
                "tn" => [m, n],
                _ => [k, n],
            };
            let [m, n, k, l, lda, ldb, slices] =
                [m, n, k, case.second.unwrap_or(0), lda, ldb, slices].map(|s| s as u32);
            let or_null = |wanted: bool, address: u64| if wanted { address } else { 0 };
            Product {
                a: a.address(),
                b: b.address(),
                out: out.address(),
                bias: or_null(case.bias, bias.address()),
                mask: or_null(case.mask, mask.address()),
                limit: or_null(case.limit.is_some(), limit.address()),
                c: or_null(case.second.is_some(), c.address()),
                d: or_null(case.second.is_some(), d.address()),
                sums: or_null(case.sums, sums.address()),
                partial: or_null(slices > 1, partial.address()),
                tickets: or_null(slices > 1, tickets.address()),
                m,
                n,
                k,
                l,
                lda,
                ldb,
                ldo: n,
                relu: u32::from(case.bias),
                add: u32::from(case.add),
                slices,
            }
        });
        let said = if cases[0].0.form == "tn" {
            let mut group = Products::default();
            for (i, (p, (case, _))) in products.zip(cases).enumerate() {
                let ([x, y, z], sums) = blocks(case);
                (group.of[i], group.blocks[i]) = (p, (sums + x * y * z) as u32);
            }
            let grid = [group.blocks.iter().sum(), 1, 1];
            machine.launch(&kernel, Launch { grid, block: [128, 1, 1], shared }, group)
        } else {
            let [p]: [Product; 1] = products.collect::<Vec<_>>().try_into().expect("one case");
            let grid = blocks(&cases[0].0).0.map(|g| g as u32);
            machine.launch(&kernel, Launch { grid, block: [128, 1, 1], shared }, p)
        };
        said.unwrap_or_else(|e| {
            panic!("{:?}, {schedule:?}: {e}", cases.iter().map(|c| c.0).collect::<Vec<_>>())
        });
        let mut made = Vec::new();
        for ((case, _), (out, sums)) in cases.iter().zip(&outputs) {
            assert_eq!(out.unwritten(), 0, "{case:?}");
            made.push([out.download(), if case.sums { sums.download() } else { Vec::new() }]);
        }
        made
    });
    assert!(first == second, "{schedule:?}: two runs differ");
    first
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Launches: each case alone, and all of the form tn together.
fn launches() -> Vec<Vec<(Case, Data)>> {
    let with_data = |case: Case| (case, Data::new(&case));
    let mut out: Vec<Vec<_>> = cases().into_iter().map(|case| vec![with_data(case)]).collect();
    out.push(cases().into_iter().filter(|case| case.form == "tn").map(with_data).collect());
    out
}

#[test]
fn products_have_the_bits_of_their_order() {
    let all = Schedule::ALL.map(|s| (Races::Ignored, s));
    for cases in launches() {
        let wanted: Vec<_> = cases.iter().map(|(case, data)| expected(case, data, 16, false).0).collect();
        for (races, schedule) in
            [(Races::Found, Schedule::PLAIN), (Races::Found, Schedule::ALL[3])].into_iter().chain(all)
        {
            let made = run(&Machine::new(races, schedule), "f32", &cases, schedule);
            for (((case, data), [out, sums]), want) in cases.iter().zip(made).zip(&wanted) {
                assert!(bits(&out) == bits(want), "{case:?} of {}, {schedule:?}", cases.len());
                if case.sums {
                    assert!(bits(&sums) == bits(&expected_sums(case, &data.a)), "sums of {case:?}");
                }
            }
        }
    }
}

#[test]
fn bf16_products_are_near_it() {
    for cases in launches() {
        let wanted: Vec<_> = cases.iter().map(|(case, data)| expected(case, data, 32, true)).collect();
        let mut seen: Vec<Vec<[Vec<f32>; 2]>> = Vec::new();
        for (races, schedule) in [
            (Races::Found, Schedule::ALL[2]),
            (Races::Ignored, Schedule::ALL[1]),
            (Races::Ignored, Schedule::PLAIN),
        ] {
            let made = run(&Machine::new(races, schedule), "bf16", &cases, schedule);
            for (((case, data), [out, sums]), (want, magnitudes)) in cases.iter().zip(&made).zip(&wanted) {
                for (i, (got, want)) in out.iter().zip(want).enumerate() {
                    // Products of BF16 are exact in F32; what differs is the order of the sums.
                    assert!((got - want).abs() <= 1e-6 * magnitudes, "{case:?}: {i}: {got}, not {want}");
                }
                if case.sums {
                    assert!(bits(sums) == bits(&expected_sums(case, &data.a)), "sums of {case:?}");
                }
            }
            seen.push(made);
        }
        assert!(seen.windows(2).all(|w| w[0] == w[1]), "a result depends on the schedule");
    }
}
