//! Databases, with work that is not committed yet.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
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

/// Serves, and has a client of its own that speaks over a Unix socket what stands in a FIFO.
const POSTGRES: &str = r#"
exec 3<&0
"$BIN/postgres" -D data -k "$PWD" -p $PORT -c listen_addresses=127.0.0.1 -c fsync=off -c shared_buffers=16MB 3<&- &
until "$BIN/psql" -X -h "$PWD" -p $PORT -d postgres -c 'SELECT 1' >answers 2>&1; do sleep 0.05; done
"$BIN/psql" -X -q -A -t -h "$PWD" -p $PORT -d postgres <&3 3<&- >answers 2>&1 &
wait
"#;

/// A server of postgresql, with its memory of System V.
struct Postgres {
    server: Program,
    bin: PathBuf,
    port: String,
}

/// What a command says, if it ends well.
fn run(command: &mut Command) -> std::io::Result<String> {
    let done = command.output()?;
    match done.status.success() {
        true => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        false => Err(std::io::Error::other(String::from_utf8_lossy(&done.stderr).into_owned())),
    }
}

impl Postgres {
    fn start(engine: &Engine) -> Result<Self, Failed> {
        let missing = || Failed::from("postgresql is missing: scripts/test-deps.sh installs it");
        let versions = std::fs::read_dir("/usr/lib/postgresql").map_err(|_| missing())?;
        let bin = versions.flatten().map(|version| version.path().join("bin")).find(|bin| bin.join("pgbench").exists());
        let (bin, port) = (bin.ok_or_else(missing)?, free_port()?);
        let user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"];
        let settings = [format!("BIN={}", bin.display()), format!("PORT={port}")];
        let arguments = [&user[..], &["env", &settings[0], &settings[1], "sh", "-c", POSTGRES]].concat();
        let server = Program::start_under_shell(engine, "setpriv", &arguments, &["--tcp-established"], |dir| {
            let public = std::os::unix::fs::PermissionsExt::from_mode(0o711);
            std::fs::set_permissions(dir.parent().unwrap_or(dir), public)?;
            run(Command::new("chown").arg("postgres").arg(dir))?;
            let options = ["-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8", "-D"];
            let mut initdb = Command::new("setpriv");
            initdb.args(user).arg(bin.join("initdb")).args(options).arg(dir.join("data"));
            // It must be able to come back to where it is called.
            run(initdb.current_dir(dir)).map(drop)
        })?;
        let started = Self { server, bin, port };
        started.server.wait_until("answers", || Ok(started.ask("SELECT 1").is_ok()))?;
        Ok(started)
    }

    /// A program outside of the tree, over TCP.
    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.args(["-h", "127.0.0.1", "-p", &self.port, "-U", "postgres", "-d", "postgres"]);
        command
    }

    fn ask(&self, sql: &str) -> std::io::Result<String> {
        let told = run(self.client("psql").args(["-X", "-A", "-t", "-c", sql]))?;
        Ok(told.trim().to_owned())
    }

    /// Lets it remove its memory, which belongs to the host.
    fn stop(&mut self) -> Result<(), Failed> {
        let pid = std::fs::read_to_string(self.server.path("data/postmaster.pid"))?;
        let pid = pid.lines().next().and_then(|line| rustix::process::Pid::from_raw(line.parse().ok()?));
        rustix::process::kill_process(pid.ok_or("no pid")?, rustix::process::Signal::INT)?;
        self.server.wait_end()
    }
}

/// Transactions that are open over TCP and a Unix socket, and pgbench at work.
pub(super) fn postgresql(engine: &Engine) -> Result<(), Failed> {
    let mut postgres = Postgres::start(engine)?;
    postgres.ask("CREATE TABLE words (word text)")?;
    run(postgres.client("pgbench").args(["-i", "-q"]))?;
    let mut bench = postgres.client("pgbench");
    let bench = bench.args(["-c", "4", "-T", "3"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut open = postgres.client("psql");
    open.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut open = open.spawn()?;
    let mut over_tcp = open.stdin.take().ok_or("no input")?;
    over_tcp.write_all(b"BEGIN; INSERT INTO words VALUES ('over TCP');\n")?;
    postgres.server.say("BEGIN; INSERT INTO words VALUES ('over Unix');\n\\echo begun\n")?;
    postgres.server.wait_for("answers", "open transaction", |text| text.contains("begun"))?;
    std::thread::sleep(Duration::from_millis(200));

    for _ in 0..2 {
        postgres.server.carry()?;
        std::thread::sleep(Duration::from_millis(200));
    }

    if postgres.ask("SELECT count(*) FROM words")? != "0" {
        return Err(postgres.server.failed("what was not committed is seen"));
    }
    over_tcp.write_all(b"INSERT INTO words VALUES ('and more'); COMMIT;\n")?;
    drop(over_tcp);
    postgres.server.say("COMMIT;\n\\echo committed\n\\q\n")?;
    postgres.server.wait_for("answers", "end of the transaction", |text| text.contains("committed"))?;
    if !open.wait()?.success() {
        return Err(postgres.server.failed("the client over TCP has failed"));
    }
    let bench = bench.wait_with_output()?;
    let told = String::from_utf8_lossy(&bench.stdout).into_owned() + &String::from_utf8_lossy(&bench.stderr);
    if !bench.status.success() || !told.contains("failed transactions: 0 ") {
        return Err(postgres.server.failed(&format!("pgbench: {told}")));
    }
    let words = postgres.ask("SELECT string_agg(word, ', ' ORDER BY word COLLATE \"C\") FROM words")?;
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)";
    if words != "and more, over TCP, over Unix" || postgres.ask(sums)? != "t" {
        return Err(postgres.server.failed(&format!("the data is not what was put in: {words}")));
    }
    postgres.stop()
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
