//! Reading and writing files of a cgroup.
//!
//! Each write(2) is one value to the kernel, which takes it or refuses it as a whole. Only files that exist are
//! written: a cgroup's files are made by the kernel, and one that is missing means that a feature is, or that the
//! cgroup is gone. Which of them is a failure is for the caller to say, by the function that it calls.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use wharf_sys::fs::kernel_text;

use crate::error::Error;
use crate::tree::is_gone;

/// Reads a file as text.
pub(crate) fn read(file: &Path) -> Result<String, Error> {
    kernel_text(file).map_err(Error::io("read", file))
}

/// Reads a file as text; `None` if it does not exist.
pub(crate) fn read_if_there(file: &Path) -> Result<Option<String>, Error> {
    match kernel_text(file) {
        Ok(text) => Ok(Some(text)),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { action: "read", path: file.into(), source }),
    }
}

/// Writes a value with one write(2), as the kernel requires, to a file that exists.
pub(crate) fn write(file: &Path, value: &str) -> Result<(), Error> {
    write_each(file, [value])
}

/// The same; if the cgroup is gone, there is nothing to write to.
pub(crate) fn write_if_there(file: &Path, value: &str) -> Result<(), Error> {
    match write(file, value) {
        Err(Error::Write { source, .. }) if is_gone(&source) => Ok(()),
        written => written,
    }
}

/// Writes several values to a file that exists, each with one write(2).
pub(crate) fn write_each<'a>(file: &Path, values: impl IntoIterator<Item = &'a str>) -> Result<(), Error> {
    let failed = |value: &str| {
        let value = value.to_owned();
        move |source| Error::Write { file: file.into(), value, source }
    };
    let mut values = values.into_iter().peekable();
    let Some(first) = values.peek() else { return Ok(()) };
    let mut open = OpenOptions::new().write(true).open(file).map_err(failed(first))?;
    values.try_for_each(|value| {
        // An empty write never reaches the kernel's handler; a bare line feed clears the value.
        let bytes = if value.is_empty() { b"\n".as_slice() } else { value.as_bytes() };
        open.write_all(bytes).map_err(failed(value))
    })
}

/// The value of `key` in a text whose lines have the form `key value`.
pub(crate) fn keyed<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_whole_word() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n";
        assert_eq!(keyed(text, "oom_kill"), Some("7"));
        assert_eq!(keyed(text, "oom"), None);
    }

    #[test]
    fn a_missing_file_is_not_created() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("memory.max");
        assert!(write(&file, "1").is_err());
        write_if_there(&file, "1").unwrap();
        assert!(!file.exists());
        assert_eq!(read_if_there(&file).unwrap(), None);
        assert!(read(&file).is_err());
    }
}
