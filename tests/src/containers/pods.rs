//! Containers that share namespaces with others of a pod, and go over into another pod.

use libtest_mimic::Failed;

use super::podman::Podman;
use super::{Host, Test};

pub(super) fn tests() -> Vec<Test> {
    let moved = |(name, shared): (&'static str, &'static str)| -> Test {
        (name, Box::new(move |host: &Host| moved(host, shared)))
    };
    [("network_ipc_names", "net,ipc,uts"), ("and_pids", "net,ipc,uts,pid")].map(moved).into()
}

fn moved(host: &Host, shared: &str) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.podman(&["pod", "create", "--name", "one", "--share", shared])?;
    podman.run("c", &["--pod", "one"])?;
    let archive = host.at("c.tar").display().to_string();
    podman.checkpoint("c", &["--compress", "none", "--export", &archive])?;
    podman.count.stands_still()?;
    podman.remove("c")?;
    podman.podman(&["pod", "create", "--name", "two", "--share", shared])?;
    // podman 4.3 knows a pod there by its id alone.
    let pod = podman.podman(&["pod", "inspect", "two", "--format", "{{.ID}}"])?;
    podman.restore(&["--import", &archive, "--pod", &pod])?;
    podman.count.goes_on(5)?;
    // What it shares, it shares with the new pod, and only that.
    let infra = podman.podman(&["pod", "inspect", "two", "--format", "{{.InfraContainerID}}"])?;
    let (own, of_pod) = (podman.pid("c")?, podman.pid(&infra)?);
    for kind in ["net", "ipc", "uts", "pid", "mnt"] {
        let namespace = |pid| std::fs::read_link(format!("/proc/{pid}/ns/{kind}"));
        if (namespace(own)? == namespace(of_pod)?) != shared.contains(kind) {
            return Err(format!("it shares {shared}, and of the new pod: {kind} {:?}", namespace(own)?).into());
        }
    }
    podman.podman(&["exec", "c", "true"]).map(drop)
}
