//! Instructions that take the place of a vdso function. All registers that
//! they change belong to the function called, not to its caller.

/// Goes on at an address: `movabs rax, to; jmp rax`.
#[must_use]
pub fn jump(to: u64) -> Vec<u8> {
    [&[0x48, 0xb8][..], &to.to_le_bytes(), &[0xff, 0xe0]].concat()
}

/// The system call that a function of the vdso stands for (vdso(7)), with the
/// same arguments: `mov eax, number; syscall; ret`.
#[must_use]
pub fn by_system_call(name: &[u8]) -> Option<Vec<u8>> {
    let number = match name.strip_prefix(b"__vdso_").unwrap_or(name) {
        b"clock_gettime" => libc::SYS_clock_gettime,
        b"clock_getres" => libc::SYS_clock_getres,
        b"gettimeofday" => libc::SYS_gettimeofday,
        b"time" => libc::SYS_time,
        b"getcpu" => libc::SYS_getcpu,
        b"getrandom" => libc::SYS_getrandom,
        _ => return None,
    };
    Some([&[0xb8][..], &(number as u32).to_le_bytes(), &[0x0f, 0x05, 0xc3]].concat())
}
