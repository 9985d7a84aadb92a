//! Terminals of containers, held from outside.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::IoSliceMut;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::LIMIT;

/// Where a runtime hands masters of terminals over (`--console-socket`).
#[derive(Debug)]
pub(super) struct Console(UnixListener);

impl Console {
    pub(super) fn listen(path: &Path) -> Result<Console, Failed> {
        Ok(Console(UnixListener::bind(path)?))
    }

    /// The next master.
    pub(super) fn take(&self) -> Result<OwnedFd, Failed> {
        wait_for(self.0.as_fd(), Instant::now() + LIMIT)?;
        let (stream, _) = self.0.accept()?;
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let mut name = [0u8; 256];
        recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let masters = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        masters.flatten().next().ok_or_else(|| "no terminal comes with the message".into())
    }
}

/// A terminal of our own: master and slave.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), Failed> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = ptsname(&master, Vec::new())?;
    let slave = rustix::fs::open(slave, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((master, slave))
}

/// Waits until a text is shown.
pub(super) fn is_shown(master: BorrowedFd<'_>, wanted: &str) -> Result<(), Failed> {
    let deadline = Instant::now() + LIMIT;
    let mut shown = String::new();
    while !shown.contains(wanted) {
        wait_for(master, deadline).map_err(|_| format!("'{wanted}' is not shown, but '{shown}'"))?;
        let mut some = [0u8; 256];
        let read = rustix::io::read(master, &mut some)?;
        shown.push_str(&String::from_utf8_lossy(&some[..read]));
    }
    Ok(())
}

fn wait_for(file: BorrowedFd<'_>, deadline: Instant) -> Result<(), Failed> {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    match poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&left))? {
        0 => Err("nothing comes".into()),
        _ => Ok(()),
    }
}
