//! What can go wrong with an image, and what its owner can do about it.
//!
//! Every error names the file; errors about contents name the byte as well.

use std::io;
use std::path::{Path, PathBuf};

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure to read or write an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a file operation.
    #[error("cannot {action} {}: {source}{}", path.display(), io_remedy(source))]
    Io {
        /// What was tried, as in "cannot {action} FILE".
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    /// The image lacks a file it needs.
    #[error(
        "{} is missing; if it is inventory.img, the dump did not finish or this is not an image directory, otherwise copy the image again",
        path.display()
    )]
    Missing { path: PathBuf },

    /// A file holds something else than the format says.
    #[error("{} at byte {offset}: expected {expected}, found {found}; {remedy}", path.display())]
    Corrupt {
        path: PathBuf,
        /// Where the wrong bytes begin, counted from the start of the file.
        offset: u64,
        expected: String,
        found: String,
        remedy: &'static str,
    },

    /// A file holds other bytes than those that were dumped.
    #[error(
        "{} differs from what was dumped: expected {expected}, found {found}; copy the image again, or, if you changed it on purpose, delete {MANIFEST} beside it",
        path.display()
    )]
    Altered { path: PathBuf, expected: String, found: String },

    /// Another writer is at work in the directory.
    #[error("{}: another dump is being written there; wait for it to end, or choose another directory", path.display())]
    Busy { path: PathBuf },

    /// A parent of the image is not what the image was made upon.
    #[error(
        "{}: {problem}; bring the image's parents along, each where the link `parent` of its child leads",
        path.display()
    )]
    Parent { path: PathBuf, problem: String },

    /// Pages were left to a page server and are in no file.
    #[error(
        "{}: the pages from {address:#x} on were left to a page server, not written to the image; restore with --lazy-pages while it runs",
        path.display()
    )]
    Elsewhere { path: PathBuf, address: u64 },

    /// The crate was asked for something that the format cannot express, or
    /// that would make the image contradict itself.
    #[error("{}: {reason}; this is a defect of Cryonaut, please report it", path.display())]
    Misuse { path: PathBuf, reason: String },
}

/// Name of the manifest; here because the error text names it.
pub const MANIFEST: &str = "cryonaut-manifest.json";

/// For a file that ends too early.
pub(crate) const CUT_SHORT: &str = "the file was cut short: copy the image again";
/// For a file whose bytes make no sense.
pub(crate) const DAMAGED: &str = "the file is damaged: copy the image again, or dump again";
/// For a file that may be whole but is not what it is taken for.
pub(crate) const NOT_CRIU: &str =
    "check that this is an image of CRIU's format, version 2 or later, written on a little-endian machine";

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        Self::Io { action, path, source }
    }

    pub(crate) fn corrupt(
        path: &Path,
        offset: u64,
        expected: impl Into<String>,
        found: impl Into<String>,
        remedy: &'static str,
    ) -> Self {
        Self::Corrupt { path: path.to_owned(), offset, expected: expected.into(), found: found.into(), remedy }
    }

    pub(crate) fn parent(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Parent { path: path.into(), problem: problem.into() }
    }

    pub(crate) fn misuse(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Misuse { path: path.into(), reason: reason.into() }
    }

    /// The file (or directory) that the error is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
            | Self::Missing { path }
            | Self::Corrupt { path, .. }
            | Self::Altered { path, .. }
            | Self::Busy { path }
            | Self::Parent { path, .. }
            | Self::Elsewhere { path, .. }
            | Self::Misuse { path, .. } => path,
        }
    }

    /// The byte of the file that the error is about, where there is one.
    pub fn offset(&self) -> Option<u64> {
        match self {
            Self::Corrupt { offset, .. } => Some(*offset),
            _ => None,
        }
    }

    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// What to do about the answers that a user meets in practice.
fn io_remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull => "; free space there or choose another directory",
        io::ErrorKind::QuotaExceeded => "; the quota there is used up: choose another directory",
        io::ErrorKind::PermissionDenied => "; run as root, or choose a directory you may write",
        io::ErrorKind::ReadOnlyFilesystem => "; choose a directory on a writable filesystem",
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::NotADirectory => "; name a directory",
        _ => "",
    }
}
