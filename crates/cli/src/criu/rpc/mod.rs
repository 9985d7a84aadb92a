//! CRIU's RPC, by which container runtimes and libraries call it: messages of protobuf, each one packet of a Unix socket
//! (criu.org/RPC; cryonaut_image::rpc has their fields).
//!
//! - [`swrk`]: the socket is a descriptor that the caller left us; we serve him and end.
//! - [`service`]: we listen under a name; each caller is served by a process of his own.
//!
//! A session ([`session`]) is one request, or several of the kinds that allow it. Its options are put in the form of
//! command line arguments ([`options`]), so that there is one place that says what each means. While a request is
//! worked on, the caller is told how far it is and may stop it ([`notify`]).

mod notify;
mod options;
mod service;
mod session;
mod wire;

use std::ffi::OsString;
use std::process::ExitCode;
use wire::Peer;

pub use service::{ONE, one, service};

/// `criu swrk FD`: serves the one who holds the other end of the socket. Nothing is told but through it.
pub fn swrk(arguments: &[OsString]) -> ExitCode {
    let number = arguments.first().and_then(|number| number.to_str()?.parse().ok());
    let Some(peer) = number.and_then(|number| Peer::inherited(number).ok()) else {
        // Nobody listens on what is no socket: this was called by hand.
        eprintln!("criu: swrk needs the number of an open SOCK_SEQPACKET socket");
        return ExitCode::FAILURE;
    };
    session::serve(peer, session::Manner { may_be_sibling: true })
}
