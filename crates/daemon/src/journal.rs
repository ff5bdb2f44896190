//! systemd's journal as the log writes to it, in its native protocol: <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>. A
//! journal that does not read must not stop wharfd: what there is no room for is lost, and said once there is room
//! again.

use std::fmt::{self, Write as _};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, sendto, socket,
};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Where systemd's journal receives entries.
pub(crate) const PATH: &str = "/run/systemd/journal/socket";
/// What finds the entries of wharfd: `journalctl -t wharfd`.
const IDENTIFIER: &str = "wharfd";
/// Precedes the names of fields that are not the journal's own.
const PREFIX: &str = "F_";

/// The journal, to which sending an entry never waits.
#[derive(Debug)]
pub(crate) struct Journal {
    socket: OwnedFd,
    /// Looked up anew for each entry, so that the next journal gets what one no longer can.
    address: UnixAddr,
    lost: AtomicU64,
}

/// The fields of a span, as its events send them.
struct OfSpan(Entry);

/// Fields, each with its length before its value, which may have any bytes in it.
#[derive(Debug, Clone, Default)]
struct Entry(Vec<u8>);

impl Journal {
    /// The journal that receives at a path.
    ///
    /// # Errors
    /// Nobody does.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let journal = Self { socket, address: UnixAddr::new(path)?, lost: AtomicU64::new(0) };
        // The journal ignores what is empty. One that does not read now is there all the same.
        match journal.send(&[]) {
            Ok(()) | Err(Errno::EAGAIN) => Ok(journal),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends an entry, and before it how many were lost, if any.
    fn put(&self, entry: &Entry) {
        let lost = self.lost.swap(0, Relaxed);
        let is_told = lost == 0 || self.send(&notice(lost).0).is_ok();
        let lost = if is_told { 0 } else { lost };
        let is_sent = is_told && self.send(&entry.0).is_ok();
        self.lost.fetch_add(lost + u64::from(!is_sent), Relaxed);
        if !is_sent {
            crate::log::lose();
        }
    }

    fn send(&self, entry: &[u8]) -> nix::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let socket = self.socket.as_raw_fd();
        match sendto(socket, entry, &self.address, flags) {
            // Too long for a datagram: the journal reads it from a file that nobody can change any more.
            Err(Errno::EMSGSIZE) => {
                let file = wharf_sys::fs::sealed_memfd("entry", entry).map_err(|error| error.errno)?;
                let files = [file.as_raw_fd()];
                let files = [ControlMessage::ScmRights(&files)];
                sendmsg(socket, &[], &files, flags, Some(&self.address)).map(drop)
            }
            sent => sent.map(drop),
        }
    }
}

/// What tells that entries were lost.
fn notice(lost: u64) -> Entry {
    let mut entry = Entry::default();
    entry.add("PRIORITY", priority(Level::WARN));
    entry.add("SYSLOG_IDENTIFIER", IDENTIFIER);
    entry.add("MESSAGE", crate::log::loss(lost));
    entry
}

/// As syslog(3) counts them; `info` stands out from `debug`.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 5,
        Level::DEBUG => 6,
        Level::TRACE => 7,
    }
}

impl Entry {
    fn add(&mut self, name: &str, value: impl fmt::Display) {
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        let at = self.0.len();
        self.0.extend_from_slice(&[0; 8]);
        // Only a value that cannot be shown fails, and then it is cut short.
        write!(self, "{value}").unwrap_or_default();
        let len = self.0.len() - at - 8;
        self.0[at..at + 8].copy_from_slice(&u64::try_from(len).unwrap_or(u64::MAX).to_le_bytes());
        self.0.push(b'\n');
    }

    /// Where in the code something is; the names of the journal's own fields for that begin with `of`.
    fn add_place(&mut self, of: &str, place: &Metadata<'_>) {
        self.add(&format!("{of}TARGET"), place.target());
        if let Some(file) = place.file() {
            self.add(&format!("{of}CODE_FILE"), file);
        }
        if let Some(line) = place.line() {
            self.add(&format!("{of}CODE_LINE"), line);
        }
    }
}

impl fmt::Write for Entry {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(&name(field.name()), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(&name(field.name()), format_args!("{value:?}"));
    }
}

