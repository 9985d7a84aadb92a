//! The RPC as container runtimes use it, with field sets of theirs: runc, crun and go-criu.

mod client;

use client::{Client, Outcome, alone, of_type};
use cryonaut_image::rpc::{CriuFeatures, CriuOpts, CriuPageServerInfo, CriuReq, CriuReqType, InheritFd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::fs::{self, File};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The error by which CRIU says that options mean nothing.
const EBADRQC: i32 = 56;
const ESRCH: i32 = 3;

/// A directory as runtimes make one for images, open, and one for the logs.
struct Dirs {
    images: tempfile::TempDir,
    work: tempfile::TempDir,
    opened: [File; 2],
}

impl Dirs {
    fn new() -> Dirs {
        let (images, work) = (tempfile::tempdir().expect("images"), tempfile::tempdir().expect("work"));
        fs::write(images.path().join("descriptors.json"), "[]").expect("runc writes it before");
        let opened = [images.path(), work.path()].map(|dir| File::open(dir).expect("it opens"));
        Dirs { images, work, opened }
    }

    fn opts(&self) -> CriuOpts {
        CriuOpts {
            images_dir_fd: self.opened[0].as_raw_fd(),
            work_dir_fd: Some(self.opened[1].as_raw_fd()),
            log_level: Some(4),
            log_file: Some("dump.log".into()),
            ..CriuOpts::default()
        }
    }

    /// What runc says of a dump (1.3).
    fn runc_dump(&self, pid: i32) -> CriuOpts {
        CriuOpts {
            pid: Some(pid),
            leave_running: Some(false),
            ext_unix_sk: Some(false),
            tcp_established: Some(false),
            shell_job: Some(false),
            file_locks: Some(false),
            notify_scripts: Some(true),
            root: Some("/nonexistent".into()),
            auto_dedup: Some(false),
            link_remap: Some(false),
            manage_cgroups: Some(true),
            manage_cgroups_mode: Some(6),
            tcp_skip_in_flight: Some(false),
            lazy_pages: Some(false),
            orphan_pts_master: Some(true),
            config_file: Some("/nonexistent/runc.conf".into()),
            ..self.opts()
        }
    }

    /// What crun says of one.
    fn crun_dump(&self, pid: i32) -> CriuOpts {
        CriuOpts { notify_scripts: None, manage_cgroups_mode: Some(3), config_file: None, ..self.runc_dump(pid) }
    }

    fn runc_restore(&self, inherit_fd: Vec<InheritFd>) -> CriuOpts {
        CriuOpts {
            log_file: Some("restore.log".into()),
            evasive_devices: Some(true),
            notify_scripts: Some(true),
            manage_cgroups: Some(true),
            rst_sibling: Some(true),
            orphan_pts_master: Some(true),
            inherit_fd,
            ..self.opts()
        }
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.work.path().join(name)).expect("the log is there whatever happens")
    }
}

/// `cat` in a session of its own between two pipes of ours, as a container's init is.
struct Cat {
    pid: i32,
    child: Option<Child>,
    input: PipeWriter,
    output: PipeReader,
    names: [String; 2],
}

fn pipes() -> (PipeReader, PipeWriter, PipeReader, PipeWriter) {
    let ((theirs_in, input), (output, theirs_out)) = (pipe().expect("a pipe"), pipe().expect("a pipe"));
    (theirs_in, input, output, theirs_out)
}

fn pipe_name(number: i32) -> String {
    let link = fs::read_link(format!("/proc/self/fd/{number}")).expect("it is open");
    link.to_str().expect("text").to_owned()
}

impl Cat {
    fn start() -> Cat {
        let (theirs_in, input, output, theirs_out) = pipes();
        let names = [pipe_name(theirs_in.as_raw_fd()), pipe_name(theirs_out.as_raw_fd())];
        let mut command = Command::new("setsid");
        command.arg("cat").stdin(OwnedFd::from(theirs_in)).stdout(OwnedFd::from(theirs_out)).stderr(Stdio::null());
        let alone = alone();
        let child = command.spawn().expect("setsid(1) and cat(1)");
        drop((command, alone));
        let mut cat = Cat { pid: child.id() as i32, child: Some(child), input, output, names };
        cat.answers("first");
        cat
    }

