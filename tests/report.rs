//! The HTML report: well-formed, self-contained, deterministic and small, whatever the data.

use std::collections::HashSet;

use lensmith::report::{
    Axis, Bar, Block, Chart, Distribution, Group, Interval, Kind, Page, Point, Reference, Section, Series,
    Table, estimate, number,
};

const NASTY: &str = "<script>alert('1')</script> & \"quoted\" \u{0} ]]>";

fn page_of(blocks: Vec<Block>) -> Page {
    Page {
        title: "A report".into(),
        subtitle: "of tests".into(),
        verdict: "It holds.".into(),
        facts: vec![("Seeds".into(), "3".into())],
        sections: vec![Section {
            title: "Part".into(),
            text: vec!["Text.".into()],
            blocks,
            ..Section::default()
        }],
    }
}

fn curve(name: &str, values: impl IntoIterator<Item = (f64, f64)>) -> Series {
    let point = |(x, y)| Point { x, y, error: None };
    Series { name: name.into(), points: values.into_iter().map(point).collect() }
}

fn chart(title: &str, kind: Kind) -> Chart {
    Chart { title: title.into(), kind, x: Axis::linear("x"), y: Axis::linear("y"), ..Chart::default() }
}

fn lines(series: Vec<Series>) -> Kind {
    Kind::Lines { series, references: Vec::new() }
}

/// Every kind of chart over `values`, on linear and on logarithmic axes.
fn every_kind(values: &[f64]) -> Vec<Block> {
    let points: Vec<Point> = values.iter().map(|v| Point { x: *v, y: *v, error: Some(*v) }).collect();
    let references: Vec<Reference> =
        values.iter().take(20).map(|v| Reference { label: "line".into(), at: *v }).collect();
    let series = || vec![Series { name: "a".into(), points: points.clone() }, Series::default()];
    let kinds = || {
        vec![
            Kind::Lines { series: series(), references: references.clone() },
            Kind::Lines { series: Vec::new(), references: Vec::new() },
            Kind::Intervals {
                rows: values
                    .iter()
                    .map(|v| Interval { name: "row".into(), estimate: *v, error: Some(*v) })
                    .collect(),
            },
            Kind::Histogram {
                edges: values.to_vec(),
                distributions: vec![
                    Distribution { name: "d".into(), heights: values.to_vec() },
                    Distribution::default(),
                ],
                references: references.clone(),
            },
            Kind::Scatter {
                groups: (0..8)
                    .map(|i| Group {
                        name: format!("g{i}"),
                        points: values.iter().map(|v| (*v, -v)).collect(),
                    })
                    .collect(),
            },
            Kind::Bars {
                bars: values
                    .iter()
                    .map(|v| Bar { name: "bar".into(), value: *v, floor: Some(*v / 2.0) })
                    .collect(),
            },
        ]
    };
    let mut blocks = Vec::new();
    for log in [false, true] {
        for kind in kinds() {
            let axis = || if log { Axis::log("values") } else { Axis::linear("values") };
            blocks
                .push(Chart { title: "Chart".into(), kind, x: axis(), y: axis(), ..Chart::default() }.into());
        }
    }
    let x = Axis::category("names", vec!["one".into(), "two".into()]);
    blocks.push(Chart { kind: kinds().remove(0), x, ..Chart::default() }.into());
    let x = Axis::category("no names", Vec::new());
    blocks.push(Chart { kind: kinds().remove(0), x, ..Chart::default() }.into());
    blocks
}

/// Tags in their order, checked to be closed in the reverse order; gives back (name, attributes) of each opening one.
fn tags(html: &str) -> Vec<(String, String)> {
    let void = ["meta", "link", "br", "hr", "img", "input"];
    let mut open: Vec<String> = Vec::new();
    let mut all = Vec::new();
    let mut rest = html.strip_prefix("<!DOCTYPE html>").expect("a document type");
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        assert!(!tag.contains('<'), "a tag within a tag: {tag}");
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "closed in order");
            continue;
        }
        let (name, attributes) = tag.trim_end_matches('/').split_once([' ', '\n']).unwrap_or((tag, ""));
        assert_eq!(attributes.matches('"').count() % 2, 0, "quotes are paired: {tag}");
        all.push((name.trim_end_matches('/').to_string(), attributes.to_string()));
        if name == "style" {
            let end = rest.find("</style>").expect("the style ends");
            rest = &rest[end + 8..];
        } else if !void.contains(&name) && !tag.ends_with('/') {
            open.push(name.to_string());
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
    all
}

fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let start = if attributes.starts_with(&format!("{name}=\"")) {
        name.len() + 2
    } else {
        attributes.find(&format!(" {name}=\""))? + name.len() + 3
    };
    attributes[start..].split('"').next()
}

/// What holds for every page.
fn check(html: &str) {
    let tags = tags(html);
    let mut ids = HashSet::new();
    for (_, attributes) in &tags {
        if let Some(id) = attribute(attributes, "id") {
            assert!(!id.is_empty() && ids.insert(id), "the id {id} is used twice");
        }
    }
    for (name, attributes) in &tags {
        for reference in
            ["aria-labelledby", "aria-describedby"].iter().filter_map(|a| attribute(attributes, a))
        {
            assert!(reference.split(' ').all(|id| ids.contains(id)), "{reference} is on the page");
        }
        if let Some(href) = attribute(attributes, "href") {
            let inside = href.strip_prefix('#').is_some_and(|id| ids.contains(id));
            assert!(inside || href.starts_with("data:"), "a link out of the page: {href}");
        }
        assert!(name != "script" && !attributes.contains(" on") && attribute(attributes, "src").is_none());
    }
    let text = html.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "");
    assert!(!text.contains("http"), "no address outside the page");
    assert!(!html.contains("NaN") && !html.contains("inf"), "only finite numbers in the drawing");
    for (_, attributes) in tags.iter().filter(|(name, _)| name == "path") {
        let d = attribute(attributes, "d").expect("a path has a course");
        assert!(d.starts_with('M') && d.len() > 3, "{d}");
    }
}

/// The rows of the CSV files of a page.
fn csv_files(html: &str) -> Vec<String> {
    let mut files = Vec::new();
    for (_, attributes) in tags(html).iter().filter(|(name, _)| name == "a") {
        let Some(coded) =
            attribute(attributes, "href").and_then(|h| h.strip_prefix("data:text/csv;charset=utf-8,"))
        else {
            continue;
        };
        assert!(attribute(attributes, "download").is_some_and(|name| name.ends_with(".csv")));
        let mut bytes = Vec::new();
        let mut coded = coded.bytes();
        while let Some(byte) = coded.next() {
            if byte == b'%' {
                let digits = [coded.next().unwrap(), coded.next().unwrap()];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
            } else {
                bytes.push(byte);
            }
        }
        files.push(String::from_utf8(bytes).unwrap());
    }
    files
}

