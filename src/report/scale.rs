//! Axes: their ranges and ticks, and how numbers are written.

/// A value that can be drawn. Beyond 1e300 the width of a range would overflow.
pub(super) fn usable(value: f64, log: bool) -> bool {
    value.is_finite() && value.abs() < 1e300 && (!log || value > 1e-300)
}

/// The range of an axis; `hi > lo`, and `lo > 0` where it is logarithmic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub lo: f64,
    pub hi: f64,
    pub log: bool,
}

impl Span {
    /// The range of the usable ones of `values`, widened by `pad` of itself on both sides. Without any: 0 to 1, or
    /// 1 to 10 on a logarithmic axis. Equal values get room on both sides.
    pub fn of(values: impl IntoIterator<Item = f64>, log: bool, pad: f64) -> Span {
        let (mut lo, mut hi) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.into_iter().filter(|v| usable(*v, log)) {
            lo = lo.min(value);
            hi = hi.max(value);
        }
        if lo > hi {
            return if log { Span { lo: 1.0, hi: 10.0, log } } else { Span { lo: 0.0, hi: 1.0, log } };
        }
        if log {
            if hi / lo < 1.0 + 1e-6 {
                return Span { lo: lo / 2.0, hi: hi * 2.0, log };
            }
            let factor = (hi.ln() - lo.ln()) * pad;
            return Span {
                lo: (lo.ln() - factor).exp().max(1e-305),
                hi: (hi.ln() + factor).exp().min(1e305),
                log,
            };
        }
        let size = lo.abs().max(hi.abs());
        if hi - lo <= size * 1e-9 {
            let room = if size == 0.0 { 1.0 } else { size * 0.1 };
            return Span { lo: lo - room, hi: hi + room, log };
        }
        let room = (hi - lo) * pad;
        // Room below the values does not reach below 0 where no value does.
        let low = if lo >= 0.0 { (lo - room).max(0.0) } else { lo - room };
        Span { lo: low, hi: hi + room, log }
    }

    /// Where `value` lies: 0 at the low end and 1 at the high end.
    pub fn at(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(f64::MIN_POSITIVE).ln() - self.lo.ln()) / (self.hi.ln() - self.lo.ln())
        } else {
            (value - self.lo) / (self.hi - self.lo)
        };
        share.clamp(-0.02, 1.02)
    }

    /// About one tick per 75 of `width` in the range, fewer where `label` (the width of a label) has too little room.
    pub fn ticks_in(&self, width: f64, label: fn(&str) -> f64) -> Vec<(f64, String)> {
        let most = ((width / 75.0) as usize).max(3);
        let fits = |ticks: &[(f64, String)]| {
            ticks.windows(2).all(|pair| {
                let apart = (self.at(pair[1].0) - self.at(pair[0].0)) * width;
                apart > (label(&pair[0].1) + label(&pair[1].1)) / 2.0 + 10.0
            })
        };
        (2..=most)
            .rev()
            .map(|count| self.ticks(count))
            .find(|ticks| fits(ticks))
            .unwrap_or_else(|| self.ticks(2))
    }

    /// About `count` ticks in the range, each with its label.
    pub fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        if self.log { self.log_ticks(count) } else { self.linear_ticks(count) }
    }

    fn linear_ticks(&self, count: usize) -> Vec<(f64, String)> {
        let step = nice_step((self.hi - self.lo) / count.max(1) as f64);
        let first = (self.lo / step - 1e-6).ceil();
        let last = (self.hi / step + 1e-6).floor();
        let size = self.lo.abs().max(self.hi.abs());
        let mut ticks: Vec<(f64, String)> = Vec::new();
        for i in 0..64 {
            let k = first + f64::from(i);
            if k > last {
                break;
            }
            let value = if k == 0.0 { 0.0 } else { k * step };
            let label = if size >= 1e6 || step < 1e-4 {
                let digits = (size.log10().floor() - step.log10().floor()).clamp(0.0, 12.0) as usize;
                if value == 0.0 { "0".to_string() } else { scientific(value, digits) }
            } else {
                fixed(value, (-(step.log10() + 1e-9).floor()).max(0.0) as usize)
            };
            ticks.push((value, label));
        }
        ticks
    }

    fn log_ticks(&self, count: usize) -> Vec<(f64, String)> {
        let (from, to) = (self.lo.log10().floor() as i32, self.hi.log10().ceil() as i32);
        let decades = self.hi.log10() - self.lo.log10();
        let parts: &[f64] = if decades > 3.0 {
            &[1.0]
        } else if decades > 1.2 {
            &[1.0, 2.0, 5.0]
        } else if decades > 0.3 {
            &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]
        } else {
            let line = Span { log: false, ..*self };
            return line.linear_ticks(count);
        };
        let every = if parts.len() == 1 { ((to - from) as usize).div_ceil(count.max(1)).max(1) } else { 1 };
        let inside = |v: &f64| *v >= self.lo * (1.0 - 1e-9) && *v <= self.hi * (1.0 + 1e-9);
        (from..=to)
            .step_by(every)
            .flat_map(|power| parts.iter().map(move |part| part * 10f64.powi(power)))
            .filter(inside)
            .map(|value| (value, number(value)))
            .collect()
    }
}

