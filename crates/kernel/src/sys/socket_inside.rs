//! What the kernel has of any socket and no call tells, or only by taking it away. Read from the kernel's memory
//! ([`bpf_iter`]).

use super::bpf_insn::{Insn, load32, load64, store_zero, store64};
use super::bpf_iter::{self, Field, read, tell};
use super::bpf_memory;
use super::socket_glance::Glance;
use super::unix_memory::Reader;
use rustix::io::Errno;
use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

/// Longest key (TCP_MD5SIG_MAXKEYLEN).
const MOST_KEY: usize = 80;
/// More keys than a socket can have (net.core.optmem_max).
const MOST_KEYS: usize = 1 << 16;

/// What waits for the program of a socket to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// The error that SO_ERROR would tell, or 0.
    pub error: i32,
    /// Messages in the queue of errors (MSG_ERRQUEUE).
    pub messages: u32,
}

/// Of a socket of ours. ENOENT or ENOTSUP where the kernel does not describe its types, or has others; EPERM without the
/// right to look.
pub fn waits(socket: BorrowedFd<'_>) -> Result<Waits, Errno> {
    let reader = Reader::new()?;
    let queue = reader.field("sock", "sk_error_queue", 8)?.offset;
    let mut messages = reader.field("sk_buff_head", "qlen", 4)?;
    messages.offset += queue;
    let told = reader.values(reader.sock(socket)?, &[reader.field("sock", "sk_err", 4)?, messages])?;
    let [error, messages] = told[..] else { return Err(Errno::NOTSUP) };
    Ok(Waits { error: error as i32, messages: messages as u32 })
}

/// Whether a socket of ours was connected when it was connected last, and not refused (`SS_CONNECTED` of linux/net.h),
/// whatever has become of the connection. The errors are those of [`waits`].
pub fn was_connected(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
    const SS_CONNECTED: u64 = 3;
    let reader = Reader::new()?;
    let state = reader.field("socket", "state", 4)?;
    let told = bpf_iter::fields(reader.btf, (reader.own, socket.as_raw_fd()), bpf_iter::Base::Behind, &[state])?;
    Ok(told[2] == SS_CONNECTED)
}

/// What a socket of the internet has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inside {
    /// It has IPsec policies of its own (IP_XFRM_POLICY).
    pub policies: bool,
    /// What chooses among those that share its port.
    pub chooser: Option<Chooser>,
    /// Keys by which the packets of TCP are signed.
    pub keys: Vec<Key>,
    /// Of TCP: that there is a mark of urgent data in what was received, or was before.
    pub urgent: bool,
    /// Of TCP: behind how many bytes of what was not acknowledged the mark of urgent data stands.
    pub urgent_sent: Option<u32>,
}

/// A program that chooses among the sockets of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chooser {
    /// The instructions of one of classic BPF: code, jt, jf and k, from the upper end of a number.
    Classic(Vec<u64>),
    /// One of eBPF.
    Extended,
}

/// A key of TCP-MD5 (RFC 2385).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// With whom: addresses that begin as this one.
    pub peer: IpAddr,
    /// In so many bits.
    pub bits: u8,
    /// At this network device alone, or 0.
    pub device: u32,
    pub key: Vec<u8>,
}

/// What the program below tells of a descriptor, in this order: its number; of any socket two policies and the group of who
/// shares its port; of one of TCP what is urgent, up to where the peer has acknowledged, where the mark is of what was
/// sent, and keys.
const WORDS: usize = 8;

/// A program that tells of each descriptor of a task that has any of it. What it tells of what is no such socket means
/// nothing.
fn program() -> Result<&'static OwnedFd, Errno> {
    static PROGRAM: OnceLock<Result<OwnedFd, Errno>> = OnceLock::new();
    let load = || {
        let reader = Reader::new()?;
        let policy = reader.field("sock", "sk_policy", 8)?;
        let tcp = |name, len| reader.field("tcp_sock", name, len);
        // A kernel without signatures has no such field, and there stands zero.
        let nothing = Field { offset: 0, len: 0 };
        let fields = [
            policy,
            Field { offset: policy.offset + 8, ..policy },
            reader.field("sock", "sk_reuseport_cb", 8)?,
            tcp("urg_data", 2)?,
            tcp("snd_una", 4)?,
            tcp("snd_up", 4)?,
            tcp("md5sig_info", 8).unwrap_or(nothing),
        ];
        bpf_iter::load_for_files(reader.btf, &body(&reader, &fields)?)
    };
    PROGRAM.get_or_init(load).as_ref().map_err(|e| *e)
}

