//! What the kernel keeps behind an open file or a task, read by a program of its own that walks the descriptors of a
//! task (an iterator over `task_file`, Linux 5.8; over one task alone, Linux 6.1) or comes by the task (`task`). For the
//! few facts that no call tells.
//!
//! Needs CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN), and a kernel that describes its types ([`Btf`]).

use super::bpf::{adopt, bpf};
use super::bpf_insn::{Insn, add, call, load32, load64, mov, mov_value, store_zero, store64};
use super::btf::Btf;
use super::process::loadavg;
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

const BPF_PROG_LOAD: i32 = 5;
const BPF_LINK_CREATE: i32 = 28;
const BPF_ITER_CREATE: i32 = 33;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_TRACE_ITER: u32 = 28;
pub(super) const CALL_PROBE_READ_KERNEL: i32 = 113;
pub(super) const CALL_SEQ_WRITE: i32 = 127;
/// The registers with which a task came into the kernel. Linux 5.15.
pub(super) const CALL_TASK_PT_REGS: i32 = 175;
/// The helpers want a licence that the kernel knows: these few instructions, which are made below, are given under it.
const LICENCE: &std::ffi::CStr = c"Dual MIT/GPL";
/// Fields that are read at most: each has eight bytes of the program's stack, which has 512.
const FIELDS: usize = 32;
/// Bytes that a read of what programs tell has room for: as many as the kernel gathers (kernel/bpf/bpf_iter.c).
const AT_ONCE: usize = 32 << 10;
/// How often a program is offered.
const TRIES: u32 = 16;
/// Links of a list that one run follows.
const LINKS: usize = 500;
/// Structures of a list that one run tells.
const BLOCKS: usize = 64;
/// Structures of a list that are read: more than a list that ends has.
const MOST_BLOCKS: usize = 1 << 20;
/// Longest structure that is told: what the stack has room for, beside its address.
pub(super) const BLOCK: usize = 248;

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

#[repr(C)]
struct LinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    _pad: u32,
}

#[repr(C)]
struct IterAttr {
    link_fd: u32,
    flags: u32,
}

const _: () = assert!(std::mem::offset_of!(LoadAttr, attach_btf_id) == 108 && size_of::<LinkAttr>() == 32);

/// A field of what stands behind a file: its offset, and its length of up to eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    pub offset: u32,
    pub len: u8,
}

/// Where the fields stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// In what the file's `private_data` leads to.
    Behind,
    /// In the task.
    Task,
    /// At this address of the kernel.
    Address(u64),
}

/// What a program looks at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Visit {
    /// A descriptor of a task.
    File { tid: i32, fd: i32 },
    /// Every descriptor of a task, one after the other.
    Files(i32),
    /// The task itself.
    Task(i32),
    /// All threads of a process, one after the other.
    Threads(i32),
    /// All threads of all processes.
    AllTasks,
    /// Every mapping of a task, one after the other, and then from the beginning again.
    Mappings(i32),
    /// Every socket of TCP in our network namespace, and what there is of one (struct sock_common).
    Connections,
}

impl Visit {
    /// union bpf_iter_link_info: the thread, or else the process, by its id.
    fn walked(self) -> [u32; 4] {
        match self {
            Visit::File { tid, .. } | Visit::Files(tid) | Visit::Task(tid) | Visit::Mappings(tid) => {
                [tid as u32, 0, 0, 0]
            }
            Visit::Threads(pid) => [0, pid as u32, 0, 0],
            Visit::AllTasks | Visit::Connections => [0; 4],
        }
    }

    /// The function whose number says what is walked.
    pub fn target(self) -> &'static str {
        match self {
            Visit::File { .. } | Visit::Files(_) => "bpf_iter_task_file",
            Visit::Task(_) | Visit::Threads(_) | Visit::AllTasks => "bpf_iter_task",
            Visit::Mappings(_) => "bpf_iter_task_vma",
            Visit::Connections => "bpf_iter_tcp",
        }
    }
}

