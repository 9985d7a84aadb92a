//! Giving open files to a hand, by SCM_RIGHTS over its *service* descriptor.
//!
//! Every process that is being built has the receiving end of one socket pair
//! under the same high number; the brain has the sending end. The brain sends
//! and lets exactly one hand receive at a time, so the messages cannot go to
//! the wrong process.
//!
//! Rings of io_uring are not let through (Linux 6.7). A process takes them, and
//! what is given together with them, from us by pidfd_getfd(2): it still has
//! all rights that we have.

use crate::{Arg, Batch, Call, Error, Hand, Result};
use cryonaut_kernel::sys::scm_rights::{self, MOST};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::PidfdFlags;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Both ends, before the receiving one has its place in the first process.
#[derive(Debug)]
pub struct Service {
    sender: OwnedFd,
    receiver: Option<OwnedFd>,
    number: i32,
}

impl Service {
    /// A new pair. `number` is the descriptor number that the receiving end
    /// gets in every process: above all that the processes use.
    pub fn new(number: i32) -> Result<Self> {
        let (sender, receiver) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|errno| Error::Own { what: "make the socket that passes files", errno })?;
        Ok(Service { sender, receiver: Some(receiver), number })
    }

    /// The number of the receiving end.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.number
    }

    /// Puts the receiving end of the first process in its place and closes
    /// everything else that the process had from us.
    pub fn install(&mut self, hand: &mut Hand) -> Result<()> {
        let Some(receiver) = self.receiver.take() else {
            return Ok(());
        };
        let mut b = Batch::new();
        let from = receiver.as_raw_fd();
        b.call(libc::SYS_dup3, [from.into(), self.number.into(), libc::O_CLOEXEC.into()]);
        b.call(libc::SYS_close_range, [Arg::Val(0), (self.number - 1).into(), Arg::Val(0)]);
        b.call(libc::SYS_close_range, [(self.number + 1).into(), Arg::Val(u64::from(u32::MAX)), Arg::Val(0)]);
        hand.run(&mut b)
    }

    /// Gives `files` to the process; returns their numbers there, in order.
    /// They are close-on-exec there.
    pub fn give(&self, hand: &mut Hand, files: &[BorrowedFd<'_>]) -> Result<Vec<i32>> {
        let mut numbers = Vec::with_capacity(files.len());
        for chunk in files.chunks(MOST) {
            match send_files(&self.sender, chunk) {
                Ok(()) => numbers.extend(self.receive(hand, chunk.len())?),
                Err(Error::Own { errno: Errno::INVAL, .. }) => numbers.extend(self.take(hand, chunk)?),
                Err(e) => return Err(e),
            }
        }
        Ok(numbers)
    }

    /// Lets the process take files from us; they get the lowest free numbers, as they would by a message.
    fn take(&self, hand: &mut Hand, files: &[BorrowedFd<'_>]) -> Result<Vec<i32>> {
        // It may be in a pid namespace in which we have no number.
        let us = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .map_err(|errno| Error::Own { what: "open ourselves for a process", errno })?;
        send_files(&self.sender, &[us.as_fd()])?;
        let low = self.receive(hand, 1)?[0];
        let mut b = Batch::new();
        let high = b.call(libc::SYS_dup3, [low.into(), (self.number + 1).into(), libc::O_CLOEXEC.into()]);
        b.call(libc::SYS_close, [low.into()]);
        let get =
            |file: &BorrowedFd<'_>| b.call(libc::SYS_pidfd_getfd, [high.into(), file.as_raw_fd().into(), 0.into()]);
        let taken: Vec<Call> = files.iter().map(get).collect();
        b.call(libc::SYS_close, [high.into()]);
        hand.run(&mut b)?;
        Ok(taken.iter().map(|call| b.result(*call).unwrap_or_default() as i32).collect())
    }

    fn receive(&self, hand: &mut Hand, count: usize) -> Result<Vec<i32>> {
        const HEAD: usize = 16;
        let mut b = Batch::new();
        let payload = b.space(8);
        let control = b.space(HEAD + (4 * count).next_multiple_of(8));
        let iov = b.bytes(&[0; 16]);
        b.point(iov, payload);
        // struct msghdr: name, namelen, iov, iovlen, control, controllen, flags.
        let mut header = [0u8; 56];
        header[24..32].copy_from_slice(&1u64.to_le_bytes());
        header[40..48].copy_from_slice(&(control.len() as u64).to_le_bytes());
        let message = b.bytes(&header);
        b.point(message.at(16), iov);
        b.point(message.at(32), control);
        b.set(iov.at(8), &1u64.to_le_bytes());
        b.call(libc::SYS_recvmsg, [self.number.into(), message.into(), libc::MSG_CMSG_CLOEXEC.into()]);
        hand.run(&mut b)?;
        let got = b.read(control);
        Ok(got[HEAD..]
            .chunks_exact(4)
            .take(count)
            .map(|c| i32::from_le_bytes(c.try_into().unwrap_or_default()))
            .collect())
    }
}

/// Sends descriptors into a socket.
pub(crate) fn send_files(socket: &OwnedFd, files: &[BorrowedFd<'_>]) -> Result<()> {
    scm_rights::send(socket, b"f", files)
        .map(drop)
        .map_err(|errno| Error::Own { what: "send files to a process", errno })
}
