//! Connections that netfilter tracks: the messages of nfnetlink by which they are told and made, and the addresses in them.

use super::talk::{failed, object};
use crate::{Error, Object, Result};
use cryonaut_kernel::sys::conversation::{CREATE, Conversation, EXCLUSIVE, Message, NESTED, Refusal, within};
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;
use std::net::{IpAddr, SocketAddr};

/// `struct nfgenmsg`.
const HEADER: usize = 4;
/// `NFNL_SUBSYS_CTNETLINK`, with which `IPCTNL_MSG_CT_NEW` is 0, `_GET` 1 and `_DELETE` 2.
const SUBSYSTEM: u16 = 1;
pub const NEW: u16 = SUBSYSTEM << 8;
const GET: u16 = NEW | 1;
const DELETE: u16 = NEW | 2;
/// `CTA_*`
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL_STATE: u16 = 4;
/// `CTA_PROTOINFO_TCP`, in the one before.
const STATE_OF_TCP: u16 = 1;
const NAT_SRC: u16 = 6;
const TIMEOUT: u16 = 7;
const NAT_DST: u16 = 13;
/// `CTA_TUPLE_*`, and `CTA_PROTO_*` in the second.
const IP: u16 = 1;
const PROTO: u16 = 2;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
/// `IPS_SEEN_REPLY`; `IPS_ASSURED`: it is not dropped for want of room; `IPS_CONFIRMED`: it is in the table, as the kernel
/// wants to hear; `IPS_FIXED_TIMEOUT`: packets do not prolong it.
const SEEN_REPLY: u32 = 2;
const ASSURED: u32 = 4;
const CONFIRMED: u32 = 8;
const FIXED_TIMEOUT: u32 = 0x400;

/// Of the calling thread's network namespace; none where the kernel does not track.
pub fn read(id: u32) -> Result<Vec<Message>> {
    let Some(mut talk) = begin(|| object(id))? else { return Ok(Vec::new()) };
    match talk.dump(&Message::new(GET, 0, &[0; HEADER])) {
        Ok(all) => Ok(all.into_iter().filter(|m| m.kind() == NEW).collect()),
        Err(refusal) if is_lack(&refusal) => Ok(Vec::new()),
        Err(refusal) => Err(failed(object(id), "ask for tracked connections", refusal)),
    }
}

/// A conversation about them; `None` where the kernel does not track.
fn begin(about: impl FnOnce() -> Object) -> Result<Option<Conversation>> {
    match Conversation::begin(Some(NETFILTER)) {
        Err(Errno::PROTONOSUPPORT) => Ok(None),
        begun => begun.map(Some).map_err(|e| failed(about(), "speak with netfilter", e.into())),
    }
}

/// Whether it says that the kernel does not track.
fn is_lack(refusal: &Refusal) -> bool {
    matches!(refusal.errno, Errno::OPNOTSUPP | Errno::INVAL)
}

/// Makes them. One that is not taken is told of: its packets are looked at anew.
pub fn set(id: u32, all: &[Message]) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    let begin = Conversation::begin(Some(NETFILTER));
    let mut talk = begin.map_err(|e| failed(object(id), "speak with netfilter", e.into()))?;
    for message in all {
        match talk.ask(&making(message)) {
            Ok(()) | Err(Refusal { errno: Errno::EXIST, .. }) => {}
            Err(refusal) => {
                tracing::warn!("a connection is no longer tracked in network namespace {id}: {refusal}")
            }
        }
    }
    Ok(())
}

/// A message that makes what one has told: addresses that were translated are asked for as such.
fn making(told: &Message) -> Message {
    /// Tuples, status, protocol's state, helper, timeout, mark, master, adjustments, zone, labels, synproxy.
    const TAKEN: [u16; 13] = [1, 2, 3, 4, 5, 7, 8, 14, 15, 16, 18, 22, 24];
    const NESTS: [u16; 7] = [1, 2, 5, 14, 15, 16, 24];
    /// IPS_SRC_NAT, _DST_NAT, both _DONE, _SEQ_ADJUST: the kernel's own, of what is asked for.
    const NAT: u32 = 0x10 | 0x20 | 0x80 | 0x100;
    let translated = Ways::of(told).filter(Ways::are_translated);
    let mut making = Message::new(NEW, CREATE, &told.body()[..HEADER]);
    for (kind, value) in told.attributes(HEADER).filter(|(kind, _)| TAKEN.contains(kind)) {
        match (kind, value.first_chunk(), translated) {
            (STATUS, Some(status), _) => {
                let status = u32::from_be_bytes(*status) & !NAT;
                making.add(STATUS, &status.to_be_bytes());
            }
            (PROTOCOL_STATE, ..) => {
                making.nest(PROTOCOL_STATE, |m| liberal(m, value));
            }
            // The kernel takes a reply that is translated already for one that needs no translation (nf_nat_setup_info).
            (REPLY, _, Some(ways)) => {
                making.nest(REPLY, |m| untranslated(m, value, ways.original.answered()));
            }
            _ => {
                making.add(if NESTS.contains(&kind) { kind | NESTED } else { kind }, value);
            }
        }
    }
    if let Some(ways) = translated {
        if ways.original.source != ways.reply.destination {
            range(&mut making, NAT_SRC, ways.reply.destination);
        }
        if ways.original.destination != ways.reply.source {
            range(&mut making, NAT_DST, ways.reply.source);
        }
    }
    making
}

