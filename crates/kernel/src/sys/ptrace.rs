//! ptrace(2) for seized tracees: one function per request, no state.
//!
//! All but [`seize`] and [`interrupt`] need the tracee in a ptrace-stop and the calling thread to be its tracer
//! (ESRCH else): who may call what when is for the layer above to type. Addresses are the tracee's.

use bitflags::bitflags;
use linux_raw_sys::ptrace as uapi;
use rustix::io::Errno;
use rustix::process::Pid;

use super::check;
use super::signal::SigInfo;

bitflags! {
    /// `PTRACE_O_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Options: u32 {
        /// Mark system call stops with SIGTRAP | 0x80.
        const TRACESYSGOOD = uapi::PTRACE_O_TRACESYSGOOD;
        const TRACEFORK = uapi::PTRACE_O_TRACEFORK;
        const TRACEVFORK = uapi::PTRACE_O_TRACEVFORK;
        const TRACECLONE = uapi::PTRACE_O_TRACECLONE;
        const TRACEEXEC = uapi::PTRACE_O_TRACEEXEC;
        const TRACEVFORKDONE = uapi::PTRACE_O_TRACEVFORKDONE;
        const TRACEEXIT = uapi::PTRACE_O_TRACEEXIT;
        const TRACESECCOMP = uapi::PTRACE_O_TRACESECCOMP;
        /// The tracee is killed when its tracer dies.
        const EXITKILL = uapi::PTRACE_O_EXITKILL;
        /// The tracee's seccomp filters do not apply while this is set. Needs CAP_SYS_ADMIN and a tracer
        /// without seccomp of its own.
        const SUSPEND_SECCOMP = uapi::PTRACE_O_SUSPEND_SECCOMP;
    }
}

/// The kind of a register set: the ELF note type.
pub mod regset {
    /// General registers, `user_regs_struct`.
    pub const PRSTATUS: u32 = 1;
    /// Floating point registers in the legacy form of the architecture.
    pub const PRFPREG: u32 = 2;
    /// The whole XSAVE area in its standard (not compacted) form; its size depends on the processor.
    pub const X86_XSTATE: u32 = 0x202;
    /// Shadow stack pointer (6.6).
    pub const X86_SHSTK: u32 = 0x204;
}

/// One ptrace request. For raw requests PTRACE_PEEK* store through `data`, unlike glibc's wrapper.
///
/// # Safety
/// `address` and `data` must be what ptrace(2) asks for `request`: where it is a pointer of the caller, valid for
/// the reads and writes of that request.
unsafe fn request(request: u32, tid: Pid, address: usize, data: usize) -> Result<usize, Errno> {
    // SAFETY: the caller vouches for the pointers; ptrace does not touch other memory of the caller.
    let answer = unsafe { libc::syscall(libc::SYS_ptrace, request, tid.as_raw_nonzero().get(), address, data) };
    check(answer).map(|value| value as usize)
}

/// A request whose two arguments are integers or addresses in the tracee.
fn plain(number: u32, tid: Pid, address: usize, data: usize) -> Result<(), Errno> {
    const INTEGERS_ONLY: [u32; 12] = [
        uapi::PTRACE_SEIZE,
        uapi::PTRACE_INTERRUPT,
        uapi::PTRACE_CONT,
        uapi::PTRACE_SYSCALL,
        uapi::PTRACE_SINGLESTEP,
        uapi::PTRACE_LISTEN,
        uapi::PTRACE_DETACH,
        uapi::PTRACE_SETOPTIONS,
        uapi::PTRACE_POKEUSR,
        uapi::PTRACE_POKEDATA,
        uapi::PTRACE_SYSEMU,
        uapi::PTRACE_KILL,
    ];
    debug_assert!(INTEGERS_ONLY.contains(&number));
    // SAFETY: the callers in this file use only the requests listed above; none has a pointer to caller memory.
    unsafe { request(number, tid, address, data) }.map(drop)
}

