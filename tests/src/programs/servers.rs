//! Servers with clients outside of the tree, who ask all the time and notice a pause and nothing else.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use super::crowd::{Crowd, Step};
use super::{Program, find, free_port};
use crate::engine::Engine;

/// How long clients ask on before and after.
const WHILE: Duration = Duration::from_millis(100);

/// A client of HTTP that keeps its connection.
struct Http {
    stream: BufReader<TcpStream>,
    path: String,
    number: usize,
}

impl Http {
    fn connect(port: &str, path: String) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port.parse().unwrap_or(0)))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { stream: BufReader::new(stream), path, number: 0 })
    }

    fn ask(&mut self) -> std::io::Result<usize> {
        let request = format!("GET {} HTTP/1.1\r\nHost: test\r\nX-Number: {}\r\n\r\n", self.path, self.number);
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut length = None;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(std::io::Error::other("the connection ends"));
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok();
            }
            if line == "\r\n" {
                break;
            }
        }
        length.ok_or_else(|| std::io::Error::other("no length"))
    }

    fn get(&mut self) -> std::io::Result<Vec<u8>> {
        let mut body = vec![0; self.ask()?];
        self.stream.read_exact(&mut body)?;
        self.number += 1;
        Ok(body)
    }
}

/// What stands at each place of a file.
fn byte_at(at: usize) -> u8 {
    (at * 31 + (at >> 8) * 17 + (at >> 16)) as u8
}

const BIG: usize = 8 << 20;

/// Workers in the middle of downloads that take seconds, and a pool of connections that ask for something small.
pub(super) fn nginx(engine: &Engine) -> Result<(), Failed> {
    let port = free_port()?;
    let config = format!(
        "daemon off; user root; worker_processes 2; pid nginx.pid; error_log stderr;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; keepalive_requests 1000000; sendfile on; client_body_temp_path tmp; proxy_temp_path tmp;\n\
         fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;\n\
         server {{ listen 127.0.0.1:{port}; root .; location /big {{ limit_rate 2m; }} }} }}\n"
    );
    let mut nginx =
        Program::start_under_shell(engine, "nginx", &["-p", ".", "-c", "conf"], &["--tcp-established"], |dir| {
            fs::write(dir.join("conf"), config)?;
            fs::write(dir.join("small"), "something small")?;
            fs::write(dir.join("big"), (0..BIG).map(byte_at).collect::<Vec<u8>>())
        })?;
    nginx.wait_for_port(&port)?;
    let pool = Crowd::start(30, |_| Http::connect(&port, "/small".into()))?;
    let downloads: Vec<_> = (0..6)
        .map(|_| {
            let http = Http::connect(&port, "/big".into());
            std::thread::spawn(move || download(http?))
        })
        .collect();
    sleep(WHILE);
    nginx.carry()?;
    if downloads.iter().any(|download| download.is_finished()) {
        return Err(nginx.failed("a download was over before it was tested"));
    }
    sleep(WHILE);
    nginx.carry()?;
    for download in downloads {
        download.join().map_err(|_| "a download has panicked")?.map_err(|e| format!("a download: {e}"))?;
    }
    pool.finish("nginx")
}

fn download(mut http: Http) -> std::io::Result<()> {
    let body = http.get()?;
    match body.iter().enumerate().find(|(at, byte)| **byte != byte_at(*at)) {
        None if body.len() == BIG => Ok(()),
        wrong => Err(std::io::Error::other(format!("{} bytes, wrong: {wrong:?}", body.len()))),
    }
}

impl Step for Http {
    fn step(&mut self) -> Result<(), String> {
        let number = self.number;
        let body = self.get().map_err(|e| e.to_string())?;
        match String::from_utf8_lossy(&body).as_ref() {
            "something small" => Ok(()),
            text if text == format!("request {number}") => Ok(()),
            other => Err(format!("request {number} is answered with '{other}'")),
        }
    }
}

const NODE: &str = r#"
const http = require('http');
http.globalAgent.keepAlive = true;
let served = 0;
const server = http.createServer((request, response) => {
    served++;
    const body = 'request ' + request.headers['x-number'];
    // Some are answered later, from a timer.
    const answer = () => response.end(body);
    response.setHeader('Content-Length', body.length);
    if (served % 7 == 0) setTimeout(answer, 5); else answer();
});
server.keepAliveTimeout = 60000;
server.listen(Number(process.argv[2]), '127.0.0.1');
"#;

/// A server of node, with answers that wait for a timer.
pub(super) fn node_http(engine: &Engine) -> Result<(), Failed> {
    let port = free_port()?;
    let script = |dir: &Path| fs::write(dir.join("server.js"), NODE);
    let mut node = Program::start(engine, "node", &["server.js", &port], &["--tcp-established"], script)?;
    node.wait_for_port(&port)?;
    let pool = Crowd::start(20, |_| Http::connect(&port, "/".into()))?;
    sleep(WHILE);
    for _ in 0..2 {
        node.carry()?;
        sleep(WHILE);
    }
    pool.finish("node")
}

const ASYNCIO: &str = r#"
import asyncio, sys

async def serve(reader, writer):
    total = 0
    while line := await reader.readline():
        total += int(line)
        if total % 5 == 0:
            await asyncio.sleep(0.003)
        writer.write(b"%d\n" % total)
        await writer.drain()
    writer.close()

