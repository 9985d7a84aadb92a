//! The first thread of a process, its leader, that has ended while others go on (by pthread_exit(3) in `main`, for
//! example): it stays a zombie until the last of them ends.
//!
//! All that it still has are its name, its exit code, its scheduling, a claim to a signal at its parent's death, which
//! is honoured, and its credentials: they still say who may send the process a signal, since the kernel looks at those
//! of the thread whose id was named. In an image its record has a state that no other has,
//! [`FIRST_ENDED`](super::task::FIRST_ENDED), and no registers. CRIU, which cannot carry such a process, refuses that.
//!
//! A process begins with its leader, so it is built by it, until there are other threads; then it ends, and another is
//! the hand. That is before any child asks for a signal at its parent's death: the leader is the parent of all of them
//! until then. A child may be such a process itself, so parents come first.

use super::{credentials, extras, task, thread, unanswered};
use crate::freeze::{Ended, Process, pid_of};
use crate::namespaces::user;
use crate::plan::ProcessPlan;
use crate::{Error, Object, Result};
use cryonaut_image::records::{CoreEntry, ThreadCoreEntry};
use cryonaut_kernel::sys::thread_state::{self, ThreadState};
use cryonaut_kernel::sys::{pidfd, sched};
use cryonaut_puppet::{Batch, Hand};
use rustix::io::Errno;
use rustix::thread::CpuSet;

/// The signal in a status as wait(2) reports it.
const SIGNAL: u32 = 0x7f;

/// Finds what cannot be carried of a process whose leader has ended.
pub fn refuse(process: &Process, ended: &Ended) -> Result<()> {
    let signal = ended.stat.exit_code as u32 & SIGNAL;
    if signal != 0 {
        let reason = format!("signal {signal} has ended its first thread alone, as a seccomp filter can");
        return Err(Error::unsupported(Object::Process(process.pid), reason, "nothing could end it like that again"));
    }
    match pidfd::open_thread(pid_of(process.speaker())?) {
        Ok(_) => Ok(()),
        Err(Errno::INVAL) => Err(Error::unsupported(
            Object::Process(process.pid),
            "its first thread has ended, and this kernel gives nobody the descriptors of another thread",
            "this needs Linux 6.9 or later",
        )),
        Err(e) => Err(Error::kernel(Object::Thread(process.speaker()), "open it", e)),
    }
}

/// The record of a leader that has ended, without what belongs to the process.
pub fn record(process: &Process, ended: &Ended) -> Result<(CoreEntry, extras::ThreadExtra)> {
    let pid = process.pid;
    let sched = sched::sched_getattr(pid_of(pid)?).map_err(unanswered(pid, "scheduling"))?;
    let inside = inside(pid);
    let core = ThreadCoreEntry {
        sched_nice: Some(sched.nice),
        sched_policy: Some(thread::policy_record(&sched)),
        sched_prio: (sched.priority != 0).then_some(sched.priority),
        blk_sigset: Some(ended.status.sig_blocked),
        creds: Some(credentials::of_status(&ended.status)),
        pdeath_sig: inside.as_ref().map(|inside| inside.pdeath_signal).filter(|signal| *signal != 0),
        comm: Some(ended.stat.comm.clone()),
        ..ThreadCoreEntry::default()
    };
    let core = CoreEntry { mtype: crate::arch::MARCH as i32, thread_core: Some(core), ..CoreEntry::default() };
    Ok((core, extras::of_task(pid, inside.map_or(0, |inside| inside.timer_slack_ns))?))
}

/// What the kernel's own structures tell of it, and nothing else does.
fn inside(pid: i32) -> Option<ThreadState> {
    let of_all = thread_state::of_threads(pid).inspect_err(|e| {
        let what = "timer slack and signal at its parent's death are lost";
        tracing::warn!("process {pid}: of its first thread, which has ended, {what}: the kernel says {e}");
    });
    of_all.ok()?.remove(&pid)
}

/// Ends the leader of a process that has its other threads, if it is to have ended: one of those is the hand afterwards.
/// `bounding` and `cpus` are the capabilities and processors that it was born with; `born` the groups of whose namespaces.
pub fn end(
    hand: &mut Hand,
    process: &ProcessPlan,
    extra: Option<&extras::ThreadExtra>,
    (bounding, cpus): (u64, &CpuSet),
    born: &user::Born,
) -> Result<()> {
    let Some(core) = &process.ended else { return Ok(()) };
    let (pid, none) = (process.pid(), ThreadCoreEntry::default());
    let own = core.thread_core.as_ref().unwrap_or(&none);
    thread::build_scheduling(pid, own)?;
    extra.map_or(Ok(()), |extra| extras::build(pid, extra, cpus))?;
    let mut b = Batch::new();
    thread::build(&mut b, core, extra);
    if let Some(creds) = &own.creds {
        credentials::build(&mut b, creds, bounding, born.has_groups(process.ids.as_ref(), creds));
    }
    // What it has from us would otherwise be the end of its process, when we end.
    task::build_after_credentials(&mut b, process.mm.as_ref(), own.pdeath_sig);
    hand.run(&mut b)?;
    let status = core.tc.as_ref().map_or(0, |tc| tc.exit_code);
    Ok(hand.hand_over(process.first, (status >> 8) as u8, own.blk_sigset.unwrap_or(0))?)
}

/// Checks that a record of such a leader can be followed.
pub fn check(core: &CoreEntry) -> std::result::Result<(), &'static str> {
    let signal = core.tc.as_ref().map_or(0, |tc| tc.exit_code) & SIGNAL;
    if signal == 0 { Ok(()) } else { Err("a signal is to have ended its first thread alone") }
}
