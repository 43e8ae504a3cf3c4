//! The arms of `run`: every augmentation with every addition trains, is looked at as often as the others, and leaves
//! the same bytes for any number of threads; `split` takes the rows that `run` takes; presets are lists of flags.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use lensmith::data::Checkpoint;
use lensmith::dtype::Dtype;
use lensmith::model::RewardModel;
use safetensors::SafeTensors;
use serde_json::Value;

use common::cli::{Lab, assert_same_files, f32_bytes, outputs};
use common::data;

const DIM: usize = 32;
const ROWS: usize = 120;
const SEEDS: usize = 40;
const BATCH: usize = 16;
const FOLD: usize = 3;
const EPOCHS: usize = 6;
/// Small models that are trained until input noise is of use to some.
const MODELS: &str =
    "--hidden 16 --latent 16 --vae-epochs 5 --vae-lr 1e-3 --reward-hidden 32 --epochs 6 --lr 1e-2 --batch 16";
const RUN: &str = "run @pairs.safetensors --seeds 40 --validation-pairs 30";

const AUGMENTATIONS: [&str; 9] =
    ["none", "matched", "direct", "gaussian", "mixup", "plain", "residual", "no-divergence", "margin"];
const ADDITIONS: [&str; 8] = [
    "",
    "+noise",
    "+across",
    "+ensemble",
    "+noise+across",
    "+noise+ensemble",
    "+across+ensemble",
    "+noise+across+ensemble",
];

fn lab() -> Lab {
    let lab = Lab::new();
    lab.pairs("pairs.safetensors", Dtype::F32, ROWS, DIM, 1);
    lab
}

/// Every augmentation with every set of additions.
fn all_arms() -> Vec<String> {
    AUGMENTATIONS.iter().flat_map(|a| ADDITIONS.map(|more| format!("{a}{more}"))).collect()
}

/// Runs all arms into a folder; gives run.json.
fn run_all(lab: &Lab, threads: usize, out: &str) -> Value {
    let arms = all_arms().join(",");
    lab.fine(&format!("{RUN} {MODELS} --fold {FOLD} --arms {arms} --threads {threads} --out @{out}"));
    lab.value(&format!("{out}/run.json"))
}

/// The arms of the first repeat, which are those asked for, in that order.
#[track_caller]
fn results(report: &Value, want: &[String]) -> Vec<Value> {
    let arms = report["repeats"][0]["arms"].as_array().expect("arms").clone();
    let names: Vec<&str> = arms.iter().map(|arm| arm["arm"].as_str().expect("a name")).collect();
    assert_eq!(names, want);
    arms
}

/// A number. NaN, which JSON writes as null, is none.
#[track_caller]
fn number(value: &Value, what: &str) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{what}: {value}"))
}

fn name(arm: &Value) -> &str {
    arm["arm"].as_str().expect("a name")
}

/// The file of an arm's model: `plain` is the first with latents, and so the run's.
fn model_file(out: &str, arm: &str) -> String {
    match arm {
        "plain" => format!("{out}/reward.safetensors"),
        _ => format!("{out}/reward_{arm}.safetensors"),
    }
}

/// The lowest validation loss of a learning curve.
fn lowest(arm: &Value) -> f64 {
    let points = arm["history"].as_array().expect("a curve");
    let losses = points.iter().map(|p| number(&p["validation"]["loss"], name(arm)));
    losses.fold(f64::INFINITY, f64::min)
}