    fn answers(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).expect("it takes it");
        let mut got = vec![0; text.len()];
        self.output.read_exact(&mut got).expect("it answers");
        assert_eq!(got, text.as_bytes());
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("it runs").count()
    }

    /// It has been dumped.
    fn is_gone(&mut self) {
        self.child.take().expect("a child").wait().expect("it has ended");
    }

    /// The pipes that take the place of its own, at standard input and output of the restore.
    fn restored(&mut self) -> Client {
        let (theirs_in, input, output, theirs_out) = pipes();
        (self.input, self.output) = (input, output);
        Client::start(Stdio::from(OwnedFd::from(theirs_in)), Stdio::from(OwnedFd::from(theirs_out)))
    }

    fn inherited(&self) -> Vec<InheritFd> {
        let given = |number: usize| InheritFd { key: self.names[number].clone(), fd: number as i32 };
        // runc names pipes that the image has not, too, and one twice where output and errors are the same.
        vec![given(0), given(1), given(1), InheritFd { key: "pipe:[1]".into(), fd: 1 }]
    }
}

impl Drop for Cat {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.pid).expect("a pid");
        // Which it is may have ended already.
        let _ = kill_process(pid, Signal::KILL);
        match &mut self.child {
            Some(child) => drop(child.wait()),
            None => drop(waitpid(Some(pid), WaitOptions::empty())),
        }
    }
}

const DUMP: [&str; 3] = ["pre-dump", "query-ext-files", "post-dump"];
const RESTORE: [&str; 6] =
    ["pre-restore", "setup-namespaces", "post-setup-namespaces", "post-restore", "pre-resume", "post-resume"];

