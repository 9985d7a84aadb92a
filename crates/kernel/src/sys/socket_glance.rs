//! All internet sockets of a process at a glance, read by a program of the kernel's own that walks its descriptors
//! ([`bpf_iter`]): what fields say, and would take a hundred calls of each socket to be told.
//!
//! Most of it is a [`Glance::likeness`]: the fields that options of a stream of TCP are made of. Nobody need understand
//! them. Sockets in which they are the same give the same answers to those options, so that one of them can be asked for
//! all. Whoever uses it had better ask a few more of them, and compare: a kernel may begin to keep something elsewhere.

use super::bpf_iter::{self, Field, Insn, Visit, load, load32, load64, mov, program, read, store_zero, store64, tell};
use super::tcp_repair::{Agreed, Window};
use super::unix_memory::Reader;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{OwnedFd, RawFd};
use std::sync::OnceLock;

/// What a process has open.
#[derive(Debug, Clone, Default)]
pub struct Descriptors {
    /// All of them, ascending.
    pub all: Vec<RawFd>,
    /// Those that are sockets of IPv4 and IPv6.
    pub sockets: BTreeMap<RawFd, Glance>,
}

/// A socket of IPv4 or IPv6. What is of TCP means nothing in another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glance {
    record: Box<[u8]>,
    likeness: Box<[u8]>,
    layout: &'static Layout,
}

/// A field, and where it is in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    of: Of,
    field: Field,
    place: usize,
    /// Bits of it that count.
    mask: u64,
}

/// What a field is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    Inode,
    File,
    Socket,
    V6,
}

/// Where everything is in a record. First comes the number of the descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layout {
    options: Vec<Part>,
    /// By whichever way packets leave, which says how many hops they may make.
    route: Part,
    parts: Vec<(Name, Part)>,
    /// What is read in one piece: from where, how much, and to which place.
    pieces: Vec<Piece>,
    len: usize,
    /// The word of the table in which the descriptor's close-on-exec is.
    cloexec: usize,
}

/// What is read beside the options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
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

type Piece = (Of, Field, usize);

/// In the first word of a record, above the number: that more follows.
const IS_INET: i32 = 1;
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
    fn of(reader: &Reader) -> Result<Layout, Errno> {
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

/// The program, and what it tells of a socket.
struct Ready {
    program: OwnedFd,
    layout: Layout,
}

fn ready() -> Result<&'static Ready, Errno> {
    static READY: OnceLock<Result<Ready, Errno>> = OnceLock::new();
    let make = || {
        let reader = Reader::new()?;
        let layout = Layout::of(&reader)?;
        let visit = Visit::Files(0);
        let program = load(reader.btf, visit.target(), &program(visit, &body(&reader, &layout)?))?;
        Ok(Ready { program, layout })
    };
    READY.get_or_init(make).as_ref().map_err(|e| *e)
}

/// Gets ready what takes longest; [`of_process`] does it if nobody has.
pub fn prepare() {
    let _ = ready();
}

/// A jump to what is told of anything else.
const TO_OTHERS: Insn = Insn { code: 0, dst: 0, src: 0, off: 0, imm: 0 };

