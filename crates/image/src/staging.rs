//! Where an image grows, and how it becomes visible.
//!
//! Into a directory that holds nothing of an image, the files are written at
//! once under their own names, but for the inventory and the manifest: those
//! have hidden names, and get their own at the end. Where an image is in the
//! way, all files grow in a hidden directory inside of it, and take its place
//! by moves. (Not in any case: a directory takes a block, and to give that back
//! takes up to 60 ms where the file system tells the disk at once.)

use std::ffi::OsStr;
use std::sync::Arc;

use crate::dir::{Dir, Lock};
use crate::dump_dir::{PARENT, is_layer_name};
use crate::error::{Error, Result};
use crate::frames::is_frames_name;
use crate::kind::ImageKind;
use crate::manifest::{MANIFEST_NAME, is_json_name};

/// Hidden directories begin with this; the writer's pid and a number follow. So do hidden files; the pid and their own name
/// follow.
pub(crate) const PREFIX: &str = ".cryonaut-";
/// Inside the hidden directory: the files of the image that we replace.
const OLD: &str = "old";

/// Removes what is hidden when dropped. A writer holds the locks of both
/// directories while it lives: one writer at a time, and a hidden directory
/// without a lock belongs to nobody, nor does a hidden file without a lock of
/// the directory in which it is.
#[derive(Debug)]
pub(crate) struct Staging {
    target: Arc<Dir>,
    /// Where files are hidden: the target itself, or a directory in it.
    dir: Arc<Dir>,
    /// The name of that directory, if it is one.
    name: Option<String>,
    /// Whether the files are written into the target, where there were none.
    direct: bool,
    /// Whether we made the target, and so remove it if we fail.
    made_target: bool,
}

/// What of a directory an image takes the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All that is part of an image.
    Whole,
    /// All but memory, which a page server may have put there already.
    WithoutMemory,
    /// Memory alone.
    Memory,
}

impl Scope {
    fn covers(self, name: &str) -> bool {
        match self {
            Scope::Whole => true,
            Scope::WithoutMemory => !is_memory(name),
            Scope::Memory => is_memory(name),
        }
    }
}

/// Whether the file is a pagemap or holds pages.
pub(crate) fn is_memory(name: &str) -> bool {
    let kind = ImageKind::from_file_name(name).map(|(kind, _)| kind);
    is_frames_name(name)
        || kind.is_some_and(|kind| kind.is_pages() || matches!(kind, ImageKind::Pagemap | ImageKind::ShmemPagemap))
}

impl Staging {
    pub(crate) fn create(target: Dir, made_target: bool) -> Result<Self> {
        let lock = target.try_lock();
        if lock == Lock::HeldByAnother {
            return Err(Error::Busy { path: target.path().to_owned() });
        }
        let names = target.names()?;
        remove_abandoned(&target, &names, lock);
        if lock == Lock::Taken && !names.iter().any(|name| belongs_to_image(name)) {
            let dir = target.hiding(format!("{PREFIX}{}-", std::process::id()))?;
            return Ok(Self { target: Arc::new(target), dir: Arc::new(dir), name: None, direct: true, made_target });
        }
        Self::within(target, made_target)
    }

    /// Beside another writer, who has the target's lock: all files grow hidden.
    pub(crate) fn beside(target: Dir) -> Result<Self> {
        Self::within(target, false)
    }

    fn within(target: Dir, made_target: bool) -> Result<Self> {
        let pid = std::process::id();
        for number in 0..10_000 {
            let name = format!("{PREFIX}{pid}-{number}");
            if !target.create_dir(&name)? {
                continue;
            }
            // Between the two calls another writer may take the directory for
            // abandoned and remove it.
            let Ok(dir) = target.subdir(&name) else {
                continue;
            };
            if dir.try_lock() == Lock::HeldByAnother || dir.is_removed() {
                continue;
            }
            let (target, dir) = (Arc::new(target), Arc::new(dir));
            return Ok(Self { target, dir, name: Some(name), direct: false, made_target });
        }
        Err(Error::misuse(target.path(), "no name is left for a hidden directory"))
    }

    pub(crate) fn target(&self) -> &Dir {
        &self.target
    }

    /// The directory in which the file of this name grows.
    pub(crate) fn dir_of(&self, name: &str) -> &Arc<Dir> {
        if self.direct && !comes_last(name) { &self.target } else { &self.dir }
    }

