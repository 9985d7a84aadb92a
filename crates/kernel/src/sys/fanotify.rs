//! fanotify_init(2) and fanotify_mark(2).

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::check;

/// Makes a group. `flags`: `FAN_CLASS_*`, `FAN_*`; `event_flags`: the `O_*` of the files that events bring.
pub fn init(flags: u32, event_flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two integers, touches no memory of the caller.
    let fd = check(unsafe { libc::fanotify_init(flags, event_flags) })?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds, removes or flushes marks (`flags`: `FAN_MARK_*`) on what `path` names below `dir`, or on `dir` itself when
/// there is no path.
pub fn mark(group: impl AsFd, flags: u32, mask: u64, dir: impl AsFd, path: Option<&CStr>) -> Result<(), Errno> {
    let (group, dir) = (group.as_fd().as_raw_fd(), dir.as_fd().as_raw_fd());
    let path = path.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: `path` is null or a C string, which the kernel only reads.
    check(unsafe { libc::fanotify_mark(group, flags, mask, dir, path) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Task;
    use crate::proc::fdinfo::{Details, FanotifyObject};

    #[test]
    fn marks_show_in_fdinfo() {
        let group = init(libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC, libc::O_RDONLY as u32).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        mark(&group, libc::FAN_MARK_ADD, libc::FAN_OPEN, &file, None).unwrap();
        let mount = libc::FAN_MARK_ADD | libc::FAN_MARK_MOUNT;
        mark(&group, mount, libc::FAN_MODIFY, rustix::fs::CWD, Some(c"/proc")).unwrap();
        let info = Task::current().unwrap().fdinfo(group.as_raw_fd()).unwrap();
        let Details::Fanotify { marks, .. } = info.details else { panic!("{info:?}") };
        let ino = std::os::unix::fs::MetadataExt::ino(&file.as_file().metadata().unwrap());
        assert!(marks.iter().any(|mark| {
            let same = matches!(mark.object, FanotifyObject::Inode { ino: found, .. } if found == ino);
            same && mark.mask == libc::FAN_OPEN
        }));
        assert!(marks.iter().any(|mark| matches!(mark.object, FanotifyObject::Mount { .. })));
    }
}
