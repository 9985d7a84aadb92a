//! FIFOs (fifo(7)): pipes with a path.
//!
//! The path is a record of its own, as of any file; this one adds which FIFOs
//! are the same pipe, and what stands in it. They are opened through a
//! descriptor that has both ends, so that no opening waits for the other side.

use super::{Build, Collect, FileKind, OpenFile, apply_status_flags, pipe_data, regular, regular_path};
use crate::{Error, Object, Result};
use cryonaut_image::ImageKind;
use cryonaut_image::records::{FdTypes, FifoEntry, FileEntry, PipeDataEntry, RegFileEntry};
use rustix::fs::{FileType, OFlags};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::os::fd::{AsFd, OwnedFd};

/// FIFOs.
#[derive(Debug)]
pub struct Fifo;

impl FileKind for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Fifo
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        let is_fifo = FileType::from_raw_mode(file.stat.st_mode) == FileType::Fifo;
        is_fifo && !regular::is_path_only(file.flags()) && !file.link_bytes().starts_with(b"pipe:[")
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        // Inode numbers of different file systems may be the same: the first file
        // of the pipe gives it its name.
        let inode = (file.stat.st_dev, file.stat.st_ino);
        let key = BuildHasherDefault::<DefaultHasher>::default().hash_one(inode);
        let pipe_id = match cx.notes.get(&("fifo", key)) {
            Some(&known) => known,
            None => {
                pipe_data::collect(cx.images, ImageKind::FifoData, id, file.file, &file.object())?;
                cx.notes.insert(("fifo", key), id);
                id
            }
        };
        let link = format!("fd/{}", file.fd);
        let regf_id = Some(regular::collect_path(cx, file.task, file.pid, &link, file.flags())?.id);
        let fifo = FifoEntry { id, pipe_id, regf_id };
        Ok(FileEntry { r#type: FdTypes::Fifo as i32, id, fifo: Some(fifo), ..FileEntry::default() })
    }

    /// Builds all FIFOs of the image at once: their contents lie in one file.
    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let mut pipes: BTreeMap<u32, Vec<FifoEntry>> = BTreeMap::new();
        for record in cx.records().values().filter_map(|e| e.fifo.as_ref()) {
            pipes.entry(record.pipe_id).or_default().push(*record);
        }
        let mut both_ends = BTreeMap::new();
        for (&pipe_id, records) in &pipes {
            if let Some(first) = records.first() {
                both_ends.insert(pipe_id, open_both_ends(cx, first)?);
            }
        }
        if let Some(mut data) = cx.images.entries_optional(ImageKind::FifoData, None)? {
            while let Some((data, bytes)) = data.next_tailed::<PipeDataEntry>()? {
                // What is in there already is what was: others had kept the pipe alive.
                if let Some(pipe) = both_ends.get(&data.pipe_id)
                    && matches!(rustix::io::ioctl_fionread(pipe), Ok(0))
                {
                    pipe_data::fill(cx.images, ImageKind::FifoData, pipe.as_fd(), &data, &bytes)?;
                }
            }
        }
        let mut ours = None;
        for (pipe_id, records) in &pipes {
            for record in records {
                let file = open_like(cx, &both_ends[pipe_id], record)?;
                match record.id == entry.id {
                    true => ours = Some(file),
                    false => cx.put(record.id, file),
                }
            }
        }
        ours.ok_or_else(|| Build::lacks(entry, self.name()))
    }
}

/// The record of the path.
fn path_of(cx: &Build<'_>, fifo: &FifoEntry) -> Result<RegFileEntry> {
    let path = match fifo.regf_id {
        // Older images of CRIU's: both records have the same id.
        None => cx.record(fifo.id)?.reg.as_ref(),
        Some(id) => cx.record(id)?.reg.as_ref(),
    };
    path.cloned().ok_or_else(|| Error::bad_image("files.img", format!("fifo {:#x} has no record of a path", fifo.id)))
}

fn open_both_ends(cx: &mut Build<'_>, fifo: &FifoEntry) -> Result<OwnedFd> {
    let path = path_of(cx, fifo)?;
    let place = regular_path::open_recorded(cx, &RegFileEntry { flags: libc::O_PATH as u32, ..path.clone() })?;
    pipe_data::reopen(place.as_fd(), OFlags::RDWR | OFlags::NONBLOCK)
        .map_err(|e| Error::kernel(regular_path::object_of(&path), "open both ends of it", e))
}

fn open_like(cx: &Build<'_>, both_ends: &OwnedFd, fifo: &FifoEntry) -> Result<OwnedFd> {
    let path = path_of(cx, fifo)?;
    let flags = OFlags::from_bits_retain(path.flags) & (OFlags::ACCMODE | OFlags::APPEND | OFlags::DIRECT);
    let file = pipe_data::reopen(both_ends.as_fd(), flags | OFlags::NONBLOCK)
        .map_err(|e| Error::kernel(Object::File(fifo.id, String::from_utf8_lossy(&path.name).into()), "open it", e))?;
    apply_status_flags(file.as_fd(), fifo.id, path.flags)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Carried;
    use super::*;
    use crate::RestoreOptions;
    use rustix::fs::{CWD, Mode};

    fn make(name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_bits_retain(0o600), 0).unwrap();
        (dir, path)
    }

    #[test]
    fn ends_and_contents_come_back() {
        let (_dir, path) = make("fifo");
        let open = |flags| rustix::fs::open(&path, flags | OFlags::NONBLOCK, Mode::empty()).unwrap();
        let (reader, writer) = (open(OFlags::RDONLY), open(OFlags::WRONLY));
        let second = open(OFlags::WRONLY);
        rustix::fs::fcntl_setfl(&writer, OFlags::empty()).unwrap();
        rustix::io::write(&writer, b"in the fifo").unwrap();
        let flags = [&writer, &reader, &second].map(|fd| rustix::fs::fcntl_getfl(fd).unwrap());
        let collected = Carried::collect(&[&writer, &reader, &second]);
        drop((reader, writer, second));
        let carried = collected.build(RestoreOptions::default());
        for (n, flags) in flags.iter().enumerate() {
            assert_eq!(rustix::fs::fcntl_getfl(carried.file(n)).unwrap(), *flags);
        }
        let mut bytes = [0; 100];
        assert_eq!(rustix::io::read(carried.file(1), &mut bytes).unwrap(), 11);
        assert_eq!(&bytes[..11], b"in the fifo");
        rustix::io::write(carried.file(0), b"more").unwrap();
        assert_eq!(rustix::io::read(carried.file(1), &mut bytes).unwrap(), 4);
    }

    #[test]
    fn a_lone_writer_has_no_reader_afterwards_either() {
        let (_dir, path) = make("lone");
        let reader = rustix::fs::open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        let writer = rustix::fs::open(&path, OFlags::WRONLY, Mode::empty()).unwrap();
        drop(reader);
        let collected = Carried::collect(&[&writer]);
        drop(writer);
        let carried = collected.build(RestoreOptions::default());
        let events = rustix::event::PollFlags::OUT;
        let mut poll = [rustix::event::PollFd::new(carried.file(0), events)];
        rustix::event::poll(&mut poll, None).unwrap();
        assert!(poll[0].revents().contains(rustix::event::PollFlags::ERR));
    }
}