async def main():
    tcp = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    unix = await asyncio.start_unix_server(serve, "socket")
    print("ready", flush=True)
    await asyncio.gather(tcp.serve_forever(), unix.serve_forever())

asyncio.run(main())
"#;

/// Sums up what it sends; each answer must be the next sum.
struct Adder {
    stream: BufReader<TcpStream>,
    sent: u64,
    total: u64,
}

impl Step for Adder {
    fn step(&mut self) -> Result<(), String> {
        self.sent += 1;
        self.total += self.sent;
        self.stream.get_mut().write_all(format!("{}\n", self.sent).as_bytes()).map_err(|e| e.to_string())?;
        let mut line = String::new();
        self.stream.read_line(&mut line).map_err(|e| e.to_string())?;
        if line.trim() == self.total.to_string() {
            Ok(())
        } else {
            Err(format!("'{}', not {}", line.trim(), self.total))
        }
    }
}

/// An event loop with connections of TCP; a Unix socket listens beside.
pub(super) fn asyncio(engine: &Engine) -> Result<(), Failed> {
    let port = free_port()?;
    let script = |dir: &Path| fs::write(dir.join("server.py"), ASYNCIO);
    let mut python = Program::start(engine, "python3", &["server.py", &port], &["--tcp-established"], script)?;
    python.wait_for("output", "server that is ready", |text| text.contains("ready"))?;
    let crowd = Crowd::start(30, |_| {
        let stream = TcpStream::connect(("127.0.0.1", port.parse().unwrap_or(0)))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Adder { stream: BufReader::new(stream), sent: 0, total: 0 })
    })?;
    sleep(WHILE);
    for _ in 0..2 {
        python.carry()?;
        sleep(WHILE);
    }
    crowd.finish("asyncio")?;
    let mut unix = BufReader::new(UnixStream::connect(python.path("socket"))?);
    unix.get_mut().write_all(b"4\n7\n")?;
    let mut lines = String::new();
    unix.read_line(&mut lines)?;
    unix.read_line(&mut lines)?;
    if lines == "4\n11\n" { Ok(()) } else { Err(python.failed(&format!("over the Unix socket it says '{lines}'"))) }
}

/// A session with a terminal, in which a program writes numbers and then waits for a line.
pub(super) fn sshd(engine: &Engine) -> Result<(), Failed> {
    // Where it locks itself up before it knows a user; a package makes it at boot.
    fs::create_dir_all("/run/sshd")?;
    let port = free_port()?;
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey host\nAuthorizedKeysFile %D/authorized\nStrictModes no\nUsePAM no\n\
         PidFile none\nPermitRootLogin yes\nPasswordAuthentication no\nPrintMotd no\nPrintLastLog no\n"
    );
    let mut sshd =
        Program::start_under_shell(engine, "sshd", &["-D", "-e", "-f", "config"], &["--tcp-established"], |dir| {
            for name in ["host", "key"] {
                let made = Command::new("ssh-keygen")
                    .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                    .arg(dir.join(name))
                    .status()?;
                if !made.success() {
                    return Err(std::io::Error::other("ssh-keygen fails"));
                }
            }
            fs::copy(dir.join("key.pub"), dir.join("authorized"))?;
            let here = dir.display().to_string();
            let config = config.replace("HostKey host", &format!("HostKey {here}/host")).replace("%D", &here);
            fs::write(dir.join("config"), config)
        })?;
    sshd.wait_for_port(&port)?;
    let mut client = Session::start(&sshd, &port)?;
    sshd.wait_for("client", "numbers from the session", |text| text.lines().count() > 20)?;
    for _ in 0..2 {
        sshd.carry()?;
        let so_far = fs::read_to_string(sshd.path("client"))?.lines().count();
        sshd.wait_for("client", "numbers that go on", |text| text.lines().count() > so_far + 10)?;
    }
    client.say("last words\n")?;
    let text = sshd.wait_for("client", "answer of the session", |text| text.contains("heard: last words"))?;
    let numbers: Vec<usize> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
    if !numbers.iter().copied().eq(1..=numbers.len()) || numbers.len() < 40 {
        return Err(sshd.failed(&format!("the numbers are not one after the other: {text}")));
    }
    client.end()
}

/// A client of ssh, outside of the tree.
struct Session(Child);

impl Session {
    const COMMAND: &'static str = "i=0; while ! read -t 0.01 line; do i=$((i+1)); echo $i; done; echo \"heard: $line\"";

    fn start(sshd: &Program, port: &str) -> Result<Self, Failed> {
        let key = sshd.path("key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        let options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"];
        let command = format!("bash -c '{}'", Self::COMMAND);
        let client = Command::new(find("ssh").ok_or("ssh is missing: scripts/test-deps.sh installs it")?)
            .args(["-tt", "-F", "none", "-p", port, "-i"])
            .arg(key)
            .args(options.iter().flat_map(|option| ["-o", option]))
            .args(["root@127.0.0.1", &command])
            .stdin(Stdio::piped())
            .stdout(fs::File::create(sshd.path("client"))?)
            .spawn()?;
        Ok(Self(client))
    }

    fn say(&mut self, text: &str) -> std::io::Result<()> {
        self.0.stdin.as_mut().map_or(Ok(()), |stdin| stdin.write_all(text.as_bytes()))
    }

    fn end(mut self) -> Result<(), Failed> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.0.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("ssh: {status}").into()),
                None if Instant::now() > deadline => return Err("ssh does not end".into()),
                None => sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
