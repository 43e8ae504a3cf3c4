//! Arguments as text: `u32:5`, `f32[1024]:random`, `bf16[128,64]:iota:box=64,8`.

use ptx::{Element, Fill, Swizzle, TensorMap};

/// Types of numbers on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Unsigned, of so many bytes.
    Unsigned(usize),
    /// Signed, of so many bytes.
    Signed(usize),
    F16,
    Bf16,
    F32,
    F64,
}

/// An argument.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// Bytes that are passed as they are.
    Value(Vec<u8>),
    /// A buffer, with its contents unless it is to be unwritten.
    Buffer { ty: Type, count: usize, bytes: Option<Vec<u8>>, map: Option<Map> },
}

/// A tensor map of a buffer: sizes, the contiguous one first, box, swizzle and what lies outside.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    element: Element,
    sizes: Vec<u64>,
    tile: Vec<u32>,
    swizzle: Swizzle,
    fill: Fill,
}

impl Map {
    /// Reads what stands behind the contents: `box=64,8:swizzle=128:fill=nan`.
    fn parse(ty: Type, sizes: Vec<u64>, options: &str) -> Result<Map, String> {
        let (mut tile, mut swizzle, mut fill) = (Vec::new(), Swizzle::None, Fill::Zeros);
        for option in options.split(':') {
            match option.split_once('=') {
                Some(("box", list)) => tile = numbers(list)?,
                Some(("swizzle", "32")) => swizzle = Swizzle::Bytes32,
                Some(("swizzle", "64")) => swizzle = Swizzle::Bytes64,
                Some(("swizzle", "128")) => swizzle = Swizzle::Bytes128,
                Some(("fill", "nan")) => fill = Fill::Nan,
                _ => return Err(format!("{option}: expected box=, swizzle=32, 64 or 128, or fill=nan")),
            }
        }
        let element = match ty {
            Type::Unsigned(1) => Element::U8,
            Type::Unsigned(2) => Element::U16,
            Type::Unsigned(4) => Element::U32,
            Type::Unsigned(_) => Element::U64,
            Type::Signed(4) => Element::S32,
            Type::Signed(8) => Element::S64,
            Type::Signed(_) => return Err("tensors of s8 and s16 have no tensor map".to_string()),
            Type::F16 => Element::F16,
            Type::Bf16 => Element::Bf16,
            Type::F32 => Element::F32,
            Type::F64 => Element::F64,
        };
        Ok(Map { element, sizes, tile, swizzle, fill })
    }

    /// The map of a tensor without gaps at an address.
    pub fn encode(&self, address: u64) -> Result<Vec<u8>, String> {
        let Map { element, sizes, tile, swizzle, fill } = self;
        let mut bytes = u64::from(element.bytes());
        let strides: Vec<u64> = sizes[..sizes.len() - 1]
            .iter()
            .map(|n| {
                bytes *= n;
                bytes
            })
            .collect();
        let map = TensorMap::new(*element, address, sizes, &strides, tile, *swizzle, *fill)?;
        Ok(map.encode().to_vec())
    }
}

/// Numbers between commas.
fn numbers<T: std::str::FromStr>(list: &str) -> Result<Vec<T>, String> {
    list.split(',').map(|n| n.parse().map_err(|_| format!("{n} is no number of values"))).collect()
}

impl Type {
    fn parse(name: &str) -> Result<Type, String> {
        Ok(match name {
            "u8" => Type::Unsigned(1),
            "u16" => Type::Unsigned(2),
            "u32" => Type::Unsigned(4),
            "u64" => Type::Unsigned(8),
            "s8" => Type::Signed(1),
            "s16" => Type::Signed(2),
            "s32" => Type::Signed(4),
            "s64" => Type::Signed(8),
            "f16" => Type::F16,
            "bf16" => Type::Bf16,
            "f32" => Type::F32,
            "f64" => Type::F64,
            other => return Err(format!("{other} is no type; see --help")),
        })
    }

    pub fn bytes(self) -> usize {
        match self {
            Type::Unsigned(n) | Type::Signed(n) => n,
            Type::F16 | Type::Bf16 => 2,
            Type::F32 => 4,
            Type::F64 => 8,
        }
    }

