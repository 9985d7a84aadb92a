use super::super::bench::{Bench, roundtrip};
use super::*;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

fn link_of(file: &impl AsRawFd) -> std::path::PathBuf {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}

fn memfd(name: &str, flags: MemfdFlags) -> File {
    rustix::fs::memfd_create(name, flags | MemfdFlags::CLOEXEC).unwrap().into()
}

#[test]
fn contents_holes_mode_and_position() {
    let mut file = memfd("some thing", MemfdFlags::empty());
    file.write_all(b"head").unwrap();
    file.write_all_at(b"tail", 100 << 20).unwrap();
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o640)).unwrap();
    let mut back = File::from(roundtrip(file.as_fd()).unwrap());
    let (is, was) = (back.metadata().unwrap(), file.metadata().unwrap());
    assert_eq!((is.len(), is.mode(), is.nlink()), (was.len(), was.mode(), 0));
    assert_eq!(is.blocks(), was.blocks());
    assert_eq!((link_of(&back), back.stream_position().unwrap()), (link_of(&file), 4));
    assert_eq!(rustix::fs::fcntl_getfl(&back).unwrap(), rustix::fs::fcntl_getfl(&file).unwrap());
    assert_eq!(rustix::fs::fcntl_get_seals(&back).unwrap(), SealFlags::SEAL);
    back.seek(std::io::SeekFrom::Start(100 << 20)).unwrap();
    let mut tail = String::new();
    back.read_to_string(&mut tail).unwrap();
    assert_eq!(tail, "tail");
    assert_eq!(file.stream_position().unwrap(), 4);
}

#[test]
fn open_files_of_one_memfd_share_it() {
    let mut file = memfd("shared", MemfdFlags::ALLOW_SEALING);
    file.write_all(b"text").unwrap();
    let reader = File::from(reopen(file.as_fd(), OFlags::RDONLY).unwrap());
    let bench = Bench::new();
    let ids = bench.collect_all(&[file.as_fd(), reader.as_fd()]).unwrap();
    let back: Vec<File> = bench.commit().build_all(&ids).unwrap().into_iter().map(File::from).collect();
    back[0].write_all_at(b"T", 0).unwrap();
    let mut text = String::new();
    (&back[1]).read_to_string(&mut text).unwrap();
    assert_eq!(text, "Text");
    assert!(back[1].write_all_at(b"t", 0).is_err());
}

#[test]
fn seals_hold_again() {
    for seals in [
        SealFlags::empty(),
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        SealFlags::FUTURE_WRITE | SealFlags::SHRINK,
        SealFlags::EXEC,
    ] {
        let mut file = memfd("sealed", MemfdFlags::ALLOW_SEALING);
        file.write_all(b"text").unwrap();
        rustix::fs::fcntl_add_seals(&file, seals).unwrap();
        let back = File::from(roundtrip(file.as_fd()).unwrap());
        assert_eq!(rustix::fs::fcntl_get_seals(&back).unwrap(), rustix::fs::fcntl_get_seals(&file).unwrap());
        let mut four = [0; 4];
        back.read_exact_at(&mut four, 0).unwrap();
        assert_eq!(&four, b"text");
    }
}

#[test]
fn one_that_is_not_to_be_run_is_not() {
    let file = memfd("data", MemfdFlags::NOEXEC_SEAL);
    let back = File::from(roundtrip(file.as_fd()).unwrap());
    assert_eq!(back.metadata().unwrap().mode(), file.metadata().unwrap().mode());
    assert_eq!(rustix::fs::fcntl_get_seals(&back).unwrap(), rustix::fs::fcntl_get_seals(&file).unwrap());
}

#[test]
fn huge_pages_stay_huge() {
    let name = "huge";
    let Ok(file) = rustix::fs::memfd_create(name, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB | MemfdFlags::CLOEXEC)
    else {
        return; // This kernel has none.
    };
    let page = 2u64 << 20;
    rustix::fs::ftruncate(&file, 2 * page).unwrap();
    if cryonaut_kernel::sys::huge::write(&file, page, page + 5, b"text").is_err() {
        return; // None are set aside.
    }
    let back = File::from(roundtrip(file.as_fd()).unwrap());
    assert_eq!(rustix::fs::fstatfs(&back).unwrap().f_bsize as u64, page);
    let mut six = [0; 6];
    back.read_exact_at(&mut six, page + 4).unwrap();
    assert_eq!(&six, b"\0text\0");
}

#[test]
fn shared_anonymous_memory_is_told_from_a_memfd_of_its_name() {
    let object = Object::Other("test".into());
    let segment = File::from(anonymous(8192, PAGE, &object).unwrap());
    segment.write_all_at(b"text", 4096).unwrap();
    let back = File::from(roundtrip(segment.as_fd()).unwrap());
    assert_eq!(link_of(&back), std::path::Path::new("/dev/zero (deleted)"));
    let mut four = [0; 4];
    back.read_exact_at(&mut four, 4096).unwrap();
    assert_eq!((&four, back.metadata().unwrap().len()), (b"text", 8192));
    for flags in [MemfdFlags::empty(), MemfdFlags::ALLOW_SEALING] {
        let back = roundtrip(memfd("/dev/zero", flags).as_fd()).unwrap();
        assert_eq!(link_of(&back), std::path::Path::new("/memfd:/dev/zero (deleted)"));
    }
}
