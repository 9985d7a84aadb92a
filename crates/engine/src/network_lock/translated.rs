//! Connections of a tree's own network namespace whose addresses this host translates (netfilter's NAT): those of clients at
//! a port that is published, and those to the outside.
//!
//! Who keeps the container takes its network away behind a checkpoint, and makes it again before the restore. With the
//! device the kernel forgets how it had masqueraded connections (masq_device_event, net/netfilter/nf_nat_masquerade.c). What
//! a peer sends meanwhile would find nobody at the port, or the new namespace before its sockets are there, and be answered
//! with a reset. So the image keeps what was tracked ([`write`]). When the tree has ended, another entry takes its place
//! ([`hold`]), by which whatever the peer sends goes to an address from which nobody ever answers; it is nobody's to clear
//! away, since it ends by itself when a peer that sends will have given up. A restore puts the true one in its place
//! ([`Awaited`]) just before packets pass.

use super::NetworkLocks;
use crate::files::socket::canonical;
use crate::namespaces::net::talk::Kept;
use crate::namespaces::net::tracked::{self, Tracked, Tuple, Ways};
use crate::tcp_policy::TcpPolicies;
use crate::{Error, Result};
use cryonaut_image::{DumpDir, ImageDir};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// How long peers are held off, in seconds: as long as TCP tries to send (tcp_retries2 of tcp(7)).
const PATIENCE: u32 = 15 * 60;
/// Broadcast on the loopback device. What comes from another host for it is dropped (martian_destination in ip_route_input
/// of net/ipv4/route.c), and TCP answers to no broadcast (tcp_v4_send_reset).
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 255, 255, 255));
/// All nodes of this interface alone: TCP answers to no multicast (tcp_v6_send_reset), and who gets it from outside drops it.
const NOWHERE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xff01, 0, 0, 0, 0, 0, 0, 1));
/// An image has them in parts: no file of JSON is larger than the image's limit.
const IN_ONE_PART: usize = 10_000;
/// How often something may come between: a packet of the peer's is tracked anew.
const TRIES: usize = 5;

/// One of them.
#[derive(Debug, Serialize, Deserialize)]
struct Translated {
    /// As the tree's socket knows its ends.
    own: SocketAddr,
    peer: SocketAddr,
    /// As this host tracks it.
    entry: Kept,
}

/// One of an image.
#[derive(Debug)]
struct Connection {
    known: Translated,
    ways: Ways,
    /// What comes from the peer, as it says it.
    from_peer: Tuple,
}

impl Connection {
    /// `None` if its message tells of no connection.
    fn of(known: Translated) -> Option<Self> {
        let ways = Ways::of(&known.entry.0).filter(|_| known.entry.0.kind() == tracked::NEW)?;
        // Who has begun it is known by what is said inside.
        let ours = Tuple { source: known.own, destination: known.peer };
        let from_peer = if ways.reply == ours { ways.original } else { ways.reply };
        Some(Connection { known, ways, from_peer })
    }

    /// By which an entry would be in the way of its own, or of the one that holds its peer off: once, if both are one.
    fn places(&self) -> impl Iterator<Item = Tuple> {
        let other = Some(self.from_peer).filter(|from_peer| *from_peer != self.ways.original);
        std::iter::once(self.ways.original).chain(other)
    }
}

fn name(part: usize) -> String {
    format!("translated-{part}")
}

fn file_name(part: usize) -> String {
    format!("cryonaut-{}.json", name(part))
}

/// Writes down those of a tree that stands still, of the connections that are locked in namespaces of its own.
pub fn write(images: &DumpDir, locks: &NetworkLocks) -> Result<()> {
    let mut ends = locks.ends_elsewhere().peekable();
    if ends.peek().is_none() {
        return Ok(());
    }
    let Some(mut tracked) = Tracked::begin()? else { return Ok(()) };
    let mut all = Vec::new();
    for (own, peer) in ends.map(canonical) {
        let found = tracked.find(Tuple { source: own, destination: peer })?;
        if let Some(entry) = found.filter(|entry| Ways::of(entry).is_some_and(|ways| ways.are_translated())) {
            all.push(Translated { own, peer, entry: Kept(entry) });
        }
    }
    for (index, part) in all.chunks(IN_ONE_PART).enumerate() {
        images.write_json(&name(index + 1), part)?;
    }
    Ok(())
}

