//! In which network namespace a socket is: it keeps that of who has made it. What is asked of sockets by netlink and of
//! /proc/net is asked there.

use super::{Known, Sort, network_of};
use crate::namespaces::{Own, Owned};
use crate::{Error, Object, Result};
use cryonaut_image::records::FileEntry;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::namespace::{self, NetworkVisit, visit_network};
use cryonaut_kernel::sys::socket;
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use super::super::OpenFile;

/// Network namespaces that sockets of a tree are in.
#[derive(Debug, Default)]
pub struct Networks<'a> {
    owned: Option<&'a Owned>,
    /// Our own, which is that of the surroundings.
    own: Option<u32>,
    /// Numbers of those of which the cookie is known.
    cookies: HashMap<u64, Option<u32>>,
    /// Those that no process is in.
    found: Vec<Own>,
    /// A number that no namespace has.
    next: u32,
    /// What is known of sockets elsewhere, while we are not there.
    elsewhere: HashMap<Option<u32>, super::beside::OfNetwork>,
}

impl<'a> Networks<'a> {
    /// Those of a tree's processes; `own` is ours, `next` a number that no namespace has.
    pub fn new(owned: &'a Owned, own: Option<u32>, next: u32) -> Networks<'a> {
        Networks { owned: Some(owned), own, next, ..Networks::default() }
    }

    /// Those that were found by sockets alone.
    pub fn found(&self) -> &[Own] {
        &self.found
    }

    /// The number of our own.
    pub fn own(&self) -> Option<u32> {
        self.own
    }

    /// Whether there is any but our own.
    pub fn has_others(&self) -> bool {
        !self.found.is_empty()
            || self.owned.is_some_and(|owned| owned.iter().any(|own| own.kind.kind == Namespace::Net))
    }

    fn get(&self, id: u32) -> Option<&Own> {
        let of_process = self.owned.and_then(|owned| owned.get(Namespace::Net, id));
        of_process.or_else(|| self.found.iter().find(|own| own.id == id))
    }

    /// The one of a socket: `None` for our own.
    pub fn of_socket(&mut self, file: &OpenFile<'_>) -> Result<Option<u32>> {
        let failed = |e| Error::kernel(file.object(), "ask for its network namespace", e);
        if self.cookies.is_empty() {
            self.learn().map_err(failed)?;
        }
        let cookie = file.asked.network().map_or_else(|| network_of(file.file), Ok).map_err(failed)?;
        if let Some(id) = self.cookies.get(&cookie) {
            return Ok(*id);
        }
        let id = self.of_file(file)?;
        self.cookies.insert(cookie, id);
        Ok(id)
    }

    /// The one of a socket or a file of a tun device, which the kernel opens.
    pub fn of_file(&mut self, file: &OpenFile<'_>) -> Result<Option<u32>> {
        let failed = |e| Error::kernel(file.object(), "open its network namespace", e);
        let opened = socket::network_of(file.file).map_err(failed)?;
        let inode = namespace::inode(opened.as_fd()).map_err(failed)?;
        let is = |other: BorrowedFd<'_>| namespace::inode(other).is_ok_and(|other| other == inode);
        let ours = std::fs::File::open(namespace::OWN_NETWORK).map_err(|e| failed(crate::error::errno_of(&e)))?;
        if is(ours.as_fd()) {
            return Ok(None);
        }
        let of_processes = self.owned.into_iter().flat_map(Owned::iter).filter(|own| own.kind.kind == Namespace::Net);
        if let Some(own) = of_processes.chain(&self.found).find(|own| is(own.file.as_fd())) {
            return Ok(Some(own.id));
        }
        let id = self.next;
        self.next += 1;
        self.found.push(Own::new(Namespace::Net, id, file.pid, opened));
        Ok(Some(id))
    }

    /// The one that an open file of a namespace is, which is none of the tree's processes', nor ours.
    pub fn of_opened(&mut self, file: &OpenFile<'_>) -> Result<u32> {
        let inode = file.stat.st_ino;
        let is = |own: &&Own| namespace::inode(own.file.as_fd()).is_ok_and(|other| other == inode);
        if let Some(own) = self.found.iter().find(is) {
            return Ok(own.id);
        }
        let opened = file.file.try_clone_to_owned();
        let opened = opened.map_err(|e| Error::kernel(file.object(), "keep it open", crate::error::errno_of(&e)))?;
        let id = self.next;
        self.next += 1;
        self.found.push(Own::new(Namespace::Net, id, file.pid, opened));
        Ok(id)
    }

    fn learn(&mut self) -> std::result::Result<(), Errno> {
        let here = || network_of(Sort { family: libc::AF_UNIX, kind: libc::SOCK_DGRAM, protocol: 0 }.make()?.as_fd());
        self.cookies.insert(here()?, None);
        for own in self.owned.into_iter().flat_map(Owned::iter).filter(|own| own.kind.kind == Namespace::Net) {
            let _there = visit_network(own.file.as_fd())?;
            self.cookies.insert(here()?, Some(own.id));
        }
        Ok(())
    }

    /// Goes to one; what is known of sockets is from then on what is known of those there.
    pub fn visit(&mut self, known: &mut Known, id: Option<u32>) -> Result<Option<NetworkVisit>> {
        let Some(id) = id else { return Ok(None) };
        let own = self
            .get(id)
            .ok_or_else(|| Error::kernel(Object::Other(format!("network namespace {id}")), "enter it", Errno::NOENT))?;
        let visit = visit_network(own.file.as_fd()).map_err(own.failed("enter it"))?;
        let there = self.elsewhere.remove(&Some(id)).unwrap_or_default();
        self.elsewhere.insert(None, std::mem::replace(&mut known.here, there));
        Ok(Some(visit))
    }

    /// Comes back from one.
    pub fn leave(&mut self, known: &mut Known, id: Option<u32>, visit: Option<NetworkVisit>) {
        if visit.is_some() {
            let here = self.elsewhere.remove(&None).unwrap_or_default();
            self.elsewhere.insert(id, std::mem::replace(&mut known.here, here));
        }
    }
}

/// The namespace that the record of a socket names.
pub fn recorded(entry: &FileEntry) -> Option<u32> {
    let inet = entry.isk.as_ref().and_then(|record| record.ns_id);
    let unix = entry.usk.as_ref().and_then(|record| record.ns_id);
    let netlink = entry.nlsk.as_ref().and_then(|record| record.ns_id);
    let packet = entry.psk.as_ref().and_then(|record| record.ns_id);
    inet.or(unix).or(netlink).or(packet)
}

/// Whether it is the record of a socket.
pub fn is_record(entry: &FileEntry) -> bool {
    entry.isk.is_some() || entry.usk.is_some() || entry.nlsk.is_some() || entry.psk.is_some()
}

/// Names its namespace in the record of a socket.
pub fn tell(entry: &mut FileEntry, id: Option<u32>) {
    if let Some(record) = &mut entry.isk {
        record.ns_id = id;
    }
    if let Some(record) = &mut entry.usk {
        record.ns_id = id;
    }
    if let Some(record) = &mut entry.nlsk {
        record.ns_id = id;
    }
    if let Some(record) = &mut entry.psk {
        record.ns_id = id;
    }
}
