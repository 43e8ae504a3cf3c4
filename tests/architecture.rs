//! The import rules of the crate: which module may name which, and which crates, keywords and sizes belong where.
//! Reads the sources; comments and strings do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each top-level module and those below it that it may name.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("dtype", &["error"]),
    ("matrix", &["error", "dtype"]),
    ("data", &["error", "dtype", "matrix"]),
    ("simd", &["error", "dtype"]),
    ("noise", &["error", "dtype", "matrix", "simd"]),
    // Foreign files in and out; the noise draws the pairs that are annotated.
    ("convert", &["error", "dtype", "matrix", "data", "noise"]),
    ("model", &["error", "dtype", "matrix", "noise", "data"]),
    ("backend", &["error", "dtype", "matrix", "simd", "noise", "model"]),
    ("synth", METHOD),
    ("train", METHOD),
    ("eval", METHOD),
    // All above the method, and not each other.
    ("engine", METHOD),
    ("bench", METHOD),
    ("report", METHOD),
    ("cli", ABOVE),
    ("main", ABOVE),
];

/// The parts of the method stand side by side and may build on each other, but not in a circle.
const METHOD: &[&str] =
    &["error", "dtype", "matrix", "noise", "model", "data", "backend", "synth", "train", "eval"];
const ABOVE: &[&str] = &[
    "error", "dtype", "matrix", "noise", "model", "data", "convert", "backend", "synth", "train", "eval",
    "engine", "bench", "report", "cli",
];
const SIDE_BY_SIDE: [&str; 3] = ["synth", "train", "eval"];

/// Words and the only places that may hold them: folders end in a slash.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("memmap2", &["data/map.rs", "matrix/pages.rs"]),
    ("libc", &["data/map.rs", "simd/amx.rs"]),
    ("rustix", &["data/block.rs"]),
    ("gemm", &["backend/cpu/"]),
    ("clap", &["cli/", "main.rs"]),
    ("indicatif", &["cli/"]),
    ("plotters", &["bench/plot.rs"]),
    ("cudarc", &["backend/cuda/"]),
    ("arrow_array", &["convert/"]),
    ("arrow_ipc", &["convert/"]),
    ("unsafe", &["simd/", "data/map.rs", "backend/cuda/"]),
];

/// Backends that the method must not tell apart.
const CONCRETE_BACKENDS: [&str; 3] = ["cpu", "cuda", "reference"];

const MOST_LINES: usize = 600;

/// A source file: its path below `src`, with forward slashes, and its text.
type Source = (String, String);

/// The words and `::`, `{`, `}` and other signs of a text, without comments, strings and lifetimes.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        let c = at(i);
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 || i >= chars.len() {
                    break;
                }
            }
        } else if c == '"' {
            i = after_string(&chars, i);
        } else if c == '\'' {
            i = after_quote(&chars, i);
        } else if is_word(c) {
            let from = i;
            while is_word(at(i)) {
                i += 1;
            }
            let word: String = chars[from..i].iter().collect();
            // Prefixed literals: r"..", r#".."#, b"..", br"..", c"..", b'.'.
            if matches!(word.as_str(), "r" | "br" | "cr") && matches!(at(i), '"' | '#') {
                let mut hashes = 0;
                while at(i + hashes) == '#' {
                    hashes += 1;
                }
                if at(i + hashes) == '"' {
                    let end: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                    let rest: String = chars[i + hashes + 1..].iter().collect();
                    let length = rest.find(&end).map_or(rest.len(), |p| p + end.len());
                    i += hashes + 1 + rest[..length].chars().count();
                    continue;
                }
                // A raw identifier.
                i += hashes;
            } else if matches!(word.as_str(), "b" | "c") && at(i) == '"' {
                i = after_string(&chars, i);
            } else if word == "b" && at(i) == '\'' {
                i = after_quote(&chars, i);
            } else {
                out.push(word);
            }
        } else if c == ':' && at(i + 1) == ':' {
            out.push("::".into());
            i += 2;
        } else {
            if !c.is_whitespace() {
                out.push(c.to_string());
            }
            i += 1;
        }
    }
    out
}

