//! The birth of the first process of a restored tree.
//!
//! The scratch mapping is made in this process, at the address where every
//! process of the tree will have it, and the child inherits it. From then on
//! the child is a hand like any other, and everything that it had from us is
//! taken away by its own batches.

use crate::scratch;
use crate::stops::{self, BUILD};
use crate::{Error, Hand, Result};
use cryonaut_kernel::sys::clone::{CloneArgs, fork_with};
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

/// Creates a process with the pid that `args` asks for, held and dying with
/// this one, and makes a hand of it.
pub fn first(args: &CloneArgs, base: u64) -> Result<Hand> {
    map_scratch(base)?;
    let parent = rustix::process::getpid();
    let sibling = args.is_sibling();
    let born = fork_with(args, move || {
        // Until it is attached to, the child must not outlive us unseen.
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        if !sibling && rustix::process::getppid() != Some(parent) {
            return;
        }
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    });
    unmap_scratch(base);
    let pid = born.map_err(|errno| Error::Own { what: "create the first process with its pid", errno })?;
    if !stops::seize(pid, BUILD)? || stops::wait_stopped(pid, Duration::from_secs(10))?.is_none() {
        return Err(Error::Died { tid: pid, how: "right after its birth".into() });
    }
    Hand::adopt(pid, base)
}
