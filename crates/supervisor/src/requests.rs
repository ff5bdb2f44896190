//! Parses the daemon's requests: into the machine's form, and into what came beside them.

use std::os::fd::OwnedFd;

use wharf_isolation::{Outline, PidNamespace, Stream, Streams};
use wharf_types::{ContainerId, Failure as _, TerminalSize};
use wharf_wire::v1::{self, failure::Kind, request::Body};

use crate::audience::{Client, Pace};
use crate::link::failure;
use crate::machine::client::Watches;
use crate::machine::{Ask, Failure, Signal};

/// What came beside a request, for the code that carries it out.
#[derive(Debug)]
pub(crate) enum Given {
    Nothing,
    /// What the pod has, sent with the greeting of the daemon that makes it.
    Held(Vec<(v1::Held, OwnedFd)>),
    Creation(Creation),
    Command(Command),
    Visitor(Visitor),
}

/// A container to make: its whole plan, still encoded, and the directory of its log if the daemon has made that.
#[derive(Debug)]
pub(crate) struct Creation {
    pub(crate) plan: Box<Outline>,
    pub(crate) whole: Vec<u8>,
    pub(crate) log_directory: Option<OwnedFd>,
}

/// A further process in a container, with its streams.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) args: Vec<Vec<u8>>,
    pub(crate) terminal: bool,
    pub(crate) size: Option<TerminalSize>,
    pub(crate) streams: Streams,
}

/// A client to attach, and whether it writes to the container.
#[derive(Debug)]
pub(crate) struct Visitor {
    pub(crate) client: Client,
    pub(crate) stdin: bool,
}

type Read = Result<(Ask, Given), Failure>;

/// Parses a request.
pub(crate) fn read(body: Option<Body>, descriptors: Vec<OwnedFd>) -> (Ask, Given) {
    let read = match body {
        Some(Body::Hello(hello)) => self::hello(&hello, descriptors),
        Some(Body::Create(_)) => create(descriptors),
        Some(Body::Start(start)) => {
            id(&start.container).map(|container| (Ask::Start { container }, Given::Nothing))
        }
        Some(Body::Signal(request)) => signal(&request),
        Some(Body::Exec(request)) => exec(request, descriptors),
        Some(Body::KillExec(kill)) => alone(Ask::KillExec { exec: kill.exec }),
        Some(Body::Remove(remove)) => {
            id(&remove.container).map(|container| (Ask::Remove { container }, Given::Nothing))
        }
        Some(Body::Attach(request)) => attach(&request, descriptors),
        Some(Body::ReopenLog(reopen)) => {
            id(&reopen.container).map(|container| (Ask::ReopenLog { container }, Given::Nothing))
        }
        Some(Body::Lend(lend)) => alone(Ask::Lend { held: lend.held() }),
        Some(Body::Shutdown(_)) => alone(Ask::Shutdown),
        None => Err(invalid("this supervisor does not know the request: it is of an older release")),
    };
    read.unwrap_or_else(|failure| (Ask::Nonsense(failure), Given::Nothing))
}

fn alone(ask: Ask) -> Read {
    Ok((ask, Given::Nothing))
}

fn invalid(message: impl Into<String>) -> Failure {
    failure(Kind::Invalid, message)
}

pub(crate) fn internal(error: impl std::fmt::Display) -> Failure {
    failure(Kind::Internal, error.to_string())
}

/// A name that is not a valid id is that of no container in the pod.
fn id(text: &str) -> Result<ContainerId, Failure> {
    text.parse().map_err(|_malformed| failure(Kind::NotFound, format!("container {text} is not in this pod")))
}

fn hello(hello: &v1::Hello, descriptors: Vec<OwnedFd>) -> Read {
    let kinds: Vec<v1::Held> = hello.hold().collect();
    if kinds.len() != descriptors.len() {
        return Err(invalid("a greeting whose descriptors are not those it names"));
    }
    let given = match descriptors.is_empty() {
        true => Given::Nothing,
        false => Given::Held(kinds.into_iter().zip(descriptors).collect()),
    };
    Ok((Ask::State, given))
}

fn create(descriptors: Vec<OwnedFd>) -> Read {
    let mut descriptors = descriptors.into_iter();
    let (plan, log_directory) = (descriptors.next(), descriptors.next());
    let plan = plan.ok_or_else(|| invalid("a create request without a plan"))?;
    let whole = wharf_wire::read_file(&plan).map_err(internal)?;
    let plan = Outline::decode(&whole).map_err(|error| failure(error.kind().into(), error.to_string()))?;
    let target = match &plan.namespaces.pid {
        PidNamespace::Target(target) => Some(target.clone()),
        PidNamespace::Container | PidNamespace::Pod | PidNamespace::Host => None,
    };
    let ask = Ask::Create { container: plan.container.clone(), has_log: plan.stdio.log.is_some(), target };
    Ok((ask, Given::Creation(Creation { plan: Box::new(plan), whole, log_directory })))
}

fn signal(request: &v1::Signal) -> Read {
    let signal = match request.all {
        true => Signal::KillAll,
        false => Signal::First(i32::try_from(request.number).map_err(internal)?),
    };
    alone(Ask::Signal { container: id(&request.container)?, signal })
}

