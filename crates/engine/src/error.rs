//! What can go wrong, told so that the user can act on it: the object, what
//! was tried, the kernel's answer, and a remedy where there is one.

use rustix::io::Errno;
use std::fmt;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The thing that an error is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A process.
    Process(i32),
    /// A thread.
    Thread(i32),
    /// A descriptor of a process: pid, number, what it is.
    Descriptor(i32, i32, String),
    /// A file of the image, by kind and id, and what it is.
    File(u32, String),
    /// A mapping of a process: pid, first address, what it is.
    Mapping(i32, u64, String),
    /// A path.
    Path(String),
    /// Something that the words name.
    Other(String),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Process(pid) => write!(f, "process {pid}"),
            Object::Thread(tid) => write!(f, "thread {tid}"),
            Object::Descriptor(pid, fd, what) => {
                write!(f, "process {pid}, descriptor {fd} ({what})")
            }
            Object::File(id, what) => write!(f, "file {id:#x} ({what})"),
            Object::Mapping(pid, at, what) => {
                write!(f, "process {pid}, mapping at {at:#x} ({what})")
            }
            Object::Path(path) => f.write_str(path),
            Object::Other(what) => f.write_str(what),
        }
    }
}

/// A failure of a checkpoint or a restore.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused something that was tried on an object.
    #[error("{object}: cannot {action}: {errno}{}", hint(.remedy))]
    Kernel {
        /// What it is about.
        object: Object,
        /// What was tried, as a verb with its object.
        action: String,
        /// The kernel's answer.
        errno: Errno,
        /// What the user can do, or empty.
        remedy: &'static str,
    },
    /// Something that cannot be carried.
    #[error("{object}: {reason}{}", hint(.remedy))]
    Unsupported {
        /// What it is about.
        object: Object,
        /// Why it cannot be carried.
        reason: String,
        /// What the user can do, or empty.
        remedy: &'static str,
    },
    /// The image says something that cannot be.
    #[error("{file}: {problem}; the image is damaged or not from this tool")]
    BadImage {
        /// The image file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The caller's own action at a moment of the run failed.
    #[error("{moment}: {problem}")]
    Caller {
        /// The moment.
        moment: crate::Moment,
        /// What went wrong.
        problem: String,
    },
    /// What the part of this program told that had worked in another pid namespace.
    #[error("{0}")]
    Inner(String),
    /// The hands failed.
    #[error(transparent)]
    Puppet(#[from] cryonaut_puppet::Error),
    /// /proc failed.
    #[error(transparent)]
    Proc(#[from] cryonaut_kernel::proc::Error),
    /// The page server failed.
    #[error(transparent)]
    PageServer(#[from] cryonaut_page_server::Error),
    /// The image could not be read or written.
    #[error(transparent)]
    Image(#[from] cryonaut_image::Error),
}

fn hint(remedy: &str) -> String {
    if remedy.is_empty() { String::new() } else { format!(" ({remedy})") }
}

/// The kernel's answer behind an error of std; EIO where std made it up.
pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Error {
    /// A refusal by the kernel, without a remedy.
    pub fn kernel(object: Object, action: impl Into<String>, errno: Errno) -> Self {
        Error::Kernel { object, action: action.into(), errno, remedy: "" }
    }

    /// Something that cannot be carried, and what can be done about it.
    pub fn unsupported(object: Object, reason: impl Into<String>, remedy: &'static str) -> Self {
        Error::Unsupported { object, reason: reason.into(), remedy }
    }

    /// An image that contradicts itself.
    pub fn bad_image(file: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::BadImage { file: file.into(), problem: problem.into() }
    }

    /// The kernel's answer, where it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Kernel { errno, .. } => Some(*errno),
            Error::Proc(e) => e.errno(),
            Error::PageServer(e) => e.errno().map(Errno::from_raw_os_error),
            _ => None,
        }
    }

    /// What the user can do, if something is known.
    #[must_use]
    pub fn remedy(&self) -> &str {
        match self {
            Error::Kernel { remedy, .. } | Error::Unsupported { remedy, .. } => remedy,
            Error::Proc(e) => e.remedy(),
            _ => "",
        }
    }
}
