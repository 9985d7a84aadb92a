//! What processes have in common by fork(2), copied once while they run.
//!
//! Before the first round all of them are looked at and protected ([`Space::look_ahead`]). Only then it is asked which pages
//! are the same page frame at the same address (`memory/common.rs`). Each such page is copied from one of its processes,
//! the holder, into a file of a layer, and kept there if the holder has not written to it since it was protected, which is
//! asked after it has been read. From then on nothing changes in the layer, whatever becomes of the holder.
//!
//! ```text
//!   protect all ──▶ which frames are the same ──▶ read from the holder ──▶ is it protected still? ──▶ left to the parent
//! ```
//!
//! A page of a process that is protected still has what it had when it was protected. So of two that are protected still and
//! were one frame at any time since, each has what the other has, also when the one is the holder's and that is asked while
//! the other runs on: it has what is in the layer. For a process that takes it, such a page is as one that the parent of
//! an image has ([`Store`]): once it has been written to, given back, unmapped, or moved, it is the process's own, in its
//! own file.
//!
//! The pagemaps in the layers are written when the tree goes on again: what is taken from them at last is known then.
//! A process that comes to be later, by fork(2) while others are copied, is copied for itself.

use super::candidates::ask_of_living;
use super::processor::Share;
use super::space::{Round, Space};
use super::store::{Place, Store};
use crate::Result;
use crate::files::PagesIds;
use crate::memory::ranges::{self, Range};
use crate::memory::{Asked, Layers, Shares};
use cryonaut_image::{DumpDir, ImageKind};
use rangemap::RangeSet;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A file of a layer is put together anew if so many of its pages, one part of all, are of no use any more.
const WASTE: u64 = 4;

/// The pages.
#[derive(Debug)]
pub struct InCommon {
    shares: Shares,
    layers: Layers,
    /// The pages of each holder that are in its layer.
    files: BTreeMap<usize, File>,
    /// The processes, in their order among those that share.
    pids: Vec<i32>,
    /// By which pids those of them go that are in the image.
    ids: BTreeMap<usize, Vec<i32>>,
}

#[derive(Debug)]
struct File {
    images: Arc<DumpDir>,
    pages_id: u32,
    store: Store,
}

impl InCommon {
    /// Copies what these processes have in common, of which none has been looked at; who is found to have ended is taken
    /// out. Their next round copies the rest. `None` if that is all.
    ///
    /// # Errors
    /// If the kernel does not tell, or the image cannot be written.
    pub fn copy(
        spaces: &mut Vec<(i32, &mut Space)>,
        (images, pages_ids): (&DumpDir, &PagesIds),
        share: &mut Share,
        round: &mut Round,
    ) -> Result<Option<InCommon>> {
        retain_living(spaces, Space::look_ahead)?;
        let find = |spaces: &[(i32, &mut Space)]| {
            let known: Vec<Vec<Range>> = spaces.iter().map(|(_, space)| space.found_anonymous()).collect();
            let asked = spaces.iter().zip(&known).map(|((pid, space), within)| Asked {
                pid: *pid,
                pagemap: space.pagemap(),
                within,
            });
            Shares::find(&asked.collect::<Vec<_>>())
        };
        let found = ask_of_living(spaces, |(_, space)| space.is_there(), find)?;
        if found.is_empty() {
            return Ok(None);
        }
        let layers = Layers::of(&found, images, pages_ids)?;
        let pids = spaces.iter().map(|(pid, _)| *pid).collect();
        let mut all = InCommon { shares: found, layers, files: BTreeMap::new(), pids, ids: BTreeMap::new() };
        for (holder, pages) in all.shares.held.clone() {
            let (images, pages_id) = all.layers.place(&all.shares, holder);
            let place = Place::File(images.raw_file(ImageKind::Pages, u64::from(pages_id))?);
            let mut store = Store::new(place, RangeSet::new());
            spaces[holder].1.copy_in_common(&pages, &mut store, share, round)?;
            all.files.insert(holder, File { images, pages_id, store });
        }
        all.keep_copied();
        for (index, (_, space)) in spaces.iter_mut().enumerate() {
            space.leave_to_layers(&all.shares.taken_by(index));
        }
        Ok(Some(all))
    }

    /// What is not in a layer is not taken from it.
    fn keep_copied(&mut self) {
        self.shares.held = self.files.iter().map(|(holder, file)| (*holder, file.store.present_ranges())).collect();
        let held = &self.shares.held;
        for taken in &mut self.shares.taken {
            for (holder, pages) in taken.iter_mut() {
                *pages = held.get(holder).map_or_else(Vec::new, |held| ranges::common(pages, held));
            }
            taken.retain(|_, pages| !pages.is_empty());
        }
    }

    /// A process is in the image, under these pids, and takes no more than `left` from layers. Whether it is one of these.
    pub fn note_last(&mut self, pid: i32, ids: &[i32], left: &[Range]) -> bool {
        let Some(index) = self.pids.iter().position(|one| *one == pid) else { return false };
        self.ids.insert(index, ids.to_vec());
        let taken = &mut self.shares.taken[index];
        taken.values_mut().for_each(|pages| *pages = ranges::common(pages, left));
        taken.retain(|_, pages| !pages.is_empty());
        true
    }

    /// Puts the files in order and writes the pagemaps, once all that are in the image have been noted.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn settle(mut self, share: &mut Share) -> Result<()> {
        let ids = std::mem::take(&mut self.ids);
        for (index, taken) in self.shares.taken.iter_mut().enumerate() {
            if !ids.contains_key(&index) {
                taken.clear();
            }
        }
        for (holder, File { images, pages_id, mut store }) in std::mem::take(&mut self.files) {
            let taken = self.shares.taken.iter().filter_map(|taken| taken.get(&holder)).flatten();
            let of_use = ranges::union(taken.copied().collect());
            if of_use.is_empty() {
                images.drop_raw_file(ImageKind::Pages, u64::from(pages_id))?;
                continue;
            }
            let waste = ranges::without(&store.present_ranges(), &of_use);
            if ranges::len(&waste) > store.present_len() / WASTE {
                waste.iter().for_each(|range| store.forget(*range));
            }
            self.shares.held.insert(holder, store.present_ranges());
            store.settle(|| Ok(images.raw_file_anew(ImageKind::Pages, u64::from(pages_id))?), share)?;
        }
        for (index, pids) in ids {
            self.layers.write_maps(&self.shares, index, &pids)?;
        }
        Ok(())
    }
}

/// Does something with each of the processes; who is found to have ended is taken out.
fn retain_living(spaces: &mut Vec<(i32, &mut Space)>, mut each: impl FnMut(&mut Space) -> Result<()>) -> Result<()> {
    let mut failed = Ok(());
    spaces.retain_mut(|(pid, space)| match each(space) {
        Ok(()) => true,
        Err(e) if !space.is_there() => {
            tracing::debug!("process {pid}: {e}");
            false
        }
        Err(e) => {
            failed = Err(e);
            false
        }
    });
    failed
}
