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

/// To wake the thread takes about as long as making a file does: so many files
/// are given to it at a time.
const AT_ONCE: usize = 4;

/// Takes complete files.
#[derive(Debug)]
pub(crate) struct Finisher {
    thread: Mutex<Option<Thread>>,
}

#[derive(Debug)]
struct Thread {
    sender: Sender<Vec<EntryWriter>>,
    handle: JoinHandle<()>,
    /// Complete files that it has not been given yet.
    waiting: Vec<EntryWriter>,
}

impl Finisher {
    /// Begins the thread.
    pub(crate) fn new() -> Self {
        let (sender, work) = channel();
        let name = "image writer".to_owned();
        // Where no thread is to be had, the commit writes the files.
        let thread = std::thread::Builder::new().name(name).spawn(move || run(&work)).ok();
        let thread = thread.map(|handle| Thread { sender, handle, waiting: Vec::new() });
        Finisher { thread: Mutex::new(thread) }
    }

    /// Takes a file to which nothing more is appended. A file that could not be
    /// written says so when it is closed again.
    pub(crate) fn take(&self, file: EntryWriter) {
        if let Some(thread) = &mut *self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.waiting.push(file);
            if thread.waiting.len() == AT_ONCE {
                // The receiver is there as long as the sender.
                let _ = thread.sender.send(std::mem::take(&mut thread.waiting));
            }
        }
    }
}

impl Drop for Finisher {
    fn drop(&mut self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Thread { sender, handle, .. }) = thread {
            drop(sender);
            let _ = handle.join();
        }
    }
}

fn run(work: &Receiver<Vec<EntryWriter>>) {
    for files in work {
        files.iter().for_each(EntryWriter::close_early);
    }
}
