//! The address spaces of a tree: when each is built. A process whose children
//! keep some of its memory has it before they are born; all others when all
//! are there. What cannot be inherited, or would stand in the way, is done at
//! the end.

use super::build::{self, Space, Tree};
use super::contents::{Contents, Store};
use super::inherit::{Comparison, Inheritance, Record};
use super::{AllExtras, SharedBuild, status};
use crate::Result;
use crate::files::Build;
use cryonaut_image::ImageDir;
use cryonaut_image::records::MmEntry;
use cryonaut_puppet::Hand;
use cryonaut_puppet::passing::Service;
use std::collections::{BTreeMap, BTreeSet};

/// All address spaces of a tree.
#[derive(Debug)]
pub struct Spaces<'p> {
    tree: Tree<'p>,
    spaces: BTreeMap<i32, One<'p>>,
    /// Those that are to be built before their children are born.
    forebears: BTreeSet<i32>,
}

#[derive(Debug)]
struct One<'p> {
    mm: &'p MmEntry,
    contents: Contents,
    inherited: Inheritance,
    begun: bool,
}

impl One<'_> {
    fn record(&self) -> Record<'_> {
        Record { vmas: &self.mm.vmas, contents: &self.contents }
    }

    fn space(&self) -> Space<'_> {
        Space { contents: &self.contents, inherited: &self.inherited }
    }
}

impl<'p> Spaces<'p> {
    /// Of the processes with these records. `origins` tells from whose memory
    /// each is born, where that is one of theirs, in the order of birth; `detour` is a place
    /// where nobody has anything.
    pub fn read(
        images: &'p ImageDir,
        records: impl Iterator<Item = (i32, &'p MmEntry)>,
        origins: &[(i32, i32)],
        detour: u64,
    ) -> Result<Self> {
        let extras = AllExtras::read(images)?;
        let mut tree = Tree { store: Store::new(images), shared: SharedBuild::default(), detour };
        let mut spaces = BTreeMap::new();
        for (pid, mm) in records {
            mm.vmas.iter().filter(|v| v.status & status::ANON_SHARED != 0).for_each(|v| tree.shared.note(v));
            let contents = Contents::read(&mut tree.store, pid, &mm.vmas, extras.of(pid))?;
            spaces.insert(pid, One { mm, contents, inherited: Inheritance::default(), begun: false });
        }
        let mut comparison = Comparison::default();
        let mut forebears = BTreeSet::new();
        for (pid, origin) in origins {
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
        Ok(Spaces { tree, spaces, forebears })
    }

    /// Whether a process must have its memory before any child is born.
    #[must_use]
    pub fn comes_first(&self, pid: i32) -> bool {
        self.forebears.contains(&pid)
    }

    /// Maps and fills the memory of a process, if that has not been done.
    pub fn begin(&mut self, hand: &mut Hand, service: &Service, files: &mut Build<'_>) -> Result<()> {
        let Some(one) = self.spaces.get_mut(&hand.pid()).filter(|one| !one.begun) else {
            return Ok(());
        };
        one.begun = true;
        build::begin(hand, service, files, &mut self.tree, one.mm, one.space())
    }

    /// Completes the memory of a process; no child is born with it any more.
    pub fn finish(&mut self, hand: &mut Hand, service: &Service, files: &mut Build<'_>) -> Result<()> {
        self.begin(hand, service, files)?;
        match self.spaces.get(&hand.pid()) {
            Some(one) => build::finish(hand, service, files, one.mm, one.space()),
            None => Ok(()),
        }
    }
}
