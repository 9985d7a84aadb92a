//! Network devices, read: what the kernel tells of each (`RTM_GETLINK`), in CRIU's record, and as it was told.
//!
//! The record has kinds for loopback, veth, tun, bridge and macvlan. A device of another kind that is made by a message
//! alone is recorded as one that is there at the restore (`EXTLINK`); by the message that we keep beside it is made.

use super::sysctl::{self, Settings};
use super::talk::{Kept, failed, object};
use crate::{Error, Object, Result};
use cryonaut_image::records::{MacvlanLinkEntry, NdType, NetDeviceEntry, NetnsId, TunLinkEntry};
use cryonaut_kernel::sys::conversation::{Conversation, Message, number, text, within};
use std::collections::BTreeMap;

/// `struct ifinfomsg`.
pub const HEADER: usize = 16;
pub const NEW: u16 = 16;
pub const GET: u16 = 18;

/// `IFLA_*` (linux/if_link.h).
pub mod ifla {
    pub const ADDRESS: u16 = 1;
    pub const BROADCAST: u16 = 2;
    pub const IFNAME: u16 = 3;
    pub const MTU: u16 = 4;
    pub const LINK: u16 = 5;
    pub const MASTER: u16 = 10;
    pub const TXQLEN: u16 = 13;
    pub const LINKMODE: u16 = 17;
    pub const LINKINFO: u16 = 18;
    pub const IFALIAS: u16 = 20;
    pub const AF_SPEC: u16 = 26;
    pub const GROUP: u16 = 27;
    pub const NET_NS_FD: u16 = 28;
    pub const EXT_MASK: u16 = 29;
    pub const NUM_TX_QUEUES: u16 = 31;
    pub const NUM_RX_QUEUES: u16 = 32;
    pub const LINK_NETNSID: u16 = 37;
    pub const PROTO_DOWN: u16 = 39;
    pub const GSO_MAX_SEGS: u16 = 40;
    pub const GSO_MAX_SIZE: u16 = 41;
    pub const NEW_IFINDEX: u16 = 49;
    pub const PROP_LIST: u16 = 52;
    pub const ALT_IFNAME: u16 = 53;
    /// Within LINKINFO.
    pub const INFO_KIND: u16 = 1;
    pub const INFO_DATA: u16 = 2;
    pub const INFO_SLAVE_DATA: u16 = 5;
}

/// Kinds that are made by a message alone and have nothing that it does not tell.
pub const MADE_BY_MESSAGE: [&str; 6] = ["dummy", "ifb", "vlan", "vxlan", "vrf", "geneve"];
/// Devices that every namespace has from the beginning, if the kernel has the kind: of tunnels.
const FROM_THE_BEGINNING: [&str; 9] =
    ["tunl0", "gre0", "gretap0", "erspan0", "sit0", "ip6tnl0", "ip6gre0", "ip_vti0", "ip6_vti0"];

/// The devices of a namespace.
#[derive(Debug, Default)]
pub struct Links {
    pub records: Vec<NetDeviceEntry>,
    pub told: BTreeMap<u32, Kept>,
}

/// What is known from elsewhere when devices are read.
#[derive(Debug)]
pub struct Known<'a> {
    /// The namespace's id in the image.
    pub id: u32,
    pub settings: &'a Settings,
    /// By which numbers it knows the others of the tree.
    pub peers: &'a [NetnsId],
    /// What files of tun devices tell, by the device's name: header length and room for what is sent.
    pub tuns: &'a BTreeMap<String, (u32, u32)>,
    /// Devices of which the user has said that they will be there (`--external netdev[NAME]`).
    pub external: &'a [String],
}

/// All devices of the namespace.
pub fn read(talk: &mut Conversation, known: &Known<'_>) -> Result<Links> {
    let mut links = Links::default();
    for told in all(talk, known.id)? {
        let Some(record) = record(known, &told)? else { continue };
        links.told.insert(record.ifindex, Kept(told));
        links.records.push(record);
    }
    // A device that others lean on is made before them.
    links.records.sort_by_key(|record| record.ifindex);
    Ok(links)
}

/// What the kernel tells of all devices.
pub fn all(talk: &mut Conversation, id: u32) -> Result<Vec<Message>> {
    let mut request = Message::new(GET, 0, &[0; HEADER]);
    /// RTEXT_FILTER_SKIP_STATS
    const NO_STATISTICS: u32 = 1 << 3;
    request.add_number(ifla::EXT_MASK, NO_STATISTICS);
    let all = talk.dump(&request).map_err(|e| failed(object(id), "ask for its devices", e))?;
    Ok(all.into_iter().filter(|message| message.kind() == NEW && message.body().len() >= HEADER).collect())
}

/// The number of a device.
pub fn index(link: &Message) -> u32 {
    link.body().get(4..8).and_then(number).unwrap_or(0)
}

/// Its flags (`IFF_*`).
pub fn flags(link: &Message) -> u32 {
    link.body().get(8..12).and_then(number).unwrap_or(0)
}

