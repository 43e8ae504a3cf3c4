//! Fused multiply-add of 32 lanes and of matrices. Where the CPU has the instruction it is used, as the library function
//! is slow.

/// a b + c with one rounding, per lane, in bits.
pub(crate) fn fma32(a: &[u32; 32], b: &[u32; 32], c: &[u32; 32]) -> [u32; 32] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the line above found the features that the function is compiled for.
        return unsafe { fma32_avx(a, b, c) };
    }
    fma32_plain(a, b, c)
}

/// The same in F64.
pub(crate) fn fma64(a: &[u64; 32], b: &[u64; 32], c: &[u64; 32]) -> [u64; 32] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the line above found the features that the function is compiled for.
        return unsafe { fma64_avx(a, b, c) };
    }
    fma64_plain(a, b, c)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fma32_avx(a: &[u32; 32], b: &[u32; 32], c: &[u32; 32]) -> [u32; 32] {
    fma32_plain(a, b, c)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fma64_avx(a: &[u64; 32], b: &[u64; 32], c: &[u64; 32]) -> [u64; 32] {
    fma64_plain(a, b, c)
}

#[inline(always)]
fn fma32_plain(a: &[u32; 32], b: &[u32; 32], c: &[u32; 32]) -> [u32; 32] {
    let mut out = [0; 32];
    for l in 0..32 {
        let v = f32::from_bits(a[l]).mul_add(f32::from_bits(b[l]), f32::from_bits(c[l]));
        out[l] = if v.is_nan() { super::soft::NAN32 } else { v.to_bits() };
    }
    out
}

#[inline(always)]
fn fma64_plain(a: &[u64; 32], b: &[u64; 32], c: &[u64; 32]) -> [u64; 32] {
    let mut out = [0; 32];
    for l in 0..32 {
        let v = f64::from_bits(a[l]).mul_add(f64::from_bits(b[l]), f64::from_bits(c[l]));
        out[l] = if v.is_nan() { super::soft::NAN64 } else { v.to_bits() };
    }
    out
}

/// sum += a b for a 16 x k matrix and a k x 8 one.
pub(crate) fn product(a: &[[f32; 16]; 16], b: &[[f32; 8]; 16], sum: &mut [[f64; 8]; 16], k: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the line above found the features that the function is compiled for.
        return unsafe { product_avx(a, b, sum, k) };
    }
    for row in 0..16 {
        for n in 0..k {
            // The product of two such values is exact in F64, so that fusing changes nothing.
            for column in 0..8 {
                sum[row][column] += f64::from(a[row][n]) * f64::from(b[n][column]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn product_avx(a: &[[f32; 16]; 16], b: &[[f32; 8]; 16], sum: &mut [[f64; 8]; 16], k: usize) {
    let wide = b.map(|row| row.map(f64::from));
    for (a, sum) in a.iter().zip(sum) {
        let mut s = *sum;
        for n in 0..k.min(16) {
            let x = f64::from(a[n]);
            for column in 0..8 {
                s[column] = x.mul_add(wide[n][column], s[column]);
            }
        }
        *sum = s;
    }
}
