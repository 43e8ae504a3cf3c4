//! What kernels cost at the paper's sizes, counted in the machine for PTX, is what kernels/costs.txt says: a warp
//! instruction, a bank conflict or a sector more fails, whatever the results are.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::device::{program, ptx, tested_gpu};
use lensmith::backend::cuda::kernels;
use tempfile::TempDir;

#[test]
fn kernels_cost_what_is_committed() {
    let required = std::env::var("LENSMITH_REQUIRE_CUDA").is_ok_and(|value| value == "1");
    if kernels::TOOLKIT.is_none() || tested_gpu().is_some() {
        assert!(!required || tested_gpu().is_some(), "built without nvcc, and LENSMITH_REQUIRE_CUDA=1");
        eprintln!("SKIPPED kernels_cost_what_is_committed: needs nvcc and the machine for PTX");
        return;
    }
    let folder = TempDir::new().expect("a folder");
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/model_kernels"));
    command.arg("--check").arg("--program").arg(program("gpu")).arg("--ptx").arg(ptx((9, 0)));
    for image in kernels::IMAGES {
        let path = folder.path().join(image.source);
        fs::write(&path, image.bytes).expect("a file");
        command.arg(path);
    }
    let output = command.output().expect("tools/model_kernels runs");
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    match output.status.code() {
        Some(0) => {}
        // Another nvcc makes other PTX: its costs are its own.
        Some(3) => eprintln!("SKIPPED kernels_cost_what_is_committed: {said}"),
        Some(2) if said.contains("no cuobjdump") && !required => {
            eprintln!("SKIPPED kernels_cost_what_is_committed: {said}");
        }
        _ => panic!("tools/model_kernels --check: review, then tools/model_kernels --update\n{said}"),
    }
}
