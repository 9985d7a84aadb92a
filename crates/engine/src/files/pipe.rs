//! Pipes (pipe(2)): the ends that the tree has, and what stands in between.
//!
//! All records of one pipe share its inode number. An end that nobody in the
//! tree has is closed once all records are built, so that readers see the end
//! of file and writers EPIPE, as before. A pipe that leads out of the tree is
//! carried alike, unless the user names a descriptor that takes its place.

use super::{Build, Collect, FileKind, OpenFile, pipe_data};
use crate::{Error, Object, Result};
use cryonaut_image::ImageKind;
use cryonaut_image::records::{FdTypes, FileEntry, FownEntry, PipeDataEntry, PipeEntry};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// Pipes without a name.
#[derive(Debug)]
pub struct Pipe;

/// Status flags that both ends of pipe2(2) can have from birth.
const AT_BIRTH: OFlags = OFlags::NONBLOCK.union(OFlags::DIRECT);

impl FileKind for Pipe {
    fn name(&self) -> &'static str {
        "pipe"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Pipe
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        FileType::from_raw_mode(file.stat.st_mode) == FileType::Fifo && file.link_bytes().starts_with(b"pipe:[")
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        // Pipes have 32-bit inode numbers (fs/pipe.c, get_next_ino).
        let pipe_id = file.stat.st_ino as u32;
        if cx.notes.insert(("pipe", u64::from(pipe_id)), id).is_none() {
            pipe_data::collect(cx.images, ImageKind::PipesData, pipe_id, file.file, &file.object())?;
        }
        let pipe = PipeEntry { id, pipe_id, flags: file.flags(), fown: file.owner()? };
        Ok(FileEntry { r#type: FdTypes::Pipe as i32, id, pipe: Some(pipe), ..FileEntry::default() })
    }

    /// Builds all pipes of the image at once: their contents lie in one file.
    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let mut pipes: BTreeMap<u32, Pair> = BTreeMap::new();
        for record in cx.records().values().filter_map(|e| e.pipe.as_ref()) {
            pipes.entry(record.pipe_id).or_default().records.push(*record);
        }
        for (&pipe_id, pair) in &mut pipes {
            pair.inherited = cx.inherited(&format!("pipe:[{pipe_id}]"))?;
            if pair.inherited.is_none() {
                pair.ends =
                    Some(rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(pipe_id, "make a pipe", e))?);
            }
        }
        if let Some(mut data) = cx.images.entries_optional(ImageKind::PipesData, None)? {
            while let Some((data, bytes)) = data.next_tailed::<PipeDataEntry>()? {
                if let Some((_, writer)) = pipes.get(&data.pipe_id).and_then(|pair| pair.ends.as_ref()) {
                    pipe_data::fill(cx.images, ImageKind::PipesData, writer.as_fd(), &data, &bytes)?;
                }
            }
        }
        let mut ours = None;
        for (pipe_id, pair) in pipes {
            for (id, file) in pair.hand_out().map_err(|e| failed(pipe_id, "open it", e))? {
                match id == entry.id {
                    true => ours = Some(file),
                    false => cx.put(id, file),
                }
            }
        }
        ours.ok_or_else(|| Build::lacks(entry, self.name()))
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.pipe.as_ref().map(|pipe| &pipe.fown)
    }
}

fn failed(pipe_id: u32, action: &str, errno: Errno) -> Error {
    Error::kernel(Object::Other(format!("pipe:[{pipe_id}]")), action, errno)
}

/// A pipe on its way: its records, and what they will be.
#[derive(Debug, Default)]
struct Pair {
    records: Vec<PipeEntry>,
    ends: Option<(OwnedFd, OwnedFd)>,
    inherited: Option<OwnedFd>,
}

