//! Probes of what the kernel tells of open files and lets be set on them.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{FlockOperation, MemfdFlags};
use rustix::io::Errno;

use super::{errno, present, proc_errno};
use crate::proc::Task;
use crate::proc::fdinfo::{Details, FdInfo};
use crate::sys::{bpf, fanotify as fan, fcntl, handle, io_uring as uring, socket, timerfd};

fn fdinfo(file: impl AsFd) -> Result<FdInfo, Errno> {
    let fd = file.as_fd().as_raw_fd();
    Task::current().and_then(|me| me.fdinfo(fd)).map_err(proc_errno)
}

fn memfd() -> Result<OwnedFd, Errno> {
    rustix::fs::memfd_create("probe", MemfdFlags::CLOEXEC)
}

pub(super) fn fdinfo_mnt_id() -> Result<(), Errno> {
    let root = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())?;
    present(fdinfo(root)?.mnt_id != 0)
}

pub(super) fn fdinfo_ino() -> Result<(), Errno> {
    let file = memfd()?;
    present(fdinfo(&file)?.ino == Some(rustix::fs::fstat(&file)?.st_ino))
}

pub(super) fn fdinfo_lock() -> Result<(), Errno> {
    let file = memfd()?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    present(!fdinfo(&file)?.locks.is_empty())
}

pub(super) fn eventfd_semaphore() -> Result<(), Errno> {
    use rustix::event::{EventfdFlags, eventfd};
    let event = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE)?;
    present(matches!(fdinfo(event)?.details, Details::EventFd { semaphore: Some(true), .. }))
}

pub(super) fn timerfd_ticks() -> Result<(), Errno> {
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
    timerfd::set_ticks(timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?, 1)
}

pub(super) fn owner_uids() -> Result<(), Errno> {
    let (reader, _writer) = rustix::pipe::pipe()?;
    fcntl::getowner_uids(&reader).map(drop)
}

pub(super) fn fanotify() -> Result<(), Errno> {
    fan::init(libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC, libc::O_RDONLY as u32).map(drop)
}

pub(super) fn file_handles() -> Result<(), Errno> {
    use rustix::fs::{AtFlags, CWD, Mode, OFlags};
    let root = rustix::fs::openat(CWD, "/", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let (handle, _) = handle::name_to_handle_at(&root, c"", AtFlags::EMPTY_PATH)?;
    handle::open_by_handle_at(&root, &handle, OFlags::PATH | OFlags::CLOEXEC).map(drop)
}

pub(super) fn bpf_maps() -> Result<(), Errno> {
    const ARRAY: u32 = 2;
    let spec = bpf::MapSpec { map_type: ARRAY, key_size: 4, value_size: 4, max_entries: 1, ..bpf::MapSpec::default() };
    bpf::Map::create(&spec)?.update(&[0; 4], &[1; 4], 0)
}

pub(super) fn io_uring() -> Result<(), Errno> {
    let (ring, _) = uring::make(1, 2, 0)?;
    uring::inside(rustix::thread::gettid().as_raw_nonzero().get(), ring.as_raw_fd()).map(drop)
}

pub(super) fn sock_buf_lock() -> Result<(), Errno> {
    let (one, _other) = std::os::unix::net::UnixDatagram::pair().map_err(errno)?;
    socket::set_int(&one, libc::SOL_SOCKET, socket::so::BUF_LOCK, 1)
}

const REPAIR_ON: i32 = 1;
const REPAIR_OFF_NO_PROBE: i32 = -1;

fn repair(socket: impl AsFd) -> Result<(), Errno> {
    socket::set_int(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, REPAIR_ON)?;
    socket::set_int(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, REPAIR_OFF_NO_PROBE)
}

pub(super) fn tcp_repair() -> Result<(), Errno> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    repair(socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

pub(super) fn tcp_half_closed() -> Result<(), Errno> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(errno)?;
    // The backlog takes the connection: nobody has to accept it.
    let stream = TcpStream::connect(listener.local_addr().map_err(errno)?).map_err(errno)?;
    stream.shutdown(std::net::Shutdown::Write).map_err(errno)?;
    repair(&stream)
}
