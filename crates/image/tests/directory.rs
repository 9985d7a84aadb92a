//! Whole directories: written, committed, read back, replaced, abandoned.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use cryonaut_image::records::*;
use cryonaut_image::*;

fn pstree(pid: u32) -> PstreeEntry {
    PstreeEntry { pid, ppid: 0, pgid: pid, sid: pid, threads: vec![pid] }
}

fn inventory() -> InventoryEntry {
    InventoryEntry { img_version: 2, ..Default::default() }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// An image with one file of each sort.
fn write_sample(dir: &Path, pid: u32) {
    let dump = DumpDir::create(dir).unwrap();
    dump.append(ImageKind::Pstree, None, &pstree(pid), None).unwrap();
    dump.append(ImageKind::Pstree, None, &pstree(pid + 1), None).unwrap();
    for (pipe_id, data) in [(1, &b"in the pipe"[..]), (2, b"")] {
        let entry = PipeDataEntry { pipe_id, bytes: data.len() as u32, size: Some(65536) };
        dump.append(ImageKind::PipesData, None, &entry, Some(data)).unwrap();
    }
    dump.raw_file(ImageKind::Pages, 1).unwrap().write_all(&[7; 8192]).unwrap();
    dump.raw_file(ImageKind::Ifaddr, 9).unwrap().write_all(b"addresses").unwrap();
    let mut map = PagemapWriter::create(&dump, ImageKind::Pagemap, u64::from(pid), 1).unwrap();
    assert_eq!(map.push(0x1000, 1, PageFlags::PRESENT).unwrap(), 0);
    assert_eq!(map.push(0x2000, 1, PageFlags::PRESENT).unwrap(), 4096);
    map.push(0x9000, 3, PageFlags::LAZY).unwrap();
    assert_eq!(map.finish().unwrap(), 8192);
    dump.write_json("extra", &[1, 2, 3]).unwrap();
    dump.write_one(ImageKind::Inventory, None, &inventory()).unwrap();
    dump.commit(CommitOptions { sum_pages: true, ..Default::default() }).unwrap();
}

#[test]
fn what_was_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    write_sample(dir.path(), 10);

    let image = ImageDir::open(dir.path()).unwrap();
    assert_eq!(image.inventory().unwrap(), inventory());
    let tree: Vec<PstreeEntry> = image.read_all(ImageKind::Pstree, None).unwrap();
    assert_eq!(tree, [pstree(10), pstree(11)]);
    let pipes: Vec<(PipeDataEntry, Vec<u8>)> = image.read_tailed(ImageKind::PipesData, None).unwrap();
    assert_eq!(pipes[0].1, b"in the pipe");
    assert_eq!(pipes[1].1, b"");
    assert_eq!(image.read_json::<Vec<u32>>("extra").unwrap(), Some(vec![1, 2, 3]));
    assert_eq!(image.read_json::<Vec<u32>>("other").unwrap(), None);

    let map = Pagemap::read(&image, ImageKind::Pagemap, 10).unwrap();
    assert_eq!(map.pages_id(), 1);
    assert_eq!(map.runs().len(), 2);
    assert_eq!((map.runs()[0].pages, map.runs()[0].offset), (2, Some(0)));
    assert_eq!((map.runs()[1].pages, map.runs()[1].offset), (3, None));
    assert_eq!(map.find(0x2fff), Some(&map.runs()[0]));
    assert_eq!(map.find(0x3000), None);
    assert_eq!(map.find(0xbfff), Some(&map.runs()[1]));

    let mut text = String::new();
    image.open_raw(ImageKind::Ifaddr, 9).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "addresses");
    assert_eq!(image.ids(ImageKind::Pagemap).unwrap(), [10]);
    let report = image.verify(true).unwrap();
    assert_eq!((report.files, report.sums), (6, 7));
}

#[test]
fn nothing_but_the_image_is_left_and_foreign_files_stay() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("descriptors.json"), "[]").unwrap();
    fs::write(dir.path().join("stats-dump"), "old").unwrap();
    fs::create_dir(dir.path().join("parent")).unwrap();
    write_sample(dir.path(), 10);
    write_sample(dir.path(), 20);
    assert_eq!(
        names(dir.path()),
        [
            "cryonaut-extra.json",
            "cryonaut-manifest.json",
            "descriptors.json",
            "ifaddr-9.img",
            "inventory.img",
            "pagemap-20.img",
            "pages-1.img",
            "parent",
            "pipes-data.img",
            "pstree.img",
            "stats-dump",
        ]
    );
}

