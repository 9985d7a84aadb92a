//! Connections of a process that has many: seen with one look at all of its
//! descriptors ([`socket_glance`]), and asked once for all that are alike. To
//! ask each takes some fifty microseconds, most of which is the way into the
//! kernel and back.
//!
//! What is seen is believed when some of the sockets, which are asked all the
//! same, have said so themselves: two of each group that is alike, and one of
//! so many others. Otherwise all are asked, as they are on a kernel that does
//! not describe its types.

use super::Sort;
use super::asked::{Asked, Common};
use super::inet::{self, TakenApart, at_rest, is_connected};
use crate::parallel;
use crate::tcp_policy::{TcpPolicies, TcpPolicy};
use cryonaut_kernel::guard::{Guard, MOST_IN_REPAIR};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::fdinfo::{Details, FdInfo};
use cryonaut_kernel::sys::socket_glance::{self, Glance};
use cryonaut_kernel::sys::{fcntl, socket};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

/// A process with fewer descriptors is not looked at.
pub const MANY: u64 = 32;
/// Fewer that are alike are asked.
const FEW: usize = 4;
/// Of those that are alike, one of so many is asked nonetheless.
const ONE_OF: usize = 64;

/// What is seen of a process.
#[derive(Debug)]
pub struct Alike {
    descriptors: Vec<RawFd>,
    sockets: HashMap<RawFd, Arc<Glance>>,
    groups: HashMap<Vec<u8>, Group>,
    /// Whether what repair mode would tell of connections at rest is understood.
    rests: bool,
}

/// What those that are alike have answered.
#[derive(Debug, Clone, PartialEq)]
struct Group {
    common: Arc<Common>,
    mnt_id: i32,
}

/// A socket that has been asked, and what was seen of it.
struct Sample<'g> {
    socket: OwnedFd,
    glance: &'g Glance,
    group: Group,
}

impl Alike {
    /// Looks at a process by the id of a thread of it. `guard` sees to connections that are in repair mode, of which only
    /// those that are kept will be. `None` where nothing is to be gained, or known.
    pub fn of(
        task: &Task,
        tid: i32,
        process: BorrowedFd<'_>,
        (guard, tcp): (Option<&Guard>, &TcpPolicies),
    ) -> Option<Alike> {
        if task.fd_count().unwrap_or(0) < MANY {
            return None;
        }
        let all = socket_glance::of_process(tid);
        let all = all.inspect_err(|e| tracing::debug!("sockets of {tid} are asked one by one: {e}")).ok()?;
        let sockets = all.sockets.into_iter().map(|(fd, glance)| (fd, Arc::new(glance))).collect();
        let mut alike = Alike { descriptors: all.all, sockets, groups: HashMap::new(), rests: false };
        let chosen = alike.choose();
        let ask = |fd: RawFd| Sample::ask(task, process, fd, alike.sockets.get(&fd)?);
        let asked: Vec<Option<Sample<'_>>> = parallel::map(chosen, ask);
        match asked.into_iter().collect::<Option<Vec<_>>>().and_then(|samples| agree(&samples, guard, tcp)) {
            Some((groups, rests)) => (alike.groups, alike.rests) = (groups, rests),
            None => {
                tracing::debug!("sockets of {tid} are asked one by one: what this kernel has of them is not understood")
            }
        }
        Some(alike)
    }

    /// Some of each group, the first ones among them.
    fn choose(&self) -> Vec<RawFd> {
        let mut groups: HashMap<&[u8], Vec<RawFd>> = HashMap::new();
        for fd in &self.descriptors {
            if let Some(glance) = self.sockets.get(fd).filter(|glance| may_be_alike(glance)) {
                groups.entry(glance.likeness()).or_default().push(*fd);
            }
        }
        let some = |group: Vec<RawFd>| {
            let chosen = |at: usize| at == 1 || at.is_multiple_of(ONE_OF);
            group.into_iter().enumerate().filter_map(move |(at, fd)| chosen(at).then_some(fd))
        };
        groups.into_values().filter(|group| group.len() >= FEW).flat_map(some).collect()
    }

    /// Its descriptors, ascending.
    pub fn descriptors(&self) -> &[RawFd] {
        &self.descriptors
    }

    /// What was seen of a descriptor.
    pub fn glance(&self, fd: RawFd) -> Option<Arc<Glance>> {
        self.sockets.get(&fd).cloned()
    }

