//! Options that are a number, or bytes, and nothing more: tables of them by
//! level, and how they are carried beside the record.
//!
//! What is as in a new socket is not written down: it follows the host (many
//! defaults are sysctls), here as there. An option that a kernel does not have
//! is as good as one at its default.

use super::beside::{Extra, Known};
use super::{Sort, cannot_set};
use crate::files::OpenFile;
use crate::{Error, Object, Result, hexadecimal};
use cryonaut_kernel::sys::packet::opt;
use cryonaut_kernel::sys::socket::{self, so};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd};

/// What an option says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// A number.
    Number(i32),
    /// Bytes, in hexadecimal.
    Bytes(String),
}

/// When an option is set again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before the socket gets an address.
    Early,
    /// When it has everything else.
    Late,
}

/// An option.
#[derive(Debug)]
pub struct Setting {
    name: &'static str,
    level: i32,
    option: i32,
    /// Most bytes of it; 0 if it is a number.
    most: usize,
    when: When,
}

const fn number(name: &'static str, level: i32, option: i32) -> Setting {
    Setting { name, level, option, most: 0, when: When::Early }
}

const fn bytes(name: &'static str, level: i32, option: i32, most: usize) -> Setting {
    Setting { name, level, option, most, when: When::Early }
}

const fn late(setting: Setting) -> Setting {
    Setting { when: When::Late, ..setting }
}

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, SOL_SOCKET};

/// Of every socket.
pub static SOCKET: &[Setting] = &[
    number("so_debug", SOL_SOCKET, libc::SO_DEBUG),
    bytes("so_linger", SOL_SOCKET, libc::SO_LINGER, 8),
    // The flags of both time stamps are in common; the newer form is the one that tells itself apart.
    late(bytes("so_timestamping", SOL_SOCKET, so::TIMESTAMPING_OLD, 8)),
    late(bytes("so_timestamping_new", SOL_SOCKET, so::TIMESTAMPING_NEW, 8)),
    number("so_timestamp", SOL_SOCKET, so::TIMESTAMP_OLD),
    number("so_timestampns", SOL_SOCKET, so::TIMESTAMPNS_OLD),
    number("so_timestamp_new", SOL_SOCKET, so::TIMESTAMP_NEW),
    number("so_timestampns_new", SOL_SOCKET, so::TIMESTAMPNS_NEW),
    number("so_rcvmark", SOL_SOCKET, so::RCVMARK),
    number("so_rcvpriority", SOL_SOCKET, so::RCVPRIORITY),
    number("so_rxq_ovfl", SOL_SOCKET, libc::SO_RXQ_OVFL),
    number("so_wifi_status", SOL_SOCKET, so::WIFI_STATUS),
    late(number("so_peek_off", SOL_SOCKET, libc::SO_PEEK_OFF)),
    number("so_nofcs", SOL_SOCKET, so::NOFCS),
    number("so_select_err_queue", SOL_SOCKET, so::SELECT_ERR_QUEUE),
    number("so_busy_poll", SOL_SOCKET, libc::SO_BUSY_POLL),
    number("so_prefer_busy_poll", SOL_SOCKET, so::PREFER_BUSY_POLL),
    bytes("so_max_pacing_rate", SOL_SOCKET, so::MAX_PACING_RATE, 8),
    number("so_zerocopy", SOL_SOCKET, so::ZEROCOPY),
    bytes("so_txtime", SOL_SOCKET, so::TXTIME, 8),
    number("so_reserve_mem", SOL_SOCKET, so::RESERVE_MEM),
    number("so_txrehash", SOL_SOCKET, so::TXREHASH),
    late(number("so_lock_filter", SOL_SOCKET, so::LOCK_FILTER)),
];

/// Of Unix sockets: whether the sender's pidfd comes with messages, whether descriptors may, and how much is left.
pub static UNIX: &[Setting] = &[
    number("so_passpidfd", SOL_SOCKET, so::PASSPIDFD),
    number("so_passrights", SOL_SOCKET, so::PASSRIGHTS),
    number("so_inq", SOL_SOCKET, so::INQ),
];

