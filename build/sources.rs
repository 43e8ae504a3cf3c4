//! What the folder `kernels/` holds: kernels, the headers that they may include, and what is expected of each.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use super::failed;

/// The limits on machine code, one kernel a line.
pub const EXPECTATIONS: &str = "kernels/expectations.txt";

/// The folder, read.
#[derive(Debug, Default)]
pub struct Sources {
    /// `kernels/*.cu`, by name.
    pub kernels: Vec<Kernels>,
    /// Hash of names and contents of the headers.
    pub headers: u64,
    /// Hash of all that the images are made from.
    pub hash: u64,
    /// Paths whose change asks for a new build, relative to the root.
    pub watched: Vec<String>,
    /// Kernels that may spill registers.
    pub may_spill: BTreeSet<String>,
}

/// One `.cu` file.
#[derive(Debug)]
pub struct Kernels {
    /// File name without the ending.
    pub stem: String,
    /// Hash of its contents.
    pub hash: u64,
    /// What it is written for.
    pub targets: Targets,
    /// Its kernels, in order of appearance.
    pub symbols: Vec<String>,
}

/// A GPU architecture, as in `sm_90a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Architecture {
    /// As in 90.
    pub number: u32,
    /// As in `a`: code for this architecture alone.
    pub suffix: Option<char>,
}

/// The architectures that a file is written for.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// The lowest.
    lowest: Architecture,
    /// Whether it is the only one.
    pub only: bool,
}

impl Targets {
    /// What the first line of the file `name` says, as in `// archs: sm_75+` or `// archs: sm_90a`; else from 8.0 on.
    pub fn of(name: &str, text: &str) -> Result<Targets, String> {
        let first = text.lines().next().unwrap_or_default();
        let Some(tag) = first.trim_start_matches('/').trim().strip_prefix("archs:") else {
            return Ok(Targets { lowest: Architecture::LOWEST, only: false });
        };
        let (lowest, only) = match tag.trim().strip_suffix('+') {
            Some(lowest) => (Architecture::parse(lowest), false),
            None => (Architecture::parse(tag).filter(|a| a.suffix == Some('a')), true),
        };
        let lowest = lowest
            .ok_or_else(|| format!("{name}:1: `archs:{tag}` is not of the form `sm_75+` or `sm_90a`"))?;
        Ok(Targets { lowest, only })
    }

    /// Whether the file is compiled for an architecture.
    pub fn suit(self, architecture: Architecture) -> bool {
        if self.only { architecture == self.lowest } else { architecture >= self.lowest }
    }
}

impl Architecture {
    /// What an image holds unless LENSMITH_CUDA_ARCHS says otherwise; each file from its lowest upwards.
    const DEFAULT: &'static str = "75,80,90a,100,120";
    /// The lowest of a file that names none.
    const LOWEST: Architecture = Architecture { number: 80, suffix: None };

    /// Reads `90a` or `sm_90a`.
    pub fn parse(text: &str) -> Option<Architecture> {
        let text = text.trim();
        let text = text.strip_prefix("sm_").unwrap_or(text);
        let digits = text.trim_end_matches(['a', 'f']);
        let suffix = &text[digits.len()..];
        if suffix.len() > 1 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number = digits.parse().ok().filter(|n| (50..1000).contains(n))?;
        Some(Architecture { number, suffix: suffix.chars().next() })
    }

    /// The architectures `asked` for, or of the defaults those that the compiler knows; rising.
    pub fn choose(asked: Option<&str>, known: &BTreeSet<u32>) -> Result<Vec<Architecture>, String> {
        let mut out = Vec::new();
        for word in asked.unwrap_or(Self::DEFAULT).split(',') {
            let one = Self::parse(word).ok_or_else(|| {
                format!("LENSMITH_CUDA_ARCHS: `{word}` is no architecture; write them as in 80,90a,120")
            })?;
            if known.contains(&one.number) {
                out.push(one);
            } else if asked.is_some() {
                return Err(format!(
                    "LENSMITH_CUDA_ARCHS: this nvcc knows no {one}; a newer CUDA toolkit may"
                ));
            }
        }
        out.sort_unstable();
        out.dedup();
        Ok(out)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.number)?;
        self.suffix.map_or(Ok(()), |suffix| write!(f, "{suffix}"))
    }
}

