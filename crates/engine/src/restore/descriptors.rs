//! Every descriptor table as it was: the open files built once, given to each
//! process, under the numbers that they had.

use super::Nursery;
use crate::files::socket::Actors;
use crate::files::{Build, Round, kind_of};
use crate::plan::Plan;
use crate::users;
use crate::{Error, Object, Result};
use cryonaut_image::records::{FdinfoEntry, FownEntry};
use cryonaut_kernel::sys::fcntl::{self, Owner, OwnerKind};
use cryonaut_puppet::passing::{LANES, Service};
use cryonaut_puppet::{Batch, Hand};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd};

/// Descriptors that are given in one go.
const CHUNK: usize = 120;
const FD_CLOEXEC: u32 = 1;

/// Fills all tables. Returns which processes have which file under which
/// number.
pub fn install_all(
    nursery: &mut Nursery<'_>,
    plan: &Plan,
    service: &Service,
    build: &mut Build<'_>,
) -> Result<HashMap<u32, Vec<(i32, i32)>>> {
    let mut places: HashMap<u32, Vec<(i32, i32)>> = HashMap::new();
    let mut filled = Vec::new();
    let mut tables = Vec::new();
    for process in plan.processes.values() {
        let Some(ids) = &process.ids else { continue };
        let table = &plan.tables[&ids.files_id];
        for entry in table {
            places.entry(entry.id).or_default().push((process.pid(), entry.fd as i32));
        }
        // A shared table is filled through one of its owners.
        if !filled.contains(&ids.files_id) {
            filled.push(ids.files_id);
            tables.push((process.pid(), sorted(table)?));
        }
    }
    let round_of = |entry: &&FdinfoEntry| {
        let record = plan.files.get(&entry.id);
        record.and_then(|r| Some(kind_of(r)?.round(r))).unwrap_or(Round::First)
    };
    let networks: BTreeMap<i32, u32> = plan.networks();
    build.begin(&mut Actors::new(&mut nursery.hands, service, networks.clone()))?;
    for round in [Round::First, Round::Watchers, Round::Last] {
        let now = tables.iter().map(|(pid, table)| {
            let entries: Vec<_> = table.iter().copied().filter(|entry| round_of(entry) == round).collect();
            (*pid, entries)
        });
        let (few, many): (Vec<_>, Vec<_>) =
            now.filter(|(_, entries)| !entries.is_empty()).partition(|(_, entries)| entries.len() <= CHUNK);
        for some in few.chunks(LANES - 1) {
            install_together(nursery, service, build, some)?;
        }
        for (pid, entries) in many {
            install(nursery.hand(pid)?, service, build, &entries)?;
        }
    }
    build.complete(&mut Actors::new(&mut nursery.hands, service, networks))?;
    Ok(places)
}

/// A table by ascending numbers.
fn sorted(table: &[FdinfoEntry]) -> Result<Vec<&FdinfoEntry>> {
    let mut sorted: Vec<&FdinfoEntry> = table.iter().collect();
    sorted.sort_by_key(|e| e.fd);
    for pair in sorted.windows(2) {
        if pair[0].fd == pair[1].fd {
            return Err(Error::bad_image("fdinfo", format!("descriptor {} is there twice", pair[0].fd)));
        }
    }
    Ok(sorted)
}

/// Puts files of several tables in place, at once. Each takes one message.
fn install_together(
    nursery: &mut Nursery<'_>,
    service: &Service,
    build: &mut Build<'_>,
    tables: &[(i32, Vec<&FdinfoEntry>)],
) -> Result<()> {
    let mut receiving = Vec::new();
    // The first lane is that of those who work alone.
    for (lane, (pid, entries)) in (1..).zip(tables) {
        let hand = nursery.hand(*pid)?;
        let mut b = Batch::new();
        match service.give_in(&mut b, lane, &built(build, entries)?)? {
            Some(received) => {
                hand.start(&b)?;
                receiving.push((*pid, entries, b, received));
            }
            None => install(hand, service, build, entries)?,
        }
    }
    let mut placing = Vec::new();
    for (pid, entries, mut b, received) in receiving {
        let hand = nursery.hand(pid)?;
        hand.wait(&mut b)?;
        let b = places(entries, &received.numbers(&b));
        hand.start(&b)?;
        placing.push((pid, b));
    }
    placing.into_iter().try_for_each(|(pid, mut b)| Ok(nursery.hand(pid)?.wait(&mut b)?))
}

/// The files of these descriptors, which are built if they are not there.
fn built<'b>(build: &'b mut Build<'_>, entries: &[&FdinfoEntry]) -> Result<Vec<BorrowedFd<'b>>> {
    for entry in entries {
        build.file(entry.id)?;
    }
    Ok(entries.iter().map(|entry| build.built()[&entry.id].as_fd()).collect())
}

/// Puts files of one table in place, whose numbers ascend and are free.
/// Received descriptors take the lowest free numbers; going through the table
/// from the highest number down, each one's place is at or above where it was
/// received, so nothing is in the way.
fn install(hand: &mut Hand, service: &Service, build: &mut Build<'_>, sorted: &[&FdinfoEntry]) -> Result<()> {
    let mut end = sorted.len();
    while end > 0 {
        let chunk = &sorted[end.saturating_sub(CHUNK)..end];
        let numbers = service.give(hand, &built(build, chunk)?)?;
        hand.run(&mut places(chunk, &numbers))?;
        end -= chunk.len();
    }
    Ok(())
}

/// What puts received descriptors in place, from the highest down.
fn places(entries: &[&FdinfoEntry], numbers: &[i32]) -> Batch {
    let mut b = Batch::new();
    for (entry, number) in entries.iter().zip(numbers).rev() {
        place(&mut b, *number, entry);
    }
    b
}

fn place(b: &mut Batch, number: i32, entry: &FdinfoEntry) {
    let cloexec = entry.flags & FD_CLOEXEC;
    if number == entry.fd as i32 {
        b.call(libc::SYS_fcntl, [number.into(), libc::F_SETFD.into(), cloexec.into()]);
        return;
    }
    let flags = if cloexec != 0 { libc::O_CLOEXEC } else { 0 };
    b.call(libc::SYS_dup3, [number.into(), entry.fd.into(), flags.into()]);
    b.call(libc::SYS_close, [number.into()]);
}

/// Gives a file its signal owner. The kernel keeps the uids of who sets it;
/// ours are set for the moment of the call.
pub fn set_owner(file: BorrowedFd<'_>, id: u32, owner: &FownEntry) -> Result<()> {
    let failed = |what: &str, e| Error::kernel(Object::File(id, "signal owner".into()), what, e);
    if owner.signum != 0 {
        fcntl::setsig(file, owner.signum as i32).map_err(|e| failed("set its signal", e))?;
    }
    if owner.pid == 0 {
        return Ok(());
    }
    let kind = match owner.pid_type {
        0 => OwnerKind::Thread,
        1 => OwnerKind::Process,
        _ => OwnerKind::Group,
    };
    let target = Owner { kind, pid: owner.pid as i32 };
    let (uid, euid) = (users::user_outside(owner.uid), users::user_outside(owner.euid));
    cryonaut_kernel::sys::creds::with_uids(uid, euid, || fcntl::setown_ex(file, target))
        .map_err(|e| failed("set who gets its signals", e))
}