/// Tells the record of a socket of IPv4 or IPv6, and of any other file its number alone. In register 8 is what is read
/// from.
fn body(reader: &Reader, layout: &Layout) -> Result<Vec<Insn>, Errno> {
    let of_file = |name, len| reader.field("file", name, len).map(|field| field.offset as i16);
    let inode = load64(8, 7, of_file("f_inode", 8)?);
    let whole = layout.len as i16;
    // A pointer on the way, and where the record begins.
    let way = -whole - 8;
    let follow = |field: Field| {
        let mut all = read(way, field.len, field.offset).to_vec();
        all.push(load64(8, 10, way));
        all
    };
    let equals = |value| Insn { code: 0x15, dst: 1, src: 0, off: 0, imm: value };
    let mut all: Vec<Insn> = (0..=whole / 8).map(|word| store_zero(10, way + 8 * word)).collect();
    let is_socket = i32::from(libc::S_IFSOCK as u16);
    all.extend([inode]);
    all.extend(read(way, 2, reader.field("inode", "i_mode", 2)?.offset));
    all.extend([load64(1, 10, way), Insn { code: 0x57, dst: 1, src: 0, off: 0, imm: libc::S_IFMT as i32 }]);
    all.extend([Insn { off: 1, ..equals(is_socket) }, TO_OTHERS]);
    fields(&mut all, layout, Of::Inode, -whole);
    all.push(mov(8, 7));
    fields(&mut all, layout, Of::File, -whole);
    all.push(load64(8, 7, of_file("private_data", 8)?));
    all.extend(follow(reader.field("socket", "sk", 8)?));
    all.push(store_zero(10, way));
    all.extend(read(way, 2, reader.field("sock_common", "skc_family", 2)?.offset));
    all.push(load64(1, 10, way));
    all.extend([Insn { off: 2, ..equals(libc::AF_INET) }, Insn { off: 1, ..equals(libc::AF_INET6) }, TO_OTHERS]);
    fields(&mut all, layout, Of::Socket, -whole);
    let v4 = all.len();
    all.push(equals(libc::AF_INET));
    all.extend(follow(reader.field("inet_sock", "pinet6", 8)?));
    fields(&mut all, layout, Of::V6, -whole);
    let past = all.len() - v4 - 1;
    // Register 1 is no more what it was.
    all.splice(v4..=v4, [load64(1, 10, way), Insn { off: past as i16, ..equals(libc::AF_INET) }]);
    // The task, and in its table of descriptors the word that has this one.
    all.extend([load64(8, 6, 8), Insn { code: 0x55, dst: 8, src: 0, off: 1, imm: 0 }, TO_OTHERS]);
    all.extend(follow(reader.field("task_struct", "files", 8)?));
    all.extend(follow(reader.field("files_struct", "fdt", 8)?));
    all.extend(follow(reader.field("fdtable", "close_on_exec", 8)?));
    let shift = |code, imm| Insn { code, dst: 1, src: 0, off: 0, imm };
    all.extend([load32(1, 6, 16), shift(0x77, 6), shift(0x67, 3)]);
    all.push(Insn { code: 0x0f, dst: 8, src: 1, off: 0, imm: 0 });
    all.extend(read(layout.cloexec as i16 - whole, 8, 0));
    all.extend([load32(1, 6, 16), store32(-whole, 1), store32_value(4 - whole, IS_INET)]);
    all.extend(tell(whole));
    let mut others = vec![load32(1, 6, 16), store64(10, -8, 1)];
    others.extend(tell(8));
    all.push(Insn { code: 0x05, dst: 0, src: 0, off: others.len() as i16, imm: 0 });
    let end = all.len();
    for (at, insn) in all.iter_mut().enumerate().filter(|(_, insn)| insn.code == 0) {
        *insn = Insn { code: 0x05, off: (end - at - 1) as i16, ..*insn };
    }
    all.extend(others);
    Ok(all)
}

/// Reads the fields of what register 8 leads to.
fn fields(all: &mut Vec<Insn>, layout: &Layout, of: Of, begin: i16) {
    for (_, field, place) in layout.pieces.iter().filter(|(its, ..)| *its == of) {
        all.extend(read(begin + *place as i16, field.len, field.offset));
    }
}

fn store32(place: i16, src: u8) -> Insn {
    Insn { code: 0x63, dst: 10, src, off: place, imm: 0 }
}

fn store32_value(place: i16, imm: i32) -> Insn {
    Insn { code: 0x62, dst: 10, src: 0, off: place, imm }
}

/// What a process has open, by any of its threads. ENOENT or ENOTSUP where the kernel does not describe its types, or has
/// others; EPERM without the right to look.
pub fn of_process(tid: i32) -> Result<Descriptors, Errno> {
    let ready = ready()?;
    let words = bpf_iter::run_for_files(&ready.program, tid)?;
    let mut rest = words.as_slice();
    let mut descriptors = Descriptors::default();
    while let Some(first) = rest.first() {
        let fd = *first as u32 as RawFd;
        descriptors.all.push(fd);
        let len = if first >> 32 == 0 { 1 } else { ready.layout.len / 8 };
        let (record, behind) = rest.split_at_checked(len).ok_or(Errno::BADMSG)?;
        rest = behind;
        if len > 1 {
            descriptors.sockets.insert(fd, Glance::new(&ready.layout, record));
        }
    }
    Ok(descriptors)
}

impl Glance {
    fn new(layout: &'static Layout, words: &[u64]) -> Glance {
        let record = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut glance = Glance { record, likeness: Box::default(), layout };
        let route = Some(&layout.route).filter(|_| glance.sort().0 == libc::AF_INET6);
        let mut likeness = Vec::with_capacity(glance.record.len());
        for part in layout.options.iter().chain(route) {
            likeness.extend_from_slice(&glance.value(part).to_le_bytes()[..part.field.len.into()]);
        }
        glance.likeness = likeness.into();
        glance
    }

    fn value(&self, part: &Part) -> u64 {
        let bytes = self.record.get(part.place..).unwrap_or_default().iter().take(part.field.len.into());
        bytes.rev().fold(0, |all, byte| all << 8 | u64::from(*byte)) & part.mask
    }

