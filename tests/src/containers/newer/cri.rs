//! containerd by its CRI socket, as kubelets call it: a container is checkpointed into an archive, and another is created
//! from that.
//!
//! The client is as small as can be: one connection of HTTP/2 for each call of gRPC, without compression of headers, and
//! messages field by field. That a call has failed is told by there being no answer; why, containerd's log says.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use libtest_mimic::Failed;

use super::super::{COUNTER, LIMIT};
use super::{Body, NewerHost};

pub const TESTS: &[(&str, &str, Body)] = &[("checkpoint_and_restore", "hybrid", checkpoint_and_restore)];

/// Starts the daemon, gives it images and serves one of them as a registry would.
const BEGINNING: &str = concat!(include_str!("cri.sh"), include_str!("containerd.sh"), include_str!("cri_images.sh"));
/// Where that registry is.
const IMAGE: &str = "127.0.0.1:5000/library/busybox:latest";
/// The namespace of the host (NamespaceMode, api.proto of CRI).
const OF_HOST: u64 = 2;

/// A message of protobuf.
#[derive(Debug, Clone, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    fn message(self, field: u64, value: &Message) -> Self {
        self.bytes(field, &value.0)
    }
}

/// Frames of HTTP/2 (RFC 9113): their types, and flags.
mod frame {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const END_STREAM: u8 = 1;
    pub const ACK: u8 = 1;
    pub const END_HEADERS: u8 = 4;
}

fn send(socket: &mut UnixStream, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> std::io::Result<()> {
    let len = (payload.len() as u32).to_be_bytes();
    let mut head = vec![len[1], len[2], len[3], kind, flags];
    head.extend(stream.to_be_bytes());
    head.extend_from_slice(payload);
    socket.write_all(&head)
}

/// Type, flags and payload of the next frame.
fn receive(socket: &mut UnixStream) -> std::io::Result<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    socket.read_exact(&mut head)?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    socket.read_exact(&mut payload)?;
    Ok((head[3], head[4], payload))
}

/// Headers of a call, in the plainest form that there is (RFC 7541): the first ones are entries of the static table.
fn headers(method: &str) -> Vec<u8> {
    const POST: u8 = 0x83;
    const HTTP: u8 = 0x86;
    const PATH: u8 = 0x04;
    const AUTHORITY: u8 = 0x01;
    let mut block = vec![POST, HTTP];
    let mut text = |kind: u8, words: &[&str]| {
        block.push(kind);
        for word in words {
            block.push(word.len() as u8);
            block.extend_from_slice(word.as_bytes());
        }
    };
    text(PATH, &[&format!("/runtime.v1.RuntimeService/{method}")]);
    text(AUTHORITY, &["localhost"]);
    text(0, &["content-type", "application/grpc"]);
    text(0, &["te", "trailers"]);
    block
}

/// The socket of a containerd.
struct Cri<'h> {
    host: &'h NewerHost,
    socket: PathBuf,
}

