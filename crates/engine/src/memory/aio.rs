//! Rings of asynchronous I/O (io_setup(2)): a context of the kernel whose id
//! is the address of a ring of events in the process's memory (fs/aio.c).
//!
//! The kernel keeps an index of its own of where the next event goes, which
//! nothing can set: a new context completes requests that do nothing until
//! the index stands where it stood. The ring then gets its contents, which say
//! what has not been collected, and moves to its address; the context's id
//! moves with it.
//!
//! Nothing tells which requests are under way. The tree stands still, so no
//! new ones come; the ring is looked at until nothing more arrives. A request
//! that takes longer than that (IOCB_CMD_POLL) is not in the image.

use super::PAGE;
use super::vma::status;
use crate::restore::Work;
use crate::{Error, Object, Result};
use cryonaut_image::records::{AioRingEntry, VmaEntry};
use cryonaut_kernel::proc::maps::Vma;
use cryonaut_puppet::{Batch, Hand};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// Bytes of struct aio_ring before the events, and of each event.
const HEADER: u64 = 32;
const EVENT: u64 = 32;
const MAGIC: u32 = 0xa10a_10a1;
/// Where in struct aio_ring the fields begin that are not the kernel's index of the context.
const BEHIND_ID: u64 = 4;
/// Requests that are made at once: fewer than the smallest ring has room for.
const AT_ONCE: u32 = 32;
/// Bytes copied at a time.
const PIECE: u64 = 1 << 20;
/// How long nothing must arrive.
const QUIET: Duration = Duration::from_millis(5);

/// The fields of struct aio_ring that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    /// Room for events.
    room: u32,
    /// The next event to collect.
    head: u32,
    /// Where the next event goes.
    tail: u32,
}

impl Header {
    /// Of a ring of `len` bytes; `None` if it is none.
    fn parse(bytes: &[u8], len: u64) -> Option<Header> {
        let word = |i: usize| bytes.get(i * 4..i * 4 + 4)?.try_into().ok().map(u32::from_le_bytes);
        let (room, head, tail, magic) = (word(1)?, word(2)?, word(3)?, word(4)?);
        let whole = u64::from(room) == len.checked_sub(HEADER)? / EVENT;
        // The process can write the indices; the kernel takes them modulo the room.
        (magic == MAGIC && whole && room > 0).then(|| Header { room, head: head % room, tail: tail % room })
    }

    /// Events that have not been collected.
    fn unread(self) -> u32 {
        (self.tail + self.room - self.head) % self.room
    }
}

/// Whether a mapping is a ring.
/// Whether a mapping is the ring of an AIO context.
pub fn is_mapping(vma: &Vma) -> bool {
    vma.path.as_bytes().starts_with(b"/[aio]")
}

fn is_ring(vma: &VmaEntry) -> bool {
    vma.status & status::AIORING != 0
}

fn object(pid: i32, vma: &VmaEntry) -> Object {
    Object::Mapping(pid, vma.start, "AIO ring".into())
}

/// The least number of requests for which the kernel makes a ring of `len`
/// bytes: what the program asked for is not known, and only counts against
/// /proc/sys/fs/aio-max-nr.
fn requests(len: u64) -> u64 {
    // The kernel makes room for twice as many, and two more (ioctx_alloc, aio_setup_ring).
    let per_page = PAGE / EVENT / 2;
    (per_page * (len / PAGE).saturating_sub(1)).saturating_sub(1).max(1)
}

/// The records of a process's contexts, once nothing arrives in them any more.
pub fn collect(pid: i32, mut hand: Option<&mut Hand>, vmas: &[VmaEntry]) -> Result<Vec<AioRingEntry>> {
    let mut out = Vec::new();
    for vma in vmas.iter().filter(|v| is_ring(v)) {
        let len = vma.end - vma.start;
        let hand = hand.as_deref_mut().ok_or_else(|| Error::kernel(Object::Process(pid), "enter it", Errno::SRCH))?;
        let mut b = Batch::new();
        // No event is asked for, so none is taken.
        let known = b.attempt(libc::SYS_io_getevents, [vma.start.into(), 0.into(), 0.into(), 0.into(), 0.into()]);
        hand.run(&mut b)?;
        let mut last = Header::parse(&hand.peek(vma.start, HEADER as usize)?, len);
        if b.result(known).is_err() || last.is_none() {
            return Err(Error::unsupported(
                object(pid, vma),
                "no context of the process belongs to it: it is left over from a parent, or was mapped anew in part",
                "unmap it before the checkpoint",
            ));
        }
        loop {
            std::thread::sleep(QUIET);
            let now = Header::parse(&hand.peek(vma.start, HEADER as usize)?, len);
            if now == last {
                break;
            }
            last = now;
        }
        out.push(AioRingEntry { id: vma.start, nr_req: requests(len) as u32, ring_len: len as u32 });
    }
    Ok(out)
}

