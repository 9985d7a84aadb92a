//! Leading the functions of another kernel's vdso to those of this one.
//!
//! A program keeps the addresses of the functions that it found when it was
//! started. Where this kernel's vdso is another, the program's stays in its
//! place as ordinary memory, and the first instructions of each function
//! become a jump to the function of the same name here. One that this kernel
//! lacks becomes the system call that it stood for.

use crate::arch::vdso::{by_system_call, jump};
use std::collections::BTreeMap;

/// Symbols that are looked at, at most: a vdso has about twenty.
const MAX_SYMBOLS: usize = 1024;
/// Bytes of a program header, a dynamic entry and a symbol (elf(5)).
const PROGRAM_HEADER: usize = 56;
const DYNAMIC: usize = 16;
const SYMBOL: usize = 24;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const STT_FUNC: u8 = 2;

/// Why functions cannot be led elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stuck {
    /// The bytes are no ELF image with symbols.
    #[error("the vdso has no symbols that could be read")]
    NoSymbols,
    /// There is nothing to lead a function to.
    #[error("this kernel's vdso has no {0}")]
    Missing(String),
    /// A function is shorter than what leads elsewhere.
    #[error("the vdso's {0} is too short to be led to this kernel's")]
    TooShort(String),
}

/// A function: where in the image it begins, and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Function {
    offset: usize,
    len: usize,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// The functions of an image as it lies in memory, by name.
fn functions(image: &[u8]) -> Option<BTreeMap<Vec<u8>, Function>> {
    // ELFCLASS64, ELFDATA2LSB.
    if image.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let headers = usize::try_from(u64_at(image, 32)?).ok().filter(|at| *at < image.len())?;
    let mut bias = None;
    let mut dynamic = None;
    for i in 0..usize::from(u16_at(image, 56)?) {
        let header = headers.checked_add(i * PROGRAM_HEADER)?;
        let (offset, address, len) =
            (u64_at(image, header + 8)?, u64_at(image, header + 16)?, u64_at(image, header + 32)?);
        match u32_at(image, header)? {
            PT_LOAD if bias.is_none() => bias = Some(address.wrapping_sub(offset)),
            PT_DYNAMIC => dynamic = Some((usize::try_from(offset).ok()?, usize::try_from(len).ok()? / DYNAMIC)),
            _ => {}
        }
    }
    let bias = bias?;
    let place = |address: u64| usize::try_from(address.wrapping_sub(bias)).ok().filter(|at| *at < image.len());
    let (at, count) = dynamic?;
    let tagged = |wanted: u64| {
        (0..count.min(MAX_SYMBOLS))
            .map(|i| at.saturating_add(i * DYNAMIC))
            .find(|entry| u64_at(image, *entry) == Some(wanted))
            .and_then(|entry| place(u64_at(image, entry.checked_add(8)?)?))
    };
    let (symbols, strings) = (tagged(DT_SYMTAB)?, tagged(DT_STRTAB)?);
    // The kernel's linker script puts the strings right behind the symbols (vdso-layout.lds.S).
    let mut out = BTreeMap::new();
    for i in 0..(strings.checked_sub(symbols)? / SYMBOL).min(MAX_SYMBOLS) {
        let symbol = symbols + i * SYMBOL;
        let (info, section) = (*image.get(symbol + 4)?, u16_at(image, symbol + 6)?);
        if info & 0xf != STT_FUNC || section == 0 {
            continue;
        }
        let name = strings.checked_add(u32_at(image, symbol)? as usize)?;
        let name = image.get(name..)?.split(|byte| *byte == 0).next()?;
        let (Some(offset), len) = (place(u64_at(image, symbol + 8)?), u64_at(image, symbol + 16)?) else { continue };
        out.insert(name.to_vec(), Function { offset, len: usize::try_from(len).ok()? });
    }
    (!out.is_empty()).then_some(out)
}

/// What the code of `old` becomes when this kernel's, `here`, stands at `base`.
pub fn redirect(old: &[u8], here: &[u8], base: u64) -> Result<Vec<u8>, Stuck> {
    let (theirs, ours) = functions(old).zip(functions(here)).ok_or(Stuck::NoSymbols)?;
    // One function has several names.
    let mut places: BTreeMap<usize, (usize, Vec<&[u8]>)> = BTreeMap::new();
    for (name, function) in &theirs {
        let place = places.entry(function.offset).or_insert((function.len, Vec::new()));
        place.1.push(name);
    }
    let mut out = old.to_vec();
    for (offset, (len, names)) in places {
        let called = || String::from_utf8_lossy(names[0]).into_owned();
        let there = names.iter().find_map(|name| ours.get(*name));
        let code = match there {
            Some(function) => jump(base + function.offset as u64),
            None => names.iter().find_map(|name| by_system_call(name)).ok_or_else(|| Stuck::Missing(called()))?,
        };
        let room = offset.checked_add(code.len()).filter(|_| code.len() <= len);
        let room = room.and_then(|end| out.get_mut(offset..end)).ok_or_else(|| Stuck::TooShort(called()))?;
        room.copy_from_slice(&code);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryonaut_kernel::proc::Task;

    /// This kernel's vdso, out of this process.
    fn own() -> Vec<u8> {
        let maps = Task::current().unwrap().maps().unwrap();
        let vdso = maps.iter().find(|v| v.special() == Some(b"vdso")).unwrap();
        let mut code = vec![0; (vdso.end - vdso.start) as usize];
        let pid = std::process::id() as i32;
        cryonaut_puppet::memory::read(pid, vdso.start, &mut code).unwrap();
        code
    }

    /// The image with another name for one of its functions.
    fn renamed(image: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
        let mut out = image.to_vec();
        while let Some(at) = out.windows(from.len()).position(|w| w == from) {
            out[at..at + from.len()].copy_from_slice(to);
        }
        out
    }

    #[test]
    fn every_function_leads_to_the_one_of_its_name() {
        let code = own();
        let all = functions(&code).unwrap();
        assert!(all.contains_key(&b"__vdso_clock_gettime"[..]), "{all:?}");
        let led = redirect(&code, &code, 0x7000_0000).unwrap();
        for function in all.values() {
            let jump = jump(0x7000_0000 + function.offset as u64);
            assert_eq!(led[function.offset..function.offset + jump.len()], jump);
        }
        assert_eq!(functions(&led), Some(all));
    }

    #[test]
    fn a_function_that_is_not_here_becomes_its_system_call() {
        let old = own();
        let here = renamed(&old, b"clock_gettime", b"clock_nothing");
        let led = redirect(&old, &here, 0x7000_0000).unwrap();
        let at = functions(&old).unwrap()[&b"__vdso_clock_gettime"[..]].offset;
        let call = by_system_call(b"__vdso_clock_gettime").unwrap();
        assert_eq!(led[at..at + call.len()], call);
        assert_eq!(redirect(&here, &old, 0).unwrap_err(), Stuck::Missing("__vdso_clock_nothing".into()));
    }

    #[test]
    fn what_is_no_vdso_is_refused() {
        let code = own();
        assert_eq!(redirect(b"", &code, 0), Err(Stuck::NoSymbols));
        for cut in (0..0x200).chain([0x440, 0x600]) {
            assert!(redirect(&code[..cut], &code, 0).is_err());
        }
        let mut endless = code.clone();
        endless[32..40].fill(0xff);
        assert_eq!(redirect(&endless, &code, 0), Err(Stuck::NoSymbols));
    }
}
