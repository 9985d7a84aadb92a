//! Containers of real runtimes, with `cryonaut` in the place of criu.

use std::env;
use std::path::PathBuf;

use cryonaut_tests::containers;

fn main() -> std::process::ExitCode {
    let built = env!("CARGO_BIN_EXE_cryonaut").into();
    containers::suite(&env::var_os("CRYONAUT_BIN").map_or(built, PathBuf::from))
}
