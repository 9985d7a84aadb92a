//! For tests of kinds: collects files of the test's own process and builds
//! them again from the image.

use super::{Build, Collect, Settle};
use crate::{CheckpointOptions, RestoreOptions, Result};
use cryonaut_image::records::{FileEntry, InventoryEntry};
use cryonaut_image::{CommitOptions, DumpDir, Durability, ImageDir, ImageKind};
use cryonaut_kernel::proc::Task;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// An image being written.
pub(super) struct Bench {
    pub options: CheckpointOptions,
    dir: tempfile::TempDir,
    dump: DumpDir,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dump = DumpDir::create(dir.path()).unwrap();
        Bench { options: CheckpointOptions::default(), dir, dump }
    }

    /// Runs a collection.
    pub fn with<T>(&self, work: impl FnOnce(&mut Collect<'_>) -> T) -> T {
        let pids = [std::process::id() as i32];
        let mut cx = Collect::new(&self.dump, &self.options, &pids);
        let result = work(&mut cx);
        cx.take_links().keep();
        result
    }

    /// Collects descriptors of this process; their ids.
    pub fn collect_all(&self, files: &[BorrowedFd<'_>]) -> Result<Vec<u32>> {
        let task = Task::current()?;
        let pid = std::process::id() as i32;
        self.with(|cx| {
            let one = |f: &BorrowedFd<'_>| {
                let own = f.try_clone_to_owned().unwrap();
                Ok(cx.descriptor(&task, pid, super::HeldFile::read(&task, pid, f.as_raw_fd(), own, None)?)?.id)
            };
            files.iter().map(one).collect()
        })
    }

    pub fn collect(&self, file: BorrowedFd<'_>) -> Result<u32> {
        Ok(self.collect_all(&[file])?[0])
    }

    pub fn commit(self) -> Image {
        let inventory = InventoryEntry { img_version: 2, ..InventoryEntry::default() };
        self.dump.write_one(ImageKind::Inventory, None, &inventory).unwrap();
        self.dump.commit(CommitOptions { durability: Durability::Relaxed, ..CommitOptions::default() }).unwrap();
        let images = ImageDir::open(self.dir.path()).unwrap();
        let records: Vec<FileEntry> = images.read_all_optional(ImageKind::Files, None).unwrap();
        let records = records.into_iter().map(|r| (r.id, r)).collect();
        Image { images, options: RestoreOptions::default(), records, _dir: self.dir }
    }
}

/// A complete image.
pub(super) struct Image {
    pub images: ImageDir,
    options: RestoreOptions,
    pub records: BTreeMap<u32, FileEntry>,
    _dir: tempfile::TempDir,
}

impl Image {
    /// Builds files as one restore.
    pub fn build_all(&self, ids: &[u32]) -> Result<Vec<OwnedFd>> {
        let mut cx = Build::new(&self.images, &self.options, &self.records);
        let files: Result<Vec<_>> = ids.iter().map(|&id| Ok(cx.file(id)?.try_clone_to_owned().unwrap())).collect();
        cx.take_links().remove();
        let files = files?;
        let (mut hands, places) = (BTreeMap::new(), HashMap::new());
        let numbers = Default::default();
        let mut settle = Settle {
            numbers: &numbers,
            options: &self.options,
            images: &self.images,
            hands: &mut hands,
            places: &places,
            records: &self.records,
            built: cx.built(),
            memfds: &cx.memfds,
        };
        for id in ids {
            let entry = &self.records[id];
            Build::kind(entry)?.settle(&mut settle, entry, cx.built()[id].as_fd())?;
        }
        Ok(files)
    }

    pub fn build(&self, id: u32) -> Result<OwnedFd> {
        Ok(self.build_all(&[id])?.remove(0))
    }
}

/// Collects a file and builds it again.
pub(super) fn roundtrip(file: BorrowedFd<'_>) -> Result<OwnedFd> {
    let bench = Bench::new();
    let id = bench.collect(file)?;
    bench.commit().build(id)
}