#[test]
fn a_dropped_dump_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("new");
    let dump = DumpDir::create(&new).unwrap();
    dump.raw_file(ImageKind::Pages, 1).unwrap();
    dump.append(ImageKind::Pstree, None, &pstree(1), None).unwrap();
    drop(dump);
    assert!(!new.exists());

    write_sample(dir.path(), 10);
    let before = names(dir.path());
    let dump = DumpDir::create(dir.path()).unwrap();
    dump.append(ImageKind::Pstree, None, &pstree(1), None).unwrap();
    assert!(matches!(dump.commit(CommitOptions::default()), Err(Error::Misuse { .. })));
    assert_eq!(names(dir.path()), before);
    ImageDir::open(dir.path()).unwrap().verify(true).unwrap();
}

#[test]
fn a_commit_that_fails_half_way_restores_the_older_image() {
    let dir = tempfile::tempdir().unwrap();
    write_sample(dir.path(), 10);
    // A directory in the way of a file that comes late in the order.
    fs::create_dir(dir.path().join("sk-queues.img")).unwrap();
    let before = names(dir.path());

    let dump = DumpDir::create(dir.path()).unwrap();
    dump.append(ImageKind::Pstree, None, &pstree(99), None).unwrap();
    dump.entry_file(ImageKind::SkQueues, None).unwrap();
    dump.write_one(ImageKind::Inventory, None, &inventory()).unwrap();
    let error = dump.commit(CommitOptions::default()).unwrap_err();
    assert!(error.path().ends_with("sk-queues.img"), "{error}");

    assert_eq!(names(dir.path()), before);
    fs::remove_dir(dir.path().join("sk-queues.img")).unwrap();
    let image = ImageDir::open(dir.path()).unwrap();
    image.verify(true).unwrap();
    assert_eq!(image.read_all::<PstreeEntry>(ImageKind::Pstree, None).unwrap()[0].pid, 10);
}

#[test]
fn leftovers_of_the_dead_go_and_those_of_the_living_stay() {
    let dir = tempfile::tempdir().unwrap();
    let abandoned = dir.path().join(".cryonaut-1-0");
    fs::create_dir_all(abandoned.join("old")).unwrap();
    fs::write(abandoned.join("old/core-1.img"), "x").unwrap();
    let hidden = dir.path().join(".cryonaut-1-inventory.img");
    fs::write(&hidden, "x").unwrap();
    let living = DumpDir::create(dir.path()).unwrap();
    assert!(!abandoned.exists() && !hidden.exists());
    let other = DumpDir::create(dir.path()).unwrap_err();
    assert!(matches!(other, Error::Busy { .. }), "{other}");
    living.write_one(ImageKind::Inventory, None, &inventory()).unwrap();
    living.commit(CommitOptions::default()).unwrap();
    assert_eq!(names(dir.path()), ["cryonaut-manifest.json", "inventory.img"]);
}

#[test]
fn what_is_not_whole_has_hidden_names_and_no_directory() {
    let dir = tempfile::tempdir().unwrap();
    let dump = DumpDir::create(dir.path()).unwrap();
    for kind in [ImageKind::Inventory, ImageKind::Pstree] {
        dump.expect(kind, None).unwrap();
    }
    let pid = std::process::id();
    assert_eq!(names(dir.path()), [format!(".cryonaut-{pid}-inventory.img"), "pstree.img".to_owned()]);
    drop(dump);
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn parents_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    write_sample(&dir.path().join("first"), 10);
    let dump = DumpDir::create(dir.path().join("second")).unwrap();
    dump.set_parent("../first").unwrap();
    dump.write_one(ImageKind::Inventory, None, &inventory()).unwrap();
    dump.commit(CommitOptions::default()).unwrap();
    let image = ImageDir::open(dir.path().join("second")).unwrap();
    image.verify(true).unwrap();
    let parent = image.parent().unwrap().unwrap();
    assert_eq!(parent.ids(ImageKind::Pagemap).unwrap(), [10]);
    assert!(parent.parent().unwrap().is_none());
}