fn body(reader: &Reader, fields: &[Field; WORDS - 1]) -> Result<Vec<Insn>, Errno> {
    const WHOLE: i16 = 8 * WORDS as i16;
    let place = |word: usize| 8 * word as i16 - WHOLE;
    let or = |src| Insn { code: 0x4f, dst: 1, src, off: 0, imm: 0 };
    let sk = reader.field("socket", "sk", 8)?;
    let private_data = reader.field("file", "private_data", 8)?.offset as i16;
    let mut body = vec![load64(8, 7, private_data), store_zero(10, place(0))];
    body.extend(read(place(0), sk.len, sk.offset));
    body.push(load64(8, 10, place(0)));
    for (field, word) in fields.iter().zip(1..) {
        body.push(store_zero(10, place(word)));
        if field.len > 0 {
            body.extend(read(place(word), field.len, field.offset));
        }
    }
    // Where the mark is as far as the peer has acknowledged, there is none.
    body.extend([
        load64(1, 10, place(5)),
        load64(2, 10, place(6)),
        Insn { code: 0xaf, dst: 1, src: 2, off: 0, imm: 0 },
    ]);
    for word in [1, 2, 3, 4, 7] {
        body.extend([load64(2, 10, place(word)), or(2)]);
    }
    let tell = tell(WHOLE);
    body.push(Insn { code: 0x15, dst: 1, src: 0, off: tell.len() as i16 + 2, imm: 0 });
    body.extend([load32(1, 6, 16), store64(10, place(0), 1)]);
    body.extend(tell);
    Ok(body)
}

/// Gets ready what takes longest; [`of`] does it if nobody has.
pub fn prepare() {
    let _ = program();
}

