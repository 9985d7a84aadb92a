//! Pagemaps: which pages of memory lie where.
//!
//! `pagemap-N.img` is a head that names a pages file, then one entry for each
//! run of pages. The pages of all runs marked present lie in the pages file one
//! after the other, in the order of the entries; an entry does not say where.

use std::path::PathBuf;

use crate::dump_dir::DumpDir;
use crate::entry_reader::EntryReader;
use crate::entry_writer::EntryWriter;
use crate::error::{CUT_SHORT, Error, Result};
use crate::image_dir::ImageDir;
use crate::kind::ImageKind;
use crate::records::{PagemapEntry, PagemapHead};

/// Bytes of a page in the image.
pub const PAGE_SIZE: u64 = 4096;

/// Addresses end here: no run goes beyond.
const ADDRESS_END: u64 = 1 << 63;

/// Where the pages of a run are. Bits of `pagemap_entry.flags`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PageFlags(u32);

impl PageFlags {
    /// In the parent image.
    pub const PARENT: Self = Self(1);
    /// May be brought in after the processes run again.
    pub const LAZY: Self = Self(2);
    /// In this image's pages file.
    pub const PRESENT: Self = Self(4);

    const KNOWN: u32 = 7;

    /// The flags as the image has them.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// From the image's; `None` if a bit means nothing.
    pub fn from_bits(bits: u32) -> Option<Self> {
        (bits & !Self::KNOWN == 0).then_some(Self(bits))
    }

    /// Both together.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other`'s flags are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Pages that follow one another in memory and are in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Address of the first page; in shared memory, its offset.
    pub vaddr: u64,
    /// Number of pages.
    pub pages: u64,
    pub flags: PageFlags,
    /// Where the first page lies in the pages file; only if present.
    pub offset: Option<u64>,
}

impl Run {
    /// Bytes of memory.
    pub fn len(&self) -> u64 {
        self.pages * PAGE_SIZE
    }

    /// Never: an image's runs have pages.
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// The first address behind the run.
    pub fn end(&self) -> u64 {
        self.vaddr + self.len()
    }
}

/// The runs of one address space or shared memory segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pagemap {
    pages_id: u32,
    runs: Vec<Run>,
}

impl Pagemap {
    /// Reads a pagemap (`kind` is `Pagemap` or `ShmemPagemap`) and checks it:
    /// runs ascend and do not overlap, addresses are those of pages, the pages
    /// file has exactly the size that the present runs add up to.
    ///
    /// # Errors
    /// As for [`ImageDir::entries`]; [`Error::Corrupt`] for what the check finds.
    pub fn read(image: &ImageDir, kind: ImageKind, id: u64) -> Result<Self> {
        let mut reader = image.entries(kind, id)?;
        let head: PagemapHead = reader.require()?;
        let mut runs: Vec<Run> = Vec::new();
        let mut offset = 0;
        loop {
            let at = reader.position();
            let Some(entry) = reader.next_record()? else {
                break;
            };
            let floor = runs.last().map_or(0, Run::end);
            let run = run(&reader, at, &entry, floor, offset)?;
            if run.offset.is_some() {
                // Runs do not overlap, so all together are below 2^63.
                offset += run.len();
            }
            runs.push(run);
        }
        let map = Self { pages_id: head.pages_id, runs };
        map.check_pages_file(image)?;
        Ok(map)
    }

    fn check_pages_file(&self, image: &ImageDir) -> Result<()> {
        let id = u64::from(self.pages_id);
        let want = self.present_len();
        let path = image.path_of(ImageKind::Pages, id)?;
        let Some(size) = image.pages_len(id)? else {
            return if want == 0 { Ok(()) } else { Err(Error::Missing { path }) };
        };
        if size == want {
            return Ok(());
        }
        let expected = format!("{want} bytes of pages, as the pagemap says");
        Err(Error::corrupt(&path, size.min(want), expected, format!("{size} bytes"), CUT_SHORT))
    }

    /// The number of the pages file, `pages-N.img`.
    pub fn pages_id(&self) -> u32 {
        self.pages_id
    }

    /// The runs, ascending.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Bytes of the pages file.
    pub fn present_len(&self) -> u64 {
        self.runs.iter().filter(|run| run.offset.is_some()).map(Run::len).sum()
    }

    /// The run that holds the page of an address.
    pub fn find(&self, vaddr: u64) -> Option<&Run> {
        let index = self.runs.partition_point(|run| run.end() <= vaddr);
        self.runs.get(index).filter(|run| run.vaddr <= vaddr)
    }
}

