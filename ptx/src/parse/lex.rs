//! Text to tokens. Comments are dropped, every token keeps its line.

use crate::error::ParseError;

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// A name, which may begin with `%`, `$` or `_`.
    Word(String),
    /// A name behind a dot: a directive, a modifier or the part of a special register.
    Dot(String),
    /// An integer, as its 64 bits.
    Int(u64),
    /// `0f` and eight hexadecimal digits.
    F32(u32),
    /// `0d` and sixteen hexadecimal digits, or a decimal number with a point.
    F64(u64),
    /// A string, without its quotes.
    Text(String),
    /// Anything else that stands for itself.
    Punct(char),
}

/// A token and where it stands.
#[derive(Clone, Debug)]
pub struct Lexed {
    /// The token.
    pub token: Token,
    /// Its line, from 1.
    pub line: u32,
}

fn word_char(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'_' || c == b'$'
}

/// Splits a text into tokens.
pub fn tokens(text: &str) -> Result<Vec<Lexed>, ParseError> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(text.len() / 4);
    let mut line = 1;
    let mut i = 0;
    while i < bytes.len() {
        let c = bytes[i];
        match c {
            b'\n' => {
                line += 1;
                i += 1;
            }
            // Some tools end PTX with a zero byte.
            b' ' | b'\t' | b'\r' | 0 => i += 1,
            b'/' if bytes.get(i + 1) == Some(&b'/') => {
                while i < bytes.len() && bytes[i] != b'\n' {
                    i += 1;
                }
            }
            b'/' if bytes.get(i + 1) == Some(&b'*') => {
                let start = line;
                i += 2;
                loop {
                    match bytes.get(i) {
                        None => return Err(ParseError::new(start, "comment without end")),
                        Some(b'*') if bytes.get(i + 1) == Some(&b'/') => break,
                        Some(b'\n') => line += 1,
                        Some(_) => {}
                    }
                    i += 1;
                }
                i += 2;
            }
            b'"' => {
                let start = i + 1;
                i = start;
                while i < bytes.len() && bytes[i] != b'"' && bytes[i] != b'\n' {
                    i += 1;
                }
                if bytes.get(i) != Some(&b'"') {
                    return Err(ParseError::new(line, "string without end"));
                }
                let text = String::from_utf8_lossy(&bytes[start..i]).into_owned();
                out.push(Lexed { token: Token::Text(text), line });
                i += 1;
            }
            b'.' => {
                let start = i + 1;
                i = start;
                loop {
                    match bytes.get(i) {
                        Some(c) if word_char(*c) => i += 1,
                        Some(b':') if bytes.get(i + 1) == Some(&b':') => i += 2,
                        _ => break,
                    }
                }
                if i == start {
                    return Err(ParseError::new(line, "a dot without a name"));
                }
                let text = String::from_utf8_lossy(&bytes[start..i]).into_owned();
                out.push(Lexed { token: Token::Dot(text), line });
            }
            b'0'..=b'9' => {
                let start = i;
                while i < bytes.len() && word_char(bytes[i]) {
                    i += 1;
                }
                let mut text = String::from_utf8_lossy(&bytes[start..i]).into_owned();
                if bytes.get(i) == Some(&b'.')
                    && bytes.get(i + 1).is_some_and(u8::is_ascii_digit)
                    && text.bytes().all(|c| c.is_ascii_digit())
                {
                    i += 1;
                    let fraction = i;
                    while i < bytes.len() && (word_char(bytes[i])) {
                        i += 1;
                    }
                    text.push('.');
                    text.push_str(&String::from_utf8_lossy(&bytes[fraction..i]));
                }
                let token = number(&text)
                    .ok_or_else(|| ParseError::new(line, format!("`{text}` is not a number of PTX")))?;
                out.push(Lexed { token, line });
            }
            c if word_char(c) || c == b'%' => {
                let start = i;
                i += 1;
                while i < bytes.len() && word_char(bytes[i]) {
                    i += 1;
                }
                let text = String::from_utf8_lossy(&bytes[start..i]).into_owned();
                out.push(Lexed { token: Token::Word(text), line });
            }
            b',' | b';' | b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'<' | b'>' | b'+' | b'-' | b':'
            | b'@' | b'!' | b'|' | b'=' => {
                out.push(Lexed { token: Token::Punct(c as char), line });
                i += 1;
            }
            _ => return Err(ParseError::new(line, format!("unexpected byte {c:#04x}"))),
        }
    }
    Ok(out)
}

/// PTX ISA 4.5, constants: decimal, `0x`, `0b`, octal, `U` at the end, `0f` and `0d` bits.
fn number(text: &str) -> Option<Token> {
    let lower = text.to_ascii_lowercase();
    if let Some(bits) = lower.strip_prefix("0f") {
        return (bits.len() == 8).then(|| u32::from_str_radix(bits, 16).ok().map(Token::F32)).flatten();
    }
    if let Some(bits) = lower.strip_prefix("0d") {
        return (bits.len() == 16).then(|| u64::from_str_radix(bits, 16).ok().map(Token::F64)).flatten();
    }
    if lower.contains('.') {
        return lower.parse::<f64>().ok().map(|v| Token::F64(v.to_bits()));
    }
    let digits = lower.strip_suffix('u').unwrap_or(&lower);
    let value = if let Some(hex) = digits.strip_prefix("0x") {
        u64::from_str_radix(hex, 16)
    } else if let Some(binary) = digits.strip_prefix("0b") {
        u64::from_str_radix(binary, 2)
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(&digits[1..], 8)
    } else {
        digits.parse()
    };
    value.ok().map(Token::Int)
}
