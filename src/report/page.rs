//! A page of text, tables and charts as one HTML file that needs nothing else: no script, no font, no picture, no
//! network. The same page gives the same bytes.

use super::chart::Chart;
use super::figure::figure;
use super::html::{Ids, escape, rows_table};

/// Name of a page in the folder of what it is about.
pub const REPORT: &str = "report.html";
const STYLE: &str = include_str!("style.css");

/// A report.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The heading, and the title of the browser's window.
    pub title: String,
    /// One line below the title.
    pub subtitle: String,
    /// The outcome in one or two sentences, shown large.
    pub verdict: String,
    /// What the outcome rests on, as name and value.
    pub facts: Vec<(String, String)>,
    /// The parts of the report, listed at its top.
    pub sections: Vec<Section>,
}

/// A part of a report, with a heading.
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// Name to link to; made of the title where empty. One that is taken already gets a number.
    pub id: String,
    /// The heading.
    pub title: String,
    /// Paragraphs below the heading.
    pub text: Vec<String>,
    /// What follows them.
    pub blocks: Vec<Block>,
}

/// A piece of a section.
#[derive(Clone, Debug)]
pub enum Block {
    /// A paragraph.
    Paragraph(String),
    /// A warning or a remark, set apart.
    Note(String),
    /// A table.
    Table(Table),
    /// A chart.
    Chart(Box<Chart>),
    /// Pieces that are hidden until they are asked for.
    Details {
        /// What is hidden.
        summary: String,
        /// The hidden pieces.
        blocks: Vec<Block>,
    },
}

/// A table. Its first column names the rows; columns of numbers are aligned to the right.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// What the table shows.
    pub caption: String,
    /// The names of the columns.
    pub header: Vec<String>,
    /// The rows. Missing cells are empty.
    pub rows: Vec<Vec<String>>,
    /// The row to bring out, if any.
    pub highlight: Option<usize>,
}

impl From<Chart> for Block {
    fn from(chart: Chart) -> Block {
        Block::Chart(Box::new(chart))
    }
}

impl From<Table> for Block {
    fn from(table: Table) -> Block {
        Block::Table(table)
    }
}

impl Page {
    /// The page as one HTML file.
    pub fn html(&self) -> String {
        let mut ids = Ids::default();
        let [content, contents] = [ids.take("content", "content"), ids.take("contents", "contents")];
        let name = |s: &Section| ids.take(if s.id.is_empty() { &s.title } else { &s.id }, "section");
        let names: Vec<String> = self.sections.iter().map(name).collect();

        let mut out = String::with_capacity(64 * 1024);
        out.push_str("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
        out.push_str(
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
             img-src data:; base-uri 'none'; form-action 'none'\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n",
        );
        out.push_str(&format!(
            "<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
            escape(&self.title)
        ));
        out.push_str(&format!("<a class=\"skip\" href=\"#{content}\">Skip to content</a>\n"));
        self.header(&mut out);
        out.push_str("<div class=\"body\">\n");
        if !self.sections.is_empty() {
            out.push_str(&format!(
                "<nav class=\"contents\" aria-labelledby=\"{contents}\">\n<h2 id=\"{contents}\">Contents</h2>\n<ol>\n"
            ));
            for (section, name) in self.sections.iter().zip(&names) {
                out.push_str(&format!("<li><a href=\"#{name}\">{}</a></li>\n", escape(&section.title)));
            }
            out.push_str("</ol>\n</nav>\n");
        }
        out.push_str(&format!("<main id=\"{content}\" tabindex=\"-1\">\n"));
        for (section, name) in self.sections.iter().zip(&names) {
            section.write(&mut out, name, &mut ids);
        }
        out.push_str("</main>\n</div>\n</body>\n</html>\n");
        out
    }

    fn header(&self, out: &mut String) {
        out.push_str(&format!("<header class=\"top\">\n<h1>{}</h1>\n", escape(&self.title)));
        if !self.subtitle.is_empty() {
            out.push_str(&format!("<p class=\"subtitle\">{}</p>\n", escape(&self.subtitle)));
        }
        if !self.verdict.is_empty() {
            out.push_str(&format!("<p class=\"verdict\">{}</p>\n", escape(&self.verdict)));
        }
        if !self.facts.is_empty() {
            out.push_str("<dl class=\"facts\">\n");
            for (name, value) in &self.facts {
                out.push_str(&format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(name), escape(value)));
            }
            out.push_str("</dl>\n");
        }
        out.push_str("</header>\n");
    }
}

impl Section {
    fn write(&self, out: &mut String, name: &str, ids: &mut Ids) {
        let heading = ids.take(&format!("{name}-heading"), "heading");
        out.push_str(&format!(
            "<section id=\"{name}\" aria-labelledby=\"{heading}\">\n<h2 id=\"{heading}\">{}</h2>\n",
            escape(&self.title)
        ));
        for text in &self.text {
            paragraph(out, text);
        }
        for block in &self.blocks {
            block.write(out, ids);
        }
        out.push_str("</section>\n");
    }
}

impl Block {
    fn write(&self, out: &mut String, ids: &mut Ids) {
        match self {
            Block::Paragraph(text) => paragraph(out, text),
            Block::Note(text) => out.push_str(&format!(
                "<div class=\"note\" role=\"note\"><p><strong>Note</strong> {}</p></div>\n",
                escape(text)
            )),
            Block::Table(table) => {
                rows_table(out, &table.caption, &table.header, &table.rows, table.highlight);
            }
            Block::Chart(chart) => figure(out, chart, ids),
            Block::Details { summary, blocks } => {
                out.push_str(&format!(
                    "<details class=\"more\"><summary>{}</summary>\n<div class=\"inner\">\n",
                    escape(summary)
                ));
                for block in blocks {
                    block.write(out, ids);
                }
                out.push_str("</div>\n</details>\n");
            }
        }
    }
}

fn paragraph(out: &mut String, text: &str) {
    out.push_str(&format!("<p>{}</p>\n", escape(text)));
}
