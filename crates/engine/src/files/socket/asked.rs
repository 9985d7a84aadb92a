//! What is asked of a socket of TCP before its turn has come: nobody else is in
//! the way of that, it can be asked of several at a time, and of a connection
//! it is most of what there is to ask. Of many that are [alike](super::alike)
//! one has answered for all. Who needs an answer that is not here asks for it
//! then.

use super::inet::{self, Ip, TakenApart, TcpTold};
use super::settings::{self, Answers, Setting};
use super::{Sort, filter, network_of, options};
use cryonaut_image::records::SkOptsEntry;
use cryonaut_kernel::sys::socket_glance::Glance;
use rustix::io::Errno;
use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// What sockets that are alike have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Common {
    tables: Vec<(usize, Answers)>,
    options: Option<SkOptsEntry>,
    tcp: Option<TcpTold>,
    ip: Option<Ip>,
    filter: Option<Vec<u64>>,
    network: Option<u64>,
}

impl Common {
    /// Asks a socket of TCP.
    pub fn of(socket: BorrowedFd<'_>, sort: Sort) -> Common {
        let tables = [settings::SOCKET, settings::IP, settings::TCP, settings::IPV6];
        let tables = tables.into_iter().take(if sort.family == libc::AF_INET6 { 4 } else { 3 });
        Common {
            tables: tables.map(|table| (table.as_ptr().addr(), Answers::of(socket, table))).collect(),
            options: options::read(socket).ok(),
            tcp: TcpTold::of(socket).ok(),
            ip: inet::read_ip(socket, sort).ok(),
            filter: filter::read(socket).ok(),
            network: network_of(socket).ok(),
        }
    }

    /// Whether it has SO_REUSEADDR.
    pub fn reuses(&self) -> bool {
        self.options.as_ref().is_some_and(|options| options.reuseaddr == Some(true))
    }

    /// Without what is each socket's own.
    #[must_use]
    pub fn alone(mut self) -> Common {
        if let Some(options) = &mut self.options {
            (options.so_sndbuf, options.so_rcvbuf) = (0, 0);
        }
        if let Some(tcp) = &mut self.tcp {
            tcp.info = Default::default();
        }
        self
    }
}

/// Answers of a socket; none of a socket of another kind.
#[derive(Default)]
pub struct Asked {
    sort: Option<Sort>,
    common: Option<Arc<Common>>,
    /// What was seen of it with all others of its process.
    glance: Option<Arc<Glance>>,
    /// Whether others have shown that all of that is understood, and what is in common is another's answers.
    alike: bool,
    /// Whether that is so of what repair mode tells of a connection at rest as well.
    rests: bool,
    /// The contents of the connection, for who writes them down.
    pub(super) taken: Cell<Option<Box<TakenApart>>>,
}

impl Asked {
    /// Of a socket.
    pub fn of(socket: BorrowedFd<'_>, glance: Option<Arc<Glance>>) -> Asked {
        let Ok(sort) = Sort::of(socket) else { return Asked::default() };
        let common = sort.is_tcp().then(|| Arc::new(Common::of(socket, sort)));
        Asked { sort: Some(sort), common, glance, ..Asked::default() }
    }

    /// Of one that is like others.
    pub fn alike(common: Arc<Common>, glance: Arc<Glance>, rests: bool) -> Asked {
        let (family, kind, protocol) = glance.sort();
        let sort = Some(Sort { family, kind, protocol });
        Asked { sort, common: Some(common), glance: Some(glance), alike: true, rests, ..Asked::default() }
    }

    /// What it has said itself.
    pub(super) fn common(&self) -> Option<&Common> {
        self.common.as_deref()
    }

    /// What it has said to a table of options.
    pub(super) fn table(&self, table: &'static [Setting]) -> Option<&Answers> {
        let tables = &self.common.as_ref()?.tables;
        tables.iter().find(|(key, _)| *key == table.as_ptr().addr()).map(|(_, told)| told)
    }

    /// What kind of socket it is.
    pub(super) fn sort(&self, socket: BorrowedFd<'_>) -> Result<Sort, Errno> {
        self.sort.map_or_else(|| Sort::of(socket), Ok)
    }

    /// What was seen of it.
    pub(super) fn glance(&self) -> Option<&Glance> {
        self.glance.as_deref()
    }

    /// The same, if it has been shown that all of it is understood.
    pub fn seen(&self) -> Option<&Glance> {
        self.glance().filter(|_| self.alike)
    }

    /// The same for who would take a connection at rest apart.
    pub(super) fn seen_at_rest(&self) -> Option<&Glance> {
        self.seen().filter(|_| self.rests)
    }

    pub(super) fn options(&self) -> Option<SkOptsEntry> {
        let mut options = self.common.as_ref()?.options.clone()?;
        if let Some(seen) = self.seen() {
            (options.so_sndbuf, options.so_rcvbuf) = seen.buffers();
        }
        Some(options)
    }

    pub(super) fn tcp(&self) -> Option<TcpTold> {
        let mut told = self.common.as_ref()?.tcp.clone()?;
        if let Some(seen) = self.seen() {
            told.info.state = seen.state();
        }
        Some(told)
    }

    /// Of one of TCP, in which state it is.
    pub(super) fn state(&self) -> Option<u32> {
        let told = self.common.as_ref()?.tcp.as_ref()?.info.state;
        Some(self.seen().map_or(told, Glance::state))
    }

    /// Of one of TCP, whether it has SO_REUSEADDR.
    pub(super) fn reuses(&self) -> Option<bool> {
        self.common.as_ref().filter(|common| common.options.is_some()).map(|common| common.reuses())
    }

    pub(super) fn ip(&self) -> Option<Ip> {
        self.common.as_ref()?.ip.clone()
    }

    pub(super) fn filter(&self) -> Option<Vec<u64>> {
        self.common.as_ref()?.filter.clone()
    }

    pub(super) fn network(&self) -> Option<u64> {
        self.common.as_ref()?.network
    }
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked").field("sort", &self.sort).finish_non_exhaustive()
    }
}
