//! How a failure is told: its cause on the first line, or the same as an object of JSON.

use cryonaut_engine::Error as Engine;
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

/// Tells why a command failed, on stderr or as JSON on stdout, and gives the exit status.
pub fn tell(error: &anyhow::Error, as_json: bool) -> ExitCode {
    if as_json {
        println!("{}", json!({ "error": describe(error) }));
    } else {
        eprintln!("cryonaut: {}", line(error));
    }
    ExitCode::FAILURE
}

/// The cause in one line. The engine's errors tell theirs in full; those of the system are told with what was tried.
pub fn line(error: &anyhow::Error) -> String {
    if error.is::<Engine>() { error.to_string() } else { format!("{error:#}") }
}

fn describe(error: &anyhow::Error) -> Value {
    let mut told = json!({ "message": line(error), "kind": "usage" });
    let Some(engine) = error.downcast_ref::<Engine>() else {
        if error.chain().any(|cause| cause.is::<std::io::Error>()) {
            told["kind"] = json!("system");
        }
        return told;
    };
    let (kind, object) = match engine {
        Engine::Kernel { object, .. } => ("kernel", Some(object.to_string())),
        Engine::Unsupported { object, .. } => ("unsupported", Some(object.to_string())),
        Engine::BadImage { file, .. } => ("bad_image", Some(file.clone())),
        Engine::Caller { moment, .. } => ("script", Some(moment.to_string())),
        Engine::Image(image) => {
            let (file, offset) = place(image);
            if let Some(offset) = offset {
                told["offset"] = json!(offset);
            }
            ("image", file.map(|path| path.display().to_string()))
        }
        _ => ("process", None),
    };
    told["kind"] = json!(kind);
    if let Some(object) = object {
        told["object"] = json!(object);
    }
    if let Some(errno) = engine.errno() {
        told["errno"] = json!(errno.raw_os_error());
    }
    if !engine.remedy().is_empty() {
        told["remedy"] = json!(engine.remedy());
    }
    told
}

/// The file that an error of the image is about, and where in it.
fn place(error: &cryonaut_image::Error) -> (Option<&Path>, Option<u64>) {
    use cryonaut_image::Error;
    match error {
        Error::Corrupt { path, offset, .. } => (Some(path), Some(*offset)),
        Error::Io { path, .. } | Error::Missing { path } | Error::Altered { path, .. } | Error::Misuse { path, .. } => {
            (Some(path), None)
        }
        _ => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryonaut_engine::Object;

    #[test]
    fn an_engine_error_keeps_its_parts() {
        let error = Engine::unsupported(
            Object::Descriptor(7, 3, "socket:[9]".into()),
            "sockets cannot be carried",
            "close it first",
        );
        let told = describe(&error.into());
        assert_eq!(told["kind"], "unsupported");
        assert_eq!(told["object"], "process 7, descriptor 3 (socket:[9])");
        assert_eq!(told["remedy"], "close it first");
        assert_eq!(told.get("errno"), None);
    }

    #[test]
    fn the_cause_stands_in_the_first_line() {
        let error = anyhow::anyhow!("no such file").context("cannot open x");
        assert_eq!(describe(&error)["message"], "cannot open x: no such file");
    }
}
