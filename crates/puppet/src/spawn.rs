//! The birth of the first process of a restored tree.
//!
//! The scratch mapping is made in this process, at the address where every
//! process of the tree will have it, and the child inherits it. From then on
//! the child is a hand like any other, and everything that it had from us is
//! taken away by its own batches.

use crate::scratch;
use crate::stops::{self, BUILD};
use crate::{Error, Hand, Result};
use rustix::io::Errno;
use std::time::Duration;

/// Maps the scratch at `base` in this process; `Err(EEXIST)` if something is
/// in the way.
fn map_scratch(base: u64) -> Result<()> {
    let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE changes no existing mapping, and nothing in
    // this process refers to the new one.
    let got = unsafe { libc::mmap(base as *mut _, scratch::LEN as usize, prot, flags, -1, 0) };
    if got == libc::MAP_FAILED {
        let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::NOMEM);
        return Err(Error::Own { what: "map working memory for the first process", errno });
    }
    Ok(())
}

fn unmap_scratch(base: u64) {
    // SAFETY: exactly the mapping that `map_scratch` made, used by nobody here.
    unsafe { libc::munmap(base as *mut _, scratch::LEN as usize) };
}

/// Creates a process with this pid, held and dying with us, and makes a hand
/// of it. With `sibling`, it becomes a child of our parent. Needs
/// CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN) for the choice of the pid.
pub fn first(pid: i32, sibling: bool, base: u64) -> Result<Hand> {
    map_scratch(base)?;
    let born = fork_with_pid(pid, sibling);
    unmap_scratch(base);
    let pid = born.map_err(|errno| Error::Own { what: "create the first process with its pid", errno })?;
    if !stops::seize(pid, BUILD)? || stops::wait_stopped(pid, Duration::from_secs(10))?.is_none() {
        return Err(Error::Died { tid: pid, how: "right after its birth".into() });
    }
    Hand::adopt(pid, base)
}

fn fork_with_pid(pid: i32, sibling: bool) -> std::result::Result<i32, Errno> {
    let set_tid = [pid];
    // SAFETY: clone_args is made of integers, for which zero is a value.
    let mut args: libc::clone_args = unsafe { core::mem::zeroed() };
    args.flags = if sibling { libc::CLONE_PARENT as u64 } else { 0 };
    args.exit_signal = if sibling { 0 } else { libc::SIGCHLD as u64 };
    args.set_tid = set_tid.as_ptr() as u64;
    args.set_tid_size = 1;
    let parent = rustix::process::getpid();
    // SAFETY: without CLONE_VM the child has a copy of this memory; it makes
    // only system calls through functions that take no lock, and never returns.
    let got = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match got {
        0 => wait_to_be_held(if sibling { None } else { Some(parent) }),
        n if n < 0 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        n => Ok(n as i32),
    }
}

/// The child's life until it is attached to: it must not outlive us unseen.
fn wait_to_be_held(parent: Option<rustix::process::Pid>) -> ! {
    // SAFETY: plain system calls that touch no memory of this process.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if parent.is_some() && rustix::process::getppid() != parent {
            libc::_exit(1);
        }
        loop {
            libc::pause();
        }
    }
}
