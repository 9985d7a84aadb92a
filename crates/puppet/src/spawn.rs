//! The birth of the first process of a restored tree, and of all that others
//! are made to create, those that share the memory of another included.
//!
//! The scratch mapping is made in this process, at the address where every
//! process of the tree will have it, and the child inherits it, with the page
//! of the verdict that [`crate::Verdict::inherited`] has put there. From then on
//! the child is a hand like any other, and everything that it had from us is
//! taken away by its own batches.
//!
//! A process that shares its creator's memory (CLONE_VM) has a scratch mapping of
//! its own there, which the creator makes before: see [`make_room`].

use crate::batch::Call;
use crate::scratch;
use crate::stops::{self, BUILD};
use crate::{Arg, Batch, Error, Hand, Result, trace};
use cryonaut_kernel::sys::process::{Child, CloneFlags, Spawn, spawn_idle};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;
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
/// of it, in new namespaces as `namespaces` says (`CLONE_NEW*`). With `sibling`, it becomes a child of our parent. Needs
/// CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN) for the choice of the pid.
pub fn first(pid: i32, sibling: bool, base: u64, namespaces: u64) -> Result<Hand> {
    conceive(pid, sibling, base, namespaces, None)?;
    adopt_first(pid, base)
}

/// The first half of [`first`]: in a pid namespace of its own, or one that is there (`inside`), the process has the pid
/// there.
pub fn conceive(pid: i32, sibling: bool, base: u64, namespaces: u64, inside: Option<BorrowedFd<'_>>) -> Result<Child> {
    map_scratch(base)?;
    let flags =
        CloneFlags::from_bits_truncate(namespaces) | if sibling { CloneFlags::PARENT } else { CloneFlags::empty() };
    let exit_signal = if sibling { 0 } else { libc::SIGCHLD };
    let born = spawn_idle(&Spawn { flags, exit_signal, set_tid: &[pid], pid_namespace: inside, ..Spawn::default() });
    unmap_scratch(base);
    born.map_err(|errno| Error::Birth { pid, errno })
}

/// The second half: makes a hand of it, also by another process that is to hold it, a copy of the one that has made it.
pub fn adopt_first(pid: i32, base: u64) -> Result<Hand> {
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

/// Index of `set_tid` among the words of `struct clone_args` (clone(2));
/// `set_tid_size` follows.
const CLONE_ARGS_SET_TID: usize = 8;

/// How many births one batch has room for.
const BIRTHS_AT_ONCE: usize = 128;

/// Adds to a batch the birth of one.
fn clone_call(b: &mut Batch, args: &[u64; 11], set_tid: &[i32]) -> Call {
    let tid = b.bytes(&set_tid.iter().flat_map(|tid| tid.to_le_bytes()).collect::<Vec<_>>());
    let mut args = *args;
    args[0] |= libc::CLONE_PTRACE as u64;
    args[CLONE_ARGS_SET_TID + 1] = set_tid.len() as u64;
    let bytes: Vec<u8> = args.iter().flat_map(|w| w.to_le_bytes()).collect();
    let data = b.bytes(&bytes);
    b.point(data.at(8 * CLONE_ARGS_SET_TID), tid);
    b.call(libc::SYS_clone3, [data.into(), bytes.len().into()])
}

impl Hand {
    /// Creates processes or threads by `clone3` in this one, each from the
    /// arguments (struct clone_args) and under the ids that `births` names, one for
    /// each pid namespace that it is in, ours the last of them, and waits until they stand still. They are held as this one is, by
    /// CLONE_PTRACE: unlike PTRACE_O_TRACECLONE and its kin, it does not stop
    /// their creator each time.
    pub fn clone_all(&mut self, births: &[([u64; 11], Vec<i32>)]) -> Result<()> {
        let ours = |tids: &[i32]| tids.last().copied().unwrap_or_default();
        for births in births.chunks(BIRTHS_AT_ONCE) {
            let mut b = Batch::new();
            let calls: Vec<Call> = births.iter().map(|(args, tids)| clone_call(&mut b, args, tids)).collect();
            self.run(&mut b).map_err(|e| match e {
                Error::Call { errno, .. } => {
                    let failed = births.iter().zip(&calls).find(|(_, call)| b.result(**call).is_err());
                    Error::Birth { pid: failed.map_or(0, |((_, tids), _)| ours(tids)), errno }
                }
                other => other,
            })?;
            for (_, tids) in births {
                stops::wait_newborn(ours(tids))?;
            }
        }
        Ok(())
    }
}
