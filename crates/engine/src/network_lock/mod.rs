//! The network lock: while connections of TCP are taken apart, are away, and
//! are put together again, their packets are dropped, so that no peer gets an
//! answer from a host that does not know them.
//!
//! It is one table of nftables for an image ([`nftables`]), or if asked for,
//! rules of iptables(8) ([`iptables`]), named and shaped as CRIU's, so that
//! either program lifts what the other has set: for the connections of the
//! tree alone, and not for packets with a mark by which our own are known.
//! It is set when the tree stands still and before a socket is looked into. It
//! stays with an image whose tree was ended, and is lifted by the restore.
//!
//! What a host between must do for connections in other network namespaces is [`translated`]'s.
//!
//! Should we be killed, a guard ([`cryonaut_kernel::guard`]) lifts it at once if
//! the tree goes on. Whoever is at it also has a note in [`NOTES`]: that of a
//! process that is no more has the next call of the program take its table
//! away, if the guard was killed too.

mod iptables;
mod nftables;
pub mod translated;

use crate::files::socket::{Held, Peers};
use crate::namespaces::Own;
use crate::options::LockMethod;
use crate::{Error, Object, Result};
use cryonaut_image::records::InventoryEntry;
use cryonaut_kernel::guard::{Guard, LastWill, Undertaker};
use cryonaut_kernel::sys::namespace::{NetworkVisit, visit_network};
use cryonaut_kernel::sys::nf_tables;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ffi::CString;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;

/// Where the notes are.
const NOTES: &str = "/run/cryonaut";
/// Packets with this mark are our own ([`crate::files::socket`]), or CRIU's.
const MARK: u32 = 0xc114;
const PREFIX: &str = "network-lock-";
/// How much of the run's id CRIU has in the name of a table.
const ID_IN_NAME: usize = 21;
/// `network_lock_method` of the inventory.
const IPTABLES: u32 = 0;
const NFTABLES: u32 = 1;

/// A lock that is set.
#[derive(Debug)]
pub struct NetworkLock {
    run_id: String,
    note: PathBuf,
    /// Whether it goes when nobody has said what is to become of it.
    ours: bool,
    guard: Option<Guard>,
    by: Means,
    /// Of the connections concerned.
    ends: HashSet<(SocketAddr, SocketAddr)>,
    /// The network namespace whose packets are dropped, all of them; `None` for connections in ours.
    place: Option<OwnedFd>,
}

/// Those of a tree: for the connections in our own network namespace, and for each that is the tree's.
#[derive(Debug, Default)]
pub struct NetworkLocks {
    locks: Vec<NetworkLock>,
    ends: HashSet<(SocketAddr, SocketAddr)>,
    /// Whose addresses our own network namespace is to translate again when packets pass.
    awaited: translated::Awaited,
}

impl NetworkLocks {
    /// Takes one in.
    pub fn add(&mut self, lock: Option<NetworkLock>) {
        let Some(lock) = lock else { return };
        self.ends.extend(lock.ends.iter().copied());
        self.locks.push(lock);
    }

    /// The id by which others of the same image are named.
    pub fn run_id(&self) -> Option<&str> {
        self.locks.iter().map(|lock| lock.run_id.as_str()).find(|id| !id.is_empty())
    }

    /// The ends of the connections concerned; `None` if nothing is locked.
    pub fn ends(&self) -> Option<&HashSet<(SocketAddr, SocketAddr)>> {
        (!self.locks.is_empty()).then_some(&self.ends)
    }

    /// Those of the connections concerned that are in network namespaces of the tree's.
    pub fn ends_elsewhere(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
        let elsewhere = self.locks.iter().filter(|lock| lock.place.is_some());
        elsewhere.flat_map(|lock| lock.ends.iter().copied())
    }

    /// These come back when packets pass.
    pub fn await_translated(&mut self, awaited: translated::Awaited) {
        self.awaited = awaited;
    }

    /// Who is to know of every socket that is in repair mode.
    pub fn guard(&self) -> Option<&Guard> {
        self.locks.iter().find_map(|lock| lock.guard.as_ref())
    }

    /// For the moments in which the tree of `root` is ended: [`NetworkLock::see_to_the_end`] of each.
    pub fn see_to_the_end(&mut self, root: &OwnedFd, held: &Held) -> Result<Vec<Undertaker>> {
        self.locks.iter_mut().map(|lock| lock.see_to_the_end(root, held)).collect()
    }

