//! The order of births in a tree with pid namespaces below its own.
//!
//! Who is born into such a namespace knows nobody outside of it by a number. A process group of outside it can only be
//! born into, so groups are founded and joined before the next birth, where that is possible, not when all are there.

use super::{Birth, Impossible, Lineage, Step, Tree, impossible, means_something};
use crate::namespaces::pid::Numbers;
use std::collections::{BTreeMap, BTreeSet};

impl Lineage {
    /// The same order for a tree with these numbers.
    ///
    /// # Errors
    /// If such a tree cannot be made.
    pub fn in_deeper_namespaces(mut self, root: i32, tree: &Tree, numbers: &Numbers) -> Result<Lineage, Impossible> {
        if !numbers.are_deep() {
            return Ok(self);
        }
        self.choose_midwife(root, tree, numbers);
        self.check_inits(numbers)?;
        for (group, member) in &mut self.leaderless {
            // Its leader is born of a member that is in the same namespace as that was.
            let same = |pid: &i32| tree[pid].group == *group && numbers.depth(*pid) == numbers.depth(*group);
            let missing =
                || impossible(*member, format!("is in group {group}, of which nobody is where its leader was"));
            *member = tree.keys().copied().find(same).ok_or_else(missing)?;
        }
        let now = self.join_groups_early(tree, numbers);
        let mut groups = std::mem::take(&mut self.groups);
        groups.retain(|(pid, group)| numbers.seen_from(*pid, *group) != 0);
        let is_set = |pid: &i32| groups.contains(&(*pid, tree[pid].group));
        let lost = tree.keys().find(|pid| now.get(*pid).is_some_and(|of| of.1 != tree[pid].group) && !is_set(pid));
        if let Some(pid) = lost.filter(|pid| !self.is_foreign(root, tree, tree[pid].group)) {
            let what = format!("is in group {}, of which it knows no number in its pid namespace", tree[pid].group);
            return Err(impossible(*pid, what));
        }
        self.groups = groups;
        self.play_through(root, tree)?;
        Ok(self)
    }

    /// Whether a group is the one that the root is born into.
    fn is_foreign(&self, root: i32, tree: &Tree, group: i32) -> bool {
        group == tree[&root].group && !tree.contains_key(&group)
    }

    /// The number of helpers must be free in all namespaces.
    fn choose_midwife(&mut self, root: i32, tree: &Tree, numbers: &Numbers) {
        self.give_midwife(root + 1.., |number| !numbers.is_taken(number) && !means_something(tree, number));
    }

    /// The first who is born into a namespace is its init (pid_namespaces(7)); and of a helper in one it must be known
    /// which number it has there.
    fn check_inits(&self, numbers: &Numbers) -> Result<(), Impossible> {
        let mut begun = BTreeSet::new();
        for step in &self.steps {
            let Step::Create(Birth { pid, creator, helper, .. }) = *step else { continue };
            if helper {
                let is_midwife = self.midwife == Some(pid);
                if !is_midwife && numbers.depth(pid) != numbers.depth(creator) && numbers.namespace(pid).is_none() {
                    return Err(impossible(
                        creator,
                        format!("has children of session {pid}, whose pid namespace is not known"),
                    ));
                }
                continue;
            }
            let Some(namespace) = numbers.namespace(pid) else { continue };
            if begun.insert(namespace) && !numbers.is_init(pid) {
                return Err(impossible(pid, "is in a pid namespace whose init is not in the tree, or born later"));
            }
        }
        Ok(())
    }

    /// Adds the steps by which processes join their groups; session and group of each then.
    fn join_groups_early(&mut self, tree: &Tree, numbers: &Numbers) -> BTreeMap<i32, (i32, i32)> {
        let mut now: BTreeMap<i32, (i32, i32)> = BTreeMap::new();
        let steps = std::mem::take(&mut self.steps);
        for step in steps {
            self.steps.push(step);
            match step {
                Step::Create(birth) => {
                    let kin = tree.get(&birth.pid);
                    let outside = kin.map_or((0, 0), |kin| (kin.session, 0));
                    let (session, group) = now.get(&birth.creator).copied().unwrap_or(outside);
                    now.insert(birth.pid, (session, group));
                    let Some(kin) = kin.filter(|kin| kin.session == session && kin.session != birth.pid) else {
                        continue;
                    };
                    let founds = kin.group == birth.pid;
                    let is_there = now.values().any(|there| *there == (session, kin.group));
                    if group == kin.group || !(founds || is_there && numbers.seen_from(birth.pid, kin.group) != 0) {
                        continue;
                    }
                    self.steps.push(Step::Group(birth.pid, kin.group));
                    now.insert(birth.pid, (session, kin.group));
                }
                Step::NewSession(pid) => drop(now.insert(pid, (pid, pid))),
                Step::Group(pid, group) => drop(now.entry(pid).and_modify(|(_, of)| *of = group)),
                Step::Reaper(..) => {}
                Step::End(helper, _) => drop(now.remove(&helper)),
            }
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kin;
    use super::*;

    /// Pid, parent, group, session, deeper numbers and namespace; the first is the root.
    type One<'a> = (i32, i32, i32, i32, &'a [i32], u32);

    fn arrange(all: &[One<'_>]) -> Result<Lineage, Impossible> {
        let kin = |&(pid, parent, group, session, ..): &One<'_>| (pid, Kin { parent, group, session });
        let tree = all.iter().map(kin).collect();
        let numbers =
            Numbers::of_pids(all.iter().map(|&(pid, .., deeper, namespace)| (pid, deeper.to_vec(), namespace)));
        Lineage::arrange(all[0].0, &tree)?.in_deeper_namespaces(all[0].0, &tree, &numbers)
    }

    #[test]
    fn a_group_of_outside_is_there_before_the_namespace() {
        // A job of a shell, which has made the namespace; in there nobody knows the job's number.
        let all: &[One<'_>] = &[
            (10, 1, 10, 10, &[], 0),
            (20, 10, 20, 10, &[], 0),
            (21, 20, 20, 10, &[1], 5),
            (22, 21, 20, 10, &[2], 5),
            (23, 21, 23, 10, &[3], 5),
        ];
        let lineage = arrange(all).unwrap();
        let at = |step| lineage.steps.iter().position(|one| *one == step).unwrap();
        let born = |pid, creator| Step::Create(Birth { pid, creator, sibling: false, helper: false });
        assert!(at(Step::Group(20, 20)) < at(born(21, 20)));
        assert!(lineage.groups.iter().all(|(pid, _)| ![21, 22].contains(pid)));
        assert!(lineage.groups.contains(&(23, 23)));
    }

    #[test]
    fn what_nobody_could_make_is_told() {
        // The namespace is another's.
        let lacks_init = arrange(&[(10, 1, 10, 10, &[], 0), (21, 10, 10, 10, &[4], 5)]);
        assert_eq!(lacks_init.unwrap_err().pid, 21);
        // Its group's leader was beside its parent, who has left the group.
        let all: &[One<'_>] =
            &[(10, 1, 10, 10, &[], 0), (15, 10, 15, 10, &[], 0), (20, 10, 20, 10, &[], 0), (21, 20, 15, 10, &[1], 5)];
        assert_eq!(arrange(all).unwrap_err().pid, 21);
    }
}