/// A name that the journal accepts: capital letters, digits and underscores.
fn name(field: &str) -> String {
    if field == "message" {
        return "MESSAGE".to_owned();
    }
    let field = field.replace('.', "_");
    let accepted = field.trim_start_matches('_').chars().filter(|c| *c == '_' || c.is_ascii_alphanumeric());
    PREFIX.chars().chain(accepted.map(|c| c.to_ascii_uppercase())).collect()
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Entry::default();
        fields.add("SPAN_NAME", span.name());
        fields.add_place("SPAN_", span.metadata());
        attributes.record(&mut fields);
        span.extensions_mut().insert(OfSpan(fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(OfSpan(fields)) = span.extensions_mut().get_mut::<OfSpan>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut entry = Entry::default();
        for span in context.event_scope(event).into_iter().flat_map(|spans| spans.from_root()) {
            if let Some(OfSpan(fields)) = span.extensions().get::<OfSpan>() {
                entry.0.extend_from_slice(&fields.0);
            }
        }
        entry.add("PRIORITY", priority(*event.metadata().level()));
        entry.add_place("", event.metadata());
        entry.add("SYSLOG_IDENTIFIER", IDENTIFIER);
        event.record(&mut entry);
        self.put(&entry);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may wait for a disk")]
mod tests {
    use std::io::IoSliceMut;
    use std::os::unix::net::UnixDatagram;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// A journal that receives what `log` logs to it.
    fn received_by(log: impl FnOnce(&UnixDatagram)) -> (tempfile::TempDir, UnixDatagram) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let receiver = UnixDatagram::bind(&path).unwrap();
        receiver.set_nonblocking(true).unwrap();
        let journal = Journal::open(&path).unwrap();
        assert_eq!(receiver.recv(&mut [0]).unwrap(), 0, "it asks whether somebody is there");
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), || log(&receiver));
        (dir, receiver)
    }

    /// The next entry, however it was sent.
    fn next(receiver: &UnixDatagram) -> Option<Vec<(String, String)>> {
        let (mut bytes, mut space) = (vec![0; 1 << 20], nix::cmsg_space!([i32; 1]));
        let (len, file) = {
            let mut into = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::empty();
            let message = recvmsg::<()>(receiver.as_raw_fd(), &mut into, Some(&mut space), flags).ok()?;
            let file = message.cmsgs().unwrap().find_map(|control| match control {
                ControlMessageOwned::ScmRights(files) => Some(files[0]),
                _ => None,
            });
            (message.bytes, file)
        };
        bytes.truncate(len);
        if let Some(file) = file {
            bytes = std::fs::read(format!("/proc/self/fd/{file}")).unwrap();
            nix::unistd::close(file).unwrap();
        }
        Some(fields(&bytes))
    }

    /// The fields of an entry, all of which have their lengths.
    fn fields(mut entry: &[u8]) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let mut fields = Vec::new();
        while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
            let (name, rest) = (&entry[..end], &entry[end + 1..]);
            let len = usize::try_from(u64::from_le_bytes(rest[..8].try_into().unwrap())).unwrap();
            fields.push((text(name), text(&rest[8..8 + len])));
            assert_eq!(rest[8 + len], b'\n');
            entry = &rest[8 + len + 1..];
        }
        fields
    }

    fn value<'a>(entry: &'a [(String, String)], name: &str) -> &'a str {
        entry.iter().find(|(of, _)| of == name).map_or("", |(_, value)| value)
    }

    #[test]
    fn a_journal_that_does_not_read_costs_entries_and_no_time() {
        let (_dir, receiver) = received_by(|receiver| {
            for number in 0..1000 {
                tracing::info!("line {number}");
            }
            let mut kept = 0;
            while let Some(entry) = next(receiver) {
                assert_eq!(value(&entry, "MESSAGE"), format!("line {kept}"));
                kept += 1;
            }
            assert!((1..1000).contains(&kept), "{kept}");
            tracing::info!("again");
            let words = format!("{} lines of the log could not be written, and are lost", 1000 - kept);
            let notice = next(receiver).unwrap();
            assert_eq!((value(&notice, "MESSAGE"), value(&notice, "PRIORITY")), (words.as_str(), "4"));
        });
        assert_eq!(value(&next(&receiver).unwrap(), "MESSAGE"), "again");
        assert_eq!(next(&receiver), None);
        drop(receiver);
    }

    #[test]
    fn an_entry_has_the_fields_of_its_event_and_of_the_spans_around_it() {
        let (_dir, receiver) = received_by(|_receiver| {
            let span = tracing::info_span!("call", pod = "p", late = tracing::field::Empty);
            span.record("late", 7);
            let _inside = span.enter();
            tracing::warn!(pid = 5, path = %"/a\nMESSAGE=b", _odd.name = ?"x", "two\nlines");
        });
        let entry = next(&receiver).unwrap();
        for (name, expected) in [
            ("MESSAGE", "two\nlines"),
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "wharfd"),
            ("CODE_FILE", file!()),
            ("TARGET", module_path!()),
            ("F_PID", "5"),
            ("F_PATH", "/a\nMESSAGE=b"),
            ("F_ODD_NAME", "\"x\""),
            ("SPAN_NAME", "call"),
            ("SPAN_TARGET", module_path!()),
            ("F_POD", "p"),
            ("F_LATE", "7"),
        ] {
            assert_eq!(value(&entry, name), expected, "{name}");
        }
        assert!(value(&entry, "CODE_LINE").parse::<u32>().is_ok_and(|line| line > 0));
    }

    #[test]
    fn an_entry_too_long_for_a_datagram_comes_in_a_file() {
        let long = "x".repeat(4 << 20);
        let (_dir, receiver) = received_by(|_receiver| tracing::error!("{long}"));
        let entry = next(&receiver).unwrap();
        assert!(value(&entry, "MESSAGE") == long && value(&entry, "PRIORITY") == "3");
    }

    #[test]
    fn where_nobody_receives_is_no_journal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        Journal::open(&path).unwrap_err();
        drop(UnixDatagram::bind(&path).unwrap());
        Journal::open(&path).unwrap_err();
    }
}
