//! Who writes to a process's memory past its page tables, where no write is noted: a device, into pages that were pinned
//! for it. Reads of files that are open with O_DIRECT (open(2)), and those of asynchronous I/O: a page that is protected
//! and copied while its contents are under way would count as unchanged when they have come.

use crate::files::io_uring;
use crate::memory::aio;
use cryonaut_kernel::proc::Task;

/// Why no write of a process can be relied on to be noted, if so. Also if it cannot be told.
pub fn reason(task: &Task) -> Option<&'static str> {
    let maps = task.maps().ok()?;
    if maps.iter().any(|vma| aio::is_mapping(vma) || io_uring::is_mapping(vma)) {
        return Some("it uses asynchronous I/O, by which memory is written to unnoticed");
    }
    // The flag says something else of a pipe.
    let has_path = |fd: &i32| task.link(&format!("fd/{fd}")).is_ok_and(|link| link.is_absolute());
    let is_direct =
        |fd: &i32| task.fdinfo(*fd).is_ok_and(|info| info.flags & libc::O_DIRECT as u32 != 0) && has_path(fd);
    let fds = task.fds().ok()?;
    fds.iter().any(is_direct).then_some("it has files open with O_DIRECT, from which memory is read unnoticed")
}
