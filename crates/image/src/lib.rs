//! The checkpoint image on disk: CRIU v4.2's files, read and written.
//!
//! This crate owns the bytes: framing, magic numbers, message layouts, limits.
//! It makes no kernel calls beyond ordinary file input and output, and knows
//! nothing about processes.

//!
//! ```no_run
//! use cryonaut_image::{CommitOptions, DumpDir, ImageDir, ImageKind, records};
//!
//! # fn main() -> cryonaut_image::Result<()> {
//! let dump = DumpDir::create("/var/tmp/checkpoint")?;
//! let process = records::PstreeEntry { pid: 1, pgid: 1, sid: 1, ..Default::default() };
//! dump.append(ImageKind::Pstree, None, &process, None)?;
//! let inventory = records::InventoryEntry { img_version: 2, ..Default::default() };
//! dump.write_one(ImageKind::Inventory, None, &inventory)?;
//! drop(dump.commit(CommitOptions::default())?);
//!
//! let image = ImageDir::open("/var/tmp/checkpoint")?;
//! let tree: Vec<records::PstreeEntry> = image.read_all(ImageKind::Pstree, None)?;
//! # Ok(())
//! # }
//! ```

mod chain;
pub mod dedup;
mod dir;
mod dump_dir;
mod entry_reader;
mod entry_writer;
mod error;
mod finisher;
mod frames;
mod image_dir;
mod kind;
mod manifest;
mod pages;
pub mod ranges;
mod shape;
pub mod squash;
mod staging;
pub mod stats;
mod tail;
mod verify;

pub use chain::{Chain, FoundPages, Piece, Source};
pub use dump_dir::{CommitOptions, DumpDir, Durability, Leavings, Remains, is_part_of_an_image};
pub use entry_reader::EntryReader;
pub use entry_writer::EntryWriter;
pub use error::{Error, Result};
pub use frames::Codec;
pub use image_dir::ImageDir;
pub use kind::{Header, ImageKind};
pub use manifest::{FileSum, MANIFEST_NAME, Manifest, Provenance};
pub use pages::{PAGE_SIZE, PageFlags, Pagemap, PagemapWriter, Run};
pub use shape::{Record, Shape, WireFault, decode};
pub use tail::Tailed;
pub use verify::Verified;

/// The messages of the image files, generated from `proto/images.proto`.
#[allow(missing_debug_implementations, clippy::all)]
pub mod records {
    include!(concat!(env!("OUT_DIR"), "/images.rs"));
}

/// The messages spoken over `criu swrk`, generated from `proto/rpc.proto`.
#[allow(missing_debug_implementations, clippy::all)]
pub mod rpc {
    include!(concat!(env!("OUT_DIR"), "/rpc.rs"));
}
