//! Connections that wait to be accepted, each a socket that no process has. The record of the other end says that it is
//! connected to the socket that listens, as CRIU's does. CRIU's format has no place for more: who waits in which order,
//! whose other end has gone, and what was sent since is in `cryonaut-waiting-FILE.json`, FILE that of who listens.

use super::acting::{Actors, Maker};
use super::build::{Making, failed};
use super::complete::{Files, rights_of, send_all};
use super::queue::{Beside, Unread};
use super::{Known, is_allowed, name, outside, state};
use crate::files::{Build, Collect, OpenFile};
use crate::{Error, Object, Result, hexadecimal};
use cryonaut_image::records::UnixSkEntry;
use cryonaut_kernel::sys::unix_diag::UnixSocket;
use cryonaut_kernel::sys::unix_message::Credentials;
use cryonaut_kernel::sys::unix_waiting::{self, Sent, Waiting};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// As many may wait as the system lets (listen(2)).
const ALL: i32 = i32::MAX;
/// What a user can do.
const ACCEPT: &str = "let the program accept it before the checkpoint";

/// A socket that listens, with connections that wait.
#[derive(Debug)]
pub struct Hall {
    id: u32,
    inode: u32,
    object: Object,
    socket: OwnedFd,
    told: UnixSocket,
}

impl Hall {
    /// Notes one, to be looked into when all files are known.
    pub fn note(cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32, told: UnixSocket) -> Result<()> {
        let failed = |e: std::io::Error| Error::kernel(file.object(), "duplicate it", crate::error::errno_of(&e));
        let socket = file.file.try_clone_to_owned().map_err(failed)?;
        cx.sockets.unix.halls.push(Hall { id, inode: told.inode, object: file.object(), socket, told });
        Ok(())
    }

    /// Who waits, or what is known of that without the kernel's memory.
    fn guests(&self, cx: &mut Collect<'_>, known: &Known) -> Result<Vec<Guest>> {
        let asked = unix_waiting::at(self.socket.as_fd());
        match asked {
            Ok(all) => all.into_iter().map(|one| Guest::of(cx, self, one)).collect(),
            Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => {
                let ours = |one: &&UnixSocket| one.name == self.told.name && one.kind == self.told.kind;
                if known.unaccepted.iter().filter(ours).any(|one| one.received > 0) {
                    return Err(Error::unsupported(
                        self.object.clone(),
                        "a connection that waits to be accepted has sent something, which cannot be read",
                        "this needs CAP_BPF and CAP_PERFMON, and a kernel with /sys/kernel/btf/vmlinux",
                    ));
                }
                Ok(self.told.waiting.iter().copied().map(Guest::silent).collect())
            }
            Err(errno) => Err(Error::kernel(self.object.clone(), "see who waits to be accepted", errno)),
        }
    }
}

/// A connection that waits.
#[derive(Debug, Serialize, Deserialize)]
pub struct Guest {
    /// The inode number of the other end; 0 if that is nowhere.
    client: u32,
    /// Who has connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    maker: Option<Maker>,
    /// What it has sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    messages: Vec<Said>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Said {
    /// Hexadecimal.
    data: String,
    #[serde(flatten)]
    beside: Beside,
    /// The files that it brings, by id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rights: Vec<u32>,
}

impl Guest {
    /// The files that what it has sent brings.
    pub fn rights(&self) -> impl Iterator<Item = &u32> {
        self.messages.iter().flat_map(|said| &said.rights)
    }

    fn of(cx: &mut Collect<'_>, hall: &Hall, waiting: Waiting) -> Result<Guest> {
        let refused = |what: &str| {
            let reason = format!("a connection that waits to be accepted has sent {what}");
            Error::unsupported(hall.object.clone(), reason, ACCEPT)
        };
        let said = |Sent { bytes, credentials, rights, is_urgent }| {
            let bytes = bytes.ok_or_else(|| refused("more in one call than can be read there (some 3.6 KiB)"))?;
            let one = |file| match cx.held_anywhere(file)? {
                Some(file) => cx.on_its_way(file, hall.inode),
                None => Err(refused("a descriptor (SCM_RIGHTS) that no process of the tree has any more")),
            };
            let rights = rights.into_iter().map(one).collect::<Result<_>>()?;
            Ok(Said { data: hexadecimal::encode(&bytes), beside: Beside::by(credentials, is_urgent), rights })
        };
        let messages = waiting.messages.into_iter().map(said).collect::<Result<_>>()?;
        let Credentials { pid, uid, gid } = waiting.credentials;
        let maker = (pid != 0).then(|| Maker::new(pid, uid, gid, waiting.groups));
        Ok(Guest { client: waiting.client, maker, messages })
    }

