//! Compiles what of libtorch is for C++ alone, gives the binary a run path to libtorch, and tells it which libtorch it was
//! built with.

use std::{env, fs, path::PathBuf};

/// Over functions of libtorch that have no other interface.
const BRIDGE: &str = "src/libtorch.cpp";

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={BRIDGE}");
    if env::var_os("CARGO_FEATURE_TORCH").is_none() {
        println!("cargo:rustc-env=BUILT_WITH_LIBTORCH=none");
        return;
    }
    // `.cargo/config.toml` sets LIBTORCH, or the user does; torch-sys has looked at the same place else.
    let libtorch = env::var_os("LIBTORCH").map_or_else(|| "/usr".into(), PathBuf::from);
    let include =
        env::var_os("LIBTORCH_INCLUDE").map_or_else(|| libtorch.clone(), PathBuf::from).join("include");
    // As torch-sys compiles its own; headers of others are included as the system's, whose warnings are theirs.
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .flag(format!("-isystem{}", include.display()))
        .file(BRIDGE)
        .compile("sidelens_libtorch");
    let lib = libtorch.join("lib");
    // First a `lib` folder shipped beside the binary, so that an installed copy starts without LD_LIBRARY_PATH, and never by
    // what lies on its machine where it was built; then the checkout (or the user's libtorch).
    for path in ["$ORIGIN/lib".into(), "$ORIGIN/../lib".into(), lib.display().to_string()] {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{path}");
    }
    let version = fs::read_to_string(libtorch.join("build-version")).unwrap_or_default();
    let version = version.trim();
    println!("cargo:rustc-env=BUILT_WITH_LIBTORCH={}", if version.is_empty() { "unknown" } else { version });
}
