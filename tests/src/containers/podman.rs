//! podman over runc, called as its users do.

use std::fs;
use std::path::{Path, PathBuf};

use libtest_mimic::Failed;

use super::surroundings::Surroundings;
use super::{COUNT, COUNTER, Count, Host, Test, test, with_logs};

pub(super) fn tests() -> Vec<Test> {
    let carried = |(name, options): &(&'static str, &'static [&'static str])| -> Test {
        let options = *options;
        (*name, Box::new(move |host: &Host| carried_with(host, options)))
    };
    OPTIONS.iter().map(carried).chain([test("counter", counter), test("init", init)]).collect()
}

/// Containers that are carried as they are, by their options; `{}` is a directory of the test's own.
const OPTIONS: &[(&str, &[&str])] = &[
    ("bridge", &[]),
    ("published", &["--publish", "127.0.0.1::80"]),
    ("host_network", &["--network", "host"]),
    ("terminal", &["--network", "none", "--tty"]),
    ("interactive", &["--network", "none", "--interactive", "--tty"]),
    ("volumes", &["--network", "none", "--volume", "named:/data", "--volume", "{}/state:/read:ro"]),
    ("shared_mounts", &["--network", "none", "--volume", "{}/state:/a:shared", "--volume", "{}/state:/b:rslave"]),
    ("tmpfs", &["--network", "none", "--tmpfs", "/memory:size=10m"]),
    ("read_only", &["--network", "none", "--read-only"]),
    ("user", &["--network", "none", "--user", "1000"]),
    ("no_capabilities", &["--network", "none", "--cap-drop", "all", "--security-opt", "no-new-privileges"]),
    ("limits", &["--network", "none", "--memory", "64m", "--pids-limit", "20"]),
    ("few_pids", &["--network", "none", "--pids-limit", "3"]),
    ("hostname", &["--network", "none", "--hostname", "ship"]),
    ("without_seccomp", &["--network", "none", "--security-opt", "seccomp=unconfined"]),
    ("user_namespace", &["--network", "none", "--uidmap", "0:100000:5000", "--tmpfs", "/memory"]),
    ("user_of_a_namespace", &["--network", "none", "--uidmap", "0:100000:5000", "--user", "1000"]),
    ("privileged", &["--network", "none", "--privileged"]),
    ("host_pids", &["--network", "none", "--pid", "host"]),
    ("host_names", &["--network", "none", "--uts", "host"]),
    ("host_cgroups", &["--network", "none", "--cgroupns", "host"]),
    ("own_cgroups", &["--network", "none", "--cgroupns", "private"]),
    ("shared_memory", &["--network", "none", "--shm-size", "10m"]),
    ("settings", &["--sysctl", "net.ipv4.ip_forward=1", "--sysctl", "kernel.shm_rmid_forced=1"]),
];

/// Podman with a storage of its own.
#[derive(Debug)]
pub(super) struct Podman<'h> {
    pub(super) host: &'h Host,
    /// What the container counts into, on the host.
    pub(super) count: Count,
}

/// The name of the image of every test.
pub(super) const IMAGE: &str = "image";

impl<'h> Podman<'h> {
    /// With an image of busybox.
    pub(super) fn new(host: &'h Host) -> Result<Self, Failed> {
        Self::with(host, &host.root_file_system()?)
    }

    /// With an image of this root file system.
    pub(super) fn with(host: &'h Host, root: &Path) -> Result<Self, Failed> {
        // Without CAP_SYS_RESOURCE no limit can be raised to what podman would choose.
        fs::write(
            host.at("containers.conf"),
            "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=10000:10000\"]\n",
        )?;
        let state = host.at("state");
        fs::create_dir_all(&state)?;
        rustix::fs::chmod(&state, rustix::fs::Mode::from_raw_mode(0o777))?;
        let podman = Podman { host, count: Count(host.at(COUNT)) };
        let archive = host.at("root.tar").display().to_string();
        host.run("tar", &["-C", &root.display().to_string(), "-cf", &archive, "."])?;
        podman.import()?;
        Ok(podman)
    }

    /// Brings the image into the storage.
    pub(super) fn import(&self) -> Result<(), Failed> {
        self.podman(&["import", "--quiet", &self.host.at("root.tar").display().to_string(), IMAGE]).map(drop)
    }

    /// Where it has everything, and how it does things.
    pub(super) fn own_options(&self) -> Vec<String> {
        let at = |(option, name): (&str, &str)| [option.to_owned(), self.host.at(name).display().to_string()];
        let places = [("--root", "storage"), ("--runroot", "run"), ("--tmpdir", "tmp")];
        let how = ["--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none"];
        places.into_iter().flat_map(at).chain(how.map(str::to_owned)).collect()
    }

