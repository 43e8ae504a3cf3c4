//! Integer and logic instructions against plain definitions.

mod common;

use common::check;

fn s(v: u64) -> i32 {
    v as u32 as i32
}

#[test]
fn arithmetic_of_32_bits() {
    let w = &[32, 32];
    check("add.s32 {d}, {a}, {b};", w, 32, |v| v[0].wrapping_add(v[1]) & 0xffff_ffff);
    check("sub.u32 {d}, {a}, {b};", w, 32, |v| v[0].wrapping_sub(v[1]) & 0xffff_ffff);
    check("add.sat.s32 {d}, {a}, {b};", w, 32, |v| u64::from(s(v[0]).saturating_add(s(v[1])) as u32));
    check("sub.sat.s32 {d}, {a}, {b};", w, 32, |v| u64::from(s(v[0]).saturating_sub(s(v[1])) as u32));
    check("mul.lo.s32 {d}, {a}, {b};", w, 32, |v| v[0].wrapping_mul(v[1]) & 0xffff_ffff);
    check("mul.hi.u32 {d}, {a}, {b};", w, 32, |v| (v[0] * v[1]) >> 32);
    check("mul.hi.s32 {d}, {a}, {b};", w, 32, |v| {
        u64::from(((i64::from(s(v[0])) * i64::from(s(v[1]))) >> 32) as u32)
    });
    check("mul24.lo.u32 {d}, {a}, {b};", w, 32, |v| ((v[0] & 0xff_ffff) * (v[1] & 0xff_ffff)) & 0xffff_ffff);
    check("mul24.hi.u32 {d}, {a}, {b};", w, 32, |v| ((v[0] & 0xff_ffff) * (v[1] & 0xff_ffff)) >> 16);
    check("div.u32 {d}, {a}, {b};", w, 32, |v| v[0].checked_div(v[1]).unwrap_or(0xffff_ffff));
    check("rem.u32 {d}, {a}, {b};", w, 32, |v| if v[1] == 0 { v[0] } else { v[0] % v[1] });
    check("div.s32 {d}, {a}, {b};", w, 32, |v| match v[1] {
        0 => 0xffff_ffff,
        _ => u64::from((i64::from(s(v[0])) / i64::from(s(v[1]))) as u32),
    });
    check("rem.s32 {d}, {a}, {b};", w, 32, |v| match v[1] {
        0 => v[0],
        _ => u64::from((i64::from(s(v[0])) % i64::from(s(v[1]))) as u32),
    });
    check("min.s32 {d}, {a}, {b};", w, 32, |v| u64::from(s(v[0]).min(s(v[1])) as u32));
    check("max.s32 {d}, {a}, {b};", w, 32, |v| u64::from(s(v[0]).max(s(v[1])) as u32));
    check("min.u32 {d}, {a}, {b};", w, 32, |v| v[0].min(v[1]));
    check("max.u32 {d}, {a}, {b};", w, 32, |v| v[0].max(v[1]));
    check("abs.s32 {d}, {a};", &[32], 32, |v| u64::from(s(v[0]).unsigned_abs()));
    check("neg.s32 {d}, {a};", &[32], 32, |v| 0u64.wrapping_sub(v[0]) & 0xffff_ffff);
}

