//! Unix sockets whose other end is outside of the tree, by the options of the `criu` command line.

use cryonaut_tests::Echo;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn inode(socket: impl AsFd) -> u64 {
    rustix::fs::fstat(socket).expect("a socket has a number").st_ino
}

/// An echo, and the inode numbers of our end and of its own.
fn start() -> (Echo<UnixStream>, [u64; 2]) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let numbers = [inode(&ours), inode(&theirs)];
    (Echo::start(ours, theirs.into()), numbers)
}

fn criu(action: &str, images: &Path, stdin: Stdio, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cryonaut"));
    command.args(["criu", action, "--no-default-config", "-v4", "-D"]).arg(images).args(arguments).stdin(stdin);
    command.output().expect("criu runs")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

/// Dumped with `arguments`, and ended.
fn dump(echo: &mut Echo<UnixStream>, images: &Path, arguments: &[&str]) {
    let pid = echo.child.id().to_string();
    let all = [&["-t", pid.as_str()], arguments].concat();
    let output = criu("dump", images, Stdio::null(), &all);
    assert!(output.status.success(), "{}", told(&output));
    echo.child.wait().expect("it has ended");
}

#[test]
fn an_inherited_socket_takes_the_place_of_one_with_an_end_outside() {
    for by_own_number in [false, true] {
        let (mut echo, numbers) = start();
        let images = tempfile::tempdir().expect("a directory");
        let pid = echo.child.id().to_string();
        let refused = criu("dump", images.path(), Stdio::null(), &["-t", &pid]);
        let wanted = format!("is outside of the tree: process {} (", std::process::id());
        assert!(!refused.status.success() && told(&refused).contains(&wanted), "{}", told(&refused));
        echo.answers("it goes on");

        let external = format!("unix[{}]", numbers[usize::from(by_own_number)]);
        dump(&mut echo, images.path(), &["--external", &external]);
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        echo.ours = ours;
        let key = format!("fd[0]:socket:[{}]", numbers[1]);
        let stdin = Stdio::from(OwnedFd::from(theirs));
        let output = criu("restore", images.path(), stdin, &["-d", "--inherit-fd", &key]);
        assert!(output.status.success(), "{}", told(&output));
        echo.answers("second");
    }
}

#[test]
fn a_list_of_numbers_lets_those_ends_be_outside_and_no_others() {
    for native in [false, true] {
        let (mut echo, numbers) = start();
        let images = tempfile::tempdir().expect("a directory");
        let pid = echo.child.id().to_string();
        let checkpoint = |list: &str| match native {
            false => criu("dump", images.path(), Stdio::null(), &["-t", &pid, "-R", list]),
            true => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_cryonaut"));
                command.args(["checkpoint", &pid, "-R", list, "-o"]).arg(images.path()).output().expect("it runs")
            }
        };
        let refused = checkpoint("--ext-unix-sk=1,2");
        assert!(!refused.status.success() && told(&refused).contains("outside of the tree"), "{}", told(&refused));
        for number in numbers {
            let done = checkpoint(&format!("--ext-unix-sk=1,{number}"));
            assert!(done.status.success(), "{}", told(&done));
            echo.answers("it goes on");
        }
    }
}

#[test]
fn without_another_the_end_outside_is_gone() {
    let (mut echo, _) = start();
    let images = tempfile::tempdir().expect("a directory");
    dump(&mut echo, images.path(), &["--ext-unix-sk"]);
    let output = criu("restore", images.path(), Stdio::null(), &["-d", "--ext-unix-sk"]);
    assert!(output.status.success(), "{}", told(&output));
    let process = format!("/proc/{}", echo.child.id());
    let deadline = Instant::now() + Duration::from_secs(10);
    // It reads the end, and ends itself.
    while fs::read_to_string(format!("{process}/comm")).is_ok_and(|comm| comm == "cat\n") {
        let state = fs::read_to_string(format!("{process}/stat")).unwrap_or_default();
        if state.contains(") Z ") {
            break;
        }
        assert!(Instant::now() < deadline, "it does not see the end");
        std::thread::sleep(Duration::from_millis(5));
    }
}
