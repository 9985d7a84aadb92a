//! In which order the processes of a tree are created, so that each has its parent, session and process group. Data
//! only: nothing is touched.
//!
//! A session is inherited at birth and left only by founding one. So a process has children before it founds its
//! session if they belong to the one that it was born in; and children of a session that it was never in are born of
//! that session's leader, as its siblings. Where the leader is no more, a helper takes its id for a while.
//!
//! Not every history can be repeated this way. The arrangement is checked by playing it through, at a checkpoint
//! before anything is changed, so that no tree is ended that could not be made again.

mod deeper;

use std::collections::{BTreeMap, BTreeSet};

/// What a process is to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kin {
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Its session.
    pub session: i32,
}

/// What a process can only share with others if it is born of one of them: names of the kinds, and for each the number
/// of the object.
pub type Inborn = [(&'static str, u32); 4];

/// How one process comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth {
    /// The process.
    pub pid: i32,
    /// Who executes the clone; 0 for the restorer.
    pub creator: i32,
    /// The child becomes the creator's sibling (CLONE_PARENT).
    pub sibling: bool,
    /// It exists only to give others its session or process group.
    pub helper: bool,
}

/// One step of making the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Create a process.
    Create(Birth),
    /// A process becomes the leader of a new session.
    NewSession(i32),
    /// A process joins a process group, or founds it.
    Group(i32, i32),
    /// Orphans below a process come to it (PR_SET_CHILD_SUBREAPER), or no longer.
    Reaper(i32, bool),
    /// A helper ends, whose children become orphans; the process that takes its status.
    End(i32, i32),
}

impl Step {
    /// Who executes the clone, if it is one.
    pub fn creator(&self) -> Option<i32> {
        match self {
            Step::Create(birth) => Some(birth.creator),
            Step::NewSession(_) | Step::Group(..) | Step::Reaper(..) | Step::End(..) => None,
        }
    }
}

/// The whole order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lineage {
    /// How the tree is made.
    pub steps: Vec<Step>,
    /// Processes that exist only during the restore: pid and the parent that has to reap them.
    pub helpers: Vec<(i32, i32)>,
    /// Groups whose leader is no more, with the member in whose session a helper stands in for it.
    pub leaderless: Vec<(i32, i32)>,
    /// The number of helpers that orphans are born of: one after the other.
    pub midwife: Option<i32>,
    /// Who joins which group when all are there, in this order.
    pub groups: Vec<(i32, i32)>,
}

/// Why a tree cannot be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impossible {
    /// The process that could not be as it is to be.
    pub pid: i32,
    /// Said of that process, as `is its own ancestor`.
    pub what: String,
}

fn impossible(pid: i32, what: impl Into<String>) -> Impossible {
    Impossible { pid, what: what.into() }
}

type Tree = BTreeMap<i32, Kin>;

/// Whether somebody in the tree is called by this number.
pub fn means_something(tree: &Tree, number: i32) -> bool {
    tree.iter().any(|(pid, kin)| [*pid, kin.group, kin.session].contains(&number))
}

impl Lineage {
    /// Gives the first of these numbers that is free to the helpers of orphans, if there are any; all stays if none is.
    pub fn give_midwife(&mut self, numbers: impl IntoIterator<Item = i32>, is_free: impl Fn(i32) -> bool) {
        let Some(before) = self.midwife else { return };
        let Some(free) = numbers.into_iter().find(|number| is_free(*number)) else { return };
        let renamed = |pid: &mut i32| *pid = if *pid == before { free } else { *pid };
        for step in &mut self.steps {
            match step {
                Step::Create(birth) => [&mut birth.pid, &mut birth.creator].into_iter().for_each(renamed),
                Step::End(helper, _) => renamed(helper),
                Step::NewSession(_) | Step::Group(..) | Step::Reaper(..) => {}
            }
        }
        self.midwife = Some(free);
    }

    /// Finds the order for the tree below `root`.
    pub fn arrange(root: i32, tree: &Tree) -> Result<Lineage, Impossible> {
        check_parents(root, tree)?;
        let mut planner = Planner { root, tree, lineage: Lineage::default(), orphans: Vec::new() };
        planner.create(root, 0, false);
        planner.children_of(root, tree[&root].session)?;
        planner.place_orphans()?;
        planner.groups();
        let lineage = planner.lineage;
        lineage.play_through(root, tree)?;
        Ok(lineage)
    }

