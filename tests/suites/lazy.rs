//! Lazy restores, and what becomes of those who bring the memory.

use std::env;

use cryonaut_tests::{Engine, lazy};

fn main() -> std::process::ExitCode {
    let built = env!("CARGO_BIN_EXE_cryonaut").into();
    lazy::lazy(&Engine::Cryonaut(env::var_os("CRYONAUT_BIN").map_or(built, Into::into)))
}
