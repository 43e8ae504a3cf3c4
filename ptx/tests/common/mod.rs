//! Snippets of PTX as kernels: one thread an element.
#![allow(dead_code, reason = "not every test uses everything")]

mod device;

use ptx::{Launch, Memory, Module, Options, launch};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Start of every snippet.
pub const HEAD: &str = ".version 8.5\n.target sm_90a\n.address_size 64\n";

/// Registers that snippets may use: %r0.. and the like of each type.
pub const REGS: &str = ".reg .pred %p<16>; .reg .b16 %rs<16>; .reg .b32 %r<64>; .reg .b64 %rd<64>; .reg .f32 %f<64>; .reg .f64 %fd<16>;\n";

/// A kernel `k` with parameters `p0`, `p1`, ... of 8 bytes around a body.
pub fn kernel(params: usize, body: &str) -> String {
    let params: Vec<String> = (0..params).map(|n| format!(".param .u64 p{n}")).collect();
    format!("{HEAD}.visible .entry k({}) {{\n{REGS}{body}\nret;\n}}\n", params.join(", "))
}

/// The module of a text, which must be well formed.
pub fn parse(text: &str) -> Module {
    Module::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    /// The address of a buffer with these bytes.
    In(&'a [u8]),
    /// The address of a buffer of so many bytes, which the kernel writes.
    Out(usize),
    /// The bytes of the parameter itself.
    Value(&'a [u8]),
}

impl Argument<'_> {
    /// Bytes of the buffer or the value.
    pub fn size(&self) -> usize {
        match self {
            Argument::In(bytes) | Argument::Value(bytes) => bytes.len(),
            Argument::Out(size) => *size,
        }
    }
}

/// Runs the kernel `k` of a text, whose parameters lie one behind the other at multiples of 8 (16, where they are larger),
/// in the machine or, where one is tested, on a GPU. Gives what the buffers then hold.
pub fn run(text: &str, grid: u32, block: u32, arguments: &[Argument<'_>], options: &Options) -> Vec<Vec<u8>> {
    if let Some(number) = device::tested() {
        return device::run(number, text, grid, block, arguments);
    }
    let module = parse(text);
    let mut memory = Memory::new();
    let (mut args, mut buffers) = (Vec::new(), Vec::new());
    for argument in arguments {
        let at = match argument {
            Argument::In(bytes) => memory.alloc_with(bytes),
            Argument::Out(size) => memory.alloc(*size as u64),
            Argument::Value(bytes) => {
                args.resize(args.len().next_multiple_of(if bytes.len() > 8 { 16 } else { 8 }), 0u8);
                args.extend(*bytes);
                continue;
            }
        };
        args.extend(at.to_le_bytes());
        buffers.push((at, argument.size()));
    }
    let request = Launch { args, ..Launch::new("k", [grid, 1, 1], [block, 1, 1]) };
    launch(&module, &mut memory, &request, options).unwrap_or_else(|f| panic!("{f}\n{text}"));
    buffers.iter().map(|(at, size)| memory.read(*at, *size)).collect()
}

/// Bits of a type: `b16`, `b32` or `b64`, with its register.
fn register(bits: u32, n: usize) -> String {
    match bits {
        16 => format!("%rs{n}"),
        32 => format!("%r{n}"),
        _ => format!("%rd{}", n + 16),
    }
}

/// Runs `text` for every element: its inputs are `{a}`, `{b}`, `{c}`, its output `{d}`.
pub fn elements(text: &str, widths: &[u32], to: u32, inputs: &[Vec<u64>]) -> Vec<u64> {
    many(&[text.to_string()], widths, to, inputs, 0).remove(0)
}

/// Runs several snippets on the same inputs, each with its own output.
pub fn many(texts: &[String], widths: &[u32], to: u32, inputs: &[Vec<u64>], seed: u64) -> Vec<Vec<u64>> {
    let n = inputs[0].len();
    let mut body = String::from(
        "mov.u32 %r40, %ctaid.x; mov.u32 %r41, %ntid.x; mov.u32 %r42, %tid.x; mad.lo.s32 %r43, %r40, %r41, %r42;\n",
    );
    let names: Vec<String> = widths.iter().enumerate().map(|(k, w)| register(*w, k)).collect();
    for (k, (width, name)) in widths.iter().zip(&names).enumerate() {
        body += &format!(
            "ld.param.u64 %rd0, [p{k}]; mad.wide.u32 %rd1, %r43, {}, %rd0; ld.global.b{width} {name}, [%rd1];\n",
            width / 8
        );
    }
    let out = register(to, 8);
    for (k, text) in texts.iter().enumerate() {
        let mut snippet = text.replace("{d}", &out);
        for (slot, name) in ["{a}", "{b}", "{c}"].iter().zip(&names) {
            snippet = snippet.replace(slot, name);
        }
        body += &format!(
            "{snippet}\nld.param.u64 %rd0, [p{}]; mad.wide.u32 %rd1, %r43, {}, %rd0; st.global.b{to} [%rd1], {out};\n",
            widths.len() + k,
            to / 8
        );
    }
    let size = to as usize / 8;
    let padded = n.next_multiple_of(256);
    let inputs: Vec<Vec<u8>> = inputs
        .iter()
        .zip(widths)
        .map(|(values, width)| {
            let mut values = values.clone();
            values.resize(padded, 0);
            values.iter().flat_map(|v| v.to_le_bytes()[..*width as usize / 8].to_vec()).collect()
        })
        .collect();
    let outs = texts.iter().map(|_| Argument::Out(padded * size));
    let arguments: Vec<Argument<'_>> = inputs.iter().map(|i| Argument::In(i)).chain(outs).collect();
    let options = Options { races: false, counters: false, seed, ..Options::default() };
    let text = kernel(widths.len() + texts.len(), &body);
    let got = run(&text, padded as u32 / 256, 256, &arguments, &options);
    let value = |b: &[u8]| b.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
    got[widths.len()..].iter().map(|out| out[..n * size].chunks(size).map(value).collect()).collect()
}

/// Operands: edge cases of integers and floating-point formats, their neighbours, and random bits.
pub fn operands(bits: u32, n: usize, seed: u64) -> Vec<u64> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let edges: Vec<u64> = match bits {
        16 => vec![
            0, 1, 0x7fff, 0x8000, 0xffff, 0x3c00, 0xbc00, 0x7c00, 0xfc00, 0x7e00, 0x03ff, 0x0400, 0x7bff,
            0x3f80, 0x7f80, 0x0080, 0x007f,
        ],
        32 => vec![
            0,
            1,
            2,
            31,
            32,
            33,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x3f80_0000,
            0xbf80_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0x007f_ffff,
            0x0080_0000,
            0x7f7f_ffff,
            0x3380_0000,
            0x4f00_0000,
            0xcf00_0000,
            0x3f00_0000,
            0x3f7f_ffff,
            0x4b00_0001,
            0x3fff_8000,
            0x3f80_8000,
            0x477f_f000,
            0x3300_0000,
            0x3f81_8000,
        ],
        _ => vec![
            0,
            1,
            63,
            64,
            65,
            i64::MAX as u64,
            1 << 63,
            u64::MAX,
            1f64.to_bits(),
            (-1f64).to_bits(),
            f64::INFINITY.to_bits(),
            f64::NEG_INFINITY.to_bits(),
            f64::NAN.to_bits(),
            0.5f64.to_bits(),
            f64::MIN_POSITIVE.to_bits(),
            f64::MAX.to_bits(),
            (f64::MIN_POSITIVE.to_bits() - 1),
            9.3e18f64.to_bits(),
            (-9.3e18f64).to_bits(),
            2_147_483_648.5f64.to_bits(),
        ],
    };
    let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    (0..n)
        .map(|_| match rng.random_range(0..8) {
            0 | 1 => edges[rng.random_range(0..edges.len())],
            2 => {
                edges[rng.random_range(0..edges.len())].wrapping_add(rng.random_range(0..3)).wrapping_sub(1)
                    & mask
            }
            3 if bits == 32 => u64::from((rng.random_range(-1e3f32..1e3)).to_bits()),
            3 if bits == 64 => rng.random_range(-1e3f64..1e3).to_bits(),
            4 => rng.random_range(0..64),
            _ => rng.random::<u64>() & mask,
        })
        .collect()
}

/// Number of operands of each instruction.
pub const MANY: usize = 10_240;

/// Compares an instruction of up to three operands with a plain definition.
pub fn check(text: &str, widths: &[u32], to: u32, plain: impl Fn(&[u64]) -> u64) {
    let inputs: Vec<Vec<u64>> =
        widths.iter().enumerate().map(|(k, w)| operands(*w, MANY, 17 + 31 * k as u64)).collect();
    let got = elements(text, widths, to, &inputs);
    for (i, got) in got.iter().enumerate() {
        let operands: Vec<u64> = inputs.iter().map(|v| v[i]).collect();
        let want = plain(&operands);
        assert_eq!(*got, want, "{text}: operands {operands:#x?}, got {got:#x}, want {want:#x}");
    }
}