#[test]
fn every_arm_trains_and_leaves_finite_figures_and_its_model() {
    let lab = lab();
    let arms = results(&run_all(&lab, 1, "r"), &all_arms());
    let mut models = BTreeSet::new();
    for arm in &arms {
        let name = name(arm);
        let augmentation = name.split('+').next().expect("a name");
        let test = &arm["test"];
        for figure in ["accuracy", "loss"] {
            number(&test[figure], &format!("{name}, {figure}"));
        }
        for figure in ["brier", "expected_error"] {
            number(&test["calibration"][figure], &format!("{name}, {figure}"));
        }
        for figure in ["mean", "std"] {
            number(&test["margins"][figure], &format!("{name}, {figure}"));
        }
        // What is preferred is larger along a third of the columns: an arm that learnt nothing stays at a half.
        let (accuracy, loss) = (number(&test["accuracy"], name), number(&test["loss"], name));
        assert!((0.8..=1.0).contains(&accuracy) && loss > 0.0 && loss < 0.5, "{name}: {accuracy}, {loss}");
        let pairs = if matches!(augmentation, "none" | "matched") { SEEDS } else { FOLD * SEEDS };
        assert_eq!(arm["pairs"], pairs, "{name}");
        let latent = matches!(augmentation, "plain" | "residual" | "no-divergence" | "margin");
        let order = arm["order"].as_array().expect("points");
        assert_eq!(order.len(), if latent { 7 } else { 0 }, "{name}");
        for point in order {
            let share = number(&point["preserved"], name);
            assert!((0.0..=1.0).contains(&share), "{name}: {point}");
        }

        let file = model_file("r", name);
        let (model, facts) = RewardModel::load(&lab.at(&file)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (hidden, heads) = if name.contains("+ensemble") { (64, 8) } else { (32, 1) };
        assert_eq!(
            (model.size().dim, model.size().hidden, model.size().heads),
            (DIM, hidden, heads),
            "{name}"
        );
        let parameters = model.layers.iter().flat_map(|layer| layer.weight.iter().chain(&layer.bias));
        assert!(parameters.clone().count() > DIM && parameters.clone().all(|v| v.is_finite()), "{name}");
        let result: Value = serde_json::from_str(&facts["lensmith.result"]).expect("JSON");
        assert_eq!((&result["arm"], &result["steps"]), (&arm["arm"], &arm["steps"]), "{name}");
        // The file is the model that the figures are of.
        let line = format!("eval @r/test.safetensors --model @{file} --threads 1 --json");
        let again = lab.fine(&line).json();
        for figure in ["accuracy", "loss"] {
            let (got, want) = (number(&again["pairs"][figure], name), number(&test[figure], name));
            assert_eq!(got, want, "{name}: {figure}");
        }
        if !name.contains("+noise") {
            let bits: Vec<u32> = parameters.map(|v| v.to_bits()).collect();
            assert!(models.insert(bits), "{name} is the model of another arm");
        }
    }
    assert_eq!(models.len(), 9 * 4);
    // No model but these.
    let files = fs::read_dir(lab.at("r")).expect("a folder").map(|entry| {
        let entry = entry.expect("an entry");
        entry.file_name().to_string_lossy().into_owned()
    });
    assert_eq!(files.filter(|file| file.starts_with("reward") && file.ends_with(".safetensors")).count(), 72);
}

/// Lines of a CSV file as values by the names of the header.
fn csv(lab: &Lab, file: &str) -> Vec<BTreeMap<String, String>> {
    let text = String::from_utf8(lab.bytes(file)).expect("text");
    let mut lines = text.lines().map(|line| line.split(',').map(str::to_string).collect::<Vec<_>>());
    let header = lines.next().expect("a header");
    lines
        .map(|cells| {
            assert_eq!(cells.len(), header.len(), "{file}");
            header.iter().cloned().zip(cells).collect()
        })
        .collect()
}

#[test]
fn all_arms_are_evaluated_after_as_many_steps_and_their_curves_end_where_training_did() {
    let lab = lab();
    let pass = SEEDS.div_ceil(BATCH);
    let all = all_arms();
    let four = ["none", "matched", "mixup+ensemble", "residual+noise"].map(str::to_string).to_vec();
    for (out, more, every, arms) in [
        ("passes", "", pass, &all),
        ("often", "--validate-every 2", 2, &four),
        ("seldom", "--validate-every 1000", 1000, &four),
    ] {
        let list = arms.join(",");
        let line = format!(
            "{RUN} {MODELS} --fold {FOLD} --patience 0 --threads 1 {more} --arms {list} --out @{out}"
        );
        lab.fine(&line);
        let report = lab.value(&format!("{out}/run.json"));
        let curves = csv(&lab, &format!("{out}/reward_curves.csv"));
        let mut seen = 0;
        for arm in results(&report, arms) {
            let name = name(&arm);
            // Without patience all steps are taken: those of one pass, or of m.
            let pairs = if name.starts_with("none") { SEEDS } else { FOLD * SEEDS };
            let steps = EPOCHS * pairs.div_ceil(BATCH);
            assert_eq!(arm["steps"], steps, "{name}");
            let mut want: Vec<usize> = (1..=steps / every).map(|i| i * every).collect();
            want.extend((!steps.is_multiple_of(every)).then_some(steps));
            let points = arm["history"].as_array().expect("a curve");
            let at: Vec<usize> =
                points.iter().map(|p| p["step"].as_u64().expect("a step") as usize).collect();
            assert_eq!(at, want, "{out}, {name}");

            let curve: Vec<_> = curves.iter().filter(|line| line["arm"] == name).collect();
            assert_eq!(curve.len(), points.len(), "{out}, {name}");
            for (line, point) in curve.iter().zip(points) {
                for (column, value) in [
                    ("epoch", &point["epoch"]),
                    ("step", &point["step"]),
                    ("train_loss", &point["train_loss"]),
                    ("validation_loss", &point["validation"]["loss"]),
                    ("validation_accuracy", &point["validation"]["accuracy"]),
                ] {
                    let got: f64 = line[column].parse().expect("a number");
                    assert_eq!(got, number(value, name), "{out}, {name}: {column}");
                }
            }
            let last = curve.last().expect("a point");
            assert_eq!(last["step"], arm["steps"].to_string(), "{out}, {name}");
            // The model kept is that of the lowest loss.
            let best = points.iter().find(|p| p["step"] == arm["best_step"]).expect("the best evaluation");
            assert_eq!(number(&best["validation"]["loss"], name), lowest(&arm), "{out}, {name}");
            assert_eq!(arm["capped"], arm["best_step"] == arm["steps"], "{out}, {name}");
            seen += curve.len();
        }
        assert_eq!(seen, curves.len(), "{out}: lines of no arm");
        let vae = csv(&lab, &format!("{out}/vae_curve.csv"));
        assert_eq!(vae.len(), 5);
        for (i, line) in vae.iter().enumerate() {
            assert_eq!(line["epoch"], (i + 1).to_string());
            for part in ["total", "reconstruction", "kl", "divergence"] {
                let loss: f64 = line[part].parse().expect("a number");
                assert!(loss.is_finite(), "{part}: {loss}");
            }
        }
    }
}

/// Takes what depends on the machine and the folder out of a report.
fn without_times(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for name in ["seconds", "vae_seconds", "device", "folder"] {
                object.remove(name);
            }
            object.values_mut().for_each(without_times);
        }
        Value::Array(values) => values.iter_mut().for_each(without_times),
        _ => {}
    }
}

