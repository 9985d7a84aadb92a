//! A visit to a process that existed before: its hand runs batches, and
//! afterwards the process is as it was.

use cryonaut_kernel::Pid;
use cryonaut_kernel::proc::Task;
use cryonaut_puppet::{Arg, Batch, Context, DoorMaps, Ground, Hand, find_doorway, scratch, stops, trace};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);

fn child(script: &str) -> Child {
    Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).stdin(Stdio::piped()).spawn().expect("sh starts")
}

fn visit(pid: i32) -> Hand {
    assert!(stops::seize(pid, stops::VISIT).expect("seize"));
    assert_eq!(stops::wait_stopped(pid, LIMIT).expect("stop"), Some(stops::Stopped::Interrupted));
    let task = Task::open(Pid::from_raw(pid).expect("pid")).expect("task");
    let maps = task.maps().expect("maps");
    let context = Context::read(pid).expect("context");
    let ground = Ground { tid: pid, maps: &maps, sp: context.regs.rsp, others: &[], taken: &[] };
    let door = find_doorway(&mut DoorMaps::default(), pid, &ground, context.xstate.len()).expect("doorway");
    let base = (0x1_0000_0000..)
        .step_by(1 << 24)
        .find(|b| maps.iter().all(|v| v.end <= *b || v.start >= b + scratch::LEN))
        .expect("room");
    let hand = Hand::enter(pid, pid, context, door, base, task.status().expect("status").sig_caught).expect("enter");
    hand.go_on().expect("begin the call");
    hand.finish().expect("enter")
}

fn maps_of(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps")
}

#[test]
fn a_visited_process_answers_and_goes_on() {
    let mut sh = child("read x; echo got $x");
    let pid = sh.id() as i32;
    std::thread::sleep(Duration::from_millis(50));
    let before = maps_of(pid);
    let mut hand = visit(pid);
    for round in 0..3u64 {
        let mut b = Batch::new();
        let name = b.space(65 * 6);
        let uname = b.call(libc::SYS_uname, [name.into()]);
        let ppid = b.call(libc::SYS_getppid, []);
        let bad = b.attempt(libc::SYS_close, [Arg::Val(9999)]);
        let own = b.call(libc::SYS_getpgid, [Arg::Val(0)]);
        hand.run(&mut b).expect("run");
        assert_eq!(b.result(uname), Ok(0), "round {round}");
        assert!(b.read(name).starts_with(b"Linux\0"));
        assert_eq!(b.result(ppid), Ok(u64::from(std::process::id())));
        assert!(b.result(bad).is_err());
        assert!(b.result(own).is_ok());
    }
    hand.leave().expect("leave");
    trace::detach(pid).expect("detach");
    assert_eq!(maps_of(pid), before);
    std::io::Write::write_all(sh.stdin.as_mut().expect("stdin"), b"hello\n").expect("write");
    let out = sh.wait_with_output().expect("end");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "got hello\n");
}

#[test]
fn a_deserted_hand_finds_its_way_back() {
    let mut sh = child("read x; echo got $x");
    let pid = sh.id() as i32;
    std::thread::sleep(Duration::from_millis(50));
    let before = maps_of(pid);
    // The tracer is this thread, and it ends with the hand idle.
    std::thread::spawn(move || {
        let mut hand = visit(pid);
        let mut b = Batch::new();
        b.call(libc::SYS_getppid, []);
        hand.run(&mut b).expect("run");
    })
    .join()
    .expect("tracer");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(maps_of(pid), before);
    std::io::Write::write_all(sh.stdin.as_mut().expect("stdin"), b"hello\n").expect("write");
    let out = sh.wait_with_output().expect("end");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "got hello\n");
}
