//! The thread that puts complete files on the file system while the dump goes
//! on: making a thousand small files takes as long as finding out what belongs
//! into them.
//!
//! It is there from the beginning, so that nobody who waits for the dump has to
//! wait for it to begin; nor is its end waited for by the commit.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::entry_writer::EntryWriter;

/// What the thread is to do.
#[derive(Debug)]
enum Work {
    Complete(EntryWriter),
    /// Say that all before is done.
    Tell(Sender<()>),
}

/// Takes complete files.
#[derive(Debug)]
pub(crate) struct Finisher {
    thread: Mutex<Option<(Sender<Work>, JoinHandle<()>)>>,
}

impl Finisher {
    /// Begins the thread.
    pub(crate) fn new() -> Self {
        let (sender, work) = channel();
        let name = "image writer".to_owned();
        // Where no thread is to be had, the commit writes the files.
        let thread = std::thread::Builder::new().name(name).spawn(move || run(&work)).ok();
        Finisher { thread: Mutex::new(thread.map(|thread| (sender, thread))) }
    }

    fn give(&self, work: Work) {
        if let Some((sender, _)) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            // The receiver is there as long as the sender.
            let _ = sender.send(work);
        }
    }

    /// Takes a file to which nothing more is appended.
    pub(crate) fn take(&self, file: EntryWriter) {
        self.give(Work::Complete(file));
    }

    /// Waits until all are written. A file that could not be says so when it is
    /// closed again.
    pub(crate) fn finish(&self) {
        let (sender, done) = channel();
        self.give(Work::Tell(sender));
        // An error means that nobody is there to tell: then nothing was taken either.
        let _ = done.recv();
    }
}

impl Drop for Finisher {
    fn drop(&mut self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((sender, handle)) = thread {
            drop(sender);
            let _ = handle.join();
        }
    }
}

fn run(work: &Receiver<Work>) {
    for one in work {
        match one {
            Work::Complete(file) => file.close_early(),
            // Who asked may have gone.
            Work::Tell(sender) => drop(sender.send(())),
        }
    }
}
