//! Containers of the runtimes of a newer Debian, with `cryonaut` in the place of criu.

use std::env;
use std::path::PathBuf;

use cryonaut_tests::containers::newer;

fn main() -> std::process::ExitCode {
    let built = env!("CARGO_BIN_EXE_cryonaut").into();
    newer::suite(&env::var_os("CRYONAUT_BIN").map_or(built, PathBuf::from))
}
