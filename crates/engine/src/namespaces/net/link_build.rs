//! Network devices, made: each under its number and name, then what it had (addresses of hardware, masters, settings of
//! its kind), and when everybody is there, up.
//!
//! What a message of the kernel told, beside CRIU's record, is compared with what it tells of the new device: what
//! differs is set.

use super::link::{self, HEADER, ifla};
use super::talk::{Kept, failed};
use crate::{Error, Object, Result};
use cryonaut_image::records::{NdType, NetDeviceEntry};
use cryonaut_kernel::sys::conversation::{CREATE, Conversation, EXCLUSIVE, Message, Refusal, number, text, within};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};

const VETH_INFO_PEER: u16 = 1;
const VXLAN_TTL_INHERIT: u16 = 28;
const VXLAN_FLAGS: [u16; 2] = [22, VXLAN_TTL_INHERIT];
const IFF_UP: u32 = 1;
/// IFF_UP, DEBUG, NOTRAILERS, NOARP, PROMISC, ALLMULTI, MULTICAST, DYNAMIC: what a request can set.
const SETTABLE: u32 = 1 | 0x4 | 0x20 | 0x80 | 0x100 | 0x200 | 0x1000 | 0x8000;

/// For messages.
pub fn object(name: &str) -> Object {
    Object::Other(format!("network device {name}"))
}

/// The end of a veth pair that is not the one being made.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// Its name; the kernel finds one if there is none.
    pub name: Option<&'a str>,
    /// Its number; 0 if any will do.
    pub index: u32,
    pub address: Option<&'a [u8]>,
    pub mtu: Option<u32>,
    pub namespace: BorrowedFd<'a>,
}

/// A request to make the device of a record.
fn begin(record: &NetDeviceEntry) -> Message {
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&record.ifindex.to_ne_bytes());
    let mut request = Message::new(link::NEW, CREATE | EXCLUSIVE, &header);
    request.add_text(ifla::IFNAME, &record.name).add_number(ifla::MTU, record.mtu);
    if let Some(address) = record.address.as_deref().filter(|address| !address.is_empty()) {
        request.add(ifla::ADDRESS, address);
    }
    request
}

fn queues(request: &mut Message, told: Option<&Message>) {
    for which in [ifla::NUM_TX_QUEUES, ifla::NUM_RX_QUEUES] {
        let count = told.and_then(|told| told.attribute(HEADER, which)).and_then(number);
        if let Some(count) = count.filter(|count| *count > 1) {
            request.add_number(which, count);
        }
    }
}

fn make(talk: &mut Conversation, record: &NetDeviceEntry, request: &Message) -> Result<()> {
    talk.ask(request).map_err(|e| failed(object(&record.name), "make it", e))
}

/// A veth pair, of which both ends are made at once.
pub fn veth(talk: &mut Conversation, record: &NetDeviceEntry, told: Option<&Message>, peer: Peer<'_>) -> Result<()> {
    let mut request = begin(record);
    queues(&mut request, told);
    request.nest(ifla::LINKINFO, |m| {
        m.add_text(ifla::INFO_KIND, "veth");
        m.nest(ifla::INFO_DATA, |m| {
            m.nest(VETH_INFO_PEER, |m| {
                let mut header = [0; HEADER];
                header[4..8].copy_from_slice(&peer.index.to_ne_bytes());
                m.add_bytes(&header);
                if let Some(name) = peer.name {
                    m.add_text(ifla::IFNAME, name);
                }
                if let Some(mtu) = peer.mtu {
                    m.add_number(ifla::MTU, mtu);
                }
                if let Some(address) = peer.address.filter(|address| !address.is_empty()) {
                    m.add(ifla::ADDRESS, address);
                }
                m.add_number(ifla::NET_NS_FD, peer.namespace.as_raw_fd() as u32);
            });
        });
    });
    make(talk, record, &request)
}

