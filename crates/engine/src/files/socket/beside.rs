//! What CRIU's records of sockets have no place for, of all sockets of an
//! image in one file: `cryonaut-sockets.json`. An image without it is built as
//! CRIU would. And what collecting remembers from one socket to the next.

use super::Sort;
use super::inet::{Candidate, Ended, Held, Membership, Signing, Urgent};
use super::packet::Rings;
use super::settings::{Answers, Setting, Value};
use crate::Result;
use cryonaut_image::{DumpDir, ImageDir};
use cryonaut_kernel::sys::netlink::NetlinkSocket;
use cryonaut_kernel::sys::packet::PacketSocket;
use cryonaut_kernel::sys::sock_diag::InetSocket;
use cryonaut_kernel::sys::socket_inside::Inside;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::AsFd;

const NAME: &str = "sockets";

/// Of one socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Extra {
    /// Whose it is (`fchown`), if not root's: user, group. Who shares a port with it must be the same user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<(u32, u32)>,
    /// The permission bits of its inode, if not those of a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// TCP's congestion control.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion: Option<String>,
    /// The sequence number with which a connection was begun that nobody has answered yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_sent: Option<u32>,
    /// What is left of a connection that has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// The error that waits for the program (SO_ERROR), or 0; of a connection that has ended it is told there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub error: i32,
    /// Packets that have brought messages about errors, in hexadecimal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// Urgent data that was received, and behind how many bytes of what was not acknowledged there is some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urgent: Option<Urgent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urgent_sent: Option<u32>,
    /// The classic program that chooses among those that share its port, as the record has filters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chooser: Vec<u64>,
    /// By which the packets of TCP are signed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<Signing>,
    /// Groups of multicast that it has joined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Membership>,
    /// `SOCK_*`, where the record has no place for it (netlink) and it is not SOCK_RAW.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<i32>,
    /// Names of the network devices whose numbers the record has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<u32, String>,
    /// Its rings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rings: Option<Rings>,
    /// A datagram socket of Unix whose peer has gone: it is not without one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub orphan: bool,
    /// A stream of Unix whose peer has reset it (ECONNRESET), which the program has not been told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// Whom a Unix socket tells as its peer, or who lets it listen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<super::unix::Maker>,
    /// Options that are not as in a new socket, by the names of the tables in `settings.rs`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, Value>,
}

fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// Of all sockets, by file id.
#[derive(Debug, Default)]
pub struct Beside(BTreeMap<u32, Extra>);

impl Beside {
    /// Of an image.
    pub fn read(images: &ImageDir) -> Result<Beside> {
        Ok(Beside(images.read_json(NAME)?.unwrap_or_default()))
    }

    /// Of a socket.
    pub fn of(&self, id: u32) -> Extra {
        self.0.get(&id).cloned().unwrap_or_default()
    }
}

/// What was learned of one network namespace.
#[derive(Debug, Default)]
pub struct OfNetwork {
    /// What the options of new sockets are, by what is made and where each table begins.
    fresh: HashMap<(Sort, usize), Answers>,
    /// Groups of multicast of all network devices, once they were asked for.
    pub(super) groups: Option<Vec<Candidate>>,
    /// What sock_diag has told, by family and protocol.
    pub(super) told: HashMap<(i32, i32), Vec<InetSocket>>,
    /// What sock_diag has told of netlink sockets, once it was asked.
    pub(super) netlink: Option<Vec<NetlinkSocket>>,
    /// The same of packet sockets.
    pub(super) packet: Option<Vec<PacketSocket>>,
    /// Whether it was asked about Unix sockets.
    pub(super) unix: bool,
    /// Whether there are handshakes that are not over, once it was asked.
    pub(super) half_open: Option<bool>,
}

/// What collecting has learned so far.
#[derive(Debug, Default)]
pub struct Known {
    beside: BTreeMap<u32, Extra>,
    /// What is known of the network namespace in which sockets are looked at.
    pub(super) here: OfNetwork,
    /// Connections that were written down.
    pub(super) held: Held,
    /// Connections that were taken apart, by inode number.
    pub(super) apart: HashSet<u64>,
    /// What no option tells of sockets, by inode number.
    pub(super) inside: HashMap<u64, Inside>,
    /// What is known of Unix sockets.
    pub(super) unix: super::unix::Known,
}

impl Known {
    /// Notes what is beside the record of a socket.
    pub(super) fn note(&mut self, id: u32, extra: Extra) {
        if extra != Extra::default() {
            self.beside.insert(id, extra);
        }
    }

    /// Hands over the connections that were written down.
    pub fn take_held(&mut self) -> Held {
        std::mem::take(&mut self.held)
    }

    /// Writes what was noted, if anything.
    pub fn write(&self, images: &DumpDir) -> Result<()> {
        if self.beside.is_empty() { Ok(()) } else { Ok(images.write_json(NAME, &self.beside)?) }
    }

    /// What a table's options are in a new socket; nothing where none can be made.
    pub(super) fn fresh(&mut self, sort: Sort, table: &'static [Setting]) -> &Answers {
        self.here
            .fresh
            .entry((sort, table.as_ptr().addr()))
            .or_insert_with(|| sort.make().map(|new| Answers::of(new.as_fd(), table)).unwrap_or_default())
    }
}
