//! Storage types of embeddings: F32, F16 and BF16.

use std::fmt;
use std::str::FromStr;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How one value of an embedding is stored. Arithmetic widens it to F32, or to F64 in the reference backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Dtype {
    /// IEEE single precision, 4 bytes.
    F32,
    /// IEEE half precision, 2 bytes, largest finite value 65,504.
    F16,
    /// bfloat16, 2 bytes, the range of F32 with 8 bits of precision.
    #[serde(rename = "BF16")]
    Bf16,
}

impl Dtype {
    /// Every storage type, in the order of the documentation.
    pub const ALL: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

    /// Bytes per value.
    pub const fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// The unit roundoff: half the distance from 1 to the next larger value.
    pub const fn unit_roundoff(self) -> f64 {
        match self {
            Dtype::F32 => 1.0 / (1u64 << 24) as f64,
            Dtype::F16 => 1.0 / (1u64 << 11) as f64,
            Dtype::Bf16 => 1.0 / (1u64 << 8) as f64,
        }
    }
}

impl From<Dtype> for safetensors::Dtype {
    fn from(dtype: Dtype) -> safetensors::Dtype {
        match dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::Bf16 => safetensors::Dtype::BF16,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
        })
    }
}

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(text: &str) -> Result<Dtype> {
        Dtype::ALL
            .into_iter()
            .find(|d| d.to_string().eq_ignore_ascii_case(text))
            .ok_or_else(|| Error::argument("dtype", "f32, f16 or bf16", text))
    }
}

impl Dtype {
    /// Rounds `from` into storage, to nearest, ties to even.
    ///
    /// # Panics
    /// Unless `to` has the address and the length that values of this type need.
    pub(crate) fn narrow_bytes(self, from: &[f32], to: &mut [u8]) {
        match self {
            Dtype::F32 => f32::narrow(from, bytemuck::cast_slice_mut(to)),
            Dtype::F16 => f16::narrow(from, bytemuck::cast_slice_mut(to)),
            Dtype::Bf16 => bf16::narrow(from, bytemuck::cast_slice_mut(to)),
        }
    }
}

/// A Rust type that stores one value of an embedding.
pub trait Element: bytemuck::Pod + Send + Sync + 'static {
    /// The storage type.
    const DTYPE: Dtype;
    /// Widens `from` into `to`; both have the same length. Exact.
    fn widen(from: &[Self], to: &mut [f32]);
    /// Rounds `from` into `to` (to nearest, ties to even); both have the same length.
    fn narrow(from: &[f32], to: &mut [Self]);
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    fn widen(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
    fn narrow(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    fn widen(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
    fn narrow(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    #[inline(always)]
    fn widen(from: &[bf16], to: &mut [f32]) {
        assert_eq!(from.len(), to.len());
        for (t, f) in to.iter_mut().zip(from) {
            *t = f32::from_bits(u32::from(f.to_bits()) << 16);
        }
    }
    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [bf16]) {
        assert_eq!(from.len(), to.len());
        for (t, f) in to.iter_mut().zip(from) {
            // BF16 is the upper half of F32. Adding 0x7fff, and 1 more if the lowest bit kept is set, carries
            // into the upper half exactly when rounding to nearest even goes up. A NaN keeps its sign and
            // becomes quiet.
            let bits = f.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            let quiet = (bits >> 16) | 0x40;
            *t = bf16::from_bits(if f.is_nan() { quiet as u16 } else { rounded as u16 });
        }
    }
}
