//! Restores whose memory somebody else brings: `criu lazy-pages`, from the image, from a page server, and from a dump that
//! serves it.
//!
//! A small script stands in the place of criu: for a restore it begins the server of pages in the directory of the image.

use cryonaut_tests::{Engine, Workload, declaration, tls_options};
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Memory that is read, moved, dropped and inherited; that children share; much of it; of several processes.
const WORKLOADS: [&str; 4] = ["memory/changes", "memory/cow_many", "memory/large", "tree/family"];

fn ours() -> String {
    format!("{} criu", env!("CARGO_BIN_EXE_cryonaut"))
}

fn criu(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cryonaut"));
    command.arg("criu").args(arguments);
    command
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("a free port").port()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

fn within<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The script; `before` is run before the server of pages, which gets `options`.
fn script(dir: &Path, before: &str, options: &str) -> PathBuf {
    let (path, ours) = (dir.join("criu"), ours());
    let text = format!(
        "#!/bin/sh\nset -e\naction=$1; shift\n[ $action = restore ] || exec {ours} $action \"$@\"\n\
         for word; do [ \"$before\" != --images-dir ] || images=$word; before=$word; done\n\
         {before}\n\
         {ours} lazy-pages --no-default-config --daemon -v4 -o lazy.log -D $images {options}\n\
         exec {ours} restore \"$@\" --lazy-pages\n"
    );
    fs::write(&path, text).expect("a script");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it can be run");
    path
}

fn round_trip(name: &str, before: &str, options: &str) {
    let dir = TempDir::new().expect("a directory");
    let engine = Engine::Criu(script(dir.path(), before, options));
    let found = declaration(name).expect("there is such a workload");
    let mut workload = Workload::start_with(found, (engine.clone(), engine), false).expect("it starts");
    let logs = |workload: &Workload| {
        ["lazy.log", "server.log", "restore.log"]
            .map(|name| fs::read_to_string(workload.images().join(name)).unwrap_or_default())
            .join("\n")
    };
    workload.checkpoint().expect("a dump");
    workload.restore().unwrap_or_else(|failure| panic!("{failure}\n{}", logs(&workload)));
    let images = workload.images();
    workload.await_memory().unwrap_or_else(|failure| panic!("{failure}\n{}", logs(&workload)));
    // Another dump waits for the memory, and is as good.
    within("the server says that all is there", || {
        fs::read_to_string(images.join("lazy.log")).ok().filter(|log| log.contains("All memory is there"))
    });
    within("the server takes the name of its socket with it", || {
        (!images.join("lazy-pages.socket").exists()).then_some(())
    });
    workload.checkpoint().expect("another dump");
    workload.restore().unwrap_or_else(|failure| panic!("{failure}\n{}", logs(&workload)));
    workload.finish().expect("its own checks");
}

#[test]
fn from_the_image() {
    WORKLOADS.iter().for_each(|name| round_trip(name, "", ""));
}

fn through_a_server(names: &[&str], options: &str) {
    for name in names {
        let port = free_port();
        let before = format!(
            "{} page-server --no-default-config --daemon -v4 -o server.log -D $images --address 127.0.0.1 --port {port} \
             --lazy-pages {options}",
            ours()
        );
        round_trip(name, &before, &format!("--page-server --address 127.0.0.1 --port {port} {options}"));
    }
}

#[test]
fn from_a_page_server() {
    through_a_server(&WORKLOADS, "");
}

#[test]
fn from_a_page_server_under_tls() {
    let dir = TempDir::new().expect("a directory");
    through_a_server(&["memory/changes"], &tls_options(dir.path()));
}

/// Who brings the memory out of an image is killed: another takes over, and nothing is lost.
#[test]
fn who_brings_memory_is_killed_and_another_goes_on() {
    let dir = TempDir::new().expect("a directory");
    let engine = Engine::Criu(script(dir.path(), "", "--pidfile lazy.pid"));
    for name in ["memory/large", "memory/changes"] {
        let found = declaration(name).expect("there is such a workload");
        let mut workload = Workload::start_with(found, (engine.clone(), engine.clone()), false).expect("it starts");
        workload.checkpoint().expect("a dump");
        workload.restore().expect("a restore");
        end(&fs::read_to_string(workload.images().join("lazy.pid")).expect("the pidfile"));
        workload.finish().expect("its own checks");
    }
}

/// Stands between a server of pages and its page server; of what comes back it lets so many bytes through. Then it hangs
/// up, or if it `stalls`, when who asks does.
fn relay(listener: TcpListener, server: u16, most: u64, stalls: bool) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let (asks, _) = listener.accept().expect("a connection");
        let answers = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, server)).expect("the server");
        let (mut questions, mut to) = (asks.try_clone().expect("a copy"), answers.try_clone().expect("a copy"));
        let asking = std::thread::spawn(move || {
            let _ = std::io::copy(&mut questions, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
        let _ = std::io::copy(&mut answers.take(most), &mut &asks);
        if stalls {
            let _ = asking.join();
        }
        let _ = asks.shutdown(std::net::Shutdown::Both);
    })
}

