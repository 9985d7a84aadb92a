//! Tables of a network namespace that rtnetlink(7) tells message by message, and takes again the same way: addresses,
//! routes, rules, neighbours and what they lean on.
//!
//! A table is brought to what was recorded, whatever stands there: the kernel makes entries by itself (routes of an
//! address, the first rules). What is not recorded is taken away, what lacks is added, in the order of the record; as
//! often as it takes, since some entries need others (a gateway, the route to it).

use super::talk::{failed, object};
use crate::Result;
use cryonaut_kernel::sys::conversation::{APPEND, CREATE, Conversation, Message, Refusal, TYPE, number};
use rustix::io::Errno;

/// A kind of table.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// What it has, for messages.
    pub name: &'static str,
    /// The type of the message that tells an entry and makes it; the next takes it away, and the one after asks.
    new: u16,
    /// Length of the fixed part of a message.
    fixed: usize,
    /// Flags for making.
    making: u16,
    /// An entry without what changes by itself, and without what the kernel does not take; `None` if it is not one to
    /// be kept.
    clean: fn(&Message) -> Option<Message>,
    /// Whether what matters of two clean ones is the same.
    same: fn(&Message, &Message) -> bool,
}

/// Addresses of both families (`struct ifaddrmsg`).
pub const ADDRESSES: Table =
    Table { name: "address", new: 20, fixed: 8, making: CREATE, clean: clean_address, same: same_address };
/// Next hops that routes name (`struct nhmsg`).
pub const NEXT_HOPS: Table =
    Table { name: "next hop", new: 104, fixed: 8, making: CREATE, clean: clean_next_hop, same: equal };
/// Routes of a family (`struct rtmsg`).
pub const ROUTES: Table =
    Table { name: "route", new: 24, fixed: 12, making: CREATE | APPEND, clean: clean_route, same: equal };
/// Rules (`struct fib_rule_hdr`).
pub const RULES: Table = Table { name: "rule", new: 32, fixed: 12, making: CREATE, clean: clean_rule, same: equal };
/// Neighbours (`struct ndmsg`).
pub const NEIGHBOURS: Table =
    Table { name: "neighbour", new: 28, fixed: 12, making: CREATE | 0x100, clean: clean_neighbour, same: equal };

/// `NTF_PROXY`: an address for which we answer.
pub const PROXY: u8 = 8;

impl Table {
    /// All entries of a family; with `flags` those of which it asks (neighbours: [`PROXY`]). None where the kernel does
    /// not have the family.
    pub fn read(&self, talk: &mut Conversation, id: u32, family: i32, flags: u8) -> Result<Vec<Message>> {
        let mut header = vec![0; self.fixed];
        header[0] = family as u8;
        if self.new == NEIGHBOURS.new {
            header[10] = flags;
        }
        match talk.dump(&Message::new(self.new + 2, 0, &header)) {
            Ok(all) => Ok(all.into_iter().filter(|m| m.kind() == self.new).filter_map(|m| (self.clean)(&m)).collect()),
            Err(Refusal { errno: Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::PFNOSUPPORT, .. }) => Ok(Vec::new()),
            Err(refusal) => Err(failed(object(id), format!("ask for its {}s", self.name), refusal)),
        }
    }

    /// What of a recorded entry is to be there.
    pub fn clean(&self, recorded: &[Message]) -> Vec<Message> {
        recorded.iter().filter(|m| m.kind() == self.new).filter_map(|m| (self.clean)(m)).collect()
    }

    /// What of `wanted` is not in `there`.
    pub fn lacking(&self, there: &[Message], wanted: &[Message]) -> Vec<Message> {
        let mut left: Vec<&Message> = there.iter().collect();
        let mut lacks = |one: &&Message| match left.iter().position(|other| (self.same)(one, other)) {
            Some(at) => {
                left.swap_remove(at);
                false
            }
            None => true,
        };
        wanted.iter().filter(|one| lacks(one)).cloned().collect()
    }