#[test]
fn threads_change_no_byte_of_any_arm() {
    let lab = lab();
    let [one, three] = [("one", 1), ("three", 3)].map(|(out, threads)| {
        let mut report = run_all(&lab, threads, out);
        assert_eq!(report["device"]["threads"], threads);
        without_times(&mut report);
        let mut files = outputs(&lab.at(out));
        // Both hold times.
        files.retain(|path, _| !path.ends_with("run.json") && !path.ends_with("report.html"));
        (report, files)
    });
    // Models, VAEs, recipe, split with its parts, and curves.
    assert_eq!(one.1.len(), 72 + 2 + 1 + 4 + 2);
    assert_same_files("three threads", &three.1, &one.1);
    assert_eq!(three.0, one.0);
}

#[test]
fn arms_with_noise_take_an_allowed_scale_and_are_never_worse_in_validation() {
    let lab = lab();
    for (out, flag, scales) in
        [("default", "", &[0.3, 0.6, 1.0][..]), ("own", "--noise-scales 0.5,0.05", &[0.5, 0.05])]
    {
        let list = all_arms().join(",");
        lab.fine(&format!("{RUN} {MODELS} --fold {FOLD} --threads 1 {flag} --arms {list} --out @{out}"));
        let arms = results(&lab.value(&format!("{out}/run.json")), &all_arms());
        let find = |wanted: &str| arms.iter().find(|arm| name(arm) == wanted).expect("an arm");
        let (mut with, mut without) = (0, 0);
        for arm in &arms {
            let name = name(arm);
            let noise = number(&arm["input_noise"], name);
            if !name.contains("+noise") {
                assert_eq!(noise, 0.0, "{name}");
                continue;
            }
            let silent = name.replace("+noise", "");
            let (own, base) = (lowest(arm), lowest(find(&silent)));
            assert!(own <= base, "{out}, {name}: {own} with noise, {base} without");
            let [noisy, quiet] = [name, silent.as_str()].map(|arm| {
                RewardModel::load(&lab.at(&model_file(out, arm))).unwrap_or_else(|e| panic!("{arm}: {e}")).0
            });
            if noise == 0.0 {
                assert!(noisy == quiet, "{out}, {name}: no noise, but another model");
                assert_eq!(arm["history"], find(&silent)["history"], "{out}, {name}");
                without += 1;
            } else {
                assert!(scales.contains(&noise), "{out}, {name}: {noise}");
                assert!(own < base && noisy != quiet, "{out}, {name}: noise {noise} that changes nothing");
                with += 1;
            }
        }
        println!("{out}: {with} arms with noise, {without} without");
        assert_eq!(with + without, 36);
        assert!(with > 0 && without > 0, "{out}: {with} arms with noise, {without} without");
    }
    // Without a scale above 0 there is nothing to choose.
    lab.fine(&format!("{RUN} {MODELS} --threads 1 --noise-scales 0 --arms plain,plain+noise --out @zero"));
    let [plain, noise] = ["plain", "plain+noise"].map(|arm| {
        RewardModel::load(&lab.at(&model_file("zero", arm))).unwrap_or_else(|e| panic!("{arm}: {e}")).0
    });
    assert!(plain == noise, "noise of scale 0");
    for (more, word) in [
        ("--arms plain+noise --noise-scales 0.3,-1", "--noise-scales"),
        ("--arms plain+noise --noise-scales NaN", "--noise-scales"),
        ("--arms plain+noise --noise-scales inf", "--noise-scales"),
        ("--arms plain+noise --validation-pairs 0", "plain+noise"),
        ("--arms plain,none,plain", "--arms"),
        ("--arms plain+noise,plain+noise", "--arms"),
        ("--arms plain+noise+noise", "--arms"),
        ("--arms lenses", "--arms"),
        ("--arms plain,lens", "--arms"),
        ("--arms plain+", "--arms"),
    ] {
        let run = match more.contains("--validation-pairs") {
            true => RUN.replace(" --validation-pairs 30", ""),
            false => RUN.into(),
        };
        let said = lab.run(&format!("{run} {MODELS} --threads 1 {more} --out @refused"));
        assert_eq!(said.code, Some(2), "{more}: {said:?}");
        assert!(said.err.contains(word) && said.err.lines().count() == 1, "{more}: {said:?}");
        assert!(!lab.at("refused").exists(), "{more}");
    }
}

