//! containerd, by its own client.

use libtest_mimic::Failed;

use super::super::COUNTER;
use super::{Body, NewerHost};

// Where version 2 is alone, containerd wants controllers that a host of ours has in version 1.
pub const TESTS: &[(&str, &str, Body)] = &[("ctr", "hybrid", ctr)];

/// Starts the daemon and gives it an image.
const BEGINNING: &str = include_str!("containerd.sh");

/// What our program says when it is called for the container of `ctr`.
const LOG: &str = "/run/containerd/io.containerd.runtime.v2.task/default/c/criu-dump.log";

fn ctr(host: &NewerHost) -> Result<(), Failed> {
    host.run(BEGINNING)?;
    host.run(&format!(
        "ctr run -d --mount type=bind,src=/state,dst=/state,options=rbind:rw docker.io/library/busybox:latest \
         c sh -c '{COUNTER}'"
    ))?;
    host.count.goes_on(5)?;
    let checkpoint = |command: &str| host.run(&format!("{command} || {{ tail -20 {LOG} >&2; exit 1; }}"));
    checkpoint("ctr task checkpoint c")?;
    host.count.goes_on(5)?;
    checkpoint("ctr container checkpoint --rw --task c image")?;
    host.count.goes_on(5)?;
    let before = host.count.so_far()?;
    host.run("ctr task kill -s 9 c; while ctr task ls | grep -q RUNNING; do sleep 0.05; done; ctr container rm c")?;
    host.run(": >/state/count && ctr container restore --rw --live copy image")?;
    // It begins where the image was made.
    let numbers = host.count.wait_for(3)?;
    let follow = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
    host.run("ctr task kill -s 9 copy")?;
    match follow && numbers[0] > 1 && numbers[0] <= before {
        true => Ok(()),
        false => Err(format!("it counts on with {numbers:?} after {before}").into()),
    }
}
