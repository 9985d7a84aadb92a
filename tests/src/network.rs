//! Another host, as far as the kernel is concerned: a network namespace of its own.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use libtest_mimic::Failed;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace, which a process holds.
#[derive(Debug)]
pub(crate) struct Network {
    holder: Child,
}

impl Network {
    /// With its loopback device up.
    pub(crate) fn new() -> Result<Self, Failed> {
        let mut holder = Command::new("unshare")
            .args(["-n", "sh", "-c", "ip link set lo up && echo there && exec sleep 300"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = [0; 5];
        let mut output = holder.stdout.take().ok_or("no output")?;
        let result = output.read_exact(&mut said);
        let network = Self { holder };
        result.map_err(|e| format!("no network namespace: {e}"))?;
        Ok(network)
    }

    /// That of its holder, by which ip(8) is told of it.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Runs ip(8) in it.
    pub(crate) fn ip(&self, words: &str) -> Result<(), Failed> {
        run_ip(&["nsenter", "-t", &self.pid().to_string(), "-n"], words)
    }

    /// The calling thread goes there.
    pub(crate) fn enter(&self) -> std::io::Result<()> {
        let network = File::open(format!("/proc/{}/ns/net", self.holder.id()))?;
        let kind = Some(LinkNameSpaceType::Network);
        Ok(move_into_link_name_space(std::os::fd::AsFd::as_fd(&network), kind)?)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Runs ip(8) in the network of the calling thread.
pub(crate) fn ip(words: &str) -> Result<(), Failed> {
    run_ip(&[], words)
}

/// Behind other words.
fn run_ip(before: &[&str], words: &str) -> Result<(), Failed> {
    let all: Vec<&str> = before.iter().copied().chain(["ip"]).chain(words.split(' ')).collect();
    let done = Command::new(all[0]).args(&all[1..]).output()?;
    if done.status.success() {
        Ok(())
    } else {
        Err(format!("ip {words}: {}", String::from_utf8_lossy(&done.stderr)).into())
    }
}