/// An image of some layers, each with a pages file of its own, not yet committed.
fn layered(dir: &Path, count: usize) -> DumpDir {
    let dump = DumpDir::create(dir).unwrap();
    assert!(dump.can_have_layers());
    for (layer, number) in dump.layers(count).unwrap().iter().zip(1..) {
        let pages = layer.raw_file(ImageKind::Pages, 1).unwrap();
        pages.set_len(number * 4096).unwrap();
        let mut map = PagemapWriter::create(layer, ImageKind::Pagemap, 10, 1).unwrap();
        map.push(0x1000, number, PageFlags::PRESENT).unwrap();
        map.finish().unwrap();
    }
    // Those that are there, and more.
    assert!(dump.can_have_layers());
    assert_eq!(dump.layers(count).unwrap().len(), count);
    dump.write_one(ImageKind::Inventory, None, &inventory()).unwrap();
    dump
}

#[test]
fn layers_come_and_go_with_their_image() {
    let dir = tempfile::tempdir().unwrap();
    let all = |layers: &[&'static str]| {
        let own = ["cryonaut-manifest.json"].iter().chain(layers).chain(&["inventory.img", "parent"]).copied();
        own.collect::<Vec<_>>()
    };
    // Into an empty directory, and in the place of an image.
    for (count, layers) in [(2, &["cryonaut-shared-1", "cryonaut-shared-2"][..]), (1, &["cryonaut-shared-1"])] {
        layered(dir.path(), count).commit(CommitOptions::default()).unwrap();
        assert_eq!(names(dir.path()), all(layers));
        let mut image = ImageDir::open(dir.path()).unwrap();
        assert_eq!(image.verify(true).unwrap().files, 1 + 2 * count);
        for pages in 1..=count as u64 {
            image = image.parent().unwrap().unwrap();
            assert_eq!(Pagemap::read(&image, ImageKind::Pagemap, 10).unwrap().present_len(), pages * 4096);
        }
        assert!(image.parent().unwrap().is_none());
    }
    // A dump that fails leaves the image before it, or nothing.
    drop(layered(dir.path(), 2));
    assert_eq!(names(dir.path()), all(&["cryonaut-shared-1"]));
    let held = layered(dir.path(), 3);
    let handle = DumpDir::create(dir.path().join("other")).unwrap();
    let layer = handle.layers(1).unwrap();
    handle.write_one(ImageKind::Inventory, None, &inventory()).unwrap();
    assert!(matches!(handle.commit(CommitOptions::default()).unwrap_err(), Error::Misuse { .. }));
    drop((layer, held));
    assert_eq!(names(dir.path()), all(&["cryonaut-shared-1"]));
    // What is wrong in a layer is wrong with the image.
    std::fs::write(dir.path().join("cryonaut-shared-1/pages-1.img"), "short").unwrap();
    assert!(ImageDir::open(dir.path()).unwrap().verify(false).is_err());
}

#[test]
fn a_directory_in_the_way_of_layers_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("parent")).unwrap();
    let dump = DumpDir::create(dir.path()).unwrap();
    assert!(!dump.can_have_layers());
}

#[test]
fn mistakes_of_the_caller_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let dump = DumpDir::create(dir.path()).unwrap();
    let misuse = |result: Result<()>| assert!(matches!(result, Err(Error::Misuse { .. })));
    misuse(dump.append(ImageKind::Core, 1, &pstree(1), None));
    misuse(dump.append(ImageKind::Pages, 1, &pstree(1), None));
    misuse(dump.raw_file(ImageKind::Pstree, None).map(drop));
    dump.raw_file(ImageKind::Pages, 1).unwrap();
    misuse(dump.raw_file(ImageKind::Pages, 1).map(drop));
    dump.write_one(ImageKind::Inventory, None, &inventory()).unwrap();
    misuse(dump.write_one(ImageKind::Inventory, None, &inventory()));
    misuse(dump.write_json("../x", &1));
    misuse(dump.write_json("manifest", &1));
    let pipes = dump.entry_file(ImageKind::PipesData, None).unwrap();
    let entry = PipeDataEntry { pipe_id: 1, bytes: 3, size: None };
    misuse(pipes.append_tailed(&entry, b"four"));
    let mut map = PagemapWriter::create(&dump, ImageKind::Pagemap, 1, 1).unwrap();
    map.push(0x5000, 2, PageFlags::PRESENT).unwrap();
    misuse(map.push(0x6000, 1, PageFlags::PRESENT).map(drop));
    misuse(map.push(0x8001, 1, PageFlags::PRESENT).map(drop));
    misuse(map.push(0x8000, 0, PageFlags::PRESENT).map(drop));
    dump.commit(CommitOptions::default()).unwrap();
    misuse(pipes.append(&entry));
}

