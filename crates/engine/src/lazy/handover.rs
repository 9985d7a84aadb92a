//! A restore's side: address spaces are handed to a filler, one by one as they are complete but for what is missing.

use super::filler::{self, Log};
use super::front::{self, OwnFront};
use super::server::Refusals;
use super::{Lazy, Part, areas_of};
use crate::memory::{Contents, Piece, PieceSource, Store};
use crate::plan::Plan;
use crate::{Error, Object, Result};
use cryonaut_image::records::VmaEntry;
use cryonaut_kernel::Errno;
use cryonaut_kernel::sys::aside::set_aside;
use cryonaut_kernel::uffd::{Features, Mode, Uffd};
use cryonaut_puppet::passing::Service;
use cryonaut_puppet::{Hand, userfaultfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

/// What a filler has to be told of.
const EVENTS: Features =
    Features::EVENT_FORK.union(Features::EVENT_REMAP).union(Features::EVENT_REMOVE).union(Features::EVENT_UNMAP);

/// "RSTF", by which CRIU's restore tells its server that the tree is about to run.
pub(super) const FINISHED: u32 = 0x5253_5446;

/// What our server of pages says as soon as a restore has reached it. CRIU's says nothing.
pub(super) const GREETING: u8 = b'C';
/// How long it may take for that: it waits for nothing else.
const GREETING_PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// What of an address space is not there yet.
#[derive(Debug, Clone, Copy)]
pub struct LeftOut<'a> {
    /// What comes later, ascending.
    pub pieces: &'a [Piece],
    /// All that there is, with what only a server has.
    pub contents: &'a Contents,
}

/// A filler, and the way to it.
#[derive(Debug)]
pub struct Handover {
    socket: OwnedFd,
    /// Whether it speaks CRIU's protocol, and reads the image by itself.
    is_server: bool,
    /// Pages files that it has from us, by their number there.
    sources: BTreeMap<PieceSource, u32>,
    /// Whose memory it was told of.
    told: BTreeSet<i32>,
}

fn failed(action: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Kernel {
        object: Object::Other("the process that fills memory".into()),
        action: action.into(),
        errno,
        remedy: "restore without --lazy",
    }
}

impl Handover {
    /// Makes the filler that was asked for, or finds the server. All processes of the tree are there, or will be in another
    /// pid namespace.
    pub fn begin(lazy: &Lazy, plan: &Plan) -> Result<Option<Handover>> {
        let (socket, is_server) = match lazy {
            Lazy::No => return Ok(None),
            Lazy::Filler(log) => (Self::hire(log, plan)?, false),
            Lazy::Server(path) => (Self::call(path)?, true),
        };
        Ok(Some(Handover { socket, is_server, sources: BTreeMap::new(), told: BTreeSet::new() }))
    }

    fn hire(log: &Path, plan: &Plan) -> Result<OwnedFd> {
        let log = Log::open(log);
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.map_err(failed("make a socket to it"))?;
        let keep: Vec<RawFd> = [Some(theirs.as_fd()), log.as_fd()].iter().flatten().map(AsRawFd::as_raw_fd).collect();
        let run = move || filler::run(Box::new(OwnFront(theirs)), Vec::new(), log);
        let is_threads = |pid| plan.processes.values().any(|p| p.threads.iter().any(|(tid, _)| *tid == pid));
        set_aside(&keep, is_threads, run).map_err(failed("begin it"))?;
        Ok(ours)
    }

    fn call(path: &Path) -> Result<OwnedFd> {
        let absent = |errno| Error::Kernel {
            object: Object::Path(path.display().to_string()),
            action: "reach the server of pages there".into(),
            errno,
            remedy: "start `criu lazy-pages` with the same working directory before",
        };
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(absent)?;
        connect(&socket, &SocketAddrUnix::new(path).map_err(absent)?).map_err(absent)?;
        if !is_greeted(&socket) {
            // CRIU's brings what the image flags as LAZY, which need not be what we leave out.
            let reason = "the server of pages there is not this program, and may not bring all that is missing";
            let object = Object::Path(path.display().to_string());
            return Err(Error::unsupported(object, reason, "start `criu lazy-pages` of this program"));
        }
        Ok(socket)
    }

