//! The `oom_score_adj` of a process, kept open: it is read for each exec, and to open it takes ten times as long.
//!
//! The open file is the process's, not the number's: once the process is gone, reading it is ESRCH, whoever has the
//! number by then. The score is only read here. The first process of a container writes its own, and an update writes
//! it from the daemon.

use std::cell::OnceCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use wharf_sys::Result;
use wharf_sys::error::Named as _;

/// The score of one process.
#[derive(Debug, Default)]
pub(crate) struct Score(OnceCell<File>);

impl Score {
    /// Reads the score of `process`, a pid or `self`, which must be the same each time; `None` once it is gone.
    ///
    /// # Errors
    /// The kernel's error; EBADMSG if it shows no number.
    pub(crate) fn of(&self, process: &str) -> Result<Option<i32>> {
        let path = || format!("/proc/{process}/oom_score_adj");
        match self.read(&path()) {
            Err(error) if is_gone(&error) => Ok(None),
            read => read.named("read", path),
        }
    }

    fn read(&self, path: &str) -> io::Result<Option<i32>> {
        let file = match self.0.get() {
            Some(file) => file,
            None => {
                let file = File::open(path)?;
                self.0.get_or_init(|| file)
            }
        };
        let mut text = [0; 16];
        let length = file.read_at(&mut text, 0)?;
        let number = std::str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse().ok());
        number.map(Some).ok_or_else(|| Errno::EBADMSG.into())
    }
}

/// Whether an error means that the process is gone, before or after its file was opened.
fn is_gone(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOENT | Errno::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_the_present_one_and_that_of_a_process_that_is_gone_is_none() {
        #[expect(clippy::disallowed_methods, reason = "some process is needed that is a child")]
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let (pid, score) = (child.id().to_string(), Score::default());
        for wanted in [500, 600] {
            std::fs::write(format!("/proc/{pid}/oom_score_adj"), wanted.to_string()).unwrap();
            assert_eq!(score.of(&pid), Ok(Some(wanted)));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(score.of(&pid), Ok(None));
        assert_eq!(Score::default().of(&pid), Ok(None));
    }
}
