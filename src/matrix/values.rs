//! Slices of one storage type, told apart at run time: [`Values`] to read, [`ValuesMut`] to write.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::dtype::{Dtype, Element};

/// Borrowed values of one storage type.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

/// Runs `$body` with `$slice` bound to the typed slice inside a [`Values`] or [`ValuesMut`].
macro_rules! for_dtype {
    ($kind:ident, $value:expr, $slice:ident => $body:expr) => {
        match $value {
            $kind::F32($slice) => $body,
            $kind::F16($slice) => $body,
            $kind::Bf16($slice) => $body,
        }
    };
}

impl<'a> Values<'a> {
    /// Number of values.
    pub fn len(&self) -> usize {
        for_dtype!(Values, self, s => s.len())
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Storage type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Values::F32(_) => Dtype::F32,
            Values::F16(_) => Dtype::F16,
            Values::Bf16(_) => Dtype::Bf16,
        }
    }

    /// The values in `range`, which must lie inside.
    pub fn slice(&self, range: Range<usize>) -> Values<'a> {
        match self {
            Values::F32(s) => Values::F32(&s[range]),
            Values::F16(s) => Values::F16(&s[range]),
            Values::Bf16(s) => Values::Bf16(&s[range]),
        }
    }

    /// Views little-endian bytes as values; None where their address or number does not suit the type.
    pub fn from_bytes(dtype: Dtype, bytes: &'a [u8]) -> Option<Values<'a>> {
        match dtype {
            Dtype::F32 => bytemuck::try_cast_slice(bytes).ok().map(Values::F32),
            Dtype::F16 => bytemuck::try_cast_slice(bytes).ok().map(Values::F16),
            Dtype::Bf16 => bytemuck::try_cast_slice(bytes).ok().map(Values::Bf16),
        }
    }

    /// Index and value of the first value that is NaN or infinite: one whose exponent bits are all set.
    pub fn first_non_finite(&self) -> Option<(usize, f32)> {
        match self {
            Values::F32(v) => first_where(v, |x| x.to_bits() & 0x7f80_0000 == 0x7f80_0000, |x| x),
            Values::F16(v) => first_where(v, |x| x.to_bits() & 0x7c00 == 0x7c00, f16::to_f32),
            Values::Bf16(v) => first_where(v, |x| x.to_bits() & 0x7f80 == 0x7f80, bf16::to_f32),
        }
    }

    /// Widens all values into `out` (same length).
    pub fn widen(&self, out: &mut [f32]) {
        for_dtype!(Values, self, s => Element::widen(s, out))
    }

    /// The bytes as they are stored (little endian on every supported machine).
    pub fn bytes(&self) -> &'a [u8] {
        match self {
            Values::F32(s) => bytemuck::cast_slice(s),
            Values::F16(s) => bytemuck::cast_slice(s),
            Values::Bf16(s) => bytemuck::cast_slice(s),
        }
    }
}

/// Values that one thread of [`first_where`] looks at, at a time.
const SEARCH_CHUNK: usize = 1 << 16;

/// Index and widened value of the first value for which `bad` holds.
fn first_where<T: Copy + Sync>(
    values: &[T],
    bad: impl Fn(T) -> bool + Sync,
    widen: impl Fn(T) -> f32,
) -> Option<(usize, f32)> {
    // A fold without an early exit is compiled to SIMD code; the search then looks at the one chunk that
    // failed.
    let chunk = values
        .par_chunks(SEARCH_CHUNK)
        .position_first(|chunk| chunk.iter().fold(false, |any, &v| any | bad(v)))?;
    let start = chunk * SEARCH_CHUNK;
    let at = start + values[start..].iter().position(|&v| bad(v))?;
    Some((at, widen(values[at])))
}

/// Values to be written, of one storage type.
#[derive(Debug)]
pub enum ValuesMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// Half precision.
    F16(&'a mut [f16]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
}

impl<'a> ValuesMut<'a> {
    /// The storage as bytes.
    pub(crate) fn into_bytes(self) -> &'a mut [u8] {
        for_dtype!(ValuesMut, self, s => bytemuck::cast_slice_mut(s))
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        for_dtype!(ValuesMut, self, s => s.len())
    }

    /// Whether there is no room for any value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Storage type.
    pub fn dtype(&self) -> Dtype {
        match self {
            ValuesMut::F32(_) => Dtype::F32,
            ValuesMut::F16(_) => Dtype::F16,
            ValuesMut::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Rounds `from` into the values that start at `at`.
    pub(crate) fn narrow_at(&mut self, at: usize, from: &[f32]) {
        for_dtype!(ValuesMut, self, s => Element::narrow(from, &mut s[at..at + from.len()]))
    }
}
