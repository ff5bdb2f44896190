//! Why a command failed, and what the user can do about it.

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use tokio::signal::unix::SignalKind;
use tonic::{Code, Status};
use wharf_types::{chain, failure, program};

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "wharfd is not running: nothing listens at {}\n  start it: sudo systemctl start wharfd, or sudo wharfd\n  \
         or set its socket: --socket PATH, or WHARF_SOCKET", socket.display()
    )]
    NotRunning { socket: PathBuf },
    #[error(
        "wharfd (pid {pid}) is running, but its socket {} was removed, so nobody can connect\n  \
         restart it, to recreate the socket: sudo systemctl restart wharfd", socket.display()
    )]
    SocketRemoved { socket: PathBuf, pid: i32 },
    #[error(
        "nothing listens at {}, but wharfd (pid {pid}) is running: it is starting, or has another socket\n  \
         its log says what it is waiting for: journalctl -u wharfd\n  \
         if its configuration has another `socket`, name it: --socket PATH, or WHARF_SOCKET", socket.display()
    )]
    NotListening { socket: PathBuf, pid: i32 },
    #[error("permission denied to connect to wharfd at {}\n  use sudo: only root may control containers", socket.display())]
    Denied { socket: PathBuf },
    #[error("wharfd{} does not respond\n  {}", of_pid(*pid), of_silence(*pid))]
    Unresponsive { pid: Option<i32> },
    #[error("cannot connect to wharfd at {}", socket.display())]
    Unreachable { socket: PathBuf, source: tonic::transport::Error },
    #[error("{what}: {}{}", told(status), advice(status))]
    Call { what: String, status: Status },
    #[error("there is no {what} {name:?}\n  {advice}")]
    Unknown { what: &'static str, name: String, advice: &'static str },
    #[error("{name:?} is ambiguous: give more characters, or one of these\n  {}", candidates.join("\n  "))]
    Ambiguous { name: String, candidates: Vec<String> },
    #[error("the pod {pod} has no container yet\n  start one in it: wharf run --pod {pod} IMAGE")]
    EmptyPod { pod: String },
    #[error(
        "there is no pod or container {name:?}: it was never made, or is removed, and what was known of it as well\n  \
         list those that there are: wharf pods, wharf ps --all\n  \
         see why it was not made, or who removed it: journalctl -u wharfd; on a cluster also kubectl describe pod"
    )]
    Gone { name: String },
    #[error("{name} already exists\n  remove it (wharf rm {name}), or give another --name")]
    NameTaken { name: String },
    #[error(
        "another command starts {name}, or runs one of its name, at the same time\n  \
         see what has become of it: wharf ps --all"
    )]
    Overtaken { name: String },
    #[error("{name} is {state}, not running{advice}")]
    NotRunningYet { name: String, state: &'static str, advice: String },
    #[error("{image} is in use by {}\n  remove them first (wharf rm), or use --force", users.join(", "))]
    ImageInUse { image: String, users: Vec<String> },
    #[error(
        "a program on this machine uses {address}, and would become unreachable\n  \
         choose another port, or leave out HOST for a free one; `ss -lntup` shows who listens"
    )]
    PortTaken { address: SocketAddr },
    #[error(
        "this machine does not have the address {ip}\n  use one that `ip address` shows, or leave the address out"
    )]
    NoAddress { ip: IpAddr },
    #[error("this would remove {what}\n  confirm it: --yes")]
    NotConfirmed { what: String },
    #[error(
        "{name} was not created by wharf run\n  whoever created it (such as the kubelet) has to restart it"
    )]
    NotOwn { name: String },
    #[error("wharf {command} has nothing to print as JSON\n  leave out --json{advice}")]
    NoJson { command: &'static str, advice: &'static str },
    #[error("wharf {command} needs root\n  use sudo")]
    NotRoot { command: &'static str },
    #[error("{name} is running\n  stop it first (wharf stop {name}), or use --force")]
    Runs { name: String },
    #[error("{0} of {1} failed: see above")]
    Some(usize, usize),
    #[error("the container {name} has no log: it was created without one, or the log has been removed")]
    NoLog { name: String },
    // No `source`, which the chain of causes would repeat: the advice comes after the cause.
    #[error("{}: {cause}{}", path.display(), denied(cause))]
    File { path: PathBuf, cause: io::Error },
    #[error("{}, line {line}: {problem}", path.display())]
    Line { path: PathBuf, line: usize, problem: String },
    #[error(
        "wharfd's response lacks {what}: check with `wharf doctor` that wharf and wharfd have the same version"
    )]
    Incomplete { what: &'static str },
    #[error("the connection to the container was lost")]
    Session {
        #[from]
        source: tokio_tungstenite::tungstenite::Error,
    },
    #[error(
        "cannot pull {image}: {message}\n  \
         log in: wharf pull --creds USER {image}, or log in to its registry with docker or podman"
    )]
    Login { image: String, message: String },
    #[error("no password was given\n  type it, pass it on standard input, or use --creds USER:PASSWORD")]
    NoPassword,
    #[error("{message}{}", of_supervisor(message))]
    Refused { message: String },
    #[error("{url} is not on this machine: wharf streams only from the local wharfd; use crictl or kubectl")]
    Elsewhere { url: String },
    #[error("standard input is not a terminal\n  leave out --tty")]
    NoTerminal { source: io::Error },
    #[error(
        "standard input is a terminal\n  name the archive (--input FILE), or redirect it: wharf load < FILE"
    )]
    NoArchive,
    #[error(
        "standard output is a terminal\n  name a file (--output FILE), or redirect it: wharf save IMAGE > FILE"
    )]
    ToTerminal,
    #[error("interrupted")]
    Interrupted { signal: SignalKind },
    #[error(
        "interrupted: {name} may be left behind, and may still be running\n  \
         once wharfd responds, remove it: wharf rm --force {name}"
    )]
    LeftBehind { name: String, signal: SignalKind },
    // No `source`, which the chain of causes would repeat: what to do comes after the cause.
    #[error("{}\n  {name} may be left ({}): wharf rm --force {name}", chain(first.as_ref()), line(cause))]
    NotRemoved { first: Box<Self>, name: String, cause: Box<Self> },
    // No `source`, as above.
    #[error("{}\n  {now}", chain(first.as_ref()))]
    Lost { first: Box<Self>, now: String },
    #[error("cannot listen on port {port} of this machine\n  choose another: LOCAL:PORT")]
    Listen { port: u16, source: io::Error },
    #[error("cannot write the output")]
    Output { source: io::Error },
    #[error("cannot start a thread: a limit on processes was reached (pids.max of a cgroup, or ulimit -u)")]
    Thread { source: io::Error },
    #[error("cannot start the async runtime")]
    Runtime { source: io::Error },
}

