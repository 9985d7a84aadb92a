//! What the kernel has of sockets of TCP and no call tells: connections that wait to be accepted, which nobody has a
//! descriptor of, and where the mark of urgent data is. Read from the kernel's memory ([`super::bpf_iter`]).

use super::bpf_insn::{Insn, load64, store_zero, store64};
use super::bpf_iter::{self, Field, Visit, read, tell};
use super::bpf_memory;
use super::direct_map::DirectMap;
use super::unix_memory::Reader;
use rustix::io::Errno;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

/// More than may wait (a backlog is a u32, but net.core.somaxconn is far less), and more buffers than a queue can have.
const MOST: usize = 1 << 20;
/// Pages of data that a buffer can have (MAX_SKB_FRAGS is 17, and at most 45).
const MOST_FRAGMENTS: u64 = 45;
/// `skb_frag_t`: the page's descriptor, then length and offset, four bytes each.
const FRAGMENT: usize = 16;

/// A connection that waits to be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its own address, and the peer's; those of IPv4 as such, also at a socket of IPv6.
    pub ends: (SocketAddr, SocketAddr),
    /// `TCP_ESTABLISHED` (1), or `TCP_CLOSE_WAIT` (8) if the peer has sent its end, or another.
    pub state: u8,
    /// The error that waits for whoever accepts it, or 0.
    pub error: i32,
    /// The sequence number of what is sent next.
    pub sent: u32,
    /// Up to where the peer has acknowledged.
    pub acknowledged: u32,
    /// What the peer lets be sent.
    pub window: u32,
    /// The largest segment that the peer takes.
    pub mss: u16,
    /// By how many bits windows are shifted, the peer's and our own.
    pub scales: Option<(u8, u8)>,
    /// Whether the peer takes selective acknowledgements.
    pub sack: bool,
    /// The last time stamp of the peer, where both send them.
    pub timestamp: Option<u32>,
    /// What it has received.
    pub unread: Unread,
}

/// A connection of which the handshake is not over: the peer has begun it and been answered (SYN_RECV). It may have
/// acknowledged that, and so hold the connection for established: one that listens with TCP_DEFER_ACCEPT, or of which the
/// queue is full, goes on when more comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HalfOpen {
    /// As in [`Waiting`].
    pub ends: (SocketAddr, SocketAddr),
    /// The sequence numbers of what is sent next, and of what is awaited.
    pub sent: u32,
    pub received: u32,
    /// Whether the peer has acknowledged the answer.
    pub acknowledged: bool,
    /// The time stamp of our first answer: what the peer repeats must not be older (tcp_check_req). `None` of a kernel that
    /// does not look at that.
    pub answered_at: Option<u32>,
    /// Our window, as it stands in packets behind the answer.
    pub window: u16,
    /// The rest is as in [`Waiting`].
    pub mss: u16,
    pub scales: Option<(u8, u8)>,
    pub sack: bool,
    pub timestamp: Option<u32>,
}

/// `TCP_NEW_SYN_RECV` (include/net/tcp_states.h).
const NEW_SYN_RECV: i32 = 12;

/// What a socket has received and its program has not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// The sequence number of the first byte.
    pub begin: u32,
    /// Data, the urgent byte included.
    pub data: Vec<u8>,
    /// The mark of urgent data, if that is not behind what was read.
    pub urgent: Option<Urgent>,
}

/// Urgent data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Urgent {
    /// The sequence number of the byte.
    pub at: u32,
    /// What has become of it.
    pub state: UrgentState,
}

/// What has become of urgent data (include/net/tcp.h, TCP_URG_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UrgentState {
    /// It is announced, and has not arrived.
    Announced,
    /// The program can read it.
    Valid,
    /// The program has read it.
    Read,
}

