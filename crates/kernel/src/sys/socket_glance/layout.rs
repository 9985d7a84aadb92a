//! Which fields of the kernel's structures a glance has, and where they stand in its record.

use super::super::bpf_iter::Field;
use super::super::unix_memory::Reader;
use rustix::io::Errno;

/// A field, and where it is in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub of: Of,
    pub field: Field,
    pub place: usize,
    /// Bits of it that count.
    pub mask: u64,
}

/// What a field is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Of {
    Inode,
    File,
    Socket,
    V6,
}

/// Where everything is in a record. First comes the number of the descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub options: Vec<Part>,
    /// By whichever way packets leave, which says how many hops they may make.
    pub route: Part,
    pub parts: Vec<(Name, Part)>,
    /// What is read in one piece: from where, how much, and to which place.
    pub pieces: Vec<Piece>,
    pub len: usize,
    /// The word of the table in which the descriptor's close-on-exec is.
    pub cloexec: usize,
}

/// What is read beside the options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Network,
    Inode,
    Locks,
    Flags,
    Owner,
    Family,
    Type,
    Protocol,
    State,
    Port,
    PeerPort,
    V4,
    V4Peer,
    V6,
    V6Low,
    V6Peer,
    V6PeerLow,
    SendBuffer,
    ReceiveBuffer,
    WindowClamp,
    Error,
    Errors,
    Backlog,
    Policy,
    OtherPolicy,
    Group,
    Urgent,
    Acknowledged,
    Mark,
    Keys,
    ReceivedNext,
    Read,
    Written,
    WindowFrom,
    Window,
    MaxWindow,
    OwnWindow,
    OwnWindowFrom,
    Mss,
    Timestamps,
    Sack,
    Scaled,
    Scale,
    OwnScale,
}

pub(super) type Piece = (Of, Field, usize);

/// In the first word of a record, above the number: that more follows.
pub(super) const IS_INET: i32 = 1;
/// Most bytes of a record: what the stack of a program has, but for a word beside.
const MOST: usize = 512 - 16;

/// Longest piece that is read at once, and how much of it may be of no use between what is.
const WIDE: u32 = 128;
const NEAR: u32 = 4;

type Wanted = (&'static str, &'static str, u8);

/// Fields of `struct sock` and those around it (include/net/sock.h, net/inet_sock.h, net/inet_connection_sock.h,
/// linux/tcp.h) that options of a stream of TCP tell, or that are no zero where an option has more to tell.
const OPTIONS: &[Wanted] = &[
    ("sock_common", "skc_net", 8),
    ("sock_common", "skc_family", 2),
    ("sock_common", "skc_bound_dev_if", 4),
    ("sock_common", "skc_flags", 8),
    ("sock", "sk_type", 2),
    ("sock", "sk_protocol", 2),
    ("sock", "sk_peek_off", 4),
    ("sock", "sk_ll_usec", 4),
    ("sock", "sk_prefer_busy_poll", 1),
    ("sock", "sk_userlocks", 1),
    ("sock", "sk_filter", 8),
    ("sock", "sk_rcvtimeo", 8),
    ("sock", "sk_sndtimeo", 8),
    ("sock", "sk_rcvlowat", 4),
    ("sock", "sk_reserved_mem", 4),
    ("sock", "sk_tsflags", 4),
    ("sock", "sk_bind_phc", 4),
    ("sock", "sk_max_pacing_rate", 8),
    ("sock", "sk_priority", 4),
    ("sock", "sk_mark", 4),
    ("sock", "sk_lingertime", 8),
    ("sock", "sk_txrehash", 1),
    ("sock", "sk_clockid", 1),
    ("inet_sock", "inet_flags", 8),
    ("inet_sock", "uc_ttl", 2),
    ("inet_sock", "inet_opt", 8),
    ("inet_sock", "tos", 1),
    ("inet_sock", "min_ttl", 1),
    ("inet_sock", "pmtudisc", 1),
    ("inet_sock", "convert_csum", 1),
    ("inet_sock", "uc_index", 4),
    ("inet_sock", "local_port_range", 4),
    ("inet_connection_sock", "icsk_rto_min", 4),
    ("inet_connection_sock", "icsk_rto_max", 4),
    ("inet_connection_sock", "icsk_delack_max", 4),
    ("inet_connection_sock", "icsk_ca_ops", 8),
    ("inet_connection_sock", "icsk_ulp_ops", 8),
    ("inet_connection_sock", "icsk_syn_retries", 1),
    ("inet_connection_sock", "icsk_user_timeout", 4),
    ("tcp_sock", "notsent_lowat", 4),
    ("tcp_sock", "keepalive_probes", 1),
    ("tcp_sock", "keepalive_time", 4),
    ("tcp_sock", "keepalive_intvl", 4),
    ("tcp_sock", "tcp_tx_delay", 4),
    ("tcp_sock", "linger2", 4),
];

