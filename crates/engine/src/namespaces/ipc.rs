//! Ipc namespaces (ipc_namespaces(7)): shared memory, queues of messages and semaphores of System V, whether somebody
//! uses them at the moment or not, queues of messages of POSIX, and the limits of all these.
//!
//! Everything is read and made by a thread that is in the namespace, and is found again under its own id. Mappings of
//! shared memory are those of processes (`files/sysv.rs`). Queues of POSIX ([`posix`]) are in
//! `cryonaut-posix-queues-ID.json`.
//!
//! Not told by the kernel, and not carried: who has used an object last, and when.

pub mod posix;
pub mod undo;

use super::{Building, Dumping, Halves, Own};
use crate::files::{shared_pages, sysv as sysv_memory};
use crate::memory::PAGE;
use crate::users;
use crate::{Error, Object, Result, parallel};
use cryonaut_image::ImageKind;
use cryonaut_image::records::{IpcDescEntry, IpcMsg, IpcMsgEntry, IpcSemEntry, IpcShmEntry, IpcVarEntry};
use cryonaut_kernel::Errno;
use cryonaut_kernel::sys::huge;
use cryonaut_kernel::sys::namespace::within;
use cryonaut_kernel::sys::posix_queues;
use cryonaut_kernel::sys::sysv::{self, Attached, LOCKED, REMOVED};
use cryonaut_kernel::sys::sysv_queues::{self as queues, Described, Kind};
use rustix::fs::OFlags;
use std::fs::File;
use std::os::fd::AsFd;

pub const HALVES: Halves = Halves { dump, build, at_birth: true };

/// What the limits are called below /proc/sys, in the order of their fields in the record.
const LIMITS: [&str; 13] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/auto_msgmni",
    "kernel/shmmax",
    "kernel/shmall",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
    "fs/mqueue/queues_max",
    "fs/mqueue/msg_max",
    "fs/mqueue/msgsize_max",
    "fs/mqueue/msg_default",
    "fs/mqueue/msgsize_default",
];
const SEMAPHORES: &str = "kernel/sem";
/// The id that the next object gets, or -1 for any.
const NEXT: [&str; 3] = ["kernel/msg_next_id", "kernel/sem_next_id", "kernel/shm_next_id"];

/// Runs `act` in the namespace; an error says what was tried on what.
fn inside<T: Send>(own: &Own, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    within(&[own.file.as_fd()], act).map_err(own.failed("enter it"))?
}

fn object(own: &Own, what: &str, id: i32) -> Object {
    Object::Other(format!("{what} {id} of {}", own.object()))
}

fn dump(cx: &mut Dumping<'_>, own: &Own) -> Result<()> {
    let (images, id) = (cx.images, u64::from(own.id));
    let read = inside(own, || {
        let limits = read_limits().map_err(own.failed("read its limits"))?;
        let list = |kind| queues::list(kind).map_err(own.failed("list its objects of System V"));
        let memory = list(Kind::Memory)?.into_iter().map(|one| hold(own, one)).collect::<Result<Vec<_>>>()?;
        let messages = list(Kind::Messages)?.into_iter().map(|one| read_queue(own, one)).collect::<Result<Vec<_>>>()?;
        let sets = list(Kind::Semaphores)?.into_iter().map(|one| {
            let failed = |e| Error::kernel(object(own, "semaphores", one.id), "read their values", e);
            Ok((one, queues::values(one.id, one.size).map_err(failed)?))
        });
        let sets = sets.collect::<Result<Vec<_>>>()?;
        let (posix, mount) = posix_queues::list().map_err(posix::unread(own))?;
        parallel::aside(|| drop(mount));
        Ok((limits, memory, messages, sets, posix))
    });
    let (limits, memory, messages, sets, posix) = read?;
    images.write_one(ImageKind::IpcVar, id, &limits)?;
    let file = images.entry_file(ImageKind::IpcnsShm, id)?;
    for (one, pages, huge_page) in memory {
        let what = object(own, "segment of memory", one.id);
        let (size, page) = (one.size, huge_page.unwrap_or(PAGE));
        let count = shared_pages::write_out(
            (images, &cx.pages_ids, Some(&cx.options.progress)),
            one.id as u64,
            &pages,
            sysv_memory::file_size(size, huge_page),
            page,
            &what,
        )?;
        cx.shared_pages.add(count);
        let desc = described(&one);
        let hugetlb_flag = huge_page.map(|page| libc::SHM_HUGETLB as u32 | huge::flag_of(page));
        file.append_tailed(&IpcShmEntry { desc, size, in_pagemaps: Some(true), hugetlb_flag }, &[])?;
    }
    let file = images.entry_file(ImageKind::IpcnsMsg, id)?;
    for (one, limit, all) in messages {
        file.append(&IpcMsgEntry { desc: described(&one), qbytes: limit as u32, qnum: all.len() as u32 })?;
        for (kind, data) in all {
            file.append_tailed(&IpcMsg { mtype: kind as u64, msize: data.len() as u32 }, &data)?;
        }
    }
    undo::dump(images, own, cx.processes, &sets.iter().map(|(set, _)| *set).collect::<Vec<_>>())?;
    let file = images.entry_file(ImageKind::IpcnsSem, id)?;
    for (one, values) in sets {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.append_tailed(&IpcSemEntry { desc: described(&one), nsems: values.len() as u32 }, &bytes)?;
    }
    posix::write(images, own, posix)
}