/// An ensemble needs a hidden layer of a multiple of 32, and arms by margin make up to 1.5 times the pairs of a seed.
#[test]
fn sizes_that_only_one_arm_cannot_have_are_refused_before_anything_is_written() {
    let lab = lab();
    let models = MODELS.replace("--reward-hidden 32 ", "");
    for (more, word) in [
        ("--reward-hidden 48 --ensemble 2 --arms none", "--reward-hidden"),
        ("--reward-hidden 32 --fold 60000 --arms margin", "--fold"),
    ] {
        for command in
            [RUN.to_string(), format!("{} --grid sigma2=1 --splits 1", RUN.replace("run", "sweep"))]
        {
            let said = lab.run(&format!("{command} {models} --threads 1 {more} --out @refused"));
            assert_eq!(said.code, Some(2), "{command} {more}: {said:?}");
            assert!(said.err.contains(word) && said.err.lines().count() == 1, "{command} {more}: {said:?}");
            assert!(!lab.at("refused").exists(), "{command} {more}: something was written");
        }
    }
}

/// The prompt of a row.
fn prompt(row: usize) -> i64 {
    (row % 37) as i64 - 5
}

/// Pairs of which up to four are of one prompt.
fn grouped() -> Lab {
    let lab = Lab::new();
    let chosen: Vec<f32> = data(3, ROWS, DIM).iter().map(|v| v + 0.3).collect();
    let groups = (0..ROWS).flat_map(|row| prompt(row).to_le_bytes()).collect();
    lab.tensors(
        "pairs.safetensors",
        &[
            ("chosen", "F32", &[ROWS, DIM], f32_bytes(&chosen)),
            ("rejected", "F32", &[ROWS, DIM], f32_bytes(&data(4, ROWS, DIM))),
            ("group", "I64", &[ROWS], groups),
        ],
    );
    lab
}