/// A program for one visit. Its context (struct bpf_iter__task_file) has the seq_file and others, the task, the number
/// and the file, eight bytes each; that of a task alone (struct bpf_iter__task) only the first two, that of a mapping
/// (struct bpf_iter__task_vma) the mapping behind them, that of a socket (struct bpf_iter__tcp) the socket in the place of
/// the task. The body finds the context in register 6, the file in 7, the task (of a mapping and a socket: that) in 8 and
/// the seq_file in 9.
pub(super) fn program(visit: Visit, body: &[Insn]) -> Vec<Insn> {
    let end = |before: usize| (body.len() + before) as i16;
    let jump = |code, src_dst, off, imm| Insn { code, dst: src_dst, src: 0, off, imm };
    let mut all = vec![mov(6, 1)];
    match visit {
        Visit::File { fd, .. } => {
            all.extend([load64(7, 6, 24), jump(0x15, 7, end(6), 0), load64(8, 6, 8), jump(0x15, 8, end(4), 0)]);
            all.extend([load32(1, 6, 16), jump(0x55, 1, end(2), fd)]);
        }
        Visit::Files(_) => {
            all.extend([load64(7, 6, 24), jump(0x15, 7, end(4), 0), load64(8, 6, 8), jump(0x15, 8, end(2), 0)]);
        }
        Visit::Task(_) | Visit::Threads(_) | Visit::AllTasks | Visit::Connections => {
            all.extend([mov_value(7, 0), load64(8, 6, 8), jump(0x15, 8, end(2), 0)]);
        }
        Visit::Mappings(_) => all.extend([mov_value(7, 0), load64(8, 6, 16), jump(0x15, 8, end(2), 0)]),
    }
    all.extend([load64(9, 6, 0), load64(9, 9, 0)]);
    all.extend_from_slice(body);
    all.extend([mov_value(0, 0), Insn { code: 0x95, dst: 0, src: 0, off: 0, imm: 0 }]);
    all
}

/// Register 8 becomes the base.
fn go_to(base: Base, private_data: i16) -> Vec<Insn> {
    match base {
        Base::Task => Vec::new(),
        Base::Behind => vec![load64(8, 7, private_data)],
        // A load of 64 bits takes the place of two instructions.
        Base::Address(at) => vec![
            Insn { code: 0x18, dst: 8, src: 0, off: 0, imm: at as u32 as i32 },
            Insn { code: 0, dst: 0, src: 0, off: 0, imm: (at >> 32) as i32 },
        ],
    }
}

/// Reads `size` bytes behind register 8 into the stack.
pub(super) fn read(place: i16, size: u8, offset: u32) -> [Insn; 6] {
    let call = call(CALL_PROBE_READ_KERNEL);
    [mov(1, 10), add(1, place.into()), mov_value(2, size.into()), mov(3, 8), add(3, offset as i32), call]
}

/// Tells the last `len` bytes of the stack.
pub(super) fn tell(len: i16) -> [Insn; 5] {
    [mov(1, 9), mov(2, 10), add(2, (-len).into()), mov_value(3, len.into()), call(CALL_SEQ_WRITE)]
}

fn read_fields(base: Base, private_data: i16, fields: &[Field]) -> Vec<Insn> {
    let len = 8 * (fields.len() as i16 + 2);
    let mut body = vec![store64(10, -len, 7)];
    body.extend(go_to(base, private_data));
    body.push(store64(10, 8 - len, 8));
    for (at, field) in (2i16..).zip(fields) {
        let place = 8 * at - len;
        body.push(store_zero(10, place));
        body.extend(read(place, field.len, field.offset));
    }
    body.extend(tell(len));
    body
}

/// Counts the links of a list that ends with zero, at most [`LINKS`] of them; tells the count and where it stopped.
fn follow(start: u64) -> Vec<Insn> {
    let mut body = go_to(Base::Address(start), 0);
    body.push(mov_value(6, 0));
    const STEP: usize = 10;
    for left in (1..=LINKS).rev() {
        body.push(Insn { code: 0x15, dst: 8, src: 0, off: (left * STEP - 1) as i16, imm: 0 });
        body.extend([add(6, 1), store_zero(10, -16)]);
        body.extend(read(-16, 8, 0));
        body.push(load64(8, 10, -16));
    }
    body.extend([store64(10, -16, 6), store64(10, -8, 8)]);
    body.extend(tell(16));
    body
}

