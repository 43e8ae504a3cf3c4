//! The results of a sweep: a line for each point, arm and split, as JSON lines, CSV and Parquet; and what they say, point by
//! point, with paired differences.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::cell::CellResult;
use super::grid::Setting;
use crate::backend::DeviceInfo;
use crate::cli::run::report::Measure;
use crate::cli::table::table;
use crate::convert::{TableColumn, write_table};
use crate::data::{read_small, write_atomic};
use crate::error::{Error, Result};
use crate::eval::{Arm, Paired, baseline, paired};

/// Names of the files.
pub const RESULTS: [&str; 3] = ["results.jsonl", "results.csv", "results.parquet"];
/// The summary.
pub const SWEEP: &str = "sweep.json";

/// One point, arm and split.
pub struct Row<'a> {
    pub grid: String,
    pub point: &'a [Setting],
    pub split: usize,
    pub seed: u64,
    pub cell: &'a CellResult,
}

/// sweep.json.
#[derive(Debug, Serialize, Deserialize)]
pub struct SweepReport {
    pub format: u32,
    pub lensmith: String,
    pub device: DeviceInfo,
    pub sources: Value,
    /// The settings where no grid says otherwise.
    pub settings: Value,
    pub splits: usize,
    pub cells: usize,
    pub grids: Vec<GridSummary>,
}

/// A grid's points.
#[derive(Debug, Serialize, Deserialize)]
pub struct GridSummary {
    pub name: String,
    pub points: Vec<PointSummary>,
}

/// The arms at a point.
#[derive(Debug, Serialize, Deserialize)]
pub struct PointSummary {
    pub point: Vec<Setting>,
    pub arms: Vec<ArmSummary>,
}

/// An arm at a point, over the splits.
#[derive(Debug, Serialize, Deserialize)]
pub struct ArmSummary {
    pub arm: Arm,
    pub title: String,
    pub measures: Vec<MeasureSummary>,
    /// Of arms with latents: figures of the VAE, means over the splits.
    pub explained_variance: Option<f64>,
    pub kl: Option<f64>,
    /// Means over the splits of the share of synthetic pairs that are ordered as their seeds, by the scale of the noise.
    pub order: Vec<[f64; 2]>,
}

/// A measure over the splits.
#[derive(Debug, Serialize, Deserialize)]
pub struct MeasureSummary {
    pub measure: Measure,
    /// One a split.
    pub values: Vec<f64>,
    pub mean: f64,
    /// The difference from the point's baseline, if there is one.
    pub against: Option<Comparison>,
}

