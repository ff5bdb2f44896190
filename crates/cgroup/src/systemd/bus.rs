//! Calls of systemd's manager over D-Bus.
//!
//! Each call has a connection of its own and a deadline: a systemd or a dbus-daemon that hangs costs nobody but the
//! call that needs it. Signals are not subscribed to, because every subscriber gets those of all units; what a call
//! leads to is seen in the cgroup file system.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::TimeVal;
use serde::Serialize;
use wharf_types::{ErrorKind, Failure};
use zvariant::DynamicType;

use super::message::{self, Object, Reply, START_BYTES};

/// How long a call may take. systemd responds within milliseconds; on a machine under load it was seen to take seconds.
const PATIENCE: Duration = Duration::from_secs(20);

const MANAGER: Object = Object {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};
const BUS: Object = Object {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

/// The errors of systemd that callers tell apart.
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const INVALID: &str = "org.freedesktop.DBus.Error.InvalidArgs";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// Nobody listens.
    #[error("systemd does not listen at {path:?}: does it run here?")]
    Unreachable {
        /// The socket that was tried last.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The other side is late.
    #[error("systemd did not respond within {waited_s} s")]
    Late {
        /// The deadline.
        waited_s: u64,
    },
    /// The connection broke.
    #[error("the connection to systemd broke")]
    Broken {
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The other side speaks something else.
    #[error("systemd's message cannot be understood")]
    Message {
        /// What is wrong with it.
        #[source]
        source: zvariant::Error,
    },
    /// systemd refuses.
    #[error("systemd refuses it: {text} ({name})")]
    Refused {
        /// The name of its error.
        name: String,
        /// Its explanation.
        text: String,
    },
}

impl Failure for BusError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } => ErrorKind::Unavailable,
            Self::Late { .. } => ErrorKind::DeadlineExceeded,
            Self::Message { .. } => ErrorKind::Internal,
            Self::Refused { name, .. } if name == INVALID => ErrorKind::InvalidArgument,
            Self::Refused { .. } => ErrorKind::FailedPrecondition,
        }
    }
}

impl BusError {
    /// Whether a unit of that name is there already.
    pub(crate) fn is_unit_there(&self) -> bool {
        matches!(self, Self::Refused { name, .. } if name == UNIT_EXISTS)
    }

    /// Whether there is no unit of that name.
    pub(crate) fn is_no_unit(&self) -> bool {
        matches!(self, Self::Refused { name, .. } if name == NO_SUCH_UNIT)
    }
}

/// Where systemd's manager is called.
#[derive(Debug, Clone)]
pub(crate) struct Manager {
    /// Its own socket, for root alone, where systemctl calls it, too: that needs no dbus-daemon.
    direct: PathBuf,
    /// The system's bus.
    bus: PathBuf,
    patience: Duration,
}

impl Default for Manager {
    fn default() -> Self {
        Self {
            direct: "/run/systemd/private".into(),
            bus: "/run/dbus/system_bus_socket".into(),
            patience: PATIENCE,
        }
    }
}

impl Manager {
    /// Calls a method; what it returns is dropped.
    ///
    /// # Errors
    /// [`BusError`].
    pub(crate) fn call<B>(&self, member: &'static str, body: &B) -> Result<(), BusError>
    where
        B: Serialize + DynamicType,
    {
        let connect = |path| Connection::open(path, Deadline::after(self.patience));
        let mut connection = match connect(&self.direct) {
            Err(BusError::Unreachable { .. }) => {
                let mut connection = connect(&self.bus)?;
                connection.call(BUS, "Hello", &())?;
                connection
            }
            direct => direct?,
        };
        connection.call(MANAGER, member, body)
    }
}

#[derive(Debug, Clone, Copy)]
struct Deadline {
    start: Instant,
    patience: Duration,
}

impl Deadline {
    fn after(patience: Duration) -> Self {
        Self { start: Instant::now(), patience }
    }

    fn left(&self) -> Result<Duration, BusError> {
        match self.patience.saturating_sub(self.start.elapsed()) {
            Duration::ZERO => Err(self.late()),
            // The kernel takes a timeout of zero for none.
            left => Ok(left.max(Duration::from_millis(1))),
        }
    }

    fn late(&self) -> BusError {
        BusError::Late { waited_s: self.patience.as_secs() }
    }

    /// The error of a read or write.
    fn broken(&self, source: io::Error) -> BusError {
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.late(),
            _ => BusError::Broken { source },
        }
    }
}