#[test]
fn three_operands() {
    let w = &[32, 32, 32];
    check("mad.lo.s32 {d}, {a}, {b}, {c};", w, 32, |v| {
        (v[0] as u32).wrapping_mul(v[1] as u32).wrapping_add(v[2] as u32).into()
    });
    check("mad.hi.u32 {d}, {a}, {b}, {c};", w, 32, |v| (((v[0] * v[1]) >> 32) + v[2]) & 0xffff_ffff);
    check("mad.wide.u32 {d}, {a}, {b}, {c};", &[32, 32, 64], 64, |v| (v[0] * v[1]).wrapping_add(v[2]));
    check("mad.wide.s32 {d}, {a}, {b}, {c};", &[32, 32, 64], 64, |v| {
        ((i64::from(s(v[0])) * i64::from(s(v[1]))) as u64).wrapping_add(v[2])
    });
    check("mul.wide.u32 {d}, {a}, {b};", &[32, 32], 64, |v| v[0] * v[1]);
    check("mul.wide.s16 {d}, {a}, {b};", &[16, 16], 32, |v| {
        u64::from((i32::from(v[0] as i16) * i32::from(v[1] as i16)) as u32)
    });
    check("sad.s32 {d}, {a}, {b}, {c};", w, 32, |v| {
        (v[2] + (i64::from(s(v[0])) - i64::from(s(v[1]))).unsigned_abs()) & 0xffff_ffff
    });
    check("shf.l.wrap.b32 {d}, {a}, {b}, {c};", w, 32, |v| {
        let both = u128::from(v[1]) << 32 | u128::from(v[0]);
        ((both << (v[2] % 32)) >> 32) as u64 & 0xffff_ffff
    });
    check("shf.r.clamp.b32 {d}, {a}, {b}, {c};", w, 32, |v| {
        ((v[1] << 32 | v[0]) >> v[2].min(32)) & 0xffff_ffff
    });
    for table in [0u8, 1, 0x1e, 0x96, 0xe8, 0xca, 0xff, 0x80] {
        check(&format!("lop3.b32 {{d}}, {{a}}, {{b}}, {{c}}, {table};"), w, 32, |v| {
            (0..32).fold(0, |out, bit| {
                let at = (v[0] >> bit & 1) << 2 | (v[1] >> bit & 1) << 1 | v[2] >> bit & 1;
                out | u64::from(table >> at & 1) << bit
            })
        });
    }
    check("dp4a.s32.u32 {d}, {a}, {b}, {c};", w, 32, |v| {
        let sum: i64 = (0..4)
            .map(|k| i64::from((v[0] >> (8 * k)) as u8 as i8) * i64::from((v[1] >> (8 * k)) as u8))
            .sum();
        (v[2] as i64 + sum) as u64 & 0xffff_ffff
    });
    check("prmt.b32 {d}, {a}, {b}, {c};", w, 32, |v| {
        let bytes = v[1] << 32 | v[0];
        (0..4).fold(0, |out, k| {
            let s = v[2] >> (4 * k) & 15;
            let byte = bytes >> (8 * (s & 7)) & 0xff;
            let byte = if s & 8 != 0 { if byte & 0x80 != 0 { 0xff } else { 0 } } else { byte };
            out | byte << (8 * k)
        })
    });
    check("add.cc.u32 %r20, {a}, {b}; addc.u32 {d}, {c}, 0;", w, 32, |v| {
        (v[2] + ((v[0] + v[1]) >> 32)) & 0xffff_ffff
    });
    check("sub.cc.u32 %r20, {a}, {b}; subc.u32 {d}, {c}, 0;", w, 32, |v| {
        v[2].wrapping_sub(u64::from(v[0] < v[1])) & 0xffff_ffff
    });
}

#[test]
fn shifts_and_bits() {
    let w = &[32, 32];
    check("shl.b32 {d}, {a}, {b};", w, 32, |v| if v[1] > 31 { 0 } else { v[0] << v[1] & 0xffff_ffff });
    check("shr.u32 {d}, {a}, {b};", w, 32, |v| if v[1] > 31 { 0 } else { v[0] >> v[1] });
    check("shr.s32 {d}, {a}, {b};", w, 32, |v| u64::from((s(v[0]) >> v[1].min(31)) as u32));
    check("shl.b64 {d}, {a}, {b};", &[64, 32], 64, |v| if v[1] > 63 { 0 } else { v[0] << v[1] });
    check("shr.s64 {d}, {a}, {b};", &[64, 32], 64, |v| (v[0] as i64 >> v[1].min(63)) as u64);
    check("shl.b16 {d}, {a}, {b};", &[16, 32], 16, |v| if v[1] > 15 { 0 } else { v[0] << v[1] & 0xffff });
    check("shr.s16 {d}, {a}, {b};", &[16, 32], 16, |v| (v[0] as i16 >> v[1].min(15)) as u16 as u64);
    check("and.b32 {d}, {a}, {b};", w, 32, |v| v[0] & v[1]);
    check("or.b32 {d}, {a}, {b};", w, 32, |v| v[0] | v[1]);
    check("xor.b64 {d}, {a}, {b};", &[64, 64], 64, |v| v[0] ^ v[1]);
    check("not.b32 {d}, {a};", &[32], 32, |v| !v[0] & 0xffff_ffff);
    check("cnot.b32 {d}, {a};", &[32], 32, |v| u64::from(v[0] == 0));
    check("popc.b32 {d}, {a};", &[32], 32, |v| u64::from(v[0].count_ones()));
    check("popc.b64 {d}, {a};", &[64], 32, |v| u64::from(v[0].count_ones()));
    check("clz.b32 {d}, {a};", &[32], 32, |v| u64::from((v[0] as u32).leading_zeros()));
    check("brev.b32 {d}, {a};", &[32], 32, |v| u64::from((v[0] as u32).reverse_bits()));
    check("brev.b64 {d}, {a};", &[64], 64, |v| v[0].reverse_bits());
    check("bfind.u32 {d}, {a};", &[32], 32, |v| match v[0] {
        0 => 0xffff_ffff,
        v => u64::from(v.ilog2()),
    });
    check("bfind.shiftamt.s32 {d}, {a};", &[32], 32, |v| {
        let x = if s(v[0]) < 0 { !s(v[0]) } else { s(v[0]) };
        if x == 0 { 0xffff_ffff } else { u64::from(31 - x.ilog2()) }
    });
    check("bfe.u32 {d}, {a}, {b}, {c};", &[32, 32, 32], 32, |v| {
        let (pos, len) = (v[1] & 0xff, v[2] & 0xff);
        (0..32).filter(|k| *k < len && pos + k < 32).fold(0, |o, k| o | (v[0] >> (pos + k) & 1) << k)
    });
    check("bfe.s32 {d}, {a}, {b}, {c};", &[32, 32, 32], 32, |v| {
        let (pos, len) = (v[1] & 0xff, v[2] & 0xff);
        let sign = if len == 0 { 0 } else { v[0] >> (pos + len - 1).min(31) & 1 };
        (0..32).fold(0, |o, k| o | (if k < len && pos + k < 32 { v[0] >> (pos + k) & 1 } else { sign }) << k)
    });
    check("bfi.b32 {d}, {a}, {b}, 5, {c};", &[32, 32, 32], 32, |v| {
        (0..32).fold(0, |o, k| {
            let inside = k >= 5 && k < 5 + (v[2] & 0xff);
            o | (if inside { v[0] >> (k - 5) & 1 } else { v[1] >> k & 1 }) << k
        })
    });
}

