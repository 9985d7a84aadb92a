//! A frozen process with its threads, and how the first of them becomes a hand.

use super::pid_of;
use crate::attributes::extras::Restart;
use crate::attributes::{restart, rseq};
use crate::namespaces::inner;
use crate::sharing::Namespaces;
use crate::{Error, Object, Result};
use cryonaut_image::records::TaskKobjIdsEntry;
use cryonaut_kernel::Errno;
use cryonaut_kernel::proc::status::Status;
use cryonaut_kernel::proc::{Task, maps::Vma, stat::Stat};
use cryonaut_kernel::sys::glance::{Descriptor, Objects};
use cryonaut_kernel::sys::ptrace::Rseq;
use cryonaut_puppet::stops::Stopped;
use cryonaut_puppet::{Context, DoorMaps, Entering, Ground, Hand, find_doorway, scratch, trace};
use rustix::process::PidfdFlags;
use std::ops::Range;
use std::os::fd::OwnedFd;

/// A frozen thread.
#[derive(Debug)]
pub struct Thread {
    /// Its id.
    pub tid: i32,
    /// How it was found.
    pub stopped: Stopped,
    /// Its registers, signal mask and extended state.
    pub context: Context,
    /// The number of its set of cgroups, once that has been found out.
    pub cg_set: Option<u32>,
    /// Its rseq area, if it has one.
    pub rseq: Option<Rseq>,
    /// The call that it slept in, should only a restart block continue it.
    pub asleep: Option<Restart>,
}

/// The first thread of a process, its leader, that has ended before others.
#[derive(Debug)]
pub struct Ended {
    /// Its own `stat`.
    pub stat: Stat,
    /// Its own `status`.
    pub status: Status,
}

impl Ended {
    /// Reads it; `task` is the directory of the process.
    pub(super) fn read(task: &Task, pid: i32) -> Result<Ended> {
        let thread = task.thread(pid_of(pid)?);
        Ok(Ended { stat: thread.stat()?, status: thread.status()? })
    }
}

/// A frozen process, or a zombie, which needs no freezing.
#[derive(Debug)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent, as seen when it was frozen.
    pub ppid: i32,
    /// Its directory in /proc: that of its [speaker](Process::speaker).
    pub task: Task,
    /// `stat` there after the freeze.
    pub stat: Stat,
    /// `status` there after the freeze.
    pub status: Status,
    /// Its threads, the leader first if it lives. Empty for a zombie.
    pub threads: Vec<Thread>,
    /// What there is of a leader that has ended while other threads go on.
    pub ended: Option<Ended>,
    /// Its mappings. Empty for a zombie.
    pub maps: Vec<Vma>,
    /// Its kernel objects, if they are known of all that live.
    pub objects: Option<Objects>,
    /// Its descriptors, ascending, if they are known at a glance.
    pub descriptors: Option<Vec<Descriptor>>,
    /// Its namespaces. None for a zombie.
    pub namespaces: Namespaces,
    /// What it shares with others, once that has been found out. None for a zombie.
    pub ids: Option<TaskKobjIdsEntry>,
    /// The hand, once entered.
    pub hand: Option<Hand>,
}

impl Process {
    /// Whether it has ended and waits for its parent to ask.
    #[must_use]
    pub fn is_zombie(&self) -> bool {
        self.threads.is_empty()
    }

    /// The thread by whose id the kernel is asked about the process: its leader, or once that has ended, another. For
    /// one that has ended has no memory, no descriptors and no directories any more.
    #[must_use]
    pub fn speaker(&self) -> i32 {
        self.threads.first().map_or(self.pid, |thread| thread.tid)
    }

    /// How deep the pid namespace is of which it is the init, below that of the tree; `None` if it is no init.
    #[must_use]
    pub fn depth_as_init(&self) -> Option<usize> {
        let deeper = self.status.ns_tgid.get(1..)?;
        (deeper.last() == Some(&inner::INIT)).then_some(deeper.len())
    }

