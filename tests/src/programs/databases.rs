//! Databases, with work that is not committed yet.

use std::process::Command;

use libtest_mimic::Failed;

use super::{Program, find};
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

/// A server with data and its log of changes. It serves at a Unix socket: as long as such sockets cannot be carried,
/// the refusal must name them and leave the server as it was.
pub(super) fn redis(engine: &Engine) -> Result<(), Failed> {
    let arguments =
        ["--port", "0", "--unixsocket", "socket", "--appendonly", "yes", "--appendfsync", "always", "--save", ""];
    let mut redis = Program::start(engine, "redis-server", &arguments, &[], |_| Ok(()))?;
    redis.wait_for("output", "server that is ready", |text| text.contains("eady to accept"))?;
    let ask = |redis: &Program, words: &[&str]| {
        let client = Command::new(find("redis-cli").unwrap_or_default())
            .arg("-s")
            .arg(redis.path("socket"))
            .args(words)
            .output()?;
        Ok::<_, Failed>(String::from_utf8_lossy(&client.stdout).trim().to_owned())
    };
    let filled = "for i = 1, 2000 do redis.call('RPUSH', 'list', i) end return redis.call('LLEN', 'list')";
    if ask(&redis, &["EVAL", filled, "0"])? != "2000" {
        return Err(redis.failed("the list cannot be filled"));
    }
    if let Err(failure) = redis.carry() {
        let named = failure.message().unwrap_or_default().contains("socket");
        if !named {
            return Err(failure);
        }
    }
    if ask(&redis, &["RPUSH", "list", "2001"])? != "2001" || ask(&redis, &["LINDEX", "list", "1999"])? != "2000" {
        return Err(redis.failed("the list is not what was put in"));
    }
    ask(&redis, &["SHUTDOWN"])?;
    redis.wait_end()?;
    let log = std::fs::read_to_string(redis.path("appendonlydir/appendonly.aof.1.incr.aof"))?;
    if !log.contains("2001") {
        return Err(redis.failed("its log lacks the last change"));
    }
    Ok(())
}
