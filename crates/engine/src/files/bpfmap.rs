//! BPF maps (bpf(2)) that hold plain keys and values.
//!
//! The type information that a map may have been made with (BTF) is lost, and
//! so is the node of memory (NUMA) it was put on.

use super::{Build, Collect, FileKind, OpenFile};
use crate::{Error, Object, Result};
use cryonaut_image::ImageKind;
use cryonaut_image::records::{BpfmapDataEntry, BpfmapFileEntry, FdTypes, FileEntry, FownEntry};
use cryonaut_kernel::proc::fdinfo::Details;
use cryonaut_kernel::sys::bpf::{Map, MapSpec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// Maps.
#[derive(Debug)]
pub struct BpfMap;

/// `BPF_MAP_TYPE_*` that are keys and values and nothing else: hash, array,
/// their per-CPU and LRU forms, LPM trie.
const PLAIN: [u32; 7] = [1, 2, 5, 6, 9, 10, 11];

/// Of these, those with a value for each CPU.
const PER_CPU: [u32; 3] = [5, 6, 10];

const BPF_F_NUMA_NODE: u32 = 1 << 2;
const BPF_F_RDONLY: u32 = 1 << 3;
const BPF_F_WRONLY: u32 = 1 << 4;

impl FileKind for BpfMap {
    fn name(&self) -> &'static str {
        "BPF map"
    }

    fn fd_type(&self) -> FdTypes {
        FdTypes::Bpfmap
    }

    fn recognises(&self, file: &OpenFile<'_>) -> bool {
        matches!(file.info.details, Details::BpfMap(_))
    }

    fn collect(&self, cx: &mut Collect<'_>, file: &OpenFile<'_>, id: u32) -> Result<FileEntry> {
        let Details::BpfMap(told) = &file.info.details else {
            return Err(file.unexpected(self.name()));
        };
        if !PLAIN.contains(&told.map_type) {
            let reason = format!("BPF maps of type {} hold more than keys and values", told.map_type);
            return Err(Error::unsupported(file.object(), reason, "close it before the checkpoint"));
        }
        let failed = |errno| Error::kernel(file.object(), "read the map", errno);
        // The process's own descriptor may be for writing alone.
        let map = Map::by_id(told.map_id).map_err(failed)?;
        let info = *map.info();
        if info.btf_id != 0 {
            tracing::warn!("{}: its type information (BTF) is not carried", file.object());
        }
        if cx.notes.insert(("bpfmap", u64::from(told.map_id)), id).is_none() {
            let contents = read(&map).map_err(failed)?;
            cx.images.append(ImageKind::BpfmapData, None, &contents.0, Some(&contents.1))?;
        }
        let name_len = info.name.iter().position(|&byte| byte == 0).unwrap_or(info.name.len());
        let bpf = BpfmapFileEntry {
            id,
            flags: file.flags(),
            pos: file.info.pos as u64,
            fown: file.owner()?,
            map_type: told.map_type,
            key_size: told.key_size,
            value_size: told.value_size,
            map_id: told.map_id,
            max_entries: told.max_entries,
            map_flags: told.map_flags,
            memlock: told.memlock,
            frozen: told.frozen,
            map_name: info.name[..name_len].to_vec(),
            ifindex: info.ifindex,
            mnt_id: Some(-1),
            map_extra: Some(told.map_extra),
        };
        Ok(FileEntry { r#type: FdTypes::Bpfmap as i32, id, bpf: Some(bpf), ..FileEntry::default() })
    }

    fn build(&self, cx: &mut Build<'_>, entry: &FileEntry) -> Result<OwnedFd> {
        let bpf = entry.bpf.as_ref().ok_or_else(|| Build::lacks(entry, self.name()))?;
        let key = ("bpfmap", u64::from(bpf.map_id));
        if !cx.kept.contains_key(&key) {
            let map = build_map(cx, bpf)?;
            cx.kept.insert(key, map.into_fd());
        }
        let twin = cx.kept[&key].as_fd().try_clone_to_owned().ok();
        let open_flags = match OFlags::from_bits_retain(bpf.flags) & OFlags::ACCMODE {
            OFlags::WRONLY => BPF_F_WRONLY,
            OFlags::RDWR => 0,
            _ => BPF_F_RDONLY,
        };
        // Each record is an open file of its own.
        twin.ok_or(Errno::MFILE)
            .and_then(Map::from_fd)
            .and_then(|map| Map::by_id_as(map.info().id, open_flags))
            .map(Map::into_fd)
            .map_err(|e| failed(bpf, "open it", e))
    }

    fn owner<'e>(&self, entry: &'e FileEntry) -> Option<&'e FownEntry> {
        entry.bpf.as_ref().map(|bpf| &bpf.fown)
    }
}

fn failed(bpf: &BpfmapFileEntry, action: &str, errno: Errno) -> Error {
    Error::Kernel {
        object: Object::File(bpf.id, format!("BPF map {}", String::from_utf8_lossy(&bpf.map_name))),
        action: action.into(),
        errno,
        remedy: if errno == Errno::PERM { "BPF maps need CAP_SYS_ADMIN, or CAP_BPF" } else { "" },
    }
}

/// Bytes of a value in the image.
fn stride(map: &Map) -> usize {
    match PER_CPU.contains(&map.info().map_type) {
        true => map.value_len(),
        false => map.info().value_size as usize,
    }
}

