//! A progress bar, on a terminal only, and only when a run takes more than a second.

use cryonaut_engine::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const SILENCE: Duration = Duration::from_secs(1);
const REFRESH: Duration = Duration::from_millis(100);

/// A bar that follows a run until dropped.
#[derive(Debug)]
pub struct Bar(Option<(Sender<()>, JoinHandle<()>)>);

impl Bar {
    /// Follows `progress`, under this title.
    pub fn follow(title: &'static str, progress: Progress) -> Self {
        if !stderr().is_terminal() {
            return Bar(None);
        }
        let (done, waiting) = channel();
        Bar(Some((done, thread::spawn(move || draw(title, &progress, &waiting)))))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some((done, drawer)) = self.0.take() {
            drop(done);
            // A bar that could not be drawn is no reason for anything.
            let _ = drawer.join();
        }
    }
}

fn draw(title: &'static str, progress: &Progress, done: &Receiver<()>) {
    let is_over = |wait| !matches!(done.recv_timeout(wait), Err(RecvTimeoutError::Timeout));
    if is_over(SILENCE) {
        return;
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec}") {
        bar.set_style(style);
    }
    bar.set_message(title);
    loop {
        let (now, total) = progress.get();
        bar.set_length(total.max(now));
        bar.set_position(now);
        if is_over(REFRESH) {
            break;
        }
    }
    bar.finish_and_clear();
}
