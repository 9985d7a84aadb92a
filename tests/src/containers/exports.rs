//! The options of `podman container checkpoint` and `podman container restore`: archives, images, other names, other
//! hosts.

use std::fs::{self, File};
use std::path::Path;

use libtest_mimic::Failed;
use rustix::fs::FlockOperation;

use super::podman::Podman;
use super::{COUNTER, Host, Test, test};

pub(super) fn tests() -> Vec<Test> {
    let archived = |(name, options, magic): &(&'static str, &'static [&'static str], &'static [u8])| -> Test {
        let (options, magic) = (*options, *magic);
        (*name, Box::new(move |host: &Host| archived(host, options, magic)))
    };
    let others = [
        test("leave_running", leave_running),
        test("pre_checkpoint", pre_checkpoint),
        test("another_name", another_name),
        test("kept", kept),
        test("file_locks", file_locks),
        test("image", image),
        test("another_host", another_host),
        test("refused", refused),
    ];
    ARCHIVES.iter().map(archived).chain(others).collect()
}

/// How an archive is made, and how it begins.
const ARCHIVES: &[(&str, &[&str], &[u8])] = &[
    ("uncompressed", &["--compress", "none"], b""),
    ("gzip", &["--compress", "gzip"], &[0x1f, 0x8b]),
    ("zstd", &["--compress", "zstd"], &[0x28, 0xb5, 0x2f, 0xfd]),
    ("without_files", &["--compress", "none", "--ignore-rootfs", "--ignore-volumes"], b""),
];
/// What podman tells of a checkpoint and of a restore, and what it must not be less than.
const DUMPED: &[(&str, u64)] = &[("frozen_time", 1), ("memdump_time", 1), ("pages_scanned", 10), ("pages_written", 10)];
const RESTORED: &[(&str, u64)] = &[("forking_time", 1), ("restore_time", 1), ("pages_restored", 10)];

fn check_statistics(told: &str, least: &[(&str, u64)]) -> Result<(), Failed> {
    for (name, least) in least {
        let value = told.split_once(&format!("\"{name}\":")).and_then(|(_, rest)| rest.split([',', '\n']).next());
        let value: u64 = value.and_then(|text| text.trim().parse().ok()).unwrap_or_default();
        // No moment of this takes longer than ten seconds, and so small a program has no more pages.
        if !(*least..10_000_000).contains(&value) {
            return Err(format!("{name} is {value} in the statistics: {told}").into());
        }
    }
    Ok(())
}

/// Out of the storage and in again.
fn archived(host: &Host, options: &[&str], magic: &[u8]) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.run("c", &["--network", "none"])?;
    let archive = host.at("c.tar").display().to_string();
    let told = podman.checkpoint("c", &[&["--print-stats", "--export", &archive], options].concat())?;
    check_statistics(&told, DUMPED)?;
    if !fs::read(&archive)?.starts_with(magic) {
        return Err(format!("{archive} is not of the asked kind").into());
    }
    podman.count.stands_still()?;
    podman.podman(&["rm", "c"])?;
    check_statistics(&podman.restore(&["--print-stats", "--import", &archive])?, RESTORED)?;
    podman.count.goes_on(5)?;
    podman.podman(&["exec", "c", "true"]).map(drop)
}

fn leave_running(host: &Host) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.run("c", &[])?;
    let archive = host.at("c.tar").display().to_string();
    podman.checkpoint("c", &["--leave-running", "--compress", "none", "--export", &archive])?;
    podman.count.goes_on(5)?;
    podman.remove("c")?;
    back(&podman, &["--import", &archive])
}

/// An archive of memory first, while the container runs, then one of the rest.
fn pre_checkpoint(host: &Host) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.run("c", &[])?;
    let [before, archive] = ["before.tar", "c.tar"].map(|name| host.at(name).display().to_string());
    podman.checkpoint("c", &["--pre-checkpoint", "--compress", "none", "--export", &before])?;
    podman.count.goes_on(5)?;
    podman.checkpoint("c", &["--with-previous", "--compress", "none", "--export", &archive])?;
    podman.count.stands_still()?;
    podman.podman(&["rm", "c"])?;
    podman.restore(&["--import-previous", &before, "--import", &archive])?;
    podman.count.goes_on(5)?;
    podman.podman(&["exec", "c", "true"]).map(drop)
}

/// Restores an image that is older than the count, which therefore begins with a number that it has said before.
fn back(podman: &Podman<'_>, options: &[&str]) -> Result<(), Failed> {
    fs::write(&podman.count.0, "")?;
    podman.restore(options)?;
    let numbers = podman.count.wait_for(3)?;
    match numbers[0] > 1 && numbers.windows(2).all(|two| two[0] + 1 == two[1]) {
        true => Ok(()),
        false => Err(format!("it goes on with {numbers:?}").into()),
    }
}

