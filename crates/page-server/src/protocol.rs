//! The requests and answers on the wire, as CRIU 4.2 has them.
//!
//! A request is four little-endian words in 32 bytes: a command of 32 bits (in the lower half what is asked, in the upper
//! one the flags of a pagemap entry) and 32 bits of padding, a number of pages, an address, and an id. Ids of memory
//! that is sent have the kind in the lowest byte; those of memory that is asked for are plain pids.
//!
//! | command   | means                                       | is followed or answered by               |
//! |-----------|---------------------------------------------|------------------------------------------|
//! | open      | a pagemap begins                             | one byte: whether the server has a parent of it |
//! | open old  | the same                                     | nothing                                   |
//! | parent    | is there a parent of it?                       | 32 bits: 0 or 1                            |
//! | add       | an entry of the pagemap, with its flags         | its pages, if they are present              |
//! | hole      | the same of pages in the parent (old form)       | nothing                                    |
//! | get       | pages are asked for                               | an `add` with the number that comes, its pages |
//! | close     | that was all                                       | 32 bits: the status, 0 if all went well      |

use crate::{Error, Result};
use cryonaut_image::{ImageKind, PageFlags};
use std::io::{Read, Write};

/// Bytes of a request.
pub const REQUEST_LEN: usize = 32;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// A pagemap begins; the answer is whether the server has a parent of it.
    Open {
        /// Whether an answer is awaited.
        answered: bool,
    },
    /// Whether the server has a parent of a pagemap.
    HasParent,
    /// An entry of the pagemap. Present pages follow.
    Add(PageFlags),
    /// Pages are asked for.
    Get,
    /// That was all.
    Close {
        /// The socket is somebody else's and stays open: the server is to end nonetheless.
        forced: bool,
    },
}

mod number {
    pub const ADD_PRESENT: u32 = 1;
    pub const HOLE: u32 = 2;
    pub const OPEN: u32 = 3;
    pub const OPEN_ANSWERED: u32 = 4;
    pub const PARENT: u32 = 5;
    pub const ADD: u32 = 6;
    pub const GET: u32 = 7;
    pub const CLOSE: u32 = 0x1023;
    pub const FORCE_CLOSE: u32 = 0x1024;
}

/// The bits of a command that say what is asked; the flags are above.
const COMMAND_BITS: u32 = 16;

/// A request, or the head of an answer with pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub command: Command,
    pub pages: u64,
    pub address: u64,
    pub id: u64,
}

impl Request {
    /// One that is about no pages.
    pub fn about(command: Command, id: u64) -> Self {
        Request { command, pages: 0, address: 0, id }
    }

