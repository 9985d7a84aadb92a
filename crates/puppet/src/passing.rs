//! Giving open files to a hand, by SCM_RIGHTS over its *service* descriptors.
//!
//! Every process that is being built has the receiving ends of some socket pairs
//! under the same high numbers; the brain has the sending ends. Each is a
//! *lane*: over one, the brain lets exactly one hand receive at a time, so the
//! messages cannot go to the wrong process. As many hands as there are lanes
//! may have files on their way.
//!
//! Rings of io_uring are not let through (Linux 6.7). A process takes them, and
//! what is given together with them, from us by pidfd_getfd(2): it still has
//! all rights that we have.

use crate::{Arg, Batch, Call, Data, Error, Hand, Result};
use cryonaut_kernel::sys::scm_rights::{self, MOST};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::PidfdFlags;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// How many lanes there are.
pub const LANES: usize = 8;
/// Length of what stands before the descriptors in a control message (struct cmsghdr).
const HEAD: usize = 16;

/// Both ends of each lane, before the receiving ones have their places in the first process.
#[derive(Debug)]
pub struct Service {
    senders: Vec<OwnedFd>,
    receivers: Vec<OwnedFd>,
    number: i32,
}

impl Service {
    /// New pairs. `number` is the first of the descriptor numbers that the
    /// receiving ends get in every process: above all that the processes use.
    pub fn new(number: i32) -> Result<Self> {
        let own = |errno| Error::Own { what: "make the sockets that pass files", errno };
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        for _ in 0..LANES {
            let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
            let (sender, receiver) = pair.map_err(own)?;
            senders.push(sender);
            // None must be where another is to go.
            let is_below = receiver.as_raw_fd() < number;
            let above = number + LANES as i32;
            receivers.push(if is_below { receiver } else { fcntl_dupfd_cloexec(&receiver, above).map_err(own)? });
        }
        Ok(Service { senders, receivers, number })
    }

    /// The number above those of the receiving ends: for what a process has for a moment.
    #[must_use]
    pub fn above(&self) -> i32 {
        self.number + LANES as i32
    }

    /// Puts the receiving ends of the first process in their places and closes
    /// everything else that the process had from us.
    pub fn install(&mut self, hand: &mut Hand) -> Result<()> {
        let mut b = Batch::new();
        for (receiver, number) in self.receivers.iter().zip(self.number..) {
            b.call(libc::SYS_dup3, [receiver.as_raw_fd().into(), number.into(), libc::O_CLOEXEC.into()]);
        }
        b.call(libc::SYS_close_range, [Arg::Val(0), (self.number - 1).into(), Arg::Val(0)]);
        b.call(libc::SYS_close_range, [self.above().into(), Arg::Val(u64::from(u32::MAX)), Arg::Val(0)]);
        hand.run(&mut b)?;
        self.receivers.clear();
        Ok(())
    }

    /// Adds to a process's last batch that it loses the receiving ends, the last that it has from us.
    pub fn withdraw(&self, b: &mut Batch) {
        b.attempt(libc::SYS_close_range, [self.number.into(), (self.above() - 1).into(), Arg::Val(0)]);
    }

    /// Gives `files` to the process; returns their numbers there, in order.
    /// They are close-on-exec there. Over the first lane.
    pub fn give(&self, hand: &mut Hand, files: &[BorrowedFd<'_>]) -> Result<Vec<i32>> {
        let mut numbers = Vec::with_capacity(files.len());
        for chunk in files.chunks(MOST) {
            match send_files(&self.senders[0], chunk) {
                Ok(()) => numbers.extend(self.receive(hand, chunk.len())?),
                Err(Error::Own { errno: Errno::INVAL, .. }) => numbers.extend(self.take(hand, chunk)?),
                Err(e) => return Err(e),
            }
        }
        Ok(numbers)
    }

    /// Sends `files` over a lane, and adds to the batch that is next to run on
    /// it what receives them. `None`, and nothing was done, if they have to be [given](Service::give).
    pub fn give_in(&self, b: &mut Batch, lane: usize, files: &[BorrowedFd<'_>]) -> Result<Option<Received>> {
        if files.len() > MOST {
            return Ok(None);
        }
        match send_files(&self.senders[lane], files) {
            Ok(()) => Ok(Some(self.receive_in(b, lane, files.len()))),
            Err(Error::Own { errno: Errno::INVAL, .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Lets the process take files from us; they get the lowest free numbers, as they would by a message.
    fn take(&self, hand: &mut Hand, files: &[BorrowedFd<'_>]) -> Result<Vec<i32>> {
        // It may be in a pid namespace in which we have no number.
        let us = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .map_err(|errno| Error::Own { what: "open ourselves for a process", errno })?;
        send_files(&self.senders[0], &[us.as_fd()])?;
        let low = self.receive(hand, 1)?[0];
        let mut b = Batch::new();
        let high = b.call(libc::SYS_dup3, [low.into(), self.above().into(), libc::O_CLOEXEC.into()]);
        b.call(libc::SYS_close, [low.into()]);
        let get =
            |file: &BorrowedFd<'_>| b.call(libc::SYS_pidfd_getfd, [high.into(), file.as_raw_fd().into(), 0.into()]);
        let taken: Vec<Call> = files.iter().map(get).collect();
        b.call(libc::SYS_close, [high.into()]);
        hand.run(&mut b)?;
        Ok(taken.iter().map(|call| b.result(*call).unwrap_or_default() as i32).collect())
    }

    fn receive(&self, hand: &mut Hand, count: usize) -> Result<Vec<i32>> {
        let mut b = Batch::new();
        let received = self.receive_in(&mut b, 0, count);
        hand.run(&mut b)?;
        Ok(received.numbers(&b))
    }

    fn receive_in(&self, b: &mut Batch, lane: usize, count: usize) -> Received {
        let payload = b.space(8);
        // A number is looked at together with what stands behind it.
        let control = b.space(HEAD + (4 * count).next_multiple_of(8) + 8);
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
        let number = self.number + lane as i32;
        b.call(libc::SYS_recvmsg, [number.into(), message.into(), libc::MSG_CMSG_CLOEXEC.into()]);
        Received { control, count }
    }
}

/// Files that a batch receives.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    control: Data,
    count: usize,
}

impl Received {
    /// The number of one, for later calls of the same batch.
    #[must_use]
    pub fn arg(self, index: usize) -> Arg {
        Arg::Within(self.control.at(HEAD + 4 * index))
    }

    /// The number of each, once the batch has run.
    #[must_use]
    pub fn numbers(self, b: &Batch) -> Vec<i32> {
        (0..self.count).map(|index| b.read_u32(self.control.at(HEAD + 4 * index)) as i32).collect()
    }
}

/// Sends descriptors into a socket.
pub(crate) fn send_files(socket: &OwnedFd, files: &[BorrowedFd<'_>]) -> Result<()> {
    scm_rights::send(socket, b"f", files)
        .map(drop)
        .map_err(|errno| Error::Own { what: "send files to a process", errno })
}
