//! What is known of types of file systems: their numbers in the image, and how one comes to be again.

/// How a file system is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Making {
    /// A new one, with the options that it had, and filled with what it held.
    Filled,
    /// A new one, with the options that it had.
    New,
    /// By the kernel, which has one for each namespace of some kind; options would change it for others.
    OfNamespace,
    /// A hierarchy of cgroups: the kernel has one for all.
    Cgroups,
    /// From directories that other mounts show.
    Layers,
    /// Of a namespace: its file, when it is there.
    Namespace,
    /// Not by us: its contents are elsewhere.
    Never,
}

/// A type of file system.
#[derive(Debug, Clone, Copy)]
pub struct FsType {
    /// As fsopen(2) knows it.
    pub name: &'static [u8],
    /// Its number in the image (`fstype`).
    pub number: u32,
    /// How it comes to be.
    pub making: Making,
}

/// `UNSUPPORTED` of the image's `fstype`: its contents are not the image's affair.
pub const OTHER: u32 = 0;
/// `AUTO`: the name stands beside.
pub const NAMED: u32 = 16;

const fn fs(name: &'static [u8], number: u32, making: Making) -> FsType {
    FsType { name, number, making }
}

static TYPES: &[FsType] = &[
    fs(b"proc", 1, Making::New),
    fs(b"sysfs", 2, Making::OfNamespace),
    fs(b"devtmpfs", 3, Making::OfNamespace),
    fs(b"binfmt_misc", 4, Making::OfNamespace),
    fs(b"tmpfs", 5, Making::Filled),
    fs(b"devpts", 6, Making::New),
    fs(b"pstore", 8, Making::OfNamespace),
    fs(b"securityfs", 9, Making::OfNamespace),
    fs(b"fusectl", 10, Making::OfNamespace),
    fs(b"debugfs", 11, Making::OfNamespace),
    fs(b"cgroup", 12, Making::Cgroups),
    fs(b"mqueue", 14, Making::OfNamespace),
    fs(b"overlay", 17, Making::Layers),
    fs(b"tracefs", 19, Making::OfNamespace),
    fs(b"cgroup2", 23, Making::Cgroups),
    fs(b"nsfs", NAMED, Making::Namespace),
];

/// Of a name as mountinfo shows it.
pub fn by_name(name: &[u8]) -> Option<&'static FsType> {
    TYPES.iter().find(|known| known.name == name)
}

/// Of a number of the image, with the name that stands beside it for some.
pub fn by_number(number: u32, name: &[u8]) -> Option<&'static FsType> {
    if number == NAMED {
        return by_name(name);
    }
    TYPES.iter().find(|known| known.number == number)
}