/// What both ends have agreed upon, in struct tcp_options_received and struct inet_request_sock alike.
const AGREED: [&str; 5] = ["tstamp_ok", "wscale_ok", "sack_ok", "snd_wscale", "rcv_wscale"];
/// What is read of a connection, in the order of [`Reader::numbers`].
const NUMBERS: usize = 16;

impl Reader {
    /// The sockets that wait at one that listens, first come first.
    fn waiting(&self, listener: u64) -> Result<Vec<u64>, Errno> {
        let head = ("inet_connection_sock", "icsk_accept_queue", "request_sock_queue", "rskq_accept_head");
        let next = [self.field("request_sock", "dl_next", 8)?, self.field("request_sock", "sk", 8)?];
        let mut at = self.read(&[listener], &[self.inner(head, 8)?])?[0][0];
        let mut all = Vec::new();
        while at != 0 {
            if all.len() == MOST {
                return Err(Errno::NOTSUP);
            }
            let told = self.read(&[at], &next)?;
            all.push(told[0][1]);
            at = told[0][0];
        }
        Ok(all)
    }

    /// Both addresses of a connection: those of IPv4, then both halves of each of IPv6.
    fn addresses(&self) -> Result<[Field; 6], Errno> {
        let common = |name, len| self.field("sock_common", name, len);
        let (own, other) = (common("skc_v6_rcv_saddr", 8)?, common("skc_v6_daddr", 8)?);
        let behind = |field: Field| Field { offset: field.offset + 8, ..field };
        Ok([common("skc_rcv_saddr", 4)?, common("skc_daddr", 4)?, own, behind(own), other, behind(other)])
    }

    fn numbers(&self) -> Result<[Field; NUMBERS], Errno> {
        let common = |name, len| self.field("sock_common", name, len);
        let tcp = |name, len| self.field("tcp_sock", name, len);
        let agreed = |name, len| self.inner(("tcp_sock", "rx_opt", "tcp_options_received", name), len);
        let [own, other, own_first, own_second, other_first, other_second] = self.addresses()?;
        Ok([
            common("skc_family", 2)?,
            common("skc_state", 1)?,
            // Who has been reset has no `skc_num` any more.
            self.field("inet_sock", "inet_sport", 2)?,
            common("skc_dport", 2)?,
            own,
            other,
            own_first,
            own_second,
            other_first,
            other_second,
            tcp("write_seq", 4)?,
            tcp("snd_una", 4)?,
            tcp("snd_wnd", 4)?,
            agreed("ts_recent", 4)?,
            agreed("mss_clamp", 2)?,
            self.field("sock", "sk_err", 4)?,
        ])
    }

    /// Bit fields of what was agreed upon: whether there are time stamps, scales and selective acknowledgements, and the
    /// peer's scale and our own.
    fn agreed(&self, socks: &[u64]) -> Result<Vec<[u8; 5]>, Errno> {
        let begin = self.field("tcp_sock", "rx_opt", 8)?.offset;
        self.bits(socks, ("tcp_options_received", begin), AGREED)
    }

    /// Bit fields of a structure that stands `begin` bytes behind each address.
    fn bits<const N: usize>(
        &self,
        bases: &[u64],
        (structure, begin): (&str, u32),
        names: [&str; N],
    ) -> Result<Vec<[u8; N]>, Errno> {
        let bits = names.map(|name| self.btf.bit_field(structure, name));
        let mut fields = Vec::new();
        for (bits, _) in bits.into_iter().flatten() {
            fields.push(Field { offset: begin + bits / 8, len: 2 });
        }
        if fields.len() < names.len() {
            return Err(Errno::NOTSUP);
        }
        let value = |(word, bits): (&u64, &Option<(u32, u32)>)| {
            bits.map_or(0, |(begin, size)| (word >> (begin % 8)) as u8 & ((1u16 << size) - 1) as u8)
        };
        let one = |words: Vec<u64>| {
            let mut all = [0; N];
            all.iter_mut().zip(words.iter().zip(&bits)).for_each(|(place, both)| *place = value(both));
            all
        };
        Ok(self.read(bases, &fields)?.into_iter().map(one).collect())
    }

