//! The network lock: while connections of TCP are taken apart, are away, and
//! are put together again, their packets are dropped, so that no peer gets an
//! answer from a host that does not know them.
//!
//! It is one table of nftables for an image, named and shaped as CRIU's, so
//! that either program lifts what the other has set: for the connections of
//! the tree alone, and not for packets with a mark by which our own are known.
//! It is set when the tree stands still and before a socket is looked into. It
//! stays with an image whose tree was ended, and is lifted by the restore.
//!
//! Should we be killed, a guard ([`cryonaut_kernel::guard`]) lifts it at once if
//! the tree goes on. Whoever is at it also has a note in [`NOTES`]: that of a
//! process that is no more has the next call of the program take its table
//! away, if the guard was killed too.

use crate::files::socket::{Held, Peers};
use crate::{Error, Object, Result};
use cryonaut_image::records::InventoryEntry;
use cryonaut_kernel::guard::{Guard, LastWill, Undertaker};
use rustix::io::Errno;
use std::ffi::CString;
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Where the notes are.
const NOTES: &str = "/run/cryonaut";
/// Where nft(8) is.
const PROGRAMS: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft"];
const PREFIX: &str = "network-lock-";
/// How much of the run's id CRIU has in the name of a table.
const ID_IN_NAME: usize = 21;
/// `network_lock_method` of the inventory: by nftables.
const NFTABLES: u32 = 1;

/// A lock that is set.
#[derive(Debug)]
pub struct NetworkLock {
    run_id: String,
    note: PathBuf,
    /// Whether it goes when nobody has said what is to become of it.
    ours: bool,
    guard: Option<Guard>,
    /// Whether packets are dropped at all.
    locked: bool,
}

impl NetworkLock {
    /// Sets one for a tree that stands still, if it has connections.
    pub fn set(peers: &Peers) -> Result<Option<NetworkLock>> {
        if peers.0.is_empty() {
            return Ok(None);
        }
        let run_id = new_id().map_err(|e| failed("make an id for it", e))?;
        NetworkLock::begin(run_id, true, peers).map(Some)
    }

    /// Sets that of an image again while its connections are put together: it
    /// may be another host, or another time.
    pub fn set_again(inventory: &InventoryEntry, peers: &Peers) -> Result<Option<NetworkLock>> {
        if peers.0.is_empty() {
            return Ok(None);
        }
        let run_id = match &inventory.dump_criu_run_id {
            Some(id) if is_id(id) => id.clone(),
            _ => new_id().map_err(|e| failed("make an id for it", e))?,
        };
        let name = format!("table inet {}", table(&run_id));
        let there = nft("list tables inet\n", "look for it")?.lines().any(|line| line == name);
        NetworkLock::begin(run_id, !there, peers).map(Some)
    }

    /// Sets it, if it is to be ours; else it is there, with the image's own connections.
    fn begin(run_id: String, ours: bool, peers: &Peers) -> Result<NetworkLock> {
        let note = PathBuf::from(NOTES).join(format!("{PREFIX}{run_id}"));
        let write = || {
            fs::create_dir_all(NOTES)?;
            fs::write(&note, if ours { our_mark() } else { String::new() })
        };
        write().map_err(|e| failed("make a note of it", crate::error::errno_of(&e)))?;
        let mut lock = NetworkLock { run_id, note, ours, guard: None, locked: true };
        if ours {
            lock.guard = Some(Guard::hire(&lock.will()).map_err(|e| failed("make its guard", e))?);
            nft(&script(&table(&lock.run_id), peers), "set it")?;
        }
        Ok(lock)
    }

    /// For a caller who sees to the packets: who guards the connections alone.
    pub fn without() -> Result<NetworkLock> {
        let guard = Guard::hire(&LastWill::new(Vec::new())).map_err(|e| failed("make a guard of connections", e))?;
        let (run_id, note) = (String::new(), PathBuf::new());
        Ok(NetworkLock { run_id, note, ours: false, guard: Some(guard), locked: false })
    }

