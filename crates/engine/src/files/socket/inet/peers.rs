//! The connections of a tree, by their ends: what the network lock is set for, and what an error lists.

use super::super::Sort;
use super::super::alike::MANY;
use super::super::beside::Beside;
use super::tcp::{has_ended, state_of};
use super::{address, connection, ends_of, state, waiting};
use crate::freeze::pid_of;
use crate::{Error, Object, Result};
use cryonaut_image::ImageDir;
use cryonaut_image::records::InetSkEntry;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::sys::pidfd;
use cryonaut_kernel::sys::sock_diag::{self, InetSocket};
use cryonaut_kernel::sys::socket_glance::{self, Glance};
use libc::IPPROTO_TCP;
use rustix::process::PidfdGetfdFlags;
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// What there is between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connected,
    /// Nobody has answered yet (SYN_SENT).
    UnderWay,
    /// It waits to be accepted by the socket of the descriptor.
    Waiting,
    /// Its handshake with the socket of the descriptor is not over (SYN_RECV).
    HalfOpen,
    /// No lock of a checkpoint has known it: it waits to be accepted and has been reset, or was refused and is made again.
    Late,
}

/// Both ends of a connection of a process.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pid: i32,
    fd: i32,
    stage: Stage,
    /// Its own address.
    pub own: SocketAddr,
    /// The other's.
    pub peer: SocketAddr,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stage = match self.stage {
            Stage::Connected => "",
            Stage::UnderWay => ", not established yet",
            Stage::Waiting => ", waits to be accepted",
            Stage::Late => ", has ended",
            Stage::HalfOpen => ", in the middle of its handshake",
        };
        write!(f, "process {}, descriptor {}: {} with {}{stage}", self.pid, self.fd, self.own, self.peer)
    }
}

/// The connections of a tree.
#[derive(Debug, Default)]
pub struct Peers(pub Vec<Peer>);

impl Peers {
    /// Looks at every descriptor of these processes, each with its [speaker](crate::freeze::Process::speaker); nothing
    /// is observed but whether there are connections. Those `in_flight` are ones that are not established yet, or wait to
    /// be accepted. Processes that have much open are looked at as a whole if they are `expected` to have sockets.
    pub fn of_tree(processes: impl Iterator<Item = (i32, i32)>, in_flight: bool, expected: bool) -> Result<Peers> {
        let mut peers = Vec::new();
        let mut told = None;
        for (pid, tid) in processes {
            let failed = |e| Error::kernel(Object::Process(pid), "look for its connections", e);
            // A zombie has no descriptors.
            let Ok(task) = Task::open(pid_of(tid)?) else { continue };
            if expected && let Some(found) = at_a_glance(&task, (pid, tid), in_flight, &mut told) {
                peers.extend(found);
                continue;
            }
            let sockets = task.fds().unwrap_or_default().into_iter();
            let sockets: Vec<(i32, u32)> = sockets.filter_map(|fd| Some((fd, inode_of_socket(&task, fd)?))).collect();
            if sockets.is_empty() {
                continue;
            }
            if let Some(all) = told.get_or_insert_with(|| Sockets::of_network(in_flight)) {
                sockets.iter().for_each(|(fd, inode)| peers.extend(all.of(*inode, (pid, *fd))));
                continue;
            }
            let pidfd = pidfd::open_thread(pid_of(tid)?).map_err(failed)?;
            for (fd, _) in sockets {
                let file = rustix::process::pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()).map_err(failed)?;
                let found = connection_of(file.as_fd()).filter(|(stage, ..)| in_flight || *stage == Stage::Connected);
                peers.extend(found.map(|(stage, own, peer)| Peer { pid, fd, stage, own, peer }));
            }
        }
        Ok(Peers(peers))
    }

    /// Who waits to be accepted by the socket of a descriptor.
    pub fn waiting_at(&self, fd: i32) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().filter(move |one| one.stage == Stage::Waiting && one.fd == fd).map(|one| one.peer)
    }

    /// Those that no lock of the checkpoint has known.
    pub fn late(&self) -> Peers {
        Peers(self.0.iter().filter(|one| one.stage == Stage::Late).copied().collect())
    }

    /// Their ends.
    pub fn ends(&self) -> HashSet<(SocketAddr, SocketAddr)> {
        self.0.iter().map(|one| (one.own, one.peer)).collect()
    }

    /// Of connections by their ends.
    #[cfg(test)]
    pub fn between(ends: impl IntoIterator<Item = (SocketAddr, SocketAddr)>) -> Peers {
        let one = |(own, peer)| Peer { pid: 0, fd: 0, stage: Stage::Connected, own, peer };
        Peers(ends.into_iter().map(one).collect())
    }

    /// Of the records of an image, and of what waits at those that listen.
    pub fn of_records<'r>(images: &ImageDir, records: impl Iterator<Item = &'r InetSkEntry>) -> Result<Peers> {
        let mut peers = Vec::new();
        let mut beside = None;
        for record in records.filter(|record| super::sort_of(record).is_tcp()) {
            let mut add = |stage, own, peer| peers.push(Peer { pid: 0, fd: 0, stage, own, peer });
            if record.state == state::LISTEN {
                let all = waiting::ends_of(images, record.id)?;
                let stage = |reset| if reset { Stage::Late } else { Stage::Waiting };
                all.into_iter().for_each(|(own, peer, reset)| add(stage(reset), own, peer));
            } else if has_ended(record) {
                let beside = match &beside {
                    Some(beside) => beside,
                    None => beside.insert(Beside::read(images)?),
                };
                let own = address::of_record(record, &record.src_addr, record.src_port, 0)?;
                let attempted = beside.of(record.id).ended.and_then(|ended| ended.attempted());
                attempted.into_iter().for_each(|peer| add(Stage::Late, own, peer));
            } else if has_peer(record.state) {
                let own = address::of_record(record, &record.src_addr, record.src_port, 0)?;
                let peer = address::of_record(record, &record.dst_addr, record.dst_port, 0)?;
                add(Stage::Connected, own, peer);
            }
        }
        Ok(Peers(peers))
    }
}

