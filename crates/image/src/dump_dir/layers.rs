//! Images below an image, which are directories inside of it, and come and go with it.

use super::{CommitOptions, DumpDir, Durability, Home, PARENT};
use crate::error::{Error, Result};
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};

/// Names of layers begin so; their number follows.
const LAYER: &str = "cryonaut-shared-";

pub(super) fn layer_name(number: usize) -> String {
    format!("{LAYER}{number}")
}

/// Whether a directory of this name is a layer of an image. Does not allocate.
pub(crate) fn is_layer_name(name: &str) -> bool {
    let number = name.strip_prefix(LAYER).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

impl DumpDir {
    /// Whether the image may have [layers](DumpDir::layers): not if it has
    /// another parent, or somebody has put a directory of that name there.
    pub fn can_have_layers(&self) -> bool {
        if !self.lock_layers().is_empty() {
            return true;
        }
        !self.files().contains_key(PARENT) && !self.home.target().is_dir(PARENT) && !self.is_without_memory()
    }

    fn lock_layers(&self) -> MutexGuard<'_, Vec<Arc<DumpDir>>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first images below this one, which come and go with it: directories
    /// inside of it, the first its parent, the second the first's parent. Those
    /// that are not there yet are made. All handles must be gone before the
    /// commit.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Misuse`] if there is another parent already.
    pub fn layers(&self, count: usize) -> Result<Vec<Arc<DumpDir>>> {
        let mut layers = self.lock_layers();
        for number in layers.len() + 1..=count {
            let name = layer_name(number);
            let dir = self.home.dir_of(&name);
            if !dir.create_dir(&name)? {
                return Err(Error::misuse(self.path_of(&name), "made twice"));
            }
            match layers.last() {
                None => self.set_parent(&name)?,
                Some(above) => above.set_parent(Path::new("..").join(&name))?,
            }
            layers.push(Arc::new(Self::at(Home::Layer(Arc::new(dir.subdir(&name)?)))));
        }
        Ok(layers.iter().take(count).cloned().collect())
    }

    /// Makes a layer complete; the image moves it as a whole.
    pub(super) fn complete_layer(self, options: &CommitOptions) -> Result<()> {
        let names = self.close_files(options)?;
        if options.durability == Durability::Synced {
            for name in names.iter().filter(|name| *name != PARENT) {
                self.home.dir_of(name).sync_file(name)?;
            }
        }
        Ok(())
    }
}
