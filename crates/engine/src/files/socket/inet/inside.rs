//! What no option tells of a socket of the internet, and would be lost without a word: IPsec policies, programs that
//! choose among those that share a port, keys of TCP-MD5, marks of urgent data. Read from the kernel's memory
//! ([`socket_inside`]), of all sockets of a process at once; a kernel without BTF tells nothing.

use super::super::beside::Extra;
use super::super::{CLOSE, Sort, alike, filter, object};
use super::sort_of;
use crate::files::{Collect, HeldFile, OpenFile};
use crate::{Error, Result, parallel};
use cryonaut_image::records::InetSkEntry;
use cryonaut_kernel::proc::Task;
use cryonaut_kernel::sys::socket_inside::{self, Chooser, Inside, Key};
use cryonaut_kernel::sys::{socket, socket_glance};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

/// A key by which the packets of TCP are signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signing {
    peer: IpAddr,
    bits: u8,
    /// Hexadecimal.
    key: String,
}

/// Whether it is looked into, and whether as one of TCP.
fn sort(sort: Option<Sort>) -> Option<bool> {
    let sort = sort.filter(|sort| matches!(sort.family, libc::AF_INET | libc::AF_INET6))?;
    Some(sort.is_tcp())
}

/// If a process has a socket, another thread gets ready what takes longest, while nobody stands still. Whether it has.
pub fn get_ready(pid: i32) -> bool {
    let task = crate::freeze::pid_of(pid).ok().and_then(|pid| Task::open(pid).ok());
    let Some(task) = task else { return false };
    let many = task.fd_count().unwrap_or(0) >= alike::MANY;
    let found = task.find_fd(|fd| super::peers::inode_of_socket(&task, fd).is_some());
    let found = found.is_ok_and(|found| found.is_some());
    if found {
        parallel::aside(if many { socket_glance::prepare } else { socket_inside::prepare });
    }
    found
}

/// Looks into some sockets, for when their turn has come.
pub fn look(cx: &mut Collect<'_>, files: &[HeldFile]) {
    // Only those of TCP are known by now.
    let which = |file: &&HeldFile| {
        file.is_socket() && file.asked().glance().is_none() && !cx.sockets.inside.contains_key(&file.inode())
    };
    let sort_of = |file: &HeldFile| file.asked().sort(file.socket()).ok();
    let sockets: Vec<(&HeldFile, bool)> =
        files.iter().filter(which).filter_map(|file| Some((file, sort(sort_of(file))?))).collect();
    if sockets.is_empty() {
        return;
    }
    let asked: Vec<(BorrowedFd<'_>, bool)> = sockets.iter().map(|(file, tcp)| (file.socket(), *tcp)).collect();
    match socket_inside::of(&asked) {
        Ok(all) => cx.sockets.inside.extend(sockets.iter().map(|(file, _)| file.inode()).zip(all)),
        Err(e) => tracing::debug!("what no option tells of sockets is not known: {e}"),
    }
}

/// What is in a socket; `None` where that is not told.
pub fn of(cx: &mut Collect<'_>, file: &OpenFile<'_>, of: Sort) -> Result<Option<Inside>> {
    if let Some(known) = cx.sockets.inside.get(&file.stat.st_ino) {
        return Ok(Some(known.clone()));
    }
    let tcp = sort(Some(of)).unwrap_or(false);
    let told = match file.asked.glance() {
        Some(glance) => socket_inside::seen(glance, tcp).map(Some),
        None => socket_inside::of(&[(file.file, tcp)]).map(|mut one| one.pop()),
    };
    match told {
        Ok(inside) => Ok(inside),
        Err(Errno::NOENT | Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(Error::kernel(file.object(), "look at what no option tells of it", errno)),
    }
}

/// Writes down what is carried of it.
pub fn collect(file: &OpenFile<'_>, inside: &Inside, extra: &mut Extra) -> Result<()> {
    let refuse = |reason: &str| Err(Error::unsupported(file.object(), reason, CLOSE));
    if inside.policies {
        return refuse("it has IPsec policies of its own (IP_XFRM_POLICY), which cannot be carried");
    }
    match &inside.chooser {
        None => {}
        Some(Chooser::Classic(program)) => extra.chooser.clone_from(program),
        Some(Chooser::Extended) => {
            return refuse("a program of eBPF chooses among those that share its port (SO_ATTACH_REUSEPORT_EBPF)");
        }
    }
    if inside.keys.iter().any(|key| key.device != 0) {
        return refuse("it has a key of TCP-MD5 for one network device alone");
    }
    let key = |key: &Key| Signing { peer: key.peer, bits: key.bits, key: crate::hexadecimal::encode(&key.key) };
    extra.keys = inside.keys.iter().map(key).collect();
    Ok(())
}

/// Lets a program choose among those that share its port, if one did.
pub fn build_chooser(socket: BorrowedFd<'_>, record: &InetSkEntry, chooser: &[u64]) -> Result<()> {
    if chooser.is_empty() {
        return Ok(());
    }
    let program: Vec<libc::sock_filter> = chooser.iter().copied().map(filter::instruction).collect();
    socket::attach_filter_for(socket, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
        .map_err(|e| Error::kernel(object(record.id, sort_of(record)), "attach the program that chooses it", e))
}

/// Has its packets signed, if they were.
pub fn build_keys(socket: BorrowedFd<'_>, record: &InetSkEntry, keys: &[Signing]) -> Result<()> {
    for signing in keys {
        let bad = || Error::bad_image("cryonaut-sockets.json", "a key is no text of digits");
        let key = crate::hexadecimal::decode(&signing.key).ok_or_else(bad)?;
        socket::set_md5_key(socket, &Key { peer: signing.peer, bits: signing.bits, device: 0, key })
            .map_err(|e| Error::kernel(object(record.id, sort_of(record)), "set its key (TCP_MD5SIG_EXT)", e))?;
    }
    Ok(())
}
