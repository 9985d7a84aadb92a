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
use cryonaut_kernel::sys::nf_tables::{self, Data, Hook, Ready, Step, Transaction};
use rustix::io::Errno;
use std::ffi::CString;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Where the notes are.
const NOTES: &str = "/run/cryonaut";
/// Packets with this mark are our own ([`crate::files::socket`]), or CRIU's.
const MARK: u32 = 0xc114;
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
        let there = nf_tables::has_table(&table(&run_id)).map_err(|e| failed("look for it", e))?;
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
            rules(&table(&lock.run_id), peers).send().map_err(|e| failed("set it", e))?;
        }
        Ok(lock)
    }

    /// For a caller who sees to the packets: who guards the connections alone.
    pub fn without() -> Result<NetworkLock> {
        let guard = Guard::hire(&LastWill::Nothing).map_err(|e| failed("make a guard of connections", e))?;
        let (run_id, note) = (String::new(), PathBuf::new());
        Ok(NetworkLock { run_id, note, ours: false, guard: Some(guard), locked: false })
    }

    /// How a guard lifts it.
    fn will(&self) -> LastWill {
        if self.locked { LastWill::Rules(no_rules(&self.run_id)) } else { LastWill::Nothing }
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
        no_rules(&self.run_id).send().map_err(|e| failed("lift it", e))
    }

    /// It stays, with the image.
    pub fn keep(mut self) {
        self.ours = false;
    }
}

impl Drop for NetworkLock {
    fn drop(&mut self) {
        if self.ours
            && let Err(e) = no_rules(&self.run_id).send()
            && e != Errno::NOENT
        {
            tracing::warn!("{}", failed("lift it", e));
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
            let _ = no_rules(run_id).send();
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
    let remedy = match errno {
        Errno::PERM => "connections of TCP need CAP_NET_ADMIN",
        Errno::PROTONOSUPPORT | Errno::OPNOTSUPP | Errno::NOENT => "this kernel needs nf_tables with the family inet",
        _ => "",
    };
    Error::Kernel { object: Object::Other("network lock".into()), action: action.into(), errno, remedy }
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

/// How it is lifted.
fn no_rules(run_id: &str) -> Ready {
    Transaction::default().delete_table(&table(run_id)).finish()
}

/// The whole table, in the place of any of that name.
fn rules(table: &str, peers: &Peers) -> Ready {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for peer in &peers.0 {
        let (own, other) = (element(peer.own), element(peer.peer));
        let all = if peer.own.ip().to_canonical().is_ipv4() { &mut v4 } else { &mut v6 };
        all.push([own, other].concat());
    }
    let mut all = Transaction::default().add_table(table).delete_table(table).add_table(table);
    for (set, address, elements) in [("conns4", Data::V4, &mut v4), ("conns6", Data::V6, &mut v6)] {
        elements.sort_unstable();
        elements.dedup();
        let key = [address, Data::Port, address, Data::Port];
        all = all.add_set(table, set, &key, elements.len());
        all = all.add_elements(table, set, elements.iter().map(Vec::as_slice));
    }
    // Which end is ours depends on the way that a packet goes.
    for (chain, hook) in [("output", Hook::Output), ("input", Hook::Input)] {
        all = all.add_chain(table, chain, hook).add_rule(table, chain, &[Step::IfMark(MARK), Step::Accept]);
        // The family, where its addresses are in the header, and their length.
        for (set, family, at, length) in [("conns4", 2, 12, 4), ("conns6", 10, 8, 16)] {
            let own_first = hook == Hook::Output;
            let words = length / 4;
            let address = |source, register| {
                let offset = if source { at } else { at + length };
                Step::Load { transport: false, offset, length, register }
            };
            let port = |source, register| Step::Load {
                transport: true,
                offset: if source { 0 } else { 2 },
                length: 2,
                register,
            };
            all = all.add_rule(
                table,
                chain,
                &[
                    Step::IfFamily(family),
                    Step::IfProtocol(libc::IPPROTO_TCP as u8),
                    address(own_first, 0),
                    port(own_first, words),
                    address(!own_first, words + 1),
                    port(!own_first, 2 * words + 1),
                    Step::IfIn(set),
                    Step::Drop,
                ],
            );
        }
    }
    all.finish()
}

/// An end as it stands in a set: the address, and the port in a word of its own.
fn element(end: SocketAddr) -> Vec<u8> {
    let mut bytes = match end.ip().to_canonical() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    bytes.extend(end.port().to_be_bytes());
    bytes.extend([0; 2]);
    bytes
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
