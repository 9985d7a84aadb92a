//! Programs that are kept in containers, in the middle of their work.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use super::podman::{IMAGE, Podman};
use super::surroundings::Surroundings;
use super::{Host, LIMIT, Test, test};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test("redis", redis),
        test("nginx", nginx),
        test("two_versions", two_versions),
        test("python_outward", python_outward),
        test("postgresql", postgresql),
        test("inotify", inotify),
    ]
}

/// One that was free a moment ago.
pub(super) fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Something that is tried until it works.
fn soon<T>(what: &str, mut attempt: impl FnMut() -> Result<T, Failed>) -> Result<T, Failed> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match attempt() {
            Ok(made) => return Ok(made),
            Err(error) if Instant::now() > deadline => {
                return Err(format!("{what}: {}", error.message().unwrap_or_default()).into());
            }
            Err(_) => sleep(Duration::from_millis(20)),
        }
    }
}

/// A container of an image with its program. Its connections are kept.
pub(super) struct Served<'h> {
    pub(super) podman: Podman<'h>,
}

impl<'h> Served<'h> {
    pub(super) fn start(podman: Podman<'h>, options: &[&str], command: &[&str]) -> Result<Self, Failed> {
        let how = ["run", "--detach", "--name", "c"];
        podman.podman(&[&how, options, &[IMAGE], command].concat())?;
        Ok(Served { podman })
    }

    pub(super) fn checkpoint(&self) -> Result<(), Failed> {
        self.podman.checkpoint("c", &["--tcp-established"]).map(drop)
    }

    pub(super) fn restore(&self) -> Result<(), Failed> {
        self.podman.restore(&["--tcp-established", "c"]).map(drop)
    }

    fn carry(&self) -> Result<(), Failed> {
        let before = Surroundings::of(self.podman.pid("c")?)?;
        self.checkpoint()?;
        self.restore()?;
        before.same_for(self.podman.pid("c")?)
    }

    fn address(&self) -> Result<String, Failed> {
        self.podman.inspect("c", "{{.NetworkSettings.IPAddress}}")
    }
}

/// A client of redis.
pub(super) struct Client(BufReader<TcpStream>);

impl Client {
    /// Its own address.
    pub(super) fn address(&self) -> std::io::Result<SocketAddr> {
        self.0.get_ref().local_addr()
    }

    pub(super) fn connect(address: &str, port: u16) -> Result<Self, Failed> {
        let connect = || Ok(TcpStream::connect((address, port))?);
        let stream = soon("nobody listens", connect)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Client(BufReader::new(stream)))
    }

    fn ask(&mut self, command: &str) -> Result<String, Failed> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    pub(super) fn expect(&mut self, command: &str, wanted: &str) -> Result<(), Failed> {
        let told = self.ask(command)?;
        match told == wanted {
            true => Ok(()),
            false => Err(format!("redis answers '{command}' with '{told}', not '{wanted}'").into()),
        }
    }
}

/// Redis, and how it is told to serve.
pub(super) const REDIS: [&str; 7] =
    ["/usr/bin/redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""];

/// Redis, published like this.
pub(super) fn redis_at<'h>(host: &'h Host, published: &str) -> Result<Served<'h>, Failed> {
    let podman = Podman::with(host, &host.root_with(&[Path::new(REDIS[0])], &[])?)?;
    Served::start(podman, &["--publish", published], &REDIS)
}

/// With data, a client at the container's own address that stays connected, and one that comes by the published port.
fn redis(host: &Host) -> Result<(), Failed> {
    let port = free_port()?;
    let served = redis_at(host, &format!("127.0.0.1:{port}:6379"))?;
    let mut kept = Client::connect(&served.address()?, 6379)?;
    for key in 0..1000 {
        kept.expect(&format!("SET {key} {}", "data".repeat(100)), "+OK")?;
    }
    for round in 1..=2 {
        served.carry()?;
        kept.expect("INCR rounds", &format!(":{round}"))?;
        Client::connect("127.0.0.1", port)?.expect("DBSIZE", ":1001")?;
    }
    kept.expect("STRLEN 999", ":400")
}

/// A server with workers of another user.
fn nginx_of<'h>(host: &'h Host, options: &[&str]) -> Result<Served<'h>, Failed> {
    let root = host.root_with(&[Path::new("/usr/sbin/nginx")], &[])?;
    for directory in ["var/log/nginx", "var/lib/nginx", "web"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::write(root.join("web/small"), "something small")?;
    fs::write(
        root.join("conf"),
        "daemon off; user nobody nogroup; worker_processes 2; pid /run/nginx.pid; error_log stderr;\n\
         events { worker_connections 256; }\n\
         http { access_log off; server { listen 80; root /web; } }\n",
    )?;
    Served::start(Podman::with(host, &root)?, options, &["/usr/sbin/nginx", "-c", "/conf"])
}