    /// The number of its address space: the same for all who share it. 0 for a zombie.
    #[must_use]
    pub fn space(&self) -> u32 {
        self.ids.as_ref().map_or(0, |ids| ids.vm_id)
    }

    /// The signal by which job control had stopped it, if any.
    #[must_use]
    pub fn job_stop(&self) -> Option<i32> {
        self.threads.iter().find_map(|t| match t.stopped {
            Stopped::ByJobControl(signal) => Some(signal),
            Stopped::Interrupted => None,
        })
    }

    /// Begins to make its first living thread a hand.
    pub(super) fn enter(&self, doors: &mut DoorMaps, space: &mut Space) -> Result<Entering> {
        let thread = &self.threads[0];
        let context = thread.context.clone();
        let ground = Ground {
            tid: thread.tid,
            maps: &self.maps,
            sp: context.regs.rsp,
            others: &space.pointers,
            taken: &space.frames,
        };
        let xstate = context.xstate.len();
        let door = find_doorway(doors, self.pid, &ground, xstate)?;
        let base = free_range(&self.maps, &space.scratches, scratch::LEN)
            .ok_or_else(|| Error::unsupported(Object::Process(self.pid), "its address space is full", ""))?;
        space.frames.push(door.frames(xstate));
        space.scratches.push(base..base + scratch::LEN);
        Ok(Hand::enter(self.pid, thread.tid, context, door, base, self.status.sig_caught)?)
    }

    /// Its pidfd, if it has much memory to free.
    pub(super) fn if_large(&self) -> Option<OwnedFd> {
        let large = self.status.vm_rss_kib >= MUCH_MEMORY;
        large.then(|| rustix::process::pidfd_open(pid_of(self.pid).ok()?, PidfdFlags::empty()).ok())?
    }

    /// The hand; an error if the process is a zombie.
    pub fn hand(&mut self) -> Result<&mut Hand> {
        let pid = self.pid;
        self.hand.as_mut().ok_or_else(|| Error::kernel(Object::Process(pid), "enter it", Errno::SRCH))
    }
}

impl Thread {
    /// Reads what must be read before the thread does anything for us.
    pub(super) fn read(tid: i32, stopped: Stopped, asleep: Option<Restart>) -> Result<Thread> {
        let mut context = Context::read(tid)?;
        if cryonaut_puppet::arch::undo_interruption(&mut context.regs) {
            // At once: it must not see this interruption should we die.
            trace::set_registers(tid, &context.regs)?;
        }
        let asleep = asleep.or_else(|| restart::just_begun(tid, &context.regs));
        let rseq = rseq::leave_section(tid, &mut context)?;
        Ok(Thread { tid, stopped, context, cg_set: None, rseq, asleep })
    }
}

/// KiB of memory that a killed process is helped to free, while we wait for its end.
const MUCH_MEMORY: u64 = 64 << 10;

/// What is known of an address space while its processes are entered.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// The stack pointers of all threads in it.
    pub(super) pointers: Vec<u64>,
    /// Where hands have their frames.
    frames: Vec<Range<u64>>,
    /// Where they have their scratch mappings.
    scratches: Vec<Range<u64>>,
}

/// An address where `len` bytes are free in `maps` and beside `taken`, low
/// enough to be clear of stacks and libraries.
fn free_range(maps: &[Vma], taken: &[Range<u64>], len: u64) -> Option<u64> {
    const LOWEST: u64 = 0x1_0000;
    const HIGHEST: u64 = 0x7fff_0000_0000;
    let mut ends: Vec<(u64, u64)> = maps.iter().map(|v| (v.start, v.end)).filter(|v| v.0 < HIGHEST).collect();
    ends.extend(taken.iter().map(|t| (t.start, t.end)));
    ends.sort_unstable();
    // Leave a megabyte around, so that a stack or a heap beside it can grow.
    const CLEAR: u64 = 1 << 20;
    let mut low = LOWEST.max(1 << 28);
    for (start, end) in ends {
        if start >= low + len + CLEAR {
            return Some(low);
        }
        low = low.max((end + CLEAR).next_multiple_of(4096));
    }
    (low + len < HIGHEST).then_some(low)
}
