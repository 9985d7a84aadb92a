//! LXC, which calls the command line; without any configuration of criu.

use libtest_mimic::Failed;

use super::super::COUNTER;
use super::{Body, NewerHost};

// Where both kinds of cgroups are, LXC 7.0 frees memory twice before it calls anybody; where version 2 is, it finds no
// freezer of a container that it has restored, and calls nobody for a second checkpoint.
pub const TESTS: &[(&str, &str, Body)] = &[("v1", "v1", |host| carry(host, 2)), ("v2", "v2", |host| carry(host, 1))];

const CONFIGURATION: &str = "\
lxc.uts.name = l
lxc.rootfs.path = dir:/busybox
lxc.net.0.type = empty
lxc.tty.max = 0
lxc.console.path = none
lxc.mount.auto = proc:rw sys:ro
lxc.mount.entry = /state state none bind 0 0
lxc.init.cmd = /bin/sh /count.sh
";

fn carry(host: &NewerHost, rounds: usize) -> Result<(), Failed> {
    host.run(&format!(
        "mkdir -p /var/lib/lxc/l && echo '{CONFIGURATION}' >/var/lib/lxc/l/config && echo '{COUNTER}' >/busybox/count.sh"
    ))?;
    host.run("lxc-start -n l -o /tmp/lxc.log || { cat /tmp/lxc.log >&2; false; }")?;
    host.count.goes_on(5)?;
    for round in 0..rounds {
        let round = format!("/round-{round}");
        host.run(&format!("lxc-checkpoint -n l -D {round} -s -v || {{ tail {round}/dump.log >&2; false; }}"))?;
        host.count.stands_still()?;
        host.run(&format!("lxc-checkpoint -n l -D {round} -r -v || {{ tail {round}/restore.log >&2; false; }}"))?;
        host.count.goes_on(5)?;
    }
    host.run("lxc-info -n l -s | grep RUNNING")?;
    host.run("lxc-stop -k -n l").map(drop)
}
