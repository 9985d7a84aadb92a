//! Making all Unix sockets of an image: pairs first, then names. A socket whose
//! peer has gone is made with a far end that is closed when its queue is filled.
//! What else they need is done in [`super::complete`].

use super::super::Sort;
use super::super::beside::Extra;
use super::super::inet::build_inode;
use super::acting::{Actors, Maker};
use super::name::{self, Places};
use super::{EXTERN, object, state};
use super::{queue, waiting};
use crate::files::Build;
use crate::{Error, Result};
use cryonaut_image::records::UnixSkEntry;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How many others may come between us and ourselves.
const BACKLOG: i32 = 64;

/// Makes all sockets of the image, and binds them; by file id.
pub fn all(cx: &mut Build<'_>, actors: &mut Actors<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut making = Making::new(cx)?;
    let records: Vec<&UnixSkEntry> = making.records.values().copied().collect();
    for record in &records {
        making.take_given(cx, record)?;
    }
    for record in &records {
        let _there = cx.visit(record.ns_id)?;
        making.make(actors, record)?;
    }
    for record in &records {
        making.bind(record)?;
    }
    let made = std::mem::take(&mut making.sockets).into_iter().collect();
    cx.unix = Some(making);
    Ok(made)
}

/// What is known of sockets that are being built.
#[derive(Debug)]
pub struct Making<'r> {
    /// Records of sockets to be made, by inode number.
    pub(super) records: BTreeMap<u32, &'r UnixSkEntry>,
    /// Records of sockets outside of the tree, by inode number.
    pub(super) outside: BTreeMap<u32, &'r UnixSkEntry>,
    /// What is made, by file id.
    pub(super) sockets: BTreeMap<u32, OwnedFd>,
    /// Far ends that nobody has, by the file id of the near ones.
    pub(super) ends: HashMap<u32, OwnedFd>,
    /// Sockets that the user has given instead, by file id.
    pub(super) given: Vec<u32>,
    /// Those that have their name from a connection.
    pub(super) named: Vec<u32>,
    /// Datagram sockets whose peer has gone.
    pub(super) orphans: Vec<u32>,
    /// What was not read.
    pub(super) queues: queue::Queues,
    /// Who waits to be accepted.
    pub(super) guests: waiting::Guests,
    /// Where their names are.
    pub(super) places: Places,
    /// What is beside their records, by file id.
    pub(super) extras: HashMap<u32, Extra>,
    /// Senders that are no more, by name.
    pub(super) senders: HashMap<Vec<u8>, OwnedFd>,
}

/// Whether it is one of datagrams.
pub(super) fn is_datagram(record: &UnixSkEntry) -> bool {
    record.r#type == libc::SOCK_DGRAM as u32
}

