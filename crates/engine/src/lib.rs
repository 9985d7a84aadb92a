//! The engine: freeze, collect, dump; plan, build, restore.
//!
//! A library without a user: no terminal, no environment, no configuration.

mod error;
pub mod files;
mod options;

pub use error::{Error, Object, Result};
pub use options::{CheckpointOptions, RestoreOptions};