/// Of sockets of the internet of ours, each with whether it is one of TCP. The errors are those of [`waits`].
pub fn of(sockets: &[(BorrowedFd<'_>, bool)]) -> Result<Vec<Inside>, Errno> {
    let reader = Reader::new()?;
    let words = bpf_iter::run_for_files(program()?, reader.own)?;
    let told: HashMap<i32, &[u64]> = words.chunks_exact(WORDS).map(|words| (words[0] as i32, words)).collect();
    let one = |(socket, tcp): &(BorrowedFd<'_>, bool)| match told.get(&socket.as_raw_fd()) {
        Some([_, words @ ..]) => words.first_chunk().map_or(Err(Errno::BADMSG), |words| reader.inside(words, *tcp)),
        _ => Ok(Inside::default()),
    };
    sockets.iter().map(one).collect()
}

/// The same of one that was seen among all of its process, and whether it is one of TCP.
pub fn seen(glance: &Glance, tcp: bool) -> Result<Inside, Errno> {
    Reader::new()?.inside(&glance.inside(), tcp)
}

impl Reader {
    /// What the words about a socket say, and what they lead to.
    fn inside(&self, words: &[u64; WORDS - 1], tcp: bool) -> Result<Inside, Errno> {
        let [policy, other, group, urgent, acknowledged, mark, keys] = *words;
        let mut inside = Inside { policies: policy != 0 || other != 0, ..Inside::default() };
        inside.chooser = if group == 0 { None } else { self.chooser(group)? };
        if tcp {
            let ahead = (mark as u32).wrapping_sub(acknowledged as u32);
            inside.urgent = urgent != 0;
            inside.urgent_sent = Some(ahead).filter(|ahead| (*ahead as i32) > 0);
            inside.keys = if keys == 0 { Vec::new() } else { self.keys(keys)? };
        }
        Ok(inside)
    }

    /// What chooses among a group (struct sock_reuseport).
    fn chooser(&self, group: u64) -> Result<Option<Chooser>, Errno> {
        let program = self.value(group, "sock_reuseport", "prog", 8)?;
        if program == 0 {
            return Ok(None);
        }
        let original = self.value(program, "bpf_prog", "orig_prog", 8)?;
        if original == 0 {
            return Ok(Some(Chooser::Extended));
        }
        let len = self.value(original, "sock_fprog_kern", "len", 2)?;
        let filter = self.value(original, "sock_fprog_kern", "filter", 8)?;
        // struct sock_filter: code, jt and jf in front of k, the lower bytes first.
        let number =
            |word: &u64| (word & 0xffff) << 48 | (word >> 16 & 0xff) << 40 | (word >> 24 & 0xff) << 32 | word >> 32;
        let words = bpf_memory::words(self.btf, self.own, &[(filter, len as usize)])?.concat();
        Ok(Some(Chooser::Classic(words.iter().map(number).collect())))
    }

    /// The keys in a list (struct tcp_md5sig_info).
    fn keys(&self, info: u64) -> Result<Vec<Key>, Errno> {
        let mut at = self.value(info, "tcp_md5sig_info", "head", 8)?;
        let of_key = |name, len| self.field("tcp_md5sig_key", name, len);
        let node = u64::from(of_key("node", 8)?.offset);
        let (address, text) = (of_key("addr", 8)?, of_key("key", 8)?.offset);
        let fields = [
            of_key("node", 8)?,
            of_key("keylen", 1)?,
            of_key("family", 1)?,
            of_key("prefixlen", 1)?,
            of_key("l3index", 4)?,
            address,
            Field { offset: address.offset + 8, ..address },
        ];
        let mut all = Vec::new();
        while at != 0 {
            if all.len() == MOST_KEYS {
                return Err(Errno::NOTSUP);
            }
            let key = at - node;
            let told = self.values(key, &fields)?;
            let [next, len, family, bits, device, low, high] = told[..] else { return Err(Errno::NOTSUP) };
            let peer = match family as i32 {
                libc::AF_INET => IpAddr::from((low as u32).to_le_bytes()),
                _ => {
                    let mut bytes = [0; 16];
                    bytes[..8].copy_from_slice(&low.to_le_bytes());
                    bytes[8..].copy_from_slice(&high.to_le_bytes());
                    IpAddr::from(bytes)
                }
            };
            let text = self.bytes(key + u64::from(text), (len as usize).min(MOST_KEY))?;
            all.push(Key { peer, bits: bits as u8, device: device as u32, key: text });
            at = next;
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{attach_filter_for, set_bytes, set_int};
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn keys_and_choosers_are_told() {
        let tcp = |family| rustix::net::socket(family, rustix::net::SocketType::STREAM, None).unwrap();
        let (signed, plain) = (tcp(rustix::net::AddressFamily::INET), tcp(rustix::net::AddressFamily::INET6));
        let wanted = Key { peer: "10.1.2.0".parse().unwrap(), bits: 24, device: 0, key: b"a key".to_vec() };
        // A kernel without signatures.
        let keys = match super::super::socket::set_md5_key(&signed, &wanted) {
            Ok(()) => vec![wanted],
            Err(_) => Vec::new(),
        };
        set_int(&plain, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).unwrap();
        let code = |code: u32, k| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
        let program = [code(libc::BPF_LD | libc::BPF_IMM, 7), code(libc::BPF_RET | libc::BPF_A, 0)];
        attach_filter_for(&plain, libc::SO_ATTACH_REUSEPORT_CBPF, &program).unwrap();
        let all = match of(&[(signed.as_fd(), true), (plain.as_fd(), true)]) {
            Ok(all) => all,
            Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM) => return,
            Err(errno) => panic!("{errno}"),
        };
        assert_eq!(all[0], Inside { keys, ..Inside::default() });
        assert_eq!(all[1].chooser, Some(Chooser::Classic(vec![7, 0x16 << 48])));
        let _ = set_bytes(&plain, libc::SOL_SOCKET, 68, &[0; 4]);
        assert_eq!(of(&[(plain.as_fd(), true)]).unwrap(), [Inside::default()]);
    }

    #[test]
    fn who_was_refused_was_not_connected() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(address).unwrap();
        drop((listener.accept().unwrap(), listener));
        match was_connected(client.as_fd()) {
            Ok(was) => assert!(was),
            Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM) => return,
            Err(errno) => panic!("{errno}"),
        }
        let refused = rustix::net::socket_with(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let _ = rustix::net::connect(&refused, &address);
        assert_eq!(was_connected(refused.as_fd()), Ok(false));
    }

    #[test]
    fn an_error_is_told_and_stays() {
        let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(nobody.local_addr().unwrap()).unwrap();
        match waits(socket.as_fd()) {
            Ok(waits) => assert_eq!(waits, Waits { error: 0, messages: 0 }),
            Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM) => return,
            Err(errno) => panic!("{errno}"),
        }
        drop(nobody);
        socket.send(b"?").unwrap();
        assert_eq!(waits(socket.as_fd()), Ok(Waits { error: libc::ECONNREFUSED, messages: 0 }));
        assert_eq!(socket.take_error().unwrap().unwrap().raw_os_error(), Some(libc::ECONNREFUSED));
    }
}
