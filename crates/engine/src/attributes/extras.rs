//! What threads have and CRIU's format has no place for: kept in a file of our
//! own beside the image, which other readers ignore.

use crate::freeze::{Thread, pid_of};
use crate::{Error, Object, Result};
use cryonaut_image::{DumpDir, ImageDir};
use cryonaut_kernel::sys::sched;
use cryonaut_puppet::arch;
use rustix::thread::CpuSet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const NAME: &str = "threads";

/// One thread's.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadExtra {
    /// Processors that it may run on.
    pub affinity: Vec<usize>,
    /// `ioprio_get(2)`.
    pub io_priority: u16,
    /// Timer slack in nanoseconds.
    pub timer_slack_ns: u64,
    /// It was in a call that only the kernel's restart block continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// The kernel's result of a call that it was about to start again, which
    /// the record shows as not begun: whether a signal's handler ends the call
    /// depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interruption: Option<i64>,
}

/// A call with a relative time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// The call's number.
    pub number: i64,
    /// What was left of the time, in nanoseconds; `None` for no limit.
    pub remaining_ns: Option<u64>,
}

/// All threads', by tid.
pub type Extras = BTreeMap<i32, ThreadExtra>;

/// Writes those of all threads of a tree.
pub fn write(images: &DumpDir, all: &Extras) -> Result<()> {
    Ok(images.write_json(NAME, all)?)
}

/// Those of an image; none in one of CRIU's.
pub fn load(images: &ImageDir) -> Result<Extras> {
    Ok(images.read_json(NAME)?.unwrap_or_default())
}

/// Those of a held thread with this timer slack.
pub fn record(thread: &Thread, timer_slack_ns: u64) -> Result<ThreadExtra> {
    Ok(ThreadExtra {
        interruption: crate::arch::interruption(&thread.context.regs),
        restart: thread.asleep.filter(|_| arch::has_restart_block(&thread.context.regs)),
        ..of_task(thread.tid, timer_slack_ns)?
    })
}

/// Those of a thread that need not be held, or has ended.
pub fn of_task(tid: i32, timer_slack_ns: u64) -> Result<ThreadExtra> {
    let id = pid_of(tid)?;
    let failed = |e| Error::kernel(Object::Thread(tid), "ask about its scheduling", e);
    let cpus = rustix::thread::sched_getaffinity(Some(id)).map_err(failed)?;
    Ok(ThreadExtra {
        affinity: (0..CpuSet::MAX_CPU).filter(|cpu| cpus.is_set(*cpu)).collect(),
        io_priority: sched::ioprio_get(id).map_err(failed)?,
        timer_slack_ns,
        interruption: None,
        restart: None,
    })
}

/// Gives a held thread what `extra` says and others can set. It was born with
/// our processors, `there`.
pub fn build(tid: i32, extra: &ThreadExtra, there: &CpuSet) -> Result<()> {
    let id = pid_of(tid)?;
    let failed = |what: &'static str| move |e| Error::kernel(Object::Thread(tid), what, e);
    let mut cpus = CpuSet::new();
    for cpu in extra.affinity.iter().filter(|c| **c < CpuSet::MAX_CPU) {
        cpus.set(*cpu);
    }
    // A machine with none of these processors lets it run anywhere.
    if cpus != *there && (0..CpuSet::MAX_CPU).any(|c| cpus.is_set(c) && there.is_set(c)) {
        rustix::thread::sched_setaffinity(Some(id), &cpus).map_err(failed("bind it to its processors"))?;
    }
    if sched::ioprio_get(id) != Ok(extra.io_priority) {
        sched::ioprio_set(id, extra.io_priority).map_err(failed("set its I/O priority"))?;
    }
    Ok(())
}
