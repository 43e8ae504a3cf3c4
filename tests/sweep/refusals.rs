//! What a sweep refuses: wrong axes before anything is written, and damaged cells, of which nothing else is lost.

use std::fs;

use crate::common::cli::{Lab, assert_same_files, outputs};
use crate::support::{MODELS, SMALL, assert_refused, counts, lab, stamps};

#[test]
fn wrong_axes_are_refused_in_one_line_before_anything_is_written() {
    let lab = lab();
    let start = format!("{SMALL} {MODELS} --threads 1 --splits 1 --arms none,plain");
    lab.fine(&format!("{start} --grid fold=2,3 --out @there"));
    let (files, times) = (outputs(&lab.at("there")), stamps(&lab, "there"));
    for (axes, words) in [
        // No flag of that name, no flag that takes a value, no flag.
        ("--grid colour=1,2", &["--grid", "colour=1"][..]),
        ("--grid json=true", &["--grid", "json=true"]),
        ("--grid help=1", &["--grid", "help=1"]),
        ("--grid fold", &["--grid", "found fold"]),
        ("--grid =2", &["--grid", "found =2"]),
        ("--grid --fold=2", &["--grid"]),
        ("--grid fold=", &["--grid", "found fold="]),
        ("--grid fold=2,,3", &["--grid", "fold=2,,3"]),
        // Values that the flag refuses, also behind one that it takes.
        ("--grid fold=x", &["--grid", "fold=x"]),
        ("--grid fold=2,three", &["--grid", "fold=three"]),
        ("--grid mode=plain,odd", &["--grid", "mode=odd"]),
        ("--grid preset=paper,other", &["--grid", "preset=other"]),
        ("--grid arms=matched,lenses", &["--grid", "arms=lenses"]),
        ("--grid gamma=0.1,-1", &["gamma", "-1"]),
        ("--grid sigma2=0.1,NaN", &["sigma2", "NaN"]),
        ("--grid lr=1e-3,0", &["lr", "0"]),
        ("--grid hidden=16,17", &["hidden", "17"]),
        ("--grid fold=2,3000000000", &["fold", "3000000000"]),
        ("--grid sigma2=0.1 --grid fold=2,x", &["--grid", "fold=x"]),
        // The same value twice.
        ("--grid fold=2,3,2", &["--grid", "fold=2,3,2"]),
        // No axis at all, and no ablation of that name.
        ("", &["--grid", "--paper"]),
        ("--paper beta", &["--paper", "beta"]),
        ("--grid fold=2 --workers 0", &["--workers"]),
        ("--grid fold=2 --splits 0", &["--splits"]),
    ] {
        let own = match axes.contains("--splits") {
            true => start.replace("--splits 1 ", ""),
            false => start.clone(),
        };
        for out in ["there", "new"] {
            let said = lab.run(&format!("{own} {axes} --out @{out}"));
            assert_refused(&said, words);
            assert!(!lab.at("new").exists(), "{axes}: a folder was made");
        }
        assert_eq!(stamps(&lab, "there"), times, "{axes}");
        assert_same_files(axes, &outputs(&lab.at("there")), &files);
    }
}

/// A flag has one value at a point.
#[test]
fn a_flag_that_is_an_axis_twice_is_refused() {
    let lab = lab();
    let start = format!("{SMALL} {MODELS} --threads 1 --splits 1 --arms none,plain");
    for axes in ["--grid gamma=0 --grid gamma=1", "--grid fold=2,3 --grid sigma2=1 --grid fold=4"] {
        assert_refused(&lab.run(&format!("{start} {axes} --out @new")), &["--grid"]);
        assert!(!lab.at("new").exists(), "{axes}: a folder was made");
    }
}

