//! bpf(2): reading and building maps.
//!
//! A [`Map`] knows the sizes of its keys and values from the kernel, which never change: that is what makes copies
//! in and out of it safe.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::check;

const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_MAP_GET_NEXT_KEY: i32 = 4;
const BPF_MAP_GET_FD_BY_ID: i32 = 14;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_MAP_FREEZE: i32 = 22;
const BPF_MAP_LOOKUP_BATCH: i32 = 24;
const BPF_MAP_UPDATE_BATCH: i32 = 26;

/// `BPF_MAP_TYPE_*` of the types that hold a value for each CPU.
const PER_CPU_TYPES: [u32; 4] = [5, 6, 10, 21];

/// What a map is made from: the beginning of `union bpf_attr` for BPF_MAP_CREATE (linux/bpf.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MapSpec {
    /// `BPF_MAP_TYPE_*`.
    pub map_type: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub map_flags: u32,
    /// Descriptor of a map that shows the shape of the maps inside of this one.
    pub inner_map_fd: u32,
    pub numa_node: u32,
    /// Padded with zeros.
    pub name: [u8; 16],
    /// Network interface of an offloaded map.
    pub ifindex: u32,
    pub btf_fd: u32,
    pub btf_key_type_id: u32,
    pub btf_value_type_id: u32,
    pub btf_vmlinux_value_type_id: u32,
    /// Linux 5.16.
    pub map_extra: u64,
}

/// `struct bpf_map_info` of linux/bpf.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MapInfo {
    pub map_type: u32,
    /// Unique while the map lives.
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub map_flags: u32,
    pub name: [u8; 16],
    pub ifindex: u32,
    pub btf_vmlinux_value_type_id: u32,
    pub netns_dev: u64,
    pub netns_ino: u64,
    pub btf_id: u32,
    pub btf_key_type_id: u32,
    pub btf_value_type_id: u32,
    pub btf_vmlinux_id: u32,
    pub map_extra: u64,
}

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    info_len: u32,
    info: u64,
}

const _: () = assert!(size_of::<MapSpec>() == 72 && std::mem::offset_of!(MapSpec, map_extra) == 64);
const _: () = assert!(size_of::<MapInfo>() == 88 && std::mem::offset_of!(MapInfo, netns_dev) == 48);
const _: () = assert!(size_of::<ElementAttr>() == 32 && size_of::<BatchAttr>() == 56 && size_of::<InfoAttr>() == 16);

/// # Safety
/// `attr` must be laid out as the part of `union bpf_attr` that belongs to `command`, and the addresses in it be
/// valid for what the command reads and writes there.
pub(super) unsafe fn bpf<T>(command: i32, attr: &mut T) -> Result<i32, Errno> {
    // SAFETY: the kernel reads and writes at most size_of::<T>() bytes of `attr`; the caller vouches for the rest.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) }).map(|value| value as i32)
}

/// The kernel has just returned `fd` as a new descriptor.
pub(super) fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: called (here and in `bpf_iter`) only with the answer of a command that makes a descriptor; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A map, with the sizes of what goes in and out of it.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    info: MapInfo,
    key_len: usize,
    value_len: usize,
}

impl Map {
    /// Makes a map. Needs CAP_BPF (and CAP_NET_ADMIN or CAP_PERFMON for some types).
    pub fn create(spec: &MapSpec) -> Result<Self, Errno> {
        let mut attr = *spec;
        // SAFETY: MapSpec is BPF_MAP_CREATE's part of bpf_attr, and holds no address.
        let fd = adopt(unsafe { bpf(BPF_MAP_CREATE, &mut attr) }?);
        Self::from_fd(fd)
    }