    /// For another process that sees to the end of the tree, with this one gone: the lock in our network namespace. Those
    /// of the tree's stay where they are; if there are connections in one, the other still guards these.
    pub fn hand_over(&self) -> Option<Handed> {
        let ours = self.locks.iter().find(|lock| lock.place.is_none()).map(NetworkLock::hand_over);
        let nothing = || Handed { run_id: String::new(), note: PathBuf::new(), nothing: true, iptables: false };
        ours.or_else(|| (!self.ends.is_empty()).then(nothing))
    }

    /// Another process sees to them now.
    pub fn dismiss_guards(&mut self) {
        self.locks.iter_mut().for_each(NetworkLock::dismiss_guard);
    }

    /// Tells an image how its connections are locked.
    pub fn tell(&self, inventory: &mut InventoryEntry) {
        self.locks.iter().for_each(|lock| lock.tell(inventory));
    }

    /// Packets pass again.
    pub fn lift(self) -> Result<()> {
        self.awaited.bring_back()?;
        let lifted: Vec<Result<()>> = self.locks.into_iter().map(NetworkLock::lift).collect();
        lifted.into_iter().collect()
    }

    /// They stay, with the image.
    pub fn keep(self) {
        self.locks.into_iter().for_each(NetworkLock::keep);
    }
}

/// A lock as one process tells another of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handed {
    run_id: String,
    note: PathBuf,
    nothing: bool,
    iptables: bool,
}

/// By what packets are dropped.
#[derive(Debug)]
enum Means {
    /// By nothing: the caller sees to them.
    Nothing,
    Nftables,
    Iptables(iptables::Scripts),
}

/// Which packets of a network namespace of the tree's are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// All of them, so that nobody who connects meanwhile is refused.
    Everything,
    /// Those of the tree's connections: the namespace outlives the tree, and others may be in it.
    Connections,
    /// None: it takes milliseconds, and there are no sockets whom it would serve.
    Nothing,
}

/// How one is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    /// Nothing of it is there.
    Anew,
    /// That of an image, of which a call that was killed may have left a part.
    WhatLacks,
}

impl NetworkLock {
    /// Sets one for a tree that stands still, if it has connections.
    pub fn set(method: LockMethod, peers: &Peers) -> Result<Option<NetworkLock>> {
        if peers.0.is_empty() {
            return Ok(None);
        }
        if method == LockMethod::Skip {
            return NetworkLock::without(peers).map(Some);
        }
        let run_id = new_id().map_err(|e| failed("make an id for it", e))?;
        NetworkLock::begin(run_id, Some(Setting::Anew), method, peers).map(Some)
    }

    /// Sets one for a network namespace of the tree's, where `peers` are its connections. `run_id`: that of the image, under
    /// which it may be set already. Without connections it does without where it cannot be set.
    pub fn set_there(
        method: LockMethod,
        own: &Own,
        run_id: Option<&str>,
        (peers, reach): (&Peers, Reach),
    ) -> Result<Option<NetworkLock>> {
        if method == LockMethod::Skip {
            return if peers.0.is_empty() { Ok(None) } else { NetworkLock::without(peers).map(Some) };
        }
        let run_id = match run_id {
            Some(id) => id.to_owned(),
            None => new_id().map_err(|e| failed("make an id for it", e))?,
        };
        let set = || -> Result<Option<NetworkLock>> {
            let place = own.file.try_clone().map_err(|e| failed("set it", crate::error::errno_of(&e)))?;
            let _there = visit_network(place.as_fd()).map_err(own.failed("enter it"))?;
            let there = nf_tables::has_table(&nftables::table(&run_id)).map_err(|e| failed("look for it", e))?;
            let rules = match reach {
                Reach::Everything => Some(nftables::everything(&run_id)),
                Reach::Connections if !peers.0.is_empty() => Some(nftables::rules(&run_id, peers)),
                _ => None,
            };
            if !there && rules.is_none() {
                return Ok(None);
            }
            let (by, ends, note) = (Means::Nftables, peers.ends(), PathBuf::new());
            let mut lock = NetworkLock { run_id, note, ours: false, guard: None, by, ends, place: None };
            // One of an image is there to be lifted.
            if let Some(rules) = rules.filter(|_| !there) {
                lock.guard = Some(Guard::hire(&lock.will()).map_err(|e| failed("make its guard", e))?);
                rules.send().map_err(|e| failed("set it", e))?;
                lock.ours = true;
            }
            lock.place = Some(place);
            Ok(Some(lock))
        };
        match set() {
            Err(e) if peers.0.is_empty() => {
                tracing::warn!("packets of {} are not held back: {e}", own.object());
                Ok(None)
            }
            set => set,
        }
    }