const PARTS: [&str; 3] = ["seeds", "validation", "test"];

#[test]
fn split_takes_the_rows_that_run_takes_and_keeps_prompts_whole() {
    let lab = grouped();
    let whole = lab.bytes("pairs.safetensors");
    let whole = SafeTensors::deserialize(&whole).expect("safetensors");
    let mut splits = BTreeSet::new();
    for seed in [0, 5] {
        let (split, run) = (format!("split-{seed}"), format!("run-{seed}"));
        let line =
            format!("split @pairs.safetensors --seeds 40 --validation-pairs 30 --seed {seed} --out @{split}");
        let said = lab.fine(&format!("{line} --json")).json();
        lab.fine(&format!("{RUN} {MODELS} --threads 1 --arms none,plain --seed {seed} --out @{run}"));
        for file in ["split.json", "seeds.safetensors", "validation.safetensors", "test.safetensors"] {
            let [a, b] = [&split, &run].map(|folder| lab.bytes(&format!("{folder}/{file}")));
            assert!(a == b && !a.is_empty(), "seed {seed}: {file} differs");
        }
        let record = lab.value(&format!("{split}/split.json"));
        assert_eq!(record["seed"], seed);
        assert_eq!(record["rows"], ROWS);
        let (mut rows_seen, mut prompts_seen) = (BTreeSet::new(), BTreeSet::new());
        for (part, least) in PARTS.into_iter().zip([40, 30, 1]) {
            let rows: Vec<usize> =
                serde_json::from_value(record[part].clone()).unwrap_or_else(|e| panic!("{part}: {e}"));
            assert!(rows.len() >= least && rows.len() < least + 50, "seed {seed}: {} {part}", rows.len());
            assert_eq!(said[part], rows.len(), "{said}");
            assert!(rows.iter().all(|row| rows_seen.insert(*row)), "seed {seed}: a row twice");
            let prompts: BTreeSet<i64> = rows.iter().map(|row| prompt(*row)).collect();
            assert!(prompts.iter().all(|p| prompts_seen.insert(*p)), "seed {seed}: a prompt cut in two");
            // The file holds these rows, in this order, bit for bit.
            let bytes = lab.bytes(&format!("{split}/{part}.safetensors"));
            let file = SafeTensors::deserialize(&bytes).expect("safetensors");
            for (name, width) in [("chosen", 4 * DIM), ("rejected", 4 * DIM), ("group", 8)] {
                let all = whole.tensor(name).expect("a tensor").data();
                let want: Vec<u8> =
                    rows.iter().flat_map(|row| &all[row * width..(row + 1) * width]).copied().collect();
                let found = file.tensor(name).unwrap_or_else(|e| panic!("{part}, {name}: {e}"));
                assert!(found.data() == want, "seed {seed}: {name} of {part}");
            }
        }
        assert_eq!(rows_seen, (0..ROWS).collect::<BTreeSet<_>>(), "seed {seed}: rows are lost");
        splits.insert(record["seeds"].to_string());

        // The parts as files of their own are the same run.
        let files = PARTS.map(|part| format!("@{split}/{part}.safetensors"));
        let [seeds, validation, test] = &files;
        let given = format!("run {seeds} --validation {validation} --test {test}");
        lab.fine(&format!("{given} {MODELS} --threads 1 --arms none,plain --seed {seed} --out @own-{seed}"));
        let [own, cut] = [format!("own-{seed}"), run].map(|folder| {
            let mut report = lab.value(&format!("{folder}/run.json"));
            without_times(&mut report);
            results(&report, &["none", "plain"].map(str::to_string))
        });
        assert_eq!(own, cut, "seed {seed}");
    }
    assert_eq!(splits.len(), 2, "either seed gives the same split");
}

/// A folder holds one split: parts that the new one has not do not stay behind.
#[test]
fn a_split_that_is_replaced_leaves_no_part_of_the_old_one() {
    let lab = grouped();
    let line = |validation: usize, out: &str| {
        format!("split @pairs.safetensors --seeds 40 --validation-pairs {validation} --seed 3 --out @{out}")
    };
    lab.fine(&line(30, "s"));
    let first = outputs(&lab.at("s"));
    let said = lab.run(&line(0, "s"));
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("--overwrite") && said.err.lines().count() == 1, "{said:?}");
    assert_same_files("refused", &outputs(&lab.at("s")), &first);
    lab.fine(&format!("{} --overwrite", line(0, "s")));
    lab.fine(&line(0, "fresh"));
    assert_same_files("replaced", &outputs(&lab.at("s")), &outputs(&lab.at("fresh")));
}

