//! Pages that several processes have in common: stored once.
//!
//! After a fork both processes have the same pages until one of the two writes
//! (copy on write), and so do further children. The kernel tells the page frame
//! behind each address (/proc/PID/pagemap, for root): equal frames at one
//! address are one page. Of the processes that have it, the first in the tree is
//! its *holder*, and writes it to an image below this one, a layer
//! ([`DumpDir::layers`]), where the pagemaps of all of them name the holder's
//! pages file. In the image itself their pagemaps say "in the parent".
//!
//! A pagemap names one pages file, so holders of whom one process has pages are
//! in different layers. And it names all pages of that file: what a process takes
//! from a farther layer must not be in the way of a nearer one.
//!
//! Frames can move while we look (compaction), and a frame that one process has
//! left another can get. What counts was found equal twice, each time of all
//! processes: for a false answer two pages would have to change places both times
//! between one look and the next.
//!
//! The same is asked of processes that run, each of whose writes are noted
//! (`precopy/in_common.rs`).
//!
//! To find nothing must cost nothing: 100 processes with little memory of their
//! own are not even looked at.

use super::layers::Layers;
use super::{PAGE, ranges};
use crate::files::PagesIds;
use crate::freeze::Process;
use crate::sharing::UnwrittenSpaces;
use crate::{Error, Object, Result, parallel};
use cryonaut_image::DumpDir;
use cryonaut_kernel::pagemap::{Categories, Entry, PageRun, PageRuns, Query, can_scan, read_entries};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A process with fewer KiB of pages that are no file's has nothing to share that is
/// worth finding: a dynamically linked program that does little has some 200.
const LITTLE_KIB: u64 = 1 << 10;
/// What storing pages once has to save for each file that it costs: writing so
/// much takes longer than making a file.
const WORTH_A_FILE: u64 = 64 << 10;
/// Most layers: so deep may forks nest that share with one another alone.
const MOST_LAYERS: usize = 8;
/// Frames that are held at a time, of all processes together.
const FRAMES: u64 = 1 << 18;
/// Where the memory of processes ends (TASK_SIZE_MAX of four levels of page tables).
const END: u64 = (1 << 47) - PAGE;

/// Sets of addresses, by the holder whose pages are there.
pub type ByHolder = BTreeMap<usize, Vec<ranges::Range>>;

/// What of an address space is in layers.
#[derive(Debug, Default)]
pub struct Common {
    /// Its pages there.
    pub elsewhere: Vec<ranges::Range>,
    /// Those that it is the holder of.
    pub held: Option<Held>,
}

/// Pages that are to be written to a layer.
#[derive(Debug)]
pub struct Held {
    /// The layer.
    pub images: Arc<DumpDir>,
    /// The number of the pages file.
    pub pages_id: u32,
    /// The pages, in the order in which they are in it.
    pub pages: Vec<ranges::Range>,
}

impl Common {
    /// Cuts a run of pages into those that are in a layer (`true`) and others.
    pub fn cut(&self, run: &PageRun, mut each: impl FnMut(&PageRun, bool) -> Result<()>) -> Result<()> {
        let mut at = run.start;
        let first = self.elsewhere.partition_point(|range| range.1 <= run.start);
        for (start, end) in self.elsewhere[first..].iter().take_while(|range| range.0 < run.end) {
            let (start, end) = ((*start).max(run.start), (*end).min(run.end));
            if at < start {
                each(&PageRun { start: at, end: start, ..*run }, false)?;
            }
            each(&PageRun { start, end, ..*run }, true)?;
            at = end;
        }
        if at < run.end { each(&PageRun { start: at, ..*run }, false) } else { Ok(()) }
    }
}

/// Finds what the address spaces of a frozen tree have in common, tells each of
/// them, and writes the pagemaps of the layers.
///
/// Not of those that are written already (`is_written`). Before Linux 6.7 it would take too long: all is written for each.
pub fn find(
    processes: &[Process],
    is_written: impl Fn(&Process) -> bool,
    spaces: &mut UnwrittenSpaces,
    (images, pages_ids): (&DumpDir, &PagesIds),
) -> Result<()> {
    let mut known = BTreeSet::new();
    let large = |p: &&Process| !p.is_zombie() && p.status.rss_anon_kib >= LITTLE_KIB && !is_written(p);
    let some: Vec<&Process> = processes.iter().filter(large).filter(|p| known.insert(p.space())).collect();
    if some.len() < 2 || !images.can_have_layers() || !can_scan() {
        return Ok(());
    }
    let pagemaps = open_all(&some)?;
    let shares = Shares::find(&everywhere(&some, &pagemaps))?;
    if shares.is_empty() {
        return Ok(());
    }
    let mut layers = Layers::of(&shares, images, pages_ids)?;
    for (index, process) in some.iter().enumerate() {
        let Some(space) = spaces.get_mut(process.space()) else { continue };
        layers.write_maps(&shares, index, &space.pids)?;
        space.common.elsewhere = shares.taken_by(index);
        space.common.held = shares.held.get(&index).map(|pages| {
            let (images, pages_id) = layers.place(&shares, index);
            Held { images, pages_id, pages: pages.clone() }
        });
    }
    Ok(())
}