fn described(one: &Described) -> IpcDescEntry {
    let ((uid, gid), (cuid, cgid)) = (users::inside(one.owner), users::inside(one.creator));
    IpcDescEntry { key: one.key as u32, uid, gid, cuid, cgid, mode: one.mode, id: one.id as u32 }
}

/// A segment with its memory as a file, and the size of its huge pages.
fn hold(own: &Own, one: Described) -> Result<(Described, File, Option<u64>)> {
    let failed = |e| Error::kernel(object(own, "segment of memory", one.id), "open it", e);
    let file = Attached::new(one.id, one.size).and_then(|ours| ours.file()).map_err(failed)?;
    let huge_page = huge::page_of(&file).map_err(failed)?;
    Ok((one, File::from(file), huge_page))
}

/// A queue, its limit and its messages: type and text of each.
type Messages = (Described, u64, Vec<(i64, Vec<u8>)>);

/// A queue with its limit and what is in it.
fn read_queue(own: &Own, one: Described) -> Result<Messages> {
    let failed = |e| Error::kernel(object(own, "queue of messages", one.id), "read it", e);
    let limit = queues::queue_limit(one.id).map_err(failed)?;
    let all = queues::messages(one.id, one.size as usize).map_err(failed)?;
    Ok((one, limit, all))
}

fn read_setting(name: &str) -> std::result::Result<String, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(format!("/proc/sys/{name}"), flags, rustix::fs::Mode::empty())?;
    // In one piece: what has no room is lost, not told by the next call.
    let mut room = [0; 1024];
    let len = rustix::io::read(&file, &mut room)?;
    String::from_utf8(room[..len].to_vec()).map_err(|_| Errno::BADMSG)
}

fn number<T: std::str::FromStr>(text: &str) -> std::result::Result<T, Errno> {
    text.trim().parse().map_err(|_| Errno::BADMSG)
}

fn read_limits() -> std::result::Result<IpcVarEntry, Errno> {
    // A kernel without queues of POSIX lacks theirs, and later ones may lack others.
    let read = |name: &str| match read_setting(name) {
        Err(Errno::NOENT) => Ok(0),
        text => number::<u64>(&text?),
    };
    let small = |name| read(name).map(|value| u32::try_from(value).unwrap_or(u32::MAX));
    // -1 is not to be set: whoever restores it would be refused.
    let next = |name| read_setting(name).and_then(|text| number::<i32>(&text)).map(|id| u32::try_from(id).ok());
    Ok(IpcVarEntry {
        sem_ctls: read_setting(SEMAPHORES)?
            .split_ascii_whitespace()
            .map(number)
            .collect::<std::result::Result<_, _>>()?,
        msg_ctlmax: small(LIMITS[0])?,
        msg_ctlmnb: small(LIMITS[1])?,
        msg_ctlmni: small(LIMITS[2])?,
        auto_msgmni: small(LIMITS[3])?,
        shm_ctlmax: read(LIMITS[4])?,
        shm_ctlall: read(LIMITS[5])?,
        shm_ctlmni: small(LIMITS[6])?,
        shm_rmid_forced: small(LIMITS[7])?,
        mq_queues_max: small(LIMITS[8])?,
        mq_msg_max: small(LIMITS[9])?,
        mq_msgsize_max: small(LIMITS[10])?,
        mq_msg_default: Some(small(LIMITS[11])?),
        mq_msgsize_default: Some(small(LIMITS[12])?),
        msg_next_id: next(NEXT[0])?,
        sem_next_id: next(NEXT[1])?,
        shm_next_id: next(NEXT[2])?,
    })
}