/// A difference from a baseline.
#[derive(Debug, Serialize, Deserialize)]
pub struct Comparison {
    pub arm: Arm,
    pub difference: Paired,
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Sums up the rows of a grid, which stand point by point, arm by arm, split by split.
pub fn summarise(name: String, rows: &[&Row<'_>]) -> GridSummary {
    let points = rows.chunk_by(|a, b| a.point == b.point).map(|rows| {
        let arms: Vec<&[&Row<'_>]> = rows.chunk_by(|a, b| a.cell.result.arm == b.cell.result.arm).collect();
        let names: Vec<Arm> = arms.iter().map(|rows| rows[0].cell.result.arm).collect();
        let base = baseline(&names).and_then(|base| arms.iter().find(|rows| rows[0].cell.result.arm == base));
        let values = |rows: &[&Row<'_>], measure: Measure| -> Option<Vec<f64>> {
            rows.iter().map(|row| measure.of(&row.cell.result)).collect()
        };
        let arm = |rows: &&[&Row<'_>]| {
            let first = &rows[0].cell.result;
            let measure = |measure: Measure| {
                let own = values(rows, measure)?;
                let base = base.filter(|base| base[0].cell.result.arm != first.arm);
                let against = base.and_then(|base| {
                    let difference = paired(&own, &values(base, measure)?);
                    Some(Comparison { arm: base[0].cell.result.arm, difference })
                });
                Some(MeasureSummary { measure, mean: mean(&own), values: own, against })
            };
            let health = |of: fn(&crate::eval::VaeHealth) -> f64| {
                let found: Option<Vec<f64>> =
                    rows.iter().map(|row| row.cell.health.as_ref().map(of)).collect();
                found.map(|values| mean(&values))
            };
            let order = first.order.iter().enumerate().map(|(i, point)| {
                let shares: Vec<f64> = rows
                    .iter()
                    .filter_map(|row| Some(row.cell.result.order.get(i)?.order.preserved))
                    .collect();
                [point.sigma2, mean(&shares)]
            });
            ArmSummary {
                arm: first.arm,
                title: first.title(),
                measures: Measure::ALL.into_iter().filter_map(measure).collect(),
                explained_variance: health(|h| h.explained_variance),
                kl: health(|h| h.kl),
                order: order.collect(),
            }
        };
        PointSummary { point: rows[0].point.to_vec(), arms: arms.iter().map(arm).collect() }
    });
    GridSummary { name, points: points.collect() }
}

impl SweepReport {
    /// Most bytes that are read as a report.
    const MOST_BYTES: u64 = 64 << 20;

    /// Reads a sweep.json.
    pub fn read(path: &Path) -> Result<SweepReport> {
        let bad = |detail: String| Error::Format { path: path.to_path_buf(), format: "sweep", detail };
        let bytes = read_small(path, "sweep", SweepReport::MOST_BYTES)?;
        let report: SweepReport = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        match report.format {
            1 => Ok(report),
            other => Err(bad(format!("expected format 1, found {other}"))),
        }
    }

    /// The report for people.
    pub fn text(&self, folder: &Path) -> String {
        let mut text = String::new();
        for grid in &self.grids {
            let measures: Vec<Measure> = Measure::ALL
                .into_iter()
                .filter(|m| grid.points.iter().any(|p| p.arms.iter().any(|a| a.of(*m).is_some())))
                .collect();
            let mut header = vec![grid.name.as_str(), "arm"];
            for measure in &measures {
                header.extend([measure.name(), "against the baseline"]);
            }
            let mut rows = Vec::new();
            for point in &grid.points {
                for arm in &point.arms {
                    let mut row = vec![point.name(), arm.title.clone()];
                    for measure in &measures {
                        let found = arm.of(*measure);
                        row.push(found.map_or("-".into(), |m| format!("{:.3}", m.mean)));
                        let against = found.and_then(|m| m.against.as_ref());
                        row.push(against.map_or(String::new(), |c| c.difference.to_string()));
                    }
                    rows.push(row);
                }
            }
            text.push_str(&table(&header, &rows));
            text.push_str("\n\n");
        }
        text.push_str(&format!(
            "{} splits; differences are paired, ± standard error. {} cells in {}",
            self.splits,
            self.cells,
            folder.display()
        ));
        text
    }
}

impl ArmSummary {
    /// A measure, if the arm has it.
    pub fn of(&self, measure: Measure) -> Option<&MeasureSummary> {
        self.measures.iter().find(|m| m.measure == measure)
    }
}

impl PointSummary {
    /// The values of the axes.
    pub fn name(&self) -> String {
        self.point.iter().map(|s| s.value.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// A row as named values, the same names for every row of a sweep.
fn values(row: &Row<'_>, flags: &[String]) -> Vec<(String, Value)> {
    let result = &row.cell.result;
    let mut out: Vec<(String, Value)> = vec![("grid".into(), json!(row.grid))];
    for flag in flags {
        let setting = row.point.iter().find(|s| s.flag == *flag);
        // Numbers as numbers.
        let value = setting.map(|s| match s.value.parse::<f64>() {
            Ok(number) if number.is_finite() => json!(number),
            _ => json!(s.value),
        });
        out.push((flag.clone(), json!(value)));
    }
    let test = result.test.as_ref();
    let health = row.cell.health.as_ref();
    let mut put = |name: &str, value: Value| out.push((name.to_string(), value));
    put("arm", json!(result.arm));
    put("split", json!(row.split));
    put("seed", json!(row.seed));
    put("pairs", json!(result.pairs));
    put("test_pairs", json!(test.map(|t| t.report.pairs)));
    put("steps", json!(result.steps));
    put("best_step", json!(result.best_step));
    put("capped", json!(u8::from(result.capped)));
    put("chosen_input_noise", json!(result.input_noise));
    put("accuracy", json!(test.map(|t| t.report.accuracy)));
    put("loss", json!(test.map(|t| t.report.loss)));
    put("calibration_error", json!(test.map(|t| t.report.calibration.expected_error)));
    put("brier", json!(test.map(|t| t.report.calibration.brier)));
    put("margin_mean", json!(test.map(|t| t.report.margins.mean)));
    put("best_of_n", json!(Measure::BestOfN.of(result)));
    put("spearman", json!(result.rank.as_ref().and_then(|rank| rank.within_prompts)));
    put("explained_variance", json!(health.map(|h| h.explained_variance)));
    put("held_out_explained_variance", json!(health.and_then(|h| h.held_out_explained_variance)));
    put("kl", json!(health.map(|h| h.kl)));
    put("w2", json!(health.map(|h| h.w2)));
    out
}

/// Writes the rows in three forms.
pub fn write_results(folder: &Path, rows: &[Row<'_>]) -> Result<()> {
    let mut flags: Vec<String> = Vec::new();
    for setting in rows.iter().flat_map(|row| row.point) {
        if !flags.contains(&setting.flag) {
            flags.push(setting.flag.clone());
        }
    }
    let all: Vec<Vec<(String, Value)>> = rows.iter().map(|row| values(row, &flags)).collect();
    let line = |row: &Vec<(String, Value)>| {
        let mut object: Map<String, Value> = row.iter().cloned().collect();
        object.insert("format".into(), 1.into());
        Value::Object(object).to_string() + "\n"
    };
    write_atomic(&folder.join(RESULTS[0]), all.iter().map(line).collect::<String>().as_bytes())?;

    let Some(first) = all.first() else { return Ok(()) };
    let names: Vec<&str> = first.iter().map(|(name, _)| name.as_str()).collect();
    let mut text = names.join(",") + "\n";
    for row in &all {
        let cell = |(_, value): &(String, Value)| match value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        text += &row.iter().map(cell).collect::<Vec<_>>().join(",");
        text.push('\n');
    }
    write_atomic(&folder.join(RESULTS[1]), text.as_bytes())?;

    let column = |(i, name): (usize, &&str)| {
        let values: Vec<&Value> = all.iter().map(|row| &row[i].1).collect();
        let column = match values.iter().any(|value| value.is_string()) {
            true => {
                let text = |value: &&Value| match value {
                    Value::Null => None,
                    Value::String(text) => Some(text.clone()),
                    other => Some(other.to_string()),
                };
                TableColumn::Text(values.iter().map(text).collect())
            }
            false => TableColumn::Number(values.iter().map(|value| value.as_f64()).collect()),
        };
        (name.to_string(), column)
    };
    write_table(&folder.join(RESULTS[2]), &names.iter().enumerate().map(column).collect::<Vec<_>>())
}