impl Error {
    pub(crate) fn call(what: impl Into<String>) -> impl FnOnce(Status) -> Self {
        let what = what.into();
        move |status| Self::Call { what, status }
    }
}

impl Error {
    /// The exit code of shells for a command that a signal has ended, if that is what happened.
    pub(crate) fn signal_code(&self) -> Option<u8> {
        match self {
            Self::Interrupted { signal } | Self::LeftBehind { signal, .. } => {
                u8::try_from(128 + signal.as_raw_value()).ok()
            }
            Self::NotRemoved { first, .. } => first.signal_code(),
            _ => None,
        }
    }

    /// The exit code of shells for a program that could not be executed, if that is what failed.
    pub(crate) fn program_code(&self) -> Option<u8> {
        let text = self.to_string();
        match [program::MISSING, program::DENIED, program::FORMAT].map(|words| text.contains(words)) {
            [true, ..] => Some(127),
            [_, true, _] | [.., true] => Some(126),
            _ => None,
        }
    }
}

impl Error {
    /// This error, after which what has this name could not be removed.
    pub(crate) fn but_left(self, name: &str, cause: Self) -> Self {
        Self::NotRemoved { first: Box::new(self), name: name.to_owned(), cause: Box::new(cause) }
    }

    /// This error, after which this is so.
    pub(crate) fn but(self, now: String) -> Self {
        Self::Lost { first: Box::new(self), now }
    }

