//! TCP_REPAIR: takes a connection apart and puts it together again, without a packet.
//!
//! A socket in repair mode tells and takes sequence numbers, queues and windows; while it is, it sends nothing of its
//! own accord, and closed, it goes without a word to its peer. Needs CAP_NET_ADMIN. Constants and structures are those
//! of linux/tcp.h.

use std::os::fd::AsFd;

use libc::IPPROTO_TCP;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::socket::{get_bytes, get_int, set_bytes, set_int};

const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;
const ON: i32 = 1;
const OFF: i32 = 0;
const OFF_NO_PROBE: i32 = -1;

/// One of the two queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// What was received and not read.
    Receive = 1,
    /// What was sent and not acknowledged, or not sent.
    Send = 2,
}

/// `struct tcp_repair_window`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    pub snd_wl1: u32,
    pub snd_wnd: u32,
    pub max_window: u32,
    pub rcv_wnd: u32,
    pub rcv_wup: u32,
}

/// What both ends agreed upon when they met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The largest segment.
    pub mss: u32,
    /// By how many bits windows are shifted, the peer's and our own.
    pub scales: Option<(u32, u32)>,
    pub sack: bool,
    pub timestamps: bool,
}

/// Turns repair mode on. EPERM without CAP_NET_ADMIN, or for a listening socket. SO_REUSEADDR is gone with it.
pub fn begin(socket: impl AsFd) -> Result<(), Errno> {
    set_int(socket, IPPROTO_TCP, TCP_REPAIR, ON)
}

/// Turns it off; the peer is asked for its window.
pub fn end(socket: impl AsFd) -> Result<(), Errno> {
    set_int(socket, IPPROTO_TCP, TCP_REPAIR, OFF)
}

/// Turns it off without a packet.
pub fn end_silently(socket: impl AsFd) -> Result<(), Errno> {
    set_int(socket, IPPROTO_TCP, TCP_REPAIR, OFF_NO_PROBE)
}

/// Which queue is spoken of from now on.
pub fn choose(socket: impl AsFd, queue: Queue) -> Result<(), Errno> {
    set_int(socket, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue as i32)
}

/// The sequence number behind the chosen queue.
pub fn sequence(socket: impl AsFd) -> Result<u32, Errno> {
    get_int(socket, IPPROTO_TCP, TCP_QUEUE_SEQ).map(|seq| seq as u32)
}

/// Sets it; before the socket is connected only.
pub fn set_sequence(socket: impl AsFd, seq: u32) -> Result<(), Errno> {
    set_int(socket, IPPROTO_TCP, TCP_QUEUE_SEQ, seq as i32)
}

