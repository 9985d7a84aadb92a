//! The hands: stop a process, run batches of system calls in it, pass files
//! to it, and let it go.
//!
//! The brain (the engine) decides everything; a hand knows nothing about what
//! its calls mean. Only this crate attaches to processes, and only code in
//! `arch` ever runs inside one.
//!
//! Tracing belongs to a thread: whoever stops a process must also be the one
//! that drives its hand.
#![allow(unsafe_code)]

pub mod arch;
mod batch;
mod door;
mod error;
mod farewell;
mod group;
mod hand;
mod heir;
mod lending;
pub mod memory;
pub mod names;
mod numbers;
mod outlet;
mod park;
pub mod passing;
pub mod scratch;
pub mod spawn;
pub mod stops;
pub mod trace;
pub mod userfaultfd;
mod verdict;
mod writer;

pub use batch::{Arg, Batch, Call, Data};
pub use door::{DoorMaps, Ground, find_doorway};
pub use error::{Error, Result};
pub use farewell::farewell_calls;
pub use group::Job;
pub use hand::{Context, Doorway, Entering, Hand};
pub use outlet::{Outlet, Portion};
pub use park::Homes;
pub use verdict::Verdict;
pub use writer::{Piece, Writer};
