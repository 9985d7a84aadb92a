//! Both ends of a connection against one another, plain and under TLS.

use cryonaut_image::{Chain, ImageKind, PAGE_SIZE, PageFlags};
use cryonaut_page_server::receive::{ReceiveOptions, Received, receive};
use cryonaut_page_server::serve::{MOST_PAGES, serve};
use cryonaut_page_server::{
    Address, Client, Error, ImagePages, Listener, Place, Result, Sender, Stream, Target, TlsOptions,
};
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread::{JoinHandle, spawn};

/// A listener on this host, and how it is reached.
fn meeting() -> (Listener, Place) {
    let host = "127.0.0.1".to_owned();
    let listener = Listener::bind(&Address { host: host.clone(), port: 0 }).unwrap();
    let port = listener.port().unwrap();
    (listener, Place::At(Address { host, port }))
}

fn receiving(dir: &Path, tls: Option<TlsOptions>) -> (JoinHandle<Result<Received>>, Place) {
    let (listener, place) = meeting();
    let dir = dir.to_owned();
    let server = spawn(move || receive(listener.accept(tls.as_ref())?, &dir, &ReceiveOptions::default()));
    (server, place)
}

fn page(of: u64) -> Vec<u8> {
    (0..PAGE_SIZE).map(|at| (at % 251 + of) as u8).collect()
}

/// A process with 3,000 pages in two runs, one of them beside pages of a parent, and a segment.
fn send_sample(sender: &Sender) -> Result<()> {
    let upload = sender.begin(Target::Process(41))?;
    assert!(!upload.has_parent());
    let mut pages = upload.pages().unwrap();
    upload.push(0x10000, 1000, PageFlags::PRESENT);
    (0..1000).for_each(|n| pages.write_all(&page(n)).unwrap());
    upload.push(0x10000 + 1000 * PAGE_SIZE, 7, PageFlags::PARENT);
    upload.push(0x7000_0000_0000, 2000, PageFlags::PRESENT);
    (0..2000).for_each(|n| pages.write_all(&page(n)).unwrap());
    drop(pages);
    upload.finish()?;
    let upload = sender.begin(Target::Shared(9))?;
    upload.push(0, 1, PageFlags::PRESENT);
    upload.pages().unwrap().write_all(&page(5)).unwrap();
    upload.finish()?;
    sender.close()
}

fn check_sample(dir: &Path) {
    let mut chain = Chain::open(dir).unwrap();
    let map = cryonaut_image::Pagemap::read(chain.image(), ImageKind::Pagemap, 41).unwrap();
    let runs: Vec<_> = map.runs().iter().map(|run| (run.vaddr, run.pages, run.flags)).collect();
    assert_eq!(runs[0], (0x10000, 1000, PageFlags::PRESENT));
    assert_eq!(runs[1], (0x10000 + 1000 * PAGE_SIZE, 7, PageFlags::PARENT));
    assert_eq!(runs[2], (0x7000_0000_0000, 2000, PageFlags::PRESENT));
    let file = chain.image().open_raw(ImageKind::Pages, u64::from(map.pages_id())).unwrap();
    for n in [0, 1, 999, 1000, 2999] {
        let mut got = vec![0; PAGE_SIZE as usize];
        file.read_exact_at(&mut got, n * PAGE_SIZE).unwrap();
        assert!(got == page(n % 1000 + n / 2000 * 1000), "page {n}");
    }
    assert_eq!(chain.pieces(ImageKind::ShmemPagemap, 9).unwrap().len(), 1);
}

#[test]
fn what_is_sent_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let (server, place) = receiving(dir.path(), None);
    send_sample(&Sender::connect(place, None).unwrap()).unwrap();
    assert_eq!(server.join().unwrap().unwrap(), Received { pagemaps: 2, pages: 3001 });
    check_sample(dir.path());
}

#[test]
fn a_second_dump_takes_the_place_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let (server, place) = receiving(dir.path(), None);
    let sender = Sender::connect(place, None).unwrap();
    sender.begin(Target::Process(3)).unwrap().finish().unwrap();
    sender.close().unwrap();
    server.join().unwrap().unwrap();
    fs::write(dir.path().join("notes"), "of somebody else").unwrap();
    assert!(dir.path().join("pagemap-3.img").exists());
    let (server, place) = receiving(dir.path(), None);
    send_sample(&Sender::connect(place, None).unwrap()).unwrap();
    server.join().unwrap().unwrap();
    check_sample(dir.path());
    assert!(!dir.path().join("pagemap-3.img").exists() && dir.path().join("notes").exists());
}