/// Becomes the tracer of a thread without stopping it.
pub fn seize(tid: Pid, options: Options) -> Result<(), Errno> {
    plain(uapi::PTRACE_SEIZE, tid, 0, options.bits() as usize)
}

/// Asks a seized thread to stop; wait for the stop.
pub fn interrupt(tid: Pid) -> Result<(), Errno> {
    plain(uapi::PTRACE_INTERRUPT, tid, 0, 0)
}

/// Lets the thread run on, delivering `signal` unless it is 0.
pub fn cont(tid: Pid, signal: i32) -> Result<(), Errno> {
    plain(uapi::PTRACE_CONT, tid, 0, signal as usize)
}

/// As [`cont`], until the next entry or exit of a system call.
pub fn syscall(tid: Pid, signal: i32) -> Result<(), Errno> {
    plain(uapi::PTRACE_SYSCALL, tid, 0, signal as usize)
}

/// As [`cont`], for one instruction.
pub fn single_step(tid: Pid, signal: i32) -> Result<(), Errno> {
    plain(uapi::PTRACE_SINGLESTEP, tid, 0, signal as usize)
}

/// Leaves a thread in its group-stop but reports its end (by SIGCONT).
pub fn listen(tid: Pid) -> Result<(), Errno> {
    plain(uapi::PTRACE_LISTEN, tid, 0, 0)
}

/// Lets go of the thread and lets it run on, delivering `signal` unless it is 0.
pub fn detach(tid: Pid, signal: i32) -> Result<(), Errno> {
    plain(uapi::PTRACE_DETACH, tid, 0, signal as usize)
}

/// Replaces the options.
pub fn set_options(tid: Pid, options: Options) -> Result<(), Errno> {
    plain(uapi::PTRACE_SETOPTIONS, tid, 0, options.bits() as usize)
}

/// The message of the last event: new pid, exit status, seccomp data.
pub fn event_message(tid: Pid) -> Result<u64, Errno> {
    let mut message = 0u64;
    // SAFETY: GETEVENTMSG writes one unsigned long to `message`.
    unsafe { request(uapi::PTRACE_GETEVENTMSG, tid, 0, &raw mut message as usize) }?;
    Ok(message)
}

/// Reads a register set into `into` and returns how many bytes it has. A short buffer gets its beginning.
pub fn get_regset(tid: Pid, kind: u32, into: &mut [u8]) -> Result<usize, Errno> {
    let mut slot = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: GETREGSET writes at most iov_len bytes to iov_base, which is all of `into`, and the length to `slot`.
    unsafe { request(uapi::PTRACE_GETREGSET, tid, kind as usize, &raw mut slot as usize) }?;
    Ok(slot.iov_len)
}

/// Writes a register set. Partial sets change the beginning only.
pub fn set_regset(tid: Pid, kind: u32, from: &[u8]) -> Result<(), Errno> {
    let mut slot = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
    // SAFETY: SETREGSET reads at most iov_len bytes from iov_base, which is all of `from`, and never writes there;
    // it writes the length that it used to `slot`.
    unsafe { request(uapi::PTRACE_SETREGSET, tid, kind as usize, &raw mut slot as usize) }.map(drop)
}

/// The general registers.
pub fn get_regs(tid: Pid) -> Result<libc::user_regs_struct, Errno> {
    // SAFETY: user_regs_struct is made of integers alone, for which zero bytes are a value.
    let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    let mut slot = libc::iovec { iov_base: (&raw mut regs).cast(), iov_len: size_of::<libc::user_regs_struct>() };
    // SAFETY: GETREGSET writes at most iov_len bytes to iov_base, which is all of `regs`, and the length to `slot`.
    unsafe { request(uapi::PTRACE_GETREGSET, tid, regset::PRSTATUS as usize, &raw mut slot as usize) }?;
    // A 32-bit task fills less: its registers have another layout.
    if slot.iov_len != size_of::<libc::user_regs_struct>() {
        return Err(Errno::NOTSUP);
    }
    Ok(regs)
}