    /// Registers the mappings that hold these pieces, and leaves it to the filler to bring them.
    pub fn take(
        &mut self,
        hand: &mut Hand,
        service: &Service,
        store: &mut Store<'_>,
        vmas: &[VmaEntry],
        left_out: LeftOut<'_>,
    ) -> Result<()> {
        let LeftOut { pieces, contents } = left_out;
        if pieces.is_empty() && contents.elsewhere.is_empty() {
            return Ok(());
        }
        let pid = hand.pid();
        let uffd = make(hand, service)?;
        let areas = match self.is_server {
            true => areas_of(vmas, &contents.pieces, &contents.elsewhere),
            false => areas_of(vmas, pieces, &[]),
        };
        for (start, end) in &areas {
            uffd.register(*start, end - start, Mode::MISSING).map_err(|errno| {
                Error::kernel(Object::Mapping(pid, *start, "memory".into()), "hear of its faults", errno)
            })?;
        }
        self.told.insert(pid);
        if self.is_server {
            return self.tell_server(pid, Some(&uffd));
        }
        let parts = pieces.iter().map(|piece| self.part(store, piece)).collect::<Result<Vec<Part>>>()?;
        front::send_space(self.socket.as_fd(), pid, &uffd, &parts, &areas).map_err(failed("hand it an address space"))
    }

    fn part(&mut self, store: &mut Store<'_>, piece: &Piece) -> Result<Part> {
        let source = match self.sources.get(&piece.source) {
            Some(source) => *source,
            None => {
                let file = store.pages(piece.source)?;
                front::send_source(self.socket.as_fd(), file.as_fd()).map_err(failed("hand it a file"))?;
                let number = self.sources.len() as u32;
                self.sources.insert(piece.source, number);
                number
            }
        };
        Ok(Part { start: piece.start, len: piece.len, source, offset: piece.offset })
    }

    /// A way to hear why a server has failed.
    pub fn refusals(&self) -> Option<Refusals> {
        if self.is_server { self.socket.try_clone().ok().map(Refusals) } else { None }
    }

    /// Everybody is there. A server of CRIU's counts the processes, those without missing memory as well.
    pub fn complete(&mut self, pids: impl Iterator<Item = i32>) -> Result<()> {
        if self.is_server {
            for pid in pids {
                if self.told.insert(pid) {
                    self.tell_server(pid, None)?;
                }
            }
        }
        Ok(())
    }

    /// The server is given the process as well, to end it if its pages are lost.
    fn tell_server(&self, pid: i32, uffd: Option<&Uffd>) -> Result<()> {
        let socket = self.socket.as_fd();
        let number = if uffd.is_some() { pid } else { -pid };
        let told = front::send(socket, &number.to_ne_bytes(), &[]).and_then(|()| {
            let Some(uffd) = uffd else { return Ok(()) };
            let process = pidfd_open(Pid::from_raw(pid).ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
            front::send(socket, &[0], &[uffd.as_fd(), process.as_fd()])
        });
        told.map_err(failed("tell it of a process"))
    }

    /// The tree is about to run. From here on the memory is the filler's affair.
    pub fn go(self) -> Result<()> {
        let socket = self.socket.as_fd();
        let told = match self.is_server {
            true => front::send(socket, &FINISHED.to_ne_bytes(), &[]).and_then(|()| front::await_answer(socket)),
            false => front::send_go(socket),
        };
        told.map_err(failed("leave the memory to it"))
    }
}

/// Whether a server that was reached is ours.
fn is_greeted(socket: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(socket, PollFlags::IN)];
    let is_told =
        rustix::io::retry_on_intr(|| poll(&mut watched, Some(&GREETING_PATIENCE))).is_ok_and(|told| told == 1);
    let mut greeting = [0];
    is_told && rustix::io::read(socket, &mut greeting).is_ok_and(|got| got == 1) && greeting == [GREETING]
}

/// A userfaultfd of the process, which keeps nothing of it.
fn make(hand: &mut Hand, service: &Service) -> Result<Uffd> {
    let pid = hand.pid();
    let uffd = match userfaultfd::of_newborn(hand, None) {
        // Its user namespace may not be trusted with it: whom we lend the device is.
        Err(cryonaut_puppet::Error::Call { errno: Errno::PERM, .. }) => make_by_device(hand, service)?,
        made => made?,
    };
    let own = |errno| Error::kernel(Object::Process(pid), "hear of changes of its memory", errno);
    uffd.api(EVENTS).map_err(own)?;
    Ok(uffd)
}

fn make_by_device(hand: &mut Hand, service: &Service) -> Result<Uffd> {
    const DEVICE: &str = "/dev/userfaultfd";
    let device = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, rustix::fs::Mode::empty());
    let device = device.map_err(|errno| Error::kernel(Object::Path(DEVICE.into()), "open it", errno))?;
    let lent = service.give(hand, &[device.as_fd()])?[0];
    Ok(userfaultfd::of_newborn(hand, Some(lent))?)
}
