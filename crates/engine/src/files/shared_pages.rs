//! Contents of files that live in memory alone, memfds and shared anonymous
//! memory: their data, not their holes, as `pagemap-shmem-N.img` and the pages
//! file that it names.

use super::{Collect, PagesIds};
use crate::memory::{PAGE, PageCount, PageWriter, PagesPlace};
use crate::{Error, Object, Progress, Result};
use cryonaut_image::{Chain, DumpDir, ImageDir, ImageKind};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes that are copied at a time.
const PIECE: u64 = 1 << 20;

fn failed<'a>(object: &'a Object, action: &'static str) -> impl Fn(std::io::Error) -> Error + 'a {
    move |e| Error::kernel(object.clone(), action, crate::error::errno_of(&e))
}

/// Writes what the file holds in its first `size` bytes under `id`. The file's
/// position is moved: it must be an open file of ours alone.
///
/// `page` is the size in bytes of the file's pages. Huge ones do not say where
/// their holes are: what is zero is a hole there.
pub fn write(cx: &mut Collect<'_>, id: u64, file: &File, size: u64, page: u64, object: &Object) -> Result<()> {
    if let Some(precopied) = cx.precopied.filter(|_| page == PAGE) {
        let stat = rustix::fs::fstat(file).map_err(|e| Error::kernel(object.clone(), "ask what it is", e))?;
        if let Some(count) = precopied.finish_segment((stat.st_dev, stat.st_ino), id)? {
            cx.shared_pages.add(count);
            return Ok(());
        }
    }
    let progress = Some(&cx.options.progress);
    let count = write_out((cx.images, &cx.pages_ids, progress), id, file, size, page, object)?;
    cx.shared_pages.add(count);
    Ok(())
}

/// The same for who does not look for files.
pub fn write_out(
    (images, pages_ids, progress): (&DumpDir, &PagesIds, Option<&Progress>),
    id: u64,
    file: &File,
    size: u64,
    page: u64,
    object: &Object,
) -> Result<PageCount> {
    let (pages_id, server) = (pages_ids.new_id(), pages_ids.server());
    let place =
        PagesPlace { images, pages_id, server, alone: false, lazily: false, precopied: None, files: None, progress };
    let mut out = PageWriter::new(place, ImageKind::ShmemPagemap, id)?;
    let mut buffer = vec![0; PIECE.min(size.next_multiple_of(PAGE)) as usize];
    let mut at = 0;
    while let Some((data, hole)) = next_data(file, at, size, object)? {
        let (mut from, end) = (data / PAGE * PAGE, hole.next_multiple_of(PAGE));
        progress.iter().for_each(|progress| progress.expect(end - from));
        while from < end {
            let piece = &mut buffer[..PIECE.min(end - from) as usize];
            let there = size.saturating_sub(from).min(piece.len() as u64) as usize;
            file.read_exact_at(&mut piece[..there], from).map_err(failed(object, "read its contents"))?;
            piece[there..].fill(0);
            if page == PAGE || piece.iter().any(|&byte| byte != 0) {
                out.bytes(from, piece)?;
            }
            from += piece.len() as u64;
        }
        at = end;
    }
    out.finish()
}

/// The next stretch of data at or behind `at`.
pub fn next_data(file: &File, at: u64, size: u64, object: &Object) -> Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let failed = |e| Error::kernel(object.clone(), "find its data", e);
    let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) if data < size => data,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(failed(errno)),
    };
    let hole = rustix::fs::seek(file, SeekFrom::Hole(data)).map_err(failed)?;
    Ok(Some((data, hole.min(size))))
}

/// Puts the contents written under `id` into a file of `size` bytes, whose
/// pages have `page` bytes.
pub fn read(images: &ImageDir, id: u64, file: &File, size: u64, page: u64, object: &Object) -> Result<()> {
    if size == 0 {
        // Not every writer then says that there is nothing.
        return Ok(());
    }
    let mut chain = Chain::new(images);
    let pieces = chain.pieces(ImageKind::ShmemPagemap, id)?;
    let mut buffer = vec![0; PIECE as usize];
    for group in pieces.chunk_by(|a, b| a.source == b.source) {
        let pages = chain.pages(group[0].source)?;
        for run in group {
            let len = run.end().min(size).saturating_sub(run.start);
            let mut done = 0;
            while done < len {
                let piece = &mut buffer[..PIECE.min(len - done) as usize];
                let read = pages.read_exact_at(piece, run.offset + done);
                read.map_err(failed(object, "read its contents from the image"))?;
                put(file, page, run.start + done, piece).map_err(|e| Error::kernel(object.clone(), "fill it", e))?;
                done += piece.len() as u64;
            }
        }
    }
    Ok(())
}

fn put(file: &File, page: u64, at: u64, piece: &[u8]) -> std::result::Result<(), Errno> {
    if page == PAGE {
        return file.write_all_at(piece, at).map_err(|e| crate::error::errno_of(&e));
    }
    if piece.iter().all(|&byte| byte == 0) {
        return Ok(());
    }
    cryonaut_kernel::sys::huge::write(file, page, at, piece)
}