/// A page server that is gone in the middle, or with `stalls` says nothing more, and then who asks it is killed: the tree is
/// ended, and whoever waits for any of it is told.
fn server_dies(most: u64, stalls: bool) -> (Output, Output, Workload) {
    let mut workload = Workload::start("memory/large").expect("it starts");
    let dir = TempDir::new().expect("a directory");
    let images = dir.path().join("images");
    fs::create_dir(&images).expect("a directory");
    let directory = images.display().to_string();
    let root = workload.pid().as_raw_nonzero().to_string();
    let dumped = criu(&["dump", "--no-default-config", "-t", &root, "-D", &directory]).output().expect("it runs");
    assert!(dumped.status.success(), "{}", told(&dumped));
    workload.collect();
    let (port, listener) = (free_port(), TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
    let between = listener.local_addr().expect("it has one").port().to_string();
    let mut server = criu(&["page-server", "--no-default-config", "--lazy-pages", "-D", &directory])
        .args(["--address", "127.0.0.1", "--port", &port.to_string(), "--status-fd", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    server.stdout.take().expect("it is piped").read_exact(&mut [0]).expect("it is ready");
    let relay = relay(listener, port, most, stalls);
    let mut lazy = criu(&["lazy-pages", "--no-default-config", "-D", &directory, "--status-fd", "1"])
        .args(["--page-server", "--address", "127.0.0.1", "--port", &between])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    lazy.stdout.as_mut().expect("it is piped").read_exact(&mut [0]).expect("it is ready");
    let restored = criu(&["restore", "--no-default-config", "-D", &directory, "--lazy-pages"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    if stalls {
        within("the tree runs, and waits", || workload.misses_memory().then_some(()));
        std::thread::sleep(Duration::from_millis(500));
        lazy.kill().expect("it is there");
    }
    let restored = restored.wait_with_output().expect("it ends");
    let lazy = lazy.wait_with_output().expect("it ends");
    relay.join().expect("it went well");
    let _ = server.wait();
    (restored, lazy, workload)
}

#[test]
fn a_page_server_that_dies_ends_the_tree() {
    // Before the first page, in the middle, and near the end.
    for most in [0, 8 << 20, 24 << 20] {
        let (restored, lazy, workload) = server_dies(most, false);
        assert!(!lazy.status.success() && told(&lazy).contains("page server"), "{most}: {}", told(&lazy));
        assert!(!restored.status.success(), "{most}: {}", told(&restored));
        let why = told(&restored);
        assert!(why.contains("page server") || why.contains("log of criu lazy-pages"), "{most}: {why}");
        assert!(!workload.is_there(), "{most}: the tree goes on");
    }
}

#[test]
fn who_asks_a_page_server_is_killed_and_the_tree_ends() {
    let (restored, lazy, workload) = server_dies(2 << 20, true);
    assert!(!restored.status.success(), "{}", told(&restored));
    assert!(told(&lazy).contains("was killed") && told(&lazy).contains("the tree is ended"), "{}", told(&lazy));
    within("the tree ends", || (!workload.is_there()).then_some(()));
}

#[test]
fn a_restore_without_a_server_says_so() {
    let dir = TempDir::new().expect("a directory");
    let workload = Workload::start("memory/anon_private").expect("it starts");
    let root = workload.pid().as_raw_nonzero().to_string();
    let directory = dir.path().display().to_string();
    let dumped = criu(&["dump", "--no-default-config", "-R", "-t", &root, "-D", &directory]).output().expect("it runs");
    assert!(dumped.status.success(), "{}", told(&dumped));
    let restored = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", env!("CARGO_BIN_EXE_cryonaut"), "criu", "restore"])
        .args(["--no-default-config", "-D", &directory, "--lazy-pages"])
        .output()
        .expect("it runs");
    assert!(!restored.status.success() && told(&restored).contains("criu lazy-pages"), "{}", told(&restored));
    workload.finish().expect("its own checks");
}

/// Holds 32 MiB, each page of which it knows, looks at a few of them at a time, and tells what it has found with a number.
/// It is the init of a pid namespace, so that it can be in two places.
const HOLDER: &str = r#"$| = 1; my $pages = 8192;
    my $memory = join '', map { pack('N', $_) x 1024 } 1..$pages;
    my ($n, $random) = (0, 1);
    while (1) {
        my $well = 1;
        for (1..32) {
            $random = ($random * 1103515245 + 12345) & 0x7fffffff;
            my $page = ($random >> 8) % $pages;
            $well = 0 if substr($memory, $page * 4096 + 4 * ($random % 1024), 4) ne pack('N', $page + 1);
        }
        $n++;
        open my $out, '>>', $ARGV[0]; print $out ($well ? 'well' : 'lost'), " $n\n"; close $out;
        select undef, undef, undef, 0.01;
    }"#;

/// A holder of memory in a pid namespace of its own.
struct Holder {
    said: PathBuf,
    launcher: Child,
    init: String,
}

impl Holder {
    fn start(dir: &Path) -> Holder {
        let said = dir.join("said");
        let mut command = Command::new("setsid");
        command.args(["unshare", "--pid", "--ipc", "--fork", "setsid", "perl", "-e", HOLDER]).arg(&said);
        let null = Stdio::null;
        let launcher = command.stdin(null()).stdout(null()).stderr(null()).spawn().expect("unshare(1)");
        within("it begins", || last(&said));
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", launcher.id())).expect("its children");
        let init = children.split_whitespace().next().expect("an init").to_owned();
        Holder { said, launcher, init }
    }

    fn goes_on(&self, more: u64) {
        let before = last(&self.said).expect("a line");
        within("it goes on", || last(&self.said).filter(|now| *now >= before + more));
    }

    fn ends(&mut self) {
        within("it ends", || self.launcher.try_wait().expect("a status"));
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        end(&self.init);
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
    }
}

fn end(pid: &str) {
    let pid = pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
    let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
}

/// The number of the last whole line; all must have found everything well.
fn last(said: &Path) -> Option<u64> {
    let text = fs::read_to_string(said).ok()?;
    let whole = &text[..text.rfind('\n')?];
    assert!(!whole.contains("lost"), "memory was lost");
    whole.lines().last()?.split_once(' ')?.1.parse().ok()
}

/// A dump that serves pages, when it is ready to, and its port.
fn dump_lazily(holder: &Holder, images: &Path, options: &[String]) -> (Child, String) {
    let port = free_port().to_string();
    let directory = images.display().to_string();
    let mut dump =
        criu(&["dump", "--no-default-config", "-t", &holder.init, "-D", &directory, "-v4", "-o", "dump.log"])
            .args(["--lazy-pages", "--address", "127.0.0.1", "--port", &port, "--status-fd", "1"])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
    if dump.stdout.take().expect("it is piped").read_exact(&mut [0]).is_err() {
        panic!("{}", told(&dump.wait_with_output().expect("it ends")));
    }
    (dump, port)
}

/// The server of pages that asks a dump, when it is ready.
fn lazy_pages(images: &Path, port: &str, options: &[String]) -> Child {
    let directory = images.display().to_string();
    let mut lazy = criu(&["lazy-pages", "--no-default-config", "-D", &directory, "-v4", "-o", "lazy.log"])
        .args(["--page-server", "--address", "127.0.0.1", "--port", port, "--status-fd", "1"])
        .args(options)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    lazy.stdout.as_mut().expect("it is piped").read_exact(&mut [0]).expect("it is ready");
    lazy
}

fn restore_lazily(images: &Path) -> String {
    let (directory, pidfile) = (images.display().to_string(), images.join("pid"));
    let restored = criu(&["restore", "--no-default-config", "-d", "-D", &directory, "--lazy-pages", "-v4"])
        .args(["-o", "restore.log", "--pidfile", "pid"])
        .output()
        .expect("it runs");
    assert!(restored.status.success(), "{}", told(&restored));
    fs::read_to_string(pidfile).expect("the pidfile")
}

fn handed_over(options: &[String]) {
    let dir = TempDir::new().expect("a directory");
    let (there, here) = (dir.path().join("there"), dir.path().join("here"));
    fs::create_dir(&there).expect("a directory");
    let mut holder = Holder::start(dir.path());
    let (dump, port) = dump_lazily(&holder, &there, options);
    // What has been dumped is brought to the other host; it is little.
    let copied = Command::new("cp").args(["-a"]).args([&there, &here]).status().expect("it runs");
    assert!(copied.success());
    let size: u64 = fs::read_dir(&here).expect("files").flatten().map(|file| file.metadata().expect("one").len()).sum();
    assert!(size < 16 << 20, "{size} bytes are in the image");
    let before = last(&holder.said).expect("a line");
    let lazy = lazy_pages(&here, &port, options);
    let init = restore_lazily(&here);
    holder.goes_on(5);
    let lazy = lazy.wait_with_output().expect("it ends");
    assert!(lazy.status.success(), "{}", told(&lazy));
    let dump = dump.wait_with_output().expect("it ends");
    assert!(dump.status.success(), "{}", told(&dump));
    holder.ends();
    holder.init = init;
    holder.goes_on(50);
    let text = fs::read_to_string(&holder.said).expect("what it has said");
    let numbers: Vec<u64> =
        text.lines().map(|line| line.split_once(' ').expect("two words").1.parse().expect("one")).collect();
    assert!(numbers.windows(2).all(|two| two[1] == two[0] + 1), "it has run in two places after {before}");
}

#[test]
fn a_dump_hands_its_tree_over() {
    handed_over(&[]);
}

#[test]
fn a_dump_hands_its_tree_over_under_tls() {
    let dir = TempDir::new().expect("a directory");
    let options: Vec<String> = tls_options(dir.path()).split(' ').map(str::to_owned).collect();
    handed_over(&options);
}

#[test]
fn a_dump_whose_pages_nobody_has_fetched_lets_the_tree_go_on() {
    let dir = TempDir::new().expect("a directory");
    let images = dir.path().join("images");
    fs::create_dir(&images).expect("a directory");
    let holder = Holder::start(dir.path());
    let (dump, port) = dump_lazily(&holder, &images, &[]);
    // Who comes asks for nothing, and is gone.
    let mut socket = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).expect("a connection");
    socket.write_all(&[7, 0, 0, 0]).expect("it takes something");
    drop(socket);
    let dump = dump.wait_with_output().expect("it ends");
    assert!(!dump.status.success() && told(&dump).contains("page server 127.0.0.1"), "{}", told(&dump));
    assert!(File::open(images.join("inventory.img")).is_err(), "what lacks its memory is no image");
    holder.goes_on(5);
}

#[test]
fn who_asks_for_pages_is_killed_and_the_tree_goes_on_where_it_was() {
    let dir = TempDir::new().expect("a directory");
    let images = dir.path().join("images");
    fs::create_dir(&images).expect("a directory");
    let holder = Holder::start(dir.path());
    let (dump, port) = dump_lazily(&holder, &images, &[]);
    let mut lazy = lazy_pages(&images, &port, &[]);
    lazy.kill().expect("it is there");
    let _ = lazy.wait();
    let restored = criu(&["restore", "--no-default-config", "-d", "-D", &images.display().to_string(), "--lazy-pages"])
        .output()
        .expect("it runs");
    assert!(!restored.status.success(), "{}", told(&restored));
    let dump = dump.wait_with_output().expect("it ends");
    assert!(!dump.status.success(), "{}", told(&dump));
    holder.goes_on(5);
}