impl Pair {
    /// An open file for each record. The two that pipe2(2) made go to the
    /// first records that could be them; any other was opened through
    /// `/proc/PID/fd`, and is again.
    fn hand_out(self) -> std::result::Result<Vec<(u32, OwnedFd)>, Errno> {
        let mut files = Vec::with_capacity(self.records.len());
        if let Some(given) = self.inherited {
            for record in self.records {
                files.push((record.id, stand_in(&given, OFlags::from_bits_retain(record.flags))?));
            }
            return Ok(files);
        }
        let Some((reader, writer)) = self.ends else {
            return Ok(files);
        };
        let (mut read_by, mut write_by) = (None, None);
        for record in self.records {
            let flags = OFlags::from_bits_retain(record.flags);
            let born = (flags - AT_BIRTH - OFlags::from_bits_retain(libc::O_ASYNC as u32)).bits();
            if born == OFlags::RDONLY.bits() && read_by.is_none() {
                read_by = Some(record);
            } else if born == OFlags::WRONLY.bits() && write_by.is_none() {
                write_by = Some(record);
            } else {
                let mode = flags & (OFlags::ACCMODE | AT_BIRTH | OFlags::PATH);
                files.push((record.id, pipe_data::reopen(reader.as_fd(), mode)?));
            }
        }
        for (record, end) in [(read_by, reader), (write_by, writer)] {
            if let Some(record) = record {
                let flags = OFlags::from_bits_retain(record.flags) & AT_BIRTH;
                if !flags.is_empty() {
                    rustix::fs::fcntl_setfl(&end, flags)?;
                }
                files.push((record.id, end));
            }
        }
        Ok(files)
    }
}

/// What takes the place of a pipe's end. Of a pipe a description of its own,
/// so that the flags of the giver's stay as they are; anything else as it is.
fn stand_in(given: &OwnedFd, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let is_pipe = FileType::from_raw_mode(rustix::fs::fstat(given)?.st_mode) == FileType::Fifo;
    if !is_pipe {
        return rustix::io::fcntl_dupfd_cloexec(given, 0);
    }
    let file = pipe_data::reopen(given.as_fd(), (flags & OFlags::ACCMODE) | OFlags::NONBLOCK)?;
    rustix::fs::fcntl_setfl(&file, flags & AT_BIRTH)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Carried;
    use super::*;
    use crate::RestoreOptions;

    #[test]
    fn both_ends_their_flags_and_the_contents_come_back() {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).unwrap();
        let third = pipe_data::reopen(reader.as_fd(), OFlags::RDWR).unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, 16384).unwrap();
        rustix::fs::fcntl_setfl(&writer, OFlags::empty()).unwrap();
        rustix::io::write(&writer, b"in the pipe").unwrap();
        let carried = Carried::collect(&[&writer, &reader, &third]).build(RestoreOptions::default());
        let flags = |fd: &OwnedFd| rustix::fs::fcntl_getfl(fd).unwrap();
        let [new_writer, new_reader, new_third] = [0, 1, 2].map(|n| carried.file(n));
        for (old, new) in [(&writer, new_writer), (&reader, new_reader), (&third, new_third)] {
            assert_eq!(flags(old), flags(new));
        }
        assert_eq!(rustix::pipe::fcntl_getpipe_size(new_reader).unwrap(), 16384);
        for pipe in [new_reader, &reader] {
            let mut bytes = [0; 100];
            let n = rustix::io::read(pipe, &mut bytes).unwrap();
            assert_eq!(&bytes[..n], b"in the pipe");
        }
        rustix::io::write(new_writer, b"more").unwrap();
        assert_eq!(rustix::io::read(new_third, &mut [0; 9]).unwrap(), 4);
    }

    #[test]
    fn a_pipe_without_writers_ends_after_its_contents() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&writer, b"last").unwrap();
        drop(writer);
        let carried = Carried::collect(&[&reader]).build(RestoreOptions::default());
        let mut bytes = [0; 8];
        assert_eq!(rustix::io::read(carried.file(0), &mut bytes).unwrap(), 4);
        assert_eq!(rustix::io::read(carried.file(0), &mut bytes).unwrap(), 0);
    }

    #[test]
    fn a_given_descriptor_takes_the_place_of_a_pipe() {
        use std::os::fd::AsRawFd;
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (given_reader, given) = rustix::pipe::pipe().unwrap();
        let key = format!("pipe:[{}]", rustix::fs::fstat(&reader).unwrap().st_ino);
        let options = RestoreOptions { inherit_fds: vec![(given.as_raw_fd(), key)], ..RestoreOptions::default() };
        let carried = Carried::collect(&[&writer]).build(options);
        rustix::io::write(carried.file(0), b"out").unwrap();
        assert_eq!(rustix::io::read(&given_reader, &mut [0; 8]).unwrap(), 3);
    }
}