/// Gives a setting a value, unless it has that.
fn set(name: &str, value: &str) -> std::result::Result<(), Errno> {
    match read_setting(name) {
        Ok(there) if there.split_ascii_whitespace().eq(value.split_ascii_whitespace()) => Ok(()),
        // What is no limit here is none to be set.
        Err(Errno::NOENT) if value == "0" => Ok(()),
        _ => std::fs::write(format!("/proc/sys/{name}"), value).map_err(|e| crate::error::errno_of(&e)),
    }
}

fn build(cx: &mut Building<'_>, own: &Own) -> Result<()> {
    let (images, id) = (cx.images, u64::from(own.id));
    let limits: IpcVarEntry = images.read_one(ImageKind::IpcVar, id)?;
    let memory = images.read_tailed::<IpcShmEntry>(ImageKind::IpcnsShm, id)?;
    let sets = images.read_tailed::<IpcSemEntry>(ImageKind::IpcnsSem, id)?;
    let posix = posix::recorded(images, own)?;
    let held = inside(own, || {
        set_limits(own, &limits)?;
        let held = memory.iter().map(|(entry, data)| make_memory(cx, own, entry, data)).collect::<Result<Vec<_>>>()?;
        make_queues(cx, own)?;
        sets.iter().try_for_each(|(entry, bytes)| make_set(own, entry, bytes))?;
        posix.iter().try_for_each(|queue| posix::make(queue, own.object()).map(drop))?;
        for (name, next) in NEXT.into_iter().zip([limits.msg_next_id, limits.sem_next_id, limits.shm_next_id]) {
            if let Some(next) = next {
                set(name, &(next as i32).to_string()).map_err(own.failed(format!("set {name}")))?;
            }
        }
        Ok(held)
    });
    cx.keep.extend(held?.into_iter().flatten().map(|ours| Box::new(ours) as super::Kept));
    Ok(())
}

fn set_limits(own: &Own, limits: &IpcVarEntry) -> Result<()> {
    let semaphores = limits.sem_ctls.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let values = [
        u64::from(limits.msg_ctlmax),
        limits.msg_ctlmnb.into(),
        limits.msg_ctlmni.into(),
        limits.auto_msgmni.into(),
        limits.shm_ctlmax,
        limits.shm_ctlall,
        limits.shm_ctlmni.into(),
        limits.shm_rmid_forced.into(),
        limits.mq_queues_max.into(),
        limits.mq_msg_max.into(),
        limits.mq_msgsize_max.into(),
        limits.mq_msg_default.unwrap_or_default().into(),
        limits.mq_msgsize_default.unwrap_or_default().into(),
    ];
    // CRIU's images may lack the last two, and old kernels have none of those of POSIX.
    let numbers = LIMITS.into_iter().zip(values).filter(|(name, value)| *value != 0 || !name.starts_with("fs/"));
    let all = numbers.map(|(name, value)| (name, value.to_string())).chain([(SEMAPHORES, semaphores)]);
    for (name, value) in all {
        set(name, &value).map_err(own.failed(format!("set {name} to {value}")))?;
    }
    Ok(())
}

/// Makes an object with its id, as its creator.
fn make(
    desc: &IpcDescEntry,
    kind: Kind,
    how: impl FnOnce(i32, i32) -> std::result::Result<(), Errno> + Send,
) -> std::result::Result<(), Errno> {
    let id = desc.id as i32;
    queues::choose_id(kind, id)?;
    // A removed one has no key any more.
    let key = if desc.mode & REMOVED != 0 { libc::IPC_PRIVATE } else { desc.key as i32 };
    queues::act_as(users::outside((desc.cuid, desc.cgid)), || how(id, key))?
}

