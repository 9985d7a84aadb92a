//! What stands in a pipe: read without taking it out, and written into a new
//! one. Pipes and FIFOs share this.
//!
//! A pipe in packet mode (`O_DIRECT`, pipe(2)) keeps the boundaries of writes:
//! a read returns one packet at most and drops what of it did not fit. The
//! mode is that of each buffer, not of the pipe, so that both sorts may stand
//! in it behind each other. CRIU's record has bytes alone; where there are
//! packets, their lengths go beside it in `cryonaut-pipe-packets-ID.json`.

use crate::{Error, Object, Result};
use cryonaut_image::records::PipeDataEntry;
use cryonaut_image::{DumpDir, ImageDir, ImageKind};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What a new pipe holds when nobody asks for more or less, in bytes (pipe(7)).
const DEFAULT_SIZE: usize = 65536;

/// A stretch of a pipe's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    /// One packet, or bytes without boundaries.
    packet: bool,
    /// In bytes.
    len: usize,
}

/// The contents of a pipe.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    /// `F_GETPIPE_SZ`.
    size: usize,
    bytes: Vec<u8>,
    /// Empty when there are no packets.
    parts: Vec<Part>,
}

/// Opens the pipe or FIFO behind a descriptor once more, as a description of
/// its own. Never blocks if `flags` has `O_NONBLOCK` and is not write-only.
pub(super) fn reopen(file: BorrowedFd<'_>, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
}

/// Writes down what stands in the pipe behind `file`.
pub(super) fn collect(
    images: &DumpDir,
    kind: ImageKind,
    pipe_id: u32,
    file: BorrowedFd<'_>,
    object: &Object,
) -> Result<()> {
    let remedy = "let the workload read the pipe empty, or raise /proc/sys/fs/pipe-max-size";
    let contents = read(file).map_err(|errno| Error::Kernel {
        object: object.clone(),
        action: "copy what stands in the pipe".into(),
        errno,
        remedy,
    })?;
    let entry = PipeDataEntry { pipe_id, bytes: contents.bytes.len() as u32, size: Some(contents.size as u32) };
    images.append(kind, None, &entry, Some(&contents.bytes))?;
    if !contents.parts.is_empty() {
        images.write_json(&packets_name(kind, pipe_id), &contents.parts)?;
    }
    Ok(())
}

fn packets_name(kind: ImageKind, pipe_id: u32) -> String {
    let what = if kind == ImageKind::FifoData { "fifo" } else { "pipe" };
    format!("{what}-packets-{pipe_id}")
}

/// Gives a new pipe, through its write end, the size and contents of a record.
pub(super) fn fill(
    images: &ImageDir,
    kind: ImageKind,
    file: BorrowedFd<'_>,
    entry: &PipeDataEntry,
    bytes: &[u8],
) -> Result<()> {
    let object = || Object::Other(format!("pipe {:#x}", entry.pipe_id));
    set_size(file, entry.size.map_or(DEFAULT_SIZE, |size| size as usize)).map_err(|errno| Error::Kernel {
        object: object(),
        action: format!("make it {} bytes large", entry.size.unwrap_or_default()),
        errno,
        remedy: "raise /proc/sys/fs/pipe-max-size to what it was where the image was made",
    })?;
    if bytes.is_empty() {
        return Ok(());
    }
    let parts = images.read_json(&packets_name(kind, entry.pipe_id))?.unwrap_or_default();
    write(file, bytes, parts)
        .map_err(|errno| Error::kernel(object(), format!("fill it with {} bytes", bytes.len()), errno))
}

fn set_size(file: BorrowedFd<'_>, size: usize) -> std::result::Result<(), Errno> {
    if rustix::pipe::fcntl_getpipe_size(file)? != size {
        rustix::pipe::fcntl_setpipe_size(file, size)?;
    }
    Ok(())
}

fn write(file: BorrowedFd<'_>, bytes: &[u8], mut parts: Vec<Part>) -> std::result::Result<(), Errno> {
    if parts.iter().map(|part| part.len).sum::<usize>() != bytes.len() {
        parts = vec![Part { packet: false, len: bytes.len() }];
    }
    let filler = reopen(file, OFlags::WRONLY | OFlags::NONBLOCK)?;
    let mut rest = bytes;
    for (at, part) in parts.iter().enumerate() {
        let mode = if part.packet { OFlags::DIRECT } else { OFlags::empty() };
        rustix::fs::fcntl_setfl(&filler, OFlags::NONBLOCK | mode)?;
        let (mut now, later) = rest.split_at(part.len);
        // A packet is merged into the page of plain bytes before it if there is
        // room; bytes that came by tee(2) are not merged with.
        let apart = !part.packet && parts.get(at + 1).is_some_and(|next| next.packet);
        while !now.is_empty() {
            let written = if apart { write_apart(&filler, now)? } else { rustix::io::write(&filler, now)? };
            now = &now[written..];
        }
        rest = later;
    }
    Ok(())
}

/// Writes plain bytes that nothing will be merged with.
fn write_apart(pipe: &OwnedFd, bytes: &[u8]) -> std::result::Result<usize, Errno> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let written = rustix::io::write(&writer, bytes)?;
    rustix::pipe::tee(&reader, pipe, written, SpliceFlags::NONBLOCK)
}

