//! What sock_diag tells of a socket of the internet, which no option of it does, and what TCP knows of its connection.
//! Each number is a field of its own, so that it can be said of each why it may differ.

use std::os::fd::BorrowedFd;

use cryonaut_kernel::sys::sock_diag::{InetDetail, details};
use cryonaut_kernel::sys::socket::get_int;
use libc::SOL_SOCKET;
use rustix::io::Errno;

use super::{Object, Taking};

/// `TCP_LISTEN`.
const LISTEN: u8 = 10;
/// Attributes of `struct inet_diag_msg` (linux/inet_diag.h) that are numbers or words, by their numbers. Not that of the
/// cgroup (21), which is its number on this machine; which one it is, is compared of the process.
const ATTRIBUTES: &[(u16, &str)] = &[
    (4, "congestion"),
    (5, "tos"),
    (6, "tclass"),
    (8, "shutdown"),
    (11, "v6only"),
    (15, "mark"),
    (17, "class"),
    (18, "md5"),
    (19, "ulp"),
    (22, "flags"),
];
const INFO: u16 = 2;
const MEMORY: u16 = 7;

/// Words of `SK_MEMINFO_*` (linux/sock_diag.h), in their order.
const MEMORY_WORDS: [&str; 9] =
    ["received", "rcvbuf", "on_its_way", "sndbuf", "in_advance", "queued", "options", "backlog", "drops"];

/// `struct tcp_info` (linux/tcp.h): each member's name, offset and size.
const TCP_INFO: &[(&str, usize, usize)] = &[
    ("state", 0, 1),
    ("ca_state", 1, 1),
    ("retransmits", 2, 1),
    ("probes", 3, 1),
    ("backoff", 4, 1),
    ("options", 5, 1),
    ("window_scales", 6, 1),
    // Its last bit says whether the rate of delivery was held up by the program.
    ("rate_and_fastopen", 7, 1),
    ("rto", 8, 4),
    ("ato", 12, 4),
    ("snd_mss", 16, 4),
    ("rcv_mss", 20, 4),
    ("unacked", 24, 4),
    ("sacked", 28, 4),
    ("lost", 32, 4),
    ("retrans", 36, 4),
    ("last_data_sent", 44, 4),
    ("last_data_recv", 52, 4),
    ("last_ack_recv", 56, 4),
    ("pmtu", 60, 4),
    ("rcv_ssthresh", 64, 4),
    ("rtt", 68, 4),
    ("rttvar", 72, 4),
    ("snd_ssthresh", 76, 4),
    ("snd_cwnd", 80, 4),
    ("advmss", 84, 4),
    ("reordering", 88, 4),
    ("rcv_rtt", 92, 4),
    ("rcv_space", 96, 4),
    ("total_retrans", 100, 4),
    ("pacing_rate", 104, 8),
    ("max_pacing_rate", 112, 8),
    ("bytes_acked", 120, 8),
    ("bytes_received", 128, 8),
    ("segs_out", 136, 4),
    ("segs_in", 140, 4),
    ("notsent_bytes", 144, 4),
    ("min_rtt", 148, 4),
    ("data_segs_in", 152, 4),
    ("data_segs_out", 156, 4),
    ("delivery_rate", 160, 8),
    ("busy_time", 168, 8),
    ("rwnd_limited", 176, 8),
    ("sndbuf_limited", 184, 8),
    ("delivered", 192, 4),
    ("delivered_ce", 196, 4),
    ("bytes_sent", 200, 8),
    ("bytes_retrans", 208, 8),
    ("dsack_dups", 216, 4),
    ("reord_seen", 220, 4),
    ("rcv_ooopack", 224, 4),
    ("snd_wnd", 228, 4),
    ("rcv_wnd", 232, 4),
    ("rehash", 236, 4),
];

pub(super) fn take(taking: &mut Taking, object: &Object, socket: BorrowedFd<'_>) {
    let told = match told(taking, socket) {
        Ok(Some(told)) => told,
        // Without a port it is in no list.
        Ok(None) => return taking.put(object, "socket.diag", "not told"),
        Err(errno) => return taking.put_result::<String>(object, "socket.diag", Err(errno)),
    };
    let mut put = |name: &str, value: String| taking.put(object, format!("socket.diag.{name}"), value);
    let (own, peer) = told.socket.ends();
    put("state", told.socket.state.to_string());
    put("ends", format!("{own} {peer}"));
    put("device", told.device.to_string());
    put("uid", told.uid.to_string());
    put("timer", told.timer.to_string());
    put("retransmits", told.retransmits.to_string());
    put("expires", told.expires_ms.to_string());
    // Of others these are words of memory, which come below.
    if get_int(socket, SOL_SOCKET, libc::SO_PROTOCOL) == Ok(libc::IPPROTO_TCP) {
        put("received", told.received.to_string());
        put("sent", told.sent.to_string());
    }
    for (kind, value) in &told.attributes {
        let hex = || value.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        match ATTRIBUTES.iter().find(|(number, _)| number == kind) {
            Some((_, name)) => put(name, hex()),
            None if *kind == MEMORY => memory(&mut put, value),
            None if *kind == INFO => connection(&mut put, value, told.socket.state == LISTEN),
            None => {}
        }
    }
}

/// Asked once for all sockets of a family and protocol.
fn told(taking: &mut Taking, socket: BorrowedFd<'_>) -> Result<Option<InetDetail>, Errno> {
    let get = |option| get_int(socket, SOL_SOCKET, option).map(|value| u8::try_from(value).unwrap_or(0));
    let which = (get(libc::SO_DOMAIN)?, get(libc::SO_PROTOCOL)?);
    let inode = rustix::fs::fstat(socket)?.st_ino as u32;
    let all = taking.inet.entry(which).or_insert_with(|| details(which.0, which.1));
    all.as_ref().map(|all| all.iter().find(|told| told.socket.inode == inode).cloned()).map_err(|errno| *errno)
}

fn memory(put: &mut impl FnMut(&str, String), value: &[u8]) {
    for (name, word) in MEMORY_WORDS.iter().zip(value.chunks_exact(4)) {
        put(&format!("memory.{name}"), number(word).to_string());
    }
}

fn connection(put: &mut impl FnMut(&str, String), value: &[u8], listens: bool) {
    for (name, at, size) in TCP_INFO {
        let Some(bytes) = value.get(*at..at + size) else { continue };
        // Of one that listens: how many wait, and may.
        let name = match *name {
            "unacked" if listens => "wait",
            "sacked" if listens => "may_wait",
            name => name,
        };
        if name == "rate_and_fastopen" {
            put("tcp.fastopen", (bytes[0] >> 1).to_string());
        } else {
            put(&format!("tcp.{name}"), number(bytes).to_string());
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
