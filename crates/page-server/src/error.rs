//! What can go wrong between two ends of a connection.

use std::io;
use std::path::PathBuf;

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, told with who is at the other end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel, or TLS on top of it, refused something.
    #[error("page server {peer}: cannot {action}: {source}{}", remedy(source))]
    Io {
        /// The other end, or the address that we listen at.
        peer: String,
        /// What was tried.
        action: &'static str,
        /// The answer.
        source: io::Error,
    },
    /// The other end said something that the protocol does not know, or not there.
    #[error("page server {peer}: {problem}; both ends must speak the protocol of CRIU's page server")]
    Protocol {
        /// The other end.
        peer: String,
        /// What was wrong.
        problem: String,
    },
    /// Pages were asked for that are nowhere.
    #[error("process {pid}: it has no page at {address:#x} to serve: {problem}")]
    Absent {
        /// Whose.
        pid: u64,
        /// The first.
        address: u64,
        /// Why not.
        problem: String,
    },
    /// The other end has failed, and says no more than that.
    #[error("page server {peer}: it has failed with status {status}; its own log tells why")]
    Failed {
        /// The other end.
        peer: String,
        /// What it said.
        status: i32,
    },
    /// A file of keys or certificates cannot be used.
    #[error("{}: {problem}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// An address that is none.
    #[error("{address}: {problem}")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// The image could not be read or written.
    #[error(transparent)]
    Image(#[from] cryonaut_image::Error),
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::ConnectionRefused => " (nobody listens there: start criu page-server first)",
        io::ErrorKind::AddrInUse => " (choose another port, or end who listens there)",
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            " (the connection broke off: the log of the other end tells why)"
        }
        _ => "",
    }
}

impl Error {
    pub(crate) fn io(peer: &str, action: &'static str) -> impl Fn(io::Error) -> Self {
        let peer = peer.to_owned();
        move |source| Error::Io { peer: peer.clone(), action, source }
    }

    pub(crate) fn protocol(peer: &str, problem: impl Into<String>) -> Self {
        Error::Protocol { peer: peer.to_owned(), problem: problem.into() }
    }

    /// The kernel's answer, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Io { source, .. } => source.raw_os_error(),
            Error::Image(error) => error.errno(),
            _ => None,
        }
    }
}
