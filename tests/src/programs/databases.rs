//! Databases, with work that is not committed yet.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use libtest_mimic::Failed;

use super::crowd::{Crowd, Step};
use super::{Program, find, free_port};
use crate::engine::Engine;

/// In the middle of a transaction, with its locks held and its journal open.
pub(super) fn sqlite(engine: &Engine) -> Result<(), Failed> {
    let mut sqlite = Program::start(engine, "sqlite3", &["data.db"], &["--file-locks"], |_| Ok(()))?;
    sqlite.say(".bail on\nCREATE TABLE numbers (number INTEGER PRIMARY KEY, text TEXT);\nBEGIN IMMEDIATE;\n")?;
    // More than its cache holds, so that a part is in the file before the commit.
    sqlite.say("PRAGMA cache_size = 10;\n")?;
    sqlite.say(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
         INSERT INTO numbers SELECT i, printf('%0100d', i) FROM n;\nSELECT 'in ' || 'the middle';\n",
    )?;
    sqlite.wait_for("output", "half of a transaction", |text| text.contains("in the middle"))?;

    sqlite.carry()?;

    let locked = |sqlite: &Program| {
        let path = find("sqlite3").unwrap_or_default();
        let done = Command::new(path).arg(sqlite.path("data.db")).arg("INSERT INTO numbers VALUES (0, '');").output();
        done.map(|done| String::from_utf8_lossy(&done.stderr).contains("locked"))
    };
    if !locked(&sqlite)? {
        return Err(sqlite.failed("another writer is let in during the transaction"));
    }
    sqlite.say("INSERT INTO numbers VALUES (5001, 'after');\nCOMMIT;\nSELECT 'done ' || 'with it';\n")?;
    sqlite.wait_for("output", "end of the transaction", |text| text.contains("done with it"))?;
    sqlite.say("SELECT 'sum=' || sum(number) || ' ' || count(*) FROM numbers;\nPRAGMA integrity_check;\n.quit\n")?;
    sqlite.wait_end()?;
    let said = std::fs::read_to_string(sqlite.path("output"))?;
    let sum: u64 = (1..=5001).sum();
    if !said.contains(&format!("sum={sum} 5001")) || !said.contains("ok") {
        return Err(sqlite.failed("the data is not what was put in"));
    }
    Ok(())
}

/// A server that listens at a port, and how to ask it something.
fn start_redis(engine: &Engine, flag: &str, more: &[&str]) -> Result<(Program, String), Failed> {
    let port = free_port()?;
    // With a title of its own it would write over its environment, by which its family is known.
    let arguments = ["--set-proc-title", "no", "--port", &port, "--bind", "127.0.0.1"];
    let log = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""];
    let redis = Program::start(engine, "redis-server", &[&arguments[..], &log, more].concat(), &[flag], |_| Ok(()))?;
    redis.wait_for("output", "server that is ready", |text| text.contains("eady to accept"))?;
    Ok((redis, port))
}

fn ask(port: &str, words: &[&str]) -> Result<String, Failed> {
    let client = Command::new(find("redis-cli").unwrap_or_default()).args(["-p", port]).args(words).output()?;
    Ok(String::from_utf8_lossy(&client.stdout).trim().to_owned())
}