#[test]
fn a_container_s_process_is_dumped_and_restored_as_runc_asks() {
    let (dirs, mut cat) = (Dirs::new(), Cat::start());
    // podman makes the log before, with a label: it has to stay the same file.
    let log = dirs.work.path().join("dump.log");
    fs::write(&log, "old ".repeat(10_000)).expect("written");
    let inode = fs::metadata(&log).expect("there").ino();
    let before = cat.descriptors();
    let done = Client::quiet().only(CriuReqType::Dump, dirs.runc_dump(cat.pid));
    assert!(done.answer.success, "{}", done.problem());
    assert_eq!((done.answer.r#type(), done.answer.cr_errmsg.as_deref()), (CriuReqType::Dump, None));
    assert_eq!(done.scripts(), DUMP);
    assert_eq!(done.answer.dump.and_then(|dump| dump.restored), Some(false));
    cat.is_gone();
    assert_eq!(fs::metadata(&log).expect("there").ino(), inode);
    assert!(dirs.log("dump.log").contains("Dumping finished successfully") && !dirs.log("dump.log").contains("old"));
    assert!(dirs.work.path().join("stats-dump").exists());
    assert!(dirs.images.path().join("descriptors.json").exists() && dirs.images.path().join("inventory.img").exists());

    let done = cat.restored().only(CriuReqType::Restore, dirs.runc_restore(cat.inherited()));
    assert!(done.answer.success, "{}", done.problem());
    assert_eq!(done.answer.restore.expect("a pid").pid, cat.pid);
    assert_eq!(done.scripts(), RESTORE);
    for (script, pid) in &done.told {
        let is_told = ["setup-namespaces", "post-restore"].contains(&script.as_str());
        assert_eq!(*pid, is_told.then_some(cat.pid), "{script}");
    }
    cat.answers("second");
    let parent = fs::read_to_string(format!("/proc/{}/stat", cat.pid)).expect("it runs");
    let parent = parent.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).expect("its parent").to_owned();
    assert_eq!(parent, std::process::id().to_string(), "it is our child, not criu's");
    assert!(dirs.work.path().join("stats-restore").exists());
    assert_eq!(cat.descriptors(), before, "nothing of criu's is left to it");
}

#[test]
fn crun_hears_nothing_before_the_answer() {
    let (dirs, mut cat) = (Dirs::new(), Cat::start());
    let opts = CriuOpts { leave_running: Some(true), ..dirs.crun_dump(cat.pid) };
    let done = Client::quiet().only(CriuReqType::Dump, opts);
    assert!(done.answer.success && done.told.is_empty(), "{} {:?}", done.problem(), done.told);
    cat.answers("it goes on");
}

#[test]
fn who_does_not_agree_ends_a_dump_and_the_tree_goes_on() {
    for refused in DUMP {
        let (dirs, mut cat) = (Dirs::new(), Cat::start());
        let mut client = Client::quiet();
        let request = CriuReq { opts: Some(dirs.runc_dump(cat.pid)), ..of_type(CriuReqType::Dump) };
        let done = client.request(&request, |script| script != refused);
        assert!(!done.answer.success && done.problem().starts_with(refused), "{}", done.problem());
        assert_eq!(done.answer.r#type(), CriuReqType::Dump);
        assert!(!client.ended().success());
        cat.answers("it goes on");
        assert!(!dirs.images.path().join("inventory.img").exists(), "{refused}: no image is left");
        assert!(dirs.log("dump.log").contains("Error"), "runc looks for that word");
    }
}

#[test]
fn who_vanishes_ends_the_run() {
    let (dirs, mut cat) = (Dirs::new(), Cat::start());
    let mut client = Client::quiet();
    client.send(&CriuReq { opts: Some(dirs.runc_dump(cat.pid)), ..of_type(CriuReqType::Dump) });
    assert!(client.receive().is_some());
    let (nobody, _) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .expect("a pair");
    drop(std::mem::replace(&mut client.socket, nobody));
    assert!(!client.ended().success());
    cat.answers("it goes on");
}

#[test]
fn a_failed_restore_leaves_nothing_and_may_be_repeated() {
    let (dirs, mut cat) = (Dirs::new(), Cat::start());
    assert!(Client::quiet().only(CriuReqType::Dump, dirs.runc_dump(cat.pid)).answer.success);
    cat.is_gone();
    for refused in RESTORE.iter().filter(|script| **script != "post-resume") {
        let mut client = cat.restored();
        let request = CriuReq { opts: Some(dirs.runc_restore(cat.inherited())), ..of_type(CriuReqType::Restore) };
        let done = client.request(&request, |script| script != *refused);
        assert!(!done.answer.success && done.problem().starts_with(refused), "{}", done.problem());
        assert_eq!(done.answer.restore.map(|restore| restore.pid), Some(-1));
        assert!(!client.ended().success());
        // What there was of it was our child, and is dead; before its birth there was nothing.
        let status = waitpid(Pid::from_raw(cat.pid), WaitOptions::empty()).ok().flatten();
        assert_eq!(status.is_some(), *refused != "pre-restore", "{refused}");
        assert!(!Path::new(&format!("/proc/{}", cat.pid)).exists(), "{refused}");
    }
    let done = cat.restored().only(CriuReqType::Restore, dirs.runc_restore(cat.inherited()));
    assert!(done.answer.success, "{}", done.problem());
    cat.answers("second");
}

#[test]
fn a_terminal_with_its_master_outside_comes_back_with_a_new_master() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    // A number that nobody else is given meanwhile.
    let mut masters: Vec<OwnedFd> = (0..24).map(|_| openpt(flags).expect("a pty")).collect();
    let master = masters.pop().expect("the last");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("unlocked");
    let name = ptsname(&master, Vec::new()).expect("its name").into_string().expect("text");
    let end = || File::options().read(true).write(true).open(&name).expect("the slave");
    let mut command = Command::new("setsid");
    command.args(["-c", "cat"]).stdin(end()).stdout(end()).stderr(end());
    let alone = alone();
    let mut child = command.spawn().expect("setsid(1) and cat(1)");
    drop((command, alone));
    let answers = |master: &OwnedFd, text: &str| {
        let mut file = File::from(master.try_clone().expect("a duplicate"));
        file.write_all(format!("{text}\n").as_bytes()).expect("it takes it");
        let mut got = String::new();
        while !got.ends_with(&format!("{text}\r\n{text}\r\n")) {
            let mut bytes = [0; 256];
            let length = file.read(&mut bytes).expect("it answers");
            got += std::str::from_utf8(&bytes[..length]).expect("text");
        }
    };
    answers(&master, "first");
    let (dirs, pid) = (Dirs::new(), child.id() as i32);
    let done = Client::quiet().only(CriuReqType::Dump, dirs.runc_dump(pid));
    assert!(done.answer.success, "{}", done.problem());
    child.wait().expect("it has ended");
    drop(master);

    let done = Client::quiet().only(CriuReqType::Restore, dirs.runc_restore(Vec::new()));
    assert!(done.answer.success, "{}", done.problem());
    assert_eq!(done.scripts().iter().filter(|script| **script == "orphan-pts-master").count(), 1);
    let [master] = &done.files[..] else { panic!("{} descriptors", done.files.len()) };
    answers(master, "second");
    kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL).expect("killed");
    waitpid(Pid::from_raw(pid), WaitOptions::empty()).expect("our child");
}

