//! Responses as text: rows of JSON, each a prompt with the responses that a policy gave to it.
//!
//! They are read twice, a row at a time. Opening takes a digest of every row, so that rows can be held against what
//! best-of-N sets were made of; later the rows are handed out, and one that is another now is an error.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};
use xxhash_rust::xxh3::Xxh3;

use super::lines::Lines;
use crate::error::{Error, Result};

/// Names of columns, as `prompt` and `responses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseColumns {
    /// The prompt, text or messages. The first row tells whether there is one, unless the name is another than `prompt`.
    /// `None` where responses are whole conversations.
    pub prompt: Option<String>,
    /// The responses, a list of texts or of lists of messages.
    pub responses: String,
    /// A list with a length for each response, such as its tokens. `None` counts characters.
    pub lengths: Option<String>,
}

impl Default for ResponseColumns {
    fn default() -> ResponseColumns {
        ResponseColumns { prompt: Some(PROMPT.into()), responses: "responses".into(), lengths: None }
    }
}

const PROMPT: &str = "prompt";

/// A text, or a conversation.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Talk {
    /// A text as it is.
    Text(String),
    /// Messages: objects with `role` and `content`.
    Messages(Vec<Value>),
}

impl Talk {
    /// Messages as they are, a text as one of `role`.
    pub fn turns(&self, role: &str) -> Vec<Value> {
        match self {
            Talk::Text(text) => vec![serde_json::json!({ "role": role, "content": text })],
            Talk::Messages(messages) => messages.clone(),
        }
    }

    /// Characters of the text, or of what all messages say.
    fn characters(&self) -> u64 {
        let count = |text: &str| text.chars().count() as u64;
        match self {
            Talk::Text(text) => count(text),
            Talk::Messages(turns) => turns.iter().filter_map(|t| t["content"].as_str()).map(count).sum(),
        }
    }
}

/// A prompt with its responses.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseRow {
    /// Number of the row, from 0; blank lines do not count.
    pub row: u64,
    /// The prompt, where there is one.
    pub prompt: Option<Talk>,
    /// The responses, without the turns of a prompt that they begin with.
    pub responses: Vec<Talk>,
    /// Length of each response.
    pub lengths: Vec<u64>,
}

/// What is wrong with a row.
#[derive(Clone, Debug)]
struct Problem {
    what: String,
    expected: String,
    found: String,
}

impl Problem {
    fn new(what: impl fmt::Display, expected: impl fmt::Display, found: impl fmt::Display) -> Problem {
        Problem { what: what.to_string(), expected: expected.to_string(), found: found.to_string() }
    }
}

/// A row that was read once.
#[derive(Debug)]
struct Seen {
    /// Its line, from 1.
    line: u64,
    found: Result<Known, Problem>,
}

/// What is known of a row that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    /// Digest of its responses.
    digest: u64,
    responses: usize,
    /// Whether it has texts alone, without a prompt: nothing that could be a conversation.
    bare: bool,
}

/// Prompts with their responses, in a file of JSON lines or in memory.
#[derive(Debug)]
pub struct ResponseSet {
    name: PathBuf,
    /// The rows where they are in memory.
    memory: Option<Vec<u8>>,
    columns: ResponseColumns,
    /// Whether rows have a prompt.
    prompts: bool,
    seen: Vec<Seen>,
    /// The rows that candidates were made of, by number.
    taken: Vec<usize>,
    per_prompt: usize,
}

impl ResponseSet {
    /// Reads the file once. Rows that cannot be used are errors of [`ResponseSet::pair_with`].
    ///
    /// # Errors
    /// No regular file, none that can be read, a line of more than 64 MiB, or no row.
    pub fn open(path: &Path, columns: &ResponseColumns) -> Result<ResponseSet> {
        ResponseSet::read(path.to_path_buf(), None, columns)
    }

    /// Rows in memory, a line of JSON each, which messages call `name`.
    ///
    /// # Errors
    /// As [`ResponseSet::open`].
    pub fn from_memory(name: &str, rows: Vec<u8>, columns: &ResponseColumns) -> Result<ResponseSet> {
        ResponseSet::read(name.into(), Some(rows), columns)
    }

