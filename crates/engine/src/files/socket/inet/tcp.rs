//! TCP: in which state a socket is, what that leads to, and TCP's options.
//!
//! Connections are taken apart and put together in [`super::connection`].

use super::super::beside::Extra;
use super::super::settings::{self, Setting};
use super::peers::{Peer, Peers};
use super::{CLOSE, address, connection, ended, error, in_flight, object, ready, sort_of, state, waiting};
use crate::files::{Collect, OpenFile};
use crate::tcp_policy::TcpPolicy;
use crate::{Error, RestoreOptions, Result};
use cryonaut_image::records::{InetSkEntry, SkShutdown, TcpOptsEntry};
use cryonaut_kernel::sys::socket_inside::Inside;
use cryonaut_kernel::sys::{sock_diag, socket, tcp_repair};
use libc::IPPROTO_TCP;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

/// Longest name of a congestion control (TCP_CA_NAME_MAX).
const CA_NAME_MAX: usize = 16;
/// Longest name of what stands between TCP and the program (TCP_ULP_NAME_MAX).
const ULP_NAME_MAX: usize = 16;
const TCP_AO_INFO: i32 = 40;

/// What TCP alone tells of a socket.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// In which state it is.
    pub info: Info,
    /// What stands between TCP and the program.
    layer: String,
    /// Whether its packets are signed (TCP-AO).
    signed: bool,
    congestion: String,
    options: TcpOptsEntry,
}

impl Told {
    /// Of a socket of TCP.
    pub fn of(socket: BorrowedFd<'_>) -> std::result::Result<Told, Errno> {
        let name = |option, most| socket::get_bytes(socket, IPPROTO_TCP, option, most).map(|name| text(&name));
        Ok(Told {
            info: Info::of(socket)?,
            layer: name(libc::TCP_ULP, ULP_NAME_MAX).unwrap_or_default(),
            signed: socket::get_bytes(socket, IPPROTO_TCP, TCP_AO_INFO, 24).is_ok(),
            congestion: name(libc::TCP_CONGESTION, CA_NAME_MAX)?,
            options: read_options(socket)?,
        })
    }
}

/// What of `struct tcp_info` is of interest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Info {
    /// `TCP_ESTABLISHED` and so on.
    pub state: u32,
    /// Of a listening socket: connections that wait to be accepted.
    pub waiting: u32,
    /// Of a listening socket: how many may wait.
    backlog: u32,
}

