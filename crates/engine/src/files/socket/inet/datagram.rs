//! UDP: with its address, its peer and its options.

use super::super::Sort;
use super::super::settings::{self, Setting};
use super::{CLOSE, address, describe, object, ready, sort_of, state, zone_of};
use crate::files::{Collect, OpenFile};
use crate::{Error, Result};
use cryonaut_image::records::{InetSkEntry, SkShutdown};
use cryonaut_kernel::sys::{sock_diag, socket};
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// The tables of options that such a socket has.
pub fn tables(record: &InetSkEntry) -> Vec<&'static [Setting]> {
    // Packets of a peer move it.
    if record.state == state::CLOSE { vec![settings::UDP, settings::RECEIVERS] } else { vec![settings::UDP] }
}

fn carried(sort: Sort) -> bool {
    matches!((sort.kind, sort.protocol), (libc::SOCK_STREAM, libc::IPPROTO_TCP) | (libc::SOCK_DGRAM, libc::IPPROTO_UDP))
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
pub fn collect(cx: &mut Collect<'_>, file: &OpenFile<'_>, sort: Sort, record: &mut InetSkEntry) -> Result<()> {
    if !carried(sort) {
        let reason = format!("it is a {}, which cannot be carried yet", describe(sort));
        return Err(Error::unsupported(file.object(), reason, CLOSE));
    }
    let ready = ready(file.file);
    if ready.contains(PollFlags::IN) && !ready.contains(PollFlags::RDHUP) {
        let reason = "it has datagrams that the program has not read, which cannot be carried yet";
        return Err(Error::unsupported(file.object(), reason, "let the program read them before the checkpoint"));
    }
    refuse_corked(file)?;
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
    let told = match cx.sockets.told.entry((sort.family, sort.protocol)) {
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

/// Connects it, if it was.
pub fn build(socket: BorrowedFd<'_>, record: &InetSkEntry) -> Result<()> {
    if record.state != state::ESTABLISHED {
        return Ok(());
    }
    let peer = address::of_record(record, &record.dst_addr, record.dst_port, zone_of(record)?)?;
    rustix::net::connect(socket, &peer)
        .map_err(|e| Error::kernel(object(record.id, sort_of(record)), format!("connect it to {peer}"), e))
}
