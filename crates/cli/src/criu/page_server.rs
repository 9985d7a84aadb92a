//! `criu page-server`: takes the pages of one dump into the images directory, or with `--lazy-pages` serves those that
//! are there; and a dump's way to such a server.
//!
//! In the background it is this program once more, with what it listens at, or its connection, as standard input.

use super::place::Place;
use super::settings::Settings;
use crate::pidfile::Pidfile;
use anyhow::{Context, Result, ensure};
use cryonaut_page_server::receive::{ReceiveOptions, receive};
use cryonaut_page_server::serve::serve;
use cryonaut_page_server::{Address, Client, ImagePages, Listener, Place as At, Sender, Stream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;

/// The operand of the one in the background, whose standard input listens.
const LISTENING: &str = "listening";

/// Runs until the one who connects is served.
///
/// # Errors
/// When it cannot listen, and those of the session; nothing of an unfinished dump is left then.
pub fn run(settings: &Settings, place: &Place) -> Result<ExitCode> {
    place.check()?;
    let tls = settings.tls.options();
    if settings.operands.first().is_some_and(|operand| operand == LISTENING) {
        let listener = take_inherited(0).context("nothing listens at standard input")?;
        return session(Listener::inherited(listener).accept(tls.as_ref())?, settings, place);
    }
    if let Some(number) = settings.ps_socket {
        let socket = take_inherited(number).with_context(|| format!("--ps-socket: {number} is not open"))?;
        tell_ready(settings)?;
        return session(Stream::serve(socket, "at the socket given".into(), true, tls.as_ref())?, settings, place);
    }
    let pidfile = Pidfile::claim(settings.pidfile.as_ref().map(|file| place.work.join(file)))?;
    let listener = listener(settings)?;
    if settings.daemon {
        let server = in_background(listener.into(), Some(LISTENING), settings, place)?;
        pidfile.write(server.id() as i32)?;
        tell_ready(settings)?;
        return Ok(ExitCode::SUCCESS);
    }
    pidfile.write(rustix::process::getpid().as_raw_nonzero().get())?;
    tell_ready(settings)?;
    session(listener.accept(tls.as_ref())?, settings, place)
}

/// Begins a server in the background for a request of the RPC. Its process, and the port at which it listens.
///
/// # Errors
/// When it cannot listen, or not be begun.
pub fn start(settings: &Settings, place: &Place) -> Result<(Child, u16)> {
    place.check()?;
    if let Some(number) = settings.ps_socket {
        let socket = take_inherited(number).with_context(|| format!("ps: the descriptor {number} is not open"))?;
        return Ok((in_background(socket, None, settings, place)?, 0));
    }
    let listener = listener(settings)?;
    let port = listener.port()?;
    Ok((in_background(listener.into(), Some(LISTENING), settings, place)?, port))
}

/// The way to the server that `--page-server` asks for.
///
/// # Errors
/// When it cannot be reached, or nothing says where it is.
pub fn sender(settings: &Settings) -> Result<Option<Arc<Sender>>> {
    let connect = |at| Ok(Arc::new(Sender::connect(at, settings.tls.options().as_ref())?));
    way(settings)?.map(connect).transpose()
}

/// The same to ask it for pages.
///
/// # Errors
/// When it cannot be reached, or nothing says where it is.
pub fn client(settings: &Settings) -> Result<Option<Client>> {
    way(settings)?.map(|at| Ok(Client::connect(at, settings.tls.options().as_ref())?)).transpose()
}

fn way(settings: &Settings) -> Result<Option<At>> {
    if !settings.page_server {
        return Ok(None);
    }
    Ok(Some(match settings.ps_socket {
        Some(number) => {
            let socket = take_inherited(number).with_context(|| format!("--ps-socket: {number} is not open"))?;
            At::Socket(socket)
        }
        None => At::At(address(settings, true)?),
    }))
}

/// Says that whoever connects is served from now on. Who waits for that may do so for the end of what we say.
pub fn tell_ready(settings: &Settings) -> Result<()> {
    tell_ready_at(settings.status_fd.as_deref())
}

/// The same at this file.
pub fn tell_ready_at(status: Option<&Path>) -> Result<()> {
    super::actions::tell_ready(status)?;
    let own = status.and_then(|file| file.strip_prefix("/proc/self/fd").ok());
    let number = own.and_then(|number| number.to_str()?.parse().ok());
    number.map_or(Ok(()), |number| Ok(cryonaut_kernel::sys::fcntl::let_go_of_inherited(number)?))
}

fn take_inherited(number: i32) -> Result<OwnedFd> {
    Ok(cryonaut_kernel::sys::fcntl::take_inherited(number)?)
}

fn address(settings: &Settings, needs_port: bool) -> Result<Address> {
    let port = settings.port.unwrap_or(0);
    ensure!(port != 0 || !needs_port, "--page-server: --port is missing: at which does the server listen?");
    let host = settings.address.clone().unwrap_or_default().into_string();
    let host = host.ok().context("--address: it is not UTF-8")?;
    Ok(Address { host, port })
}

fn listener(settings: &Settings) -> Result<Listener> {
    let listener = Listener::bind(&address(settings, false)?)?;
    tracing::info!("The page server is listening at port {}", listener.port()?);
    Ok(listener)
}

/// Where a dump waits that serves its pages itself. Callers may name the address of the host to which the tree goes, as
/// CRIU takes no notice of it: then it is every address of this one.
pub fn lazy_listener(settings: &Settings) -> Result<Listener> {
    let address = address(settings, false)?;
    ensure!(address.port != 0, "--lazy-pages: --port is missing: at which are the pages to be served?");
    let is_elsewhere =
        |error: &cryonaut_page_server::Error| error.errno() == Some(rustix::io::Errno::ADDRNOTAVAIL.raw_os_error());
    let listener = Listener::bind(&address).or_else(|error| match is_elsewhere(&error) {
        true => Listener::bind(&Address { host: String::new(), ..address }),
        false => Err(error),
    })?;
    tracing::info!("Pages will be served at port {}", listener.port()?);
    Ok(listener)
}

/// Serves the one who has connected.
fn session(stream: Stream, settings: &Settings, place: &Place) -> Result<ExitCode> {
    tracing::info!("Accepted connection from {}", stream.peer());
    if settings.lazy_pages {
        serve(stream, &mut ImagePages::open(&place.images)?)?;
        tracing::info!("Session over");
        return Ok(ExitCode::SUCCESS);
    }
    let options = ReceiveOptions { parent: settings.prev_images_dir.clone(), dedup: settings.auto_dedup };
    let received = receive(stream, &place.images, &options)?;
    tracing::info!("Session over: {} pages in {} pagemaps", received.pages, received.pagemaps);
    Ok(ExitCode::SUCCESS)
}

/// This program once more, with the socket as its standard input.
fn in_background(socket: OwnedFd, operand: Option<&str>, settings: &Settings, place: &Place) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("criu").args(["page-server", "--no-default-config"]).args(operand);
    command.args(operand.is_none().then_some("--ps-socket=0"));
    command.arg("-D").arg(std::path::absolute(&place.images)?).arg("-W").arg(std::path::absolute(&place.work)?);
    command.args(settings.for_page_server());
    command.stdin(Stdio::from(socket)).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.spawn().context("the page server cannot go into the background")
}
