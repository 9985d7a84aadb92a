//! Rings of TPACKET_V3: of blocks instead of frames, which are opened one after the other and get a number each, for ever.
//! The kernel fills the open one, and hands it over when it is full or a time has passed. When the program still has the
//! next one then, the ring stands still (is frozen) until it has given that back.
//!
//! What the open block holds is handed over in the image, as it would have been a moment later. A new ring is brought to
//! the block that is to be open then, with frames that go through the loopback device; the last of them leaves its block
//! when the time has passed, so that nothing of ours is in the open one. Far numbers would need many frames: a ring that
//! has gone round that often begins with small ones again, which few programs look at, and says so.

use super::CLOSE;
use super::ring::Feeder;
use crate::files::OpenFile;
use crate::{Error, Result};
use cryonaut_kernel::sys::packet::{Blocks, Mapped, Ring};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// `struct tpacket_block_desc` (linux/if_packet.h): its members of four bytes, its number, the time of its last packet.
const STATUS: usize = 8;
const PACKETS: usize = 12;
const FIRST: usize = 16;
const NUMBER: usize = 24;
const LAST_TIME: usize = 40;
const HEADER: usize = 48;
/// `tp_sec` and `tp_nsec` of `struct tpacket3_hdr`, which begins with the distance of the next one.
const TIME: std::ops::Range<usize> = 4..12;
/// TP_STATUS_USER, TP_STATUS_BLK_TMO.
const USER: u32 = 1;
const TIME_IS_UP: u32 = 1 << 5;
/// Longest time after which a block is handed over: a restore takes as long, and twice as long at times.
const MOST_MS: u32 = 10_000;
/// Bytes of frames by which a ring is brought to the very number that it had.
const MOST_BYTES: u64 = 256 << 20;
/// Bytes of a frame that is to fill a block: less than the loopback device takes; and of one that is just to be in it.
const LARGE: usize = 60_000;
const SMALL: usize = 60;
/// Where that device takes less than usual.
const MODEST: usize = 1000;
/// What stands before a frame in its block, at most, but for what the program has asked for.
const BEFORE: usize = 256;
/// How long the kernel may take beyond the time of a block.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where the kernel stands in such a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Stand {
    /// The number of the open block, or that which the next one gets; the first of all is 1.
    number: u64,
    /// None is open: the program has not given the next one back.
    is_frozen: bool,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

/// Whether a new ring can be brought to where it stood in a bearable time.
pub fn can_be_brought(ring: &Ring) -> bool {
    ring.retire_ms <= MOST_MS
}

/// A ring that cannot be brought back.
pub fn refuse(file: &OpenFile<'_>, ring: &Ring) -> Result<()> {
    if !can_be_brought(ring) {
        let reason =
            format!("a block of its ring is handed over after {} ms, for which a restore would wait", ring.retire_ms);
        return Err(Error::unsupported(file.object(), reason, CLOSE));
    }
    Ok(())
}

/// Hands over what the open block has, in a copy of the ring. `None` if the ring is not as the kernel leaves it.
pub fn hand_over(bytes: &mut [u8], ring: &Ring, stands: &Blocks) -> Option<Stand> {
    let start = |block: u32| block as usize * ring.block_size as usize;
    let number = stands.next_number;
    let own = start(stands.active);
    let has = |bytes: &[u8], at: usize| word(bytes, at + STATUS).map(|status| status & USER != 0);
    if stands.is_frozen {
        // It may have been given back, and not been opened again yet.
        return Some(Stand { number, is_frozen: has(bytes, own)? });
    }
    let packets = word(bytes, own + PACKETS)?;
    if packets == 0 {
        return Some(Stand { number: number.checked_sub(1)?, is_frozen: false });
    }
    let end = own + ring.block_size as usize;
    let mut last = own + word(bytes, own + FIRST)? as usize;
    for _ in 1..packets {
        let further = word(bytes, last).filter(|further| *further > 0)? as usize;
        last = last.checked_add(further).filter(|at| at + TIME.end <= end)?;
    }
    let time = bytes.get(last + TIME.start..last + TIME.end)?.to_vec();
    bytes.get_mut(last..last + 4)?.fill(0);
    bytes.get_mut(own + LAST_TIME..own + HEADER)?.copy_from_slice(&time);
    bytes.get_mut(own + STATUS..own + PACKETS)?.copy_from_slice(&(USER | TIME_IS_UP).to_ne_bytes());
    let next = start((stands.active + 1) % ring.blocks);
    Some(Stand { number, is_frozen: has(bytes, next)? })
}

