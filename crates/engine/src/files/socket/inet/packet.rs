//! Packets in the name of a peer, sent from this host to itself: they bring
//! about what nothing but a packet does. Of TCP the beginning and the end of a
//! connection, and of UDP what was received and not read.

use cryonaut_kernel::sys::socket;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RawProtocol, SendFlags, SocketFlags, SocketType, sendto, socket_with};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Bits of a segment (RFC 9293): it ends its direction, begins it, resets the connection, has no more behind it, says up
/// to where all was received.
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 0x10;
/// It has urgent data.
pub const URG: u8 = 0x20;
/// Both of our network lock and of CRIU's let packets with this mark through.
pub const MARK: i32 = 0xc114;
const IPV6_HDRINCL: i32 = 36;
const HEADER: usize = 20;
/// How long a packet may take through this host.
const PATIENCE: Duration = Duration::from_millis(200);

/// A segment of TCP.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'s> {
    /// In whose name.
    pub from: SocketAddr,
    /// To whom, on this host.
    pub to: SocketAddr,
    /// Where it begins.
    pub sequence: u32,
    /// Up to where all was received.
    pub acknowledged: u32,
    pub flags: u8,
    /// As it is in the packet.
    pub window: u16,
    /// How far the byte behind the urgent one is from the beginning, if there is one.
    pub urgent: u16,
    /// As they are in the packet, a multiple of four bytes.
    pub options: &'s [u8],
    pub data: &'s [u8],
}

/// Sends it.
pub fn send(segment: &Segment<'_>) -> Result<(), Errno> {
    let length = HEADER + segment.options.len() + segment.data.len();
    send_as(segment.from, segment.to, libc::IPPROTO_TCP, length, |pseudo| segment.bytes(pseudo))
}

/// Sends a datagram of a protocol: UDP, or UDP-Lite with a checksum over all of it.
pub fn send_datagram(protocol: i32, from: SocketAddr, to: SocketAddr, data: &[u8]) -> Result<(), Errno> {
    const HEADER: usize = 8;
    let length = u16::try_from(HEADER + data.len()).map_err(|_| Errno::MSGSIZE)?;
    // UDP-Lite has in the place of the length how much the checksum covers, or 0 for all (RFC 3828).
    let told = if protocol == libc::IPPROTO_UDPLITE { 0 } else { length };
    let bytes = |pseudo: &Pseudo| {
        let mut udp = [from.port().to_be_bytes(), to.port().to_be_bytes(), told.to_be_bytes(), [0; 2]].concat();
        udp.extend(data);
        // Zero would say that there is none.
        let sum = Some(pseudo.checksum(&udp)).filter(|sum| *sum != 0).unwrap_or(0xffff);
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        udp
    };
    send_as(from, to, protocol, length.into(), bytes)
}

/// The header of IP before so many bytes of a protocol, and both addresses in it.
fn header(from: SocketAddr, to: SocketAddr, protocol: i32, length: u16) -> Result<(Vec<u8>, Vec<u8>), Errno> {
    let (mut header, addresses) = match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = (HEADER as u16).checked_add(length).ok_or(Errno::MSGSIZE)?.to_be_bytes();
            // Version and length, total length, lifetime, protocol; the kernel adds what is left.
            let header = vec![0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, protocol as u8, 0, 0];
            (header, [from.octets(), to.octets()].concat())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let total = length.to_be_bytes();
            let header = vec![0x60, 0, 0, 0, total[0], total[1], protocol as u8, 64];
            (header, [from.octets(), to.octets()].concat())
        }
        _ => return Err(Errno::AFNOSUPPORT),
    };
    header.extend(&addresses);
    Ok((header, addresses))
}

