//! Rings that a thread of the kernel takes requests from (IORING_SETUP_SQPOLL).
//!
//! The thread belongs to the process that made the ring, and acts with the
//! credentials which that had then: so its own process makes the ring again,
//! while it still has ours, and what had others is refused. Nothing holds the
//! thread when its process is stopped: it takes what the program has given
//! before, and is woken for that.

use super::{CLOSE, is_mapping, silent};
use crate::files::OpenFile;
use crate::{Error, Result};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::sys::io_uring::{Inside, Params, poller, setup};
use serde::{Deserialize, Serialize};

/// A ring's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Poller {
    /// Its process.
    pub(super) pid: i32,
    /// After how many milliseconds without a request it sleeps.
    idle_ms: u32,
    /// The processor that it keeps to, if the ring was made so.
    cpu: u32,
}

impl Poller {
    /// Of a ring of a frozen process; `None` for one without.
    pub(super) fn find(file: &OpenFile<'_>, inside: &Inside) -> Result<Option<Poller>> {
        if inside.flags & setup::SQPOLL == 0 {
            return Ok(None);
        }
        let found = poller::of_ring(file.speaker, file.fd).map_err(|e| silent(file, e))?;
        let no = |what: &str| {
            let reason = format!("the thread of the kernel that submits for it (IORING_SETUP_SQPOLL) {what}");
            Err(Error::unsupported(file.object(), reason, CLOSE))
        };
        if found.pid != file.pid {
            return no("has ended, or is of another process");
        }
        if found.is_shared {
            return no("does so for other rings, too");
        }
        if !found.is_root || found.capabilities != Task::current()?.status()?.caps.effective {
            return no("has other credentials than this program");
        }
        if !file.task.maps()?.iter().any(|vma| is_mapping(vma) && vma.inode == file.stat.st_ino) {
            return no("is of a process that has not mapped it");
        }
        Ok(Some(Poller { pid: found.pid, idle_ms: found.idle_ms, cpu: found.cpu }))
    }

    /// Asks for one like it.
    pub(super) fn ask(self, params: Params) -> Params {
        params.polled(self.cpu, self.idle_ms)
    }
}
