//! The import rules of the crate: which room may name which, what only one place may name, and no two files that import
//! each other. Reads the paths in `use` lines and the `crate::` paths in code; comments do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Each room and those that it may name; see the map in CONTRIBUTING.md.
const MAY_NAME: &[(&str, &str)] = &[
    ("error", ""),
    ("interrupt", "error"),
    ("dtype", "error"),
    ("matrix", "error dtype side"),
    ("side", ""),
    ("timing", ""),
    ("memory", "error"),
    ("simd", "error dtype"),
    ("noise", "error dtype side simd"),
    ("model", "error dtype matrix noise side memory"),
    ("data", "error interrupt dtype matrix model side"),
    ("convert", "error dtype side timing matrix noise data"),
    ("backend", "error interrupt dtype side timing matrix simd noise model"),
    ("synth", "error memory dtype side timing matrix noise model data backend"),
    ("train", "error dtype side timing matrix noise model data backend synth"),
    ("eval", "error interrupt memory dtype side timing matrix noise model data backend synth train"),
    ("stream", "error dtype backend synth"),
    ("engine", "error interrupt dtype side timing matrix noise model data backend synth train eval stream"),
    ("bench", "error memory dtype side timing matrix noise model data backend synth train eval"),
    ("report", "error dtype side timing matrix noise model data backend synth train eval bench"),
    (
        "cli",
        "error memory dtype side timing matrix noise model data convert backend synth train eval engine bench report",
    ),
    (
        "lib",
        "error interrupt dtype side timing matrix noise model data convert backend synth train eval engine stream",
    ),
];

/// Crates and keywords, and the only places (folders end in a slash) that may hold them.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("memmap2::", &["data/map.rs", "matrix/pages.rs"]),
    ("libc::", &["data/map.rs", "simd/", "memory.rs"]),
    ("rustix::", &["data/", "memory.rs"]),
    ("clap::", &["cli/"]),
    ("indicatif::", &["cli/"]),
    ("plotters::", &["bench/", "report/"]),
    ("cudarc::", &["backend/cuda/"]),
    ("arrow_array::", &["convert/"]),
    ("arrow_ipc::", &["convert/"]),
    ("std::arch::", &["simd/"]),
    ("println!", &["cli/"]),
    ("unsafe ", &["simd/", "data/map.rs", "backend/cuda/", "memory.rs"]),
];

const MOST_LINES: usize = 600;

/// Path below `src`, and the text without comments.
type Sources = BTreeMap<String, String>;

fn read(folder: &Path, root: &Path, out: &mut Sources) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read(&path, root, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("readable source");
            let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
            assert!(text.lines().count() <= MOST_LINES, "{name}: more than {MOST_LINES} lines");
            let code = |line: &str| line.split("//").next().unwrap_or_default().to_string();
            out.insert(name, text.lines().map(code).collect::<Vec<_>>().join("\n"));
        }
    }
}

fn sources() -> Sources {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut out = Sources::new();
    read(&root, &root, &mut out);
    assert!(out.len() > 80 && out.contains_key("backend/mod.rs"), "the sources were not read");
    out
}

/// The room of a file: `synth/plan.rs` is of synth, `engine.rs` of engine.
fn room(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap_or_default()
}

/// All paths of a tree such as `crate::{a::B, c::{D, E as F}}`.
fn paths(tree: &str) -> Vec<String> {
    let Some((prefix, rest)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap_or_default().trim().to_string()];
    };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (i, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[from..]);
    let parts = parts.into_iter().filter(|p| !p.trim().is_empty());
    parts.flat_map(paths).map(|p| format!("{}{p}", prefix.trim())).collect()
}

/// The paths that a file names from the root of the crate, as in `data::map::Io`, `super` resolved. Re-exports
/// (`pub use`) and what stands in tests do not count.
fn named(file: &str, text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let module = file.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("use ") {
        let starts = rest[..at].ends_with(['\n', ' ']) || at == 0;
        let exported = rest[..at].trim_end().ends_with(['b', ')']);
        let end = rest[at..].find(';').map_or(rest.len(), |e| at + e);
        if starts && !exported {
            found.extend(paths(&rest[at + 4..end].replace('\n', " ")));
        }
        rest = &rest[(at + 4).min(end)..];
    }
    for at in text.match_indices("crate::").map(|(at, _)| at) {
        let path = text[at..].split(|c: char| !(c.is_alphanumeric() || "_:".contains(c))).next();
        found.extend(path.filter(|p| !p.ends_with("::")).map(str::to_string));
    }
    let absolute = |path: String| {
        if let Some(path) = path.strip_prefix("crate::") {
            return Some(path.to_string());
        }
        let mut parent = module.as_str();
        let mut path = path.strip_prefix("self::").unwrap_or(&path).to_string();
        let mut relative = false;
        while let Some(rest) = path.strip_prefix("super::") {
            (parent, relative) = (parent.rsplit_once("::").map_or("", |(p, _)| p), true);
            path = rest.to_string();
        }
        let joined = if parent.is_empty() { path } else { format!("{parent}::{path}") };
        relative.then_some(joined)
    };
    found.into_iter().filter_map(absolute).collect()
}

