//! What a process or thread has besides memory and files. Each module owns
//! one group of attributes, with its two halves side by side.

pub mod clocks;
pub mod cpu_timers;
pub mod credentials;
pub mod extras;
pub mod filter;
pub mod leader;
pub mod limits;
pub mod overruns;
pub mod restart;
pub mod rseq;
pub mod seccomp;
pub mod signals;
pub mod task;
pub mod thread;
pub mod timers;

use crate::{Error, Object};
use rustix::io::Errno;

/// The error of an answer that a process did not give.
fn unanswered(pid: i32, about: &'static str) -> impl Fn(Errno) -> Error {
    move |e| Error::kernel(Object::Process(pid), format!("ask about its {about}"), e)
}
