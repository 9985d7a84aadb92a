//! Groups of multicast that a socket has joined, with the senders that it wants
//! to hear or not.
//!
//! No call lists them. But /proc/net/igmp and igmp6 list the groups of every
//! network device, and a socket tells of a group that it is named whether it
//! has joined it (MCAST_MSFILTER, RFC 3678).

use super::super::beside::{Extra, Known};
use crate::files::OpenFile;
use crate::{Error, Object, Result};
use cryonaut_kernel::sys::socket;
use libc::{IPPROTO_IP, IPPROTO_IPV6};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
/// `struct group_filter` (linux/in.h): index of the device, group, mode, count of senders, senders.
const GROUP: usize = 8;
const ADDRESS: usize = 128;
const MODE: usize = GROUP + ADDRESS;
const COUNT: usize = MODE + 4;
const SENDERS: usize = COUNT + 4;
const EXCLUDE: u32 = 0;
/// More than net.ipv4.igmp_max_msf and its like allow by default.
const MOST_SENDERS: usize = 128;

/// A group on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    index: u32,
    device: String,
    group: IpAddr,
}

/// A group that a socket has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Membership {
    device: String,
    group: IpAddr,
    /// Whether the senders are those that it wants to hear, and no others; else it wants to hear all others.
    #[serde(default)]
    include: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    senders: Vec<IpAddr>,
}

/// Asks a socket about every group that there is.
pub fn collect(known: &mut Known, file: &OpenFile<'_>, v6: bool, extra: &mut Extra) -> Result<()> {
    if known.here.groups.is_none() {
        let read = |name: &str| match std::fs::read_to_string(name) {
            // A kernel without IPv6.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            text => text.map_err(|e| Error::kernel(Object::Path(name.into()), "read it", crate::error::errno_of(&e))),
        };
        let mut all = of_ipv4(&read("/proc/thread-self/net/igmp")?);
        all.extend(of_ipv6(&read("/proc/thread-self/net/igmp6")?));
        known.here.groups = Some(all);
    }
    for candidate in known.here.groups.iter().flatten().filter(|candidate| v6 || candidate.group.is_ipv4()) {
        let asked = ask(file.file, candidate);
        let asked = asked.map_err(|e| Error::kernel(file.object(), format!("ask about {}", candidate.group), e))?;
        extra.groups.extend(asked);
    }
    Ok(())
}

/// Whether a socket has joined a group.
fn ask(socket: BorrowedFd<'_>, candidate: &Candidate) -> std::result::Result<Option<Membership>, Errno> {
    let mut filter = vec![0u8; SENDERS + MOST_SENDERS * ADDRESS];
    filter[..4].copy_from_slice(&candidate.index.to_ne_bytes());
    put(&mut filter[GROUP..], candidate.group);
    filter[COUNT..SENDERS].copy_from_slice(&(MOST_SENDERS as u32).to_ne_bytes());
    match socket::get_into(socket, level(candidate.group), MCAST_MSFILTER, &mut filter) {
        Ok(_) => {}
        Err(Errno::ADDRNOTAVAIL | Errno::NOPROTOOPT | Errno::OPNOTSUPP) => return Ok(None),
        Err(errno) => return Err(errno),
    }
    let word = |at: usize| filter[at..].first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
    let count = word(COUNT) as usize;
    if count > MOST_SENDERS {
        return Err(Errno::NOBUFS);
    }
    let senders = filter[SENDERS..].chunks(ADDRESS).take(count).filter_map(take).collect();
    let Candidate { device, group, .. } = candidate.clone();
    Ok(Some(Membership { device, group, include: word(MODE) != EXCLUDE, senders }))
}

/// Joins again what a socket had joined.
pub fn build(socket: BorrowedFd<'_>, extra: &Extra, object: impl Fn() -> Object) -> Result<()> {
    for membership in &extra.groups {
        let (group, device) = (membership.group, &membership.device);
        join(socket, membership).map_err(|errno| Error::Kernel {
            object: object(),
            action: format!("join the group {group} on the network device {device}"),
            errno,
            remedy: if errno == Errno::NODEV { "there must be a device of that name" } else { "" },
        })?;
    }
    Ok(())
}