/// What the chosen queue holds, of which there are `len` bytes. EINVAL if it holds less.
pub fn contents(socket: impl AsFd, len: usize) -> Result<Vec<u8>, Errno> {
    let mut data = vec![0u8; len];
    if len > 0 {
        let (_, got) = recv(socket, &mut data[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
        if got != len {
            return Err(Errno::INVAL);
        }
    }
    Ok(data)
}

/// Puts data behind the chosen queue; how much of it. AGAIN or NOMEM when the buffer is full.
pub fn fill(socket: impl AsFd, data: &[u8]) -> Result<usize, Errno> {
    send(socket, data, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

/// The same of data whose last byte is urgent.
pub fn fill_urgent(socket: impl AsFd, data: &[u8]) -> Result<usize, Errno> {
    send(socket, data, SendFlags::DONTWAIT | SendFlags::NOSIGNAL | SendFlags::OOB)
}

/// The windows.
pub fn window(socket: impl AsFd) -> Result<Window, Errno> {
    let told = get_bytes(socket, IPPROTO_TCP, TCP_REPAIR_WINDOW, 20)?;
    let mut words = told.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap_or_default()));
    let mut next = || words.next().ok_or(Errno::INVAL);
    Ok(Window { snd_wl1: next()?, snd_wnd: next()?, max_window: next()?, rcv_wnd: next()?, rcv_wup: next()? })
}

/// Sets them; when the receive queue is as it is to be.
pub fn set_window(socket: impl AsFd, window: &Window) -> Result<(), Errno> {
    let words = [window.snd_wl1, window.snd_wnd, window.max_window, window.rcv_wnd, window.rcv_wup];
    set_bytes(socket, IPPROTO_TCP, TCP_REPAIR_WINDOW, &words.map(u32::to_ne_bytes).concat())
}

/// The clock of its time stamps, now. Opaque: the kernel puts into it which unit it counts in.
pub fn timestamp(socket: impl AsFd) -> Result<u32, Errno> {
    get_int(socket, IPPROTO_TCP, TCP_TIMESTAMP).map(|clock| clock as u32)
}

/// Sets it.
pub fn set_timestamp(socket: impl AsFd, clock: u32) -> Result<(), Errno> {
    set_int(socket, IPPROTO_TCP, TCP_TIMESTAMP, clock as i32)
}

/// The largest segment as it was agreed upon.
pub fn agreed_mss(socket: impl AsFd) -> Result<u32, Errno> {
    get_int(socket, IPPROTO_TCP, libc::TCP_MAXSEG).map(|mss| mss as u32)
}

/// Sets what was agreed upon; when the socket is connected.
pub fn set_agreed(socket: impl AsFd, agreed: &Agreed) -> Result<(), Errno> {
    const MSS: u32 = 2;
    const WINDOW: u32 = 3;
    const SACK: u32 = 4;
    const TIMESTAMPS: u32 = 8;
    let mut options = vec![[MSS, agreed.mss]];
    options.extend(agreed.scales.map(|(peer, own)| [WINDOW, peer | own << 16]));
    options.extend(agreed.sack.then_some([SACK, 0]));
    options.extend(agreed.timestamps.then_some([TIMESTAMPS, 0]));
    let bytes: Vec<u8> = options.into_iter().flatten().flat_map(u32::to_ne_bytes).collect();
    set_bytes(socket, IPPROTO_TCP, TCP_REPAIR_OPTIONS, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    /// One end is taken apart and made anew; the other notices nothing.
    #[test]
    fn a_connection_goes_on_in_another_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (old, _) = listener.accept().unwrap();
        match begin(&old) {
            Err(Errno::PERM | Errno::NOPROTOOPT) => return,
            begun => begun.unwrap(),
        }
        peer.write_all(b"unread").unwrap();
        let (local, remote) = (old.local_addr().unwrap(), old.peer_addr().unwrap());
        choose(&old, Queue::Receive).unwrap();
        let receive = sequence(&old).unwrap();
        assert_eq!(contents(&old, 6).unwrap(), b"unread");
        assert_eq!(contents(&old, 7), Err(Errno::INVAL));
        choose(&old, Queue::Send).unwrap();
        let (sent, clock, windows) = (sequence(&old).unwrap(), timestamp(&old).unwrap(), window(&old).unwrap());
        let mss = agreed_mss(&old).unwrap();
        let scales = get_bytes(&old, IPPROTO_TCP, libc::TCP_INFO, 8).unwrap()[6];
        drop((old, listener));

        let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
        let new = TcpStream::from(socket.unwrap());
        begin(&new).unwrap();
        choose(&new, Queue::Receive).unwrap();
        set_sequence(&new, receive.wrapping_sub(6)).unwrap();
        choose(&new, Queue::Send).unwrap();
        set_sequence(&new, sent).unwrap();
        rustix::net::bind(&new, &local).unwrap();
        rustix::net::connect(&new, &remote).unwrap();
        let scales = Some((u32::from(scales & 15), u32::from(scales >> 4)));
        set_agreed(&new, &Agreed { mss, scales, sack: true, timestamps: true }).unwrap();
        set_timestamp(&new, clock).unwrap();
        choose(&new, Queue::Receive).unwrap();
        assert_eq!(fill(&new, b"unread"), Ok(6));
        set_window(&new, &windows).unwrap();
        assert_eq!(window(&new).unwrap(), windows);
        end(&new).unwrap();

        let mut new = new;
        let mut got = [0; 6];
        new.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"unread");
        new.write_all(b"answer").unwrap();
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"answer");
    }
}
