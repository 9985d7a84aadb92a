//! What is asked of a socket of TCP before its turn has come: nobody else is in
//! the way of that, it can be asked of several at a time, and of a connection
//! it is most of what there is to ask. Who needs an answer that is not here asks
//! for it then.

use super::inet::{TakenApart, TcpTold};
use super::settings::{self, Answers, Setting};
use super::{Sort, options};
use cryonaut_image::records::SkOptsEntry;
use rustix::io::Errno;
use std::cell::Cell;
use std::os::fd::BorrowedFd;

/// Answers of a socket; none of a socket of another kind.
#[derive(Default)]
pub struct Asked {
    tables: Vec<(usize, Answers)>,
    pub(super) sort: Option<Sort>,
    pub(super) options: Option<SkOptsEntry>,
    pub(super) tcp: Option<TcpTold>,
    /// The contents of the connection, for who writes them down.
    pub(super) taken: Cell<Option<Box<TakenApart>>>,
}

impl Asked {
    /// Of a socket.
    pub fn of(socket: BorrowedFd<'_>) -> Asked {
        let Ok(sort) = Sort::of(socket) else { return Asked::default() };
        let mut asked = Asked { sort: Some(sort), ..Asked::default() };
        let v6 = match (sort.family, sort.protocol) {
            (libc::AF_INET, libc::IPPROTO_TCP) => false,
            (libc::AF_INET6, libc::IPPROTO_TCP) => true,
            _ => return asked,
        };
        let tables = [settings::SOCKET, settings::IP, settings::TCP, settings::IPV6];
        let tables = tables.into_iter().take(if v6 { 4 } else { 3 });
        asked.tables = tables.map(|table| (table.as_ptr().addr(), Answers::of(socket, table))).collect();
        asked.options = options::read(socket).ok();
        asked.tcp = TcpTold::of(socket).ok();
        asked
    }

    /// What it has said to a table of options.
    pub(super) fn table(&self, table: &'static [Setting]) -> Option<&Answers> {
        self.tables.iter().find(|(key, _)| *key == table.as_ptr().addr()).map(|(_, told)| told)
    }

    /// What kind of socket it is.
    pub(super) fn sort(&self, socket: BorrowedFd<'_>) -> Result<Sort, Errno> {
        self.sort.map_or_else(|| Sort::of(socket), Ok)
    }
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked").field("sort", &self.sort).finish_non_exhaustive()
    }
}
