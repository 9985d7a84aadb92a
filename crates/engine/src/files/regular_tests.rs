use super::super::bench::{Bench, roundtrip};
use super::*;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

fn open(path: &std::path::Path, flags: OFlags) -> OwnedFd {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, rustix::fs::Mode::empty()).unwrap()
}

fn link_of(file: &impl std::os::fd::AsRawFd) -> String {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap().to_string_lossy().into_owned()
}

#[test]
fn a_file_keeps_position_and_flags() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    std::fs::write(&path, b"0123456789").unwrap();
    let mut file =
        std::fs::OpenOptions::new().read(true).append(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    file.seek(std::io::SeekFrom::Start(4)).unwrap();
    let mut back = File::from(roundtrip(file.as_fd()).unwrap());
    assert_eq!(rustix::fs::fcntl_getfl(&back).unwrap(), rustix::fs::fcntl_getfl(&file).unwrap());
    let mut rest = String::new();
    back.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), link_of(&back)), ("456789", link_of(&file)));
}

#[test]
fn directories_devices_and_path_only() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    for file in [
        open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY),
        open("/dev/null".as_ref(), OFlags::RDWR),
        open("/dev/urandom".as_ref(), OFlags::RDONLY),
        open("/proc/self/status".as_ref(), OFlags::RDONLY),
        open("/sys/kernel/mm/transparent_hugepage".as_ref(), OFlags::RDONLY),
        open(&link, OFlags::PATH | OFlags::NOFOLLOW),
        open(dir.path(), OFlags::PATH),
    ] {
        let back = roundtrip(file.as_fd()).unwrap();
        assert_eq!(link_of(&back), link_of(&file));
        assert_eq!(rustix::fs::fcntl_getfl(&back).unwrap(), rustix::fs::fcntl_getfl(&file).unwrap());
    }
}

#[test]
fn a_file_that_shrank_or_changed_its_type_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    std::fs::write(&path, b"0123456789").unwrap();
    let file = File::open(&path).unwrap();
    let bench = Bench::new();
    let id = bench.collect(file.as_fd()).unwrap();
    let image = bench.commit();
    std::fs::write(&path, b"0").unwrap();
    let error = image.build(id).unwrap_err().to_string();
    assert!(error.contains("1 bytes now, but had 10"), "{error}");
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let error = image.build(id).unwrap_err().to_string();
    assert!(error.contains("another type"), "{error}");
}

#[test]
fn paths_without_descriptors_are_recorded_once() {
    let bench = Bench::new();
    let task = proc::Task::current().unwrap();
    let pid = std::process::id() as i32;
    let (first, second, other) = bench.with(|cx| {
        let exe = |cx: &mut Collect<'_>, flags| collect_path(cx, &task, pid, "exe", flags).unwrap().id;
        (exe(cx, 0), exe(cx, 0), collect_path(cx, &task, pid, "cwd", libc::O_DIRECTORY as u32).unwrap().id)
    });
    assert_eq!(first, second);
    assert_ne!(first, other);
    let image = bench.commit();
    let cwd = image.build(other).unwrap();
    assert_eq!(link_of(&cwd), std::env::current_dir().unwrap().to_string_lossy());
}

