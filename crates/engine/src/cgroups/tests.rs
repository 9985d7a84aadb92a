use super::*;

fn roots(roots: &[(Option<&str>, &str)]) -> CgroupOptions {
    let roots = roots.iter().map(|(name, path)| (name.map(str::to_owned), (*path).to_owned())).collect();
    CgroupOptions { roots, ..CgroupOptions::default() }
}

#[test]
fn a_named_root_comes_before_that_of_all() {
    let options = roots(&[(None, "/all"), (Some("cpu"), "/cpu"), (Some("name=systemd"), "/init")]);
    assert_eq!(options.root_of("cpu,cpuacct"), Some("/cpu"));
    assert_eq!(options.root_of("name=systemd"), Some("/init"));
    assert_eq!(options.root_of(""), Some("/all"));
    assert_eq!(roots(&[(Some("memory"), "/m")]).root_of("cpu"), None);
    assert_eq!(roots(&[(Some(""), "/unified"), (None, "/all")]).root_of(""), Some("/unified"));
}

#[test]
fn a_directory_is_within_itself_and_those_above() {
    for (path, top, is) in
        [("/a", "/a", true), ("/a/b", "/a", true), ("/ab", "/a", false), ("/a", "/", true), ("/", "/a", false)]
    {
        assert_eq!(is_within(path, top), is, "{path} {top}");
    }
}

#[test]
fn modes_make_and_set_what_they_say() {
    use CgroupMode::{Full, Ignore, None, Properties, Soft, Strict};
    for (mode, makes, on_new, on_old) in [
        (Ignore, false, false, false),
        (None, false, false, false),
        (Properties, false, true, true),
        (Soft, true, true, false),
        (Full, true, true, true),
        (Strict, true, true, true),
    ] {
        assert_eq!(
            (mode.makes(), mode.sets_properties(true), mode.sets_properties(false)),
            (makes, on_new, on_old),
            "{mode:?}"
        );
    }
}
