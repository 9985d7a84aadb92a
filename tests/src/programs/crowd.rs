//! Many clients of one server, each in a thread of its own, that ask without a break until they are told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

/// A client.
pub(super) trait Step: Send + 'static {
    /// Asks once, and compares the answer with what it must be.
    fn step(&mut self) -> Result<(), String>;
}

/// All clients of a server.
pub(super) struct Crowd {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<(usize, Duration), String>>>,
}

impl Crowd {
    /// Each is connected, and has been served once.
    pub(super) fn start<C: Step>(count: usize, connect: impl Fn(usize) -> std::io::Result<C>) -> Result<Self, Failed> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for number in 0..count {
            let mut client = connect(number)?;
            client.step().map_err(|e| format!("client {number}, at first: {e}"))?;
            let stop = stop.clone();
            threads.push(thread::spawn(move || go_on(&mut client, &stop).map_err(|e| format!("client {number}: {e}"))));
        }
        Ok(Self { stop, threads })
    }

    /// Each is served once more. Tells how often they were altogether, and the longest that one has waited.
    pub(super) fn finish(mut self, server: &str) -> Result<(), Failed> {
        self.stop.store(true, Ordering::Relaxed);
        let (mut total, mut longest) = (0, Duration::ZERO);
        for thread in self.threads.drain(..) {
            let (steps, pause) = thread.join().map_err(|_| "a client has panicked")??;
            total += steps;
            longest = longest.max(pause);
        }
        println!("{server}: {total} answers, the longest pause was {longest:?}");
        Ok(())
    }
}

/// How often it was served, and the longest pause.
fn go_on(client: &mut impl Step, stop: &AtomicBool) -> Result<(usize, Duration), String> {
    let (mut steps, mut longest) = (0, Duration::ZERO);
    loop {
        let last = stop.load(Ordering::Relaxed);
        let begun = Instant::now();
        client.step()?;
        steps += 1;
        longest = longest.max(begun.elapsed());
        if last {
            return Ok((steps, longest));
        }
        // A machine with few processors has other tests as well.
        thread::sleep(Duration::from_micros(500));
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