    /// How a guard lifts it.
    fn will(&self) -> LastWill {
        let Some(program) = PROGRAMS.iter().find(|program| Path::new(program).exists()).filter(|_| self.locked) else {
            return LastWill::new(Vec::new());
        };
        let words = [program, "delete", "table", "inet", &table(&self.run_id)];
        LastWill::new(words.into_iter().filter_map(|word| CString::new(word).ok()).collect())
    }

    /// Who is to know of every socket that is in repair mode.
    pub fn guard(&self) -> Option<&Guard> {
        self.guard.as_ref()
    }

    /// For the moments in which the tree of `root` is ended, whose connections
    /// we hold: another guard, who knows that it may be the end.
    pub fn see_to_the_end(&mut self, root: &OwnedFd, held: &Held) -> Result<Undertaker> {
        let note = CString::new(self.note.as_os_str().as_encoded_bytes()).unwrap_or_default();
        let undertaker = Undertaker::hire(root, &held.numbers(), &note, &self.will());
        let undertaker = undertaker.map_err(|e| failed("make a guard of connections", e))?;
        self.guard = None;
        Ok(undertaker)
    }

    /// Tells an image how its connections are locked.
    pub fn tell(&self, inventory: &mut InventoryEntry) {
        if !self.locked {
            return;
        }
        inventory.dump_criu_run_id = Some(self.run_id.clone());
        inventory.network_lock_method = Some(NFTABLES);
    }

    /// Packets pass again.
    pub fn lift(mut self) -> Result<()> {
        self.ours = false;
        if !self.locked {
            return Ok(());
        }
        nft(&format!("delete table inet {}\n", table(&self.run_id)), "lift it").map(drop)
    }

    /// It stays, with the image.
    pub fn keep(mut self) {
        self.ours = false;
    }
}

impl Drop for NetworkLock {
    fn drop(&mut self) {
        if self.ours
            && let Err(e) = nft(&format!("delete table inet {}\n", table(&self.run_id)), "lift it")
        {
            tracing::warn!("{e}");
        }
        if self.locked
            && let Err(e) = fs::remove_file(&self.note)
        {
            tracing::debug!("{}: {e}", self.note.display());
        }
    }
}

/// Takes away the locks of those who were killed while they were at it.
pub fn clear_stale() {
    // Mostly there is no such directory.
    let Ok(notes) = fs::read_dir(NOTES) else { return };
    for note in notes.flatten() {
        let name = note.file_name();
        let Some(run_id) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).filter(|id| is_id(id)) else {
            continue;
        };
        let Ok(mark) = fs::read_to_string(note.path()) else { continue };
        if is_alive(&mark) {
            continue;
        }
        // An empty note is of one who was at the lock of an image that waits.
        if !mark.is_empty() {
            tracing::warn!("a network lock of a call that was killed is lifted");
            let _ = nft(&format!("delete table inet {}\n", table(run_id)), "lift it");
        }
        let _ = fs::remove_file(note.path());
    }
}

/// Who we are: the pid alone may be another's later.
fn our_mark() -> String {
    let pid = std::process::id();
    format!("{pid} {}\n", start_of(pid).unwrap_or_default())
}

fn is_alive(mark: &str) -> bool {
    let Some((pid, start)) = mark.trim().split_once(' ') else { return false };
    pid.parse().ok().and_then(start_of).is_some_and(|is| is.to_string() == start)
}

fn start_of(pid: u32) -> Option<u64> {
    let task = cryonaut_kernel::proc::Task::open(crate::freeze::pid_of(pid as i32).ok()?).ok()?;
    Some(task.stat().ok()?.start_time)
}

fn failed(action: &str, errno: Errno) -> Error {
    Error::kernel(Object::Other("network lock".into()), action, errno)
}

