//! `kernels/rows.cu` against plain loops: the same bytes and places.

use lensmith::backend::cuda::params::{FindNonFinite, PickRows};

use crate::device::{Launch, Machine, Races, Schedule};

/// Two blocks: more rows than their warps.
const LAUNCH: Launch = Launch { grid: [2, 1, 1], block: [256, 1, 1], shared: 0 };

fn schedules() -> impl Iterator<Item = (Races, Schedule)> {
    let all = Schedule::ALL.map(|s| (Races::Ignored, s));
    [(Races::Found, Schedule::PLAIN)].into_iter().chain(all)
}

#[test]
fn rows_are_picked() {
    for row_bytes in [2usize, 16, 24, 30, 48, 1024 + 16] {
        let rows: Vec<u8> = (0..37 * row_bytes).map(|i| (i * 37 / 11) as u8).collect();
        let index: Vec<u32> = (0..41u32).map(|i| (i * 29 + 3) % 37).collect();
        let want: Vec<u8> =
            index.iter().flat_map(|&i| rows[i as usize * row_bytes..][..row_bytes].to_vec()).collect();
        for (races, schedule) in schedules() {
            let machine = Machine::new(races, schedule);
            let (from, places) = (machine.upload(&rows), machine.upload(&index));
            let out = machine.empty::<u8>(want.len());
            let params = PickRows {
                from: from.address(),
                index: places.address(),
                out: out.address(),
                count: 41,
                row_bytes: row_bytes as u32,
                ..PickRows::default()
            };
            machine.launch("pick_rows", LAUNCH, params).unwrap_or_else(|e| panic!("{row_bytes} bytes: {e}"));
            assert_eq!(out.unwritten(), 0);
            assert!(out.download() == want, "{row_bytes} bytes, {races:?}, {schedule:?}");
        }
    }
}

#[test]
fn the_first_value_that_is_not_finite_is_found() {
    // The storage type, its number of bytes, and bits of a finite value of the largest exponent, infinity and
    // NaN.
    let types = [
        ("f32", 4, 0x7f7f_ffffu32, 0xff80_0000u32, 0x7f80_0001u32),
        ("f16", 2, 0x7bff, 0xfc00, 0x7c01),
        ("bf16", 2, 0xff7f, 0x7f80, 0xff81),
    ];
    for (name, size, finite, infinity, nan) in types {
        for count in [1usize, 7, 8, 1023, 9000] {
            let last = count - 1;
            for bad in [vec![], vec![last], vec![0, last], vec![last / 2, last], vec![last / 3, last / 2]] {
                let mut bits = vec![finite; count];
                for (i, &at) in bad.iter().enumerate() {
                    bits[at] = [infinity, nan][(i + count) % 2];
                }
                let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()[..size].to_vec()).collect();
                let want = bad.first().map_or(u64::MAX, |&at| at as u64);
                for (races, schedule) in schedules() {
                    let machine = Machine::new(races, schedule);
                    let (values, first) = (machine.upload(&bytes), machine.upload(&[u64::MAX]));
                    let params = FindNonFinite {
                        values: values.address(),
                        first: first.address(),
                        count: count as u64,
                    };
                    let kernel = format!("find_non_finite_{name}");
                    machine
                        .launch(&kernel, LAUNCH, params)
                        .unwrap_or_else(|e| panic!("{count} of {name}: {e}"));
                    assert_eq!(first.download(), [want], "{count} of {name}, {bad:?}, {races:?}");
                }
            }
        }
    }
}
