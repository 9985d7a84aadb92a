//! Memory that the kernel shares with a program, as it stands in our records:
//! the lines that are not zero, in hexadecimal, by offset.

use crate::hexadecimal;
use std::collections::BTreeMap;

/// Bytes that are left out together when they are zero.
const LINE: usize = 64;

/// Runs of lines by their offset.
pub type Lines = BTreeMap<usize, String>;

/// The lines that are not zero, joined where one follows the other.
pub fn of(bytes: &[u8]) -> Lines {
    let mut out = Lines::new();
    for (index, line) in bytes.chunks(LINE).enumerate().filter(|(_, line)| line.iter().any(|byte| *byte != 0)) {
        let hex = hexadecimal::encode(line);
        let at = index * LINE;
        match out.last_entry() {
            Some(mut last) if last.key() + last.get().len() / 2 == at => last.get_mut().push_str(&hex),
            _ => drop(out.insert(at, hex)),
        }
    }
    out
}

/// The bytes of a memory of this length. `None` if the lines reach beyond it, or are none.
pub fn bytes_of(lines: &Lines, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    for (&at, hex) in lines {
        let room = bytes.get_mut(at..at.checked_add(hex.len() / 2)?)?;
        for (byte, pair) in room.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_zeros_take_no_room() {
        let mut bytes = vec![0; 1000];
        bytes[63] = 1;
        bytes[64] = 2;
        bytes[999] = 3;
        let lines = of(&bytes);
        assert_eq!(lines.keys().copied().collect::<Vec<_>>(), [0, 960]);
        assert_eq!(bytes_of(&lines, 1000), Some(bytes));
        assert_eq!(bytes_of(&lines, 999), None);
    }
}
