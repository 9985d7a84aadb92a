//! A process that sends back what it gets, at the other end of a socket of ours.

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The process (cat(1) in a session of its own), which is killed when this is dropped, and our end.
#[derive(Debug)]
pub struct Echo<S> {
    pub child: Child,
    pub ours: S,
}

impl<S: Read + Write + AsFd> Echo<S> {
    /// Starts it with `theirs`, which nobody else keeps, and hears it once.
    pub fn start(ours: S, theirs: OwnedFd) -> Self {
        let twin = theirs.try_clone().expect("a duplicate");
        let mut command = Command::new("setsid");
        command.arg("cat").stdin(theirs).stdout(twin).stderr(Stdio::null());
        let child = command.spawn().expect("setsid(1) and cat(1)");
        drop(command);
        let mut echo = Self { child, ours };
        echo.answers("first");
        echo
    }

    /// Sends this, and gets the same.
    pub fn answers(&mut self, text: &str) {
        let mut got = vec![0; text.len()];
        set_socket_timeout(&self.ours, Timeout::Recv, Some(Duration::from_secs(10))).expect("a limit");
        self.ours.write_all(text.as_bytes()).expect("it takes it");
        self.ours.read_exact(&mut got).expect("it answers");
        assert_eq!(got, text.as_bytes());
    }
}

impl<S> Drop for Echo<S> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