/// Adds the state of a protocol: where the windows of TCP are cannot be told, and what the ends have sent without having
/// heard that it arrived is not taken for a fraud (`nf_conntrack_tcp_be_liberal` of the kernel's documentation).
fn liberal(making: &mut Message, state: &[u8]) {
    /// `CTA_PROTOINFO_TCP_FLAGS_ORIGINAL`, `_REPLY`: `struct nf_ct_tcp_flags`, which are set and which are spoken of.
    const FLAGS: [u16; 2] = [4, 5];
    /// `IP_CT_TCP_FLAG_*`: window scaling, selective acknowledgements, BE_LIBERAL. The others are about windows.
    const SPOKEN_OF: u8 = 1 | 2 | BE_LIBERAL;
    const BE_LIBERAL: u8 = 8;
    for (protocol, parts) in within(state) {
        if protocol != STATE_OF_TCP {
            making.add(protocol | NESTED, parts);
            continue;
        }
        making.nest(STATE_OF_TCP, |m| {
            for (kind, value) in within(parts) {
                match value.first() {
                    Some(flags) if FLAGS.contains(&kind) => m.add(kind, &[flags & SPOKEN_OF | BE_LIBERAL, SPOKEN_OF]),
                    _ => m.add(kind, value),
                };
            }
        });
    }
}

/// Adds what a reply has, with these ends in the place of its own; what is no port stays (types of ICMP).
fn untranslated(making: &mut Message, reply: &[u8], ends: Tuple) {
    ends.add_addresses(making);
    for (_, protocol) in within(reply).filter(|(part, _)| *part == PROTO) {
        making.nest(PROTO, |m| {
            for (kind, value) in within(protocol) {
                match kind {
                    SOURCE_PORT => m.add(kind, &ends.source.port().to_be_bytes()),
                    DESTINATION_PORT => m.add(kind, &ends.destination.port().to_be_bytes()),
                    _ => m.add(kind, value),
                };
            }
        });
    }
}

/// `CTA_NAT_*`: one address, and one port if there are such.
fn range(making: &mut Message, which: u16, end: SocketAddr) {
    /// `CTA_NAT_PROTO`.
    const PORTS: u16 = 3;
    let address = octets(end.ip());
    let (least, most) = if address.len() == 4 { (1, 2) } else { (4, 5) };
    making.nest(which, |m| {
        m.add(least, &address).add(most, &address);
        if end.port() != 0 {
            m.nest(PORTS, |m| {
                m.add(1, &end.port().to_be_bytes()).add(2, &end.port().to_be_bytes());
            });
        }
    });
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// What packets of one direction say, before anything is translated (`struct nf_conntrack_tuple`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

impl Tuple {
    /// Of an attribute; ports are 0 for protocols without.
    fn of(told: &Message, which: u16) -> Option<Tuple> {
        let tuple = told.attribute(HEADER, which)?;
        let part = |part: u16| within(tuple).find(|(kind, _)| *kind == part).map(|(_, value)| value);
        // CTA_IP_V4_SRC, _DST, V6_SRC, _DST
        let address = |numbers: [u16; 2]| {
            let (_, value) = within(part(IP)?).find(|(kind, _)| numbers.contains(kind))?;
            let v6 = || <[u8; 16]>::try_from(value).map(IpAddr::from);
            <[u8; 4]>::try_from(value).map(IpAddr::from).or_else(|_| v6()).ok()
        };
        let port = |number: u16| {
            let found = within(part(PROTO).unwrap_or_default()).find(|(kind, _)| *kind == number);
            found.and_then(|(_, value)| value.first_chunk()).map_or(0, |port| u16::from_be_bytes(*port))
        };
        let source = SocketAddr::new(address([1, 3])?, port(SOURCE_PORT));
        Some(Tuple { source, destination: SocketAddr::new(address([2, 4])?, port(DESTINATION_PORT)) })
    }

    /// That of the packets which answer, if nothing is translated.
    pub fn answered(self) -> Tuple {
        Tuple { source: self.destination, destination: self.source }
    }

    fn header(self) -> [u8; HEADER] {
        [if self.source.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8, 0, 0, 0]
    }

    /// Adds it, as one of TCP.
    fn add_to(self, message: &mut Message, which: u16) {
        const NUMBER: u16 = 1;
        const TCP: [u8; 1] = [libc::IPPROTO_TCP as u8];
        message.nest(which, |m| {
            self.add_addresses(m);
            m.nest(PROTO, |m| {
                m.add(NUMBER, &TCP).add(SOURCE_PORT, &self.source.port().to_be_bytes());
                m.add(DESTINATION_PORT, &self.destination.port().to_be_bytes());
            });
        });
    }

    fn add_addresses(self, message: &mut Message) {
        let (source, destination) = if self.source.is_ipv4() { (1, 2) } else { (3, 4) };
        message.nest(IP, |m| {
            m.add(source, &octets(self.source.ip())).add(destination, &octets(self.destination.ip()));
        });
    }
}

/// Both directions of a connection: from where it was begun, and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ways {
    pub original: Tuple,
    pub reply: Tuple,
}