/// A connection after its handshake.
struct Connection {
    stream: UnixStream,
    deadline: Deadline,
    serial: u32,
}

impl Connection {
    fn open(path: &Path, deadline: Deadline) -> Result<Self, BusError> {
        let stream = connect(path, deadline.left()?).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => deadline.late(),
            _ => BusError::Unreachable { path: path.into(), source },
        })?;
        let mut connection = Self { stream, deadline, serial: 0 };
        // The user is root, by its number, which is `0`. All of it comes before the answer is awaited: what systemd
        // reads together with the last line, it looks at only when something more arrives.
        connection.write(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n")?;
        let line = connection.read_line()?;
        if !line.starts_with(b"OK ") {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            return Err(BusError::Refused { name: "AUTH".to_owned(), text });
        }
        Ok(connection)
    }

    fn call<B>(&mut self, object: Object, member: &str, body: &B) -> Result<(), BusError>
    where
        B: Serialize + DynamicType,
    {
        let wrong = |source| BusError::Message { source };
        self.serial += 1;
        self.write(&message::call(object, member, self.serial, body).map_err(wrong)?)?;
        loop {
            match message::reply(&self.read_message()?, self.serial).map_err(wrong)? {
                Some(Reply::Done) => return Ok(()),
                Some(Reply::Refused { name, text }) => return Err(BusError::Refused { name, text }),
                // On its own socket systemd sends signals to everybody.
                None => {}
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), BusError> {
        let left = self.deadline.left()?;
        let set = self.stream.set_write_timeout(Some(left));
        set.and_then(|()| self.stream.write_all(bytes)).map_err(|source| self.deadline.broken(source))
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), BusError> {
        let mut read = 0;
        while read < bytes.len() {
            let left = self.deadline.left()?;
            let set = self.stream.set_read_timeout(Some(left));
            match set.and_then(|()| self.stream.read(&mut bytes[read..])) {
                Ok(0) => return Err(BusError::Broken { source: io::ErrorKind::UnexpectedEof.into() }),
                Ok(count) => read += count,
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.deadline.broken(source)),
            }
        }
        Ok(())
    }

    /// The line that answers the handshake; nothing follows it before the next one is sent.
    fn read_line(&mut self) -> Result<Vec<u8>, BusError> {
        const LIMIT_BYTES: usize = 1024;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") && line.len() < LIMIT_BYTES {
            let mut byte = [0];
            self.read_exact(&mut byte)?;
            line.extend(byte);
        }
        Ok(line)
    }

    fn read_message(&mut self) -> Result<Vec<u8>, BusError> {
        let mut start = [0; START_BYTES];
        self.read_exact(&mut start)?;
        let length =
            message::length(&start).ok_or(BusError::Message { source: zvariant::Error::OutOfBounds })?;
        let mut message = start.to_vec();
        message.resize(length, 0);
        self.read_exact(&mut message[START_BYTES..])?;
        Ok(message)
    }
}

