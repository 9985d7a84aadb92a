//! Safe wrappers for the kernel interfaces that no good crate covers.
//!
//! - [`proc`]: typed parsers of `/proc/PID/*`, reached through a [`proc::Task`] that holds the
//!   directory open, so that a reused pid is never mistaken for the process it once named.
//! - [`pagemap`]: which pages of an address space exist, and which were written.
//! - [`sys`]: system calls that rustix lacks. They answer with [`rustix::io::Errno`]; the caller knows the
//!   object and gives the error its words.
//! - [`uffd`]: userfaultfd, to learn who writes to memory and to fill it on demand.
//! - [`uffd_journal`]: reading its events so that none is lost with the reader.
//! - [`heap`]: how this program keeps its own memory.
//! - [`janitor`]: a process that clears up should this one be killed.
//! - [`temporary_name`]: names of files that are there for a moment, and never longer, though this one be killed.
//! - [`guard`]: processes that put connections right should this one be killed.
//! - [`warden`]: a process that ends others should this one be killed.
//! - [`features`]: what this kernel can do, each thing found out by doing it.
//!
//! This crate decides nothing: it reports what the kernel says and does what it is told.
#![allow(unsafe_code)]

mod errand;
pub mod features;
pub mod guard;
pub mod heap;
pub mod janitor;
pub mod keeper;
pub mod pagemap;
pub mod proc;
pub mod sys;
pub mod temporary_name;
pub mod uffd;
pub mod uffd_journal;
pub mod warden;

pub use rustix::io::Errno;
pub use rustix::process::Pid;
