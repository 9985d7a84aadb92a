//! The memory of a process: its mappings, their contents, and the fields of
//! its address space.
//!
//! | module  | owns                                                         |
//! |---------|--------------------------------------------------------------|
//! | vma     | what a mapping is, read from /proc, as a record              |
//! | pages   | copying contents out of a frozen process into the image      |
//! | page_writer | a pagemap with its pages, into files or to a page server      |
//! | absent  | what is there without a page, and need not be stored          |
//! | common  | pages that processes share until one writes: stored once      |
//! | layers  | ... in images below the image                                |
//! | way     | how many pages leave a process without coming by us          |
//! | direct  | ... the process writes them into their file itself           |
//! | splice  | ... it hands them over through pipes                         |
//! | frozen_memory | /proc/PID/mem of a process that stands still           |
//! | shared  | segments of shared memory that an image has without a file      |
//! | flags   | flags of mappings without a look at every page               |
//! | fields  | brk, stack, arguments, auxv, executable                      |
//! | aio     | rings of asynchronous I/O                                     |
//! | extras  | what CRIU's records have no place for: seals, KSM, lazy locks  |
//! | contents | where the image has the pages of a process                  |
//! | inherit | what a process keeps of the memory that it is born with       |
//! | spaces  | which process is given its memory when                       |
//! | build   | mapping everything again and filling it                      |
//! | vdso    | moving this kernel's vdso to where the program expects it    |
//! | vdso_redirect | leading another kernel's vdso to this one's           |

mod absent;
pub mod aio;
mod build;
mod common;
mod contents;
mod direct;
mod extras;
mod fields;
mod fill;
mod flags;
mod frozen_memory;
mod inherit;
mod layers;
mod page_writer;
mod pages;
mod shared;
mod spaces;
mod splice;
mod vdso;
mod vdso_redirect;
mod vma;
mod way;
mod write_behind;

pub use absent::{Absent, MappedFiles};
pub use build::{Shape, free_besides};
pub use common::{Asked, Common, Shares, find as find_common, have_in_common};
pub use contents::{Contents, Piece, Source as PieceSource, Store};
pub use cryonaut_image::ranges;
pub use extras::{AllExtras, Extras, ExtrasAsk, NAME as EXTRAS};
pub use fields::{MmAsk, mm_record};
pub use flags::{KnownFlags, has_flag};
pub use layers::Layers;
pub use page_writer::{PageCount, PageWriter, PagesPlace};
pub use pages::dump_private;
pub use shared::SharedBuild;
pub use spaces::AddressSpaces;
pub use vdso::recorded as recorded_vdso;
pub use vma::{add_guards, find_files, is_kernels, mappings, mappings_without_flags, page_size, status};
pub use way::WORTH_IT;
pub use write_behind::failed as pages_failed;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