fn after_string(chars: &[char], open: usize) -> usize {
    let mut i = open + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// After a character literal, or after the sign of a lifetime.
fn after_quote(chars: &[char], open: usize) -> usize {
    if chars.get(open + 1) == Some(&'\\') {
        let mut i = open + 3;
        while i < chars.len() && chars[i] != '\'' {
            i += 1;
        }
        return i + 1;
    }
    if chars.get(open + 2) == Some(&'\'') { open + 3 } else { open + 1 }
}

/// The paths that start at token `from`: one, or as many as the braces after it hold. Gives the token after them.
fn paths(tokens: &[String], from: usize, prefix: &[String], out: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    let mut i = from;
    let is = |i: usize, sign: &str| tokens.get(i).is_some_and(|t| t == sign);
    loop {
        if is(i, "{") {
            i += 1;
            while i < tokens.len() && !is(i, "}") {
                let next = paths(tokens, i, &path, out);
                // `as name` and anything unknown before the comma.
                i = next.max(i + 1);
                while i < tokens.len() && !is(i, ",") && !is(i, "}") {
                    i += 1;
                }
                if is(i, ",") {
                    i += 1;
                }
            }
            return i + 1;
        }
        match tokens.get(i) {
            Some(word) if word == "*" || word.starts_with(|c: char| c.is_alphanumeric() || c == '_') => {
                path.push(word.clone());
                i += 1;
            }
            _ => break,
        }
        if !is(i, "::") {
            break;
        }
        i += 1;
    }
    out.push(path);
    i
}

/// All paths of a file that name something from the root of the crate, without the root; and those of `std` and
/// `core`, with it.
fn rooted_paths(file: &str, tokens: &[String]) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
    let (mut ours, mut standard) = (Vec::new(), Vec::new());
    let depth = module_path(file).len();
    for (i, token) in tokens.iter().enumerate() {
        let continues = tokens.get(i + 1).is_some_and(|t| t == "::");
        let starts = i == 0 || tokens[i - 1] != "::" || i == 1 || !is_word(&tokens[i - 2]);
        if !continues || !starts {
            continue;
        }
        match token.as_str() {
            "crate" => {
                paths(tokens, i + 2, &[], &mut ours);
            }
            "lensmith" if file == "main.rs" || file.starts_with("bin/") => {
                paths(tokens, i + 2, &[], &mut ours);
            }
            "std" | "core" => {
                paths(tokens, i, &[], &mut standard);
            }
            "super" => {
                // As many steps up as the file is deep lead to the root.
                let mut last = i;
                let mut steps = 1;
                while tokens.get(last + 2).is_some_and(|t| t == "super") {
                    (last, steps) = (last + 2, steps + 1);
                }
                if steps >= depth {
                    let mut found = Vec::new();
                    paths(tokens, last + 2, &[], &mut found);
                    let known =
                        |p: &Vec<String>| MAY_NAME.iter().any(|(m, _)| p.first().is_some_and(|f| f == m));
                    ours.extend(found.into_iter().filter(known));
                }
            }
            _ => {}
        }
    }
    (ours, standard)
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// The module that a file is, as in `train/vae.rs` -> train, vae.
fn module_path(file: &str) -> Vec<&str> {
    let stem = file.trim_end_matches(".rs");
    stem.trim_end_matches("/mod").split('/').collect()
}

/// What `lib.rs` re-exports, and the module it comes from.
fn root_names(sources: &[Source]) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for (_, text) in sources.iter().filter(|(file, _)| file == "lib.rs") {
        let tokens = tokens(text);
        for i in (0..tokens.len()).filter(|&i| tokens[i] == "use") {
            let mut found = Vec::new();
            paths(&tokens, i + 1, &[], &mut found);
            for path in found.into_iter().filter(|p| p.len() > 1) {
                names.insert(path[path.len() - 1].clone(), path[0].clone());
            }
        }
    }
    names
}

