//! Connections of TCP for a caller who may do everything but that (CAP_NET_ADMIN): it is said so, and nothing has happened.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const CRYONAUT: &str = env!("CARGO_BIN_EXE_cryonaut");

/// A process that sends back what it gets over a connection, and our end of that.
struct Echo {
    child: Child,
    ours: TcpStream,
}

impl Echo {
    fn start() -> Echo {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let ours = TcpStream::connect(listener.local_addr().expect("its address")).expect("connect");
        let (theirs, _) = listener.accept().expect("accept");
        let twin = OwnedFd::from(theirs.try_clone().expect("a duplicate"));
        let mut command = Command::new("setsid");
        command.arg("cat").stdin(OwnedFd::from(theirs)).stdout(twin).stderr(Stdio::null());
        let child = command.spawn().expect("setsid(1) and cat(1)");
        drop(command);
        let mut echo = Echo { child, ours };
        echo.answers("first");
        echo
    }

    fn answers(&mut self, text: &str) {
        let mut got = vec![0; text.len()];
        self.ours.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
        self.ours.write_all(text.as_bytes()).expect("it takes it");
        self.ours.read_exact(&mut got).expect("it answers");
        assert_eq!(got, text.as_bytes());
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
    let mut echo = Echo::start();
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
