//! What is registered with a ring of io_uring(7): files, buffers, an eventfd (io_uring_register(2)). No call tells which;
//! it is read from the kernel's own structures (io_uring/rsrc.h, io_uring/eventfd.h), whose layout it describes itself.
//! Kernels before 6.13 keep the tables in another way, and are not read.
//!
//! Files and pages are told by their addresses in the kernel: who wants to know whose they are compares them with those
//! of descriptors ([`descriptors`]), and asks [`Pages`].

pub use super::super::bpf_iter::Descriptor;
use super::super::bpf_iter::{self, Base, Field};
use super::super::btf::Btf;
use crate::pagemap::{Entry, PAGE_SIZE, read_entries};
use crate::proc::Task;
use rustix::io::Errno;
use rustix::process::Pid;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Bits of a registered file's address that say what it can do (FFS_* in io_uring/filetable.h).
const FILE_FLAGS: u64 = 3;
/// Longest table that the kernel makes, of files.
const MOST: u32 = 1 << 20;

/// A registered file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File {
    pub slot: u32,
    /// The address of the file.
    pub file: u64,
    /// With what the program is told of its end; 0 for not.
    pub tag: u64,
}

/// Registered memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    pub slot: u32,
    pub address: u64,
    pub len: u32,
    pub tag: u64,
    /// The addresses of the structures of its first and last page.
    pub pages: (u64, u64),
    /// It is memory of the kernel.
    pub is_kernels: bool,
}

/// All that is registered with a ring.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tables {
    /// Slots for files, and those in use.
    pub file_slots: u32,
    pub files: Vec<File>,
    /// The slots in which files go for which the program names none.
    pub allocation: (u32, u32),
    pub buffer_slots: u32,
    pub buffers: Vec<Buffer>,
    /// What stands behind the eventfd that is told of completions, and whether only of those that were waited for.
    pub eventfd: Option<(u64, bool)>,
}

/// Of a descriptor of a task. ENOENT or ENOTSUP where the kernel does not describe its types, or has others; EPERM
/// without the right to look.
pub fn of_ring(tid: i32, fd: i32) -> Result<Tables, Errno> {
    const CONTEXT: &str = "io_ring_ctx";
    let btf = Btf::running()?;
    let data = |part| btf.field("io_rsrc_data", part).ok_or(Errno::NOTSUP);
    let own = |name| btf.field(CONTEXT, name).ok_or(Errno::NOTSUP);
    let files = btf.inner_field(CONTEXT, "file_table", "data").ok_or(Errno::NOTSUP)?;
    let buffers = own("buf_table")?;
    let fields = [
        Field { offset: files + data("nr")?, len: 4 },
        Field { offset: files + data("nodes")?, len: 8 },
        Field { offset: buffers + data("nr")?, len: 4 },
        Field { offset: buffers + data("nodes")?, len: 8 },
        Field { offset: own("file_alloc_start")?, len: 4 },
        Field { offset: own("file_alloc_end")?, len: 4 },
        Field { offset: own("io_ev_fd")?, len: 8 },
    ];
    let words = bpf_iter::fields(btf, (tid, fd), Base::Behind, &fields)?;
    let (file_slots, buffer_slots) = (words[2] as u32, words[4] as u32);
    let look = Look { btf, tid };
    let file = |node: &Node| File { slot: node.slot, file: node.pointer & !FILE_FLAGS, tag: node.tag };
    Ok(Tables {
        file_slots,
        files: look.nodes(words[3], file_slots, "file_ptr")?.iter().map(file).collect(),
        allocation: (words[6] as u32, words[7] as u32),
        buffer_slots,
        buffers: look.buffers(&look.nodes(words[5], buffer_slots, "buf")?)?,
        eventfd: look.eventfd(words[8])?,
    })
}

/// The descriptors of a task, as the kernel knows them.
pub fn descriptors(tid: i32) -> Result<Vec<Descriptor>, Errno> {
    bpf_iter::descriptors(Btf::running()?, tid)
}

/// What a slot of a table leads to.
struct Node {
    slot: u32,
    tag: u64,
    pointer: u64,
}

struct Look {
    btf: &'static Btf,
    tid: i32,
}

