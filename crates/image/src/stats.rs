//! `stats-dump` and `stats-restore`: how long a run took and what it moved.
//!
//! They lie in the work directory, which need not be the image's; container
//! managers read them from there.

use std::io::Write;
use std::path::Path;

use prost::Message;

use crate::dir::Dir;
use crate::entry_reader::EntryReader;
use crate::error::{CUT_SHORT, Error, Result};
use crate::kind::ImageKind;
use crate::records::{DumpStatsEntry, RestoreStatsEntry, StatsEntry};

/// Writes `stats-dump` into a directory, in the place of an older one.
///
/// # Errors
/// [`Error::Io`].
pub fn write_dump_stats(dir: impl AsRef<Path>, stats: DumpStatsEntry) -> Result<()> {
    let entry = StatsEntry { dump: Some(stats), restore: None };
    write(dir.as_ref(), ImageKind::StatsDump, &entry)
}

/// Writes `stats-restore` into a directory, in the place of an older one.
///
/// # Errors
/// [`Error::Io`].
pub fn write_restore_stats(dir: impl AsRef<Path>, stats: RestoreStatsEntry) -> Result<()> {
    let entry = StatsEntry { dump: None, restore: Some(stats) };
    write(dir.as_ref(), ImageKind::StatsRestore, &entry)
}

/// Reads `stats-dump`.
///
/// # Errors
/// [`Error::Missing`], [`Error::Io`], [`Error::Corrupt`].
pub fn read_dump_stats(dir: impl AsRef<Path>) -> Result<DumpStatsEntry> {
    read(dir.as_ref(), ImageKind::StatsDump, |entry| entry.dump)
}

/// Reads `stats-restore`.
///
/// # Errors
/// [`Error::Missing`], [`Error::Io`], [`Error::Corrupt`].
pub fn read_restore_stats(dir: impl AsRef<Path>) -> Result<RestoreStatsEntry> {
    read(dir.as_ref(), ImageKind::StatsRestore, |entry| entry.restore)
}

fn write(dir: &Path, kind: ImageKind, entry: &StatsEntry) -> Result<()> {
    let dir = Dir::open(dir)?;
    let name = kind.file_name(None)?;
    let message = entry.encode_to_vec();
    let mut bytes = kind.header().bytes();
    bytes.extend((message.len() as u32).to_le_bytes());
    bytes.extend(message);

    let beside = format!(".{name}.{}", std::process::id());
    let mut file = dir.create_file(&beside)?;
    let written = file
        .write_all(&bytes)
        .map_err(|source| Error::io("write", dir.path_of(&beside), source))
        .and_then(|()| dir.rename(&beside, &name));
    if written.is_err() {
        // The error that matters is the one being returned.
        let _ = dir.remove_file(&beside);
    }
    written
}

fn read<T>(dir: &Path, kind: ImageKind, part: impl Fn(StatsEntry) -> Option<T>) -> Result<T> {
    let dir = Dir::open(dir)?;
    let name = kind.file_name(None)?;
    let path = dir.path_of(&name);
    let Some((file, size)) = dir.open_file(&name)? else {
        return Err(Error::Missing { path });
    };
    let mut reader = EntryReader::new(kind, path.clone(), file, size)?;
    let at = reader.position();
    match part(reader.require()?) {
        Some(part) => Ok(part),
        None => Err(Error::corrupt(&path, at, "statistics of this sort", "none", CUT_SHORT)),
    }
}
