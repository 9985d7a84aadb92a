//! Completing the Unix sockets of an image, when every other file is there:
//! what was not read, which may bring any of them, then connections by name,
//! also those that wait to be accepted.
//! Options come last, since they would be in the way of all that (SO_PASSCRED
//! gives names, small buffers hold less than they did).

use super::super::settings::{self, When};
use super::super::{Sort, filter, options};
use super::acting::Actors;
use super::build::{Making, failed, is_datagram};
use super::name::{self, Places};
use super::queue::Unread;
use super::waiting::Guest;
use super::{EXTERN, TABLES, object, state};
use crate::files::{Build, apply_status_flags};
use crate::{Error, Result};
use cryonaut_image::records::{SkShutdown, UnixSkEntry};
use cryonaut_kernel::sys::acting::Present;
use cryonaut_kernel::sys::socket;
use cryonaut_kernel::sys::unix_message::{self, Credentials};
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Room for what is sent into queues, whatever the buffers were (half of the largest number).
const AMPLE: i32 = 1 << 29;

/// The place of names of sockets that are in no record.
const NOBODY: u32 = 0;

/// The built files, by id.
pub(super) type Files = HashMap<u32, OwnedFd>;

/// Does what is left to do for the sockets that were made, if any.
pub fn all(cx: &mut Build<'_>, actors: &mut Actors<'_>) -> Result<()> {
    let Some(mut making) = cx.unix.take() else { return Ok(()) };
    let records: Vec<&UnixSkEntry> = making.records.values().copied().collect();
    // Some of the files are nowhere else.
    let read = making.queues.values().flatten().flat_map(|message| &message.rights);
    for id in read.chain(making.guests.values().flatten().flat_map(Guest::rights)) {
        cx.file(*id)?;
    }
    for record in &records {
        let _there = cx.visit(record.ns_id)?;
        making.fill(cx.built(), record)?;
    }
    making.connect_all(cx.built(), &records)?;
    for record in &records {
        let _there = cx.visit(record.ns_id)?;
        making.admit(actors, cx.built(), record)?;
    }
    making.reset(cx.built())?;
    making.ends.clear();
    for record in &records {
        making.finish(cx.built(), record)?;
    }
    // Nobody else is to connect before everything is there.
    for record in records.iter().filter(|record| record.state == state::LISTEN) {
        actors.listen(making.maker(record), cx.built()[&record.id].as_fd(), record.backlog as i32, record)?;
    }
    Ok(())
}

pub(super) fn rights_of<'f>(files: &'f Files, message: &Unread) -> Vec<BorrowedFd<'f>> {
    message.rights.iter().map(|id| files[id].as_fd()).collect()
}

impl<'r> Making<'r> {
    /// Sends it what it had not read.
    fn fill(&mut self, files: &Files, record: &'r UnixSkEntry) -> Result<()> {
        let Some(messages) = self.queues.remove(&record.id).filter(|_| !self.given.contains(&record.id)) else {
            return Ok(());
        };
        let fixed = match (self.ends.get(&record.id), self.partner(record)) {
            (Some(end), _) => Some(end.as_fd()),
            (None, partner) => partner.map(|partner| files[&partner.id].as_fd()),
        };
        if let Some(sender) = fixed {
            for message in &messages {
                send_all(sender, record, message, &rights_of(files, message))?;
                if message.beside.is_urgent() && message.bytes.is_empty() {
                    let taken = rustix::net::recv(&files[&record.id], &mut [0u8; 1][..], RecvFlags::OOB);
                    taken.map_err(failed(record, "take an urgent byte that it had read"))?;
                }
            }
            return Ok(());
        }
        if record.name.is_empty() {
            return Err(Error::bad_image(
                "sk-queues.img",
                format!("socket {:#x} has nobody who could have sent", record.id),
            ));
        }
        for message in &messages {
            self.send_by_name(files, record, message)?;
        }
        Ok(())
    }