    /// Whether it means that a container is no longer heard of. The container itself may still run.
    pub(crate) fn is_loss(&self) -> bool {
        self.is_away()
            || matches!(self, Self::Session { .. } | Self::Refused { .. } | Self::Incomplete { .. })
    }

    /// Whether wharfd was not there for a call, as when it restarts: what has become of it, nobody has told.
    pub(crate) fn is_away(&self) -> bool {
        matches!(self, Self::Call { status, .. } if is_lost(status))
    }
}

/// An error with its causes, without what to do about it.
pub(crate) fn line(error: &Error) -> String {
    chain(error).lines().next().unwrap_or_default().to_owned()
}

/// Whether the connection was lost, or there was none: a status without a source came from wharfd itself, so wharfd is
/// running.
fn is_lost(status: &Status) -> bool {
    let is_transports = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled);
    is_transports && std::error::Error::source(status).is_some()
}

/// The end of the words of wharfd about a call that has joined an earlier one for the same name, and got what has ended
/// by now.
const SPENT: &str = ": remove it first";

/// Whether a call got what has ended by now, instead of something new.
pub(crate) fn is_spent(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.message().ends_with(SPENT)
}

/// The words of an error of the daemon, or of the connection to it.
fn told(status: &Status) -> Cow<'_, str> {
    if is_lost(status) {
        return format!("wharfd went away before it responded ({})", status.message()).into();
    }
    status.message().into()
}

/// What the user can do about an error of the daemon.
fn advice(status: &Status) -> Cow<'static, str> {
    if status.code() == Code::Internal
        && let Some(advice) = failure::of_disk(status.message())
    {
        return format!("\n  {advice}").into();
    }
    if let Some(advice) = of_program(status.message()) {
        return format!("\n  {advice}").into();
    }
    advice_for_code(status).into()
}

fn advice_for_code(status: &Status) -> &'static str {
    if of_registry(status) {
        return "\n  check the image's name, and whether this machine reaches the registry; mirrors are set in /etc/wharf/certs.d";
    }
    match status.code() {
        _lost if is_lost(status) => {
            "\n  check whether wharfd is running: wharf doctor; once it is, this can be repeated"
        }
        Code::Unimplemented => {
            "\n  wharfd does not support this: check with `wharf doctor` that wharf and wharfd have the same version"
        }
        Code::ResourceExhausted => {
            "\n  see what has run out, such as a disk: wharf doctor; and what is in use: wharf info, wharf stats"
        }
        Code::DataLoss => "\n  the message above says what was damaged; pull or load the image again",
        _ => of_supervisor(status.message()),
    }
}

/// What the user can do about a wharfd that is silent.
fn of_silence(pid: Option<i32>) -> String {
    const LOG: &str = "see its log: journalctl -u wharfd";
    match pid {
        Some(pid) if is_zombie(pid) => "it was killed or told to exit, but cannot end before its disk responds: check the \
                                        disk, and see the kernel's log (dmesg)\n  if it has failed, restart the machine \
                                        or, unless it is the disk of `state`, end the pods without it: sudo wharfd clean \
                                        --force"
            .to_owned(),
        Some(pid) => format!("{LOG}; if it was stopped, continue it: kill -CONT {pid}"),
        None => LOG.to_owned(),
    }
}

/// Whether a process's first thread has ended, as after a kill. No signal continues it.
pub(crate) fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_name, rest)| rest.starts_with('Z'))
}

/// The words of wharfd about a supervisor that is silent. Another error begins with some of them.
const SILENT: &str = "the pod's supervisor did not respond within ";

/// What the user can do about a supervisor that is silent.
fn of_supervisor(message: &str) -> &'static str {
    match message.contains(SILENT) {
        true => "\n  if it was stopped, wharf doctor names the process to continue (kill -CONT)",
        false => "",
    }
}