/// Connects within a time: a listener that hangs soon has a full queue.
fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let seconds = i64::try_from(patience.as_secs()).unwrap_or(i64::MAX);
    let timeout = TimeVal::new(seconds, patience.subsec_micros().into());
    socket::setsockopt(&socket, sockopt::SendTimeout, &timeout)?;
    socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread::{JoinHandle, spawn};

    /// A server at a path that does with each connection what it is told, once for each.
    fn serve(path: &Path, turns: Vec<fn(&mut UnixStream)>) -> JoinHandle<()> {
        let listener = UnixListener::bind(path).unwrap();
        spawn(move || turns.into_iter().for_each(|turn| turn(&mut listener.accept().unwrap().0)))
    }

    /// All of the handshake comes before its answer: what systemd reads after that has to be the call alone.
    fn greet(stream: &mut UnixStream, answer: &[u8]) {
        let mut greeting = [0; 26];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n");
        stream.write_all(answer).unwrap();
    }

    fn welcome(stream: &mut UnixStream) {
        greet(stream, b"OK 0123\r\n");
    }

    fn read_call(stream: &mut UnixStream) -> Vec<u8> {
        let mut start = [0; START_BYTES];
        stream.read_exact(&mut start).unwrap();
        let mut rest = vec![0; message::length(&start).unwrap() - START_BYTES];
        stream.read_exact(&mut rest).unwrap();
        rest
    }

    fn manager(directory: &Path) -> Manager {
        let patience = Duration::from_millis(300);
        Manager { direct: directory.join("direct"), bus: directory.join("bus"), patience }
    }

    #[test]
    fn a_call_is_answered_among_signals() {
        let directory = tempfile::tempdir().unwrap();
        let manager = manager(directory.path());
        let server = serve(
            &manager.direct,
            vec![
                |stream| {
                    welcome(stream);
                    assert!(read_call(stream).windows(8).any(|part| part == b"StopUnit"));
                    let signal = message::call(MANAGER, "UnitNew", 3, &("a.scope",)).unwrap();
                    stream.write_all(&[signal, message::answer(1, None)].concat()).unwrap();
                },
                |stream| {
                    welcome(stream);
                    read_call(stream);
                    stream.write_all(&message::answer(1, Some((NO_SUCH_UNIT, "it is gone")))).unwrap();
                },
            ],
        );
        manager.call("StopUnit", &("a.scope", "replace")).unwrap();
        let refused = manager.call("StopUnit", &("a.scope", "replace")).unwrap_err();
        assert!(refused.is_no_unit() && !refused.is_unit_there());
        assert!(refused.to_string().contains("it is gone"), "{refused}");
        server.join().unwrap();
    }

    #[test]
    fn the_bus_is_asked_where_systemd_itself_does_not_listen() {
        let directory = tempfile::tempdir().unwrap();
        let manager = manager(directory.path());
        let unreachable = manager.call("StopUnit", &("a.scope", "replace")).unwrap_err();
        assert_eq!(unreachable.kind(), ErrorKind::Unavailable, "{unreachable}");
        let server = serve(
            &manager.bus,
            vec![|stream| {
                welcome(stream);
                assert!(read_call(stream).windows(5).any(|part| part == b"Hello"));
                stream.write_all(&message::answer(1, None)).unwrap();
                read_call(stream);
                stream.write_all(&message::answer(2, None)).unwrap();
            }],
        );
        manager.call("StopUnit", &("a.scope", "replace")).unwrap();
        server.join().unwrap();
    }

    #[test]
    fn who_hangs_at_any_step_costs_a_deadline() {
        let steps: [fn(&mut UnixStream); 3] = [
            |_stream| {},
            welcome,
            |stream| {
                welcome(stream);
                read_call(stream);
                stream.write_all(b"l\x02\x01\x01").unwrap();
            },
        ];
        for step in steps {
            let directory = tempfile::tempdir().unwrap();
            let manager = manager(directory.path());
            let listener = UnixListener::bind(&manager.direct).unwrap();
            let server = spawn(move || {
                let mut stream = listener.accept().unwrap().0;
                step(&mut stream);
                (listener, stream)
            });
            let late = manager.call("StopUnit", &("a.scope", "replace")).unwrap_err();
            assert_eq!(late.kind(), ErrorKind::DeadlineExceeded, "{late}");
            drop(server.join().unwrap());
        }
    }

    #[test]
    fn who_accepts_nobody_costs_a_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let manager = manager(directory.path());
        let listener =
            socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        let address = UnixAddr::new(&manager.direct).unwrap();
        socket::bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &address).unwrap();
        socket::listen(&listener, socket::Backlog::new(0).unwrap()).unwrap();
        let _first = UnixStream::connect(&manager.direct).unwrap();
        let late = manager.call("StopUnit", &("a.scope", "replace")).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::DeadlineExceeded, "{late}");
    }

    #[test]
    fn who_speaks_something_else_is_no_systemd() {
        let directory = tempfile::tempdir().unwrap();
        let manager = manager(directory.path());
        let server = serve(
            &manager.direct,
            vec![
                |stream| greet(stream, b"REJECTED EXTERNAL\r\n"),
                |stream| {
                    welcome(stream);
                    read_call(stream);
                    stream.write_all(&[b'x'; 64]).unwrap();
                },
                welcome,
            ],
        );
        let mut failures = (0..3).map(|_| manager.call("Reload", &()).unwrap_err());
        let refused = failures.next().unwrap();
        assert!(refused.to_string().contains("REJECTED"), "{refused}");
        assert_eq!(failures.next().unwrap().kind(), ErrorKind::Internal);
        let broken = failures.next().unwrap();
        assert!(matches!(broken.kind(), ErrorKind::Unavailable), "{broken}");
        server.join().unwrap();
    }
}
