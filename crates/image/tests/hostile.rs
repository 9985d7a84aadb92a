//! Damaged and made-up files: never a panic, always an error that says where.

use std::fs;
use std::path::Path;

use cryonaut_image::records::*;
use cryonaut_image::*;
use proptest::prelude::*;

/// An image with messages, data and pages; returns the names of its files.
fn write_image(dir: &Path) -> Vec<String> {
    let dump = DumpDir::create(dir).unwrap();
    for pid in 1..4 {
        let entry = PstreeEntry { pid, ppid: pid - 1, pgid: 1, sid: 1, threads: vec![pid, 300] };
        dump.append(ImageKind::Pstree, None, &entry, None).unwrap();
        let ids = u64::from(pid);
        let fs = FsEntry { cwd_id: 1, root_id: 2, umask: Some(0o22) };
        dump.write_one(ImageKind::Fs, ids, &fs).unwrap();
    }
    let pipe = PipeDataEntry { pipe_id: 1, bytes: 5, size: Some(4096) };
    dump.append(ImageKind::PipesData, None, &pipe, Some(b"hello")).unwrap();
    let sem = IpcSemEntry { nsems: 3, ..Default::default() };
    let sems = dump.entry_file(ImageKind::IpcnsSem, 1).unwrap();
    sems.append_tailed(&sem, &[1, 0, 2, 0, 3, 0]).unwrap();
    let queue = dump.entry_file(ImageKind::IpcnsMsg, 1).unwrap();
    queue.append(&IpcMsgEntry { qnum: 2, ..Default::default() }).unwrap();
    queue.append_tailed(&IpcMsg { mtype: 1, msize: 3 }, b"abc").unwrap();
    queue.append_tailed(&IpcMsg { mtype: 2, msize: 8 }, b"abcdefgh").unwrap();
    let ghost = dump.entry_file(ImageKind::GhostFile, 1).unwrap();
    ghost.append(&GhostFileEntry { chunks: Some(true), ..Default::default() }).unwrap();
    ghost.append_tailed(&GhostChunkEntry { len: 4, off: 0 }, b"abcd").unwrap();
    ghost.append_tailed(&GhostChunkEntry { len: 2, off: 99 }, b"ef").unwrap();
    let mut map = PagemapWriter::create(&dump, ImageKind::Pagemap, 1, 1).unwrap();
    map.push(0x1000, 1, PageFlags::PRESENT).unwrap();
    map.push(0x4000, 2, PageFlags::LAZY).unwrap();
    map.finish().unwrap();
    dump.raw_file(ImageKind::Pages, 1).unwrap().set_len(4096).unwrap();
    dump.write_json("notes", &["one", "two"]).unwrap();
    let inventory = InventoryEntry { img_version: 2, ..Default::default() };
    dump.write_one(ImageKind::Inventory, None, &inventory).unwrap();
    let options = CommitOptions { durability: Durability::Relaxed, sum_pages: true, ..Default::default() };
    dump.commit(options).unwrap();
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// An error must name the file it is about, and the byte if it has to do with one.
fn says_where(error: &Error, path: &Path) {
    assert_eq!(error.path(), path, "{error}");
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    if let Error::Corrupt { offset, .. } = error {
        assert!(*offset <= fs::metadata(path).unwrap().len(), "{error}");
    }
}

fn verify(dir: &Path) -> Result<Verified> {
    ImageDir::open(dir)?.verify(true)
}

#[test]
fn with_a_manifest_every_flipped_bit_is_found_and_the_file_named() {
    let dir = tempfile::tempdir().unwrap();
    for name in write_image(dir.path()) {
        let path = dir.path().join(&name);
        let whole = fs::read(&path).unwrap();
        // Every bit of the small files, some of the pages.
        let step = if whole.len() > 2000 { 997 } else { 1 };
        for bit in (0..whole.len() * 8).step_by(step) {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bytes).unwrap();
            says_where(&verify(dir.path()).unwrap_err(), &path);
        }
        fs::write(&path, whole).unwrap();
    }
    verify(dir.path()).unwrap();
}