impl Peer {
    /// Whether its handshake is not over: it comes to nothing unless it is to be kept.
    pub fn is_half_open(&self) -> bool {
        self.stage == Stage::HalfOpen
    }
}

/// The connections of a process that has much open, as one look shows them; `None` where that is not worth it, or where
/// the first of them says something else of itself.
fn at_a_glance(
    task: &Task,
    (pid, tid): (i32, i32),
    in_flight: bool,
    told: &mut Option<Option<Sockets>>,
) -> Option<Vec<Peer>> {
    if task.fd_count().unwrap_or(0) < MANY {
        return None;
    }
    let all = socket_glance::of_process(tid);
    let all = all.inspect_err(|e| tracing::debug!("sockets of {pid} are looked at one by one: {e}")).ok()?;
    let is_tcp = |one: &&(i32, Glance)| (one.1.sort().1, one.1.sort().2) == (libc::SOCK_STREAM, IPPROTO_TCP);
    // Those of other network namespaces are looked for there.
    let here = network_here()?;
    let sockets: Vec<(i32, Glance)> = all.sockets.into_iter().filter(|(_, socket)| socket.network() == here).collect();
    let is_connected = |one: &&(i32, Glance)| is_tcp(one) && connection::is_connected(one.1.state());
    if let Some((fd, first)) = sockets.iter().find(is_connected) {
        let process = pidfd::open_thread(pid_of(tid).ok()?).ok()?;
        let file = rustix::process::pidfd_getfd(&process, *fd, PidfdGetfdFlags::empty()).ok()?;
        if ends_of(file.as_fd()) != Some(first.ends()) {
            tracing::debug!(
                "sockets of {pid} are looked at one by one: what this kernel has of them is not understood"
            );
            return None;
        }
    }
    let mut peers = Vec::new();
    let half_open = OnceCell::new();
    let some_half_open = || *half_open.get_or_init(waiting::any_half_open);
    for (fd, socket) in sockets.iter().filter(is_tcp) {
        let stage = match socket.state() {
            state::LISTEN if in_flight && (socket.backlog() > 0 || some_half_open()) => {
                // Who waits there has no descriptor.
                let all = told.get_or_insert_with(|| Sockets::of_network(in_flight)).as_ref()?;
                peers.extend(all.of(u32::try_from(socket.inode()).ok()?, (pid, *fd)));
                continue;
            }
            state::SYN_SENT if in_flight => Stage::UnderWay,
            connected if connection::is_connected(connected) => Stage::Connected,
            _ => continue,
        };
        let (own, peer) = socket.ends();
        peers.push(Peer { pid, fd: *fd, stage, own, peer });
    }
    Some(peers)
}