/// Reads `kernels/` below `root`; an absent folder has no kernels.
pub fn read(root: &Path) -> Result<Sources, String> {
    let mut files = Vec::new();
    if root.join("kernels").is_dir() {
        list(root, "kernels", &mut files)?;
    }
    let mut out = Sources::default();
    let (mut headers, mut everything) = (Xxh3::new(), Xxh3::new());
    if !files.is_empty() {
        // The folder itself, for files to come.
        out.watched.push("kernels".into());
    }
    for name in files {
        let path = root.join(&name);
        let bytes = fs::read(&path).map_err(|e| failed("read", &path, &e))?;
        let text = String::from_utf8_lossy(&bytes);
        let stem = name.strip_prefix("kernels/").and_then(|n| n.strip_suffix(".cu"));
        let header = [".cuh", ".h", ".hpp"].iter().any(|ending| name.ends_with(ending));
        if let Some(stem) = stem.filter(|stem| !stem.contains('/')) {
            let targets = Targets::of(&name, &text)?;
            let mut hash = Xxh3::new();
            hash.update(&bytes);
            let symbols = symbols(&text);
            out.kernels.push(Kernels { stem: stem.into(), hash: hash.digest(), targets, symbols });
        } else if header {
            update(&mut headers, &name, &bytes);
        } else if name == EXPECTATIONS {
            out.may_spill = may_spill(&text);
        }
        if stem.is_some() || header {
            update(&mut everything, &name, &bytes);
        }
        out.watched.push(name);
    }
    let mut seen = BTreeSet::new();
    for kernels in &out.kernels {
        for symbol in &kernels.symbols {
            if !seen.insert(symbol.to_uppercase()) {
                return Err(format!("kernels/{}.cu: a second kernel `{symbol}`", kernels.stem));
            }
        }
    }
    (out.headers, out.hash) = (headers.digest(), everything.digest());
    Ok(out)
}

/// Name, length and contents, so that no two folders give one stream.
fn update(hash: &mut Xxh3, name: &str, bytes: &[u8]) {
    hash.update(name.as_bytes());
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// All files below `folder`, sorted, with forward slashes.
fn list(root: &Path, folder: &str, out: &mut Vec<String>) -> Result<(), String> {
    let path = root.join(folder);
    let mut entries = Vec::new();
    for entry in fs::read_dir(&path).map_err(|e| failed("read", &path, &e))? {
        let entry = entry.map_err(|e| failed("read", &path, &e))?;
        entries.push((format!("{folder}/{}", entry.file_name().to_string_lossy()), entry.path().is_dir()));
    }
    entries.sort();
    for (name, is_folder) in entries {
        match is_folder {
            true => list(root, &name, out)?,
            false => out.push(name),
        }
    }
    Ok(())
}

/// The kernels that a file exports: the names of its `extern "C" __global__` functions, and the first arguments of
/// its uses of `KERNEL`, the macro that declares kernels which differ in types alone.
fn symbols(text: &str) -> Vec<String> {
    let words = words(text);
    let mut out: Vec<String> = Vec::new();
    let mut push = |name: &str| {
        if !out.iter().any(|known| known == name) {
            out.push(name.into());
        }
    };
    let at = |i: usize| words.get(i).map_or("", String::as_str);
    let mut i = 0;
    while i < words.len() {
        let start = i;
        i += 1;
        if at(start) == "KERNEL" && at(start + 1) == "(" {
            push(at(start + 2));
        } else if at(start) == "__global__" && start > 1 && at(start - 1) == "\"C\"" {
            // The name stands before the parameters; what else has parentheses is an attribute.
            while i < words.len() && at(i) != "{" && at(i) != ";" {
                let attribute = ["__launch_bounds__", "__cluster_dims__", "__maxnreg__"].contains(&at(i));
                if at(i + 1) == "(" && !attribute && is_name(at(i)) {
                    push(at(i));
                    break;
                }
                i += if attribute { after_parentheses(&words, i + 1) - i } else { 1 };
            }
        }
    }
    out
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// The word after the parenthesis that closes the one at `open`.
fn after_parentheses(words: &[String], open: usize) -> usize {
    let mut depth = 0;
    for (i, word) in words.iter().enumerate().skip(open) {
        match word.as_str() {
            "(" => depth += 1,
            ")" if depth == 1 => return i + 1,
            ")" => depth -= 1,
            _ => {}
        }
    }
    words.len()
}

/// Names, `"C"`, and signs one by one; without comments, other strings and preprocessor lines.
fn words(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        let from = i;
        i += 1;
        match at(from) {
            '/' if at(i) == '/' => i = (i..chars.len()).find(|&k| at(k) == '\n').unwrap_or(chars.len()),
            '/' if at(i) == '*' => {
                i = (i + 1..chars.len())
                    .find(|&k| at(k) == '*' && at(k + 1) == '/')
                    .map_or(chars.len(), |k| k + 2);
            }
            '#' => {
                let ends = |&k: &usize| at(k) == '\n' && at(k - 1) != '\\';
                i = (i..chars.len()).find(ends).unwrap_or(chars.len());
            }
            '"' => {
                while i < chars.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
                if at(from + 1) == 'C' && i == from + 3 {
                    out.push("\"C\"".into());
                }
            }
            c if c.is_alphanumeric() || c == '_' => {
                while at(i).is_alphanumeric() || at(i) == '_' {
                    i += 1;
                }
                out.push(chars[from..i].iter().collect());
            }
            c if c.is_whitespace() => {}
            c => out.push(c.to_string()),
        }
    }
    out
}

/// The kernels marked `may-spill` in the expectations.
fn may_spill(text: &str) -> BTreeSet<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines
        .filter(|line| line.split_whitespace().any(|word| word == "may-spill"))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_string)
        .collect()
}
