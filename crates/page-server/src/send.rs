//! A dump whose pages go to a page server.
//!
//! One pagemap at a time is on the wire; who wants to send another waits for his turn. Its entries are told one by one,
//! and their pages written one behind the other into a pipe, as into a file; a thread puts the entries between them.
//!
//! ```text
//!   begin ──▶ an upload has the connection ──finish──▶ idle ──close──▶ the server says that all has arrived
//!                       └── dropped, or an error ──▶ broken: whoever comes next is told why
//! ```
//!
//! Pages may be in the pipe, and then in the socket, by reference alone. So nobody whose memory they are may run before
//! [`Sender::close`] is through.

use crate::client::close;
use crate::protocol::{Command, Request, Target};
use crate::socket::{Place, Stream};
use crate::tls::TlsOptions;
use crate::{Error, Result};
use cryonaut_image::{PAGE_SIZE, PageFlags};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender as ChannelSender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes in the pipe: what any process may ask for.
const PIPE: usize = 1 << 20;

/// How long the server may not move while the tree stands still for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The end of a connection that sends pages. May be used by several threads.
#[derive(Debug)]
pub struct Sender {
    line: Arc<Line>,
    peer: String,
}

#[derive(Debug)]
struct Line {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
enum State {
    Idle(Stream),
    Taken,
    /// With the reason, until it was told.
    Broken(Option<Error>),
    Closed,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.lock() = state;
        self.changed.notify_all();
    }

    /// Waits until nobody has the connection.
    fn settled(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while matches!(*state, State::Taken) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }
}

impl Sender {
    /// Connects.
    ///
    /// # Errors
    /// As for [`Stream::connect`].
    pub fn connect(place: Place, tls: Option<&TlsOptions>) -> Result<Self> {
        let stream = Stream::connect(place, tls)?;
        let peer = stream.peer().to_owned();
        stream.set_patience(PATIENCE).map_err(Error::io(&peer, "set a limit of time"))?;
        let line = Line { state: Mutex::new(State::Idle(stream)), changed: Condvar::new() };
        Ok(Sender { line: Arc::new(line), peer })
    }

    /// Takes the connection, when it is our turn.
    fn take(&self) -> Result<Stream> {
        let mut state = self.line.settled();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Idle(stream) => Ok(stream),
            other => {
                *state = other;
                Err(self.gone())
            }
        }
    }

    /// Gives the connection back, if nothing has failed.
    fn give_back<R>(&self, stream: Stream, done: io::Result<R>, action: &'static str) -> Result<R> {
        self.line.set(if done.is_ok() { State::Idle(stream) } else { State::Broken(None) });
        done.map_err(Error::io(&self.peer, action))
    }

    /// Whether the server has a parent of the pagemap of a process or segment.
    ///
    /// # Errors
    /// [`Error::Io`], also if an upload has failed.
    pub fn has_parent(&self, target: Target) -> Result<bool> {
        let mut stream = self.take()?;
        let answer = Request::about(Command::HasParent, target.encode()).ask(&mut stream).map(i32::from_le_bytes);
        Ok(self.give_back(stream, answer, "ask it for a parent")? != 0)
    }

    /// Begins the pagemap of a process or segment, when it is our turn.
    ///
    /// # Errors
    /// [`Error::Io`], also if another upload has failed.
    pub fn begin(&self, target: Target) -> Result<Upload> {
        let mut stream = self.take()?;
        let begun = || -> io::Result<(bool, File, File)> {
            let answer: [u8; 1] = Request::about(Command::Open { answered: true }, target.encode()).ask(&mut stream)?;
            if answer[0] > 1 {
                // Such as the alert of a server that speaks TLS.
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is none (are both under TLS?)"));
            }
            let (from, into) = io::pipe()?;
            // It is shorter where this is refused.
            let _ = rustix::pipe::fcntl_setpipe_size(&into, PIPE);
            Ok((answer[0] != 0, File::from(OwnedFd::from(from)), File::from(OwnedFd::from(into))))
        }();
        let (has_parent, from, into) = match begun {
            Ok(begun) => begun,
            Err(error) => return self.give_back(stream, Err(error), "begin a pagemap"),
        };
        let (entries, told) = channel();
        let relay = Relay { line: self.line.clone(), target, told, pages: from };
        let thread = std::thread::Builder::new().name("page server".into()).spawn(move || relay.run(stream));
        // The stream has gone with what the thread was to run.
        let thread = thread.inspect_err(|_| self.line.set(State::Broken(None)));
        let thread = thread.map_err(Error::io(&self.peer, "begin a thread"))?;
        Ok(Upload { entries, pages: into, has_parent, thread, peer: self.peer.clone() })
    }

    /// Waits until the server says that all has arrived.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Failed`].
    pub fn close(&self) -> Result<()> {
        let state = std::mem::replace(&mut *self.line.settled(), State::Closed);
        match state {
            State::Idle(stream) => close(stream),
            State::Broken(Some(error)) => Err(error),
            _ => Err(self.gone()),
        }
    }

    /// Why an upload has failed, if one has: who has written its pages was only told that nobody reads them.
    pub fn failure(&self) -> Option<Error> {
        match &mut *self.line.settled() {
            State::Broken(error) => error.take(),
            _ => None,
        }
    }

    fn gone(&self) -> Error {
        Error::io(&self.peer, "send it anything more")(io::ErrorKind::BrokenPipe.into())
    }
}