/// Whether it can be part of a name and of a script: letters, digits, dashes.
fn is_id(id: &str) -> bool {
    id.len() >= ID_IN_NAME && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn table(run_id: &str) -> String {
    format!("CRIU-{}", &run_id[..ID_IN_NAME])
}

/// A random UUID.
fn new_id() -> std::result::Result<String, Errno> {
    let mut random = [0u8; 16];
    let file = rustix::fs::open("/dev/urandom", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())?;
    if rustix::io::read(&file, &mut random)? < random.len() {
        return Err(Errno::IO);
    }
    random[6] = random[6] & 0xf | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let hex = random.map(|byte| format!("{byte:02x}")).concat();
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

/// The whole table, in the place of any of that name.
fn script(table: &str, peers: &Peers) -> String {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for peer in &peers.0 {
        let (own, other) = (peer.own.ip().to_canonical(), peer.peer.ip().to_canonical());
        let all = if own.is_ipv4() { &mut v4 } else { &mut v6 };
        let (own_port, port) = (peer.own.port(), peer.peer.port());
        all.push(format!("{own} . {own_port} . {other} . {port}"));
    }
    let mut text = format!("add table inet {table}\ndelete table inet {table}\nadd table inet {table}\n");
    for (set, address, mut all) in [("conns4", "ipv4_addr", v4), ("conns6", "ipv6_addr", v6)] {
        all.sort_unstable();
        all.dedup();
        let kind = format!("{address} . inet_service . {address} . inet_service");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "add set inet {table} {set} {{ type {kind}; }}");
        if !all.is_empty() {
            let _ = writeln!(text, "add element inet {table} {set} {{ {} }}", all.join(", "));
        }
    }
    // Which end is ours depends on the way that a packet goes.
    for (hook, ours, theirs) in [("output", "s", "d"), ("input", "d", "s")] {
        let _ = writeln!(text, "add chain inet {table} {hook} {{ type filter hook {hook} priority 0; }}");
        let _ = writeln!(text, "add rule inet {table} {hook} meta mark 0xc114 accept");
        for (version, set) in [("ip", "conns4"), ("ip6", "conns6")] {
            let end = |side| format!("{version} {side}addr . tcp {side}port");
            let ends = format!("{} . {}", end(ours), end(theirs));
            let _ = writeln!(text, "add rule inet {table} {hook} {ends} @{set} drop");
        }
    }
    text
}

/// Has nft(8) run a script; what it says.
fn nft(script: &str, action: &str) -> Result<String> {
    let run = |program: &str| -> std::io::Result<Output> {
        let mut command = Command::new(program);
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(script.as_bytes())?;
        }
        child.wait_with_output()
    };
    let found = PROGRAMS.iter().find(|program| Path::new(program).exists());
    let done = run(found.unwrap_or(&"nft"));
    let object = || Object::Other("network lock".into());
    let remedy = "connections of TCP need the program nft (package nftables) and CAP_NET_ADMIN";
    match done {
        Ok(done) if done.status.success() => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr);
            let said = said.lines().next().unwrap_or("it did not say why");
            Err(Error::unsupported(object(), format!("nft cannot {action}: {said}"), remedy))
        }
        Err(e) => Err(Error::Kernel {
            object: object(),
            action: format!("run nft to {action}"),
            errno: crate::error::errno_of(&e),
            remedy,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_that_of_a_uuid() {
        let id = new_id().unwrap();
        assert!(is_id(&id) && id.len() == 36, "{id}");
        assert_eq!(table("a4acf008-6b24-432f-bfe0-c7c4557a749e"), "CRIU-a4acf008-6b24-432f-bf");
        assert!(!is_id("a4acf008-6b24-432f-bfe0; flush ruleset"));
    }

    #[test]
    fn we_are_alive_and_others_with_our_pid_are_not() {
        assert!(is_alive(&our_mark()));
        assert!(!is_alive(&format!("{} 1", std::process::id())));
        assert!(!is_alive(""));
    }
}
