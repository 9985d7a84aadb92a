//! Pages that a page server has, asked for over one connection for all processes.
//!
//! Who fills asks for one run after the other, and each would take the time that a question takes to the server and back.
//! So when a run follows the one before, what comes behind it is asked for as well ([`AHEAD`]), and waits here until it is
//! wanted. Answers come in the order of the questions: whoever waits for a page waits for that much before it.

use super::source::Source;
use crate::memory::ranges::Range;
use cryonaut_image::PAGE_SIZE;
use cryonaut_page_server::Client;
use cryonaut_page_server::client::Asked;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

/// Bytes that are asked for before they are wanted.
const AHEAD: u64 = 1 << 20;
/// Bytes that are asked for at once.
const AT_ONCE: u64 = 128 << 10;

/// A connection to a server, and what has come over it that nobody has wanted yet.
#[derive(Debug)]
pub struct Connection {
    /// None when it has been closed.
    client: Option<Client>,
    waiting: VecDeque<(Asked, Vec<u8>)>,
    lost: Option<String>,
}

impl Connection {
    /// One that is there.
    pub fn new(client: Client) -> Rc<RefCell<Connection>> {
        Rc::new(RefCell::new(Connection { client: Some(client), waiting: VecDeque::new(), lost: None }))
    }

    fn client(&mut self) -> io::Result<&mut Client> {
        let why = self.lost.clone().unwrap_or_else(|| "the connection is closed".into());
        self.client.as_mut().filter(|_| self.lost.is_none()).ok_or_else(|| io::Error::other(why))
    }

    /// Has the answer for a page in it, from that page on; waits for it, and asks if nobody has.
    fn get(&mut self, pid: u64, address: u64, room: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(index) = self.waiting.iter().position(|(asked, _)| covers(asked, pid, address)) {
                let (asked, pages) = &self.waiting[index];
                let from = (address - asked.address) as usize;
                let len = room.len().min(pages.len() - from);
                room[..len].copy_from_slice(&pages[from..from + len]);
                if from + len == pages.len() {
                    self.waiting.remove(index);
                }
                return Ok(len);
            }
            let client = self.client()?;
            if !client.asked().any(|asked| covers(&asked, pid, address)) {
                client.request(pid, address, room.len() as u64 / PAGE_SIZE).map_err(io::Error::other)?;
            }
            let mut pages = Vec::new();
            let came = client.receive(&mut pages).map_err(io::Error::other)?;
            self.waiting.push_back((came, pages));
            // What was asked for ahead and is not wanted any more.
            while self.held() > 2 * AHEAD {
                self.waiting.pop_front();
            }
        }
    }

    /// Bytes that have come.
    fn held(&self) -> u64 {
        self.waiting.iter().map(|(_, pages)| pages.len() as u64).sum()
    }

    /// Asks for pages behind an address, unless enough is under way.
    fn ask_ahead(&mut self, pid: u64, from: u64, ranges: &[Range]) -> io::Result<()> {
        let held = self.held();
        let waiting: Vec<Asked> = self.waiting.iter().map(|(asked, _)| *asked).collect();
        let client = self.client()?;
        let mut under_way = held + client.asked().map(|asked| asked.pages * PAGE_SIZE).sum::<u64>();
        let mut at = from;
        for (start, end) in &ranges[ranges.partition_point(|(_, end)| *end <= from)..] {
            at = at.max(*start);
            while at < *end {
                if under_way >= AHEAD {
                    return Ok(());
                }
                let known = client.asked().chain(waiting.iter().copied()).find(|asked| covers(asked, pid, at));
                at = match known {
                    Some(asked) => asked.address + asked.pages * PAGE_SIZE,
                    None => {
                        let len = AT_ONCE.min(*end - at);
                        client.request(pid, at, len / PAGE_SIZE).map_err(io::Error::other)?;
                        under_way += len;
                        at + len
                    }
                };
            }
        }
        Ok(())
    }
}

fn covers(asked: &Asked, pid: u64, address: u64) -> bool {
    asked.pid == pid && (asked.address..asked.address + asked.pages * PAGE_SIZE).contains(&address)
}

/// The pages of one process; they lie at their addresses of the dump.
#[derive(Debug)]
pub struct RemotePages {
    connection: Rc<RefCell<Connection>>,
    pid: u64,
    /// All that the server has of it, ascending.
    ranges: Vec<Range>,
    /// Where the last run ended.
    behind: u64,
}

impl RemotePages {
    /// Those of a process.
    pub fn new(connection: &Rc<RefCell<Connection>>, pid: i32, ranges: Vec<Range>) -> Self {
        RemotePages { connection: Rc::clone(connection), pid: pid as u64, ranges, behind: 0 }
    }
}

impl Source for RemotePages {
    fn read(&mut self, offset: u64, room: &mut [u8]) -> io::Result<()> {
        let mut connection = self.connection.borrow_mut();
        let mut done = 0;
        let mut read = || -> io::Result<()> {
            while done < room.len() {
                done += connection.get(self.pid, offset + done as u64, &mut room[done..])?;
            }
            let end = offset + done as u64;
            // Pages between runs are not missing.
            let next = self.ranges.partition_point(|(_, end)| *end <= self.behind);
            let follows = self.ranges.get(next).is_some_and(|(start, _)| offset == self.behind.max(*start));
            self.behind = end;
            if follows { connection.ask_ahead(self.pid, end, &self.ranges) } else { Ok(()) }
        };
        let done = read();
        if let Err(error) = &done {
            connection.lost.get_or_insert_with(|| error.to_string());
        }
        done
    }

    /// Another process may have been in the middle of an answer.
    fn take_over(&mut self) -> io::Result<()> {
        let why = "the process that asked its server for pages was killed";
        Err(io::Error::other(self.connection.borrow_mut().lost.get_or_insert_with(|| why.into()).clone()))
    }

    fn is_lost(&self) -> bool {
        self.connection.borrow().lost.is_some()
    }

    fn finish(&mut self) -> io::Result<()> {
        let mut connection = self.connection.borrow_mut();
        if connection.lost.is_some() {
            return Ok(());
        }
        let Some(mut client) = connection.client.take() else { return Ok(()) };
        let mut unwanted = Vec::new();
        while client.asked().next().is_some() {
            client.receive(&mut unwanted).map_err(io::Error::other)?;
        }
        client.close().map_err(io::Error::other)
    }
}
