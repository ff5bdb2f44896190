//! An error with all its causes on one line, for the place that logs or prints it.

use std::error::Error;
use std::io;

use nix::errno::Errno;

use crate::failure;

/// The messages of an error and its causes, outermost first, separated by colons.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    // The standard library has words of its own for an errno, at the end of the chain.
    let is_last = |errno: &Errno| text.ends_with(&io::Error::from(*errno).to_string());
    let reached = [Errno::EMFILE, Errno::ENFILE].into_iter().find(is_last);
    if let Some(advice) = reached.and_then(failure::advice) {
        text = format!("{text}: {advice}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading {path}")]
    struct Outer {
        path: &'static str,
        source: std::num::ParseIntError,
    }

    #[test]
    fn a_limit_that_was_reached_is_named_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("reading {path}")]
        struct Unread {
            path: &'static str,
            source: io::Error,
        }
        let chain = |errno: Errno| chain(&Unread { path: "/a", source: errno.into() });
        assert!(chain(Errno::EMFILE).ends_with("(os error 24): the limit is this process's: raise LimitNOFILE of wharfd.service, and restart wharfd"));
        assert_eq!(chain(Errno::ENFILE).matches("fs.file-max").count(), 1);
        assert_eq!(chain(Errno::EACCES), "reading /a: Permission denied (os error 13)");
    }

    #[test]
    fn causes_follow_the_error() {
        let source = "x".parse::<u8>().unwrap_err();
        let error = Outer { path: "/a", source };
        assert_eq!(chain(&error), "reading /a: invalid digit found in string");
    }
}