    /// Makes the named files an image: moves those that grew hidden into the
    /// target, the inventory last, and the old image's files out of it, its
    /// inventory first. All or nothing, except that a crash in the middle leaves
    /// no image.
    pub(crate) fn install(&mut self, mut names: Vec<String>, scope: Scope, sync: bool) -> Result<()> {
        if sync {
            for name in names.iter().filter(|name| *name != PARENT) {
                self.dir_of(name).sync_file(name)?;
            }
        }
        if self.direct {
            names.retain(|name| comes_last(name));
        }
        let mut replaced = if self.direct { Vec::new() } else { self.target.names()? };
        replaced.retain(|name| is_part_of_an_image(name, self.target.is_dir(name)));
        replaced.retain(|name| scope.covers(name) || names.contains(name));
        let mut moves = Moves { staging: &self.dir, target: &self.target, old: None, out: vec![], r#in: vec![] };
        match moves.run(names, replaced, sync) {
            Ok(()) => {
                self.made_target = false;
                self.direct = false;
                Ok(())
            }
            Err(error) => {
                moves.undo();
                Err(error)
            }
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            self.target.remove_tree(OsStr::new(name));
        }
        if self.direct {
            // Not committed: there was nothing of an image here before.
            for name in self.target.names().unwrap_or_default().iter().filter(|name| belongs_to_image(name)) {
                remove(&self.target, name);
            }
            for name in [MANIFEST_NAME, INVENTORY] {
                let _ = self.dir.remove_file(name);
            }
        }
        if self.made_target {
            // Fails if others have put something there meanwhile, as it should.
            let _ = std::fs::remove_dir(self.target.path());
        }
    }
}

struct Moves<'a> {
    staging: &'a Dir,
    target: &'a Dir,
    /// Where the old image's files go, if there are any.
    old: Option<Dir>,
    out: Vec<String>,
    r#in: Vec<String>,
}

impl Moves<'_> {
    fn run(&mut self, mut names: Vec<String>, mut stale: Vec<String>, sync: bool) -> Result<()> {
        if !stale.is_empty() {
            stale.sort_by_key(|name| !is_inventory(name));
            self.put_away(stale, sync)?;
        }

        names.sort_by_key(|name| is_inventory(name));
        for name in names {
            // Everything else must be there before the inventory comes.
            if is_inventory(&name) && sync {
                self.target.sync()?;
            }
            self.staging.move_to(&name, self.target)?;
            self.r#in.push(name);
        }
        if sync { self.target.sync() } else { Ok(()) }
    }

    /// Moves the old image's files out of the way, in this order.
    fn put_away(&mut self, stale: Vec<String>, sync: bool) -> Result<()> {
        self.staging.create_dir(OLD)?;
        let old = self.old.insert(self.staging.subdir(OLD)?);
        for name in stale {
            self.target.move_to(&name, old)?;
            // The inventory must be gone before anything else goes.
            if is_inventory(&name) && sync {
                self.target.sync()?;
            }
            self.out.push(name);
        }
        Ok(())
    }

    /// Puts everything back, as far as that goes; the error being reported is
    /// the one that led here.
    fn undo(&mut self) {
        for name in self.r#in.iter().rev() {
            remove(self.target, name);
        }
        let Some(old) = &self.old else { return };
        for name in self.out.iter().rev() {
            let _ = old.move_to(name, self.target);
        }
    }
}

/// Whether a name in the target is that of a part of an image. Does not allocate.
pub(crate) fn belongs_to_image(name: &str) -> bool {
    is_part_of_an_image(name, false) || is_part_of_an_image(name, true)
}

/// The same of a file, or a directory. No directory but a layer is ours: an older image may live in one named
/// "parent". Does not allocate.
pub(crate) fn is_part_of_an_image(name: &str, is_directory: bool) -> bool {
    if is_directory {
        return is_layer_name(name);
    }
    name == PARENT
        || is_json_name(name)
        || is_frames_name(name)
        || ImageKind::from_file_name(name).is_some_and(|(kind, _)| !kind.is_service())
}

/// Removes what is ours by its name.
fn remove(target: &Dir, name: &str) {
    match target.is_dir(name) {
        true if is_layer_name(name) => target.remove_tree(OsStr::new(name)),
        true => {}
        false => drop(target.remove_file(name)),
    }
}

const INVENTORY: &str = "inventory.img";

/// Whether the file grows hidden in any case: a manifest or an inventory that
/// can be seen is whole.
fn comes_last(name: &str) -> bool {
    is_inventory(name) || name == MANIFEST_NAME
}

fn is_inventory(name: &str) -> bool {
    name == INVENTORY
}

/// Whether it is the name of a hidden file.
fn is_hidden_file(name: &str) -> bool {
    let hidden = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
    hidden.is_some_and(|(pid, own)| pid.bytes().all(|byte| byte.is_ascii_digit()) && comes_last(own))
}

/// Removes what writers that are no more have hidden.
fn remove_abandoned(target: &Dir, names: &[String], lock: Lock) {
    for name in names.iter().filter(|name| name.starts_with(PREFIX)) {
        if target.subdir(name).is_ok_and(|dir| dir.try_lock() == Lock::Taken) {
            target.remove_tree(OsStr::new(name));
        } else if lock == Lock::Taken && is_hidden_file(name) {
            let _ = target.remove_file(name);
        }
    }
}
