//! TCP: sockets that are not connected, or listen.

use super::super::beside::Extra;
use super::super::settings::{self, Setting};
use super::{CLOSE, address, object, ready, sort_of, state};
use crate::files::{Collect, OpenFile};
use crate::{Error, Result};
use cryonaut_image::records::{InetSkEntry, SkShutdown, TcpOptsEntry};
use cryonaut_kernel::sys::{sock_diag, socket};
use libc::IPPROTO_TCP;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// Longest name of a congestion control (TCP_CA_NAME_MAX).
const CA_NAME_MAX: usize = 16;
/// Longest name of what stands between TCP and the program (TCP_ULP_NAME_MAX).
const ULP_NAME_MAX: usize = 16;
const TCP_AO_INFO: i32 = 40;

/// What of `struct tcp_info` is of interest.
#[derive(Debug, Clone, Copy)]
struct Info {
    state: u32,
    /// Of a listening socket: connections that wait to be accepted.
    waiting: u32,
    /// Of a listening socket: how many may wait.
    backlog: u32,
}

impl Info {
    fn of(socket: BorrowedFd<'_>) -> std::result::Result<Info, Errno> {
        // The state is the first byte; tcpi_unacked and tcpi_sacked have these places since ever.
        let told = socket::get_bytes(socket, IPPROTO_TCP, libc::TCP_INFO, 32)?;
        let word = |at: usize| told.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word));
        let (Some(state), Some(waiting), Some(backlog)) = (told.first(), word(24), word(28)) else {
            return Err(Errno::INVAL);
        };
        Ok(Info { state: u32::from(*state), waiting, backlog })
    }
}

/// The tables of options that such a socket has.
pub fn tables(record: &InetSkEntry) -> Vec<&'static [Setting]> {
    let mut tables = vec![settings::TCP];
    // What a connection has left behind when it ended is of no use any more.
    if !has_ended(record) {
        tables.push(settings::TCP_AT_REST);
    }
    if record.state == state::LISTEN {
        tables.push(settings::RECEIVERS);
    }
    tables
}

/// Whether it was connected, and is not any more; or was shut down without.
pub fn has_ended(record: &InetSkEntry) -> bool {
    let tcp = record.proto == IPPROTO_TCP as u32;
    tcp && record.state == state::CLOSE && record.shutdown() == SkShutdown::Both
}

