//! What `Cargo.toml` promises.

use std::{env::consts::ARCH, process::Command};

use serde_json::Value;

#[test]
fn the_oldest_rust_is_one_that_every_crate_takes() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.args(["metadata", "--format-version", "1", "--locked", "--offline"]);
    // Crates for other systems are not here.
    cargo.args(["--filter-platform", &format!("{ARCH}-unknown-linux-gnu")]);
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let ours = version(env!("CARGO_PKG_RUST_VERSION"));
    for package in metadata["packages"].as_array().expect("a list") {
        let theirs = package["rust_version"].as_str().unwrap_or("1.0");
        assert!(version(theirs) <= ours, "{} needs {theirs}", package["name"]);
    }
}

/// The numbers of a version, the patch left out.
fn version(text: &str) -> Vec<u32> {
    text.split('.').take(2).map(|number| number.parse().expect("a number")).collect()
}
