//! `ldmatrix`, `stmatrix`, `movmatrix` and `mma.sync`, PTX ISA 9.7.14.5.

use super::soft::{F16, F64, pack, unpack};
use super::spaces::{Doing, Where};
use super::{Exec, lanes};
use crate::machine::fault::Run;
use crate::ops::{MatMul, Round};
use crate::parse::ast::Space;
use crate::program::Instr;

/// A 16-bit value as F32.
fn wide(v: u32, bf16: bool) -> f32 {
    match bf16 {
        true => f32::from_bits(v << 16),
        false => half::f16::from_bits(v as u16).to_f32(),
    }
}

/// F32 bits as tensor cores read TF32: the lower 13 do not count.
pub(super) fn tf32(v: u32) -> f32 {
    f32::from_bits(v & !0x1fff)
}

impl Exec<'_, '_> {
    /// Lane 8 m + r gives the address of row r of matrix m; lane l gets elements 2 (l mod 4) and the next of row l / 4.
    pub(super) fn ldmatrix(&mut self, i: &Instr, m: u32, count: u8, trans: bool) -> Run<()> {
        let addresses = self.addresses(i, 0);
        let count = u32::from(count);
        let with_address = if count == 4 { u32::MAX } else { (1 << (8 * count)) - 1 };
        let rows = self.rows(m & with_address, &addresses)?;
        let element = |matrix: u32, row: u32, column: u32| {
            let row = &rows[(8 * matrix + row) as usize];
            u32::from(u16::from_le_bytes([row[2 * column as usize], row[2 * column as usize + 1]]))
        };
        for matrix in 0..count {
            let v = std::array::from_fn(|l| {
                let (g, t) = (l as u32 / 4, 2 * (l as u32 % 4));
                match trans {
                    false => element(matrix, g, t) | element(matrix, g, t + 1) << 16,
                    true => element(matrix, t, g) | element(matrix, t + 1, g) << 16,
                }
            });
            let d = self.dst(i, matrix as usize);
            self.set32(d, m, &v);
        }
        Ok(())
    }

    pub(super) fn stmatrix(&mut self, i: &Instr, m: u32, count: u8, trans: bool) -> Run<()> {
        let addresses = self.addresses(i, 0);
        let count = u32::from(count);
        let mut rows = [[0u8; 16]; 32];
        for matrix in 0..count {
            let v = *self.a32(self.src(i, 1 + matrix as usize));
            for l in 0..32u32 {
                let (g, t) = (l / 4, 2 * (l % 4));
                for k in 0..2 {
                    let half = ((v[l as usize] >> (16 * k)) as u16).to_le_bytes();
                    let (row, column) = if trans { (t + k, g) } else { (g, t + k) };
                    rows[(8 * matrix + row) as usize][2 * column as usize..][..2].copy_from_slice(&half);
                }
            }
        }
        let part = m & if count == 4 { u32::MAX } else { (1 << (8 * count)) - 1 };
        for lane in lanes(part) {
            let at = self.locate(Space::Shared, addresses[lane as usize], 16, lane, &mut 0)?;
            self.note(at, 16, lane, Self::PLAIN, Doing::Write { same: false }, false, &mut None)?;
            if let Where::Shared(rank, to) = at {
                self.blocks[rank].shared[to as usize..to as usize + 16].copy_from_slice(&rows[lane as usize]);
            }
            self.mark_written(at, 16, lane);
            self.note_generic(at, 16, lane);
        }
        self.count_shared(&addresses, part, 16);
        Ok(())
    }

    pub(super) fn movmatrix(&mut self, i: &Instr, m: u32) {
        let a = *self.a32(i.s[0]);
        let element = |row: usize, column: usize| a[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff;
        let v = std::array::from_fn(|l| {
            let (g, t) = (l / 4, 2 * (l % 4));
            element(t, g) | element(t + 1, g) << 16
        });
        self.set32(i.d[0], m, &v);
    }

    /// Products are exact, their sum is taken in F64 and rounded once: the order and width of a tensor core's sums are
    /// not documented.
    pub(super) fn mma(&mut self, i: &Instr, m: u32, kind: MatMul) {
        let (k, na, nb, bf16, tf) = match kind {
            MatMul::Bf16 => (16, 4, 2, true, false),
            MatMul::F16 | MatMul::F16Half => (16, 4, 2, false, false),
            MatMul::Bf16K8 => (8, 2, 1, true, false),
            MatMul::F16K8 => (8, 2, 1, false, false),
            MatMul::Tf32K8 => (8, 4, 2, false, true),
            MatMul::Tf32K4 => (4, 2, 1, false, true),
        };
        let mut a = [[0f32; 16]; 16];
        let mut b = [[0f32; 8]; 16];
        for r in 0..na {
            let v = self.a32(self.src(i, r));
            for (l, v) in v.iter().enumerate() {
                let (g, t) = (l / 4, l % 4);
                let row = g + 8 * (r % 2);
                if tf {
                    a[row][t + 4 * (r / 2)] = tf32(*v);
                } else {
                    let column = 2 * t + 8 * (r / 2);
                    a[row][column] = wide(v & 0xffff, bf16);
                    a[row][column + 1] = wide(v >> 16, bf16);
                }
            }
        }
        for r in 0..nb {
            let v = self.a32(self.src(i, na + r));
            for (l, v) in v.iter().enumerate() {
                let (g, t) = (l / 4, l % 4);
                if tf {
                    b[t + 4 * r][g] = tf32(*v);
                } else {
                    b[2 * t + 8 * r][g] = wide(v & 0xffff, bf16);
                    b[2 * t + 8 * r + 1][g] = wide(v >> 16, bf16);
                }
            }
        }
        let mut sum = [[0f64; 8]; 16];
        let halves = kind == MatMul::F16Half;
        for r in 0..if halves { 2 } else { 4 } {
            let v = self.a32(self.src(i, na + nb + r));
            for (l, v) in v.iter().enumerate() {
                let (g, t) = (l / 4, 2 * (l % 4));
                if halves {
                    sum[g + 8 * r][t] = wide(v & 0xffff, false).into();
                    sum[g + 8 * r][t + 1] = wide(v >> 16, false).into();
                } else {
                    sum[g + 8 * (r / 2)][t + r % 2] = f32::from_bits(*v).into();
                }
            }
        }
        super::fma::product(&a, &b, &mut sum, k);
        for r in 0..if halves { 2 } else { 4 } {
            let v = std::array::from_fn(|l| {
                let (g, t) = (l / 4, 2 * (l % 4));
                if halves {
                    // Rounded once: by way of F32 a result between two halves could go wrong.
                    let one =
                        |c: usize| pack(unpack(sum[g + 8 * r][c].to_bits(), F64), F16, Round::Nearest) as u32;
                    one(t) | one(t + 1) << 16
                } else {
                    let v = sum[g + 8 * (r / 2)][t + r % 2] as f32;
                    if v.is_nan() { super::soft::NAN32 } else { v.to_bits() }
                }
            });
            let d = self.dst(i, r);
            self.set32(d, m, &v);
        }
    }
}