#[test]
fn several_questions_may_be_asked_in_one_session() {
    let mut client = Client::quiet();
    for _ in 0..2 {
        let done = client.request(&CriuReq { keep_open: Some(true), ..of_type(CriuReqType::Version) }, |_| true);
        let version = done.answer.version.expect("a version");
        assert!(done.answer.success && (version.major_number, version.minor_number) >= (4, 2), "{version:?}");
    }
    let features = CriuFeatures { mem_track: Some(true), lazy_pages: None, pidfd_store: Some(false) };
    // runc 1.1 says everything that it knows, though nothing of it matters here.
    let opts = CriuOpts { pid: Some(1), ..CriuOpts { images_dir_fd: 99, ..CriuOpts::default() } };
    let request = CriuReq { features: Some(features), opts: Some(opts), ..of_type(CriuReqType::FeatureCheck) };
    let done = client.request(&request, |_| true);
    let found = done.answer.features.expect("features");
    assert!(found.mem_track.is_some());
    assert_eq!((found.lazy_pages, found.pidfd_store), (Some(false), Some(false)));
    assert!(client.ended().success());
    let features = CriuFeatures { mem_track: None, lazy_pages: Some(true), pidfd_store: None };
    let request = CriuReq { features: Some(features), ..of_type(CriuReqType::FeatureCheck) };
    let done = Client::quiet().request(&request, |_| true);
    assert_eq!(done.answer.features.expect("features").lazy_pages, Some(true));

    let mut client = Client::quiet();
    let socket = std::mem::replace(&mut client.socket, File::open("/dev/null").expect("it opens").into());
    drop(socket);
    assert!(client.ended().success(), "who asks nothing is owed nothing");
}

#[test]
fn a_dump_sends_its_memory_to_a_server_that_was_asked_for() {
    for kind in [CriuReqType::PageServer, CriuReqType::PageServerChld] {
        let (dirs, theirs, mut cat) = (Dirs::new(), Dirs::new(), Cat::start());
        let mut session = Client::quiet();
        let address = CriuPageServerInfo { address: Some("127.0.0.1".into()), ..CriuPageServerInfo::default() };
        let opts = CriuOpts { ps: Some(address.clone()), ..theirs.opts() };
        let begun = session.request(&CriuReq { opts: Some(opts), keep_open: Some(true), ..of_type(kind) }, |_| true);
        assert!(begun.answer.success, "{}", begun.problem());
        let server = begun.answer.ps.expect("where it is");
        let ps = CriuPageServerInfo { port: server.port, ..address };
        let opts = CriuOpts { leave_running: Some(true), ps: Some(ps), ..dirs.crun_dump(cat.pid) };
        let done = Client::quiet().only(CriuReqType::Dump, opts);
        assert!(done.answer.success, "{}", done.problem());
        cat.answers("it goes on");
        let wait = CriuReq { pid: server.pid.map(|pid| pid as u32), ..of_type(CriuReqType::WaitPid) };
        let ended = session.request(&wait, |_| true);
        assert_eq!((ended.answer.success, ended.answer.status), (true, Some(0)), "{}", ended.problem());
        assert!(session.ended().success());
        let pagemap = format!("pagemap-{}.img", cat.pid);
        assert!(theirs.images.path().join(&pagemap).exists() && !dirs.images.path().join(&pagemap).exists());
    }
}

