//! A process that ends others should this one be killed before it has told its caller that they run: who hears of no
//! success takes them for gone, and nobody would have them.
//!
//! Like a [`janitor`](crate::janitor), a warden is a child that waits for the end of its maker, and makes system calls and
//! nothing else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal};

use crate::sys::process::{Child, Spawn, close_all_but, is_deserted, spawn};
use crate::sys::signal;
use crate::sys::wait::{Who, wait};

const DISMISSED: u8 = b'!';

/// Watches over processes. Dropped, it kills them, as it does when we are killed.
#[derive(Debug)]
pub struct Warden {
    /// `None` once it has been dismissed.
    pipe: Option<OwnedFd>,
    child: Child,
}

impl Warden {
    /// Makes one.
    pub fn hire(processes: &[BorrowedFd<'_>]) -> Result<Self, Errno> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        // SAFETY: the body makes system calls alone, by wrappers that neither allocate nor touch anything of libc's.
        let child = unsafe {
            spawn(&Spawn { exit_signal: 0, ..Spawn::default() }, || {
                signal::block_all();
                close_all_but(processes, reader.as_fd());
                if is_deserted(reader.as_fd()) {
                    for process in processes {
                        // Fails for one that has ended.
                        let _ = pidfd_send_signal(process, Signal::KILL);
                    }
                }
                0
            })
        }?;
        Ok(Self { pipe: Some(writer), child })
    }

    /// They are the caller's now. Whoever is killed between this and his end leaves them to nobody: so this does not wait for
    /// the warden's own end, which is taken by whoever adopts it, and the next thing to do is to end.
    pub fn dismiss(mut self) {
        if let Some(pipe) = self.pipe.take() {
            // Fails only if somebody has ended it.
            let _ = rustix::io::write(&pipe, &[DISMISSED]);
        }
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        if self.pipe.take().is_some() {
            let _ = wait(Who::One(self.child.pid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    fn sleeper() -> (std::process::Child, OwnedFd) {
        let sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
        let pidfd = rustix::process::pidfd_open(
            rustix::process::Pid::from_child(&sleeper),
            rustix::process::PidfdFlags::empty(),
        )
        .unwrap();
        (sleeper, pidfd)
    }

    #[test]
    fn whoever_is_deserted_ends() {
        let [mut one, mut other] = [sleeper(), sleeper()];
        drop(Warden::hire(&[one.1.as_fd(), other.1.as_fd()]).unwrap());
        for (child, _) in [&mut one, &mut other] {
            assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        }
    }

    #[test]
    fn the_death_of_its_maker_is_a_desertion() {
        let (mut child, pidfd) = sleeper();
        // SAFETY: no thread of this process holds a lock that hiring takes: it takes none.
        let maker = unsafe {
            spawn(&Spawn::default(), || {
                std::mem::forget(Warden::hire(&[pidfd.as_fd()]));
                0
            })
        };
        wait(Who::One(maker.unwrap().pid)).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn one_that_is_dismissed_does_nothing() {
        let (mut child, pidfd) = sleeper();
        Warden::hire(&[pidfd.as_fd()]).unwrap().dismiss();
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