/// Every broken rule, one line each.
fn violations(sources: &[Source]) -> Vec<String> {
    let mut out = Vec::new();
    let root = root_names(sources);
    let mut side_by_side = BTreeSet::new();
    for (file, text) in sources {
        let tokens = tokens(text);
        let lines = text.lines().count();
        if lines > MOST_LINES {
            out.push(format!("{file}: {lines} lines, at most {MOST_LINES}"));
        }
        for (word, places) in ONLY_IN {
            let allowed =
                places.iter().any(|p| if p.ends_with('/') { file.starts_with(p) } else { file == p });
            // The word as a crate or keyword, not as part of a longer one; `mod gemm;` is in its own folder.
            if !allowed && tokens.iter().any(|t| t == word) {
                out.push(format!("{file}: `{word}` belongs in {}", places.join(", ")));
            }
        }
        let (ours, standard) = rooted_paths(file, &tokens);
        if !file.starts_with("simd/") && standard.iter().any(|p| p.get(1).is_some_and(|m| m == "arch")) {
            out.push(format!("{file}: `arch` intrinsics belong in simd/"));
        }
        let module = module_path(file)[0];
        if module == "lib" {
            continue;
        }
        let Some((_, below)) = MAY_NAME.iter().find(|(name, _)| *name == module) else {
            out.push(format!("{file}: module `{module}` has no place in the layers"));
            continue;
        };
        for path in ours {
            let first = root.get(&path[0]).unwrap_or(&path[0]).as_str();
            if first == "*" || !MAY_NAME.iter().any(|(name, _)| *name == first) {
                out.push(format!("{file}: `crate::{}` is in no known module", path.join("::")));
                continue;
            }
            if first != module && !below.contains(&first) {
                out.push(format!("{file}: `{module}` may not name `{first}` (crate::{})", path.join("::")));
            }
            if SIDE_BY_SIDE.contains(&module) {
                if SIDE_BY_SIDE.contains(&first) && first != module {
                    side_by_side.insert((module.to_string(), first.to_string()));
                }
                if first == "backend" && path.get(1).is_some_and(|m| CONCRETE_BACKENDS.contains(&m.as_str()))
                {
                    out.push(format!(
                        "{file}: `{module}` names a concrete backend (crate::{})",
                        path.join("::")
                    ));
                }
            }
        }
    }
    let names = |a: &str, b: &str| side_by_side.contains(&(a.to_string(), b.to_string()));
    for (i, a) in SIDE_BY_SIDE.iter().enumerate() {
        for (j, b) in SIDE_BY_SIDE.iter().enumerate() {
            let others = SIDE_BY_SIDE.iter().filter(|c| *c != a && *c != b);
            if i < j && names(a, b) && names(b, a) {
                out.push(format!("`{a}` and `{b}` name each other"));
            }
            if i < j && others.clone().any(|c| names(a, b) && names(b, c) && names(c, a)) {
                out.push("`synth`, `train` and `eval` name each other in a circle".into());
            }
        }
    }
    out
}

fn read_sources(folder: &Path, root: &Path, out: &mut Vec<Source>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            read_sources(&path, root, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(root).expect("below the root").to_string_lossy().replace('\\', "/");
            out.push((name, fs::read_to_string(&path).expect("readable source")));
        }
    }
}

#[test]
fn sources_keep_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    read_sources(&root, &root, &mut sources);
    for file in ["lib.rs", "main.rs", "error.rs", "backend/mod.rs"] {
        assert!(sources.iter().any(|(name, _)| name == file), "{file} was not read");
    }
    let found = violations(&sources);
    assert!(found.is_empty(), "{} broken rules:\n{}", found.len(), found.join("\n"));
}

/// The rules that `text` breaks as the file `name`, beside a library root.
fn broken(name: &str, text: &str) -> Vec<String> {
    let root = ("lib.rs".to_string(), "pub mod error;\npub use error::{Error, Result};".to_string());
    violations(&[root, (name.to_string(), text.to_string())])
}