impl Look {
    fn memory(&self, places: &[(u64, usize)]) -> Result<Vec<Vec<u64>>, Errno> {
        super::super::bpf_memory::words(self.btf, self.tid, places)
    }

    fn at(&self, structure: &str, name: &str) -> Result<usize, Errno> {
        self.btf.field(structure, name).map(|at| at as usize).ok_or(Errno::NOTSUP)
    }

    /// The slots of a table that are in use, with the address in field `what`.
    fn nodes(&self, table: u64, slots: u32, what: &str) -> Result<Vec<Node>, Errno> {
        const NODE: &str = "io_rsrc_node";
        if slots == 0 || slots > MOST {
            return if slots == 0 { Ok(Vec::new()) } else { Err(Errno::NOTSUP) };
        }
        let (tag, pointer) = (self.at(NODE, "tag")?, self.at(NODE, what)?);
        let words = tag.max(pointer) / 8 + 1;
        let table = self.memory(&[(table, slots as usize)])?.remove(0);
        let used: Vec<(u32, u64)> = (0..slots).zip(table).filter(|(_, node)| *node != 0).collect();
        let places: Vec<(u64, usize)> = used.iter().map(|(_, node)| (*node, words)).collect();
        let nodes = self.memory(&places)?;
        let node = |((slot, _), words): (&(u32, u64), Vec<u64>)| Node {
            slot: *slot,
            tag: words[tag / 8],
            pointer: words[pointer / 8],
        };
        Ok(used.iter().zip(nodes).map(node).collect())
    }

    fn buffers(&self, nodes: &[Node]) -> Result<Vec<Buffer>, Errno> {
        const BUFFER: &str = "io_mapped_ubuf";
        const PIECE: u64 = 16;
        let [address, len, count] = ["ubuf", "len", "nr_bvecs"].map(|name| self.at(BUFFER, name));
        let (address, len, count, first) = (address?, len?, count?, self.at(BUFFER, "bvec")?);
        // struct bio_vec: the page, length, offset from it. One that holds no memory of the program says so since 6.15.
        let kernels = self.btf.field(BUFFER, "is_kbuf").map(|at| at as usize);
        let words = first.div_ceil(8);
        let half = |all: &[u64], at: usize| (all[at / 8] >> (8 * (at % 8))) as u32;
        let places: Vec<(u64, usize)> = nodes.iter().map(|node| (node.pointer, words)).collect();
        let heads = self.memory(&places)?;
        let mut ends = Vec::with_capacity(2 * nodes.len());
        for (node, head) in nodes.iter().zip(&heads) {
            let last = u64::from(half(head, count)).saturating_sub(1);
            ends.extend([0, last].map(|piece| (node.pointer + first as u64 + PIECE * piece, 2)));
        }
        let ends = self.memory(&ends)?;
        let page = u64::from(self.btf.size("page").ok_or(Errno::NOTSUP)?);
        let told = |((node, head), ends): ((&Node, &Vec<u64>), &[Vec<u64>])| {
            let (len_of, offset) = (half(&ends[1], 8), half(&ends[1], 12));
            let behind = (u64::from(offset) + u64::from(len_of)).saturating_sub(1) / PAGE_SIZE;
            Buffer {
                slot: node.slot,
                address: head[address / 8],
                len: half(head, len),
                tag: node.tag,
                pages: (ends[0][0] + u64::from(half(&ends[0], 12)) / PAGE_SIZE * page, ends[1][0] + behind * page),
                is_kernels: kernels.is_some_and(|at| half(head, at) & 0xff != 0),
            }
        };
        Ok(nodes.iter().zip(&heads).zip(ends.chunks_exact(2)).map(told).collect())
    }

    fn eventfd(&self, at: u64) -> Result<Option<(u64, bool)>, Errno> {
        if at == 0 {
            return Ok(None);
        }
        let (context, asynchronous) = (self.at("io_ev_fd", "cq_ev_fd")?, self.at("io_ev_fd", "eventfd_async")?);
        let words = self.memory(&[(at + context as u64, 1), (at + asynchronous as u64, 1)])?;
        // How it is told is a bit field in older kernels, which the line above has refused.
        Ok(Some((words[0][0], words[1][0] as u32 & 1 != 0)))
    }
}