fn read(images: &ImageDir) -> Result<Vec<Connection>> {
    let mut all = Vec::new();
    for part in 1.. {
        let Some(found) = images.read_json::<Vec<Translated>>(&name(part))? else { break };
        for known in found {
            let bad = || Error::bad_image(file_name(part), "it has a message that tells of no tracked connection");
            all.push(Connection::of(known).ok_or_else(bad)?);
        }
    }
    Ok(all)
}

/// Has nobody answer to the peers of a tree that has ended, whose image is in `dir`. If that cannot be done, they may lose
/// their connections, and are told of.
pub fn hold(dir: &Path) {
    if !dir.join(file_name(1)).exists() {
        return;
    }
    let hold = || {
        let all = read(&ImageDir::open(dir)?)?;
        let Some(mut tracked) = Tracked::begin()? else { return Ok(()) };
        all.iter().try_for_each(|one| hold_off(&mut tracked, one))
    };
    if let Err(e) = hold() {
        tracing::warn!("peers whose addresses are translated may lose their connections before a restore: {e}");
    }
}

fn hold_off(tracked: &mut Tracked, one: &Connection) -> Result<()> {
    let nowhere = if one.from_peer.source.is_ipv4() { NOWHERE } else { NOWHERE_V6 };
    for _ in 0..TRIES {
        one.places().try_for_each(|way| tracked.forget(way))?;
        if tracked.divert(one.from_peer, nowhere, PATIENCE)? {
            return Ok(());
        }
    }
    tracing::warn!("{} is tracked anew again and again: it may lose its connection before a restore", one.known.peer);
    Ok(())
}

/// Those of an image that is restored, until packets pass.
#[derive(Debug, Default)]
pub struct Awaited {
    /// And whether each is kept.
    connections: Vec<(Connection, bool)>,
}

impl Awaited {
    /// Reads them.
    pub fn read(images: &ImageDir, policies: &TcpPolicies) -> Result<Self> {
        let with_fate = |one: Connection| {
            let keeps = policies.of(one.known.peer).keeps_record();
            (one, keeps)
        };
        Ok(Awaited { connections: read(images)?.into_iter().map(with_fate).collect() })
    }

    /// Has this host translate their addresses as before; peers of those that are not kept hear again that there is nobody.
    pub fn bring_back(&self) -> Result<()> {
        if self.connections.is_empty() {
            return Ok(());
        }
        let Some(mut tracked) = Tracked::begin()? else { return Ok(()) };
        for (one, keeps) in &self.connections {
            let lost = match put_back(&mut tracked, one, *keeps) {
                Ok(true) => continue,
                Ok(false) => "another has its addresses".to_owned(),
                Err(e) => e.to_string(),
            };
            let Translated { own, peer, .. } = &one.known;
            tracing::warn!("the connection of {own} with {peer} is lost on its way through this host: {lost}");
        }
        Ok(())
    }
}

/// Whether it is there, if it is to be; a connection of others is not touched.
fn put_back(tracked: &mut Tracked, one: &Connection, keeps: bool) -> Result<bool> {
    for _ in 0..TRIES {
        for way in one.places() {
            let Some(found) = tracked.find(way)? else { continue };
            let there = Ways::of(&found);
            if there == Some(one.ways) {
                return Ok(true);
            }
            let is_nowhere = there.is_some_and(|there| [NOWHERE, NOWHERE_V6].contains(&there.reply.source.ip()));
            if tracked::is_assured(&found) && !is_nowhere {
                return Ok(!keeps);
            }
            tracked.forget(way)?;
        }
        if !keeps || tracked.make(&one.known.entry.0)? {
            return Ok(true);
        }
    }
    Ok(false)
}
