//! `cryonaut` killed in the middle of its work.

use std::env;

use cryonaut_tests::{Engine, kills};

fn main() -> std::process::ExitCode {
    let built = env!("CARGO_BIN_EXE_cryonaut").into();
    kills::kills(&Engine::Cryonaut(env::var_os("CRYONAUT_BIN").map_or(built, Into::into)))
}
