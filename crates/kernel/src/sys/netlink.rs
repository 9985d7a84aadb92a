//! What the kernel tells of netlink sockets (netlink(7), sock_diag(7)), and no option of a socket does.

use super::sock_diag::{Service, attributes, dump, dump_from, word};
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

/// `struct netlink_diag_msg`.
const MESSAGE: usize = 28;
/// `NDIAG_PROTO_ALL` and `NDIAG_SHOW_FLAGS` (linux/netlink_diag.h).
const ALL: u8 = 0xff;
const SHOW_FLAGS: u32 = 8;
const FLAGS: u16 = 4;
const CB_RUNNING: u32 = 1;

/// Requests of nf_tables (linux/netfilter/nf_tables.h), with the number of their part of nfnetlink.
const GETTABLE: u16 = 10 << 8 | 1;
const NEWTABLE: u16 = 10 << 8;
/// `struct nfgenmsg`.
const NF_HEADER: usize = 4;
const TABLE_NAME: u16 = 1;
const TABLE_OWNER: u16 = 7;

/// A netlink socket, as the kernel tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetlinkSocket {
    /// 1 if it is connected.
    pub state: u8,
    /// Its inode number; 0 for those of the kernel.
    pub inode: u32,
    /// Whether the kernel has more to say to what it has asked for.
    pub answering: bool,
}

/// All netlink sockets of our network namespace that have a port or a group. ENOENT where the kernel lacks
/// CONFIG_NETLINK_DIAG.
pub fn all() -> Result<Vec<NetlinkSocket>, Errno> {
    let mut request = vec![libc::AF_NETLINK as u8, ALL, 0, 0];
    for number in [0, SHOW_FLAGS, u32::MAX, u32::MAX] {
        request.extend_from_slice(&number.to_ne_bytes());
    }
    dump(&request, MESSAGE, socket_of)
}

fn socket_of(body: &[u8]) -> NetlinkSocket {
    let flags = attributes(&body[MESSAGE..]).find(|(kind, value)| *kind == FLAGS && value.len() >= 4);
    let flags = flags.map_or(0, |(_, value)| word(value, 0));
    NetlinkSocket { state: body[3], inode: word(body, 16), answering: flags & CB_RUNNING != 0 }
}

/// Tables of nftables that belong to a socket (NFT_TABLE_F_OWNER): names, with the ports of the sockets. The kernel
/// removes them with their sockets.
pub fn owned_tables() -> Result<Vec<(String, u32)>, Errno> {
    let service = Service { protocol: NETFILTER, answer: NEWTABLE };
    let tables = dump_from(&service, GETTABLE, &[0; NF_HEADER], NF_HEADER, |body| {
        let (mut name, mut owner) = (String::new(), None);
        for (kind, value) in attributes(&body[NF_HEADER..]) {
            match (kind, value.first_chunk()) {
                (TABLE_NAME, _) => name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
                // As all numbers of nftables, in the order of the network.
                (TABLE_OWNER, Some(port)) => owner = Some(u32::from_be_bytes(*port)),
                _ => {}
            }
        }
        owner.map(|owner| (name, owner))
    })?;
    Ok(tables.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::netlink::SocketAddrNetlink;
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

    #[test]
    fn sockets_are_found_by_inode() {
        let one = socket(AddressFamily::NETLINK, SocketType::RAW, None).unwrap();
        let other = socket(AddressFamily::NETLINK, SocketType::RAW, None).unwrap();
        bind(&one, &SocketAddrNetlink::new(0, 0)).unwrap();
        connect(&other, &SocketAddrNetlink::new(0, 0)).unwrap();
        let inode = |socket| rustix::fs::fstat(socket).unwrap().st_ino as u32;
        let all = match all() {
            Ok(all) => all,
            // A kernel without it.
            Err(Errno::NOENT) => return,
            Err(errno) => panic!("{errno}"),
        };
        let find = |number| *all.iter().find(|socket| socket.inode == number).unwrap();
        assert_eq!(find(inode(&other)), NetlinkSocket { state: 1, inode: inode(&other), answering: false });
        assert_ne!(find(inode(&one)).state, 1);
    }
}
