//! Conversations over netlink(7) with the parts of the kernel that keep a network namespace: whole messages, as the
//! kernel tells them and takes them. What is told by one dump can so be kept and said again.
//!
//! A conversation is with the network namespace in which its socket was made.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, sendto, socket_with,
};

use super::sock_diag::{attributes, half, word};
use super::socket::set_int;

/// `struct nlmsghdr`.
pub const HEADER: usize = 16;
pub(super) const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
/// NLMSGERR_ATTR_MSG
const ERROR_TEXT: u16 = 1;
const NETLINK_EXT_ACK: i32 = 11;
/// The kernel makes parts of a dump at most this large.
const ROOM: usize = 64 << 10;
/// How often a dump is asked for again that others have changed meanwhile.
const TRIES: usize = 10;
/// Bit of a type of attribute that has attributes.
pub const NESTED: u16 = 0x8000;
/// The type of an attribute, without flags.
pub const TYPE: u16 = 0x3fff;

/// Flags of requests that make something (linux/netlink.h).
pub const CREATE: u16 = 0x400;
/// The same: fail if it is there.
pub const EXCLUSIVE: u16 = 0x200;
/// The same: in its place, if it is there.
pub const REPLACE: u16 = 0x100;
/// The same: behind others.
pub const APPEND: u16 = 0x800;

/// Why the kernel does not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub errno: Errno,
    /// What it says in words, if it does.
    pub why: Option<String>,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Refusal { errno, why: None }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Some(why) => write!(f, "{} ({why})", self.errno),
            None => self.errno.fmt(f),
        }
    }
}

