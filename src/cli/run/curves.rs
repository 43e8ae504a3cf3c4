//! Learning curves as CSV: a line for each point, so that any plotting tool reads them.

use std::fmt::Write;
use std::path::Path;

use crate::backend::VaeLoss;
use crate::data::write_atomic;
use crate::error::Result;
use crate::eval::ArmResult;

/// Names of the files.
pub const CURVES: [&str; 2] = ["vae_curve.csv", "reward_curves.csv"];

/// Writes the curve of the VAE and those of all arms' reward models into a folder.
pub fn write_curves(folder: &Path, vae: &[VaeLoss], arms: &[ArmResult]) -> Result<()> {
    let mut text = String::from("epoch,total,reconstruction,kl,divergence\n");
    for (epoch, loss) in vae.iter().enumerate() {
        let VaeLoss { total, reconstruction, kl, divergence } = loss;
        let line = format!("{},{total},{reconstruction},{kl},{divergence}", epoch + 1);
        writeln!(text, "{line}").expect("text takes text");
    }
    write_atomic(&folder.join(CURVES[0]), text.as_bytes())?;

    let mut text = String::from("arm,epoch,step,train_loss,validation_loss,validation_accuracy\n");
    for result in arms {
        for point in &result.history {
            let held = point.validation.map_or(",".into(), |v| format!("{},{}", v.loss, v.accuracy));
            writeln!(text, "{},{},{},{},{held}", result.arm, point.epoch, point.step, point.train_loss)
                .expect("text takes text");
        }
    }
    write_atomic(&folder.join(CURVES[1]), text.as_bytes())
}
