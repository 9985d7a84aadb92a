//! Connections of TCP for a caller who may do everything but that (CAP_NET_ADMIN): it is said so, and nothing has happened.

use cryonaut_tests::Echo;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const CRYONAUT: &str = env!("CARGO_BIN_EXE_cryonaut");

fn start() -> Echo<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let ours = TcpStream::connect(listener.local_addr().expect("its address")).expect("connect");
    let (theirs, _) = listener.accept().expect("accept");
    Echo::start(ours, theirs.into())
}

fn criu(before: &[&str], action: &str, images: &Path, arguments: &[&str]) -> Output {
    let words = [before, &[CRYONAUT, "criu", action, "--no-default-config", "--tcp-established"], arguments].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg("-D").arg(images).stdin(Stdio::null()).output().expect("criu runs")
}

/// Without the right.
fn refused(action: &str, images: &Path, arguments: &[&str]) {
    let output = criu(&["setpriv", "--bounding-set", "-net_admin"], action, images, arguments);
    let told = String::from_utf8_lossy(&output.stderr);
    let cause = told.contains("Operation not permitted") && told.contains("connections of TCP need CAP_NET_ADMIN");
    assert!(!output.status.success() && cause, "{action} {arguments:?}: {told}");
}

#[test]
fn who_may_not_repair_connections_is_told_so() {
    let mut echo = start();
    let images = tempfile::tempdir().expect("a directory");
    let pid = echo.child.id().to_string();
    // With a caller who sees to the packets, it is the call itself that is refused.
    let skip = ["--network-lock", "skip"];
    for lock in [&[][..], &skip] {
        refused("dump", images.path(), &[&["-t", pid.as_str()], lock].concat());
        echo.answers("it goes on");
    }
    let output = criu(&["env"], "dump", images.path(), &["-t", &pid]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    echo.child.wait().expect("it has ended");
    for lock in [&[][..], &skip] {
        refused("restore", images.path(), &[&["-d"], lock].concat());
    }
    let output = criu(&["env"], "restore", images.path(), &["-d"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    echo.answers("it is back");
    // It ends with its input.
    echo.ours.shutdown(std::net::Shutdown::Write).expect("an end");
    assert_eq!(echo.ours.read(&mut [0]).expect("its end"), 0);
}
