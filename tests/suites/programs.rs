//! Real programs, carried by `cryonaut` in the middle of their work.

use std::env;

use cryonaut_tests::{Engine, programs};

fn main() -> std::process::ExitCode {
    let built = env!("CARGO_BIN_EXE_cryonaut").into();
    programs::suite(&Engine::Cryonaut(env::var_os("CRYONAUT_BIN").map_or(built, Into::into)))
}
