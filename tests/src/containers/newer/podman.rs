//! podman 5 over crun and over runc.

use libtest_mimic::Failed;

use super::super::COUNTER;
use super::{Body, NewerHost};

pub const TESTS: &[(&str, &str, Body)] = &[
    ("crun_v2", "v2", |host| flows(&Podman { host, runtime: "crun" })),
    ("runc_hybrid", "hybrid", |host| flows(&Podman { host, runtime: "runc" })),
    ("runc_v2", "v2", |host| flows(&Podman { host, runtime: "runc" })),
    ("crun_kinds", "v2", |host| kinds(&Podman { host, runtime: "crun" })),
    ("runc_kinds", "hybrid", |host| kinds(&Podman { host, runtime: "runc" })),
    ("crun_pod", "v2", |host| pod(&Podman { host, runtime: "crun" })),
    ("runc_pod", "hybrid", |host| pod(&Podman { host, runtime: "runc" })),
    ("crun_pre_dump", "v2", |host| pre_dump(&Podman { host, runtime: "crun" })),
    ("runc_pre_dump", "hybrid", |host| pre_dump(&Podman { host, runtime: "runc" })),
    ("crun_connection", "v2", |host| connection(&Podman { host, runtime: "crun" })),
    ("runc_connection", "hybrid", |host| connection(&Podman { host, runtime: "runc" })),
];

#[derive(Debug)]
struct Podman<'h> {
    host: &'h NewerHost,
    runtime: &'static str,
}

impl Podman<'_> {
    fn podman(&self, arguments: &str) -> Result<String, Failed> {
        self.host.run(&format!("podman --runtime {} {arguments}", self.runtime))
    }

    /// Starts a container that counts from 1.
    fn start(&self, options: &str) -> Result<(), Failed> {
        // In place: others may have it mounted.
        self.host.run(": >/state/count; chmod 666 /state/count")?;
        self.podman(&format!("run --detach --name c -v /state:/state {options} busybox sh -c '{COUNTER}'"))?;
        self.host.count.goes_on(5)
    }

    fn end(&self) -> Result<(), Failed> {
        self.podman("rm --all --force --time 0").map(drop)
    }

    /// Where the container's first process is among the cgroups.
    fn cgroups(&self) -> Result<String, Failed> {
        let pid = self.podman("inspect c --format '{{.State.Pid}}'")?;
        self.host.run(&format!("cat /proc/{pid}/cgroup"))
    }

    /// Checkpointed and restored; it stays in its cgroups.
    fn carry(&self) -> Result<(), Failed> {
        let before = self.cgroups()?;
        self.podman("container checkpoint c")?;
        self.host.count.stands_still()?;
        self.podman("container restore c")?;
        self.host.count.goes_on(5)?;
        let after = self.cgroups()?;
        match before == after {
            true => Ok(()),
            false => Err(format!("it was in the cgroups\n{before}\nand is in\n{after}").into()),
        }
    }
}

/// Plain, twice; left running; exported, also under another name; with a terminal, and in a bridged network.
fn flows(podman: &Podman<'_>) -> Result<(), Failed> {
    let count = &podman.host.count;
    podman.start("--network none")?;
    podman.carry()?;
    podman.carry()?;
    podman.podman("exec c true")?;
    podman.podman("container checkpoint --leave-running --print-stats c")?;
    count.goes_on(5)?;
    podman.podman("container checkpoint --export /c.tar.zst --compress zstd c")?;
    podman.end()?;
    podman.podman("container restore --import /c.tar.zst --print-stats")?;
    count.goes_on(5)?;
    podman.end()?;
    podman.host.run(": >/state/count")?;
    // As another, which begins where the image was made: not where the first has counted to.
    podman.podman("container restore --import /c.tar.zst --name copy")?;
    count.wait_for(3)?;
    podman.end()?;
    for options in ["--tty --network none", "--network podman"] {
        podman.start(options)?;
        podman.carry()?;
        podman.end()?;
    }
    Ok(())
}