    fn read(name: PathBuf, memory: Option<Vec<u8>>, columns: &ResponseColumns) -> Result<ResponseSet> {
        let mut set = ResponseSet {
            name,
            memory,
            columns: columns.clone(),
            prompts: columns.prompt.as_ref().is_some_and(|name| name != PROMPT),
            seen: Vec::new(),
            taken: Vec::new(),
            per_prompt: 0,
        };
        if columns.prompt.as_deref() == Some(PROMPT) {
            let first = set.lines()?.next().transpose()?.map(|(_, line)| line).unwrap_or_default();
            let first: Option<Map<String, Value>> = serde_json::from_slice(&first).ok();
            set.prompts = first.is_some_and(|row| row.contains_key(PROMPT));
        }
        let (mut seen, mut repeated) = (Vec::new(), 0);
        for line in set.lines()? {
            let (line, bytes) = line?;
            let found = set.parse(seen.len() as u64, &bytes).map(|(row, digest)| {
                repeated += usize::from(repeats_prompt(&row));
                Known::of(&row, digest)
            });
            seen.push(Seen { line, found });
        }
        if seen.is_empty() {
            return Err(Error::TooFew {
                what: format!("{}: rows with responses", set.name.display()),
                needed: 1,
                found: 0,
            });
        }
        if seen.len() > 1 && repeated == seen.len() {
            return Err(Error::argument(
                "prompt",
                "none, or responses without their prompt, which would stand there twice",
                format!("responses of {} that all begin with their prompt", set.name.display()),
            ));
        }
        set.seen = seen;
        Ok(set)
    }

