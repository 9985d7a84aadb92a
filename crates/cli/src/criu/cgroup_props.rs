//! `--cgroup-props`: which properties of cgroups are kept, in the form of criu(8):
//!
//! ```text
//! "cpu":
//!  - "strategy": "replace"
//!  - "properties": ["cpu.shares", "cpu.cfs_period_us"]
//! ```

use cryonaut_engine::CgroupProperties;
use std::iter::Peekable;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Text(String),
    Mark(char),
}

/// Reads a description.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Vec<CgroupProperties>, String> {
    let mut tokens = tokens(text)?.into_iter().peekable();
    let mut all = Vec::new();
    while let Some(token) = tokens.next() {
        let Token::Text(controller) = token else { return Err(unexpected(&token)) };
        expect(&mut tokens, ':')?;
        let mut one = CgroupProperties { controller, replace: false, names: Vec::new() };
        while tokens.next_if_eq(&Token::Mark('-')).is_some() {
            let key = word(&mut tokens)?;
            expect(&mut tokens, ':')?;
            match key.as_str() {
                "strategy" => {
                    one.replace = match word(&mut tokens)?.as_str() {
                        "replace" => true,
                        "merge" => false,
                        other => return Err(format!("the strategy '{other}' is neither merge nor replace")),
                    }
                }
                "properties" => one.names = list(&mut tokens)?,
                other => return Err(format!("'{other}' is neither strategy nor properties")),
            }
        }
        all.push(one);
    }
    Ok(all)
}

fn list(tokens: &mut Peekable<impl Iterator<Item = Token>>) -> Result<Vec<String>, String> {
    expect(tokens, '[')?;
    let mut names = Vec::new();
    if tokens.next_if_eq(&Token::Mark(']')).is_some() {
        return Ok(names);
    }
    loop {
        let name = word(tokens)?;
        if name.contains('/') {
            return Err(format!("'{name}' is no name of a property"));
        }
        names.push(name);
        match tokens.next() {
            Some(Token::Mark(',')) => {}
            Some(Token::Mark(']')) => return Ok(names),
            Some(other) => return Err(unexpected(&other)),
            None => return Err("the list has no end".into()),
        }
    }
}

fn word(tokens: &mut impl Iterator<Item = Token>) -> Result<String, String> {
    match tokens.next() {
        Some(Token::Text(text)) => Ok(text),
        Some(other) => Err(unexpected(&other)),
        None => Err("something is missing at the end".into()),
    }
}

fn expect(tokens: &mut impl Iterator<Item = Token>, mark: char) -> Result<(), String> {
    match tokens.next() {
        Some(Token::Mark(found)) if found == mark => Ok(()),
        Some(other) => Err(unexpected(&other)),
        None => Err(format!("a '{mark}' is missing at the end")),
    }
}

fn unexpected(token: &Token) -> String {
    match token {
        Token::Text(text) => format!("'{text}' does not belong where it stands"),
        Token::Mark(mark) => format!("a '{mark}' does not belong where it stands"),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        rest = match first {
            '"' => {
                let (quoted, behind) = rest[1..].split_once('"').ok_or("a quotation mark has no second one")?;
                tokens.push(Token::Text(quoted.into()));
                behind
            }
            ':' | '-' | '[' | ']' | ',' => {
                tokens.push(Token::Mark(first));
                &rest[1..]
            }
            _ => {
                return Err(format!(
                    "'{}' is not within quotation marks",
                    rest.split_whitespace().next().unwrap_or(rest)
                ));
            }
        }
        .trim_start();
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_the_manual_is_read() {
        let text = "\"cpu\":\n - \"strategy\": \"replace\"\n - \"properties\": [\"cpu.shares\", \"cpu.max\"]\n\"freezer\":\n - \"properties\": []\n";
        let all = parse(text).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].controller.as_str(), all[0].replace), ("cpu", true));
        assert_eq!(all[0].names, ["cpu.shares", "cpu.max"]);
        assert_eq!((all[1].replace, all[1].names.len()), (false, 0));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, problem) in [
            ("cpu:", "'cpu:' is not within quotation marks"),
            ("\"cpu\" - ", "a '-' does not belong where it stands"),
            ("\"cpu\": - \"strategy\": \"x\"", "the strategy 'x' is neither merge nor replace"),
            ("\"cpu\": - \"properties\": [\"a\"", "the list has no end"),
            ("\"cpu\": - \"properties\": [\"../a\"]", "'../a' is no name of a property"),
            ("\"cpu", "a quotation mark has no second one"),
        ] {
            assert_eq!(parse(text).unwrap_err(), problem, "{text}");
        }
    }
}
