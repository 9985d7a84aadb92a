//! Names of system calls, for messages.

macro_rules! names {
    ($nr:expr; $($name:ident)*) => {
        match $nr {
            $(n if n == paste_sys::$name => stringify!($name).to_string(),)*
            n => format!("system call {n}"),
        }
    };
}

mod paste_sys {
    #![allow(non_upper_case_globals)]
    macro_rules! sys { ($($name:ident = $value:ident),* $(,)?) => { $(pub const $name: i64 = libc::$value;)* } }
    sys! {
        mmap = SYS_mmap, munmap = SYS_munmap, mremap = SYS_mremap, mprotect = SYS_mprotect, madvise = SYS_madvise,
        preadv = SYS_preadv, pwritev = SYS_pwritev, clone3 = SYS_clone3, prctl = SYS_prctl, arch_prctl = SYS_arch_prctl,
        setsid = SYS_setsid, setpgid = SYS_setpgid, recvmsg = SYS_recvmsg, dup3 = SYS_dup3, fcntl = SYS_fcntl,
        close = SYS_close, close_range = SYS_close_range, fchdir = SYS_fchdir, chroot = SYS_chroot, umask = SYS_umask,
        rt_sigaction = SYS_rt_sigaction, sigaltstack = SYS_sigaltstack, setitimer = SYS_setitimer,
        getitimer = SYS_getitimer, timer_create = SYS_timer_create, timer_settime = SYS_timer_settime,
        timer_gettime = SYS_timer_gettime, setresuid = SYS_setresuid, setresgid = SYS_setresgid,
        setgroups = SYS_setgroups, capset = SYS_capset, seccomp = SYS_seccomp, epoll_ctl = SYS_epoll_ctl,
        set_robust_list = SYS_set_robust_list, set_tid_address = SYS_set_tid_address, rseq = SYS_rseq,
        io_setup = SYS_io_setup, io_destroy = SYS_io_destroy, wait4 = SYS_wait4, personality = SYS_personality,
        setrlimit = SYS_setrlimit, prlimit64 = SYS_prlimit64, ioctl = SYS_ioctl, openat = SYS_openat,
        socketpair = SYS_socketpair, sched_setattr = SYS_sched_setattr, mlock2 = SYS_mlock2,
        membarrier = SYS_membarrier, brk = SYS_brk, unshare = SYS_unshare, setns = SYS_setns,
        rt_sigqueueinfo = SYS_rt_sigqueueinfo, rt_tgsigqueueinfo = SYS_rt_tgsigqueueinfo,
        exit_group = SYS_exit_group, kill = SYS_kill, semop = SYS_semop,
    }
}

/// The name of a system call, or its number where the name is not at hand.
#[must_use]
pub fn syscall_name(nr: i64) -> String {
    names!(nr; mmap munmap mremap mprotect madvise preadv pwritev clone3 prctl arch_prctl setsid setpgid recvmsg dup3
        fcntl close close_range fchdir chroot umask rt_sigaction sigaltstack setitimer getitimer timer_create
        timer_settime timer_gettime setresuid setresgid setgroups capset seccomp epoll_ctl set_robust_list
        set_tid_address rseq io_setup io_destroy wait4 personality setrlimit prlimit64 ioctl openat socketpair
        sched_setattr mlock2 membarrier brk unshare setns rt_sigqueueinfo rt_tgsigqueueinfo exit_group kill semop)
}