/// A message: header and body, of which attributes are a part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// A new one with the fixed part of its body.
    #[must_use]
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Message {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        let mut message = Message(bytes);
        message.close();
        message
    }

    /// The first of a string of messages, and the rest.
    pub fn split(bytes: &[u8]) -> Result<(Message, &[u8]), Errno> {
        let length = bytes.get(..HEADER).map(|header| word(header, 0) as usize).ok_or(Errno::BADMSG)?;
        let whole = bytes.get(..length).filter(|whole| whole.len() >= HEADER).ok_or(Errno::BADMSG)?;
        let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let mut message = Message(whole.to_vec());
        message.close();
        Ok((message, rest))
    }

    /// All of a string of messages.
    pub fn all(mut bytes: &[u8]) -> Result<Vec<Message>, Errno> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let (message, rest) = Message::split(bytes)?;
            all.push(message);
            bytes = rest;
        }
        Ok(all)
    }

    /// `nlmsg_type`.
    #[must_use]
    pub fn kind(&self) -> u16 {
        half(&self.0, 4)
    }

    /// `nlmsg_flags`.
    #[must_use]
    pub fn flags(&self) -> u16 {
        half(&self.0, 6)
    }

    /// What is behind the header.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.0[HEADER..]
    }

    /// The same, for changes of the fixed part.
    pub fn body_mut(&mut self) -> &mut [u8] {
        &mut self.0[HEADER..]
    }

    /// The whole message; its length is a multiple of four.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same with another type and flags.
    #[must_use]
    pub fn retyped(&self, kind: u16, flags: u16) -> Message {
        let mut other = self.clone();
        other.0[4..6].copy_from_slice(&kind.to_ne_bytes());
        other.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        other
    }

    /// Its attributes, behind a fixed part of this length: type without flags, value.
    pub fn attributes(&self, fixed: usize) -> impl Iterator<Item = (u16, &[u8])> {
        within(self.body().get(fixed.next_multiple_of(4)..).unwrap_or_default())
    }

    /// The attribute of this type.
    #[must_use]
    pub fn attribute(&self, fixed: usize, kind: u16) -> Option<&[u8]> {
        self.attributes(fixed).find(|(is, _)| *is == kind).map(|(_, value)| value)
    }

    /// Adds an attribute.
    pub fn add(&mut self, kind: u16, value: &[u8]) -> &mut Message {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.close();
        self
    }

    /// Adds one that is text.
    pub fn add_text(&mut self, kind: u16, text: &str) -> &mut Message {
        self.add(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// Adds one that is a number of this host.
    pub fn add_number(&mut self, kind: u16, number: u32) -> &mut Message {
        self.add(kind, &number.to_ne_bytes())
    }

    /// Adds one that is a number in the order of the network.
    pub fn add_ordered(&mut self, kind: u16, number: u32) -> &mut Message {
        self.add(kind, &number.to_be_bytes())
    }

    /// Adds one that has attributes.
    pub fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Message)) -> &mut Message {
        let begun = self.0.len();
        self.add(kind | NESTED, &[]);
        inner(self);
        let length = (self.0.len() - begun) as u16;
        self.0[begun..begun + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Adds bytes that are part of a nest before its attributes, such as another header.
    pub fn add_bytes(&mut self, bytes: &[u8]) -> &mut Message {
        self.0.extend_from_slice(bytes);
        self.close();
        self
    }

    fn close(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        let length = (self.0.len() as u32).to_ne_bytes();
        self.0[..4].copy_from_slice(&length);
    }
}

/// Attributes one after the other: type without flags, value.
pub fn within(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(bytes).map(|(kind, value)| (kind & TYPE, value))
}

/// A number of this host that an attribute has; `None` if it is shorter.
#[must_use]
pub fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// Text of an attribute, without the zero at its end.
#[must_use]
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// A socket that speaks with a part of the kernel about one network namespace.
#[derive(Debug)]
pub struct Conversation {
    socket: OwnedFd,
    sequence: u32,
}

impl Conversation {
    /// With a part of the kernel (`NETLINK_ROUTE`, `NETLINK_NETFILTER`), in the network namespace of the calling thread.
    pub fn begin(protocol: Option<Protocol>) -> Result<Conversation, Errno> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        // Kernels before 4.12 say less.
        let _ = set_int(&socket, libc::SOL_NETLINK, NETLINK_EXT_ACK, 1);
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Conversation { socket, sequence: 0 })
    }

    /// With rtnetlink(7).
    pub fn about_routes() -> Result<Conversation, Errno> {
        Conversation::begin(None)
    }

    /// All that a request for a dump tells; its flags are set here. EINTR if others change it faster than it is told.
    pub fn dump(&mut self, request: &Message) -> Result<Vec<Message>, Refusal> {
        let request = request.retyped(request.kind(), NLM_F_REQUEST | NLM_F_DUMP);
        for _ in 0..TRIES {
            self.say(&request)?;
            let (all, steady) = self.hear()?;
            if steady {
                return Ok(all);
            }
        }
        Err(Errno::INTR.into())
    }

    /// Has something done: the request's flags are those for making, if any.
    pub fn ask(&mut self, request: &Message) -> Result<(), Refusal> {
        self.question(request).map(|_| ())
    }

    /// The same of one that is answered.
    pub fn question(&mut self, request: &Message) -> Result<Vec<Message>, Refusal> {
        self.say(&request.retyped(request.kind(), request.flags() | NLM_F_REQUEST | NLM_F_ACK))?;
        Ok(self.hear()?.0)
    }

    /// Messages that come into force together (nfnetlink(7)): each is acknowledged, but for those that begin and end it.
    pub fn ask_together(&mut self, requests: &[Message], resource: u16) -> Result<(), Refusal> {
        const BEGIN: u16 = 0x10;
        const END: u16 = 0x11;
        let header = [&[0u8, 0][..], &resource.to_be_bytes()].concat();
        let mut bytes = Message::new(BEGIN, NLM_F_REQUEST, &header).0;
        for (index, request) in requests.iter().enumerate() {
            // One acknowledgement is enough to know that all is done; whatever fails is told of.
            let ack = if index + 1 == requests.len() { NLM_F_ACK } else { 0 };
            let mut request = request.retyped(request.kind(), request.flags() | NLM_F_REQUEST | ack);
            request.0[8..12].copy_from_slice(&(index as u32).to_ne_bytes());
            bytes.extend_from_slice(&request.0);
        }
        bytes.extend(Message::new(END, NLM_F_REQUEST, &header).0);
        let room = i32::try_from(bytes.len() * 2 + (64 << 10)).map_err(|_| Errno::MSGSIZE)?;
        set_int(&self.socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, room)?;
        set_int(&self.socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, room)?;
        if requests.is_empty() {
            return Ok(());
        }
        sendto(&self.socket, &bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        self.hear().map(|_| ())
    }

    fn say(&mut self, message: &Message) -> Result<(), Errno> {
        self.sequence += 1;
        let mut bytes = message.0.clone();
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        send_all(&self.socket, &bytes)
    }

    /// What is answered, and whether nothing has changed meanwhile.
    fn hear(&mut self) -> Result<(Vec<Message>, bool), Refusal> {
        let (mut all, mut steady) = (Vec::new(), true);
        let mut buffer = vec![0u8; ROOM];
        loop {
            let got = match recv(self.socket.as_fd(), &mut buffer[..], RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                got => got?.0,
            };
            let mut rest = &buffer[..got];
            while !rest.is_empty() {
                let (message, behind) = Message::split(rest)?;
                rest = behind;
                steady &= message.flags() & NLM_F_DUMP_INTR == 0;
                match message.kind() {
                    NLMSG_DONE => return Ok((all, steady)),
                    NLMSG_ERROR => return refusal_of(&message).map_or(Ok((all, steady)), Err),
                    _ => all.push(message),
                }
            }
            if got == 0 {
                return Err(Errno::BADMSG.into());
            }
        }
    }
}