/// Which page the kernel means by the address of its structure.
#[derive(Debug)]
pub struct Pages {
    /// Where the structure of frame 0 stands.
    base: u64,
    size: u64,
}

impl Pages {
    /// Found by registering a page of our own with a ring of our own. EPERM without the right to see frames.
    pub fn find() -> Result<Self, Errno> {
        #[repr(align(4096))]
        struct Page([u8; PAGE_SIZE as usize]);
        let page = Box::new(Page([1; PAGE_SIZE as usize]));
        let address = page.0.as_ptr() as u64;
        let own = rustix::process::getpid();
        let (ring, _) = super::make(1, 2, 0)?;
        register_own_memory(ring.as_fd(), &page.0)?;
        let tables = of_ring(own.as_raw_nonzero().get(), ring.as_raw_fd())?;
        let size = u64::from(Btf::running()?.size("page").ok_or(Errno::NOTSUP)?);
        let frame = frame(own, address)?.ok_or(Errno::PERM)?;
        let first = tables.buffers.first().ok_or(Errno::NOTSUP)?.pages.0;
        Ok(Pages { base: first.wrapping_sub(frame * size), size })
    }

    /// Whether a page is the one that a process has at an address.
    pub fn is_at(&self, page: u64, pid: Pid, address: u64) -> Result<bool, Errno> {
        Ok(frame(pid, address)?.is_some_and(|frame| page == self.base.wrapping_add(frame * self.size)))
    }
}

/// The frame behind an address; `None` for none, or one that we may not see.
fn frame(pid: Pid, address: u64) -> Result<Option<u64>, Errno> {
    let task = Task::open(pid).map_err(|e| e.errno().unwrap_or(Errno::SRCH))?;
    let pagemap = task.open_file("pagemap", rustix::fs::OFlags::RDONLY);
    let mut entry = [Entry::default()];
    read_entries(pagemap.map_err(|e| e.errno().unwrap_or(Errno::IO))?, address, &mut entry)?;
    let frame = entry[0].frame();
    Ok((frame != 0).then_some(frame))
}

/// Lets a ring have memory of this process as its only buffer.
fn register_own_memory(ring: BorrowedFd<'_>, memory: &[u8]) -> Result<(), Errno> {
    const BUFFERS: u32 = 0;
    let vector = libc::iovec { iov_base: memory.as_ptr().cast_mut().cast(), iov_len: memory.len() };
    // SAFETY: the kernel reads one struct iovec. It may write to the memory only by requests, of which there are none.
    unsafe { call(ring, BUFFERS, (&raw const vector).cast(), 1) }
}

/// What io_uring_register(2) is asked to do (linux/io_uring.h).
pub mod register {
    pub const EVENTFD: u32 = 4;
    pub const EVENTFD_ASYNC: u32 = 7;
    pub const FILES2: u32 = 13;
    pub const FILES_UPDATE2: u32 = 14;
    pub const BUFFERS2: u32 = 15;
    pub const BUFFERS_UPDATE: u32 = 16;
    pub const FILE_ALLOC_RANGE: u32 = 25;
    pub const CLOCK: u32 = 29;
}

/// struct io_uring_rsrc_register of an empty table.
#[must_use]
pub fn sparse(slots: u32) -> [u32; 8] {
    const SPARSE: u32 = 1;
    [slots, SPARSE, 0, 0, 0, 0, 0, 0]
}

/// struct io_uring_rsrc_update2: what stands at `data`, and the tags for it, go into so many slots from `first` on.
#[must_use]
pub fn update(first: u32, data: u64, tags: u64, count: u32) -> [u64; 4] {
    [first.into(), data, tags, count.into()]
}

