//! File handles: name_to_handle_at(2) and open_by_handle_at(2).

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;

use super::check;

/// A name for an inode that outlives all its paths; valid within one file system.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileHandle {
    /// Of the file system's own choice.
    pub kind: i32,
    /// At most [`FileHandle::MAX`] bytes.
    pub bytes: Vec<u8>,
}

impl FileHandle {
    /// `MAX_HANDLE_SZ`.
    pub const MAX: usize = 128;
}

/// `struct file_handle` with room for the longest.
#[repr(C)]
struct RawHandle {
    length: u32,
    kind: i32,
    bytes: [u8; FileHandle::MAX],
}

/// The handle of a file, and the id of the mount it was reached through. Flags: `EMPTY_PATH`, `SYMLINK_FOLLOW`.
/// EOPNOTSUPP where the file system has no handles.
pub fn name_to_handle_at(dir: impl AsFd, path: &CStr, flags: AtFlags) -> Result<(FileHandle, i32), Errno> {
    let mut raw = RawHandle { length: FileHandle::MAX as u32, kind: 0, bytes: [0; FileHandle::MAX] };
    let mut mount = 0i32;
    // SAFETY: `path` is a C string; the kernel writes the header and at most `length` bytes of handle to `raw`,
    // which has room for them behind the header, and one int to `mount`.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_fd().as_raw_fd(),
            path.as_ptr(),
            &raw mut raw,
            &raw mut mount,
            flags.bits(),
        )
    };
    check(answer)?;
    let bytes = raw.bytes.get(..raw.length as usize).ok_or(Errno::OVERFLOW)?.to_vec();
    Ok((FileHandle { kind: raw.kind, bytes }, mount))
}

/// Opens the file of a handle; `mount` is any open file of its file system. Needs CAP_DAC_READ_SEARCH; ESTALE when
/// the file is no more.
pub fn open_by_handle_at(mount: impl AsFd, handle: &FileHandle, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut raw = RawHandle { length: handle.bytes.len() as u32, kind: handle.kind, bytes: [0; FileHandle::MAX] };
    raw.bytes.get_mut(..handle.bytes.len()).ok_or(Errno::INVAL)?.copy_from_slice(&handle.bytes);
    // SAFETY: the kernel reads the header and `length` bytes behind it, which was checked to be within `raw`.
    let answer =
        unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_fd().as_raw_fd(), &raw mut raw, flags.bits()) };
    let fd = check(answer)?;
    // SAFETY: the kernel has just created this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_handle_finds_the_unlinked_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(b"x").unwrap();
        let (handle, _) = name_to_handle_at(&file, c"", AtFlags::EMPTY_PATH).unwrap();
        std::fs::remove_file(&path).unwrap();
        let again = open_by_handle_at(&file, &handle, OFlags::RDONLY | OFlags::CLOEXEC).unwrap();
        let (one, two) = (rustix::fs::fstat(&file).unwrap(), rustix::fs::fstat(&again).unwrap());
        assert_eq!((one.st_dev, one.st_ino), (two.st_dev, two.st_ino));
        let long = FileHandle { kind: 1, bytes: vec![0; FileHandle::MAX + 1] };
        assert_eq!(open_by_handle_at(&file, &long, OFlags::RDONLY).err(), Some(Errno::INVAL));
    }
}