#[test]
fn large_data_stream_through() {
    let dir = tempfile::tempdir().unwrap();
    let dump = DumpDir::create(dir.path()).unwrap();
    let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let ghost = dump.entry_file(ImageKind::GhostFile, 0x1f).unwrap();
    let head = GhostFileEntry { uid: 0, gid: 0, mode: 0o100600, ..Default::default() };
    ghost.append(&head).unwrap();
    ghost.append_from(&data[..], 1_000_000).unwrap();
    ghost.append_raw(&data[1_000_000..]).unwrap();
    let failing = ghost.position();
    dump.write_one(ImageKind::Inventory, None, &inventory()).unwrap();
    dump.commit(CommitOptions::default()).unwrap();

    let image = ImageDir::open(dir.path()).unwrap();
    image.verify(false).unwrap();
    let mut reader = image.entries(ImageKind::GhostFile, 0x1f).unwrap();
    assert_eq!(reader.require::<GhostFileEntry>().unwrap(), head);
    assert_eq!(reader.remaining(), 3_000_000);
    let mut copy = Vec::new();
    reader.copy_to(reader.remaining(), &mut copy).unwrap();
    assert!(copy == data);
    assert_eq!(reader.position(), failing);
}

#[test]
fn data_that_run_out_fail_the_dump() {
    let dir = tempfile::tempdir().unwrap();
    let dump = DumpDir::create(dir.path()).unwrap();
    dump.write_one(ImageKind::Inventory, None, &inventory()).unwrap();
    let ghost = dump.entry_file(ImageKind::GhostFile, 1).unwrap();
    assert!(ghost.append_from(&b"ab"[..], 3).is_err());
    assert!(dump.commit(CommitOptions::default()).is_err());
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn statistics_go_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(stats::read_dump_stats(dir.path()), Err(Error::Missing { .. })));
    let dump = DumpStatsEntry { frozen_time: 1234, pages_written: 5, ..Default::default() };
    stats::write_dump_stats(dir.path(), dump).unwrap();
    stats::write_dump_stats(dir.path(), dump).unwrap();
    assert_eq!(stats::read_dump_stats(dir.path()).unwrap(), dump);
    let restore = RestoreStatsEntry { restore_time: 7, ..Default::default() };
    stats::write_restore_stats(dir.path(), restore).unwrap();
    assert_eq!(stats::read_restore_stats(dir.path()).unwrap(), restore);
    assert_eq!(names(dir.path()), ["stats-dump", "stats-restore"]);
}

#[test]
fn a_pages_file_of_the_wrong_size_is_found() {
    for size in [0, 4096, 8191, 8193] {
        let dir = tempfile::tempdir().unwrap();
        write_sample(dir.path(), 10);
        fs::remove_file(dir.path().join(MANIFEST_NAME)).unwrap();
        fs::File::options().write(true).open(dir.path().join("pages-1.img")).unwrap().set_len(size).unwrap();
        let image = ImageDir::open(dir.path()).unwrap();
        let error = Pagemap::read(&image, ImageKind::Pagemap, 10).unwrap_err();
        assert!(error.path().ends_with("pages-1.img") && error.offset() == Some(size.min(8192)), "{error}");
    }
}

#[test]
fn a_fifo_in_the_place_of_a_file_does_not_hang() {
    let dir = tempfile::tempdir().unwrap();
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("pstree.img"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let image = ImageDir::open(dir.path()).unwrap();
    let error = image.read_all::<PstreeEntry>(ImageKind::Pstree, None).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}
