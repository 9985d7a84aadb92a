//! Queues of messages of POSIX (mq_overview(7)), those that have a name in `cryonaut-posix-queues-ID.json`. What waits in
//! them is read from the kernel's memory, since a message that is received is taken away: if we were killed then, it
//! would be lost.

use super::super::Own;
use crate::users;
use crate::{Error, Object, Result};
use cryonaut_image::{DumpDir, ImageDir};
use cryonaut_kernel::Errno;
use cryonaut_kernel::sys::posix_queues::{self, Message, Queue};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// A queue in the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PosixQueue {
    name: String,
    mode: u32,
    owner: (u32, u32),
    most_messages: i64,
    longest_message: i64,
    /// Priority and text of each, as they are received.
    #[serde(default)]
    messages: Vec<(u32, Vec<u8>)>,
}

impl From<Queue> for PosixQueue {
    fn from(Queue { name, mode, owner, most, longest, messages }: Queue) -> Self {
        let owner = users::inside(owner);
        let messages = messages.into_iter().map(|one| (one.priority, one.text)).collect();
        PosixQueue { name, mode, owner, most_messages: most, longest_message: longest, messages }
    }
}

impl PosixQueue {
    /// With another name, for one that has none any more.
    #[must_use]
    pub fn named(self, name: &str) -> PosixQueue {
        PosixQueue { name: name.to_owned(), ..self }
    }

    /// Without the slash.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn as_told(&self) -> Queue {
        let PosixQueue { name, mode, owner, most_messages, longest_message, messages } = self.clone();
        let messages = messages.into_iter().map(|(priority, text)| Message { priority, text }).collect();
        let owner = users::outside(owner);
        Queue { name, mode, owner, most: most_messages, longest: longest_message, messages }
    }
}

fn file_name(own: &Own) -> String {
    format!("posix-queues-{}", own.id)
}

/// Why queues could not be read.
pub fn unread(own: &Own) -> impl FnOnce(Errno) -> Error {
    let object = Object::Other(format!("the queues of POSIX of {}", own.object()));
    move |errno| why_unread(object, errno)
}

/// The same of one.
pub fn why_unread(object: Object, errno: Errno) -> Error {
    match errno {
        Errno::NOENT | Errno::NOTSUP | Errno::PERM => Error::unsupported(
            object,
            "messages wait in it, and this kernel does not describe where (BTF)",
            "let the program receive them first",
        ),
        errno => Error::kernel(object, "read it", errno),
    }
}

/// Writes those of a namespace.
pub fn write(images: &DumpDir, own: &Own, all: Vec<Queue>) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    Ok(images.write_json(&file_name(own), &all.into_iter().map(PosixQueue::from).collect::<Vec<_>>())?)
}

/// Those of an image.
pub fn recorded(images: &ImageDir, own: &Own) -> Result<Vec<PosixQueue>> {
    Ok(images.read_json(&file_name(own))?.unwrap_or_default())
}

/// Makes one by the calling thread, which is in its namespace.
pub fn make(queue: &PosixQueue, of: Object) -> Result<OwnedFd> {
    let object = Object::Other(format!("the queue /{} of {of}", queue.name));
    posix_queues::make(&queue.as_told()).map_err(|errno| Error::Kernel {
        object,
        action: "make it".into(),
        errno,
        remedy: match errno {
            // All queues count for who makes them, not for those whose they were.
            Errno::MFILE => "raise the limit of bytes in queues of messages for the restore (ulimit -q)",
            _ => "",
        },
    })
}