/// What it was made with.
pub(super) fn sort_of(record: &UnixSkEntry) -> Sort {
    Sort { family: libc::AF_UNIX, kind: record.r#type as i32, protocol: 0 }
}

fn is_connected_pair(record: &UnixSkEntry) -> bool {
    !is_datagram(record) && record.state == state::ESTABLISHED
}

/// A failure of the kernel at the socket of a record.
pub(super) fn failed<'r>(record: &'r UnixSkEntry, action: &'static str) -> impl FnOnce(Errno) -> Error + use<'r> {
    move |errno| Error::kernel(object(record), action, errno)
}

impl<'r> Making<'r> {
    fn new(cx: &mut Build<'r>) -> Result<Making<'r>> {
        let (mut records, mut outside) = (BTreeMap::new(), BTreeMap::new());
        let (mut orphans, mut extras) = (Vec::new(), HashMap::new());
        for record in cx.records().values().filter_map(|entry| entry.usk.as_ref()) {
            let place = if record.uflags & EXTERN == 0 { &mut records } else { &mut outside };
            place.insert(record.ino, record);
            let extra = cx.sockets()?.of(record.id);
            if extra.orphan {
                orphans.push(record.id);
            }
            extras.insert(record.id, extra);
        }
        let guests = waiting::read(cx, &records)?;
        let places = Places::new(cx, records.values().copied())?;
        Ok(Making {
            records,
            outside,
            sockets: BTreeMap::new(),
            ends: HashMap::new(),
            given: Vec::new(),
            named: Vec::new(),
            orphans,
            extras,
            queues: queue::read(cx)?,
            guests,
            places,
            senders: HashMap::new(),
        })
    }

    fn take_given(&mut self, cx: &Build<'_>, record: &UnixSkEntry) -> Result<()> {
        if let Some(given) = cx.inherited(&format!("socket:[{}]", record.ino))? {
            self.given.push(record.id);
            self.sockets.insert(record.id, given);
        }
        Ok(())
    }

    /// The record of its peer, if both have each other and it is to be made.
    pub(super) fn partner(&self, record: &UnixSkEntry) -> Option<&'r UnixSkEntry> {
        let peer = *self.records.get(&record.peer)?;
        let mutual = peer.peer == record.ino && peer.id != record.id;
        (mutual && !self.given.contains(&peer.id)).then_some(peer)
    }

    fn make(&mut self, actors: &mut Actors<'_>, record: &'r UnixSkEntry) -> Result<()> {
        if self.sockets.contains_key(&record.id) {
            return Ok(());
        }
        let sort = sort_of(record);
        let partner = self.partner(record);
        let has_far_end = (is_connected_pair(record) && !self.waits(record))
            || (record.name.is_empty() && (self.orphans.contains(&record.id) || self.is_filled_by_nobody(record)));
        match partner {
            Some(partner) if is_connected_pair(record) && !(record.name.is_empty() && partner.name.is_empty()) => {
                let (server, client) = self.roles(record, partner);
                let (accepted, connected) = self.through_name(actors, server, client)?;
                self.sockets.insert(server.id, accepted);
                self.sockets.insert(client.id, connected);
            }
            Some(partner) => {
                let (one, other) = actors.pair(self.maker(record), record)?;
                for (record, file) in [(record, one), (partner, other)] {
                    self.give_inode(record, file.as_fd())?;
                    self.sockets.insert(record.id, file);
                }
            }
            None if has_far_end => {
                let (near, far) = if is_connected_pair(record) && !record.name.is_empty() {
                    self.through_name(actors, record, &UnixSkEntry::default())?
                } else {
                    let ends = actors.pair(self.maker(record), record)?;
                    self.give_inode(record, ends.0.as_fd())?;
                    ends
                };
                self.sockets.insert(record.id, near);
                self.ends.insert(record.id, far);
            }
            None => {
                let file = sort.make().map_err(failed(record, "make a socket"))?;
                self.give_inode(record, file.as_fd())?;
                self.sockets.insert(record.id, file);
            }
        }
        Ok(())
    }

    /// A datagram socket that was one of a pair once: nothing else could have sent to it.
    fn is_filled_by_nobody(&self, record: &UnixSkEntry) -> bool {
        record.name.is_empty() && record.peer == 0 && self.queues.contains_key(&record.id)
    }

    /// Who has been accepted, and who has connected: the first has the name of a listening socket.
    fn roles(&self, one: &'r UnixSkEntry, other: &'r UnixSkEntry) -> (&'r UnixSkEntry, &'r UnixSkEntry) {
        let shared = |name: &[u8]| self.records.values().filter(|record| record.name == name).count() > 1;
        let one_serves = match (one.name.is_empty(), other.name.is_empty()) {
            (false, true) => true,
            (true, _) => false,
            _ if shared(&one.name) != shared(&other.name) => shared(&one.name),
            // It was made later.
            _ => one.ino > other.ino,
        };
        if one_serves { (one, other) } else { (other, one) }
    }

    /// Who has made the other end of its connection: whom it is told as its peer.
    pub(super) fn maker(&self, record: &UnixSkEntry) -> Option<&Maker> {
        self.extras.get(&record.id)?.peer.as_ref()
    }

    /// A connection whose accepted end has its name as it does from a listening socket: by way of one.
    fn through_name(
        &mut self,
        actors: &mut Actors<'_>,
        server: &'r UnixSkEntry,
        client: &UnixSkEntry,
    ) -> Result<(OwnedFd, OwnedFd)> {
        let sort = sort_of(server);
        let make = || sort.make().map_err(failed(server, "make a socket"));
        let (listener, connected) = (make()?, make()?);
        if client.id != 0 {
            self.give_inode(client, connected.as_fd())?;
            if !client.name.is_empty() {
                self.places.bind(connected.as_fd(), client)?;
                self.named.push(client.id);
            }
        }
        let bound = match name::is_path(&server.name) {
            true => self.places.apart(server.id, &server.name, || name::bind_new(listener.as_fd(), server)),
            false => name::address(&server.name).and_then(|address| rustix::net::bind(&listener, &address)),
        };
        bound.map_err(|errno| Error::Kernel {
            object: object(server),
            action: "give it its name".into(),
            errno,
            remedy: if errno == Errno::ADDRINUSE { "another program here has the name: end that one" } else { "" },
        })?;
        actors.listen(self.maker(client), listener.as_fd(), BACKLOG, server)?;
        let unable = || failed(server, "connect it through its name");
        let to = self.places.target(server, true).map_err(unable())?;
        let by = actors.connect(self.maker(server), connected.as_fd(), &to, server)?;
        let accepted = accept_own(&listener, by).map_err(unable())?;
        if name::is_path(&server.name) {
            self.places.delete(server).map_err(unable())?;
        }
        self.named.push(server.id);
        self.give_inode(server, accepted.as_fd())?;
        Ok((accepted, connected))
    }

    fn give_inode(&self, record: &UnixSkEntry, file: BorrowedFd<'_>) -> Result<()> {
        let Some(extra) = self.extras.get(&record.id) else { return Ok(()) };
        build_inode(file, extra).map_err(failed(record, "give it its owner"))
    }

    fn bind(&mut self, record: &UnixSkEntry) -> Result<()> {
        let done = record.name.is_empty() || self.named.contains(&record.id) || self.given.contains(&record.id);
        if done {
            return Ok(());
        }
        self.places.bind(self.sockets[&record.id].as_fd(), record)
    }
}

/// An abstract name is open to everybody: who else connects in this moment is not let in.
fn accept_own(listener: &OwnedFd, by: i32) -> std::result::Result<OwnedFd, Errno> {
    loop {
        let accepted = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?;
        if Maker::of(accepted.as_fd())?.is_some_and(|maker| maker.is(by)) {
            return Ok(accepted);
        }
    }
}
