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
use crate::restore::Work;
use crate::{Progress, Result, parallel};
use cryonaut_kernel::sys::mem::{self, Remote};
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
/// What a process reads by itself, in however many pieces it lies: it does that beside others.
const LITTLE: u64 = 1 << 20;

/// One read: pages that follow one another in the file, and lie in these places.
#[derive(Debug, Default)]
struct Read {
    offset: u64,
    len: u64,
    places: Vec<Remote>,
}

/// Reads the pages into place, at the latest by what is left to do. Returns how many they are.
pub(super) fn fill(
    work: &mut Work<'_>,
    store: &mut Store<'_>,
    mut pieces: Vec<Piece>,
    progress: &Progress,
) -> Result<u64> {
    // File by file; within each they ascend by address and offset.
    pieces.sort_by_key(|piece| piece.source);
    for group in pieces.chunk_by(|a, b| a.source == b.source) {
        fill_from(work, &store.pages(group[0].source)?, &reads(group), progress)?;
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

fn fill_from(work: &mut Work<'_>, pages: &File, reads: &[Read], progress: &Progress) -> Result<()> {
    let total: u64 = reads.iter().map(|read| read.len).sum();
    let left = if reads.len() > FEW && total > LITTLE {
        work.flush()?;
        write(work.hand.pid(), pages, reads, progress)?
    } else {
        reads.iter().collect()
    };
    if left.is_empty() {
        return Ok(());
    }
    let lent = work.give(&[pages.as_fd()])?;
    for read in &left {
        work.spill()?;
        let iov: Vec<u8> = read.places.iter().flat_map(|p| [p.address, p.len]).flat_map(u64::to_le_bytes).collect();
        let (number, at, count) = (work.number(lent, 0), work.batch.bytes(&iov), read.places.len());
        let call = work.batch.call(libc::SYS_preadv, [number, at.into(), count.into(), read.offset.into()]);
        work.reads(call, read.len);
    }
    progress.advance(left.iter().map(|read| read.len).sum());
    let number = work.number(lent, 0);
    work.batch.call(libc::SYS_close, [number]);
    Ok(())
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
