//! The users and groups of the tree's user namespace. What the kernel tells us of owners it tells as we see them; the
//! image has them as the tree does, and a restore with other maps makes them what they are then. Of several user
//! namespaces it is that of the tree's root, as in CRIU's images.
//!
//! One run of the engine has one tree, so its maps are kept once for the whole process, as is the place of /proc.

use cryonaut_kernel::Errno;
use cryonaut_kernel::proc::values::IdRange;
use cryonaut_kernel::sys::creds::FilesOf;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the kernel tells of who has no number in a namespace (user_namespaces(7), `kernel.overflowuid`).
pub const NOBODY: u32 = 65_534;
/// No number at all, in calls that take one to be changed.
const NONE: u32 = u32::MAX;

/// The maps of a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Maps {
    /// Of users.
    pub users: Vec<IdRange>,
    /// Of groups.
    pub groups: Vec<IdRange>,
}

static ARE_MAPPED: AtomicBool = AtomicBool::new(false);
static MAPS: RwLock<Option<Maps>> = RwLock::new(None);

/// From now on, these are the tree's. `None` if it has our own users.
pub fn set(maps: Option<Maps>) {
    ARE_MAPPED.store(maps.is_some(), Ordering::Release);
    *MAPS.write().unwrap_or_else(std::sync::PoisonError::into_inner) = maps;
}

/// Whether the tree has users of its own.
#[must_use]
pub fn are_mapped() -> bool {
    ARE_MAPPED.load(Ordering::Acquire)
}

fn by<T>(id: T, translate: impl FnOnce(T, &Maps) -> T) -> T {
    if !are_mapped() {
        return id;
    }
    match MAPS.read().unwrap_or_else(std::sync::PoisonError::into_inner).as_ref() {
        None => id,
        Some(maps) => translate(id, maps),
    }
}

/// A user and a group of ours, as the tree has them.
#[must_use]
pub fn inside(ids: (u32, u32)) -> (u32, u32) {
    by(ids, |(user, group), maps| (inwards(user, &maps.users), inwards(group, &maps.groups)))
}

/// A user and a group of the tree's, as we have them.
#[must_use]
pub fn outside(ids: (u32, u32)) -> (u32, u32) {
    by(ids, |(user, group), maps| (outwards(user, &maps.users), outwards(group, &maps.groups)))
}

/// As long as the answer is there, files that this thread makes belong to the tree's root.
pub fn own_files() -> Result<Option<FilesOf>, Errno> {
    let (user, group) = outside((0, 0));
    are_mapped().then(|| FilesOf::new(user, group)).transpose()
}

/// A user of ours, as the tree has it.
#[must_use]
pub fn user_inside(user: u32) -> u32 {
    inside((user, NONE)).0
}

/// A user of the tree's, as we have it.
#[must_use]
pub fn user_outside(user: u32) -> u32 {
    outside((user, NONE)).0
}

/// Groups of ours, as the tree has them.
#[must_use]
pub fn groups_inside(groups: Vec<u32>) -> Vec<u32> {
    by(groups, |groups, maps| groups.into_iter().map(|group| inwards(group, &maps.groups)).collect())
}

/// Groups of the tree's, as we have them.
#[must_use]
pub fn groups_outside(groups: Vec<u32>) -> Vec<u32> {
    by(groups, |groups, maps| groups.into_iter().map(|group| outwards(group, &maps.groups)).collect())
}

fn inwards(id: u32, map: &[IdRange]) -> u32 {
    let translate = |range: &IdRange| {
        let at = id.checked_sub(range.outside).filter(|at| *at < range.count)?;
        Some(range.inside + at)
    };
    if id == NONE { id } else { map.iter().find_map(translate).unwrap_or(NOBODY) }
}

/// Who has no number there is left as he was told.
fn outwards(id: u32, map: &[IdRange]) -> u32 {
    let translate = |range: &IdRange| {
        let at = id.checked_sub(range.inside).filter(|at| *at < range.count)?;
        Some(range.outside + at)
    };
    map.iter().find_map(translate).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_translated_by_their_ranges() {
        let map = [
            IdRange { inside: 0, outside: 20_000, count: 20_000 },
            IdRange { inside: 100_000, outside: 200_000, count: 50_000 },
        ];
        assert_eq!(
            [20_000, 39_999, 40_000, 200_001, 0, NONE].map(|id| inwards(id, &map)),
            [0, 19_999, NOBODY, 100_001, NOBODY, NONE]
        );
        assert_eq!([0, 19_999, 100_001, NONE].map(|id| outwards(id, &map)), [20_000, 39_999, 200_001, NONE]);
        // Without maps nothing changes.
        assert_eq!(inside((7, 8)), (7, 8));
    }
}