/// Reads everything without taking it out.
fn read(file: BorrowedFd<'_>) -> std::result::Result<Contents, Errno> {
    let source = reading(file)?;
    let size = rustix::pipe::fcntl_getpipe_size(&source)?;
    let waiting = rustix::io::ioctl_fionread(&source)? as usize;
    let mut contents = Contents { size, bytes: Vec::with_capacity(waiting), parts: Vec::new() };
    if waiting == 0 {
        return Ok(contents);
    }
    let copy = copy_of(source.as_fd(), size)?;
    let mut segments = Vec::new();
    let mut room = vec![0; waiting];
    loop {
        match rustix::io::read(&copy, &mut room)? {
            0 => break,
            n => {
                contents.bytes.extend_from_slice(&room[..n]);
                segments.push(n);
            }
        }
    }
    if contents.bytes.len() != waiting {
        return Err(Errno::NOBUFS);
    }
    let direct = rustix::fs::fcntl_getfl(file)?.contains(OFlags::DIRECT);
    let parts = parts_of(source.as_fd(), size, &segments, direct)?;
    if parts.iter().any(|part| part.packet) {
        contents.parts = parts;
    }
    Ok(contents)
}

/// A descriptor of the pipe that can be read from: the given one or another.
enum Reading<'a> {
    Given(BorrowedFd<'a>),
    Opened(OwnedFd),
}

impl AsFd for Reading<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Reading::Given(file) => *file,
            Reading::Opened(file) => file.as_fd(),
        }
    }
}

fn reading(file: BorrowedFd<'_>) -> std::result::Result<Reading<'_>, Errno> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    let readable = !flags.contains(OFlags::PATH) && flags & OFlags::ACCMODE != OFlags::WRONLY;
    match readable {
        true => Ok(Reading::Given(file)),
        false => reopen(file, OFlags::RDONLY | OFlags::NONBLOCK).map(Reading::Opened),
    }
}

/// The read end of a pipe of ours with the same buffers in it (tee(2) shares
/// them, their packet marks included). Its reads end with 0 when it is empty.
fn copy_of(source: BorrowedFd<'_>, size: usize) -> std::result::Result<OwnedFd, Errno> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    set_size(writer.as_fd(), size)?;
    rustix::pipe::tee(source, &writer, i32::MAX as usize, SpliceFlags::NONBLOCK)?;
    Ok(reader)
}

/// Tells packets from plain bytes. `segments` are the lengths of greedy reads:
/// each ends with a packet, except perhaps the last. Reading one byte of a
/// packet takes the whole packet away, which is how it is recognised; for a
/// last single byte there is no telling, and `direct` decides.
fn parts_of(
    source: BorrowedFd<'_>,
    size: usize,
    segments: &[usize],
    direct: bool,
) -> std::result::Result<Vec<Part>, Errno> {
    let probe = copy_of(source, size)?;
    let mut parts = Vec::new();
    for (at, &len) in segments.iter().enumerate() {
        let last = at + 1 == segments.len();
        let mut plain = |len| parts.push(Part { packet: false, len });
        let first = take(&probe, 1)?;
        if first == len && (len > 1 || !last || direct) {
            parts.push(Part { packet: true, len });
            continue;
        }
        if first == len {
            plain(len);
            continue;
        }
        let taken = first + if len > 2 { take(&probe, len - 2)? } else { 0 };
        if taken < len {
            // All but the last byte are plain; it is a packet if a read ended there.
            take(&probe, 1)?;
            plain(if last { len } else { len - 1 });
            if !last {
                parts.push(Part { packet: true, len: 1 });
            }
            continue;
        }
        let head = plain_head(copy_of(source, size)?, &segments[..at], len)?;
        plain(head);
        parts.push(Part { packet: true, len: len - head });
    }
    Ok(parts)
}

/// How many plain bytes a segment begins with before its packet: found byte by
/// byte in a copy, behind the segments before.
fn plain_head(copy: OwnedFd, before: &[usize], len: usize) -> std::result::Result<usize, Errno> {
    for &skipped in before {
        take(&copy, skipped)?;
    }
    let mut head = 0;
    while head < len && take(&copy, 1)? == 1 {
        head += 1;
    }
    Ok(head)
}

/// Reads up to `len` bytes and tells how many are gone from the pipe.
fn take(pipe: &OwnedFd, len: usize) -> std::result::Result<usize, Errno> {
    let before = rustix::io::ioctl_fionread(pipe)?;
    rustix::io::read(pipe, &mut vec![0; len])?;
    Ok((before - rustix::io::ioctl_fionread(pipe)?) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_bytes_and_packets_behind_each_other_are_told_apart() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let lens = [(true, 3), (true, 1), (false, 4096), (true, 2), (false, 4094), (true, 4), (true, 4096), (false, 7)];
        let mut wanted: Vec<Part> = lens.map(|(packet, len)| Part { packet, len }).to_vec();
        for (packet, len) in lens {
            let mode = if packet { OFlags::DIRECT } else { OFlags::empty() };
            rustix::fs::fcntl_setfl(&writer, mode).unwrap();
            rustix::io::write(&writer, &vec![len as u8; len]).unwrap();
        }
        for part in [3, 1, 4000] {
            rustix::io::read(&reader, &mut vec![0; part]).unwrap();
        }
        wanted.drain(..2);
        wanted[0].len = 96;
        let contents = read(reader.as_fd()).unwrap();
        assert_eq!(contents.parts, wanted);
        assert_eq!(contents, read(writer.as_fd()).unwrap());

        let (again, filled) = rustix::pipe::pipe().unwrap();
        write(filled.as_fd(), &contents.bytes, contents.parts.clone()).unwrap();
        assert_eq!(read(again.as_fd()).unwrap(), contents);
    }

    #[test]
    fn a_partly_read_full_pipe_is_read_to_the_end() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, 8192).unwrap();
        let bytes: Vec<u8> = (0..8192u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        rustix::io::write(&writer, &bytes).unwrap();
        rustix::io::read(&reader, &mut [0; 100]).unwrap();
        let contents = read(reader.as_fd()).unwrap();
        assert_eq!(contents, Contents { size: 8192, bytes: bytes[100..].to_vec(), parts: Vec::new() });
    }
}