impl Ways {
    /// Those that a message tells.
    pub fn of(told: &Message) -> Option<Ways> {
        Some(Ways { original: Tuple::of(told, ORIGINAL)?, reply: Tuple::of(told, REPLY)? })
    }

    /// Whether addresses or ports are translated in it.
    pub fn are_translated(&self) -> bool {
        self.original.answered() != self.reply
    }
}

/// Whether packets have gone both ways.
pub fn is_assured(told: &Message) -> bool {
    let status = told.attribute(HEADER, STATUS).and_then(|status| status.first_chunk());
    status.is_some_and(|status| u32::from_be_bytes(*status) & ASSURED != 0)
}

/// The connections of TCP that are tracked in a network namespace, one by one.
#[derive(Debug)]
pub struct Tracked(Conversation);

impl Tracked {
    /// Of the calling thread's network namespace; `None` where the kernel does not track.
    pub fn begin() -> Result<Option<Tracked>> {
        Ok(begin(all_of_ours)?.map(Tracked))
    }

    /// That of which one direction is this.
    pub fn find(&mut self, way: Tuple) -> Result<Option<Message>> {
        let mut request = Message::new(GET, 0, &way.header());
        way.add_to(&mut request, ORIGINAL);
        match self.0.question(&request) {
            Ok(told) => Ok(told.into_iter().find(|message| message.kind() == NEW)),
            Err(refusal) if refusal.errno == Errno::NOENT || is_lack(&refusal) => Ok(None),
            Err(refusal) => Err(refused("ask for one", refusal)),
        }
    }

    /// Forgets that of which one direction is this, if there is one.
    pub fn forget(&mut self, way: Tuple) -> Result<()> {
        let mut request = Message::new(DELETE, 0, &way.header());
        way.add_to(&mut request, ORIGINAL);
        match self.0.ask(&request) {
            Err(Refusal { errno: Errno::NOENT, .. }) => Ok(()),
            done => done.map_err(|e| refused("forget one", e)),
        }
    }

    /// Makes what a message has told; whether nothing was there in its place.
    pub fn make(&mut self, told: &Message) -> Result<bool> {
        let making = making(told);
        self.add(&making.retyped(making.kind(), CREATE | EXCLUSIVE))
    }

    /// Has packets of this direction sent to another address, for so many seconds; whether nothing was there in its place.
    pub fn divert(&mut self, way: Tuple, to: IpAddr, seconds: u32) -> Result<bool> {
        /// `CTA_PROTOINFO_TCP_STATE`, TCP_CONNTRACK_ESTABLISHED.
        const STATE: u16 = 1;
        const ESTABLISHED: [u8; 1] = [3];
        let mut making = Message::new(NEW, CREATE | EXCLUSIVE, &way.header());
        way.add_to(&mut making, ORIGINAL);
        way.answered().add_to(&mut making, REPLY);
        making.add(STATUS, &(SEEN_REPLY | ASSURED | CONFIRMED | FIXED_TIMEOUT).to_be_bytes());
        making.add(TIMEOUT, &seconds.to_be_bytes());
        making.nest(PROTOCOL_STATE, |m| {
            m.nest(STATE_OF_TCP, |m| {
                m.add(STATE, &ESTABLISHED);
            });
        });
        range(&mut making, NAT_DST, SocketAddr::new(to, 0));
        self.add(&making)
    }

    fn add(&mut self, making: &Message) -> Result<bool> {
        match self.0.ask(making) {
            Ok(()) => Ok(true),
            Err(Refusal { errno: Errno::EXIST, .. }) => Ok(false),
            Err(refusal) => Err(refused("make one", refusal)),
        }
    }
}

fn refused(action: &str, refusal: Refusal) -> Error {
    failed(all_of_ours(), action, refusal)
}

fn all_of_ours() -> Object {
    Object::Other("connections that this host tracks".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_come_back_from_a_message() {
        let ends = |source: &str, destination: &str| Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        };
        for (original, reply) in [
            (ends("10.0.0.9:4000", "10.0.0.1:80"), ends("10.88.0.5:8080", "10.88.0.1:4000")),
            (ends("[fd00::9]:4000", "[fd00::1]:80"), ends("[fd01::5]:8080", "[fd00::9]:4000")),
        ] {
            let mut told = Message::new(NEW, 0, &original.header());
            original.add_to(&mut told, ORIGINAL);
            reply.add_to(&mut told, REPLY);
            let ways = Ways::of(&told).unwrap();
            assert!(ways == Ways { original, reply } && ways.are_translated());
            // Asked for as a translation of what differs: of both ends, or of one.
            let making = making(&told);
            let asked = |which| making.attribute(HEADER, which).is_some();
            assert_eq!((asked(NAT_SRC), asked(NAT_DST)), (original.source != reply.destination, true));
            assert_eq!(Ways::of(&making), Some(Ways { original, reply: original.answered() }));
        }
    }
}