/// Replaces the general registers.
pub fn set_regs(tid: Pid, regs: &libc::user_regs_struct) -> Result<(), Errno> {
    let mut slot =
        libc::iovec { iov_base: (&raw const *regs).cast_mut().cast(), iov_len: size_of::<libc::user_regs_struct>() };
    // SAFETY: SETREGSET reads iov_len bytes from iov_base, which is all of `regs`, and never writes there.
    unsafe { request(uapi::PTRACE_SETREGSET, tid, regset::PRSTATUS as usize, &raw mut slot as usize) }.map(drop)
}

/// The whole XSAVE area. Its size is the processor's: CPUID leaf 0xd.
#[cfg(target_arch = "x86_64")]
pub fn get_xstate(tid: Pid) -> Result<Vec<u8>, Errno> {
    // 2.7 KiB with AVX-512, 11 KiB with AMX tiles.
    const USUAL: usize = 4 << 10;
    const MOST: usize = 64 << 10;
    let mut usual = [0u8; USUAL];
    let size = get_regset(tid, regset::X86_XSTATE, &mut usual)?;
    if size < USUAL {
        return Ok(usual[..size].to_vec());
    }
    let mut area = vec![0u8; MOST];
    let size = get_regset(tid, regset::X86_XSTATE, &mut area)?;
    area.truncate(size);
    Ok(area)
}

/// A thread-local-storage descriptor of 32-bit code (`struct user_desc`), GDT entry 12 to 14.
#[cfg(target_arch = "x86_64")]
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UserDesc {
    pub entry_number: u32,
    pub base_addr: u32,
    pub limit: u32,
    /// Bit fields: seg_32bit, contents (2 bits), read_exec_only, limit_in_pages, seg_not_present, useable, lm.
    pub bits: u32,
}

/// Reads a descriptor of the tracee's GDT.
#[cfg(target_arch = "x86_64")]
pub fn get_thread_area(tid: Pid, entry: u32) -> Result<UserDesc, Errno> {
    const { assert!(size_of::<UserDesc>() == 16) };
    let mut desc = UserDesc::default();
    // SAFETY: GET_THREAD_AREA takes the entry number as address and writes one user_desc to `desc`.
    unsafe { request(uapi::PTRACE_GET_THREAD_AREA, tid, entry as usize, &raw mut desc as usize) }?;
    Ok(desc)
}

/// Reads the word at `offset` of the tracee's `struct user`.
pub fn peek_user(tid: Pid, offset: usize) -> Result<u64, Errno> {
    let mut word = 0u64;
    // SAFETY: the raw PEEKUSR writes one unsigned long to `word`; `offset` is checked by the kernel.
    unsafe { request(uapi::PTRACE_PEEKUSR, tid, offset, &raw mut word as usize) }?;
    Ok(word)
}

/// Writes the word at `offset` of the tracee's `struct user`.
pub fn poke_user(tid: Pid, offset: usize, word: u64) -> Result<(), Errno> {
    plain(uapi::PTRACE_POKEUSR, tid, offset, word as usize)
}

/// Reads the word at `address` of the tracee, whatever its protection.
pub fn peek_data(tid: Pid, address: u64) -> Result<u64, Errno> {
    let mut word = 0u64;
    // SAFETY: the raw PEEKDATA writes one unsigned long to `word`; `address` is the tracee's.
    unsafe { request(uapi::PTRACE_PEEKDATA, tid, address as usize, &raw mut word as usize) }?;
    Ok(word)
}

/// Writes the word at `address` of the tracee, whatever its protection (a private copy of a read-only page is
/// made).
pub fn poke_data(tid: Pid, address: u64, word: u64) -> Result<(), Errno> {
    plain(uapi::PTRACE_POKEDATA, tid, address as usize, word as usize)
}

