//! The log in the form that readers of CRIU's logs look for: seconds since the start, the pid that a line is about,
//! and `Error` or `Warn` before the text of such lines.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};
use tracing::field::{Field, Visit};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// 0 nothing, 1 errors, 2 and warnings, 3 and information, 4 everything.
static VERBOSITY: AtomicU8 = AtomicU8::new(0);
static SINK: Mutex<Option<Sink>> = Mutex::new(None);
static LAYER: Once = Once::new();

struct Sink {
    start: Instant,
    out: Box<dyn Write + Send>,
}

/// Opens the log, over an older one that stays the same file, and directs all events of the program to it, in the place
/// of the log before. Without a path they go to stderr.
///
/// # Errors
/// When the file cannot be made.
pub fn start(path: Option<&Path>, verbosity: u8) -> io::Result<()> {
    let out: Box<dyn Write + Send> = match path {
        Some(path) => {
            // Others of this program write to its end.
            let file = File::options().create(true).append(true).open(path)?;
            file.set_len(0)?;
            Box::new(file)
        }
        None => Box::new(io::stderr()),
    };
    *SINK.lock().unwrap_or_else(PoisonError::into_inner) = Some(Sink { start: Instant::now(), out });
    VERBOSITY.store(verbosity, Ordering::Relaxed);
    // A subscriber that somebody else has set gets the events, then.
    LAYER.call_once(|| drop(tracing_subscriber::registry().with(LogLayer).try_init()));
    Ok(())
}

struct LogLayer;

impl<S: Subscriber> Layer<S> for LogLayer {
    /// Each request of a session may ask for another verbosity.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        rank(*metadata.level()) <= VERBOSITY.load(Ordering::Relaxed)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let module = event.metadata().module_path().unwrap_or("cryonaut");
        let mut sink = SINK.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Sink { start, out }) = sink.as_mut() {
            let line = line(start.elapsed(), *event.metadata().level(), module, &text);
            // A full disk must not end a checkpoint that needs nothing more of it than a log.
            let _ = out.write_all(line.as_bytes());
        }
    }
}

fn rank(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG | Level::TRACE => 4,
    }
}

fn line(since: Duration, level: Level, module: &str, text: &Text) -> String {
    let mut line = format!("({:02}.{:06}) ", since.as_secs(), since.subsec_micros());
    if let Some(pid) = &text.pid {
        line += &format!("{pid}: ");
    }
    let module = module.trim_start_matches("cryonaut_").replace("::", "/");
    match level {
        Level::ERROR => line += &format!("Error ({module}): "),
        Level::WARN => line += &format!("Warn  ({module}): "),
        _ => {}
    }
    // One event is one line, whatever its text holds.
    line + &text.message.replace('\n', " ") + &text.fields + "\n"
}

#[derive(Default)]
struct Text {
    pid: Option<String>,
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            "pid" => self.pid = Some(format!("{value:?}")),
            name => {
                // Writing to a string cannot fail.
                let _ = write!(self.fields, " {name}={value:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_form_that_readers_look_for() {
        let text = Text { pid: Some("42".into()), message: "no\nway".into(), fields: " fd=3".into() };
        let since = Duration::from_micros(1_234);
        assert_eq!(
            line(since, Level::ERROR, "cryonaut_engine::freeze", &text),
            "(00.001234) 42: Error (engine/freeze): no way fd=3\n"
        );
        let text = Text { message: "well".into(), ..Text::default() };
        assert_eq!(line(since, Level::WARN, "cryonaut_engine", &text), "(00.001234) Warn  (engine): well\n");
        assert_eq!(line(since, Level::DEBUG, "x", &text), "(00.001234) well\n");
    }
}