/// What the sweep itself is made of is no axis; other flags change what is computed.
#[test]
fn no_axis_is_passed_over_in_silence() {
    let lab = lab();
    let start = format!("{SMALL} {MODELS} --threads 1 --arms none");
    for axis in ["splits=1,2", "workers=1,2", "out=a,b", "grid=fold=2", "paper=gamma,fold"] {
        assert_refused(
            &lab.run(&format!("{start} --grid {axis} --out @new")),
            &[axis.split('=').next().expect("a name")],
        );
        assert!(!lab.at("new").exists(), "{axis}: a folder was made");
    }
    for (out, axis) in [("p", "precision=f32,bf16"), ("c", "chosen=chosen,rejected")] {
        let said = lab.run(&format!("{start} --splits 1 --grid {axis} --out @{out}"));
        match said.code {
            Some(0) => assert_eq!(counts(&stamps(&lab, out)), [2, 0], "{axis}: its points share a cell"),
            _ => assert_refused(&said, &[axis.split('=').next().expect("a name")]),
        }
    }
}

/// A finished sweep, and its command.
fn finished() -> (Lab, String) {
    let lab = lab();
    let line = format!("{SMALL} {MODELS} --threads 1 --splits 2 --grid sigma2=0.01,0.1 --out @s");
    lab.fine(&line);
    assert_eq!(counts(&stamps(&lab, "s")), [8, 2]);
    (lab, line)
}

/// Names of the cells.
fn cells(lab: &Lab) -> Vec<String> {
    let names = stamps(lab, "s").into_keys().filter(|path| path.starts_with("cells"));
    names.map(|path| path.file_name().expect("a name").to_string_lossy().into_owned()).collect()
}

/// Puts bytes in the place of a cell: an error that names the file and the way out, with all else left as it is; and
/// without that file the sweep ends as it did.
fn assert_one_cell_is_lost(lab: &Lab, line: &str, what: &str, name: &str, bytes: &[u8]) {
    let whole = outputs(&lab.at("s"));
    lab.put(&format!("s/cells/{name}"), bytes);
    let (files, times) = (outputs(&lab.at("s")), stamps(lab, "s"));
    let said = lab.run(line);
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{what}: {said:?}");
    assert!(said.err.contains(name) && said.err.lines().count() == 1, "{what}: {said:?}");
    assert!(said.err.contains("delete it"), "{what}: what to do? {said:?}");
    assert_same_files(what, &outputs(&lab.at("s")), &files);
    assert_eq!(stamps(lab, "s"), times, "{what}");

    fs::remove_file(lab.at(&format!("s/cells/{name}"))).expect("the damaged file");
    lab.fine(line);
    assert_same_files(what, &outputs(&lab.at("s")), &whole);
    let mut again = stamps(lab, "s");
    again.retain(|path, _| !path.ends_with(name));
    let mut others = times;
    others.retain(|path, _| !path.ends_with(name));
    assert_eq!(again, others, "{what}: more than the lost cell was computed");
}

#[test]
fn a_damaged_cell_is_named_with_the_way_out_and_nothing_else_is_lost() {
    let (lab, line) = finished();
    let names = cells(&lab);
    for name in [&names[0], &names[5]] {
        let good = lab.bytes(&format!("s/cells/{name}"));
        let text = String::from_utf8(good.clone()).expect("text");
        for (what, bytes) in [
            ("empty", Vec::new()),
            ("cut", good[..good.len() / 2].to_vec()),
            ("without its last bytes", good[..good.len() - 2].to_vec()),
            ("zeros", vec![0; good.len()]),
            ("no text", vec![0xff; 100]),
            ("another object", b"{}\n".to_vec()),
            ("another's", lab.bytes(&format!("s/cells/{}", names[3]))),
            ("of other settings", text.replacen("\"batch\":16", "\"batch\":17", 1).into_bytes()),
        ] {
            assert!(bytes != good, "{what}: not damaged");
            assert_one_cell_is_lost(&lab, &line, what, name, &bytes);
        }
    }
}

/// A digit that changed in the figures still reads as a cell.
#[test]
fn altered_figures_of_a_cell_are_found() {
    let (lab, line) = finished();
    for name in cells(&lab) {
        let text = String::from_utf8(lab.bytes(&format!("s/cells/{name}"))).expect("text");
        let at = text.rfind("\"brier\":0.").expect("a figure") + "\"brier\":0.".len();
        let mut bytes = text.into_bytes();
        bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
        assert_one_cell_is_lost(&lab, &line, "another digit", &name, &bytes);
    }
}
