//! Files that announce more than there is must not make us allocate it.
//!
//! The whole test program runs under a limit of address space: an allocation by
//! what a file claims would end it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use cryonaut_image::records::*;
use cryonaut_image::*;
use rustix::process::{Resource, Rlimit, setrlimit};

fn limit_memory() {
    let limit = Some(2 << 30);
    setrlimit(Resource::As, Rlimit { current: limit, maximum: limit }).unwrap();
}

/// A file with a right header, then `bytes`, then a hole up to `size`.
fn sparse(dir: &Path, kind: ImageKind, bytes: &[u8], size: u64) -> ImageDir {
    let id = kind.has_id().then_some(1);
    let Header::Common(own) = kind.header() else { panic!("a common kind") };
    let mut file = File::create(dir.join(kind.file_name(id).unwrap())).unwrap();
    file.write_all(&0x5456_4319_u32.to_le_bytes()).unwrap();
    file.write_all(&own.to_le_bytes()).unwrap();
    file.write_all(bytes).unwrap();
    if size > 0 {
        file.set_len(size).unwrap();
    }
    ImageDir::open(dir).unwrap()
}

fn framed(message: &impl Record) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    [&(bytes.len() as u32).to_le_bytes()[..], &bytes].concat()
}

const TIB: u64 = 1 << 40;

#[test]
fn memory_is_bounded() {
    limit_memory();
    let dir = tempfile::tempdir().unwrap();

    // A message that says it is 4 GiB long, in a file that is longer still.
    let image = sparse(dir.path(), ImageKind::Pstree, &[0xff; 4], TIB);
    let error = image.read_all::<PstreeEntry>(ImageKind::Pstree, None).unwrap_err();
    assert_eq!(error.offset(), Some(8), "{error}");

    // The same in a file that ends there.
    let image = sparse(dir.path(), ImageKind::Pstree, &[0, 0, 0, 1], 0);
    let error = image.read_all::<PstreeEntry>(ImageKind::Pstree, None).unwrap_err();
    assert!(error.to_string().contains("cut short"), "{error}");

    // Data that say they have 3 GiB.
    let pipe = PipeDataEntry { pipe_id: 1, bytes: 3 << 30, size: None };
    for size in [0, TIB] {
        let image = sparse(dir.path(), ImageKind::PipesData, &framed(&pipe), size);
        let result = image.read_tailed::<PipeDataEntry>(ImageKind::PipesData, None);
        assert!(matches!(result, Err(Error::Corrupt { .. })), "{result:?}");
    }

    // Sums of lengths that overflow, and filling behind a length near the end.
    let shm = IpcShmEntry { size: u64::MAX, ..Default::default() };
    let image = sparse(dir.path(), ImageKind::IpcnsShm, &framed(&shm), 0);
    assert!(image.check_file(ImageKind::IpcnsShm, 1).is_err());

    // Messages of few bytes that decode to many: 48 MiB of empty directories.
    let mut bytes = (48_u32 << 20).to_le_bytes().to_vec();
    bytes.extend([18, 0].repeat(24 << 20));
    let image = sparse(dir.path(), ImageKind::Cgroup, &bytes, 0);
    let error = image.read_one::<CgroupEntry>(ImageKind::Cgroup, None).unwrap_err();
    assert!(error.offset().is_some_and(|offset| offset > 12), "{error}");

    // A queue that says it has 4 billion messages.
    let queue = IpcMsgEntry { qnum: u32::MAX, ..Default::default() };
    let image = sparse(dir.path(), ImageKind::IpcnsMsg, &framed(&queue), 0);
    assert!(image.check_file(ImageKind::IpcnsMsg, 1).is_err());

    // Pages beyond the end of the address space, and more pages than there are.
    for (vaddr, pages) in [(0x1000, u64::MAX), (u64::MAX - 4095, 1), (1 << 62, 1 << 51), (0, 1 << 50)] {
        let entry = PagemapEntry { vaddr, nr_pages: Some(pages), flags: Some(4), ..Default::default() };
        let bytes = [framed(&PagemapHead { pages_id: 1 }), framed(&entry)].concat();
        let image = sparse(dir.path(), ImageKind::Pagemap, &bytes, 0);
        File::create(dir.path().join("pages-1.img")).unwrap();
        let result = Pagemap::read(&image, ImageKind::Pagemap, 1);
        assert!(matches!(result, Err(Error::Corrupt { .. })), "{result:?}");
    }

    // A manifest and a JSON file of a terabyte.
    let json = File::create(dir.path().join("cryonaut-big.json")).unwrap();
    json.set_len(TIB).unwrap();
    let image = ImageDir::open(dir.path()).unwrap();
    assert!(matches!(image.read_json::<Vec<u8>>("big"), Err(Error::Corrupt { .. })));
    let manifest = File::create(dir.path().join(MANIFEST_NAME)).unwrap();
    manifest.write_all_at(b"{", 0).unwrap();
    manifest.set_len(TIB).unwrap();
    assert!(matches!(ImageDir::open(dir.path()), Err(Error::Corrupt { .. })));
    fs::remove_file(dir.path().join(MANIFEST_NAME)).unwrap();

    // Many small records are many bytes in memory; the limit is below that.
    let record = framed(&FileEntry::default());
    let count = 3 * (1 << 30) / size_of::<FileEntry>();
    let image = sparse(dir.path(), ImageKind::Files, &record.repeat(count), 0);
    let mut reader = image.entries(ImageKind::Files, None).unwrap();
    let mut read = 0;
    while reader.next_record::<FileEntry>().unwrap().is_some() {
        read += 1;
    }
    assert_eq!(read, count);
}