/// Checks one entry, whose length word is at `at`.
fn run(reader: &EntryReader, at: u64, entry: &PagemapEntry, floor: u64, offset: u64) -> Result<Run> {
    let vaddr = entry.vaddr;
    let pages = entry.nr_pages.unwrap_or(u64::from(entry.compat_nr_pages));
    // Images from before there were flags say it in two ways only.
    let bits = match (entry.in_parent, entry.flags) {
        (Some(true), flags) => flags.unwrap_or(0) | PageFlags::PARENT.0,
        (_, Some(flags)) => flags,
        (_, None) => PageFlags::PRESENT.0,
    };
    let flags = PageFlags(bits);

    if !vaddr.is_multiple_of(PAGE_SIZE) {
        return Err(reader.corrupt(at, "the address of a page", format!("{vaddr:#x}")));
    }
    if vaddr < floor {
        return Err(reader.corrupt(at, format!("an address from {floor:#x} on"), format!("{vaddr:#x}")));
    }
    let end = pages.checked_mul(PAGE_SIZE).and_then(|len| vaddr.checked_add(len));
    if pages == 0 || end.is_none_or(|end| end > ADDRESS_END) {
        let expected = "a number of pages that fit into memory";
        return Err(reader.corrupt(at, expected, format!("{pages} at {vaddr:#x}")));
    }
    let present = flags.contains(PageFlags::PRESENT);
    let both = present && flags.contains(PageFlags::PARENT);
    if bits & !PageFlags::KNOWN != 0 || bits == 0 || both {
        let expected = "flags that say where the pages are";
        return Err(reader.corrupt(at, expected, format!("{bits:#x}")));
    }
    Ok(Run { vaddr, pages, flags, offset: present.then_some(offset) })
}

/// Writes a pagemap; runs that follow one another become one entry.
#[derive(Debug)]
pub struct PagemapWriter {
    writer: EntryWriter,
    path: PathBuf,
    /// The run that may still grow.
    last: Option<Run>,
    /// Bytes of present pages so far.
    offset: u64,
}

impl PagemapWriter {
    /// Begins `pagemap-ID.img` (or `pagemap-shmem-ID.img`) for the pages file
    /// `pages-PAGES_ID.img`.
    ///
    /// # Errors
    /// As for [`DumpDir::write_one`].
    pub fn create(dump: &DumpDir, kind: ImageKind, id: u64, pages_id: u32) -> Result<Self> {
        let writer = dump.begin(kind, id, &PagemapHead { pages_id })?;
        let path = dump.path().join(kind.file_name(id)?);
        Ok(Self { writer, path, last: None, offset: 0 })
    }

    /// Adds pages; addresses must ascend. Returns where present pages belong in
    /// the pages file.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the addresses do not ascend or are not those of
    /// pages; otherwise as for [`EntryWriter::append`].
    pub fn push(&mut self, vaddr: u64, pages: u64, flags: PageFlags) -> Result<u64> {
        let floor = self.last.map_or(0, |run| run.end());
        let end = pages.checked_mul(PAGE_SIZE).and_then(|len| vaddr.checked_add(len));
        let fits = pages > 0 && end.is_some_and(|end| end <= ADDRESS_END);
        if !vaddr.is_multiple_of(PAGE_SIZE) || vaddr < floor || !fits {
            let reason = format!("{pages} pages at {vaddr:#x} cannot follow {floor:#x}");
            return Err(Error::misuse(&self.path, reason));
        }
        let present = flags.contains(PageFlags::PRESENT);
        let offset = self.offset;
        let run = Run { vaddr, pages, flags, offset: present.then_some(offset) };
        if present {
            self.offset += run.len();
        }
        match &mut self.last {
            Some(last) if last.end() == vaddr && last.flags == flags => last.pages += pages,
            _ => {
                self.flush()?;
                self.last = Some(run);
            }
        }
        Ok(offset)
    }

    /// Writes the run that was being gathered.
    fn flush(&mut self) -> Result<()> {
        let Some(run) = self.last else {
            return Ok(());
        };
        // The old field has 32 bits; longer runs become several entries, so that
        // readers of either field see the same.
        let mut vaddr = run.vaddr;
        let mut left = run.pages;
        while left > 0 {
            let pages = u32::try_from(left).unwrap_or(u32::MAX);
            self.writer.append(&PagemapEntry {
                vaddr,
                compat_nr_pages: pages,
                in_parent: None,
                flags: Some(run.flags.bits()),
                nr_pages: Some(u64::from(pages)),
            })?;
            vaddr += u64::from(pages) * PAGE_SIZE;
            left -= u64::from(pages);
        }
        Ok(())
    }

    /// Ends the pagemap and returns the bytes that the pages file must have.
    ///
    /// # Errors
    /// As for [`EntryWriter::append`].
    pub fn finish(mut self) -> Result<u64> {
        self.flush()?;
        Ok(self.offset)
    }
}
