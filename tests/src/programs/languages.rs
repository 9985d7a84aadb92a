//! Programs in languages with a runtime of their own: interpreters, compilers at run time, collectors of garbage.

use std::process::{Command, Stdio};

use libtest_mimic::Failed;

use super::{Program, consecutive, find, lines};
use crate::engine::Engine;

const PYTHON: &str = r#"
import signal, threading, time, queue

ticks = 0
def tick(*_):
    global ticks
    ticks += 1
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)

work = queue.Queue(4)
def produce():
    number = 0
    while True:
        number += 1
        work.put(number)
        time.sleep(0.002)
def consume():
    with open("numbers", "w", buffering=1) as numbers:
        while True:
            numbers.write(f"{work.get()}\n")
for job in (produce, consume):
    threading.Thread(target=job, daemon=True).start()
with open("ticks", "w", buffering=1) as out:
    seen = 0
    while True:
        signal.pause()
        if ticks > seen:
            seen = ticks
            out.write(f"{seen}\n")
"#;

/// Threads that hand numbers to one another, and an interval timer.
pub(super) fn python(engine: &Engine) -> Result<(), Failed> {
    let mut python =
        Program::start(engine, "python3", &["count.py"], &[], |dir| std::fs::write(dir.join("count.py"), PYTHON))?;
    let running = |python: &Program, at_least: [usize; 2]| {
        python.wait_for("numbers", "numbers that go on", |text| lines(text) > at_least[0] + 20)?;
        python.wait_for("ticks", "ticks that go on", |text| lines(text) > at_least[1] + 5)
    };
    let count = |python: &Program, name: &str| std::fs::read_to_string(python.path(name)).map(|text| lines(&text));
    running(&python, [0, 0])?;
    // More than once: what was restored is as good as what was started.
    for _ in 0..2 {
        python.carry()?;
        running(&python, [count(&python, "numbers")?, count(&python, "ticks")?])?;
    }
    consecutive(&std::fs::read_to_string(python.path("numbers"))?, 60)
}

const JAVA: &str = r#"
import java.io.*;
import java.util.*;
import java.util.concurrent.*;

public class Work {
    static long sum(int worker, int rounds) {
        long value = worker + 1;
        for (int round = 0; round < rounds; round++) {
            value ^= value << 13;
            value ^= value >>> 7;
            value ^= value << 17;
        }
        return value;
    }

    public static void main(String[] arguments) throws Exception {
        int workers = 4, parts = Integer.parseInt(arguments[0]), rounds = 40000;
        ExecutorService pool = Executors.newFixedThreadPool(workers);
        List<Future<Long>> results = new ArrayList<>();
        FileWriter progress = new FileWriter("progress");
        for (int worker = 0; worker < workers; worker++) {
            int me = worker;
            results.add(pool.submit(() -> {
                long total = 0;
                Map<String, long[]> garbage = new LinkedHashMap<>();
                for (int part = 0; part < parts; part++) {
                    total += sum(me * parts + part, rounds);
                    garbage.put("part" + part, new long[2000]);
                    if (garbage.size() > 50)
                        garbage.clear();
                    synchronized (progress) {
                        progress.write("part\n");
                        progress.flush();
                    }
                }
                return total;
            }));
        }
        long total = 0;
        for (Future<Long> result : results)
            total += result.get();
        pool.shutdown();
        try (FileWriter out = new FileWriter("total.new")) {
            out.write(Long.toUnsignedString(total) + "\n");
        }
        new File("total.new").renameTo(new File("total"));
    }
}
"#;

/// The checksum that the program computes.
fn java_total(workers: u64, parts: u64) -> u64 {
    let sum = |number: u64| {
        let mut value = number + 1;
        for _ in 0..40_000 {
            value ^= value << 13;
            value ^= value >> 7;
            value ^= value << 17;
        }
        value
    };
    (0..workers * parts).fold(0u64, |total, number| total.wrapping_add(sum(number)))
}

/// A pool of threads that compute, allocate and are compiled meanwhile.
pub(super) fn java(engine: &Engine) -> Result<(), Failed> {
    const PARTS: u64 = 1500;
    let compile = |dir: &std::path::Path| {
        std::fs::write(dir.join("Work.java"), JAVA)?;
        run(Command::new(find("javac").ok_or(std::io::ErrorKind::NotFound)?).arg("Work.java").current_dir(dir))
    };
    let arguments = ["-Xmx256m", "-cp", ".", "Work", &PARTS.to_string()];
    let mut java = Program::start(engine, "java", &arguments, &[], compile)?;
    java.wait_for("progress", "work that has begun", |text| lines(text) > 400)?;

    java.carry()?;

    if java.path("total").exists() {
        return Err("the work was over before the checkpoint".into());
    }
    let total = java.wait_for("total", "result", |text| text.ends_with('\n'))?;
    let expected = java_total(4, PARTS);
    if total.trim() != expected.to_string() {
        return Err(format!("the result is {}, should be {expected}", total.trim()).into());
    }
    java.wait_end()
}

