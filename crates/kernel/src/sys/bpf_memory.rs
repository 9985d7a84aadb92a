//! The kernel's memory by addresses, read by a program of its own ([`bpf_iter`](super::bpf_iter)) that is loaded once:
//! what it is to read stands in a map.

use super::bpf::{Map, MapSpec};
use super::bpf_insn::{Insn, add, call, load64, mov, mov_value, store_zero};
use super::bpf_iter::{BLOCK, CALL_PROBE_READ_KERNEL, CALL_SEQ_WRITE, Visit, load, program, run};
use super::btf::Btf;
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Pieces of memory that one run tells: with [`BLOCK`], less than a run may tell in all, 32 KiB.
const PIECES: usize = 120;
/// A piece in the map: its address and its length.
const ENTRY: usize = 16;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
/// `src` of a load of 64 bits whose value is the address of a map's value (BPF_PSEUDO_MAP_VALUE).
const MAP_VALUE: u8 = 2;

/// The program, with its map.
#[derive(Debug)]
struct Quoter {
    program: OwnedFd,
    map: OwnedFd,
}

impl Quoter {
    fn load(btf: &Btf) -> Result<Quoter, Errno> {
        let spec = MapSpec {
            map_type: BPF_MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: (PIECES * ENTRY) as u32,
            max_entries: 1,
            ..MapSpec::default()
        };
        let map = Map::create(&spec)?.into_fd();
        let visit = Visit::Task(0);
        Ok(Quoter { program: load(btf, visit.target(), &program(visit, &quote(map.as_raw_fd())))?, map })
    }

    /// The words of some pieces.
    fn tell(&self, tid: i32, pieces: &[(u64, usize)]) -> Result<Vec<u64>, Errno> {
        let mut value = Vec::with_capacity(PIECES * ENTRY);
        for (at, len) in pieces {
            value.extend(at.to_ne_bytes());
            value.extend((*len as u64).to_ne_bytes());
        }
        value.resize(PIECES * ENTRY, 0);
        Map::from_fd(self.map.try_clone().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?)?.update(
            &0u32.to_ne_bytes(),
            &value,
            0,
        )?;
        run(&self.program, Visit::Task(tid))
    }
}

/// Tells the pieces of a map, up to the first without a length.
fn quote(map: i32) -> Vec<Insn> {
    let place = -(BLOCK as i16);
    let mut body = vec![
        Insn { code: 0x18, dst: 7, src: MAP_VALUE, off: 0, imm: map },
        Insn { code: 0, dst: 0, src: 0, off: 0, imm: 0 },
    ];
    body.extend((0..BLOCK as i16 / 8).map(|word| store_zero(10, place + 8 * word)));
    const STEP: usize = 13;
    for (entry, left) in (0..PIECES).zip((1..=PIECES).rev()) {
        let at = (entry * ENTRY) as i16;
        let end = |behind: usize| (left * STEP - behind) as i16;
        body.extend([
            load64(6, 7, at + 8),
            // None, or more than there is room for.
            Insn { code: 0x15, dst: 6, src: 0, off: end(2), imm: 0 },
            Insn { code: 0x25, dst: 6, src: 0, off: end(3), imm: BLOCK as i32 },
            load64(3, 7, at),
            mov(1, 10),
            add(1, place.into()),
            mov(2, 6),
            call(CALL_PROBE_READ_KERNEL),
            mov(1, 9),
            mov(2, 10),
            add(2, place.into()),
            mov(3, 6),
            call(CALL_SEQ_WRITE),
        ]);
    }
    body.push(mov_value(0, 0));
    body
}

/// Words of the kernel's memory: for each address as many as are asked for there; zeros where nothing can be read. `tid`
/// is any task. The errors are those of [`bpf_iter`](super::bpf_iter).
pub fn words(btf: &Btf, tid: i32, places: &[(u64, usize)]) -> Result<Vec<Vec<u64>>, Errno> {
    static QUOTER: OnceLock<Result<Mutex<Quoter>, Errno>> = OnceLock::new();
    let quoter = QUOTER.get_or_init(|| Quoter::load(btf).map(Mutex::new)).as_ref().map_err(|e| *e)?;
    let quoter = quoter.lock().unwrap_or_else(PoisonError::into_inner);
    let mut pieces = Vec::new();
    for &(at, words) in places {
        pieces.extend((0..8 * words).step_by(BLOCK).map(|done| (at + done as u64, BLOCK.min(8 * words - done))));
    }
    let mut all = Vec::new();
    for some in pieces.chunks(PIECES) {
        let words = quoter.tell(tid, some)?;
        if 8 * words.len() != some.iter().map(|piece| piece.1).sum::<usize>() {
            return Err(Errno::BADF);
        }
        all.extend(words);
    }
    let mut rest = all.as_slice();
    let mut take = |words: &(u64, usize)| {
        let (some, behind) = rest.split_at(words.1);
        rest = behind;
        some.to_vec()
    };
    Ok(places.iter().map(&mut take).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_zero() {
        let Ok(btf) = Btf::vmlinux() else { return };
        match words(&btf, std::process::id() as i32, &[(0, 40), (8, 0), (16, 1)]) {
            Ok(all) => assert_eq!(all, [vec![0; 40], vec![], vec![0]]),
            Err(errno) => assert_eq!(errno, Errno::PERM),
        }
    }
}