    fn lines(&self) -> Result<Lines<'_>> {
        match &self.memory {
            None => Lines::open(&self.name),
            Some(bytes) => Ok(Lines::of(bytes, &self.name)),
        }
    }

    /// Finds the rows that candidates of `prompts` prompts with `per_prompt` responses each were made of: all of them, or,
    /// where `made_of` has the digest of each prompt's responses, those that have these digests, in order. Rows may then be
    /// left over, as there are where some could not be embedded.
    ///
    /// # Errors
    /// [`Error::Shape`], which names the row: another number of rows or responses, a row that is no prompt with responses, or
    /// other responses than those that were embedded.
    pub fn pair_with(&mut self, prompts: usize, per_prompt: usize, made_of: Option<&[u64]>) -> Result<()> {
        let rows = self.seen.len();
        if rows < prompts || (rows > prompts && made_of.is_none()) {
            // Lines that are none may be why there are too many or too few.
            let bad = |(row, seen): (usize, &Seen)| seen.found.as_ref().err().map(|p| (row, p.clone()));
            if let Some((row, problem)) = self.seen.iter().enumerate().find_map(bad) {
                return Err(self.error(row, problem));
            }
            let what = format!("{}: rows", self.name.display());
            return Err(Error::shape(what, format!("{prompts}, one for each prompt of the sets"), rows));
        }
        let mut spare = rows - prompts;
        self.taken.clear();
        for row in 0..rows {
            let embedded = made_of.and_then(|digests| digests.get(self.taken.len()));
            let problem = match (&self.seen[row].found, embedded) {
                // More rows than digests: this one is left over.
                (_, None) if made_of.is_some() => continue,
                (Ok(known), Some(embedded)) if known.digest != *embedded => {
                    Problem::new("responses", "those that were embedded, in their order", "others")
                }
                (Ok(known), _) if known.responses != per_prompt => {
                    let expected = format!("{per_prompt}, as in the sets");
                    Problem::new(format!("number of `{}`", self.columns.responses), expected, known.responses)
                }
                (Ok(_), _) => {
                    self.taken.push(row);
                    continue;
                }
                (Err(problem), _) => problem.clone(),
            };
            if spare == 0 || made_of.is_none() {
                return Err(self.error(row, problem));
            }
            spare -= 1;
        }
        self.per_prompt = per_prompt;
        Ok(())
    }

    /// Fails on a row, of those paired, that has neither a prompt nor messages: it cannot become a conversation.
    pub(crate) fn require_turns(&self) -> Result<()> {
        let bare = |&&row: &&usize| self.seen[row].found.as_ref().is_ok_and(|known| known.bare);
        match self.taken.iter().find(bare) {
            None => Ok(()),
            Some(&row) => {
                let what = format!("`{}`", self.columns.responses);
                Err(self.error(row, Problem::new(what, "messages, or a prompt beside them", "texts alone")))
            }
        }
    }

    /// Prompts that were paired with candidates.
    pub fn prompts(&self) -> usize {
        self.taken.len()
    }

    /// Responses to each of them.
    pub fn per_prompt(&self) -> usize {
        self.per_prompt
    }

    /// The rows that were paired with candidates, in order.
    ///
    /// # Errors
    /// A file that cannot be read; of an item, [`Error::Changed`] where a row is not what it was.
    pub fn rows(&self) -> Result<impl Iterator<Item = Result<ResponseRow>>> {
        let mut lines = self.lines()?.enumerate();
        Ok(self.taken.iter().map(move |&row| {
            let changed = || Error::Changed {
                path: self.name.clone(),
                how: format!("line {} is not what it was", self.seen[row].line),
            };
            let (_, line) = lines.find(|(number, _)| *number == row).ok_or_else(changed)?;
            let (found, digest) = self.parse(row as u64, &line?.1).map_err(|_| changed())?;
            let before = self.seen[row].found.as_ref().map_err(|_| changed())?;
            if *before == Known::of(&found, digest) { Ok(found) } else { Err(changed()) }
        }))
    }

    /// A row, and the digest of its responses.
    fn parse(&self, row: u64, line: &[u8]) -> Result<(ResponseRow, u64), Problem> {
        let value: Value = serde_json::from_slice(line.trim_ascii_end()).map_err(|error| {
            // The line that it names is always the first.
            let said = error.to_string();
            let said = said.split(" at line ").next().unwrap_or_default();
            Problem::new("row", "a JSON object", format!("no JSON: {said}, column {}", error.column()))
        })?;
        let Value::Object(mut fields) = value else {
            return Err(Problem::new("row", "a JSON object", kind(&value)));
        };
        let names = fields.keys().take(8).cloned().collect::<Vec<_>>().join(", ");
        let mut take = |name: &str, what: &str| match fields.remove(name) {
            None => Err(Problem::new(format!("`{name}`"), what, format!("none among {names}"))),
            Some(Value::Null) => Err(Problem::new(format!("`{name}`"), what, "null")),
            Some(value) => Ok(value),
        };
        let prompt = match self.columns.prompt.as_ref().filter(|_| self.prompts) {
            Some(name) => {
                let value = take(name, "a text or messages")?;
                Some(talk(value, &format!("`{name}`"))?)
            }
            None => None,
        };
        let name = &self.columns.responses;
        let responses = match take(name, "a list of responses")? {
            Value::Array(list) => list,
            other => return Err(Problem::new(format!("`{name}`"), "a list of responses", kind(&other))),
        };
        let lengths = self.columns.lengths.as_ref();
        let lengths = lengths.map(|name| numbers(take(name, "a list of lengths")?, name, responses.len()));
        let responses: Vec<Talk> = responses
            .into_iter()
            .enumerate()
            .map(|(i, response)| talk(response, &format!("`{name}`, response {i}")))
            .collect::<Result<_, _>>()?;
        let digest = digest(&responses);
        let responses: Vec<Talk> = match &prompt {
            Some(prompt) => responses.into_iter().map(|response| after(prompt, response)).collect(),
            None => responses,
        };
        let lengths = match lengths {
            Some(lengths) => lengths?,
            None => responses.iter().map(Talk::characters).collect(),
        };
        Ok((ResponseRow { row, prompt, responses, lengths }, digest))
    }

    /// A problem with the name of its row: its line in a file, its number in memory.
    fn error(&self, row: usize, problem: Problem) -> Error {
        let place = match &self.memory {
            None => format!("line {}", self.seen[row].line),
            Some(_) => format!("row {row}"),
        };
        let what = format!("{}, {place}: {}", self.name.display(), problem.what);
        Error::shape(what, problem.expected, problem.found)
    }
}

