//! Numbers and tables as text.

/// Columns padded to their widest cell: the first to the left, the others to the right, a rule under the
/// header.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |c: usize| {
        let cells = rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count());
        cells.chain([header[c].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(c, (cell, &w))| {
            let gap = " ".repeat(w - cell.chars().count());
            if c == 0 { format!("{cell}{gap}") } else { format!("{gap}{cell}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    let head = line(&header.iter().map(|h| h.to_string()).collect::<Vec<_>>());
    let rule = "─".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1));
    let body = rows.iter().map(|r| line(r));
    [head, rule].into_iter().chain(body).collect::<Vec<_>>().join("\n")
}

/// Mean and sample standard deviation as "0.612 ± 0.008"; the spread is left out for one value.
pub fn mean_spread(values: &[f64], decimals: usize) -> String {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return format!("{mean:.decimals$}");
    }
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    format!("{mean:.decimals$} ± {:.decimals$}", variance.sqrt())
}

/// Bytes as "1.5 GiB".
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// Seconds as "3 h 05 min", "12 min 04 s" or "1.6 s".
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A count with separated thousands: "1,000,000".
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let text = table(&["arm", "accuracy"], &[vec!["a long arm".into(), "0.5".into()]]);
        assert_eq!(text, "arm         accuracy\n────────────────────\na long arm       0.5");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(mean_spread(&[1.0, 3.0], 2), "2.00 ± 1.41");
        assert_eq!(mean_spread(&[1.0], 1), "1.0");
        assert_eq!(bytes(1536 * 1024), "1.5 MiB");
        assert_eq!(bytes(12), "12 B");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
        assert_eq!(duration(1.64), "1.6 s");
        assert_eq!(duration(124.0), "2 min 04 s");
        assert_eq!(duration(11_111.0), "3 h 05 min");
    }
}