impl Info {
    /// Of a socket of TCP.
    pub fn of(socket: BorrowedFd<'_>) -> std::result::Result<Info, Errno> {
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
    // They say something else in a connection, and of one that has ended nothing of use.
    if is_connection(record) {
        tables.push(settings::TCP_CONNECTED);
    } else if !has_ended(record) && record.state != state::SYN_SENT {
        tables.push(settings::TCP_AT_REST);
    }
    if record.state == state::LISTEN {
        tables.push(settings::RECEIVERS);
    }
    tables
}

/// Whether it was connected, and is not any more; or was shut down without.
pub fn has_ended(record: &InetSkEntry) -> bool {
    sort_of(record).is_tcp() && record.state == state::CLOSE && record.shutdown() == SkShutdown::Both
}

/// Reads what is TCP's own.
pub fn collect(
    cx: &mut Collect<'_>,
    file: &OpenFile<'_>,
    record: &mut InetSkEntry,
    extra: &mut Extra,
    (error, inside): (i32, Option<&Inside>),
) -> Result<()> {
    let told = file.asked.tcp().map_or_else(|| Told::of(file.file), Ok);
    let told = told.map_err(|e| Error::kernel(file.object(), "ask for its state and TCP's options", e))?;
    refuse_layers(file, &told)?;
    let info = told.info;
    record.state = info.state;
    match info.state {
        state::LISTEN => {
            record.backlog = info.backlog;
            if info.waiting > 0 && cx.options.skip_in_flight {
                tracing::warn!("{}: {} connections that wait to be accepted are lost", file.object(), info.waiting);
            } else if !cx.options.skip_in_flight {
                waiting::collect(cx, file, record, extra, info.waiting)?;
            }
        }
        state::CLOSE => {
            if ready(file.file).contains(PollFlags::RDHUP) {
                record.set_shutdown(SkShutdown::Both);
            }
            let urgent = inside.is_some_and(|inside| inside.urgent);
            ended::collect(cx, file, record, extra, (error, urgent))?;
        }
        state::SYN_SENT => collect_in_flight(cx, file, record, extra)?,
        connected if connection::is_connected(connected) => {
            if collect_connection(cx, file, record, extra, inside)? && error != 0 {
                if !error::can_come(record, error, Some(peer_of(record)?)) {
                    return Err(error::refuse(file, error));
                }
                extra.error = error;
            }
        }
        other => {
            let reason = format!("it is in the state {other} of TCP, which cannot be carried");
            return Err(Error::unsupported(file.object(), reason, "try again in a moment"));
        }
    }
    extra.congestion = Some(told.congestion);
    record.tcp_opts = Some(told.options);
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
fn refuse_layers(file: &OpenFile<'_>, told: &Told) -> Result<()> {
    let refuse = |reason: String| Err(Error::unsupported(file.object(), reason, CLOSE));
    match told.layer.as_str() {
        "" => {}
        "tls" => return refuse("it has kernel TLS, whose keys nobody tells (TCP_ULP tls)".into()),
        name => return refuse(format!("it has a layer that nobody tells of (TCP_ULP {name})")),
    }
    if told.signed {
        return refuse("its packets are signed (TCP-AO) by keys that nobody tells".into());
    }
    Ok(())
}

/// A connection that the other end has not answered yet.
fn collect_in_flight(cx: &Collect<'_>, file: &OpenFile<'_>, record: &mut InetSkEntry, extra: &mut Extra) -> Result<()> {
    let peer = address::last_peer(file.file).ok().flatten();
    let peer =
        peer.ok_or_else(|| Error::kernel(file.object(), "ask with whom it is being connected", Errno::NOTCONN))?;
    if cx.options.skip_in_flight {
        tracing::warn!("{}: its connection with {peer}, which was not established yet, is given up", file.object());
        close(record);
        return Ok(());
    }
    match cx.options.tcp.of(peer) {
        TcpPolicy::Keep => in_flight::collect(cx, file, record, extra, peer),
        TcpPolicy::Refuse => Err(refuse_connections(cx, file)),
        TcpPolicy::Close | TcpPolicy::Reset => {
            close(record);
            Ok(())
        }
    }
}

/// Whether a record is one of a connection.
pub fn is_connection(record: &InetSkEntry) -> bool {
    sort_of(record).is_tcp() && connection::is_connected(record.state)
}

/// A record as the user wants it to be built: a connection as one that has ended, if asked for.
pub fn as_asked(record: &InetSkEntry, options: &RestoreOptions) -> InetSkEntry {
    let mut record = record.clone();
    if (is_connection(&record) || record.state == state::SYN_SENT)
        && peer_of(&record).is_ok_and(|peer| !options.tcp.of(peer).keeps_record())
    {
        close(&mut record);
    }
    record
}

fn peer_of(record: &InetSkEntry) -> Result<SocketAddr> {
    address::of_record(record, &record.dst_addr, record.dst_port, 0)
}

/// The program sees an orderly end.
fn close(record: &mut InetSkEntry) {
    record.state = state::CLOSE;
    record.set_shutdown(SkShutdown::Both);
}

/// The state of a socket of TCP.
pub fn state_of(socket: BorrowedFd<'_>) -> std::result::Result<u32, Errno> {
    Info::of(socket).map(|info| info.state)
}

/// A connection, as the user wants it; whether it is carried.
fn collect_connection(
    cx: &mut Collect<'_>,
    file: &OpenFile<'_>,
    record: &mut InetSkEntry,
    extra: &mut Extra,
    inside: Option<&Inside>,
) -> Result<bool> {
    let held = |e| Error::kernel(file.object(), "hold it", crate::error::errno_of(&e));
    match cx.options.tcp.of(peer_of(record)?) {
        TcpPolicy::Refuse => return Err(refuse_connections(cx, file)),
        TcpPolicy::Close => {
            close(record);
            return Ok(false);
        }
        TcpPolicy::Reset => {
            close(record);
            return cx.sockets.held.hold_for_reset(file.file).map_err(held).map(|()| false);
        }
        TcpPolicy::Keep => {}
    }
    connection::collect(cx, file, record, extra, inside)?;
    cx.sockets.held.hold(file.file).map_err(held).map(|()| true)
}

/// Names all connections of the tree that nothing is said about, of which one was met.
pub fn refuse_connections(cx: &Collect<'_>, file: &OpenFile<'_>) -> Error {
    const SHOWN: usize = 20;
    let tree = cx.pids.iter().map(|pid| (*pid, cx.speaker(*pid)));
    let mut peers = Peers::of_tree(tree, !cx.options.skip_in_flight, cx.has_sockets).unwrap_or_default().0;
    peers.retain(|one| cx.options.tcp.of(one.peer) == TcpPolicy::Refuse && !one.is_half_open());
    let mut all: Vec<String> = peers.iter().take(SHOWN).map(Peer::to_string).collect();
    if peers.len() > SHOWN {
        all.push(format!("and {} more", peers.len() - SHOWN));
    }
    Error::unsupported(
        file.object(),
        format!("the tree has connections of TCP: {}", all.join("; ")),
        "--tcp-established carries them, --tcp-close lets the programs see their end, --skip-in-flight gives up those that \
         are not established or accepted yet",
    )
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

/// Gives a socket an address that others have: none looks for rivals of a socket in repair mode
/// (`SK_FORCE_REUSE`, net/ipv4/inet_connection_sock.c).
pub fn bind_beside(socket: BorrowedFd<'_>, record: &InetSkEntry, own: &SocketAddr) -> Result<()> {
    let bound =
        tcp_repair::begin(socket).and_then(|()| rustix::net::bind(socket, own).and(tcp_repair::end_silently(socket)));
    bound.map_err(|e| {
        Error::kernel(object(record.id, sort_of(record)), format!("bind it beside others to {own} (TCP_REPAIR)"), e)
    })
}

/// From now on others can connect.
pub fn listen(socket: BorrowedFd<'_>, backlog: u32, record: &InetSkEntry) -> Result<()> {
    rustix::net::listen(socket, backlog as i32)
        .map_err(|e| Error::kernel(object(record.id, sort_of(record)), "listen at it", e))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn an_ended_connection_has_its_address_although_another_program_listens_there() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        let own = listener.local_addr().expect("its address");
        let record = InetSkEntry {
            family: libc::AF_INET as u32,
            r#type: libc::SOCK_STREAM as u32,
            proto: IPPROTO_TCP as u32,
            ..Default::default()
        };
        let socket = sort_of(&record).make().expect("a socket");
        assert_eq!(rustix::net::bind(&socket, &own), Err(Errno::ADDRINUSE));

        bind_beside(socket.as_fd(), &record, &own).expect("bind it beside the other");

        assert_eq!(address::local(socket.as_fd()).expect("its address"), own);
    }
}