/// What containers may be like.
fn kinds(podman: &Podman<'_>) -> Result<(), Failed> {
    const KINDS: [&str; 8] = [
        "--network none --user 1000",
        "--network none --read-only --tmpfs /x --cap-drop all --hostname other",
        "--network none --volume some:/some --init",
        "--network none --privileged",
        "--network host --pid host",
        "--network none --cgroupns host",
        "--network none --cgroupns private --security-opt seccomp=unconfined --shm-size 1m",
        "--network none --uidmap 0:10000:5000 --gidmap 0:10000:5000",
    ];
    for kind in KINDS {
        let failed = |e: Failed| format!("{kind}: {}", e.message().unwrap_or_default());
        podman.start(kind).map_err(failed)?;
        podman.carry().map_err(failed)?;
        podman.end()?;
    }
    Ok(())
}

/// Into another pod than it came from, with that one's namespaces.
fn pod(podman: &Podman<'_>) -> Result<(), Failed> {
    podman.podman("pod create --name before --share ipc,net,uts,pid")?;
    podman.start("--pod before")?;
    podman.podman("container checkpoint --export /c.tar.gz --compress gzip c")?;
    podman.podman("pod rm --force --all --time 0")?;
    podman.podman("pod create --name after --share ipc,net,uts,pid")?;
    podman.podman("container restore --import /c.tar.gz --pod after")?;
    podman.host.count.goes_on(5)
}

/// Most of the memory goes ahead, and the rest builds on it.
fn pre_dump(podman: &Podman<'_>) -> Result<(), Failed> {
    podman.start("--network none")?;
    podman.podman("container checkpoint --pre-checkpoint --compress none --export /before.tar c")?;
    podman.host.count.goes_on(5)?;
    podman.podman("container checkpoint --with-previous --compress none --export /c.tar c")?;
    podman.host.count.stands_still()?;
    let parent = podman.host.run("tar -tvf /c.tar | grep -o 'checkpoint/parent -> .*'")?;
    if !parent.ends_with("../pre-checkpoint") {
        return Err(format!("the dump does not build on the one before: {parent}").into());
    }
    podman.end()?;
    podman.podman("container restore --import-previous /before.tar --import /c.tar")?;
    podman.host.count.goes_on(5)
}

/// Clients that talk to a server while that is carried, over the bridge and at its published port; and ones that are sent
/// away.
fn connection(podman: &Podman<'_>) -> Result<(), Failed> {
    podman.podman("run --detach --name s --publish 7778:7777 busybox nc -ll -p 7777 -e cat")?;
    let address = podman.podman("inspect s --format '{{.NetworkSettings.Networks.podman.IPAddress}}'")?;
    let runtime = podman.runtime;
    let carry = |options: &str| {
        format!(
            "podman --runtime {runtime} container checkpoint --tcp-established s &&
             podman --runtime {runtime} container restore {options} s"
        )
    };
    let client = format!(
        "for i in {{1..50}}; do (: >/dev/tcp/{address}/7777) 2>/dev/null && break; sleep 0.1; done; set -e
        exec 7<>/dev/tcp/127.0.0.1/7778; echo one >&7; read -t 5 -u 7 a
        exec 8<>/dev/tcp/{address}/7777; echo two >&8; read -t 5 -u 8 b
        {}
        echo three >&7; read -t 5 -u 7 c; echo four >&8; read -t 5 -u 8 d; echo said $a $b $c $d",
        carry("--tcp-established")
    );
    let said = podman.host.run(&client)?;
    if !said.ends_with("said one two three four") {
        return Err(format!("the clients were told '{said}'").into());
    }
    // runc has no such option.
    if runtime == "runc" {
        return Ok(());
    }
    let client = format!(
        "exec 7<>/dev/tcp/127.0.0.1/7778; echo one >&7; read -t 5 -u 7 a || exit 1
        exec 8<>/dev/tcp/{address}/7777; echo two >&8; read -t 5 -u 8 b || exit 1
        {{ {}; }} || exit 1
        echo five >&7; read -t 5 -u 7 c; test $? -gt 128 && echo nobody tells the first; exec 7>&-
        echo six >&8; read -t 5 -u 8 d; exec 8>&-
        exec 8<>/dev/tcp/{address}/7777; echo three >&8; read -t 5 -u 8 e; echo said $a $b $c $d $e",
        carry("--tcp-close")
    );
    let said = podman.host.run(&client)?;
    match said.ends_with("said one two three") && !said.contains("nobody") {
        true => Ok(()),
        false => Err(format!("the client was told '{said}'").into()),
    }
}