    /// Sets that of an image again while its connections are put together: it
    /// may be another host, or another time.
    pub fn set_again(inventory: &InventoryEntry, peers: &Peers) -> Result<Option<NetworkLock>> {
        // All that it was set for may have ended before it was written down: it is to be lifted nonetheless.
        if peers.0.is_empty() && inventory.dump_criu_run_id.is_none() {
            return Ok(None);
        }
        let run_id = match &inventory.dump_criu_run_id {
            Some(id) if is_id(id) => id.clone(),
            _ => new_id().map_err(|e| failed("make an id for it", e))?,
        };
        let late = peers.late();
        let (method, there) = match inventory.network_lock_method {
            Some(IPTABLES) => {
                let all = iptables::is_set(peers)? && (late.0.is_empty() || iptables::is_set(&late)?);
                (LockMethod::Iptables, all)
            }
            _ => {
                let there = match nf_tables::has_table(&nftables::table(&run_id)) {
                    // CRIU's images have an id without a lock as well: a restore without connections needs no firewall.
                    Err(_) if peers.0.is_empty() => false,
                    there => there.map_err(|e| failed("look for it", e))?,
                };
                (LockMethod::Nftables, there)
            }
        };
        if peers.0.is_empty() && !there {
            return Ok(None);
        }
        if there && method == LockMethod::Nftables && !late.0.is_empty() {
            nftables::other_rules(&run_id, peers).send().map_err(|e| failed("add to it", e))?;
        }
        NetworkLock::begin(run_id, (!there).then_some(Setting::WhatLacks), method, peers).map(Some)
    }

    /// Sets it, if it is to be ours; else it is there, with the image's own connections.
    fn begin(run_id: String, set: Option<Setting>, method: LockMethod, peers: &Peers) -> Result<NetworkLock> {
        let ours = set.is_some();
        let note = PathBuf::from(NOTES).join(format!("{PREFIX}{run_id}"));
        let write = || {
            fs::create_dir_all(NOTES)?;
            fs::write(&note, if ours { our_mark() } else { String::new() })
        };
        write().map_err(|e| failed("make a note of it", crate::error::errno_of(&e)))?;
        let ends = peers.ends();
        let mut lock = NetworkLock { run_id, note, ours: false, guard: None, by: Means::Nothing, ends, place: None };
        lock.by = match method {
            LockMethod::Iptables => Means::Iptables(iptables::Scripts::new(&lock.note, peers)),
            _ => Means::Nftables,
        };
        if let Some(set) = set {
            if let Means::Iptables(scripts) = &lock.by {
                scripts.write()?;
            }
            lock.guard = Some(Guard::hire(&lock.will()).map_err(|e| failed("make its guard", e))?);
            lock.ours = true;
            match &lock.by {
                Means::Iptables(scripts) => scripts.set(peers, set == Setting::Anew)?,
                _ => nftables::rules(&lock.run_id, peers).send().map_err(|e| failed("set it", e))?,
            }
        }
        Ok(lock)
    }

    /// For a caller who sees to the packets: who guards the connections alone.
    fn without(peers: &Peers) -> Result<NetworkLock> {
        let guard = Guard::hire(&LastWill::Nothing).map_err(|e| failed("make a guard of connections", e))?;
        let (run_id, note) = (String::new(), PathBuf::new());
        let ends = peers.ends();
        Ok(NetworkLock { run_id, note, ours: false, guard: Some(guard), by: Means::Nothing, ends, place: None })
    }

    /// How a guard lifts it.
    fn will(&self) -> LastWill {
        match &self.by {
            Means::Nothing => LastWill::Nothing,
            Means::Nftables => LastWill::Rules(nftables::no_rules(&self.run_id)),
            Means::Iptables(scripts) => LastWill::Programs(scripts.will()),
        }
    }

    /// For the moments in which the tree of `root` is ended, whose connections
    /// we hold: another guard, who knows that it may be the end.
    pub fn see_to_the_end(&mut self, root: &OwnedFd, held: &Held) -> Result<Undertaker> {
        let _there = self.visit()?;
        let note = CString::new(self.note.as_os_str().as_encoded_bytes()).unwrap_or_default();
        let undertaker = Undertaker::hire(root, &held.numbers(), &note, &self.will());
        let undertaker = undertaker.map_err(|e| failed("make a guard of connections", e))?;
        self.guard = None;
        Ok(undertaker)
    }

