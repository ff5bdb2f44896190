//! Parses the daemon's requests: into the machine's form, and into what the driver needs to carry them out.
//!
//! A request is checked here as far as it can be without knowing the pod. One that makes no sense still reaches the
//! machine, as a malformed one, so that it is answered like any other.

use std::os::fd::OwnedFd;

use wharf_isolation::{Outline, PidNamespace, Stream, Streams};
use wharf_types::{ContainerId, TerminalSize};
use wharf_wire::v1::{self, failure::Kind, request::Body};

use crate::clients::{Client, Pace};
use crate::failure::Failure;
use crate::machine::client::Watches;
use crate::machine::container::Missing;
use crate::machine::{Request, Signal};

/// What belongs to a request and is of no interest to the machine.
#[derive(Debug, Default)]
pub(crate) enum Payload {
    #[default]
    Empty,
    /// What the pod has, sent with the greeting of the daemon that makes it.
    Held(Vec<(v1::Held, OwnedFd)>),
    Container(NewContainer),
    Exec(NewExec),
    Client(NewClient),
}

/// Each action takes the payload of its request.
impl Payload {
    pub(crate) fn take_held(&mut self) -> Option<Vec<(v1::Held, OwnedFd)>> {
        match std::mem::take(self) {
            Self::Held(held) => Some(held),
            _ => None,
        }
    }

    pub(crate) fn take_container(&mut self) -> Result<NewContainer, Failure> {
        match std::mem::take(self) {
            Self::Container(new) => Ok(new),
            _ => Err(Failure::fault("a container without a plan")),
        }
    }

    pub(crate) fn take_exec(&mut self) -> Result<NewExec, Failure> {
        match std::mem::take(self) {
            Self::Exec(new) => Ok(new),
            _ => Err(Failure::fault("a command without its streams")),
        }
    }

    pub(crate) fn take_client(&mut self) -> Result<NewClient, Failure> {
        match std::mem::take(self) {
            Self::Client(new) => Ok(new),
            _ => Err(Failure::fault("a client without its pipes")),
        }
    }
}

/// A container to make: its whole plan, still encoded, and the directory of its log if the daemon has made that.
#[derive(Debug)]
pub(crate) struct NewContainer {
    pub(crate) plan: Box<Outline>,
    pub(crate) whole: Vec<u8>,
    pub(crate) log_directory: Option<OwnedFd>,
}

/// A command to execute in a container, with its streams.
#[derive(Debug)]
pub(crate) struct NewExec {
    pub(crate) args: Vec<Vec<u8>>,
    pub(crate) terminal: bool,
    pub(crate) size: Option<TerminalSize>,
    pub(crate) streams: Streams,
}

/// A client to attach, and whether it writes to the container.
#[derive(Debug)]
pub(crate) struct NewClient {
    pub(crate) client: Client,
    pub(crate) stdin: bool,
}

type Parsed = Result<(Request, Payload), Failure>;

/// Parses a request.
pub(crate) fn parse(body: Option<Body>, descriptors: Vec<OwnedFd>) -> (Request, Payload) {
    let parsed = match body {
        Some(Body::Hello(body)) => hello(&body, descriptors),
        Some(Body::Create(_)) => create(descriptors),
        Some(Body::Start(body)) => by_id(&body.container, |container| Request::Start { container }),
        Some(Body::Signal(body)) => signal(&body),
        Some(Body::Exec(body)) => exec(body, descriptors),
        Some(Body::KillExec(body)) => alone(Request::KillExec { exec: body.exec }),
        Some(Body::Remove(body)) => by_id(&body.container, |container| Request::Remove { container }),
        Some(Body::Attach(body)) => attach(&body, descriptors),
        Some(Body::ReopenLog(body)) => by_id(&body.container, |container| Request::ReopenLog { container }),
        Some(Body::Lend(body)) => alone(Request::Lend { held: body.held() }),
        Some(Body::Shutdown(_)) => alone(Request::Shutdown),
        None => Err(unknown()),
    };
    parsed.unwrap_or_else(|failure| (Request::Malformed(failure), Payload::Empty))
}

fn unknown() -> Failure {
    Failure::precondition("the pod's supervisor is of an older release and does not know the request")
}

fn alone(request: Request) -> Parsed {
    Ok((request, Payload::Empty))
}

/// A request that names a container and nothing else.
fn by_id(text: &str, request: impl FnOnce(ContainerId) -> Request) -> Parsed {
    alone(request(id(text)?))
}

/// A name that is not a valid id is that of no container in the pod.
fn id(text: &str) -> Result<ContainerId, Failure> {
    text.parse()
        .map_err(|_malformed| Failure::new(Kind::NotFound, format!("container {text} is not in this pod")))
}

fn hello(hello: &v1::Hello, descriptors: Vec<OwnedFd>) -> Parsed {
    let kinds: Vec<v1::Held> = hello.hold().collect();
    if kinds.len() != descriptors.len() {
        return Err(Failure::fault("a greeting whose descriptors are not those it names"));
    }
    let payload = match descriptors.is_empty() {
        true => Payload::Empty,
        false => Payload::Held(kinds.into_iter().zip(descriptors).collect()),
    };
    Ok((Request::State, payload))
}