/// Makes a segment; by our mapping of one that is to be removed it is there until the tree has mapped it.
fn make_memory(cx: &Building<'_>, own: &Own, entry: &IpcShmEntry, data: &[u8]) -> Result<Option<Attached>> {
    let (desc, size) = (&entry.desc, entry.size);
    let (id, what) = (desc.id as i32, object(own, "segment of memory", desc.id as i32));
    let failed = |action: &'static str| {
        let what = what.clone();
        move |e| Error::kernel(what, action, e)
    };
    let huge_page = entry.hugetlb_flag.filter(|flags| *flags != 0).map(huge::of_flags);
    make(desc, Kind::Memory, |_, key| sysv::make(id, key, size, desc.mode, huge_page)).map_err(|errno| {
        let remedy = match errno {
            Errno::NOMEM if huge_page.is_some() => sysv_memory::LACK_OF_HUGE_PAGES,
            _ => "",
        };
        Error::Kernel { object: what.clone(), action: "make it".into(), errno, remedy }
    })?;
    let (uid, gid) = users::outside((desc.uid, desc.gid));
    sysv::set_owner(id, uid, gid, desc.mode).map_err(failed("give it its owner"))?;
    let ours = Attached::new(id, size).map_err(failed("map it"))?;
    let file = File::from(ours.file().map_err(failed("open it"))?);
    if entry.in_pagemaps() {
        let page = huge_page.unwrap_or(PAGE);
        shared_pages::read(cx.images, id as u64, &file, sysv_memory::file_size(size, huge_page), page, &what)?;
    } else if let Some(page) = huge_page {
        huge::write(&file, page, 0, data).map_err(failed("fill it"))?;
    } else {
        let written = std::os::unix::fs::FileExt::write_all_at(&file, data, 0);
        written.map_err(|e| failed("fill it")(crate::error::errno_of(&e)))?;
    }
    if desc.mode & LOCKED != 0 {
        sysv::lock(id).map_err(failed("lock it"))?;
    }
    if desc.mode & REMOVED == 0 {
        return Ok(None);
    }
    sysv::remove(id).map_err(failed("remove it, as it was"))?;
    Ok(Some(ours))
}

fn make_queues(cx: &Building<'_>, own: &Own) -> Result<()> {
    let Some(mut entries) = cx.images.entries_optional(ImageKind::IpcnsMsg, u64::from(own.id))? else { return Ok(()) };
    while let Some(entry) = entries.next_record::<IpcMsgEntry>()? {
        let desc = &entry.desc;
        let (id, what) = (desc.id as i32, object(own, "queue of messages", desc.id as i32));
        let failed = |action: &'static str| {
            let what = what.clone();
            move |e| Error::kernel(what, action, e)
        };
        make(desc, Kind::Messages, |id, key| queues::make_queue(id, key, desc.mode)).map_err(failed("make it"))?;
        queues::set_queue(id, users::outside((desc.uid, desc.gid)), desc.mode, entry.qbytes.into())
            .map_err(failed("give it its owner and limit"))?;
        for _ in 0..entry.qnum {
            let Some((message, data)) = entries.next_tailed::<IpcMsg>()? else {
                return Err(Error::bad_image(format!("ipcns-msg-{}.img", own.id), "it lacks messages"));
            };
            queues::send(id, message.mtype as i64, &data).map_err(failed("put its messages into it"))?;
        }
    }
    Ok(())
}

fn make_set(own: &Own, entry: &IpcSemEntry, bytes: &[u8]) -> Result<()> {
    let desc = &entry.desc;
    let (id, what) = (desc.id as i32, object(own, "semaphores", desc.id as i32));
    let failed = |action: &'static str| {
        let what = what.clone();
        move |e| Error::kernel(what, action, e)
    };
    let count = u64::from(entry.nsems);
    make(desc, Kind::Semaphores, |id, key| queues::make_semaphores(id, key, count, desc.mode))
        .map_err(failed("make them"))?;
    let values: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|two| u16::from_le_bytes(*two)).collect();
    queues::set_values(id, &values).map_err(failed("give them their values"))?;
    queues::set_semaphores(id, users::outside((desc.uid, desc.gid)), desc.mode).map_err(failed("give them their owner"))
}
