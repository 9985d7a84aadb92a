//! Plans of mount tables, told as mountinfo would.

use super::super::table::record_all;
use super::*;
use cryonaut_kernel::proc::mountinfo::parse;

fn entries(text: &str) -> Vec<MntEntry> {
    record_all(&parse(text.as_bytes()).unwrap(), &[], &Externals::of(&["mnt[/ext]:EXT".into()])).unwrap()
}

fn plan(text: &str) -> Result<Plan> {
    Plan::of(vec![(7, entries(text))], Some(&Externals::of(&["mnt[EXT]:/from".into()])))
}

fn ids(plan: &Plan) -> Vec<u32> {
    (0..plan.places.len()).map(|at| plan.entry(at).mnt_id).collect()
}

#[test]
fn what_is_hidden_is_attached_before_what_hides_it() {
    let plan = plan(
        "10 1 8:1 /ct / rw - ext4 d rw\n11 10 0:5 / /a rw - tmpfs t rw\n12 10 0:6 / /a/b/c rw - tmpfs t rw\n\
        13 11 0:7 / /a/b rw - tmpfs t rw\n14 10 8:1 /ct/v /v rw - ext4 d rw\n15 11 0:8 / /a rw - tmpfs t rw\n",
    )
    .unwrap();
    assert_eq!(ids(&plan), [10, 12, 11, 13, 15, 14]);
    let at = |id| plan.places.iter().find(|place| plan.entries[place.entry].mnt_id == id).unwrap();
    assert_eq!(
        (at(12).at.as_slice(), at(13).at.as_slice(), at(15).at.as_slice()),
        (&b"a/b/c"[..], &b"b"[..], &b""[..])
    );
    assert_eq!((at(14).provider, at(14).below.as_slice()), (at(10).provider, &b"v"[..]));
    assert_eq!(plan.providers[at(10).provider].origin, Origin::Root);
    assert_eq!(at(15).parent.map(|parent| plan.entry(parent).mnt_id), Some(11));
}

#[test]
fn layers_are_there_before_an_overlay_of_them() {
    let plan = plan(
        "10 1 8:1 / / rw - ext4 d rw\n11 10 0:5 / /merged rw - overlay o rw,lowerdir=/layers/l\n\
        12 10 0:6 / /layers rw - tmpfs t rw\n13 10 0:7 / /a/b rw - overlay o rw,lowerdir=/layers/m\n\
        14 10 0:8 / /a rw - tmpfs t rw\n",
    )
    .unwrap();
    assert_eq!(ids(&plan), [10, 13, 12, 14, 11]);
}

#[test]
fn one_file_system_has_one_provider() {
    let plan = plan(
        "10 1 8:1 / / rw - ext4 d rw\n11 10 0:5 /sub /a rw - tmpfs t rw\n12 10 0:5 / /b rw - tmpfs t rw\n\
        13 10 8:2 /x /ext rw - ext4 e rw\n14 10 8:2 /x/y /c rw - ext4 e rw\n",
    )
    .unwrap();
    let of = |id| {
        let place = plan.places.iter().find(|place| plan.entries[place.entry].mnt_id == id).unwrap();
        (place.provider, String::from_utf8_lossy(&place.below).into_owned())
    };
    assert_eq!(of(11).0, of(12).0);
    assert_eq!((of(11).1.as_str(), of(12).1.as_str(), of(14).1.as_str()), ("sub", "", "y"));
    assert_eq!(of(13).0, of(14).0);
    assert_eq!(plan.providers[of(13).0].origin, Origin::Outside(b"/from".to_vec()));
}

#[test]
fn what_is_neither_ours_nor_named_is_refused() {
    let error = plan("10 1 8:1 /ct / rw - ext4 d rw\n11 10 8:1 /elsewhere /a rw - ext4 d rw\n").unwrap_err();
    assert!(error.to_string().contains("--external"), "{error}");
    let two = "10 1 8:1 / / rw - ext4 d rw\n11 2 8:1 / / rw - ext4 d rw\n";
    assert!(plan(two).unwrap_err().to_string().contains("2 mounts"));
    assert!(plan("10 11 8:1 / / rw - ext4 d rw\n11 10 8:1 / / rw - ext4 d rw\n").is_err());
}

#[test]
fn masters_come_before_those_who_hear_them() {
    let plan = plan(
        "10 1 8:1 / / rw master:1 - ext4 d rw\n11 10 0:5 / /a rw shared:3 master:4 - tmpfs t rw\n\
        12 10 0:5 / /b rw master:3 - tmpfs t rw\n13 10 0:5 /s /c rw shared:4 - tmpfs t rw\n\
        14 10 0:5 / /d rw shared:3 master:4 - tmpfs t rw\n15 10 8:2 / /ext rw shared:9 - ext4 e rw\n",
    )
    .unwrap();
    let told: Vec<_> = plan
        .groups
        .iter()
        .map(|group| {
            let members: Vec<u32> = group.members.iter().map(|at| plan.entry(*at).mnt_id).collect();
            (group.shared, group.with_outside, group.master, members)
        })
        .collect();
    assert_eq!(
        told,
        [
            (true, false, Master::None, vec![13]),
            (true, false, Master::None, vec![15]),
            (true, false, Master::Group(0), vec![11, 14]),
            (false, false, Master::Outside, vec![10]),
            (false, false, Master::Group(2), vec![12]),
        ]
    );
    let circle = "10 1 8:1 / / rw - ext4 d rw\n11 10 0:5 / /a rw shared:3 master:4 - tmpfs t rw\n\
        12 10 0:5 / /b rw shared:4 master:3 - tmpfs t rw\n";
    assert!(super::super::plan::Plan::of(vec![(1, entries(circle))], None).unwrap_err().to_string().contains("circle"));
    let from_nowhere = "10 1 8:1 / / rw - ext4 d rw\n11 10 0:5 / /a rw master:4 - tmpfs t rw\n";
    assert!(Plan::of(vec![(1, entries(from_nowhere))], None).unwrap_err().to_string().contains("outside"));
}

#[test]
fn namespaces_come_last_with_what_stands_upon_them() {
    let plan = plan(
        "10 1 8:1 / / rw - ext4 d rw\n11 10 0:4 net:[5] /a rw - nsfs nsfs rw\n12 11 8:1 /f /a rw - ext4 d rw\n\
        13 10 0:4 net:[5] /b rw - nsfs nsfs rw\n14 10 0:4 net:[55] /c rw - nsfs nsfs rw\n15 10 0:5 / /d rw - tmpfs t rw\n",
    )
    .unwrap();
    let waiting = (0..plan.places.len()).filter(|at| plan.waits(*at)).map(|at| plan.entry(at).mnt_id);
    assert_eq!(waiting.collect::<std::collections::BTreeSet<_>>(), [11, 12, 13, 14].into());
    let of = |id| plan.places.iter().find(|place| plan.entries[place.entry].mnt_id == id).unwrap().provider;
    assert_eq!(of(11), of(13));
    assert_ne!(of(11), of(14));
    assert_eq!(plan.providers[of(11)].origin, Origin::Namespace);
}