/// Tells the structures of a list that ends with this address, at most [`BLOCKS`] of them: for each the address of its
/// link, which stands `link` bytes behind its beginning, and its first `len` bytes.
fn walk(start: u64, end: u64, link: u32, len: usize) -> Vec<Insn> {
    const STEP: usize = 14;
    let (place, whole) = (-(len as i16), 8 + len as i16);
    let mut body = go_to(Base::Address(end), 0);
    body.push(mov(7, 8));
    body.extend(go_to(Base::Address(start), 0));
    for left in (1..=BLOCKS).rev() {
        body.push(Insn { code: 0x1d, dst: 8, src: 7, off: (left * STEP - 1) as i16, imm: 0 });
        body.push(store64(10, -whole, 8));
        body.extend(read(place, len as u8, link.wrapping_neg()));
        body.extend(tell(whole));
        body.push(load64(8, 10, place + link as i16));
    }
    body
}

/// Tells a descriptor's number, and the addresses of its file and of what stands behind that.
fn name_file(private_data: i16) -> Vec<Insn> {
    let mut body = vec![load32(1, 6, 16), store64(10, -24, 1), store64(10, -16, 7), load64(8, 7, private_data)];
    body.push(store64(10, -8, 8));
    body.extend(tell(24));
    body
}

/// Loads the program for a visit and runs it; the words that it tells.
fn make(btf: &Btf, visit: Visit, body: &[Insn]) -> Result<Vec<u64>, Errno> {
    run(&load(btf, visit.target(), &program(visit, body))?, visit)
}

pub(super) fn load(btf: &Btf, target: &str, program: &[Insn]) -> Result<OwnedFd, Errno> {
    let place = (BPF_TRACE_ITER, btf.function(target).ok_or(Errno::NOTSUP)?);
    load_as(BPF_PROG_TYPE_TRACING, place, program)
}

/// A program of another type; to which function of the kernel's it belongs and how, if to one.
pub(super) fn load_as(
    prog_type: u32,
    (expected_attach_type, attach_btf_id): (u32, u32),
    program: &[Insn],
) -> Result<OwnedFd, Errno> {
    let bytes: Vec<u8> = program.iter().flat_map(|insn| insn.bytes()).collect();
    let mut attr = LoadAttr {
        prog_type,
        insn_cnt: program.len() as u32,
        insns: bytes.as_ptr() as u64,
        license: LICENCE.as_ptr() as u64,
        expected_attach_type,
        attach_btf_id,
        ..LoadAttr::default()
    };
    // The check of a program is given up for any signal, also one by which the kernel wakes us for its own work.
    let mut tries = TRIES;
    loop {
        tries -= 1;
        // SAFETY: LoadAttr is BPF_PROG_LOAD's part of bpf_attr; the instructions and the licence outlive the call.
        match unsafe { bpf(BPF_PROG_LOAD, &mut attr) } {
            Err(Errno::AGAIN) if tries > 0 => {}
            answer => return answer.map(adopt),
        }
    }
}

/// Whether a task's own number of itself is the one that we know it by: in the first pid namespace
/// (PROC_PID_INIT_INO, linux/proc_ns.h).
fn has_kernels_ids() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        std::fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name.as_os_str() == "pid:[4026531836]")
    })
}

/// Runs a program; the words that it tells. ENOTSUP for [`Visit::Threads`] and [`Visit::AllTasks`] in a pid namespace where
/// threads have other numbers than those by which they could be told apart.
pub(super) fn run(program: &OwnedFd, visit: Visit) -> Result<Vec<u64>, Errno> {
    let mut bytes = Vec::with_capacity(AT_ONCE);
    let read = begin(program, visit)?.read_to_end(&mut bytes);
    read.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    Ok(words(&bytes).collect())
}

/// Runs a program that tells of all tasks because of some: how many these are. E2BIG if there are far more others, which all
/// are visited.
pub(super) fn run_for_tasks(program: &OwnedFd, some: usize) -> Result<Vec<u64>, Errno> {
    const OTHERS: u64 = 20;
    // The fourth field of /proc/loadavg (proc(5)).
    let all = loadavg(3).and_then(|tasks| tasks.split_once('/')?.1.parse::<u64>().ok());
    if all.is_none_or(|all| all > OTHERS * some as u64) {
        return Err(Errno::TOOBIG);
    }
    run(program, Visit::AllTasks)
}

/// Words of eight bytes.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word))
}

