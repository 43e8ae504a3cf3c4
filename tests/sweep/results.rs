//! Figures: three forms of the same rows, a summary that follows from them, and cells that are those of `run`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;

use arrow_array::{Array, ArrayRef, Float64Array, StringArray};
use lensmith::dtype::Dtype;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use crate::common::cli::Lab;
use crate::support::{MODELS, SMALL, assert_refused, counts, lab, lines, number, rows, stamps, with_sets};

/// The rows of a Parquet file, as JSON knows them.
fn parquet_rows(path: &Path) -> Vec<BTreeMap<String, Value>> {
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(File::open(path).expect("a file")).expect("Parquet");
    let mut rows = Vec::new();
    for batch in reader.build().expect("a reader") {
        let batch = batch.expect("rows");
        let schema = batch.schema();
        for i in 0..batch.num_rows() {
            let value = |column: &ArrayRef| {
                if column.is_null(i) {
                    Value::Null
                } else if let Some(numbers) = column.as_any().downcast_ref::<Float64Array>() {
                    json!(numbers.value(i))
                } else {
                    json!(column.as_any().downcast_ref::<StringArray>().expect("numbers or texts").value(i))
                }
            };
            let names = schema.fields().iter().map(|field| field.name().clone());
            rows.push(names.zip(batch.columns().iter().map(value)).collect());
        }
    }
    rows
}

/// The names and the rows of a CSV file without quotes.
fn csv_rows(lab: &Lab, name: &str) -> (Vec<String>, Vec<Vec<Value>>) {
    let text = String::from_utf8(lab.bytes(name)).expect("text");
    let value = |cell: &str| match cell.parse::<f64>() {
        _ if cell.is_empty() => Value::Null,
        Ok(number) => json!(number),
        Err(_) => json!(cell),
    };
    let mut lines = text.lines();
    let names = lines.next().expect("a header").split(',').map(str::to_string).collect();
    (names, lines.map(|line| line.split(',').map(value).collect()).collect())
}

fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

#[test]
fn the_three_forms_hold_the_same_rows() {
    let lab = lab();
    with_sets(&lab);
    // Numbers, texts, and gaps where a grid has not the other's axis.
    let grids = "--grid mode=plain,residual --paper sigma2 --candidates @sets.safetensors";
    lab.fine(&format!("{SMALL} {MODELS} --threads 1 --splits 2 {grids} --out @s"));
    let rows = rows(&lab, "s");
    assert_eq!(rows.len(), (2 + 4) * 3 * 2);
    let (names, csv) = csv_rows(&lab, "s/results.csv");
    let packed = parquet_rows(&lab.at("s/results.parquet"));
    assert_eq!((csv.len(), packed.len()), (rows.len(), rows.len()));
    for (i, row) in rows.iter().enumerate() {
        let own = row.as_object().expect("an object");
        assert_eq!(own["format"], 1);
        // `format` stands for the layout of a line.
        let keys: BTreeSet<&str> = own.keys().map(String::as_str).filter(|key| *key != "format").collect();
        assert_eq!(names.iter().map(String::as_str).collect::<BTreeSet<_>>(), keys);
        assert_eq!(names.len(), keys.len(), "a name twice in {names:?}");
        assert_eq!(packed[i].keys().map(String::as_str).collect::<BTreeSet<_>>(), keys);
        assert_eq!(csv[i].len(), names.len(), "row {i}");
        for (name, cell) in names.iter().zip(&csv[i]) {
            assert!(same(cell, &row[name]), "row {i}, {name}: {cell} in CSV, {}", row[name]);
            assert!(same(&packed[i][name], &row[name]), "row {i}, {name}: {} in Parquet", packed[i][name]);
        }
        number(row, "best_of_n");
        let latent = row["arm"] == "plain" || row["arm"] == "residual";
        assert_eq!(row["kl"].is_number(), latent, "{row}");
        assert_eq!(
            (row["mode"].is_string(), row["sigma2"].is_number()),
            match row["grid"].as_str() {
                Some("mode") => (true, false),
                _ => (false, true),
            }
        );
    }
}