    /// The handshakes in our network namespace that are not over (struct tcp_request_sock).
    fn handshakes(&self) -> Result<Vec<u64>, Errno> {
        // Each begins with the one before.
        let nested = [("tcp_request_sock", "req"), ("inet_request_sock", "req"), ("request_sock", "__req_common")];
        if nested.iter().any(|(outer, inner)| self.btf.field(outer, inner) != Some(0)) {
            return Err(Errno::NOTSUP);
        }
        let state = self.field("sock_common", "skc_state", 1)?;
        let mut body = vec![store_zero(10, -16)];
        body.extend(read(-16, state.len, state.offset));
        let tell = tell(8);
        let past = tell.len() as i16 + 1;
        body.extend([load64(1, 10, -16), Insn { code: 0x55, dst: 1, src: 0, off: past, imm: NEW_SYN_RECV }]);
        body.push(store64(10, -8, 8));
        body.extend(tell);
        let visit = Visit::Connections;
        bpf_iter::run(&bpf_iter::load(self.btf, visit.target(), &bpf_iter::program(visit, &body))?, visit)
    }

    fn of_handshake(&self) -> Result<[Field; 13], Errno> {
        let common = |name, len| self.field("sock_common", name, len);
        let [own, other, own_first, own_second, other_first, other_second] = self.addresses()?;
        Ok([
            common("skc_family", 2)?,
            common("skc_listener", 8)?,
            common("skc_num", 2)?,
            common("skc_dport", 2)?,
            own,
            other,
            own_first,
            own_second,
            other_first,
            other_second,
            self.field("tcp_request_sock", "snt_isn", 4)?,
            self.field("tcp_request_sock", "rcv_isn", 4)?,
            self.field("request_sock", "mss", 2)?,
        ])
    }

    /// What sockets have received, in order of their sequence numbers.
    fn unread(&self, socks: &[u64]) -> Result<Vec<Unread>, Errno> {
        let tcp = |name, len| self.field("tcp_sock", name, len);
        let fields = [tcp("copied_seq", 4)?, tcp("rcv_nxt", 4)?, tcp("urg_seq", 4)?, tcp("urg_data", 2)?];
        let numbers = self.read(socks, &fields)?;
        let queues = self.queues(socks)?;
        let buffers = self.contents(&queues.concat())?;
        let mut rest = buffers.as_slice();
        let mut all = Vec::new();
        for (numbers, queue) in numbers.iter().zip(&queues) {
            let [begin, end, urgent, word] = numbers[..] else { return Err(Errno::NOTSUP) };
            let (begin, end, urgent) = (begin as u32, end as u32, urgent as u32);
            let (own, others) = rest.split_at(queue.len());
            rest = others;
            // What is in order begins where something was read, and ends where something is awaited; an end counts as one.
            let mut data = Vec::new();
            for buffer in own {
                let from = begin.wrapping_add(data.len() as u32).wrapping_sub(buffer.sequence) as usize;
                if let Some(new) = buffer.data.get(from..) {
                    data.extend_from_slice(new);
                }
            }
            if !(0..=1).contains(&(end.wrapping_sub(begin).wrapping_sub(data.len() as u32))) {
                return Err(Errno::NOTSUP);
            }
            let state = match word >> 8 {
                1 => Some(UrgentState::Valid),
                2 => Some(UrgentState::Announced),
                4 => Some(UrgentState::Read),
                _ => None,
            };
            let ahead = urgent.wrapping_sub(begin) as i32 >= 0;
            let urgent = state.filter(|_| ahead).map(|state| Urgent { at: urgent, state });
            all.push(Unread { begin, data, urgent });
        }
        Ok(all)
    }

