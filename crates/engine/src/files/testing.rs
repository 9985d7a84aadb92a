//! For the tests of the rooms: carries open files of the test process through
//! an image and builds them again.

use super::{Build, Collect, Settle};
use crate::{CheckpointOptions, RestoreOptions};
use cryonaut_image::records::{FileEntry, InventoryEntry};
use cryonaut_image::{CommitOptions, DumpDir, Durability, ImageDir, ImageKind};
use cryonaut_kernel::proc::Task;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Open files on their way through an image.
pub(in crate::files) struct Carried {
    _dir: tempfile::TempDir,
    images: ImageDir,
    /// Ids of the files, in the order in which they were given.
    ids: Vec<u32>,
    /// What was written to files.img, by id.
    pub records: BTreeMap<u32, FileEntry>,
    built: HashMap<u32, OwnedFd>,
}

impl Carried {
    /// Collects open files of this process into an image.
    pub fn collect(files: &[&dyn AsFd]) -> Carried {
        Self::try_collect(files).unwrap()
    }

    /// Collects open files of this process into an image.
    pub fn try_collect(files: &[&dyn AsFd]) -> crate::Result<Carried> {
        let dir = tempfile::tempdir().unwrap();
        let dump = DumpDir::create(dir.path()).unwrap();
        let (task, options) = (Task::current().unwrap(), CheckpointOptions::default());
        let pids = [std::process::id() as i32];
        let mut cx = Collect::new(&dump, &options, &pids);
        let mut ids = Vec::new();
        for file in files {
            let file = file.as_fd();
            let twin = file.try_clone_to_owned().unwrap();
            ids.push(
                cx.descriptor(&task, pids[0], super::HeldFile::read(&task, pids[0], file.as_raw_fd(), twin, None)?)?.id,
            );
        }
        cx.finish()?;
        dump.write_one(ImageKind::Inventory, None, &InventoryEntry::default()).unwrap();
        dump.commit(CommitOptions { durability: Durability::Relaxed, ..CommitOptions::default() }).unwrap();
        let images = ImageDir::open(dir.path()).unwrap();
        let records = images.read_all::<FileEntry>(ImageKind::Files, None).unwrap();
        let records = records.into_iter().map(|record| (record.id, record)).collect();
        Ok(Carried { _dir: dir, images, ids, records, built: HashMap::new() })
    }

    /// Builds all of them again.
    pub fn build(self, options: RestoreOptions) -> Carried {
        self.try_build(options).unwrap()
    }

    /// Builds all of them again.
    pub fn try_build(mut self, options: RestoreOptions) -> crate::Result<Carried> {
        let mut cx = Build::new(&self.images, &options, &self.records);
        for &id in &self.ids {
            cx.file(id)?;
        }
        cx.complete(&mut super::socket::Actors::none())?;
        self.built = cx.into_built();
        Ok(self)
    }

    /// Does what is left to do when all processes exist; here a single one,
    /// without a hand, in which the files have these numbers.
    pub fn settle(&self, numbers: &[i32]) {
        let options = RestoreOptions::default();
        let mut places: HashMap<u32, Vec<(i32, i32)>> = HashMap::new();
        for (&id, &number) in self.ids.iter().zip(numbers) {
            places.entry(id).or_default().push((std::process::id() as i32, number));
        }
        let (images, records, built) = (&self.images, &self.records, &self.built);
        let mut hands = BTreeMap::new();
        let memfds = Default::default();
        let numbers = Default::default();
        let mut cx = Settle {
            numbers: &numbers,
            options: &options,
            images,
            hands: &mut hands,
            places: &places,
            records,
            built,
            memfds: &memfds,
        };
        for (id, record) in records {
            if let Some(file) = built.get(id) {
                Build::kind(record).unwrap().settle(&mut cx, record, file.as_fd()).unwrap();
            }
        }
    }

    /// The image.
    pub fn images(&self) -> &ImageDir {
        &self.images
    }

    /// What the n-th of the given files has become.
    pub fn file(&self, n: usize) -> &OwnedFd {
        &self.built[&self.ids[n]]
    }

    /// The record of the n-th of the given files.
    pub fn record(&self, n: usize) -> &FileEntry {
        &self.records[&self.ids[n]]
    }
}
