//! docker: the last version that restores containers with networks of their own, and the newest, which does not.

use libtest_mimic::Failed;

use super::super::COUNTER;
use super::super::surroundings::Surroundings;
use super::{Body, NewerHost};

/// Of 20.10, which Debian 12 has.
pub const TESTS: &[(&str, &str, Body)] = &[
    ("names", "hybrid", |host| names(&Docker::start(host)?)),
    ("kinds", "hybrid", |host| kinds(&Docker::start(host)?)),
    ("redis", "v1", |host| redis(&Docker::start(host)?)),
    ("failures", "hybrid", |host| failures(&Docker::start(host)?)),
];

/// Of the newest.
pub const NEWEST: &[(&str, &str, Body)] = &[("networks", "hybrid", |host| networks(&Docker::start(host)?))];

/// Starts the daemon.
const BEGINNING: &str = include_str!("docker.sh");

/// Waits until its containerd has thrown away what it has been given.
const FORGOTTEN: &str = "while [ -n \"$(ctr --address /run/docker/containerd/containerd.sock --namespace moby content ls -q)\" ]; \
                         do sleep 0.02; done";

/// Containers as they may be like, by their options.
const KINDS: [&str; 7] = [
    "--init --volume some:/some --tmpfs /memory:size=10m",
    "--memory 64m --pids-limit 20 --cpus 0.5 --publish 127.0.0.1:18080:80",
    "--user 1000 --read-only --cap-drop all --security-opt no-new-privileges",
    "--network none --hostname ship --interactive --tty",
    "--network host --pid host --uts host --ipc host",
    "--cgroupns private --security-opt seccomp=unconfined --shm-size 1m --ipc shareable",
    "--sysctl net.ipv4.ip_forward=1 --device /dev/net/tun --log-driver none",
];

#[derive(Debug)]
struct Docker<'h> {
    host: &'h NewerHost,
}

impl<'h> Docker<'h> {
    fn start(host: &'h NewerHost) -> Result<Self, Failed> {
        host.run(BEGINNING)?;
        Ok(Docker { host })
    }

    fn docker(&self, arguments: &str) -> Result<String, Failed> {
        self.host.run(&format!("docker {arguments}"))
    }

    /// Starts a container that counts from 1, after it has done something else.
    fn run(&self, options: &str, first: &str) -> Result<(), Failed> {
        // In place: others may have it mounted.
        self.host.run(": >/state/count; chmod 666 /state/count")?;
        self.docker(&format!("run --detach --name one -v /state:/state {options} busybox sh -c '{first}{COUNTER}'"))?;
        self.host.count.goes_on(5)
    }

    /// Ends the container by a checkpoint of this name.
    fn checkpoint(&self, container: &str, name: &str) -> Result<(), Failed> {
        self.checkpoint_with("", container, name)?;
        self.is_down(container)
    }

    /// Checkpoints it with these options. For some tenths of a second, the daemon's containerd has copies of what is in the
    /// checkpoint, and refuses to take the same once more: neither can it be restored then, nor another be made.
    fn checkpoint_with(&self, options: &str, container: &str, name: &str) -> Result<(), Failed> {
        self.docker(&format!("checkpoint create {options} {container} {name}"))?;
        self.host.run(FORGOTTEN).map(drop)
    }

    /// Waits until the daemon has heard that a container has ended.
    fn is_down(&self, container: &str) -> Result<(), Failed> {
        let asked = format!("docker inspect {container} --format '{{{{.State.Running}}}}'");
        self.host.run(&format!("while [ \"$({asked})\" != false ]; do sleep 0.02; done")).map(drop)
    }

    fn restore(&self, container: &str, name: &str) -> Result<(), Failed> {
        self.docker(&format!("start --checkpoint {name} {container}")).map(drop)
    }

    fn remove(&self, container: &str) -> Result<(), Failed> {
        self.docker(&format!("rm --force {container}")).map(drop)
    }

    /// The container's init, as we see it.
    fn pid(&self, container: &str) -> Result<i32, Failed> {
        let pid = self.docker(&format!("inspect {container} --format '{{{{.State.Pid}}}}'"))?;
        self.host.pid_of(&pid)
    }

    fn surroundings(&self, container: &str) -> Result<Surroundings, Failed> {
        Surroundings::of(self.pid(container)?).map(|all| all.with_new_devices())
    }
}