#[test]
fn of_64_and_16_bits() {
    let w = &[64, 64];
    check("add.s64 {d}, {a}, {b};", w, 64, |v| v[0].wrapping_add(v[1]));
    check("sub.s64 {d}, {a}, {b};", w, 64, |v| v[0].wrapping_sub(v[1]));
    check("mul.lo.s64 {d}, {a}, {b};", w, 64, |v| v[0].wrapping_mul(v[1]));
    check("mul.hi.u64 {d}, {a}, {b};", w, 64, |v| ((u128::from(v[0]) * u128::from(v[1])) >> 64) as u64);
    check("div.u64 {d}, {a}, {b};", w, 64, |v| v[0].checked_div(v[1]).unwrap_or(u64::MAX));
    check("rem.u64 {d}, {a}, {b};", w, 64, |v| v[0].checked_rem(v[1]).unwrap_or(v[0]));
    check("min.u64 {d}, {a}, {b};", w, 64, |v| v[0].min(v[1]));
    check("max.s64 {d}, {a}, {b};", w, 64, |v| (v[0] as i64).max(v[1] as i64) as u64);
    let w = &[16, 16];
    check("add.s16 {d}, {a}, {b};", w, 16, |v| (v[0] + v[1]) & 0xffff);
    check("mul.lo.u16 {d}, {a}, {b};", w, 16, |v| (v[0] * v[1]) & 0xffff);
    check("mul.hi.u16 {d}, {a}, {b};", w, 16, |v| (v[0] * v[1]) >> 16);
    check("min.s16 {d}, {a}, {b};", w, 16, |v| (v[0] as i16).min(v[1] as i16) as u16 as u64);
    check("neg.s16 {d}, {a};", &[16], 16, |v| 0u64.wrapping_sub(v[0]) & 0xffff);
}

#[test]
fn comparisons_and_selections() {
    type Compare<T> = fn(T, T) -> bool;
    let all: [(&str, Compare<i32>, Compare<u32>); 6] = [
        ("eq", |a, b| a == b, |a, b| a == b),
        ("ne", |a, b| a != b, |a, b| a != b),
        ("lt", |a, b| a < b, |a, b| a < b),
        ("le", |a, b| a <= b, |a, b| a <= b),
        ("gt", |a, b| a > b, |a, b| a > b),
        ("ge", |a, b| a >= b, |a, b| a >= b),
    ];
    for (name, signed, unsigned) in all {
        check(
            &format!("setp.{name}.s32 %p1, {{a}}, {{b}}; selp.b32 {{d}}, 7, 9, %p1;"),
            &[32, 32],
            32,
            |v| {
                if signed(s(v[0]), s(v[1])) { 7 } else { 9 }
            },
        );
        check(
            &format!("setp.{name}.u32 %p1|%p2, {{a}}, {{b}}; selp.b32 {{d}}, 7, 9, %p2;"),
            &[32, 32],
            32,
            |v| {
                if unsigned(v[0] as u32, v[1] as u32) { 9 } else { 7 }
            },
        );
        check(&format!("set.{name}.u32.s32 {{d}}, {{a}}, {{b}};"), &[32, 32], 32, |v| {
            if signed(s(v[0]), s(v[1])) { 0xffff_ffff } else { 0 }
        });
        check(
            &format!(
                "setp.gt.u32 %p3, {{c}}, 1000; setp.{name}.and.u32 %p1, {{a}}, {{b}}, %p3; selp.b32 {{d}}, 1, 0, %p1;"
            ),
            &[32, 32, 32],
            32,
            |v| u64::from(unsigned(v[0] as u32, v[1] as u32) && v[2] > 1000),
        );
    }
    check("slct.b32.s32 {d}, {a}, {b}, {c};", &[32, 32, 32], 32, |v| if s(v[2]) >= 0 { v[0] } else { v[1] });
    check("slct.b32.f32 {d}, {a}, {b}, {c};", &[32, 32, 32], 32, |v| {
        if f32::from_bits(v[2] as u32) >= 0.0 { v[0] } else { v[1] }
    });
    check("mov.b32 {%rs9, %rs10}, {a}; mov.b32 {d}, {%rs10, %rs9};", &[32], 32, |v| {
        u64::from((v[0] as u32).rotate_left(16))
    });
    check("mov.b64 {%r20, %r21}, {a}; mov.b64 {d}, {%r21, %r20};", &[64], 64, |v| v[0].rotate_left(32));
}
