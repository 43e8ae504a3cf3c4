//! Fields of the library's options, and the flags that set them.
//!
//! An error of the library names the field that is out of range, as in `pairs_per_seed`, since it cannot know
//! who set it. The console shows the flag instead. Checks that only the command line makes name their flag
//! directly.

/// Field, flag. Where the options of the VAE and of the reward model have fields of one name, the struct is
/// named too.
const FLAGS: [(&str, &str); 53] = [
    // Devices and files.
    ("device", "--device"),
    ("precision", "--precision"),
    ("threads", "--threads"),
    ("io", "--io"),
    ("dtype", "--dtype"),
    ("out", "--out"),
    ("overwrite", "--overwrite"),
    ("allow_partial", "--allow-partial"),
    ("allow_outside", "--allow-outside"),
    // Training.
    ("vae.hidden", "--hidden"),
    ("vae.latent", "--latent"),
    ("vae.epochs", "--vae-epochs"),
    ("vae.batch", "--vae-batch"),
    ("vae.lr", "--vae-lr"),
    ("vae.beta", "--beta"),
    ("vae.gamma", "--gamma"),
    ("vae.reconstruction", "--reduction"),
    ("reward.hidden", "--reward-hidden"),
    ("reward.ensemble", "--ensemble"),
    ("reward.weight_decay", "--weight-decay"),
    ("reward.input_noise", "--input-noise"),
    ("reward.across_prompts", "--across-prompts"),
    ("reward.validate_every", "--validate-every"),
    ("arms", "--arms"),
    ("reward.updates", "--epochs"),
    ("reward.batch", "--batch"),
    ("reward.lr", "--lr"),
    ("reward.synthetic", "--synthetic-path"),
    // Synthesis.
    ("pairs_per_seed", "--fold"),
    ("per_side", "--per-side"),
    ("sigma2", "--sigma2"),
    ("oversample", "--oversample"),
    ("shard_rows", "--shard-rows"),
    ("part", "--part"),
    ("recompute", "--recompute"),
    // Import and export.
    ("rule", "--annotate"),
    ("pairs_per_prompt", "--pairs-per-prompt"),
    ("format", "--format"),
    ("columns", "--columns"),
    ("compression", "--compression"),
    ("row_group_rows", "--row-group-rows"),
    // Selection.
    ("min_reward", "--min-reward"),
    ("min_margin", "--min-margin"),
    ("max_uncertainty", "--max-uncertainty"),
    ("uncertainty_penalty", "--uncertainty-penalty"),
    ("min_length", "--min-length"),
    ("max_length", "--max-length"),
    ("prompt", "--prompt"),
    // Measurements.
    ("rows", "--rows"),
    ("repeat", "--repeat"),
    ("seeds", "--seeds"),
    ("vae", "--vae"),
    ("plot", "--plot"),
];

/// The flag that sets `field`.
pub fn flag_of(field: &str) -> Option<&'static str> {
    FLAGS.iter().find(|(name, _)| *name == field).map(|(_, flag)| *flag)
}

/// A hint of the library, whose fields stand between backticks, with flags in their place.
pub fn with_flags(hint: &str) -> String {
    let pieces = hint.split('`').enumerate().map(|(i, piece)| match flag_of(piece) {
        Some(flag) if i % 2 == 1 => flag.to_string(),
        _ if i % 2 == 1 => format!("`{piece}`"),
        _ => piece.to_string(),
    });
    pieces.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_field_has_one_flag_and_every_flag_one_field() {
        let fields: BTreeSet<_> = FLAGS.iter().map(|(field, _)| field).collect();
        let flags: BTreeSet<_> = FLAGS.iter().map(|(_, flag)| flag).collect();
        assert_eq!((fields.len(), flags.len()), (FLAGS.len(), FLAGS.len()));
    }

    #[test]
    fn every_flag_belongs_to_a_command() {
        let mut root = Cli::command();
        root.build();
        let known: BTreeSet<String> = root
            .get_subcommands()
            .flat_map(|command| command.get_arguments())
            .filter_map(|argument| argument.get_long().map(|long| format!("--{long}")))
            .collect();
        for (field, flag) in FLAGS {
            assert!(known.contains(flag), "no command has {flag}, the flag of {field}");
        }
        assert_eq!(flag_of("pairs_per_seed"), Some("--fold"));
        assert_eq!(flag_of("nothing"), None);
        assert_eq!(with_flags("a lower `vae.lr` than `mode`"), "a lower --vae-lr than `mode`");
    }
}
