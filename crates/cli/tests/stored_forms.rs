//! Other forms of an image: memory compressed, and all of it in one image; exported for other tools.

use cryonaut_image::ImageDir;
use cryonaut_tests::{Engine, Workload, declaration};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_cryonaut");

/// Our program, which a script gives one option more for a checkpoint, and a command to run behind it.
fn with(dir: &Path, option: &str, behind: &str) -> Engine {
    let path = dir.join("cryonaut");
    let text = format!(
        "#!/bin/sh\nset -e\n[ $1 = checkpoint ] || exec {PROGRAM} \"$@\"\n\
         for word; do [ \"$before\" != -o ] || images=$word; before=$word; done\n\
         {PROGRAM} \"$@\" {option}\n{behind}\n"
    );
    fs::write(&path, text).expect("a script");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it can be run");
    Engine::Cryonaut(path)
}

fn start(name: &str, engine: &Engine) -> Workload {
    let found = declaration(name).expect("there is such a workload");
    Workload::start_with(found, (engine.clone(), engine.clone()), false).expect("it starts")
}

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().expect("it runs")
}

fn pages(images: &Path, tail: &str) -> u64 {
    let all = fs::read_dir(images).expect("the image").map(|entry| entry.expect("it can be listed"));
    let named =
        all.filter(|entry| entry.file_name().to_str().is_some_and(|n| n.contains("pages-") && n.ends_with(tail)));
    named.map(|entry| entry.metadata().expect("it is there").len()).sum()
}

#[test]
fn compressed_memory_is_restored_and_exported() {
    for codec in ["lz4", "zstd"] {
        for name in ["memory/anon_private", "memory/cow_many", "memory/memfd_shared", "memory/large"] {
            let dir = TempDir::new().expect("a directory");
            let engine = with(dir.path(), &format!("--compress {codec}"), "");
            let mut workload = start(name, &engine);
            workload.checkpoint().expect("a checkpoint");
            let images = workload.images();
            assert_eq!(pages(&images, ".img"), 0, "{name}: none is left uncompressed");
            assert!(pages(&images, ".frames") > 0 || name == "memory/cow_many");
            let manifest = fs::read_to_string(images.join("cryonaut-manifest.json")).expect("the manifest");
            assert!(manifest.contains(&format!("\"compression\": \"{codec}\"")));
            ImageDir::open(&images).and_then(|image| image.verify(true)).expect("a sound image");
            let out = dir.path().join("exported");
            let done = run(&["export", "--criu", images.to_str().expect("UTF-8"), "-o", out.to_str().expect("UTF-8")]);
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            assert!(pages(&out, ".img") > pages(&images, ".frames") && pages(&out, ".frames") == 0);
            assert!(!out.join("parent").exists());
            ImageDir::open(&out).and_then(|image| image.verify(true)).expect("a sound image");
            workload.restore().expect("a restore");
            workload.finish().expect("its own checks");
        }
    }
}

#[test]
fn damaged_frames_are_told_by_name() {
    let dir = TempDir::new().expect("a directory");
    let engine = with(dir.path(), "--compress zstd", "");
    let mut workload = start("memory/anon_private", &engine);
    workload.checkpoint().expect("a checkpoint");
    let images = workload.images();
    let file = images.join("cryonaut-pages-1.frames");
    let mut bytes = fs::read(&file).expect("the frames");
    bytes[100] ^= 1;
    fs::write(&file, &bytes).expect("it is written");
    let verified = ImageDir::open(&images).and_then(|image| image.verify(true)).unwrap_err().to_string();
    assert!(verified.contains("cryonaut-pages-1.frames differs"), "{verified}");
    fs::write(&file, &bytes[..bytes.len() - 1]).expect("it is written");
    let done = run(&["restore", images.to_str().expect("UTF-8")]);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success() && said.contains("cryonaut-pages-1.frames"), "{said}");
}

/// CRIU has to miss what it cannot read.
#[test]
fn the_peer_does_not_misread_compressed_memory_and_restores_the_export() {
    let Some(peer) = std::env::var_os("CRIU") else { return };
    let dir = TempDir::new().expect("a directory");
    let engine = with(dir.path(), "--compress lz4", "");
    let mut workload = start("memory/anon_private", &engine);
    workload.checkpoint().expect("a checkpoint");
    let restore = |images: &Path| {
        let mut command = Command::new(&peer);
        command.args(["restore", "--no-default-config", "--restore-detached", "-v4", "-o", "peer.log", "-D"]);
        command.arg(images).output().expect("it runs").status
    };
    assert!(!restore(&workload.images()).success());
    let out = dir.path().join("exported");
    let images = workload.images();
    let done = run(&["export", "--criu", images.to_str().expect("UTF-8"), "-o", out.to_str().expect("UTF-8")]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let status = restore(&out);
    assert!(status.success(), "{}", fs::read_to_string(out.join("peer.log")).unwrap_or_default());
    workload.finish().expect("its own checks");
}

#[test]
fn an_image_that_builds_on_others_becomes_one() {
    let dir = TempDir::new().expect("a directory");
    let engine = with(dir.path(), "", &format!("{PROGRAM} squash $images"));
    let mut workload = start("memory/cow_many", &engine);
    workload.checkpoint().expect("a checkpoint");
    let images = workload.images();
    assert!(!images.join("parent").exists() && !images.join("cryonaut-shared-1").exists());
    ImageDir::open(&images).and_then(|image| image.verify(true)).expect("a sound image");
    workload.restore().expect("a restore");
    workload.finish().expect("its own checks");
}

#[test]
fn a_restore_with_auto_dedup_uses_the_image_up() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("criu");
    let extra = "[ $1 = restore ] && set -- \"$@\" --auto-dedup";
    fs::write(&path, format!("#!/bin/sh\n{extra}\nexec {PROGRAM} criu \"$@\"\n")).expect("a script");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it can be run");
    let engine = Engine::Criu(path);
    let mut workload = start("memory/large", &engine);
    workload.checkpoint().expect("a checkpoint");
    let blocks = |images: &Path| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(images.join("pages-1.img")).expect("pages").blocks()
    };
    assert!(blocks(&workload.images()) > 0);
    workload.restore().expect("a restore");
    assert_eq!(blocks(&workload.images()), 0);
    workload.finish().expect("its own checks");
}