    /// As it is on the wire.
    pub fn encode(&self) -> [u8; REQUEST_LEN] {
        let word = match self.command {
            Command::Open { answered: false } => number::OPEN,
            Command::Open { answered: true } => number::OPEN_ANSWERED,
            Command::HasParent => number::PARENT,
            Command::Add(flags) => number::ADD | flags.bits() << COMMAND_BITS,
            Command::Get => number::GET,
            Command::Close { forced: false } => number::CLOSE,
            Command::Close { forced: true } => number::FORCE_CLOSE,
        };
        let mut bytes = [0; REQUEST_LEN];
        bytes[..4].copy_from_slice(&word.to_le_bytes());
        for (place, value) in [(8, self.pages), (16, self.address), (24, self.id)] {
            bytes[place..place + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// From the wire; the number of the command if that means nothing.
    pub fn decode(bytes: &[u8; REQUEST_LEN]) -> std::result::Result<Self, u32> {
        let word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let long = |place: usize| {
            let mut value = [0; 8];
            value.copy_from_slice(&bytes[place..place + 8]);
            u64::from_le_bytes(value)
        };
        let command = match word & ((1 << COMMAND_BITS) - 1) {
            number::ADD_PRESENT => Command::Add(PageFlags::PRESENT),
            number::HOLE => Command::Add(PageFlags::PARENT),
            number::OPEN => Command::Open { answered: false },
            number::OPEN_ANSWERED => Command::Open { answered: true },
            number::PARENT => Command::HasParent,
            number::ADD => Command::Add(PageFlags::from_bits(word >> COMMAND_BITS).ok_or(word)?),
            number::GET => Command::Get,
            number::CLOSE => Command::Close { forced: false },
            number::FORCE_CLOSE => Command::Close { forced: true },
            _ => return Err(word),
        };
        Ok(Request { command, pages: long(8), address: long(16), id: long(24) })
    }

    /// Sends it; the answer.
    pub(crate) fn ask<const LEN: usize>(&self, server: &mut (impl Read + Write)) -> std::io::Result<[u8; LEN]> {
        server.write_all(&self.encode())?;
        server.flush()?;
        let mut answer = [0; LEN];
        server.read_exact(&mut answer)?;
        Ok(answer)
    }

    /// Reads the next; `None` if the other end is done.
    pub(crate) fn read(from: &mut impl Read, peer: &str) -> Result<Option<Self>> {
        let mut bytes = [0; REQUEST_LEN];
        let mut filled = 0;
        while filled < bytes.len() {
            match from.read(&mut bytes[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => {
                    let source = std::io::ErrorKind::UnexpectedEof.into();
                    return Err(Error::io(peer, "read a whole request")(source));
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(peer, "read a request")(error)),
            }
        }
        let unknown = |word| Error::protocol(peer, format!("{word:#x} is no command"));
        Self::decode(&bytes).map(Some).map_err(unknown)
    }
}

/// Whose memory is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// A process's own.
    Process(u64),
    /// A segment of shared memory.
    Shared(u64),
}

impl Target {
    const PROCESS: u64 = 1;
    const SHARED: u64 = 2;

    /// As it is on the wire.
    pub fn encode(self) -> u64 {
        match self {
            Target::Process(pid) => pid << 8 | Self::PROCESS,
            Target::Shared(id) => id << 8 | Self::SHARED,
        }
    }

    /// From the wire.
    pub fn decode(id: u64) -> Option<Self> {
        match id & 0xff {
            // The second are those of CRIU 3.1 and 3.2, and of 1.3 to 3.0.
            Self::PROCESS | 10 | 11 => Some(Target::Process(id >> 8)),
            Self::SHARED => Some(Target::Shared(id >> 8)),
            _ => None,
        }
    }

    /// That of a pagemap, which its kind and number name.
    pub fn of(kind: ImageKind, id: u64) -> Option<Self> {
        match kind {
            ImageKind::Pagemap => Some(Target::Process(id)),
            ImageKind::ShmemPagemap => Some(Target::Shared(id)),
            _ => None,
        }
    }

    /// The kind and number of its pagemap.
    pub fn pagemap(self) -> (ImageKind, u64) {
        match self {
            Target::Process(pid) => (ImageKind::Pagemap, pid),
            Target::Shared(id) => (ImageKind::ShmemPagemap, id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_go_both_ways() {
        let commands = [
            Command::Open { answered: true },
            Command::Open { answered: false },
            Command::HasParent,
            Command::Add(PageFlags::PRESENT),
            Command::Add(PageFlags::PRESENT.with(PageFlags::LAZY)),
            Command::Get,
            Command::Close { forced: false },
            Command::Close { forced: true },
        ];
        for command in commands {
            let request = Request { command, pages: 3, address: 0x7fff_0000_1000, id: Target::Process(77).encode() };
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
    }

    #[test]
    fn a_request_is_as_criu_has_it() {
        let request = Request { command: Command::Add(PageFlags::PRESENT), pages: 2, address: 0x1000, id: 0x501 };
        let mut expected = [0; REQUEST_LEN];
        expected[..4].copy_from_slice(&[6, 0, 4, 0]);
        (expected[8], expected[17], expected[24], expected[25]) = (2, 0x10, 1, 5);
        assert_eq!(request.encode(), expected);
        assert_eq!(Target::decode(0x501), Some(Target::Process(5)));
    }

    #[test]
    fn what_means_nothing_is_told() {
        let mut bytes = [0; REQUEST_LEN];
        assert_eq!(Request::decode(&bytes), Err(0));
        bytes[..4].copy_from_slice(&[6, 0, 0, 0x80]);
        assert!(Request::decode(&bytes).is_err());
        assert_eq!((Target::decode(0x500), Target::decode(0x503)), (None, None));
    }
}