/// Fields of bits.
const BITS: &[(&str, &str)] = &[
    ("sock_common", "skc_reuse"),
    ("sock_common", "skc_reuseport"),
    ("sock_common", "skc_ipv6only"),
    ("sock", "sk_no_check_tx"),
    ("sock", "sk_txtime_deadline_mode"),
    ("sock", "sk_txtime_report_errors"),
    ("tcp_sock", "nonagle"),
    ("tcp_sock", "recvmsg_inq"),
    ("tcp_sock", "thin_lto"),
];

/// Those of IPv6 (include/linux/ipv6.h).
const OPTIONS_V6: &[Wanted] = &[
    ("ipv6_pinfo", "opt", 8),
    ("ipv6_pinfo", "hop_limit", 2),
    ("ipv6_pinfo", "pmtudisc", 1),
    ("ipv6_pinfo", "tclass", 1),
    ("ipv6_pinfo", "frag_size", 4),
    ("ipv6_pinfo", "ucast_oif", 4),
    ("ipv6_pinfo", "rxopt", 2),
    ("ipv6_pinfo", "srcprefs", 1),
    ("ipv6_pinfo", "min_hopcount", 1),
];

/// Those that a kernel may be built without.
const PERHAPS: &[Wanted] = &[("tcp_sock", "ao_info", 8)];

const PARTS: &[(Name, Of, Wanted)] = &[
    (Name::Inode, Of::Inode, ("inode", "i_ino", 8)),
    (Name::Locks, Of::Inode, ("inode", "i_flctx", 8)),
    (Name::Flags, Of::File, ("file", "f_flags", 4)),
    (Name::Owner, Of::File, ("file", "f_owner", 8)),
    (Name::Network, Of::Socket, ("sock_common", "skc_net", 8)),
    (Name::Family, Of::Socket, ("sock_common", "skc_family", 2)),
    (Name::Type, Of::Socket, ("sock", "sk_type", 2)),
    (Name::Protocol, Of::Socket, ("sock", "sk_protocol", 2)),
    (Name::State, Of::Socket, ("sock_common", "skc_state", 1)),
    (Name::Port, Of::Socket, ("sock_common", "skc_num", 2)),
    (Name::PeerPort, Of::Socket, ("sock_common", "skc_dport", 2)),
    (Name::V4, Of::Socket, ("sock_common", "skc_rcv_saddr", 4)),
    (Name::V4Peer, Of::Socket, ("sock_common", "skc_daddr", 4)),
    (Name::V6, Of::Socket, ("sock_common", "skc_v6_rcv_saddr", 8)),
    (Name::V6Peer, Of::Socket, ("sock_common", "skc_v6_daddr", 8)),
    (Name::SendBuffer, Of::Socket, ("sock", "sk_sndbuf", 4)),
    (Name::ReceiveBuffer, Of::Socket, ("sock", "sk_rcvbuf", 4)),
    (Name::WindowClamp, Of::Socket, ("tcp_sock", "window_clamp", 4)),
    (Name::Error, Of::Socket, ("sock", "sk_err", 4)),
    (Name::Backlog, Of::Socket, ("sock", "sk_ack_backlog", 4)),
    (Name::Policy, Of::Socket, ("sock", "sk_policy", 8)),
    (Name::Group, Of::Socket, ("sock", "sk_reuseport_cb", 8)),
    (Name::Urgent, Of::Socket, ("tcp_sock", "urg_data", 2)),
    (Name::Acknowledged, Of::Socket, ("tcp_sock", "snd_una", 4)),
    (Name::Mark, Of::Socket, ("tcp_sock", "snd_up", 4)),
    (Name::ReceivedNext, Of::Socket, ("tcp_sock", "rcv_nxt", 4)),
    (Name::Read, Of::Socket, ("tcp_sock", "copied_seq", 4)),
    (Name::Written, Of::Socket, ("tcp_sock", "write_seq", 4)),
    (Name::WindowFrom, Of::Socket, ("tcp_sock", "snd_wl1", 4)),
    (Name::Window, Of::Socket, ("tcp_sock", "snd_wnd", 4)),
    (Name::MaxWindow, Of::Socket, ("tcp_sock", "max_window", 4)),
    (Name::OwnWindow, Of::Socket, ("tcp_sock", "rcv_wnd", 4)),
    (Name::OwnWindowFrom, Of::Socket, ("tcp_sock", "rcv_wup", 4)),
];

/// What both ends of a connection have agreed upon (struct tcp_options_received).
const AGREED: &[(Name, &str)] = &[
    (Name::Timestamps, "tstamp_ok"),
    (Name::Sack, "sack_ok"),
    (Name::Scaled, "wscale_ok"),
    (Name::Scale, "snd_wscale"),
    (Name::OwnScale, "rcv_wscale"),
];