#[test]
fn every_column_has_a_name_of_its_own() {
    let lab = lab();
    lab.fine(&format!("{SMALL} {MODELS} --threads 1 --splits 1 --seed 3 --arms none --grid fold=2,3 --grid lr=1e-4,1e-3 --out @s"));
    let (names, _) = csv_rows(&lab, "s/results.csv");
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
    let seeds: Vec<f64> = rows(&lab, "s").iter().map(|row| number(row, "seed")).collect();
    assert_eq!(seeds, [3.0; 4]);
}

/// The figures of an arm at a point, split by split.
fn figures(rows: &[Value], grid: &Value, point: &Value, arm: &Value, measure: &str) -> Vec<f64> {
    let here = |row: &&Value| {
        let at = |setting: &Value| {
            let value: f64 = setting["value"].as_str().expect("text").parse().expect("a number");
            number(row, setting["flag"].as_str().expect("a flag")) == value
        };
        row["grid"] == *grid && row["arm"] == *arm && point.as_array().expect("settings").iter().all(at)
    };
    let own: Vec<&Value> = rows.iter().filter(here).collect();
    assert!(own.iter().enumerate().all(|(i, row)| row["split"] == i), "the splits of {arm} at {point}");
    own.iter().map(|row| number(row, measure)).collect()
}

#[track_caller]
fn assert_near(what: &str, got: &Value, want: f64) {
    let got = got.as_f64().unwrap_or_else(|| panic!("{what}: {got} for {want}"));
    assert!((got - want).abs() <= 1e-12, "{what}: {got} for {want}");
}

/// Compares sweep.json with its rows; gives how many differences there were.
fn assert_follows(lab: &Lab, out: &str, splits: usize, base: Option<&str>) -> usize {
    let (rows, report) = (rows(lab, out), lab.value(&format!("{out}/sweep.json")));
    assert_eq!(report["splits"], splits);
    let (mut compared, mut figures_seen) = (0, 0);
    for grid in report["grids"].as_array().expect("grids") {
        for point in grid["points"].as_array().expect("points") {
            for arm in point["arms"].as_array().expect("arms") {
                for measure in arm["measures"].as_array().expect("measures") {
                    let name = measure["measure"].as_str().expect("a name");
                    let what = format!("{out}, {}, {}, {name}", point["point"], arm["arm"]);
                    let of = |arm: &Value| figures(&rows, &grid["name"], &point["point"], arm, name);
                    let own = of(&arm["arm"]);
                    assert_eq!(own.len(), splits, "{what}");
                    assert_eq!(measure["values"], json!(own), "{what}");
                    let mut sum = 0.0;
                    for value in &own {
                        sum += value;
                    }
                    assert_near(&what, &measure["mean"], sum / splits as f64);
                    figures_seen += splits;
                    let Some(base) = base.filter(|base| arm["arm"] != **base) else {
                        assert!(measure["against"].is_null(), "{what}: against what?");
                        continue;
                    };
                    assert_eq!(measure["against"]["arm"], base, "{what}");
                    let difference = &measure["against"]["difference"];
                    let (mut sum, mut wins, mut differences) = (0.0, 0, Vec::new());
                    for (a, b) in own.iter().zip(of(&json!(base))) {
                        differences.push(a - b);
                        sum += a - b;
                        wins += u64::from(*a > b);
                    }
                    assert_eq!(differences.len(), splits, "{what}");
                    let mean = sum / splits as f64;
                    assert_near(&what, &difference["mean"], mean);
                    assert_eq!(
                        (&difference["splits"], &difference["wins"]),
                        (&json!(splits), &json!(wins)),
                        "{what}"
                    );
                    if splits == 1 {
                        assert!(difference["standard_error"].is_null(), "{what}: {difference}");
                    } else {
                        let mut squares = 0.0;
                        for d in &differences {
                            squares += (d - mean) * (d - mean);
                        }
                        let deviation = (squares / (splits - 1) as f64).sqrt();
                        assert_near(&what, &difference["standard_error"], deviation / (splits as f64).sqrt());
                    }
                    compared += 1;
                }
            }
        }
    }
    // Every row has its place in the summary, once.
    assert_eq!(figures_seen, 3 * rows.len(), "{out}");
    compared
}

