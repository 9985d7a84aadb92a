//! Files of pages that are kept from podman while it makes an archive, so that they need not go through it.
//!
//! ```text
//!   who asks                          podman ──▶ runtime ──▶ criu, which is this program as well
//!   PLACE/pages-aside, empty  ──────────────────────────────▶ image/pages-1.img becomes image/../pages-1.img,
//!   PLACE/pages-aside, with names ◀────────────────────────── and a link to that
//!   packs them, while podman does what it has to
//!   puts them back
//! ```
//!
//! PLACE is the directory in which the runtime finds us under the name criu: the first of its PATH. If we are killed before
//! they are back, the image is still whole, by its links.

use cryonaut_image::ImageKind;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// In PLACE.
const NAME: &str = "pages-aside";
/// What has less goes through podman in no time.
const WORTH_IT: u64 = 1 << 20;

/// What has been set aside.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Aside {
    image: PathBuf,
    names: Vec<String>,
}

impl Aside {
    fn beside(&self, name: &str) -> PathBuf {
        self.image.join("..").join(name)
    }

    /// The files, open, by their names in the image.
    pub fn open(&self) -> io::Result<Vec<(String, File)>> {
        self.names.iter().map(|name| Ok((name.clone(), File::open(self.beside(name))?))).collect()
    }
}

/// That pages are to be set aside. Dropped, they are where they belong.
#[derive(Debug)]
pub struct Asked(PathBuf);

impl Asked {
    /// Asks for it.
    pub fn ask(place: &Path) -> io::Result<Asked> {
        let path = place.join(NAME);
        File::create_new(&path)?;
        Ok(Asked(path))
    }

    /// Where the answer is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// What has been set aside until now; `None` if nothing was, or it is not known yet.
pub fn answer(asked: &Path) -> Option<Aside> {
    serde_json::from_slice(&fs::read(asked).ok()?).ok()
}

impl Drop for Asked {
    fn drop(&mut self) {
        let aside = answer(&self.0).unwrap_or_default();
        for name in &aside.names {
            // Podman may have removed the image.
            if fs::rename(aside.beside(name), aside.image.join(name)).is_err() {
                let _ = fs::remove_file(aside.beside(name));
            }
        }
        let _ = fs::remove_file(&self.0);
    }
}

/// Where a runtime has found us, if pages are to be set aside.
fn asked() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let place = env::split_paths(&path).next()?;
    let is_ours = fs::canonicalize(place.join("criu")).ok()? == env::current_exe().ok()?;
    let asked = place.join(NAME);
    (is_ours && asked.is_file()).then_some(asked)
}

/// Sets the pages of a new image aside, if that is asked for.
pub fn set_aside(image: &Path) -> io::Result<()> {
    let Some(asked) = asked() else { return Ok(()) };
    let mut aside = Aside { image: image.to_owned(), names: Vec::new() };
    for entry in fs::read_dir(image)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) =
            name.to_str().filter(|name| ImageKind::from_file_name(name).is_some_and(|(kind, _)| kind.is_pages()))
        else {
            continue;
        };
        let metadata = entry.metadata()?;
        if metadata.is_file() && metadata.len() >= WORTH_IT && move_one(&aside, name) {
            aside.names.push(name.to_owned());
        }
    }
    let whole = asked.with_extension("new");
    fs::write(&whole, serde_json::to_vec(&aside)?)?;
    fs::rename(whole, asked)
}

/// Says whether it could be done.
fn move_one(aside: &Aside, name: &str) -> bool {
    let (here, beside) = (aside.image.join(name), aside.beside(name));
    if renameat_with(CWD, &here, CWD, &beside, RenameFlags::NOREPLACE).is_err() {
        return false;
    }
    let linked = symlink(Path::new("..").join(name), &here);
    linked.is_ok() || fs::rename(beside, here).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_aside_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("checkpoint");
        fs::create_dir(&image).unwrap();
        fs::write(image.join("pages-1.img"), "pages").unwrap();
        let asked = Asked::ask(dir.path()).unwrap();
        assert!(answer(asked.path()).is_none() && set_aside(&image).is_ok());
        let aside = Aside { image: image.clone(), names: vec!["pages-1.img".into()] };
        assert!(move_one(&aside, "pages-1.img"));
        // By its link it is still there, and what is in its place aside is left alone.
        assert_eq!(fs::read(image.join("pages-1.img")).unwrap(), b"pages");
        assert!(image.join("pages-1.img").is_symlink() && !move_one(&aside, "pages-1.img"));
        fs::write(asked.path(), serde_json::to_vec(&aside).unwrap()).unwrap();
        assert_eq!(answer(asked.path()).unwrap().open().unwrap().len(), 1);
        drop(asked);
        assert!(!image.join("pages-1.img").is_symlink());
        assert_eq!(fs::read(image.join("pages-1.img")).unwrap(), b"pages");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
