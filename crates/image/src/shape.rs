//! The shapes of the messages, and the check of raw bytes against them.
//!
//! prost decodes leniently: a missing `required` field becomes zero, and a
//! length in the input decides how much is allocated. So the bytes are walked
//! first, with tables that `build.rs` makes from the protocol files. The walk
//! finds what is missing or malformed, knows at which byte, and adds up what
//! the decoded message would occupy.

use prost::Message;

/// A message of the image files or of the RPC.
///
/// Implemented for every type of [`crate::records`] and [`crate::rpc`].
pub trait Record: Message + Default {
    /// The message's fields as the format defines them.
    const SHAPE: &'static Shape;
}

/// One message of the format.
pub struct Shape {
    /// Name in the format's own spelling, e.g. `core_entry`.
    pub(crate) name: &'static str,
    /// Bytes that the Rust struct occupies, without what hangs from it.
    pub(crate) size: usize,
    /// Decodes the message and encodes it again.
    pub(crate) recode: fn(&[u8]) -> Result<Vec<u8>, prost::DecodeError>,
    /// Ascending by tag.
    pub(crate) fields: &'static [Field],
}

// By hand, since shapes may contain themselves.
impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Shape {
    /// The message's name in the format's own spelling, e.g. `core_entry`.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

pub(crate) struct Field {
    pub(crate) tag: u32,
    pub(crate) name: &'static str,
    /// The field's bit in the walk's mask of required fields.
    pub(crate) required: Option<u32>,
    pub(crate) repeated: bool,
    pub(crate) content: Content,
}

pub(crate) enum Content {
    /// Whole numbers, truth values, enums.
    Varint,
    /// The instructions of socket filters; the format has no other numbers of
    /// a fixed width.
    Fixed64,
    Text,
    Bytes,
    Message(&'static Shape),
}

mod images {
    use super::{Content, Field, Record, Shape};
    use prost::Message as _;

    include!(concat!(env!("OUT_DIR"), "/images_shapes.rs"));
}

mod rpc {
    use super::{Content, Field, Record, Shape};
    use prost::Message as _;

    include!(concat!(env!("OUT_DIR"), "/rpc_shapes.rs"));
}

/// Messages nest at most this deep. Directories of cgroups nest as deep as the
/// cgroup tree, everything else less than ten deep. prost itself stops at 100.
const MAX_DEPTH: usize = 64;

/// One decoded message may occupy this many bytes, whatever its encoding.
///
/// The largest honest messages are those of processes with very many mappings:
/// a `mm_entry` of 65,530 mappings (the kernel's default limit) takes about 6 MiB.
const MAX_DECODED: usize = 256 << 20;

/// What is wrong with a message's bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset} of the message: expected {expected}, found {found}")]
pub struct WireFault {
    /// Counted from the start of the message.
    pub offset: usize,
    pub expected: String,
    pub found: String,
}

/// Decodes one message, refusing what the format forbids.
///
/// # Errors
/// A required field is missing, a field has the wrong wire type or runs past
/// the end, text is not UTF-8, messages nest deeper than 64, or the decoded
/// message would occupy more than 256 MiB.
pub fn decode<M: Record>(bytes: &[u8]) -> Result<M, WireFault> {
    walk(bytes, M::SHAPE)?;
    M::decode(bytes).map_err(|error| undecodable(M::SHAPE, &error))
}

/// [`decode`] for a message whose type is known at run time only, and thrown away.
pub(crate) fn check(bytes: &[u8], shape: &Shape) -> Result<(), WireFault> {
    walk(bytes, shape)?;
    (shape.recode)(bytes).map(drop).map_err(|error| undecodable(shape, &error))
}

/// For what prost refuses although the walk found nothing; the tests know no case.
fn undecodable(shape: &Shape, error: &prost::DecodeError) -> WireFault {
    WireFault { offset: 0, expected: format!("one {}", shape.name), found: error.to_string() }
}

/// The walk alone, without decoding.
fn walk(bytes: &[u8], shape: &Shape) -> Result<(), WireFault> {
    let mut walk = Walk { bytes, pos: 0, decoded: 0 };
    walk.charge(0, shape.size)?;
    walk.message(shape, bytes.len(), 0)
}

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

struct Walk<'a> {
    bytes: &'a [u8],
    pos: usize,
    /// Bytes that the decoded message occupies so far.
    decoded: usize,
}

impl Walk<'_> {
    fn fault<T>(&self, offset: usize, expected: impl Into<String>, found: impl Into<String>) -> Result<T, WireFault> {
        Err(WireFault { offset, expected: expected.into(), found: found.into() })
    }

    fn charge(&mut self, offset: usize, bytes: usize) -> Result<(), WireFault> {
        self.decoded = self.decoded.saturating_add(bytes);
        if self.decoded > MAX_DECODED {
            return self.fault(offset, format!("a message that decodes to at most {MAX_DECODED} bytes"), "more");
        }
        Ok(())
    }

    /// Walks the message that ends at `end`.
    fn message(&mut self, shape: &Shape, end: usize, depth: usize) -> Result<(), WireFault> {
        let start = self.pos;
        if depth > MAX_DEPTH {
            return self.fault(start, format!("messages nested at most {MAX_DEPTH} deep"), "deeper");
        }
        let mut seen = 0_u64;
        while self.pos < end {
            let at = self.pos;
            let key = self.varint(end)?;
            let (tag, wire) = (key >> 3, key & 7);
            if tag == 0 || tag > 0x1fff_ffff {
                return self.fault(at, format!("a field of {}", shape.name), format!("tag {tag}"));
            }
            match shape.fields.binary_search_by_key(&tag, |field| u64::from(field.tag)) {
                Ok(index) => {
                    let field = &shape.fields[index];
                    if let Some(bit) = field.required {
                        seen |= 1 << bit;
                    }
                    self.field(shape, field, at, wire, end, depth)?;
                }
                Err(_) => self.unknown(shape, tag, at, wire, end)?,
            }
        }
        match shape.fields.iter().find(|field| field.required.is_some_and(|bit| seen >> bit & 1 == 0)) {
            Some(field) => {
                let expected = format!("field \"{}\" of {}", field.name, shape.name);
                self.fault(start, expected, "a message without it")
            }
            None => Ok(()),
        }
    }

    /// Walks one field's value; its key, at `at`, has been read.
    fn field(
        &mut self,
        shape: &Shape,
        field: &Field,
        at: usize,
        wire: u64,
        end: usize,
        depth: usize,
    ) -> Result<(), WireFault> {
        let expected = match field.content {
            Content::Varint => VARINT,
            Content::Fixed64 => FIXED64,
            Content::Text | Content::Bytes | Content::Message(_) => LENGTH,
        };
        let packed = field.repeated && wire == LENGTH && expected != LENGTH;
        if wire != expected && !packed {
            let expected = format!("field \"{}\" of {} in wire type {expected}", field.name, shape.name);
            return self.fault(at, expected, format!("wire type {wire}"));
        }
        if wire != LENGTH {
            self.charge(at, if field.repeated { 8 } else { 0 })?;
            return self.scalar(wire, end);
        }

        let stop = self.length(at, end)?;
        match field.content {
            Content::Message(inner) => {
                self.charge(at, inner.size)?;
                self.message(inner, stop, depth + 1)?;
            }
            Content::Text | Content::Bytes => {
                self.charge(at, size_of::<Vec<u8>>() + stop - self.pos)?;
                let value = &self.bytes[self.pos..stop];
                if matches!(field.content, Content::Text) && std::str::from_utf8(value).is_err() {
                    let expected = format!("text in field \"{}\" of {}", field.name, shape.name);
                    return self.fault(self.pos, expected, "bytes that are not UTF-8");
                }
                self.pos = stop;
            }
            Content::Varint | Content::Fixed64 => {
                while self.pos < stop {
                    self.charge(at, 8)?;
                    self.scalar(expected, stop)?;
                }
            }
        }
        Ok(())
    }

    /// Steps over a field that this version of the format does not know.
    fn unknown(&mut self, shape: &Shape, tag: u64, at: usize, wire: u64, end: usize) -> Result<(), WireFault> {
        match wire {
            VARINT | FIXED32 | FIXED64 => self.scalar(wire, end),
            LENGTH => {
                self.pos = self.length(at, end)?;
                Ok(())
            }
            other => {
                let found = format!("tag {tag} in wire type {other}");
                self.fault(at, format!("a field of {}", shape.name), found)
            }
        }
    }

    fn scalar(&mut self, wire: u64, end: usize) -> Result<(), WireFault> {
        let bytes = match wire {
            VARINT => return self.varint(end).map(drop),
            FIXED32 => 4,
            _ => 8,
        };
        if end - self.pos < bytes {
            return self.fault(self.pos, format!("{bytes} bytes"), format!("{}", end - self.pos));
        }
        self.pos += bytes;
        Ok(())
    }

    /// Reads a length and returns where the bytes that it announces end.
    fn length(&mut self, at: usize, end: usize) -> Result<usize, WireFault> {
        let length = self.varint(end)?;
        let left = end - self.pos;
        match usize::try_from(length) {
            Ok(length) if length <= left => Ok(self.pos + length),
            _ => self.fault(at, format!("a field of at most {left} bytes"), format!("{length}")),
        }
    }

    fn varint(&mut self, end: usize) -> Result<u64, WireFault> {
        let start = self.pos;
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = self.bytes[..end].get(self.pos) else {
                return self.fault(start, "a whole number", "the end of the message");
            };
            self.pos += 1;
            // The tenth byte has room for one bit only.
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        self.fault(start, "a number of at most 64 bits", "a longer one")
    }
}

#[cfg(test)]
mod tests;
