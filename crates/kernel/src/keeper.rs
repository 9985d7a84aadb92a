//! A process that keeps descriptors while the program that had them is not running: what acts through them goes on, and
//! the next run of the program finds them again by a name in the file system.
//!
//! ```text
//!   keep ──▶ waits ──somebody asks──▶ gives all of them away, ends
//!              └──the last of the watched processes has ended──▶ ends
//! ```
//!
//! Like a [`janitor`](crate::janitor) it makes system calls and nothing else. It is in a session of its own and has
//! nothing of its maker's open but what it keeps, so nobody waits for it.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg,
    socket_with,
};

use crate::sys::process::{Spawn, spawn};

/// Most descriptors that one keeps (SCM_MAX_FD).
pub const MOST: usize = 253;

/// Keeps copies of `files` until somebody [takes](take) them by the name `path`, or until all of `watched` have ended:
/// descriptors of processes (pidfd_open(2)). E2BIG for more than [`MOST`] of either.
pub fn keep(path: &Path, files: &[BorrowedFd<'_>], watched: &[OwnedFd]) -> Result<(), Errno> {
    if files.len() > MOST || watched.len() > MOST {
        return Err(Errno::TOOBIG);
    }
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&listener, &SocketAddrUnix::new(path)?)?;
    rustix::fs::chmod(path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    listen(&listener, 1)?;
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let mut room = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut kept: Vec<i32> = watched.iter().map(AsRawFd::as_raw_fd).collect();
    kept.extend(files.iter().map(AsRawFd::as_raw_fd));
    kept.push(listener.as_raw_fd());
    kept.sort_unstable();
    // SAFETY: the body makes system calls alone, by wrappers that neither allocate nor touch anything of libc's: its room
    // was made before.
    let child = unsafe {
        spawn(&Spawn { exit_signal: 0, ..Spawn::default() }, || {
            be_alone(&null, &kept);
            serve(&listener, files, watched, &mut room);
            libc::unlink(name.as_ptr());
            0
        })
    };
    if child.is_err() {
        let _ = rustix::fs::unlink(path);
    }
    child.map(drop)
}

/// Leaves the session and everything open of the maker's but `kept`, which ascend.
fn be_alone(null: &OwnedFd, kept: &[i32]) {
    let _ = rustix::process::setsid();
    for stdio in 0..3 {
        // SAFETY: nothing in this process uses what the maker has open under these numbers.
        unsafe { libc::dup2(null.as_raw_fd(), stdio) };
    }
    let mut next = 3;
    for fd in kept.iter().map(|fd| *fd as u32) {
        // SAFETY: others are left without their descriptors, but nothing in this process uses or drops them: it ends with
        // _exit.
        unsafe {
            if fd > next {
                libc::syscall(libc::SYS_close_range, next, fd - 1, 0);
            }
        }
        next = next.max(fd + 1);
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_close_range, next, u32::MAX, 0) };
    let (all, none) = (u64::MAX, std::ptr::null_mut::<u64>());
    // SAFETY: rt_sigprocmask reads eight bytes of `all`.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const all, none, size_of::<u64>()) };
}

fn serve(listener: &OwnedFd, files: &[BorrowedFd<'_>], watched: &[OwnedFd], room: &mut [MaybeUninit<u8>]) {
    let mut first = 0;
    // All have ended when each in its turn has.
    while let Some(living) = watched.get(first) {
        let mut both = [PollFd::new(listener, PollFlags::IN), PollFd::new(living, PollFlags::IN)];
        if poll(&mut both, None).is_err() {
            continue;
        }
        if !both[1].revents().is_empty() {
            first += 1;
        }
        if both[0].revents().is_empty() {
            continue;
        }
        let Ok(peer) = accept_with(listener, SocketFlags::CLOEXEC) else { continue };
        let mut control = SendAncillaryBuffer::new(room);
        control.push(SendAncillaryMessage::ScmRights(files));
        if sendmsg(&peer, &[std::io::IoSlice::new(&[1])], &mut control, SendFlags::NOSIGNAL).is_ok() {
            return;
        }
    }
}

/// Takes what is kept under a name; the keeper ends.
pub fn take(path: &Path) -> Result<Vec<OwnedFd>, Errno> {
    let peer = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    connect(&peer, &SocketAddrUnix::new(path)?)?;
    let mut room = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let mut byte = [0];
    let got = recvmsg(&peer, &mut [std::io::IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes == 0 {
        return Err(Errno::PIPE);
    }
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    Ok(files.flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::process::{Child, Command};
    use std::time::Duration;

    fn sleeper() -> (Child, OwnedFd) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        (child, pidfd)
    }

    #[test]
    fn what_is_kept_outlives_its_maker_and_is_given_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept");
        let (mut child, pidfd) = sleeper();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        keep(&path, &[writer.as_fd()], &[pidfd]).unwrap();
        writer.write_all(b"a").unwrap();
        drop(writer);
        let files = take(&path).unwrap();
        assert_eq!(files.len(), 1);
        std::fs::File::from(files.into_iter().next().unwrap()).write_all(b"b").unwrap();
        // The end of file says that nobody has it any more.
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        assert_eq!(all, "ab");
        assert!(take(&path).is_err());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn it_ends_with_the_last_that_it_watches() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept");
        let ((mut first, one), (mut second, other)) = (sleeper(), sleeper());
        let (mut reader, writer) = std::io::pipe().unwrap();
        keep(&path, &[writer.as_fd()], &[one, other]).unwrap();
        drop(writer);
        first.kill().unwrap();
        first.wait().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(path.exists());
        second.kill().unwrap();
        second.wait().unwrap();
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        while path.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
