//! Containers of runc whose memory stays where they were until it is wanted where they go (`runc checkpoint --lazy-pages`
//! and `runc restore --lazy-pages`, with `criu lazy-pages` between them). Both are on this host, under two names.

use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Child;
use std::time::Instant;

use libtest_mimic::Failed;

use super::runc::{Container, USUAL, config};
use super::{Host, LIMIT, Test, test};
use crate::command::tail;

pub(super) fn tests() -> Vec<Test> {
    vec![test("moves", moves), test("source_dies", source_dies)]
}

/// A container that is being moved: a checkpoint has its image written, and serves its pages.
struct Moving<'h> {
    host: &'h Host,
    from: Container<'h>,
    checkpoint: Child,
    /// The name that it has where it goes.
    to: String,
}

impl<'h> Moving<'h> {
    fn begin(host: &'h Host) -> Result<Self, Failed> {
        let from = Container::start(host, USUAL)?;
        let (images, state, ready) = (host.at("images"), host.at("runc"), host.at("ready"));
        fs::create_dir(&images)?;
        host.run("mkfifo", &[&ready])?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let line = format!(
            "exec runc --root {} checkpoint --lazy-pages --page-server 127.0.0.1:{port} --status-fd 7 --image-path {images} \
             --work-path {images} {} 7>{} 2>{}",
            state.display(),
            host.name,
            ready.display(),
            host.at("checkpoint.log").display(),
            images = images.display(),
        );
        let checkpoint = host.command("sh", &["-c", &line]).spawn()?;
        let to = format!("{}-there", host.name);
        let mut moving = Moving { host, from, checkpoint, to };
        if File::open(&ready)?.read(&mut [0])? == 0 {
            let _ = moving.checkpoint.wait();
            return Err(moving.failed("the checkpoint has ended before it was ready"));
        }
        let directory = images.display().to_string();
        let server = ["lazy-pages", "--daemon", "-v4", "-o", "lazy.log", "-D", &directory, "-W", &directory];
        let way = ["--page-server", "--address", "127.0.0.1", "--port", &port.to_string()];
        host.run("criu", &[&server[..], &way[..]].concat())?;
        Ok(moving)
    }

    fn failed(&self, what: &str) -> Failed {
        let logs = ["checkpoint.log", "images/dump.log", "images/lazy.log", "images/restore.log"];
        let logs: Vec<String> = logs.iter().map(|log| format!("{log}:\n{}", tail(&self.host.at(log), 12))).collect();
        format!("{what}\n{}", logs.join("\n")).into()
    }

    /// Under another name, from a bundle of its own with the same files.
    fn restore(&self) -> Result<(), Failed> {
        let bundle = self.host.at("there");
        fs::create_dir(&bundle)?;
        let root = format!("\"path\": \"{}\"", self.host.at("rootfs").display());
        fs::write(bundle.join("config.json"), config(&self.to, USUAL).replace("\"path\": \"rootfs\"", &root))?;
        let (images, bundle) = (self.host.at("images").display().to_string(), bundle.display().to_string());
        let how = ["restore", "--detach", "--lazy-pages", "--image-path", &images, "--work-path", &images];
        let restored = self.from.runc(&[&how[..], &["--bundle", &bundle, &self.to]].concat());
        restored.map(drop).map_err(|failure| self.failed(failure.message().unwrap_or_default()))
    }

    /// Whether the checkpoint has succeeded.
    fn end(&mut self) -> Result<bool, Failed> {
        let begun = Instant::now();
        loop {
            match self.checkpoint.try_wait()? {
                Some(status) => return Ok(status.success()),
                None if begun.elapsed() > LIMIT => return Err(self.failed("the checkpoint does not end")),
                None => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        let _ = self.from.runc(&["delete", "--force", &self.to]);
        let _ = self.checkpoint.kill();
        let _ = self.checkpoint.wait();
    }
}

fn moves(host: &Host) -> Result<(), Failed> {
    let mut moving = Moving::begin(host)?;
    moving.from.count.stands_still()?;
    moving.restore()?;
    moving.from.count.goes_on(5).map_err(|failure| moving.failed(failure.message().unwrap_or_default()))?;
    if !moving.end()? {
        return Err(moving.failed("the checkpoint has failed"));
    }
    // Nobody counts where it was, or numbers would be there twice.
    moving.from.count.goes_on(20)
}

/// Where the pages come from is killed: nothing hangs, nothing comes to be where it goes, and it goes on where it was.
fn source_dies(host: &Host) -> Result<(), Failed> {
    let mut moving = Moving::begin(host)?;
    let children = format!("/proc/{0}/task", moving.checkpoint.id());
    let threads = fs::read_dir(children)?.flatten();
    let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let children: Vec<String> =
        children.flat_map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    host.run(
        "kill",
        &[&["-KILL".to_owned()][..], &children.into_iter().filter(|pid| !pid.is_empty()).collect::<Vec<_>>()].concat(),
    )?;
    if moving.end()? {
        return Err(moving.failed("the checkpoint succeeds although its pages were not fetched"));
    }
    if moving.restore().is_ok() {
        return Err(moving.failed("it was restored without its memory"));
    }
    moving.from.count.goes_on(5)
}
