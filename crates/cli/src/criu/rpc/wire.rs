//! The socket of a session, and who is at its other end.

use anyhow::{Context, Result, ensure};
use cryonaut_image::rpc::{CriuReq, CriuResp};
use cryonaut_kernel::sys::{fcntl, scm_rights};
use prost::Message;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SocketType, recv, sockopt};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// The largest request that is read: far above what a container of a thousand mounts makes of it.
const REQUEST_MAX: usize = 8 << 20;

/// go-criu reads an answer into 8 KiB, in one piece.
const TEXT_MAX: usize = 4096;

/// The other end of a session.
#[derive(Debug)]
pub struct Peer {
    socket: OwnedFd,
    pid: i32,
}

/// What came over the socket.
#[derive(Debug)]
pub enum Received {
    Request(Box<CriuReq>),
    /// What is wrong with it.
    Malformed(String),
    /// He has closed his end.
    End,
}

impl Peer {
    /// By the number of a descriptor that this program was started with.
    ///
    /// # Errors
    /// When it is not a socket of the right kind.
    pub fn inherited(number: i32) -> Result<Self> {
        Self::new(fcntl::take_inherited(number).with_context(|| format!("descriptor {number}: cannot be taken"))?)
    }

    /// By a connected socket.
    ///
    /// # Errors
    /// When it is not a socket of the right kind.
    pub fn new(socket: OwnedFd) -> Result<Self> {
        let kind = sockopt::socket_type(&socket).context("it is no socket")?;
        ensure!(kind == SocketType::SEQPACKET, "the socket is not of the type SOCK_SEQPACKET");
        let pid = sockopt::socket_peercred(&socket).context("the socket tells no peer")?.pid.as_raw_nonzero().get();
        Ok(Peer { socket, pid })
    }

    /// Its process, as we see it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A file that the peer has open, by its number there, as a path.
    pub fn file(&self, number: i32) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{number}", self.pid))
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// Those of recv(2).
    pub fn receive(&self) -> Result<Received> {
        let flags = RecvFlags::PEEK | RecvFlags::TRUNC;
        let length = match retry_on_intr(|| recv(&self.socket, &mut [0u8; 0][..], flags)) {
            Ok((_, length)) => length,
            Err(Errno::CONNRESET) => return Ok(Received::End),
            Err(errno) => return Err(errno).context("no request can be received"),
        };
        if length > REQUEST_MAX {
            return Ok(Received::Malformed(format!("a request of {length} bytes is more than {REQUEST_MAX}")));
        }
        let mut bytes = vec![0u8; length.max(1)];
        let (length, _) = retry_on_intr(|| recv(&self.socket, &mut bytes[..], RecvFlags::empty()))
            .context("no request can be received")?;
        // A packet of no bytes lacks the type, which is told the same way.
        if length == 0 {
            return Ok(Received::End);
        }
        Ok(match cryonaut_image::decode::<CriuReq>(&bytes[..length]) {
            Ok(request) => Received::Request(Box::new(request)),
            Err(fault) => Received::Malformed(format!("the request is not understood: {fault}")),
        })
    }

    /// Sends a message, with a file if there is one.
    ///
    /// # Errors
    /// That he is gone, and others of sendmsg(2).
    pub fn send(&self, response: &CriuResp, file: Option<BorrowedFd<'_>>) -> Result<()> {
        let bytes = response.encode_to_vec();
        let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
        scm_rights::send(&self.socket, &bytes, &files).map(drop).context("the caller cannot be answered")
    }
}

/// As much of a text as fits into an answer.
pub fn bounded(mut text: String) -> String {
    if text.len() > TEXT_MAX {
        text.truncate(text.floor_char_boundary(TEXT_MAX));
    }
    text
}