    /// What a descriptor would answer, and be said of it in /proc, if it is like others.
    pub fn answers(&self, fd: RawFd) -> Option<(FdInfo, Asked)> {
        let glance = self.sockets.get(&fd).filter(|glance| may_be_alike(glance))?;
        let group = self.groups.get(glance.likeness())?;
        let asked = Asked::alike(Arc::clone(&group.common), Arc::clone(glance), self.rests);
        Some((info(glance, group.mnt_id), asked))
    }
}

/// Connections, nobody has ever locked.
fn may_be_alike(glance: &Glance) -> bool {
    let (family, kind, protocol) = glance.sort();
    matches!(family, libc::AF_INET | libc::AF_INET6)
        && (kind, protocol) == (libc::SOCK_STREAM, libc::IPPROTO_TCP)
        && is_connected(glance.state())
        && !glance.may_have_locks()
}

/// What /proc says of a socket that nobody has locked.
fn info(glance: &Glance, mnt_id: i32) -> FdInfo {
    let (flags, ino) = (glance.flags(), Some(glance.inode()));
    FdInfo { pos: 0, flags, mnt_id, ino, locks: Vec::new(), details: Details::None }
}

impl<'g> Sample<'g> {
    /// Asks a socket; `None` if it does not say what was seen.
    fn ask(task: &Task, process: BorrowedFd<'_>, fd: RawFd, glance: &'g Glance) -> Option<Sample<'g>> {
        let file = pidfd_getfd(process, fd, PidfdGetfdFlags::empty()).ok()?;
        let told = task.fdinfo(fd).ok()?;
        let (socket, mnt_id) = (file.as_fd(), told.mnt_id);
        let asked = Asked::of(socket, None);
        let (family, kind, protocol) = glance.sort();
        let options = asked.options()?;
        let owner = fcntl::getown_ex(socket).ok()?.pid != 0 || fcntl::getsig(socket).ok()? != 0;
        let clamp = socket::get_int(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP).ok()?;
        let is_so = told == info(glance, mnt_id)
            && asked.sort(socket) == Ok(Sort { family, kind, protocol })
            && asked.state() == Some(glance.state())
            && (options.so_sndbuf, options.so_rcvbuf) == glance.buffers()
            && clamp as u32 == glance.window_clamp()
            && (!owner || glance.may_have_owner())
            && inet::ends_of(socket) == Some(glance.ends());
        let common = Arc::new(asked.common()?.clone().alone());
        is_so.then(|| Sample { socket: file, glance, group: Group { common, mnt_id } })
    }
}