    /// Takes away what is not recorded. What the kernel wants to keep stays.
    pub fn remove(&self, talk: &mut Conversation, there: &[Message], wanted: &[Message]) {
        for entry in self.lacking(wanted, there) {
            if let Err(refusal) = talk.ask(&entry.retyped(self.new + 1, 0)) {
                tracing::debug!("a {} that is not in the image stays: {refusal}", self.name);
            }
        }
    }

    /// Adds entries, as often as some succeed; those that do not in the end, with the reasons.
    pub fn add(&self, talk: &mut Conversation, mut entries: Vec<Message>) -> Vec<(Message, Refusal)> {
        loop {
            let before = entries.len();
            let mut left = Vec::new();
            for entry in entries {
                match talk.ask(&entry.retyped(self.new, self.making)) {
                    Ok(()) | Err(Refusal { errno: Errno::EXIST, .. }) => {}
                    Err(refusal) => left.push((entry, refusal)),
                }
            }
            if left.is_empty() || left.len() == before {
                return left;
            }
            entries = left.into_iter().map(|(entry, _)| entry).collect();
        }
    }

    /// Brings a table to what was recorded.
    pub fn set(&self, talk: &mut Conversation, id: u32, families: &[i32], wanted: &[Message]) -> Result<()> {
        for family in families {
            let there = self.read(talk, id, *family, 0)?;
            let wanted: Vec<Message> = self.clean(wanted);
            let wanted: Vec<Message> = wanted.into_iter().filter(|m| i32::from(m.body()[0]) == *family).collect();
            self.remove(talk, &there, &wanted);
            let lacking = self.lacking(&there, &wanted);
            if let Some((entry, refusal)) = self.add(talk, lacking).into_iter().next() {
                return Err(failed(object(id), format!("add {}", self.describe(&entry)), refusal));
            }
        }
        Ok(())
    }

    /// An entry in few words, for messages.
    pub fn describe(&self, entry: &Message) -> String {
        let family = i32::from(entry.body()[0]);
        let own = entry.attribute(self.fixed, 1).map(|bytes| address(family, bytes));
        let own = own.unwrap_or_else(|| "of all".to_owned());
        format!("the {} {own}/{}", self.name, entry.body()[1])
    }
}

fn address(family: i32, bytes: &[u8]) -> String {
    match (family, <[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
        (libc::AF_INET, Ok(v4), _) => std::net::Ipv4Addr::from(v4).to_string(),
        (libc::AF_INET6, _, Ok(v6)) => std::net::Ipv6Addr::from(v6).to_string(),
        _ => crate::hexadecimal::encode(bytes),
    }
}

fn equal(one: &Message, other: &Message) -> bool {
    one.body() == other.body()
}

/// The same entry with some of its attributes, changed.
fn with(entry: &Message, fixed: usize, mut change: impl FnMut(u16, &[u8]) -> Option<Vec<u8>>) -> Message {
    let mut header = entry.body().get(..fixed).unwrap_or_default().to_vec();
    header.resize(fixed, 0);
    let mut clean = Message::new(entry.kind(), 0, &header);
    // With the flags of their types.
    let rest = entry.body().get(fixed.next_multiple_of(4)..).unwrap_or_default();
    for (kind, value) in raw_attributes(rest) {
        if let Some(value) = change(kind & TYPE, value) {
            clean.add(kind, &value);
        }
    }
    clean
}

/// Attributes with the flags of their types.
fn raw_attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head: [u8; 4] = *rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([head[2], head[3]]), value))
    })
}

const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const FOREVER: u32 = u32::MAX;

/// Bit of an address that nobody may use yet: whether others have it is still asked (IFA_F_TENTATIVE).
const TENTATIVE: u8 = 0x40;

/// Whether an address is still looked for at others.
pub fn is_tentative(address: &Message) -> bool {
    address.body()[2] & TENTATIVE != 0
}

