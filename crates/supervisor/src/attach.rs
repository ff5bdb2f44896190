//! Clients come to a container's streams, and leave them.

use std::os::fd::{AsFd, OwnedFd};

use wharf_isolation::Input;
use wharf_types::ContainerId;
use wharf_wire::v1::{self, failure::Kind, message, reply};

use crate::audience::{CLIENT_LIMIT, Client, Pace};
use crate::container::Container;
use crate::lifecycle::Failure;
use crate::link::{RequestId, failure};
use crate::shim::Shim;
use crate::watch::{Out, Source};

/// Lets a client watch a container that runs or is to be started, and answers with what it can write to.
pub(crate) fn attach(
    shim: &mut Shim,
    request: RequestId,
    attach: &v1::Attach,
    descriptors: Vec<OwnedFd>,
) -> Result<(), Failure> {
    let client = client(attach, descriptors)?;
    let known = shim.containers.get_key_value(attach.container.as_str());
    let Some(id) = known.filter(|(_, container)| container.has_streams()).map(|(id, _)| id.clone()) else {
        return Err(failure(Kind::Precondition, format!("container {} does not run", attach.container)));
    };
    let Some(container) = shim.containers.get_mut(&id) else { return Ok(()) };
    if container.audience.is_full() {
        let full = format!("container {id} has {CLIENT_LIMIT} attached clients already");
        return Err(failure(Kind::Precondition, full));
    }
    if let Some(pipe) = client.witness() {
        let watched = shim.watch.add_closed(pipe, Source::Client(id, attach.attach));
        watched.map_err(|error| failure(Kind::Internal, error.to_string()))?;
        container.audience.add(attach.attach, client);
    }
    let input = input(container, attach)?;
    let input: Vec<_> = input.iter().map(AsFd::as_fd).collect();
    shim.link.reply(request, reply::Result::Done(v1::Done {}), &input);
    Ok(())
}

fn client(attach: &v1::Attach, descriptors: Vec<OwnedFd>) -> Result<Client, Failure> {
    if descriptors.len() != usize::from(attach.stdout) + usize::from(attach.stderr) {
        return Err(failure(Kind::Invalid, "an attach request whose pipes are not those it names"));
    }
    for pipe in &descriptors {
        let set = crate::spawn::set_nonblocking(pipe);
        set.map_err(|error| failure(Kind::Internal, error.to_string()))?;
    }
    let mut pipes = descriptors.into_iter();
    let stdout = attach.stdout.then(|| pipes.next()).flatten();
    let stderr = attach.stderr.then(|| pipes.next()).flatten();
    Ok(Client { stdout, stderr, pace: Pace::Keeps })
}

/// The terminal, for its size too, or the input's pipe. An input that ends with its client is given away.
fn input(container: &mut Container, attach: &v1::Attach) -> Result<Option<OwnedFd>, Failure> {
    let copy = |fd: &OwnedFd| {
        fd.try_clone().map(Some).map_err(|error| failure(Kind::Internal, format!("the input: {error}")))
    };
    let stdio = &container.plan.stdio;
    if stdio.terminal {
        return container.outputs.get(&Out::Stdout).map_or(Ok(None), |terminal| copy(&terminal.source));
    }
    match (&container.stdin, stdio.input) {
        _ if !attach.stdin => Ok(None),
        (_, Input::Once) => Ok(container.stdin.take()),
        (Some(stdin), _) => copy(stdin),
        (None, _) => Ok(None),
    }
}

/// A client closed its ends.
pub(crate) fn leave(shim: &mut Shim, id: &ContainerId, number: u64) {
    let Some(container) = shim.containers.get_mut(id) else { return };
    let Some(client) = container.audience.remove(number) else { return };
    if let Some(pipe) = client.witness() {
        shim.watch.remove(pipe, &Source::Client(id.clone(), number));
    }
}

/// Lets those go that did not keep up with the output, and says so.
pub(crate) fn drop_lost(shim: &mut Shim, id: &ContainerId) {
    let lost = shim.containers.get(id).map(|container| container.audience.lost());
    for number in lost.unwrap_or_default() {
        shim.link.tell(message::Body::Detached(v1::Detached { attach: number }));
        leave(shim, id, number);
    }
}

/// The container's output has ended, and so its clients' does.
pub(crate) fn end(shim: &mut Shim, id: &ContainerId) {
    drop_lost(shim, id);
    let all = shim.containers.get(id).map(|container| container.audience.all());
    all.unwrap_or_default().into_iter().for_each(|number| leave(shim, id, number));
}