/// The network namespace that we are in, as a new socket of ours has it.
fn network_here() -> Option<u64> {
    let new = Sort { family: libc::AF_INET, kind: libc::SOCK_STREAM, protocol: 0 }.make().ok()?;
    let own = socket_glance::of_process(rustix::process::getpid().as_raw_nonzero().get()).ok()?;
    own.sockets.get(&new.as_raw_fd()).map(Glance::network)
}

/// States in which somebody else may have heard of it.
fn has_peer(state: u32) -> bool {
    connection::is_connected(state) || state == state::SYN_SENT
}

/// The inode number of the socket that a descriptor is.
pub fn inode_of_socket(task: &Task, fd: i32) -> Option<u32> {
    let link = task.link(&format!("fd/{fd}")).ok()?;
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// What there is of TCP in our network.
struct Sockets {
    by_inode: HashMap<u32, InetSocket>,
    /// Connections that nobody has a descriptor of, and that have not ended on this side.
    unaccepted: Vec<InetSocket>,
}

impl Sockets {
    /// All; `None` where the kernel tells them only one by one.
    fn of_network(in_flight: bool) -> Option<Sockets> {
        let states = (0..16).filter(|state| connection::is_connected(*state));
        let more = if in_flight { 1 << state::SYN_SENT | 1 << state::SYN_RECV | 1 << state::LISTEN } else { 0 };
        let all = sock_diag::tcp(states.fold(more, |bits, state| bits | 1 << state)).ok()?;
        let may = |state| waiting::may_wait(state) || state == state::SYN_RECV;
        let waits = |socket: &InetSocket| socket.inode == 0 && may(socket.state.into());
        let unaccepted = all.iter().copied().filter(waits).collect();
        Some(Sockets { by_inode: all.into_iter().map(|socket| (socket.inode, socket)).collect(), unaccepted })
    }

    /// The connections of a socket: its own, or those that wait there.
    fn of(&self, inode: u32, (pid, fd): (i32, i32)) -> Vec<Peer> {
        let one = |stage, socket: &InetSocket| {
            let (own, peer) = socket.ends();
            Peer { pid, fd, stage, own, peer }
        };
        let Some(socket) = self.by_inode.get(&inode) else { return Vec::new() };
        let stage = match u32::from(socket.state) {
            state::SYN_SENT => Stage::UnderWay,
            state::LISTEN => {
                let own = socket.ends().0;
                let reaches = |to: SocketAddr| to.port() == own.port() && (own.ip().is_unspecified() || own == to);
                let stage = |waiting: &InetSocket| match u32::from(waiting.state) {
                    state::SYN_RECV => Some(Stage::HalfOpen),
                    _ => (socket.unread > 0).then_some(Stage::Waiting),
                };
                let all = self.unaccepted.iter().filter(|waiting| reaches(waiting.ends().0));
                return all.filter_map(|waiting| Some(one(stage(waiting)?, waiting))).collect();
            }
            _ => Stage::Connected,
        };
        vec![one(stage, socket)]
    }
}

fn connection_of(socket: BorrowedFd<'_>) -> Option<(Stage, SocketAddr, SocketAddr)> {
    let sort = Sort::of(socket).ok()?;
    if !sort.is_tcp() {
        return None;
    }
    let own = address::local(socket).ok()?;
    match state_of(socket).ok()? {
        state::SYN_SENT => Some((Stage::UnderWay, own, address::last_peer(socket).ok()??)),
        state if connection::is_connected(state) => Some((Stage::Connected, own, address::peer(socket).ok()??)),
        _ => None,
    }
}
