//! runc, called as its users do.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libtest_mimic::Failed;

use super::surroundings::Surroundings;
use super::terminal::{self, Console};
use super::{COUNT, COUNTER, Count, Host, Test, test, with_logs};

pub(super) fn tests() -> Vec<Test> {
    let bundled = BUNDLES.iter().map(|(name, bundle)| -> Test {
        let bundle = *bundle;
        (*name, Box::new(move |host: &Host| Container::start(host, bundle)?.carry(&[], &[])))
    });
    let asked = OPTIONS.iter().map(|(name, dump, restore)| -> Test {
        let (dump, restore) = (*dump, *restore);
        (*name, Box::new(move |host: &Host| Container::start(host, USUAL)?.carry(dump, restore)))
    });
    let others = [
        test("counter", counter),
        test("leave_running", leave_running),
        test("pre_dump", pre_dump),
        test("paused", paused),
        test("page_server", page_server),
        test("namespaces_by_path", namespaces_by_path),
        test("private_images", private_images),
        test("console_socket", console_socket),
        test("shell_job", shell_job),
    ];
    bundled.chain(asked).chain(others).collect()
}

/// What of a container is not as it usually is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bundle {
    /// User and group of its program.
    user: u32,
    /// Most processes, 0 for any number.
    pids: u32,
    /// Its namespaces.
    namespaces: &'static [&'static str],
    /// A terminal of its own.
    terminal: bool,
    /// Whether it may make namespaces, mount, and set up networks.
    may_mount: bool,
    /// What its shell does.
    script: &'static str,
}

const NAMESPACES: [&str; 5] = ["pid", "ipc", "uts", "mount", "network"];
pub(super) const USUAL: Bundle =
    Bundle { user: 0, pids: 0, namespaces: &NAMESPACES, terminal: false, may_mount: false, script: COUNTER };
/// A container within, with its own processes, mounts and proc file system, in which the outer init must not be seen. That
/// stays where it is: what it has open is of the mounts of the container.
const WITHIN: &str = "unshare -m -p -f --mount-proc sh -c 'sleep 1000 & i=0; \
                      while [ $$ = 1 ] && ! grep -q unshar[e] /proc/1/cmdline; do i=$((i+1)); echo $i >>/state/count; \
                      sleep 0.02; done'; true";
/// A network with a name, as `ip netns add` makes it, with a setting of its own.
const NAMED_NETWORK: &str = "mkdir -p /run/netns; mount --bind /run/netns /run/netns; mount --make-shared /run/netns; \
                             touch /run/netns/x; unshare -n sh -c 'ip link set lo up mtu 1234; \
                             mount --bind /proc/self/ns/net /run/netns/x'; i=0; \
                             while nsenter --net=/run/netns/x ip link show lo | grep -q 'UP.*mtu 1234'; do \
                             i=$((i+1)); echo $i >>/state/count; sleep 0.02; done";
const USER_NAMESPACE: Bundle = Bundle { namespaces: &["pid", "ipc", "uts", "mount", "network", "user"], ..USUAL };

/// Containers that are carried without further options.
const BUNDLES: &[(&str, Bundle)] = &[
    ("another_user", Bundle { user: 1000, ..USUAL }),
    ("few_pids", Bundle { pids: 3, ..USUAL }),
    ("host_network", Bundle { namespaces: &["pid", "ipc", "uts", "mount"], ..USUAL }),
    ("own_cgroups", Bundle { namespaces: &["pid", "ipc", "uts", "mount", "network", "cgroup"], ..USUAL }),
    ("user_namespace", USER_NAMESPACE),
    ("named_network", Bundle { may_mount: true, script: NAMED_NETWORK, ..USUAL }),
    ("container_within", Bundle { may_mount: true, script: WITHIN, ..USUAL }),
];

/// Options of the checkpoint and of the restore.
const OPTIONS: &[(&str, &[&str], &[&str])] = &[
    ("cgroups_soft", &["--manage-cgroups-mode", "soft"], &["--manage-cgroups-mode", "soft"]),
    ("cgroups_full", &["--manage-cgroups-mode", "full"], &["--manage-cgroups-mode", "full"]),
    ("cgroups_strict", &["--manage-cgroups-mode", "strict"], &["--manage-cgroups-mode", "strict"]),
    ("empty_network", &["--empty-ns", "network"], &["--empty-ns", "network"]),
    ("sockets_and_locks", SOCKETS_AND_LOCKS, SOCKETS_AND_LOCKS),
];
const SOCKETS_AND_LOCKS: &[&str] = &["--tcp-established", "--ext-unix-sk", "--file-locks"];

/// A container that counts. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Container<'h> {
    host: &'h Host,
    pub(super) count: Count,
}