#[test]
fn the_summary_follows_from_the_rows() {
    let lab = lab();
    with_sets(&lab);
    let go = |out: &str, rest: &str| {
        lab.fine(&format!("{SMALL} {MODELS} --threads 1 --candidates @sets.safetensors {rest} --out @{out}"))
    };
    go("four", "--splits 4 --grid sigma2=0.01,1 --grid fold=2,3 --arms none,matched,plain,residual");
    // Four points, three arms beside the baseline, three measures.
    assert_eq!(assert_follows(&lab, "four", 4, Some("matched")), 4 * 3 * 3);
    // With every figure equal there would be nothing to tell differences by.
    let losses: BTreeSet<u64> = rows(&lab, "four").iter().map(|row| number(row, "loss").to_bits()).collect();
    assert!(losses.len() > 40, "{} losses", losses.len());
    go("two", "--splits 2 --grid gamma=0,1 --paper sigma2 --arms plain,none,plain+ensemble");
    assert_eq!(assert_follows(&lab, "two", 2, Some("none")), (2 + 4) * 2 * 3);
    go("one", "--splits 1 --grid fold=2,3 --arms matched,plain");
    assert_eq!(assert_follows(&lab, "one", 1, Some("matched")), 2 * 3);
    go("free", "--splits 3 --grid fold=2,3 --arms plain,residual");
    assert_eq!(assert_follows(&lab, "free", 3, None), 0);
}

