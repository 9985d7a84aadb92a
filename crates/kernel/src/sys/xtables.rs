//! The older tables of iptables(8) and ip6tables(8) (linux/netfilter_ipv4/ip_tables.h, linux/netfilter/x_tables.h): read
//! and replaced as a whole, by options of a raw socket. The bytes of the entries are the kernel's own: those that it tells
//! it also takes.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RawProtocol, SocketFlags, SocketType, socket_with};

use super::check;
use super::socket::{get_into, set_bytes};

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`; `IPT_SO_SET_REPLACE`, `IPT_SO_SET_ADD_COUNTERS`: the same for both families.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
const SET_REPLACE: i32 = 64;
const SET_ADD_COUNTERS: i32 = 65;
const NAME: usize = 32;
/// `struct ipt_getinfo`: name, valid hooks, five entries, five underflows, number of entries, size.
const INFO: usize = NAME + 4 * 13;
/// `struct ipt_get_entries` before its entries, which are aligned to eight.
const BEFORE_ENTRIES: usize = 40;
/// `struct ipt_replace` before its entries.
const BEFORE_REPLACEMENT: usize = 96;
/// `struct xt_counters`.
const COUNTERS: usize = 16;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    fn level(self) -> i32 {
        if self == Family::V4 { libc::SOL_IP } else { libc::SOL_IPV6 }
    }

    /// Where in an entry (`struct ipt_entry`, `struct ip6t_entry`) its length and its counters are.
    fn places(self) -> (usize, usize) {
        if self == Family::V4 { (90, 96) } else { (142, 152) }
    }

    /// The file with the names of the tables that the calling thread's network namespace has.
    fn names(self) -> &'static str {
        if self == Family::V4 {
            "/proc/thread-self/net/ip_tables_names"
        } else {
            "/proc/thread-self/net/ip6_tables_names"
        }
    }

    fn socket(self) -> Result<OwnedFd, Errno> {
        let family = if self == Family::V4 { AddressFamily::INET } else { AddressFamily::INET6 };
        let raw = RawProtocol::new(libc::IPPROTO_RAW as u32).map(rustix::net::Protocol::from_raw);
        socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, raw)
    }
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name: `filter`, `nat`, `mangle`, `raw`, `security`.
    pub name: String,
    /// Which hooks it has, where in the entries each begins, and where its last is.
    pub hooks: [u32; 11],
    /// How many entries there are.
    pub count: u32,
    /// The entries.
    pub entries: Vec<u8>,
}

/// All tables of the calling thread's network namespace. None where the kernel lacks them.
pub fn tables(family: Family) -> Result<Vec<Table>, Errno> {
    let names = match std::fs::read_to_string(family.names()) {
        Ok(names) if !names.trim().is_empty() => names,
        _ => return Ok(Vec::new()),
    };
    let socket = family.socket()?;
    names.split_whitespace().map(|name| read(family, &socket, name)).collect()
}

fn named(name: &str, room: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; room];
    bytes[..NAME - 1].get_mut(..name.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(name.as_bytes());
    Ok(bytes)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn read(family: Family, socket: &OwnedFd, name: &str) -> Result<Table, Errno> {
    // Somebody may change it between the two questions.
    loop {
        let mut info = named(name, INFO)?;
        get_into(socket, family.level(), GET_INFO, &mut info)?;
        let size = word(&info, INFO - 4);
        let mut all = named(name, BEFORE_ENTRIES + size as usize)?;
        all[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
        match get_into(socket, family.level(), GET_ENTRIES, &mut all) {
            Err(Errno::AGAIN) => continue,
            done => done?,
        };
        let mut hooks = [0; 11];
        for (at, hook) in hooks.iter_mut().enumerate() {
            *hook = word(&info, NAME + 4 * at);
        }
        return Ok(Table {
            name: name.to_owned(),
            hooks,
            count: word(&info, INFO - 8),
            entries: all.split_off(BEFORE_ENTRIES),
        });
    }
}

/// Puts a table in the place of the one of its name. EINVAL if the kernel lacks something that an entry asks for.
pub fn replace(family: Family, table: &Table) -> Result<(), Errno> {
    let socket = family.socket()?;
    // The table is made when somebody first asks for it.
    let mut info = named(&table.name, INFO)?;
    get_into(&socket, family.level(), GET_INFO, &mut info)?;
    let before = word(&info, INFO - 8);
    let mut old = vec![0u8; before as usize * COUNTERS];
    let mut bytes = named(&table.name, BEFORE_REPLACEMENT)?;
    let size = u32::try_from(table.entries.len()).map_err(|_| Errno::TOOBIG)?;
    let numbers =
        [table.hooks[0], table.count, size].into_iter().chain(table.hooks[1..].iter().copied()).chain([before]);
    for (at, number) in numbers.enumerate() {
        bytes[NAME + 4 * at..][..4].copy_from_slice(&number.to_ne_bytes());
    }
    bytes[BEFORE_REPLACEMENT - 8..].copy_from_slice(&(old.as_mut_ptr() as u64).to_ne_bytes());
    bytes.extend_from_slice(&table.entries);
    // SAFETY: IPT_SO_SET_REPLACE reads the struct and its entries, whose lengths it is told and are those of the buffer, and
    // writes the old counters, of which there are `before`, into `old`, which is as large and lives longer than the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            family.level(),
            SET_REPLACE,
            bytes.as_ptr().cast(),
            bytes.len() as libc::socklen_t,
        )
    })?;
    drop(old);
    set_bytes(&socket, family.level(), SET_ADD_COUNTERS, &counters(family, table)?)
}

/// `struct xt_counters_info` with what the entries have counted.
fn counters(family: Family, table: &Table) -> Result<Vec<u8>, Errno> {
    let (length_at, counters_at) = family.places();
    let mut bytes = named(&table.name, 40)?;
    bytes[NAME..NAME + 4].copy_from_slice(&table.count.to_ne_bytes());
    let mut rest = &table.entries[..];
    for _ in 0..table.count {
        let length = rest.get(length_at..length_at + 2).ok_or(Errno::BADMSG)?;
        let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
        bytes.extend_from_slice(rest.get(counters_at..counters_at + COUNTERS).ok_or(Errno::BADMSG)?);
        rest = rest.get(length..).filter(|_| length > counters_at).ok_or(Errno::BADMSG)?;
    }
    Ok(bytes)
}
