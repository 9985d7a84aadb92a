//! podman over runc, called as its users do.

use std::fs;

use libtest_mimic::Failed;

use super::{Body, COUNT, COUNTER, Count, Host};

pub const TESTS: &[(&str, Body)] = &[("counter", counter), ("exported", exported), ("bridge", bridge)];

/// Podman with a storage of its own.
#[derive(Debug)]
struct Podman<'h> {
    host: &'h Host,
    /// What the container counts into, on the host.
    count: Count,
}

impl<'h> Podman<'h> {
    /// With an image of busybox.
    fn new(host: &'h Host) -> Result<Self, Failed> {
        let root = host.root_file_system()?;
        // Without CAP_SYS_RESOURCE no limit can be raised to what podman would choose.
        fs::write(
            host.at("containers.conf"),
            "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=10000:10000\"]\n",
        )?;
        let state = host.at("state");
        fs::create_dir(&state)?;
        let podman = Podman { host, count: Count(host.at(COUNT)) };
        let archive = host.at("root.tar").display().to_string();
        host.run("tar", &["-C", &root.display().to_string(), "-cf", &archive, "."], &[])?;
        podman.podman(&["import", "--quiet", &archive, "busybox"])?;
        Ok(podman)
    }

    fn podman(&self, arguments: &[&str]) -> Result<String, Failed> {
        let at = |name| self.host.at(name).display().to_string();
        let (storage, run, tmp) = (at("storage"), at("run"), at("tmp"));
        let own = ["--root", &storage, "--runroot", &run, "--tmpdir", &tmp];
        let how = ["--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none"];
        let logs = self.logs();
        self.host.run("podman", &[&own[..], &how, arguments].concat(), &logs)
    }

    /// What our program has said in the storage.
    fn logs(&self) -> Vec<std::path::PathBuf> {
        let containers = fs::read_dir(self.host.at("storage/overlay-containers")).into_iter().flatten().flatten();
        let logs = containers.flat_map(|c| ["dump.log", "restore.log"].map(|log| c.path().join("userdata").join(log)));
        logs.filter(|log| log.exists()).collect()
    }

    /// Starts a container that counts.
    fn run(&self, name: &str, options: &[&str]) -> Result<(), Failed> {
        let volume = format!("{}:/state", self.host.at("state").display());
        let how = ["run", "--detach", "--name", name, "--volume", &volume];
        self.podman(&[&how[..], options, &["busybox", "sh", "-c", COUNTER]].concat())?;
        self.count.goes_on(5)
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        let _ = self.podman(&["rm", "--all", "--force", "--time", "0"]);
        let _ = self.podman(&["rmi", "--all", "--force"]);
    }
}

fn counter(host: &Host) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.run("c", &["--network", "none"])?;
    for _ in 0..2 {
        podman.podman(&["container", "checkpoint", "c"])?;
        podman.count.stands_still()?;
        podman.podman(&["container", "restore", "c"])?;
        podman.count.goes_on(5)?;
    }
    Ok(())
}

fn exported(host: &Host) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.run("c", &["--network", "none"])?;
    let archive = host.at("c.tar.zst").display().to_string();
    podman.podman(&["container", "checkpoint", "--export", &archive, "--compress", "zstd", "c"])?;
    podman.podman(&["rm", "c"])?;
    podman.podman(&["container", "restore", "--import", &archive])?;
    podman.count.goes_on(5)?;
    podman.podman(&["rm", "--force", "--time", "0", "c"])?;
    // As another, which begins where the image was made: not where the first has counted to.
    fs::write(&podman.count.0, "")?;
    podman.podman(&["container", "restore", "--import", &archive, "--name", "copy"])?;
    podman.podman(&["exec", "copy", "true"])?;
    podman.count.wait_for(3).map(drop)
}

fn bridge(host: &Host) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.run("c", &[])?;
    let address = |podman: &Podman<'_>| podman.podman(&["exec", "c", "ip", "-o", "-4", "addr", "show", "dev", "eth0"]);
    let before = address(&podman)?;
    podman.podman(&["container", "checkpoint", "c"])?;
    podman.count.stands_still()?;
    podman.podman(&["container", "restore", "c"])?;
    podman.count.goes_on(5)?;
    let after = address(&podman)?;
    let shown = |text: &str| text.split_whitespace().nth(3).map(str::to_owned);
    match shown(&before).is_some() && shown(&before) == shown(&after) {
        true => Ok(()),
        false => Err(format!("its address was {before}, and is {after}").into()),
    }
}