/// That of 1, 2, 5 and 10 times a power of ten which is nearest to `raw`.
fn nice_step(raw: f64) -> f64 {
    if !(raw.is_finite() && raw > 0.0) {
        return 1.0;
    }
    let power = 10f64.powf(raw.log10().floor());
    let part = raw / power;
    let whole = match part {
        ..1.5 => 1.0,
        ..3.2 => 2.0,
        ..7.1 => 5.0,
        _ => 10.0,
    };
    let step = whole * power;
    if step > 0.0 { step } else { f64::MIN_POSITIVE }
}

/// `value` with 3 significant digits, without trailing zeros: 0.674, 12,300, −0.05, 1.2×10⁻⁷. A value that is not
/// finite is an en dash.
pub fn number(value: f64) -> String {
    significant(value, 3)
}

/// `value` and its standard error (or another half width), to 2 significant digits of that error: 0.674 ± 0.010.
/// Without a usable error: `value` as [`number`] writes it.
pub fn estimate(value: f64, error: Option<f64>) -> String {
    let Some(error) = error.filter(|e| e.is_finite() && *e > 0.0 && value.is_finite()) else {
        return number(value);
    };
    if value.abs() >= 1e6 || !(1e-5..1e6).contains(&error) {
        return format!("{} ± {}", number(value), number(error));
    }
    let decimals = (1.0 - (error * 1.004).log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{} ± {}", fixed(value, decimals), fixed(error, decimals))
}

/// `value` with at most `digits` significant digits.
pub(super) fn significant(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return "–".to_string();
    }
    if value == 0.0 {
        return "0".to_string();
    }
    let rounded = format!("{value:.*e}", digits - 1);
    let power: i32 = rounded.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or(0);
    if !(-4..6).contains(&power) {
        return scientific(value, digits - 1);
    }
    let decimals = (digits as i32 - 1 - power).max(0) as usize;
    let rounded: f64 = rounded.parse().unwrap_or(value);
    trimmed(&fixed(rounded, decimals)).to_string()
}

fn trimmed(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

/// A fixed number of decimals, with a real minus sign and thousands apart.
fn fixed(value: f64, decimals: usize) -> String {
    let plain = format!("{:.*}", decimals, value.abs());
    let negative = value < 0.0 && plain.bytes().any(|b| (b'1'..=b'9').contains(&b));
    let (whole, rest) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut text = String::from(if negative { "\u{2212}" } else { "" });
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text + rest
}

fn scientific(value: f64, decimals: usize) -> String {
    let text = format!("{:.*e}", decimals, value.abs());
    let (part, power) = text.split_once('e').unwrap_or((&text, "0"));
    let sign = if value < 0.0 { "\u{2212}" } else { "" };
    let raised: String = power.chars().map(superscript).collect();
    match trimmed(part) {
        "1" => format!("{sign}10{raised}"),
        part => format!("{sign}{part}×10{raised}"),
    }
}

fn superscript(c: char) -> char {
    match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        '0' | '4'..='9' => char::from_u32(0x2070 + (c as u32 - '0' as u32)).unwrap_or(c),
        _ => c,
    }
}
