//! An error with all its causes on one line, for the place that logs or prints it.

use std::error::Error;

/// The messages of an error and its causes, outermost first, separated by colons.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
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
    fn causes_follow_the_error() {
        let source = "x".parse::<u8>().unwrap_err();
        let error = Outer { path: "/a", source };
        assert_eq!(chain(&error), "reading /a: invalid digit found in string");
    }
}
