//! The address spaces of a tree: when each is built. A process whose children
//! keep some of its memory has it before they are born; all others when all
//! are there. What cannot be inherited, or would stand in the way, is done at
//! the end. One that several processes share is built once, by the first of them
//! that gets to it, and leaves room for the scratch mappings of all.

use super::build::{self, Space, Tree};
use super::contents::{Contents, Piece, Store};
use super::inherit::{Comparison, Inheritance, Record};
use super::vma::is_shared_anonymous;
use super::{AllExtras, PAGE, SharedBuild, ranges};
use crate::files::Build;
use crate::lazy::{Handover, Lazy, LeftOut, comes_later};
use crate::plan::{Plan, SharedSpaces};
use crate::restore::{Scratches, Work};
use crate::{Progress, Result};
use cryonaut_image::records::{MmEntry, VmaEntry};
use cryonaut_image::{ImageDir, ImageKind};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// All address spaces of a tree.
#[derive(Debug)]
pub struct AddressSpaces<'p> {
    tree: Tree<'p>,
    /// By owner.
    spaces: BTreeMap<i32, One<'p>>,
    shared: &'p SharedSpaces,
    /// Those that are to be built before their children are born.
    forebears: BTreeSet<i32>,
}

#[derive(Debug)]
struct One<'p> {
    mm: &'p MmEntry,
    contents: Contents,
    /// What of the contents is read into place, and what comes when the program runs.
    now: Vec<Piece>,
    later: Vec<Piece>,
    inherited: Inheritance,
    /// Where the hands in it have their scratch mappings.
    scratches: Range<u64>,
    begun: bool,
    finished: bool,
}

impl One<'_> {
    fn record(&self) -> Record<'_> {
        Record { vmas: &self.mm.vmas, contents: &self.contents }
    }

    fn space(&self) -> Space<'_> {
        Space { contents: &self.contents, now: &self.now, inherited: &self.inherited, scratches: &self.scratches }
    }
}

impl<'p> AddressSpaces<'p> {
    /// Of the processes of a plan; `scratches` tells where their hands have
    /// their scratch mappings.
    ///
    /// Lazily, much of the memory is left to come later, and of much memory only what the image has once for a process
    /// and its creator is inherited: to compare contents takes as long as to read them.
    pub fn read(
        images: &'p ImageDir,
        plan: &'p Plan,
        scratches: &Scratches<'_>,
        lazy: &Lazy,
        progress: &Progress,
    ) -> Result<Self> {
        let lazily = lazy.is_asked();
        let extras = AllExtras::read(images)?;
        let mut tree = Tree {
            store: Store::new(images),
            shared: SharedBuild::default(),
            detour: scratches.detour(),
            pages_filled: 0,
            progress: progress.clone(),
        };
        let mut spaces = BTreeMap::new();
        let owners = plan.processes.values().filter(|p| plan.spaces.owner(p.pid()) == p.pid());
        for (pid, mm) in owners.filter_map(|p| Some((p.pid(), p.mm.as_ref()?))) {
            mm.vmas.iter().filter(|vma| is_shared_anonymous(vma)).for_each(|vma| tree.shared.note(vma));
            let contents = Contents::read(&mut tree.store, pid, &mm.vmas, extras.of(pid))?;
            if let Some((address, _)) = contents.elsewhere.first().filter(|_| !lazy.is_by_server()) {
                let path = images.path_of(ImageKind::Pagemap, pid as u64)?;
                return Err(cryonaut_image::Error::Elsewhere { path, address: *address }.into());
            }
            let inherited = Inheritance::default();
            let scratches = scratches.of_space(pid);
            let (now, later) = (Vec::new(), Vec::new());
            spaces.insert(pid, One { mm, contents, now, later, inherited, scratches, begun: false, finished: false });
        }
        let mut comparison = if lazily { Comparison::for_later() } else { Comparison::default() };
        let mut forebears = BTreeSet::new();
        // What children have of each.
        let mut given: BTreeMap<i32, Vec<(u64, u64)>> = BTreeMap::new();
        for (pid, origin) in &plan.origins() {
            let (Some(process), Some(creator)) = (spaces.get(pid), spaces.get(origin)) else {
                continue;
            };
            let mapped = |vma: &_| creator.space().protection(vma);
            let inherited = comparison.between(&mut tree.store, creator.record(), process.record(), mapped)?;
            if !inherited.is_empty() {
                forebears.insert(*origin);
                given.entry(*origin).or_default().extend_from_slice(inherited.pages());
                spaces.entry(*pid).and_modify(|one| one.inherited = inherited);
            }
        }
        for (pid, one) in &mut spaces {
            let pieces = one.inherited.rest(&one.contents.pieces);
            let given = given.remove(pid).unwrap_or_default();
            (one.now, one.later) = if lazily { divide(&one.mm.vmas, &pieces, given) } else { (pieces, Vec::new()) };
            progress.expect(one.now.iter().map(|piece| piece.len).sum());
        }
        Ok(AddressSpaces { tree, spaces, shared: &plan.spaces, forebears })
    }