    /// Whether each process can have what it shares with others; `of` tells that, if it lives.
    pub fn check_inborn(&self, of: impl Fn(i32) -> Option<Inborn>) -> Result<(), Impossible> {
        let mut owners: BTreeMap<(usize, u32), i32> = BTreeMap::new();
        for step in &self.steps {
            let Step::Create(birth) = step else { continue };
            let Some(has) = of(birth.pid) else { continue };
            let from = of(birth.creator);
            for (kind, (name, object)) in has.into_iter().enumerate() {
                let owner = *owners.entry((kind, object)).or_insert(birth.pid);
                if owner != birth.pid && from.is_none_or(|from| from[kind].1 != object) {
                    let what = format!("shares {name} with process {owner}, of which its parent has no part");
                    return Err(impossible(birth.pid, what));
                }
            }
        }
        Ok(())
    }

    /// Does in numbers what a restore does with processes.
    fn play_through(&self, root: i32, tree: &Tree) -> Result<(), Impossible> {
        // Session and group of each, as they become.
        let mut now: BTreeMap<i32, (i32, i32)> = BTreeMap::new();
        // What the root inherits: its own, unless that is one of the tree's.
        let foreign = |id: i32| if tree.contains_key(&id) { 0 } else { id };
        let outside = (foreign(tree[&root].session), foreign(tree[&root].group));
        for step in &self.steps {
            match *step {
                Step::Create(birth) => {
                    let inherited = now.get(&birth.creator).copied().unwrap_or(outside);
                    now.insert(birth.pid, inherited);
                }
                Step::NewSession(pid) => {
                    if now.values().any(|(_, group)| *group == pid) {
                        return Err(impossible(
                            pid,
                            "cannot found its session: a group of that id has to be there before",
                        ));
                    }
                    now.insert(pid, (pid, pid));
                }
                Step::Group(pid, group) => now.entry(pid).and_modify(|(_, of)| *of = group).or_default().1 = group,
                Step::Reaper(..) => {}
                Step::End(helper, _) => drop(now.remove(&helper)),
            }
        }
        for (group, member) in &self.leaderless {
            let session = now[member].0;
            now.insert(*group, (session, *group));
        }
        for &(pid, group) in &self.groups {
            let (session, _) = now[&pid];
            if group != pid && !now.values().any(|there| *there == (session, group)) {
                return Err(impossible(
                    pid,
                    format!("cannot join group {group}: nobody of its session can be in that"),
                ));
            }
            now.insert(pid, (session, group));
        }
        for (pid, kin) in tree {
            let (session, group) = now[pid];
            if session != kin.session {
                return Err(impossible(
                    *pid,
                    format!("is in session {}, of which its parent was never a member", kin.session),
                ));
            }
            if group != kin.group {
                return Err(impossible(*pid, format!("is in group {}, which it cannot join", kin.group)));
            }
        }
        Ok(())
    }
}

fn check_parents(root: i32, tree: &Tree) -> Result<(), Impossible> {
    for (&pid, kin) in tree {
        if pid != root && (kin.parent == pid || !tree.contains_key(&kin.parent)) {
            return Err(impossible(pid, format!("has a parent {} that is not in the tree", kin.parent)));
        }
    }
    // Every chain of parents must end at the root.
    for &start in tree.keys() {
        let (mut pid, mut steps) = (start, 0);
        while pid != root {
            pid = tree[&pid].parent;
            steps += 1;
            if steps > tree.len() {
                return Err(impossible(start, "is its own ancestor"));
            }
        }
    }
    Ok(())
}

struct Planner<'a> {
    root: i32,
    tree: &'a Tree,
    lineage: Lineage,
    /// Children of a process in the session of somebody further below.
    orphans: Vec<(i32, i32, Vec<i32>)>,
}

