//! The instruction tests of the machine as they run on a GPU, with the stand-in for the driver library in its place:
//! modules of PTX text, arguments of all sizes, copies and launches through the driver's interface.

#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

/// The newest of the programs that cargo built under a name, beside this one.
fn program(name: &str) -> PathBuf {
    let folder = std::env::current_exe().expect("this program").parent().expect("its folder").to_path_buf();
    let entries = std::fs::read_dir(&folder).expect("a folder").map(|e| e.expect("an entry").path());
    let found = entries.filter(|path| {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        file.strip_prefix(name).is_some_and(|rest| rest.starts_with('-') && !rest.contains('.'))
    });
    let changed =
        |path: &PathBuf| path.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    found
        .max_by_key(changed)
        .unwrap_or_else(|| panic!("{name} is not built: cargo test -p ptx -p ptx-driver"))
}

#[test]
fn snippets_run_through_the_driver() {
    let folder = std::env::temp_dir().join(format!("ptx-driver-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let library = std::env::current_exe().expect("this program").with_file_name("libptx_driver.so");
    let link = folder.join("libcuda.so");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(library, link).expect("a link");
    let run = |filters: &[&str]| {
        let mut command = Command::new(program("instructions"));
        command.args(filters).env("LD_LIBRARY_PATH", &folder).env("PTX_TEST_GPU", "0");
        command.env("PTX_DRIVER", "races=0").output().expect("it runs")
    };
    let done = run(&["comparisons_to_registers", "carries_bits_and_logic", "warp::"]);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && said.contains("test result: ok"), "{said}");
    assert!(!said.contains(" 0 passed"), "{said}");
    // Without a driver nothing can pass.
    let mut command = Command::new(program("instructions"));
    command.arg("comparisons_to_registers").env("LD_LIBRARY_PATH", "/nowhere").env("PTX_TEST_GPU", "7");
    assert!(!command.output().expect("it runs").status.success());
    std::fs::remove_dir_all(folder).expect("our own folder");
}