/// Without what has come of duplicate address detection, and times on the clock of the kernel.
fn clean_address(entry: &Message) -> Option<Message> {
    /// DADFAILED, STABLE_PRIVACY, PERMANENT: the kernel's own.
    const OWN: u32 = 0x08 | 0x800 | 0x80;
    let mut clean = with(entry, ADDRESSES.fixed, |kind, value| match kind {
        IFA_FLAGS => Some((number(value)? & !OWN).to_ne_bytes().to_vec()),
        // struct ifa_cacheinfo: preferred, valid; then when it was made and changed.
        IFA_CACHEINFO => Some([value.get(..8)?, &[0; 8]].concat()),
        _ => Some(value.to_vec()),
    });
    clean.body_mut()[2] &= !(OWN as u8);
    Some(clean)
}

/// Lifetimes go on; whether they end must be the same.
fn same_address(one: &Message, other: &Message) -> bool {
    let of = |entry: &Message| {
        let ends = |value: &[u8]| value.get(4..8).and_then(number) != Some(FOREVER);
        let ends = entry.attribute(ADDRESSES.fixed, IFA_CACHEINFO).is_some_and(ends);
        let mut without = with(entry, ADDRESSES.fixed, |kind, value| match kind {
            IFA_CACHEINFO => None,
            IFA_FLAGS => Some((number(value)? & !u32::from(TENTATIVE)).to_ne_bytes().to_vec()),
            _ => Some(value.to_vec()),
        });
        without.body_mut()[2] &= !TENTATIVE;
        (without, ends)
    };
    of(one) == of(other)
}

/// Without counters, and flags that tell of devices.
fn clean_route(entry: &Message) -> Option<Message> {
    const RTM_F_CLONED: u32 = 0x200;
    /// RTNH_F_PERVASIVE, RTNH_F_ONLINK
    const SETTABLE: u32 = 2 | 4;
    const OIF: u16 = 4;
    const GATEWAY: u16 = 5;
    const MULTIPATH: u16 = 9;
    const CACHEINFO: u16 = 12;
    const VIA: u16 = 18;
    const ENCAP_TYPE: u16 = 21;
    const ENCAP: u16 = 22;
    const EXPIRES: u16 = 23;
    const NH_ID: u16 = 30;
    let flags = entry.body().get(8..12).and_then(number)?;
    if flags & RTM_F_CLONED != 0 {
        return None;
    }
    let by_id = entry.attribute(ROUTES.fixed, NH_ID).is_some();
    let mut clean = with(entry, ROUTES.fixed, |kind, value| match kind {
        CACHEINFO => None,
        OIF | GATEWAY | MULTIPATH | VIA | ENCAP_TYPE | ENCAP if by_id => None,
        MULTIPATH => Some(clean_paths(value)),
        _ => Some(value.to_vec()),
    });
    clean.body_mut()[8..12].copy_from_slice(&(flags & SETTABLE).to_ne_bytes());
    // struct rta_cacheinfo: the fourth word says when it ends, in hundredths of a second.
    let ends = entry.attribute(ROUTES.fixed, CACHEINFO).and_then(|value| number(value.get(8..12)?)).unwrap_or(0);
    if ends as i32 > 0 && clean.attribute(ROUTES.fixed, EXPIRES).is_none() {
        clean.add_number(EXPIRES, ends.div_ceil(100));
    }
    Some(clean)
}

/// Next hops of a route (`struct rtnexthop` each) without flags that tell of devices.
fn clean_paths(value: &[u8]) -> Vec<u8> {
    let mut clean = value.to_vec();
    let mut at = 0;
    while let Some(head) = clean.get_mut(at..at + 4) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        head[2] &= 2 | 4;
        if length == 0 {
            break;
        }
        at += length.next_multiple_of(4);
    }
    clean
}

