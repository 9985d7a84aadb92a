//! UDP and UDP-Lite: with address, peer and options, and what was not read. And
//! sockets for pings (icmp(7)), of which the identifier stands in the place of a
//! port.

use super::super::Sort;
use super::super::beside::Extra;
use super::super::settings::{self, Setting};
use super::{
    CLOSE, address, describe, error, error_queue, multicast, object, raw, ready, sort_of, state, unread,
    unread_packets, zone_of,
};
use crate::files::{Build, Collect, OpenFile};
use crate::{Error, Result};
use cryonaut_image::records::{InetSkEntry, SkShutdown};
use cryonaut_kernel::sys::{sock_diag, socket};
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// The tables of options that such a socket has.
pub fn tables(record: &InetSkEntry) -> Vec<&'static [Setting]> {
    if record.r#type == libc::SOCK_RAW as u32 {
        return vec![settings::RAW];
    }
    if is_ping(sort_of(record)) {
        return Vec::new();
    }
    let lite = record.proto == libc::IPPROTO_UDPLITE as u32;
    let mut tables = vec![if lite { settings::UDPLITE } else { settings::UDP }];
    // Packets of a peer move it.
    tables.extend((record.state == state::CLOSE).then_some(settings::RECEIVERS));
    tables
}

/// Whether it sends and receives echoes of ICMP.
pub fn is_ping(sort: Sort) -> bool {
    sort.kind == libc::SOCK_DGRAM && matches!(sort.protocol, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6)
}

fn carried(sort: Sort) -> bool {
    match sort.kind {
        libc::SOCK_STREAM => sort.protocol == libc::IPPROTO_TCP,
        libc::SOCK_DGRAM => matches!(sort.protocol, libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE) || is_ping(sort),
        libc::SOCK_RAW => true,
        _ => false,
    }
}

/// A record of a protocol that cannot be built.
pub fn check(record: &InetSkEntry) -> Result<()> {
    let sort = sort_of(record);
    if carried(sort) {
        return Ok(());
    }
    Err(Error::unsupported(object(record.id, sort), "such sockets cannot be built yet", ""))
}

/// Reads what is UDP's own.
pub fn collect(
    cx: &mut Collect<'_>,
    file: &OpenFile<'_>,
    sort: Sort,
    record: &mut InetSkEntry,
    extra: &mut Extra,
) -> Result<()> {
    if !carried(sort) {
        let reason = format!("it is a {}, which cannot be carried yet", describe(sort));
        return Err(Error::unsupported(file.object(), reason, CLOSE));
    }
    refuse_corked(file)?;
    if unread_packets::concerns(sort) {
        raw::collect(file, sort, record)?;
        if raw::has_unread(file) {
            unread_packets::collect(cx, file, sort, record)?;
        }
        return multicast::collect(&mut cx.sockets, file, sort.family == libc::AF_INET6, extra);
    }
    // Of one that is shut down, poll says that there is something in any case.
    if ready(file.file).contains(PollFlags::IN) {
        unread::collect(cx, file, record)?;
    }
    multicast::collect(&mut cx.sockets, file, sort.family == libc::AF_INET6, extra)?;
    collect_shutdown(cx, file, sort, record)
}

/// A datagram that is put together piece by piece is nowhere to be read.
fn refuse_corked(file: &OpenFile<'_>) -> Result<()> {
    match socket::unsent(file.file) {
        Ok(0) | Err(_) => Ok(()),
        Ok(_) => Err(Error::unsupported(
            file.object(),
            "a datagram has been begun (UDP_CORK or MSG_MORE) and not sent, or is just on its way out",
            "let the program send it whole before the checkpoint",
        )),
    }
}

/// What is shut down, sock_diag tells, of sockets with a port.
fn collect_shutdown(cx: &mut Collect<'_>, file: &OpenFile<'_>, sort: Sort, record: &mut InetSkEntry) -> Result<()> {
    if record.src_port == 0 {
        return Ok(());
    }
    let told = match cx.sockets.here.told.entry((sort.family, sort.protocol)) {
        std::collections::hash_map::Entry::Occupied(told) => told.into_mut(),
        std::collections::hash_map::Entry::Vacant(room) => {
            room.insert(match sock_diag::inet(sort.family as u8, sort.protocol as u8) {
                Ok(told) => told,
                Err(Errno::NOENT) => {
                    tracing::warn!(
                        "{}: this kernel lacks sock_diag for such sockets; taken as not shut down",
                        file.object()
                    );
                    Vec::new()
                }
                Err(e) => return Err(Error::kernel(file.object(), "ask sock_diag about it", e)),
            })
        }
    };
    let how =
        told.iter().find(|socket| u64::from(socket.inode) == file.stat.st_ino).map_or(0, |socket| socket.shutdown);
    let how = SkShutdown::try_from(i32::from(how)).unwrap_or(SkShutdown::None);
    if how != SkShutdown::None {
        record.set_shutdown(how);
    }
    Ok(())
}

/// Connects it, if it was, and gives it back what was not read.
pub fn build(cx: &Build<'_>, socket: BorrowedFd<'_>, record: &InetSkEntry, extra: &Extra) -> Result<()> {
    multicast::build(socket, extra, || object(record.id, sort_of(record)))?;
    if unread_packets::concerns(sort_of(record)) {
        // Before it has a peer: that may be another since.
        unread_packets::build(cx, socket, record)?;
    }
    if record.state == state::ESTABLISHED {
        connect(socket, record)?;
    }
    if record.r#type == libc::SOCK_RAW as u32 {
        return raw::build(socket, record);
    }
    unread::build(cx, socket, record)?;
    if !extra.errors.is_empty() {
        return error_queue::build(socket, record, extra);
    }
    if extra.error == 0 {
        return Ok(());
    }
    let peer = address::of_record(record, &record.dst_addr, record.dst_port, 0)?;
    let own =
        address::local(socket).map_err(|e| Error::kernel(object(record.id, sort_of(record)), "ask for its address", e));
    error::build(socket, record, extra.error, (own?, peer), 0)
}

fn connect(socket: BorrowedFd<'_>, record: &InetSkEntry) -> Result<()> {
    let peer = address::of_record(record, &record.dst_addr, record.dst_port, zone_of(record)?)?;
    rustix::net::connect(socket, &peer)
        .map_err(|e| Error::kernel(object(record.id, sort_of(record)), format!("connect it to {peer}"), e))
}