impl Layout {
    /// In the kernel that runs; ENOTSUP if it has anything elsewhere than is known.
    pub fn of(reader: &Reader) -> Result<Layout, Errno> {
        // Each begins with the one before.
        let nested = [
            ("sock", "__sk_common"),
            ("inet_sock", "sk"),
            ("inet_connection_sock", "icsk_inet"),
            ("tcp_sock", "inet_conn"),
        ];
        if nested.iter().any(|(outer, inner)| reader.btf.field(outer, inner) != Some(0)) {
            return Err(Errno::NOTSUP);
        }
        // Kernels before 6.12 have what this points to in its place.
        if !reader.btf.is_pointer("file", "f_owner") {
            return Err(Errno::NOTSUP);
        }
        let whole = u64::MAX;
        let route = Part::new(Of::Socket, (reader.field("sock", "sk_dst_cache", 8)?, whole));
        let (options, parts, pieces) = (Vec::new(), Vec::new(), Vec::new());
        let mut layout = Layout { options, route, parts, pieces, len: 8, cloexec: 0 };
        for (of, all) in [(Of::Socket, OPTIONS), (Of::V6, OPTIONS_V6)] {
            for wanted in all {
                layout.options.push(Part::new(of, (field(reader, *wanted)?, whole)));
            }
        }
        let perhaps = PERHAPS.iter().filter_map(|wanted| field(reader, *wanted).ok());
        layout.options.extend(perhaps.map(|field| Part::new(Of::Socket, (field, whole))));
        for (structure, name) in BITS {
            layout.options.push(Part::new(Of::Socket, bits(reader, structure, name, 0)?));
        }
        for (name, of, wanted) in PARTS {
            layout.part(*name, *of, (field(reader, *wanted)?, whole));
        }
        layout.beside(reader)?;
        layout.lay_out();
        if layout.len > MOST { Err(Errno::NOTSUP) } else { Ok(layout) }
    }

    /// Gives every part a place. What is near one another is read in one piece, which takes less time.
    fn lay_out(&mut self) {
        let Layout { options, route, parts, pieces, len, cloexec } = self;
        let others = parts.iter_mut().map(|(_, part)| part).chain([route]);
        let mut all: Vec<&mut Part> = options.iter_mut().chain(others).collect();
        all.sort_by_key(|part| (part.of, part.field.offset));
        for part in all {
            let end = part.field.offset + u32::from(part.field.len);
            match pieces.last_mut() {
                Some((of, piece, place))
                    if *of == part.of && end - piece.offset <= WIDE && is_near(piece, part.field) =>
                {
                    piece.len = piece.len.max((end - piece.offset) as u8);
                    part.place = *place + (part.field.offset - piece.offset) as usize;
                    *len = *place + usize::from(piece.len);
                }
                _ => {
                    part.place = *len;
                    *len += usize::from(part.field.len);
                    pieces.push((part.of, part.field, part.place));
                }
            }
        }
        *cloexec = *len;
        *len = (*len + 8).next_multiple_of(8);
    }

    /// What is not a field by its name.
    fn beside(&mut self, reader: &Reader) -> Result<(), Errno> {
        let whole = u64::MAX;
        let second = |field: Field| Field { offset: field.offset + 8, ..field };
        let errors = reader.inner(("sock", "sk_error_queue", "sk_buff_head", "qlen"), 4)?;
        self.part(Name::Errors, Of::Socket, (errors, whole));
        self.part(Name::OtherPolicy, Of::Socket, (second(reader.field("sock", "sk_policy", 8)?), whole));
        for (low, of) in [(Name::V6Low, "skc_v6_rcv_saddr"), (Name::V6PeerLow, "skc_v6_daddr")] {
            self.part(low, Of::Socket, (second(reader.field("sock_common", of, 8)?), whole));
        }
        // A kernel may be built without signatures.
        if let Ok(keys) = reader.field("tcp_sock", "md5sig_info", 8) {
            self.part(Name::Keys, Of::Socket, (keys, whole));
        }
        let agreed = reader.field("tcp_sock", "rx_opt", 8)?.offset;
        let mss = reader.field("tcp_options_received", "mss_clamp", 2)?;
        self.part(Name::Mss, Of::Socket, (Field { offset: agreed + mss.offset, ..mss }, whole));
        for (name, wanted) in AGREED {
            self.part(*name, Of::Socket, bits(reader, "tcp_options_received", wanted, agreed)?);
        }
        Ok(())
    }

    fn part(&mut self, name: Name, of: Of, what: (Field, u64)) {
        self.parts.push((name, Part::new(of, what)));
    }
}

/// Whether it takes less time to read what is between.
fn is_near(piece: &Field, next: Field) -> bool {
    next.offset <= piece.offset + u32::from(piece.len) + NEAR
}

impl Part {
    fn new(of: Of, (field, mask): (Field, u64)) -> Part {
        Part { of, field, place: 0, mask }
    }
}

fn field(reader: &Reader, (structure, name, len): Wanted) -> Result<Field, Errno> {
    reader.field(structure, name, len)
}

/// Bits of a structure that stands `base` bytes behind the beginning.
fn bits(reader: &Reader, structure: &str, name: &str, base: u32) -> Result<(Field, u64), Errno> {
    let (begin, count) = reader.btf.bit_field(structure, name).ok_or(Errno::NOTSUP)?;
    let len = (begin % 8 + count).div_ceil(8) as u8;
    let mask = ((1 << count) - 1) << (begin % 8);
    Ok((Field { offset: base + begin / 8, len }, mask))
}
