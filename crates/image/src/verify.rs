//! Looking over a whole image without restoring anything.

use crate::chain::Chain;
use crate::entry_reader::EntryReader;
use crate::error::{Error, Result};
use crate::frames::is_frames_name;
use crate::image_dir::ImageDir;
use crate::kind::ImageKind;
use crate::manifest::is_json_name;
use crate::pages::Pagemap;
use crate::records::*;

/// What [`ImageDir::verify`] looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Files of the image.
    pub files: usize,
    /// Files whose BLAKE3 sum was compared.
    pub sums: usize,
    /// Messages that were checked.
    pub messages: u64,
}

impl ImageDir {
    /// Checks that the image is complete as far as that can be told from the
    /// files: there is an inventory, every file is what the manifest says (if
    /// there is one) and nothing else lies beside them, every message decodes,
    /// every pages file has the size that its pagemap adds up to. The same for
    /// the directories inside of it that hold what its processes share, and for
    /// the images that it builds on, which have every page that is said to be
    /// there.
    ///
    /// With `pages`, pages files that have a sum in the manifest are read too.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn verify(&self, pages: bool) -> Result<Verified> {
        self.inventory()?;
        let mut report = Verified::default();
        self.verify_files(pages, &mut report)?;
        let layers = self.layers()?;
        for layer in &layers {
            layer.verify_files(pages, &mut report)?;
        }
        self.verify_chain(layers.len(), pages, &mut report)?;
        Ok(report)
    }

    /// Checks the parents, of which the first `layers` were looked at already.
    fn verify_chain(&self, layers: usize, pages: bool, report: &mut Verified) -> Result<()> {
        let mut chain = Chain::new(self);
        for (kind, id) in self.files()? {
            if let (ImageKind::Pagemap | ImageKind::ShmemPagemap, Some(id)) = (kind, id) {
                match chain.pieces(kind, id) {
                    // Sound, if its server is.
                    Ok(_) | Err(Error::Elsewhere { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let mut level = layers + 1;
        while let Some(parent) = chain.level(level)? {
            parent.verify_files(pages, report)?;
            level += 1;
        }
        Ok(())
    }

    fn verify_files(&self, pages: bool, report: &mut Verified) -> Result<()> {
        if let Some(manifest) = self.manifest() {
            for (name, sum) in &manifest.files {
                if ImageKind::from_file_name(name).is_none() && !is_json_name(name) && !is_frames_name(name) {
                    let path = self.path().join(name.escape_debug().to_string());
                    return Err(Error::misuse(path, "the manifest names a file that no image has"));
                }
                self.compare(name, pages)?;
                let is_pages =
                    is_frames_name(name) || ImageKind::from_file_name(name).is_some_and(|(k, _)| k.is_pages());
                report.sums += usize::from(sum.blake3.is_some() && (pages || !is_pages));
            }
        }
        for (kind, id) in self.files()? {
            if kind.is_service() {
                continue;
            }
            report.files += 1;
            report.messages += self.check_file(kind, id)?;
        }
        Ok(())
    }

    /// Checks one file's every message and returns how many there are; for a
    /// pagemap, compares it with its pages file too.
    ///
    /// # Errors
    /// As for [`ImageDir::entries`].
    pub fn check_file(&self, kind: ImageKind, id: impl Into<Option<u64>>) -> Result<u64> {
        let id = id.into();
        if kind.is_raw() {
            return match self.open_raw_optional(kind, id)? {
                Some(_) => Ok(0),
                None => Err(Error::Missing { path: self.path_of(kind, id)? }),
            };
        }
        if let (ImageKind::Pagemap | ImageKind::ShmemPagemap, Some(id)) = (kind, id) {
            return Pagemap::read(self, kind, id).map(|map| map.runs().len() as u64 + 1);
        }
        let mut reader = self.entries(kind, id)?;
        let mut count = 0;
        while check_next(&mut reader, kind, count == 0)? {
            count += 1;
        }
        Ok(count)
    }
}

/// Checks the next record of a file that is no pagemap, with the data behind it.
fn check_next(reader: &mut EntryReader, kind: ImageKind, first: bool) -> Result<bool> {
    match kind {
        ImageKind::PipesData | ImageKind::FifoData => reader.check_tailed::<PipeDataEntry>(),
        ImageKind::SkQueues => reader.check_tailed::<SkPacketEntry>(),
        ImageKind::TcpStream => reader.check_tailed::<TcpStreamEntry>(),
        ImageKind::BpfmapData => reader.check_tailed::<BpfmapDataEntry>(),
        ImageKind::IpcnsSem => reader.check_tailed::<IpcSemEntry>(),
        ImageKind::IpcnsShm => reader.check_tailed::<IpcShmEntry>(),
        ImageKind::IpcnsMsg => {
            let Some(queue) = reader.next_record::<IpcMsgEntry>()? else {
                return Ok(false);
            };
            for _ in 0..queue.qnum {
                let message = reader.require::<IpcMsg>()?;
                reader.skip(u64::from(message.msize))?;
                reader.skip(crate::Tailed::padding(&message))?;
            }
            Ok(true)
        }
        ImageKind::GhostFile if first => {
            if !reader.require::<GhostFileEntry>()?.chunks() {
                reader.skip(reader.remaining())?;
            }
            Ok(true)
        }
        ImageKind::GhostFile => reader.check_tailed::<GhostChunkEntry>(),
        kind => match kind.records() {
            [only] => reader.check(only),
            _ => {
                reader.skip(reader.remaining())?;
                Ok(false)
            }
        },
    }
}
