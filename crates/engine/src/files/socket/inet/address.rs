//! Addresses of internet sockets: as the kernel tells them, as the record has
//! them (words in the order of the network, ports as numbers), and back.

use crate::{Error, Result};
use cryonaut_image::records::InetSkEntry;
use cryonaut_kernel::sys::socket;
use rustix::io::Errno;
use rustix::net::SocketAddrAny;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::BorrowedFd;

/// Its own address.
pub fn local(socket: BorrowedFd<'_>) -> std::result::Result<SocketAddr, Errno> {
    of_inet(rustix::net::getsockname(socket)?)
}

/// The address that it is connected to; `None` if to none.
pub fn peer(socket: BorrowedFd<'_>) -> std::result::Result<Option<SocketAddr>, Errno> {
    match rustix::net::getpeername(socket) {
        Err(Errno::NOTCONN) | Ok(None) => Ok(None),
        Err(errno) => Err(errno),
        Ok(Some(address)) => of_inet(address).map(Some),
    }
}

/// The address that it was connected to last, or is being connected to; `None` if that was to none.
pub fn last_peer(socket: BorrowedFd<'_>) -> std::result::Result<Option<SocketAddr>, Errno> {
    let name = |most| socket::get_bytes(socket, libc::SOL_SOCKET, libc::SO_PEERNAME, most);
    // More than there is may not be asked for.
    let name = match name(SOCKADDR_V6) {
        Err(Errno::INVAL) => name(SOCKADDR),
        name => name,
    };
    let name = match name {
        Err(Errno::NOTCONN) => return Ok(None),
        name => name?,
    };
    // struct sockaddr_in, and struct sockaddr_in6.
    let port = |name: &[u8]| u16::from_be_bytes([name[2], name[3]]);
    let word = |at: usize| name.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes);
    let ip = |from: usize, len: usize| from_octets(name.get(from..from + len)?);
    Ok(match name.first_chunk().map(|family| i32::from(u16::from_ne_bytes(*family))) {
        Some(libc::AF_INET) => ip(4, 4).map(|ip| SocketAddr::new(ip, port(&name))),
        Some(libc::AF_INET6) => match (ip(8, 16), word(24)) {
            (Some(IpAddr::V6(v6)), Some(zone)) => Some(SocketAddrV6::new(v6, port(&name), 0, zone).into()),
            _ => None,
        },
        _ => None,
    })
}

/// Bytes of `struct sockaddr_in`, and of `struct sockaddr_in6`.
const SOCKADDR: usize = 16;
const SOCKADDR_V6: usize = 28;

fn of_inet(address: SocketAddrAny) -> std::result::Result<SocketAddr, Errno> {
    address.try_into()
}

/// As words of the record.
pub fn words(address: IpAddr) -> Vec<u32> {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    match address {
        IpAddr::V4(v4) => v4.octets().chunks(4).map(word).collect(),
        IpAddr::V6(v6) => v6.octets().chunks(4).map(word).collect(),
    }
}

/// The zone of an address that means something on one network alone.
pub fn zone(address: &SocketAddr) -> u32 {
    match address {
        SocketAddr::V6(v6) => v6.scope_id(),
        SocketAddr::V4(_) => 0,
    }
}

fn from_words(words: &[u32]) -> Option<IpAddr> {
    from_octets(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>())
}

fn from_octets(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).into()),
        _ => None,
    }
}

/// An address of the record with a port, in the zone of the device that it names.
pub fn of_record(record: &InetSkEntry, words: &[u32], port: u32, zone: u32) -> Result<SocketAddr> {
    let bad = || Error::bad_image("files.img", format!("socket {:#x} has no valid address", record.id));
    let port = u16::try_from(port).map_err(|_| bad())?;
    let ip = from_words(words).filter(|ip| ip.is_ipv6() == (record.family == libc::AF_INET6 as u32));
    Ok(match ip.ok_or_else(bad)? {
        IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_multicast() => {
            SocketAddrV6::new(v6, port, 0, zone).into()
        }
        ip => SocketAddr::new(ip, port),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_in_the_order_of_the_network() {
        assert_eq!(words(Ipv4Addr::LOCALHOST.into()), [16_777_343]);
        assert_eq!(words(Ipv6Addr::LOCALHOST.into()), [0, 0, 0, 16_777_216]);
        for ip in ["10.1.2.3", "fe80::1:2:3", "::ffff:1.2.3.4"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(from_words(&words(ip)), Some(ip));
        }
        assert_eq!(from_words(&[1, 2]), None);
    }
}
