//! Memory pages over a socket: the protocol of CRIU's page server (version 4.2), both ends of it.
//!
//! | module   | owns                                                                   |
//! |----------|------------------------------------------------------------------------|
//! | protocol | the requests and answers on the wire                                    |
//! | socket   | connecting and listening; a stream that is plain or under TLS            |
//! | tls      | certificates, and who is trusted                                         |
//! | client   | asking for pages, for a restore whose memory is yet to come               |
//! | serve    | answering that out of a local image, or whatever else has pages            |
//! | send     | a dump whose pages go to a server instead of files                        |
//! | receive  | taking the pages of such a dump into a directory                          |
//!
//! A connection goes one of two ways: a dump sends pagemaps with pages and asks at the end whether all has arrived
//! ([`send`], [`receive`]), or a restore asks for pages, run by run, and is answered in that order ([`client`],
//! [`serve`]).

pub mod client;
mod error;
pub mod protocol;
pub mod receive;
pub mod send;
pub mod serve;
pub mod socket;
pub mod tls;

pub use client::Client;
pub use error::{Error, Result};
pub use protocol::Target;
pub use send::Sender;
pub use serve::{ImagePages, PageSource};
pub use socket::{Address, Listener, Place, Stream};
pub use tls::TlsOptions;