/// Gives a ring a table for files, with these in it, and where others go.
pub fn register_files(
    ring: BorrowedFd<'_>,
    slots: u32,
    files: &[(u32, BorrowedFd<'_>, u64)],
    allocation: (u32, u32),
) -> Result<(), Errno> {
    let table = sparse(slots);
    // SAFETY: the kernel reads one struct io_uring_rsrc_register, which `sparse` makes.
    unsafe { call(ring, register::FILES2, table.as_ptr().cast(), size_of_val(&table)) }?;
    for (slot, file, tag) in files {
        let number = file.as_raw_fd();
        let update = update(*slot, (&raw const number) as u64, (&raw const *tag) as u64, 1);
        // SAFETY: the kernel reads one struct io_uring_rsrc_update2, and the number and the tag that it leads to.
        unsafe { call(ring, register::FILES_UPDATE2, update.as_ptr().cast(), size_of_val(&update)) }?;
    }
    if allocation == (0, slots) {
        return Ok(());
    }
    let range = [allocation.0, allocation.1.saturating_sub(allocation.0), 0, 0];
    // SAFETY: the kernel reads one struct io_uring_file_index_range.
    unsafe { call(ring, register::FILE_ALLOC_RANGE, range.as_ptr().cast(), 0) }
}

/// Lets an eventfd be told of completions, or only of those that did not come at once.
pub fn register_eventfd(ring: BorrowedFd<'_>, eventfd: BorrowedFd<'_>, asynchronous: bool) -> Result<(), Errno> {
    let how = if asynchronous { register::EVENTFD_ASYNC } else { register::EVENTFD };
    let number = eventfd.as_raw_fd();
    // SAFETY: the kernel reads one number.
    unsafe { call(ring, how, (&raw const number).cast(), 1) }
}

/// Sets the clock of a ring's waits. Linux 6.12.
pub fn register_clock(ring: BorrowedFd<'_>, clock: i32) -> Result<(), Errno> {
    let clock = [clock, 0, 0, 0];
    // SAFETY: the kernel reads one struct io_uring_clock_register.
    unsafe { call(ring, register::CLOCK, clock.as_ptr().cast(), 0) }
}

/// # Safety
/// `what` is what this request reads, and nothing that it writes.
unsafe fn call(ring: BorrowedFd<'_>, request: u32, what: *const u8, count: usize) -> Result<(), Errno> {
    // SAFETY: by the caller.
    super::check(unsafe { libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), request, what, count) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::fd::OwnedFd;

    #[test]
    fn what_is_registered_is_told() {
        let own = rustix::process::getpid();
        let tid = own.as_raw_nonzero().get();
        let (ring, _) = super::super::make(4, 8, 0).unwrap();
        let Ok(none) = of_ring(tid, ring.as_raw_fd()) else { return };
        assert_eq!(none, Tables::default());
        let (event, (reader, _writer)) = (eventfd(0, EventfdFlags::empty()).unwrap(), rustix::pipe::pipe().unwrap());
        let files = [(3, event.as_fd(), 0), (900, reader.as_fd(), 77)];
        register_files(ring.as_fd(), 1000, &files, (500, 600)).unwrap();
        register_eventfd(ring.as_fd(), event.as_fd(), true).unwrap();
        let memory = vec![7; 3 << 20];
        register_own_memory(ring.as_fd(), &memory).unwrap();
        let tables = of_ring(tid, ring.as_raw_fd()).unwrap();
        let all = descriptors(tid).unwrap();
        let known = |fd: i32| all.iter().find(|d| d.fd == fd).unwrap();
        let file = |slot, fd: &OwnedFd, tag| File { slot, file: known(fd.as_raw_fd()).file, tag };
        assert_eq!(tables.files, [file(3, &event, 0), file(900, &reader, 77)]);
        assert_eq!((tables.file_slots, tables.allocation), (1000, (500, 600)));
        assert_eq!(tables.eventfd, Some((known(event.as_raw_fd()).behind, true)));
        let [buffer] = tables.buffers[..] else { panic!("{tables:?}") };
        let (begin, len) = (memory.as_ptr() as u64, memory.len() as u64);
        assert_eq!((buffer.address, u64::from(buffer.len), buffer.is_kernels), (begin, len, false));
        let pages = Pages::find().unwrap();
        assert!(pages.is_at(buffer.pages.0, own, begin).unwrap());
        assert!(pages.is_at(buffer.pages.1, own, begin + len - 1).unwrap());
        assert!(!pages.is_at(buffer.pages.0, own, begin + PAGE_SIZE).unwrap());
    }
}