fn refused(kind: CriuReqType, opts: Option<CriuOpts>) -> Outcome {
    let mut client = Client::quiet();
    let done = client.request(&CriuReq { opts, ..of_type(kind) }, |_| true);
    assert!(!done.answer.success);
    assert_eq!(done.answer.r#type(), kind);
    assert!(!client.ended().success());
    done
}

#[test]
fn what_is_not_here_is_refused_by_name() {
    let dirs = Dirs::new();
    for (kind, opts, word) in [
        (CriuReqType::CpuinfoDump, Some(dirs.opts()), "CPUINFO_DUMP"),
        (CriuReqType::Dump, Some(CriuOpts { exec_cmd: vec!["sh".into()], ..dirs.runc_dump(1) }), "exec_cmd"),
    ] {
        let done = refused(kind, opts);
        assert!(done.problem().contains(word), "{word}: {}", done.problem());
        assert_eq!(done.answer.cr_errno, Some(EBADRQC), "{word}");
    }
}

#[test]
fn what_makes_no_sense_is_told() {
    let dirs = Dirs::new();
    let base = || dirs.runc_dump(1);
    for (opts, word) in [
        (None, "DUMP needs options"),
        (Some(CriuOpts { images_dir_fd: 9999, ..base() }), "images_dir_fd"),
        (Some(CriuOpts { images_dir_fd: -1, ..base() }), "images_dir"),
        (Some(CriuOpts { work_dir_fd: Some(9999), ..base() }), "work_dir_fd"),
        (Some(CriuOpts { log_file: Some("../dump.log".into()), ..base() }), "log_file"),
        (Some(CriuOpts { pid: None, ..base() }), "pid is missing"),
        (Some(CriuOpts { pid: Some(-5), ..base() }), "--tree"),
        (Some(CriuOpts { manage_cgroups_mode: Some(77), ..base() }), "manage_cgroups_mode"),
    ] {
        let done = refused(CriuReqType::Dump, opts);
        assert!(done.problem().contains(word), "{word}: {}", done.problem());
        assert_eq!(done.answer.cr_errno, Some(EBADRQC), "{word}");
        assert!(done.told.is_empty());
    }
    let gone = refused(CriuReqType::Dump, Some(CriuOpts { pid: Some(4_194_305), ..base() }));
    assert_eq!(gone.answer.cr_errno, Some(ESRCH), "{}", gone.problem());
    assert!(
        !refused(CriuReqType::Restore, Some(dirs.runc_restore(Vec::new())))
            .told
            .contains(&("pre-restore".into(), None))
    );
}

#[test]
fn packets_that_are_no_requests_are_answered_too() {
    for bytes in
        [&[0xffu8; 64][..], &[0], b"GET / HTTP/1.1\r\n\r\n", &[0x08, 0x63], &[0x12, 0x02, 0x10, 0x01], &[8; 100_000]]
    {
        let mut client = Client::quiet();
        client.send_bytes(bytes);
        let told = client.receive().expect("an answer").message;
        assert!(!told.success && !told.cr_errmsg().is_empty(), "{bytes:?}");
        assert!(!client.ended().success());
    }
    let mut client = Client::quiet();
    client.send(&CriuReq { notify_success: Some(true), ..of_type(CriuReqType::Notify) });
    assert!(!client.receive().expect("an answer").message.success);
    assert!(!client.ended().success());
}

#[test]
fn a_configuration_file_has_the_last_word() {
    let (dirs, mut cat) = (Dirs::new(), Cat::start());
    let config = dirs.work.path().join("runc.conf");
    let named = |text: &str| {
        fs::write(&config, text).expect("written");
        CriuOpts { config_file: config.to_str().map(Into::into), ..dirs.runc_dump(cat.pid) }
    };
    let done = Client::quiet().only(CriuReqType::Dump, named("leave-running\nlog-file=custom.log\n"));
    assert!(done.answer.success, "{}", done.problem());
    assert!(dirs.log("custom.log").contains("finished successfully"));
    let done = Client::quiet().only(CriuReqType::Dump, named("warp-drive\n"));
    assert!(done.problem().contains("warp-drive"), "{}", done.problem());
    assert_eq!(done.answer.cr_errno, Some(EBADRQC));
    cat.answers("it goes on");
}

#[test]
fn the_service_answers_whoever_connects() {
    let dirs = Dirs::new();
    let path = dirs.work.path().join("service");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cryonaut"));
    command
        .arg0("criu")
        .args(["service", "--no-default-config", "--address"])
        .arg(&path)
        .arg("-W")
        .arg(dirs.work.path());
    let mut service = command.stderr(Stdio::null()).spawn().expect("it starts");
    let connected = || {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
            let socket = socket.expect("a socket");
            match connect(&socket, &SocketAddrUnix::new(&path).expect("a name")) {
                Ok(()) => return Client::connected(socket),
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    for _ in 0..2 {
        assert!(connected().request(&of_type(CriuReqType::Version), |_| true).answer.success);
    }
    let mut cat = Cat::start();
    let opts = CriuOpts { leave_running: Some(true), ..dirs.runc_dump(cat.pid) };
    let done = connected().request(&CriuReq { opts: Some(opts), ..of_type(CriuReqType::Dump) }, |_| true);
    assert!(done.answer.success, "{}", done.problem());
    cat.answers("it goes on");
    let sibling = CriuReq { opts: Some(dirs.runc_restore(Vec::new())), ..of_type(CriuReqType::Restore) };
    let done = connected().request(&sibling, |_| true);
    assert!(done.problem().contains("rst_sibling"), "{}", done.problem());
    service.kill().and_then(|()| service.wait()).expect("it ends");
}