/// Without a word about its connections it is left alone, and they are named; with `--tcp-close`, client and server see
/// the end of theirs.
pub(super) fn redis_without_its_clients(engine: &Engine) -> Result<(), Failed> {
    let (redis, port) = start_redis(engine, "--file-locks", &[])?;
    let mut client = Client::connect(&port)?;
    client.count(0, 3)?;
    let mut redis = redis;
    let own = client.stream.get_ref().local_addr()?.to_string();
    match redis.carry().map_err(|failure| failure.message().unwrap_or_default().to_owned()) {
        Err(said) if said.contains("--tcp-close") && said.contains(&own) => {}
        Err(said) => return Err(redis.failed(&format!("the refusal does not name {own} and the flags: {said}"))),
        Ok(()) => return Err(redis.failed("it is carried without a word about its connections")),
    }
    client.count(10, 3)?;
    drop(redis);

    let (mut redis, port) = start_redis(engine, "--tcp-close", &[])?;
    let mut client = Client::connect(&port)?;
    client.count(0, 3)?;
    redis.carry()?;
    if client.count(10, 3).is_ok() {
        return Err(redis.failed("the client that was given up is served"));
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !ask(&port, &["INFO", "clients"])?.contains("connected_clients:1") {
        if std::time::Instant::now() > deadline {
            return Err(redis.failed("the server does not see the end of its client"));
        }
    }
    if ask(&port, &["GET", "counter"])? != "3" {
        return Err(redis.failed("the counter is not what it was"));
    }
    Ok(())
}

/// A server with data and its log of changes. One client stays connected, and goes on asking while the server is away.
pub(super) fn redis(engine: &Engine) -> Result<(), Failed> {
    let (mut redis, port) = start_redis(engine, "--tcp-established", &[])?;
    let ask = |words: &[&str]| ask(&port, words);
    let filled = "for i = 1, 2000 do redis.call('RPUSH', 'list', i) end return redis.call('LLEN', 'list')";
    if ask(&["EVAL", filled, "0"])? != "2000" {
        return Err(redis.failed("the list cannot be filled"));
    }
    let mut client = Client::connect(&port)?;
    // More than once: what was restored is as good as what was started.
    for round in 0..3 {
        if round > 0 {
            // Answered by nobody until the server is back, and not refused either.
            let away = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(30));
                client.count(round * 100, 100).map(|()| client)
            });
            redis.carry()?;
            client = away.join().map_err(|_| "the client has panicked")??;
        }
        client.count(round * 1000, 10)?;
        let next = 2001 + round;
        let pushed = ask(&["RPUSH", "list", &next.to_string()])?;
        if pushed != next.to_string() || ask(&["LINDEX", "list", "1999"])? != "2000" {
            return Err(redis.failed("the list is not what was put in"));
        }
    }
    ask(&["SHUTDOWN"])?;
    redis.wait_end()?;
    let log = std::fs::read_to_string(redis.path("appendonlydir/appendonly.aof.1.incr.aof"))?;
    if !(2001..=2003).all(|number| log.contains(&number.to_string())) {
        return Err(redis.failed("its log lacks the last changes"));
    }
    Ok(())
}

/// Fifty clients at work, and a second server that gets all changes: first the one is carried, then the other.
pub(super) fn redis_replicated(engine: &Engine) -> Result<(), Failed> {
    const CLIENTS: usize = 50;
    let (mut first, port) = start_redis(engine, "--tcp-established", &[])?;
    let whom = format!("127.0.0.1 {port}");
    let (mut second, copy) = start_redis(engine, "--tcp-established", &["--replicaof", &whom])?;
    second.wait_until("has what the first has", || Ok(ask(&copy, &["INFO"])?.contains("master_link_status:up")))?;
    let crowd = Crowd::start(CLIENTS, |number| Ok(Counter { client: Client::connect(&port)?, number, counted: 0 }))?;
    for server in [&mut first, &mut second] {
        std::thread::sleep(Duration::from_millis(100));
        server.carry()?;
    }
    std::thread::sleep(Duration::from_millis(100));
    crowd.finish("redis")?;
    let values = |port: &str| -> Result<String, Failed> {
        let keys: Vec<String> = (0..CLIENTS).map(|number| format!("counter{number}")).collect();
        ask(port, &[&["MGET"], &keys.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat())
    };
    let wanted = values(&port)?;
    second.wait_until("has all changes", || Ok(values(&copy)? == wanted))?;
    // The same connection all the time: one synchronisation, the first.
    let told = ask(&port, &["INFO", "stats"])?;
    if !told.contains("sync_full:1\r") || !told.contains("sync_partial_ok:0\r") {
        return Err(first.failed(&format!("the second server had to connect again: {told}")));
    }
    Ok(())
}

/// Counts with a number of its own.
struct Counter {
    client: Client,
    number: usize,
    counted: usize,
}

impl Step for Counter {
    fn step(&mut self) -> Result<(), String> {
        self.counted += 1;
        let (stream, mut line) = (&mut self.client.stream, String::new());
        let command = format!("INCR counter{}\r\n", self.number);
        stream.get_mut().write_all(command.as_bytes()).map_err(|e| e.to_string())?;
        stream.read_line(&mut line).map_err(|e| e.to_string())?;
        if line.trim() == format!(":{}", self.counted) {
            Ok(())
        } else {
            Err(format!("'{}', not {}", line.trim(), self.counted))
        }
    }
}

/// A client of redis that stays connected.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn connect(port: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port.parse().unwrap_or(0)))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sets a number and counts on from it; each answer must be the next.
    fn count(&mut self, from: usize, steps: usize) -> Result<(), String> {
        let failed = |e: std::io::Error| format!("the client that stayed connected: {e}");
        for step in 0..=steps {
            let command = if step == 0 { format!("SET counter {from}\r\n") } else { "INCR counter\r\n".to_owned() };
            self.stream.get_mut().write_all(command.as_bytes()).map_err(failed)?;
            let mut line = String::new();
            self.stream.read_line(&mut line).map_err(failed)?;
            let wanted = if step == 0 { "+OK".to_owned() } else { format!(":{}", from + step) };
            if line.trim() != wanted {
                return Err(format!("the client that stayed connected gets '{}', not {wanted}", line.trim()));
            }
        }
        Ok(())
    }
}
