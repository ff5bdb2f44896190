//! Standard error as the log writes to it. Whoever reads it may have stopped, and wharfd must not stop with them: what
//! there is no room for is lost, and said once there is room again. A file on a disk that stalls still holds up a call.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use nix::fcntl::OFlag;
use nix::sys::socket::{MsgFlags, send};

/// Standard error, to which a write never waits for a reader.
#[derive(Debug)]
pub(crate) struct Stderr {
    to: To,
    /// What a line says that tells how many lines were lost before it.
    notice: fn(u64) -> String,
    lost: u64,
    /// Whether the last line was cut short: the next begins on a line of its own.
    is_cut: bool,
}

#[derive(Debug)]
enum To {
    File(File),
    Socket(OwnedFd),
}

impl Stderr {
    /// This process's standard error.
    ///
    /// # Errors
    /// The descriptor cannot be duplicated.
    pub(crate) fn new(notice: fn(u64) -> String) -> io::Result<Self> {
        Self::of(io::stderr().as_fd().try_clone_to_owned()?, notice)
    }

    #[expect(clippy::disallowed_methods, reason = "no task exists yet, and procfs does not wait")]
    fn of(stderr: OwnedFd, notice: fn(u64) -> String) -> io::Result<Self> {
        let path = format!("/proc/self/fd/{}", stderr.as_raw_fd());
        let kind = std::fs::metadata(&path).map(|file| file.file_type());
        let mut options = File::options();
        options.append(true).custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits());
        let to = match kind {
            Ok(kind) if kind.is_socket() => To::Socket(stderr),
            // A write to it waits for no reader. Those who share this one also share its offset, without which each
            // would write over the lines of the others.
            Ok(kind) if kind.is_file() => To::File(File::from(stderr)),
            // Opened anew, because those who share this one may rely on its waiting.
            _ => match options.open(&path) {
                Ok(own) => To::File(own),
                // A terminal of another user, for example: then it is written to as it is.
                Err(_closed_to_us) => To::File(File::from(stderr)),
            },
        };
        Ok(Self { to, notice, lost: 0, is_cut: false })
    }

    /// Whether there was room for all of the text.
    fn put(&mut self, text: &str) -> bool {
        let written = match &mut self.to {
            To::File(file) => file.write(text.as_bytes()),
            To::Socket(socket) => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                send(socket.as_raw_fd(), text.as_bytes(), flags).map_err(io::Error::from)
            }
        };
        self.is_cut = written.as_ref().is_ok_and(|len| (1..text.len()).contains(len))
            || self.is_cut && written.is_err();
        written.is_ok_and(|len| len == text.len())
    }
}

impl Write for Stderr {
    /// Takes a whole line, whatever becomes of it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let begin = if self.is_cut { "\n" } else { "" };
        let notice = if self.lost > 0 { (self.notice)(self.lost) } else { String::new() };
        let text = format!("{begin}{notice}{}", String::from_utf8_lossy(line));
        if self.put(&text) {
            self.lost = 0;
        } else {
            self.lost += 1;
            crate::log::lose();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may wait for a disk")]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn notice(lost: u64) -> String {
        format!("{lost} lost\n")
    }

    /// Fills whatever it writes to, reads that empty, and writes once more.
    fn fill_and_read(mut stderr: Stderr, mut reader: impl Read) {
        let line = [&[b'x'; 999], &b"\n"[..]].concat();
        let mut written = 0_u64;
        let lost_before = crate::log::lost();
        while stderr.lost < 3 {
            assert_eq!(stderr.write(&line).unwrap(), line.len());
            written += 1;
        }
        assert!(crate::log::lost() >= lost_before + 3);
        let mut whole = vec![0; usize::try_from(written - 3).unwrap() * line.len()];
        reader.read_exact(&mut whole).unwrap();
        assert!(whole.chunks(line.len()).all(|chunk| chunk == line));
        stderr.write_all(b"again\n").unwrap();
        drop(stderr);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(rest.trim_start_matches('x').trim_start_matches('\n') == "3 lost\nagain\n", "{rest}");
    }

    #[test]
    fn a_pipe_that_nobody_reads_costs_lines_and_no_time() {
        let (reader, writer) = io::pipe().unwrap();
        fill_and_read(Stderr::of(writer.into(), notice).unwrap(), reader);
    }

    #[test]
    fn a_socket_that_nobody_reads_costs_lines_and_no_time() {
        let (reader, writer) = UnixStream::pair().unwrap();
        fill_and_read(Stderr::of(writer.into(), notice).unwrap(), reader);
    }

    #[test]
    fn a_file_is_appended_to() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&path, "before\n").unwrap();
        let file = File::options().append(true).open(&path).unwrap();
        Stderr::of(file.into(), notice).unwrap().write_all(b"after\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\nafter\n");
    }

    #[test]
    fn lines_of_others_in_a_file_that_is_not_appended_to_stay() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let mut shared = File::create(&path).unwrap();
        shared.write_all(b"systemd's\n").unwrap();
        let mut own = Stderr::of(shared.try_clone().unwrap().into(), notice).unwrap();
        for _ in 0..2 {
            own.write_all(b"wharfd's\n").unwrap();
            shared.write_all(b"another's\n").unwrap();
        }
        let lines = "systemd's\nwharfd's\nanother's\nwharfd's\nanother's\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), lines);
    }
}