#[test]
fn a_dump_that_breaks_off_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (server, place) = receiving(dir.path(), None);
    let sender = Sender::connect(place, None).unwrap();
    let upload = sender.begin(Target::Process(41)).unwrap();
    upload.push(0, 4, PageFlags::PRESENT);
    upload.pages().unwrap().write_all(&page(1)).unwrap();
    drop(upload);
    assert!(matches!(sender.failure(), Some(Error::Io { .. })));
    assert!(sender.begin(Target::Process(42)).is_err() && sender.close().is_err());
    drop(sender);
    let error = server.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("broke off"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn who_sends_is_told_that_the_server_is_gone() {
    let (listener, place) = meeting();
    let gone = spawn(move || drop(listener.accept(None).unwrap()));
    let sender = Sender::connect(place, None).unwrap();
    gone.join().unwrap();
    let error = sender.begin(Target::Process(1)).unwrap_err().to_string();
    assert!(error.contains("127.0.0.1") && error.contains("broke off"), "{error}");
}

#[test]
fn nobody_listens() {
    let (listener, place) = meeting();
    drop(listener);
    let error = Sender::connect(place, None).unwrap_err().to_string();
    assert!(error.contains("nobody listens there"), "{error}");
}

/// An image with the sample in it.
fn image() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (server, place) = receiving(dir.path(), None);
    let sender = Sender::connect(place, None).unwrap();
    let upload = sender.begin(Target::Process(41)).unwrap();
    let mut pages = upload.pages().unwrap();
    upload.push(0x10000, 6000, PageFlags::PRESENT);
    (0..6000).for_each(|n| pages.write_all(&page(n)).unwrap());
    drop(pages);
    upload.finish().unwrap();
    sender.close().unwrap();
    server.join().unwrap().unwrap();
    dir
}

fn ask_for_pages(tls: (Option<TlsOptions>, Option<TlsOptions>)) {
    let dir = image();
    let (listener, place) = meeting();
    let path = dir.path().to_owned();
    let server = spawn(move || serve(listener.accept(tls.0.as_ref())?, &mut ImagePages::open(&path)?));
    let mut client = Client::connect(place, tls.1.as_ref()).unwrap();
    client.request(41, 0x10000 + 5 * PAGE_SIZE, 2).unwrap();
    client.request(41, 0x10000, 6000).unwrap();
    let mut buffer = Vec::new();
    assert_eq!(client.receive(&mut buffer).unwrap().pages, 2);
    assert!(buffer == [page(5), page(6)].concat());
    assert_eq!(client.receive(&mut buffer).unwrap().pages, MOST_PAGES);
    client.request(41, 0x10000 + 5999 * PAGE_SIZE, 10).unwrap();
    assert_eq!(client.receive(&mut buffer).unwrap().pages, 1);
    assert!(buffer == page(5999) && client.receive(&mut buffer).is_err());
    client.close().unwrap();
    server.join().unwrap().unwrap();
}

#[test]
fn who_asks_is_answered_in_turn() {
    ask_for_pages((None, None));
}

#[test]
fn pages_that_nobody_has_end_the_connection() {
    let dir = image();
    let (listener, place) = meeting();
    let path = dir.path().to_owned();
    let server = spawn(move || serve(listener.accept(None)?, &mut ImagePages::open(&path)?));
    let mut client = Client::connect(place, None).unwrap();
    client.request(41, 0x9000, 1).unwrap();
    assert!(client.receive(&mut Vec::new()).is_err());
    let error = server.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("no page at 0x9000"), "{error}");
}

#[test]
fn a_lent_socket_is_told_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let (kept, path) = (ours.try_clone().unwrap(), dir.path().to_owned());
    let server = spawn(move || {
        receive(Stream::serve(theirs.into(), "at a socket".into(), true, None)?, &path, &ReceiveOptions::default())
    });
    send_sample(&Sender::connect(Place::Socket(ours.into()), None).unwrap()).unwrap();
    server.join().unwrap().unwrap();
    drop(kept);
    check_sample(dir.path());
}

