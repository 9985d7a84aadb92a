//! Images that build on others of the same tree: two pre-dumps, then a dump that leaves to them what has not changed since.
//!
//! A small script stands in the place of criu. Restored by us, and by CRIU when the environment names it (CRIU).

use cryonaut_tests::{Engine, Workload, declaration};
use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_cryonaut");

/// The script: pre-dumps go beside the image, into PATH.1 and PATH.2. Who waits for a word (`memory/given_back`) gets it
/// behind them.
fn script(dir: &Path, restorer: &str) -> PathBuf {
    let path = dir.join("criu");
    let text = format!(
        "#!/bin/sh\nset -e\naction=$1; shift\n\
         [ $action = dump ] || exec {restorer} $action \"$@\"\n\
         for word; do\n\
         [ \"$before\" != --images-dir ] || images=$word\n\
         [ \"$before\" != --tree ] || tree=$word\n\
         before=$word\ndone\n\
         name=$(basename $images); mkdir $images.1 $images.2\n\
         {PROGRAM} criu pre-dump -t $tree -D $images.1 -o pre.log\n\
         {PROGRAM} criu pre-dump -t $tree -D $images.2 --prev-images-dir ../$name.1 -o pre.log\n\
         state=$CRYONAUT_WORKLOAD/state\n\
         if [ -p $state/word ]; then printf x > $state/word; while [ ! -e $state/heard ]; do sleep 0.01; done; fi\n\
         exec {PROGRAM} criu dump \"$@\" --prev-images-dir ../$name.2\n"
    );
    fs::write(&path, text).expect("a script");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it can be run");
    path
}

/// A round trip; the bytes of pages in the first image of the chain and in the last.
fn round_trip(name: &str, restorer: &str) -> (u64, u64) {
    let dir = TempDir::new().expect("a directory");
    let workload = carried(name, script(dir.path(), restorer));
    let images = workload.images();
    let is_there = |name: &str| images.with_file_name("state").join(name).exists();
    assert_eq!(is_there("word"), is_there("heard"), "it has had its word");
    let sizes = (pages_in(&images.with_extension("1")), pages_in(&images));
    workload.finish().expect("its own checks");
    sizes
}

/// A workload that a script has dumped and restored.
fn carried(name: &str, script: PathBuf) -> Workload {
    let engine = Engine::Criu(script);
    let found = declaration(name).expect("there is such a workload");
    let mut workload = Workload::start_with(found, (engine.clone(), engine), false).expect("it starts");
    workload.checkpoint().unwrap_or_else(|failure| panic!("{failure}"));
    workload.restore().expect("a restore");
    workload
}

fn pages_in(images: &Path) -> u64 {
    let files = fs::read_dir(images).expect("an image").filter_map(Result::ok);
    let pages = files.filter(|file| file.file_name().to_string_lossy().starts_with("pages-"));
    pages.map(|file| file.metadata().expect("a file").len()).sum()
}

#[test]
fn memory_that_never_rests_comes_back_from_a_chain() {
    let names = [
        "memory/ceaseless",
        "memory/writer",
        "memory/cow",
        "memory/cow_many",
        "memory/cow_ceaseless",
        "memory/moved_back",
        "memory/memfd_shared",
        "tree/family",
        "threads/many",
    ];
    for name in names {
        round_trip(name, &format!("{PROGRAM} criu"));
    }
}

/// What a process has given back was as it is left in the parent, and protected as that is.
#[test]
fn what_was_given_back_to_a_file_does_not_come_back() {
    round_trip("memory/given_back", &format!("{PROGRAM} criu"));
}

