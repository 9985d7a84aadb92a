//! A tree that is still being filled cannot be written down: its missing pages would be zeros. Who fills says so by a
//! lock, and a checkpoint waits.

use super::LOCK;
use crate::freeze::pid_of;
use crate::{Error, Object, Result, memory};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::maps::VmFlags;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a filler may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// A note that somebody fills memory, for as long as it is open.
pub fn note() -> Option<OwnedFd> {
    if let Some(directory) = Path::new(LOCK).parent() {
        let _ = std::fs::create_dir_all(directory);
    }
    // Without it, a checkpoint refuses what it takes for the program's own doing.
    let file = open(LOCK, OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR).ok()?;
    flock(&file, FlockOperation::LockShared).ok()?;
    Some(file)
}

/// Whether anybody on this machine fills memory.
fn is_anybody_filling() -> bool {
    let file = open(LOCK, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    file.is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_err())
}

/// Waits until nothing is missing in the memory of a tree.
pub fn wait_until_filled(root: i32) -> Result<()> {
    let begun = Instant::now();
    while is_anybody_filling() {
        let Some(pid) = find_unfilled(root) else { return Ok(()) };
        if begun.elapsed() > PATIENCE {
            return Err(Error::unsupported(
                Object::Process(pid),
                "memory is missing that a lazy restore has not brought yet",
                "try again when the source of its pages can be reached",
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A process at or below this one with memory that somebody else brings.
fn find_unfilled(pid: i32) -> Option<i32> {
    let task = Task::open(pid_of(pid).ok()?).ok()?;
    let has_own = || {
        let fds = task.fds().unwrap_or_default();
        fds.iter().any(|fd| task.link(&format!("fd/{fd}")).is_ok_and(|to| to == Path::new("anon_inode:[userfaultfd]")))
    };
    if memory::has_flag(&task, pid, VmFlags::UFFD_MISSING) && !has_own() {
        return Some(pid);
    }
    task.all_children().into_iter().find_map(|child| find_unfilled(child.as_raw_nonzero().get()))
}
