//! runc, called as its users do.

use std::fs;
use std::path::PathBuf;

use libtest_mimic::Failed;

use super::{Body, COUNT, COUNTER, Count, Host};

pub const TESTS: &[(&str, Body)] = &[
    ("counter", counter),
    ("leave_running", leave_running),
    ("another_user", another_user),
    ("few_pids", few_pids),
    ("host_network", host_network),
];

/// What of a container is not as it usually is.
#[derive(Debug, Clone, Copy)]
struct Bundle {
    /// User and group of its program.
    user: u32,
    /// Most processes, 0 for any number.
    pids: u32,
    /// Whether it has a network of its own.
    network: bool,
}

const USUAL: Bundle = Bundle { user: 0, pids: 0, network: true };

/// A container that counts. Dropping it ends it.
#[derive(Debug)]
struct Container<'h> {
    host: &'h Host,
    count: Count,
}

impl<'h> Container<'h> {
    fn start(host: &'h Host, bundle: Bundle) -> Result<Self, Failed> {
        let root = host.root_file_system()?;
        fs::write(host.at("config.json"), config(&host.name, bundle))?;
        let container = Container { host, count: Count(root.join(COUNT)) };
        container.runc(&["run", "--detach", &host.name])?;
        container.count.goes_on(5)?;
        Ok(container)
    }

    fn logs(&self) -> [PathBuf; 2] {
        [self.host.at("images/dump.log"), self.host.at("images/restore.log")]
    }

    fn runc(&self, arguments: &[&str]) -> Result<String, Failed> {
        let state = self.host.at("runc").display().to_string();
        self.host.run("runc", &[&["--root", &state], arguments].concat(), &self.logs())
    }

    fn checkpoint(&self, options: &[&str]) -> Result<(), Failed> {
        let images = self.host.at("images").display().to_string();
        let how = ["checkpoint", "--image-path", &images, "--work-path", &images];
        self.runc(&[&how, options, &[&self.host.name]].concat()).map(drop)
    }

    fn restore(&self, options: &[&str]) -> Result<(), Failed> {
        let images = self.host.at("images").display().to_string();
        let how = ["restore", "--detach", "--image-path", &images, "--work-path", &images];
        self.runc(&[&how, options, &[&self.host.name]].concat()).map(drop)
    }

    /// Carries it, as `checkpoint` and `restore` do without further options.
    fn carry(&self) -> Result<(), Failed> {
        self.checkpoint(&[])?;
        self.count.stands_still()?;
        self.restore(&[])?;
        self.count.goes_on(5)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // There is none if it could not be restored.
        let _ = self.runc(&["delete", "--force", &self.host.name]);
    }
}

fn counter(host: &Host) -> Result<(), Failed> {
    let container = Container::start(host, USUAL)?;
    container.carry()?;
    // And what was restored can be carried again.
    container.carry()
}

fn leave_running(host: &Host) -> Result<(), Failed> {
    let container = Container::start(host, USUAL)?;
    container.checkpoint(&["--leave-running"])?;
    container.count.goes_on(5)?;
    container.runc(&["delete", "--force", &host.name])?;
    // Back to where the image was made.
    let before = container.count.so_far()?;
    container.restore(&[])?;
    let now = container.count.wait_for(before + 3)?;
    let (first, second) = (now[before], now[before + 1]);
    match first > 1 && first <= before && second == first + 1 {
        true => Ok(()),
        false => Err(format!("it counts on with {first} and {second} after {before}").into()),
    }
}

fn another_user(host: &Host) -> Result<(), Failed> {
    Container::start(host, Bundle { user: 1000, ..USUAL })?.carry()
}

fn few_pids(host: &Host) -> Result<(), Failed> {
    Container::start(host, Bundle { pids: 3, ..USUAL })?.carry()
}

fn host_network(host: &Host) -> Result<(), Failed> {
    Container::start(host, Bundle { network: false, ..USUAL })?.carry()
}

/// What `runc spec` would write, without a terminal and with room to write.
fn config(name: &str, bundle: Bundle) -> String {
    let Bundle { user, pids, network } = bundle;
    let network = if network { r#", {"type": "network"}"# } else { "" };
    let pids = if pids > 0 { format!(r#", "pids": {{"limit": {pids}}}"#) } else { String::new() };
    let rights = r#"["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]"#;
    format!(
        r#"{{
  "ociVersion": "1.0.2",
  "process": {{
    "terminal": false,
    "user": {{"uid": {user}, "gid": {user}}},
    "args": ["sh", "-c", "{COUNTER}"],
    "env": ["PATH=/bin"],
    "cwd": "/",
    "capabilities": {{"bounding": {rights}, "effective": {rights}, "permitted": {rights}, "ambient": {rights}}},
    "noNewPrivileges": true
  }},
  "root": {{"path": "rootfs", "readonly": false}},
  "hostname": "runc",
  "mounts": [
    {{"destination": "/proc", "type": "proc", "source": "proc"}},
    {{"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
      "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}},
    {{"destination": "/dev/pts", "type": "devpts", "source": "devpts",
      "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}},
    {{"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
      "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}},
    {{"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}},
    {{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}},
    {{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
      "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}}
  ],
  "linux": {{
    "cgroupsPath": "/{name}",
    "resources": {{"devices": [{{"allow": false, "access": "rwm"}}]{pids}}},
    "namespaces": [{{"type": "pid"}}, {{"type": "ipc"}}, {{"type": "uts"}}, {{"type": "mount"}}{network}],
    "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
      "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
    "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
  }}
}}
"#
    )
}
