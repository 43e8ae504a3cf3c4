//! The forms of instructions that the machine accepts. What the other files of this folder understand is wider in
//! places; whatever is not in the list is refused, and the tests execute whatever is.

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::parse::ast::Ty;

/// The list, in the notation that its first lines explain.
pub(crate) const FORMS: &str = include_str!("forms.txt");

struct Slot {
    words: Vec<&'static str>,
    optional: bool,
}

type Table = HashMap<&'static str, Vec<Vec<Slot>>>;

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut sets: HashMap<&str, Vec<&str>> = HashMap::new();
        let mut table = Table::new();
        for line in FORMS.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
            if let Some((name, words)) = line.split_once(" = ") {
                sets.insert(name, words.split('|').collect());
                continue;
            }
            let mut parts = line.split(' ');
            let name = parts.next().unwrap_or_default();
            let slots = parts.map(|part| {
                let optional = part.ends_with('?');
                let words = part.trim_end_matches('?').split('|');
                let words = words.flat_map(|w| sets.get(w).cloned().unwrap_or_else(|| vec![w])).collect();
                Slot { words, optional }
            });
            table.entry(name).or_default().push(slots.collect());
        }
        table
    })
}

/// Whether a word is one of a slot, where `#` stands for digits.
fn matches(pattern: &str, word: &str) -> bool {
    match pattern.split_once('#') {
        None => pattern == word,
        Some((before, behind)) => word
            .strip_prefix(before)
            .and_then(|w| w.strip_suffix(behind))
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())),
    }
}

/// Whether a name with modifiers is in the list.
pub(crate) fn accepted(name: &str, modifiers: &[String]) -> bool {
    table().get(name).into_iter().flatten().any(|slots| {
        let mut filled = vec![false; slots.len()];
        // Types mean what their order says, other modifiers are known by their names.
        let mut typed = 0;
        let all = modifiers.iter().all(|word| {
            let is_type = Ty::named(word).is_some();
            let from = if is_type { typed } else { 0 };
            let free = (from..slots.len())
                .find(|i| !filled[*i] && slots[*i].words.iter().any(|pattern| matches(pattern, word)));
            free.is_some_and(|i| {
                filled[i] = true;
                typed = if is_type { i + 1 } else { typed };
                true
            })
        });
        all && slots.iter().zip(&filled).all(|(slot, filled)| *filled || slot.optional)
    })
}