/// Reads what is TCP's own.
pub fn collect(_cx: &mut Collect<'_>, file: &OpenFile<'_>, record: &mut InetSkEntry, extra: &mut Extra) -> Result<()> {
    let failed = |what: &str, e| Error::kernel(file.object(), what, e);
    refuse_layers(file)?;
    let info = Info::of(file.file).map_err(|e| failed("ask for its state", e))?;
    record.state = info.state;
    match info.state {
        state::LISTEN => {
            if info.waiting > 0 {
                return Err(Error::unsupported(
                    file.object(),
                    format!("{} connections wait to be accepted, which cannot be carried yet", info.waiting),
                    "let the program accept them before the checkpoint",
                ));
            }
            record.backlog = info.backlog;
        }
        state::CLOSE => collect_closed(file, record)?,
        _ => return Err(refuse_connection(file)),
    }
    let name = socket::get_bytes(file.file, IPPROTO_TCP, libc::TCP_CONGESTION, CA_NAME_MAX);
    let name = name.map_err(|e| failed("ask for its congestion control", e))?;
    extra.congestion = Some(text(&name));
    record.tcp_opts = Some(read_options(file.file).map_err(|e| failed("read TCP's options", e))?);
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn read_options(socket: BorrowedFd<'_>) -> std::result::Result<TcpOptsEntry, Errno> {
    let get = |option| socket::get_int(socket, IPPROTO_TCP, option);
    Ok(TcpOptsEntry {
        cork: (get(libc::TCP_CORK)? != 0).then_some(true),
        nodelay: (get(libc::TCP_NODELAY)? != 0).then_some(true),
        keepcnt: Some(get(libc::TCP_KEEPCNT)? as u32),
        keepidle: Some(get(libc::TCP_KEEPIDLE)? as u32),
        keepintvl: Some(get(libc::TCP_KEEPINTVL)? as u32),
    })
}

/// What stands between TCP and the program, or in its packets, is state that nobody tells.
fn refuse_layers(file: &OpenFile<'_>) -> Result<()> {
    let refuse = |reason: String| Err(Error::unsupported(file.object(), reason, CLOSE));
    if let Ok(name) = socket::get_bytes(file.file, IPPROTO_TCP, libc::TCP_ULP, ULP_NAME_MAX)
        && !text(&name).is_empty()
    {
        let name = text(&name);
        let what = if name == "tls" { "kernel TLS, whose keys nobody tells" } else { "a layer that nobody tells of" };
        return refuse(format!("it has {what} (TCP_ULP {name})"));
    }
    if socket::get_bytes(file.file, IPPROTO_TCP, TCP_AO_INFO, 24).is_ok() {
        return refuse("its packets are signed (TCP-AO) by keys that nobody tells".into());
    }
    Ok(())
}

/// A socket that is not connected, or not any more.
fn collect_closed(file: &OpenFile<'_>, record: &mut InetSkEntry) -> Result<()> {
    let unread = rustix::io::ioctl_fionread(file.file);
    if unread.map_err(|e| Error::kernel(file.object(), "ask for what is unread", e))? > 0 {
        return Err(Error::unsupported(
            file.object(),
            "its connection has ended, and the program has not read all data of it, which cannot be carried yet",
            CLOSE,
        ));
    }
    if ready(file.file).contains(PollFlags::RDHUP) {
        record.set_shutdown(SkShutdown::Both);
    }
    Ok(())
}

fn refuse_connection(file: &OpenFile<'_>) -> Error {
    let peer = match address::peer(file.file) {
        Ok(Some(peer)) => format!(" with {peer}"),
        _ => String::new(),
    };
    Error::unsupported(file.object(), format!("its TCP connection{peer} cannot be carried yet"), CLOSE)
}

/// Sets what is TCP's own.
pub fn build(socket: BorrowedFd<'_>, record: &InetSkEntry, extra: &Extra) -> Result<()> {
    let what = || object(record.id, sort_of(record));
    if let Some(wanted) = &extra.congestion {
        let has = socket::get_bytes(socket, IPPROTO_TCP, libc::TCP_CONGESTION, CA_NAME_MAX).unwrap_or_default();
        if text(&has) != *wanted
            && let Err(e) = socket::set_bytes(socket, IPPROTO_TCP, libc::TCP_CONGESTION, wanted.as_bytes())
        {
            tracing::warn!("{}: cannot set its congestion control to {wanted}: {e}; it has {}", what(), text(&has));
        }
    }
    let Some(tcp) = &record.tcp_opts else { return Ok(()) };
    for (option, name, wanted) in [
        (libc::TCP_NODELAY, "TCP_NODELAY", tcp.nodelay.map(u32::from)),
        (libc::TCP_CORK, "TCP_CORK", tcp.cork.map(u32::from)),
        (libc::TCP_KEEPCNT, "TCP_KEEPCNT", tcp.keepcnt.or(record.opts.tcp_keepcnt)),
        (libc::TCP_KEEPIDLE, "TCP_KEEPIDLE", tcp.keepidle.or(record.opts.tcp_keepidle)),
        (libc::TCP_KEEPINTVL, "TCP_KEEPINTVL", tcp.keepintvl.or(record.opts.tcp_keepintvl)),
    ] {
        if let Some(wanted) = wanted.map(|wanted| wanted as i32)
            && socket::get_int(socket, IPPROTO_TCP, option) != Ok(wanted)
        {
            socket::set_int(socket, IPPROTO_TCP, option, wanted)
                .map_err(|e| Error::kernel(what(), format!("set {name}"), e))?;
        }
    }
    Ok(())
}

/// What has been connected from the port of a socket and has ended may keep it
/// from others for a minute, but here its owner comes back. Whether any was
/// there.
pub fn clear_port(record: &InetSkEntry) -> bool {
    let port = u16::try_from(record.src_port).ok().filter(|_| record.proto == IPPROTO_TCP as u32);
    match port.map(sock_diag::end_time_waits) {
        None => false,
        Some(Ok(count)) => count > 0,
        Some(Err(e)) => {
            tracing::debug!("port {}: cannot end what is left of connections: {e}", record.src_port);
            false
        }
    }
}

/// From now on others can connect.
pub fn listen(socket: BorrowedFd<'_>, record: &InetSkEntry) -> Result<()> {
    rustix::net::listen(socket, record.backlog as i32)
        .map_err(|e| Error::kernel(object(record.id, sort_of(record)), "listen at it", e))
}