impl<'h> Container<'h> {
    pub(super) fn start(host: &'h Host, bundle: Bundle) -> Result<Self, Failed> {
        Self::started(host, bundle, &[], None)
    }

    /// With options of `runc run`, and at a terminal.
    fn started(host: &'h Host, bundle: Bundle, options: &[&str], at: Option<&OwnedFd>) -> Result<Self, Failed> {
        Self::made(host, &config(&host.name, bundle), options, at)
    }

    fn made(host: &'h Host, config: &str, options: &[&str], at: Option<&OwnedFd>) -> Result<Self, Failed> {
        let root = host.root_file_system()?;
        if config.contains(MAPPED) {
            host.run("chown", &["-R", "100000:100000", &root.display().to_string()])?;
        }
        fs::write(host.at("config.json"), config)?;
        let container = Container { host, count: Count(root.join(COUNT)) };
        container.runc_at(at, &[&["run", "--detach"], options, &[&host.name]].concat())?;
        container.count.goes_on(5)?;
        Ok(container)
    }

    fn logs(&self) -> [PathBuf; 2] {
        [self.host.at("images/dump.log"), self.host.at("images/restore.log")]
    }

    pub(super) fn runc(&self, arguments: &[&str]) -> Result<String, Failed> {
        self.runc_at(None, arguments)
    }

    fn runc_at(&self, terminal: Option<&OwnedFd>, arguments: &[&str]) -> Result<String, Failed> {
        let state = self.host.at("runc").display().to_string();
        let said = self.host.run_at(terminal, "runc", &[&["--root", &state], arguments].concat());
        said.map_err(|failure| with_logs(&failure, &self.logs()))
    }

    /// Its init, as this host sees it.
    fn pid(&self) -> Result<i32, Failed> {
        let state = self.runc(&["state", &self.host.name])?;
        let pid = state.split_once("\"pid\": ").and_then(|(_, rest)| rest.split(',').next()?.trim().parse().ok());
        pid.ok_or_else(|| format!("no pid in {state}").into())
    }

    pub(super) fn checkpoint(&self, options: &[&str]) -> Result<(), Failed> {
        let images = self.host.at("images").display().to_string();
        let how = ["checkpoint", "--image-path", &images, "--work-path", &images];
        self.runc(&[&how, options, &[&self.host.name]].concat()).map(drop)
    }

    fn restore(&self, options: &[&str]) -> Result<(), Failed> {
        self.restore_at(None, options)
    }

    fn restore_at(&self, terminal: Option<&OwnedFd>, options: &[&str]) -> Result<(), Failed> {
        let images = self.host.at("images").display().to_string();
        let how = ["restore", "--detach", "--image-path", &images, "--work-path", &images];
        self.runc_at(terminal, &[&how, options, &[&self.host.name]].concat()).map(drop)
    }