/// Several checkpoints of one container, each of which it can be started from again; also when they are kept elsewhere.
fn names(docker: &Docker<'_>) -> Result<(), Failed> {
    let count = &docker.host.count;
    docker.run("", "")?;
    let before = docker.surroundings("one")?;
    docker.checkpoint_with("--leave-running", "one", "first")?;
    count.goes_on(5)?;
    docker.checkpoint("one", "second")?;
    count.stands_still()?;
    let second = count.so_far()?;
    // From the second it goes on, and from the first it goes back.
    docker.restore("one", "second")?;
    count.goes_on(5)?;
    before.same_for(docker.pid("one")?)?;
    for name in ["first", "second", "first"] {
        docker.docker("kill one")?;
        docker.is_down("one")?;
        docker.host.run(": >/state/count")?;
        docker.restore("one", name)?;
        let numbers = count.wait_for(3)?;
        let is_later = numbers[0] > second;
        if numbers[1] != numbers[0] + 1 || is_later != (name == "second") || numbers[0] == 1 {
            return Err(format!("from {name} it counts on with {numbers:?}; the second was at {second}").into());
        }
        before.same_for(docker.pid("one")?)?;
    }
    let listed = docker.docker("checkpoint ls one")?;
    if !["first", "second"].iter().all(|name| listed.contains(name)) {
        return Err(format!("docker lists {listed}").into());
    }
    // Docker itself writes checkpoints elsewhere, and takes none from there.
    docker.checkpoint_with("--checkpoint-dir /elsewhere", "one", "third")?;
    docker.is_down("one")?;
    docker.host.run(
        "id=$(docker inspect one --format '{{.ID}}') && mv /elsewhere/third /var/lib/docker/containers/$id/checkpoints",
    )?;
    docker.host.run(": >/state/count")?;
    docker.restore("one", "third")?;
    count.wait_for(3)?;
    docker.docker("exec one true").map(drop)
}

fn kinds(docker: &Docker<'_>) -> Result<(), Failed> {
    for kind in KINDS {
        let carried = || {
            docker.run(kind, "")?;
            let before = docker.surroundings("one")?;
            docker.checkpoint("one", "first")?;
            docker.host.count.stands_still()?;
            docker.restore("one", "first")?;
            docker.host.count.goes_on(5)?;
            before.same_for(docker.pid("one")?)
        };
        carried().map_err(|e: Failed| format!("{kind}: {}", e.message().unwrap_or_default()))?;
        docker.remove("one")?;
    }
    Ok(())
}

/// With data, and clients at its own address and at the published port; then with one that stays connected.
fn redis(docker: &Docker<'_>) -> Result<(), Failed> {
    docker.host.run(
        "set -e; cp -a /busybox /redis
        for file in $(ldd /usr/bin/redis-server | grep -o '/[^ )]*') /usr/bin/redis-server; do
            mkdir -p \"/redis/${file%/*}\"; cp -L $file /redis$file
        done
        tar -C /redis -c . | docker import - redis",
    )?;
    let start = "run --detach --name redis --publish 127.0.0.1:16379:6379 --volume data:/data redis redis-server \
                 --bind 0.0.0.0 --protected-mode no --save '' --dir /data --enable-debug-command yes";
    docker.docker(start)?;
    let address = docker.docker("inspect redis --format '{{.NetworkSettings.IPAddress}}'")?;
    let digest = || {
        let at = |how: &str| docker.host.run(&format!("redis-cli {how} DEBUG DIGEST"));
        let (own, published) = (at(&format!("-h {address}"))?, at("-p 16379")?);
        match own == published {
            true => Ok(own),
            false => Err(Failed::from(format!("at {address} it says {own}, at the published port {published}"))),
        }
    };
    docker.host.run(&format!("until redis-cli -h {address} DEBUG POPULATE 20000; do sleep 0.05; done"))?;
    let (before, around) = (digest()?, docker.surroundings("redis")?);
    for name in ["first", "second"] {
        docker.checkpoint("redis", name)?;
        docker.restore("redis", name)?;
        if digest()? != before {
            return Err("the data are others".into());
        }
        around.same_for(docker.pid("redis")?)?;
    }
    // Docker has no option for that, but what it calls is told by its administrator.
    docker.host.run("echo tcp-established >/etc/criu/runc.conf")?;
    let said = docker.host.run(&format!(
        "exec 8<>/dev/tcp/{address}/6379 && printf 'SET key one\\r\\n' >&8 && read -t 5 -u 8 a || exit 1
        docker checkpoint create redis third >&2 || exit 1
        {FORGOTTEN}
        while [ $(docker inspect redis --format '{{{{.State.Running}}}}') = true ]; do sleep 0.02; done
        docker start --checkpoint third redis >&2 || exit 1
        printf 'GET key\\r\\n' >&8; read -t 20 -u 8 b; read -t 5 -u 8 c; echo $a $b $c | tr -d '\\r'"
    ))?;
    match said.ends_with("+OK $3 one") {
        true => Ok(()),
        false => Err(format!("the client was told '{said}'").into()),
    }
}