/// Those of these processes that have enough pages in common with others to be stored once.
///
/// # Errors
/// If the kernel does not tell.
pub fn have_in_common(processes: &[&Process]) -> Result<Vec<i32>> {
    if processes.len() < 2 || !can_scan() {
        return Ok(Vec::new());
    }
    let pagemaps = open_all(processes)?;
    let mut taken = look(&everywhere(processes, &pagemaps))?;
    keep_worthy(&mut taken);
    let some = processes.iter().zip(&taken).filter(|(_, taken)| !taken.is_empty());
    Ok(some.map(|(process, _)| process.pid).collect())
}

fn open_all(processes: &[&Process]) -> Result<Vec<OwnedFd>> {
    processes.iter().map(|p| Ok(p.task.open_file("pagemap", OFlags::RDONLY)?)).collect()
}

fn everywhere<'a>(processes: &[&Process], pagemaps: &'a [OwnedFd]) -> Vec<Asked<'a>> {
    const ALL: &[ranges::Range] = &[(0, END)];
    let asked = |(process, pagemap): (&&Process, &'a OwnedFd)| Asked {
        pid: process.pid,
        pagemap: pagemap.as_fd(),
        within: ALL,
    };
    processes.iter().zip(pagemaps).map(asked).collect()
}

/// A process of which is asked what it has in common with others.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its number, for who is told of it.
    pub pid: i32,
    /// Its /proc/PID/pagemap.
    pub pagemap: BorrowedFd<'a>,
    /// Where to look; ascending.
    pub within: &'a [ranges::Range],
}

/// What some processes have in common, by their places in a list.
#[derive(Debug)]
pub struct Shares {
    /// What each of them takes from layers.
    pub taken: Vec<ByHolder>,
    /// What is in the layer of each holder, no less than is taken from it.
    pub held: ByHolder,
    /// Which layer that is; 0 is the nearest.
    pub layer_of: BTreeMap<usize, usize>,
}

impl Shares {
    /// Finds it.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn find(asked: &[Asked<'_>]) -> Result<Shares> {
        let mut taken = look(asked)?;
        let mut held = keep_worthy(&mut taken);
        if !held.is_empty() {
            for (taken, again) in taken.iter_mut().zip(look(asked)?) {
                for (holder, pages) in taken.iter_mut() {
                    let again = again.get(holder).map_or(&[][..], Vec::as_slice);
                    *pages = ranges::common(pages, again);
                }
            }
            held = keep_worthy(&mut taken);
        }
        let layer_of = lay(&mut taken, &held);
        held.retain(|holder, _| layer_of.contains_key(holder));
        Ok(Shares { taken, held, layer_of })
    }

    /// Whether nobody takes anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.taken.iter().all(BTreeMap::is_empty)
    }

    /// All that one of them takes.
    #[must_use]
    pub fn taken_by(&self, index: usize) -> Vec<ranges::Range> {
        ascending(self.taken[index].values().map(Vec::as_slice))
    }
}

/// Which pages each of the processes has in common with others, by holder.
fn look(asked: &[Asked<'_>]) -> Result<Vec<ByHolder>> {
    if asked.len() < 2 {
        return Ok(vec![ByHolder::new(); asked.len()]);
    }
    let mut walks: Vec<Walk<'_>> = asked.iter().map(Walk::new).collect::<Result<_>>()?;
    let window = (FRAMES / walks.len() as u64).max(1) * PAGE;
    let mut taken = vec![ByHolder::new(); walks.len()];
    while let Some(start) = walks.iter().filter_map(Walk::next_page).min() {
        let end = start.saturating_add(window);
        let frames = parallel::map(walks.iter_mut().collect(), |walk| walk.frames_until(end));
        let mut all = Vec::new();
        for (index, frames) in frames.into_iter().enumerate() {
            all.extend(frames?.into_iter().map(|(address, frame)| (address, frame, index)));
        }
        all.sort_unstable();
        for same in all.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)).filter(|same| same.len() > 1) {
            for (address, _, index) in same {
                ranges::push(taken[*index].entry(same[0].2).or_default(), (*address, address + PAGE));
            }
        }
    }
    Ok(taken)
}

