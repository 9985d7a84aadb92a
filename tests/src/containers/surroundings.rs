//! What is around a container: mounts, namespaces, cgroups, and in its network devices, addresses, routes and rules. All
//! of it has to be the same when it has come back.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::sleep;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use rustix::process::Pid;

use crate::fingerprint::Fingerprint;

/// How long a network may take to be as it was: addresses of IPv6 are looked for in it first.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of devices, by which number its peer and that one's namespace are known, which are made anew.
const OF_PEER: [&str; 2] = ["5:", "37:"];
/// Where the runtime has the layers of the root, which are others after a restore from an archive; whether they were new.
const LAYERS: [&str; 4] = ["lowerdir=", "upperdir=", "workdir=", "uuid="];
/// What has the numbers of devices in it.
const OF_DEVICES: [&str; 3] = ["network.link", "network.address", "network.route"];
/// Addresses of IPv6 that devices give themselves, a while after they are there.
const GIVEN: &str = " 1:fe80";

/// What is told, by the name of what it is about.
#[derive(Debug)]
pub(super) struct Surroundings {
    told: BTreeMap<String, String>,
    /// Whether the runtime makes devices of the network anew, with other numbers.
    has_new_devices: bool,
}

impl Surroundings {
    /// Of a process, as this host sees it.
    pub(super) fn of(pid: i32) -> Result<Self, Failed> {
        let pid = Pid::from_raw(pid).ok_or("the runtime tells no process")?;
        let all = Fingerprint::of_surroundings(pid);
        let told = all.fields().map(|(name, value)| (name.to_owned(), without_chance(name, value))).collect();
        Ok(Surroundings { told, has_new_devices: false })
    }

    /// Where devices of the network have other numbers afterwards, as do addresses and routes that are theirs: the runtime
    /// makes all that by itself.
    pub(super) fn with_new_devices(self) -> Self {
        Surroundings { has_new_devices: true, ..self }
    }

    /// Fails if those of this process are not the same, now or soon.
    pub(super) fn same_for(&self, pid: i32) -> Result<(), Failed> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Surroundings::of(pid)?;
            if self.different(&now).next().is_none() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.difference(&now).into());
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// The names of what is not the same.
    fn different<'a>(&'a self, now: &'a Surroundings) -> impl Iterator<Item = &'a String> {
        let names: BTreeSet<_> = self.told.keys().chain(now.told.keys()).collect();
        let counts = |name: &&String| !self.has_new_devices || !OF_DEVICES.contains(&name.as_str());
        names.into_iter().filter(counts).filter(|name| self.told.get(*name) != now.told.get(*name))
    }

    fn difference(&self, now: &Surroundings) -> String {
        let [was, is] = [self, now].map(|one| |name: &String| one.told.get(name));
        self.different(now).map(|name| format!("{name}\n  was {:?}\n  and is {:?}\n", was(name), is(name))).collect()
    }
}

fn without_chance(name: &str, value: &str) -> String {
    let keep = |word: &&str, not: &[&str]| !not.iter().any(|start| word.starts_with(start));
    match name {
        "network.link" => {
            let line = |line: &str| line.split(' ').filter(|word| keep(word, &OF_PEER)).collect::<Vec<_>>().join(" ");
            value.lines().map(line).collect::<Vec<_>>().join("\n")
        }
        "network.address" | "network.route" => {
            value.lines().filter(|line| !line.contains(GIVEN)).collect::<Vec<_>>().join("\n")
        }
        // At a restore runc says itself what is to be there: the host's /dev/null, and its own cgroup.
        _ if name.starts_with("mount./proc/") && value.starts_with("/null of ") => "/null".into(),
        _ if name.starts_with("mount.") && value.contains(" cgroup cgroup ") => {
            value.split_once(" of ").map_or(value, |(_, rest)| rest).to_owned()
        }
        _ if name.starts_with("mount.") => {
            value.split(',').filter(|word| keep(&word.trim_start(), &LAYERS)).collect::<Vec<_>>().join(",")
        }
        _ => value.to_owned(),
    }
}
