//! A dump killed at any moment leaves a whole image or none.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cryonaut_image::records::*;
use cryonaut_image::*;

/// Set for the process that is to be killed: the directory to write into.
const TARGET: &str = "CRYONAUT_TEST_CRASH_TARGET";

/// Replaces the image there by one of `files` processes, whose files all say so.
fn replace(dir: &Path, files: u64) {
    let dump = DumpDir::create(dir).unwrap();
    for pid in 1..=files {
        let entry = FsEntry { cwd_id: files as u32, root_id: 0, umask: None };
        dump.write_one(ImageKind::Fs, pid, &entry).unwrap();
    }
    dump.raw_file(ImageKind::Pages, 1).unwrap().write_all(&vec![1; 1 << 20]).unwrap();
    let inventory = InventoryEntry { img_version: 2, root_cg_set: Some(files as u32), ..Default::default() };
    dump.write_one(ImageKind::Inventory, None, &inventory).unwrap();
    let durability = if files.is_multiple_of(2) { Durability::Synced } else { Durability::Relaxed };
    dump.commit(CommitOptions { durability, ..Default::default() }).unwrap();
}

/// Not a test of its own: what the killed process runs.
#[test]
fn writer() {
    let Some(dir) = std::env::var_os(TARGET).map(PathBuf::from) else {
        return;
    };
    for round in 0.. {
        replace(&dir, 20 + round % 20);
    }
}

/// Whether there is an image; if so, it is whole and of one dump.
fn check(dir: &Path) -> bool {
    let image = match ImageDir::open(dir) {
        Ok(image) => image,
        // Its manifest, if there without an inventory, must still be whole.
        Err(error) => panic!("{error}"),
    };
    let inventory = match image.inventory() {
        Err(Error::Missing { .. }) => return false,
        other => other.unwrap(),
    };
    image.verify(true).unwrap();
    let ids = image.ids(ImageKind::Fs).unwrap();
    assert_eq!(ids.len() as u32, inventory.root_cg_set.unwrap());
    for id in ids {
        let entry: FsEntry = image.read_one(ImageKind::Fs, id).unwrap();
        assert_eq!(Some(entry.cwd_id), inventory.root_cg_set, "files of two dumps are mixed");
    }
    true
}

#[test]
fn killed_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    let (mut images, mut none) = (0, 0);
    let start = Instant::now();
    for round in 0_u64.. {
        if round >= 40 && (images > 0 && none > 0 || start.elapsed() > Duration::from_secs(30)) {
            break;
        }
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer"])
            .env(TARGET, &target)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Spread over the process's start and some dozens of dumps.
        std::thread::sleep(Duration::from_micros(5_000 + round * 7_919 % 90_000));
        writer.kill().unwrap();
        assert_eq!(writer.wait().unwrap().signal(), Some(9), "the writer ended by itself");
        if target.exists() {
            match check(&target) {
                true => images += 1,
                false => none += 1,
            }
        }
    }
    assert!(images > 0, "no image was ever seen; none {none} times");

    // The next dump clears away what the killed ones left.
    replace(&target, 3);
    assert!(check(&target));
    let hidden =
        |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().starts_with('.');
    assert!(!std::fs::read_dir(&target).unwrap().any(hidden));
}
