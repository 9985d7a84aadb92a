//! The address spaces of a tree: when each is built. A process whose children
//! keep some of its memory has it before they are born; all others when all
//! are there. What cannot be inherited, or would stand in the way, is done at
//! the end. One that several processes share is built once, by the first of them
//! that gets to it, and leaves room for the scratch mappings of all.

use super::build::{self, Space, Tree};
use super::contents::{Contents, Store};
use super::inherit::{Comparison, Inheritance, Record};
use super::{AllExtras, SharedBuild, status};
use crate::Result;
use crate::files::Build;
use crate::plan::{Plan, SharedSpaces};
use crate::restore::Scratches;
use cryonaut_image::ImageDir;
use cryonaut_image::records::MmEntry;
use cryonaut_puppet::Hand;
use cryonaut_puppet::passing::Service;
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
        Space { contents: &self.contents, inherited: &self.inherited, scratches: &self.scratches }
    }
}

impl<'p> AddressSpaces<'p> {
    /// Of the processes of a plan; `scratches` tells where their hands have
    /// their scratch mappings.
    pub fn read(images: &'p ImageDir, plan: &'p Plan, scratches: &Scratches<'_>) -> Result<Self> {
        let extras = AllExtras::read(images)?;
        let mut tree = Tree {
            store: Store::new(images),
            shared: SharedBuild::default(),
            detour: scratches.detour(),
            pages_filled: 0,
        };
        let mut spaces = BTreeMap::new();
        let owners = plan.processes.values().filter(|p| plan.spaces.owner(p.pid()) == p.pid());
        for (pid, mm) in owners.filter_map(|p| Some((p.pid(), p.mm.as_ref()?))) {
            mm.vmas.iter().filter(|v| v.status & status::ANON_SHARED != 0).for_each(|v| tree.shared.note(v));
            let contents = Contents::read(&mut tree.store, pid, &mm.vmas, extras.of(pid))?;
            let inherited = Inheritance::default();
            let scratches = scratches.of_space(pid);
            spaces.insert(pid, One { mm, contents, inherited, scratches, begun: false, finished: false });
        }
        let mut comparison = Comparison::default();
        let mut forebears = BTreeSet::new();
        for (pid, origin) in &plan.origins() {
            let (Some(process), Some(creator)) = (spaces.get(pid), spaces.get(origin)) else {
                continue;
            };
            let mapped = |vma: &_| creator.space().protection(vma);
            let inherited = comparison.between(&mut tree.store, creator.record(), process.record(), mapped)?;
            if !inherited.is_empty() {
                forebears.insert(*origin);
                spaces.entry(*pid).and_modify(|one| one.inherited = inherited);
            }
        }
        Ok(AddressSpaces { tree, spaces, shared: &plan.spaces, forebears })
    }

    /// Private pages that have been read into place so far, each once.
    #[must_use]
    pub fn pages_filled(&self) -> u64 {
        self.tree.pages_filled
    }

    /// Whether a process must have its memory before any child is born.
    #[must_use]
    pub fn comes_first(&self, pid: i32) -> bool {
        self.forebears.contains(&self.shared.owner(pid))
    }

    /// Maps and fills the memory of a process, if that has not been done, by
    /// itself or by another that shares it.
    pub fn begin(&mut self, hand: &mut Hand, service: &Service, files: &mut Build<'_>) -> Result<()> {
        let owner = self.shared.owner(hand.pid());
        let Some(one) = self.spaces.get_mut(&owner).filter(|one| !one.begun) else {
            return Ok(());
        };
        one.begun = true;
        build::begin(hand, service, files, &mut self.tree, one.mm, one.space())
    }

    /// Completes the memory of a process; no child is born with it any more.
    pub fn finish(&mut self, hand: &mut Hand, service: &Service, files: &mut Build<'_>) -> Result<()> {
        self.begin(hand, service, files)?;
        let owner = self.shared.owner(hand.pid());
        let Some(one) = self.spaces.get_mut(&owner).filter(|one| !one.finished) else {
            return Ok(());
        };
        one.finished = true;
        build::finish(hand, service, files, one.mm, one.space())
    }
}