/// What cannot be done says so, and leaves the container as it was. Docker tells the number of the error; the cause is in
/// our log.
fn failures(docker: &Docker<'_>) -> Result<(), Failed> {
    let log = "/tmp/criu.log";
    docker.host.run(&format!("echo log-file={log} >/etc/criu/runc.conf"))?;
    let fails = |arguments: &str, with: &str, cause: &str| {
        let failure = match docker.docker(arguments) {
            Ok(_) => return Err(Failed::from(format!("docker {arguments} does not fail"))),
            Err(failure) => failure.message().unwrap_or_default().to_owned(),
        };
        let told = docker.host.run(&format!("grep -c ^ <<<\"$(grep Error {log})\"; grep Error {log}"))?;
        match failure.contains(with) && told.starts_with('1') && told.contains(cause) {
            true => Ok(()),
            false => Err(format!("docker {arguments}: {failure}\nand the log: {told}").into()),
        }
    };
    docker.run("--volume data:/data", "exec 7>/data/open; nc -l -p 7777 -e cat & ")?;
    let address = docker.docker("inspect one --format '{{.NetworkSettings.IPAddress}}'")?;
    // It goes on when it is refused.
    let client = format!("exec 8<>/dev/tcp/{address}/7777; sleep 1000");
    docker.host.run(&format!("(setsid bash -c '{client}' >/dev/null 2>&1 </dev/null & echo $! >/client)"))?;
    docker.host.run("until docker exec one netstat -tn | grep -q ESTABLISHED; do sleep 0.05; done")?;
    fails("checkpoint create one first", "criu failed", "--tcp-established")?;
    docker.host.count.goes_on(5)?;
    docker.host.run("kill $(cat /client); while docker exec one netstat -tn | grep 7777; do sleep 0.05; done")?;
    docker.checkpoint("one", "second")?;
    // One that cannot be restored can be as soon as the cause is gone.
    docker.host.run("mv /var/lib/docker/volumes/data/_data/open /open")?;
    fails("start --checkpoint second one", "criu failed: type NOTIFY errno 2", "/data/open")?;
    docker.host.count.stands_still()?;
    docker.host.run("mv /open /var/lib/docker/volumes/data/_data/open")?;
    docker.restore("one", "second")?;
    docker.host.count.goes_on(5)?;
    // And started from its beginning.
    docker.docker("kill one")?;
    docker.is_down("one")?;
    docker.host.run(": >/state/count")?;
    docker.docker("start one")?;
    docker.host.count.goes_on(5)
}

/// A container in the network of the host is carried. For all others the daemon looks for the network of process 0 before
/// it calls anybody to restore them.
fn networks(docker: &Docker<'_>) -> Result<(), Failed> {
    docker.run("--network host", "")?;
    let before = docker.surroundings("one")?;
    for name in ["first", "second"] {
        docker.checkpoint("one", name)?;
        docker.host.count.stands_still()?;
        docker.restore("one", name)?;
        docker.host.count.goes_on(5)?;
        before.same_for(docker.pid("one")?)?;
    }
    docker.remove("one")?;
    for network in ["none", "bridge"] {
        docker.run(&format!("--network {network}"), "")?;
        docker.checkpoint_with("--leave-running", "one", "first")?;
        docker.host.count.goes_on(5)?;
        docker.checkpoint("one", "second")?;
        docker.host.run("echo log-file=/tmp/called >/etc/criu/runc.conf")?;
        let failure = docker.restore("one", "second").err().and_then(|e| e.message().map(str::to_owned));
        docker.host.run("[ ! -e /tmp/called ] && : >/etc/criu/runc.conf")?;
        if failure.as_ref().is_none_or(|failure| !failure.contains("/proc/0/ns/net")) {
            return Err(format!("network {network}: {failure:?}").into());
        }
        docker.remove("one")?;
    }
    Ok(())
}