/// What the user can do about a program that could not be executed, if that is what a message says.
pub(crate) fn of_program(message: &str) -> Option<&'static str> {
    const ADVICE: [(&str, &str); 6] = [
        (
            program::DENIED,
            "make the file executable (chmod +x), or run it as another user; nothing is executed on a volume that is \
             mounted noexec",
        ),
        (
            program::FOREIGN,
            "use an image for this machine: pull its variant, or build it for this architecture",
        ),
        (
            program::INTERPRETER,
            "add the interpreter to the image, name another one (in the first line of a script, which must not end with \
             CR LF), or link the program statically",
        ),
        (program::MISSING, "check the program's name and path: its image must have it"),
        (program::FORMAT, "begin a script with #! and its interpreter, or run it with one: sh FILE"),
        ("the container's seccomp profile ", "change the container's seccomp profile"),
    ];
    ADVICE.iter().find(|(words, _)| message.contains(words)).map(|(_, advice)| *advice)
}

/// Whether a registry could not be reached. The status code does not say so; the kubelet, too, looks for this word.
fn of_registry(status: &Status) -> bool {
    status.message().starts_with("RegistryUnavailable")
}

fn of_pid(pid: Option<i32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

fn denied(cause: &io::Error) -> &'static str {
    if cause.kind() == io::ErrorKind::PermissionDenied { "\n  use sudo" } else { "" }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn a_program_that_is_not_executed_has_the_codes_of_shells() {
        let code = |words: &str| {
            Error::call("running x")(Status::failed_precondition(format!("\"x\": {words}"))).program_code()
        };
        assert_eq!(code(program::MISSING), Some(127));
        assert_eq!([code(program::DENIED), code(program::FORMAT)], [Some(126); 2]);
        assert_eq!(code("the pod is gone"), None);
    }

    #[test]
    fn an_error_says_what_to_do() {
        let socket = PathBuf::from("/run/x.sock");
        let text = Error::NotRunning { socket: socket.clone() }.to_string();
        assert!(text.contains("/run/x.sock") && text.contains("systemctl start wharfd"), "{text}");
        assert!(Error::Denied { socket }.to_string().contains("sudo"));
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(Error::File { path: "/x".into(), cause: source }.to_string().ends_with("use sudo"));
        let [known, unknown] = [Some(7), None].map(|pid| Error::Unresponsive { pid }.to_string());
        assert!(known.starts_with("wharfd (pid 7) does not") && known.ends_with("kill -CONT 7"), "{known}");
        assert_eq!(unknown, "wharfd does not respond\n  see its log: journalctl -u wharfd");
        #[expect(clippy::disallowed_methods, reason = "a test's own process")]
        let mut killed = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        killed.kill().unwrap();
        let pid = killed.id().cast_signed();
        while !is_zombie(pid) {
            std::thread::yield_now();
        }
        let told = Error::Unresponsive { pid: Some(pid) }.to_string();
        assert!(told.contains("was killed") && !told.contains("-CONT"), "{told}");
        killed.wait().unwrap();
        let registry = Error::call("pulling x")(Status::unknown("RegistryUnavailable: no route"));
        assert!(registry.to_string().contains("reaches the registry"), "{registry}");
        let full = Error::call("running x")(Status::resource_exhausted("No space left on device"));
        assert!(full.to_string().contains("wharf doctor"), "{full}");
        let answered = Error::call("running x")(Status::unavailable("the plugin failed"));
        assert_eq!(answered.to_string(), "running x: the plugin failed");
        let mut lost = Status::unavailable("gone");
        lost.set_source(std::sync::Arc::new(io::Error::from(io::ErrorKind::ConnectionReset)));
        let lost = Error::call("pulling x")(lost).to_string();
        let words = "pulling x: wharfd went away before it responded (gone)\n  check whether wharfd is running: wharf doctor";
        assert!(lost.starts_with(words) && lost.ends_with("this can be repeated"), "{lost}");
        let silent = Status::deadline_exceeded("the pod's supervisor did not respond within 30s");
        let refused = Error::Refused { message: silent.message().to_owned() }.to_string();
        assert!(refused.ends_with("(kill -CONT)"), "{refused}");
        assert!(Error::call("running x")(silent).to_string().ends_with("(kill -CONT)"));
    }

    #[test]
    fn only_a_supervisor_that_is_silent_is_to_be_continued() {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../supervision/src/error.rs");
        let source = std::fs::read_to_string(source).unwrap();
        let texts =
            source.lines().filter_map(|line| line.trim().strip_prefix("#[error(\"")?.strip_suffix("\")]"));
        let advised: Vec<&str> = texts.clone().filter(|text| !of_supervisor(text).is_empty()).collect();
        assert_eq!(advised, [format!("{SILENT}{{patience:?}}")], "of {:?}", texts.collect::<Vec<_>>());
    }

    #[test]
    fn a_disk_that_has_failed_is_looked_for() {
        let told = |status: Status| Error::call("running x")(status).to_string();
        for errno in [Errno::EROFS, Errno::EIO] {
            for words in [errno.desc().to_owned(), io::Error::from(errno).to_string()] {
                let message = format!("cannot make the snapshot /a: mkdirat(.b): {words}");
                let internal = told(Status::internal(&message));
                assert!(internal.starts_with(&format!("running x: {message}\n")), "{internal}");
                assert!(internal.contains("wharf doctor") && internal.contains("dmesg"), "{internal}");
                let of_request = told(Status::invalid_argument(&message));
                assert!(!of_request.contains("doctor"), "{of_request}");
            }
        }
        assert!(!told(Status::internal("mkdirat(.b): File exists")).contains("doctor"));
    }

    #[test]
    fn what_wharfd_says_itself_does_not_mean_that_it_was_away() {
        for code in [Code::Unavailable, Code::Unknown, Code::Cancelled] {
            let mut status = Status::new(code, "gone");
            assert!(!Error::call("running x")(status.clone()).is_away(), "{code:?}");
            status.set_source(std::sync::Arc::new(io::Error::from(io::ErrorKind::ConnectionReset)));
            assert!(Error::call("running x")(status).is_away(), "{code:?}");
        }
    }

    #[test]
    fn a_container_that_is_not_heard_of_may_run() {
        let lost = Error::Session { source: tokio_tungstenite::tungstenite::Error::ConnectionClosed };
        let refused = Error::Refused { message: "wharfd is being restarted".to_owned() };
        assert!([lost, Error::Incomplete { what: "x" }].iter().all(Error::is_loss) && refused.is_loss());
        let told = refused.but("web keeps running".to_owned());
        assert_eq!(chain(&told), "wharfd is being restarted\n  web keeps running");
        let closed = Error::Output { source: io::Error::from(io::ErrorKind::BrokenPipe) };
        let answered = Error::call("asking for the container")(Status::not_found("gone"));
        assert!(!closed.is_loss() && !answered.is_loss());
    }

    #[test]
    fn what_an_earlier_call_made_and_has_ended_is_recognised() {
        for file in ["create.rs", "pod.rs"] {
            let source = format!("{}/../pods/src/engine/{file}", env!("CARGO_MANIFEST_DIR"));
            let source = std::fs::read_to_string(source).unwrap();
            assert_eq!(source.matches(&format!("{SPENT}\"")).count(), 1, "{file}");
        }
        assert!(is_spent(&Status::failed_precondition("container 7 is exited: remove it first")));
        assert!(!is_spent(&Status::failed_precondition("container 7 is exited")));
    }

    #[test]
    fn a_signal_is_told_to_shells_and_what_it_leaves_to_people() {
        let (signal, name) = (SignalKind::terminate(), "web/job".to_owned());
        let left = Error::LeftBehind { name, signal };
        assert!(left.to_string().ends_with("wharf rm --force web/job"), "{left}");
        let codes = [left, Error::Interrupted { signal }, Error::NoPassword].map(|error| error.signal_code());
        assert_eq!(codes, [Some(143), Some(143), None]);
    }
}
