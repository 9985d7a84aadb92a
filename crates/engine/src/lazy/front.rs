//! What a filler hears from a restore, until the tree runs.

use super::missing::{Missing, Part};
use super::source::Source;
use super::space::Space;
use crate::memory::ranges::Range;
use cryonaut_kernel::Errno;
use cryonaut_kernel::sys::scm_rights;
use cryonaut_kernel::uffd::Uffd;
use rustix::net::{RecvFlags, recv};
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// What is heard.
#[derive(Debug)]
pub enum Heard {
    /// Another source; they are counted from 0.
    Source(Box<dyn Source>),
    /// A process that is to be ended if a source is lost.
    Process(OwnedFd),
    /// An address space to fill.
    Space(Space),
    /// All are there, and the tree is about to run.
    Go,
    /// The restore has ended before that.
    Gone,
}

/// The way from a restore to a filler.
pub trait Front: Debug {
    /// Has something to be heard when it can be read.
    fn as_fd(&self) -> BorrowedFd<'_>;

    /// Hears at least one thing, unless what is told means nothing to who fills.
    ///
    /// # Errors
    /// When it cannot be understood.
    fn hear(&mut self) -> io::Result<Vec<Heard>>;

    /// Everything is taken over for good.
    ///
    /// # Errors
    /// When nobody hears it.
    fn answer(&mut self) -> io::Result<()>;

    /// Memory is lost for good.
    ///
    /// # Errors
    /// When nobody hears it.
    fn refuse(&mut self, _why: &str) -> io::Result<()> {
        Ok(())
    }

    /// Whether the restore has made its filler itself, aside from everything that a signal would reach.
    fn is_own(&self) -> bool {
        true
    }
}

/// First word of a message of ours.
const SOURCE: u64 = 1;
/// The second word is the pid, the descriptors are the userfaultfd and what is missing: of each part all four fields, as
/// words, and the same of what is registered, which is of no source ([`AREA`]).
const SPACE: u64 = 2;
const GO: u64 = 3;
const AREA: u32 = u32::MAX;

/// Bytes of the record of a part.
const PART: usize = 32;

/// Of a restore that has made its filler itself: a socket of whole messages.
#[derive(Debug)]
pub struct OwnFront(pub OwnedFd);

impl Front for OwnFront {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn hear(&mut self) -> io::Result<Vec<Heard>> {
        let mut words = [0u8; 16];
        let got = scm_rights::receive(&self.0, &mut words)?;
        if got.bytes == 0 {
            return Ok(vec![Heard::Gone]);
        }
        let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| words[at + i]));
        let mut files = got.files.into_iter();
        let heard = match (word(0), files.next(), files.next()) {
            (SOURCE, Some(file), None) => Heard::Source(Box::new(Arc::new(File::from(file)))),
            (SPACE, Some(uffd), Some(list)) => {
                let (missing, areas) = read_list(&File::from(list))?;
                Heard::Space(Space::new(word(8) as i32, Uffd::from_fd(uffd), missing, areas))
            }
            (GO, None, None) => Heard::Go,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok(vec![heard])
    }

    fn answer(&mut self) -> io::Result<()> {
        send(self.0.as_fd(), &[1], &[]).map_err(io::Error::from)
    }
}

fn read_list(list: &File) -> io::Result<(Missing, Vec<Range>)> {
    let len = list.metadata()?.len() as usize;
    let mut bytes = vec![0; len - len % PART];
    list.read_exact_at(&mut bytes, 0)?;
    let (mut missing, mut areas) = (Missing::default(), Vec::new());
    for part in bytes.as_chunks::<PART>().0 {
        let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| part[at + i]));
        let part = Part { start: word(0), len: word(8), source: word(16) as u32, offset: word(24) };
        match part {
            Part { source: AREA, .. } => areas.push((part.start, part.end())),
            _ => missing.add(part),
        }
    }
    Ok((missing, areas))
}

/// Tells a filler of ours where pages are to be had.
pub fn send_source(socket: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<(), Errno> {
    send(socket, &words(&[SOURCE, 0]), &[file])
}

/// Hands it an address space.
pub fn send_space(socket: BorrowedFd<'_>, pid: i32, uffd: &Uffd, parts: &[Part], areas: &[Range]) -> Result<(), Errno> {
    let list = rustix::fs::memfd_create("missing", rustix::fs::MemfdFlags::CLOEXEC)?;
    let area = |area: &Range| Part { start: area.0, len: area.1 - area.0, source: AREA, offset: 0 };
    let parts = parts.iter().copied().chain(areas.iter().map(area));
    let bytes: Vec<u8> = parts.flat_map(|p| words(&[p.start, p.len, u64::from(p.source), p.offset])).collect();
    let list = File::from(list);
    list.write_all_at(&bytes, 0).map_err(|e| crate::error::errno_of(&e))?;
    send(socket, &words(&[SPACE, pid as u64]), &[uffd.as_fd(), list.as_fd()])
}

/// Tells it that the tree is about to run, and waits until it has taken over.
pub fn send_go(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    send(socket, &words(&[GO, 0]), &[])?;
    await_answer(socket)
}

/// Waits until it has taken over.
pub(super) fn await_answer(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut answer = [0u8; 1];
    let got = rustix::io::retry_on_intr(|| recv(socket, &mut answer[..], RecvFlags::PEEK))?;
    match got {
        // Anything else is why not.
        (1, _) if answer == [1] => Ok(()),
        _ => Err(Errno::PIPE),
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8], files: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    match scm_rights::send(socket, bytes, files)? {
        sent if sent == bytes.len() => Ok(()),
        _ => Err(Errno::PIPE),
    }
}
