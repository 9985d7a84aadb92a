//! Contents of files that live in memory alone: their data, not their holes,
//! as `pagemap-shmem-N.img` and the pages file that it names.

use super::Collect;
use crate::{Error, Object, Result};
use cryonaut_image::{ImageDir, ImageKind, PAGE_SIZE, PageFlags, Pagemap, PagemapWriter};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

/// Bytes that are copied at a time.
const PIECE: u64 = 1 << 20;

fn failed<'a>(object: &'a Object, action: &'static str) -> impl Fn(std::io::Error) -> Error + 'a {
    move |e| Error::kernel(object.clone(), action, crate::error::errno_of(&e))
}

/// Writes what the file holds in its first `size` bytes under `id`. The file's
/// position is moved: it must be an open file of ours alone.
pub(super) fn write(cx: &mut Collect<'_>, id: u32, file: &File, size: u64, object: &Object) -> Result<()> {
    let pages_id = cx.new_pages_id();
    let mut map = PagemapWriter::create(cx.images, ImageKind::ShmemPagemap, u64::from(id), pages_id)?;
    let mut pages = cx.images.raw_file(ImageKind::Pages, u64::from(pages_id))?;
    let mut buffer = vec![0; PIECE as usize];
    let mut at = 0;
    while let Some((data, hole)) = next_data(file, at, size, object)? {
        let (mut from, end) = (data / PAGE_SIZE * PAGE_SIZE, hole.next_multiple_of(PAGE_SIZE));
        map.push(from, (end - from) / PAGE_SIZE, PageFlags::PRESENT)?;
        while from < end {
            let piece = &mut buffer[..PIECE.min(end - from) as usize];
            let there = (size.saturating_sub(from)).min(piece.len() as u64) as usize;
            file.read_exact_at(&mut piece[..there], from).map_err(failed(object, "read its contents"))?;
            piece[there..].fill(0);
            pages.write_all(piece).map_err(failed(object, "write its contents to the image"))?;
            from += piece.len() as u64;
        }
        at = end;
    }
    map.finish()?;
    Ok(())
}

/// The next stretch of data at or behind `at`.
fn next_data(file: &File, at: u64, size: u64, object: &Object) -> Result<Option<(u64, u64)>> {
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

/// Puts the contents written under `id` into a file of `size` bytes, by `put`,
/// which is given each piece and its offset.
pub(super) fn read(
    images: &ImageDir,
    id: u32,
    size: u64,
    object: &Object,
    mut put: impl FnMut(&[u8], u64) -> Result<()>,
) -> Result<()> {
    if images.entries_optional(ImageKind::ShmemPagemap, u64::from(id))?.is_none() {
        return Ok(());
    }
    let map = Pagemap::read(images, ImageKind::ShmemPagemap, u64::from(id))?;
    let mut buffer = vec![0; PIECE as usize];
    let Some(pages) = images.open_raw_optional(ImageKind::Pages, u64::from(map.pages_id()))? else {
        return Ok(());
    };
    for run in map.runs() {
        let Some(offset) = run.offset else {
            let file = format!("pagemap-shmem-{id}.img");
            return Err(Error::bad_image(file, format!("the page at {:#x} is not in this image", run.vaddr)));
        };
        let len = run.end().min(size).saturating_sub(run.vaddr);
        let mut done = 0;
        while done < len {
            let piece = &mut buffer[..PIECE.min(len - done) as usize];
            pages.read_exact_at(piece, offset + done).map_err(failed(object, "read its contents from the image"))?;
            put(piece, run.vaddr + done)?;
            done += piece.len() as u64;
        }
    }
    Ok(())
}
