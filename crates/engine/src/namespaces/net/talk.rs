//! Messages of netlink(7) that are kept: as lines of digits in our own JSON, or one after the other behind a magic
//! number, as `ip ... save` (iproute2) writes them and `ip ... restore` reads them.

use crate::{Error, Object, Result, hexadecimal};
use cryonaut_kernel::sys::conversation::{Message, Refusal};
use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::io::{Read, Write};

/// A message that the kernel has told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept(pub Message);

impl Serialize for Kept {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&hexadecimal::encode(self.0.bytes()))
    }
}

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = hexadecimal::decode(&text).ok_or_else(|| serde::de::Error::custom("no hexadecimal digits"))?;
        let split = Message::split(&bytes).map_err(|_| serde::de::Error::custom("no message of netlink"))?;
        Ok(Kept(split.0))
    }
}

/// What stands in front of the messages of a stream, by which iproute2 knows what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Magic {
    /// Of `ip address save`.
    Addresses = 0x4736_1222,
    /// Of `ip route save`.
    Routes = 0x4531_1224,
    /// Of `ip rule save`.
    Rules = 0x7170_6986,
}

/// Writes a stream.
pub fn write(mut file: std::fs::File, magic: Magic, messages: &[Message]) -> std::io::Result<()> {
    let mut bytes = (magic as u32).to_ne_bytes().to_vec();
    messages.iter().for_each(|message| bytes.extend_from_slice(message.bytes()));
    file.write_all(&bytes)
}

/// Reads one; `name` is that of the file, for errors. One that is empty has nothing.
pub fn read(mut file: std::fs::File, magic: Magic, name: &str) -> Result<Vec<Message>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)
        .map_err(|e| Error::kernel(Object::Other(name.into()), "read it", crate::error::errno_of(&e)))?;
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let problem = |problem: &str| Error::bad_image(name, problem);
    if bytes.get(..4) != Some(&(magic as u32).to_ne_bytes()) {
        return Err(problem("it does not begin with the magic number of iproute2"));
    }
    Message::all(&bytes[4..]).map_err(|_| problem("it has something that is no message of netlink"))
}

/// What a namespace is called in messages.
pub fn object(id: u32) -> Object {
    Object::Other(format!("network namespace {id}"))
}

/// A refusal of the kernel.
pub fn failed(object: Object, action: impl Into<String>, refusal: Refusal) -> Error {
    let mut action = action.into();
    if let Some(why) = &refusal.why {
        action = format!("{action}, of which the kernel says \"{why}\"");
    }
    let remedy = match refusal.errno {
        Errno::PERM => "this needs CAP_NET_ADMIN",
        Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT => "this kernel lacks it, or a module of it",
        _ => "",
    };
    Error::Kernel { object, action, errno: refusal.errno, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_back_as_messages() {
        let mut message = Message::new(20, 0, &[1, 2, 3, 4]);
        message.add_text(3, "eth0");
        let kept = Kept(message);
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<Kept>(&text).unwrap(), kept);
        assert!(serde_json::from_str::<Kept>("\"0\"").is_err() && serde_json::from_str::<Kept>("\"zz\"").is_err());
    }

    #[test]
    fn a_stream_is_that_of_iproute2() {
        let mut file = tempfile::tempfile().unwrap();
        let messages = [Message::new(32, 0, &[2; 12])];
        write(file.try_clone().unwrap(), Magic::Rules, &messages).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        assert_eq!(read(file.try_clone().unwrap(), Magic::Rules, "rule-1.img").unwrap(), messages);
        std::io::Seek::rewind(&mut file).unwrap();
        assert!(read(file, Magic::Routes, "route-1.img").is_err());
    }
}