/// Numbers that libc lacks (linux/in.h, linux/in6.h).
mod ip {
    pub const RECVERR_RFC4884: i32 = 26;
    pub const LOCAL_PORT_RANGE: i32 = 51;
    pub const V6_2292_PKTINFO: i32 = 2;
    pub const V6_2292_HOPOPTS: i32 = 3;
    pub const V6_2292_DSTOPTS: i32 = 4;
    pub const V6_2292_RTHDR: i32 = 5;
    pub const V6_2292_HOPLIMIT: i32 = 8;
    pub const V6_MULTICAST_ALL: i32 = 29;
    pub const V6_ROUTER_ALERT_ISOLATE: i32 = 30;
    pub const V6_RECVERR_RFC4884: i32 = 31;
    pub const V6_FLOWINFO_SEND: i32 = 33;
    pub const V6_AUTOFLOWLABEL: i32 = 70;
    pub const V6_MINHOPCOUNT: i32 = 73;
    pub const V6_UNICAST_IF: i32 = 76;
    pub const V6_RECVFRAGSIZE: i32 = 77;
}

/// Of IPv4, also of sockets of IPv6 unless they are raw.
pub static IP: &[Setting] = &[
    number("ip_tos", IPPROTO_IP, libc::IP_TOS),
    number("ip_ttl", IPPROTO_IP, libc::IP_TTL),
    bytes("ip_options", IPPROTO_IP, libc::IP_OPTIONS, 40),
    number("ip_recvopts", IPPROTO_IP, libc::IP_RECVOPTS),
    number("ip_retopts", IPPROTO_IP, libc::IP_RETOPTS),
    number("ip_pktinfo", IPPROTO_IP, libc::IP_PKTINFO),
    number("ip_mtu_discover", IPPROTO_IP, libc::IP_MTU_DISCOVER),
    number("ip_recverr", IPPROTO_IP, libc::IP_RECVERR),
    number("ip_recverr_rfc4884", IPPROTO_IP, ip::RECVERR_RFC4884),
    number("ip_recvttl", IPPROTO_IP, libc::IP_RECVTTL),
    number("ip_recvtos", IPPROTO_IP, libc::IP_RECVTOS),
    number("ip_passsec", IPPROTO_IP, libc::IP_PASSSEC),
    number("ip_recvorigdstaddr", IPPROTO_IP, libc::IP_RECVORIGDSTADDR),
    number("ip_minttl", IPPROTO_IP, libc::IP_MINTTL),
    number("ip_nodefrag", IPPROTO_IP, libc::IP_NODEFRAG),
    number("ip_checksum", IPPROTO_IP, libc::IP_CHECKSUM),
    number("ip_recvfragsize", IPPROTO_IP, libc::IP_RECVFRAGSIZE),
    number("ip_transparent", IPPROTO_IP, libc::IP_TRANSPARENT),
    number("ip_bind_address_no_port", IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
    number("ip_local_port_range", IPPROTO_IP, ip::LOCAL_PORT_RANGE),
    number("ip_unicast_if", IPPROTO_IP, libc::IP_UNICAST_IF),
    late(number("ip_freebind", IPPROTO_IP, libc::IP_FREEBIND)),
];

/// Of IPv6.
pub static IPV6: &[Setting] = &[
    number("ipv6_unicast_hops", IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    number("ipv6_mtu_discover", IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    number("ipv6_recverr", IPPROTO_IPV6, libc::IPV6_RECVERR),
    number("ipv6_recverr_rfc4884", IPPROTO_IPV6, ip::V6_RECVERR_RFC4884),
    number("ipv6_router_alert_isolate", IPPROTO_IPV6, ip::V6_ROUTER_ALERT_ISOLATE),
    number("ipv6_2292pktinfo", IPPROTO_IPV6, ip::V6_2292_PKTINFO),
    number("ipv6_2292hopopts", IPPROTO_IPV6, ip::V6_2292_HOPOPTS),
    number("ipv6_2292dstopts", IPPROTO_IPV6, ip::V6_2292_DSTOPTS),
    number("ipv6_2292rthdr", IPPROTO_IPV6, ip::V6_2292_RTHDR),
    number("ipv6_2292hoplimit", IPPROTO_IPV6, ip::V6_2292_HOPLIMIT),
    number("ipv6_recvpktinfo", IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    number("ipv6_recvhoplimit", IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    number("ipv6_recvhopopts", IPPROTO_IPV6, libc::IPV6_RECVHOPOPTS),
    number("ipv6_recvrthdr", IPPROTO_IPV6, libc::IPV6_RECVRTHDR),
    number("ipv6_recvdstopts", IPPROTO_IPV6, libc::IPV6_RECVDSTOPTS),
    number("ipv6_recvpathmtu", IPPROTO_IPV6, libc::IPV6_RECVPATHMTU),
    number("ipv6_recvtclass", IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    number("ipv6_recvorigdstaddr", IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR),
    number("ipv6_recvfragsize", IPPROTO_IPV6, ip::V6_RECVFRAGSIZE),
    bytes("ipv6_hopopts", IPPROTO_IPV6, libc::IPV6_HOPOPTS, 2048),
    bytes("ipv6_rthdrdstopts", IPPROTO_IPV6, libc::IPV6_RTHDRDSTOPTS, 2048),
    bytes("ipv6_rthdr", IPPROTO_IPV6, libc::IPV6_RTHDR, 2048),
    bytes("ipv6_dstopts", IPPROTO_IPV6, libc::IPV6_DSTOPTS, 2048),
    number("ipv6_tclass", IPPROTO_IPV6, libc::IPV6_TCLASS),
    number("ipv6_dontfrag", IPPROTO_IPV6, libc::IPV6_DONTFRAG),
    number("ipv6_flowinfo_send", IPPROTO_IPV6, ip::V6_FLOWINFO_SEND),
    number("ipv6_autoflowlabel", IPPROTO_IPV6, ip::V6_AUTOFLOWLABEL),
    number("ipv6_addr_preferences", IPPROTO_IPV6, libc::IPV6_ADDR_PREFERENCES),
    number("ipv6_minhopcount", IPPROTO_IPV6, ip::V6_MINHOPCOUNT),
    number("ipv6_transparent", IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    number("ipv6_unicast_if", IPPROTO_IPV6, ip::V6_UNICAST_IF),
    late(number("ipv6_freebind", IPPROTO_IPV6, libc::IPV6_FREEBIND)),
];

/// Of IPv4, where the socket is no stream: those refuse them.
pub static IP_MULTICAST: &[Setting] = &[
    bytes("ip_multicast_if", IPPROTO_IP, libc::IP_MULTICAST_IF, 4),
    number("ip_multicast_ttl", IPPROTO_IP, libc::IP_MULTICAST_TTL),
    number("ip_multicast_loop", IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    number("ip_multicast_all", IPPROTO_IP, libc::IP_MULTICAST_ALL),
];

/// The same of IPv6.
pub static IPV6_MULTICAST: &[Setting] = &[
    number("ipv6_multicast_if", IPPROTO_IPV6, libc::IPV6_MULTICAST_IF),
    number("ipv6_multicast_hops", IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    number("ipv6_multicast_loop", IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
    number("ipv6_multicast_all", IPPROTO_IPV6, ip::V6_MULTICAST_ALL),
];

/// Numbers that libc lacks (linux/tcp.h).
mod tcp {
    pub const THIN_LINEAR_TIMEOUTS: i32 = 16;
    pub const SAVE_SYN: i32 = 27;
    pub const FASTOPEN_CONNECT: i32 = 30;
    pub const FASTOPEN_KEY: i32 = 33;
    pub const FASTOPEN_NO_COOKIE: i32 = 34;
    pub const INQ: i32 = 36;
    pub const TX_DELAY: i32 = 37;
    pub const RTO_MAX_MS: i32 = 44;
    pub const RTO_MIN_US: i32 = 45;
    pub const DELACK_MAX_US: i32 = 46;
}

/// Of TCP in every state.
pub static TCP: &[Setting] = &[
    number("tcp_syncnt", IPPROTO_TCP, libc::TCP_SYNCNT),
    number("tcp_linger2", IPPROTO_TCP, libc::TCP_LINGER2),
    number("tcp_thin_linear_timeouts", IPPROTO_TCP, tcp::THIN_LINEAR_TIMEOUTS),
    number("tcp_user_timeout", IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    number("tcp_notsent_lowat", IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
    number("tcp_inq", IPPROTO_TCP, tcp::INQ),
    number("tcp_tx_delay", IPPROTO_TCP, tcp::TX_DELAY),
    number("tcp_rto_max_ms", IPPROTO_TCP, tcp::RTO_MAX_MS),
    number("tcp_rto_min_us", IPPROTO_TCP, tcp::RTO_MIN_US),
    number("tcp_delack_max_us", IPPROTO_TCP, tcp::DELACK_MAX_US),
];

/// Of TCP that is not connected: later they say something else, or nothing.
pub static TCP_AT_REST: &[Setting] = &[
    number("tcp_maxseg", IPPROTO_TCP, libc::TCP_MAXSEG),
    number("tcp_defer_accept", IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    number("tcp_window_clamp", IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
    number("tcp_save_syn", IPPROTO_TCP, tcp::SAVE_SYN),
    number("tcp_fastopen", IPPROTO_TCP, libc::TCP_FASTOPEN),
    number("tcp_fastopen_connect", IPPROTO_TCP, tcp::FASTOPEN_CONNECT),
    number("tcp_fastopen_no_cookie", IPPROTO_TCP, tcp::FASTOPEN_NO_COOKIE),
    bytes("tcp_fastopen_key", IPPROTO_TCP, tcp::FASTOPEN_KEY, 32),
];

/// Of TCP that is connected.
pub static TCP_CONNECTED: &[Setting] = &[late(number("tcp_window_clamp_now", IPPROTO_TCP, libc::TCP_WINDOW_CLAMP))];

/// Numbers that libc lacks (linux/udp.h).
mod udp {
    pub const CORK: i32 = 1;
    pub const ENCAP: i32 = 100;
    pub const NO_CHECK6_TX: i32 = 101;
    pub const NO_CHECK6_RX: i32 = 102;
    pub const SEGMENT: i32 = 103;
    pub const GRO: i32 = 104;
}

/// Of UDP.
pub static UDP: &[Setting] = &[
    late(number("udp_cork", IPPROTO_UDP, udp::CORK)),
    number("udp_encap", IPPROTO_UDP, udp::ENCAP),
    number("udp_no_check6_tx", IPPROTO_UDP, udp::NO_CHECK6_TX),
    number("udp_no_check6_rx", IPPROTO_UDP, udp::NO_CHECK6_RX),
    number("udp_segment", IPPROTO_UDP, udp::SEGMENT),
    number("udp_gro", IPPROTO_UDP, udp::GRO),
];

/// Of UDP-Lite (linux/udp.h): how much of a datagram the checksum is to cover.
pub static UDPLITE: &[Setting] = &[
    number("udplite_send_cscov", libc::IPPROTO_UDPLITE, 10),
    number("udplite_recv_cscov", libc::IPPROTO_UDPLITE, 11),
    number("udp_no_check6_tx_lite", libc::IPPROTO_UDPLITE, udp::NO_CHECK6_TX),
    number("udp_no_check6_rx_lite", libc::IPPROTO_UDPLITE, udp::NO_CHECK6_RX),
];

/// Of raw sockets; each has some of them.
pub static RAW: &[Setting] = &[
    number("ip_hdrincl", IPPROTO_IP, libc::IP_HDRINCL),
    number("ipv6_hdrincl", IPPROTO_IPV6, 36),
    number("ipv6_checksum", SOL_RAW, libc::IPV6_CHECKSUM),
    bytes("icmp_filter", SOL_RAW, 1, 4),
    bytes("icmpv6_filter", libc::IPPROTO_ICMPV6, 1, 32),
];

/// `SOL_RAW` (linux/socket.h).
const SOL_RAW: i32 = 255;

/// Numbers that libc lacks (linux/netlink.h).
mod netlink {
    pub const PKTINFO: i32 = 3;
    pub const BROADCAST_ERROR: i32 = 4;
    pub const NO_ENOBUFS: i32 = 5;
    pub const LISTEN_ALL_NSID: i32 = 8;
    pub const CAP_ACK: i32 = 10;
    pub const EXT_ACK: i32 = 11;
    pub const GET_STRICT_CHK: i32 = 12;
}

/// Of netlink.
pub static NETLINK: &[Setting] = &[
    number("netlink_pktinfo", libc::SOL_NETLINK, netlink::PKTINFO),
    number("netlink_broadcast_error", libc::SOL_NETLINK, netlink::BROADCAST_ERROR),
    number("netlink_no_enobufs", libc::SOL_NETLINK, netlink::NO_ENOBUFS),
    number("netlink_listen_all_nsid", libc::SOL_NETLINK, netlink::LISTEN_ALL_NSID),
    number("netlink_cap_ack", libc::SOL_NETLINK, netlink::CAP_ACK),
    number("netlink_ext_ack", libc::SOL_NETLINK, netlink::EXT_ACK),
    number("netlink_get_strict_chk", libc::SOL_NETLINK, netlink::GET_STRICT_CHK),
];

/// Of packet sockets, those that the record has not.
pub static PACKET: &[Setting] = &[
    number("packet_vnet_hdr_sz", libc::SOL_PACKET, opt::VNET_HDR_SZ),
    number("packet_tx_has_off", libc::SOL_PACKET, opt::TX_HAS_OFF),
    number("packet_qdisc_bypass", libc::SOL_PACKET, opt::QDISC_BYPASS),
    number("packet_ignore_outgoing", libc::SOL_PACKET, opt::IGNORE_OUTGOING),
];

/// Where the choice of a receiver among several goes by processor: no packet moves it there.
pub static RECEIVERS: &[Setting] = &[number("so_incoming_cpu", SOL_SOCKET, so::INCOMING_CPU)];

impl Setting {
    /// Its level and number.
    #[cfg(test)]
    pub fn number(&self) -> (i32, i32) {
        (self.level, self.option)
    }

    /// What it says.
    fn get(&self, socket: impl AsFd) -> std::result::Result<Value, Errno> {
        if self.most == 0 {
            return socket::get_int(socket, self.level, self.option).map(Value::Number);
        }
        socket::get_bytes(socket, self.level, self.option, self.most).map(|bytes| self.value(&bytes))
    }

    /// An answer.
    fn value(&self, told: &[u8]) -> Value {
        match told.first_chunk().filter(|_| self.most == 0) {
            Some(number) => Value::Number(i32::from_ne_bytes(*number)),
            None => Value::Bytes(hexadecimal::encode(told)),
        }
    }

    fn set(&self, socket: BorrowedFd<'_>, value: &Value) -> std::result::Result<(), Errno> {
        match value {
            Value::Number(number) => socket::set_int(socket, self.level, self.option, *number),
            Value::Bytes(text) => {
                let bytes = hexadecimal::decode(text).ok_or(Errno::INVAL)?;
                socket::set_bytes(socket, self.level, self.option, &bytes)
            }
        }
    }
}

/// What a socket says to a table of options, one answer behind the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    bytes: Vec<u8>,
    /// Where each ends; `None` for an option that it does not have.
    ends: Vec<Option<u32>>,
}

impl Answers {
    /// Asks for all of a table.
    pub fn of(socket: BorrowedFd<'_>, table: &[Setting]) -> Answers {
        let mut all = Answers { bytes: Vec::with_capacity(4 * table.len()), ends: Vec::with_capacity(table.len()) };
        for setting in table {
            let begin = all.bytes.len();
            let most = if setting.most == 0 { size_of::<i32>() } else { setting.most };
            all.bytes.resize(begin + most, 0);
            let got = socket::get_into(socket, setting.level, setting.option, &mut all.bytes[begin..]);
            // Of none, nothing is left; and some options tell a length of something else.
            all.bytes.truncate(begin + got.unwrap_or(0));
            all.ends.push(got.is_ok().then_some(all.bytes.len() as u32));
        }
        all
    }

    fn iter(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let mut begin = 0;
        self.ends.iter().map(move |end| {
            let end = end.as_ref().map(|end| *end as usize);
            let answer = end.map(|end| &self.bytes[begin..end]);
            begin = end.unwrap_or(begin);
            answer
        })
    }
}

/// Notes what of the tables is not as in a new socket.
pub fn collect(known: &mut Known, file: &OpenFile<'_>, sort: Sort, tables: &[&'static [Setting]], extra: &mut Extra) {
    for table in tables {
        let asked;
        let told = match file.asked.table(table) {
            Some(told) => told,
            None => {
                asked = Answers::of(file.file, table);
                &asked
            }
        };
        for ((setting, fresh), told) in table.iter().zip(known.fresh(sort, table).iter()).zip(told.iter()) {
            if let Some(told) = told.filter(|told| Some(*told) != fresh) {
                extra.options.insert(setting.name.to_owned(), setting.value(told));
            }
        }
    }
}

/// Sets those whose time it is.
pub fn build(
    socket: BorrowedFd<'_>,
    tables: &[&'static [Setting]],
    extra: &Extra,
    when: When,
    object: impl Fn() -> Object,
) -> Result<()> {
    if extra.options.is_empty() {
        return Ok(());
    }
    for setting in tables.iter().copied().flatten().filter(|setting| setting.when == when) {
        let Some(value) = extra.options.get(setting.name) else { continue };
        if setting.get(socket).as_ref() != Ok(value) {
            setting.set(socket, value).map_err(|e| cannot_set(object(), &setting.name.to_uppercase(), e))?;
        }
    }
    Ok(())
}

/// Options that no table has would be lost.
pub fn check_names(tables: &[&'static [Setting]], extra: &Extra) -> Result<()> {
    let has = |name: &str| tables.iter().copied().flatten().any(|setting| setting.name == name);
    match extra.options.keys().find(|name| !has(name)) {
        None => Ok(()),
        Some(name) => Err(Error::bad_image("cryonaut-sockets.json", format!("no such socket has an option {name}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an option that a socket does not have, nothing stands between the answers.
    #[test]
    fn answers_stand_apart() {
        static TABLE: &[Setting] = &[
            number("so_keepalive", SOL_SOCKET, libc::SO_KEEPALIVE),
            number("none", SOL_SOCKET, 9999),
            bytes("so_linger", SOL_SOCKET, libc::SO_LINGER, 8),
            number("so_type", SOL_SOCKET, libc::SO_TYPE),
        ];
        let socket = Sort { family: libc::AF_INET, kind: libc::SOCK_DGRAM, protocol: 0 }.make().unwrap();
        let all = Answers::of(socket.as_fd(), TABLE);
        let values: Vec<_> = TABLE.iter().zip(all.iter()).map(|(one, told)| told.map(|told| one.value(told))).collect();
        let zeros = Value::Bytes("0".repeat(16));
        assert_eq!(values, [Some(Value::Number(0)), None, Some(zeros), Some(Value::Number(libc::SOCK_DGRAM))]);
    }

    #[test]
    fn names_are_unique() {
        let all = [
            SOCKET,
            IP,
            IPV6,
            IP_MULTICAST,
            IPV6_MULTICAST,
            TCP,
            TCP_AT_REST,
            TCP_CONNECTED,
            UDP,
            UDPLITE,
            RAW,
            NETLINK,
            PACKET,
            RECEIVERS,
        ];
        let mut names: Vec<&str> = all.iter().copied().flatten().map(|setting| setting.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
