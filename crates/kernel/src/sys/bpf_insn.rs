//! Instructions of BPF (Documentation/bpf/standardization/instruction-set.rst), as programs for the kernel are put together
//! of them. Register 10 is the end of a program's stack.

/// One instruction (linux/bpf.h, struct bpf_insn).
#[derive(Clone, Copy)]
pub(super) struct Insn {
    pub code: u8,
    pub dst: u8,
    pub src: u8,
    pub off: i16,
    pub imm: i32,
}

impl Insn {
    /// As the kernel takes it.
    pub fn bytes(self) -> [u8; 8] {
        let (off, imm) = (self.off.to_le_bytes(), self.imm.to_le_bytes());
        [self.code, self.dst | self.src << 4, off[0], off[1], imm[0], imm[1], imm[2], imm[3]]
    }
}

pub(super) fn mov(dst: u8, src: u8) -> Insn {
    Insn { code: 0xbf, dst, src, off: 0, imm: 0 }
}

pub(super) fn mov_value(dst: u8, imm: i32) -> Insn {
    Insn { code: 0xb7, dst, src: 0, off: 0, imm }
}

pub(super) fn add(dst: u8, imm: i32) -> Insn {
    Insn { code: 0x07, dst, src: 0, off: 0, imm }
}

pub(super) fn add_register(dst: u8, src: u8) -> Insn {
    Insn { code: 0x0f, dst, src, off: 0, imm: 0 }
}

pub(super) fn shift_left(dst: u8, imm: i32) -> Insn {
    Insn { code: 0x67, dst, src: 0, off: 0, imm }
}

pub(super) fn shift_right(dst: u8, imm: i32) -> Insn {
    Insn { code: 0x77, dst, src: 0, off: 0, imm }
}

pub(super) fn load64(dst: u8, src: u8, off: i16) -> Insn {
    Insn { code: 0x79, dst, src, off, imm: 0 }
}

pub(super) fn load32(dst: u8, src: u8, off: i16) -> Insn {
    Insn { code: 0x61, dst, src, off, imm: 0 }
}

pub(super) fn store64(dst: u8, off: i16, src: u8) -> Insn {
    Insn { code: 0x7b, dst, src, off, imm: 0 }
}

pub(super) fn store_zero(dst: u8, off: i16) -> Insn {
    store_value(dst, off, 0)
}

/// Stores a word.
pub(super) fn store_value(dst: u8, off: i16, imm: i32) -> Insn {
    Insn { code: 0x7a, dst, src: 0, off, imm }
}

pub(super) fn call(helper: i32) -> Insn {
    Insn { code: 0x85, dst: 0, src: 0, off: 0, imm: helper }
}

/// When a jump is made.
#[derive(Clone, Copy)]
pub(super) enum Jump {
    Equal = 0x15,
    Above = 0x25,
    AtLeast = 0x35,
    Unequal = 0x55,
}

/// Stores half a word.
pub(super) fn store_half(dst: u8, off: i16, imm: i32) -> Insn {
    Insn { code: 0x62, dst, src: 0, off, imm }
}

/// In the place of a jump's distance: to the end of the program ([`to_end`]).
pub(super) const END: i16 = i16::MAX;
/// What distinguishes jumps among the codes of instructions.
const JUMPS: (u8, u8) = (7, 5);

/// Jumps depending on a register and a number.
pub(super) fn jump(when: Jump, dst: u8, off: i16, imm: i32) -> Insn {
    Insn { code: when as u8, dst, src: 0, off, imm }
}

/// Jumps depending on two registers.
pub(super) fn jump_by(when: Jump, (dst, src): (u8, u8), off: i16) -> Insn {
    Insn { code: when as u8 | 8, dst, src, off, imm: 0 }
}

pub(super) fn jump_always(off: i16) -> Insn {
    Insn { code: 0x05, dst: 0, src: 0, off, imm: 0 }
}

/// Jumps when the kernel has had enough of a loop, which must have one (may_goto, Linux 6.9).
pub(super) fn while_patient(off: i16) -> Insn {
    Insn { code: 0xe5, dst: 0, src: 0, off, imm: 0 }
}

/// Tells the jumps to the [`END`] how far that is.
pub(super) fn to_end(mut body: Vec<Insn>) -> Vec<Insn> {
    let len = body.len();
    let is_jump = |insn: &Insn| insn.code & JUMPS.0 == JUMPS.1 && insn.off == END;
    for (at, insn) in body.iter_mut().enumerate().filter(|(_, insn)| is_jump(insn)) {
        insn.off = (len - at - 1) as i16;
    }
    body
}
