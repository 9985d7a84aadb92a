//! A userfaultfd for the memory of a visited process: only the process itself
//! can make one for its memory, whoever holds it works on that from outside.
//!
//! The call returns the number, but a farewell closes what stands in the
//! scratch mapping (`numbers`). So a pipe is made first, whose numbers the
//! kernel writes there; its first end is closed again, and the userfaultfd gets
//! that number, the lowest that is free: nobody else opens anything meanwhile.

use crate::{Arg, Batch, Error, Hand, Result, numbers};
use cryonaut_kernel::uffd::{Uffd, raw};

/// Ends of the pipe.
const ENDS: usize = 2;

/// `UFFD_USER_MODE_ONLY`: what unprivileged processes may have (userfaultfd(2)).
/// It makes no difference to write protection that is merely noted.
const USER_MODE_ONLY: i32 = 1;

/// Makes one and takes it; the process keeps nothing of it. Its handshake is
/// still to be made. All threads of the process must be held.
///
/// # Errors
/// `EMFILE` if the process has no two free descriptors, `ENOSYS` where the
/// kernel has no such call.
pub fn of_process(hand: &mut Hand) -> Result<Uffd> {
    let made = make(hand);
    let closed = numbers::close(hand);
    let made = made?;
    closed?;
    Ok(made)
}

/// The same of a process that is being built: it dies with us, so nothing is to be noted for a farewell. Faults of the
/// kernel in its memory count as well. `device` is its descriptor of `/dev/userfaultfd`, if it was lent that; it is closed.
///
/// # Errors
/// `EPERM` if it may not have one without the device.
pub fn of_newborn(hand: &mut Hand, device: Option<i32>) -> Result<Uffd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let mut b = Batch::new();
    let made = match device {
        None => b.call(libc::SYS_userfaultfd, [flags.into()]),
        Some(device) => {
            let new = u64::from(raw::USERFAULTFD_IOC_NEW);
            let made = b.call(libc::SYS_ioctl, [device.into(), new.into(), flags.into()]);
            b.call(libc::SYS_close, [device.into()]);
            made
        }
    };
    hand.run(&mut b)?;
    let number = b.result(made).unwrap_or_default() as i32;
    let taken = numbers::duplicate(hand, number);
    let mut b = Batch::new();
    b.call(libc::SYS_close, [number.into()]);
    hand.run(&mut b)?;
    Ok(Uffd::from_fd(taken?))
}

/// The calls that it makes in the process beside those of a farewell.
#[must_use]
pub fn calls() -> [i64; 2] {
    [libc::SYS_pipe2, libc::SYS_userfaultfd]
}

fn make(hand: &mut Hand) -> Result<Uffd> {
    let first = numbers::place(hand.base, 0);
    let mut b = Batch::new();
    b.call(libc::SYS_pipe2, [first.into(), libc::O_CLOEXEC.into()]);
    b.call(libc::SYS_close, [Arg::At(first)]);
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    let call = b.call(libc::SYS_userfaultfd, [flags.into()]);
    hand.run(&mut b)?;
    let number = b.result(call).unwrap_or_default() as i32;
    if numbers::read(hand)?[..ENDS].first() != Some(&number) {
        let mut b = Batch::new();
        b.attempt(libc::SYS_close, [number.into()]);
        hand.run(&mut b)?;
        let errno = rustix::io::Errno::BUSY;
        return Err(Error::Call { pid: hand.pid, call: "userfaultfd".into(), errno });
    }
    Ok(Uffd::from_fd(numbers::duplicate(hand, number)?))
}
