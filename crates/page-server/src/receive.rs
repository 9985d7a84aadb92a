//! Taking the pages of a dump into a directory: its pagemaps and pages files, beside which the rest of the image is put.

use crate::protocol::{Command, Request, Target};
use crate::serve::acknowledge;
use crate::socket::Stream;
use crate::{Error, Result};
use cryonaut_image::{DumpDir, ImageDir, ImageKind, PAGE_SIZE, PageFlags, PagemapWriter};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Numbers of pages files begin behind this: below are those of a dump that writes some itself.
const FIRST_PAGES: u32 = 0x10001;

/// Bytes that are taken at a time.
const PIECE: usize = 1 << 20;

/// Where the pages go, and how.
#[derive(Debug, Clone, Default)]
pub struct ReceiveOptions {
    /// The image on which the dump builds, as the link `parent` shall have it.
    pub parent: Option<PathBuf>,
    /// Take out of the parents what the new pages replace.
    pub dedup: bool,
}

/// What has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    pub pagemaps: u64,
    pub pages: u64,
}

/// A pagemap that is coming in.
struct Incoming {
    target: Target,
    map: PagemapWriter,
    pages: File,
    path: PathBuf,
}

/// Takes everything of one dump. The directory has all of it, or nothing.
///
/// # Errors
/// [`Error::Io`], also if the connection ends before the dump does; [`Error::Protocol`]; [`Error::Image`].
pub fn receive(mut stream: Stream, directory: &Path, options: &ReceiveOptions) -> Result<Received> {
    let peer = stream.peer().to_owned();
    let images = DumpDir::for_pages(directory)?;
    if let Some(parent) = &options.parent {
        images.set_parent(parent)?;
    }
    let parent = parent_of(directory, options)?;
    let has_parent = |target: Target| -> Result<bool> {
        let (kind, id) = target.pagemap();
        let there = parent.as_ref().map(|parent| parent.entries_optional(kind, id)).transpose()?.flatten();
        Ok(there.is_some())
    };
    let target_of = |id| Target::decode(id).ok_or_else(|| Error::protocol(&peer, format!("{id:#x} names no pagemap")));
    let answer = |stream: &mut Stream, bytes: &[u8]| {
        stream.write_all(bytes).and_then(|()| stream.flush()).map_err(Error::io(&peer, "answer it"))
    };
    let mut received = Received::default();
    let mut incoming: Option<Incoming> = None;
    loop {
        let Some(request) = Request::read(&mut stream, &peer)? else {
            let ended = std::io::ErrorKind::UnexpectedEof.into();
            return Err(Error::io(&peer, "have all of the dump")(ended));
        };
        match request.command {
            Command::Open { answered } => {
                finish(incoming.take())?;
                let target = target_of(request.id)?;
                received.pagemaps += 1;
                incoming = Some(begin(&images, directory, target, FIRST_PAGES + received.pagemaps as u32 - 1)?);
                if answered {
                    answer(&mut stream, &[u8::from(has_parent(target)?)])?;
                }
            }
            Command::HasParent => {
                let has = i32::from(has_parent(target_of(request.id)?)?);
                answer(&mut stream, &has.to_le_bytes())?;
            }
            Command::Add(flags) => {
                let into = incoming.as_mut().filter(|into| into.target.encode() == request.id);
                let into =
                    into.ok_or_else(|| Error::protocol(&peer, "it sends pages of a pagemap that is not begun"))?;
                into.map.push(request.address, request.pages, flags)?;
                if flags.contains(PageFlags::PRESENT) {
                    take(&mut stream, into, request.pages * PAGE_SIZE)?;
                    received.pages += request.pages;
                }
            }
            Command::Get => return Err(Error::protocol(&peer, "it asks for pages where a dump is awaited")),
            Command::Close { .. } => break,
        }
    }
    finish(incoming)?;
    images.commit_pages()?;
    if options.dedup {
        cryonaut_image::dedup::dedup(&ImageDir::open(directory)?)?;
    }
    acknowledge(stream)?;
    Ok(received)
}

fn parent_of(directory: &Path, options: &ReceiveOptions) -> Result<Option<ImageDir>> {
    Ok(match &options.parent {
        Some(parent) => Some(ImageDir::open(directory.join(parent))?),
        None => ImageDir::open(directory)?.parent()?,
    })
}

fn begin(images: &DumpDir, directory: &Path, target: Target, pages_id: u32) -> Result<Incoming> {
    let (kind, id) = target.pagemap();
    let map = PagemapWriter::create(images, kind, id, pages_id)?;
    let pages = images.raw_file(ImageKind::Pages, u64::from(pages_id))?;
    let path = directory.join(ImageKind::Pages.file_name(u64::from(pages_id))?);
    Ok(Incoming { target, map, pages, path })
}

fn finish(incoming: Option<Incoming>) -> Result<()> {
    incoming.map_or(Ok(()), |incoming| Ok(incoming.map.finish().map(drop)?))
}

/// Takes pages into their file.
fn take(stream: &mut Stream, into: &mut Incoming, len: u64) -> Result<()> {
    let peer = stream.peer().to_owned();
    let mut buffer = vec![0; PIECE.min(len as usize)];
    let mut left = len;
    while left > 0 {
        let want = buffer.len().min(left as usize);
        let got = stream.read(&mut buffer[..want]).map_err(Error::io(&peer, "take its pages"))?;
        if got == 0 {
            return Err(Error::io(&peer, "take its pages")(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let path = into.path.clone();
        let failed = |source| cryonaut_image::Error::Io { action: "write", path, source };
        into.pages.write_all(&buffer[..got]).map_err(failed)?;
        left -= got as u64;
    }
    Ok(())
}
