//! Reading private pages into place: one copy, out of the page cache.
//!
//! A little is read by the process itself, by preadv(2). Much is written by threads of ours, out of the mapped file
//! (process_vm_writev(2)): as many as there are processors, since most of the time goes into making the process's
//! pages. It would be one more, but who wakes it each time has the scheduler put it where a thread is at work already.
//! Either way the pages are charged to the process's memory cgroup. What we cannot write is left to the process, whose
//! error it then is.

use super::PAGE;
use super::contents::{Piece, Store};
use crate::freeze::pid_of;
use crate::{Error, Progress, Result, parallel};
use cryonaut_kernel::sys::mem::{self, Remote};
use cryonaut_puppet::passing::Service;
use cryonaut_puppet::{Batch, Hand};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes of one read: what a thread has mapped of the file at a time. Large, so that there are few calls; small, so
/// that nobody waits long for the last.
const STEP: u64 = 4 << 20;
/// Runs of pages of one read.
const IOVECS: usize = 512;
/// No more reads than these are done before another thread has woken.
const FEW: usize = 2;

/// One read: pages that follow one another in the file, and lie in these places.
#[derive(Debug, Default)]
struct Read {
    offset: u64,
    len: u64,
    places: Vec<Remote>,
}

/// Reads the pages into place. Returns how many they are.
pub(super) fn fill(
    hand: &mut Hand,
    service: &Service,
    store: &mut Store<'_>,
    mut pieces: Vec<Piece>,
    progress: &Progress,
) -> Result<u64> {
    // File by file; within each they ascend by address and offset.
    pieces.sort_by_key(|piece| piece.source);
    for group in pieces.chunk_by(|a, b| a.source == b.source) {
        fill_from(hand, service, &store.pages(group[0].source)?, &reads(group), progress)?;
    }
    Ok(pieces.iter().map(|piece| piece.len / PAGE).sum())
}

/// The reads that the pieces of one file take.
fn reads(pieces: &[Piece]) -> Vec<Read> {
    let mut out: Vec<Read> = Vec::new();
    for piece in pieces {
        let (mut start, mut offset, mut rest) = (piece.start, piece.offset, piece.len);
        while rest > 0 {
            let goes_on =
                |read: &&mut Read| read.offset + read.len == offset && read.len < STEP && read.places.len() < IOVECS;
            let len = match out.last_mut().filter(goes_on) {
                Some(read) => {
                    let len = rest.min(STEP - read.len);
                    read.places.push(Remote { address: start, len });
                    read.len += len;
                    len
                }
                None => {
                    let len = rest.min(STEP);
                    out.push(Read { offset, len, places: vec![Remote { address: start, len }] });
                    len
                }
            };
            (start, offset, rest) = (start + len, offset + len, rest - len);
        }
    }
    out
}

fn fill_from(hand: &mut Hand, service: &Service, pages: &File, reads: &[Read], progress: &Progress) -> Result<()> {
    let left = if reads.len() > FEW { write(hand.pid(), pages, reads, progress)? } else { reads.iter().collect() };
    if left.is_empty() {
        return Ok(());
    }
    let number = service.give(hand, &[pages.as_fd()])?[0];
    read_itself(hand, number, &left)?;
    progress.advance(left.iter().map(|read| read.len).sum());
    let mut b = Batch::new();
    b.call(libc::SYS_close, [number.into()]);
    Ok(hand.run(&mut b)?)
}

/// Writes what is to be read into the process, by several threads; returns what is left to it.
fn write<'r>(pid: i32, pages: &File, reads: &'r [Read], progress: &Progress) -> Result<Vec<&'r Read>> {
    let pid = pid_of(pid)?;
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let work = || {
        while let Some(read) = reads.get(next.fetch_add(1, Ordering::Relaxed)) {
            if mem::write_spans_of_file(pid, pages, read.offset, &read.places) != Ok(read.len as usize) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).push(read);
            } else {
                progress.advance(read.len);
            }
        }
    };
    parallel::beside(parallel::others().min(reads.len() - 1), work, work);
    Ok(failed.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Has the process read from its descriptor `number`.
fn read_itself(hand: &mut Hand, number: i32, reads: &[&Read]) -> Result<()> {
    let mut rest = reads;
    while !rest.is_empty() {
        let mut b = Batch::new();
        let mut expected = Vec::new();
        while let Some((read, behind)) = rest.split_first() {
            if !expected.is_empty() && b.data_len() + IOVECS * size_of::<Remote>() > cryonaut_puppet::scratch::DATA_LEN
            {
                break;
            }
            let iov: Vec<u8> = read.places.iter().flat_map(|p| [p.address, p.len]).flat_map(u64::to_le_bytes).collect();
            let at = b.bytes(&iov);
            let count = read.places.len();
            let call = b.call(libc::SYS_preadv, [number.into(), at.into(), count.into(), read.offset.into()]);
            expected.push((call, read.len));
            rest = behind;
        }
        hand.run(&mut b)?;
        for (call, total) in expected {
            let got = b.result(call).unwrap_or(0);
            if got != total {
                return Err(Error::bad_image(
                    format!("pagemap-{}.img", hand.pid()),
                    format!("{total} bytes of pages do not fit its mappings ({got} were taken)"),
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::contents::Source;
    use super::*;

    fn piece(start: u64, len: u64, offset: u64) -> Piece {
        Piece { start, len, source: Source::default(), offset }
    }

    #[test]
    fn what_follows_in_the_file_is_one_read_up_to_a_step() {
        let told = |pieces: &[Piece]| -> Vec<(u64, u64, usize)> {
            reads(pieces).iter().map(|read| (read.offset, read.len, read.places.len())).collect()
        };
        assert_eq!(told(&[]), []);
        assert_eq!(told(&[piece(0x1000, 0x2000, 0), piece(0x9000, 0x1000, 0x2000)]), [(0, 0x3000, 2)]);
        assert_eq!(
            told(&[piece(0x1000, 0x2000, 0), piece(0x9000, 0x1000, 0x8000)]),
            [(0, 0x2000, 1), (0x8000, 0x1000, 1)]
        );
        let large = [piece(0x1000, STEP - 0x1000, 0), piece(STEP * 2, STEP + 0x2000, STEP - 0x1000)];
        assert_eq!(told(&large), [(0, STEP, 2), (STEP, STEP, 1), (STEP * 2, 0x1000, 1)]);
        let many: Vec<Piece> = (0..600).map(|n| piece(n * 0x2000, 0x1000, n * 0x1000)).collect();
        assert_eq!(told(&many), [(0, 512 << 12, 512), (512 << 12, 88 << 12, 88)]);
    }
}
