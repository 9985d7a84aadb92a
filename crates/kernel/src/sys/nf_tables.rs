//! Tables of netfilter (nf_tables), written over netlink without nft(8): as much of them as it takes to drop the packets
//! of some connections. Numbers and shapes are those of linux/netfilter/nf_tables.h and nfnetlink.h.
//!
//! A [`Transaction`] is a string of messages of which all come into force at once, or none. It is made beforehand, so that
//! who may not allocate can send it too.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use super::conversation::{APPEND, CREATE, HEADER, Message, NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR};
use super::socket::set_int;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET`: IPv4 and IPv6.
const FAMILY: u8 = 1;
/// The header of a message, and with it `struct nfgenmsg`.
const WHOLE_HEADER: usize = HEADER + 4;
/// Bytes of elements in one message: an attribute has at most 64 KiB.
const ELEMENTS: usize = 60 << 10;

/// `NFT_MSG_*`.
mod message {
    pub const NEWTABLE: u16 = 0;
    pub const GETTABLE: u16 = 1;
    pub const DELTABLE: u16 = 2;
    pub const NEWCHAIN: u16 = 3;
    pub const NEWRULE: u16 = 6;
    pub const NEWSET: u16 = 9;
    pub const NEWSETELEM: u16 = 12;
}

/// Where a chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// `NF_INET_LOCAL_IN`
    Input = 1,
    /// `NF_INET_LOCAL_OUT`
    Output = 3,
}

/// A type of data, of which a set's key consists: by nft(8)'s number of it, which the kernel only keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// `ipv4_addr`
    V4 = 7,
    /// `ipv6_addr`
    V6 = 8,
    /// `inet_service`
    Port = 13,
}

impl Data {
    /// Its room in a key, in bytes: whole words.
    const fn room(self) -> u32 {
        match self {
            Data::V4 | Data::Port => 4,
            Data::V6 => 16,
        }
    }
}

/// One step of a rule. Registers are words, the first of which is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// Goes on if the packet's mark is this one.
    IfMark(u32),
    /// Goes on if it is of this family (`NFPROTO_IPV4` is 2, `NFPROTO_IPV6` 10).
    IfFamily(u8),
    /// Goes on if it is of this protocol (`IPPROTO_*`).
    IfProtocol(u8),
    /// Puts bytes of the header of IP (`false`) or of what is within (`true`) into registers.
    Load { transport: bool, offset: u32, length: u32, register: u32 },
    /// Goes on if the set has what stands in the registers from the first on.
    IfIn(&'a str),
    /// `NF_DROP`
    Drop,
    /// `NF_ACCEPT`
    Accept,
}

/// Messages that come into force together.
#[derive(Debug, Clone)]
pub struct Transaction(Vec<u8>);

impl Default for Transaction {
    fn default() -> Self {
        let mut new = Transaction(Vec::new());
        new.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, |_| ());
        new
    }
}

impl Transaction {
    /// Makes a table, or leaves it as it is.
    #[must_use]
    pub fn add_table(mut self, table: &str) -> Self {
        self.ours(message::NEWTABLE, CREATE, |m| {
            m.add_text(1, table);
        });
        self
    }

    /// Takes a table away with all that it has. ENOENT if it is not there.
    #[must_use]
    pub fn delete_table(mut self, table: &str) -> Self {
        self.ours(message::DELTABLE, 0, |m| {
            m.add_text(1, table);
        });
        self
    }

    /// Makes a set, of which keys consist of `key`, for so many elements.
    #[must_use]
    pub fn add_set(mut self, table: &str, set: &str, key: &[Data], elements: usize) -> Self {
        // Six bits for each of its types.
        let kind = key.iter().fold(0, |kind, data| kind << 6 | *data as u32);
        let room = key.iter().map(|data| data.room()).sum();
        self.ours(message::NEWSET, CREATE, |m| {
            m.add_text(1, table);
            m.add_text(2, set);
            // NFT_SET_CONSTANT is only for sets without a name.
            m.add_ordered(3, 0);
            m.add_ordered(4, kind);
            m.add_ordered(5, room);
            m.nest(9, |m| {
                m.add_ordered(1, elements.max(1) as u32);
            });
            m.add_ordered(10, id_of(set));
        });
        self
    }

    /// Puts elements into a set of this transaction; each has its words in the order of the network, as they stand in
    /// registers.
    #[must_use]
    pub fn add_elements<'e>(
        mut self,
        table: &str,
        set: &str,
        elements: impl ExactSizeIterator<Item = &'e [u8]>,
    ) -> Self {
        let mut elements = elements.peekable();
        while elements.peek().is_some() {
            self.ours(message::NEWSETELEM, CREATE, |m| {
                m.add_text(1, table);
                m.add_text(2, set);
                m.add_ordered(4, id_of(set));
                m.nest(3, |m| {
                    let begun = m.bytes().len();
                    while m.bytes().len() - begun < ELEMENTS
                        && let Some(key) = elements.next()
                    {
                        m.nest(1, |m| {
                            m.nest(1, |m| {
                                m.add(1, key);
                            });
                        });
                    }
                });
            });
        }
        self
    }

    /// Makes a chain of the type "filter" with priority 0.
    #[must_use]
    pub fn add_chain(mut self, table: &str, chain: &str, hook: Hook) -> Self {
        self.ours(message::NEWCHAIN, CREATE, |m| {
            m.add_text(1, table);
            m.add_text(3, chain);
            m.nest(4, |m| {
                m.add_ordered(1, hook as u32);
                m.add_ordered(2, 0);
            });
            m.add_text(7, "filter");
        });
        self
    }

    /// Puts a rule behind the others of a chain.
    #[must_use]
    pub fn add_rule(mut self, table: &str, chain: &str, steps: &[Step<'_>]) -> Self {
        self.ours(message::NEWRULE, CREATE | APPEND, |m| {
            m.add_text(1, table);
            m.add_text(2, chain);
            m.nest(4, |m| steps.iter().for_each(|step| step.write(m)));
        });
        self
    }

    /// It is whole, and can be sent.
    #[must_use]
    pub fn finish(mut self) -> Ready {
        // The last message is to be acknowledged.
        let mut last = 0;
        let mut at = 0;
        while let Some(length) = self.0.get(at..at + 4).and_then(|length| length.first_chunk()) {
            last = at;
            at += u32::from_ne_bytes(*length) as usize;
        }
        self.0[last + 6] |= NLM_F_ACK as u8;
        self.message(BATCH_END, 0, 0, SUBSYSTEM, |_| ());
        Ready(self.0)
    }

    fn ours(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Message)) {
        self.message(SUBSYSTEM << 8 | kind, flags, FAMILY, 0, body);
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, body: impl FnOnce(&mut Message)) {
        let [high, low] = resource.to_be_bytes();
        let mut message = Message::new(kind, NLM_F_REQUEST | flags, &[family, 0, high, low]);
        body(&mut message);
        self.0.extend_from_slice(message.bytes());
    }
}

/// A number by which messages of a transaction name a set that is new.
fn id_of(set: &str) -> u32 {
    set.bytes().fold(1, |id: u32, byte| id.wrapping_mul(31).wrapping_add(byte.into()))
}

/// A transaction to be sent.
#[derive(Debug, Clone)]
pub struct Ready(Vec<u8>);

impl Ready {
    /// Has it come into force. EPERM without CAP_NET_ADMIN; EPROTONOSUPPORT or EOPNOTSUPP where the kernel lacks nf_tables.
    /// Allocates nothing.
    pub fn send(&self) -> Result<(), Errno> {
        let netlink = open()?;
        // A message must be smaller than the buffer; more than the sysctl allows needs CAP_NET_ADMIN, as all of this does.
        let room = i32::try_from(self.0.len() * 2 + (64 << 10)).map_err(|_| Errno::MSGSIZE)?;
        set_int(&netlink, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, room)?;
        sendto(&netlink, &self.0, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        // All is done when it is sent, and answers are there: one for each message that failed, and of the last in any case.
        let mut buffer = [0u8; 4096];
        loop {
            let (got, _) = match recv(netlink.as_fd(), &mut buffer[..], RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => continue,
                // The last was not acknowledged.
                Err(Errno::AGAIN) => return Err(Errno::BADMSG),
                other => other?,
            };
            if let Some(answer) = error_in(&buffer[..got]) {
                return answer;
            }
        }
    }
}

/// The first error, or that there is none, in what netlink has answered.
fn error_in(answer: &[u8]) -> Option<Result<(), Errno>> {
    let kind = u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?);
    let code = i32::from_ne_bytes(*answer.get(HEADER..)?.first_chunk()?);
    (kind == NLMSG_ERROR).then(|| if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(-code)) })
}

/// Whether there is a table of this name.
pub fn has_table(table: &str) -> Result<bool, Errno> {
    let mut question = Transaction(Vec::new());
    question.ours(message::GETTABLE, 0, |m| {
        m.add_text(1, table);
    });
    let netlink = open()?;
    sendto(&netlink, &question.0, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut buffer = [0u8; 4096];
    let (got, _) = recv(netlink.as_fd(), &mut buffer[..], RecvFlags::empty())?;
    match error_in(&buffer[..got]) {
        Some(Err(Errno::NOENT)) => Ok(false),
        Some(Err(errno)) => Err(errno),
        _ => Ok(got >= WHOLE_HEADER),
    }
}

fn open() -> Result<std::os::fd::OwnedFd, Errno> {
    socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(NETFILTER))
}

/// `NFT_REG32_00`: the first of the registers of one word.
const FIRST_REGISTER: u32 = 8;

impl Step<'_> {
    fn write(self, rule: &mut Message) {
        const META_MARK: u32 = 3;
        const META_FAMILY: u32 = 15;
        const META_PROTOCOL: u32 = 16;
        match self {
            // The mark is a number of this host, unlike all others.
            Step::IfMark(mark) => equal(rule, META_MARK, &mark.to_ne_bytes()),
            Step::IfFamily(family) => equal(rule, META_FAMILY, &[family]),
            Step::IfProtocol(protocol) => equal(rule, META_PROTOCOL, &[protocol]),
            Step::Load { transport, offset, length, register } => expression(rule, "payload", |m| {
                m.add_ordered(1, FIRST_REGISTER + register);
                m.add_ordered(2, 1 + u32::from(transport));
                m.add_ordered(3, offset);
                m.add_ordered(4, length);
            }),
            Step::IfIn(set) => expression(rule, "lookup", |m| {
                m.add_text(1, set);
                m.add_ordered(2, FIRST_REGISTER);
                m.add_ordered(4, id_of(set));
            }),
            Step::Drop => verdict(rule, 0),
            Step::Accept => verdict(rule, 1),
        }
    }
}

fn expression(rule: &mut Message, name: &str, data: impl FnOnce(&mut Message)) {
    rule.nest(1, |m| {
        m.add_text(1, name);
        m.nest(2, data);
    });
}

fn equal(rule: &mut Message, key: u32, wanted: &[u8]) {
    expression(rule, "meta", |m| {
        m.add_ordered(1, FIRST_REGISTER);
        m.add_ordered(2, key);
    });
    expression(rule, "cmp", |m| {
        m.add_ordered(1, FIRST_REGISTER);
        m.add_ordered(2, 0);
        m.nest(3, |m| {
            m.add(1, wanted);
        });
    });
}

fn verdict(rule: &mut Message, code: u32) {
    expression(rule, "immediate", |m| {
        m.add_ordered(1, 0);
        m.nest(2, |m| {
            m.nest(2, |m| {
                m.add_ordered(1, code);
            });
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_and_goes() {
        let table = format!("cryonaut-test-{}", std::process::id());
        let key = [Data::V6, Data::Port, Data::V6, Data::Port];
        let elements: Vec<[u8; 40]> = (0..3000u16)
            .map(|i| {
                let mut element = [0; 40];
                element[..2].copy_from_slice(&i.to_be_bytes());
                element
            })
            .collect();
        let load = Step::Load { transport: false, offset: 0, length: 40, register: 0 };
        let all = Transaction::default()
            .add_table(&table)
            .add_set(&table, "some", &key, elements.len())
            .add_elements(&table, "some", elements.iter().map(|e| &e[..]))
            .add_chain(&table, "chain", Hook::Output)
            .add_rule(&table, "chain", &[Step::IfMark(0xc114), Step::Accept])
            .add_rule(
                &table,
                "chain",
                &[Step::IfFamily(10), Step::IfProtocol(6), load, Step::IfIn("some"), Step::Drop],
            );
        let delete = Transaction::default().delete_table(&table).finish();
        match all.finish().send() {
            Err(Errno::PERM | Errno::PROTONOSUPPORT | Errno::OPNOTSUPP) => return,
            sent => sent.unwrap(),
        }
        assert_eq!(has_table(&table), Ok(true));
        // All or nothing.
        let half = Transaction::default().delete_table(&table).delete_table("cryonaut-none").finish();
        assert_eq!(half.send(), Err(Errno::NOENT));
        assert_eq!(has_table(&table), Ok(true));
        delete.send().unwrap();
        assert_eq!((has_table(&table), delete.send()), (Ok(false), Err(Errno::NOENT)));
    }
}