#[test]
fn with_a_manifest_every_cut_and_every_missing_file_is_found() {
    let dir = tempfile::tempdir().unwrap();
    for name in write_image(dir.path()) {
        let path = dir.path().join(&name);
        let whole = fs::read(&path).unwrap();
        for len in (0..whole.len()).step_by(1 + whole.len() / 200) {
            fs::write(&path, &whole[..len]).unwrap();
            says_where(&verify(dir.path()).unwrap_err(), &path);
        }
        if name != MANIFEST_NAME {
            fs::remove_file(&path).unwrap();
            says_where(&verify(dir.path()).unwrap_err(), &path);
        }
        fs::write(&path, whole).unwrap();
    }
    let path = dir.path().join("core-9.img");
    fs::write(&path, "left over from another dump").unwrap();
    says_where(&verify(dir.path()).unwrap_err(), &path);
}

#[test]
fn reading_one_file_compares_it() {
    let dir = tempfile::tempdir().unwrap();
    write_image(dir.path());
    let path = dir.path().join("fs-1.img");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let image = ImageDir::open(dir.path()).unwrap();
    image.read_one::<FsEntry>(ImageKind::Fs, 2).unwrap();
    let error = image.read_one::<FsEntry>(ImageKind::Fs, 1).unwrap_err();
    assert!(matches!(error, Error::Altered { .. }));
    says_where(&error, &path);
}

