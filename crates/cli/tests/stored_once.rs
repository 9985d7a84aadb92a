//! Pages that processes of a tree share until one of them writes are in the image once; pages of zeros, and those that are
//! as their file has them, are not in it.

use std::fs;
use std::path::Path;
use std::process::Command;

use cryonaut_tests::Workload;

/// What the processes of `memory/cow_many` have in common, bytes.
const SHARED: u64 = 16 << 20;

/// Bytes of the pages files in an image, and in the directories that it has inside.
fn pages(directory: &Path) -> u64 {
    let mut sum = 0;
    for entry in fs::read_dir(directory).expect("the image is there") {
        let entry = entry.expect("it can be listed");
        let kind = entry.file_type().expect("it has a type");
        let name = entry.file_name().into_string().expect("names are plain");
        if kind.is_dir() {
            sum += pages(&entry.path());
        } else if kind.is_file() && name.starts_with("pages-") {
            sum += entry.metadata().expect("it is there").len();
        }
    }
    sum
}

fn assert_once(images: &Path) {
    let stored = pages(images);
    assert!(stored < SHARED * 3 / 2, "{stored} bytes of pages for {SHARED} of memory");
}

#[test]
fn what_is_shared_is_stored_once_every_time() {
    let mut workload = Workload::start("memory/cow_many").expect("it starts");
    workload.checkpoint_leave_running().expect("a checkpoint that leaves it running");
    assert_once(&workload.images());
    workload.checkpoint().expect("a checkpoint over the image of before");
    assert_once(&workload.images());
    let old = workload.images();
    let verified = cryonaut_image::ImageDir::open(&old).and_then(|image| image.verify(true)).expect("a sound image");
    assert!(verified.files > 20, "{verified:?}");
    workload.restore().expect("a restore");
    workload.finish().expect("its own checks");
}

#[test]
fn what_is_shared_is_copied_while_it_runs() {
    let workload = Workload::start("memory/cow_many").expect("it starts");
    let dir = tempfile::tempdir().expect("a directory");
    let images = dir.path().join("images");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cryonaut"));
    command.arg("checkpoint").arg(workload.pid().as_raw_nonzero().to_string()).arg("-o").arg(&images);
    let output = command.args(["--leave-running", "--precopy=always", "--json"]).output().expect("it runs");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && report.contains("\"untracked\":[]"), "{report}");
    assert_once(&images);
    assert!(images.join("cryonaut-shared-1").is_dir());
    workload.finish().expect("its own checks");
}

/// What `memory/not_stored` has of pages that are not of zeros: 3 of 16.
const NOT_ZERO: u64 = ((24 << 20) + (64 << 12)) / 16 * 3;
/// What any process has, and pages of files that were changed.
const BESIDE: u64 = 80 << 12;

#[test]
fn what_is_there_without_pages_is_not_stored() {
    let mut workload = Workload::start("memory/not_stored").expect("it starts");
    workload.checkpoint_leave_running().expect("a checkpoint that leaves it running");
    let copied = pages(&workload.images());
    workload.checkpoint().expect("a checkpoint that ends it");
    let stored = pages(&workload.images());
    assert!((NOT_ZERO..NOT_ZERO + BESIDE).contains(&copied), "{copied} bytes of pages for {NOT_ZERO}");
    assert!((NOT_ZERO..NOT_ZERO + BESIDE).contains(&stored), "{stored} bytes of pages for {NOT_ZERO}");
    workload.restore().expect("a restore");
    workload.finish().expect("its own checks");
}

#[test]
fn a_file_that_has_changed_since_is_told() {
    let mut workload = Workload::start("memory/not_stored").expect("it starts");
    workload.checkpoint().expect("a checkpoint");
    let file = workload.images().with_file_name("state").join("file");
    let before = fs::read(&file).expect("it maps a file");
    let mut other = before.clone();
    // Of a page that the process had written to, if only what was there before.
    other[4 << 12] ^= 1;
    fs::write(&file, &other).expect("it can be changed");
    let failure = workload.restore().expect_err("its memory is in no other place");
    assert!(failure.to_string().contains("have changed since the checkpoint"), "{failure}");
    fs::write(&file, &before).expect("it can be as it was");
    workload.restore().expect("a restore");
    workload.finish().expect("its own checks");
}
