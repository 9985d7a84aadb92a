//! The XSAVE area in its standard layout (Intel SDM vol. 1, ch. 13), to and
//! from the record, which knows the state component by component.

use crate::{Error, Object, Result};
use cryonaut_image::records::{UserX86FpregsEntry, UserX86XsaveEntry};
use std::sync::OnceLock;

const HEADER: usize = 512;
const LEGACY_END: usize = 576;

/// State components (bit numbers of XCR0).
const YMM: u32 = 2;
const BNDREGS: u32 = 3;
const BNDCSR: u32 = 4;
const OPMASK: u32 = 5;
const ZMM_HI256: u32 = 6;
const HI16_ZMM: u32 = 7;
const PKRU: u32 = 9;

/// Components that the record can hold; bits 0 and 1 are x87 and SSE.
const KNOWN: u64 =
    0b11 | 1 << YMM | 1 << BNDREGS | 1 << BNDCSR | 1 << OPMASK | 1 << ZMM_HI256 | 1 << HI16_ZMM | 1 << PKRU;

/// Where a component stands in the area: offset and size in bytes (CPUID leaf
/// 0xD); `None` if this processor lacks it. Asked once: under a hypervisor the
/// instruction leaves the guest.
fn component(bit: u32) -> Option<(usize, usize)> {
    static LAYOUT: OnceLock<[(usize, usize); 1 + PKRU as usize]> = OnceLock::new();
    let layout = LAYOUT.get_or_init(|| {
        std::array::from_fn(|bit| {
            let leaf = std::arch::x86_64::__cpuid_count(0xd, bit as u32);
            (leaf.ebx as usize, leaf.eax as usize)
        })
    });
    layout.get(bit as usize).copied().filter(|(_, len)| *len != 0)
}

fn u32s(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap_or_default())).collect()
}

fn u64s(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap_or_default())).collect()
}

fn u16_at(area: &[u8], at: usize) -> u32 {
    u32::from(u16::from_le_bytes([area[at], area[at + 1]]))
}

/// The record of an area that ptrace gave.
pub fn record(tid: i32, area: &[u8]) -> Result<UserX86FpregsEntry> {
    if area.len() < LEGACY_END {
        return Err(Error::unsupported(Object::Thread(tid), "this processor has no XSAVE area", ""));
    }
    let present = u64s(&area[HEADER..HEADER + 8])[0];
    let unknown = present & !KNOWN;
    if unknown != 0 {
        let reason = format!("it uses processor state that the image cannot hold (XSAVE components {unknown:#x})");
        return Err(Error::unsupported(Object::Thread(tid), reason, "AMX tiles must be released before a checkpoint"));
    }
    let part = |bit: u32| {
        let (at, len) = component(bit).filter(|_| present & 1 << bit != 0)?;
        area.get(at..at + len)
    };
    Ok(UserX86FpregsEntry {
        cwd: u16_at(area, 0),
        swd: u16_at(area, 2),
        twd: u16_at(area, 4),
        fop: u16_at(area, 6),
        rip: u64s(&area[8..16])[0],
        rdp: u64s(&area[16..24])[0],
        mxcsr: u32s(&area[24..28])[0],
        mxcsr_mask: u32s(&area[28..32])[0],
        st_space: u32s(&area[32..160]),
        xmm_space: u32s(&area[160..416]),
        padding: Vec::new(),
        xsave: Some(UserX86XsaveEntry {
            xstate_bv: present,
            // The one component that readers expect to be there even when in its initial state.
            ymmh_space: part(YMM).map_or_else(|| vec![0; 64], u32s),
            bndreg_state: part(BNDREGS).map(u64s).unwrap_or_default(),
            bndcsr_state: part(BNDCSR).map(u64s).unwrap_or_default(),
            opmask_reg: part(OPMASK).map(u64s).unwrap_or_default(),
            zmm_upper: part(ZMM_HI256).map(u64s).unwrap_or_default(),
            hi16_zmm: part(HI16_ZMM).map(u64s).unwrap_or_default(),
            pkru: part(PKRU).map(u32s).unwrap_or_default(),
            cet: None,
        }),
    })
}

/// The area that a record describes, in the layout of this processor.
/// `current` is any area of this machine: its software bytes say which
/// components the kernel takes.
pub fn area(tid: i32, fp: &UserX86FpregsEntry, current: &[u8]) -> Result<Vec<u8>> {
    if current.len() < LEGACY_END {
        return Err(Error::unsupported(Object::Thread(tid), "this processor has no XSAVE area", ""));
    }
    let mut out = vec![0; current.len()];
    out[464..512].copy_from_slice(&current[464..512]);
    let supported = u64s(&current[464..472])[0];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(slot) = out.get_mut(at..at + bytes.len()) {
            slot.copy_from_slice(bytes);
        }
    };
    for (at, v) in [(0, fp.cwd), (2, fp.swd), (4, fp.twd), (6, fp.fop)] {
        put(at, &(v as u16).to_le_bytes());
    }
    put(8, &fp.rip.to_le_bytes());
    put(16, &fp.rdp.to_le_bytes());
    put(24, &fp.mxcsr.to_le_bytes());
    // The mask belongs to the processor, not to the thread.
    put(28, &current[28..32]);
    put(32, &le32(&fp.st_space, 32));
    put(160, &le32(&fp.xmm_space, 64));
    let mut present = 0b11;
    if let Some(x) = &fp.xsave {
        present = x.xstate_bv;
        if present & !supported != 0 {
            let reason = format!(
                "it needs processor features that this machine lacks (XSAVE components {:#x})",
                present & !supported
            );
            return Err(Error::unsupported(
                Object::Thread(tid),
                reason,
                "restore on a machine with the same processor features",
            ));
        }
        let parts = [
            (YMM, le32(&x.ymmh_space, x.ymmh_space.len())),
            (BNDREGS, le64(&x.bndreg_state)),
            (BNDCSR, le64(&x.bndcsr_state)),
            (OPMASK, le64(&x.opmask_reg)),
            (ZMM_HI256, le64(&x.zmm_upper)),
            (HI16_ZMM, le64(&x.hi16_zmm)),
            (PKRU, le32(&x.pkru, x.pkru.len())),
        ];
        for (bit, bytes) in parts {
            if let Some((at, len)) = component(bit).filter(|_| present & 1 << bit != 0) {
                put(at, &bytes[..bytes.len().min(len)]);
            }
        }
    }
    put(HEADER, &present.to_le_bytes());
    Ok(out)
}

fn le32(words: &[u32], at_most: usize) -> Vec<u8> {
    words.iter().take(at_most).flat_map(|w| w.to_le_bytes()).collect()
}

fn le64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}