#[test]
fn text_is_escaped_everywhere() {
    let n = || NASTY.to_string();
    let table = Table { caption: n(), header: vec![n()], rows: vec![vec![n(), n()]], highlight: Some(0) };
    let references = vec![Reference { label: n(), at: 1.0 }];
    let series = vec![Series { name: n(), points: vec![Point { x: 0.0, y: 1.0, error: None }] }];
    let kinds = [
        Kind::Lines { series, references: references.clone() },
        Kind::Intervals { rows: vec![Interval { name: n(), estimate: 1.0, error: None }] },
        Kind::Histogram {
            edges: vec![0.0, 1.0],
            distributions: vec![Distribution { name: n(), heights: vec![1.0] }],
            references,
        },
        Kind::Scatter { groups: vec![Group { name: n(), points: vec![(0.0, 1.0)] }] },
        Kind::Bars { bars: vec![Bar { name: n(), value: 0.5, floor: None }] },
    ];
    let mut blocks = vec![Block::Paragraph(n()), Block::Note(n()), table.into()];
    for kind in kinds {
        let chart = Chart {
            title: n(),
            caption: n(),
            kind,
            x: Axis::linear(NASTY),
            y: Axis::linear(NASTY),
            csv: n(),
        };
        blocks.push(chart.into());
    }
    let axis = Axis::category(NASTY, vec![n(), n()]);
    blocks.push(
        Chart { kind: lines(vec![curve("a", [(0.0, 1.0), (1.0, 2.0)])]), x: axis, ..Chart::default() }.into(),
    );
    let blocks = vec![Block::Details { summary: n(), blocks }];
    let page = Page {
        title: n(),
        subtitle: n(),
        verdict: n(),
        facts: vec![(n(), n())],
        sections: vec![Section { id: n(), title: n(), text: vec![n()], blocks }],
    };
    let html = page.html();
    check(&html);
    assert!(!html.contains("<script") && !html.contains('\0'));
    assert!(html.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &quot;quoted&quot;"));
    assert!(
        csv_files(&html).iter().any(|csv| csv.contains("\"<script>")),
        "the CSV holds the text itself, quoted"
    );
}

#[test]
fn no_data_breaks_a_chart() {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    let cases: &[&[f64]] = &[
        &[],
        &[0.0],
        &[nan],
        &[inf, -inf, nan],
        &[1.0, nan, 2.0, inf, 3.0],
        &[5.0, 5.0, 5.0],
        &[-3.0, -2.0, -1.0],
        &[0.0, 0.0],
        &[1e308, -1e308],
        &[1e299, -1e299],
        &[5e-324, 1e-310],
        &[1e-9, 1e9],
        &[1e16, 1e16 + 2.0],
        &[1.0, 1.0 + 1e-15],
        &[1e-5, 2e-5, 3e-5],
    ];
    for values in cases {
        check(&page_of(every_kind(values)).html());
    }
    let many: Vec<f64> = (0..2000).map(|i| if i % 7 == 0 { nan } else { f64::from(i) }).collect();
    check(&page_of(every_kind(&many)).html());
    check(&Page::default().html());
    let empty = Section { blocks: vec![Block::Table(Table::default())], ..Section::default() };
    check(&Page { sections: vec![empty], ..Page::default() }.html());
}

#[test]
fn ids_are_unique_and_links_lead_to_sections() {
    let section = |id: &str, title: &str| Section {
        id: id.into(),
        title: title.into(),
        blocks: every_kind(&[1.0, 2.0]),
        ..Section::default()
    };
    let sections = vec![
        section("content", "Chart"),
        section("", "Chart"),
        section("chart-title", "…"),
        section("content", ""),
    ];
    let html = Page { sections, ..page_of(Vec::new()) }.html();
    check(&html);
    for part in
        ["<main", "<header", "<nav", "<section", "lang=\"en\"", "Skip to content", "Content-Security-Policy"]
    {
        assert!(html.contains(part), "{part}");
    }
    let levels: Vec<u8> = tags(&html)
        .iter()
        .filter(|(name, _)| name.len() == 2 && name.starts_with('h') && name.as_bytes()[1].is_ascii_digit())
        .map(|(name, _)| name.as_bytes()[1] - b'0')
        .collect();
    assert_eq!(levels[0], 1);
    assert!(
        levels.windows(2).all(|pair| pair[1] <= pair[0] + 1 && pair[1] > 1),
        "headings in order: {levels:?}"
    );
}

#[test]
fn drawings_have_a_role_and_words() {
    let series = vec![curve("loss", [(0.0, 3.0), (1.0, 1.0), (2.0, 1.5)])];
    let html = page_of(vec![chart("Loss", lines(series)).into()]).html();
    let drawings: Vec<_> =
        tags(&html).into_iter().filter(|(_, a)| attribute(a, "role") == Some("img")).collect();
    assert_eq!(drawings.len(), 2, "one for wide and one for narrow pages");
    assert!(drawings.iter().all(|(name, a)| name == "svg" && attribute(a, "viewBox").is_some()));
    assert!(html.contains("Line chart of y over x. loss: 3 at first, 1.5 at last, lowest 1, highest 3."));
}

#[test]
fn csv_holds_the_data() {
    let thirds = [(1.0, 1.0 / 3.0), (2.0, -2e-9), (3.0, f64::NAN)];
    let mut banded = curve("b, with \"quotes\"", [(1.0, 1e21)]);
    banded.points[0].error = Some(0.25);
    let apart = vec![curve("a", [(0.0, 1.0)]), curve("b", [(0.5, 2.0)])];
    let reference = Reference { label: "limit".into(), at: 4.0 };
    let kinds = [
        lines(vec![curve("a", thirds), banded]),
        lines(apart),
        Kind::Lines { series: vec![curve("a", [(0.0, 1.0)])], references: vec![reference] },
        Kind::Intervals { rows: vec![Interval { name: "r".into(), estimate: -0.5, error: Some(0.1) }] },
        Kind::Histogram {
            edges: vec![0.0, 0.5, 1.0],
            distributions: vec![Distribution { name: "d".into(), heights: vec![3.0, 4.0] }],
            references: Vec::new(),
        },
        Kind::Scatter { groups: vec![Group { name: "g".into(), points: vec![(1.5, 2.0)] }] },
        Kind::Bars { bars: vec![Bar { name: "gpu".into(), value: 0.75, floor: None }] },
    ];
    let html = page_of(kinds.into_iter().map(|kind| chart("C", kind).into()).collect()).html();
    check(&html);
    let expected = [
        "x,a,\"b, with \"\"quotes\"\"\",\"b, with \"\"quotes\"\" (error)\"\n\
         1,0.333333333,1e21,0.25\n2,-2e-9,,\n3,,,\n",
        "series,x,y\na,0,1\nb,0.5,2\n",
        "x,a,limit\n0,1,4\n",
        "name,x,error\nr,-0.5,0.1\n",
        "from,to,d\n0,0.5,3\n0.5,1,4\n",
        "group,x,y\ng,1.5,2\n",
        "name,x,floor\ngpu,0.75,\n",
    ];
    assert_eq!(csv_files(&html), expected);
    assert_eq!(html.matches("Data as a table").count(), expected.len());
}

#[test]
fn long_data_has_no_table_and_curves_are_thinned_out_with_their_peaks() {
    let value = |i: i32| if i == 777 { 100.0 } else { f64::from(i % 10) };
    let series = vec![curve("a", (0..5000).map(|i| (f64::from(i), value(i))))];
    let html = page_of(vec![chart("Long", lines(series)).into()]).html();
    check(&html);
    assert!(!html.contains("Data as a table"));
    assert_eq!(csv_files(&html)[0].lines().count(), 5001);
    let courses: Vec<String> = tags(&html)
        .iter()
        .filter(|(name, a)| name == "path" && attribute(a, "class").is_some_and(|c| c.starts_with("s0 l")))
        .map(|(_, a)| attribute(a, "d").unwrap().to_string())
        .collect();
    // The drawings are the first two; the key of the legend follows.
    assert!(courses[0].len() < 400 * 12 && courses[1].len() < 200 * 12, "{}", courses[0].len());
    let deepest = |course: &str| course.contains("-2") && course.len() > 1000;
    assert!(courses[..2].iter().all(|course| deepest(course)), "the peak is drawn");
}

#[test]
fn tables_align_numbers_and_name_their_cells() {
    let table = Table {
        caption: "Arms".into(),
        header: vec!["arm".into(), "accuracy".into(), "note".into(), "change".into()],
        rows: vec![
            vec!["a".into(), "0.61 ± 0.01".into(), "3 runs".into(), "–".into()],
            vec!["b".into(), "1,234".into()],
            vec!["c".into(), "80 %".into(), "x".into(), "\u{2212}2".into()],
        ],
        highlight: Some(1),
    };
    let html = page_of(vec![table.into()]).html();
    check(&html);
    for part in [
        "<caption>Arms</caption>",
        "<th scope=\"col\">arm</th><th scope=\"col\" class=\"n\">accuracy</th><th scope=\"col\">note</th>\
         <th scope=\"col\" class=\"n\">change</th>",
        "<tr class=\"mark\"><th scope=\"row\">b</th><td class=\"n\">1,234</td><td></td><td class=\"n\"></td></tr>",
        "role=\"region\" tabindex=\"0\" aria-label=\"Arms\"",
    ] {
        assert!(html.contains(part), "{part}");
    }
}

#[test]
fn a_large_report_is_below_two_megabytes_and_always_the_same() {
    let page = || {
        let mut blocks: Vec<Block> = Vec::new();
        for k in 0..19 {
            let series = (0..10).map(|s| {
                let y = |i: i32| (f64::from(i) * 0.1 + f64::from(s)).sin() * (-f64::from(i) / 100.0).exp();
                curve(&format!("series number {s}"), (0..300).map(|i| (f64::from(i), f64::from(y(i) as f32))))
            });
            blocks.push(chart(&format!("Curves {k}"), lines(series.collect())).into());
        }
        let group = |g: i32| Group {
            name: format!("group {g}"),
            points: (0..1000).map(|i| (f64::from(i * g).sin(), f64::from(i + g).cos() * 3.0)).collect(),
        };
        blocks.push(chart("Map", Kind::Scatter { groups: (1..5).map(group).collect() }).into());
        page_of(blocks)
    };
    let html = page().html();
    check(&html);
    assert!(html.len() < 2_000_000, "{} bytes", html.len());
    assert_eq!(html, page().html());
}

#[test]
fn numbers_are_short() {
    let cases = [
        (0.0, "0"),
        (0.6741, "0.674"),
        (-0.05, "−0.05"),
        (12345.0, "12,300"),
        (999.9, "1,000"),
        (1e6, "10⁶"),
        (1.234e-7, "1.23×10⁻⁷"),
        (-2.5e12, "−2.5×10¹²"),
        (f64::NAN, "–"),
    ];
    for (value, text) in cases {
        assert_eq!(number(value), text);
    }
    assert_eq!(estimate(0.67412, Some(0.0098)), "0.6741 ± 0.0098");
    assert_eq!(estimate(0.67412, Some(0.0141)), "0.674 ± 0.014");
    assert_eq!(estimate(-12.0, Some(3.0)), "−12.0 ± 3.0");
    assert_eq!(estimate(0.5, None), "0.5");
    assert_eq!(estimate(0.5, Some(f64::NAN)), "0.5");
}