const NODE: &str = r#"
const fs = require('fs'), crypto = require('crypto');
const { Worker, isMainThread, parentPort } = require('worker_threads');

if (isMainThread) {
    const worker = new Worker(__filename);
    worker.on('message', (number) => {
        fs.appendFileSync('numbers', number + '\n');
        setTimeout(() => worker.postMessage(number + 1), 3);
    });
    worker.postMessage(1);
    let digests = 0;
    const digest = () => crypto.pbkdf2('secret', 'salt', 1000, 32, 'sha256', (error, key) => {
        if (error || key.toString('hex') !== 'a8df899f3c4f204d967e0ad63c092987c10055ebb017b3d9d28add218d4f7aad')
            throw new Error('wrong digest ' + (error || key.toString('hex')));
        fs.appendFileSync('digests', ++digests + '\n');
        setImmediate(digest);
    });
    digest();
    let ticks = 0;
    setInterval(() => fs.appendFile('ticks', ++ticks + '\n', () => {}), 50);
    process.stdin.on('data', (data) => fs.writeFileSync('echoed', data));
} else {
    parentPort.on('message', (number) => parentPort.postMessage(number));
}
"#;

/// An event loop with timers, a thread of JavaScript, a pool of threads, and input.
pub(super) fn node(engine: &Engine) -> Result<(), Failed> {
    let mut node = Program::start(engine, "node", &["work.js"], &[], |dir| std::fs::write(dir.join("work.js"), NODE))?;
    let files = ["numbers", "digests", "ticks"];
    for name in files {
        node.wait_for(name, "work that has begun", |text| lines(text) > 5)?;
    }
    for round in 0..2 {
        node.carry()?;
        for name in files {
            let before = lines(&std::fs::read_to_string(node.path(name))?);
            node.wait_for(name, "work that goes on", |text| lines(text) > before + 5)?;
        }
        node.say(&format!("hello {round}\n"))?;
        node.wait_for("echoed", "input", |text| text == format!("hello {round}\n"))?;
    }
    consecutive(&std::fs::read_to_string(node.path("numbers"))?, 10)?;
    consecutive(&std::fs::read_to_string(node.path("digests"))?, 10)
}

const GO: &str = r#"
package main

import (
	"fmt"
	"os"
	"time"
)

func main() {
	numbers := make(chan int)
	for i := 0; i < 50; i++ {
		go func() {
			for {
				waste := make([]byte, 100000)
				waste[0] = 1
				time.Sleep(time.Millisecond)
			}
		}()
	}
	go func() {
		for number := 1; ; number++ {
			numbers <- number
			time.Sleep(2 * time.Millisecond)
		}
	}()
	out, _ := os.Create("numbers")
	for number := range numbers {
		fmt.Fprintln(out, number)
	}
}
"#;

/// Goroutines, a collector of garbage, and signals that interrupt threads to take turns.
pub(super) fn go(engine: &Engine) -> Result<(), Failed> {
    let compile = |dir: &std::path::Path| {
        std::fs::write(dir.join("work.go"), GO)?;
        let go = find("go").ok_or(std::io::ErrorKind::NotFound)?;
        let cache = std::env::temp_dir().join("cryonaut-go-cache");
        run(Command::new(go).args(["build", "-o", "work", "work.go"]).current_dir(dir).env("GOCACHE", cache))
    };
    let mut go = Program::start(engine, "env", &["./work"], &[], compile)?;
    go.wait_for("numbers", "work that has begun", |text| lines(text) > 20)?;
    for _ in 0..2 {
        go.carry()?;
        let before = lines(&std::fs::read_to_string(go.path("numbers"))?);
        go.wait_for("numbers", "work that goes on", |text| lines(text) > before + 20)?;
    }
    consecutive(&std::fs::read_to_string(go.path("numbers"))?, 60)
}

/// Runs a compiler; its words are the error's when it fails.
fn run(command: &mut Command) -> std::io::Result<()> {
    let done = command.stdin(Stdio::null()).output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(std::io::Error::other(String::from_utf8_lossy(&done.stderr).into_owned()))
}
