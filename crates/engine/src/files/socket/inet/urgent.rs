//! Urgent data of TCP that waits: the byte and the mark stand in the stream, where only the kernel's memory tells them
//! ([`tcp_inside`]). The data in front of the mark goes into the queue as any, the rest comes in a packet of the peer.

use super::super::object;
use super::packet::{self, ACK, PSH, Segment, URG};
use super::{ready, sort_of};
use crate::{Error, Result};
use cryonaut_image::records::InetSkEntry;
use cryonaut_kernel::sys::tcp_inside::{self, UrgentState};
use cryonaut_kernel::sys::tcp_repair::{self, Queue};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

/// Data in one segment.
const SEGMENT: usize = 7600;

/// Where the mark is, and what has become of the byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Urgent {
    /// Behind so many bytes that were not read.
    pub behind: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Announced,
    Valid,
    Read,
}

impl Urgent {
    /// That of a socket.
    pub fn of(unread: &tcp_inside::Unread) -> Option<Urgent> {
        let urgent = unread.urgent?;
        let state = match urgent.state {
            UrgentState::Announced => State::Announced,
            UrgentState::Valid => State::Valid,
            UrgentState::Read => State::Read,
        };
        Some(Urgent { behind: urgent.at.wrapping_sub(unread.begin), state })
    }

    /// Has the rest of what was received come, from `sequence` on; in repair mode.
    pub fn build(
        self,
        socket: BorrowedFd<'_>,
        record: &InetSkEntry,
        (own, peer): (SocketAddr, SocketAddr),
        (sequence, acknowledged, window): (u32, u32, u16),
        (before, rest): (u32, &[u8]),
    ) -> Result<()> {
        let what = || object(record.id, sort_of(record));
        let failed = |e| Error::Kernel {
            object: what(),
            action: "give it back its urgent data".into(),
            errno: e,
            remedy: if e == Errno::PERM { "this needs CAP_NET_RAW" } else { "" },
        };
        let bad = || Error::bad_image("cryonaut-sockets.json", "urgent data is too far ahead");
        // Counted from the segment's beginning, to the byte behind it.
        let urgent = u16::try_from(self.behind.saturating_sub(before) + 1).map_err(|_| bad())?;
        let segment = Segment {
            from: peer,
            to: own,
            sequence,
            acknowledged,
            flags: URG | PSH | ACK,
            window,
            urgent,
            options: &[],
            data: &rest[..rest.len().min(SEGMENT)],
        };
        packet::send(&segment).map_err(failed)?;
        let mut at = sequence.wrapping_add(segment.data.len() as u32);
        for data in rest[segment.data.len()..].chunks(SEGMENT) {
            packet::send(&Segment { sequence: at, flags: PSH | ACK, urgent: 0, data, ..segment }).map_err(failed)?;
            at = at.wrapping_add(data.len() as u32);
        }
        tcp_repair::choose(socket, Queue::Receive).map_err(failed)?;
        let there = || tcp_repair::sequence(socket) == Ok(at);
        let seen = || self.state == State::Announced || ready(socket).contains(PollFlags::PRI);
        if !packet::arrives(|| there() && seen()) {
            let remedy =
                "a firewall of this host must let packets from the peer's address out of this host and into it";
            return Err(Error::unsupported(what(), "its urgent data does not reach it again", remedy));
        }
        if self.state == State::Read {
            rustix::net::recv(socket, &mut [0u8][..], RecvFlags::OOB | RecvFlags::DONTWAIT).map_err(failed)?;
        }
        Ok(())
    }
}