/// A device above another; `namespace` is where it comes to be, if that is not where the other is, with which we speak.
pub fn macvlan(
    talk: &mut Conversation,
    record: &NetDeviceEntry,
    below: u32,
    namespace: Option<BorrowedFd<'_>>,
) -> Result<()> {
    const MODE: u16 = 1;
    const FLAGS: u16 = 2;
    let mut request = begin(record);
    request.add_number(ifla::LINK, below);
    if let Some(namespace) = namespace {
        request.add_number(ifla::NET_NS_FD, namespace.as_raw_fd() as u32);
    }
    let lacks =
        || Error::bad_image("netdev", format!("{} is said to be a macvlan and has no record of one", record.name));
    let macvlan = record.macvlan.ok_or_else(lacks)?;
    request.nest(ifla::LINKINFO, |m| {
        m.add_text(ifla::INFO_KIND, "macvlan");
        m.nest(ifla::INFO_DATA, |m| {
            m.add_number(MODE, macvlan.mode);
            if let Some(flags) = macvlan.flags {
                m.add(FLAGS, &(flags as u16).to_ne_bytes());
            }
        });
    });
    make(talk, record, &request)
}

/// A bridge; its settings follow.
pub fn bridge(talk: &mut Conversation, record: &NetDeviceEntry) -> Result<()> {
    let mut request = begin(record);
    request.nest(ifla::LINKINFO, |m| {
        m.add_text(ifla::INFO_KIND, "bridge");
    });
    make(talk, record, &request)
}

/// A device of a kind that is made by what the kernel has told of it.
pub fn by_message(talk: &mut Conversation, record: &NetDeviceEntry, told: &Message) -> Result<()> {
    let mut request = begin(record);
    queues(&mut request, Some(told));
    if let Some(below) = told.attribute(HEADER, ifla::LINK).and_then(number).filter(|below| *below != 0) {
        request.add_number(ifla::LINK, below);
    }
    request.nest(ifla::LINKINFO, |m| {
        m.add_text(ifla::INFO_KIND, &link::kind(told));
        m.nest(ifla::INFO_DATA, |m| {
            for (which, value) in within(link::info(told, ifla::INFO_DATA).unwrap_or_default()) {
                // Told as a byte; that it is there at all is taken for yes.
                let is_flag = link::kind(told) == "vxlan" && VXLAN_FLAGS.contains(&which);
                match value {
                    [0] if is_flag => {}
                    _ if which == VXLAN_TTL_INHERIT && is_flag => {
                        m.add(which, &[]);
                    }
                    _ => {
                        m.add(which, value);
                    }
                }
            }
        });
    });
    make(talk, record, &request)
}

/// Takes a device of the caller's into a namespace, under the number and name of its record.
pub fn take_over(
    talk: &mut Conversation,
    outer: &str,
    record: &NetDeviceEntry,
    namespace: BorrowedFd<'_>,
) -> Result<()> {
    let index = index_of(talk, outer)?;
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut request = Message::new(link::NEW, 0, &header);
    request.add_number(ifla::NET_NS_FD, namespace.as_raw_fd() as u32).add_text(ifla::IFNAME, &record.name);
    // Linux 5.13; without, it keeps its number if nobody else has it there.
    request.add_number(ifla::NEW_IFINDEX, record.ifindex);
    let moved = talk.ask(&request);
    moved.map_err(|e| failed(object(outer), format!("take it into the namespace as {}", record.name), e))
}

/// The number of a device by its name.
pub fn index_of(talk: &mut Conversation, name: &str) -> Result<u32> {
    let mut request = Message::new(link::GET, 0, &[0; HEADER]);
    request.add_text(ifla::IFNAME, name);
    let told = talk.question(&request).map_err(|e| failed(object(name), "find it", e))?;
    told.first().map(link::index).ok_or_else(|| failed(object(name), "find it", Errno::NODEV.into()))
}

/// Puts the end of a pair that stays outside where the caller wants it: into a bridge, if it is said, and up.
pub fn attach(talk: &mut Conversation, name: &str, bridge: Option<&str>) -> Result<()> {
    let index = index_of(talk, name)?;
    let master = bridge.map(|bridge| index_of(talk, bridge)).transpose()?;
    let mut request = change(index, IFF_UP, IFF_UP);
    if let Some(master) = master {
        request.add_number(ifla::MASTER, master);
    }
    talk.ask(&request).map_err(|e| failed(object(name), "put it where it belongs", e))
}

/// Every namespace has it from the beginning, under this number.
const LOOPBACK: u32 = 1;

/// Whether the loopback device of the namespace in which we are is up.
pub fn loopback_is_up() -> Result<bool> {
    let failed = |e| failed(object("lo"), "ask about it", e);
    let mut talk = Conversation::about_routes().map_err(|e| failed(e.into()))?;
    let told = talk.question(&change(LOOPBACK, 0, 0).retyped(link::GET, 0)).map_err(failed)?;
    let flags = told.first().and_then(|told| told.body().get(8..12)).and_then(number);
    Ok(flags.is_some_and(|flags| flags & IFF_UP != 0))
}