/// A pagemap on its way. Dropped without [`Upload::finish`], it breaks the connection off.
#[derive(Debug)]
pub struct Upload {
    entries: ChannelSender<Entry>,
    pages: File,
    has_parent: bool,
    thread: JoinHandle<bool>,
    peer: String,
}

#[derive(Debug)]
enum Entry {
    Run {
        address: u64,
        pages: u64,
        flags: PageFlags,
    },
    /// That was all.
    End,
}

impl Upload {
    /// Whether the server has a parent of this pagemap.
    pub fn has_parent(&self) -> bool {
        self.has_parent
    }

    /// The pages of all present runs are written to this pipe, in their order.
    ///
    /// # Errors
    /// That there are no descriptors left.
    pub fn pages(&self) -> io::Result<File> {
        self.pages.try_clone()
    }

    /// Tells of a run of pages, before they are written. What became of it is told at the end.
    pub fn push(&self, address: u64, pages: u64, flags: PageFlags) {
        let _ = self.entries.send(Entry::Run { address, pages, flags });
    }

    /// Waits until all is on the wire. The other copies of the pipe must be closed.
    ///
    /// # Errors
    /// [`Error::Io`]; what is known of the reason is told by [`Sender::failure`].
    pub fn finish(self) -> Result<()> {
        let _ = self.entries.send(Entry::End);
        drop(self.pages);
        match self.thread.join() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::io(&self.peer, "send it pages")(io::ErrorKind::BrokenPipe.into())),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Puts the entries between the pages.
struct Relay {
    line: Arc<Line>,
    target: Target,
    told: Receiver<Entry>,
    pages: File,
}

impl Relay {
    /// Gives the connection back; whether all is well.
    fn run(mut self, mut stream: Stream) -> bool {
        let sent = self.send(&mut stream).map_err(Error::io(stream.peer(), "send it pages"));
        let is_well = sent.is_ok();
        let next = match sent {
            Ok(()) => State::Idle(stream),
            Err(error) => State::Broken(Some(error)),
        };
        // Nobody waits for room in the pipe any more.
        drop(self.pages);
        self.line.set(next);
        is_well
    }

    fn send(&mut self, stream: &mut Stream) -> io::Result<()> {
        loop {
            // Gone without a word: the dump has failed.
            let entry = self.told.recv().map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
            let Entry::Run { address, pages, flags } = entry else { return stream.flush() };
            let id = self.target.encode();
            stream.write_all(&Request { command: Command::Add(flags), pages, address, id }.encode())?;
            if flags.contains(PageFlags::PRESENT) {
                stream.send_from(&mut self.pages, pages * PAGE_SIZE)?;
            }
        }
    }
}
