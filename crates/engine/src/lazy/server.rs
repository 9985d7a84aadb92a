//! `criu lazy-pages`: a filler that somebody starts before the restore, and that reads the image by itself. It may take
//! pages from a page server that the image has not; with an image that leaves nothing out, all that may come later is asked of it.
//!
//! The restore speaks the protocol of CRIU 4.2 over the stream [`SOCKET`](super::SOCKET):
//!
//! | what | means |
//! |---|---|
//! | a pid, 32 bits | a process; with one byte behind it comes its userfaultfd, and from ours a pidfd |
//! | a negative pid | a process without memory that would come later |
//! | [`FINISHED`] | that were all: the tree is about to run |
//!
//! We say something that CRIU's server does not: a byte when we are reached ([`GREETING`]), one when everything is taken
//! over, and why we cannot go on, if we cannot.

use super::filler::{self, Log};
use super::front::{Front, Heard};
use super::handover::{FINISHED, GREETING};
use super::missing::{Missing, Part};
use super::remote::{Connection, RemotePages};
use super::space::Space;
use super::{areas_of, comes_later};
use crate::memory::ranges::{self, Range};
use cryonaut_image::records::MmEntry;
use cryonaut_image::{Chain, FoundPages, ImageKind, Piece, Source};
use cryonaut_kernel::sys::scm_rights;
use cryonaut_kernel::uffd::Uffd;
use cryonaut_page_server::Client;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// How who cannot go on begins to say why.
const REFUSAL: u8 = b'L';

/// How long a restore that has failed waits to hear whether that was for this.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Where pages come from that the image has not.
pub type PageServer = Option<Client>;

/// Serves the one restore that comes, until all memory is there. What goes wrong is written to `log`. Returns an exit code.
///
/// # Errors
/// That the image cannot be read, or nobody can be accepted.
pub fn serve_restore(listener: UnixListener, images: &Path, server: PageServer, log: File) -> crate::Result<i32> {
    let images = Chain::open(images)?;
    let failed = |error: io::Error| {
        let object = crate::Object::Other("the socket for restores".into());
        crate::Error::kernel(object, "accept one", crate::error::errno_of(&error))
    };
    let (stream, _) = listener.accept().map_err(failed)?;
    // Nobody else is to come.
    drop(listener);
    (&stream).write_all(&[GREETING]).map_err(failed)?;
    let server = server.map(Connection::new);
    let front = ServerFront { stream, images, server, numbers: HashMap::new(), sources: 0 };
    Ok(filler::run(Box::new(front), Vec::new(), Log::to(log)))
}

/// A restore's way to hear why its server of pages has failed.
#[derive(Debug)]
pub struct Refusals(pub(super) OwnedFd);

impl Refusals {
    /// Why, if the server says so. Nothing more is told to it then.
    pub fn hear(self) -> Option<String> {
        let _ = rustix::net::shutdown(&self.0, Shutdown::Write);
        let mut watched = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut watched, Some(&PATIENCE)).ok().filter(|told| *told == 1)?;
        let mut said = Vec::new();
        File::from(self.0).take(4096).read_to_end(&mut said).ok()?;
        let begin = said.iter().position(|byte| *byte == REFUSAL)?;
        Some(String::from_utf8_lossy(&said[begin + 1..]).into_owned())
    }
}

/// The way to a restore that somebody else has called.
#[derive(Debug)]
struct ServerFront {
    stream: UnixStream,
    images: Chain<'static>,
    server: Option<Rc<RefCell<Connection>>>,
    /// Those of the sources that the filler has, by pages file.
    numbers: HashMap<Source, u32>,
    /// How many it has.
    sources: u32,
}