/// The header of the open block, which the kernel goes on with.
#[derive(Debug)]
pub struct Open {
    at: usize,
    header: Vec<u8>,
}

impl Open {
    /// Writes it again.
    pub fn write(&self, rings: &Mapped) -> bool {
        rings.write(self.at, &self.header)
    }
}

/// A ring that is brought forward.
struct Forward<'a> {
    rings: &'a Mapped,
    ring: &'a Ring,
    /// A block that we do not give back.
    kept: Option<u64>,
}

/// The block that was opened last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Newest {
    number: u64,
    packets: u32,
    is_closed: bool,
}

impl Forward<'_> {
    fn start(&self, number: u64) -> usize {
        ((number - 1) % u64::from(self.ring.blocks)) as usize * self.ring.block_size as usize
    }

    fn newest(&self) -> Newest {
        let header = |block| self.rings.read_at(block * self.ring.block_size as usize, HEADER);
        let number = |header: &Vec<u8>| header.get(NUMBER..)?.first_chunk().map(|number| u64::from_ne_bytes(*number));
        let all = (0..self.ring.blocks as usize).filter_map(header);
        let newest = all.filter_map(|header| Some((number(&header)?, header))).max_by_key(|(number, _)| *number);
        let (number, header) = newest.unwrap_or_default();
        let word = |at| word(&header, at).unwrap_or_default();
        Newest { number, packets: word(PACKETS), is_closed: word(STATUS) & USER != 0 }
    }

    /// Gives back what the kernel has handed over, but for what is kept, and but for a block that is the last.
    fn give_back(&self, newest: u64) {
        for number in newest.saturating_sub(self.ring.blocks.into()) + 1..=newest {
            if number > 0 && self.kept.is_none_or(|kept| self.start(kept) != self.start(number)) {
                let at = self.start(number) + STATUS;
                if self.rings.read_at(at, 4).and_then(|status| word(&status, 0)).is_some_and(|s| s & USER != 0) {
                    self.rings.write(at, &0u32.to_ne_bytes());
                }
            }
        }
    }
}

/// The number that a new ring is brought to.
fn goal(ring: &Ring, stand: &Stand) -> std::result::Result<u64, Errno> {
    let (blocks, before) = (u64::from(ring.blocks), stand.number.checked_sub(1).ok_or(Errno::INVAL)?);
    if blocks == 0 {
        return Err(Errno::INVAL);
    }
    if before.saturating_mul(ring.block_size.into()) <= MOST_BYTES {
        return Ok(stand.number);
    }
    tracing::warn!("the blocks of a packet ring (TPACKET_V3) are numbered from the beginning again, after {before}");
    let near = before % blocks + 1;
    Ok(if stand.is_frozen && near == 1 { near + blocks } else { near })
}

/// Brings the ring of a new socket to where the old one stood. What there is of its open block must be kept.
pub fn bring(
    socket: BorrowedFd<'_>,
    rings: &Mapped,
    ring: &Ring,
    stand: &Stand,
    reserve: u32,
) -> std::result::Result<Option<Open>, Errno> {
    let goal = goal(ring, stand)?;
    let mut forward = Forward { rings, ring, kept: None };
    if goal > 1 {
        let feeder = Feeder::new(socket)?;
        let reached = go(&mut forward, &feeder, goal, stand.is_frozen, reserve);
        feeder.end()?;
        reached?;
    }
    if stand.is_frozen {
        return Ok(None);
    }
    if forward.newest() != (Newest { number: goal, packets: 0, is_closed: false }) {
        return Err(Errno::BUSY);
    }
    let at = forward.start(goal);
    Ok(Some(Open { at, header: rings.read_at(at, HEADER).ok_or(Errno::INVAL)? }))
}

