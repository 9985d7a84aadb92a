//! Every workload holds without a checkpoint, and fails once it has lost its state.

fn main() -> std::process::ExitCode {
    cryonaut_tests::suite::sound()
}
