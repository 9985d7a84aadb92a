//! The half of this program that works inside of the tree's pid namespace, where every number is as the tree knows it.
//!
//! The process that was called, the *outer*, makes a copy of itself in that namespace, the *inner*, which does all the
//! work and dies with the outer. What only the outer can do it is asked for over a socket: what the caller wants to do
//! at certain moments, and signals to the tree's init, which are ignored if they come from inside. The end of that init
//! is the end of the inner: so who ends a tree is the outer, to whom the inner has handed over what outlives it.

use crate::caller::{Answer, Event};
use crate::files::socket::Held;
use crate::freeze::Frozen;
use crate::network_lock::{self, Handed, NetworkLock, NetworkLocks};
use crate::report::CheckpointReport;
use crate::tracking::keep_here;
use crate::{Error, Hook, Moment, Object, Result, parallel};
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::proc::values::Namespace;
use cryonaut_kernel::sys::namespace;
use cryonaut_kernel::sys::process::spawn_inside;
use cryonaut_kernel::sys::scm_rights;
use cryonaut_kernel::sys::wait::{Who, wait};
use cryonaut_kernel::{Errno, Pid, proc};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Signal, pidfd_send_signal};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// The root of a tree in a pid namespace that is not ours, as we see it: mostly the init of that.
#[derive(Debug)]
pub struct Tree {
    /// Its pid here.
    pub pid: i32,
    /// Its pid there.
    pub inside: i32,
    /// It itself.
    pub pidfd: OwnedFd,
    /// Its pid namespace.
    pub namespace: OwnedFd,
}

impl Tree {
    /// Of a child of ours, which is `inside` there.
    pub fn of(pid: Pid, pidfd: OwnedFd, inside: i32) -> Result<Tree> {
        let namespace = namespace::open(&Task::open(pid)?, Namespace::Pid)?;
        Ok(Tree { pid: pid.as_raw_nonzero().get(), inside, pidfd, namespace })
    }
}

/// Longest message. Errors are cut to it.
const MOST: usize = 64 << 10;
/// How long a tree may take to end once it is told to.
const PATIENCE: i64 = 30;

/// What the inner says.
#[derive(Debug, Serialize, Deserialize)]
enum Said {
    /// A moment has come, maybe with a terminal in a descriptor; the answer says whether to go on.
    Moment(String),
    /// The tree's init is to get a signal.
    Signal(i32),
    /// Tracking is to be kept under this name: userfaultfds in the descriptors, then as many processes to watch.
    Keep(PathBuf),
    /// Connections that outlive the inner, in the descriptors: whether their peers are to hear nothing.
    Connections(bool),
    /// All connections were told, and by what they are locked.
    Lock(Option<Handed>),
    /// The tree is condemned, and to be ended. What was done, as the report says it.
    Condemned(Box<CheckpointReport>),
    /// The end, and what came of it.
    Done(std::result::Result<serde_json::Value, Failure>),
}

/// What the outer answers.
type Answered = std::result::Result<Answer, String>;

/// An error on its way.
#[derive(Debug, Serialize, Deserialize)]
enum Failure {
    Kernel { object: String, action: String, errno: i32, remedy: String },
    Unsupported { object: String, reason: String, remedy: String },
    BadImage { file: String, problem: String },
    Caller { moment: String, problem: String },
    Other(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Kernel { object, action, errno, remedy } => Failure::Kernel {
                object: object.to_string(),
                action,
                errno: errno.raw_os_error(),
                remedy: remedy.to_owned(),
            },
            Error::Unsupported { object, reason, remedy } => {
                Failure::Unsupported { object: object.to_string(), reason, remedy: remedy.to_owned() }
            }
            Error::BadImage { file, problem } => Failure::BadImage { file, problem },
            Error::Caller { moment, problem } => Failure::Caller { moment: moment.name().to_owned(), problem },
            other => Failure::Other(other.to_string()),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        // One for a whole run.
        let kept = |remedy: String| -> &'static str { Box::leak(remedy.into_boxed_str()) };
        match failure {
            Failure::Kernel { object, action, errno, remedy } => Error::Kernel {
                object: Object::Other(object),
                action,
                errno: Errno::from_raw_os_error(errno),
                remedy: kept(remedy),
            },
            Failure::Unsupported { object, reason, remedy } => {
                Error::Unsupported { object: Object::Other(object), reason, remedy: kept(remedy) }
            }
            Failure::BadImage { file, problem } => Error::BadImage { file, problem },
            Failure::Caller { moment, problem } => match Moment::named(&moment) {
                Some(moment) => Error::Caller { moment, problem },
                None => Error::Inner(problem),
            },
            Failure::Other(text) => Error::Inner(text),
        }
    }
}

