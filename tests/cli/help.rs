//! What `--help` says, word for word, as tests/cli/help has it.

use snapbox::{Data, assert_data_eq};

use crate::common::cli::{Lab, binary};
use crate::transcript::file;

const COMMANDS: [&str; 18] = [
    "import",
    "split",
    "train-vae",
    "synth",
    "train-reward",
    "score",
    "eval",
    "best-of-n",
    "run",
    "sweep",
    "report",
    "export",
    "inspect",
    "materialize",
    "merge-manifests",
    "verify",
    "demo",
    "bench",
];

#[test]
fn help_of_every_command() {
    let lab = Lab::new();
    for command in COMMANDS {
        let help = lab.fine(&format!("{command} --help")).out;
        for words in ["Example", &format!("lensmith {command} "), "Usage:", "--json"] {
            assert!(help.contains(words), "{command}: no {words:?} in {help}");
        }
        assert!(
            help.lines().all(|line| line.chars().count() <= 100),
            "{command}: a line is too long: {help}"
        );
        assert_data_eq!(help, Data::read_from(&file(&format!("help/{command}.txt")), None));
    }
}

#[test]
fn help_of_the_program() {
    let lab = Lab::new();
    let help = lab.fine("--help").out;
    assert!(help.contains("Example") && help.contains("Exit codes: 0"), "{help}");
    // One line each, and no command that is not tested above.
    let listed = help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    // Lines that go on are indented further.
    let listed = listed.filter_map(|l| l.strip_prefix("  ").filter(|l| !l.starts_with(' ')));
    let listed: Vec<&str> = listed.filter_map(|l| l.split_whitespace().next()).collect();
    assert_eq!(listed, [&COMMANDS[..], &["help"]].concat());
    assert_data_eq!(help, Data::read_from(&file("help/lensmith.txt"), None));
    assert_eq!(lab.fine("--version").out, format!("lensmith {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn nothing_at_all_shows_the_help() {
    let output = binary().output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).expect("text");
    assert_eq!(text, Lab::new().fine("-h").out);
    assert!(text.contains("Usage: lensmith") && text.contains("train-reward"), "{text}");
}