/// Tells `own` in the name of `peer` that something sent there has not arrived: a message of ICMP or ICMPv6 about a packet
/// of a protocol, of TCP one with this sequence number. The code is that of type 3 (or 1 of ICMPv6).
pub fn send_unreachable(
    code: u8,
    protocol: i32,
    (own, peer): (SocketAddr, SocketAddr),
    sequence: u32,
) -> Result<(), Errno> {
    const MESSAGE: usize = 8;
    const QUOTED: usize = 20;
    let v6 = peer.ip().to_canonical().is_ipv6();
    // Ports, and what stands behind them in TCP; of UDP length and checksum, at which nobody looks.
    let ports = [own.port().to_be_bytes(), peer.port().to_be_bytes()].concat();
    let quoted = [ports, sequence.to_be_bytes().to_vec(), vec![0; QUOTED - 8]].concat();
    let quoted = [header(own, peer, protocol, QUOTED as u16)?.0, quoted].concat();
    let (own_protocol, kind) = if v6 { (libc::IPPROTO_ICMPV6, 1) } else { (libc::IPPROTO_ICMP, 3) };
    let bytes = |pseudo: &Pseudo| {
        let mut message = [&[kind, code, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
        let sum = if v6 { pseudo.checksum(&message) } else { checksum(&message) };
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        message
    };
    send_as(peer, own, own_protocol, MESSAGE + quoted.len(), bytes)
}

/// Sends a packet as it is, to an address of this host.
pub fn send_whole(packet: &[u8], to: IpAddr) -> Result<(), Errno> {
    let socket = sender(if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 })?;
    sendto(&socket, packet, SendFlags::empty(), &SocketAddr::new(to, 0)).map(drop)
}

/// A socket for packets that have their headers.
fn sender(family: AddressFamily) -> Result<OwnedFd, Errno> {
    let raw = RawProtocol::new(libc::IPPROTO_RAW as u32).map(Protocol::from_raw);
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, raw)?;
    socket::set_int(&socket, libc::SOL_SOCKET, libc::SO_MARK, MARK)?;
    if family == AddressFamily::INET6 {
        socket::set_int(&socket, libc::IPPROTO_IPV6, IPV6_HDRINCL, 1)?;
    }
    Ok(socket)
}

/// What a checksum begins with: both addresses, length and protocol.
struct Pseudo(Vec<u8>);

impl Pseudo {
    fn checksum(&self, bytes: &[u8]) -> u16 {
        checksum(&[&self.0, bytes].concat())
    }
}

/// Sends a packet, of which `length` bytes are those of a protocol above IP.
fn send_as(
    from: SocketAddr,
    to: SocketAddr,
    protocol: i32,
    length: usize,
    bytes: impl Fn(&Pseudo) -> Vec<u8>,
) -> Result<(), Errno> {
    let length = u16::try_from(length).map_err(|_| Errno::MSGSIZE)?;
    let (mut packet, addresses) = header(from, to, protocol, length)?;
    let pseudo = [addresses, length.to_be_bytes().to_vec(), vec![0, protocol as u8]].concat();
    packet.extend(bytes(&Pseudo(pseudo)));
    let family = if to.ip().to_canonical().is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = sender(family)?;
    let mut whither = SocketAddr::new(to.ip().to_canonical(), 0);
    if let (SocketAddr::V6(whither), SocketAddr::V6(to)) = (&mut whither, to) {
        whither.set_scope_id(to.scope_id());
    }
    sendto(&socket, &packet, SendFlags::empty(), &whither).map(drop)
}

impl Segment<'_> {
    fn bytes(&self, pseudo: &Pseudo) -> Vec<u8> {
        let header = HEADER + self.options.len();
        let mut tcp = Vec::with_capacity(header + self.data.len());
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledged.to_be_bytes());
        tcp.extend([(header as u8 / 4) << 4, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 2]);
        tcp.extend(self.urgent.to_be_bytes());
        tcp.extend(self.options);
        tcp.extend(self.data);
        let sum = pseudo.checksum(&tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        tcp
    }
}

/// The internet's checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Waits until what was sent has had its effect.
pub fn arrives(has: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !has() {
        if begun.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_whole_is_zero() {
        let segment = Segment {
            from: "127.0.0.1:1000".parse().unwrap(),
            to: "127.0.0.1:2000".parse().unwrap(),
            sequence: 1,
            acknowledged: 2,
            flags: FIN | ACK,
            window: 3,
            urgent: 0,
            options: &[1; 4],
            data: b"odd",
        };
        let pseudo = Pseudo(vec![127, 0, 0, 1, 127, 0, 0, 1, 0, 27, 0, 6]);
        let whole = [&pseudo.0[..], &segment.bytes(&pseudo)].concat();
        assert_eq!(checksum(&whole), 0);
    }
}
