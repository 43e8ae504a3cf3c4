//! The settings of the whole method, for commands that run all of it, and presets: names for lists of flags.

use std::ffi::OsString;

use clap::builder::PossibleValuesParser;
use clap::{Args, Command, CommandFactory, FromArgMatches};

use super::Cli;
use super::args::{RewardArgs, SynthArgs, VaeArgs};
use crate::backend::DecodeMode;
use crate::error::{Error, Result};
use crate::eval::{Additions, Arm, Augmentation};
use crate::synth::SynthesisOptions;
use crate::train::{RewardTraining, VaeTraining};

/// Presets: the flags that each stands for. A flag that is given beside a preset wins; those that a command does not have
/// are left out.
const PRESETS: [(&str, &[(&str, &str)]); 2] = [
    // What the paper states; every one is a default.
    (
        "paper",
        &[
            ("hidden", "64"),
            ("latent", "16"),
            ("vae-epochs", "100"),
            ("vae-lr", "1e-4"),
            ("gamma", "0.1"),
            ("sigma2", "0.01"),
            ("mode", "plain"),
            ("head", "mlp"),
            ("reward-hidden", "256"),
            ("ensemble", "1"),
            ("epochs", "20"),
            ("lr", "1e-4"),
            ("patience", "5"),
        ],
    ),
    // What docs/study.md supports.
    (
        "tuned",
        &[
            ("vae-lr", "1e-3"),
            ("mode", "residual"),
            ("fold", "8"),
            ("ensemble", "8"),
            ("reward-hidden", "64"),
            ("lr", "2e-4"),
            ("arms", "none,matched,residual,matched+noise"),
        ],
    ),
];

/// Those of [`Additions::default`], as they are given.
const NOISE_SCALES: &str = "0.3,0.6,1";

/// A preset, where a command has one.
#[derive(Clone, Debug, Args)]
pub struct PresetArgs {
    /// Settings by one name: paper (what the paper states) or tuned (what docs/study.md supports); flags beside it win
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(PRESETS.map(|p| p.0)))]
    pub preset: Option<String>,
}

/// The settings of the whole method.
#[derive(Clone, Debug, Args)]
pub struct MethodArgs {
    #[command(flatten)]
    pub preset: PresetArgs,
    /// What reward models are trained on, with commas between: none, matched, direct, gaussian, mixup,
    /// plain, residual, no-divergence or margin, each with any of +noise (--noise-scales), +across (half
    /// of the rejected responses from other prompts) and +ensemble (8 heads of 64 units) behind it
    /// [default: none,matched and --mode]
    #[arg(long, value_name = "ARMS", value_delimiter = ',', verbatim_doc_comment)]
    pub arms: Vec<Arm>,
    /// Standard deviations of the input noise that arms with +noise choose from, on the validation pairs
    #[arg(long, value_name = "X", value_delimiter = ',', default_value = NOISE_SCALES)]
    pub noise_scales: Vec<f64>,
    #[command(flatten)]
    vae: VaeArgs,
    #[command(flatten)]
    synthesis: SynthArgs,
    #[command(flatten)]
    reward: RewardArgs,
}

/// The settings of a run, for one seed.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Settings {
    pub vae: VaeTraining,
    pub synthesis: SynthesisOptions,
    pub reward: RewardTraining,
    pub additions: Additions,
    pub arms: Vec<Arm>,
}

impl MethodArgs {
    /// The settings with the run's seed, each checked by itself.
    pub fn settings(&self, seed: u64) -> Result<Settings> {
        let wrong = self.noise_scales.iter().find(|scale| !(scale.is_finite() && **scale >= 0.0));
        if let Some(wrong) = wrong {
            return Err(Error::argument("--noise-scales", "finite numbers, 0 or more", wrong));
        }
        let lens = match self.synthesis.mode.0 {
            DecodeMode::Plain => Augmentation::Plain,
            DecodeMode::Residual => Augmentation::Residual,
        };
        let mut arms = self.arms.clone();
        if arms.is_empty() {
            arms = [Augmentation::None, Augmentation::Matched, lens].map(Arm::from).to_vec();
        }
        for (i, arm) in arms.iter().enumerate() {
            if arms[..i].contains(arm) {
                return Err(Error::argument("--arms", "each arm once", arm));
            }
        }
        Ok(Settings {
            vae: self.vae.training(seed)?,
            synthesis: self.synthesis.options(seed),
            reward: self.reward.training(seed)?,
            additions: Additions { noise: self.noise_scales.clone(), ..Additions::default() },
            arms,
        })
    }
}

