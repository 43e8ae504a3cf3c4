//! Pieces of HTML: escaped text, ids, tables.

use std::collections::HashSet;

/// Writes a table in a box that scrolls sideways where it is too wide.
pub(super) fn rows_table(
    out: &mut String,
    caption: &str,
    header: &[String],
    rows: &[Vec<String>],
    highlight: Option<usize>,
) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0).max(header.len());
    let numeric: Vec<bool> = (0..columns).map(|column| is_numeric(rows, column)).collect();
    let class = |column: usize| if numeric[column] { " class=\"n\"" } else { "" };
    let name = if caption.is_empty() { "Table" } else { caption };
    out.push_str(&format!(
        "<div class=\"wide-box\" role=\"region\" tabindex=\"0\" aria-label=\"{}\">\n",
        escape(name)
    ));
    // Long names keep some width on narrow screens, where the box scrolls.
    let long = rows.iter().filter_map(|row| row.first()).any(|name| name.chars().count() > 16);
    out.push_str(if long { "<table class=\"long\">\n" } else { "<table>\n" });
    if !caption.is_empty() {
        out.push_str(&format!("<caption>{}</caption>\n", escape(caption)));
    }
    if !header.is_empty() {
        out.push_str("<thead><tr>");
        for column in 0..columns {
            match header.get(column).filter(|name| !name.is_empty()) {
                Some(name) => {
                    out.push_str(&format!("<th scope=\"col\"{}>{}</th>", class(column), escape(name)));
                }
                None => out.push_str("<td></td>"),
            }
        }
        out.push_str("</tr></thead>\n");
    }
    out.push_str("<tbody>\n");
    for (i, row) in rows.iter().enumerate() {
        out.push_str(if highlight == Some(i) { "<tr class=\"mark\">" } else { "<tr>" });
        for column in 0..columns {
            let text = row.get(column).map_or("", String::as_str);
            if column == 0 && !text.is_empty() {
                out.push_str(&format!("<th scope=\"row\"{}>{}</th>", class(0), escape(text)));
            } else {
                out.push_str(&format!("<td{}>{}</td>", class(column), escape(text)));
            }
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
}

/// Whether all cells of a column that have text hold numbers, with signs, errors and units of one mark.
fn is_numeric(rows: &[Vec<String>], column: usize) -> bool {
    let mut any = false;
    for text in rows.iter().filter_map(|row| row.get(column)).map(|text| text.trim()) {
        let dash = matches!(text, "" | "-" | "–" | "—");
        let like = text.chars().all(|c| c.is_ascii_digit() || "+-−±.,%×/()e ⁻⁰¹²³⁴⁵⁶⁷⁸⁹<>≥≤".contains(c));
        let digits = text.contains(|c: char| c.is_ascii_digit());
        if !(dash || like && digits) {
            return false;
        }
        any |= digits;
    }
    any
}

/// The ids of a page, each used once.
#[derive(Default)]
pub(super) struct Ids {
    taken: HashSet<String>,
}

impl Ids {
    /// An id made of `wanted`, with a number behind it where it is taken; made of `otherwise` where nothing of `wanted`
    /// can be in an id.
    pub fn take(&mut self, wanted: &str, otherwise: &str) -> String {
        let base = slug(wanted, otherwise);
        let mut id = base.clone();
        let mut count = 1;
        while !self.taken.insert(id.clone()) {
            count += 1;
            id = format!("{base}-{count}");
        }
        id
    }
}

/// `text` in lower-case letters, digits and single dashes, of at most 60 characters.
pub(super) fn slug(text: &str, otherwise: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            out.push(c.to_ascii_lowercase());
        } else if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
        if out.len() >= 60 {
            break;
        }
    }
    let out = out.trim_end_matches('-');
    if out.is_empty() { otherwise.to_string() } else { out.to_string() }
}

/// `text` for HTML, between tags and within quotes. Control characters that HTML forbids are replaced.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\r' => out.push(' '),
            c if c.is_control() => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}
