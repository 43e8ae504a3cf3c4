//! Tensor maps: how `cp.async.bulk.tensor` finds a box of a tensor in global memory (PTX ISA 5.5, CUDA Driver API, "Tensor
//! Map Object Management").

use std::fmt;

/// The most dimensions that a tensor has.
const RANKS: usize = 5;
/// The first word of an encoded map, "ptx tmap".
const MAGIC: u64 = u64::from_le_bytes(*b"ptx tmap");

/// Types of the elements of a tensor, in the order of `CUtensorMapDataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// Unsigned, 8 bits.
    U8,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 32 bits.
    S32,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 64 bits.
    S64,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// BF16.
    Bf16,
    /// Single precision; copies to shared memory make zeros of subnormal numbers.
    F32Ftz,
    /// TF32 in 32 bits, which are copied as they are.
    Tf32,
    /// TF32 in 32 bits; copies to shared memory make zeros of subnormal numbers.
    Tf32Ftz,
}

impl Element {
    /// All of them. The place of each is its number in `CUtensorMapDataType`.
    pub const ALL: [Element; 13] = [
        Element::U8,
        Element::U16,
        Element::U32,
        Element::S32,
        Element::U64,
        Element::S64,
        Element::F16,
        Element::F32,
        Element::F64,
        Element::Bf16,
        Element::F32Ftz,
        Element::Tf32,
        Element::Tf32Ftz,
    ];

    /// Bytes of an element.
    pub fn bytes(self) -> u32 {
        use Element::*;
        match self {
            U8 => 1,
            U16 | F16 | Bf16 => 2,
            U32 | S32 | F32 | F32Ftz | Tf32 | Tf32Ftz => 4,
            U64 | S64 | F64 => 8,
        }
    }

    fn float(self) -> bool {
        !matches!(
            self,
            Element::U8 | Element::U16 | Element::U32 | Element::S32 | Element::U64 | Element::S64
        )
    }

    /// Whether subnormal numbers become zeros.
    pub(crate) fn flushes(self) -> bool {
        matches!(self, Element::F32Ftz | Element::Tf32Ftz)
    }
}

/// How pieces of 16 bytes change places in shared memory: bits of their address take the exclusive or with higher ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// They stay where they are.
    #[default]
    None,
    /// Bit 4 with bit 7.
    Bytes32,
    /// Bits 4 and 5 with bits 7 and 8.
    Bytes64,
    /// Bits 4 to 6 with bits 7 to 9.
    Bytes128,
}

impl Swizzle {
    /// All of them. The place of each is its number in `CUtensorMapSwizzle`.
    pub const ALL: [Swizzle; 4] = [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128];

    /// The swizzle of a row of so many bytes, as matrix descriptors have it.
    pub(crate) fn of_row(bytes: u64) -> Swizzle {
        match bytes {
            32 => Swizzle::Bytes32,
            64 => Swizzle::Bytes64,
            128 => Swizzle::Bytes128,
            _ => Swizzle::None,
        }
    }

    /// The bytes that pieces change places within.
    pub fn span(self) -> Option<u32> {
        [None, Some(32), Some(64), Some(128)][self as usize]
    }

    /// Where the byte of an address in shared memory goes.
    pub fn apply(self, address: u64) -> u64 {
        address ^ (address >> 7 & ((1 << self as u32) - 1)) << 4
    }
}

/// What elements outside of the tensor become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Fill {
    /// Zeros.
    #[default]
    Zeros,
    /// NaN.
    Nan,
}

/// A tensor in global memory, and the box of it that a copy moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    element: Element,
    rank: u8,
    swizzle: Swizzle,
    fill: Fill,
    address: u64,
    sizes: [u64; RANKS],
    /// Bytes from an element to the next of each dimension.
    strides: [u64; RANKS],
    tile: [u32; RANKS],
}

