//! Keeps the list of accepted forms and the tests together.

use std::collections::{BTreeMap, BTreeSet};

use crate::cases;
use crate::forms::{Form, Words, expand, forms};

/// Instructions that are defined by a bound (see `floats`) or by a fault (see `checks`).
const OTHERWISE: [&str; 10] = ["div", "rcp", "sqrt", "rsqrt", "sin", "cos", "lg2", "ex2", "tanh", "trap"];

fn fits(pattern: &str, word: &str) -> bool {
    match pattern.split_once('#') {
        None => pattern == word,
        Some((before, behind)) => {
            let digits = word.strip_prefix(before).and_then(|w| w.strip_suffix(behind));
            digits.is_some_and(|d| d.parse::<u32>().is_ok())
        }
    }
}

/// For each slot, the word of it that an instruction has; none if it has another form.
fn slots(form: &Form, modifiers: &[&str]) -> Option<Vec<String>> {
    let mut found = vec![None; form.slots.len()];
    let mut left: Vec<&str> = modifiers.to_vec();
    // In the order of the slots, each takes the first word that it knows.
    for (slot, found) in form.slots.iter().zip(&mut found) {
        let at = left.iter().position(|word| slot.iter().any(|p| fits(p, word)));
        match at {
            Some(at) => {
                let word = left.remove(at);
                *found = slot.iter().find(|p| fits(p, word)).cloned();
            }
            None if slot.iter().any(String::is_empty) => *found = Some(String::new()),
            None => return None,
        }
    }
    if left.is_empty() { found.into_iter().collect() } else { None }
}

#[test]
fn every_accepted_form_is_tested() {
    let texts = [
        crate::memory::texts(),
        crate::atomics::texts(),
        crate::warp::texts(),
        crate::copies::texts(),
        crate::hopper::texts(),
        crate::wgmma::texts(),
        crate::tensor_map::texts(),
    ];
    let mut opcodes = BTreeSet::new();
    for text in texts.iter().flatten() {
        opcodes.extend(crate::common::parse(text).opcodes.into_keys());
    }
    let mut names: BTreeMap<String, Vec<Vec<&str>>> = BTreeMap::new();
    for opcode in &opcodes {
        let mut parts = opcode.split('.');
        names.entry(parts.next().expect("a name").to_string()).or_default().push(parts.collect());
    }
    let mut missing = Vec::new();
    let (mut defined, mut shown) = (0, 0);
    for form in forms() {
        let all = expand_some(&form);
        // Arithmetic: every combination has its definition, and main.rs runs all of them.
        let cases: Vec<bool> = all.iter().map(|w| !cases::cases(&Words(w)).is_empty()).collect();
        if cases.iter().any(|c| *c) {
            defined += cases.iter().filter(|c| **c).count();
            let without = all.iter().zip(&cases).filter(|(_, c)| !**c);
            missing.extend(without.map(|(w, _)| w.join(".")));
            assert!(
                crate::TESTED.contains(&form.name.as_str()),
                "{} is run by no test of main.rs",
                form.name
            );
            continue;
        }
        if OTHERWISE.contains(&form.name.as_str()) {
            continue;
        }
        // All others: every word of every slot stands in a text that a test runs.
        let used: Vec<Vec<String>> =
            names.get(&form.name).into_iter().flatten().filter_map(|m| slots(&form, m)).collect();
        for (k, slot) in form.slots.iter().enumerate() {
            for word in slot {
                if used.iter().any(|u| u[k] == *word) {
                    shown += 1;
                } else {
                    missing.push(format!("{} {:?}: slot {k}, word {word:?}", form.name, first(&form)));
                }
            }
        }
        if used.is_empty() {
            missing.push(format!("{} {:?}", form.name, first(&form)));
        }
    }
    assert!(missing.is_empty(), "{} without a test:\n{}", missing.len(), missing.join("\n"));
    println!("{defined} arithmetic forms, {shown} words of other forms, {} opcodes", opcodes.len());
}

/// The combinations of arithmetic; of other forms the first is enough to see that they are none.
fn expand_some(form: &Form) -> Vec<Vec<String>> {
    let size: usize = form.slots.iter().map(Vec::len).product();
    if size < 2000 { expand(form) } else { vec![first(form)] }
}

fn first(form: &Form) -> Vec<String> {
    let words = form.slots.iter().map(|s| s[0].clone());
    std::iter::once(form.name.clone()).chain(words).collect()
}

#[test]
fn names_of_the_documentation() {
    let text = include_str!("../../docs/instructions.md");
    let names: BTreeSet<String> = forms().into_iter().map(|f| f.name).collect();
    for name in names {
        let known = text.lines().any(|l| {
            l.starts_with("| `")
                && l.split('|')
                    .nth(1)
                    .is_some_and(|c| c.contains(&format!("`{name}`")) || c.contains(&format!("`{name}.")))
        });
        assert!(known, "{name} is not documented");
    }
}
