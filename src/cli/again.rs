//! The command that makes missing parts of a run, for people to copy.

use std::path::Path;

use serde_json::Value;

use crate::data::{Manifest, RECIPE, manifests};
use crate::synth::Recipe;

/// Most parts that are named.
const NAMED: usize = 4;

/// The hint for parts (index, count) that are missing from the run in `folder`. The command is in full if the recipe in
/// the folder, which has the paths, belongs to a manifest there.
pub fn hint(folder: &Path, parts: &[(u64, u64)]) -> String {
    let flag = |&(index, count): &(u64, u64)| match count {
        1 => String::new(),
        _ => format!(" --part {index}/{count}"),
    };
    let first = parts.first().map(flag).unwrap_or_default();
    let command = match synth_command(folder) {
        Some(command) => format!("`{command}{first}`"),
        None if first.is_empty() => "the same synth command".into(),
        None => format!("the same synth command with{first}"),
    };
    let others: Vec<String> = parts.iter().skip(1).take(NAMED - 1).map(flag).collect();
    let others = match others.is_empty() {
        true => String::new(),
        false => format!(", and with{}", others.join(",")),
    };
    format!("made by {command}{others}")
}

/// The command of a run in full, every option as its manifest records it: so it makes the same bytes whatever the
/// defaults are. None if the folder does not tell.
fn synth_command(folder: &Path) -> Option<String> {
    let manifest = Manifest::read(manifests(folder).ok()?.first()?).ok()?;
    let recipe = Recipe::read(&folder.join(RECIPE)).ok()?;
    if recipe.difference(&manifest).is_some() {
        return None;
    }
    let mut words = vec!["lensmith synth".to_string()];
    words.extend(recipe.seeds.sources.iter().map(|s| quoted(s)));
    words.push(format!("--vae {}", quoted(&recipe.vae.path.to_string_lossy())));
    words.push(format!("--out {}", quoted(&folder.to_string_lossy())));
    for (option, setting) in [
        ("--chosen", "/chosen_tensor"),
        ("--rejected", "/rejected_tensor"),
        ("--output", "/output/kind"),
        ("--dtype", "/output/dtype"),
        ("--precision", "/output/precision"),
        ("--shard-rows", "/output/shard_rows"),
        ("--fold", "/plan/fold"),
        ("--per-side", "/plan/per_side"),
        ("--pairing", "/plan/pairing"),
        ("--seed", "/plan/seed"),
        ("--sigma2", "/perturbation/sigma2"),
        ("--oversample", "/perturbation/oversample"),
        ("--likelihood", "/perturbation/likelihood"),
        ("--source", "/perturbation/source"),
        ("--mode", "/mode"),
    ] {
        match manifest.settings.pointer(setting) {
            // The arithmetic is recorded as type and kind of device, as in bf16-amx.
            Some(Value::String(text)) if option == "--precision" => {
                words.push(format!("{option} {}", quoted(text.split('-').next().unwrap_or(text))));
            }
            Some(Value::String(text)) => words.push(format!("{option} {}", quoted(text))),
            Some(value) => words.push(format!("{option} {value}")),
            // Latents have no dtype, and a recipe alone no arithmetic either.
            None if matches!(option, "--dtype" | "--precision") => {}
            None => return None,
        }
    }
    Some(words.join(" "))
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_command_are_safe_to_paste() {
        assert_eq!(quoted("/data/seeds.safetensors"), "/data/seeds.safetensors");
        assert_eq!(quoted("it's a *.file"), r"'it'\''s a *.file'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn parts_are_named_where_the_folder_tells_nothing() {
        let nowhere = Path::new("/nowhere");
        assert_eq!(hint(nowhere, &[(0, 1)]), "made by the same synth command");
        assert_eq!(
            hint(nowhere, &[(1, 8), (2, 8), (5, 8), (6, 8), (7, 8)]),
            "made by the same synth command with --part 1/8, and with --part 2/8, --part 5/8, --part 6/8"
        );
    }
}