/// Parses a command line whose `--preset`, if there is one, stands for its flags. `more` are flags that replace the user's.
///
/// # Errors
/// A line that no command understands.
pub fn parse(arguments: &[OsString], more: &[(String, String)]) -> std::result::Result<Cli, clap::Error> {
    let mut line = arguments.to_vec();
    for (flag, value) in more {
        remove(&mut line, flag);
        line.push(format!("--{flag}={value}").into());
    }
    let root = Cli::command();
    let matches = root.clone().try_get_matches_from(&line)?;
    if let Some((name, below)) = matches.subcommand() {
        let preset = below.try_get_one::<String>("preset").ok().flatten();
        if let Some((_, flags)) = PRESETS.iter().find(|(name, _)| preset.is_some_and(|p| p == name)) {
            let own = flags.iter().filter(|(flag, _)| knows(&root, name, flag) && !is_given(&line, flag));
            let own: Vec<_> = own.map(|(flag, value)| OsString::from(format!("--{flag}={value}"))).collect();
            line.extend(own);
            return Cli::from_arg_matches(&root.try_get_matches_from(line)?);
        }
    }
    Cli::from_arg_matches(&matches)
}

/// Whether an argument sets a flag: `--flag` with its value behind it (Some(true)) or within (Some(false)).
fn sets(argument: &OsString, flag: &str) -> Option<bool> {
    let rest = argument.to_str()?.strip_prefix("--")?.strip_prefix(flag)?;
    match rest.chars().next() {
        None => Some(true),
        Some('=') => Some(false),
        Some(_) => None,
    }
}

fn is_given(line: &[OsString], flag: &str) -> bool {
    line.iter().any(|argument| sets(argument, flag).is_some())
}

/// Takes a flag of one value out of a line.
fn remove(line: &mut Vec<OsString>, flag: &str) {
    while let Some(at) = line.iter().position(|argument| sets(argument, flag).is_some()) {
        let count = if sets(&line[at], flag) == Some(true) { 2 } else { 1 };
        line.drain(at..(at + count).min(line.len()));
    }
}

/// The flags that settings of the method are made of.
pub fn flags() -> Vec<String> {
    let command = MethodArgs::augment_args(Command::new("method"));
    command.get_arguments().filter_map(|argument| argument.get_long().map(str::to_string)).collect()
}

/// Whether a subcommand has a flag.
pub fn knows(root: &Command, subcommand: &str, flag: &str) -> bool {
    let command = root.find_subcommand(subcommand);
    command.is_some_and(|command| command.get_arguments().any(|a| a.get_long() == Some(flag)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;

    fn settings(line: &str, more: &[(&str, &str)]) -> Settings {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let more: Vec<_> = more.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        let cli = parse(&arguments, &more).unwrap_or_else(|e| panic!("{line}: {e}"));
        match cli.command {
            Command::Run(run) => run.method.settings(0).unwrap(),
            _ => panic!("{line} runs"),
        }
    }

    #[test]
    fn the_paper_is_the_default() {
        let line = "lensmith run p --seeds 9 --out o";
        assert_eq!(settings(line, &[]).additions, Additions::default());
        assert_eq!(
            format!("{:?}", settings(line, &[])),
            format!("{:?}", settings(&format!("{line} --preset paper"), &[]))
        );
    }

    #[test]
    fn flags_win_over_a_preset_and_those_of_a_point_over_both() {
        let line = "lensmith --seed 3 run p --seeds 9 --fold 5 --preset tuned --out o";
        let tuned = settings(line, &[]);
        assert_eq!(tuned.synthesis.pairs_per_seed, Some(5));
        assert_eq!((tuned.reward.ensemble, tuned.synthesis.mode), (8, DecodeMode::Residual));
        let more = settings(line, &[("fold", "7"), ("ensemble", "2")]);
        assert_eq!((more.synthesis.pairs_per_seed, more.reward.ensemble), (Some(7), 2));
        let paper = settings(line, &[("preset", "paper")]);
        assert_eq!((paper.reward.ensemble, paper.synthesis.pairs_per_seed), (1, Some(5)));
        let line = "lensmith run p --seeds 9 --arms none,plain --out o";
        let arms = settings(line, &[("arms", "matched")]).arms;
        assert_eq!(arms, [Arm::from(Augmentation::Matched)]);
    }

    #[test]
    fn without_a_preset_flags_are_given_once() {
        let line: Vec<OsString> =
            "lensmith run p --seeds 9 --seeds 8 --out o".split(' ').map(OsString::from).collect();
        assert!(parse(&line, &[]).is_err());
    }

    #[test]
    fn every_flag_of_a_preset_is_one_of_run() {
        let mut root = Cli::command();
        root.build();
        for (preset, flags) in PRESETS {
            for (flag, _) in flags {
                assert!(knows(&root, "run", flag), "{preset}: --{flag}");
            }
        }
    }
}
