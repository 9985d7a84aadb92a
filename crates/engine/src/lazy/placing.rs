//! Pages put in place, and what the kernel answers.

use super::missing::Part;
use crate::memory::PAGE;
use crate::memory::ranges::Range;
use cryonaut_kernel::Errno;
use cryonaut_kernel::uffd::Uffd;

/// How far something came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The kernel is changing the address space: events come first.
    Changing,
    /// There is no source for it now, and no way to say so to who waits.
    Lacking,
    /// The address space is no more.
    Gone,
}

/// A page that nothing was ever in.
pub fn zeros(uffd: &Uffd, page: u64) -> Outcome {
    match uffd.zeropage(page, PAGE, true) {
        Err(Errno::AGAIN | Errno::NOMEM) => Outcome::Changing,
        Err(Errno::SRCH) => Outcome::Gone,
        // It is there, or not registered any more: who waits tries again.
        _ => Outcome::Done,
    }
}

/// Whether the kernel would fill something now, asked by what it never does.
pub fn quiet(uffd: &Uffd) -> Outcome {
    match uffd.zeropage(0, 0, false) {
        Err(Errno::AGAIN) => Outcome::Changing,
        // EINVAL: for the range, at which it looks after that.
        _ => Outcome::Done,
    }
}

/// Puts the pages of a part in place by `how`, which is told where, at which byte of the part that is, and how many bytes.
/// Tells `settled` what is not missing any more.
pub fn place(
    uffd: &Uffd,
    part: Part,
    mut how: impl FnMut(&Uffd, u64, usize, usize) -> Result<usize, Errno>,
    mut settled: impl FnMut(Range),
) -> Outcome {
    let (mut done, mut most) = (0, part.len);
    // What the program is just moving away is not found either. The kernel looks for such changes before it looks for the
    // mapping, and they do not end before we have read of them: only what is not found twice is gone.
    let mut not_found = None;
    while done < part.len {
        let (at, len) = (part.start + done, (part.len - done).min(most));
        let bytes = match how(uffd, at, done as usize, len as usize) {
            Ok(bytes) => bytes as u64,
            Err(Errno::EXIST) => PAGE,
            // Part of it may be in another mapping, and one call is for one mapping; or it is nobody's any more.
            Err(Errno::NOENT) if len > PAGE => {
                most = PAGE;
                continue;
            }
            Err(Errno::NOENT) if not_found != Some(at) => {
                not_found = Some(at);
                continue;
            }
            Err(Errno::NOENT) => PAGE,
            Err(Errno::SRCH) => return Outcome::Gone,
            Err(Errno::INVAL) => return Outcome::Lacking,
            Err(_) => return Outcome::Changing,
        };
        settled((at, at + bytes));
        done += bytes;
    }
    Outcome::Done
}
