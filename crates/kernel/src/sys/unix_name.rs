//! Names of Unix sockets in the file system: the file behind one, and doing something where a name is to mean what it says.

use super::check;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::thread::UnshareFlags;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `SIOCUNIXFILE` (linux/un.h).
const SIOCUNIXFILE: libc::Ioctl = 0x89e0;

/// The file that a Unix socket is bound to, as an `O_PATH` descriptor (`SIOCUNIXFILE`, Linux 4.15). ENOENT if it has no
/// such name; EPERM without CAP_NET_ADMIN.
pub fn file_of(socket: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: SIOCUNIXFILE takes no argument and touches no memory of ours.
    let fd = check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCUNIXFILE, 0) })?;
    // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows of it.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC)?;
    Ok(file)
}

/// Gives such a file its owner and mode, whatever stands under its name by now: who owns its directory, or from the first
/// of the two on the file itself, could put a link in its place. ENOSYS where the mode has to be changed, before Linux 6.6.
pub fn set_owner_and_mode(file: BorrowedFd<'_>, uid: Uid, gid: Gid, mode: Mode) -> Result<(), Errno> {
    rustix::fs::chownat(file, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    if Mode::from_raw_mode(rustix::fs::fstat(file)?.st_mode & 0o7777) == mode {
        return Ok(());
    }
    let (number, name, bits) = (file.as_raw_fd(), c"".as_ptr(), mode.bits());
    // SAFETY: fchmodat2 reads the name, a constant that ends with zero.
    check(unsafe { libc::syscall(libc::SYS_fchmodat2, number, name, bits, libc::AT_EMPTY_PATH) }).map(drop)
}

/// A new, empty file system that nobody sees but through this directory. It ends with its last user.
pub fn private_root() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Runs `call` in a thread of its own whose root directory, working directory and umask (0) are nobody else's: so names
/// relative to `dir` mean what they say. Without `root` that of the caller stays, without `dir` it is the root.
pub fn with_names_of<T: Send>(
    root: Option<BorrowedFd<'_>>,
    dir: Option<&[u8]>,
    call: impl FnOnce() -> Result<T, Errno> + Send,
) -> Result<T, Errno> {
    let inside = || {
        // SAFETY: of what is taken apart only root, working directory and umask are concerned, which no code of this
        // thread has looked at; its descriptors stay those of all.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        rustix::process::umask(Mode::empty());
        if let Some(root) = root {
            rustix::process::fchdir(root)?;
            rustix::process::chroot(".")?;
        }
        rustix::process::chdir(dir.unwrap_or(b"/"))?;
        call()
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap_or(Err(Errno::FAULT)))
}

/// Runs `call` in a thread of its own that works in this directory.
pub fn in_directory<T: Send>(dir: BorrowedFd<'_>, call: impl FnOnce() -> Result<T, Errno> + Send) -> Result<T, Errno> {
    with_names_of(None, None, || {
        rustix::process::fchdir(dir)?;
        call()
    })
}

/// A directory, as a root for [`with_names_of`].
pub fn open_root(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, socket};

    #[test]
    fn a_name_in_a_private_place_is_nobody_elses() {
        let unix = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        let root = match private_root() {
            Ok(root) => root,
            Err(Errno::PERM) => return,
            Err(errno) => panic!("{errno}"),
        };
        assert_eq!(file_of(&unix).unwrap_err(), Errno::NOENT);
        let name = "/a-name-that-nobody-has";
        let make = || {
            bind(&unix, &SocketAddrUnix::new(name)?)?;
            rustix::fs::stat(name)
        };
        let made = with_names_of(Some(root.as_fd()), None, make).unwrap();
        assert!(!std::path::Path::new(name).exists());
        let file = rustix::fs::fstat(file_of(&unix).unwrap()).unwrap();
        assert_eq!((file.st_ino, file.st_mode), (made.st_ino, made.st_mode));
        assert!(std::env::current_dir().is_ok_and(|dir| dir.as_os_str() != "/"));
    }
}
