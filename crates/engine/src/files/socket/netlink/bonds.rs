//! What the kernel keeps for a netlink socket, and gives up when that is closed:
//! queues and logs of packets, tables of nftables, reports of processes. It is
//! known by the socket's port.

use crate::files::OpenFile;
use crate::files::socket::CLOSE;
use crate::{Error, Object, Result};
use cryonaut_image::records::NetlinkSkEntry;
use cryonaut_kernel::sys::netlink;
use rustix::io::Errno;

const CONNECTOR: u32 = 11;
const NETFILTER: u32 = 12;
/// CN_IDX_PROC (linux/connector.h): the group of the reports of processes that begin and end.
const PROCESSES: u32 = 1;

/// Refuses a socket that has such a thing.
pub fn refuse(file: &OpenFile<'_>, record: &NetlinkSkEntry) -> Result<()> {
    let bond = match record.protocol {
        NETFILTER if record.portid != 0 => of_netfilter(file, record.portid)?,
        CONNECTOR if record.groups.first().is_some_and(|word| word & PROCESSES != 0) => {
            Some("the kernel reports to it what processes do (CN_PROC), and does not tell what it was asked for".into())
        }
        _ => None,
    };
    bond.map_or(Ok(()), |bond: String| Err(Error::unsupported(file.object(), bond, CLOSE)))
}

fn of_netfilter(file: &OpenFile<'_>, port: u32) -> Result<Option<String>> {
    for (list, what) in [
        ("/proc/thread-self/net/netfilter/nfnetlink_queue", "it decides about the packets of queue"),
        ("/proc/thread-self/net/netfilter/nfnetlink_log", "it gets the packets of the log group"),
    ] {
        match std::fs::read_to_string(list) {
            Ok(text) => {
                if let Some(number) = text.lines().find_map(|line| of_port(line, port)) {
                    return Ok(Some(format!("{what} {number}, which the kernel ends with it")));
                }
            }
            // A kernel without it.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::kernel(Object::Path(list.into()), "read it", crate::error::errno_of(&e))),
        }
    }
    let tables = match netlink::owned_tables() {
        // A kernel without nftables (EINVAL: no such part of nfnetlink).
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT) => Vec::new(),
        tables => tables.map_err(|e| Error::kernel(file.object(), "ask whether tables of nftables belong to it", e))?,
    };
    let owned = tables.into_iter().find(|(_, owner)| *owner == port);
    Ok(owned.map(|(name, _)| format!("the table {name} of nftables belongs to it, and ends with it")))
}

/// The number of a queue or group, in a line that has it and the port of its socket first.
fn of_port(line: &str, port: u32) -> Option<u32> {
    let mut words = line.split_whitespace().map_while(|word| word.parse().ok());
    let number = words.next()?;
    (words.next() == Some(port)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_found_by_its_port() {
        let line = "    7   4711     0 2 65531     0     0        0  1";
        assert_eq!((of_port(line, 4711), of_port(line, 7)), (Some(7), None));
    }
}
