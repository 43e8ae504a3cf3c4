//! Arguments as text: `u32:5`, `f32[1024]:random`.

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
    Buffer { ty: Type, count: usize, bytes: Option<Vec<u8>> },
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
        let count: usize = count.parse().map_err(|_| format!("{count} is no number of values"))?;
        if count.checked_mul(ty.bytes()).is_none_or(|b| b > 1 << 34) {
            return Err(format!("{count} values are too many"));
        }
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
        Ok(Argument::Buffer { ty, count, bytes })
    }
}

/// FNV-1a of 64 bits.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}