#[test]
fn without_a_manifest_cuts_inside_records_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let names = write_image(dir.path());
    fs::remove_file(dir.path().join(MANIFEST_NAME)).unwrap();
    for name in names.iter().filter(|name| name.ends_with(".img") && !name.starts_with("pages")) {
        let path = dir.path().join(name);
        let (kind, id) = ImageKind::from_file_name(name).unwrap();
        let whole = fs::read(&path).unwrap();
        let mut whole_prefixes = 0;
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            match ImageDir::open(dir.path()).unwrap().check_file(kind, id) {
                Ok(_) => whole_prefixes += 1,
                Err(error) if kind == ImageKind::Pagemap => assert!(error.offset().is_some()),
                Err(error) => says_where(&error, &path),
            }
        }
        // Only cuts between two records go unnoticed.
        assert!(whole_prefixes <= 3, "{name}: {whole_prefixes}");
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn an_image_needs_an_inventory() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("inventory.img"), 0x5831_3116_u32.to_le_bytes()).unwrap();
    let error = ImageDir::open(dir.path()).unwrap().inventory().unwrap_err();
    assert_eq!(error.offset(), Some(4), "{error}");
    assert!(error.to_string().contains("expected one inventory_entry"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = ImageDir::open(empty.path()).unwrap().inventory().unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
}

#[test]
fn other_files_are_told_from_images() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("core-1.img");
    for (bytes, text) in [
        (&b"\x7fELF\x02\x01\x01\0"[..], "check that this is an image"),
        (&[0x40, 0x59, 0x10, 0x55, 0, 0, 0, 0], "the other sort"),
        (&[0x19, 0x43, 0x56, 0x54, 0, 0, 0, 0], "this kind of image file"),
        (&[0x19, 0x43, 0x56, 0x54, 0], "cut short"),
    ] {
        fs::write(&path, bytes).unwrap();
        let image = ImageDir::open(dir.path()).unwrap();
        let error = image.read_one::<CoreEntry>(ImageKind::Core, 1).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
}

fn any_kind() -> impl Strategy<Value = ImageKind> {
    prop::sample::select(ImageKind::ALL)
}

/// The words at the beginning of a file of this kind.
fn header(kind: ImageKind) -> Vec<u8> {
    let words = match kind.header() {
        Header::Inventory(own) => vec![own],
        Header::Common(own) => vec![0x5456_4319, own],
        Header::Service(own) => vec![0x5510_5940, own],
        Header::Raw => vec![],
    };
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Bytes that look like records: a small length, then that many bytes or fewer.
fn record_like() -> impl Strategy<Value = Vec<u8>> {
    let field = (1_u8..20, prop::sample::select(&[0_u8, 2][..]), any::<u8>());
    let message = prop::collection::vec(field, 0..20).prop_map(|fields| {
        let mut bytes: Vec<u8> = vec![];
        for (tag, wire, value) in fields {
            bytes.push((tag << 3 | wire) & 0x7f);
            bytes.push(value & if wire == 2 { 3 } else { 0x7f });
            bytes.resize(bytes.len() + if wire == 2 { usize::from(value & 3) } else { 0 }, 8);
        }
        let mut record = (bytes.len() as u32).to_le_bytes().to_vec();
        record.extend(bytes);
        record
    });
    prop::collection::vec(message, 0..4).prop_map(|records| records.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_bytes_as_any_kind(
        kind in any_kind(),
        with_header in any::<bool>(),
        bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..300), record_like()],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let id = kind.has_id().then_some(1);
        let path = dir.path().join(kind.file_name(id).unwrap());
        let mut content = if with_header { header(kind) } else { vec![] };
        content.extend(&bytes);
        fs::write(&path, content).unwrap();
        let image = ImageDir::open(dir.path()).unwrap();
        if let Err(error) = image.check_file(kind, id) {
            let pages_missing = matches!(error, Error::Missing { .. });
            if !pages_missing {
                says_where(&error, &path);
            }
        }
    }

    #[test]
    fn any_bytes_as_manifest(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(MANIFEST_NAME);
        fs::write(&path, bytes).unwrap();
        says_where(&ImageDir::open(dir.path()).unwrap_err(), &path);
    }

    #[test]
    fn any_bytes_as_json(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cryonaut-notes.json");
        fs::write(&path, bytes).unwrap();
        let image = ImageDir::open(dir.path()).unwrap();
        if let Err(error) = image.read_json::<Vec<String>>("notes") {
            says_where(&error, &path);
        }
    }

    #[test]
    fn runs_of_pages_come_back(
        steps in prop::collection::vec((0_u64..3, 1_u64..5, prop::sample::select(&[1_u32, 2, 4, 6][..])), 0..40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let dump = DumpDir::create(dir.path()).unwrap();
        let mut writer = PagemapWriter::create(&dump, ImageKind::Pagemap, 1, 3).unwrap();
        let mut pages = vec![];
        let mut vaddr = 0x7000_0000;
        for (gap, count, bits) in steps {
            vaddr += gap * PAGE_SIZE;
            let flags = [PageFlags::PARENT, PageFlags::LAZY, PageFlags::PRESENT]
                .into_iter()
                .filter(|flag| bits & flag.bits() != 0)
                .fold(PageFlags::default(), PageFlags::with);
            let offset = writer.push(vaddr, count, flags).unwrap();
            for page in 0..count {
                let present = flags.contains(PageFlags::PRESENT);
                pages.push((vaddr + page * PAGE_SIZE, flags, present.then_some(offset + page * PAGE_SIZE)));
            }
            vaddr += count * PAGE_SIZE;
        }
        let len = writer.finish().unwrap();
        dump.raw_file(ImageKind::Pages, 3).unwrap().set_len(len).unwrap();
        let inventory = InventoryEntry { img_version: 2, ..Default::default() };
        dump.write_one(ImageKind::Inventory, None, &inventory).unwrap();
        dump.commit(CommitOptions { durability: Durability::Relaxed, ..Default::default() }).unwrap();

        let map = Pagemap::read(&ImageDir::open(dir.path()).unwrap(), ImageKind::Pagemap, 1).unwrap();
        let mut read = vec![];
        for run in map.runs() {
            for page in 0..run.pages {
                let at = run.vaddr + page * PAGE_SIZE;
                prop_assert_eq!(map.find(at + 7), Some(run));
                read.push((at, run.flags, run.offset.map(|offset| offset + page * PAGE_SIZE)));
            }
        }
        prop_assert_eq!(read, pages);
        // Runs that could be one are one.
        prop_assert!(map.runs().windows(2).all(|w| w[0].end() != w[1].vaddr || w[0].flags != w[1].flags));
    }
}