    /// Zero if it has none.
    fn get(&self, name: Name) -> u64 {
        let part = self.layout.parts.iter().find(|(its, _)| *its == name);
        part.map_or(0, |(_, part)| {
            self.value(part) >> if part.mask == u64::MAX { 0 } else { part.mask.trailing_zeros() }
        })
    }

    fn word(&self, name: Name) -> u32 {
        self.get(name) as u32
    }

    /// The fields that options of a stream of TCP are made of.
    #[must_use]
    pub fn likeness(&self) -> &[u8] {
        &self.likeness
    }

    /// `AF_*`, `SOCK_*`, `IPPROTO_*`.
    #[must_use]
    pub fn sort(&self) -> (i32, i32, i32) {
        (self.get(Name::Family) as i32, self.get(Name::Type) as i32, self.get(Name::Protocol) as i32)
    }

    /// `TCP_ESTABLISHED` (1) to `TCP_CLOSE` (7), `TCP_LISTEN` (10) and so on.
    #[must_use]
    pub fn state(&self) -> u32 {
        self.word(Name::State)
    }

    /// Its inode number.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.get(Name::Inode)
    }

    /// `O_*`; `O_CLOEXEC` is that of the descriptor.
    #[must_use]
    pub fn flags(&self) -> u32 {
        let fd = self.record.first_chunk().map_or(0, |fd| u32::from_le_bytes(*fd));
        let word = self.record.get(self.layout.cloexec..).and_then(|rest| rest.first_chunk());
        let cloexec = word.map_or(0, |word| u64::from_le_bytes(*word)) >> (fd % 64) & 1 != 0;
        let flags = self.word(Name::Flags) & !(libc::O_CLOEXEC as u32);
        if cloexec { flags | libc::O_CLOEXEC as u32 } else { flags }
    }

    /// Whether its file was ever locked.
    #[must_use]
    pub fn may_have_locks(&self) -> bool {
        self.get(Name::Locks) != 0
    }

    /// Whether its signals were ever given an owner, or a number.
    #[must_use]
    pub fn may_have_owner(&self) -> bool {
        self.get(Name::Owner) != 0
    }

    /// Whether an error waits for the program, or something in the queue of errors.
    #[must_use]
    pub fn has_error(&self) -> bool {
        self.get(Name::Error) != 0 || self.get(Name::Errors) != 0
    }

    /// What SO_SNDBUF and SO_RCVBUF tell.
    #[must_use]
    pub fn buffers(&self) -> (u32, u32) {
        (self.word(Name::SendBuffer), self.word(Name::ReceiveBuffer))
    }

    /// What TCP_WINDOW_CLAMP tells.
    #[must_use]
    pub fn window_clamp(&self) -> u32 {
        self.word(Name::WindowClamp)
    }

    /// Of one that listens: how many connections wait to be accepted.
    #[must_use]
    pub fn backlog(&self) -> u32 {
        self.word(Name::Backlog)
    }

    /// Both ends, its own first; those of IPv4 as such, also of a socket of IPv6.
    #[must_use]
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        let v6 = |high, low| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&self.get(high).to_le_bytes());
            bytes[8..].copy_from_slice(&self.get(low).to_le_bytes());
            IpAddr::from(bytes).to_canonical()
        };
        let v4 = |name| IpAddr::from(self.word(name).to_le_bytes());
        let (own, peer) = match self.sort().0 {
            libc::AF_INET6 => (v6(Name::V6, Name::V6Low), v6(Name::V6Peer, Name::V6PeerLow)),
            _ => (v4(Name::V4), v4(Name::V4Peer)),
        };
        let peer_port = u16::from_be_bytes((self.get(Name::PeerPort) as u16).to_le_bytes());
        (SocketAddr::new(own, self.get(Name::Port) as u16), SocketAddr::new(peer, peer_port))
    }

    /// Whether there is a mark of urgent data in what was received, or was before.
    #[must_use]
    pub fn has_urgent(&self) -> bool {
        self.get(Name::Urgent) != 0
    }

    /// What [`socket_inside`](super::socket_inside) reads of a descriptor, in its order.
    pub(super) fn inside(&self) -> [u64; 7] {
        [Name::Policy, Name::OtherPolicy, Name::Group, Name::Urgent, Name::Acknowledged, Name::Mark, Name::Keys]
            .map(|name| self.get(name))
    }

    /// What repair mode tells of a connection that is established, has read and sent everything, and has no mark of urgent
    /// data; `None` of any other.
    #[must_use]
    pub fn at_rest(&self) -> Option<AtRest> {
        const ESTABLISHED: u32 = 1;
        let (received, written) = (self.word(Name::ReceivedNext), self.word(Name::Written));
        let rests = self.state() == ESTABLISHED
            && self.word(Name::Read) == received
            && self.word(Name::Acknowledged) == written
            && self.get(Name::Urgent) == 0;
        rests.then(|| AtRest {
            received,
            written,
            window: Window {
                snd_wl1: self.word(Name::WindowFrom),
                snd_wnd: self.word(Name::Window),
                max_window: self.word(Name::MaxWindow),
                rcv_wnd: self.word(Name::OwnWindow),
                rcv_wup: self.word(Name::OwnWindowFrom),
            },
            agreed: Agreed {
                mss: self.word(Name::Mss),
                scales: (self.get(Name::Scaled) != 0).then(|| (self.word(Name::Scale), self.word(Name::OwnScale))),
                sack: self.get(Name::Sack) != 0,
                timestamps: self.get(Name::Timestamps) != 0,
            },
        })
    }
}