/// Makes the contexts of a process. Every mapping is there and filled; a ring's
/// place is held by ordinary memory with its contents.
pub fn build(work: &mut Work<'_>, vmas: &[VmaEntry]) -> Result<()> {
    let rings: Vec<&VmaEntry> = vmas.iter().filter(|v| is_ring(v)).collect();
    if rings.is_empty() {
        return Ok(());
    }
    let null = File::open("/dev/null").map_err(|e| {
        let object = Object::Path("/dev/null".into());
        Error::kernel(object, "open it", crate::error::errno_of(&e))
    })?;
    work.flush()?;
    let hand = &mut *work.hand;
    let null = work.service.give(hand, &[null.as_fd()])?[0];
    for vma in rings {
        build_one(hand, null, vma)?;
    }
    let mut b = Batch::new();
    b.call(libc::SYS_close, [null.into()]);
    Ok(hand.run(&mut b)?)
}

fn build_one(hand: &mut Hand, null: i32, vma: &VmaEntry) -> Result<()> {
    let len = vma.end - vma.start;
    let damaged =
        || Error::bad_image(format!("pagemap-{}.img", hand.pid()), format!("no AIO ring at {:#x}", vma.start));
    let wanted = Header::parse(&hand.peek(vma.start, HEADER as usize)?, len).ok_or_else(damaged)?;
    let mut b = Batch::new();
    let context = b.space(8);
    b.call(libc::SYS_io_setup, [requests(len).into(), context.into()]);
    hand.run(&mut b)?;
    let made = b.read_u64(context);
    if Header::parse(&hand.peek(made, HEADER as usize)?, len).is_none() {
        return Err(Error::unsupported(
            object(hand.pid(), vma),
            "this machine makes larger AIO rings: their least size depends on the number of processors",
            "restore on a machine with no more processors than the one of the checkpoint",
        ));
    }
    // What has not been collected takes room from new requests.
    complete(hand, null, made, wanted.head, true)?;
    complete(hand, null, made, wanted.unread(), false)?;
    let mut at = BEHIND_ID;
    while at < len {
        let piece = hand.peek(vma.start + at, PIECE.min(len - at) as usize)?;
        hand.poke(made + at, &piece)?;
        at += piece.len() as u64;
    }
    let mut b = Batch::new();
    let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    b.call(libc::SYS_mremap, [made.into(), len.into(), len.into(), how.into(), vma.start.into()]);
    Ok(hand.run(&mut b)?)
}

/// Makes and completes requests that read nothing; collects them or not.
fn complete(hand: &mut Hand, null: i32, context: u64, mut count: u32, collect: bool) -> Result<()> {
    while count > 0 {
        let some = count.min(AT_ONCE);
        let mut b = Batch::new();
        // struct iocb: all zeros is a read of no bytes into nowhere (IOCB_CMD_PREAD).
        let mut block = [0u8; 64];
        block[20..24].copy_from_slice(&null.to_le_bytes());
        let block = b.bytes(&block);
        let list = b.bytes(&vec![0; 8 * some as usize]);
        for i in 0..some as usize {
            b.point(list.at(8 * i), block);
        }
        let made = b.call(libc::SYS_io_submit, [context.into(), some.into(), list.into()]);
        if collect {
            let events = b.bytes(&vec![0; EVENT as usize * some as usize]);
            b.call(libc::SYS_io_getevents, [context.into(), made.into(), some.into(), events.into(), 0.into()]);
        }
        hand.run(&mut b)?;
        let made = b.result(made).unwrap_or(0) as u32;
        if made == 0 {
            let object = Object::Mapping(hand.pid(), context, "AIO ring".into());
            return Err(Error::kernel(object, "bring its index to where it was", Errno::AGAIN));
        }
        count = count.saturating_sub(made);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the ring that fs/aio.c makes for a number of requests.
    fn ring_len(requests: u64) -> u64 {
        (HEADER + EVENT * (2 * requests + 2)).next_multiple_of(PAGE)
    }

    #[test]
    fn the_least_number_of_requests_makes_a_ring_of_the_same_size() {
        for len in [1, 2, 3, 17, 1024].map(|pages| pages * PAGE) {
            assert_eq!(ring_len(requests(len)), len);
            assert!(len == PAGE || ring_len(requests(len) - 1) < len);
        }
    }

    #[test]
    fn a_header_is_told_from_other_bytes() {
        let words = |room: u32, head: u32, tail: u32, magic: u32| -> Vec<u8> {
            [7, room, head, tail, magic, 1, 0, 32].iter().flat_map(|w: &u32| w.to_le_bytes()).collect()
        };
        let header = Header::parse(&words(127, 126, 2, MAGIC), PAGE).unwrap();
        assert_eq!((header.head, header.tail, header.unread()), (126, 2, 3));
        assert_eq!(Header::parse(&words(127, 0, 0, 0), PAGE), None);
        assert_eq!(Header::parse(&words(126, 0, 0, MAGIC), PAGE), None);
        assert_eq!(Header::parse(&words(127, 0, 0, MAGIC)[..12], PAGE), None);
    }
}