fn send_all(socket: &OwnedFd, bytes: &[u8]) -> Result<(), Errno> {
    loop {
        match send(socket, bytes, SendFlags::empty()) {
            Err(Errno::INTR) => {}
            done => return done.map(|_| ()),
        }
    }
}

/// What is wrong; `None` if it is an acknowledgement.
fn refusal_of(message: &Message) -> Option<Refusal> {
    let code = number(message.body())? as i32;
    if code == 0 {
        return None;
    }
    // Behind the code is the request, of which a capped answer has the header alone.
    let request = message.body().get(4..8).and_then(number).unwrap_or(0) as usize;
    let length = if message.flags() & NLM_F_CAPPED != 0 { HEADER } else { request.next_multiple_of(4) };
    let told = message.body().get(4 + length..).filter(|_| message.flags() & NLM_F_ACK_TLVS != 0).unwrap_or_default();
    let why = within(told).find(|(kind, _)| *kind == ERROR_TEXT).map(|(_, value)| text(value));
    Some(Refusal { errno: Errno::from_raw_os_error(-code), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTM_GETLINK: u16 = 18;
    const IFLA_IFNAME: u16 = 3;

    #[test]
    fn links_are_told_and_what_fails_is_said_in_words() {
        let mut talk = Conversation::about_routes().unwrap();
        let all = talk.dump(&Message::new(RTM_GETLINK, 0, &[0; 16])).unwrap();
        assert!(all.iter().any(|link| link.attribute(16, IFLA_IFNAME).map(text).as_deref() == Some("lo")));
        // Another conversation goes on after a refusal.
        const RTM_NEWLINK: u16 = 16;
        let mut none = Message::new(RTM_NEWLINK, 0, &[0; 16]);
        none.add_text(IFLA_IFNAME, "cryonaut-none");
        let refusal = talk.ask(&none).unwrap_err();
        assert!([Errno::NODEV, Errno::PERM].contains(&refusal.errno), "{refusal}");
        assert_eq!(talk.dump(&Message::new(RTM_GETLINK, 0, &[0; 16])).unwrap().len(), all.len());
    }

    #[test]
    fn a_string_of_messages_is_taken_apart() {
        let mut one = Message::new(7, CREATE, &[1, 2, 3, 4]);
        one.add_text(1, "abc").nest(2, |m| {
            m.add_number(3, 99);
        });
        let two = Message::new(8, 0, &[]);
        let bytes = [one.bytes(), two.bytes()].concat();
        assert_eq!(Message::all(&bytes).unwrap(), [one.clone(), two]);
        assert_eq!(text(one.attribute(4, 1).unwrap()), "abc");
        let nest = one.attribute(4, 2).unwrap();
        assert_eq!(within(nest).map(|(kind, value)| (kind, number(value))).collect::<Vec<_>>(), [(3, Some(99))]);
        assert_eq!(Message::all(&bytes[..bytes.len() - 1]), Err(Errno::BADMSG));
    }
}