fn get(address: &str, port: u16) -> Result<String, Failed> {
    let mut stream = TcpStream::connect((address, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(b"GET /small HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.ends_with("something small") {
        true => Ok(answer),
        false => Err(format!("nginx answers '{answer}'").into()),
    }
}

/// Under load until the checkpoint and from the restore on, at its published port.
fn nginx(host: &Host) -> Result<(), Failed> {
    let port = free_port()?;
    let served = nginx_of(host, &["--publish", &format!("127.0.0.1:{port}:80")])?;
    soon("nginx does not answer", || get("127.0.0.1", port))?;
    for _ in 0..2 {
        let (stop, answered) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..4 {
                // Who comes while nobody is there is turned away.
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        answered.fetch_or(get("127.0.0.1", port).is_ok(), Ordering::Relaxed);
                    }
                });
            }
            sleep(Duration::from_millis(200));
            let carried = served.carry();
            answered.store(false, Ordering::Relaxed);
            let again = soon("nginx does not answer", || {
                answered.load(Ordering::Relaxed).then_some(()).ok_or_else(|| "no client has an answer".into())
            });
            stop.store(true, Ordering::Relaxed);
            carried.and(again)
        })?;
        get("127.0.0.1", port)?;
    }
    Ok(())
}

/// As a user tries it: away and back; then a second version is started, and the first restored beside it.
fn two_versions(host: &Host) -> Result<(), Failed> {
    let served = nginx_of(host, &[])?;
    let podman = &served.podman;
    soon("nginx does not answer", || get(&served.address()?, 80))?;
    let archive = host.at("c.tar.gz").display().to_string();
    podman.checkpoint("c", &["--export", &archive])?;
    podman.podman(&["rm", "c"])?;
    podman.restore(&["--import", &archive])?;
    get(&served.address()?, 80)?;
    podman.checkpoint("c", &["--export", &archive])?;
    podman.podman(&["rm", "c"])?;
    podman.podman(&["run", "--detach", "--name", "c", IMAGE, "/usr/sbin/nginx", "-c", "/conf"])?;
    soon("the second version does not answer", || get(&served.address()?, 80))?;
    podman.restore(&["--import", &archive, "--name", "first", "--ignore-static-ip", "--ignore-static-mac"])?;
    get(&podman.inspect("first", "{{.NetworkSettings.IPAddress}}")?, 80)?;
    get(&served.address()?, 80).map(drop)
}

/// Python, and where it has its library.
fn python() -> Result<(PathBuf, PathBuf), Failed> {
    let python = fs::canonicalize("/usr/bin/python3")?;
    let library = Path::new("/usr/lib").join(python.file_name().unwrap_or_default());
    Ok((python, library))
}

/// Says numbers to a server at the address and port that it is given, each when the one before has been repeated.
const COUNTS_ALOUD: &str = "
import socket, sys
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
answers = peer.makefile('r')
number = 0
while True:
    number += 1
    peer.sendall(b'%d\\n' % number)
    assert answers.readline() == '%d\\n' % number
";

/// What a server hears from one who counts aloud.
pub(super) struct Aloud {
    lines: BufReader<TcpStream>,
    last: usize,
}

impl Aloud {
    /// Starts a container that counts aloud to who listens here, at an address that may depend on podman; with its address
    /// as it is seen here.
    pub(super) fn start<'h>(
        host: &'h Host,
        listener: &TcpListener,
        address: impl FnOnce(&Podman<'_>) -> Result<String, Failed>,
    ) -> Result<(Served<'h>, Aloud, SocketAddr), Failed> {
        let (python, library) = python()?;
        let root = host.root_with(&[&python], &[&library])?;
        fs::write(root.join("program.py"), COUNTS_ALOUD)?;
        let podman = Podman::with(host, &root)?;
        let (address, port) = (address(&podman)?, listener.local_addr()?.port().to_string());
        let served = Served::start(podman, &[], &[&python.display().to_string(), "/program.py", &address, &port])?;
        let (stream, from) = listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok((served, Aloud { lines: BufReader::new(stream), last: 0 }, from))
    }

    /// Hears the next number, and repeats it.
    pub(super) fn next(&mut self) -> Result<(), Failed> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        self.last += 1;
        if line.trim() != self.last.to_string() {
            return Err(format!("python says '{}', not {}", line.trim(), self.last).into());
        }
        Ok(self.lines.get_mut().write_all(line.as_bytes())?)
    }
}

/// A connection that the container has made, to a server outside.
fn python_outward(host: &Host) -> Result<(), Failed> {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    // The bridge of podman's default network has this host at its first address.
    let gateway = |podman: &Podman<'_>| {
        podman.podman(&["network", "inspect", "podman", "--format", "{{(index .Subnets 0).Gateway}}"])
    };
    let (served, mut aloud, _) = Aloud::start(host, &listener, gateway)?;
    (0..10).try_for_each(|_| aloud.next())?;
    for _ in 0..2 {
        served.carry()?;
        (0..10).try_for_each(|_| aloud.next())?;
    }
    Ok(())
}