/// All keys, then all values.
fn read(map: &Map) -> std::result::Result<(BpfmapDataEntry, Vec<u8>), Errno> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut value = vec![0; map.value_len()];
    let mut next = vec![0; map.key_len()];
    let mut count = 0;
    let mut more = map.next_key(None, &mut next)?;
    // BPF programs go on while the tree is frozen: the walk may begin anew, but must end.
    while more && count < map.info().max_entries {
        match map.lookup(&next, &mut value) {
            Ok(()) => {
                keys.extend_from_slice(&next);
                values.extend_from_slice(&value[..stride(map)]);
                count += 1;
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        let last = next.clone();
        more = map.next_key(Some(&last), &mut next)?;
    }
    let entry = BpfmapDataEntry {
        map_id: map.info().id,
        keys_bytes: u32::try_from(keys.len()).map_err(|_| Errno::FBIG)?,
        values_bytes: u32::try_from(values.len()).map_err(|_| Errno::FBIG)?,
        count,
    };
    keys.extend_from_slice(&values);
    Ok((entry, keys))
}

fn build_map(cx: &Build<'_>, bpf: &BpfmapFileEntry) -> Result<Map> {
    let mut name = [0; 16];
    let len = bpf.map_name.len().min(name.len() - 1);
    name[..len].copy_from_slice(&bpf.map_name[..len]);
    let spec = MapSpec {
        map_type: bpf.map_type,
        key_size: bpf.key_size,
        value_size: bpf.value_size,
        max_entries: bpf.max_entries,
        map_flags: bpf.map_flags & !(BPF_F_NUMA_NODE | BPF_F_RDONLY | BPF_F_WRONLY),
        name,
        ifindex: bpf.ifindex,
        map_extra: bpf.map_extra.unwrap_or(0),
        ..MapSpec::default()
    };
    let map = Map::create(&spec).map_err(|e| failed(bpf, "make it", e))?;
    if let Some(mut data) = cx.images.entries_optional(ImageKind::BpfmapData, None)? {
        while let Some((data, bytes)) = data.next_tailed::<BpfmapDataEntry>()? {
            if data.map_id == bpf.map_id {
                write(&map, bpf, &data, &bytes)?;
            }
        }
    }
    if bpf.frozen {
        map.freeze().map_err(|e| failed(bpf, "freeze it", e))?;
    }
    Ok(map)
}

fn write(map: &Map, bpf: &BpfmapFileEntry, data: &BpfmapDataEntry, bytes: &[u8]) -> Result<()> {
    let (keys, values) = bytes.split_at(data.keys_bytes as usize);
    let (count, stride) = (data.count as usize, stride(map));
    if keys.len() != count * map.key_len() || values.len() != count * stride {
        let problem = format!("{count} elements of BPF map {} have other sizes than the map has here", bpf.map_id);
        return Err(Error::bad_image("bpfmap-data.img", problem));
    }
    let mut room = vec![0; map.value_len()];
    for at in 0..count {
        let key = &keys[at * map.key_len()..][..map.key_len()];
        room[..stride].copy_from_slice(&values[at * stride..][..stride]);
        map.update(key, &room, 0).map_err(|e| failed(bpf, "fill it", e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Carried;
    use super::*;
    use crate::RestoreOptions;

    fn make(map_type: u32, value_size: u32) -> Map {
        let name = *b"carried\0\0\0\0\0\0\0\0\0";
        Map::create(&MapSpec { map_type, key_size: 4, value_size, max_entries: 50, name, ..MapSpec::default() })
            .unwrap()
    }

    #[test]
    fn keys_values_and_freezing_come_back() {
        let (hash, array, cpus) = (make(1, 12), make(2, 1), make(6, 8));
        for n in 0..30u8 {
            hash.update(&[n, 1, 2, 3], &[n; 12], 0).unwrap();
        }
        array.update(&[7, 0, 0, 0], &[9; 4], 0).unwrap();
        array.freeze().unwrap();
        cpus.update(&[3, 0, 0, 0], &vec![5; cpus.value_len()], 0).unwrap();
        let reading = Map::by_id_as(hash.info().id, BPF_F_RDONLY).unwrap();
        let carried = Carried::collect(&[&hash, &array, &cpus, &reading]).build(RestoreOptions::default());
        let [new_hash, new_array, new_cpus, new_reading] =
            [0, 1, 2, 3].map(|n| Map::from_fd(carried.file(n).try_clone().unwrap()).unwrap());
        for (old, new) in [(&hash, &new_hash), (&array, &new_array), (&cpus, &new_cpus)] {
            let ((mut one, mut contents), (mut other, mut again)) = (read(old).unwrap(), read(new).unwrap());
            (one.map_id, other.map_id) = (0, 0);
            contents.sort_unstable();
            again.sort_unstable();
            assert_eq!((one, contents), (other, again));
            assert_eq!(old.info().name, new.info().name);
            assert_ne!(old.info().id, new.info().id);
        }
        assert_eq!(new_array.update(&[0; 4], &[0; 4], 0), Err(Errno::PERM));
        assert_eq!(new_reading.info().id, new_hash.info().id);
        assert_eq!(new_reading.update(&[0; 4], &[0; 12], 0), Err(Errno::PERM));
    }
}