/// Twice from one archive, beside one another; the second publishes another port.
fn another_name(host: &Host) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.run("c", &["--publish", "127.0.0.1::80"])?;
    let archive = host.at("c.tar").display().to_string();
    podman.checkpoint("c", &["--compress", "none", "--export", &archive])?;
    podman.podman(&["rm", "c"])?;
    podman.restore(&["--import", &archive])?;
    podman.count.goes_on(5)?;
    let port = super::programs::free_port()?.to_string();
    let elsewhere = ["--ignore-static-ip", "--ignore-static-mac", "--publish", &format!("127.0.0.1:{port}:80")];
    podman.restore(&[&["--import", &archive, "--name", "copy"], &elsewhere[..]].concat())?;
    let address = |name| podman.inspect(name, "{{.NetworkSettings.IPAddress}} {{.NetworkSettings.MacAddress}}");
    let published = podman.podman(&["port", "copy", "80/tcp"])?;
    if address("c")? == address("copy")? || !published.ends_with(&format!(":{port}")) {
        return Err(format!("the copy is at {} and publishes {published}", address("copy")?).into());
    }
    podman.podman(&["exec", "copy", "true"]).map(drop)
}

/// The files of the checkpoint stay until they are not wanted any more.
fn kept(host: &Host) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.run("c", &["--network", "none"])?;
    let directory = podman.inspect("c", "{{.StaticDir}}")?;
    let missing = |names: &[&str]| -> Result<(), Failed> {
        match names.iter().find(|name| !Path::new(&directory).join(name).exists()) {
            None => Ok(()),
            Some(name) => Err(format!("{directory}/{name} was not kept").into()),
        }
    };
    podman.checkpoint("c", &["--keep"])?;
    missing(&["checkpoint/inventory.img", "dump.log", "stats-dump"])?;
    podman.restore(&["--keep", "c"])?;
    missing(&["checkpoint/inventory.img", "restore.log", "stats-restore"])?;
    podman.count.goes_on(5)
}

fn file_locks(host: &Host) -> Result<(), Failed> {
    let podman = Podman::with(host, &host.root_with(&[Path::new("/usr/bin/flock")], &[])?)?;
    podman.start("c", &["--network", "none"], &format!("exec /usr/bin/flock /state/lock sh -c '{COUNTER}'"))?;
    podman.count.goes_on(5)?;
    if podman.checkpoint("c", &[]).is_ok() {
        return Err("a lock was left out without a word".into());
    }
    podman.count.goes_on(5)?;
    podman.checkpoint("c", &["--file-locks"])?;
    let lock = File::options().write(true).open(host.at("state/lock"))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    rustix::fs::flock(&lock, FlockOperation::Unlock)?;
    podman.restore(&["--file-locks", "c"])?;
    podman.count.goes_on(5)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(()),
        other => Err(format!("its lock is not held: {other:?}").into()),
    }
}

/// A checkpoint as an image of the storage.
fn image(host: &Host) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.run("c", &["--network", "none"])?;
    podman.checkpoint("c", &["--create-image", "checkpoint:1"])?;
    podman.podman(&["rm", "c"])?;
    podman.restore(&["checkpoint:1"])?;
    podman.count.goes_on(5)
}

/// Another storage in the place of the first, which is away: podman notes absolute paths in its archives.
fn another_host(host: &Host) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.run("c", &[])?;
    let archive = host.at("c.tar").display().to_string();
    podman.checkpoint("c", &["--export", &archive])?;
    podman.remove("c")?;
    podman.podman(&["rmi", "--all", "--force"])?;
    for directory in ["storage", "run", "tmp"] {
        // Podman's overlay is mounted upon itself.
        let _ = host.run("umount", &[host.at(directory).join("overlay")]);
        fs::rename(host.at(directory), host.at(&format!("first-{directory}")))?;
    }
    podman.import()?;
    podman.restore(&["--import", &archive])?;
    podman.count.goes_on(5)
}

/// What podman 4.3 itself does not do with a checkpoint.
fn refused(host: &Host) -> Result<(), Failed> {
    let podman = Podman::new(host)?;
    podman.run("c", &["--network", "none"])?;
    podman.checkpoint("c", &["--create-image", "checkpoint:1"])?;
    let refusals = [
        podman.podman(&["run", "--detach", "checkpoint:1"]),
        podman.restore(&["--tcp-close", "c"]),
        podman.checkpoint("c", &["--export", "x", "--compress", "lzma"]),
    ];
    match refusals.iter().position(Result::is_ok) {
        None => Ok(()),
        Some(which) => Err(format!("podman does not refuse request {which}").into()),
    }
}
