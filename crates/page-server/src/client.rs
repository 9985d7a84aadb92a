//! Asking a page server for pages.
//!
//! Requests may be sent one behind the other; the answers come in that order.

use crate::protocol::{Command, Request};
use crate::socket::{Place, Stream};
use crate::tls::TlsOptions;
use crate::{Error, Result};
use cryonaut_image::PAGE_SIZE;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// How long a server may not move that has been asked for something.
const PATIENCE: Duration = Duration::from_secs(60);

/// The end of a connection that asks.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    /// What was asked for and has not come.
    asked: VecDeque<Asked>,
}

/// A run of pages that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub pid: u64,
    pub address: u64,
    pub pages: u64,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// As for [`Stream::connect`].
    pub fn connect(place: Place, tls: Option<&TlsOptions>) -> Result<Self> {
        let stream = Stream::connect(place, tls)?;
        stream.set_patience(PATIENCE).map_err(Error::io(stream.peer(), "set a limit of time"))?;
        Ok(Client { stream, asked: VecDeque::new() })
    }

    /// Asks for pages of a process, without waiting for them.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn request(&mut self, pid: u64, address: u64, pages: u64) -> Result<()> {
        let request = Request { command: Command::Get, pages, address, id: pid };
        let sent = self.stream.write_all(&request.encode()).and_then(|()| self.stream.flush());
        sent.map_err(Error::io(self.stream.peer(), "ask it for pages"))?;
        self.asked.push_back(Asked { pid, address, pages });
        Ok(())
    }

    /// What was asked for and has not come, first what comes next.
    pub fn asked(&self) -> impl Iterator<Item = Asked> {
        self.asked.iter().copied()
    }

    /// Whether an answer is under way that poll(2) does not tell of.
    pub fn has_pending(&mut self) -> bool {
        self.stream.has_pending()
    }

    /// Waits for the next answer; its pages are put into `buffer`, which gets as many bytes. The server may have sent
    /// fewer pages than were asked for, the first of them.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Protocol`] if nothing was asked for, or the answer is about something else.
    pub fn receive(&mut self, buffer: &mut Vec<u8>) -> Result<Asked> {
        let peer = self.stream.peer().to_owned();
        let asked = self.asked.pop_front().ok_or_else(|| Error::protocol(&peer, "no pages were asked for"))?;
        let ended = || Error::io(&peer, "read pages")(std::io::ErrorKind::UnexpectedEof.into());
        let answer = Request::read(&mut self.stream, &peer)?.ok_or_else(ended)?;
        let is_answer = matches!(answer.command, Command::Add(_)) && answer.address == asked.address;
        if !is_answer || answer.pages == 0 || answer.pages > asked.pages {
            return Err(Error::protocol(&peer, format!("it answers {answer:x?} to {asked:x?}")));
        }
        buffer.resize((answer.pages * PAGE_SIZE) as usize, 0);
        self.stream.read_exact(buffer).map_err(Error::io(&peer, "read pages"))?;
        Ok(Asked { pages: answer.pages, ..asked })
    }

    /// Says that no more is wanted, and waits for the server's word.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Failed`].
    pub fn close(self) -> Result<()> {
        close(self.stream)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Says that all has been said, and waits for the server's word.
pub(crate) fn close(mut stream: Stream) -> Result<()> {
    let request = Request::about(Command::Close { forced: stream.is_lent() }, 0);
    let peer = stream.peer().to_owned();
    let mut status = [0; 4];
    let said = stream.write_all(&request.encode()).and_then(|()| stream.flush());
    said.and_then(|()| stream.read_exact(&mut status)).map_err(Error::io(&peer, "hear whether all has arrived"))?;
    stream.end();
    match i32::from_le_bytes(status) {
        0 => Ok(()),
        status => Err(Error::Failed { peer, status }),
    }
}
