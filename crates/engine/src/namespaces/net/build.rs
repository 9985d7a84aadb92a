//! Network namespaces, filled: first the devices of all, since pairs lead from one to another; then of each what its
//! devices are given, addresses, routes, rules, neighbours.

use super::contents::{Contents, messages};
use super::link_build::{self, Peer};
use super::sysctl::Tuner;
use super::table::{ADDRESSES, NEIGHBOURS, NEXT_HOPS, ROUTES, RULES, is_made_for_address, is_tentative};
use super::talk::{failed, object};
use super::{External, link, tracked};
use crate::namespaces::Own;
use crate::{Error, Result};
use cryonaut_image::records::{NdType, NetDeviceEntry};
use cryonaut_kernel::sys::conversation::{Conversation, Message};
use cryonaut_kernel::sys::namespace::{OWN_NETWORK, visit_network};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

const V4: i32 = libc::AF_INET;
const V6: i32 = libc::AF_INET6;

/// A namespace that is to be filled.
#[derive(Debug)]
pub struct Unfilled<'a> {
    pub own: &'a Own,
    pub contents: Contents,
}

/// Fills them; `external` is what the caller has said of devices.
pub fn fill(all: &[Unfilled<'_>], external: &External<'_>) -> Result<()> {
    let home = home()?;
    let mut made = BTreeSet::new();
    for one in all {
        for record in &one.contents.links {
            if made.insert((one.own.id, record.ifindex)) {
                make_device(one, record, all, external, &home, &mut made)?;
            }
        }
    }
    let mut tuners = Vec::new();
    for one in all {
        let _there = visit(one.own)?;
        number_others(one, all)?;
        tuners.push(devices(one)?);
    }
    // All ends of pairs are up: there are carriers.
    for (one, mut tuner) in all.iter().zip(tuners) {
        let _there = visit(one.own)?;
        tables(one, &mut tuner)?;
    }
    Ok(())
}

/// Our own network namespace.
pub fn home() -> Result<OwnedFd> {
    rustix::fs::open(OWN_NETWORK, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::kernel(crate::Object::Path(OWN_NETWORK.into()), "open it", e))
}

fn visit(own: &Own) -> Result<cryonaut_kernel::sys::namespace::NetworkVisit> {
    visit_network(own.file.as_fd()).map_err(own.failed("enter it"))
}

fn talk(id: u32) -> Result<Conversation> {
    Conversation::about_routes().map_err(|e| failed(object(id), "speak with rtnetlink", e.into()))
}

fn make_device(
    one: &Unfilled<'_>,
    record: &NetDeviceEntry,
    all: &[Unfilled<'_>],
    external: &External<'_>,
    home: &OwnedFd,
    made: &mut BTreeSet<(u32, u32)>,
) -> Result<()> {
    let (own, id) = (one.own, one.own.id);
    let told = one.contents.beside.as_ref().and_then(|beside| beside.links.get(&record.ifindex)).map(|kept| &kept.0);
    if let Some(outer) = external.device(&record.name) {
        return link_build::take_over(&mut talk(id)?, outer, record, own.file.as_fd());
    }
    match record.r#type() {
        NdType::Veth => {
            let other = all.iter().find(|other| Some(other.own.id) == record.peer_nsid).and_then(|other| {
                let index = record.peer_ifindex?;
                Some((other, other.contents.links.iter().find(|link| link.ifindex == index)?))
            });
            if let Some((other, peer)) = other.filter(|(_, peer)| peer.r#type() == NdType::Veth) {
                made.insert((other.own.id, peer.ifindex));
                let peer = Peer {
                    name: Some(&peer.name),
                    index: peer.ifindex,
                    address: peer.address.as_deref(),
                    mtu: Some(peer.mtu),
                    namespace: other.own.file.as_fd(),
                };
                let _there = visit(own)?;
                return link_build::veth(&mut talk(id)?, record, told, peer);
            }
            veth_to_outside(own, record, told, external, home)
        }
        NdType::Bridge => {
            let _there = visit(own)?;
            link_build::bridge(&mut talk(id)?, record)
        }
        NdType::Macvlan => match external.macvlan(&record.name) {
            Some(outer) => {
                let mut talk = talk(id)?;
                let below = link_build::index_of(&mut talk, outer)?;
                link_build::macvlan(&mut talk, record, below, Some(own.file.as_fd()))
            }
            None if record.peer_nsid == Some(id) => {
                let _there = visit(own)?;
                link_build::macvlan(&mut talk(id)?, record, record.peer_ifindex.unwrap_or(0), None)
            }
            None => Err(Error::unsupported(
                link_build::object(&record.name),
                "it is above a device that is outside of its namespace",
                "name that with --external macvlan[NAME]:DEVICE",
            )),
        },
        NdType::Tun => {
            let _there = visit(own)?;
            super::tun::make_device(record)
        }
        NdType::Extlink => match told.filter(|told| link::MADE_BY_MESSAGE.contains(&link::kind(told).as_str())) {
            Some(told) => {
                let _there = visit(own)?;
                link_build::by_message(&mut talk(id)?, record, told)
            }
            None => Ok(()),
        },
        NdType::Loopback => Ok(()),
        NdType::Venet | NdType::Sit => {
            let reason = format!("devices of type {:?} cannot be made", record.r#type());
            Err(Error::unsupported(link_build::object(&record.name), reason, ""))
        }
    }
}

/// A pair of which the other end is not in the tree: it is made anew where we are.
fn veth_to_outside(
    own: &Own,
    record: &NetDeviceEntry,
    told: Option<&Message>,
    external: &External<'_>,
    home: &OwnedFd,
) -> Result<()> {
    let outside = external.veth(&record.name);
    if outside.is_none() {
        tracing::warn!(
            "the other end of {} gets a name of the kernel's choice: --external veth[{}]:NAME@BRIDGE gives it one",
            record.name,
            record.name
        );
    }
    let (name, bridge) = outside.unzip();
    let peer = Peer { name, index: 0, address: None, mtu: Some(record.mtu), namespace: home.as_fd() };
    {
        let _there = visit(own)?;
        link_build::veth(&mut talk(own.id)?, record, told, peer)?;
    }
    // The bridge may come later, by a script.
    name.map_or(Ok(()), |name| link_build::attach(&mut talk(own.id)?, name, bridge.flatten()))
}

/// Gives the other namespaces of the tree the numbers by which this one knows them.
fn number_others(one: &Unfilled<'_>, all: &[Unfilled<'_>]) -> Result<()> {
    const NEW: u16 = 88;
    const NSID: u16 = 1;
    const FD: u16 = 3;
    use std::os::fd::AsRawFd;
    let mut talk = talk(one.own.id)?;
    for known in &one.contents.record.nsids {
        let Some(other) = all.iter().find(|other| other.own.id == known.target_ns_id) else { continue };
        let mut request = Message::new(NEW, 0, &[0; 4]);
        request.add(NSID, &known.netnsid_value.to_ne_bytes());
        request.add_number(FD, other.own.file.as_raw_fd() as u32);
        match talk.ask(&request) {
            Ok(()) => {}
            // The kernel has given it one when a pair was made that leads there.
            Err(refusal) if refusal.errno == Errno::EXIST => {}
            Err(refusal) => return Err(failed(object(one.own.id), "number another namespace", refusal)),
        }
    }
    Ok(())
}

/// Everything about devices of a namespace, from within.
fn devices(one: &Unfilled<'_>) -> Result<Tuner> {
    let id = one.own.id;
    let mut talk = talk(id)?;
    let none = std::collections::BTreeMap::new();
    let told = one.contents.beside.as_ref().map_or(&none, |beside| &beside.links);
    link_build::complete(&mut talk, id, &one.contents.links, told)?;
    let mut settings = one.contents.settings();
    // Addresses are the recorded ones, and are in use already: nobody is to be asked for them, nor are any to be made up.
    for link in &one.contents.links {
        settings.insert(format!("ipv6/conf/{}/accept_dad", link.name), "0".into());
        settings.insert(format!("ipv6/conf/{}/addr_gen_mode", link.name), "1".into());
    }
    let mut tuner = Tuner::new();
    tuner.bring(&settings);
    if let Some(beside) = &one.contents.beside {
        beside.firewall.set(id)?;
    }
    tracked::set(id, &one.contents.tracked)?;
    link_build::raise(&mut talk, &one.contents.links)?;
    Ok(tuner)
}

/// Addresses, routes, rules and neighbours of a namespace, from within.
fn tables(one: &Unfilled<'_>, tuner: &mut Tuner) -> Result<()> {
    let (id, contents) = (one.own.id, &one.contents);
    let mut talk = talk(id)?;
    let mut addresses = contents.addresses.clone();
    // The kernel puts the newest of IPv6 first.
    let newest_first = addresses.iter().position(|a| i32::from(a.body()[0]) == V6).unwrap_or(addresses.len());
    addresses[newest_first..].reverse();
    // Those that are still looked for at others follow, when that is done again.
    let settled: Vec<Message> = addresses.iter().filter(|address| !is_tentative(address)).cloned().collect();
    ADDRESSES.set(&mut talk, id, &[V4, V6], &settled)?;
    if let Some(beside) = &contents.beside {
        NEXT_HOPS.set(&mut talk, id, &[libc::AF_UNSPEC], &messages(&beside.next_hops))?;
    }
    wait_for_kernels_own(&mut talk, id, &contents.routes6)?;
    ROUTES.set(&mut talk, id, &[V4], &contents.routes)?;
    ROUTES.set(&mut talk, id, &[V6], &contents.routes6)?;
    RULES.set(&mut talk, id, &[V4], &contents.rules)?;
    if let Some(rules6) = contents.rules6() {
        RULES.set(&mut talk, id, &[V6], &rules6)?;
    }
    if let Some(beside) = &contents.beside {
        for (entry, refusal) in NEIGHBOURS.add(&mut talk, messages(&beside.neighbours)) {
            tracing::warn!("{} is not there: {refusal}", NEIGHBOURS.describe(&entry));
        }
    }
    // As it was, now that nothing more comes of it; what does is taken away.
    tuner.devices_came_up();
    tuner.bring(&contents.settings());
    ADDRESSES.set(&mut talk, id, &[V4, V6], &addresses)
}

/// Routes that the kernel makes for addresses of IPv6 come a moment after these.
fn wait_for_kernels_own(talk: &mut Conversation, id: u32, recorded: &[Message]) -> Result<()> {
    const PATIENCE: Duration = Duration::from_millis(300);
    let begun = Instant::now();
    let wanted: Vec<Message> = ROUTES.clean(recorded).into_iter().filter(is_made_for_address).collect();
    loop {
        let there = ROUTES.read(talk, id, V6, 0)?;
        if ROUTES.lacking(&there, &wanted).is_empty() || begun.elapsed() > PATIENCE {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
