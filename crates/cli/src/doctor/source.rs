//! What the checks read of the kernel and of the machine. What cannot be read is unknown: it never stands for nothing.
//!
//! Anybody may choose names that the kernel shows, such as those of mount points, and they need not be UTF-8.

use std::io::{ErrorKind, Result};
use std::path::Path;

use super::Check;

/// What is in a file, whatever bytes these are.
pub(super) fn text(file: &Path) -> Result<String> {
    std::fs::read(file).map(|content| String::from_utf8_lossy(&content).into_owned())
}

/// The names in a directory; none if there is no such directory.
pub(super) fn names(directory: &Path) -> Result<Vec<String>> {
    let name = |entry: Result<std::fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    if_any(std::fs::read_dir(directory).and_then(|entries| entries.map(name).collect()))
}

/// What was read; nothing if there is nothing to read.
pub(super) fn if_any<T: Default>(read: Result<T>) -> Result<T> {
    match read {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(T::default()),
        read => read,
    }
}

/// A check of what a file says.
pub(super) fn check(what: &'static str, file: impl AsRef<Path>, check: impl FnOnce(&str) -> Check) -> Check {
    known(what, file.as_ref(), text(file.as_ref()), check)
}

/// A check of what a file says; a machine without that file lacks what it is about.
pub(super) fn check_if_any(
    what: &'static str,
    file: impl AsRef<Path>,
    check: impl FnOnce(&str) -> Check,
) -> Check {
    known(what, file.as_ref(), if_any(text(file.as_ref())), check)
}

fn known(what: &'static str, file: &Path, read: Result<String>, check: impl FnOnce(&str) -> Check) -> Check {
    match read {
        Ok(text) => check(&text),
        Err(error) => Check::unknown(what, file, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn what_cannot_be_read_is_unknown_and_what_is_not_utf8_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let [file, none] = ["file", "none"].map(|name| dir.path().join(name));
        std::fs::write(&file, b"a\xffb").unwrap();
        let told = |text: &str| Check::ok("x", text);
        assert_eq!(check("x", &file, told).found, "a\u{fffd}b");
        assert_eq!(check_if_any("x", &none, told), Check::ok("x", ""));
        let in_vain =
            [check("x", &none, told), check("x", dir.path(), told), check_if_any("x", dir.path(), told)];
        for told in in_vain {
            assert!(told.verdict == Verdict::Warn && told.found.starts_with("unknown: /"), "{told:?}");
        }
        assert_eq!(names(dir.path()).unwrap(), ["file"]);
        assert_eq!(names(&none).unwrap(), [""; 0]);
        assert!(names(&file).is_err());
    }
}