impl ServerFront {
    /// What is missing of a process, and its sources that the filler does not have yet.
    fn process(&mut self, pid: i32, uffd: Uffd) -> crate::Result<Vec<Heard>> {
        let FoundPages { pieces, elsewhere } = self.images.found(ImageKind::Pagemap, pid as u64)?;
        let mm: MmEntry = self.images.image().read_one(ImageKind::Mm, pid as u64)?;
        let areas = areas_of(&mm.vmas, &pieces, &elsewhere);
        let later: Vec<Range> = mm.vmas.iter().filter(|vma| comes_later(vma)).map(|vma| (vma.start, vma.end)).collect();
        let here: Vec<Piece> = pieces.iter().flat_map(|piece| within(piece, &later)).collect();
        let (mut heard, mut missing) = (Vec::new(), Missing::default());
        let remote = match (&self.server, elsewhere.first()) {
            // An image that leaves nothing out is what the server has as well: it was named to be asked.
            (Some(_), None) => here.iter().map(|piece| (piece.start, piece.end())).collect(),
            (None, Some((address, _))) => {
                let path = self.images.image().path_of(ImageKind::Pagemap, pid as u64)?;
                return Err(cryonaut_image::Error::Elsewhere { path, address: *address }.into());
            }
            _ => {
                for piece in &here {
                    let source = self.source(piece.source, &mut heard)?;
                    missing.add(Part { start: piece.start, len: piece.len, source, offset: piece.offset });
                }
                elsewhere
            }
        };
        if let Some(server) = self.server.as_ref().filter(|_| !remote.is_empty()) {
            let remote = ranges::union(remote);
            for (start, end) in &remote {
                missing.add(Part { start: *start, len: end - start, source: self.sources, offset: *start });
            }
            self.sources += 1;
            heard.push(Heard::Source(Box::new(RemotePages::new(server, pid, remote))));
        }
        heard.push(Heard::Space(Space::new(pid, uffd, missing, areas)));
        Ok(heard)
    }

    /// The number of a pages file.
    fn source(&mut self, source: Source, heard: &mut Vec<Heard>) -> crate::Result<u32> {
        if let Some(number) = self.numbers.get(&source) {
            return Ok(*number);
        }
        heard.push(Heard::Source(Box::new(Arc::new(self.images.pages(source)?))));
        self.numbers.insert(source, self.sources);
        self.sources += 1;
        Ok(self.sources - 1)
    }

    /// The userfaultfd of a process, and the process.
    fn files(&self) -> io::Result<Vec<OwnedFd>> {
        let got = scm_rights::receive(&self.stream, &mut [0])?;
        if got.bytes == 0 || got.files.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(got.files)
    }
}

impl Front for ServerFront {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn hear(&mut self) -> io::Result<Vec<Heard>> {
        let mut number = [0; 4];
        match self.stream.read_exact(&mut number) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(vec![Heard::Gone]),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(vec![Heard::Gone]),
            Err(error) => return Err(error),
        }
        if u32::from_ne_bytes(number) == FINISHED {
            return Ok(vec![Heard::Go]);
        }
        let pid = i32::from_ne_bytes(number);
        if pid < 0 {
            return Ok(Vec::new());
        }
        let mut files = self.files()?.into_iter();
        let Some(uffd) = files.next() else { return Err(io::ErrorKind::InvalidData.into()) };
        let mut heard = self.process(pid, Uffd::from_fd(uffd)).map_err(io::Error::other)?;
        heard.extend(files.map(Heard::Process));
        Ok(heard)
    }

    fn answer(&mut self) -> io::Result<()> {
        self.stream.write_all(&[1])
    }

    fn refuse(&mut self, why: &str) -> io::Result<()> {
        self.stream.write_all(&[&[REFUSAL], why.as_bytes()].concat())
    }

    fn is_own(&self) -> bool {
        false
    }
}

/// What of a piece lies in ranges, which ascend.
fn within(piece: &Piece, ranges: &[Range]) -> Vec<Piece> {
    let first = ranges.partition_point(|(_, end)| *end <= piece.start);
    ranges[first..].iter().map_while(|(start, end)| piece.clip(*start, *end)).collect()
}