/// The script of a chain at a page server: one for each image, in a directory of its own with the parent of that, PATH.1.S,
/// PATH.2.S and PATH.S; what it has got is put beside the rest of the last image at the end. `server` is a command line.
fn script_with_servers(dir: &Path, server: &str) -> PathBuf {
    let path = dir.join("criu");
    let socket = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    // All at once, or they might be the same.
    let [first, second, third] = [socket(), socket(), socket()].map(|one| one.local_addr().expect("it has one").port());
    let text = format!(
        "#!/bin/sh\nset -e\naction=$1; shift\n\
         [ $action = dump ] || exec {PROGRAM} criu $action \"$@\"\n\
         for word; do\n\
         [ \"$before\" != --images-dir ] || images=$word\n\
         [ \"$before\" != --tree ] || tree=$word\n\
         before=$word\ndone\n\
         serve() {{ port=$3; mkdir $1; rm -f {fifo}; mkfifo {fifo}\n\
         {server} page-server --no-default-config -o server.log -D $1 --address 127.0.0.1 --port $port \
         --status-fd 9 ${{2:+--prev-images-dir $2}} 9>{fifo} & read -r ready <{fifo} || :; }}\n\
         to() {{ echo --page-server --address 127.0.0.1 --port $port; }}\n\
         name=$(basename $images); mkdir $images.1 $images.2\n\
         serve $images.1.S '' {first}; {PROGRAM} criu pre-dump -t $tree -D $images.1 -o pre.log $(to); wait $!\n\
         serve $images.2.S ../$name.1.S {second}\n\
         {PROGRAM} criu pre-dump -t $tree -D $images.2 -o pre.log --prev-images-dir ../$name.1 $(to); wait $!\n\
         serve $images.S ../$name.2.S {third}\n\
         {PROGRAM} criu dump \"$@\" --prev-images-dir ../$name.2 $(to); wait $!\n\
         rm $images/parent; cp -P $images.S/parent $images.S/*.img $images\n",
        fifo = dir.join("ready").display(),
    );
    fs::write(&path, text).expect("a script");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it can be run");
    path
}

#[test]
fn a_chain_at_a_page_server_has_what_has_changed() {
    let servers = [Some(format!("{PROGRAM} criu")), std::env::var("CRIU").ok()];
    for (name, server) in servers.iter().flatten().flat_map(|server| {
        ["memory/ceaseless", "memory/writer", "memory/memfd_shared", "memory/many_mappings"].map(|name| (name, server))
    }) {
        let dir = TempDir::new().expect("a directory");
        let workload = carried(name, script_with_servers(dir.path(), server));
        let images = workload.images();
        let at_server = |name: &str| pages_in(&images.with_file_name(format!("{}{name}.S", file_name(&images))));
        let (first, last) = (at_server(".1"), at_server(""));
        let rests = name == "memory/many_mappings";
        assert!(!rests || first > 8 << 20 && last < 1 << 20, "{name}: {first} and {last} bytes of pages");
        workload.finish().expect("its own checks");
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().expect("it has one").to_string_lossy().into_owned()
}

#[test]
fn what_rests_is_written_once() {
    for restorer in [Some(format!("{PROGRAM} criu")), std::env::var("CRIU").ok()].into_iter().flatten() {
        let (first, last) = round_trip("memory/many_mappings", &restorer);
        assert!(first > 8 << 20 && last < 1 << 20, "{first} and {last} bytes of pages");
    }
}

/// `cryonaut checkpoint --track`, then `--since` it while the program goes on, and once more.
#[test]
fn an_image_since_another_has_what_has_changed() {
    let dir = TempDir::new().expect("a directory");
    let workload = Workload::start("memory/many_mappings").expect("it starts");
    let pid = workload.pid().as_raw_nonzero().to_string();
    let mut before: Option<&str> = None;
    for name in ["first", "second", "third"] {
        let mut command = Command::new(PROGRAM);
        command.current_dir(dir.path()).args(["checkpoint", &pid, "--leave-running", "-o", name]);
        match before {
            None => command.arg("--track"),
            Some(before) => command.args(["--since", before]),
        };
        let done = command.output().expect("it runs");
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
        before = Some(name);
    }
    let sizes = ["first", "second", "third"].map(|name| pages_in(&dir.path().join(name)));
    assert!(sizes[0] > 8 << 20 && sizes[1] < 1 << 20 && sizes[2] < 1 << 20, "{sizes:?}");
    let squashed = Command::new(PROGRAM)
        .current_dir(dir.path())
        .args(["squash", "third", "-o", "whole"])
        .status()
        .expect("it runs");
    assert!(squashed.success());
    assert!(pages_in(&dir.path().join("whole")) >= sizes[0] / 2);
    workload.finish().expect("it goes on unharmed");
}