/// The blocked signals; bit n-1 for signal n.
pub fn get_sigmask(tid: Pid) -> Result<u64, Errno> {
    let mut mask = 0u64;
    // SAFETY: GETSIGMASK is told the size of the set (8) and writes that many bytes to `mask`.
    unsafe { request(uapi::PTRACE_GETSIGMASK, tid, size_of::<u64>(), &raw mut mask as usize) }?;
    Ok(mask)
}

/// Replaces the blocked signals; SIGKILL and SIGSTOP stay unblocked.
pub fn set_sigmask(tid: Pid, mask: u64) -> Result<(), Errno> {
    // SAFETY: SETSIGMASK is told the size of the set (8) and reads that many bytes from `mask`.
    unsafe { request(uapi::PTRACE_SETSIGMASK, tid, size_of::<u64>(), &raw const mask as usize) }.map(drop)
}

/// The signal that stopped the tracee. EINVAL in a group-stop: that is how one is told from a
/// signal-delivery-stop.
pub fn get_siginfo(tid: Pid) -> Result<SigInfo, Errno> {
    let mut info = SigInfo::zeroed();
    // SAFETY: GETSIGINFO writes one siginfo_t to `info`, which has its size and alignment.
    unsafe { request(uapi::PTRACE_GETSIGINFO, tid, 0, &raw mut info as usize) }?;
    Ok(info)
}

/// Replaces the contents of the signal that stopped the tracee.
pub fn set_siginfo(tid: Pid, info: &SigInfo) -> Result<(), Errno> {
    // SAFETY: SETSIGINFO reads one siginfo_t from `info`, which has its size and alignment.
    unsafe { request(uapi::PTRACE_SETSIGINFO, tid, 0, &raw const *info as usize) }.map(drop)
}

/// All queued signals of the thread, or (`shared`) of its process, in the order of delivery among equals. They
/// stay queued.
pub fn peek_siginfo(tid: Pid, shared: bool) -> Result<Vec<SigInfo>, Errno> {
    // Nearly always nothing waits. Else the kernel walks the queue from its beginning at each call: few and large ones.
    const FEW: usize = 8;
    const MANY: usize = 1024;
    let mut queued = Vec::new();
    let mut batch = vec![SigInfo::zeroed(); FEW];
    loop {
        let args = uapi::ptrace_peeksiginfo_args {
            off: queued.len() as u64,
            flags: if shared { uapi::PTRACE_PEEKSIGINFO_SHARED } else { 0 },
            nr: batch.len() as i32,
        };
        // SAFETY: PEEKSIGINFO reads `args` and writes at most `nr` siginfo_t to `batch`, which has room for them.
        let count =
            unsafe { request(uapi::PTRACE_PEEKSIGINFO, tid, &raw const args as usize, batch.as_mut_ptr() as usize) }?;
        queued.extend_from_slice(&batch[..count]);
        if count < batch.len() {
            return Ok(queued);
        }
        batch.resize(MANY, SigInfo::zeroed());
    }
}

/// The longest seccomp filter, in instructions (linux/bpf_common.h).
const BPF_MAXINSNS: usize = 4096;

/// The instructions of seccomp filter `index` of the tracee, 0 being the one installed last; ENOENT after the
/// first installed, EINVAL for a thread without filters. Needs CAP_SYS_ADMIN and a tracer without seccomp of its own
/// (EACCES).
pub fn seccomp_filter(tid: Pid, index: usize) -> Result<Vec<libc::sock_filter>, Errno> {
    // SAFETY: without a buffer, SECCOMP_GET_FILTER writes nothing and returns the length alone.
    unsafe { request(uapi::PTRACE_SECCOMP_GET_FILTER, tid, index, 0) }?;
    let mut program = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; BPF_MAXINSNS];
    // SAFETY: SECCOMP_GET_FILTER writes the whole filter and returns its length; the kernel installs none longer
    // than BPF_MAXINSNS, for which `program` has room.
    let count = unsafe { request(uapi::PTRACE_SECCOMP_GET_FILTER, tid, index, program.as_mut_ptr() as usize) }?;
    program.truncate(count);
    Ok(program)
}