/// A connection whose queues are empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtRest {
    /// The sequence number of what is received next.
    pub received: u32,
    /// The sequence number of what is sent next.
    pub written: u32,
    pub window: Window,
    pub agreed: Agreed,
}

#[cfg(test)]
mod tests {
    use super::super::socket::{get_int, set_int};
    use super::super::tcp_repair::{self, Queue};
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    fn look() -> Option<Descriptors> {
        match of_process(std::process::id() as i32) {
            Ok(all) => Some(all),
            Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM) => None,
            Err(errno) => panic!("{errno}"),
        }
    }

    #[test]
    fn sockets_are_as_they_say() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let Some(all) = look() else { return };
            assert!(all.all.contains(&file.as_raw_fd()) && !all.sockets.contains_key(&file.as_raw_fd()));
            let (one, listening) = (&all.sockets[&client.as_raw_fd()], &all.sockets[&listener.as_raw_fd()]);
            let family = if address.starts_with('[') { libc::AF_INET6 } else { libc::AF_INET };
            assert_eq!(one.sort(), (family, libc::SOCK_STREAM, libc::IPPROTO_TCP));
            assert_eq!((one.state(), listening.state(), listening.backlog()), (1, 10, 1));
            assert_eq!(one.ends(), (client.local_addr().unwrap(), client.peer_addr().unwrap()));
            assert_eq!(one.flags(), (libc::O_RDWR | libc::O_CLOEXEC) as u32);
            let get = |level, option| get_int(&client, level, option).unwrap() as u32;
            let buffers = (get(libc::SOL_SOCKET, libc::SO_SNDBUF), get(libc::SOL_SOCKET, libc::SO_RCVBUF));
            assert_eq!(one.buffers(), buffers);
            assert_eq!(one.window_clamp(), get(libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP));
            assert!(!one.may_have_locks() && !one.may_have_owner() && !one.has_error());
            let before = one.likeness().to_vec();
            set_int(&client, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1).unwrap();
            rustix::io::fcntl_setfd(&client, rustix::io::FdFlags::empty()).unwrap();
            let one = look().unwrap().sockets[&client.as_raw_fd()].clone();
            assert_ne!(one.likeness(), before);
            assert_eq!(one.flags(), libc::O_RDWR as u32);
        }
    }

    #[test]
    fn a_connection_at_rest_is_as_repair_mode_tells() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let Some(all) = look() else { return };
        let at_rest = all.sockets[&client.as_raw_fd()].at_rest().unwrap();
        if tcp_repair::begin(&client).is_err() {
            return;
        }
        let sequence = |queue| {
            tcp_repair::choose(&client, queue).unwrap();
            tcp_repair::sequence(&client).unwrap()
        };
        assert_eq!((at_rest.received, at_rest.written), (sequence(Queue::Receive), sequence(Queue::Send)));
        assert_eq!(at_rest.window, tcp_repair::window(&client).unwrap());
        assert_eq!(at_rest.agreed.mss, tcp_repair::agreed_mss(&client).unwrap());
        let scales = super::super::socket::get_bytes(&client, libc::IPPROTO_TCP, libc::TCP_INFO, 8).unwrap()[6];
        assert_eq!(at_rest.agreed.scales, Some((u32::from(scales & 15), u32::from(scales >> 4))));
        tcp_repair::end_silently(&client).unwrap();
        std::io::Write::write_all(&mut &server, b"?").unwrap();
        assert_eq!(look().unwrap().sockets[&client.as_raw_fd()].at_rest(), None);
    }
}
