//! The thread that puts complete files on the file system while the dump goes
//! on: making a thousand small files takes as long as finding out what belongs
//! into them.
//!
//! It begins with the first file and ends with the commit, or with the dump.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::entry_writer::EntryWriter;

/// Takes complete files.
#[derive(Debug, Default)]
pub(crate) struct Finisher {
    thread: Mutex<Option<(Sender<EntryWriter>, JoinHandle<()>)>>,
}

impl Finisher {
    /// Takes a file to which nothing more is appended.
    pub(crate) fn take(&self, file: EntryWriter) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let (sender, files) = channel();
            let name = "image writer".to_owned();
            // Where no thread is to be had, the commit writes the file.
            let Ok(handle) = std::thread::Builder::new().name(name).spawn(move || run(&files)) else { return };
            *thread = Some((sender, handle));
        }
        if let Some((sender, _)) = &*thread {
            // The receiver is there as long as the sender.
            let _ = sender.send(file);
        }
    }

    /// Waits until all are written. A file that could not be says so when it is
    /// closed again.
    pub(crate) fn finish(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((sender, handle)) = thread {
            drop(sender);
            let _ = handle.join();
        }
    }
}

impl Drop for Finisher {
    fn drop(&mut self) {
        self.finish();
    }
}

fn run(files: &Receiver<EntryWriter>) {
    for file in files {
        file.close_early();
    }
}
