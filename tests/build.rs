//! Builds the workloads (C programs under workloads/) with their Makefile, so that `cargo test` needs no step before it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let sources = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("workloads");
    let output = target_dir().join("workloads");
    println!("cargo::rerun-if-changed={}", sources.display());
    println!("cargo::rustc-env=WORKLOAD_SOURCES={}", sources.display());
    println!("cargo::rustc-env=WORKLOAD_PROGRAMS={}", output.display());
    let built = Command::new("make")
        .args(["--silent", "-j2", "-C"])
        .arg(&sources)
        .arg(format!("OUT={}", output.display()))
        // Cargo's own jobserver is not inherited by commands that it starts through us.
        .env_remove("MAKEFLAGS")
        .output();
    match built {
        Ok(out) if out.status.success() => {}
        Ok(out) => panic!("the workloads do not build:\n{}", String::from_utf8_lossy(&out.stderr)),
        Err(error) => {
            panic!("cannot run make ({error}): install gcc and make to build the workloads")
        }
    }
}

/// Cargo does not tell a build script where the target directory is; OUT_DIR is always
/// TARGET/PROFILE/build/PACKAGE-HASH/out.
fn target_dir() -> PathBuf {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    out.ancestors().nth(4).map(Path::to_path_buf).expect("OUT_DIR lies five levels below the target directory")
}
