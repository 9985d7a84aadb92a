//! The lock by iptables(8), for hosts whose firewall is kept that way: of each
//! connection a rule for what comes and one for what goes, as CRIU has them, so
//! that either program finds the other's. They are set and taken away all at a
//! time, by scripts for iptables-restore(8); those that take them away are files
//! beside the note of the lock, for who has to if we are killed.

use super::{MARK, failed};
use crate::files::socket::{Peer, Peers};
use crate::{Error, Object, Result};
use cryonaut_kernel::sys::process::dies_with_us;
use std::ffi::{CString, OsString};
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the programs may be.
const PLACES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];
/// How long each waits for others that change the tables, in seconds.
const PATIENCE: &str = "5";

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const ALL: [Family; 2] = [Family::V4, Family::V6];

    fn program(self, rest: &str) -> PathBuf {
        let name = format!("{}{rest}", if self == Family::V4 { "iptables" } else { "ip6tables" });
        let found = PLACES.iter().map(|place| Path::new(place).join(&name)).find(|path| path.exists());
        found.unwrap_or_else(|| name.into())
    }

    /// What the file of a script has behind the name of the note.
    fn suffix(self) -> &'static str {
        if self == Family::V4 { ".4" } else { ".6" }
    }

    fn has(self, peer: &Peer) -> bool {
        peer.own.ip().to_canonical().is_ipv4() == (self == Family::V4)
    }

    fn restore(self) -> Command {
        let mut command = Command::new(self.program("-restore"));
        command.args(["--noflush", "-w", PATIENCE]).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

/// Scripts that lift a lock, each with the file that has it for others.
#[derive(Debug)]
pub struct Scripts(Vec<(Family, PathBuf, String)>);

impl Scripts {
    /// For the lock of these connections, whose note this is. The files are not there yet.
    pub fn new(note: &Path, peers: &Peers) -> Scripts {
        let all = Family::ALL.into_iter();
        Scripts(all.filter_map(|family| Some((family, beside(note, family), script(family, "-D", peers)?))).collect())
    }

    /// Those beside a note.
    pub fn of(note: &Path) -> Scripts {
        let all = Family::ALL.into_iter().map(|family| (family, beside(note, family)));
        Scripts(
            all.filter_map(|(family, path)| fs::read_to_string(&path).ok().map(|text| (family, path, text))).collect(),
        )
    }

    /// Writes the files.
    pub fn write(&self) -> Result<()> {
        self.0.iter().try_for_each(|(_, path, text)| {
            fs::write(path, text).map_err(|e| failed("make a note of its rules", crate::error::errno_of(&e)))
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets the lock, as far as it is not there; `anew` if nothing of it can be.
    pub fn set(&self, peers: &Peers, anew: bool) -> Result<()> {
        for (family, text) in Family::ALL.into_iter().filter_map(|family| Some((family, script(family, "-A", peers)?)))
        {
            if anew || is_set_of(family, peers)? != Some(true) {
                run(family.restore(), &text, "set it")?;
            }
        }
        Ok(())
    }

    /// Lifts it.
    pub fn lift(&self) -> Result<()> {
        let lift = |(family, _, text): &(Family, PathBuf, String)| run(family.restore(), text, "lift it");
        // Each, whatever comes of the other.
        let done: Vec<Result<()>> = self.0.iter().map(lift).collect();
        done.into_iter().collect()
    }

    /// The programs that lift it, with their arguments.
    pub fn will(&self) -> Vec<Vec<CString>> {
        let words = |(family, path, _): &(Family, PathBuf, String)| {
            let command = family.restore();
            let words = [command.get_program()].into_iter().chain(command.get_args()).chain([path.as_os_str()]);
            words.filter_map(|word| CString::new(word.as_bytes()).ok()).collect()
        };
        self.0.iter().map(words).collect()
    }

    /// Removes the files.
    pub fn remove(&self) {
        for (_, path, _) in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// A script whose note has gone already.
pub fn remove_without_note(path: &Path) {
    let is_script = path.extension().is_some_and(|end| end == "4" || end == "6");
    if is_script && !path.with_extension("").exists() {
        let _ = fs::remove_file(path);
    }
}

/// Whether the lock of these connections is set, all of it: each family's rules come and go at a time, but who is killed
/// in between has done so with one alone.
pub fn is_set(peers: &Peers) -> Result<bool> {
    let mut all = !peers.0.is_empty();
    for family in Family::ALL {
        all = all && is_set_of(family, peers)?.unwrap_or(true);
    }
    Ok(all)
}

/// Whether the rules of a family are there: whether that of its first connection is. `None` if it has none.
fn is_set_of(family: Family, peers: &Peers) -> Result<Option<bool>> {
    let Some(first) = peers.0.iter().find(|peer| family.has(peer)) else { return Ok(None) };
    let mut command = Command::new(family.program(""));
    command.args(["-w", PATIENCE, "-t", "filter", "-C", "INPUT"]).args(rule(first, true).split(' '));
    let done = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let done = done.map_err(|e| failed("run iptables to look for it", crate::error::errno_of(&e)))?;
    Ok(Some(done.success()))
}

fn beside(note: &Path, family: Family) -> PathBuf {
    let mut name = OsString::from(note);
    name.push(family.suffix());
    name.into()
}

/// The rule for what a connection receives, or sends.
fn rule(peer: &Peer, comes: bool) -> String {
    let (from, to) = if comes { (peer.peer, peer.own) } else { (peer.own, peer.peer) };
    let (source, destination) = (from.ip().to_canonical(), to.ip().to_canonical());
    let (sport, dport) = (from.port(), to.port());
    format!("-p tcp -m mark ! --mark {MARK:#x} -s {source} --sport {sport} -d {destination} --dport {dport} -j DROP")
}

/// What adds all rules of a family (`-A`), or deletes them (`-D`); `None` if there are none.
fn script(family: Family, what: &str, peers: &Peers) -> Option<String> {
    let mut text = String::from("*filter\n");
    let mut rules: Vec<(&str, String)> = Vec::new();
    for peer in peers.0.iter().filter(|peer| family.has(peer)) {
        rules.push(("INPUT", rule(peer, true)));
        rules.push(("OUTPUT", rule(peer, false)));
    }
    // A socket may be under several numbers, in several processes.
    rules.sort_unstable();
    rules.dedup();
    for (chain, rule) in &rules {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{what} {chain} {rule}");
    }
    text.push_str("COMMIT\n");
    (!rules.is_empty()).then_some(text)
}

/// Runs one of the programs with a script.
fn run(mut command: Command, script: &str, action: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut run = || {
        // Else it might set rules when our guard has taken them away.
        let mut child = dies_with_us(&mut command).stdin(Stdio::piped()).spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(script.as_bytes())?;
        }
        child.wait_with_output()
    };
    let object = || Object::Other("network lock".into());
    let remedy = "--network-lock iptables needs the package iptables and CAP_NET_ADMIN; nftables needs no program";
    match run() {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr);
            let said = said.lines().find(|line| !line.starts_with('#')).unwrap_or("it did not say why");
            Err(Error::unsupported(object(), format!("{program} cannot {action}: {said}"), remedy))
        }
        Err(e) => Err(Error::Kernel {
            object: object(),
            action: format!("run {program} to {action}"),
            errno: crate::error::errno_of(&e),
            remedy,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_has_two_rules_for_each_connection_of_its_family() {
        let all = [
            ("10.0.0.1:80", "10.0.0.2:4000"),
            ("[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.2]:4000"),
            ("[::1]:1", "[::1]:2"),
        ];
        let peers = Peers::between(all.map(|(own, peer)| (own.parse().unwrap(), peer.parse().unwrap())));
        let v4 = script(Family::V4, "-A", &peers).unwrap();
        assert_eq!(
            v4,
            "*filter\n\
             -A INPUT -p tcp -m mark ! --mark 0xc114 -s 10.0.0.2 --sport 4000 -d 10.0.0.1 --dport 80 -j DROP\n\
             -A OUTPUT -p tcp -m mark ! --mark 0xc114 -s 10.0.0.1 --sport 80 -d 10.0.0.2 --dport 4000 -j DROP\n\
             COMMIT\n"
        );
        assert_eq!(script(Family::V6, "-D", &peers).unwrap().lines().count(), 4);
        assert_eq!(script(Family::V6, "-D", &Peers::default()), None);
    }
}