/// What the groups have in common, and whether what is seen of connections at rest is what repair mode tells; `None` if
/// some that look alike are not.
fn agree(samples: &[Sample<'_>], guard: Option<&Guard>, tcp: &TcpPolicies) -> Option<(HashMap<Vec<u8>, Group>, bool)> {
    let mut groups: HashMap<Vec<u8>, Group> = HashMap::new();
    for sample in samples {
        let group = groups.entry(sample.glance.likeness().to_vec()).or_insert_with(|| sample.group.clone());
        if *group != sample.group {
            return None;
        }
    }
    let is_kept = |sample: &&Sample<'_>| tcp.of(sample.glance.ends().1) == TcpPolicy::Keep;
    let kept: Vec<&Sample<'_>> = samples.iter().filter(is_kept).collect();
    Some((groups, guard.is_some_and(|guard| repair_agrees(&kept, guard))))
}

/// Takes apart those that are at rest.
fn repair_agrees(samples: &[&Sample<'_>], guard: &Guard) -> bool {
    let resting: Vec<(&Sample<'_>, TakenApart)> =
        samples.iter().filter_map(|sample| Some((*sample, at_rest(sample.socket.as_fd(), sample.glance)?))).collect();
    resting.chunks(MOST_IN_REPAIR).all(|some| {
        let reuse = |sample: &Sample<'_>| sample.group.common.reuses();
        let sockets = some.iter().map(|(sample, _)| (sample.socket.as_fd(), sample.glance.state(), reuse(sample)));
        let taken = inet::take_some(guard, sockets);
        taken.is_some_and(|all| all.iter().zip(some).all(|(taken, (_, seen))| taken.is_like(seen)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::socket::settings;
    use libc::{IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};
    use std::os::fd::AsRawFd;

    /// Options that are asked for beside the tables.
    const BESIDE: &[(i32, i32)] = &[
        (SOL_SOCKET, libc::SO_SNDTIMEO),
        (SOL_SOCKET, libc::SO_RCVTIMEO),
        (SOL_SOCKET, libc::SO_SNDBUF),
        (SOL_SOCKET, libc::SO_REUSEADDR),
        (SOL_SOCKET, libc::SO_REUSEPORT),
        (SOL_SOCKET, libc::SO_PRIORITY),
        (SOL_SOCKET, libc::SO_RCVLOWAT),
        (SOL_SOCKET, libc::SO_MARK),
        (SOL_SOCKET, libc::SO_DONTROUTE),
        (SOL_SOCKET, libc::SO_NO_CHECK),
        (SOL_SOCKET, libc::SO_BROADCAST),
        (SOL_SOCKET, libc::SO_KEEPALIVE),
        (SOL_SOCKET, libc::SO_OOBINLINE),
        (SOL_SOCKET, libc::SO_BINDTODEVICE),
        (IPPROTO_IPV6, libc::IPV6_V6ONLY),
        (IPPROTO_TCP, libc::TCP_CORK),
        (IPPROTO_TCP, libc::TCP_NODELAY),
        (IPPROTO_TCP, libc::TCP_KEEPCNT),
        (IPPROTO_TCP, libc::TCP_KEEPIDLE),
        (IPPROTO_TCP, libc::TCP_KEEPINTVL),
        (IPPROTO_TCP, libc::TCP_CONGESTION),
    ];

    /// What most options take, one or the other: numbers, two of them, limits of time, options of packets, names.
    fn values() -> Vec<Vec<u8>> {
        let numbers = [0, 1, 2, 7, 64, 300, 30_000, 200_000].map(|number: u32| number.to_ne_bytes().to_vec());
        let two =
            [(1, 1), (1, 2), (0x18, 0), (0, 1)].map(|(one, two): (u32, u32)| [one, two].map(u32::to_ne_bytes).concat());
        let limit = [3u64, 500_000].map(u64::to_ne_bytes).concat();
        let mut all = [&numbers[..], &two[..]].concat();
        all.extend([limit, vec![1, 1, 1, 0], vec![0, 0, 1, 4, 0, 0, 0, 0], b"lo".to_vec(), b"reno".to_vec()]);
        all
    }

    fn likeness(socket: &OwnedFd) -> Option<Vec<u8>> {
        let all = socket_glance::of_process(std::process::id() as i32).ok()?;
        all.sockets.get(&socket.as_raw_fd()).map(|glance| glance.likeness().to_vec())
    }

    /// Whatever lets a socket give other answers makes it another to look at.
    #[test]
    fn who_answers_otherwise_is_not_alike() {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let sort = Sort { family, kind: libc::SOCK_STREAM, protocol: IPPROTO_TCP };
            let Ok(fresh) = sort.make() else { continue };
            let Some(alike) = likeness(&fresh) else { return };
            let answers = |socket: &OwnedFd| Common::of(socket.as_fd(), sort).alone();
            let before = answers(&fresh);
            let tables = [settings::SOCKET, settings::IP, settings::IPV6, settings::TCP];
            let options = tables.into_iter().flatten().map(settings::Setting::number).chain(BESIDE.iter().copied());
            let mut changed = std::collections::BTreeSet::new();
            for (option, value) in options.flat_map(|option| values().into_iter().map(move |value| (option, value))) {
                let socket = sort.make().unwrap();
                if socket::set_bytes(&socket, option.0, option.1, &value).is_err() || answers(&socket) == before {
                    continue;
                }
                changed.insert(option);
                assert_ne!(likeness(&socket), Some(alike.clone()), "{option:?} is {value:?}");
            }
            assert!(changed.len() > 50, "{changed:?}");
        }
    }

    /// The same of what is no option by its number.
    #[test]
    fn who_has_a_filter_is_not_alike() {
        let sort = Sort { family: libc::AF_INET, kind: libc::SOCK_STREAM, protocol: IPPROTO_TCP };
        let (one, other) = (sort.make().unwrap(), sort.make().unwrap());
        let Some(alike) = likeness(&one) else { return };
        assert_eq!(likeness(&other).unwrap(), alike);
        let all = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: u32::MAX };
        socket::attach_filter(&other, &[all]).unwrap();
        assert_ne!(likeness(&other).unwrap(), alike);
    }
}
