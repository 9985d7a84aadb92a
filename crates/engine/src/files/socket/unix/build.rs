//! Putting all Unix sockets of an image together.
//!
//! Pairs first, then names, what was not read, and connections by name; options
//! last, since they would be in the way of all that (SO_PASSCRED gives names,
//! small buffers hold less than they did). A socket whose peer has gone is made
//! with a far end that is closed when its queue is filled.

use super::super::inet::build_inode;
use super::super::settings::{self, When};
use super::super::{Sort, filter, options};
use super::name::{self, Places};
use super::queue::{self, Beside};
use super::{EXTERN, TABLES, object, state};
use crate::files::{Build, apply_status_flags};
use crate::{Error, Result};
use cryonaut_image::records::{SkShutdown, UnixSkEntry};
use cryonaut_kernel::sys::{socket, unix_message};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, socketpair};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Room for what is sent into queues, whatever the buffers were (half of the largest number).
const AMPLE: i32 = 1 << 29;

/// Everything of the image, by file id.
pub fn all(cx: &mut Build<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut making = Making::new(cx)?;
    let records: Vec<&UnixSkEntry> = making.records.values().copied().collect();
    for record in &records {
        making.take_given(cx, record)?;
    }
    for record in &records {
        making.make(cx, record)?;
    }
    for record in &records {
        making.bind(record)?;
    }
    for record in &records {
        making.fill(record)?;
    }
    making.connect_all(&records)?;
    making.ends.clear();
    for record in &records {
        making.finish(cx, record)?;
    }
    Ok(making.sockets.into_iter().collect())
}

#[derive(Debug)]
struct Making<'r> {
    /// Records of sockets to be made, by inode number.
    records: BTreeMap<u32, &'r UnixSkEntry>,
    /// Records of sockets outside of the tree, by inode number.
    outside: BTreeMap<u32, &'r UnixSkEntry>,
    /// What is made, by file id.
    sockets: BTreeMap<u32, OwnedFd>,
    /// Far ends that nobody has, by the file id of the near ones.
    ends: HashMap<u32, OwnedFd>,
    /// Sockets that the user has given instead, by file id.
    given: Vec<u32>,
    /// Those that have their name from a connection.
    named: Vec<u32>,
    /// Datagram sockets whose peer has gone.
    orphans: Vec<u32>,
    queues: queue::Queues,
    places: Places,
    /// Senders that are no more, by name.
    senders: HashMap<Vec<u8>, OwnedFd>,
}

fn is_datagram(record: &UnixSkEntry) -> bool {
    record.r#type == libc::SOCK_DGRAM as u32
}

fn is_connected_pair(record: &UnixSkEntry) -> bool {
    !is_datagram(record) && record.state == state::ESTABLISHED
}

fn failed<'r>(record: &'r UnixSkEntry, action: &'static str) -> impl FnOnce(Errno) -> Error + use<'r> {
    move |errno| Error::kernel(object(record), action, errno)
}