/// An authority, and a certificate for each name, by openssl(1).
fn credentials(dir: &Path, names: &[&str]) {
    let run = |arguments: &str| {
        let done = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
        assert!(done.status.success(), "{arguments}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    run(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"));
    for name in names {
        fs::write(dir.join("names"), format!("subjectAltName=DNS:{name},IP:127.0.0.1\n")).unwrap();
        run(&format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        run(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem"
        ));
    }
}

fn options(dir: &Path, authority: &Path, name: &str) -> TlsOptions {
    TlsOptions {
        authorities: authority.join("ca.pem"),
        revoked: None,
        certificate: dir.join(format!("{name}.pem")),
        key: dir.join(format!("{name}.key")),
        any_name: false,
    }
}

#[test]
fn under_tls_both_ways() {
    let keys = tempfile::tempdir().unwrap();
    credentials(keys.path(), &["server", "client"]);
    let of = |name| Some(options(keys.path(), keys.path(), name));
    let dir = tempfile::tempdir().unwrap();
    let (server, place) = receiving(dir.path(), of("server"));
    send_sample(&Sender::connect(place, of("client").as_ref()).unwrap()).unwrap();
    server.join().unwrap().unwrap();
    check_sample(dir.path());
    ask_for_pages((of("server"), of("client")));
}

#[test]
fn strangers_are_not_trusted() {
    let keys = tempfile::tempdir().unwrap();
    let others = tempfile::tempdir().unwrap();
    credentials(keys.path(), &["server", "client"]);
    credentials(others.path(), &["client"]);
    let dir = tempfile::tempdir().unwrap();
    let try_with = |client: Option<TlsOptions>, host: &str| {
        let (server, place) = receiving(dir.path(), Some(options(keys.path(), keys.path(), "server")));
        let Place::At(address) = place else { unreachable!() };
        let place = Place::At(Address { host: host.into(), ..address });
        let sent = Sender::connect(place, client.as_ref()).and_then(|sender| send_sample(&sender));
        (sent, server.join().unwrap())
    };
    // One who is signed by somebody else, one who has no certificate, one who does not know the server.
    let stranger = Some(options(others.path(), keys.path(), "client"));
    let (sent, received) = try_with(stranger, "127.0.0.1");
    assert!(sent.is_err() && received.is_err());
    let (sent, received) = try_with(None, "127.0.0.1");
    assert!(sent.is_err() && received.is_err());
    let (sent, _) = try_with(Some(options(keys.path(), others.path(), "client")), "127.0.0.1");
    assert!(sent.unwrap_err().to_string().contains("agree with it on TLS"));
    // The name is another, which may be waived.
    let client = options(keys.path(), keys.path(), "client");
    let (sent, _) = try_with(Some(client.clone()), "localhost");
    assert!(sent.unwrap_err().to_string().contains("localhost"));
    let (sent, received) = try_with(Some(TlsOptions { any_name: true, ..client }), "localhost");
    sent.unwrap();
    received.unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().filter(|_| true).count(), 4, "one dump alone has arrived");
}

#[test]
fn a_revoked_certificate_is_refused() {
    let keys = tempfile::tempdir().unwrap();
    credentials(keys.path(), &["server", "client"]);
    let dir = keys.path();
    fs::write(dir.join("index"), "").unwrap();
    let config = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\ndefault_md=sha256\ncrlnumber=number\n";
    fs::write(dir.join("config"), config).unwrap();
    fs::write(dir.join("number"), "01\n").unwrap();
    let ca = "ca -config config -keyfile ca.key -cert ca.pem";
    for arguments in [format!("{ca} -revoke client.pem"), format!("{ca} -gencrl -crldays 2 -out crl.pem")] {
        let done = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let images = tempfile::tempdir().unwrap();
    let server = TlsOptions { revoked: Some(dir.join("crl.pem")), ..options(dir, dir, "server") };
    let (server, place) = receiving(images.path(), Some(server));
    let sent = Sender::connect(place, Some(&options(dir, dir, "client"))).and_then(|sender| send_sample(&sender));
    assert!(sent.is_err());
    let error = server.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("evoked"), "{error}");
}