/// The file that defines what `path` names: the deepest module on the way, or the one that its last module's `pub use`
/// takes the name from.
fn file_of(sources: &Sources, path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split("::").collect();
    let file = |parts: &[&str]| {
        let stem = parts.join("/");
        [format!("{stem}.rs"), format!("{stem}/mod.rs")].into_iter().find(|f| sources.contains_key(f))
    };
    let depth = (1..=parts.len()).rev().find(|&n| file(&parts[..n]).is_some())?;
    let found = file(&parts[..depth])?;
    let name = parts.get(depth)?;
    for tree in
        sources[&found].split("pub use ").skip(1).chain(sources[&found].split("pub(crate) use ").skip(1))
    {
        let tree = tree.split(';').next().unwrap_or_default().replace('\n', " ");
        if let Some(from) = paths(&tree).iter().find(|p| p.rsplit("::").next() == Some(name)) {
            let inside = format!("{}::{}", parts[..depth].join("::"), from.trim_start_matches("self::"));
            let target = from.strip_prefix("crate::").map_or(inside, str::to_string);
            if target != path && file(&target.split("::").take(depth + 1).collect::<Vec<_>>()).is_some() {
                return file_of(sources, &target);
            }
        }
    }
    Some(found)
}

#[test]
fn rooms_name_only_what_lies_below_them() {
    let sources = sources();
    let mut broken = Vec::new();
    for (file, text) in &sources {
        let Some((_, below)) = MAY_NAME.iter().find(|(name, _)| *name == room(file)) else {
            if file != "main.rs" {
                broken.push(format!("{file}: `{}` is no room of the map", room(file)));
            }
            continue;
        };
        for path in named(file, text) {
            let to = path.split("::").next().unwrap_or_default();
            let known = MAY_NAME.iter().any(|(name, _)| *name == to);
            if known && to != room(file) && !below.split(' ').any(|name| name == to) {
                broken.push(format!("{file}: `{}` may not name crate::{path}", room(file)));
            }
            let concrete = ["backend::cpu", "backend::cuda", "backend::reference"];
            if ["synth", "train", "eval"].contains(&room(file))
                && concrete.iter().any(|c| path.starts_with(c))
            {
                broken.push(format!("{file}: the method knows no concrete backend (crate::{path})"));
            }
        }
        for (word, places) in ONLY_IN {
            let here = places.iter().any(|p| if p.ends_with('/') { file.starts_with(p) } else { file == p });
            let inside = |at: usize| text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if !here && text.match_indices(word).any(|(at, _)| !inside(at)) {
                broken.push(format!("{file}: `{}` belongs in {}", word.trim(), places.join(", ")));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Files that can be reached from each file by its imports.
fn imports(sources: &Sources) -> BTreeMap<String, BTreeSet<String>> {
    let edges = |(file, text): (&String, &String)| {
        let to =
            named(file, text).into_iter().filter_map(|path| file_of(sources, &path)).filter(|f| f != file);
        (file.clone(), to.collect())
    };
    sources.iter().map(edges).collect()
}

#[test]
fn no_two_files_import_each_other() {
    let imports = imports(&sources());
    let both = |a: &String, b: &String| imports[a].contains(b) && imports[b].contains(a);
    let pairs = imports.keys().flat_map(|a| imports[a].iter().filter(move |b| a < *b).map(move |b| (a, b)));
    let broken: Vec<_> = pairs.filter(|(a, b)| both(a, b)).map(|(a, b)| format!("{a} and {b}")).collect();
    assert!(broken.is_empty(), "{} pairs of files import each other:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn the_checks_see_what_breaks_a_rule() {
    let file = |name: &str, text: &str| (name.to_string(), text.to_string());
    let tree = "crate::{a::B, c::{D, E as F}, g}";
    assert_eq!(paths(tree), ["crate::a::B", "crate::c::D", "crate::c::E", "crate::g"]);
    let text = "use crate::{\n    error::Result,\n    model::{Linear, Vae},\n};\nuse super::pack;\npub use map::Io;\n\
                fn f() { crate::noise::key(1); }";
    let expected = ["error::Result", "model::Linear", "model::Vae", "backend::cpu::pack", "noise::key"];
    assert_eq!(named("backend/cpu/infer.rs", text), expected);
    let sources: Sources = [
        file("data/mod.rs", "mod a;\nmod b;\npub use a::{One, Other};"),
        file("data/a.rs", "use super::b::Two;\nstruct One;"),
        file("data/b.rs", "use super::One;\nstruct Two;"),
    ]
    .into();
    let imports = imports(&sources);
    assert!(imports["data/a.rs"].contains("data/b.rs") && imports["data/b.rs"].contains("data/a.rs"));
}