impl<'r> Making<'r> {
    fn new(cx: &mut Build<'r>) -> Result<Making<'r>> {
        let (mut records, mut outside, mut orphans) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for record in cx.records().values().filter_map(|entry| entry.usk.as_ref()) {
            let place = if record.uflags & EXTERN == 0 { &mut records } else { &mut outside };
            place.insert(record.ino, record);
            if cx.sockets()?.of(record.id).orphan {
                orphans.push(record.id);
            }
        }
        Ok(Making {
            records,
            outside,
            sockets: BTreeMap::new(),
            ends: HashMap::new(),
            given: Vec::new(),
            named: Vec::new(),
            orphans,
            queues: queue::read(cx)?,
            places: Places::new(cx.options.root.as_deref())?,
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
    fn partner(&self, record: &UnixSkEntry) -> Option<&'r UnixSkEntry> {
        let peer = *self.records.get(&record.peer)?;
        let mutual = peer.peer == record.ino && peer.id != record.id;
        (mutual && !self.given.contains(&peer.id)).then_some(peer)
    }

    fn make(&mut self, cx: &mut Build<'_>, record: &'r UnixSkEntry) -> Result<()> {
        if self.sockets.contains_key(&record.id) {
            return Ok(());
        }
        let sort = Sort { family: libc::AF_UNIX, kind: record.r#type as i32, protocol: 0 };
        let partner = self.partner(record);
        let has_far_end = is_connected_pair(record)
            || (record.name.is_empty() && (self.orphans.contains(&record.id) || self.is_filled_by_nobody(record)));
        match partner {
            Some(partner) if is_connected_pair(record) && !(record.name.is_empty() && partner.name.is_empty()) => {
                let (server, client) = self.roles(record, partner);
                let (accepted, connected) = self.through_name(cx, server, client)?;
                self.sockets.insert(server.id, accepted);
                self.sockets.insert(client.id, connected);
            }
            Some(partner) => {
                let (one, other) = pair(record)?;
                for (record, file) in [(record, one), (partner, other)] {
                    give_inode(cx, record, file.as_fd())?;
                    self.sockets.insert(record.id, file);
                }
            }
            None if has_far_end => {
                let (near, far) = if is_connected_pair(record) && !record.name.is_empty() {
                    self.through_name(cx, record, &UnixSkEntry::default())?
                } else {
                    let ends = pair(record)?;
                    give_inode(cx, record, ends.0.as_fd())?;
                    ends
                };
                self.sockets.insert(record.id, near);
                self.ends.insert(record.id, far);
            }
            None => {
                let file = sort.make().map_err(failed(record, "make a socket"))?;
                give_inode(cx, record, file.as_fd())?;
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

    /// A connection whose accepted end has its name as it does from a listening socket: by way of one.
    fn through_name(
        &mut self,
        cx: &mut Build<'_>,
        server: &'r UnixSkEntry,
        client: &UnixSkEntry,
    ) -> Result<(OwnedFd, OwnedFd)> {
        let sort = Sort { family: libc::AF_UNIX, kind: server.r#type as i32, protocol: 0 };
        let make = || sort.make().map_err(failed(server, "make a socket"));
        let (listener, connected) = (make()?, make()?);
        if client.id != 0 {
            give_inode(cx, client, connected.as_fd())?;
            if !client.name.is_empty() {
                self.places.bind(connected.as_fd(), client)?;
                self.named.push(client.id);
            }
        }
        let join = || {
            match name::is_path(&server.name) {
                true => name::bind_new(listener.as_fd(), server)?,
                false => rustix::net::bind(&listener, &name::address(&server.name)?)?,
            }
            rustix::net::listen(&listener, 1)?;
            rustix::net::connect(&connected, &name::address(&server.name)?)?;
            accept_own(&listener)
        };
        let accepted = match name::is_path(&server.name) {
            true => self.places.apart(&server.name, join).and_then(|accepted| {
                self.places.delete(&server.name)?;
                Ok(accepted)
            }),
            false => join(),
        };
        let accepted = accepted.map_err(|errno| Error::Kernel {
            object: object(server),
            action: "connect it through its name".into(),
            errno,
            remedy: if errno == Errno::ADDRINUSE { "another program here has the name: end that one" } else { "" },
        })?;
        self.named.push(server.id);
        give_inode(cx, server, accepted.as_fd())?;
        Ok((accepted, connected))
    }

    fn bind(&mut self, record: &UnixSkEntry) -> Result<()> {
        let done = record.name.is_empty() || self.named.contains(&record.id) || self.given.contains(&record.id);
        if done {
            return Ok(());
        }
        self.places.bind(self.sockets[&record.id].as_fd(), record)
    }

    /// Sends it what it had not read.
    fn fill(&mut self, record: &'r UnixSkEntry) -> Result<()> {
        let Some(messages) = self.queues.remove(&record.id).filter(|_| !self.given.contains(&record.id)) else {
            return Ok(());
        };
        let fixed = match (self.ends.get(&record.id), self.partner(record)) {
            (Some(end), _) => Some(end.as_fd()),
            (None, partner) => partner.map(|partner| self.sockets[&partner.id].as_fd()),
        };
        if let Some(sender) = fixed {
            for (bytes, beside) in &messages {
                send_all(sender, record, bytes, beside)?;
            }
            return Ok(());
        }
        if record.name.is_empty() {
            return Err(Error::bad_image(
                "sk-queues.img",
                format!("socket {:#x} has nobody who could have sent", record.id),
            ));
        }
        for (bytes, beside) in &messages {
            self.send_by_name(record, bytes, beside)?;
        }
        Ok(())
    }

    fn send_by_name(&mut self, record: &UnixSkEntry, bytes: &[u8], beside: &Beside) -> Result<()> {
        let from = beside.from().unwrap_or_default();
        let sends = |other: &&&UnixSkEntry| {
            let as_named = !from.is_empty() && other.name == from;
            let as_peer = from.is_empty() && other.name.is_empty() && other.peer == record.ino;
            is_datagram(other) && (as_named || as_peer) && !self.given.contains(&other.id)
        };
        let known = self.records.values().find(sends).map(|sender| sender.id);
        let sender = match known {
            Some(id) => &self.sockets[&id],
            None => match self.senders.entry(from.clone()) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(room) => {
                    let made = stand_in(&mut self.places, &from);
                    room.insert(made.map_err(failed(record, "make a socket with the name of one that had sent to it"))?)
                }
            },
        };
        let sender = sender.as_fd();
        let sent = ample(sender).and_then(|()| {
            let send = || unix_message::send(sender, &record.name, bytes, beside.credentials(), &[]);
            self.places.reach(record, |_| send())
        });
        sent.map(drop).map_err(failed(record, "send it again what it had not read"))
    }

    /// Connects datagram sockets by name: before its own peer connects elsewhere.
    fn connect_all(&mut self, records: &[&'r UnixSkEntry]) -> Result<()> {
        let mut waiting: Vec<&UnixSkEntry> = records
            .iter()
            .copied()
            .filter(|record| is_datagram(record) && record.peer != 0 && self.partner(record).is_none())
            .filter(|record| !self.given.contains(&record.id) && !self.ends.contains_key(&record.id))
            .collect();
        while !waiting.is_empty() {
            let awaited = |one: &&UnixSkEntry| waiting.iter().any(|other| other.peer == one.ino && other.id != one.id);
            let at = waiting.iter().position(|one| !awaited(one)).unwrap_or(0);
            let record = waiting.swap_remove(at);
            let Some(to) = self.records.get(&record.peer).or(self.outside.get(&record.peer)) else { continue };
            let connected = self.places.connect(self.sockets[&record.id].as_fd(), to);
            connected.map_err(|errno| Error::Kernel {
                object: object(record),
                action: format!("connect it to {}", name::shown(&to.name)),
                errno,
                remedy: match to.uflags & EXTERN {
                    0 => "",
                    _ => "its peer is outside of the image: start the program that has that name",
                },
            })?;
        }
        self.part_orphans(records)
    }

    /// Those with a name had a peer too, which is no more.
    fn part_orphans(&mut self, records: &[&'r UnixSkEntry]) -> Result<()> {
        for record in records {
            if !self.orphans.contains(&record.id) || self.ends.contains_key(&record.id) || record.name.is_empty() {
                continue;
            }
            let gone = UnixSkEntry { name: b"/gone".to_vec(), deleted: Some(true), ..UnixSkEntry::default() };
            let parted = stand_in(&mut self.places, &gone.name).and_then(|far| {
                self.places.connect(self.sockets[&record.id].as_fd(), &gone)?;
                self.places.delete(&gone.name)?;
                drop(far);
                Ok(())
            });
            parted.map_err(failed(record, "connect it to a peer that is gone"))?;
        }
        Ok(())
    }

    fn finish(&mut self, cx: &mut Build<'_>, record: &UnixSkEntry) -> Result<()> {
        let file = self.sockets[&record.id].as_fd();
        let what = || object(record);
        if !self.given.contains(&record.id) {
            let extra = cx.sockets()?.of(record.id);
            settings::check_names(TABLES, &extra)?;
            if record.deleted == Some(true) && name::is_path(&record.name) && !self.named.contains(&record.id) {
                self.places.delete(&record.name).map_err(failed(record, "take away the file of its name"))?;
            }
            options::build(file, &record.opts, what)?;
            record.opts.reuseaddr.map_or(Ok(()), |wanted| options::set_reuseaddr(file, wanted, what))?;
            settings::build(file, TABLES, &extra, When::Early, what)?;
            shut_down(file, record)?;
            filter::build(file, &record.opts.so_filter, what)?;
            settings::build(file, TABLES, &extra, When::Late, what)?;
        }
        apply_status_flags(file, record.id, record.flags)
    }
}

fn pair(record: &UnixSkEntry) -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::from_raw(record.r#type), SocketFlags::CLOEXEC, None)
        .map_err(failed(record, "make a pair of sockets"))
}

fn give_inode(cx: &mut Build<'_>, record: &UnixSkEntry, file: BorrowedFd<'_>) -> Result<()> {
    let extra = cx.sockets()?.of(record.id);
    build_inode(file, &extra).map_err(failed(record, "give it its owner"))
}

/// An abstract name is open to everybody: who else connects in this moment is not let in.
fn accept_own(listener: &OwnedFd) -> std::result::Result<OwnedFd, Errno> {
    loop {
        let accepted = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?;
        if rustix::net::sockopt::socket_peercred(&accepted)?.pid == rustix::process::getpid() {
            return Ok(accepted);
        }
    }
}

/// A datagram socket with a name, for one that is no more.
fn stand_in(places: &mut Places, name: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    let socket = Sort { family: libc::AF_UNIX, kind: libc::SOCK_DGRAM, protocol: 0 }.make()?;
    match name {
        [] => {}
        path if name::is_path(path) => places.apart(path, || rustix::net::bind(&socket, &name::address(path)?))?,
        other => rustix::net::bind(&socket, &name::address(other)?)?,
    }
    Ok(socket)
}

fn ample(sender: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    socket::set_int(sender, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, AMPLE)
}

fn send_all(sender: BorrowedFd<'_>, record: &UnixSkEntry, bytes: &[u8], beside: &Beside) -> Result<()> {
    let mut rest = bytes;
    let send = |bytes: &[u8]| unix_message::send(sender, &[], bytes, beside.credentials(), &[]);
    let whole = ample(sender).and_then(|()| {
        // An empty message is one, too.
        loop {
            let sent = send(rest)?;
            rest = &rest[sent..];
            if rest.is_empty() {
                return Ok(());
            }
        }
    });
    whole.map_err(failed(record, "send it again what it had not read"))
}

fn shut_down(file: BorrowedFd<'_>, record: &UnixSkEntry) -> Result<()> {
    let how = match record.shutdown() {
        SkShutdown::None => return Ok(()),
        SkShutdown::Read => Shutdown::Read,
        SkShutdown::Write => Shutdown::Write,
        SkShutdown::Both => Shutdown::Both,
    };
    rustix::net::shutdown(file, how).map_err(failed(record, "shut it down"))
}