    /// The buffers in the queues of sockets.
    fn queues(&self, socks: &[u64]) -> Result<Vec<Vec<u64>>, Errno> {
        let queue = self.field("sock", "sk_receive_queue", 8)?.offset;
        let next = [self.field("sk_buff", "next", 8)?];
        // The head of the list begins as its members do.
        let heads: Vec<u64> = socks.iter().map(|sock| sock + u64::from(queue)).collect();
        let mut at = heads.clone();
        let mut all = vec![Vec::new(); socks.len()];
        for _ in 0..MOST {
            let told = self.read(&at, &next)?;
            let mut ended = true;
            for (n, told) in told.iter().enumerate() {
                if told[0] != heads[n] && told[0] != 0 {
                    all[n].push(told[0]);
                    at[n] = told[0];
                    ended = false;
                }
            }
            if ended {
                return Ok(all);
            }
        }
        Err(Errno::NOTSUP)
    }

    /// The data of buffers.
    fn contents(&self, buffers: &[u64]) -> Result<Vec<Buffer>, Errno> {
        let skb = |name, len| self.field("sk_buff", name, len);
        let control = skb("cb", 8)?.offset + self.field("tcp_skb_cb", "seq", 4)?.offset;
        let fields = [
            Field { offset: control, len: 4 },
            skb("len", 4)?,
            skb("data_len", 4)?,
            skb("data", 8)?,
            skb("head", 8)?,
            skb("end", 4)?,
        ];
        let told = self.read(buffers, &fields)?;
        // The descriptors of pages stand behind the linear part.
        let shared: Vec<u64> = told.iter().map(|told| told[4] + told[5]).collect();
        let shares = [self.field("skb_shared_info", "nr_frags", 1)?, self.field("skb_shared_info", "frag_list", 8)?];
        let shares = self.read(&shared, &shares)?;
        let fragments = u64::from(self.field("skb_shared_info", "frags", 8)?.offset);
        let mut lists = Vec::new();
        for ((told, share), shared) in told.iter().zip(&shares).zip(&shared) {
            let count = if told[2] == 0 { 0 } else { share[0] };
            if count > MOST_FRAGMENTS || told[2] != 0 && share[1] != 0 {
                return Err(Errno::NOTSUP);
            }
            lists.push((shared + fragments, count as usize * FRAGMENT / 8));
        }
        let lists = bpf_memory::words(self.btf, self.own, &lists)?;
        let mut pieces = Vec::new();
        let mut counts = Vec::new();
        for (told, list) in told.iter().zip(&lists) {
            let linear = told[1].saturating_sub(told[2]) as usize;
            let before = pieces.len();
            if linear > 0 {
                pieces.push((told[3], linear));
            }
            for fragment in list.chunks_exact(2) {
                let (len, offset) = (fragment[1] & 0xffff_ffff, fragment[1] >> 32);
                // The lowest bit says that it is no memory (net_iov).
                if fragment[0] & 1 != 0 {
                    return Err(Errno::NOTSUP);
                }
                pieces.push((DirectMap::running()?.page(fragment[0]) + offset, len as usize));
            }
            counts.push(pieces.len() - before);
        }
        let places: Vec<(u64, usize)> = pieces.iter().map(|(at, len)| (*at, len.div_ceil(8))).collect();
        let words = bpf_memory::words(self.btf, self.own, &places)?;
        let mut bytes = words.iter().zip(&pieces).map(|(words, (_, len))| {
            let bytes = words.iter().flat_map(|word| word.to_le_bytes());
            bytes.take(*len).collect::<Vec<u8>>()
        });
        let of_one = |(told, count): (&Vec<u64>, &usize)| {
            let data = bytes.by_ref().take(*count).collect::<Vec<_>>().concat();
            (data.len() as u64 == told[1]).then_some(Buffer { sequence: told[0] as u32, data }).ok_or(Errno::NOTSUP)
        };
        told.iter().zip(&counts).map(of_one).collect()
    }
}