#[test]
fn checker_catches_what_breaks_a_rule() {
    let caught = [
        ("matrix.rs", "use crate::model::Vae;"),
        ("error.rs", "use crate::matrix::{Rows, RowSet};"),
        ("noise/mod.rs", "use crate::{error::Result, model::{Linear, Vae}};"),
        ("dtype.rs", "fn f() { crate::noise::key_words(1); }"),
        ("backend/mod.rs", "use crate::data::Reader;"),
        ("backend/cpu/infer.rs", "use super::super::super::synth::Recipe;"),
        ("matrix.rs", "use super::backend::Backend;"),
        ("data/map.rs", "use crate::noise::Side;"),
        ("convert/import.rs", "use crate::synth::Recipe;"),
        ("data/reader.rs", "use crate::convert::Format;"),
        ("eval/mod.rs", "use crate::convert::Format;"),
        ("cli/import.rs", "use arrow_array::Array;"),
        ("train/vae.rs", "use crate::backend::cpu::Cpu;"),
        ("synth/pipeline.rs", "use crate::{\n    backend::{self, reference::Reference as R},\n};"),
        ("eval/mod.rs", "type B = crate::backend::cuda::Cuda;"),
        ("train/mod.rs", "use crate::cli::Bar;"),
        ("synth/mod.rs", "use crate::engine::Engine;"),
        ("engine.rs", "use crate::cli::Args;"),
        ("engine.rs", "use crate::bench::Report;"),
        ("bench/mod.rs", "use crate::engine::Engine;"),
        ("bench/mod.rs", "use plotters::prelude::*;"),
        ("error.rs", "pub use $crate::dtype::Dtype;"),
        ("model/weights.rs", "use memmap2::Mmap;"),
        ("data/reader.rs", "fn f() { let m = memmap2::Mmap::map(&file); }"),
        ("model/linear.rs", "use gemm::Parallelism;"),
        ("train/vae.rs", "fn f(bar: &indicatif::ProgressBar) {}"),
        ("report/html.rs", "#[derive(clap::Args)] struct A;"),
        ("backend/mod.rs", "use cudarc::driver::CudaContext;"),
        ("noise/normal.rs", "use std::arch::x86_64::*;"),
        ("matrix.rs", "use core::{arch, fmt};"),
        ("backend/cpu/infer.rs", "use std::arch::x86_64::*;"),
        ("backend/cpu/infer.rs", "fn f() { unsafe { g() } }"),
        ("plugins/mod.rs", "fn f() {}"),
        ("synth/mod.rs", "use crate::somewhere::Else;"),
        ("matrix.rs", "const A: &str = \"// \"; use crate::model::Vae;"),
        ("matrix.rs", "fn f<'a>(c: char) -> bool { c == '\"' } use crate::model::Vae; // \""),
        ("matrix.rs", "const A: &str = r#\"\"x\"#; use crate::model::Vae;"),
        ("main.rs", "use lensmith::nowhere::X;"),
    ];
    for (name, text) in caught {
        assert!(!broken(name, text).is_empty(), "{name}: {text}");
    }
    let long = "\n".repeat(MOST_LINES + 1);
    assert_eq!(broken("matrix.rs", &long).len(), 1);

    let source = |name: &str, text: &str| (name.to_string(), text.to_string());
    let circle = [
        source("train/mod.rs", "use crate::synth::Recipe;"),
        source("synth/mod.rs", "use crate::train::early_stop;"),
    ];
    assert_eq!(violations(&circle).len(), 1, "{:?}", violations(&circle));
    let longer = [
        source("train/mod.rs", "use crate::synth::Recipe;"),
        source("synth/mod.rs", "use crate::eval::Pairs;"),
        source("eval/mod.rs", "use crate::train::Fit;"),
    ];
    assert!(!violations(&longer).is_empty());
}

#[test]
fn checker_lets_pass_what_keeps_the_rules() {
    let kept = [
        ("matrix.rs", "use crate::dtype::{Dtype, Element};\nuse crate::{Error, Result};"),
        (
            "matrix.rs",
            "// use crate::model::Vae;\n/* unsafe /* memmap2 */ */ const A: &str = \"crate::cli::X\";",
        ),
        ("matrix.rs", "/// As in [`crate::backend::Backend`].\nconst A: char = '\"'; const B: char = '\\'';"),
        ("matrix.rs", "#![allow(unsafe_code)]\nfn f() -> &'static str { r#\"unsafe \"gemm\" \"# }"),
        ("model/weights.rs", "use crate::data::Reader;"),
        ("convert/annotate.rs", "use crate::noise::Stream;\nuse arrow_array::Array;"),
        ("eval/sweep.rs", "use crate::train::fit;\nuse crate::synth::{Recipe, select};"),
        ("train/vae.rs", "use crate::backend::{Backend, VaeLoss};\nuse super::early_stop;"),
        ("simd/avx2.rs", "use std::arch::x86_64::*;\nfn f() { unsafe { g() } }"),
        ("backend/cpu/layers.rs", "use super::gemm::{Mat, product};\nuse crate::model::Linear;"),
        ("noise/normal.rs", "mod tests { use super::*; use crate::noise::Side; }"),
        ("data/map.rs", "use memmap2::Mmap; fn f() { unsafe { g() } }"),
        ("main.rs", "use clap::Parser;\nuse lensmith::cli::Args;"),
        ("cli/mod.rs", "use crate::backend::cpu::Cpu;\nuse indicatif::ProgressBar;"),
        ("matrix.rs", "pub(crate) fn f() {}"),
    ];
    for (name, text) in kept {
        assert!(broken(name, text).is_empty(), "{name}: {text}: {:?}", broken(name, text));
    }
}