/// The same as [`run`], as a file from which what the program tells is to be read.
pub(super) fn begin(program: &OwnedFd, visit: Visit) -> Result<File, Errno> {
    if matches!(visit, Visit::Threads(_) | Visit::AllTasks) && !has_kernels_ids() {
        return Err(Errno::NOTSUP);
    }
    let info = visit.walked();
    let mut attr = LinkAttr {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        iter_info: info.as_ptr() as u64,
        iter_info_len: size_of_val(&info) as u32,
        _pad: 0,
    };
    // SAFETY: LinkAttr is BPF_LINK_CREATE's part of bpf_attr; `info` outlives the call and is as long as told.
    let link = adopt(unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?);
    let mut attr = IterAttr { link_fd: link.as_raw_fd() as u32, flags: 0 };
    // SAFETY: IterAttr is BPF_ITER_CREATE's part of bpf_attr and holds no address.
    Ok(File::from(adopt(unsafe { bpf(BPF_ITER_CREATE, &mut attr) }?)))
}

/// What the kernel has of a descriptor of a task: the address of its file, that of `base`, then each field's value.
/// EBADF if the task has no such descriptor.
pub fn fields(btf: &Btf, (tid, fd): (i32, i32), base: Base, fields: &[Field]) -> Result<Vec<u64>, Errno> {
    read_all(btf, Visit::File { tid, fd }, base, fields)
}

/// The same of a task, whatever descriptors it has: zero, the address of `base`, then each field's value. EBADF if there
/// is no such task, EINVAL for [`Base::Behind`].
pub fn task_fields(btf: &Btf, tid: i32, base: Base, fields: &[Field]) -> Result<Vec<u64>, Errno> {
    if base == Base::Behind { Err(Errno::INVAL) } else { read_all(btf, Visit::Task(tid), base, fields) }
}

/// The fields of each thread of a process. Empty if there is no such process.
pub fn thread_fields(btf: &Btf, pid: i32, fields: &[Field]) -> Result<Vec<Vec<u64>>, Errno> {
    Program::for_threads(btf, fields)?.of_threads(pid)
}

/// A program that tells fields of threads, for several processes.
#[derive(Debug)]
pub struct Program {
    program: OwnedFd,
    fields: usize,
}

impl Program {
    /// Loads it: that takes longer than to run it.
    pub fn for_threads(btf: &Btf, fields: &[Field]) -> Result<Program, Errno> {
        // Whose threads is said when it is run.
        let body = body(btf, Base::Task, fields)?;
        let visit = Visit::Threads(0);
        Ok(Program { program: load(btf, visit.target(), &program(visit, &body))?, fields: fields.len() })
    }

    /// The fields of each thread of a process. Empty if there is no such process.
    pub fn of_threads(&self, pid: i32) -> Result<Vec<Vec<u64>>, Errno> {
        let words = run(&self.program, Visit::Threads(pid))?;
        Ok(words.chunks_exact(self.fields + 2).map(|one| one[2..].to_vec()).collect())
    }
}

fn read_all(btf: &Btf, visit: Visit, base: Base, fields: &[Field]) -> Result<Vec<u64>, Errno> {
    let words = read_each(btf, visit, base, fields)?;
    if words.len() == fields.len() + 2 { Ok(words) } else { Err(Errno::BADF) }
}

fn read_each(btf: &Btf, visit: Visit, base: Base, fields: &[Field]) -> Result<Vec<u64>, Errno> {
    make(btf, visit, &body(btf, base, fields)?)
}

fn body(btf: &Btf, base: Base, fields: &[Field]) -> Result<Vec<Insn>, Errno> {
    if fields.len() > FIELDS || fields.iter().any(|f| f.len > 8 || i32::try_from(f.offset).is_err()) {
        return Err(Errno::INVAL);
    }
    Ok(read_fields(base, private_data(btf)?, fields))
}

fn private_data(btf: &Btf) -> Result<i16, Errno> {
    btf.field("file", "private_data").and_then(|at| i16::try_from(at).ok()).ok_or(Errno::NOTSUP)
}

/// Loads a program for every descriptor of a task.
pub(super) fn load_for_files(btf: &Btf, body: &[Insn]) -> Result<OwnedFd, Errno> {
    // Of which task is said when it is run.
    let visit = Visit::Files(0);
    load(btf, visit.target(), &program(visit, body))
}

/// Runs it; the words that it tells.
pub(super) fn run_for_files(program: &OwnedFd, tid: i32) -> Result<Vec<u64>, Errno> {
    run(program, Visit::Files(tid))
}

/// A descriptor, by what the kernel has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    pub fd: i32,
    /// The address of its file.
    pub file: u64,
    /// Where the file's `private_data` leads to.
    pub behind: u64,
}

