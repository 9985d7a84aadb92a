//! The harness of the end-to-end tests.
//!
//! A *workload* is a C program under `tests/workloads/AREA/NAME.c` that sets up one kind of process state and can prove
//! that it still holds (`workload.h` has the protocol). [`Workload`] starts one and leads it through a checkpoint and a
//! restore; an [`Engine`] is what does these two: `cryonaut`, or CRIU as the peer. [`suite`] makes one named test per
//! workload, so that a new C file is a new test with nothing else to add.
//!
//! Everything that a test starts carries the test's own directory in its environment, and only such processes are ever
//! killed.

mod catalogue;
mod certificates;
mod command;
pub mod containers;
mod echo;
mod engine;
mod family;
pub mod fingerprint;
mod firewall;
pub mod kills;
pub mod lazy;
mod network;
mod picture;
pub mod programs;
pub mod random;
mod strike;
pub mod suite;
mod vdso;
mod workload;

pub use catalogue::{Declaration, catalogue, declaration};
pub use certificates::tls_options;
pub use command::{CommandFailure, run_command};
pub use echo::Echo;
pub use engine::Engine;
pub use family::Family;
pub use workload::{Failure, Workload};