/// Its name.
pub fn name(link: &Message) -> String {
    link.attribute(HEADER, ifla::IFNAME).map(text).unwrap_or_default()
}

/// Its kind; empty if it has none.
pub fn kind(link: &Message) -> String {
    info(link, ifla::INFO_KIND).map(text).unwrap_or_default()
}

/// A part of what is told of its kind.
pub fn info(link: &Message, part: u16) -> Option<&[u8]> {
    within(link.attribute(HEADER, ifla::LINKINFO)?).find(|(kind, _)| *kind == part).map(|(_, value)| value)
}

/// Numbers among a device's own settings, by type.
pub fn data(link: &Message, which: u16) -> Option<&[u8]> {
    within(info(link, ifla::INFO_DATA)?).find(|(kind, _)| *kind == which).map(|(_, value)| value)
}

fn record(known: &Known<'_>, link: &Message) -> Result<Option<NetDeviceEntry>> {
    const LOOPBACK: u16 = 772;
    let (name, kind) = (name(link), kind(link));
    let hardware = u16::from_ne_bytes([link.body()[2], link.body()[3]]);
    let mut entry = NetDeviceEntry {
        r#type: NdType::Extlink.into(),
        ifindex: index(link),
        mtu: link.attribute(HEADER, ifla::MTU).and_then(number).unwrap_or(0),
        flags: flags(link),
        name,
        master: link.attribute(HEADER, ifla::MASTER).and_then(number),
        ..NetDeviceEntry::default()
    };
    sysctl::tell_device(known.settings, &mut entry);
    if hardware != LOOPBACK {
        entry.address = link.attribute(HEADER, ifla::ADDRESS).map(<[u8]>::to_vec);
    }
    match kind.as_str() {
        _ if hardware == LOOPBACK => entry.set_type(NdType::Loopback),
        _ if known.external.contains(&entry.name) => {}
        "veth" => {
            entry.set_type(NdType::Veth);
            entry.peer_ifindex = link.attribute(HEADER, ifla::LINK).and_then(number);
            entry.peer_nsid = match link.attribute(HEADER, ifla::LINK_NETNSID).and_then(number) {
                None => Some(known.id),
                Some(nsid) => known.peers.iter().find(|n| n.netnsid_value == nsid as i32).map(|n| n.target_ns_id),
            };
        }
        "bridge" => entry.set_type(NdType::Bridge),
        "macvlan" => {
            entry.set_type(NdType::Macvlan);
            let mode = data(link, 1).and_then(number).unwrap_or(0);
            let flags = data(link, 2).and_then(|value| Some(u32::from(u16::from_ne_bytes(*value.first_chunk()?))));
            entry.macvlan = Some(MacvlanLinkEntry { mode, flags });
            entry.peer_ifindex = link.attribute(HEADER, ifla::LINK).and_then(number);
            if link.attribute(HEADER, ifla::LINK_NETNSID).is_none() {
                entry.peer_nsid = Some(known.id);
            }
        }
        "tun" => {
            entry.set_type(NdType::Tun);
            entry.tun = Some(tun(link, known.tuns.get(&entry.name)));
        }
        kind if MADE_BY_MESSAGE.contains(&kind) && link.attribute(HEADER, ifla::LINK_NETNSID).is_none() => {}
        _ if FROM_THE_BEGINNING.contains(&entry.name.as_str()) => {}
        _ => return Err(refusal(known.id, &entry.name, &kind)),
    }
    Ok(Some(entry))
}

fn refusal(id: u32, name: &str, kind: &str) -> Error {
    let what = if kind.is_empty() { "of hardware".to_owned() } else { format!("of the kind \"{kind}\"") };
    Error::unsupported(
        Object::Other(format!("network device {name} in network namespace {id}")),
        format!("devices {what} cannot be made again"),
        "take it out of the namespace, name it with --external netdev[NAME] if it will be there at the restore, or \
         leave the whole namespace to the caller with --external net[INODE]:KEY",
    )
}

/// What `TUNSETIFF` and other ioctls of /dev/net/tun have set.
fn tun(link: &Message, told: Option<&(u32, u32)>) -> TunLinkEntry {
    /// IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE, IFF_PERSIST (linux/if_tun.h).
    const NO_PI: u32 = 0x1000;
    const VNET_HDR: u32 = 0x4000;
    const MULTI_QUEUE: u32 = 0x100;
    const PERSIST: u32 = 0x800;
    let byte = |which| data(link, which).and_then(|value| value.first()).map_or(0, |byte| u32::from(*byte));
    let word = |which| data(link, which).and_then(number).map_or(-1, |number| number as i32);
    let bit = |which, bit: u32| if byte(which) != 0 { bit } else { 0 };
    let no_pi = if byte(4) == 0 { NO_PI } else { 0 };
    let flags = byte(3) | no_pi | bit(5, VNET_HDR) | bit(6, PERSIST) | bit(7, MULTI_QUEUE);
    // As in a new one.
    let (vnethdr, sndbuf) = told.copied().unwrap_or((10, i32::MAX as u32));
    TunLinkEntry { flags, owner: word(1), group: word(2), vnethdr, sndbuf }
}