impl Known {
    fn of(row: &ResponseRow, digest: u64) -> Known {
        let texts = row.responses.iter().all(|response| matches!(response, Talk::Text(_)));
        Known { digest, responses: row.responses.len(), bare: row.prompt.is_none() && texts }
    }
}

/// A text, or a conversation as a list of messages or one message; fields that are null are left out.
fn talk(value: Value, what: &str) -> Result<Talk, Problem> {
    let messages = match value {
        Value::String(text) => return Ok(Talk::Text(text)),
        Value::Array(messages) if !messages.is_empty() => messages,
        Value::Object(_) => vec![value],
        Value::Array(_) => return Err(Problem::new(what, "a text or messages", "an empty list")),
        other => return Err(Problem::new(what, "a text or messages", kind(&other))),
    };
    let message = |(i, message): (usize, Value)| match message {
        Value::Object(fields) if fields.get("role").is_some_and(Value::is_string) => {
            Ok(Value::Object(fields.into_iter().filter(|(_, value)| !value.is_null()).collect()))
        }
        other => {
            let found = if other.is_object() { "none" } else { kind(&other) };
            Err(Problem::new(format!("{what}, message {i}"), "an object with a `role`", found))
        }
    };
    messages.into_iter().enumerate().map(message).collect::<Result<_, _>>().map(Talk::Messages)
}

/// A response without the prompt's turns, which some data sets begin their conversations with too.
fn after(prompt: &Talk, response: Talk) -> Talk {
    match response {
        Talk::Messages(mut turns) => {
            let before = prompt.turns("user");
            if turns.len() > before.len() && turns.starts_with(&before) {
                turns.drain(..before.len());
            }
            Talk::Messages(turns)
        }
        text => text,
    }
}

/// Whether every response is a text that begins with the prompt's own.
fn repeats_prompt(row: &ResponseRow) -> bool {
    match &row.prompt {
        Some(Talk::Text(prompt)) if !prompt.is_empty() => row
            .responses
            .iter()
            .all(|response| matches!(response, Talk::Text(text) if text.starts_with(prompt.as_str()))),
        _ => false,
    }
}

/// `count` lengths.
fn numbers(value: Value, name: &str, count: usize) -> Result<Vec<u64>, Problem> {
    let expected = format!("a list of {count} lengths, one a response");
    let found = |text: String| Problem::new(format!("`{name}`"), &expected, text);
    match &value {
        Value::Array(list) if list.len() == count => {
            let length = |v: &Value| v.as_u64().ok_or_else(|| found(format!("{v} in it")));
            list.iter().map(length).collect()
        }
        Value::Array(list) => Err(found(format!("a list of {}", list.len()))),
        other => Err(found(kind(other).into())),
    }
}

/// xxh3-64 of all texts in responses: each behind its length as 8 bytes, fields of messages in the order of their names.
fn digest(responses: &[Talk]) -> u64 {
    let mut hash = Xxh3::new();
    for response in responses {
        match response {
            Talk::Text(text) => feed_text(text, &mut hash),
            Talk::Messages(messages) => messages.iter().for_each(|message| feed(message, &mut hash)),
        }
    }
    hash.digest()
}

fn feed_text(text: &str, hash: &mut Xxh3) {
    hash.update(&(text.len() as u64).to_le_bytes());
    hash.update(text.as_bytes());
}