fn exec(mut request: v1::Exec, mut descriptors: Vec<OwnedFd>) -> Read {
    let container = id(&request.container)?;
    if descriptors.len() == 4
        && let Some(file) = descriptors.pop()
    {
        request.args = wharf_wire::from_file::<v1::Words>(&file).map_err(internal)?.words;
    }
    if request.args.is_empty() {
        return Err(invalid("an exec request without a command"));
    }
    let command = Command {
        streams: streams(descriptors)?,
        size: request
            .size
            .map(TerminalSize::try_from)
            .transpose()
            .map_err(|error| invalid(error.to_string()))?,
        args: request.args,
        terminal: request.terminal,
    };
    Ok((Ask::Exec { container, exec: request.exec }, Given::Command(command)))
}

fn streams(descriptors: Vec<OwnedFd>) -> Result<Streams, Failure> {
    let streams = descriptors.into_iter().map(Stream::new).collect::<wharf_sys::Result<Vec<_>>>();
    match <[Stream; 3]>::try_from(streams.map_err(internal)?) {
        Ok([stdin, stdout, stderr]) => Ok(Streams { stdin, stdout, stderr }),
        Err(_other) => Err(invalid("an exec request without its three streams")),
    }
}

fn attach(request: &v1::Attach, descriptors: Vec<OwnedFd>) -> Read {
    if descriptors.len() != usize::from(request.stdout) + usize::from(request.stderr) {
        return Err(invalid("an attach request whose pipes are not those it names"));
    }
    for pipe in &descriptors {
        crate::spawn::set_nonblocking(pipe).map_err(internal)?;
    }
    let watches = if descriptors.is_empty() { Watches::Nothing } else { Watches::Output };
    let mut pipes = descriptors.into_iter();
    let stdout = request.stdout.then(|| pipes.next()).flatten();
    let stderr = request.stderr.then(|| pipes.next()).flatten();
    let visitor = Visitor { client: Client { stdout, stderr, pace: Pace::Keeps }, stdin: request.stdin };
    let ask = Ask::Attach { container: id(&request.container)?, client: request.attach, watches };
    Ok((ask, Given::Visitor(visitor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0000000000000000000000000000000000000000000000000000000000000001";

    fn null() -> OwnedFd {
        wharf_sys::fs::open("/dev/null", nix::fcntl::OFlag::O_RDWR).unwrap()
    }

    /// The failure with which a request is refused.
    fn refusal(body: Option<Body>, descriptors: usize) -> (Kind, String) {
        match read(body, (0..descriptors).map(|_| null()).collect()) {
            (Ask::Nonsense(failure), Given::Nothing) => (failure.kind, failure.message),
            (ask, _) => panic!("{ask:?} is no refusal"),
        }
    }

    fn exec(size: Option<v1::TerminalSize>) -> v1::Exec {
        v1::Exec { container: ID.into(), exec: 3, args: vec![b"true".to_vec()], terminal: true, size }
    }

    #[test]
    fn what_lacks_something_is_refused_with_its_name() {
        let size = v1::TerminalSize { width: 80, height: 70_000 };
        let attach = v1::Attach { container: ID.into(), stdout: true, ..Default::default() };
        for (body, descriptors, want) in [
            (None, 0, "older release"),
            (Some(Body::Create(v1::Create::default())), 0, "without a plan"),
            (Some(Body::Exec(v1::Exec { args: vec![], ..exec(None) })), 3, "without a command"),
            (Some(Body::Exec(exec(None))), 2, "without its three streams"),
            (Some(Body::Exec(exec(Some(size)))), 3, "80 columns and 70000 rows"),
            (Some(Body::Attach(attach)), 2, "not those it names"),
        ] {
            let (kind, message) = refusal(body, descriptors);
            assert!(kind == Kind::Invalid && message.contains(want), "{message}");
        }
    }

    #[test]
    fn a_name_that_cannot_be_is_not_in_the_pod() {
        for name in ["", "short", "../../etc/passwd"] {
            let container = name.to_owned();
            let (kind, _) = refusal(Some(Body::Start(v1::Start { container })), 0);
            assert_eq!(kind, Kind::NotFound, "{name}");
        }
    }

    #[test]
    fn arguments_may_be_in_a_file() {
        let words = v1::Words { words: vec![b"echo".to_vec(), vec![b'x'; 100_000]] };
        let beside = vec![null(), null(), null(), wharf_wire::to_file(&words).unwrap()];
        let request = v1::Exec { args: vec![], ..exec(None) };
        let (Ask::Exec { exec: 3, .. }, Given::Command(command)) = read(Some(Body::Exec(request)), beside)
        else {
            panic!("it is a command")
        };
        assert_eq!(command.args, words.words);
    }

    #[test]
    fn a_client_has_the_pipes_it_names() {
        let request =
            |stdout, stderr| v1::Attach { container: ID.into(), attach: 4, stdin: true, stdout, stderr };
        for (stdout, stderr, watches) in
            [(true, true, Watches::Output), (false, true, Watches::Output), (false, false, Watches::Nothing)]
        {
            let pipes = (0..usize::from(stdout) + usize::from(stderr)).map(|_| null()).collect();
            let (ask, given) = read(Some(Body::Attach(request(stdout, stderr))), pipes);
            let Given::Visitor(visitor) = given else { panic!("a visitor") };
            assert_eq!((visitor.client.stdout.is_some(), visitor.client.stderr.is_some()), (stdout, stderr));
            assert_eq!(ask, Ask::Attach { container: ID.parse().unwrap(), client: 4, watches });
        }
    }
}
