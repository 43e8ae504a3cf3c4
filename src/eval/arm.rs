//! Names of the ways to train a reward model that an experiment compares.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::backend::DecodeMode;
use crate::error::{Error, Result};

/// Which pairs a reward model is trained on, m per seed but for [`Augmentation::None`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Augmentation {
    /// The seed pairs alone, as many epochs as the others: the paper's baseline.
    None,
    /// The seed pairs alone, as many optimiser steps as an m-fold run.
    Matched,
    /// Seed pairs and noise on the embeddings themselves.
    Direct,
    /// Seed pairs and samples of a Gaussian fitted per side.
    Gaussian,
    /// Seed pairs and mixtures of two of them (Zhang et al. 2018), both sides alike.
    Mixup,
    /// Latent synthesis, plain decoding: LENS, by which name it is read too.
    Plain,
    /// Latent synthesis, residual decoding.
    Residual,
    /// Plain latent synthesis with a VAE that was trained without divergence, gamma = 0.
    NoDivergence,
    /// Plain latent synthesis with three times as many synthetic pairs for the half of the seeds that a model without
    /// augmentation tells apart by the lower margins.
    Margin,
}

impl Augmentation {
    /// All, in the order of tables.
    pub const ALL: [Augmentation; 9] = [
        Augmentation::None,
        Augmentation::Matched,
        Augmentation::Direct,
        Augmentation::Gaussian,
        Augmentation::Mixup,
        Augmentation::Plain,
        Augmentation::Residual,
        Augmentation::NoDivergence,
        Augmentation::Margin,
    ];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Augmentation::None => "none",
            Augmentation::Matched => "matched",
            Augmentation::Direct => "direct",
            Augmentation::Gaussian => "gaussian",
            Augmentation::Mixup => "mixup",
            Augmentation::Plain => "plain",
            Augmentation::Residual => "residual",
            Augmentation::NoDivergence => "no-divergence",
            Augmentation::Margin => "margin",
        }
    }

    /// How its synthetic latents are decoded, if it makes any.
    pub fn latent_mode(self) -> Option<DecodeMode> {
        match self {
            Augmentation::Plain | Augmentation::NoDivergence | Augmentation::Margin => {
                Some(DecodeMode::Plain)
            }
            Augmentation::Residual => Some(DecodeMode::Residual),
            _ => None,
        }
    }
}

/// One way to train a reward model: `augmentation`, then what is added to it, as in `plain+noise`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arm {
    /// The pairs.
    pub augmentation: Augmentation,
    /// Fresh noise on the inputs in every step, of the scale that is best on the validation pairs.
    pub noise: bool,
    /// A share of the rejected responses is taken from other prompts.
    pub across: bool,
    /// An ensemble of heads.
    pub ensemble: bool,
}

impl From<Augmentation> for Arm {
    fn from(augmentation: Augmentation) -> Arm {
        Arm { augmentation, noise: false, across: false, ensemble: false }
    }
}

/// The arm that others are compared with: the seeds alone with as many updates, or without that arm the seeds alone.
pub fn baseline(arms: &[Arm]) -> Option<Arm> {
    [Augmentation::Matched, Augmentation::None].map(Arm::from).into_iter().find(|arm| arms.contains(arm))
}

/// The arm that a comparison is about: the first with latent synthesis, else the last.
pub fn main_arm(arms: &[Arm]) -> Option<Arm> {
    let latent = |arm: &&Arm| arm.augmentation.latent_mode().is_some();
    arms.iter().find(latent).or(arms.last()).copied()
}

impl Arm {
    /// What may follow the augmentation, behind a `+` each.
    pub const ADDITIONS: [&str; 3] = ["noise", "across", "ensemble"];

    fn additions(self) -> [bool; 3] {
        [self.noise, self.across, self.ensemble]
    }

    /// What the arm is, for tables; `pairs_per_seed` is m.
    pub fn title(self, pairs_per_seed: u64) -> String {
        let m = pairs_per_seed;
        let mut title = match self.augmentation {
            Augmentation::None => "no augmentation".to_string(),
            Augmentation::Matched => format!("no augmentation, updates of {m}x"),
            Augmentation::Direct => format!("direct perturbation {m}x"),
            Augmentation::Gaussian => format!("Gaussian sampling {m}x"),
            Augmentation::Mixup => format!("mixup {m}x"),
            Augmentation::Plain => format!("LENS {m}x"),
            Augmentation::Residual => format!("LENS {m}x, residual"),
            Augmentation::NoDivergence => format!("LENS {m}x, no divergence"),
            Augmentation::Margin => format!("LENS {m}x, by margin"),
        };
        let added = ["input noise", "pairs across prompts", "ensemble"];
        for (text, _) in added.iter().zip(self.additions()).filter(|(_, there)| *there) {
            title.push_str(" + ");
            title.push_str(text);
        }
        title
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = self.augmentation.name().to_string();
        for (addition, _) in Arm::ADDITIONS.iter().zip(self.additions()).filter(|(_, there)| *there) {
            name.push('+');
            name.push_str(addition);
        }
        f.pad(&name)
    }
}

impl FromStr for Arm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Arm> {
        let unknown = || {
            let names = Augmentation::ALL.map(Augmentation::name).join(", ");
            let additions = Arm::ADDITIONS.map(|name| format!("+{name}")).join(", ");
            Error::argument("arms", format!("{names}, each with any of {additions} behind it"), text)
        };
        let mut parts = text.split('+');
        let first = parts.next().unwrap_or_default();
        let named = |a: &Augmentation| a.name() == first || (first == "lens" && *a == Augmentation::Plain);
        let augmentation = Augmentation::ALL.into_iter().find(named).ok_or_else(unknown)?;
        let mut arm = Arm::from(augmentation);
        for part in parts {
            let there = match part {
                "noise" => &mut arm.noise,
                "across" => &mut arm.across,
                "ensemble" => &mut arm.ensemble,
                _ => return Err(unknown()),
            };
            if std::mem::replace(there, true) {
                return Err(unknown());
            }
        }
        Ok(arm)
    }
}

impl Serialize for Arm {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Arm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Arm, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for augmentation in Augmentation::ALL {
            for bits in 0..8 {
                let arm =
                    Arm { augmentation, noise: bits & 1 > 0, across: bits & 2 > 0, ensemble: bits & 4 > 0 };
                assert_eq!(arm.to_string().parse::<Arm>().unwrap(), arm);
            }
        }
        assert_eq!("lens+noise".parse::<Arm>().unwrap().to_string(), "plain+noise");
        for wrong in ["", "plain+", "plain+noise+noise", "+noise", "plain +noise"] {
            assert!(wrong.parse::<Arm>().is_err(), "{wrong}");
        }
        assert_eq!("ensemble+plain".parse::<Arm>().ok(), None);
        let arm: Arm = "plain+ensemble+noise".parse().unwrap();
        assert_eq!(
            (arm.to_string().as_str(), arm.title(8).as_str()),
            ("plain+noise+ensemble", "LENS 8x + input noise + ensemble")
        );
    }
}
