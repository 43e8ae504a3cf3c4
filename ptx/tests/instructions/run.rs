//! Runs bodies for blocks of one warp on words of input.

use ptx::Options;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::common::{Argument, HEAD, MANY, REGS, run};

/// The value of a register, from the words of a warp, a lane and the register's number.
pub type Plain = Box<dyn Fn(&[u32], usize, usize) -> u32>;

/// A body with what it stores: registers from %r10 on, compared with a definition of (words of the warp, lane, register).
pub struct Check {
    pub body: String,
    pub words: usize,
    pub plain: Plain,
}

impl Check {
    pub fn new(body: impl Into<String>, plain: impl Fn(&[u32], usize) -> u32 + 'static) -> Check {
        Check { body: body.into(), words: 1, plain: Box::new(move |v, lane, _| plain(v, lane)) }
    }
    pub fn wide(
        body: impl Into<String>,
        words: usize,
        plain: impl Fn(&[u32], usize, usize) -> u32 + 'static,
    ) -> Check {
        Check { body: body.into(), words, plain: Box::new(plain) }
    }
    /// The kernel: %r0 is the lane, %r1 the thread's word, %r2 shared memory, %r3 64 bytes of it for each lane, %rd4
    /// the same in global memory, %rd5 an argument that is the address of a global buffer of one word for each block.
    pub fn text(&self) -> String {
        let stores: String =
            (0..self.words).map(|w| format!("st.global.u32 [%rd3+{}], %r{};\n", 4 * w, 10 + w)).collect();
        format!(
            "{HEAD}.const .align 16 .b8 table[64] = {{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,\
             240,241,242,243,244,245,246,247,248,249,250,251,252,253,254,255,128,129,130,131,132,133,134,135,136,137,138,139,140,141,142,143}};\n\
             .visible .entry k(.param .u64 p0, .param .u64 p1, .param .u64 p2, .param .align 16 .b8 p3[64]) {{\n{REGS}\
             .shared .align 128 .b8 s[4096];\n.local .align 32 .b8 here[64];\n\
             ld.param.u64 %rd0, [p0]; ld.param.u64 %rd1, [p1]; ld.param.u64 %rd5, [p2];\n\
             mov.u32 %r0, %tid.x; mov.u32 %r5, %ctaid.x; mov.u32 %r2, s;\n\
             mad.lo.u32 %r6, %r5, 32, %r0; mad.wide.u32 %rd2, %r6, 4, %rd0; mad.wide.u32 %rd3, %r6, {}, %rd1;\n\
             mad.wide.u32 %rd4, %r6, 64, %rd5; mad.lo.u32 %r3, %r0, 64, %r2; ld.global.u32 %r1, [%rd2];\n{}\n{stores}ret;\n}}\n",
            4 * self.words,
            self.body
        )
    }
    /// Runs it on so many words.
    pub fn run(&self, input: &[u32]) {
        let text = self.text();
        let bytes: Vec<u8> = input.iter().flat_map(|v| v.to_le_bytes()).collect();
        let argument: Vec<u8> = (0..64).map(|i| 255 - 3 * i).collect();
        let more = vec![0x5a; 64 * input.len()];
        let size = 4 * self.words * input.len();
        let arguments =
            [Argument::In(&bytes), Argument::Out(size), Argument::In(&more), Argument::Value(&argument)];
        let options = Options { step_limit: 1 << 20, ..Options::default() };
        let out = run(&text, input.len() as u32 / 32, 32, &arguments, &options).swap_remove(1);
        let got: Vec<u32> = out.chunks(4).map(|c| u32::from_le_bytes(c.try_into().expect("four"))).collect();
        for (w, values) in input.chunks(32).enumerate() {
            for lane in 0..32 {
                for r in 0..self.words {
                    let got = got[(32 * w + lane) * self.words + r];
                    let want = (self.plain)(values, lane, r);
                    assert_eq!(
                        got, want,
                        "warp {w}, lane {lane}, register {r}: {got:#x}, not {want:#x}\n{}",
                        self.body
                    );
                }
            }
        }
    }
}

/// Random words, half of them small or special.
pub fn words(n: usize, seed: u64) -> Vec<u32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..n)
        .map(|_| {
            let v: u32 = rng.random();
            match v & 7 {
                0..2 => v >> 8 & 3,
                2 => [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x8000, 0xff, 0x80][(v >> 8 & 7) as usize],
                3 => v & 0x1f1f,
                _ => v,
            }
        })
        .collect()
}

/// Runs checks on 10,240 words each.
pub fn all(checks: &[Check]) {
    let input = words(MANY, 5);
    checks.iter().for_each(|c| c.run(&input));
}