    /// Private pages that have been read into place so far, each once.
    #[must_use]
    pub fn pages_filled(&self) -> u64 {
        self.tree.pages_filled
    }

    /// Private pages that come later, each once.
    #[must_use]
    pub fn pages_later(&self) -> u64 {
        let later = |one: &One<'_>| one.later.iter().map(|piece| piece.len).sum::<u64>();
        let elsewhere = |one: &One<'_>| one.contents.elsewhere.iter().map(|(start, end)| end - start).sum::<u64>();
        self.spaces.values().map(|one| (later(one) + elsewhere(one)) / PAGE).sum()
    }

    /// Whether a process must have its memory before any child is born.
    #[must_use]
    pub fn comes_first(&self, pid: i32) -> bool {
        self.forebears.contains(&self.shared.owner(pid))
    }

    /// Takes from a process what it has from us, before children are born with it, which would each have a copy.
    pub fn clear(&self, work: &mut Work<'_>) -> Result<()> {
        let owner = self.shared.owner(work.hand.pid());
        let Some(one) = self.spaces.get(&owner).filter(|one| !one.begun) else { return Ok(()) };
        build::clear(work, one.space())?;
        work.flush()
    }

    /// Maps and fills the memory of a process, if that has not been done, by
    /// itself or by another that shares it.
    pub fn begin(&mut self, work: &mut Work<'_>, files: &mut Build<'_>) -> Result<()> {
        let owner = self.shared.owner(work.hand.pid());
        let Some(one) = self.spaces.get_mut(&owner).filter(|one| !one.begun) else {
            return Ok(());
        };
        one.begun = true;
        build::begin(work, files, &mut self.tree, one.mm, one.space())
    }

    /// Completes the memory of a process; no child is born with it any more.
    pub fn finish(
        &mut self,
        work: &mut Work<'_>,
        files: &mut Build<'_>,
        handover: Option<&mut Handover>,
    ) -> Result<()> {
        self.begin(work, files)?;
        let owner = self.shared.owner(work.hand.pid());
        let Some(one) = self.spaces.get_mut(&owner).filter(|one| !one.finished) else {
            return Ok(());
        };
        one.finished = true;
        build::finish(work, files, one.mm, one.space())?;
        let Some(to) = handover else { return Ok(()) };
        work.flush()?;
        // From here on whatever touches the memory waits for what is missing.
        let left_out = LeftOut { pieces: &one.later, contents: &one.contents };
        to.take(work.hand, work.service, &mut self.tree.store, &one.mm.vmas, left_out)
    }
}

/// What is needed now, since it cannot come later or a child is to inherit it (`given`), and what comes later.
fn divide(vmas: &[VmaEntry], pieces: &[Piece], given: Vec<(u64, u64)>) -> (Vec<Piece>, Vec<Piece>) {
    let areas: Vec<(u64, u64)> = vmas.iter().filter(|v| comes_later(v)).map(|v| (v.start, v.end)).collect();
    let all: Vec<(u64, u64)> = pieces.iter().map(|piece| (piece.start, piece.end())).collect();
    let elsewhere = ranges::without(&all, &areas);
    let later = ranges::without(&ranges::without(&all, &elsewhere), &ranges::union(given));
    let now = ranges::without(&all, &later);
    let within = |set: &[(u64, u64)], piece: &Piece| -> Vec<Piece> {
        let first = set.partition_point(|r| r.1 <= piece.start);
        set[first..].iter().map_while(|(start, end)| piece.clip(*start, *end)).collect()
    };
    let of = |set: &[(u64, u64)]| pieces.iter().flat_map(|piece| within(set, piece)).collect();
    (of(&now), of(&later))
}
