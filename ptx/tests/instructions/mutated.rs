//! Kernels of the other tests with operands exchanged: an error, a fault or a result, never a panic.

use ptx::{Launch, Memory, Module, Options, launch};
use rand::{Rng, SeedableRng, rngs::SmallRng};

#[test]
fn exchanged_operands() {
    let texts: Vec<String> = [
        crate::memory::texts(),
        crate::atomics::texts(),
        crate::warp::texts(),
        crate::copies::texts(),
        crate::hopper::texts(),
    ]
    .concat();
    let mut rng = SmallRng::seed_from_u64(11);
    let (mut parsed, mut ran) = (0, 0);
    for _ in 0..4000 {
        let text = &texts[rng.random_range(0..texts.len())];
        let mut words: Vec<&str> = text.split_inclusive([' ', ',', ';', ']', '}', '\n']).collect();
        let start = words.iter().position(|w| w.starts_with("ld.param")).expect("a body");
        for _ in 0..rng.random_range(1..4) {
            let special =
                ["0,", "-1;", "0xffffffff,", "%r1,", "%rd1,", "[%rd1],", "[%r2],", "%p1,", "%laneid,"];
            let at = rng.random_range(start..words.len());
            let other = rng.random_range(start..words.len());
            if rng.random_range(0..3) == 0 {
                words[at] = special[rng.random_range(0..special.len())];
            } else if words[at].starts_with(['%', '[', '-']) == words[other].starts_with(['%', '[', '-']) {
                words.swap(at, other);
            }
        }
        let text = words.concat();
        let Ok(module) = Module::parse(&text) else { continue };
        parsed += 1;
        let mut memory = Memory::new();
        let a = memory.alloc_with(&[3; 8192]);
        let kernel = &module.kernels[0];
        let mut args: Vec<u8> = (0..8).flat_map(|_| a.to_le_bytes()).collect();
        args.resize(kernel.param_bytes() as usize, 1);
        args.truncate(kernel.param_bytes() as usize);
        let request = Launch { args, ..Launch::new("k", [2, 1, 1], [64, 1, 1]) };
        let options = Options { step_limit: 3000, ..Options::default() };
        ran += u32::from(launch(&module, &mut memory, &request, &options).is_ok());
    }
    assert!(parsed > 500 && ran > 50, "{parsed} of 4,000 texts parsed, {ran} ran");
}
