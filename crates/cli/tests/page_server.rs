//! Dumps whose memory goes to a page server: ours and CRIU's, each with its own and with the other's; plain and under TLS.
//!
//! A small script stands in the place of criu: for a dump it begins a server in the directory of the image, to which the
//! dump then sends. Those with CRIU are there when the environment names it (CRIU).

use cryonaut_tests::{Engine, Workload, declaration, tls_options};
use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Memory of its own, some of it shared by fork; shared memory; much memory, which comes through pipes.
const WORKLOADS: [&str; 4] = ["memory/anon_private", "memory/cow", "memory/memfd_shared", "memory/large"];

fn ours() -> String {
    format!("{} criu", env!("CARGO_BIN_EXE_cryonaut"))
}

fn peer() -> Option<String> {
    std::env::var("CRIU").ok()
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("a free port").port()
}

/// The script: `dumper` and `server` are command lines, the options are given to both; `restorer` brings it back.
fn script(dir: &Path, dumper: &str, server: &str, restorer: &str, options: &str) -> PathBuf {
    let (path, port) = (dir.join("criu"), free_port());
    let text = format!(
        "#!/bin/sh\nset -e\naction=$1; shift\n\
         [ $action = dump ] || exec {restorer} $action \"$@\"\n\
         for word; do [ \"$before\" != --images-dir ] || images=$word; before=$word; done\n\
         rm -f {fifo}; mkfifo {fifo}\n\
         {server} page-server --no-default-config -v4 -o server.log -D $images --address 127.0.0.1 --port {port} \
         --status-fd 9 {options} 9>{fifo} &\n\
         read -r ready <{fifo} || :\n\
         {dumper} dump \"$@\" --page-server --address 127.0.0.1 --port {port} {options}\n\
         wait $!\n",
        fifo = dir.join("ready").display(),
    );
    fs::write(&path, text).expect("a script");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it can be run");
    path
}

fn round_trip(name: &str, (dumper, server, restorer): (&str, &str, &str), options: &str) {
    let dir = TempDir::new().expect("a directory");
    let engine = Engine::Criu(script(dir.path(), dumper, server, restorer, options));
    let found = declaration(name).expect("there is such a workload");
    let mut workload = Workload::start_with(found, (engine.clone(), engine), false).expect("it starts");
    workload.checkpoint().unwrap_or_else(|failure| {
        panic!("{failure}\n{}", fs::read_to_string(workload.images().join("server.log")).unwrap_or_default())
    });
    workload.restore().expect("a restore");
    workload.finish().expect("its own checks");
}

#[test]
fn ours_to_ours() {
    WORKLOADS.iter().for_each(|name| round_trip(name, (&ours(), &ours(), &ours()), ""));
}

#[test]
fn ours_to_the_peer() {
    let Some(peer) = peer() else { return };
    WORKLOADS.iter().for_each(|name| round_trip(name, (&ours(), &peer, &ours()), ""));
    round_trip("memory/cow", (&ours(), &ours(), &peer), "");
}

#[test]
fn the_peer_to_ours() {
    let Some(peer) = peer() else { return };
    WORKLOADS.iter().for_each(|name| round_trip(name, (&peer, &ours(), &ours()), ""));
    round_trip("memory/cow", (&peer, &ours(), &peer), "");
}

#[test]
fn under_tls() {
    let dir = TempDir::new().expect("a directory");
    let options = tls_options(dir.path());
    round_trip("memory/large", (&ours(), &ours(), &ours()), &options);
    let Some(peer) = peer() else { return };
    for (dumper, server) in [(ours(), peer.clone()), (peer, ours())] {
        round_trip("memory/cow", (&dumper, &server, &ours()), &options);
        round_trip("memory/cow", (&dumper, &server, &ours()), &format!("{options} --tls-no-cn-verify"));
    }
}

#[test]
fn a_server_that_goes_away_makes_the_dump_fail_and_the_tree_go_on() {
    let dir = TempDir::new().expect("a directory");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("it has one").port();
    // It says that it has no parent, takes a megabyte, and is gone.
    let server = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut socket, _) = listener.accept().expect("a connection");
        let mut request = [0; 32];
        socket.read_exact(&mut request).expect("a request");
        socket.write_all(&[0]).expect("an answer");
        socket.read_exact(&mut vec![0; 1 << 20]).expect("some pages");
    });
    let mut workload = Workload::start("memory/large").expect("it starts");
    workload.fingerprint();
    let pid = workload.pid().as_raw_nonzero().to_string();
    let out = Command::new(env!("CARGO_BIN_EXE_cryonaut"))
        .args(["criu", "dump", "--no-default-config", "-t", &pid, "-D"])
        .arg(dir.path())
        .args(["--page-server", "--address", "127.0.0.1", "--port", &port.to_string()])
        .output()
        .expect("it runs");
    server.join().expect("the server went well");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("page server 127.0.0.1"), "{said}");
    assert_eq!(fs::read_dir(dir.path()).expect("it is there").count(), 0);
    workload.compare().expect("it is as it was");
    workload.finish().expect("its own checks");
}

#[test]
fn a_server_in_the_background_writes_its_pid_and_ends_with_the_dump() {
    let dir = TempDir::new().expect("a directory");
    let port = free_port().to_string();
    let done = Command::new(env!("CARGO_BIN_EXE_cryonaut"))
        .args(["criu", "page-server", "--no-default-config", "--daemon", "--pidfile", "pid", "-o", "log", "-v4", "-D"])
        .arg(dir.path())
        .args(["--address", "127.0.0.1", "--port", &port])
        .output()
        .expect("it runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let pid = fs::read_to_string(dir.path().join("pid")).expect("the pidfile");
    let server = Path::new("/proc").join(pid.trim());
    assert!(server.exists());
    let workload = Workload::start("memory/anon_private").expect("it starts");
    let images = TempDir::new().expect("a directory");
    let root = workload.pid().as_raw_nonzero().to_string();
    let dumped = Command::new(env!("CARGO_BIN_EXE_cryonaut"))
        .args(["criu", "dump", "--no-default-config", "-R", "-t", &root, "-D"])
        .arg(images.path())
        .args(["--page-server", "--address", "127.0.0.1", "--port", &port])
        .output()
        .expect("it runs");
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    workload.finish().expect("its own checks");
    // What is on the other host has to be brought together for a restore.
    assert!(dir.path().join(format!("pagemap-{root}.img")).exists());
    assert!(!images.path().join(format!("pagemap-{root}.img")).exists());
    let ended = (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let stat = fs::read_to_string(server.join("stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
    assert!(ended, "the server is still there");
}