/// Who has made us, seen from the inner.
#[derive(Debug)]
pub struct Outer(Mutex<OwnedFd>);

static OUTER: OnceLock<Outer> = OnceLock::new();

/// The outer, if this process is an inner.
pub fn outer() -> Option<&'static Outer> {
    OUTER.get()
}

/// Number of the init of a pid namespace, in it.
pub const INIT: i32 = 1;

/// Sends a signal to a process of the tree, to init by way of the outer.
pub fn signal(pid: i32, signal: Signal) -> std::result::Result<(), Errno> {
    match outer() {
        Some(outer) if pid == INIT => outer.ask(&Said::Signal(signal.as_raw()), &[]).map(drop).map_err(|_| Errno::PERM),
        _ => rustix::process::kill_process(rustix::process::Pid::from_raw(pid).ok_or(Errno::SRCH)?, signal),
    }
}

impl Outer {
    fn ask(&self, what: &Said, files: &[BorrowedFd<'_>]) -> Answered {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        send(socket.as_fd(), what, files).map_err(|errno| errno.to_string())?;
        let (answer, _) = receive::<Answered>(socket.as_fd()).map_err(|errno| errno.to_string())?;
        answer.unwrap_or_else(|| Err("the calling process has ended".into()))
    }

    /// A hook by which the caller acts, in the outer.
    pub fn hook(&'static self) -> Hook {
        Hook::new(|event| {
            let files: Vec<BorrowedFd<'_>> = event.terminal.into_iter().collect();
            self.ask(&Said::Moment(event.moment.name().to_owned()), &files)
        })
    }

    /// Has tracking kept by a process that is not in the tree's pid namespace.
    ///
    /// # Errors
    /// If nobody can.
    pub fn keep(&self, socket: &Path, files: &[BorrowedFd<'_>], watched: &[OwnedFd]) -> Result<()> {
        let all: Vec<BorrowedFd<'_>> = files.iter().copied().chain(watched.iter().map(AsFd::as_fd)).collect();
        self.ask(&Said::Keep(socket.to_owned()), &all).map(drop).map_err(Error::Inner)
    }

    /// Has the tree ended, whose image is complete. This process goes with it, unless that fails: then the tree goes on.
    pub fn end_tree(
        &self,
        mut frozen: Frozen,
        connections: &Held,
        mut network: NetworkLocks,
        report: CheckpointReport,
    ) -> Result<CheckpointReport> {
        let failed =
            |problem| Error::Inner(format!("the tree cannot be ended, and goes on; its image is complete: {problem}"));
        for (silently, files) in connections.parts() {
            for some in files.chunks(scm_rights::MOST) {
                let files: Vec<BorrowedFd<'_>> = some.iter().map(AsFd::as_fd).collect();
                self.ask(&Said::Connections(silently), &files).map_err(failed)?;
            }
        }
        self.ask(&Said::Lock(network.hand_over()), &[]).map_err(failed)?;
        network.dismiss_guards();
        frozen.condemn();
        // No answer but the end.
        let problem = self.ask(&Said::Condemned(Box::new(report)), &[]).err();
        Err(failed(problem.unwrap_or_default()))
    }
}

fn send(socket: BorrowedFd<'_>, what: &impl Serialize, files: &[BorrowedFd<'_>]) -> std::result::Result<(), Errno> {
    let text = serde_json::to_vec(what).map_err(|_| Errno::INVAL)?;
    scm_rights::send(socket, &text, files).map(drop)
}

/// A message, with the files that it brings; `None` when the other end has been closed.
fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> std::result::Result<(Option<T>, Vec<OwnedFd>), Errno> {
    let mut text = vec![0; MOST];
    let got = scm_rights::receive(socket, &mut text)?;
    if got.is_cut {
        return Err(Errno::MSGSIZE);
    }
    let files = got.files;
    match got.bytes {
        0 => Ok((None, files)),
        bytes => Ok((Some(serde_json::from_slice(&text[..bytes]).map_err(|_| Errno::BADMSG)?), files)),
    }
}

/// Does `body` in a copy of this process inside of the tree's pid namespace, under the number `pid` or any; what the
/// caller wants to do at certain moments is done here, and told of the root by its number here.
pub fn run<R: Serialize + DeserializeOwned>(
    tree: &Tree,
    pid: Option<i32>,
    hook: &Hook,
    body: impl FnOnce(&'static Outer) -> Result<R>,
) -> Result<R> {
    let failed = |action: &'static str| move |errno| Error::kernel(Object::Process(tree.pid), action, errno);
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.map_err(failed("make a socket to work in its pid namespace"))?;
    network_lock::remember_us();
    let mut ends = Some((ours, theirs));
    let taken = &mut ends;
    let child = spawn_inside(tree.namespace.as_fd(), pid, || {
        let Some((_, theirs)) = taken.take() else { return 1 };
        work(theirs, pid, body)
    });
    let child = child.map_err(failed("work inside of its pid namespace"))?;
    let Some((ours, theirs)) = ends else { return Err(failed("work inside of its pid namespace")(Errno::CHILD)) };
    drop(theirs);
    let outcome = serve(tree, ours.as_fd(), hook);
    // One that is about to end with the tree must not take it for a failure of ours, and lift its locks.
    let _open = outcome.is_ok().then_some(ours);
    let status = wait(Who::One(child.pid));
    match outcome? {
        Outcome::Done(value) => parse(value),
        Outcome::Ended(end) => {
            let report = end.finish(tree)?;
            parse(serde_json::to_value(&report).map_err(|e| Error::Inner(e.to_string()))?)
        }
        Outcome::Died => Err(Error::Inner(format!(
            "the part of this program that worked in the pid namespace of process {} has ended: {}",
            tree.pid,
            status.map_or_else(|errno| errno.to_string(), |(_, status)| format!("{status:?}"))
        ))),
    }
}

fn parse<R: DeserializeOwned>(value: serde_json::Value) -> Result<R> {
    serde_json::from_value(value).map_err(|e| Error::Inner(e.to_string()))
}

/// The life of the inner; its exit code.
fn work<R: Serialize>(socket: OwnedFd, pid: Option<i32>, body: impl FnOnce(&'static Outer) -> Result<R>) -> i32 {
    // Who has made us may have ended before we were bound to that.
    let mut end = [PollFd::new(&socket, PollFlags::empty())];
    if matches!(poll(&mut end, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1)) {
        return 1;
    }
    parallel::begin_again();
    let outer = OUTER.get_or_init(|| Outer(Mutex::new(socket)));
    let own = |action: &'static str| move |errno| Error::kernel(Object::Other("pid namespace".into()), action, errno);
    let outcome = proc::read_own_namespace()
        .map_err(own("mount its proc file system"))
        .and_then(|()| pid.map_or(Ok(()), count_on_from).map_err(own("choose where its pids go on")))
        .and_then(|()| body(outer))
        .and_then(|made| serde_json::to_value(made).map_err(|e| Error::Inner(e.to_string())));
    let code = i32::from(outcome.is_err());
    let socket = outer.0.lock().unwrap_or_else(PoisonError::into_inner);
    // Who does not hear it sees our end.
    let _ = send(socket.as_fd(), &Said::Done(outcome.map_err(Failure::from)), &[]);
    code
}

/// Our own children and threads shall not take the numbers of the tree's.
fn count_on_from(pid: i32) -> std::result::Result<(), Errno> {
    let file =
        proc::open("sys/kernel/ns_last_pid", rustix::fs::OFlags::WRONLY).map_err(|e| e.errno().unwrap_or(Errno::IO))?;
    rustix::io::write(&file, pid.to_string().as_bytes()).map(drop)
}

/// What came of an inner.
#[derive(Debug)]
enum Outcome {
    Done(serde_json::Value),
    Ended(Box<End>),
    Died,
}

/// What is to be done about the end of a tree that has been ended.
#[derive(Debug)]
struct End {
    held: Held,
    network: Option<NetworkLock>,
    undertaker: Option<cryonaut_kernel::guard::Undertaker>,
    report: CheckpointReport,
    begun: Instant,
}

/// Does what the inner asks for, until it is done.
fn serve(tree: &Tree, socket: BorrowedFd<'_>, hook: &Hook) -> Result<Outcome> {
    let (mut held, mut network, mut undertaker) = (Held::default(), None, None);
    let failed = |errno| Error::kernel(Object::Process(tree.pid), "hear from its pid namespace", errno);
    loop {
        let (said, files) = receive::<Said>(socket).map_err(failed)?;
        let answer: Answered = match said {
            None => return Ok(Outcome::Died),
            Some(Said::Done(outcome)) => return Ok(Outcome::Done(outcome.map_err(Error::from)?)),
            Some(Said::Keep(socket)) => {
                let mut files = files;
                let watched = files.split_off(files.len() / 2);
                let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
                keep_here(&socket, &files, watched).map(|()| Answer::default()).map_err(|errno| errno.to_string())
            }
            Some(Said::Moment(name)) => match Moment::named(&name) {
                Some(moment) => {
                    hook.run(&Event { moment, root_pid: tree.pid, terminal: files.first().map(AsFd::as_fd) })
                }
                None => Err(name),
            },
            Some(Said::Signal(number)) => Signal::from_named_raw(number)
                .ok_or(Errno::INVAL)
                .and_then(|signal| pidfd_send_signal(&tree.pidfd, signal))
                .map(|()| Answer::default())
                .map_err(|errno| errno.to_string()),
            Some(Said::Connections(silently)) => {
                held.add(silently, files);
                Ok(Answer::default())
            }
            Some(Said::Lock(handed)) => {
                network = handed.map(NetworkLock::take_over);
                let see = |lock: &mut NetworkLock| lock.see_to_the_end(&tree.pidfd, &held);
                match network.as_mut().map(see).transpose() {
                    Ok(hired) => {
                        undertaker = hired;
                        Ok(Answer::default())
                    }
                    Err(e) => Err(e.to_string()),
                }
            }
            Some(Said::Condemned(report)) => {
                let begun = Instant::now();
                match pidfd_send_signal(&tree.pidfd, Signal::KILL) {
                    Ok(()) => {
                        return Ok(Outcome::Ended(Box::new(End { held, network, undertaker, report: *report, begun })));
                    }
                    Err(errno) => Err(errno.to_string()),
                }
            }
        };
        send(socket, &answer, &[]).map_err(failed)?;
    }
}

impl End {
    /// The tree has been told to end, and the inner is no more.
    fn finish(self, tree: &Tree) -> Result<CheckpointReport> {
        wait_for_end(tree)?;
        // We hold the last descriptors of them.
        self.held.silence();
        drop(self.undertaker);
        self.held.close();
        if let Some(network) = self.network {
            network.keep();
        }
        Ok(CheckpointReport { end_us: crate::report::micros(self.begun.elapsed()), ..self.report })
    }
}

/// Waits until the tree's init has ended, and with it everybody in its pid namespace.
pub fn wait_for_end(tree: &Tree) -> Result<()> {
    let limit = Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
    let mut watched = [PollFd::new(&tree.pidfd, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| poll(&mut watched, Some(&limit))) {
        Ok(0) => Err(Error::kernel(Object::Process(tree.pid), "see its end", Errno::TIMEDOUT)),
        Ok(_) => Ok(()),
        Err(errno) => Err(Error::kernel(Object::Process(tree.pid), "see its end", errno)),
    }
}