impl TensorMap {
    /// A map of a tensor at `address`. `sizes` and the box `tile` have an entry for each of the one to five dimensions, the
    /// contiguous one first; `strides` are the bytes from one element to the next of all dimensions but the first.
    ///
    /// # Errors
    ///
    /// What the CUDA Driver API does not allow for `cuTensorMapEncodeTiled`.
    pub fn new(
        element: Element,
        address: u64,
        sizes: &[u64],
        strides: &[u64],
        tile: &[u32],
        swizzle: Swizzle,
        fill: Fill,
    ) -> Result<TensorMap, String> {
        let rank = sizes.len();
        if !(1..=RANKS).contains(&rank) {
            return Err(format!("a tensor map of {rank} dimensions: 1 to 5 are possible"));
        }
        if strides.len() != rank - 1 || tile.len() != rank {
            return Err(format!(
                "{} strides and {} sizes of the box of a tensor map of {rank} dimensions",
                strides.len(),
                tile.len()
            ));
        }
        if !address.is_multiple_of(16) {
            return Err(format!("a tensor at {address:#x}, which is no multiple of 16"));
        }
        if let Some(size) = sizes.iter().find(|s| !(1..=1 << 32).contains(*s)) {
            return Err(format!("a dimension of {size} elements: 1 to 2^32 are possible"));
        }
        if let Some(stride) = strides.iter().find(|s| !s.is_multiple_of(16) || **s >= 1 << 40) {
            return Err(format!("a stride of {stride} bytes: strides are multiples of 16 below 2^40"));
        }
        if let Some(size) = tile.iter().find(|s| !(1..=256).contains(*s)) {
            return Err(format!("a box of {size} elements along a dimension: 1 to 256 are possible"));
        }
        let row = tile[0] * element.bytes();
        if !row.is_multiple_of(16) {
            return Err(format!("a box whose rows have {row} bytes, which is no multiple of 16"));
        }
        if let Some(span) = swizzle.span().filter(|span| row > *span) {
            return Err(format!("a box whose rows have {row} bytes, more than the swizzle's {span}"));
        }
        if fill == Fill::Nan && !element.float() {
            return Err(format!("elements outside of a tensor of {element:?} cannot become NaN"));
        }
        let mut map = TensorMap {
            element,
            rank: rank as u8,
            swizzle,
            fill,
            address,
            sizes: [1; RANKS],
            strides: [0; RANKS],
            tile: [1; RANKS],
        };
        map.sizes[..rank].copy_from_slice(sizes);
        map.strides[0] = u64::from(element.bytes());
        map.strides[1..rank].copy_from_slice(strides);
        map.tile[..rank].copy_from_slice(tile);
        Ok(map)
    }

    /// The map as kernels take it, at a multiple of 64 bytes in `.param`, `.const` or `.global` memory. The layout is this
    /// machine's own.
    pub fn encode(&self) -> [u8; 128] {
        let rank = self.rank();
        let kinds = [self.element as u8, self.rank, self.swizzle as u8, self.fill as u8, 0, 0, 0, 0];
        let mut words = [0; 16];
        words[0] = MAGIC;
        words[1] = u64::from_le_bytes(kinds);
        words[2] = self.address;
        words[3..3 + rank].copy_from_slice(&self.sizes[..rank]);
        words[8..7 + rank].copy_from_slice(&self.strides[1..rank]);
        for (i, size) in self.tile[..rank].iter().enumerate() {
            words[12 + i / 2] |= u64::from(*size) << (32 * (i % 2));
        }
        let mut out = [0; 128];
        out.as_chunks_mut::<8>().0.iter_mut().zip(words).for_each(|(to, word)| *to = word.to_le_bytes());
        out
    }

    /// The map of bytes that [`TensorMap::encode`] made; none of others.
    pub fn decode(bytes: &[u8; 128]) -> Option<TensorMap> {
        let mut words = [0; 16];
        words.iter_mut().zip(bytes.as_chunks::<8>().0).for_each(|(to, word)| *to = u64::from_le_bytes(*word));
        let [element, rank, swizzle, fill, ..] = words[1].to_le_bytes();
        let rank = usize::from(rank);
        if words[0] != MAGIC || !(1..=RANKS).contains(&rank) || fill > 1 {
            return None;
        }
        let tile: [u32; RANKS] = std::array::from_fn(|i| (words[12 + i / 2] >> (32 * (i % 2))) as u32);
        let (element, swizzle) =
            (Element::ALL.get(usize::from(element))?, Swizzle::ALL.get(usize::from(swizzle))?);
        let (sizes, strides) = (&words[3..3 + rank], &words[8..7 + rank]);
        let fill = if fill == 0 { Fill::Zeros } else { Fill::Nan };
        let map = TensorMap::new(*element, words[2], sizes, strides, &tile[..rank], *swizzle, fill).ok()?;
        (map.encode() == *bytes).then_some(map)
    }