    fn of_float(self, v: f64) -> Vec<u8> {
        match self {
            Type::F16 => half::f16::from_f64(v).to_le_bytes().to_vec(),
            Type::Bf16 => half::bf16::from_f64(v).to_le_bytes().to_vec(),
            Type::F32 => (v as f32).to_le_bytes().to_vec(),
            Type::F64 => v.to_le_bytes().to_vec(),
            Type::Unsigned(n) => (v as u64).to_le_bytes()[..n].to_vec(),
            Type::Signed(n) => (v as i64).to_le_bytes()[..n].to_vec(),
        }
    }

    fn of_text(self, text: &str) -> Result<Vec<u8>, String> {
        let wrong = |_| format!("{text} is no number of this type");
        match self {
            Type::Unsigned(n) => {
                let v = match text.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16),
                    None => text.parse::<u64>(),
                };
                v.map(|v| v.to_le_bytes()[..n].to_vec()).map_err(|e| wrong(e.to_string()))
            }
            Type::Signed(n) => {
                text.parse::<i64>().map(|v| v.to_le_bytes()[..n].to_vec()).map_err(|e| wrong(e.to_string()))
            }
            _ => text.parse::<f64>().map(|v| self.of_float(v)).map_err(|e| wrong(e.to_string())),
        }
    }

    /// A value as text.
    pub fn show(self, bytes: &[u8]) -> String {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(wide);
        match self {
            Type::Unsigned(_) => bits.to_string(),
            Type::Signed(n) => ((bits << (64 - 8 * n)) as i64 >> (64 - 8 * n)).to_string(),
            Type::F16 => half::f16::from_bits(bits as u16).to_string(),
            Type::Bf16 => half::bf16::from_bits(bits as u16).to_string(),
            Type::F32 => f32::from_bits(bits as u32).to_string(),
            Type::F64 => f64::from_bits(bits).to_string(),
        }
    }
}

impl Argument {
    /// Reads an argument; `seed` is for random buffers.
    pub fn parse(text: &str, seed: u64) -> Result<Argument, String> {
        if text == "null" {
            return Ok(Argument::Value(vec![0; 8]));
        }
        let (ty, value) = text.split_once(':').ok_or(format!("{text}: expected TYPE:VALUE; see --help"))?;
        if ty == "bytes" {
            let digits: Vec<u8> = value.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
            let pairs = digits.chunks(2).map(|pair| {
                let pair = std::str::from_utf8(pair).ok().filter(|p| p.len() == 2)?;
                u8::from_str_radix(pair, 16).ok()
            });
            let bytes: Option<Vec<u8>> = pairs.collect();
            return bytes
                .map(Argument::Value)
                .ok_or(format!("{value}: expected pairs of hexadecimal digits"));
        }
        let Some((name, count)) = ty.strip_suffix(']').and_then(|t| t.split_once('[')) else {
            return Ok(Argument::Value(Type::parse(ty)?.of_text(value)?));
        };
        let ty = Type::parse(name)?;
        let sizes: Vec<u64> = numbers(count)?;
        let bytes = sizes.iter().try_fold(ty.bytes() as u64, |n, size| n.checked_mul(*size));
        let Some(bytes) = bytes.filter(|b| *b <= 1 << 34) else {
            return Err(format!("{count} values are too many"));
        };
        let count = bytes as usize / ty.bytes();
        let (value, map) = match value.split_once(':') {
            Some((value, options)) => (value, Some(Map::parse(ty, sizes, options)?)),
            None => (value, None),
        };
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        let bytes = match value {
            "unwritten" => None,
            "zeros" => Some(vec![0; count * ty.bytes()]),
            "iota" => Some((0..count).flat_map(|i| ty.of_float(i as f64)).collect()),
            "random" => Some(
                (0..count)
                    .flat_map(|_| match ty {
                        Type::Unsigned(_) | Type::Signed(_) => ty.of_float(next() as f64),
                        _ => ty.of_float(next() as f64 / f64::from(1 << 30) - 1.0),
                    })
                    .collect(),
            ),
            number => {
                let one = ty.of_text(number)?;
                Some(one.repeat(count))
            }
        };
        Ok(Argument::Buffer { ty, count, bytes, map })
    }
}

/// FNV-1a of 64 bits.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}
