//! Why a command failed, and what to do about it.

use std::io;
use std::path::PathBuf;

use tonic::{Code, Status};
use wharf_types::program;

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "wharfd does not run: nothing listens at {}\n  start it: sudo systemctl start wharfd, or sudo wharfd\n  \
         or name its socket: --socket PATH, or WHARF_SOCKET", socket.display()
    )]
    NotRunning { socket: PathBuf },
    #[error("you may not talk to wharfd at {}\n  use sudo: containers are root's business", socket.display())]
    Denied { socket: PathBuf },
    #[error("wharfd cannot be reached at {}", socket.display())]
    Unreachable { socket: PathBuf, source: tonic::transport::Error },
    #[error("{what}: {}{}", status.message(), advice(status))]
    Call { what: String, status: Status },
    #[error("there is no {what} {name:?}\n  {advice}")]
    Unknown { what: &'static str, name: String, advice: &'static str },
    #[error("{name:?} could be any of these: say more of it\n  {}", candidates.join("\n  "))]
    Ambiguous { name: String, candidates: Vec<String> },
    #[error("the pod {pod} has no container yet\n  start one in it: wharf run --pod {pod} IMAGE")]
    EmptyPod { pod: String },
    #[error("{name} is here already\n  remove it (wharf rm {name}), or give another --name")]
    NameTaken { name: String },
    #[error("{name} is {state}, not running{advice}")]
    NotRunningYet { name: String, state: &'static str, advice: String },
    #[error("{image} is the image of {}\n  remove that first (wharf rm), or use --force", users.join(", "))]
    ImageInUse { image: String, users: Vec<String> },
    #[error("{what} would be removed\n  say so: --yes")]
    NotConfirmed { what: String },
    #[error("{name} was not made by wharf run\n  whoever made it starts it again")]
    NotOwn { name: String },
    #[error("wharf {command} has nothing to print as JSON\n  leave out --json{advice}")]
    NoJson { command: &'static str, advice: &'static str },
    #[error("{name} runs\n  stop it first (wharf stop {name}), or use --force")]
    Runs { name: String },
    #[error("{0} of {1} could not be done: see above")]
    Some(usize, usize),
    #[error("the container {name} keeps no log: whoever made it asked for none")]
    NoLog { name: String },
    #[error("{}: {source}{}", path.display(), denied(source))]
    File { path: PathBuf, source: io::Error },
    #[error("{}, line {line}: {problem}", path.display())]
    Line { path: PathBuf, line: usize, problem: String },
    #[error("the daemon's answer lacks {what}: are wharf and wharfd of one version? `wharf doctor` tells")]
    Incomplete { what: &'static str },
    #[error("the session with the container broke")]
    Session {
        #[from]
        source: tokio_tungstenite::tungstenite::Error,
    },
    #[error(
        "{image} cannot be pulled: {message}\n  \
         say who you are: wharf pull --creds USER {image}, or log in to its registry with docker or podman"
    )]
    Login { image: String, message: String },
    #[error("no password was given\n  type it, write it to standard input, or say --creds USER:PASSWORD")]
    NoPassword,
    #[error("{message}")]
    Refused { message: String },
    #[error("{url} is not of this machine's own wharfd: use crictl or kubectl for it")]
    Elsewhere { url: String },
    #[error("standard input is not a terminal\n  leave out --tty")]
    NoTerminal { source: io::Error },
    #[error("port {port} of this machine cannot be listened on\n  name another: LOCAL:PORT")]
    Listen { port: u16, source: io::Error },
    #[error("the output could not be written")]
    Output { source: io::Error },
    #[error("the program could not be started up")]
    Runtime { source: io::Error },
}

impl Error {
    pub(crate) fn call(what: impl Into<String>) -> impl FnOnce(Status) -> Self {
        let what = what.into();
        move |status| Self::Call { what, status }
    }
}

impl Error {
    /// The code that shells give for a program that could not be executed, if that was it.
    pub(crate) fn program_code(&self) -> Option<u8> {
        let text = self.to_string();
        match [program::MISSING, program::DENIED, program::FORMAT].map(|words| text.contains(words)) {
            [true, ..] => Some(127),
            [_, true, _] | [.., true] => Some(126),
            _ => None,
        }
    }
}

/// What a person can do about a refusal of the daemon's.
fn advice(status: &Status) -> &'static str {
    if of_registry(status) {
        return "\n  check its name, and whether this machine reaches the registry; mirrors are named in /etc/wharf/certs.d";
    }
    match status.code() {
        // Without a cause it is an answer: somebody is there.
        Code::Unavailable | Code::Unknown if std::error::Error::source(status).is_some() => {
            "\n  look whether wharfd runs: wharf doctor"
        }
        Code::Unimplemented => "\n  this wharfd does not know it: are wharf and wharfd of one version?",
        Code::ResourceExhausted => "\n  see what is used: wharf info, wharf stats",
        Code::DataLoss => "\n  the message above says what was damaged; pull the image again",
        _ => "",
    }
}

/// Whether it was a registry that could not be reached: the kubelet knows it by this word too. The code tells nothing then.
fn of_registry(status: &Status) -> bool {
    status.message().starts_with("RegistryUnavailable")
}

fn denied(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::PermissionDenied { "\n  use sudo" } else { "" }
}

#[cfg(test)]
mod tests {
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
        assert!(Error::File { path: "/x".into(), source }.to_string().ends_with("use sudo"));
        let registry = Error::call("pulling x")(Status::unknown("RegistryUnavailable: no route"));
        assert!(registry.to_string().contains("reaches the registry"), "{registry}");
        let answered = Error::call("running x")(Status::unavailable("the plugin failed"));
        assert_eq!(answered.to_string(), "running x: the plugin failed");
        let mut lost = Status::unavailable("gone");
        lost.set_source(std::sync::Arc::new(io::Error::from(io::ErrorKind::ConnectionReset)));
        let lost = Error::call("pulling x")(lost).to_string();
        assert_eq!(lost, "pulling x: gone\n  look whether wharfd runs: wharf doctor");
    }
}