/// A buffer of a queue.
struct Buffer {
    /// Of its first byte.
    sequence: u32,
    data: Vec<u8>,
}

/// The connections that wait at a listening socket of ours, first come first. ENOENT or ENOTSUP where the kernel does not
/// describe its types, or has others; EPERM without the right to look.
pub fn waiting(listener: BorrowedFd<'_>) -> Result<Vec<Waiting>, Errno> {
    let reader = Reader::new()?;
    let socks = reader.waiting(reader.sock(listener)?)?;
    if socks.is_empty() {
        return Ok(Vec::new());
    }
    let numbers = reader.read(&socks, &reader.numbers()?)?;
    let agreed = reader.agreed(&socks)?;
    let unread = reader.unread(&socks)?;
    let one = |((n, agreed), unread): ((&Vec<u64>, &[u8; 5]), Unread)| {
        let (stamps, scaled, sack, snd_scale, rcv_scale) = (agreed[0], agreed[1], agreed[2], agreed[3], agreed[4]);
        Waiting {
            ends: ends(n, (n[2] as u16).swap_bytes()),
            state: n[1] as u8,
            error: n[15] as i32,
            sent: n[10] as u32,
            acknowledged: n[11] as u32,
            window: n[12] as u32,
            mss: n[14] as u16,
            scales: (scaled != 0).then_some((snd_scale, rcv_scale)),
            sack: sack != 0,
            timestamp: (stamps != 0).then_some(n[13] as u32),
            unread,
        }
    };
    Ok(numbers.iter().zip(&agreed).zip(unread).map(one).collect())
}

/// Both ends, by family, ports and addresses as they stand in [`Reader::numbers`] and [`Reader::of_handshake`].
fn ends(numbers: &[u64], port: u16) -> (SocketAddr, SocketAddr) {
    let address = |v4: u64, v6: &[u64]| match numbers[0] as i32 {
        libc::AF_INET => IpAddr::from((v4 as u32).to_le_bytes()),
        _ => {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&v6[0].to_le_bytes());
            bytes[8..].copy_from_slice(&v6[1].to_le_bytes());
            IpAddr::from(bytes).to_canonical()
        }
    };
    let (own, peer) = (address(numbers[4], &numbers[6..8]), address(numbers[5], &numbers[8..10]));
    (SocketAddr::new(own, port), SocketAddr::new(peer, (numbers[3] as u16).swap_bytes()))
}

/// The connections of which the handshake with a listening socket of ours is not over; it is of our network namespace.
/// The errors are those of [`waiting`].
pub fn half_open(listener: BorrowedFd<'_>) -> Result<Vec<HalfOpen>, Errno> {
    let reader = Reader::new()?;
    let own = reader.sock(listener)?;
    let all = reader.handshakes()?;
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let numbers = reader.read(&all, &reader.of_handshake()?)?;
    let mut more = vec![reader.field("request_sock", "ts_recent", 4)?, reader.field("sock_common", "skc_rcv_wnd", 4)?];
    more.extend(reader.field("tcp_request_sock", "snt_tsval_first", 4));
    let more = reader.read(&all, &more)?;
    let agreed = reader.bits(&all, ("inet_request_sock", 0), AGREED)?;
    let acknowledged = reader.bits(&all, ("inet_request_sock", 0), ["acked"])?;
    let one = |at: usize| {
        let (n, [timestamp, scaled, sack, snd_scale, rcv_scale]) = (&numbers[at], agreed[at]);
        let scale = if scaled != 0 { rcv_scale } else { 0 };
        (n[1] == own).then(|| HalfOpen {
            ends: ends(n, n[2] as u16),
            sent: (n[10] as u32).wrapping_add(1),
            received: (n[11] as u32).wrapping_add(1),
            acknowledged: acknowledged[at][0] != 0,
            answered_at: more[at].get(2).filter(|_| timestamp != 0).map(|stamp| *stamp as u32),
            window: (more[at][1] >> scale).min(0xffff) as u16,
            mss: n[12] as u16,
            scales: (scaled != 0).then_some((snd_scale, rcv_scale)),
            sack: sack != 0,
            timestamp: (timestamp != 0).then_some(more[at][0] as u32),
        })
    };
    Ok((0..all.len()).filter_map(one).collect())
}

