//! Classic filters of sockets (SO_ATTACH_FILTER). The record has one number of
//! 64 bits for each instruction: from its upper end code, jt, jf and k.

use crate::{Error, Object, Result};
use cryonaut_kernel::sys::socket;
use libc::sock_filter;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// Reads the filter; empty if there is none. EACCES for one of eBPF.
pub fn read(socket: BorrowedFd<'_>) -> std::result::Result<Vec<u64>, Errno> {
    Ok(socket::get_filter(socket)?.iter().map(number).collect())
}

/// The same, which nobody has asked for yet.
pub fn collect(socket: BorrowedFd<'_>, object: &Object) -> Result<Vec<u64>> {
    match read(socket) {
        Ok(filter) => Ok(filter),
        Err(Errno::ACCESS) => Err(Error::unsupported(
            object.clone(),
            "it has a filter of eBPF, which the kernel does not tell",
            "let the program detach it (SO_DETACH_BPF) before the checkpoint, or use a classic filter",
        )),
        Err(e) => Err(Error::kernel(object.clone(), "read its filter", e)),
    }
}

/// Attaches it.
pub fn build(socket: BorrowedFd<'_>, filter: &[u64], object: impl Fn() -> Object) -> Result<()> {
    if filter.is_empty() {
        return Ok(());
    }
    let filter: Vec<sock_filter> = filter.iter().copied().map(instruction).collect();
    socket::attach_filter(socket, &filter).map_err(|e| Error::kernel(object(), "attach its filter", e))
}

fn number(i: &sock_filter) -> u64 {
    u64::from(i.code) << 48 | u64::from(i.jt) << 40 | u64::from(i.jf) << 32 | u64::from(i.k)
}

/// An instruction of the record.
pub fn instruction(number: u64) -> sock_filter {
    sock_filter { code: (number >> 48) as u16, jt: (number >> 40) as u8, jf: (number >> 32) as u8, k: number as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_one_number() {
        let one = sock_filter { code: 0x15, jt: 2, jf: 3, k: 0x0806_0102 };
        assert_eq!(number(&one), 0x0015_0203_0806_0102);
        let again = instruction(number(&one));
        assert_eq!((again.code, again.jt, again.jf, again.k), (one.code, one.jt, one.jf, one.k));
    }
}
