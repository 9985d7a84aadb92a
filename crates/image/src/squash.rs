//! Making one ordinary image of a chain.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;

use crate::chain::{Chain, Piece, Source};
use crate::dump_dir::{CommitOptions, DumpDir};
use crate::error::{Error, Result};
use crate::image_dir::ImageDir;
use crate::kind::ImageKind;
use crate::pages::{PAGE_SIZE, PageFlags, PagemapWriter};

/// What was put together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Squashed {
    /// Pages of the image that was made.
    pub pages: u64,
    /// Those of them that came from parents.
    pub from_parents: u64,
}

/// Writes an image with all its pages, in the order of the pagemaps, to `out`, which may be the image's own directory.
///
/// # Errors
/// Those of reading the chain and of writing an image; what was in `out` is then there still.
pub fn squash(image: &ImageDir, out: impl AsRef<Path>) -> Result<Squashed> {
    image.inventory()?;
    let dump = DumpDir::create(out)?;
    let mut chain = Chain::new(image);
    let mut squashed = Squashed::default();
    // Processes that share their memory have the same pages.
    let mut written: HashMap<u32, Vec<Piece>> = HashMap::new();
    for (kind, id) in image.files()? {
        if let (ImageKind::Pagemap | ImageKind::ShmemPagemap, Some(id)) = (kind, id) {
            let pieces = chain.pieces(kind, id)?;
            let pages_id = chain.pages_id(kind, id)?;
            let mut map = PagemapWriter::create(&dump, kind, id, pages_id)?;
            for piece in &pieces {
                map.push(piece.start, piece.len / PAGE_SIZE, PageFlags::PRESENT)?;
            }
            map.finish()?;
            if written.get(&pages_id) == Some(&pieces) {
                continue;
            }
            copy_pages(&mut chain, &pieces, &dump, pages_id)?;
            let pages =
                |pieces: &mut dyn Iterator<Item = &Piece>| pieces.map(|piece| piece.len / PAGE_SIZE).sum::<u64>();
            squashed.pages += pages(&mut pieces.iter());
            squashed.from_parents += pages(&mut pieces.iter().filter(|piece| piece.source.level > 0));
            written.insert(pages_id, pieces);
        }
    }
    image.copy_all_but_memory(&dump)?;
    let provenance = image.manifest().map(|manifest| manifest.provenance.clone()).unwrap_or_default();
    drop(dump.commit(CommitOptions { provenance, ..CommitOptions::default() })?);
    Ok(squashed)
}

fn copy_pages(chain: &mut Chain<'_>, pieces: &[Piece], dump: &DumpDir, pages_id: u32) -> Result<()> {
    let name = ImageKind::Pages.file_name(u64::from(pages_id))?;
    let mut out = dump.raw_file(ImageKind::Pages, u64::from(pages_id))?;
    let mut open: Option<(Source, File)> = None;
    for piece in pieces {
        let from = match &mut open {
            Some((source, file)) if *source == piece.source => file,
            _ => &mut open.insert((piece.source, chain.pages(piece.source)?)).1,
        };
        let copied = from.seek(SeekFrom::Start(piece.offset)).and_then(|_| {
            // By copy_file_range(2), so that file systems may share what is the same.
            io::copy(&mut io::Read::take(&mut *from, piece.len), &mut out)
        });
        match copied {
            Ok(len) if len == piece.len => {}
            Ok(_) => return Err(Error::io("read", name, io::ErrorKind::UnexpectedEof.into())),
            Err(source) => return Err(Error::io("copy pages to", dump.path().join(name), source)),
        }
    }
    Ok(())
}
