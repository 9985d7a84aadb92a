//! A process that keeps descriptors while the program that had them is not running: what acts through them goes on, and
//! the next run of the program finds them again by a name in the file system.
//!
//! ```text
//!   keep ──▶ waits ──somebody asks──▶ gives all of them away, ends
//!              └──the last of the watched processes has ended──▶ ends
//! ```
//!
//! It is [set aside](crate::sys::aside): nobody's child, and with nothing of its maker's open but what it keeps, so nobody
//! waits for it.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};

use crate::sys::aside::set_aside;
use crate::sys::scm_rights::{self, MOST};

/// Keeps copies of `files` until somebody [takes](take) them by the name `path`, or until all of `watched` have ended:
/// descriptors of processes (pidfd_open(2)). E2BIG for more than [`MOST`] of either.
pub fn keep(path: &Path, files: &[BorrowedFd<'_>], watched: &[OwnedFd]) -> Result<(), Errno> {
    if files.len() > MOST || watched.len() > MOST {
        return Err(Errno::TOOBIG);
    }
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&listener, &SocketAddrUnix::new(path)?)?;
    rustix::fs::chmod(path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    listen(&listener, 1)?;
    let kept: Vec<RawFd> = watched.iter().map(AsRawFd::as_raw_fd).collect();
    let kept = [kept, files.iter().map(AsRawFd::as_raw_fd).collect(), vec![listener.as_raw_fd()]].concat();
    let made = set_aside(
        &kept,
        |_| false,
        || {
            serve(&listener, files, watched);
            i32::from(rustix::fs::unlink(path).is_err())
        },
    );
    if made.is_err() {
        let _ = rustix::fs::unlink(path);
    }
    made
}

fn serve(listener: &OwnedFd, files: &[BorrowedFd<'_>], watched: &[OwnedFd]) {
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
        if scm_rights::send(&peer, &[1], files).is_ok() {
            return;
        }
    }
}

/// Takes what is kept under a name; the keeper ends.
pub fn take(path: &Path) -> Result<Vec<OwnedFd>, Errno> {
    let peer = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    connect(&peer, &SocketAddrUnix::new(path)?)?;
    let got = scm_rights::receive(&peer, &mut [0])?;
    if got.bytes == 0 { Err(Errno::PIPE) } else { Ok(got.files) }
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
