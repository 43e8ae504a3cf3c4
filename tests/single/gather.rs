//! `kernels/train.cu`, the rows of a batch: in every bit those of `Standardizer::apply`.

use half::{bf16, f16};
use lensmith::backend::cuda::params::{GatherPairs, Sources, Step};

use crate::common::{assert_same_bits, normals, standardizer};
use crate::device::{Launch, Machine, Races, Schedule};

const ROWS: usize = 9;
/// Pairs of a full batch, and of this one: the last rows are zeros.
const BATCH: usize = 5;
const PAIRS: usize = 4;

#[test]
fn batches_have_the_bits_of_the_standardizer() {
    for (dim, schedule) in [(40, Schedule::PLAIN), (301, Schedule::ALL[2])] {
        let machine = Machine::new(Races::Found, schedule);
        let map = standardizer(dim);
        let values = [1, 2].map(|stream| normals(11, stream, ROWS * dim));
        // Number and bits of the storage types, and the values that they hold.
        let stored = |side: usize, dtype: u32| -> (Vec<u8>, Vec<f32>) {
            let of = |v: &f32| match dtype {
                0 => (v.to_le_bytes().to_vec(), *v),
                1 => (f16::from_f32(*v).to_le_bytes().to_vec(), f16::from_f32(*v).to_f32()),
                _ => (bf16::from_f32(*v).to_le_bytes().to_vec(), bf16::from_f32(*v).to_f32()),
            };
            let (bytes, held): (Vec<Vec<u8>>, Vec<f32>) = values[side].iter().map(of).unzip();
            (bytes.concat(), held)
        };
        let order: Vec<u32> = (0..8).map(|i| (i * 5 + 2) % ROWS as u32).collect();
        let first = 3;
        for dtypes in [[0, 1], [2, 0], [1, 2]] {
            let sides = [0, 1].map(|s| stored(s, dtypes[s]));
            let mut want = vec![0f32; 2 * BATCH * dim];
            for (side, pair) in (0..2 * PAIRS).map(|i| (i / PAIRS, i % PAIRS)) {
                let row = &mut want[(side * BATCH + pair) * dim..][..dim];
                row.copy_from_slice(&sides[side].1[order[first + pair] as usize * dim..][..dim]);
                map.apply(row);
            }
            let rows = sides.each_ref().map(|(bytes, _)| machine.upload(bytes));
            let (places, mean, std) =
                (machine.upload(&order), machine.upload(&map.mean), machine.upload(&map.std));
            let now = machine.upload(&[Step { first: first as u32, pairs: PAIRS as u32, ..Step::default() }]);
            let x = machine.empty::<f32>(want.len());
            let params = GatherPairs {
                from: Sources {
                    rows: [rows[0].address(), rows[1].address(), 0, 0],
                    dtype: [dtypes[0], dtypes[1], 0, 0],
                },
                order: places.address(),
                now: now.address(),
                mean: mean.address(),
                std: std.address(),
                x: x.address(),
                dim: dim as u32,
                batch: BATCH as u32,
            };
            let launch = Launch { grid: [3, 1, 1], block: [256, 1, 1], shared: 0 };
            machine.launch("gather_pairs", launch, params).unwrap_or_else(|e| panic!("{dtypes:?}: {e}"));
            assert_same_bits(&format!("d {dim}, {dtypes:?}"), &x.download(), &want);
        }
    }
}
