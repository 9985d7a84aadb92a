//! The hidden directory in which an image grows, and the moves out of it.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::dir::{Dir, Lock};
use crate::dump_dir::PARENT;
use crate::error::{Error, Result};
use crate::kind::ImageKind;
use crate::manifest::is_json_name;

/// Hidden directories begin with this; the writer's pid and a number follow.
const PREFIX: &str = ".cryonaut-";
/// Inside the hidden directory: the files of the image that we replace.
const OLD: &str = "old";

/// Removes the hidden directory when dropped. A writer holds the directory's
/// lock while it lives, so a directory without a lock belongs to nobody.
#[derive(Debug)]
pub(crate) struct Staging {
    target: Dir,
    dir: Arc<Dir>,
    name: String,
    /// Whether we made the target, and so remove it if we fail.
    made_target: bool,
}

impl Staging {
    pub(crate) fn create(target: Dir, made_target: bool) -> Result<Self> {
        remove_abandoned(&target)?;
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
            return Ok(Self { target, dir: Arc::new(dir), name, made_target });
        }
        Err(Error::misuse(target.path(), "no name is left for a hidden directory"))
    }

    pub(crate) fn target(&self) -> &Dir {
        &self.target
    }

    pub(crate) fn dir(&self) -> &Arc<Dir> {
        &self.dir
    }

    /// Moves the named files into the target, the inventory last, and the old
    /// image's files out of it, its inventory first. All or nothing, except that
    /// a crash in the middle leaves no image.
    pub(crate) fn install(mut self, names: Vec<String>, sync: bool) -> Result<()> {
        if sync {
            for name in names.iter().filter(|name| *name != PARENT) {
                self.dir.sync_file(name)?;
            }
        }
        self.dir.create_dir(OLD)?;
        let old = self.dir.subdir(OLD)?;
        let mut moves = Moves { staging: &self.dir, target: &self.target, old, out: vec![], r#in: vec![] };
        match moves.run(names, sync) {
            Ok(()) => {
                self.made_target = false;
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
        self.target.remove_tree(OsStr::new(&self.name));
        if self.made_target {
            // Fails if others have put something there meanwhile, as it should.
            let _ = std::fs::remove_dir(self.target.path());
        }
    }
}

struct Moves<'a> {
    staging: &'a Dir,
    target: &'a Dir,
    old: Dir,
    out: Vec<String>,
    r#in: Vec<String>,
}

impl Moves<'_> {
    fn run(&mut self, mut names: Vec<String>, sync: bool) -> Result<()> {
        // A directory is never ours: an older image may live in one named "parent".
        let mut stale: Vec<String> = self.target.names()?;
        stale.retain(|name| belongs_to_image(name) && !self.target.is_dir(name));
        stale.sort_by_key(|name| !is_inventory(name));
        for name in stale {
            self.target.move_to(&name, &self.old)?;
            // The inventory must be gone before anything else goes.
            if is_inventory(&name) && sync {
                self.target.sync()?;
            }
            self.out.push(name);
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

    /// Puts everything back, as far as that goes; the error being reported is
    /// the one that led here.
    fn undo(&mut self) {
        for name in self.r#in.iter().rev() {
            let _ = self.target.remove_file(name);
        }
        for name in self.out.iter().rev() {
            let _ = self.old.move_to(name, self.target);
        }
    }
}

/// Whether a file in the target is part of an image that was dumped there.
fn belongs_to_image(name: &str) -> bool {
    name == PARENT || is_json_name(name) || ImageKind::from_file_name(name).is_some_and(|(kind, _)| !kind.is_service())
}

fn is_inventory(name: &str) -> bool {
    ImageKind::from_file_name(name) == Some((ImageKind::Inventory, None))
}

/// Removes the hidden directories of writers that are no more.
fn remove_abandoned(target: &Dir) -> Result<()> {
    for name in target.names()?.iter().filter(|name| name.starts_with(PREFIX)) {
        if target.subdir(name).is_ok_and(|dir| dir.try_lock() == Lock::Taken) {
            target.remove_tree(OsStr::new(name));
        }
    }
    Ok(())
}