/// A walk through the pages of a process.
struct Walk<'a> {
    asked: &'a Asked<'a>,
    runs: PageRuns<'a>,
    /// What has not been looked at of the last run.
    rest: Option<(u64, u64)>,
    /// Where the last run ended: of memory that changes meanwhile, the kernel may tell twice.
    reached: u64,
}

impl<'a> Walk<'a> {
    fn new(asked: &'a Asked<'a>) -> Result<Self> {
        let not = Categories::PFNZERO | Categories::FILE;
        let start = asked.within.first().map_or(0, |first| first.0);
        let end = asked.within.last().map_or(start, |last| last.1);
        let query = Query { start, end, inverted: not, all: not | Categories::PRESENT, ..Query::default() };
        let mut walk = Walk { asked, runs: PageRuns::scan(asked.pagemap, query), rest: None, reached: 0 };
        walk.advance()?;
        Ok(walk)
    }

    fn failed(&self, errno: Errno) -> Error {
        Error::kernel(Object::Process(self.asked.pid), "ask which pages it shares", errno)
    }

    fn advance(&mut self) -> Result<()> {
        self.rest = None;
        while let Some(run) = self.runs.next().transpose().map_err(|errno| self.failed(errno))? {
            let start = run.start.max(self.reached);
            if start < run.end {
                self.rest = Some((start, run.end));
                self.reached = run.end;
                break;
            }
        }
        Ok(())
    }

    fn next_page(&self) -> Option<u64> {
        self.rest.map(|(start, _)| start)
    }

    fn is_asked_for(&self, address: u64) -> bool {
        let within = self.asked.within;
        within.get(within.partition_point(|range| range.1 <= address)).is_some_and(|range| range.0 <= address)
    }

    /// The frames of pages before `end` that others have mapped too.
    fn frames_until(&mut self, end: u64) -> Result<Vec<(u64, u64)>> {
        let mut frames = Vec::new();
        let mut entries = [Entry::default(); 512];
        while let Some((start, behind)) = self.rest.filter(|(start, _)| *start < end) {
            let want = ((behind.min(end) - start) / PAGE).min(entries.len() as u64) as usize;
            let got = read_entries(self.asked.pagemap, start, &mut entries[..want]).map_err(|e| self.failed(e))?;
            let pages = entries[..got].iter().zip((start..).step_by(PAGE as usize));
            let common = |entry: &Entry| {
                entry.frame() != 0 && !entry.exclusive() && !entry.categories().contains(Categories::FILE)
            };
            let common = pages.filter(|(entry, at)| common(entry) && self.is_asked_for(*at));
            frames.extend(common.map(|(entry, at)| (at, entry.frame())));
            let reached = start + got as u64 * PAGE;
            match got > 0 && reached < behind {
                true => self.rest = Some((reached, behind)),
                false => self.advance()?,
            }
        }
        Ok(frames)
    }
}

/// Leaves out holders with whom too little is saved; what the others hold comes back.
fn keep_worthy(taken: &mut [ByHolder]) -> ByHolder {
    let mut saved: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for (index, taken) in taken.iter().enumerate() {
        for (holder, pages) in taken.iter().filter(|(holder, pages)| **holder != index && !pages.is_empty()) {
            let (bytes, takers) = saved.entry(*holder).or_default();
            *bytes += ranges::len(pages);
            *takers += 1;
        }
    }
    // A pagemap of each, one of the holder, and the pages.
    saved.retain(|_, (bytes, takers)| *bytes >= WORTH_A_FILE * (*takers + 2));
    for taken in taken.iter_mut() {
        taken.retain(|holder, pages| saved.contains_key(holder) && !pages.is_empty());
    }
    saved.keys().filter_map(|holder| Some((*holder, taken[*holder].get(holder)?.clone()))).collect()
}