#[test]
fn a_deleted_file_comes_back_for_all_who_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gone");
    let mut file = File::options().create_new(true).read(true).write(true).mode(0o640).open(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all(b"head").unwrap();
    file.write_all_at(b"tail", (64 << 20) - 4).unwrap();
    let reader = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let bench = Bench::new();
    let ids = bench.collect_all(&[file.as_fd(), reader.as_fd()]).unwrap();
    let image = bench.commit();
    let [back, back_reader] =
        <[File; 2]>::try_from(image.build_all(&ids).unwrap().into_iter().map(File::from).collect::<Vec<_>>()).unwrap();
    let (was, is) = (file.metadata().unwrap(), back_reader.metadata().unwrap());
    assert_eq!((is.mode(), is.len(), is.nlink(), is.ino()), (was.mode(), was.len(), 0, back.metadata().unwrap().ino()));
    assert_eq!(is.mtime(), was.mtime());
    assert!(is.blocks() <= 64, "holes stay holes: {} blocks", is.blocks());
    assert_eq!(link_of(&back), link_of(&file));
    back.write_all_at(b"seen", 0).unwrap();
    let mut four = [0; 4];
    back_reader.read_exact_at(&mut four, 0).unwrap();
    assert_eq!(&four, b"seen");
    back_reader.read_exact_at(&mut four, (64 << 20) - 4).unwrap();
    assert_eq!(&four, b"tail");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn deleted_things_of_every_type() {
    let dir = tempfile::tempdir().unwrap();
    let sub = dir.path().join("sub");
    std::fs::create_dir(&sub).unwrap();
    let (link, node, inner) = (sub.join("link"), sub.join("null"), sub.join("inner"));
    std::os::unix::fs::symlink("target", &link).unwrap();
    let device = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(rustix::fs::CWD, &node, FileType::CharacterDevice, rustix::fs::Mode::RUSR, device).unwrap();
    std::fs::write(&inner, b"x").unwrap();
    let files = [
        open(&sub, OFlags::RDONLY | OFlags::DIRECTORY),
        open(&link, OFlags::PATH | OFlags::NOFOLLOW),
        open(&node, OFlags::RDONLY),
        open(&inner, OFlags::RDONLY),
    ];
    std::fs::remove_dir_all(&sub).unwrap();
    let bench = Bench::new();
    let ids = bench.collect_all(&files.each_ref().map(|f| f.as_fd())).unwrap();
    let back = bench.commit().build_all(&ids).unwrap();
    for (back, was) in back.iter().zip(&files) {
        let (is, had) = (rustix::fs::fstat(back).unwrap(), rustix::fs::fstat(was).unwrap());
        assert_eq!((is.st_mode, is.st_rdev, is.st_nlink), (had.st_mode, had.st_rdev, had.st_nlink));
        assert_eq!(link_of(back), link_of(was));
    }
    let target = rustix::fs::readlinkat(&back[1], "", Vec::new()).unwrap();
    assert_eq!(target.to_bytes(), b"target");
    assert!(!sub.exists());
}

#[test]
fn a_taken_name_is_left_alone_and_limits_hold() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, vec![1; 8192]).unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"new").unwrap();
    let back = File::from(roundtrip(file.as_fd()).unwrap());
    assert_eq!(back.metadata().unwrap().len(), 8192);
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    let mut bench = Bench::new();
    bench.options.ghost_limit = Some(4096);
    let error = bench.collect(file.as_fd()).unwrap_err();
    assert!(error.to_string().contains("8192") && error.remedy().contains("--ghost-limit"), "{error}");
}

#[test]
fn a_file_with_another_name_needs_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::write(&path, b"text").unwrap();
    let file = File::open(&path).unwrap();
    std::fs::hard_link(&path, &other).unwrap();
    std::fs::remove_file(&path).unwrap();
    let mut bench = Bench::new();
    let error = bench.collect(file.as_fd()).unwrap_err();
    assert!(error.remedy().contains("--link-remap"), "{error}");
    bench.options.link_remap = true;
    let id = bench.collect(file.as_fd()).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    let back = File::from(bench.commit().build(id).unwrap());
    assert_eq!(back.metadata().unwrap().ino(), file.metadata().unwrap().ino());
    assert_eq!(link_of(&back), link_of(&file));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_nameless_file_can_still_be_named() {
    let dir = tempfile::tempdir().unwrap();
    let file =
        rustix::fs::open(dir.path(), OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, rustix::fs::Mode::RUSR).unwrap();
    rustix::io::write(&file, b"text").unwrap();
    let back = roundtrip(file.as_fd()).unwrap();
    assert_eq!(rustix::fs::fcntl_getfl(&back).unwrap(), rustix::fs::fcntl_getfl(&file).unwrap());
    let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&back));
    let named = dir.path().join("named");
    rustix::fs::linkat(rustix::fs::CWD, &*source, rustix::fs::CWD, &named, rustix::fs::AtFlags::SYMLINK_FOLLOW)
        .unwrap();
    assert_eq!(std::fs::read(&named).unwrap(), b"text");
}

#[test]
fn files_of_a_dead_process() {
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let directory = std::path::PathBuf::from(format!("/proc/{}", child.id()));
    let files = [
        open(&directory, OFlags::RDONLY | OFlags::DIRECTORY),
        open(&directory.join("status"), OFlags::RDONLY),
        open(&directory.join("stat"), OFlags::PATH),
    ];
    child.kill().unwrap();
    child.wait().unwrap();
    let bench = Bench::new();
    let ids = bench.collect_all(&files.each_ref().map(|f| f.as_fd())).unwrap();
    let back = bench.commit().build_all(&ids).unwrap();
    for (back, was) in back.iter().zip(&files) {
        assert_eq!(link_of(back), link_of(was));
    }
    assert!(!directory.exists());
    let mut byte = [0];
    assert_eq!(rustix::io::read(&back[1], &mut byte), rustix::io::read(&files[1], &mut byte));
}