    /// Type of the elements.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        usize::from(self.rank)
    }

    /// The swizzle in shared memory.
    pub fn swizzle(&self) -> Swizzle {
        self.swizzle
    }

    /// Bytes of a row of the box.
    pub fn row_bytes(&self) -> u32 {
        self.tile[0] * self.element.bytes()
    }

    /// Bytes of the box, which are as many wherever it lies.
    pub fn box_bytes(&self) -> u64 {
        u64::from(self.row_bytes()) * self.rows()
    }

    /// Rows of the box.
    pub(crate) fn rows(&self) -> u64 {
        self.tile[1..].iter().map(|n| u64::from(*n)).product()
    }

    /// The part of a row of the box at some coordinates that lies in the tensor: first and last byte within the row, and the
    /// address of the first. None of a row outside.
    pub(crate) fn inside(&self, coordinates: &[i32; RANKS], row: u64) -> Option<(u32, u32, u64)> {
        let mut left = row;
        let mut address = self.address;
        for d in 1..self.rank() {
            let tile = u64::from(self.tile[d]);
            let at = i64::from(coordinates[d]) + (left % tile) as i64;
            left /= tile;
            let at = u64::try_from(at).ok().filter(|at| *at < self.sizes[d])?;
            address = address.wrapping_add(at.wrapping_mul(self.strides[d]));
        }
        let first = i64::from(coordinates[0]);
        let (from, to) = (first.max(0), (first + i64::from(self.tile[0])).min(self.sizes[0] as i64));
        if from >= to {
            return None;
        }
        let bytes = i64::from(self.element.bytes());
        address = address.wrapping_add((from * bytes) as u64);
        Some((((from - first) * bytes) as u32, ((to - first) * bytes) as u32, address))
    }

    /// Sixteen bytes of what elements outside of the tensor become.
    pub(crate) fn filling(&self) -> [u8; 16] {
        let word: u64 = match (self.fill, self.element.bytes()) {
            (Fill::Zeros, _) => 0,
            (_, 2) => 0x7fff_7fff_7fff_7fff,
            (_, 4) => 0x7fff_ffff_7fff_ffff,
            _ => 0xfff8_0000_0000_0000,
        };
        let mut out = [0; 16];
        out.as_chunks_mut::<8>().0.iter_mut().for_each(|to| *to = word.to_le_bytes());
        out
    }
}

impl fmt::Display for TensorMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rank = self.rank();
        write!(
            f,
            "a tensor of {:?} of {:?} at {:#x}, boxes of {:?}",
            self.element,
            &self.sizes[..rank],
            self.address,
            &self.tile[..rank]
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(address: u64, sizes: &[u64], strides: &[u64], tile: &[u32]) -> Result<TensorMap, String> {
        TensorMap::new(Element::Bf16, address, sizes, strides, tile, Swizzle::Bytes64, Fill::Nan)
    }

    #[test]
    fn bytes_of_maps_come_back() {
        for (element, swizzle) in Element::ALL.into_iter().zip(Swizzle::ALL.into_iter().cycle()) {
            for rank in 1..=RANKS {
                let (sizes, strides) = ([1 << 32, 2, 30, 4, 5], [16, 1 << 39, 48, 64]);
                let fill = if element.float() { Fill::Nan } else { Fill::Zeros };
                let tile = [16 / element.bytes(), 256, 1, 7, 8];
                let made = TensorMap::new(
                    element,
                    0x7f00_0000_0010,
                    &sizes[..rank],
                    &strides[..rank - 1],
                    &tile[..rank],
                    swizzle,
                    fill,
                )
                .expect("a map");
                let mut bytes = made.encode();
                assert_eq!(TensorMap::decode(&bytes), Some(made));
                // Any other bytes are none.
                for at in 0..128 {
                    bytes[at] ^= 0x80;
                    assert_ne!(TensorMap::decode(&bytes), Some(made), "byte {at}");
                    bytes[at] ^= 0x80;
                }
            }
        }
        assert_eq!(TensorMap::decode(&[0; 128]), None);
    }

    #[test]
    fn what_the_driver_does_not_allow() {
        let fails = |made: Result<TensorMap, String>, words: &str| {
            let said = made.expect_err(words);
            assert!(said.contains(words), "{said}");
        };
        assert!(map(0, &[8, 8], &[16], &[32, 256]).is_ok());
        fails(map(0, &[], &[], &[]), "1 to 5");
        fails(map(0, &[8; 6], &[16; 5], &[8; 6]), "1 to 5");
        fails(map(0, &[8; 2], &[], &[8; 2]), "0 strides");
        fails(map(0, &[8; 2], &[16], &[8]), "1 sizes of the box");
        fails(map(8, &[8], &[], &[8]), "multiple of 16");
        fails(map(0, &[0], &[], &[8]), "0 elements");
        fails(map(0, &[8, (1 << 32) + 1], &[16], &[8, 1]), "4294967297 elements");
        fails(map(0, &[8; 2], &[24], &[8; 2]), "stride of 24");
        fails(map(0, &[8; 2], &[1 << 40], &[8; 2]), "below 2^40");
        fails(map(0, &[8; 2], &[16], &[8, 0]), "box of 0");
        fails(map(0, &[8; 2], &[16], &[8, 257]), "box of 257");
        fails(map(0, &[8], &[], &[4]), "8 bytes");
        fails(map(0, &[8], &[], &[40]), "the swizzle's 64");
        let integers = TensorMap::new(Element::U32, 0, &[4], &[], &[4], Swizzle::None, Fill::Nan);
        fails(integers, "cannot become NaN");
    }
}