/// A grid and an ablation of the same flag, or an ablation twice, must not count a split twice.
#[test]
fn a_split_counts_once_however_often_its_point_is_named() {
    let lab = lab();
    for (out, grids) in [("both", "--grid fold=2,4 --paper fold"), ("twice", "--paper fold,fold")] {
        let said = lab.run(&format!(
            "{SMALL} {MODELS} --threads 1 --splits 2 --arms none,matched {grids} --out @{out}"
        ));
        if said.code != Some(0) {
            assert_refused(&said, &["fold"]);
            continue;
        }
        for grid in lab.value(&format!("{out}/sweep.json"))["grids"].as_array().expect("grids") {
            for point in grid["points"].as_array().expect("points") {
                for arm in point["arms"].as_array().expect("arms") {
                    for measure in arm["measures"].as_array().expect("measures") {
                        let values = measure["values"].as_array().expect("values");
                        assert_eq!(
                            values.len(),
                            2,
                            "{grids}: {} of {} at {}",
                            measure["measure"],
                            arm["arm"],
                            point["point"]
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn cells_are_what_run_gives_for_the_same_seed() {
    const ARMS: &str =
        "none,matched,direct,gaussian,mixup,plain,residual,no-divergence,margin,plain+noise,matched+across";
    let lab = lab();
    with_sets(&lab);
    let method = format!("{MODELS} --candidates @sets.safetensors --fold 3 --arms {ARMS} --threads 1");
    lab.fine(&format!("{SMALL} {method} --seed 7 --splits 2 --grid sigma2=0.1 --out @s"));
    let mut cells = BTreeMap::new();
    for entry in fs::read_dir(lab.at("s/cells")).expect("a folder") {
        let bytes = fs::read(entry.expect("an entry").path()).expect("a cell");
        let cell: Value = serde_json::from_slice(&bytes).expect("JSON");
        let arm = cell["result"]["arm"].as_str().expect("an arm").to_string();
        let seed = cell["depends_on"]["settings"]["synthesis"]["seed"].as_u64().expect("a seed");
        assert!(cells.insert((arm, seed), cell).is_none(), "one cell an arm and split");
    }
    let rows = rows(&lab, "s");
    assert_eq!((rows.len(), cells.len()), (22, 22));
    let mut compared = 0;
    for split in 0..2u64 {
        let seed = 7 + split;
        let method = method.replace(" --threads 1", " --threads 2");
        let run = SMALL.replace("sweep", "run");
        lab.fine(&format!("{run} {method} --seed {seed} --sigma2 0.1 --out @r{seed}"));
        let report = lab.value(&format!("r{seed}/run.json"));
        for want in report["repeats"][0]["arms"].as_array().expect("arms") {
            let arm = want["arm"].as_str().expect("an arm");
            let row = rows.iter().find(|row| row["arm"] == arm && row["split"] == split).expect("its row");
            assert_eq!(row["seed"], seed);
            for name in ["accuracy", "loss"] {
                let want = want["test"][name].as_f64().expect("a figure");
                assert_eq!(number(row, name), want, "{arm}, split {split}: {name}");
            }
            for name in ["pairs", "steps", "best_step"] {
                assert_eq!(
                    number(row, name),
                    want[name].as_f64().expect("a count"),
                    "{arm}, split {split}: {name}"
                );
            }
            // Every other figure too, but for the time that it took.
            let (mut got, mut want) = (cells[&(arm.to_string(), seed)]["result"].clone(), want.clone());
            for result in [&mut got, &mut want].map(|result| result.as_object_mut().expect("an object")) {
                result.remove("seconds");
                // The seeds alone have no fold; their cell is that of every fold.
                if arm == "none" {
                    result.remove("fold");
                }
            }
            assert_eq!(got, want, "{arm}, split {split}");
            compared += 1;
        }
    }
    assert_eq!(compared, 22);
}

#[test]
fn the_papers_sizes_are_those_that_fit() {
    let lab = Lab::new();
    lab.pairs("pairs.safetensors", Dtype::F32, 620, 16, 1);
    let sweep = format!(
        "sweep @pairs.safetensors --validation-pairs 30 --seeds 60 {MODELS} --arms none,plain --threads 1"
    );
    let said = lab.fine(&format!("{sweep} --splits 2 --paper seeds --out @s --json")).json();
    // 1,000 seeds and more are not to be had of 620 pairs.
    let found: Vec<&str> = said["grids"][0]["points"]
        .as_array()
        .expect("points")
        .iter()
        .map(|point| point["point"][0]["value"].as_str().expect("a size"))
        .collect();
    assert_eq!(found, ["100", "500"]);
    assert_eq!(said, lab.value("s/sweep.json"));
    let rows = rows(&lab, "s");
    let sizes: Vec<f64> = rows.iter().map(|row| number(row, "seeds")).collect();
    assert_eq!(sizes, [100.0, 100.0, 100.0, 100.0, 500.0, 500.0, 500.0, 500.0]);
    for row in &rows {
        let fold = if row["arm"] == "none" { 1.0 } else { 4.0 };
        assert_eq!(number(row, "pairs"), fold * number(row, "seeds"), "{row}");
    }
    // Sizes of the user's own are meant: one that does not fit is an error, before anything is written.
    let said = lab.run(&format!("{sweep} --grid seeds=100,1000 --out @own"));
    assert!(said.code.is_some_and(|code| code > 0), "{said:?}");
    assert!(said.err.contains("1000") && said.err.lines().count() == 1, "{said:?}");
    assert!(!lab.at("own").exists());
}

/// A sweep whose sizes all go beyond the data leaves no rows, or refuses; never old rows beside none.
#[test]
fn no_form_keeps_rows_that_another_has_not() {
    let lab = lab();
    lab.fine(&format!("{SMALL} {MODELS} --threads 1 --splits 1 --arms none --grid fold=2,3 --out @s"));
    lab.run(&format!("{SMALL} {MODELS} --threads 1 --splits 1 --arms none --paper seeds --out @s"));
    let rows = lines(&lab, "s").len();
    let csv = lab.bytes("s/results.csv").iter().filter(|byte| **byte == b'\n').count();
    assert_eq!((csv, parquet_rows(&lab.at("s/results.parquet")).len()), (rows + 1, rows));
}

/// The first example of a grid in the help gives seeds by the grid alone.
#[test]
fn an_axis_of_seeds_needs_no_seeds_beside_it() {
    let lab = lab();
    let line =
        format!("sweep @pairs.safetensors --validation-pairs 30 {MODELS} --threads 1 --splits 2 --arms none");
    lab.fine(&format!("{line} --grid seeds=30,40 --out @s"));
    let pairs: Vec<f64> = rows(&lab, "s").iter().map(|row| number(row, "pairs")).collect();
    assert_eq!(pairs, [30.0, 30.0, 40.0, 40.0]);
    assert_eq!(counts(&stamps(&lab, "s")), [4, 0]);
}
