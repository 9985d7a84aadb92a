//! The birth of the first process of a restored tree, and of those that share
//! the memory of another.
//!
//! The scratch mapping is made in this process, at the address where every
//! process of the tree will have it, and the child inherits it, with the page
//! of the verdict that [`crate::Verdict::inherited`] has put there. From then on
//! the child is a hand like any other, and everything that it had from us is
//! taken away by its own batches.
//!
//! A process that shares its creator's memory (CLONE_VM) has a scratch mapping of
//! its own there, which the creator makes before: see [`make_room`].

use crate::scratch;
use crate::stops::{self, BUILD};
use crate::{Arg, Batch, Error, Hand, Result, trace};
use cryonaut_kernel::sys::process::{CloneFlags, Spawn, spawn_idle};
use rustix::io::Errno;
use std::time::Duration;

const PAGE: u64 = 4096;

/// Maps the scratch at `base` in this process; `Err(EEXIST)` if something is
/// in the way.
fn map_scratch(base: u64) -> Result<()> {
    let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE changes no existing mapping, and nothing in
    // this process refers to the new one.
    let got = unsafe { libc::mmap(base as *mut _, scratch::VERDICT as usize, prot, flags, -1, 0) };
    if got == libc::MAP_FAILED {
        let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::NOMEM);
        return Err(Error::Own { what: "map working memory for the first process", errno });
    }
    Ok(())
}

fn unmap_scratch(base: u64) {
    // SAFETY: exactly the mapping that `map_scratch` made, used by nobody here.
    unsafe { libc::munmap(base as *mut _, scratch::VERDICT as usize) };
}

/// Creates a process with this pid, held and dying with us, and makes a hand
/// of it. With `sibling`, it becomes a child of our parent. Needs
/// CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN) for the choice of the pid.
pub fn first(pid: i32, sibling: bool, base: u64) -> Result<Hand> {
    map_scratch(base)?;
    let flags = if sibling { CloneFlags::PARENT } else { CloneFlags::empty() };
    let exit_signal = if sibling { 0 } else { libc::SIGCHLD };
    let born = spawn_idle(&Spawn { flags, exit_signal, set_tid: &[pid], cgroup: None });
    unmap_scratch(base);
    born.map_err(|errno| Error::Birth { pid, errno })?;
    if !stops::seize(pid, BUILD)? || stops::wait_stopped(pid, Duration::from_secs(10))?.is_none() {
        return Err(Error::Died { tid: pid, how: "right after its birth".into() });
    }
    let mut hand = Hand::adopt(pid, base)?;
    forget_rseq(&mut hand)?;
    Ok(hand)
}

/// Makes further scratch mappings in the memory of a built hand, one at each of
/// these addresses, for hands that are to share it: each with the same page of
/// the verdict. What was there before goes.
pub fn make_room(hand: &mut Hand, bases: &[u64]) -> Result<()> {
    let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let moved = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let verdict = hand.scratch().start + scratch::VERDICT;
    // Two calls for each.
    for bases in bases.chunks(scratch::OPS_MAX / 2) {
        let mut b = Batch::new();
        for base in bases {
            let len = scratch::VERDICT;
            b.call(
                libc::SYS_mmap,
                [(*base).into(), len.into(), prot.into(), flags.into(), Arg::Val(u64::MAX), 0.into()],
            );
            // Of no length: the kernel then maps what is shared a second time (mremap(2)).
            let again = base + scratch::VERDICT;
            b.call(libc::SYS_mremap, [verdict.into(), 0.into(), PAGE.into(), moved.into(), again.into()]);
        }
        hand.run(&mut b)?;
    }
    Ok(())
}

/// The C library registered an rseq area in our memory, which the child is
/// about to lose; the kernel would end it at the next preemption.
fn forget_rseq(hand: &mut Hand) -> Result<()> {
    const UNREGISTER: i32 = 1;
    let area = trace::id(hand.tid()).and_then(cryonaut_kernel::sys::ptrace::rseq).map_err(|errno| Error::Ptrace {
        tid: hand.tid(),
        op: "read the rseq area of",
        errno,
    })?;
    if area.pointer == 0 {
        return Ok(());
    }
    let mut b = Batch::new();
    b.call(libc::SYS_rseq, [area.pointer.into(), area.size.into(), UNREGISTER.into(), area.signature.into()]);
    hand.run(&mut b)
}