/// The server and pgbench in one container, and the data right in the end.
const POSTGRES: &str = "
trap 'exit 1' TERM
BIN/postgres -D /data -k /tmp -c listen_addresses= -c fsync=off &
until BIN/psql -h /tmp -d postgres -c '' >/dev/null 2>&1; do sleep 0.05; done
BIN/pgbench -h /tmp -i -q postgres && echo ready >/data/ready
BIN/pgbench -h /tmp -c 4 -T 3 postgres >/data/told 2>&1 || echo failed >>/data/told
BIN/psql -h /tmp -d postgres -X -A -t -c 'SELECT (SELECT sum(abalance) FROM pgbench_accounts) =
    (SELECT sum(delta) FROM pgbench_history)' >/data/sums
sleep 1000
";

fn postgresql(host: &Host) -> Result<(), Failed> {
    let missing = || Failed::from("postgresql is missing: scripts/test-deps.sh installs it");
    let versions = fs::read_dir("/usr/lib/postgresql").map_err(|_| missing())?;
    let home = versions.flatten().map(|version| version.path()).find(|home| home.join("bin/pgbench").exists());
    let home = home.ok_or_else(missing)?;
    let bin = home.join("bin");
    let share = Path::new("/usr/share/postgresql").join(home.file_name().unwrap_or_default());
    let programs = ["postgres", "psql", "pgbench", "initdb"].map(|name| bin.join(name));
    let root = host.root_with(&programs.each_ref().map(PathBuf::as_path), &[&home.join("lib"), &share])?;
    let data = host.at("data");
    fs::create_dir(&data)?;
    rustix::fs::chmod(&data, rustix::fs::Mode::from_raw_mode(0o700))?;
    rustix::fs::chown(&data, Some(rustix::fs::Uid::from_raw(65534)), Some(rustix::fs::Gid::from_raw(65534)))?;
    let podman = Podman::with(host, &root)?;
    let volume = format!("{}:/data", data.display());
    let how = ["--user", "nobody", "--volume", &volume, "--env", "PGTZ=GMT", "--network", "none"];
    let initdb = format!("{}/initdb -A trust --no-sync --locale=C -E UTF8 -D /data", bin.display());
    podman.podman(&[&["run", "--rm"], &how[..], &[IMAGE, "sh", "-c", &initdb]].concat())?;
    let served = Served::start(podman, &how, &["sh", "-c", &POSTGRES.replace("BIN", &bin.display().to_string())])?;
    let file = |name: &str| {
        let text = fs::read_to_string(data.join(name)).unwrap_or_default();
        if text.is_empty() { Err(Failed::from(format!("{name} is not there"))) } else { Ok(text) }
    };
    soon("pgbench does not begin", || file("ready"))?;
    for _ in 0..2 {
        sleep(Duration::from_millis(300));
        served.carry()?;
    }
    let sums = soon("pgbench does not end", || file("sums"))?;
    let told = file("told")?;
    match sums.trim() == "t" && told.contains("failed transactions: 0 ") {
        true => Ok(()),
        false => Err(format!("the sums are {sums}: {told}").into()),
    }
}

const WATCH: &str = "
import ctypes, os
libc = ctypes.CDLL(None)
watches = libc.inotify_init()
IN_MODIFY = 2
assert libc.inotify_add_watch(watches, b'/watched', IN_MODIFY) == 1
while os.read(watches, 4096):
    open('/state/events', 'a').write('event\\n')
";

/// A watch of a file on the overlay of the root.
fn inotify(host: &Host) -> Result<(), Failed> {
    let (python, library) = python()?;
    let foreign = fs::read_dir(library.join("lib-dynload"))?.flatten().map(|file| file.path());
    let foreign = foreign.into_iter().find(|path| path.to_string_lossy().contains("_ctypes.")).ok_or("no ctypes")?;
    let root = host.root_with(&[&python, &foreign], &[&library])?;
    fs::write(root.join("watch.py"), WATCH)?;
    fs::write(root.join("watched"), "")?;
    let podman = Podman::with(host, &root)?;
    let script = format!("exec {} /watch.py", python.display());
    podman.start("c", &["--network", "none"], &script)?;
    let events = || fs::read_to_string(host.at("state/events")).unwrap_or_default().lines().count();
    let touch = |least: usize| {
        soon("no event", || {
            podman.podman(&["exec", "c", "sh", "-c", "echo more >>/watched"])?;
            if events() >= least { Ok(()) } else { Err(format!("{} events", events()).into()) }
        })
    };
    touch(1)?;
    for _ in 0..2 {
        podman.checkpoint("c", &[])?;
        podman.restore(&["c"])?;
        touch(events() + 1)?;
    }
    Ok(())
}
