//! Random trees, carried by `cryonaut`.

use std::env;

use cryonaut_tests::{Engine, random};

fn main() -> std::process::ExitCode {
    let built = env!("CARGO_BIN_EXE_cryonaut").into();
    random::suite(&Engine::Cryonaut(env::var_os("CRYONAUT_BIN").map_or(built, Into::into)))
}
