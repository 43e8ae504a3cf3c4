//! Functions of bits that integer instructions are made of.

/// The low 16 bits as a signed number.
pub(super) fn s16(v: u32) -> i32 {
    i32::from(v as u16 as i16)
}

/// Bits of a mask of `len` from `pos`, PTX ISA 9.7.1.19: bit-field extract.
pub(super) fn bfe32(a: u32, pos: u32, len: u32, signed: bool) -> u32 {
    bfe(u64::from(a), pos, len, signed, 32) as u32
}

pub(super) fn bfe(a: u64, pos: u32, len: u32, signed: bool, bits: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let top = (pos + len).saturating_sub(1).min(bits - 1);
    let sign = signed && len != 0 && a >> top & 1 != 0;
    let mut out = 0u64;
    let available = if pos >= bits { 0 } else { len.min(bits - pos) };
    if available > 0 {
        let mask = if available >= 64 { u64::MAX } else { (1 << available) - 1 };
        out = a >> pos & mask;
    }
    if sign && available < bits {
        out |= u64::MAX << available;
    }
    if bits == 32 { out & 0xffff_ffff } else { out }
}

pub(super) fn bfi(a: u64, b: u64, pos: u32, len: u32, bits: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if pos >= bits || len == 0 {
        return b;
    }
    let count = len.min(bits - pos);
    let mask = (if count >= 64 { u64::MAX } else { (1 << count) - 1 }) << pos;
    b & !mask | a << pos & mask
}

/// PTX ISA 9.7.9.7.
pub(super) fn prmt(a: u32, b: u32, c: u32, mode: u8) -> u32 {
    let bytes: [u8; 8] = {
        let mut all = [0; 8];
        all[..4].copy_from_slice(&a.to_le_bytes());
        all[4..].copy_from_slice(&b.to_le_bytes());
        all
    };
    let n = (c & 3) as usize;
    let pick: [usize; 4] = match mode {
        0 => {
            let mut out = [0; 4];
            for (i, o) in out.iter_mut().enumerate() {
                let s = c >> (4 * i);
                let byte = bytes[(s & 7) as usize];
                *o = if s & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte };
            }
            return u32::from_le_bytes(out);
        }
        1 => [n, n + 1, n + 2, n + 3],
        2 => [n, (n + 7) % 8, (n + 6) % 8, (n + 5) % 8],
        3 => [n; 4],
        4 => [n, n.max(1), n.max(2), 3],
        5 => [0, n.min(1), n.min(2), n.min(3)],
        _ => {
            let low = 2 * (n & 1);
            [low, low + 1, low, low + 1]
        }
    };
    u32::from_le_bytes(pick.map(|p| bytes[p]))
}

#[inline(always)]
pub(super) fn wide(a: u32, b: u32, signed: bool) -> u64 {
    match signed {
        true => (i64::from(a as i32) * i64::from(b as i32)) as u64,
        false => u64::from(a) * u64::from(b),
    }
}

pub(super) fn hi64(a: u64, b: u64, signed: bool) -> u64 {
    match signed {
        true => ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64,
        false => ((u128::from(a) * u128::from(b)) >> 64) as u64,
    }
}

/// PTX ISA 9.7.1.5: the low or high 32 of 48 bits.
pub(super) fn mul24(a: u32, b: u32, signed: bool, hi: bool) -> u32 {
    let product = match signed {
        true => (i64::from((a << 8) as i32 >> 8) * i64::from((b << 8) as i32 >> 8)) as u64,
        false => u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff),
    };
    if hi { (product >> 16) as u32 } else { product as u32 }
}

#[inline(always)]
pub(super) fn lop3(a: u32, b: u32, c: u32, table: u8) -> u32 {
    let mut out = 0;
    for bit in 0..8 {
        if table >> bit & 1 != 0 {
            let x = if bit & 4 != 0 { a } else { !a };
            let y = if bit & 2 != 0 { b } else { !b };
            let z = if bit & 1 != 0 { c } else { !c };
            out |= x & y & z;
        }
    }
    out
}

/// PTX ISA 9.7.1.17: the highest bit that differs from the sign.
pub(super) fn bfind(a: u64, signed: bool, shift: bool, bits: u32) -> u32 {
    let a = if signed && (a as i64) < 0 { !a } else { a };
    match a.checked_ilog2() {
        None => u32::MAX,
        Some(at) if shift => bits - 1 - at,
        Some(at) => at,
    }
}
