//! An archive in two parts: what podman writes or reads, and the files of pages, to which it has links there.
//!
//! Podman reads an archive twice, and writes what it holds to its disk, from where criu reads it. Most of that is memory of
//! the processes. A link is made in no time, and leads criu to an open file of ours; podman removes it with the rest of the
//! image when the container runs.

use super::{PIECE, of_ours};
use cryonaut_image::ImageKind;
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tar::{Archive, Entry, EntryType, Header};

/// How podman calls the directory of the image (metadata.CheckpointDirectory).
const IMAGE: &str = "checkpoint";
/// What tar counts in.
const BLOCK: usize = 512;
/// The end of an archive.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Copies an archive, and takes the files of pages out of it, which come back. They are to stay open for as long as the
/// copy is used.
pub fn split(archive: impl Read, mut rest: impl Write) -> io::Result<Vec<File>> {
    let mut pages = Vec::new();
    each_entry(archive, |entry, of_pages| {
        if of_pages != Some(EntryType::Regular) {
            return copy(entry, &mut rest);
        }
        let header = entry.header().clone();
        let mut file = File::from(rustix::fs::memfd_create("pages", MemfdFlags::CLOEXEC)?);
        io::copy(&mut BufReader::with_capacity(PIECE, entry), &mut file)?;
        rest.write_all(link_to(&of_ours(&file), &header)?.as_bytes())?;
        pages.push(file);
        Ok(())
    })?;
    rest.write_all(&END)?;
    Ok(pages)
}

/// The reverse: puts files of pages into the copy of an archive that has links in their places.
pub fn join(pages: Vec<(String, File)>, archive: impl Read, mut whole: impl Write) -> io::Result<()> {
    for (name, file) in &pages {
        let mut header = Header::new_gnu();
        header.set_path(Path::new(IMAGE).join(name))?;
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_size(file.metadata()?.len());
        header.set_mtime(file.metadata()?.mtime().try_into().unwrap_or(0));
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        whole.write_all(header.as_bytes())?;
        let len = io::copy(&mut BufReader::with_capacity(PIECE, file), &mut whole)?;
        if len != header.entry_size()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        pad(len, &mut whole)?;
    }
    each_entry(archive, |entry, of_pages| match of_pages {
        Some(EntryType::Symlink) if !pages.is_empty() => Ok(()),
        _ => copy(entry, &mut whole),
    })?;
    whole.write_all(&END)
}

/// Gives each header with its contents, and of files of pages what they are.
fn each_entry<R: Read>(
    archive: R,
    mut f: impl FnMut(Entry<'_, R>, Option<EntryType>) -> io::Result<()>,
) -> io::Result<()> {
    // Whether the header before was about the one that follows it.
    let mut is_described = false;
    for entry in Archive::new(archive).entries()?.raw(true) {
        let entry = entry?;
        let kind = entry.header().entry_type();
        let of_pages = (!is_described && holds_pages(entry.header())).then_some(kind);
        f(entry, of_pages)?;
        is_described = matches!(kind, EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink);
    }
    Ok(())
}

fn copy(entry: Entry<'_, impl Read>, mut to: impl Write) -> io::Result<()> {
    to.write_all(entry.header().as_bytes())?;
    let len = io::copy(&mut BufReader::with_capacity(PIECE.min(entry.size() as usize).max(1 << 13), entry), &mut to)?;
    pad(len, to)
}

/// Fills up a block.
fn pad(len: u64, mut to: impl Write) -> io::Result<()> {
    to.write_all(&END[..(len.next_multiple_of(BLOCK as u64) - len) as usize])
}

fn holds_pages(header: &Header) -> bool {
    let path = header.path_bytes();
    let name = std::str::from_utf8(&path).ok().and_then(|path| path.strip_prefix(IMAGE)?.strip_prefix('/'));
    name.and_then(ImageKind::from_file_name).is_some_and(|(kind, _)| kind.is_pages())
}

/// A link in the place of a file.
fn link_to(target: &Path, file: &Header) -> io::Result<Header> {
    let mut link = file.clone();
    link.set_entry_type(EntryType::Symlink);
    link.set_size(0);
    link.set_link_name(target)?;
    link.set_cksum();
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(contents: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(contents).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        file
    }

    #[test]
    fn pages_take_the_places_of_links() {
        let mut small = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(4);
        small.append_data(&mut header, "config.dump", &b"told"[..]).unwrap();
        for name in ["checkpoint/pages-1.img", "checkpoint/parent"] {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            small.append_link(&mut header, name, "../somewhere").unwrap();
        }
        let mut whole = Vec::new();
        join(vec![("pages-1.img".into(), file(b"pages"))], &small.into_inner().unwrap()[..], &mut whole).unwrap();
        let dir = tempfile::tempdir().unwrap();
        Archive::new(&whole[..]).unpack(dir.path()).unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(!at("checkpoint/pages-1.img").is_symlink() && at("checkpoint/parent").is_symlink());
        assert_eq!(std::fs::read(at("checkpoint/pages-1.img")).unwrap(), b"pages");
        assert_eq!(std::fs::read(at("config.dump")).unwrap(), b"told");

        let mut again = Vec::new();
        let pages = split(&whole[..], &mut again).unwrap();
        assert_eq!(pages.len(), 1);
        let links = each_link(&again);
        assert_eq!(links, [of_ours(&pages[0]), "../somewhere".into()]);
    }

    fn each_link(archive: &[u8]) -> Vec<std::path::PathBuf> {
        let mut archive = Archive::new(archive);
        let links =
            archive.entries().unwrap().map(|entry| entry.unwrap().link_name().unwrap().map(|to| to.into_owned()));
        links.flatten().collect()
    }
}