fn feed(value: &Value, hash: &mut Xxh3) {
    match value {
        Value::String(text) => feed_text(text, hash),
        Value::Array(items) => items.iter().for_each(|item| feed(item, hash)),
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            fields.iter().for_each(|(_, value)| feed(value, hash));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// What a value is, in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(rows: &str) -> Result<ResponseSet> {
        ResponseSet::from_memory("rows", rows.as_bytes().to_vec(), &ResponseColumns::default())
    }

    const TWO: &str = "{\"prompt\": \"a\", \"responses\": [\"b\", \"cd\"]}\n\n\
                       {\"prompt\": \"e\", \"responses\": [\"\", \"\u{e4}f\"]}\n";

    #[test]
    fn rows_come_in_order_with_lengths() {
        let mut two = set(TWO).expect("rows");
        two.pair_with(2, 2, None).expect("as many");
        let rows: Vec<ResponseRow> = two.rows().expect("lines").collect::<Result<_>>().expect("rows");
        assert_eq!((rows[0].row, rows[1].row), (0, 1));
        assert_eq!((&rows[0].lengths[..], &rows[1].lengths[..]), (&[1, 2][..], &[0, 2][..]));
        assert_eq!(rows[1].prompt, Some(Talk::Text("e".into())));
    }

    #[test]
    fn a_row_that_was_not_embedded_is_left_out() {
        let two = set(TWO).expect("rows");
        let digests: Vec<u64> =
            two.seen.iter().map(|seen| seen.found.as_ref().expect("a row").digest).collect();
        let with = |line: &str| set(&TWO.replacen("\n\n", &format!("\n{line}\n"), 1)).expect("rows");
        for extra in ["{\"prompt\": \"x\", \"responses\": [\"y\"]}", "{\"responses\": 1}", "[1]", "nothing"] {
            let mut three = with(extra);
            three.pair_with(2, 2, Some(&digests)).expect("two of three");
            assert_eq!(three.taken, [0, 2]);
            let rows: Vec<u64> = three.rows().expect("lines").map(|row| row.expect("a row").row).collect();
            assert_eq!(rows, [0, 2]);
        }
        let more = with("{\"prompt\": \"x\", \"responses\": [\"y\"]}").pair_with(2, 2, None);
        let error = more.unwrap_err().to_string();
        assert_eq!(error, "rows: rows: expected 2, one for each prompt of the sets, found 3");
    }

    #[test]
    fn other_responses_than_those_embedded_are_named() {
        let mut two = set(TWO).expect("rows");
        let digests: Vec<u64> =
            two.seen.iter().map(|seen| seen.found.as_ref().expect("a row").digest).collect();
        two.pair_with(2, 2, Some(&digests)).expect("the same");
        let mut turned: Vec<&str> = TWO.lines().collect();
        turned.reverse();
        let error = set(&turned.join("\n")).expect("rows").pair_with(2, 2, Some(&digests)).unwrap_err();
        let expected =
            "rows, row 0: responses: expected those that were embedded, in their order, found others";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn conversations_lose_the_turns_of_their_prompt() {
        let user = "{\"role\": \"user\", \"content\": \"a\", \"name\": null}";
        let mine = "{\"role\": \"assistant\", \"content\": \"bcd\"}";
        for prompt in [format!("[{user}]"), user.into(), "\"a\"".into()] {
            let row = format!("{{\"prompt\": {prompt}, \"responses\": [[{user}, {mine}], {mine}]}}");
            let mut one = set(&row).expect("a row");
            one.pair_with(1, 2, None).expect("two responses");
            let row = one.rows().expect("lines").next().expect("one").expect("a row");
            assert_eq!(row.responses[0], row.responses[1]);
            assert_eq!(row.lengths, [3, 3]);
        }
    }

    #[test]
    fn prompts_within_responses_are_refused() {
        let error = set("{\"prompt\": \"a\", \"responses\": [\"ab\", \"ac\"]}\n".repeat(2).as_str());
        assert!(error.unwrap_err().to_string().starts_with("prompt: expected none"));
    }

    #[test]
    fn digests_do_not_follow_from_what_a_writer_chooses() {
        let digest = |row: &str| set(row).expect("a row").seen[0].found.as_ref().expect("a row").digest;
        let one = digest("{\"responses\": [[{\"role\": \"user\", \"content\": \"\u{e4}\"}]]}");
        let other = "{\"responses\": [{\"content\": \"\\u00e4\", \"name\": null, \"role\": \"user\"}]}";
        assert_eq!(one, digest(other));
        assert_ne!(digest("{\"responses\": [\"ab\", \"c\"]}"), digest("{\"responses\": [\"a\", \"bc\"]}"));
    }
}
