//! Options of sockets by their numbers (getsockopt(2), setsockopt(2)), and the numbers that libc lacks.
//!
//! rustix has a typed function for many of them; whoever reads and sets all that there are goes through tables.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::check;
use super::socket_inside::Key;
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, ioctl};

/// Numbers of `SOL_SOCKET` that libc lacks or has under a name of its own (asm-generic/socket.h).
pub mod so {
    pub const GET_FILTER: i32 = 26;
    pub const TIMESTAMP_OLD: i32 = 29;
    pub const TIMESTAMPNS_OLD: i32 = 35;
    pub const TIMESTAMPING_OLD: i32 = 37;
    pub const WIFI_STATUS: i32 = 41;
    pub const NOFCS: i32 = 43;
    pub const LOCK_FILTER: i32 = 44;
    pub const SELECT_ERR_QUEUE: i32 = 45;
    pub const DETACH_REUSEPORT_BPF: i32 = 68;
    pub const MAX_PACING_RATE: i32 = 47;
    pub const INCOMING_CPU: i32 = 49;
    pub const MEMINFO: i32 = 55;
    pub const ZEROCOPY: i32 = 60;
    pub const TXTIME: i32 = 61;
    pub const BINDTOIFINDEX: i32 = 62;
    pub const TIMESTAMP_NEW: i32 = 63;
    pub const TIMESTAMPNS_NEW: i32 = 64;
    pub const TIMESTAMPING_NEW: i32 = 65;
    pub const PREFER_BUSY_POLL: i32 = 69;
    pub const BUSY_POLL_BUDGET: i32 = 70;
    pub const NETNS_COOKIE: i32 = 71;
    pub const BUF_LOCK: i32 = 72;
    pub const RESERVE_MEM: i32 = 73;
    pub const TXREHASH: i32 = 74;
    pub const RCVMARK: i32 = 75;
    pub const PASSPIDFD: i32 = 76;
    pub const RCVPRIORITY: i32 = 82;
    pub const PASSRIGHTS: i32 = 83;
    pub const INQ: i32 = 84;
}

const TCP_ZEROCOPY_RECEIVE: i32 = 35;

/// A whole number.
pub fn get_int(socket: impl AsFd, level: i32, option: i32) -> Result<i32, Errno> {
    let mut value = 0i32;
    let mut size = size_of::<i32>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `size` bytes, which is the room that `value` has.
    check(unsafe { libc::getsockopt(fd, level, option, (&raw mut value).cast(), &raw mut size) })?;
    Ok(value)
}

/// Sets a whole number.
pub fn set_int(socket: impl AsFd, level: i32, option: i32, value: i32) -> Result<(), Errno> {
    set_bytes(socket, level, option, &value.to_ne_bytes())
}

/// Anything else, cut to what there is of it; at most `most` bytes are asked for.
pub fn get_bytes(socket: impl AsFd, level: i32, option: i32, most: usize) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0u8; most];
    get_into(socket, level, option, &mut value).map(|size| {
        value.truncate(size);
        value
    })
}

/// The same into a buffer, whose contents the kernel may look at first: some options take arguments there. The length
/// that the kernel tells; some options tell a count of something else.
pub fn get_into(socket: impl AsFd, level: i32, option: i32, value: &mut [u8]) -> Result<usize, Errno> {
    if (level, option) == (libc::IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE) {
        return Err(Errno::INVAL);
    }
    let mut size = value.len() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads and writes at most `size` bytes of `value`, which is as long. The one option that writes
    // to addresses which stand in the value is ruled out above.
    check(unsafe { libc::getsockopt(fd, level, option, value.as_mut_ptr().cast(), &raw mut size) })?;
    Ok(size as usize)
}

/// Sets anything else.
pub fn set_bytes(socket: impl AsFd, level: i32, option: i32, value: &[u8]) -> Result<(), Errno> {
    let fd = socket.as_fd().as_raw_fd();
    let size = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of `value`; options that hold addresses are not set through this.
    check(unsafe { libc::setsockopt(fd, level, option, value.as_ptr().cast(), size) }).map(drop)
}

/// The instructions of the classic filter of a socket, empty if there is none. EACCES if the filter is a program of
/// eBPF, which nobody tells.
pub fn get_filter(socket: impl AsFd) -> Result<Vec<libc::sock_filter>, Errno> {
    let fd = socket.as_fd().as_raw_fd();
    let mut count: libc::socklen_t = 0;
    // SAFETY: with room for no instruction, the kernel only tells how many there are.
    check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, so::GET_FILTER, std::ptr::null_mut(), &raw mut count) })?;
    let mut filter = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; count as usize];
    if !filter.is_empty() {
        let room = filter.as_mut_ptr().cast();
        // SAFETY: for this option the length counts instructions, of which `filter` has room for as many.
        check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, so::GET_FILTER, room, &raw mut count) })?;
        filter.truncate(count as usize);
    }
    Ok(filter)
}

/// `SO_ATTACH_FILTER`.
pub fn attach_filter(socket: impl AsFd, filter: &[libc::sock_filter]) -> Result<(), Errno> {
    attach_filter_for(socket, libc::SO_ATTACH_FILTER, filter)
}