    pub(super) fn podman(&self, arguments: &[&str]) -> Result<String, Failed> {
        let own = self.own_options();
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        let said = self.host.run("/usr/bin/podman", &[&own, arguments].concat());
        said.map_err(|failure| with_logs(&failure, &self.logs()))
    }

    /// What our program has said in the storage.
    fn logs(&self) -> Vec<PathBuf> {
        let containers = fs::read_dir(self.host.at("storage/overlay-containers")).into_iter().flatten().flatten();
        containers.flat_map(|c| ["dump.log", "restore.log"].map(|log| c.path().join("userdata").join(log))).collect()
    }

    /// Starts a container that does this in a shell.
    pub(super) fn start(&self, name: &str, options: &[&str], script: &str) -> Result<(), Failed> {
        let volume = format!("{}:/state", self.host.at("state").display());
        let how = ["run", "--detach", "--name", name, "--volume", &volume];
        self.podman(&[&how[..], options, &[IMAGE, "sh", "-c", script]].concat()).map(drop)
    }

    /// Starts a container that counts.
    pub(super) fn run(&self, name: &str, options: &[&str]) -> Result<(), Failed> {
        self.start(name, options, COUNTER)?;
        self.count.goes_on(5)
    }

    pub(super) fn checkpoint(&self, name: &str, options: &[&str]) -> Result<String, Failed> {
        self.podman(&[&["container", "checkpoint"], options, &[name]].concat())
    }

    pub(super) fn restore(&self, options: &[&str]) -> Result<String, Failed> {
        self.podman(&[&["container", "restore"], options].concat())
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), Failed> {
        self.podman(&["rm", "--force", "--time", "0", name]).map(drop)
    }

    /// One fact of a container, by a template of `podman inspect`.
    pub(super) fn inspect(&self, name: &str, template: &str) -> Result<String, Failed> {
        self.podman(&["inspect", name, "--format", template])
    }

    /// The container's init, as this host sees it.
    pub(super) fn pid(&self, name: &str) -> Result<i32, Failed> {
        Ok(self.inspect(name, "{{.State.Pid}}")?.parse()?)
    }

    /// Checkpoints a container that counts and restores it in its place, and sees that everything is as it was.
    pub(super) fn carry(&self, name: &str) -> Result<(), Failed> {
        let before = Surroundings::of(self.pid(name)?)?;
        self.checkpoint(name, &[])?;
        self.count.stands_still()?;
        self.restore(&[name])?;
        self.count.goes_on(5)?;
        before.same_for(self.pid(name)?)
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        let _ = self.podman(&["pod", "rm", "--all", "--force", "--time", "0"]);
        let _ = self.podman(&["rm", "--all", "--force", "--time", "0"]);
        let _ = self.podman(&["rmi", "--all", "--force"]);
    }
}

fn carried_with(host: &Host, options: &[&str]) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    let own = host.at("").display().to_string();
    let options: Vec<String> = options.iter().map(|option| option.replace("{}", own.trim_end_matches('/'))).collect();
    podman.run("c", &options.iter().map(String::as_str).collect::<Vec<_>>())?;
    podman.carry("c")
}

fn counter(host: &Host) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.run("c", &["--network", "none"])?;
    podman.carry("c")?;
    // And what was restored can be carried again.
    podman.carry("c")
}

/// Under an init of podman's, with children, and a child of one that has ended and is not waited for.
fn init(host: &Host) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    let family = format!("sleep 1000 & sh -c 'sleep 0 & exec sleep 1001' & {COUNTER}");
    podman.start("c", &["--network", "none", "--init"], &family)?;
    podman.count.goes_on(5)?;
    let processes = || podman.podman(&["exec", "c", "ps", "-o", "pid,ppid,stat,args"]);
    let family = |told: String| {
        let lines: Vec<&str> = told.lines().map(str::trim).collect();
        let parent = lines.iter().find(|line| line.ends_with("sleep 1001")).and_then(|line| line.split(' ').next());
        // The counter's sleeps are zombies for a moment as well.
        let is_ours = |line: &&&str| {
            let its_parent = line.split_whitespace().nth(1);
            let is_zombie = line.ends_with("[sleep]") && its_parent == parent;
            is_zombie || line.ends_with("sleep 1000") || line.ends_with("sleep 1001")
        };
        lines.iter().filter(is_ours).map(|line| (*line).to_owned()).collect::<Vec<_>>()
    };
    let before = family(processes()?);
    podman.carry("c")?;
    let after = family(processes()?);
    match before == after && before.len() == 3 {
        true => Ok(()),
        false => Err(format!("its processes were {before:?}, and are {after:?}").into()),
    }
}