/// Which a route is, and whether the kernel makes it for an address of IPv6, which takes it a moment.
pub fn is_made_for_address(route: &Message) -> bool {
    const RTPROT_KERNEL: u8 = 2;
    i32::from(route.body()[0]) == libc::AF_INET6 && route.body()[5] == RTPROT_KERNEL
}

/// Without what tells of devices that are not there.
fn clean_rule(entry: &Message) -> Option<Message> {
    const INVERT: u32 = 2;
    const PAD: u16 = 18;
    let flags = entry.body().get(8..12).and_then(number)?;
    let mut clean = with(entry, RULES.fixed, |kind, value| (kind != PAD).then(|| value.to_vec()));
    clean.body_mut()[8..12].copy_from_slice(&(flags & INVERT).to_ne_bytes());
    Some(clean)
}

/// Next hops: without flags that tell of devices, groups' statistics.
fn clean_next_hop(entry: &Message) -> Option<Message> {
    const OP_FLAGS: u16 = 14;
    const HW_STATS: [u16; 2] = [15, 16];
    let flags = entry.body().get(4..8).and_then(number)?;
    let clean = with(entry, NEXT_HOPS.fixed, |kind, value| {
        (kind != OP_FLAGS && !HW_STATS.contains(&kind)).then(|| value.to_vec())
    });
    let mut clean = clean;
    clean.body_mut()[4..8].copy_from_slice(&(flags & (2 | 4)).to_ne_bytes());
    Some(clean)
}

/// Those that somebody has set, and those that were learned, which are to be asked again.
fn clean_neighbour(entry: &Message) -> Option<Message> {
    const STALE: u16 = 0x04;
    const LEARNED: u16 = 0x02 | STALE | 0x08 | 0x10;
    const PERMANENT: u16 = 0x80;
    /// NTF_OFFLOADED and other flags are the kernel's own.
    const SETTABLE: u8 = PROXY | 0x80;
    let (state, flags) = (u16::from_ne_bytes(*entry.body().get(8..10)?.first_chunk()?), entry.body()[10]);
    if i32::from(entry.body()[0]) == libc::AF_BRIDGE {
        return clean_forwarding(entry, state, flags);
    }
    let state = match state {
        _ if flags & PROXY != 0 => 0,
        state if state & PERMANENT != 0 => PERMANENT,
        state if state & LEARNED != 0 => STALE,
        _ => return None,
    };
    // NDA_DST, NDA_LLADDR, NDA_PROTOCOL, NDA_FLAGS_EXT
    let mut clean = with(entry, NEIGHBOURS.fixed, |kind, value| [1, 2, 12, 15].contains(&kind).then(|| value.to_vec()));
    let body = clean.body_mut();
    body[8..10].copy_from_slice(&state.to_ne_bytes());
    body[10] = flags & SETTABLE;
    Some(clean)
}

/// Entries of a bridge that somebody has set, and those of a tunnel that say where an address is. The others the kernel
/// makes of the devices' own addresses, or has learned.
fn clean_forwarding(entry: &Message, state: u16, flags: u8) -> Option<Message> {
    const NOARP: u16 = 0x40;
    const PERMANENT: u16 = 0x80;
    const SELF: u8 = 2;
    const MASTER: u8 = 4;
    const DST: u16 = 1;
    let is_set = flags & MASTER != 0 && state & NOARP != 0;
    let is_far = flags & SELF != 0 && state & PERMANENT != 0 && entry.attribute(NEIGHBOURS.fixed, DST).is_some();
    if !is_set && !is_far {
        return None;
    }
    // NDA_DST, LLADDR, VLAN, PORT, VNI, IFINDEX
    let taken = [DST, 2, 5, 6, 7, 8];
    let mut clean = with(entry, NEIGHBOURS.fixed, |kind, value| taken.contains(&kind).then(|| value.to_vec()));
    clean.body_mut()[10] = flags & (SELF | MASTER);
    Some(clean)
}
