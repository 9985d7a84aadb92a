//! Lending a file of ours to a visited process.
//!
//! Over a socket pair that its hand makes for a moment, since a process may
//! have no rights to our files and no name in common with us. The numbers of
//! all three stand in the scratch mapping (`numbers`), so the farewell closes
//! them, should we die in between.
//!
//! ```text
//!   ask_in ──run──▶ send ──▶ receive_in, whatever is done with the file ──run──▶ close
//! ```

use crate::{Arg, Batch, Hand, Result, numbers, scratch};
use std::os::fd::BorrowedFd;

/// Length of a control message with one descriptor (`CMSG_SPACE`).
const ROOM_FOR_ONE: u64 = 24;

/// Where the numbers of the process's descriptors are kept.
const RECEIVED: usize = 0;
const MINE: usize = 1;
const THEIRS: usize = 2;

/// The number of the file in the process, for calls that come behind [`receive_in`].
pub(crate) fn number(base: u64) -> Arg {
    Arg::At(numbers::place(base, RECEIVED))
}

/// Adds the making of the socket pair to a batch.
pub(crate) fn ask_in(b: &mut Batch, base: u64) {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    let pair = numbers::place(base, MINE);
    b.call(libc::SYS_socketpair, [libc::AF_UNIX.into(), kind.into(), 0.into(), pair.into()]);
}

/// Sends the file; the hand has asked and is idle.
pub(crate) fn send(hand: &Hand, file: BorrowedFd<'_>) -> Result<()> {
    let socket = numbers::duplicate(hand, numbers::read(hand)?[THEIRS])?;
    crate::passing::send_files(&socket, &[file])
}

/// Adds the receiving to another batch.
pub(crate) fn receive_in(b: &mut Batch, base: u64) {
    let payload = b.bytes(&[0; 8]);
    let vector = b.bytes(&[0; 16]);
    b.point(vector, payload);
    b.set(vector.at(8), &1u64.to_le_bytes());
    // struct msghdr: name, namelen, iov, iovlen, control, controllen, flags.
    let message = b.bytes(&[0; 56]);
    b.point(message.at(16), vector);
    b.set(message.at(24), &1u64.to_le_bytes());
    b.set(message.at(32), &(base + scratch::CONTROL).to_le_bytes());
    b.set(message.at(40), &ROOM_FOR_ONE.to_le_bytes());
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    b.call(libc::SYS_recvmsg, [Arg::At(numbers::place(base, MINE)), message.into(), flags.into()]);
}

/// Adds the end of the socket pair.
pub(crate) fn hang_up_in(b: &mut Batch, base: u64) {
    numbers::close_in(b, base, MINE..THEIRS + 1);
}

/// Adds the end of everything.
pub(crate) fn close_in(b: &mut Batch, base: u64) {
    numbers::close_in(b, base, RECEIVED..THEIRS + 1);
}

/// The calls that are made in the process for it, beside those of a farewell.
pub(crate) const CALLS: [i64; 2] = [libc::SYS_socketpair, libc::SYS_recvmsg];