/// What a connected socket of ours has received and its program has not read; the errors are those of [`waiting`].
pub fn unread(socket: BorrowedFd<'_>) -> Result<Unread, Errno> {
    let reader = Reader::new()?;
    reader.unread(&[reader.sock(socket)?])?.pop().ok_or(Errno::NOTSUP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::SendFlags;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    fn patterned(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n * 7 + n / 256) as u8).collect()
    }

    #[test]
    fn who_waits_is_told_with_what_was_sent() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            match waiting(listener.as_fd()) {
                Ok(all) => assert_eq!(all, []),
                Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM) => return,
                Err(errno) => panic!("{errno}"),
            }
            let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut one, mut two, three) = (connect(), connect(), connect());
            one.write_all(&patterned(40_000)).unwrap();
            two.write_all(b"a request").unwrap();
            two.shutdown(std::net::Shutdown::Write).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(50));
            let all = waiting(listener.as_fd()).unwrap();
            let ends: Vec<_> = all.iter().map(|one| one.ends).collect();
            let wanted = [&one, &two, &three].map(|c| (c.peer_addr().unwrap(), c.local_addr().unwrap()));
            assert_eq!(ends, wanted);
            assert_eq!(all.iter().map(|one| one.state).collect::<Vec<_>>(), [1, 8, 1]);
            assert!(all[0].unread.data == patterned(40_000));
            assert_eq!((all[1].unread.data.as_slice(), all[2].unread.data.len()), (&b"a request"[..], 0));
            assert_eq!((all[0].sent, all[0].sack), (all[0].acknowledged, true));
            assert!(all[0].scales.is_some() && all[0].timestamp.is_some() && all[0].mss > 500, "{all:?}");
        }
    }

    #[test]
    fn handshakes_that_are_deferred_are_told() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            crate::sys::socket::set_int(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 30).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            let all = match half_open(listener.as_fd()) {
                Ok(all) => all,
                Err(_) if waiting(listener.as_fd()).is_err() => return,
                Err(errno) => panic!("{errno}"),
            };
            let [one] = &all[..] else { panic!("{all:?}") };
            assert_eq!(one.ends, (client.peer_addr().unwrap(), client.local_addr().unwrap()));
            assert!(one.acknowledged && one.sack && one.scales.is_some() && one.timestamp.is_some(), "{one:?}");
            assert!(one.mss > 500, "{one:?}");
            let other = TcpListener::bind(address).unwrap();
            assert_eq!(half_open(other.as_fd()), Ok(Vec::new()));
        }
    }

    #[test]
    fn the_urgent_mark_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        for (data, flags) in [(&b"before!"[..], SendFlags::OOB), (b"behind", SendFlags::empty())] {
            rustix::net::send(&client, data, flags).unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        let told = match unread(server.as_fd()) {
            Ok(told) => told,
            Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM) => return,
            Err(errno) => panic!("{errno}"),
        };
        assert_eq!(told.data, b"before!behind");
        assert_eq!(told.urgent, Some(Urgent { at: told.begin.wrapping_add(6), state: UrgentState::Valid }));
        server.read_exact(&mut [0; 3]).unwrap();
        rustix::net::recv(&server, &mut [0][..], rustix::net::RecvFlags::OOB).unwrap();
        let later = unread(server.as_fd()).unwrap();
        assert_eq!(later.data, b"ore!behind");
        assert_eq!(
            later.urgent.map(|urgent| (urgent.at, urgent.state)),
            Some((told.begin.wrapping_add(6), UrgentState::Read))
        );
    }
}