/// Brings it up, with its addresses.
pub fn bring_loopback_up() -> Result<()> {
    let failed = |e| failed(object("lo"), "bring it up", e);
    let mut talk = Conversation::about_routes().map_err(|e| failed(e.into()))?;
    talk.ask(&change(LOOPBACK, IFF_UP, IFF_UP)).map_err(failed)
}

/// A request that changes flags of a device.
pub fn change(index: u32, flags: u32, which: u32) -> Message {
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&which.to_ne_bytes());
    Message::new(link::NEW, 0, &header)
}

/// Gives every device what it had, but for being up.
pub fn complete(
    talk: &mut Conversation,
    id: u32,
    records: &[NetDeviceEntry],
    told: &BTreeMap<u32, Kept>,
) -> Result<()> {
    let there: BTreeMap<u32, Message> = link::all(talk, id)?.into_iter().map(|m| (link::index(&m), m)).collect();
    for record in records {
        let Some(is) = there.get(&record.ifindex) else {
            // A tunnel's device that is there from the beginning, where the kernel has such tunnels.
            if record.flags & IFF_UP == 0 {
                tracing::debug!("there is no network device {}", record.name);
                continue;
            }
            let reason = "it is to be there, and is not";
            let remedy = "make it in the script of the moment setup-namespaces, or name one with --external";
            return Err(Error::unsupported(object(&record.name), reason, remedy));
        };
        let mut request = change(record.ifindex, 0, 0);
        let begun = request.bytes().len();
        differences(&mut request, record, is, told.get(&record.ifindex).map(|kept| &kept.0));
        if request.bytes().len() > begun {
            talk.ask(&request).map_err(|e| failed(object(&record.name), "set it up", e))?;
        }
        if let Some(told) = told.get(&record.ifindex) {
            kinds_settings(talk, record, is, &told.0)?;
            other_names(talk, record, is, &told.0)?;
        }
        if record.master.is_some() && record.master != is.attribute(HEADER, ifla::MASTER).and_then(number) {
            join(talk, record, told.get(&record.ifindex).map(|kept| &kept.0))?;
        }
    }
    Ok(())
}

fn differences(request: &mut Message, record: &NetDeviceEntry, is: &Message, told: Option<&Message>) {
    if is.attribute(HEADER, ifla::MTU).and_then(number) != Some(record.mtu) {
        request.add_number(ifla::MTU, record.mtu);
    }
    let address = record.address.as_deref().filter(|address| !address.is_empty());
    if address.is_some() && is.attribute(HEADER, ifla::ADDRESS) != address {
        request.add(ifla::ADDRESS, address.unwrap_or_default());
    }
    let Some(told) = told else { return };
    for which in [ifla::TXQLEN, ifla::GROUP, ifla::IFALIAS, ifla::LINKMODE, ifla::PROTO_DOWN, ifla::BROADCAST]
        .into_iter()
        .chain([ifla::GSO_MAX_SEGS, ifla::GSO_MAX_SIZE])
    {
        let wanted = told.attribute(HEADER, which);
        if let Some(wanted) = wanted.filter(|wanted| Some(*wanted) != is.attribute(HEADER, which)) {
            request.add(which, wanted);
        }
    }
    // The identifier that addresses of routers' prefixes get.
    const TOKEN: u16 = 7;
    let token = |link: &Message| {
        let families = link.attribute(HEADER, ifla::AF_SPEC)?;
        let v6 = within(families).find(|(family, _)| i32::from(*family) == libc::AF_INET6)?.1;
        within(v6).find(|(kind, _)| *kind == TOKEN).map(|(_, value)| value.to_vec())
    };
    if let Some(wanted) = token(told).filter(|wanted| token(is).as_ref() != Some(wanted)) {
        request.nest(ifla::AF_SPEC, |m| {
            m.nest(libc::AF_INET6 as u16, |m| {
                m.add(TOKEN, &wanted);
            });
        });
    }
}