    /// For another process that sees to the end of the tree, with this one gone.
    pub fn hand_over(&self) -> Handed {
        let iptables = matches!(self.by, Means::Iptables(_));
        Handed {
            run_id: self.run_id.clone(),
            note: self.note.clone(),
            iptables,
            nothing: matches!(self.by, Means::Nothing),
        }
    }

    /// Another process sees to it now.
    pub fn dismiss_guard(&mut self) {
        self.guard = None;
    }

    /// What another process has set, which is no more.
    pub fn take_over(handed: Handed) -> NetworkLock {
        let by = match (handed.nothing, handed.iptables) {
            (true, _) => Means::Nothing,
            (_, true) => Means::Iptables(iptables::Scripts::of(&handed.note)),
            _ => Means::Nftables,
        };
        let Handed { run_id, note, .. } = handed;
        NetworkLock { run_id, note, ours: false, guard: None, by, ends: HashSet::new(), place: None }
    }

    /// Tells an image how its connections are locked.
    pub fn tell(&self, inventory: &mut InventoryEntry) {
        let method = match self.by {
            Means::Nothing => return,
            Means::Nftables => NFTABLES,
            Means::Iptables(_) => IPTABLES,
        };
        inventory.dump_criu_run_id = Some(self.run_id.clone());
        inventory.network_lock_method = Some(method);
    }

    /// Packets pass again.
    pub fn lift(mut self) -> Result<()> {
        self.ours = false;
        self.take_away()
    }

    fn visit(&self) -> Result<Option<NetworkVisit>> {
        let visit = self.place.as_ref().map(|place| visit_network(place.as_fd())).transpose();
        visit.map_err(|e| failed("enter its network namespace", e))
    }

    fn take_away(&self) -> Result<()> {
        let _there = self.visit()?;
        match &self.by {
            Means::Nothing => Ok(()),
            Means::Nftables => match nftables::no_rules(&self.run_id).send() {
                // There was no time to set it.
                Err(Errno::NOENT) => Ok(()),
                done => done.map_err(|e| failed("lift it", e)),
            },
            Means::Iptables(scripts) => scripts.lift(),
        }
    }

    /// It stays, with the image.
    pub fn keep(mut self) {
        self.ours = false;
    }
}

impl Drop for NetworkLock {
    fn drop(&mut self) {
        if self.ours
            && let Err(e) = self.take_away()
        {
            tracing::warn!("{e}");
        }
        if let Means::Iptables(scripts) = &self.by {
            scripts.remove();
        }
        if !self.note.as_os_str().is_empty()
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
        let (name, path) = (note.file_name(), note.path());
        let Some(run_id) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).filter(|id| is_id(id)) else {
            iptables::remove_without_note(&path);
            continue;
        };
        let Ok(mark) = fs::read_to_string(&path) else { continue };
        if is_alive(&mark) {
            continue;
        }
        // An empty note is of one who was at the lock of an image that waits.
        if !mark.is_empty() {
            tracing::warn!("a network lock of a call that was killed is lifted");
            let scripts = iptables::Scripts::of(&path);
            let _ = if scripts.is_empty() {
                nftables::no_rules(run_id).send().map_err(|e| failed("lift it", e))
            } else {
                scripts.lift()
            };
        }
        iptables::Scripts::of(&path).remove();
        let _ = fs::remove_file(&path);
    }
}

/// As whom this program is known, should it go on working as a copy of this process in another pid namespace.
pub fn remember_us() {
    WHO_WE_ARE.get_or_init(our_mark);
}

static WHO_WE_ARE: OnceLock<String> = OnceLock::new();

/// Who we are: the pid alone may be another's later.
fn our_mark() -> String {
    if let Some(mark) = WHO_WE_ARE.get() {
        return mark.clone();
    }
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
pub fn is_id(id: &str) -> bool {
    id.len() >= ID_IN_NAME && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
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
    let hex = crate::hexadecimal::encode(&random);
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_that_of_a_uuid() {
        let id = new_id().unwrap();
        assert!(is_id(&id) && id.len() == 36, "{id}");
        assert_eq!(nftables::table("a4acf008-6b24-432f-bfe0-c7c4557a749e"), "CRIU-a4acf008-6b24-432f-bf");
        assert!(!is_id("a4acf008-6b24-432f-bfe0; flush ruleset"));
    }

    #[test]
    fn we_are_alive_and_others_with_our_pid_are_not() {
        assert!(is_alive(&our_mark()));
        assert!(!is_alive(&format!("{} 1", std::process::id())));
        assert!(!is_alive(""));
    }
}
