//! The little JSON that is written and read here: the daemon has made nearly all of it, and the supervisor, of which
//! there is one in each pod, is to have no library for it.

use std::fmt::Write as _;

use wharf_isolation::{Error, Identity, Process};

/// What decides about a process in a spec.
#[derive(Debug)]
pub(crate) struct Described<'a> {
    pub(crate) process: &'a Process,
    pub(crate) identity: &'a Identity,
    /// Whether it has a terminal.
    pub(crate) terminal: bool,
    /// Everything else, as an object.
    pub(crate) rest: &'a [u8],
}

impl Described<'_> {
    /// The process of a spec.
    ///
    /// # Errors
    /// A word or a variable is not UTF-8, as JSON is.
    pub(crate) fn to_json(&self) -> Result<String, Error> {
        let Self { process, identity, terminal, rest } = self;
        let mut environment: Vec<String> = utf8(&process.env)?;
        if !environment.iter().any(|variable| variable.starts_with("HOME=")) {
            environment.push(format!("HOME={}", identity.home.as_deref().unwrap_or("/")));
        }
        let groups: Vec<String> = identity.groups.iter().map(|group| group.number().to_string()).collect();
        let fields = format!(
            r#""terminal":{terminal},"user":{{"uid":{},"gid":{},"umask":{},"additionalGids":[{}]}},"args":{},"env":{}"#,
            identity.uid.number(),
            identity.gid.number(),
            process.traits.umask,
            groups.join(","),
            texts(&utf8(&process.args)?),
            texts(&environment),
        );
        with(&fields, rest)
    }
}

/// An object with fields before its others.
pub(crate) fn with(fields: &str, object: &[u8]) -> Result<String, Error> {
    let text = std::str::from_utf8(object).ok().and_then(|text| text.trim().strip_prefix('{'));
    match text {
        Some("}") => Ok(format!("{{{fields}}}")),
        Some(rest) => Ok(format!("{{{fields},{rest}")),
        None => Err(Error::Plan { problem: "a part of the spec is no object".to_owned() }),
    }
}

fn utf8(words: &[Vec<u8>]) -> Result<Vec<String>, Error> {
    let text = |word: &Vec<u8>| {
        let lossy = || format!("{:?}: other runtimes take only UTF-8", String::from_utf8_lossy(word));
        String::from_utf8(word.clone()).map_err(|_other| Error::Plan { problem: lossy() })
    };
    words.iter().map(text).collect()
}

/// Texts, each quoted, as an array.
pub(crate) fn texts(texts: &[String]) -> String {
    let all: Vec<String> = texts.iter().map(|one| text(one)).collect();
    format!("[{}]", all.join(","))
}

/// A text, quoted.
pub(crate) fn text(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for one in text.chars() {
        match one {
            '"' | '\\' => quoted.extend(['\\', one]),
            // Writing to a string cannot fail.
            one if one.is_control() => write!(quoted, "\\u{:04x}", u32::from(one)).unwrap_or_default(),
            one => quoted.push(one),
        }
    }
    quoted.push('"');
    quoted
}

/// The last message in a runtime's log, which has one object in each line, or gVisor's objects without an end of line;
/// the last line if that is no such object.
pub(crate) fn last_message(log: &str) -> Option<String> {
    let line = log.lines().rfind(|line| !line.trim().is_empty())?;
    let message = line.rsplit_once("\"msg\":").and_then(|(_, rest)| unquoted(rest.trim_start()));
    Some(message.unwrap_or_else(|| line.to_owned()))
}

/// The exit code in what a runtime says of a container that has ended.
pub(crate) fn exit_code(said: &str) -> Option<u8> {
    let (_, rest) = said.split_once("\"exitStatus\":")?;
    let end = rest.find([',', '}'])?;
    rest[..end].trim().parse().ok()
}

/// The quoted text with which something begins. Escapes that no message needs stay as they are.
fn unquoted(text: &str) -> Option<String> {
    let mut characters = text.strip_prefix('"')?.chars();
    let mut plain = String::new();
    loop {
        match characters.next()? {
            '"' => return Some(plain),
            '\\' => match characters.next()? {
                'n' | 't' => plain.push(' '),
                one @ ('"' | '\\' | '/') => plain.push(one),
                other => plain.extend(['\\', other]),
            },
            one => plain.push(one),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_and_read_back() {
        for (plain, quoted) in [
            ("", r#""""#),
            ("a b", r#""a b""#),
            (r#"a"\"#, r#""a\"\\""#),
            ("ü\n\u{7f}", r#""ü\u000a\u007f""#),
        ] {
            assert_eq!(text(plain), quoted);
        }
        assert_eq!(unquoted(r#""exec: \"x\": no\n","#).as_deref(), Some(r#"exec: "x": no "#));
        assert_eq!(unquoted(r#""never ends"#), None);
    }

    #[test]
    fn fields_come_before_the_others() {
        assert_eq!(with(r#""a":1"#, b"{}").unwrap(), r#"{"a":1}"#);
        assert_eq!(with(r#""a":1"#, br#"{"b":2}"#).unwrap(), r#"{"a":1,"b":2}"#);
        assert!(with("", b"[]").is_err() && with("", b"\xff").is_err());
    }

    #[test]
    fn an_exit_code_is_a_number_of_one_byte() {
        for (said, code) in [
            ("{\"id\":\"a\",\"exitStatus\":137}\n", Some(137)),
            ("{\"exitStatus\": 0 , \"id\":\"a\"}", Some(0)),
            ("{\"exitStatus\":256}", None),
            ("{\"exitStatus\":-1}", None),
            ("{\"exitStatus\":1", None),
            ("{\"exitStatus\":\"1\"}", None),
            ("", None),
        ] {
            assert_eq!(exit_code(said), code, "{said}");
        }
    }

    #[test]
    fn the_last_message_counts() {
        let log =
            "{\"level\":\"warning\",\"msg\":\"one\"}\n{\"msg\": \"two \\\"x\\\"\", \"level\":\"error\"}\n";
        assert_eq!(last_message(log).as_deref(), Some("two \"x\""));
        let joined = r#"{"msg":"one \"msg\":"}{"msg":"two","level":"error"}"#;
        assert_eq!(last_message(joined).as_deref(), Some("two"), "gVisor ends no line");
        assert_eq!(last_message("plain words\n\n").as_deref(), Some("plain words"));
        assert_eq!(last_message("\n"), None);
    }
}