fn join(socket: BorrowedFd<'_>, membership: &Membership) -> std::result::Result<(), Errno> {
    let index = rustix::net::netdevice::name_to_index(socket, &membership.device)?;
    let mut filter = vec![0u8; SENDERS + membership.senders.len() * ADDRESS];
    filter[..4].copy_from_slice(&index.to_ne_bytes());
    put(&mut filter[GROUP..], membership.group);
    let level = level(membership.group);
    socket::set_bytes(socket, level, MCAST_JOIN_GROUP, &filter[..MODE])?;
    if !membership.include && membership.senders.is_empty() {
        return Ok(());
    }
    filter[MODE..COUNT].copy_from_slice(&u32::from(membership.include).to_ne_bytes());
    filter[COUNT..SENDERS].copy_from_slice(&(membership.senders.len() as u32).to_ne_bytes());
    for (room, sender) in filter[SENDERS..].chunks_mut(ADDRESS).zip(&membership.senders) {
        put(room, *sender);
    }
    socket::set_bytes(socket, level, MCAST_MSFILTER, &filter)
}

fn level(group: IpAddr) -> i32 {
    if group.is_ipv4() { IPPROTO_IP } else { IPPROTO_IPV6 }
}

/// An address as a sockaddr_storage begins.
fn put(room: &mut [u8], address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            room[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            room[4..8].copy_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            room[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            room[8..24].copy_from_slice(&v6.octets());
        }
    }
}

fn take(room: &[u8]) -> Option<IpAddr> {
    match i32::from(u16::from_ne_bytes(*room.first_chunk()?)) {
        libc::AF_INET => Some(Ipv4Addr::from(*room.get(4..)?.first_chunk::<4>()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(*room.get(8..)?.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// A line for each device (`1 lo : 1 V3`), then one for each of its groups, whose first word is the address in the order
/// of memory.
fn of_ipv4(text: &str) -> Vec<Candidate> {
    let mut all = Vec::new();
    let mut device = None;
    for line in text.lines().skip(1) {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !line.starts_with(char::is_whitespace) {
            device = first.parse().ok().zip(words.next().map(|name| name.trim_end_matches(':').to_owned()));
        } else if let (Some((index, device)), Ok(group)) = (device.clone(), u32::from_str_radix(first, 16)) {
            all.push(Candidate { index, device, group: Ipv4Addr::from(group.to_ne_bytes()).into() });
        }
    }
    all
}

/// A line for each group: number and name of the device, address.
fn of_ipv6(text: &str) -> Vec<Candidate> {
    let of_line = |line: &str| {
        let mut words = line.split_whitespace();
        let (index, device) = (words.next()?.parse().ok()?, words.next()?.to_owned());
        let group = u128::from_str_radix(words.next()?, 16).ok()?;
        Some(Candidate { index, device, group: Ipv6Addr::from(group).into() })
    };
    text.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_listed_by_device() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     2      V3\n\
                    \t\t\t\t010000E0     1 0:00000000\t\t0\n\
                    \t\t\t\t050000EF     1 0:00000000\t\t0\n\
                    4\teth0      :     1      V3\n\
                    \t\t\t\t010000E0     1 0:00000000\t\t0\n";
        let all = of_ipv4(text);
        let groups: Vec<String> = all.iter().map(|c| format!("{} {} {}", c.index, c.device, c.group)).collect();
        assert_eq!(groups, ["1 lo 224.0.0.1", "1 lo 239.0.0.5", "4 eth0 224.0.0.1"]);
        let all = of_ipv6("1    lo              ff020000000000000000000000000001     1 0000000C 0\n");
        assert_eq!(all, [Candidate { index: 1, device: "lo".into(), group: "ff02::1".parse().unwrap() }]);
    }
}
