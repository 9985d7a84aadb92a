//! Trees that begin with the init of a pid namespace: the program works inside of it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Counts, as the init of new namespaces, and tells its pid and the host's name with each number; a child sleeps, and is to
/// give back a semaphore when it ends (SEM_UNDO).
const COUNTER: &str = "echo frozen > /proc/sys/kernel/hostname; \
                       perl -e 'semop(semget(0, 1, 01600), pack(\"s!3\", 0, 3, 0x1000)); open(F, \">\", shift); sleep 1000' \
                       \"$0-owes\" & until [ -e \"$0-owes\" ]; do sleep 0.01; done; n=0; while :; do n=$((n+1)); \
                       read -r host < /proc/sys/kernel/hostname; echo $$ $n $host $! >> \"$0\"; sleep 0.02; done";

/// A counter that runs, by the pid of its init as we see it.
struct Counter {
    launcher: Child,
    init: Pid,
}

fn within<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Counter {
    fn start(said: &Path) -> Counter {
        let mut command = Command::new("setsid");
        command.args(["unshare", "--pid", "--uts", "--ipc", "--fork", "setsid", "sh", "-c", COUNTER]).arg(said);
        let null = || Stdio::null();
        let launcher = command.stdin(null()).stdout(null()).stderr(null()).spawn().expect("unshare(1)");
        within("it counts", || last_line(said));
        let children = format!("/proc/{0}/task/{0}/children", launcher.id());
        let children = fs::read_to_string(children).expect("its children");
        let init = children.split_whitespace().next().and_then(|pid| Pid::from_raw(pid.parse().ok()?));
        Counter { launcher, init: init.expect("an init") }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = kill_process(self.init, Signal::KILL);
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
    }
}

/// Pid, number, host and child, as the last whole line tells them.
fn last_line(said: &Path) -> Option<(i32, u64, String, i32)> {
    let text = fs::read_to_string(said).ok()?;
    let line = text[..text.rfind('\n')?].lines().last()?;
    let words: Vec<&str> = line.split(' ').collect();
    Some((words[0].parse().ok()?, words[1].parse().ok()?, words[2].to_owned(), words[3].parse().ok()?))
}

fn cryonaut(arguments: &[&str], images: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cryonaut")).args(arguments).arg(images).output().expect("it runs")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

#[test]
fn an_init_goes_on_with_its_numbers() {
    let place = tempfile::tempdir().expect("a directory");
    let (said, images) = (place.path().join("said"), place.path().join("images"));
    let mut counter = Counter::start(&said);
    for running in [true, false] {
        let pid = counter.init.as_raw_nonzero().to_string();
        let flags: &[&str] = if running { &["-R"] } else { &[] };
        let _ = fs::remove_dir_all(&images);
        let output = cryonaut(&[&["checkpoint", &pid], flags, &["-o"]].concat(), &images);
        assert!(output.status.success(), "{}", told(&output));
        let before = last_line(&said).expect("a line");
        let owed = fs::read_dir(&images)
            .expect("the image")
            .flatten()
            .find(|file| file.file_name().to_string_lossy().starts_with("cryonaut-semaphores-"));
        let owed = fs::read_to_string(owed.expect("what is to be given back").path()).expect("a text");
        let owed: serde_json::Value = serde_json::from_str(&owed).expect("JSON");
        assert_eq!(owed[0]["adjustments"], serde_json::json!([-3]));
        if running {
            within("it goes on", || last_line(&said).filter(|now| now.1 > before.1));
            continue;
        }
        within("it ends", || counter.launcher.try_wait().expect("a status"));
        let before = last_line(&said).expect("a line");
        let output = cryonaut(&["restore", "--detach", "--json"], &images);
        assert!(output.status.success(), "{}", told(&output));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
        let pid = report["restore"]["root_pid"].as_i64().and_then(|pid| Pid::from_raw(pid as i32));
        counter.init = pid.expect("the pid of the init");
        let now = within("it goes on", || last_line(&said).filter(|now| now.1 > before.1));
        assert_eq!((now.0, &now.2, now.3), (1, &"frozen".to_owned(), before.3));
        let status = fs::read_to_string(format!("/proc/{}/status", counter.init.as_raw_nonzero())).expect("it lives");
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("its numbers");
        assert_eq!(numbers.split_whitespace().last(), Some("1"));
    }
}