/// The settings in run.json.
fn settings(lab: &Lab, more: &str, out: &str) -> Value {
    let fixed = "--hidden 16 --latent 16 --vae-epochs 1 --reward-hidden 32 --epochs 1 --threads 1";
    lab.fine(&format!("{RUN} {fixed} {more} --out @{out}"));
    lab.value(&format!("{out}/run.json"))["settings"].clone()
}

#[test]
fn the_preset_of_the_paper_changes_nothing() {
    let lab = lab();
    assert_eq!(settings(&lab, "--preset paper", "paper"), settings(&lab, "", "plain"));
    let [a, b] = ["paper", "plain"].map(|out| {
        let mut files = outputs(&lab.at(out));
        // Both hold times.
        files.retain(|path, _| !path.ends_with("run.json") && !path.ends_with("report.html"));
        files
    });
    assert_same_files("--preset paper", &a, &b);
}

#[test]
fn flags_win_over_a_preset_wherever_they_stand() {
    let lab = lab();
    let of = |value: &Value| {
        let at = |path: &str| value.pointer(path).unwrap_or_else(|| panic!("{path} in {value}")).clone();
        ["/synthesis/fold", "/synthesis/mode", "/reward/ensemble", "/vae/objective/adam/lr", "/arms"].map(at)
    };
    let json = |text: &str| -> Value { serde_json::from_str(text).expect("JSON") };
    let tuned = settings(&lab, "--preset tuned", "tuned");
    let want =
        ["8", "\"residual\"", "8", "0.001", r#"["none","matched","residual","matched+noise"]"#].map(json);
    assert_eq!(of(&tuned), want);
    // One flag beside the preset changes that one setting.
    for (i, (out, more, index, value)) in [
        ("fold", "--fold 3", 0, "3"),
        ("ensemble", "--ensemble 2", 2, "2"),
        ("lr", "--vae-lr 3e-3", 3, "0.003"),
        ("arms", "--arms none,direct", 4, r#"["none","direct"]"#),
    ]
    .into_iter()
    .enumerate()
    {
        // Behind the preset, and before it.
        let line =
            if i % 2 == 0 { format!("--preset tuned {more}") } else { format!("{more} --preset=tuned") };
        let mut want = want.clone();
        want[index] = json(value);
        assert_eq!(of(&settings(&lab, &line, out)), want, "{line}");
    }
    let plain = settings(&lab, "--mode plain --preset tuned", "mode");
    assert_eq!(plain["synthesis"]["mode"], "plain");
    // With every flag of it given, nothing of a preset is left.
    let flags = "--fold 4 --mode plain --ensemble 1 --vae-lr 1e-4 --lr 1e-4 --arms none,matched,plain";
    assert_eq!(settings(&lab, &format!("--preset tuned {flags}"), "all"), settings(&lab, "", "default"));
    let said = lab.run(&format!("{RUN} --preset other --out @other"));
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("--preset") && said.err.contains("tuned"), "{said:?}");
    assert!(said.err.lines().count() == 1 && !lab.at("other").exists(), "{said:?}");
}

/// Warnings, the line of the VAE and the last line each stand on a line of their own.
#[test]
fn every_warning_of_a_run_is_a_line_of_its_own() {
    let lab = lab();
    let said = lab.fine(
        &format!("{RUN} {MODELS} --threads 1 --arms none,plain --epochs 1 --out @r")
            .replace("--epochs 6 ", ""),
    );
    let warnings: Vec<&str> =
        said.out.lines().filter(|line| line.contains("warning: the best evaluation")).collect();
    assert!(!warnings.is_empty(), "one epoch is too few: {}", said.out);
    for line in &warnings {
        assert!(line.starts_with("warning: ") && !line.contains("run.json"), "{line}");
    }
    assert!(said.out.lines().last().is_some_and(|line| line.starts_with("VAE ")), "{}", said.out);
}