    fn silent(client: u32) -> Guest {
        Guest { client, maker: None, messages: Vec::new() }
    }
}

fn name_of(id: u32) -> String {
    format!("waiting-{id}")
}

/// Writes down who waits at the sockets of the tree that listen.
pub fn collect(cx: &mut Collect<'_>, known: &Known) -> Result<()> {
    let mut inside = Vec::new();
    for hall in &known.halls {
        let mut guests = hall.guests(cx, known)?;
        for guest in guests.iter_mut().filter(|guest| guest.client != 0) {
            inside.push(guest.client);
            if known.carried.contains_key(&guest.client) {
                cx.unix_record(guest.client, |record| record.peer = hall.inode);
            } else if is_allowed(cx, guest.client, hall.inode) {
                guest.client = 0;
            } else {
                let there = known.told.as_ref().and_then(|told| told.get(&guest.client));
                return Err(outside(&hall.object, guest.client, there));
            }
        }
        cx.images.write_json(&name_of(hall.id), &guests)?;
    }
    for one in &known.unaccepted {
        let Some(client) = one.peer.filter(|peer| !inside.contains(peer)) else { continue };
        let Some(object) = known.carried.get(&client).filter(|_| !is_allowed(cx, client, client)) else { continue };
        return Err(Error::unsupported(
            object.clone(),
            format!("it waits to be accepted by {}, which is outside of the tree", name::shown(&one.name)),
            "checkpoint both in one tree, or use --ext-unix-sk: it then finds its peer gone",
        ));
    }
    Ok(())
}

/// Who waits, by the file id of the socket that listens.
pub type Guests = BTreeMap<u32, Vec<Guest>>;

/// Of all sockets of an image.
pub fn read(cx: &Build<'_>, records: &BTreeMap<u32, &UnixSkEntry>) -> Result<Guests> {
    let mut all = Guests::new();
    for listener in records.values().filter(|record| record.state == state::LISTEN) {
        // Of CRIU's images: those of the tree, in some order.
        let clients = records.values().filter(|record| record.peer == listener.ino).map(|record| record.ino);
        let guests = match cx.images.read_json(&name_of(listener.id))? {
            Some(guests) => checked(listener.id, guests)?,
            None => clients.map(Guest::silent).collect::<Vec<_>>(),
        };
        if !guests.is_empty() {
            all.insert(listener.id, guests);
        }
    }
    Ok(all)
}

/// Of an image that is not ours, what was sent may be anything.
fn checked(id: u32, guests: Vec<Guest>) -> Result<Vec<Guest>> {
    if guests.iter().flat_map(|guest| &guest.messages).any(|said| hexadecimal::decode(&said.data).is_none()) {
        return Err(Error::bad_image(
            format!("cryonaut-{}.json", name_of(id)),
            "data of a message are not hexadecimal",
        ));
    }
    Ok(guests)
}

impl<'r> Making<'r> {
    /// Whether it waits to be accepted.
    pub(super) fn waits(&self, record: &UnixSkEntry) -> bool {
        record.state == state::ESTABLISHED
            && self.records.get(&record.peer).is_some_and(|peer| peer.state == state::LISTEN)
    }

    /// Lets all connect that are to wait. How many may wait is set later.
    pub(super) fn admit(&mut self, actors: &mut Actors<'_>, files: &Files, listener: &'r UnixSkEntry) -> Result<()> {
        let Some(guests) = self.guests.remove(&listener.id).filter(|_| !self.given.contains(&listener.id)) else {
            return Ok(());
        };
        actors.listen(self.maker(listener), files[&listener.id].as_fd(), ALL, listener)?;
        let to = self.places.target(listener, false).map_err(failed(listener, "find its name again"))?;
        for guest in guests {
            let of_tree = self.records.get(&guest.client).copied();
            if of_tree.is_some_and(|client| self.given.contains(&client.id)) {
                continue;
            }
            let stand_in = match of_tree {
                Some(_) => None,
                None => Some(super::build::sort_of(listener).make().map_err(failed(listener, "make a socket"))?),
            };
            let socket = match (of_tree, &stand_in) {
                (Some(client), _) => files[&client.id].as_fd(),
                (None, Some(made)) => made.as_fd(),
                (None, None) => continue,
            };
            actors.connect(guest.maker.as_ref(), socket, &to, listener)?;
            for said in guest.messages {
                // `checked` has seen it.
                let bytes = hexadecimal::decode(&said.data).unwrap_or_default();
                let message = Unread { bytes, beside: said.beside, rights: said.rights };
                send_all(socket, listener, &message, &rights_of(files, &message))?;
            }
        }
        Ok(())
    }
}
