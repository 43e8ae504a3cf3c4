//! The points of a sweep: values of flags, and which of them are swept together.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A flag and its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Name of the flag, without its dashes.
    pub flag: String,
    /// What it is set to, one after the other.
    pub values: Vec<String>,
}

/// Every combination of some axes' values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    /// The axes, the last of which changes fastest.
    pub axes: Vec<Axis>,
}

/// A flag with the value that it has at a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    pub flag: String,
    pub value: String,
}

/// The ablations of the paper, by one name each.
const PAPER: [(&str, &str, &[&str]); 4] = [
    ("gamma", "gamma", &["0", "0.01", "0.1", "0.5", "1"]),
    ("sigma2", "sigma2", &["0.001", "0.01", "0.1", "1"]),
    ("fold", "fold", &["2", "4", "8", "16"]),
    ("seeds", "seeds", &["100", "500", "1000", "2000", "5000", "10000", "50000", "100000"]),
];

/// The names of the paper's ablations.
pub const PAPER_NAMES: [&str; 4] = [PAPER[0].0, PAPER[1].0, PAPER[2].0, PAPER[3].0];

impl Axis {
    /// Reads `NAME=V1,V2,...`.
    pub fn parse(text: &str) -> Result<Axis> {
        let wrong = || Error::argument("--grid", "NAME=VALUE,VALUE,... with the name of a flag", text);
        let (flag, values) = text.split_once('=').ok_or_else(wrong)?;
        let values: Vec<String> = values.split(',').map(str::to_string).collect();
        let named = !flag.is_empty() && flag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if !named || flag.starts_with('-') || values.iter().any(String::is_empty) {
            return Err(wrong());
        }
        // Numbers are compared as numbers.
        let same = |a: &String, b: &String| match (a.parse::<f64>(), b.parse::<f64>()) {
            (Ok(a), Ok(b)) => a == b,
            _ => a == b,
        };
        if values.iter().enumerate().any(|(i, value)| values[..i].iter().any(|other| same(other, value))) {
            return Err(Error::argument("--grid", "every value once", text));
        }
        Ok(Axis { flag: flag.to_string(), values })
    }
}

impl Grid {
    /// An ablation of the paper.
    pub fn paper(name: &str) -> Option<Grid> {
        let (_, flag, values) = PAPER.iter().find(|(known, ..)| *known == name)?;
        let values = values.iter().map(|value| value.to_string()).collect();
        Some(Grid { axes: vec![Axis { flag: flag.to_string(), values }] })
    }

    /// The axes' names.
    pub fn name(&self) -> String {
        self.axes.iter().map(|axis| axis.flag.as_str()).collect::<Vec<_>>().join(" x ")
    }

    /// All points.
    pub fn points(&self) -> Vec<Vec<Setting>> {
        let mut points = vec![Vec::new()];
        for axis in &self.axes {
            let setting = |value: &String| Setting { flag: axis.flag.clone(), value: value.clone() };
            let longer = |point: &Vec<Setting>| {
                let with = |value| point.iter().cloned().chain([setting(value)]).collect::<Vec<_>>();
                axis.values.iter().map(with).collect::<Vec<_>>()
            };
            points = points.iter().flat_map(longer).collect();
        }
        points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_all_combinations() {
        let axes = ["gamma=0,0.1", "fold=2,4,8"].map(|text| Axis::parse(text).unwrap()).to_vec();
        let grid = Grid { axes };
        let points = grid.points();
        assert_eq!((grid.name().as_str(), points.len()), ("gamma x fold", 6));
        let flat = |p: &[Setting]| p.iter().map(|s| format!("{}={}", s.flag, s.value)).collect::<Vec<_>>();
        assert_eq!(flat(&points[0]), ["gamma=0", "fold=2"]);
        assert_eq!(flat(&points[5]), ["gamma=0.1", "fold=8"]);
        for name in PAPER_NAMES {
            assert!(Grid::paper(name).is_some_and(|grid| grid.points().len() >= 4), "{name}");
        }
        assert_eq!(Grid::paper("beta"), None);
    }

    #[test]
    fn what_is_no_axis_is_refused() {
        for wrong in
            ["gamma", "=1", "gamma=", "gamma=1,,2", "--gamma=1", "a b=1", "gamma=1,1", "gamma=0.1,0.10"]
        {
            assert!(Axis::parse(wrong).is_err(), "{wrong}");
        }
    }
}
