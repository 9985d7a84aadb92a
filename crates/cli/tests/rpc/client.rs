//! A client of the RPC, as container runtimes are: a pair of packet sockets of its own making, `criu swrk N` at the other
//! end, an acknowledgement for every notification.

use cryonaut_image::rpc::{CriuOpts, CriuReq, CriuReqType, CriuResp};
use prost::Message;
use rustix::io::{FdFlags, IoSliceMut, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, SocketFlags,
    SocketType, recvmsg, send, socketpair,
};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// go-criu reads answers into so much, in one piece.
const BUFFER: usize = 8192;

/// A socket that may be inherited must not be by another test's program.
static SPAWNING: Mutex<()> = Mutex::new(());

/// Held while a program is started.
pub fn alone() -> MutexGuard<'static, ()> {
    SPAWNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `criu swrk`, and our end of the socket.
pub struct Client {
    pub socket: OwnedFd,
    child: Option<Child>,
}

/// A message from it, and what file came along.
pub struct Told {
    pub message: CriuResp,
    pub file: Option<OwnedFd>,
}

/// What came of a request: the notifications with their pids, and the answer to it.
pub struct Outcome {
    pub told: Vec<(String, Option<i32>)>,
    pub files: Vec<OwnedFd>,
    pub answer: CriuResp,
}

impl Outcome {
    pub fn scripts(&self) -> Vec<&str> {
        self.told.iter().map(|(script, _)| script.as_str()).collect()
    }

    pub fn problem(&self) -> &str {
        self.answer.cr_errmsg()
    }
}

impl Client {
    /// Starts it with this standard input and output; errors are ours to see if it should write any.
    pub fn start(stdin: Stdio, stdout: Stdio) -> Client {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a pair");
        let _alone = alone();
        fcntl_setfd(&theirs, FdFlags::empty()).expect("it may be inherited");
        let mut command = Command::new(env!("CARGO_BIN_EXE_cryonaut"));
        command.arg0("criu").arg("swrk").arg(theirs.as_raw_fd().to_string());
        command.env("HOME", "/nonexistent").stdin(stdin).stdout(stdout).stderr(Stdio::piped());
        let child = command.spawn().expect("criu starts");
        Client { socket: ours, child: Some(child) }
    }

    pub fn quiet() -> Client {
        Client::start(Stdio::null(), Stdio::null())
    }

    /// One that is connected already.
    pub fn connected(socket: OwnedFd) -> Client {
        Client { socket, child: None }
    }

    pub fn send_bytes(&self, bytes: &[u8]) {
        send(&self.socket, bytes, SendFlags::NOSIGNAL).expect("it takes the packet");
    }

    pub fn send(&self, request: &CriuReq) {
        self.send_bytes(&request.encode_to_vec());
    }

    /// The next message; `None` at its end.
    pub fn receive(&self) -> Option<Told> {
        let mut bytes = vec![0; BUFFER];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
        assert!(!got.flags.contains(ReturnFlags::TRUNC), "an answer of more than {BUFFER} bytes");
        let file = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        let length = got.bytes;
        (length > 0).then(|| Told { message: CriuResp::decode(&bytes[..length]).expect("a response"), file })
    }

    /// Sends a request and acknowledges notifications as long as `agrees` does.
    pub fn request(&self, request: &CriuReq, mut agrees: impl FnMut(&str) -> bool) -> Outcome {
        self.send(request);
        let (mut told, mut files) = (Vec::new(), Vec::new());
        loop {
            let Told { message, file } = self.receive().expect("an answer");
            files.extend(file);
            if message.r#type() != CriuReqType::Notify {
                return Outcome { told, files, answer: message };
            }
            let notify = message.notify.expect("a notification");
            let script = notify.script.expect("its name");
            let notify_success = Some(agrees(&script));
            told.push((script, notify.pid));
            self.send(&CriuReq { notify_success, ..of_type(CriuReqType::Notify) });
        }
    }

    /// One request to the end: the program ends by itself while we hold the socket, and has written nothing.
    pub fn only(mut self, kind: CriuReqType, opts: CriuOpts) -> Outcome {
        let outcome = self.request(&CriuReq { opts: Some(opts), ..of_type(kind) }, |_| true);
        let status = self.ended();
        assert_eq!(status.code(), Some(i32::from(!outcome.answer.success)), "{}", outcome.problem());
        outcome
    }

    /// Waits until it has ended.
    pub fn ended(&mut self) -> ExitStatus {
        let output = self.child.take().expect("a child").wait_with_output().expect("it ends");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "nothing is told but through the socket");
        output.status
    }
}

pub fn of_type(kind: CriuReqType) -> CriuReq {
    CriuReq { r#type: kind as i32, ..CriuReq::default() }
}
