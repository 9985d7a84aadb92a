//! Images below an image, with the pages that several processes have in common (`memory/common.rs`).
//!
//! A pagemap of a process in a layer names the pages file of one holder, and all pages of it; what the process takes from
//! farther layers is left to the parent. No number of a file is given out twice, so that a layer can have been begun before.

use super::common::{Shares, ascending};
use super::{PAGE, ranges};
use crate::Result;
use crate::files::PagesIds;
use cryonaut_image::{DumpDir, ImageKind, PageFlags, PagemapWriter};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The layers.
#[derive(Debug)]
pub struct Layers {
    layers: Vec<Layer>,
    /// The numbers of the pages files, by holder.
    files: BTreeMap<usize, u32>,
}

#[derive(Debug)]
struct Layer {
    images: Arc<DumpDir>,
    /// The number of a pages file without pages, for who has none there: readers look for one.
    no_pages: u32,
    has_no_pages: bool,
}

impl Layers {
    /// As many as it takes.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn of(shares: &Shares, images: &DumpDir, pages_ids: &PagesIds) -> Result<Layers> {
        let count = shares.layer_of.values().max().map_or(0, |last| last + 1);
        let layer = |images| Layer { images, no_pages: pages_ids.new_id_in_layers(), has_no_pages: false };
        let layers = images.layers(count)?.into_iter().map(layer).collect();
        Ok(Layers { layers, files: shares.held.keys().map(|holder| (*holder, pages_ids.new_id_in_layers())).collect() })
    }

    /// Where the pages of a holder go: the layer, and the number of their file.
    #[must_use]
    pub fn place(&self, shares: &Shares, holder: usize) -> (Arc<DumpDir>, u32) {
        (self.layers[shares.layer_of[&holder]].images.clone(), self.files[&holder])
    }

    /// Writes the pagemaps of one of the processes, which goes by these pids.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write_maps(&mut self, shares: &Shares, index: usize, pids: &[i32]) -> Result<()> {
        let taken = &shares.taken[index];
        let layer_of = |holder: &usize| shares.layer_of[holder];
        let depth = taken.keys().map(|holder| layer_of(holder) + 1).max().unwrap_or(0);
        for (number, layer) in self.layers.iter_mut().enumerate().take(depth) {
            let farther = taken.iter().filter(|(holder, _)| layer_of(holder) > number);
            let farther = ascending(farther.map(|(_, pages)| pages.as_slice()));
            let (pages_id, present) = match taken.keys().find(|holder| layer_of(holder) == number) {
                Some(holder) => (self.files[holder], shares.held[holder].as_slice()),
                None => (layer.without_pages()?, &[][..]),
            };
            for pid in pids {
                write_pagemap((&layer.images, pages_id), *pid, present, &farther)?;
            }
        }
        Ok(())
    }
}

impl Layer {
    fn without_pages(&mut self) -> Result<u32> {
        if !self.has_no_pages {
            self.images.raw_file(ImageKind::Pages, u64::from(self.no_pages))?;
            self.has_no_pages = true;
        }
        Ok(self.no_pages)
    }
}

fn write_pagemap(
    (images, pages_id): (&DumpDir, u32),
    pid: i32,
    present: &[ranges::Range],
    farther: &[ranges::Range],
) -> Result<()> {
    let mut map = PagemapWriter::create(images, ImageKind::Pagemap, pid as u64, pages_id)?;
    let here = present.iter().map(|range| (*range, PageFlags::PRESENT));
    let mut all: Vec<_> = here.chain(farther.iter().map(|range| (*range, PageFlags::PARENT))).collect();
    all.sort_unstable_by_key(|(range, _)| *range);
    for ((start, end), flags) in all {
        map.push(start, (end - start) / PAGE, flags)?;
    }
    map.finish()?;
    Ok(())
}