/// The flags with which seccomp filter `index` was installed (`SECCOMP_FILTER_FLAG_LOG` is the only one the
/// kernel tells). Linux 4.16.
pub fn seccomp_flags(tid: Pid, index: u64) -> Result<u64, Errno> {
    let mut metadata = uapi::seccomp_metadata { filter_off: index, flags: 0 };
    // SAFETY: SECCOMP_GET_METADATA is told the size of the struct; it reads filter_off and writes at most that size.
    unsafe {
        request(uapi::PTRACE_SECCOMP_GET_METADATA, tid, size_of::<uapi::seccomp_metadata>(), &raw mut metadata as usize)
    }?;
    Ok(metadata.flags)
}

/// Where the thread has registered its restartable-sequences area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rseq {
    /// Address in the tracee; 0 when nothing is registered.
    pub pointer: u64,
    pub size: u32,
    pub signature: u32,
    pub flags: u32,
}

/// The rseq registration. Linux 5.13; EIO before.
pub fn rseq(tid: Pid) -> Result<Rseq, Errno> {
    const SIZE: usize = size_of::<uapi::ptrace_rseq_configuration>();
    const { assert!(SIZE == 24) };
    let mut answer =
        uapi::ptrace_rseq_configuration { rseq_abi_pointer: 0, rseq_abi_size: 0, signature: 0, flags: 0, pad: 0 };
    // SAFETY: GET_RSEQ_CONFIGURATION is told the size of the struct and writes at most that to `answer`.
    unsafe { request(uapi::PTRACE_GET_RSEQ_CONFIGURATION, tid, SIZE, &raw mut answer as usize) }?;
    Ok(Rseq {
        pointer: answer.rseq_abi_pointer,
        size: answer.rseq_abi_size,
        signature: answer.signature,
        flags: answer.flags,
    })
}

/// Syscall user dispatch (`PR_SET_SYSCALL_USER_DISPATCH`) as the thread has set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SyscallUserDispatch {
    /// 0 off, 1 on for calls from outside the range.
    pub mode: u64,
    /// Address of the selector byte in the tracee; 0 for none.
    pub selector: u64,
    /// Code range whose calls always pass.
    pub offset: u64,
    pub len: u64,
}

const SUD_SIZE: usize = size_of::<uapi::ptrace_sud_config>();

/// Reads syscall user dispatch. Linux 6.4; EIO before.
pub fn syscall_user_dispatch(tid: Pid) -> Result<SyscallUserDispatch, Errno> {
    const { assert!(SUD_SIZE == 32) };
    let mut answer = uapi::ptrace_sud_config { mode: 0, selector: 0, offset: 0, len: 0 };
    // SAFETY: the request is told the size of the struct and writes that much to `answer`.
    unsafe { request(uapi::PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, SUD_SIZE, &raw mut answer as usize) }?;
    let uapi::ptrace_sud_config { mode, selector, offset, len } = answer;
    Ok(SyscallUserDispatch { mode, selector, offset, len })
}

