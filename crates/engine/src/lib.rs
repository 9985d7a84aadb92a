//! The engine: freeze, collect, dump; plan, build, restore.
//!
//! A library without a user: no terminal, no environment, no configuration.

mod arch;
mod caller;
mod error;
pub mod files;
pub mod freeze;
mod options;

pub use caller::{Hook, Moment, Progress};
pub use error::{Error, Object, Result};
pub use options::{CheckpointOptions, RestoreOptions};
