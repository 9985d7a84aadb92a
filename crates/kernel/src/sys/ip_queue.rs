//! Packets that wait in a raw socket or one for pings, and those that have brought errors to any socket (MSG_ERRQUEUE), as
//! they stand in the kernel's memory ([`super::bpf_iter`]): a call tells of the first alone without taking it (SO_PEEK_OFF
//! is not for these), and of an error only by taking it.

use super::bpf_iter::Field;
use super::unix_memory::{Buffer, Reader};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// A packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpPacket {
    /// All of it, from the header of IP on.
    pub bytes: Vec<u8>,
    /// Where that header and those behind it end.
    pub payload: usize,
}

/// What waits, first come first. ENOENT or ENOTSUP where the kernel does not describe its types, has others, or has what
/// was received out of reach; EPERM without the right to look.
pub fn packets(socket: BorrowedFd<'_>) -> Result<Vec<IpPacket>, Errno> {
    let reader = Reader::new()?;
    let all = reader.received(reader.sock(socket)?)?;
    all.iter().map(|buffer| reader.packet(buffer)).collect()
}

/// A message in the queue of errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpError {
    /// The error.
    pub error: i32,
    /// The packet of ICMP that has brought it; `None` if it has another origin.
    pub packet: Option<Vec<u8>>,
}

/// The messages in the queue of errors of a socket, first come first. The errors are those of [`packets`].
pub fn errors(socket: BorrowedFd<'_>) -> Result<Vec<IpError>, Errno> {
    // SO_EE_ORIGIN_ICMP and SO_EE_ORIGIN_ICMP6 (linux/errqueue.h).
    const BY_PACKET: [u64; 2] = [2, 3];
    let reader = Reader::new()?;
    let begin = reader.field("sk_buff", "cb", 8)?.offset + reader.field("sock_exterr_skb", "ee", 8)?.offset;
    let told = |name, len| {
        reader.field("sock_extended_err", name, len).map(|field| Field { offset: begin + field.offset, ..field })
    };
    let fields = [told("ee_errno", 4)?, told("ee_origin", 1)?];
    let one = |buffer: &Buffer| {
        let [error, origin] = reader.values(buffer.address, &fields)?[..] else { return Err(Errno::NOTSUP) };
        let packet = BY_PACKET.contains(&origin).then(|| reader.packet(buffer)).transpose()?;
        Ok(IpError { error: error as i32, packet: packet.map(|packet| packet.bytes) })
    };
    reader.queue(reader.sock(socket)?, "sk_error_queue")?.iter().map(one).collect()
}

impl Reader {
    /// A packet, of which what was read by the kernel's own protocols stands in front of its data.
    fn packet(&self, buffer: &Buffer) -> Result<IpPacket, Errno> {
        let (text, headers) = (self.text(buffer)?.ok_or(Errno::NOTSUP)?, buffer.data.saturating_sub(buffer.network));
        // What a raw socket of IPv4 gets begins with its header.
        let mut bytes = self.bytes(buffer.network, headers as usize)?;
        bytes.extend(text);
        let payload = match bytes.first().map(|first| first >> 4) {
            Some(4) => usize::from(bytes[0] & 0xf) * 4,
            Some(6) if headers >= 40 => headers as usize,
            _ => return Err(Errno::NOTSUP),
        };
        if payload < 20 || payload > bytes.len() { Err(Errno::NOTSUP) } else { Ok(IpPacket { bytes, payload }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, Protocol, RawProtocol, SendFlags, SocketType, bind, sendto, socket};
    use std::net::SocketAddr;
    use std::os::fd::AsFd;

    #[test]
    fn packets_are_told_whole() {
        let protocol = RawProtocol::new(253).map(Protocol::from_raw);
        let receiver = match socket(AddressFamily::INET, SocketType::RAW, protocol) {
            Ok(receiver) => receiver,
            // Not root.
            Err(Errno::PERM) => return,
            Err(errno) => panic!("{errno}"),
        };
        let own: SocketAddr = "127.83.1.7:0".parse().unwrap();
        bind(&receiver, &own).unwrap();
        let sender = socket(AddressFamily::INET, SocketType::RAW, protocol).unwrap();
        let long: Vec<u8> = (0..20_000).map(|n| (n % 251) as u8).collect();
        for text in [b"hello".as_slice(), &long] {
            sendto(&sender, text, SendFlags::empty(), &own).unwrap();
        }
        let all = match packets(receiver.as_fd()) {
            Ok(all) => all,
            Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM) => return,
            Err(errno) => panic!("{errno}"),
        };
        assert_eq!(all.iter().map(|packet| packet.payload).collect::<Vec<_>>(), [20, 20]);
        assert_eq!((&all[0].bytes[16..], &all[1].bytes[20..]), (&b"\x7f\x53\x01\x07hello"[..], long.as_slice()));
    }
}
