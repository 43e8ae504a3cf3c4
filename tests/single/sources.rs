//! Rules for kernel sources: inline instructions only in their wrappers, CUDA's half types only in types.cuh, short
//! files.

use std::fs;
use std::path::{Path, PathBuf};

const MOST_LINES: usize = 400;
const MOST_COLUMNS: usize = 110;

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "cu" || e == "cuh") {
            out.push(path);
        }
    }
}

#[test]
fn kernel_sources_keep_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 20, "{files:?}");
    let mut broken = Vec::new();
    for path in &files {
        let name = path.strip_prefix(&root).expect("below the root").to_string_lossy().replace('\\', "/");
        let text = fs::read_to_string(path).expect("readable source");
        let code: Vec<&str> = text.lines().map(|l| l.split("//").next().unwrap_or("")).collect();
        let holds = |word: &str| code.iter().any(|l| l.contains(word));
        let mut rule = |ok: bool, what: &str| {
            if !ok {
                broken.push(format!("{name}: {what}"));
            }
        };
        rule(code.len() <= MOST_LINES, "more than 400 lines");
        rule(text.lines().all(|l| l.chars().count() <= MOST_COLUMNS), "a line of more than 110 columns");
        let wrappers = ["async_copy", "bulk_copy", "dependent", "mma", "read", "wgmma"];
        let wrappers = wrappers.map(|w| format!("include/{w}.cuh")).contains(&name);
        rule(wrappers || !holds("asm"), "inline PTX outside of its wrappers");
        rule(name == "include/types.cuh" || !(holds("cuda_bf16") || holds("cuda_fp16")), "CUDA's half types");
    }
    assert!(broken.is_empty(), "{} broken rules:\n{}", broken.len(), broken.join("\n"));
}