impl Cri<'_> {
    /// Calls a method of the RuntimeService; the answer.
    fn call(&self, method: &str, request: &Message) -> Result<Vec<u8>, Failed> {
        let answer = self.exchange(method, request).map_err(|e| format!("{method}: {e}"))?;
        // A message has a prefix: whether it is compressed, and how long it is.
        let len = answer.get(1..5).map(|len| u32::from_be_bytes([len[0], len[1], len[2], len[3]]) as usize);
        let message = len.and_then(|len| answer.get(5..5 + len));
        message.map(<[u8]>::to_vec).ok_or_else(|| {
            format!("{method} has failed\n{}", self.host.run("tail -n 12 /tmp/containerd.log").unwrap_or_default())
                .into()
        })
    }

    fn exchange(&self, method: &str, request: &Message) -> std::io::Result<Vec<u8>> {
        let mut socket = UnixStream::connect(&self.socket)?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        send(&mut socket, frame::SETTINGS, 0, 0, &[])?;
        send(&mut socket, frame::HEADERS, frame::END_HEADERS, 1, &headers(method))?;
        let mut body = vec![0];
        body.extend((request.0.len() as u32).to_be_bytes());
        body.extend_from_slice(&request.0);
        send(&mut socket, frame::DATA, frame::END_STREAM, 1, &body)?;
        let mut answer = Vec::new();
        loop {
            let (kind, flags, payload) = receive(&mut socket)?;
            match kind {
                frame::SETTINGS | frame::PING if flags & frame::ACK == 0 => {
                    let empty = kind == frame::SETTINGS;
                    send(&mut socket, kind, frame::ACK, 0, if empty { &[] } else { &payload })?;
                }
                frame::DATA => answer.extend_from_slice(&payload),
                frame::GOAWAY => return Err(std::io::ErrorKind::ConnectionReset.into()),
                _ => {}
            }
            if matches!(kind, frame::DATA | frame::HEADERS) && flags & frame::END_STREAM != 0 {
                return Ok(answer);
            }
        }
    }

    /// The same for calls that answer with an id, their first field.
    fn id(&self, method: &str, request: &Message) -> Result<String, Failed> {
        let answer = self.call(method, request)?;
        let len = usize::from(*answer.get(1).ok_or("there is no id")?);
        Ok(String::from_utf8_lossy(answer.get(2..2 + len).unwrap_or_default()).into_owned())
    }
}

/// A pod in the network of the host, for which there is nothing to set up.
fn pod() -> Message {
    let metadata = Message::default().text(1, "pod").text(2, "uid").text(3, "default");
    let options = Message::default().number(1, OF_HOST);
    let linux = Message::default().message(2, &Message::default().message(1, &options));
    Message::default().message(1, &metadata).text(3, "/tmp/logs").message(8, &linux)
}

/// A container that counts, of an image or an archive.
fn container(name: &str, image: &str) -> Message {
    let mount = Message::default().text(1, "/state").text(2, "/state");
    let named = Message::default().message(1, &Message::default().text(1, name));
    let program = ["sh", "-c", COUNTER].into_iter().fold(named, |all, word| all.text(3, word));
    let of = Message::default().text(1, image);
    program.message(2, &of).message(7, &mount).text(11, &format!("{name}.log"))
}

fn checkpoint_and_restore(host: &NewerHost) -> Result<(), Failed> {
    host.run(BEGINNING)?;
    let cri = Cri { host, socket: format!("/proc/{}/root/run/containerd/containerd.sock", host.pid).into() };
    let pod = pod();
    let sandbox = cri.id("RunPodSandbox", &Message::default().message(1, &pod))?;
    let create = |name: &str, image: &str| {
        let request = Message::default().text(1, &sandbox).message(2, &container(name, image)).message(3, &pod);
        cri.id("CreateContainer", &request)
    };
    let of = |id: &str| Message::default().text(1, id);
    let first = create("first", IMAGE)?;
    cri.call("StartContainer", &of(&first))?;
    host.count.goes_on(5)?;
    cri.call("CheckpointContainer", &of(&first).text(2, "/tmp/archive.tar").number(3, LIMIT.as_secs()))?;
    host.count.goes_on(5)?;
    let before = host.count.so_far()?;
    cri.call("StopContainer", &of(&first))?;
    cri.call("RemoveContainer", &of(&first))?;
    host.run(": >/state/count")?;
    let second = create("second", "/tmp/archive.tar")?;
    cri.call("StartContainer", &of(&second))?;
    let numbers = host.count.wait_for(3)?;
    let follow = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
    cri.call("StopContainer", &of(&second))?;
    cri.call("RemoveContainer", &of(&second))?;
    cri.call("StopPodSandbox", &of(&sandbox))?;
    match follow && numbers[0] > 1 && numbers[0] <= before {
        true => Ok(()),
        false => Err(format!("it counts on with {numbers:?} after {before}").into()),
    }
}