fn create(descriptors: Vec<OwnedFd>) -> Parsed {
    let mut descriptors = descriptors.into_iter();
    let (plan, log_directory) = (descriptors.next(), descriptors.next());
    let plan = plan.ok_or_else(|| Failure::fault("a create request without a plan"))?;
    let whole = wharf_wire::read_file(&plan)?;
    let plan = Outline::decode(&whole)?;
    let target = match &plan.namespaces.pid {
        PidNamespace::Target(target) => Some(target.clone()),
        PidNamespace::Container | PidNamespace::Pod | PidNamespace::Host => None,
    };
    let missing = if plan.stdio.log.is_some() { Missing::Both } else { Missing::Process };
    let request = Request::Create { container: plan.container.clone(), missing, target };
    Ok((request, Payload::Container(NewContainer { plan: Box::new(plan), whole, log_directory })))
}

fn signal(request: &v1::Signal) -> Parsed {
    let signal =
        match request.all {
            true => Signal::KillAll,
            false => Signal::First(i32::try_from(request.number).map_err(|_range| {
                Failure::fault(format!("{} is not the number of a signal", request.number))
            })?),
        };
    alone(Request::Signal { container: id(&request.container)?, signal })
}

fn exec(mut request: v1::Exec, mut descriptors: Vec<OwnedFd>) -> Parsed {
    let container = id(&request.container)?;
    if descriptors.len() == 4
        && let Some(file) = descriptors.pop()
    {
        request.args = wharf_wire::from_file::<v1::Words>(&file)?.words;
    }
    if request.args.is_empty() {
        return Err(Failure::fault("an exec request without a command"));
    }
    let command = NewExec {
        streams: streams(descriptors)?,
        size: request
            .size
            .map(TerminalSize::try_from)
            .transpose()
            .map_err(|error| Failure::fault(error.to_string()))?,
        args: request.args,
        terminal: request.terminal,
    };
    Ok((Request::Exec { container, exec: request.exec }, Payload::Exec(command)))
}

fn streams(descriptors: Vec<OwnedFd>) -> Result<Streams, Failure> {
    let streams = descriptors.into_iter().map(Stream::new).collect::<wharf_sys::Result<Vec<_>>>();
    match <[Stream; 3]>::try_from(streams?) {
        Ok([stdin, stdout, stderr]) => Ok(Streams { stdin, stdout, stderr }),
        Err(_other) => Err(Failure::fault("an exec request without its three streams")),
    }
}

fn attach(request: &v1::Attach, descriptors: Vec<OwnedFd>) -> Parsed {
    if descriptors.len() != usize::from(request.stdout) + usize::from(request.stderr) {
        return Err(Failure::fault("an attach request whose pipes are not those it names"));
    }
    for pipe in &descriptors {
        crate::spawn::set_nonblocking(pipe)?;
    }
    let watches = if descriptors.is_empty() { Watches::Nothing } else { Watches::Output };
    let mut pipes = descriptors.into_iter();
    let stdout = request.stdout.then(|| pipes.next()).flatten();
    let stderr = request.stderr.then(|| pipes.next()).flatten();
    let new = NewClient { client: Client { stdout, stderr, pace: Pace::KeepsUp }, stdin: request.stdin };
    let attach = Request::Attach { container: id(&request.container)?, client: request.attach, watches };
    Ok((attach, Payload::Client(new)))
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
        match parse(body, (0..descriptors).map(|_| null()).collect()) {
            (Request::Malformed(failure), Payload::Empty) => (failure.kind, failure.message),
            (request, _) => panic!("{request:?} is not a refusal"),
        }
    }

    fn exec(size: Option<v1::TerminalSize>) -> v1::Exec {
        v1::Exec { container: ID.into(), exec: 3, args: vec![b"true".to_vec()], terminal: true, size }
    }

    #[test]
    fn an_incomplete_request_is_a_bug_and_refused_by_what_it_lacks() {
        let size = v1::TerminalSize { width: 80, height: 70_000 };
        let attach = v1::Attach { container: ID.into(), stdout: true, ..Default::default() };
        let (kind, message) = refusal(None, 0);
        assert!(kind == Kind::Precondition && message.contains("older release"), "{message}");
        for (body, descriptors, want) in [
            (Some(Body::Create(v1::Create::default())), 0, "without a plan"),
            (Some(Body::Exec(v1::Exec { args: vec![], ..exec(None) })), 3, "without a command"),
            (Some(Body::Exec(exec(None))), 2, "without its three streams"),
            (Some(Body::Exec(exec(Some(size)))), 3, "80 columns and 70000 rows"),
            (Some(Body::Attach(attach)), 2, "not those it names"),
        ] {
            let (kind, message) = refusal(body, descriptors);
            assert!(kind == Kind::Internal && message.contains(want), "{kind:?}: {message}");
        }
    }

    #[test]
    fn an_invalid_id_is_not_in_the_pod() {
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
        let (Request::Exec { exec: 3, .. }, Payload::Exec(command)) =
            parse(Some(Body::Exec(request)), beside)
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
            let (attach, payload) = parse(Some(Body::Attach(request(stdout, stderr))), pipes);
            let Payload::Client(NewClient { client, .. }) = payload else {
                panic!("{payload:?} is not a client")
            };
            assert_eq!((client.stdout.is_some(), client.stderr.is_some()), (stdout, stderr));
            assert_eq!(attach, Request::Attach { container: ID.parse().unwrap(), client: 4, watches });
        }
    }
}
