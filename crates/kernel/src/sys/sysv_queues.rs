//! Queues of messages and sets of semaphores of System V (sysvipc(7)), and lists of all such objects, in the ipc namespace
//! of the calling thread.

use std::fs::File;
use std::io::{Read, Write};

use rustix::io::Errno;

use super::check;

/// `MSG_COPY` of msgrcv(2): a message by its place in the queue, which stays there. Needs CONFIG_CHECKPOINT_RESTORE.
const MSG_COPY: i32 = 0o40000;

/// The kinds of objects of System V.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Memory,
    Messages,
    Semaphores,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Memory => "shm",
            Kind::Messages => "msg",
            Kind::Semaphores => "sem",
        }
    }
}

/// What all kinds of objects have, as a file of `/proc/sysvipc` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    /// By which others find it; 0 for none.
    pub key: i32,
    pub id: i32,
    /// Permissions; of memory also [`super::sysv::REMOVED`] and [`super::sysv::LOCKED`].
    pub mode: u32,
    /// Bytes of memory, or how many semaphores; of a queue the bytes in it.
    pub size: u64,
    /// Mappings of memory, or messages in a queue.
    pub count: u64,
    pub owner: (u32, u32),
    pub creator: (u32, u32),
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// All objects of a kind, in the kernel's order.
pub fn list(kind: Kind) -> Result<Vec<Described>, Errno> {
    let mut text = String::new();
    let name = format!("/proc/sysvipc/{}", kind.name());
    File::open(name).and_then(|mut file| file.read_to_string(&mut text)).map_err(|e| errno(&e))?;
    text.lines().skip(1).map(|line| parse(kind, line).ok_or(Errno::BADMSG)).collect()
}

fn parse(kind: Kind, line: &str) -> Option<Described> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let number = |at: usize| words.get(at)?.parse::<u64>().ok();
    let ids = |at: usize| Some((number(at)? as u32, number(at + 1)? as u32));
    let key = words.first()?.parse::<i64>().ok()? as i32;
    let id = words.get(1)?.parse().ok()?;
    let mode = u32::from_str_radix(words.get(2)?, 8).ok()?;
    // The columns: ipc/shm.c, msg.c and sem.c, sysvipc_*_proc_show.
    let (count, owner) = match kind {
        Kind::Memory => (number(6)?, 7),
        Kind::Messages => (number(4)?, 7),
        Kind::Semaphores => (0, 4),
    };
    Some(Described { key, id, mode, size: number(3)?, count, owner: ids(owner)?, creator: ids(owner + 2)? })
}

/// Has the next object of a kind get this id. Needs CAP_CHECKPOINT_RESTORE.
pub fn choose_id(kind: Kind, id: i32) -> Result<(), Errno> {
    let name = format!("/proc/sys/kernel/{}_next_id", kind.name());
    let mut file = File::options().write(true).open(name).map_err(|e| errno(&e))?;
    file.write_all(id.to_string().as_bytes()).map_err(|e| errno(&e))
}

