//! Connections whose addresses this host translates on their way to a container, or out of it: podman takes the network
//! away and makes it again, and neither end notices more than a pause.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use cryonaut_kernel::sys::conversation::{Conversation, Message};
use libtest_mimic::Failed;
use rustix::net::netlink::NETFILTER;

use super::podman::IMAGE;
use super::programs::{Aloud, Client, REDIS, Served, free_port, redis_at};
use super::{Host, Test, test};
use crate::network::{Network, ip};

pub(super) fn tests() -> Vec<Test> {
    vec![test("published", published), test("idle", idle), test("replaced", replaced), test("outward", outward)]
}

/// How long nobody is there, besides the time that podman takes: peers try again and again.
const AWAY: Duration = Duration::from_millis(700);

/// Another host, joined to this one by a pair of devices that goes with it.
#[derive(Debug)]
struct Other {
    network: Network,
    /// Of this host, as it knows it.
    us: String,
    /// Its own.
    address: String,
}

impl Other {
    fn new() -> Result<Other, Failed> {
        let network = Network::new()?;
        // No other test has these: numbers of processes are below 2^22, and those that live now differ in the last bits.
        let pid = network.pid();
        let (high, low) = (pid >> 6 & 0xff, pid << 2 & 0xfc);
        let address = |host: u32| format!("10.19{}.{high}.{}", pid >> 14 & 7, low + host);
        let (us, own, device) = (address(1), address(2), format!("cr{pid}"));
        ip(&format!("link add {device} type veth peer name vb netns {pid}"))?;
        ip(&format!("address add {us}/30 dev {device}"))?;
        ip(&format!("link set {device} up"))?;
        network.ip(&format!("address add {own}/30 dev vb"))?;
        network.ip("link set vb up")?;
        network.ip(&format!("route add default via {us}"))?;
        Ok(Other { network, us, address: own })
    }

    /// Does it there.
    fn visit<T: Send>(&self, what: impl FnOnce() -> Result<T, Failed> + Send) -> Result<T, Failed> {
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                self.network.enter()?;
                what()
            });
            there.join().map_err(|_| "a visitor has panicked")?
        })
    }
}

/// Two clients of a published port, one on this host and one on another.
fn clients(other: &Other, port: u16) -> Result<[Client; 2], Failed> {
    Ok([Client::connect("127.0.0.1", port)?, other.visit(|| Client::connect(&other.us, port))?])
}

/// They ask without a pause, while the container goes away and comes back twice.
fn published(host: &Host) -> Result<(), Failed> {
    let other = Other::new()?;
    let port = free_port()?;
    let served = redis_at(host, &format!("{port}:6379"))?;
    let speak = |number: usize, mut client: Client| {
        let mut asked = 0;
        move || {
            asked += 1;
            client.expect(&format!("INCR {number}"), &format!(":{asked}"))
        }
    };
    let clients = clients(&other, port)?.into_iter().enumerate().map(|(number, client)| speak(number, client));
    carried_meanwhile(&served, clients.collect())
}

/// The container goes away and comes back twice, while peers do this all the time.
fn carried_meanwhile(served: &Served<'_>, peers: Vec<impl FnMut() -> Result<(), Failed> + Send>) -> Result<(), Failed> {
    let is_over = &AtomicBool::new(false);
    thread::scope(|scope| {
        let peers = peers.into_iter().map(|mut peer| {
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    peer()?;
                    sleep(Duration::from_millis(2));
                }
                Ok::<_, Failed>(())
            })
        });
        let peers: Vec<_> = peers.collect();
        let carried = (0..2).try_for_each(|_| {
            sleep(Duration::from_millis(100));
            served.checkpoint()?;
            sleep(AWAY);
            served.restore()
        });
        sleep(Duration::from_millis(100));
        is_over.store(true, Ordering::Relaxed);
        for peer in peers {
            peer.join().map_err(|_| "a peer has panicked")??;
        }
        carried
    })
}

/// They say nothing while it is away, for so long that this host has forgotten them when it comes back.
fn idle(host: &Host) -> Result<(), Failed> {
    let other = Other::new()?;
    let port = free_port()?;
    let served = redis_at(host, &format!("{port}:6379"))?;
    let mut clients = clients(&other, port)?;
    clients.iter_mut().try_for_each(|client| client.expect("PING", "+PONG"))?;
    served.checkpoint()?;
    for (client, to) in clients.iter().zip(["127.0.0.1", &other.us]) {
        forget(client.address()?, SocketAddr::new(to.parse()?, port))?;
    }
    served.restore()?;
    clients.iter_mut().try_for_each(|client| client.expect("PING", "+PONG"))
}

/// Has this host forget a connection of TCP over IPv4 that it tracks.
fn forget(from: SocketAddr, to: SocketAddr) -> Result<(), Failed> {
    /// NFNL_SUBSYS_CTNETLINK with IPCTNL_MSG_CT_DELETE; CTA_TUPLE_ORIG.
    const DELETE: u16 = 0x102;
    const ORIGINAL: u16 = 1;
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.ip()) else {
        return Err("not of IPv4".into());
    };
    let mut request = Message::new(DELETE, 0, &[libc::AF_INET as u8, 0, 0, 0]);
    request.nest(ORIGINAL, |tuple| {
        tuple.nest(1, |ends| {
            ends.add(1, &source.octets()).add(2, &destination.octets());
        });
        tuple.nest(2, |ends| {
            ends.add(1, &[libc::IPPROTO_TCP as u8]);
            ends.add(2, &from.port().to_be_bytes()).add(3, &to.port().to_be_bytes());
        });
    });
    let mut talk = Conversation::begin(Some(NETFILTER))?;
    talk.ask(&request).map_err(|e| format!("{from} is not tracked: {e}").into())
}

/// It does not come back, but another in its place: that one has clients while those of the first are kept waiting.
fn replaced(host: &Host) -> Result<(), Failed> {
    let port = free_port()?;
    let publish = format!("127.0.0.1:{port}:6379");
    let served = redis_at(host, &publish)?;
    let mut first = Client::connect("127.0.0.1", port)?;
    first.expect("SET kept yes", "+OK")?;
    served.checkpoint()?;
    served.podman.podman(&["rm", "c"])?;
    let again = ["run", "--detach", "--name", "c", "--publish", &publish, IMAGE];
    served.podman.podman(&[&again[..], &REDIS].concat())?;
    Client::connect("127.0.0.1", port)?.expect("EXISTS kept", ":0")
}

/// Python in the container speaks with another host all the time, which sees this host's address.
fn outward(host: &Host) -> Result<(), Failed> {
    let other = Other::new()?;
    let listener = other.visit(|| Ok(TcpListener::bind((other.address.as_str(), 0))?))?;
    let (served, mut aloud, from) = Aloud::start(host, &listener, |_| Ok(other.address.clone()))?;
    if from.ip().to_string() != other.us {
        return Err(format!("the container is at {from}: nothing is translated").into());
    }
    carried_meanwhile(&served, vec![|| aloud.next()])
}
