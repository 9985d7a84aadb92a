//! Rules of this host's firewall that a network lock of a test's own connections would have.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use cryonaut_kernel::sys::sock_diag;
use rustix::process::Pid;

/// What shows every rule: nftables, which has those of iptables as well where both are one, and iptables.
const LISTS: [(&str, &[&str]); 3] =
    [("nft", &["list", "ruleset"]), ("iptables-save", &["-t", "filter"]), ("ip6tables-save", &["-t", "filter"])];

/// The ports of a connection, the smaller first.
pub(crate) type Ports = (u16, u16);

/// Of every connection of TCP that these processes have.
pub(crate) fn connections(members: &[Pid]) -> BTreeSet<Ports> {
    let links = members.iter().flat_map(|pid| {
        let listed = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()));
        listed.into_iter().flatten().flatten().filter_map(|entry| fs::read_link(entry.path()).ok())
    });
    let inode =
        |link: std::path::PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u32>().ok();
    let inodes: BTreeSet<u32> = links.filter_map(inode).collect();
    if inodes.is_empty() {
        return BTreeSet::new();
    }
    let all = sock_diag::tcp(u32::MAX).unwrap_or_default().into_iter();
    let ours = all.filter(|socket| inodes.contains(&socket.inode) && socket.ports.1 != 0);
    ours.map(|socket| (socket.ports.0.min(socket.ports.1), socket.ports.0.max(socket.ports.1))).collect()
}

/// The first rule about one of these connections. Programs that are not there would hide one, so that is told as well.
pub(crate) fn rule_about(connections: &BTreeSet<Ports>) -> Option<String> {
    if connections.is_empty() {
        return None;
    }
    for (program, arguments) in LISTS {
        let told = match Command::new(program).args(arguments).output() {
            Ok(told) if told.status.success() => told.stdout,
            other => return Some(format!("({program} does not list its rules: {other:?})")),
        };
        let told = String::from_utf8_lossy(&told);
        let about = |line: &&str| {
            let words = line.split(|c: char| !c.is_ascii_digit());
            let numbers: BTreeSet<u16> = words.filter_map(|word| word.parse().ok()).collect();
            connections.iter().any(|(one, other)| numbers.contains(one) && numbers.contains(other))
        };
        if let Some(rule) = told.lines().find(about) {
            return Some(rule.trim().to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connections_of_a_process_are_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ports = [client.local_addr().unwrap().port(), client.peer_addr().unwrap().port()];
        let ports = (ports[0].min(ports[1]), ports[0].max(ports[1]));
        assert!(connections(&[rustix::process::getpid()]).contains(&ports));
        assert_eq!(rule_about(&BTreeSet::from([ports])), None);
    }
}
