//! Expands the list of accepted forms.

/// A form: its name and one set of words for each slot; an optional slot has an empty word.
pub struct Form {
    pub name: String,
    pub slots: Vec<Vec<String>>,
}

/// All lines of the list.
pub fn forms() -> Vec<Form> {
    let mut sets: Vec<(String, Vec<String>)> = Vec::new();
    let mut out = Vec::new();
    for line in ptx::forms().lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some((name, words)) = line.split_once(" = ") {
            sets.push((name.to_string(), words.split('|').map(str::to_string).collect()));
            continue;
        }
        let mut parts = line.split(' ');
        let name = parts.next().expect("a name").to_string();
        let slots = parts.map(|part| {
            let mut words = Vec::new();
            for word in part.trim_end_matches('?').split('|') {
                match sets.iter().find(|(name, _)| name == word) {
                    Some((_, all)) => words.extend(all.iter().cloned()),
                    None => words.push(word.to_string()),
                }
            }
            if part.ends_with('?') {
                words.push(String::new());
            }
            words
        });
        out.push(Form { name, slots: slots.collect() });
    }
    out
}

/// Every combination of a form's words, as name and modifiers.
pub fn expand(form: &Form) -> Vec<Vec<String>> {
    let mut all = vec![vec![form.name.clone()]];
    for slot in &form.slots {
        all = all
            .iter()
            .flat_map(|start| {
                slot.iter().map(move |word| {
                    let mut one = start.clone();
                    one.extend((!word.is_empty()).then(|| word.clone()));
                    one
                })
            })
            .collect();
    }
    all
}

/// The modifiers of an instruction.
pub struct Words<'a>(pub &'a [String]);

impl Words<'_> {
    pub fn has(&self, word: &str) -> bool {
        self.0[1..].iter().any(|w| w == word)
    }
    /// The first of some words that is there.
    pub fn one<'w>(&self, all: &[&'w str]) -> Option<&'w str> {
        all.iter().copied().find(|w| self.has(w))
    }
    pub fn last(&self) -> &str {
        self.0.last().expect("a name at least")
    }
    pub fn before_last(&self) -> &str {
        &self.0[self.0.len() - 2]
    }
    pub fn text(&self) -> String {
        self.0.join(".")
    }
}

/// Bits of a type.
pub fn bits(ty: &str) -> u32 {
    match ty {
        "pred" => 1,
        "bf16" | "f16" => 16,
        "bf16x2" | "f16x2" | "tf32" => 32,
        // Words that are no types have no bits.
        other => other.get(1..).and_then(|n| n.parse().ok()).unwrap_or(0),
    }
}