fn go(
    forward: &mut Forward<'_>,
    feeder: &Feeder<'_>,
    goal: u64,
    is_frozen: bool,
    reserve: u32,
) -> std::result::Result<(), Errno> {
    let (ring, last) = (forward.ring, goal - 1);
    let around = BEFORE + HEADER + ring.private as usize + reserve as usize;
    let mut large = (ring.block_size as usize).saturating_sub(around).clamp(SMALL, LARGE);
    // Blocks that are left because they are full; others are when the time has passed, and what follows is empty.
    let quickly = last.saturating_sub(u64::from(is_frozen));
    let limit = PATIENCE + Duration::from_millis(u64::from(ring.retire_ms) * 4);
    let mut seen = (forward.newest(), Instant::now());
    let mut sent_to = 0;
    loop {
        let newest = forward.newest();
        if newest != seen.0 {
            seen = (newest, Instant::now());
        } else if seen.1.elapsed() > limit {
            return Err(Errno::NOBUFS);
        }
        let is_there = if is_frozen { newest.number == last && newest.is_closed } else { newest.number == goal };
        if is_there {
            return Ok(());
        }
        if newest.number >= goal {
            return Err(Errno::BUSY);
        }
        forward.give_back(newest.number);
        if newest.number < quickly {
            match feeder.send(large) {
                Err(Errno::MSGSIZE) if large > MODEST => large = MODEST,
                sent => sent?,
            }
        } else if newest.packets == 0 && sent_to != newest.number {
            if is_frozen && newest.number == last {
                forward.kept = Some(goal);
                forward.rings.write(forward.start(goal) + STATUS, &USER.to_ne_bytes());
            }
            feeder.send(SMALL)?;
            sent_to = newest.number;
        } else {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: Ring =
        Ring { block_size: 256, blocks: 2, frame_size: 0, frames: 0, retire_ms: 1, private: 0, features: 0 };

    fn put(bytes: &mut [u8], at: usize, value: u32) {
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    #[test]
    fn what_is_in_the_open_block_is_handed_over() {
        let mut bytes = vec![0; 512];
        put(&mut bytes, 256 + PACKETS, 2);
        put(&mut bytes, 256 + FIRST, 48);
        put(&mut bytes, 256 + 48, 64);
        put(&mut bytes, 256 + 112, 64);
        put(&mut bytes, 256 + 112 + TIME.start, 4711);
        let stands = Blocks { active: 1, next_number: 7, is_frozen: false, at: 0 };
        assert_eq!(hand_over(&mut bytes, &RING, &stands), Some(Stand { number: 7, is_frozen: false }));
        let at = |at| word(&bytes, 256 + at).unwrap();
        assert_eq!((at(STATUS), at(48), at(112), at(LAST_TIME)), (USER | TIME_IS_UP, 64, 0, 4711));
        put(&mut bytes, STATUS, USER);
        assert_eq!(hand_over(&mut bytes.clone(), &RING, &stands), Some(Stand { number: 7, is_frozen: true }));
        put(&mut bytes, 256 + PACKETS, 0);
        assert_eq!(hand_over(&mut bytes, &RING, &stands), Some(Stand { number: 6, is_frozen: false }));
        put(&mut bytes, 256 + PACKETS, 1000);
        assert_eq!(hand_over(&mut bytes, &RING, &stands), None);
    }

    #[test]
    fn far_numbers_begin_anew_at_the_same_block() {
        let stand = |number, is_frozen| Stand { number, is_frozen };
        let ring = Ring { block_size: 1 << 20, blocks: 4, ..RING };
        assert_eq!(goal(&ring, &stand(200, false)), Ok(200));
        assert_eq!(goal(&ring, &stand(4003, false)), Ok(3));
        assert_eq!(goal(&ring, &stand(4001, false)), Ok(1));
        assert_eq!(goal(&ring, &stand(4001, true)), Ok(5));
        assert_eq!(goal(&ring, &stand(0, true)), Err(Errno::INVAL));
    }
}