/// A classic filter for another purpose: `SO_ATTACH_FILTER` or `SO_ATTACH_REUSEPORT_CBPF`; EINVAL for anything else.
pub fn attach_filter_for(socket: impl AsFd, option: i32, filter: &[libc::sock_filter]) -> Result<(), Errno> {
    if !matches!(option, libc::SO_ATTACH_FILTER | libc::SO_ATTACH_REUSEPORT_CBPF) {
        return Err(Errno::INVAL);
    }
    let len = u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    let fd = socket.as_fd().as_raw_fd();
    let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let program = (&raw const program).cast();
    // SAFETY: the kernel reads one sock_fprog, and from it `len` instructions, which `filter` has.
    check(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, program, size) }).map(drop)
}

const TCP_MD5SIG_EXT: i32 = 32;
/// Bytes of `struct tcp_md5sig` (linux/tcp.h), and where its fields are.
const MD5SIG: usize = 216;
const MD5SIG_FLAGS: usize = 128;
const MD5SIG_PREFIX: usize = 129;
const MD5SIG_LEN: usize = 130;
const MD5SIG_DEVICE: usize = 132;
const MD5SIG_KEY: usize = 136;

/// Has TCP sign what goes to a peer, and expect it of what comes from there (TCP_MD5SIG_EXT); without a key, not any more.
/// EINVAL for a key that is too long.
pub fn set_md5_key(socket: impl AsFd, key: &Key) -> Result<(), Errno> {
    const HAS_PREFIX: u8 = 1;
    const HAS_DEVICE: u8 = 2;
    let fd = socket.as_fd();
    let v6 = get_int(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)? == libc::AF_INET6;
    let mut all = [0u8; MD5SIG];
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    all[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    match (key.peer, v6) {
        (IpAddr::V4(v4), false) => all[4..8].copy_from_slice(&v4.octets()),
        (IpAddr::V4(v4), true) => all[8..24].copy_from_slice(&v4.to_ipv6_mapped().octets()),
        (IpAddr::V6(v6), true) => all[8..24].copy_from_slice(&v6.octets()),
        (IpAddr::V6(_), false) => return Err(Errno::INVAL),
    }
    all[MD5SIG_FLAGS] = HAS_PREFIX | if key.device == 0 { 0 } else { HAS_DEVICE };
    all[MD5SIG_PREFIX] = key.bits;
    all[MD5SIG_LEN..MD5SIG_DEVICE].copy_from_slice(&(key.key.len() as u16).to_ne_bytes());
    all[MD5SIG_DEVICE..MD5SIG_KEY].copy_from_slice(&key.device.to_ne_bytes());
    all.get_mut(MD5SIG_KEY..MD5SIG_KEY + key.key.len()).ok_or(Errno::INVAL)?.copy_from_slice(&key.key);
    set_bytes(fd, libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &all)
}

const SIOCOUTQ: Opcode = libc::TIOCOUTQ as Opcode;

/// `SIOCOUTQ`: of TCP, the bytes that the peer has not acknowledged; of others, the memory of what is on its way out.
/// EINVAL for a listening socket.
pub fn unsent(socket: impl AsFd) -> Result<i32, Errno> {
    // SAFETY: SIOCOUTQ writes one int.
    unsafe { ioctl(socket, Getter::<SIOCOUTQ, i32>::new()) }
}

const SIOCATMARK: Opcode = 0x8905;

/// `SIOCATMARK`: whether a stream is to be read from where a byte was sent out of band. EINVAL for sockets without such.
pub fn is_at_mark(socket: impl AsFd) -> Result<bool, Errno> {
    // SAFETY: SIOCATMARK writes one int.
    unsafe { ioctl(socket, Getter::<SIOCATMARK, i32>::new()) }.map(|at| at != 0)
}

const SIOCOUTQNSD: Opcode = 0x894b;

/// `SIOCOUTQNSD`: of TCP, the bytes that were not sent even once.
pub fn not_sent(socket: impl AsFd) -> Result<i32, Errno> {
    // SAFETY: SIOCOUTQNSD writes one int.
    unsafe { ioctl(socket, Getter::<SIOCOUTQNSD, i32>::new()) }
}

const SIOCGSKNS: Opcode = 0x894c;

/// `SIOCGSKNS`: opens the network namespace of a socket, or of a file of /dev/net/tun. EPERM without CAP_NET_ADMIN there.
pub fn network_of(socket: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: SIOCGSKNS takes nothing and answers with a new descriptor.
    let fd = check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS.into()) })?;
    // SAFETY: the kernel has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketType, socket};

    #[test]
    fn numbers_and_bytes_come_back() {
        let tcp = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        set_int(&tcp, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1).unwrap();
        assert_eq!(get_int(&tcp, libc::SOL_SOCKET, libc::SO_KEEPALIVE), Ok(1));
        set_bytes(&tcp, libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"reno").unwrap();
        let name = get_bytes(&tcp, libc::IPPROTO_TCP, libc::TCP_CONGESTION, 16).unwrap();
        assert!(name.starts_with(b"reno\0"), "{name:?}");
        assert_eq!(get_int(&tcp, 77, 1), Err(Errno::OPNOTSUPP));
        assert_eq!(unsent(&tcp), Ok(0));
    }

    #[test]
    fn a_filter_is_told_as_it_was_attached() {
        let udp = socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
        assert!(get_filter(&udp).unwrap().is_empty());
        let all = [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0xffff }];
        attach_filter(&udp, &all).unwrap();
        let told = get_filter(&udp).unwrap();
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].code, told[0].k), (all[0].code, all[0].k));
    }
}