    fn send_by_name(&mut self, files: &Files, record: &UnixSkEntry, message: &Unread) -> Result<()> {
        let from = message.beside.from().unwrap_or_default();
        let sends = |other: &&&UnixSkEntry| {
            let as_named = !from.is_empty() && other.name == from;
            let as_peer = from.is_empty() && other.name.is_empty() && other.peer == record.ino;
            is_datagram(other) && (as_named || as_peer) && !self.given.contains(&other.id)
        };
        let known = self.records.values().find(sends).map(|sender| sender.id);
        let sender = match known {
            Some(id) => &files[&id],
            None => match self.senders.entry(from.clone()) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(room) => {
                    let made = stand_in(&mut self.places, &from);
                    room.insert(made.map_err(failed(record, "make a socket with the name of one that had sent to it"))?)
                }
            },
        };
        let sender = sender.as_fd();
        let sent = ample(sender).and_then(|()| {
            let (credentials, rights) = (message.beside.credentials(), rights_of(files, message));
            let send = || unix_message::send(sender, &record.name, &message.bytes, credentials, &rights);
            self.places.reach(record, |_| send_for(credentials, send))
        });
        sent.map(drop).map_err(|errno| Error::Kernel {
            object: object(record),
            action: "send it again what it had not read".into(),
            errno,
            remedy: match errno {
                Errno::AGAIN => "it has more unread than this system lets: raise net.unix.max_dgram_qlen",
                _ => "",
            },
        })
    }

    /// Connects datagram sockets by name: before its own peer connects elsewhere.
    fn connect_all(&mut self, files: &Files, records: &[&'r UnixSkEntry]) -> Result<()> {
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
            let connected = self.places.connect(files[&record.id].as_fd(), to);
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
        self.part_orphans(files, records)
    }

    /// Those with a name had a peer too, which is no more.
    fn part_orphans(&mut self, files: &Files, records: &[&'r UnixSkEntry]) -> Result<()> {
        for record in records {
            if !self.orphans.contains(&record.id) || self.ends.contains_key(&record.id) || record.name.is_empty() {
                continue;
            }
            let gone =
                UnixSkEntry { id: NOBODY, name: b"/gone".to_vec(), deleted: Some(true), ..UnixSkEntry::default() };
            let parted = stand_in(&mut self.places, &gone.name).and_then(|far| {
                self.places.connect(files[&record.id].as_fd(), &gone)?;
                self.places.delete(&gone)?;
                drop(far);
                Ok(())
            });
            parted.map_err(failed(record, "connect it to a peer that is gone"))?;
        }
        Ok(())
    }

    /// Who closes a stream with something unread resets it: the other end has an error then (ECONNRESET).
    fn reset(&self, files: &Files) -> Result<()> {
        for record in self.records.values().filter(|record| self.ends.contains_key(&record.id)) {
            if self.extras.get(&record.id).is_some_and(|extra| extra.reset) {
                unix_message::send(&files[&record.id], &[], &[0], None, &[])
                    .map_err(failed(record, "give it the error that it had"))?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, files: &Files, record: &UnixSkEntry) -> Result<()> {
        let file = files[&record.id].as_fd();
        let what = || object(record);
        if !self.given.contains(&record.id) {
            let extra = self.extras.get(&record.id).cloned().unwrap_or_default();
            settings::check_names(TABLES, &extra)?;
            if record.deleted == Some(true) && name::is_path(&record.name) && !self.named.contains(&record.id) {
                self.places.delete(record).map_err(failed(record, "take away the file of its name"))?;
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

/// A datagram socket with a name, for one that is no more.
fn stand_in(places: &mut Places, name: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    let socket = Sort { family: libc::AF_UNIX, kind: libc::SOCK_DGRAM, protocol: 0 }.make()?;
    match name {
        [] => {}
        path if name::is_path(path) => {
            places.apart(NOBODY, path, || rustix::net::bind(&socket, &name::address(path)?))?
        }
        other => rustix::net::bind(&socket, &name::address(other)?)?,
    }
    Ok(socket)
}

fn ample(sender: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    socket::set_int(sender, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, AMPLE)
}

/// Sends something in the name of a process, which has to be there: if it is no more, another is, with its pid.
fn send_for<T>(
    credentials: Option<Credentials>,
    send: impl Fn() -> std::result::Result<T, Errno>,
) -> std::result::Result<T, Errno> {
    match (send(), credentials) {
        (Err(Errno::SRCH), Some(credentials)) => {
            let _there = Present::new(credentials.pid)?;
            send()
        }
        (sent, _) => sent,
    }
}

/// Sends a message through a socket, `record` its receiver.
pub(super) fn send_all(
    sender: BorrowedFd<'_>,
    record: &UnixSkEntry,
    message: &Unread,
    rights: &[BorrowedFd<'_>],
) -> Result<()> {
    let (mut rest, mut rights) = (message.bytes.as_slice(), rights);
    let whole = ample(sender).and_then(|()| {
        if message.beside.is_urgent() {
            let (byte, credentials) = (rest.first().copied().unwrap_or_default(), message.beside.credentials());
            return send_for(credentials, || unix_message::send_urgent(sender, byte, credentials, rights));
        }
        // An empty message is one, too.
        loop {
            let credentials = message.beside.credentials();
            let sent = send_for(credentials, || unix_message::send(sender, &[], rest, credentials, rights))?;
            (rest, rights) = (&rest[sent..], &[]);
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