/// Sets syscall user dispatch.
pub fn set_syscall_user_dispatch(tid: Pid, config: SyscallUserDispatch) -> Result<(), Errno> {
    let SyscallUserDispatch { mode, selector, offset, len } = config;
    let wanted = uapi::ptrace_sud_config { mode, selector, offset, len };
    // SAFETY: the request is told the size of the struct and reads that much from `wanted`.
    unsafe { request(uapi::PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG, tid, SUD_SIZE, &raw const wanted as usize) }
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::wait::{PtraceEvent, WaitStatus, Who, wait};
    use std::process::{Child, Command};

    fn seized(program: &[&str]) -> (Child, Pid) {
        let child = Command::new(program[0]).args(&program[1..]).spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32).unwrap();
        seize(pid, Options::TRACESYSGOOD | Options::EXITKILL).unwrap();
        interrupt(pid).unwrap();
        assert_eq!(wait(Who::One(pid)), Ok((pid, WaitStatus::Event(PtraceEvent::Stop))));
        (child, pid)
    }

    #[test]
    fn reads_and_writes_a_stopped_thread() {
        let (mut child, pid) = seized(&["sleep", "60"]);
        let regs = get_regs(pid).unwrap();
        assert_ne!((regs.rip, regs.rsp), (0, 0));
        set_regs(pid, &regs).unwrap();
        assert_eq!(peek_user(pid, std::mem::offset_of!(libc::user_regs_struct, rsp)), Ok(regs.rsp));
        let xstate = get_xstate(pid).unwrap();
        assert!(xstate.len() >= 576, "{}", xstate.len());
        set_regset(pid, regset::X86_XSTATE, &xstate).unwrap();
        assert_eq!(get_xstate(pid).unwrap(), xstate);
        let word = peek_data(pid, regs.rsp).unwrap();
        poke_data(pid, regs.rsp, !word).unwrap();
        assert_eq!(peek_data(pid, regs.rsp), Ok(!word));
        assert_eq!(peek_data(pid, 8), Err(Errno::IO));
        set_sigmask(pid, 1 << (libc::SIGUSR1 - 1)).unwrap();
        assert_eq!(get_sigmask(pid), Ok(1 << (libc::SIGUSR1 - 1)));
        match rseq(pid) {
            Ok(rseq) => assert!(rseq.size == 0 || rseq.size >= 20),
            Err(errno) => assert_eq!(errno, Errno::IO),
        }
        match syscall_user_dispatch(pid) {
            Ok(sud) => assert_eq!(sud.mode, 0),
            Err(errno) => assert_eq!(errno, Errno::IO),
        }
        assert_eq!(seccomp_filter(pid, 0).map(|program| program.len()), Err(Errno::INVAL));
        assert_eq!(get_thread_area(pid, 12).map(|desc| desc.base_addr), Ok(0));
        child.kill().unwrap();
        assert!(wait(Who::One(pid)).unwrap().1.is_end());
    }

    #[test]
    fn sees_queued_signals_of_thread_and_process() {
        let (mut child, pid) = seized(&["sleep", "60"]);
        set_sigmask(pid, !0).unwrap();
        let mut bytes = [0u8; SigInfo::SIZE];
        bytes[8..12].copy_from_slice(&libc::SI_QUEUE.to_ne_bytes());
        for value in 0..40u8 {
            bytes[24] = value;
            crate::sys::signal::rt_sigqueueinfo(pid, 40, &SigInfo::from_bytes(bytes)).unwrap();
        }
        crate::sys::signal::rt_tgsigqueueinfo(pid, pid, 41, &SigInfo::from_bytes(bytes)).unwrap();
        let shared = peek_siginfo(pid, true).unwrap();
        assert_eq!(shared.iter().map(|info| info.as_bytes()[24]).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
        assert!(shared.iter().all(|info| info.signo() == 40));
        assert_eq!(peek_siginfo(pid, false).unwrap().len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn tells_group_stop_from_interrupt() {
        let (mut child, pid) = seized(&["sleep", "60"]);
        cont(pid, 0).unwrap();
        crate::sys::signal::tgkill(pid, pid, libc::SIGTSTP).unwrap();
        assert_eq!(wait(Who::One(pid)).unwrap().1, WaitStatus::SignalStop(libc::SIGTSTP));
        assert_eq!(get_siginfo(pid).unwrap().signo(), libc::SIGTSTP);
        cont(pid, libc::SIGTSTP).unwrap();
        assert_eq!(wait(Who::One(pid)).unwrap().1, WaitStatus::GroupStop(libc::SIGTSTP));
        listen(pid).unwrap();
        interrupt(pid).unwrap();
        assert_eq!(wait(Who::One(pid)).unwrap().1, WaitStatus::GroupStop(libc::SIGTSTP));
        detach(pid, 0).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
