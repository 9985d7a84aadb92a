//! Descriptors that a visited process has open for our sake, for a while.
//!
//! Their numbers stand in its scratch mapping: the calls that open them write
//! them there, and what closes them is told where they stand. So a farewell
//! knows at every instant what there is to close, whichever batch ran last.

use crate::scratch;
use crate::{Arg, Batch, Error, Hand, Result, farewell, trace};
use cryonaut_kernel::sys::pidfd;
use rustix::process::PidfdGetfdFlags;
use std::ops::Range;
use std::os::fd::OwnedFd;

/// How many there may be.
pub(crate) const MAX: usize = scratch::NUMBERS_MAX;

/// No descriptor.
const NONE: i32 = -1;
const SIZE: usize = size_of::<i32>();
/// `FUTEX_WAKE_OP`'s encoding of "store [`NONE`]": FUTEX_OP_SET, which is 0,
/// with an operand of 12 bits that is sign-extended (linux/futex.h).
const STORE_NONE: u64 = 0xfff << 12;

/// What the mapping at `base` holds at first.
pub(crate) fn none() -> [u8; MAX * SIZE] {
    [0xff; MAX * SIZE]
}

/// Where a number stands.
pub(crate) fn place(base: u64, index: usize) -> u64 {
    base + scratch::NUMBERS + (index * SIZE) as u64
}

/// The numbers as they stand now.
pub(crate) fn read(hand: &Hand) -> Result<[i32; MAX]> {
    let bytes = hand.peek(place(hand.base, 0), MAX * SIZE)?;
    let mut numbers = [NONE; MAX];
    for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(SIZE)) {
        *number = i32::from_le_bytes(bytes.try_into().unwrap_or_default());
    }
    Ok(numbers)
}

/// The part of a farewell that closes what is open.
pub(crate) fn farewell(base: u64) -> Vec<u8> {
    let close = |index| {
        let at = place(base, index);
        // The condition looks at 64 bits, whose sign is that of the number in their upper half.
        farewell::operation(libc::SYS_close, [at, 0, 0, 0, 0, 0], 1, at - SIZE as u64)
    };
    (0..MAX).flat_map(close).collect::<Vec<u8>>()
}

/// Adds the end of some of them to a batch: each is closed and forgotten.
pub(crate) fn close_in(b: &mut Batch, base: u64, which: Range<usize>) {
    for at in which.map(|index| place(base, index)) {
        b.attempt(libc::SYS_close, [Arg::At(at)]);
        let wake = libc::FUTEX_WAKE_OP | libc::FUTEX_PRIVATE_FLAG;
        b.attempt(libc::SYS_futex, [at.into(), wake.into(), 0.into(), 0.into(), at.into(), STORE_NONE.into()]);
    }
}

/// Closes all of them.
pub(crate) fn close(hand: &mut Hand) -> Result<()> {
    let mut b = Batch::new();
    close_in(&mut b, hand.base, 0..MAX);
    hand.run(&mut b)
}

/// The same after a failure, which is the one to tell.
pub(crate) fn close_after_failure(hand: &mut Hand) {
    if let Err(e) = close(hand) {
        tracing::warn!("closing what was open in process {}: {e}", hand.pid);
    }
}

/// A descriptor of ours for what a hand has under this number.
pub(crate) fn duplicate(hand: &Hand, number: i32) -> Result<OwnedFd> {
    let own = |errno| Error::Own { what: "duplicate a descriptor of a process", errno };
    let pidfd = pidfd::open_thread(trace::id(hand.tid).map_err(own)?).map_err(own)?;
    rustix::process::pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).map_err(own)
}

const _: () = assert!(farewell::FOR_OTHERS as usize + MAX <= scratch::FAREWELL_MAX);