/// All descriptors of a task.
pub fn descriptors(btf: &Btf, tid: i32) -> Result<Vec<Descriptor>, Errno> {
    let words = make(btf, Visit::Files(tid), &name_file(private_data(btf)?))?;
    let one = |w: &[u64]| Descriptor { fd: w[0] as i32, file: w[1], behind: w[2] };
    Ok(words.chunks_exact(3).map(one).collect())
}

/// How many links a list of the kernel has that begins at an address, each of which begins with the address of the
/// next; the last has zero there. `at` is any descriptor that is there.
pub fn list_len(btf: &Btf, (tid, fd): (i32, i32), mut start: u64) -> Result<u64, Errno> {
    let mut len = 0;
    while start != 0 {
        let words = make(btf, Visit::File { tid, fd }, &follow(start))?;
        let [count, next] = words[..] else { return Err(Errno::BADF) };
        len += count;
        start = next;
    }
    Ok(len)
}

/// One structure of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Where it stands in the kernel.
    pub address: u64,
    bytes: Vec<u8>,
}

impl Block {
    /// A field of it, as a number of its length. `None` if it was not read that far.
    #[must_use]
    pub fn value(&self, field: Field) -> Option<u64> {
        let at = field.offset as usize;
        let mut word = [0; 8];
        word.get_mut(..field.len.into())?.copy_from_slice(self.bytes.get(at..at + usize::from(field.len))?);
        Some(u64::from_le_bytes(word))
    }
}

/// The structures of a list of the kernel, the first `len` bytes of each. The list begins with the address `start` of
/// its first link; links stand `link` bytes behind the beginning of their structures and begin with the address of the
/// next one, in the last one with `end`: zero, or of a ring its head. `tid` is any task. EINVAL for more bytes than are
/// read at once.
pub fn blocks(btf: &Btf, tid: i32, (mut start, end): (u64, u64), link: u32, len: usize) -> Result<Vec<Block>, Errno> {
    let words = len.div_ceil(8);
    if 8 * words > BLOCK || link as usize + 8 > 8 * words || !link.is_multiple_of(8) {
        return Err(Errno::INVAL);
    }
    let mut all = Vec::new();
    while start != end {
        let told = make(btf, Visit::Task(tid), &walk(start, end, link, 8 * words))?;
        if start == 0 || told.is_empty() || all.len() > MOST_BLOCKS {
            return Err(Errno::BADF);
        }
        for one in told.chunks_exact(words + 1) {
            let bytes = one[1..].iter().flat_map(|w| w.to_le_bytes()).collect();
            // What changes meanwhile may lead anywhere.
            all.push(Block { address: one[0].wrapping_sub(link.into()), bytes });
            start = one[1 + link as usize / 8];
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::bpf_memory;
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn the_count_of_an_eventfd_is_read() {
        let Ok(btf) = Btf::vmlinux() else { return };
        let event = eventfd(4711, EventfdFlags::empty()).unwrap();
        let count = Field { offset: btf.field("eventfd_ctx", "count").unwrap(), len: 8 };
        let at = (std::process::id() as i32, event.as_raw_fd());
        let words = fields(&btf, at, Base::Behind, &[count]).unwrap();
        assert_eq!(words[2], 4711);
        assert_eq!(fields(&btf, at, Base::Address(words[1]), &[count]).unwrap(), words);
        assert_eq!(fields(&btf, (at.0, 9999), Base::Behind, &[count]), Err(Errno::BADF));
        let all = descriptors(&btf, at.0).unwrap();
        let this = all.iter().find(|d| d.fd == at.1).unwrap();
        assert_eq!((this.file, this.behind), (words[0], words[1]));
        let quoted =
            bpf_memory::words(&btf, at.0, &[(words[1] + u64::from(count.offset), 1), (words[1], 100)]).unwrap();
        assert_eq!((quoted[0][0], quoted[1][count.offset as usize / 8], quoted[1].len()), (4711, 4711, 100));
        let pid = Field { offset: btf.field("task_struct", "tgid").unwrap(), len: 4 };
        assert_eq!(fields(&btf, at, Base::Task, &[pid]).unwrap()[2], u64::from(std::process::id()));
    }

    #[test]
    fn an_empty_list_has_no_links() {
        let Ok(btf) = Btf::vmlinux() else { return };
        assert_eq!(list_len(&btf, (std::process::id() as i32, 0), 0), Ok(0));
    }
}
