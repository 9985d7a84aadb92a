//! A server whose client is on another host, as far as the kernel is concerned: two network namespaces joined by veth.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use super::{Program, away};
use crate::engine::Engine;
use crate::network::{Network, ip};

/// Takes a hundred megabytes on one connection and answers with their sum; on a second one, whose other end has been
/// closed for sending all the time, it speaks at last.
const SERVER: &str = r#"
import socket, zlib, time
listener = socket.create_server(("::", 7000), family=socket.AF_INET6, dualstack_ipv6=True)
data, _ = listener.accept()
half, _ = listener.accept()
print("serving", flush=True)
total, size = 1, 0
while True:
    part = data.recv(65536)
    if not part: break
    total, size = zlib.adler32(part, total), size + len(part)
    # Not at once, so that there is a middle.
    if size % (1 << 20) < len(part): time.sleep(0.005)
data.sendall(b"%d" % total)
assert half.recv(100) == b"last words" and half.recv(1) == b""
half.sendall(b"at last")
"#;

const MEGABYTES: usize = 100;

/// The client notices a pause, and no byte is lost or comes twice.
pub(super) fn veth(engine: &Engine) -> Result<(), Failed> {
    let engine = engine.clone();
    // In a thread of its own, which goes into another network with all that it starts.
    let test = thread::spawn(move || ["10.99.0.1", "fd99::1"].into_iter().try_for_each(|to| one(&engine, to)));
    test.join().map_err(|_| "the test has panicked")?
}

fn one(engine: &Engine, to: &'static str) -> Result<(), Failed> {
    let (here, there) = (Network::new()?, Network::new()?);
    here.enter()?;
    ip("link set lo up")?;
    ip(&format!("link add va type veth peer name vb netns {}", there.pid()))?;
    for words in ["address add 10.99.0.1/24 dev va", "address add fd99::1/64 dev va nodad", "link set va up"] {
        ip(words)?;
    }
    for words in ["address add 10.99.0.2/24 dev vb", "address add fd99::2/64 dev vb nodad", "link set vb up"] {
        there.ip(words)?;
    }
    let mut server = Program::start(engine, "python3", &["-c", SERVER], &["--tcp-established"], |_| Ok(()))?;
    server.wait_for_listener()?;
    let is_over = Arc::new(AtomicBool::new(false));
    let may_end = is_over.clone();
    let client =
        thread::spawn(move || there.enter().and_then(|()| transfer(to, &may_end)).map_err(|e| format!("{to}: {e}")));
    server.wait_for("output", "server with both connections", |text| text.contains("serving"))?;
    thread::sleep(Duration::from_millis(100));
    // Its packets meet nobody for a while.
    for away in [Duration::ZERO, away()] {
        server.carry_after(away)?;
        thread::sleep(Duration::from_millis(100));
    }
    is_over.store(true, Ordering::Relaxed);
    client.join().map_err(|_| "the client has panicked")??;
    server.wait_end()
}

/// Sends all the time, as long as the server is carried, and compares what it makes of it.
fn transfer(to: &str, may_end: &AtomicBool) -> std::io::Result<()> {
    let wrong = |what: String| std::io::Error::other(what);
    let connect = || -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect((to, 7000))?;
        // Who has sent in vain waits twice as long each time.
        stream.set_read_timeout(Some(Duration::from_secs(30) + 4 * away()))?;
        stream.set_write_timeout(Some(Duration::from_secs(30) + 4 * away()))?;
        Ok(stream)
    };
    let (mut data, mut half) = (connect()?, connect()?);
    half.write_all(b"last words")?;
    half.shutdown(std::net::Shutdown::Write)?;
    let (mut a, mut b) = (1u32, 0u32);
    let mut longest = Duration::ZERO;
    let mut block = vec![0u8; 1 << 20];
    let is_wanted = |megabyte: &usize| *megabyte < MEGABYTES || !may_end.load(Ordering::Relaxed);
    for megabyte in (0..).take_while(is_wanted) {
        for (at, byte) in block.iter_mut().enumerate() {
            *byte = (at * 31 + megabyte * 17 + (at >> 8)) as u8;
            // Adler-32 (RFC 1950).
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        let begun = Instant::now();
        data.write_all(&block)?;
        longest = longest.max(begun.elapsed());
    }
    data.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    data.read_to_string(&mut answer)?;
    if answer != (b << 16 | a).to_string() {
        return Err(wrong(format!("the server has received something else: {answer}")));
    }
    let mut words = String::new();
    half.read_to_string(&mut words)?;
    if words != "at last" {
        return Err(wrong(format!("on the connection that was half closed it says '{words}'")));
    }
    println!("{to}: the longest pause was {longest:?}");
    Ok(())
}

impl Program {
    /// Waits until somebody can connect, without connecting.
    fn wait_for_listener(&self) -> Result<(), Failed> {
        let deadline = Instant::now() + Duration::from_secs(20);
        // Port 7000, in the state LISTEN, in the network of this thread.
        let listens = || {
            std::fs::read_to_string("/proc/thread-self/net/tcp6")
                .is_ok_and(|text| text.lines().any(|line| line.contains(":1B58 ") && line.contains(" 0A ")))
        };
        while !listens() {
            if Instant::now() > deadline {
                return Err(self.failed("it does not listen"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}
