//! A target's memory, read and written from outside, by plain pid.

use crate::trace::id;
use cryonaut_kernel::Errno;
use cryonaut_kernel::sys::mem;
pub use cryonaut_kernel::sys::mem::{MAX_SPANS, Remote};

/// Reads exactly `buf.len()` bytes at `at` in process `pid`; `EFAULT` if a
/// part of it is not there.
pub fn read(pid: i32, at: u64, buf: &mut [u8]) -> Result<(), Errno> {
    mem::read(id(pid)?, at, buf)
}

/// Reads the spans one behind the other; returns the number of bytes.
pub fn read_spans(pid: i32, spans: &[Remote], buf: &mut [u8]) -> Result<usize, Errno> {
    mem::read_spans(id(pid)?, spans, buf)
}

/// Writes exactly `bytes` at `at` in process `pid`.
pub fn write(pid: i32, at: u64, bytes: &[u8]) -> Result<(), Errno> {
    mem::write(id(pid)?, at, bytes)
}

/// Writes pieces that need not lie beside each other, in this order, with one
/// call as long as the kernel takes so many: what is written stays a prefix of
/// them should we die in between.
pub fn write_pieces(pid: i32, pieces: &[(u64, &[u8])]) -> Result<(), Errno> {
    let pid = id(pid)?;
    for pieces in pieces.chunks(MAX_SPANS) {
        let spans: Vec<Remote> =
            pieces.iter().map(|(at, bytes)| Remote { address: *at, len: bytes.len() as u64 }).collect();
        let bytes = pieces.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>().concat();
        if mem::write_spans(pid, &bytes, &spans)? != bytes.len() {
            return Err(Errno::FAULT);
        }
    }
    Ok(())
}

/// Reads pieces (address and length) that need not lie beside each other.
pub fn read_pieces(pid: i32, pieces: &[(u64, usize)]) -> Result<Vec<Vec<u8>>, Errno> {
    let pid = id(pid)?;
    let mut out = Vec::with_capacity(pieces.len());
    for pieces in pieces.chunks(MAX_SPANS) {
        let spans: Vec<Remote> = pieces.iter().map(|(at, len)| Remote { address: *at, len: *len as u64 }).collect();
        let mut bytes = vec![0; pieces.iter().map(|(_, len)| len).sum()];
        if mem::read_spans(pid, &spans, &mut bytes)? != bytes.len() {
            return Err(Errno::FAULT);
        }
        let mut rest = bytes.as_slice();
        for (_, len) in pieces {
            let (piece, later) = rest.split_at(*len);
            out.push(piece.to_vec());
            rest = later;
        }
    }
    Ok(out)
}

/// Spans in groups: the first of `first` bytes, the others of `room`, the last of what is left.
pub(crate) fn divide(spans: &[Remote], first: u64, room: u64) -> Vec<Vec<Remote>> {
    let mut groups: Vec<Vec<Remote>> = Vec::new();
    let mut free = 0;
    for span in spans {
        let (mut address, mut left) = (span.address, span.len);
        while left > 0 {
            if free == 0 {
                free = if groups.is_empty() { first } else { room };
                groups.push(Vec::new());
            }
            let len = left.min(free);
            groups.last_mut().into_iter().for_each(|group| group.push(Remote { address, len }));
            (address, left, free) = (address + len, left - len, free - len);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_cut_where_a_pipe_is_full() {
        let span = |address, len| Remote { address, len };
        let spans = [span(10, 3), span(20, 8), span(40, 1)];
        let groups = divide(&spans, 5, 5);
        assert_eq!(groups, [vec![span(10, 3), span(20, 2)], vec![span(22, 5)], vec![span(27, 1), span(40, 1)]]);
        assert_eq!(divide(&spans, 1, 8)[..2], [vec![span(10, 1)], vec![span(11, 2), span(20, 6)]]);
        assert!(divide(&[], 5, 5).is_empty());
    }
}
