//! The comparison of two fingerprints.

use std::fmt;

use super::rules::{Rule, allowed};
use super::{Field, Fingerprint, Object, visit};

/// A field that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Which.
    pub field: Field,
    /// Its value before; `None` if it was not there.
    pub before: Option<String>,
    /// Its value after.
    pub after: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |value: &Option<String>| match value {
            Some(text) if text.len() > 400 => format!("'{}...'", text.chars().take(400).collect::<String>()),
            Some(text) => format!("'{text}'"),
            None => "nothing".to_owned(),
        };
        write!(f, "{}: was {}, is {}", self.field, side(&self.before), side(&self.after))
    }
}

/// What differs between two fingerprints, but for what the rules of this house and `more` allow.
pub fn differences(before: &Fingerprint, after: &Fingerprint, more: &[Rule]) -> Vec<Difference> {
    let mut found = Vec::new();
    let made = |print: &Fingerprint, thread: &Object| print.get(thread, visit::FIELD) == Some(visit::MADE);
    let worked = |thread: &Object| before.get(thread, "call") == Some("running");
    // A thread that could be visited one time only, or was met at work one time: this cannot be compared.
    let one_sided = |field: &Field| {
        let registers = field.name.starts_with("registers.") || field.name.starts_with("xstate.");
        visit::tells(field) && !(made(before, &field.object) && made(after, &field.object))
            || (registers || field.name == "call") && worked(&field.object)
    };
    let mut note = |field: &Field, before: Option<&String>, after: Option<&String>| {
        if before != after && !allowed(field, before, after, more) && !one_sided(field) {
            found.push(Difference { field: field.clone(), before: before.cloned(), after: after.cloned() });
        }
    };
    for (field, value) in &before.fields {
        note(field, Some(value), after.fields.get(field));
    }
    for (field, value) in &after.fields {
        if !before.fields.contains_key(field) {
            note(field, None, Some(value));
        }
    }
    found
}
