//! A dump that is handed over lazily: the frozen tree stays until whoever restores it has fetched the pages that may come
//! later ([`comes_later`](super::comes_later)), which its image leaves out.
//!
//! Who fetches says so when he has them all. If he is gone before, there is no other copy of them, and the tree goes on.

use crate::freeze::Process;
use crate::{Error, Object, Result};
use cryonaut_image::PAGE_SIZE;
use cryonaut_page_server::{Listener, PageSource, Stream, TlsOptions, serve};
use rustix::fs::OFlags;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

/// Where whoever fetches pages is waited for.
#[derive(Debug)]
pub struct PageService {
    /// None when he has come.
    listener: Mutex<Option<Listener>>,
    tls: Option<TlsOptions>,
}

impl PageService {
    /// One that somebody may connect to already.
    #[must_use]
    pub fn new(listener: Listener, tls: Option<TlsOptions>) -> PageService {
        PageService { listener: Mutex::new(Some(listener)), tls }
    }

    /// Serves him, until he has everything.
    pub(crate) fn serve(&self, processes: &[Process]) -> Result<()> {
        let mut memories = BTreeMap::new();
        for process in processes.iter().filter(|process| !process.is_zombie()) {
            memories.insert(process.pid as u64, File::from(process.task.open_file("mem", OFlags::RDONLY)?));
        }
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let once = || Error::unsupported(Object::Other("the memory of the tree".into()), "it was served already", "");
        let stream: Stream = listener.ok_or_else(once)?.accept(self.tls.as_ref())?;
        tracing::info!("Serving pages to {}", stream.peer());
        Ok(serve::hand_over(stream, &mut Memories(memories))?)
    }
}

/// The memory of processes that stand still, by pid.
struct Memories(BTreeMap<u64, File>);

impl PageSource for Memories {
    fn read(&mut self, pid: u64, address: u64, buffer: &mut [u8]) -> cryonaut_page_server::Result<u64> {
        let absent = |problem: String| cryonaut_page_server::Error::Absent { pid, address, problem };
        let memory = self.0.get(&pid).ok_or_else(|| absent("there is no such process".into()))?;
        let mut done = 0;
        while done < buffer.len() {
            match memory.read_at(&mut buffer[done..], address + done as u64) {
                Ok(0) => break,
                Ok(got) => done += got,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // What comes before the first that is nowhere.
                Err(_) if done as u64 >= PAGE_SIZE => break,
                Err(error) => return Err(absent(error.to_string())),
            }
        }
        match done as u64 / PAGE_SIZE {
            0 => Err(absent("the process has ended".into())),
            pages => Ok(pages),
        }
    }
}