/// Runs `act` on a thread whose effective user and group are these, in the namespaces of the calling one. What the calling
/// one may do, it may as well: the creator of memory of huge pages may have been allowed to have some.
pub fn act_as<T: Send>((uid, gid): (u32, u32), act: impl FnOnce() -> T + Send) -> Result<T, Errno> {
    if (uid, gid) == (0, 0) {
        return Ok(act());
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let keep = u32::MAX;
            // SAFETY: both system calls take numbers, and change the credentials of this thread alone, as libc's
            // functions of their names would not.
            check(unsafe { libc::syscall(libc::SYS_setresgid, keep, gid, keep) })?;
            // SAFETY: as above.
            check(unsafe { libc::syscall(libc::SYS_setresuid, keep, uid, keep) })?;
            let mut sets = rustix::thread::capabilities(None)?;
            sets.effective = sets.permitted;
            rustix::thread::set_capabilities(None, sets)?;
            Ok(act())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

const NEW: i32 = libc::IPC_CREAT | libc::IPC_EXCL;

/// Whether a new object has got the id that was chosen for it; otherwise EBUSY, and `remove` is called.
fn expect(made: i32, id: i32, remove: impl FnOnce(i32)) -> Result<(), Errno> {
    if made == id {
        return Ok(());
    }
    remove(made);
    Err(Errno::BUSY)
}

/// Makes a queue; its id was chosen before.
pub fn make_queue(id: i32, key: i32, mode: u32) -> Result<(), Errno> {
    // SAFETY: msgget takes numbers alone.
    let made = check(unsafe { libc::msgget(key, NEW | (mode & 0o777) as i32) })?;
    expect(made, id, |made| {
        // SAFETY: IPC_RMID takes no argument.
        unsafe { libc::msgctl(made, libc::IPC_RMID, std::ptr::null_mut()) };
    })
}

/// How many bytes a queue takes (`msg_qbytes`).
pub fn queue_limit(id: i32) -> Result<u64, Errno> {
    // SAFETY: an msqid_ds of zeros is a valid one, and IPC_STAT writes one.
    unsafe {
        let mut told: libc::msqid_ds = std::mem::zeroed();
        check(libc::msgctl(id, libc::IPC_STAT, &raw mut told))?;
        Ok(told.msg_qbytes)
    }
}

/// Gives a queue its owner, permissions and limit. More than `msgmnb` needs CAP_SYS_RESOURCE.
pub fn set_queue(id: i32, owner: (u32, u32), mode: u32, limit: u64) -> Result<(), Errno> {
    // SAFETY: an msqid_ds of zeros is a valid one, and IPC_SET reads one.
    unsafe {
        let mut wanted: libc::msqid_ds = std::mem::zeroed();
        (wanted.msg_perm.uid, wanted.msg_perm.gid) = owner;
        wanted.msg_perm.mode = (mode & 0o777) as _;
        wanted.msg_qbytes = limit;
        check(libc::msgctl(id, libc::IPC_SET, &raw mut wanted)).map(drop)
    }
}

/// The messages of a queue, type and data each; they stay in it. `most` is how long one can be.
pub fn messages(id: i32, most: usize) -> Result<Vec<(i64, Vec<u8>)>, Errno> {
    let mut all = Vec::new();
    let mut room = vec![0u64; 1 + most.div_ceil(8)];
    loop {
        let flags = libc::IPC_NOWAIT | MSG_COPY;
        // SAFETY: the buffer has room for the type and `most` bytes behind it.
        let got = check(unsafe { libc::msgrcv(id, room.as_mut_ptr().cast(), most, all.len() as i64, flags) });
        match got {
            Err(Errno::NOMSG) => return Ok(all),
            Err(errno) => return Err(errno),
            Ok(len) => {
                let bytes = room[1..].iter().flat_map(|word| word.to_ne_bytes()).take(len as usize).collect();
                all.push((room[0] as i64, bytes));
            }
        }
    }
}

/// Puts a message into a queue, unless it is full (EAGAIN).
pub fn send(id: i32, kind: i64, data: &[u8]) -> Result<(), Errno> {
    let message: Vec<u8> = kind.to_ne_bytes().iter().chain(data).copied().collect();
    // SAFETY: the message begins with its type, a long, and has as many bytes behind it as told.
    check(unsafe { libc::msgsnd(id, message.as_ptr().cast(), data.len(), libc::IPC_NOWAIT) }).map(drop)
}

/// Makes a set of so many semaphores; its id was chosen before.
pub fn make_semaphores(id: i32, key: i32, count: u64, mode: u32) -> Result<(), Errno> {
    let count = i32::try_from(count).map_err(|_| Errno::INVAL)?;
    // SAFETY: semget takes numbers alone.
    let made = check(unsafe { libc::semget(key, count, NEW | (mode & 0o777) as i32) })?;
    expect(made, id, |made| {
        // SAFETY: IPC_RMID takes no further argument.
        unsafe { libc::semctl(made, 0, libc::IPC_RMID) };
    })
}

/// Gives a set its owner and permissions.
pub fn set_semaphores(id: i32, owner: (u32, u32), mode: u32) -> Result<(), Errno> {
    // SAFETY: a semid_ds of zeros is a valid one, and IPC_SET reads one.
    unsafe {
        let mut wanted: libc::semid_ds = std::mem::zeroed();
        (wanted.sem_perm.uid, wanted.sem_perm.gid) = owner;
        wanted.sem_perm.mode = (mode & 0o777) as _;
        check(libc::semctl(id, 0, libc::IPC_SET, &raw mut wanted)).map(drop)
    }
}

/// `GETALL` and `SETALL` of semctl(2) (linux/sem.h).
const GETALL: i32 = 13;
const SETALL: i32 = 17;

/// The values of a set of `count` semaphores.
pub fn values(id: i32, count: u64) -> Result<Vec<u16>, Errno> {
    let mut all = vec![0u16; usize::try_from(count).map_err(|_| Errno::INVAL)?];
    // SAFETY: GETALL writes as many values as the set has, which is `count` as long as the set is the one that was told of.
    check(unsafe { libc::semctl(id, 0, GETALL, all.as_mut_ptr()) })?;
    Ok(all)
}

/// Gives a set its values, as many as it has semaphores.
pub fn set_values(id: i32, values: &[u16]) -> Result<(), Errno> {
    // SAFETY: SETALL reads as many values as the set has, which was made with so many.
    check(unsafe { libc::semctl(id, 0, SETALL, values.as_ptr()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_kinds() {
        let memory = "0 65536 1600 4096 17 18 2 1000 1001 0 5 1 2 3 4096 0";
        let told = parse(Kind::Memory, memory).unwrap();
        assert_eq!((told.id, told.mode, told.size, told.count), (65536, 0o1600, 4096, 2));
        assert_eq!((told.owner, told.creator), ((1000, 1001), (0, 5)));
        let queue = parse(Kind::Messages, "-1 3 644 20 2 7 8 1 2 3 4 5 6 7").unwrap();
        assert_eq!((queue.key, queue.size, queue.count, queue.creator), (-1, 20, 2, (3, 4)));
        let set = parse(Kind::Semaphores, "17 0 666 3 1 2 3 4 5 6").unwrap();
        assert_eq!((set.size, set.owner, set.creator), (3, (1, 2), (3, 4)));
        assert_eq!(parse(Kind::Memory, "0 1"), None);
    }

    #[test]
    fn messages_are_read_and_stay() {
        // SAFETY: msgget takes numbers alone.
        let id = check(unsafe { libc::msgget(libc::IPC_PRIVATE, NEW | 0o600) }).unwrap();
        send(id, 5, b"first").unwrap();
        send(id, 6, b"").unwrap();
        let both = vec![(5, b"first".to_vec()), (6, Vec::new())];
        assert_eq!(messages(id, 100), Ok(both.clone()));
        assert_eq!(messages(id, 5), Ok(both));
        let told = list(Kind::Messages).unwrap().into_iter().find(|one| one.id == id).unwrap();
        assert_eq!((told.size, told.count), (5, 2));
        // SAFETY: IPC_RMID takes no argument.
        check(unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).unwrap();
    }
}
