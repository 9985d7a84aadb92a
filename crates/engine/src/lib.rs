//! The engine: freeze, collect, dump; plan, build, restore.
//!
//! A library without a user: no terminal, no environment, no configuration.

mod arch;
mod attributes;
mod caller;
mod cgroups;
mod checkpoint;
mod dump;
mod error;
pub mod files;
pub mod freeze;
mod hexadecimal;
mod lazy;
mod lineage;
mod memory;
mod namespaces;
mod network_lock;
mod options;
mod parallel;
mod plan;
mod precopy;
mod questions;
mod report;
mod restore;
mod sharing;
mod tcp_policy;
mod tracking;
mod users;

pub use caller::{Answer, Custody, Event, Hook, Moment, Progress};
pub use cgroups::{CgroupMode, CgroupOptions, CgroupProperties};
pub use checkpoint::{checkpoint, pre_dump};
pub use cryonaut_image::Codec;
pub use error::{Error, Object, Result};
pub use lazy::{LOG as LAZY_LOG, Lazy, PageServer, PageService, SOCKET as LAZY_SOCKET, serve_restore};
pub use options::{Afterwards, CheckpointOptions, LockMethod, Pause, PrecopyMode, PrecopyOptions, RestoreOptions};
pub use report::{CheckpointReport, PrecopyReport, RestoreReport};
pub use restore::restore;
pub use tcp_policy::{TcpPolicies, TcpPolicy, TcpRule};
