//! Answering who asks for pages: out of a local image, or from wherever else they are.

use crate::protocol::{Command, Request};
use crate::socket::Stream;
use crate::{Error, Result};
use cryonaut_image::{Chain, ImageKind, PAGE_SIZE, PageFlags, Piece, Source};
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Pages that are sent in one answer; who asks for more gets the first of them, and asks again.
pub const MOST_PAGES: u64 = 4096;

/// Who has pages.
pub trait PageSource {
    /// Puts pages of a process from an address on into `buffer`, which has room for as many as were asked for; how many
    /// there are, not 0.
    ///
    /// # Errors
    /// That there is none, or it cannot be read.
    fn read(&mut self, pid: u64, address: u64, buffer: &mut [u8]) -> Result<u64>;
}

/// Answers until the other end has no more to ask.
///
/// # Errors
/// [`Error::Io`]; [`Error::Protocol`]; those of the source, after which the connection is closed.
pub fn serve(stream: Stream, source: &mut dyn PageSource) -> Result<()> {
    answer(stream, source).map(drop)
}

/// The same for pages that are lost with us: who asks has to say that he has all that he wants.
///
/// # Errors
/// As for [`serve`]; [`Error::Io`] if he is gone without a word.
pub fn hand_over(stream: Stream, source: &mut dyn PageSource) -> Result<()> {
    let peer = stream.peer().to_owned();
    match answer(stream, source)? {
        true => Ok(()),
        false => Err(Error::io(&peer, "hand all pages over")(std::io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Whether the other end has said that it wants no more.
fn answer(mut stream: Stream, source: &mut dyn PageSource) -> Result<bool> {
    let peer = stream.peer().to_owned();
    let mut answer = Vec::new();
    while let Some(request) = Request::read(&mut stream, &peer)? {
        match request.command {
            Command::Get if request.pages > 0 => {
                let most = request.pages.min(MOST_PAGES);
                answer.resize(crate::protocol::REQUEST_LEN + (most * PAGE_SIZE) as usize, 0);
                let (head, pages) = answer.split_at_mut(crate::protocol::REQUEST_LEN);
                let pages = source.read(request.id, request.address, pages)?.min(most);
                let told = Request { command: Command::Add(PageFlags::PRESENT), pages, ..request };
                head.copy_from_slice(&told.encode());
                let len = head.len() + (pages * PAGE_SIZE) as usize;
                let sent = stream.write_all(&answer[..len]).and_then(|()| stream.flush());
                sent.map_err(Error::io(&peer, "send it pages"))?;
            }
            Command::Close { .. } => return acknowledge(stream).map(|()| true),
            other => return Err(Error::protocol(&peer, format!("{other:?} makes no sense when pages are asked for"))),
        }
    }
    Ok(false)
}

/// Says that all went well, and waits for the other end to close.
pub(crate) fn acknowledge(mut stream: Stream) -> Result<()> {
    let peer = stream.peer().to_owned();
    let said = stream.write_all(&0_i32.to_le_bytes()).and_then(|()| stream.flush());
    said.map_err(Error::io(&peer, "say that all has arrived"))?;
    stream.end();
    Ok(())
}

/// The private pages that an image has, its parents' included.
#[derive(Debug)]
pub struct ImagePages {
    chain: Chain<'static>,
    /// Those of the processes that were asked about, ascending.
    pieces: HashMap<u64, Vec<Piece>>,
    files: HashMap<Source, File>,
}

impl ImagePages {
    /// Of the image in a directory.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub fn open(path: &Path) -> Result<Self> {
        Ok(ImagePages { chain: Chain::open(path)?, pieces: HashMap::new(), files: HashMap::new() })
    }

    fn piece(&mut self, pid: u64, address: u64) -> Result<Option<Piece>> {
        if !self.pieces.contains_key(&pid) {
            let pieces = self.chain.pieces(ImageKind::Pagemap, pid)?;
            self.pieces.insert(pid, pieces);
        }
        let pieces = &self.pieces[&pid];
        let place = pieces.partition_point(|piece| piece.end() <= address);
        Ok(pieces.get(place).filter(|piece| piece.start <= address).copied())
    }

    fn file(&mut self, source: Source) -> Result<&File> {
        if !self.files.contains_key(&source) {
            let file = self.chain.pages(source)?;
            self.files.insert(source, file);
        }
        Ok(&self.files[&source])
    }
}

impl PageSource for ImagePages {
    fn read(&mut self, pid: u64, address: u64, buffer: &mut [u8]) -> Result<u64> {
        let mut done = 0;
        while done < buffer.len() {
            let at = address + done as u64;
            let Some(piece) = self.piece(pid, at)? else { break };
            let len = (piece.end() - at).min((buffer.len() - done) as u64) as usize;
            let from = piece.offset + (at - piece.start);
            let file = self.file(piece.source)?;
            file.read_exact_at(&mut buffer[done..done + len], from)
                .map_err(Error::io(&format!("(image of process {pid})"), "read its pages"))?;
            done += len;
        }
        match done as u64 / PAGE_SIZE {
            0 => Err(Error::protocol("(image)", format!("process {pid} has no page at {address:#x}"))),
            pages => Ok(pages),
        }
    }
}