    /// Checkpoints and restores it with these options, and sees that everything is as it was.
    fn carry(&self, dump: &[&str], restore: &[&str]) -> Result<(), Failed> {
        let before = Surroundings::of(self.pid()?)?;
        self.checkpoint(dump)?;
        self.count.stands_still()?;
        self.restore(restore)?;
        self.count.goes_on(5)?;
        before.same_for(self.pid()?)
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
    container.carry(&[], &[])?;
    // And what was restored can be carried again.
    container.carry(&[], &[])
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

/// Its memory goes to a server, which keeps it beside the rest of the image.
fn page_server(host: &Host) -> Result<(), Failed> {
    let images = host.at("images");
    fs::create_dir(&images)?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port().to_string();
    let container = Container::start(host, USUAL)?;
    let directory = images.display().to_string();
    let how =
        ["page-server", "--daemon", "-o", "server.log", "-D", &directory, "--address", "127.0.0.1", "--port", &port];
    host.run("criu", &how)?;
    container.carry(&["--page-server", &format!("127.0.0.1:{port}")], &[])?;
    match fs::read_dir(&images)?.flatten().any(|file| file.file_name() == "pages-65537.img") {
        true => Ok(()),
        false => Err("the server has no pages".into()),
    }
}

/// A dump that leaves to a pre-dump what has not changed since.
fn pre_dump(host: &Host) -> Result<(), Failed> {
    let container = Container::start(host, USUAL)?;
    let before = host.at("before").display().to_string();
    container.runc(&["checkpoint", "--pre-dump", "--image-path", &before, "--work-path", &before, &host.name])?;
    container.count.goes_on(5)?;
    container.carry(&["--parent-path", "../before"], &[])?;
    match fs::read_link(host.at("images").join("parent"))? == Path::new("../before") {
        true => Ok(()),
        false => Err("the dump does not build on the pre-dump".into()),
    }
}

/// What was paused comes back running: runc says so of a container that has been restored.
fn paused(host: &Host) -> Result<(), Failed> {
    let container = Container::start(host, USUAL)?;
    container.runc(&["pause", &host.name])?;
    container.checkpoint(&["--leave-running"])?;
    container.count.stands_still()?;
    container.runc(&["resume", &host.name])?;
    container.count.goes_on(5)?;
    container.runc(&["pause", &host.name])?;
    container.carry(&[], &[])
}

/// Namespaces that are there already, at files: they stay, and are entered again.
fn namespaces_by_path(host: &Host) -> Result<(), Failed> {
    let kinds = ["network", "ipc", "uts"];
    let place = |kind: &str| host.at(kind).display().to_string();
    let mut config = config(&host.name, USUAL).replace("  \"hostname\": \"runc\",\n", "");
    let mut making = Vec::new();
    for kind in kinds {
        fs::write(place(kind), "")?;
        making.push(format!("mount --bind /proc/self/ns/{} {}", kind.replace("network", "net"), place(kind)));
        let (without, with) = (format!("{{\"type\": \"{kind}\"}}"), place(kind));
        config = config.replace(&without, &format!("{{\"type\": \"{kind}\", \"path\": \"{with}\"}}"));
    }
    host.run("unshare", &["--net", "--ipc", "--uts", "sh", "-c", &making.join("; ")])?;
    let carried = Container::made(host, &config, &[], None).and_then(|container| {
        container.carry(&[], &[])?;
        for (kind, link) in kinds.iter().zip(["net", "ipc", "uts"]) {
            let file = fs::metadata(place(kind))?;
            let own = fs::metadata(format!("/proc/{}/ns/{link}", container.pid()?))?;
            if std::os::unix::fs::MetadataExt::ino(&file) != std::os::unix::fs::MetadataExt::ino(&own) {
                return Err(format!("it is not in the given {kind} namespace").into());
            }
        }
        Ok(())
    });
    let gone = host.run("umount", &kinds.map(place));
    carried.and(gone.map(drop))
}

/// The directory of the images is one that the container's root may not look into.
fn private_images(host: &Host) -> Result<(), Failed> {
    let images = host.at("images");
    fs::create_dir(&images)?;
    fs::set_permissions(&images, fs::Permissions::from_mode(0o600))?;
    Container::start(host, USER_NAMESPACE)?.carry(&[], &[])
}

/// A terminal of the container's own, whose master the runtime hands over.
fn console_socket(host: &Host) -> Result<(), Failed> {
    let console = Console::listen(&host.at("console"))?;
    let options = ["--console-socket", &host.at("console").display().to_string()];
    let bundle = Bundle { terminal: true, ..USUAL };
    let container = Container::started(host, bundle, &options, None)?;
    let before = Surroundings::of(container.pid()?)?;
    let first = console.take()?;
    container.checkpoint(&[])?;
    container.count.stands_still()?;
    drop(first);
    container.restore(&options)?;
    container.count.goes_on(5)?;
    before.same_for(container.pid()?)?;
    let master = console.take()?;
    container.runc(&["exec", &host.name, "sh", "-c", "echo shown >/dev/console"])?;
    terminal::is_shown(master.as_fd(), "shown")
}

/// A terminal of whoever has called the runtime.
fn shell_job(host: &Host) -> Result<(), Failed> {
    let (_master, slave) = terminal::pair()?;
    let container = Container::started(host, USUAL, &[], Some(&slave))?;
    container.checkpoint(&["--shell-job"])?;
    container.count.stands_still()?;
    container.restore_at(Some(&slave), &["--shell-job"])?;
    container.count.goes_on(5)
}

/// Users of a user namespace.
const MAPPED: &str = r#"
    "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 5000}],
    "gidMappings": [{"containerID": 0, "hostID": 100000, "size": 5000}],"#;

/// What `runc spec` would write, without a terminal and with room to write.
pub(super) fn config(name: &str, bundle: Bundle) -> String {
    let Bundle { user, pids, namespaces, terminal, may_mount, script } = bundle;
    let mapped = if namespaces.contains(&"user") { MAPPED } else { "" };
    let namespaces: Vec<String> = namespaces.iter().map(|kind| format!(r#"{{"type": "{kind}"}}"#)).collect();
    let namespaces = namespaces.join(", ");
    let pids = if pids > 0 { format!(r#", "pids": {{"limit": {pids}}}"#) } else { String::new() };
    let more = if may_mount { r#", "CAP_SYS_ADMIN", "CAP_NET_ADMIN""# } else { "" };
    let rights = format!(r#"["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"{more}]"#);
    format!(
        r#"{{
  "ociVersion": "1.0.2",
  "process": {{
    "terminal": {terminal},
    "user": {{"uid": {user}, "gid": {user}}},
    "args": ["sh", "-c", "{script}"],
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
    "namespaces": [{namespaces}],{mapped}
    "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
      "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
    "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
  }}
}}
"#
    )
}