/// Gives each holder a layer, the nearest is 0, and takes out what cannot be.
/// Children come nearer than their parents: they have written since.
fn lay(taken: &mut [ByHolder], held: &ByHolder) -> BTreeMap<usize, usize> {
    let mut layer_of: BTreeMap<usize, usize> = BTreeMap::new();
    for holder in held.keys().rev() {
        // Those of whom somebody has pages who has this one's too.
        let others = taken.iter().filter(|taken| taken.contains_key(holder)).flat_map(BTreeMap::keys);
        let used: BTreeSet<usize> = others.filter_map(|other| layer_of.get(other).copied()).collect();
        layer_of.extend((0..MOST_LAYERS).find(|layer| !used.contains(layer)).map(|layer| (*holder, layer)));
    }
    for taken in taken.iter_mut() {
        taken.retain(|holder, _| layer_of.contains_key(holder));
        let mut nearest_first: Vec<_> = taken.iter_mut().collect();
        nearest_first.sort_by_key(|(holder, _)| layer_of[holder]);
        let mut nearer: Vec<&[ranges::Range]> = Vec::new();
        for (holder, pages) in nearest_first {
            for held in &nearer {
                *pages = ranges::without(pages, held);
            }
            nearer.push(&held[holder]);
        }
        taken.retain(|_, pages| !pages.is_empty());
    }
    layer_of
}

/// Sets that do not overlap, as one.
pub fn ascending<'a>(sets: impl Iterator<Item = &'a [ranges::Range]>) -> Vec<ranges::Range> {
    let mut all: Vec<ranges::Range> = sets.flatten().copied().collect();
    all.sort_unstable();
    let mut set = Vec::new();
    all.into_iter().for_each(|range| ranges::push(&mut set, range));
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn set(holder: usize, start: u64, end: u64) -> (usize, Vec<ranges::Range>) {
        (holder, vec![(start * MIB, end * MIB)])
    }

    #[test]
    fn a_run_is_cut_at_what_is_elsewhere() {
        let common = Common { elsewhere: vec![(0x1000, 0x2000), (0x4000, 0x9000)], held: None };
        let mut parts = Vec::new();
        let run = PageRun { start: 0, end: 0x6000, ..PageRun::default() };
        let mut note = |part: &PageRun, there| {
            parts.push((part.start, part.end, there));
            Ok(())
        };
        common.cut(&run, &mut note).unwrap();
        let all = [(0, 0x1000, false), (0x1000, 0x2000, true), (0x2000, 0x4000, false), (0x4000, 0x6000, true)];
        assert_eq!(parts, all);
    }

    #[test]
    fn where_all_have_ended_nobody_has_anything_in_common() {
        assert!(Shares::find(&[]).unwrap().is_empty());
    }

    #[test]
    fn who_saves_too_little_is_left_out() {
        let little = (1, vec![(50 * MIB, 50 * MIB + PAGE)]);
        let mut taken = vec![
            ByHolder::from([set(0, 0, 8)]),
            ByHolder::from([set(0, 0, 8), little.clone()]),
            ByHolder::from([little]),
        ];
        assert_eq!(keep_worthy(&mut taken), ByHolder::from([set(0, 0, 8)]));
        assert_eq!(taken[1], ByHolder::from([set(0, 0, 8)]));
        assert!(taken[2].is_empty());
    }

    #[test]
    fn holders_of_one_process_are_in_different_layers() {
        // 1 shares with 0, and what it has written since with 2; so do 3 and 4, apart from them.
        let mut taken = vec![
            ByHolder::from([set(0, 0, 8)]),
            ByHolder::from([set(0, 0, 8), set(1, 20, 28)]),
            ByHolder::from([set(1, 20, 28)]),
            ByHolder::from([set(3, 0, 8)]),
            ByHolder::from([set(3, 0, 8)]),
        ];
        let held = keep_worthy(&mut taken);
        assert_eq!(lay(&mut taken, &held), BTreeMap::from([(0, 1), (1, 0), (3, 0)]));
    }

    #[test]
    fn what_a_nearer_layer_hides_is_not_taken_from_a_farther() {
        // 1 has written 4..6 after the birth of 2, and shares what is there now with 3.
        let mut taken = vec![
            ByHolder::from([set(0, 0, 12)]),
            ByHolder::from([(0, [set(0, 0, 4).1, set(0, 6, 12).1].concat()), set(1, 4, 6)]),
            ByHolder::from([set(0, 0, 12), set(1, 20, 24)]),
            ByHolder::from([(0, [set(0, 0, 4).1, set(0, 6, 12).1].concat()), set(1, 4, 6)]),
        ];
        let held = ByHolder::from([set(0, 0, 12), (1, [set(1, 4, 6).1, set(1, 20, 24).1].concat())]);
        let before = taken.clone();
        assert_eq!(lay(&mut taken, &held), BTreeMap::from([(0, 1), (1, 0)]));
        assert_eq!(taken[2][&0], [(0, 4 * MIB), (6 * MIB, 12 * MIB)]);
        assert_eq!((&taken[1], &taken[3]), (&before[1], &before[3]));
    }
}
