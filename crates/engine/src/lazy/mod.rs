//! A restore that resumes the tree without its memory, which is filled while it runs.
//!
//! Every address space whose memory is to come later gets a userfaultfd, made by its own process and closed there again
//! at once: nothing of it is seen in the program. We take it (pidfd_getfd), register the mappings, and hand it with a list
//! of what is missing to the *filler*, a process of its own that outlives us ([`filler`]). It gives a thread that waits for
//! a page that page, then fills the rest, closes the userfaultfd, and ends with the last of them. What the program does to
//! its addresses meanwhile (fork, mremap, munmap, madvise, exec) comes as events, in whose order nothing is filled that
//! has been dropped or moved ([`space`]).
//!
//! A closed userfaultfd makes what is missing zeros. So the filler is two processes with one table of descriptors: one
//! works, the other waits for its end and takes over ([`pair`] tells how nothing is lost on the way). While nobody works
//! the program waits.
//!
//! What comes later is private anonymous memory ([`comes_later`]). Everything else is filled before the tree runs:
//!
//! | memory | why |
//! |---|---|
//! | private memory of files | userfaultfd takes none: a missing page would be the file's |
//! | shared memory | its pages are also reached by others than its mappings: by read(2), by processes outside |
//! | huge pages | there may be none left when one is wanted; now, that is an error that can be told |
//! | memory that cannot be written to | the kernel counts it against the commit limit only if it has been |
//! | locked memory | the program was promised that it never waits for it |
//! | stacks that grow | hands stand on them until the end; they are small |
//! | rings of AIO, the vdso, droppable memory | the kernel's own, or nothing to keep |
//! | what children do not inherit as it is (`MADV_WIPEONFORK`) | of a child's empty pages nothing tells that they are meant to be |
//! | pages that a child of the tree shares until one writes | they would be filled for each, and be shared no more |

mod filler;
mod filling;
mod front;
mod handover;
mod mate;
mod missing;
mod pair;
mod placing;
mod remote;
mod server;
mod service;
mod source;
mod space;

use crate::memory::ranges::Range;
use crate::memory::{Piece, status};
use cryonaut_image::records::VmaEntry;
pub use filling::wait_until_filled;
pub use handover::{Handover, LeftOut};
pub use missing::Part;
pub use server::{PageServer, Refusals, serve_restore};
pub use service::PageService;
use std::path::PathBuf;

/// Whether memory comes later, and from whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Lazy {
    /// Everything is there before the tree runs.
    #[default]
    No,
    /// A filler of our own brings it, and writes what goes wrong to the end of this file.
    Filler(PathBuf),
    /// A server that listens at this socket brings it (`criu lazy-pages`).
    Server(PathBuf),
}

impl Lazy {
    /// Whether any does.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        *self != Lazy::No
    }

    /// Whether a server does, which may have pages that the image has not.
    #[must_use]
    pub fn is_by_server(&self) -> bool {
        matches!(self, Lazy::Server(_))
    }
}

/// Where a filler says what goes wrong, if nobody tells another place.
pub const LOG: &str = "/run/cryonaut/lazy.log";

/// The name of the socket at which a server of pages waits for a restore, in the working directory of both.
pub const SOCKET: &str = "lazy-pages.socket";

/// The file whose lock says that somebody fills memory.
const LOCK: &str = "/run/cryonaut/filling";

/// Whether the pages of a mapping may come when the program runs.
pub fn comes_later(vma: &VmaEntry) -> bool {
    const KERNELS: u32 = status::VDSO | status::VVAR | status::VSYSCALL | status::GUARD | status::AIORING;
    const NOT: i32 = libc::MAP_LOCKED | libc::MAP_HUGETLB | libc::MAP_GROWSDOWN;
    const PRIVATE: u32 = libc::MAP_PRIVATE as u32;
    vma.status & status::ANON_PRIVATE != 0
        && vma.status & status::REGULAR != 0
        && vma.status & KERNELS == 0
        && vma.prot & libc::PROT_WRITE as u32 != 0
        && vma.flags & libc::MAP_TYPE as u32 == PRIVATE
        && vma.flags & NOT as u32 == 0
        && vma.madv.unwrap_or(0) & 1 << libc::MADV_WIPEONFORK == 0
}

/// Which mappings of a process a restore registers, and a server takes for registered: those that may come later and have
/// some of these pieces, and those of which a page server alone has pages.
fn areas_of(vmas: &[VmaEntry], pieces: &[Piece], elsewhere: &[Range]) -> Vec<Range> {
    let has_pieces = |vma: &VmaEntry| {
        let next = pieces.get(pieces.partition_point(|piece| piece.end() <= vma.start));
        next.is_some_and(|piece| piece.start < vma.end)
    };
    let is_left_out = |vma: &VmaEntry| {
        let next = elsewhere.get(elsewhere.partition_point(|(_, end)| *end <= vma.start));
        next.is_some_and(|(start, _)| *start < vma.end)
    };
    let counts = |vma: &&VmaEntry| comes_later(vma) && has_pieces(vma) || is_left_out(vma);
    vmas.iter().filter(counts).map(|vma| (vma.start, vma.end)).collect()
}