impl Planner<'_> {
    fn children(&self, pid: i32) -> Vec<i32> {
        self.tree.iter().filter(|(p, kin)| **p != self.root && kin.parent == pid).map(|(p, _)| *p).collect()
    }

    fn leads_session(&self, pid: i32) -> bool {
        self.tree[&pid].session == pid
    }

    /// The session in which a process has to be born, if it matters.
    fn birth_session(&self, pid: i32) -> Option<i32> {
        if !self.leads_session(pid) {
            return Some(self.tree[&pid].session);
        }
        self.children(pid).into_iter().filter_map(|c| self.birth_session(c)).find(|s| *s != pid)
    }

    fn children_of(&mut self, pid: i32, born_in: i32) -> Result<(), Impossible> {
        let leads = self.leads_session(pid);
        let (early, late): (Vec<i32>, Vec<i32>) = self
            .children(pid)
            .into_iter()
            .partition(|c| leads && self.birth_session(*c).is_some_and(|s| s == born_in && s != pid));
        for child in early {
            self.create(child, pid, false);
            self.children_of(child, born_in)?;
        }
        if leads {
            self.lineage.steps.push(Step::NewSession(pid));
        }
        let session = if leads { pid } else { born_in };
        let mut strays: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for child in late {
            match self.birth_session(child) {
                Some(s) if s != session => strays.entry(s).or_default().push(child),
                _ => {
                    self.create(child, pid, false);
                    self.children_of(child, session)?;
                }
            }
        }
        for (lost, children) in strays {
            self.adopt_strays(pid, lost, &children)?;
        }
        Ok(())
    }

    /// Children of `parent` in a session that it was never in: its leader has ended, so a helper takes the leader's
    /// id for a while; or the leader, which may be a zombie to be, is a sibling of theirs.
    fn adopt_strays(&mut self, parent: i32, session: i32, children: &[i32]) -> Result<(), Impossible> {
        match self.tree.get(&session) {
            None => {
                let birth = Birth { pid: session, creator: parent, sibling: false, helper: true };
                self.lineage.steps.extend([Step::Create(birth), Step::NewSession(session)]);
                self.lineage.helpers.push((session, parent));
            }
            Some(leader) if leader.parent == parent => {}
            Some(_) => {
                self.orphans.push((parent, session, children.to_vec()));
                return Ok(());
            }
        }
        for child in children {
            self.create(*child, session, true);
            self.children_of(*child, session)?;
        }
        Ok(())
    }

    /// A daemon's story: a member of the session had a child and ended, and the child came to its parent of now, who is
    /// further above. So it is born of a helper of the session's leader, who ends.
    fn place_orphans(&mut self) -> Result<(), Impossible> {
        while let Some((parent, session, children)) = self.orphans.first().cloned() {
            let is_founded = |session: i32| self.lineage.steps.contains(&Step::NewSession(session));
            // One whose leader is among other orphans comes after those.
            let ready = self
                .orphans
                .iter()
                .position(|(parent, session, _)| is_founded(*session) && self.is_above(*parent, *session));
            let Some(ready) = ready else {
                debug_assert!(parent != session);
                let what = format!("is in session {session}, of which its parent was never a member");
                return Err(impossible(children[0], what));
            };
            let (parent, session, children) = self.orphans.remove(ready);
            for child in children {
                let midwife = self.midwife();
                let birth = Birth { pid: midwife, creator: session, sibling: false, helper: true };
                self.lineage.steps.extend([Step::Reaper(parent, true), Step::Create(birth)]);
                self.create(child, midwife, false);
                self.lineage.steps.extend([Step::End(midwife, session), Step::Reaper(parent, false)]);
                self.children_of(child, session)?;
            }
        }
        Ok(())
    }

    fn is_above(&self, ancestor: i32, mut pid: i32) -> bool {
        while pid != self.root && pid != ancestor {
            pid = self.tree[&pid].parent;
        }
        pid == ancestor
    }

    /// A number that means nothing in the tree.
    fn midwife(&mut self) -> i32 {
        let number = self.lineage.midwife;
        let number = number.or_else(|| (self.root + 1..).find(|number| !means_something(self.tree, *number)));
        self.lineage.midwife = number;
        number.unwrap_or(self.root)
    }

    fn create(&mut self, pid: i32, creator: i32, sibling: bool) {
        self.lineage.steps.push(Step::Create(Birth { pid, creator, sibling, helper: false }));
    }

    /// Every process's group. Whoever has given a group its id leads it first, also if it has left it since.
    fn groups(&mut self) {
        let outside = self.tree[&self.root].group;
        // A group that the root was born into cannot be made, and need not.
        let foreign = |group: i32| group == outside && !self.tree.contains_key(&outside);
        let named: BTreeSet<i32> = self.tree.values().map(|kin| kin.group).filter(|g| !foreign(*g)).collect();
        let mut seen = BTreeSet::new();
        for (pid, kin) in self.tree {
            let helped = self.lineage.helpers.iter().any(|(helper, _)| *helper == kin.group);
            let there = self.tree.contains_key(&kin.group) || helped;
            if !there && !foreign(kin.group) && seen.insert(kin.group) {
                self.lineage.leaderless.push((kin.group, *pid));
            }
        }
        let (leaders, members): (Vec<i32>, Vec<i32>) =
            self.tree.keys().copied().filter(|pid| !self.leads_session(*pid)).partition(|pid| named.contains(pid));
        let first: Vec<(i32, i32)> = leaders.iter().map(|pid| (*pid, *pid)).collect();
        let joined = members.iter().chain(leaders.iter().filter(|pid| self.tree[pid].group != **pid));
        let then: Vec<(i32, i32)> =
            joined.map(|pid| (*pid, self.tree[pid].group)).filter(|(_, group)| !foreign(*group)).collect();
        self.lineage.groups = first.into_iter().chain(then).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pid, parent, group, session; the first is the root.
    fn arrange(all: &[(i32, i32, i32, i32)]) -> Result<Lineage, Impossible> {
        let kin = |&(pid, parent, group, session): &(i32, i32, i32, i32)| (pid, Kin { parent, group, session });
        Lineage::arrange(all[0].0, &all.iter().map(kin).collect())
    }

    #[test]
    fn a_child_of_an_older_session_is_born_first() {
        let lineage = arrange(&[(10, 1, 10, 10), (20, 10, 20, 20), (30, 20, 10, 10)]).unwrap();
        let at = |step| lineage.steps.iter().position(|s| *s == step).unwrap();
        let born = Step::Create(Birth { pid: 30, creator: 20, sibling: false, helper: false });
        assert!(at(born) < at(Step::NewSession(20)));
    }

    #[test]
    fn an_orphan_of_a_lost_session_is_born_of_a_helper() {
        let lineage = arrange(&[(10, 1, 10, 10), (30, 10, 20, 20)]).unwrap();
        assert_eq!(lineage.helpers, [(20, 10)]);
        assert!(lineage.steps.contains(&Step::Create(Birth { pid: 30, creator: 20, sibling: true, helper: false })));
    }

    #[test]
    fn a_leader_that_has_left_its_group_leads_it_for_a_while() {
        let lineage = arrange(&[(10, 1, 10, 10), (20, 10, 10, 10), (30, 10, 20, 10)]).unwrap();
        let place = |pair| lineage.groups.iter().position(|g| *g == pair).unwrap();
        assert!(place((20, 20)) < place((30, 20)) && place((30, 20)) < place((20, 10)));
    }

    #[test]
    fn a_group_without_a_leader_gets_one_to_stand_in() {
        let lineage = arrange(&[(10, 1, 10, 10), (30, 10, 25, 10)]).unwrap();
        assert_eq!(lineage.leaderless, [(25, 30)]);
    }

    #[test]
    fn a_shells_job_stays_in_its_group() {
        let lineage = arrange(&[(10, 5, 7, 5), (11, 10, 7, 5), (12, 10, 12, 5)]).unwrap();
        assert_eq!(lineage.groups, [(12, 12)]);
    }

    #[test]
    fn what_is_shared_is_shared_from_birth() {
        let lineage = arrange(&[(10, 1, 10, 10), (20, 10, 10, 10), (30, 20, 10, 10)]).unwrap();
        let shares = |memory: [u32; 3]| {
            let of = |pid: i32| {
                let number = memory.get((pid as usize / 10).checked_sub(1)?)?;
                Some([("its memory", *number), ("a", 1), ("b", 1), ("c", 1)])
            };
            lineage.check_inborn(of).map_err(|e| e.pid)
        };
        assert_eq!(shares([2, 2, 2]), Ok(()));
        assert_eq!(shares([2, 3, 3]), Ok(()));
        assert_eq!(shares([2, 3, 2]), Err(30));
    }

    #[test]
    fn an_orphan_of_a_session_further_below_is_born_there() {
        // Its session's leader lives, but is a nephew.
        let lineage = arrange(&[(10, 1, 10, 10), (20, 10, 10, 10), (30, 20, 30, 30), (40, 10, 30, 30)]).unwrap();
        let helper = Birth { pid: 11, creator: 30, sibling: false, helper: true };
        let expected = [
            Step::NewSession(30),
            Step::Reaper(10, true),
            Step::Create(helper),
            Step::Create(Birth { pid: 40, creator: 11, sibling: false, helper: false }),
            Step::End(11, 30),
            Step::Reaper(10, false),
        ];
        assert!(lineage.steps.ends_with(&expected), "{:?}", lineage.steps);
        assert_eq!(lineage.midwife, Some(11));
    }

    #[test]
    fn what_cannot_be_made_is_told() {
        // Its session's leader is no relative of its parent's.
        let orphan =
            arrange(&[(10, 1, 10, 10), (20, 10, 10, 10), (30, 20, 30, 30), (50, 10, 10, 10), (60, 50, 30, 30)]);
        assert_eq!(orphan.unwrap_err().pid, 60);
        // Its group is of another session.
        let stranger = arrange(&[(10, 1, 10, 10), (20, 10, 20, 20), (40, 10, 20, 10)]).unwrap_err();
        assert_eq!(stranger.pid, 40);
        assert_eq!(
            arrange(&[(10, 1, 10, 10), (20, 30, 20, 20), (30, 20, 20, 20)]).unwrap_err().what,
            "is its own ancestor"
        );
    }
}