/// Settings of the device's kind, each by itself: what the kernel only tells, it does not take.
fn kinds_settings(talk: &mut Conversation, record: &NetDeviceEntry, is: &Message, told: &Message) -> Result<()> {
    let kind = link::kind(told);
    if !["bridge", "macvlan"].contains(&kind.as_str()) || kind != link::kind(is) {
        return Ok(());
    }
    let there: BTreeMap<u16, &[u8]> = within(link::info(is, ifla::INFO_DATA).unwrap_or_default()).collect();
    for (which, value) in within(link::info(told, ifla::INFO_DATA).unwrap_or_default()) {
        if there.get(&which) == Some(&value) || !is_setting(&kind, which) {
            continue;
        }
        let mut request = change(record.ifindex, 0, 0);
        request.nest(ifla::LINKINFO, |m| {
            m.add_text(ifla::INFO_KIND, &kind);
            m.nest(ifla::INFO_DATA, |m| {
                m.add(which, value);
            });
        });
        talk.ask(&request).map_err(|e| failed(object(&record.name), format!("set option {which} of a {kind}"), e))?;
    }
    Ok(())
}

/// Whether a number of `IFLA_BR_*` or `IFLA_MACVLAN_*` is one to be set.
fn is_setting(kind: &str, which: u16) -> bool {
    match kind {
        // Root and own identifiers, ports, costs, changes of the topology, timers, and what IGMP has found out.
        "bridge" => !matches!(which, 10..=20 | 41 | 43..),
        _ => matches!(which, 1 | 2),
    }
}

/// Further names.
fn other_names(talk: &mut Conversation, record: &NetDeviceEntry, is: &Message, told: &Message) -> Result<()> {
    const NEW_PROPERTY: u16 = 108;
    let names = |link: &Message| -> Vec<String> {
        let all = within(link.attribute(HEADER, ifla::PROP_LIST).unwrap_or_default());
        all.filter(|(kind, _)| *kind == ifla::ALT_IFNAME).map(|(_, name)| text(name)).collect()
    };
    let there = names(is);
    for name in names(told).into_iter().filter(|name| !there.contains(name)) {
        let mut header = [0; HEADER];
        header[4..8].copy_from_slice(&record.ifindex.to_ne_bytes());
        let mut request = Message::new(NEW_PROPERTY, CREATE | EXCLUSIVE, &header);
        request.nest(ifla::PROP_LIST, |m| {
            m.add_text(ifla::ALT_IFNAME, &name);
        });
        talk.ask(&request).map_err(|e| failed(object(&record.name), format!("name it {name} too"), e))?;
    }
    Ok(())
}

/// Makes it a port of its master, with the settings that it had there.
fn join(talk: &mut Conversation, record: &NetDeviceEntry, told: Option<&Message>) -> Result<()> {
    let mut request = change(record.ifindex, 0, 0);
    request.add_number(ifla::MASTER, record.master.unwrap_or(0));
    talk.ask(&request).map_err(|e| failed(object(&record.name), "give it its master", e))?;
    let Some(data) = told.and_then(|told| link::info(told, ifla::INFO_SLAVE_DATA)) else { return Ok(()) };
    // IFLA_BRPORT_*: numbers of one byte that are switches, priority and cost; the rest the kernel tells only.
    for (which, value) in within(data).filter(|(which, _)| matches!(which, 2..=9 | 11 | 12 | 25..=34)) {
        let mut request = change(record.ifindex, 0, 0);
        request.nest(ifla::LINKINFO, |m| {
            m.add_text(4, "bridge");
            m.nest(ifla::INFO_SLAVE_DATA, |m| {
                m.add(which, value);
            });
        });
        if let Err(refusal) = talk.ask(&request) {
            tracing::debug!("option {which} of the port {} is not set: {refusal}", record.name);
        }
    }
    Ok(())
}

/// Sets the flags of all devices, and with them who is up: masters first.
pub fn raise(talk: &mut Conversation, records: &[NetDeviceEntry]) -> Result<()> {
    let mut order: Vec<&NetDeviceEntry> = records.iter().collect();
    order.sort_by_key(|record| (record.r#type() == NdType::Macvlan, record.master.is_some(), record.ifindex));
    for record in order {
        match talk.ask(&change(record.ifindex, record.flags & SETTABLE, SETTABLE)) {
            Err(Refusal { errno: Errno::NODEV, .. }) if record.flags & IFF_UP == 0 => {}
            done => done.map_err(|e| failed(object(&record.name), "set its flags", e))?,
        }
    }
    Ok(())
}