    /// Takes a descriptor of a map; EINVAL for one of something else.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Errno> {
        let info = map_info(&fd)?;
        let mut value_len = info.value_size as usize;
        if PER_CPU_TYPES.contains(&info.map_type) {
            value_len = value_len.next_multiple_of(8) * possible_cpus()?;
        }
        // Tables of descriptors are read as 4-byte ids, whatever size the map was made with.
        Ok(Self { fd, info, key_len: info.key_size as usize, value_len: value_len.max(4) })
    }

    /// Opens a map by its id. Needs CAP_SYS_ADMIN.
    pub fn by_id(id: u32) -> Result<Self, Errno> {
        Self::by_id_as(id, 0)
    }

    /// Opens a map by its id, for all (0), for reading (`BPF_F_RDONLY`) or for writing (`BPF_F_WRONLY`) alone.
    pub fn by_id_as(id: u32, open_flags: u32) -> Result<Self, Errno> {
        #[repr(C)]
        struct IdAttr {
            id: u32,
            next_id: u32,
            open_flags: u32,
        }
        let mut attr = IdAttr { id, next_id: 0, open_flags };
        // SAFETY: IdAttr is BPF_MAP_GET_FD_BY_ID's part of bpf_attr, and holds no address.
        let fd = adopt(unsafe { bpf(BPF_MAP_GET_FD_BY_ID, &mut attr) }?);
        Self::from_fd(fd)
    }

    pub fn info(&self) -> &MapInfo {
        &self.info
    }

    /// Bytes of a key.
    pub fn key_len(&self) -> usize {
        self.key_len
    }

    /// Bytes of a value as it is copied: for per-CPU types those of all possible CPUs, each rounded up to 8.
    pub fn value_len(&self) -> usize {
        self.value_len
    }

    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    fn raw(&self) -> u32 {
        self.fd.as_raw_fd() as u32
    }

    /// Reads one value; ENOENT when the key is not there.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> Result<(), Errno> {
        if key.len() != self.key_len || value.len() != self.value_len {
            return Err(Errno::INVAL);
        }
        let (key, value) = (key.as_ptr() as u64, value.as_mut_ptr() as u64);
        let mut attr = ElementAttr { map_fd: self.raw(), key, value, ..ElementAttr::default() };
        // SAFETY: the kernel reads key_len bytes of `key` and writes at most value_len bytes to `value`; both lengths,
        // which are those of this map, were checked.
        unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) }.map(drop)
    }

    /// Writes one value. `flags`: 0 any, 1 only when not there, 2 only when there.
    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        if key.len() != self.key_len || value.len() != self.value_len {
            return Err(Errno::INVAL);
        }
        let (key, value) = (key.as_ptr() as u64, value.as_ptr() as u64);
        let mut attr = ElementAttr { map_fd: self.raw(), key, value, flags, ..ElementAttr::default() };
        // SAFETY: the kernel reads key_len bytes of `key` and at most value_len of `value`; both lengths were checked.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// The key after `key`, the first for `None`; false when there is none.
    pub fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<bool, Errno> {
        if next.len() != self.key_len || key.is_some_and(|key| key.len() != self.key_len) {
            return Err(Errno::INVAL);
        }
        let key = key.map_or(0, |key| key.as_ptr() as u64);
        let mut attr =
            ElementAttr { map_fd: self.raw(), key, value: next.as_mut_ptr() as u64, ..ElementAttr::default() };
        // SAFETY: the kernel reads key_len bytes of `key` unless it is null, and writes as many to `next`; both
        // lengths were checked.
        match unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) } {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Reads elements from `cursor` on (`None`: the beginning) until `keys` is full or the map ends; returns how many.
    /// The cursor is `None` again at the end. ENOSPC when `keys` is too short for one bucket of a hash: ask with
    /// more room. ENOTSUPP or EINVAL for a type that has no batches: go by [`Map::next_key`]. Linux 5.6.
    pub fn lookup_batch(
        &self,
        cursor: &mut Option<Vec<u8>>,
        keys: &mut [u8],
        values: &mut [u8],
    ) -> Result<usize, Errno> {
        let count = self.elements(keys, values)?;
        let mut next = vec![0u8; self.key_len.max(8)];
        let mut attr = BatchAttr {
            in_batch: cursor.as_ref().map_or(0, |cursor| cursor.as_ptr() as u64),
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count,
            map_fd: self.raw(),
            ..BatchAttr::default()
        };
        if cursor.as_ref().is_some_and(|cursor| cursor.len() != next.len()) {
            return Err(Errno::INVAL);
        }
        // SAFETY: the kernel writes at most `count` keys and values, for which there is room; a cursor is a key, or an
        // index of 4 bytes, and both are at least as long as either.
        match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => *cursor = Some(next),
            Err(Errno::NOENT) => *cursor = None,
            Err(errno) => return Err(errno),
        }
        Ok(attr.count as usize)
    }

    /// Writes as many elements as `keys` holds; returns how many were written. Linux 5.6.
    pub fn update_batch(&self, keys: &[u8], values: &[u8]) -> Result<usize, Errno> {
        let count = self.elements(keys, values)?;
        let mut attr = BatchAttr {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count,
            map_fd: self.raw(),
            ..BatchAttr::default()
        };
        // SAFETY: the kernel reads `count` keys and values, which are there.
        unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }?;
        Ok(attr.count as usize)
    }

    /// How many elements both buffers hold; EINVAL unless it is the same whole number.
    fn elements(&self, keys: &[u8], values: &[u8]) -> Result<u32, Errno> {
        let count = keys.len().checked_div(self.key_len).ok_or(Errno::INVAL)?;
        if count * self.key_len != keys.len() || count.checked_mul(self.value_len) != Some(values.len()) {
            return Err(Errno::INVAL);
        }
        u32::try_from(count).map_err(|_| Errno::INVAL)
    }

    /// Forbids user space to write to the map from now on.
    pub fn freeze(&self) -> Result<(), Errno> {
        let mut attr = self.raw();
        // SAFETY: BPF_MAP_FREEZE's part of bpf_attr is the descriptor alone.
        unsafe { bpf(BPF_MAP_FREEZE, &mut attr) }.map(drop)
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What the kernel tells of a map; EINVAL for a descriptor of something else.
fn map_info(fd: impl AsFd) -> Result<MapInfo, Errno> {
    // BPF_OBJ_GET_INFO_BY_FD answers for programs, links and BTF as well: fdinfo tells them apart.
    let fd = fd.as_fd();
    let me = crate::proc::Task::current().map_err(|error| error.errno().unwrap_or(Errno::IO))?;
    match me.fdinfo(fd.as_raw_fd()).map(|info| info.details) {
        Ok(crate::proc::fdinfo::Details::BpfMap(_)) => {}
        Ok(_) => return Err(Errno::INVAL),
        Err(error) => return Err(error.errno().unwrap_or(Errno::IO)),
    }
    let mut info = MapInfo::default();
    let mut attr =
        InfoAttr { fd: fd.as_raw_fd() as u32, info_len: size_of::<MapInfo>() as u32, info: &raw mut info as u64 };
    // SAFETY: the kernel writes at most info_len bytes to `info`, whose fields are integers.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// CPUs that may ever be there: what per-CPU values have room for.
fn possible_cpus() -> Result<usize, Errno> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let last = text.trim_end().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: u32 = 1;
    const ARRAY: u32 = 2;
    const PERCPU_ARRAY: u32 = 6;

    fn spec(map_type: u32, max_entries: u32) -> MapSpec {
        MapSpec { map_type, key_size: 4, value_size: 12, max_entries, ..MapSpec::default() }
    }

    #[test]
    fn a_hash_is_copied_in_batches() {
        let map = Map::create(&MapSpec { name: *b"cryonaut\0\0\0\0\0\0\0\0", ..spec(HASH, 100) }).unwrap();
        assert_eq!((&map.info().name[..8], map.info().max_entries), (&b"cryonaut"[..], 100));
        let keys: Vec<u8> = (0..60u32).flat_map(u32::to_ne_bytes).collect();
        let values: Vec<u8> = (0..60u8).flat_map(|value| [value; 12]).collect();
        assert_eq!(map.update_batch(&keys, &values), Ok(60));
        let (mut cursor, mut found) = (None, Vec::new());
        loop {
            let (mut keys, mut values) = ([0u8; 4 * 32], [0u8; 12 * 32]);
            let count = map.lookup_batch(&mut cursor, &mut keys, &mut values).unwrap();
            let pairs = keys.chunks(4).zip(values.chunks(12)).take(count);
            found.extend(pairs.map(|(key, value)| (key[0], value[11])));
            if cursor.is_none() {
                break;
            }
        }
        found.sort();
        assert_eq!(found, (0..60).map(|key| (key, key)).collect::<Vec<_>>());
        let again = Map::by_id(map.info().id).unwrap();
        let mut value = [0u8; 12];
        again.lookup(&[59, 0, 0, 0], &mut value).unwrap();
        assert_eq!(value, [59; 12]);
        assert_eq!(again.lookup(&[61, 0, 0, 0], &mut value), Err(Errno::NOENT));
    }

    #[test]
    fn an_array_is_walked_and_frozen() {
        let map = Map::create(&spec(ARRAY, 3)).unwrap();
        map.update(&[1, 0, 0, 0], &[9; 12], 0).unwrap();
        let (mut key, mut count) = ([0u8; 4], 0);
        let mut more = map.next_key(None, &mut key).unwrap();
        while more {
            count += 1;
            let last = key;
            more = map.next_key(Some(&last), &mut key).unwrap();
        }
        assert_eq!(count, 3);
        map.freeze().unwrap();
        assert_eq!(map.update(&[1, 0, 0, 0], &[8; 12], 0), Err(Errno::PERM));
        assert_eq!(map.lookup(&[1, 0, 0], &mut [0; 12]), Err(Errno::INVAL));
        assert_eq!(map.update_batch(&[0; 8], &[0; 12]), Err(Errno::INVAL));
    }

    #[test]
    fn per_cpu_values_have_room_for_all_cpus() {
        let map = Map::create(&spec(PERCPU_ARRAY, 1)).unwrap();
        assert_eq!(map.value_len(), 16 * possible_cpus().unwrap());
        let mut value = vec![1u8; map.value_len()];
        map.lookup(&[0; 4], &mut value).unwrap();
        assert_eq!(&value[..12], &[0; 12]);
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(Map::from_fd(reader).err(), Some(Errno::INVAL));
    }
}
