//! The machine's reaction to each request: a step of the container, exec or client that it is for, or a refusal.
//!
//! A request whose caller has stopped waiting is refused before anything else, because the caller may have asked for
//! something else by then. A request that only ends something is accepted in every phase.

use wharf_types::ContainerId;
use wharf_wire::v1::failure::Kind;

use super::container::{Missing, Phase};
use super::{
    Action, Client, Container, Daemon, Exec, Life, Machine, Request, Signal, client, container, exec,
};
use crate::clients::CLIENT_LIMIT;
use crate::failure::Failure;
use crate::link::RequestId;

/// The most commands of a container that have not ended. By default wharfd runs fewer at a time; but it waits no longer
/// for one that it has had killed, and a process may be in the kernel, or in a freezer, where nothing ends it.
const EXEC_LIMIT: usize = 1024;

impl Machine {
    /// Handles a request: it is accepted, or refused with the reason.
    pub(super) fn request(&mut self, id: RequestId, request: Request) -> Result<Vec<Action>, Failure> {
        match request {
            Request::State => Ok(vec![self.state(id)]),
            Request::Create { container, missing, target } => {
                self.create(id, container, missing, target.as_ref())
            }
            Request::Start { container } => self.start(id, &container),
            Request::Signal { container, signal } => self.signal(id, container, signal),
            Request::Exec { container, exec } => self.enter(id, container, exec),
            Request::KillExec { exec } => Ok(self.kill_exec(id, exec)),
            Request::Remove { container } => Ok(self.remove(id, &container)),
            Request::Attach { container, client, watches } => self.attach(id, container, client, watches),
            Request::ReopenLog { container } => self.reopen_log(id, container),
            Request::Lend { held } => Ok(vec![Action::Lend { request: id, held }]),
            Request::Shutdown => Ok(self.end(Some(id))),
            Request::Malformed(failure) => Err(failure),
        }
    }

    fn state(&mut self, request: RequestId) -> Action {
        self.daemon = Daemon::Knows;
        let containers = self.containers.iter().map(|(id, container)| (id.clone(), container.phase));
        Action::ReplyState { request, containers: containers.collect() }
    }

    fn find(&self, id: &ContainerId) -> Result<&Container, Failure> {
        self.containers
            .get(id)
            .ok_or_else(|| Failure::new(Kind::NotFound, format!("container {id} is not in this pod")))
    }

    fn find_running(&self, id: &ContainerId) -> Result<&Container, Failure> {
        let container = self.find(id)?;
        match container.phase {
            Phase::Running { .. } => Ok(container),
            _ => Err(Failure::precondition(format!("container {id} does not run"))),
        }
    }

    /// While all processes are being ended, a new one would keep the supervisor alive for good.
    fn check_life(&self) -> Result<(), Failure> {
        match self.life {
            Life::Serving | Life::Leaving => Ok(()),
            Life::Ending(_) | Life::Over => Err(Failure::precondition("the pod is being ended")),
        }
    }

    fn create(
        &mut self,
        request: RequestId,
        id: ContainerId,
        missing: Missing,
        target: Option<&ContainerId>,
    ) -> Result<Vec<Action>, Failure> {
        self.check_life()?;
        if self.containers.contains_key(&id) {
            return Err(Failure::precondition(format!("container {id} already exists")));
        }
        // While the target is being created, its first process is the only one in its namespace, and everything may be
        // visible to it.
        if let Some(target) = target
            && self.find_running(target).is_err()
        {
            return Err(Failure::precondition(format!("target container {target} does not run")));
        }
        let has_log = missing == Missing::Both;
        let phase = Phase::Creating { request, missing };
        self.containers.insert(id.clone(), Container { phase, since_ns: self.now_ns, has_log });
        Ok(vec![Action::Spawn(id)])
    }

    fn start(&mut self, request: RequestId, id: &ContainerId) -> Result<Vec<Action>, Failure> {
        self.find(id).and(self.check_life())?;
        Ok(self.container(id, container::Event::Start { request }))
    }

    /// Removes a container. One that does not exist counts as removed.
    fn remove(&mut self, request: RequestId, id: &ContainerId) -> Vec<Action> {
        match self.containers.contains_key(id) {
            true => self.container(id, container::Event::Remove { request }),
            false => vec![Action::ReplyDone { request }],
        }
    }

    /// Kills an exec. One that has ended counts as killed.
    fn kill_exec(&mut self, request: RequestId, number: u64) -> Vec<Action> {
        let mut actions = self.exec(number, exec::Event::Kill);
        actions.push(Action::ReplyDone { request });
        actions
    }

    fn signal(
        &mut self,
        request: RequestId,
        id: ContainerId,
        signal: Signal,
    ) -> Result<Vec<Action>, Failure> {
        let done = Action::ReplyDone { request };
        Ok(match (self.find(&id)?.phase.is_live(), signal) {
            // The process is gone by now, which is not a failure of the signal.
            (false, _) => vec![done],
            (true, Signal::KillAll) => vec![Action::Container(id, container::Action::Kill), done],
            (true, Signal::First(number)) => vec![Action::Signal { request, container: id, number }],
        })
    }

    fn enter(&mut self, request: RequestId, id: ContainerId, number: u64) -> Result<Vec<Action>, Failure> {
        self.find_running(&id)?;
        self.check_life()?;
        if self.execs.contains_key(&number) {
            return Err(Failure::precondition(format!("command {number} already exists")));
        }
        if self.execs.values().filter(|exec| exec.container == id).count() >= EXEC_LIMIT {
            return Err(Failure::new(
                Kind::Exhausted,
                format!(
                    "container {id} has {EXEC_LIMIT} commands that have not ended, some perhaps killed: thaw it if it \
                     is frozen, otherwise stop it"
                ),
            ));
        }
        let phase = exec::Phase::Starting { request };
        self.execs.insert(number, Exec { container: id.clone(), phase });
        Ok(vec![Action::Enter { exec: number, container: id }])
    }

    fn attach(
        &mut self,
        request: RequestId,
        id: ContainerId,
        number: u64,
        watches: client::Watches,
    ) -> Result<Vec<Action>, Failure> {
        if !self.find(&id).is_ok_and(|container| container.phase.has_streams()) {
            return Err(Failure::precondition(format!("container {id} does not run")));
        }
        if self.clients.contains_key(&number) {
            return Err(Failure::precondition(format!("client {number} is attached already")));
        }
        if self.clients.values().filter(|client| client.container == id).count() >= CLIENT_LIMIT {
            return Err(Failure::precondition(format!(
                "container {id} has {CLIENT_LIMIT} attached clients already"
            )));
        }
        let phase = client::Phase::Arriving { request, watches };
        self.clients.insert(number, Client { container: id.clone(), phase });
        Ok(vec![Action::Admit { client: number, container: id }])
    }

    fn reopen_log(&self, request: RequestId, id: ContainerId) -> Result<Vec<Action>, Failure> {
        match self.find_running(&id)?.has_log {
            true => Ok(vec![Action::ReopenLog { request, container: id }]),
            false => Err(Failure::precondition(format!("container {id} has no log"))),
        }
    }

    /// Ends everything, for a request or because the pod cannot go on.
    pub(super) fn end(&mut self, request: Option<RequestId>) -> Vec<Action> {
        let mut actions = self.kill_execs();
        let live = self.containers.iter().filter(|(_, container)| container.phase.is_live());
        actions.extend(live.map(|(id, _)| Action::Container(id.clone(), container::Action::Kill)));
        actions.push(Action::EndNamespaces);
        if let Life::Ending(Some(request)) = std::mem::replace(&mut self.life, Life::Ending(request)) {
            let failure = Failure::precondition("the end of the pod was already requested");
            actions.push(Action::ReplyFailure { request, failure });
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Event;
    use wharf_types::Exit;

    /// Somebody else may have had init send the signal: a pod with a process is served as before.
    #[test]
    fn a_pod_ends_with_the_machine_only_once_it_has_no_process() {
        let id = ContainerId::from_random([1; 32]);
        let mut machine = Machine::default();
        let phase = Phase::Running { started_at_ns: 1 };
        machine.containers.insert(id.clone(), Container { phase, since_ns: 0, has_log: false });
        assert!(machine.step(Event::MachineEnds).is_empty() && !machine.is_over());
        assert_eq!(machine.check_life(), Ok(()));
        machine.containers.clear();
        assert_eq!(machine.step(Event::Time { now_ns: 1 }), [Action::EndNamespaces]);
        assert!(machine.is_over());
    }

    /// Nobody has asked for that end, and who asks later is answered.
    #[test]
    fn a_pod_ends_with_its_sandbox_once_nothing_is_left_in_it() {
        let id = ContainerId::from_random([1; 32]);
        for asks in [false, true] {
            let mut machine = Machine::default();
            let phase = Phase::Running { started_at_ns: 1 };
            machine.containers.insert(id.clone(), Container { phase, since_ns: 0, has_log: false });
            let kill = Action::Container(id.clone(), container::Action::Kill);
            assert_eq!(machine.step(Event::SandboxEnded), [kill, Action::EndNamespaces]);
            assert!(machine.step(Event::SandboxEnded).is_empty() && !machine.is_over());
            let next = Request::Create {
                container: ContainerId::from_random([2; 32]),
                missing: Missing::Process,
                target: None,
            };
            let refused = machine.step(Event::Request(RequestId::of_test(1), next));
            assert!(matches!(refused[..], [Action::ReplyFailure { .. }]), "{refused:?}");
            if asks {
                machine.step(Event::Request(RequestId::of_test(2), Request::Shutdown));
            }
            machine.containers.clear();
            let last = machine.step(Event::Time { now_ns: 1 });
            assert!(machine.is_over());
            assert_eq!(last.contains(&Action::ReplyDone { request: RequestId::of_test(2) }), asks);
        }
    }

    /// Not even a killed command ends as long as the kernel holds it.
    #[test]
    fn commands_that_never_end_are_bounded() {
        let ids = [1, 2].map(|byte| ContainerId::from_random([byte; 32]));
        let mut machine = Machine::default();
        for id in ids.clone() {
            let phase = Phase::Running { started_at_ns: 1 };
            machine.containers.insert(id, Container { phase, since_ns: 0, has_log: false });
        }
        let mut enter = |container: &ContainerId, exec: u64| {
            let request = Request::Exec { container: container.clone(), exec };
            machine.step(Event::Request(RequestId::of_test(exec), request));
            let killed = machine.step(Event::Exec(exec, exec::Event::Kill));
            (!killed.is_empty()).then_some(())
        };
        let limit = EXEC_LIMIT as u64;
        assert!((0..limit).all(|exec| enter(&ids[0], exec).is_some()));
        assert_eq!(enter(&ids[0], limit), None);
        assert_eq!(enter(&ids[1], limit + 1), Some(()), "another container has a bound of its own");
        let request = Request::Exec { container: ids[0].clone(), exec: limit };
        let refused = machine.step(Event::Request(RequestId::of_test(limit), request.clone()));
        let [Action::ReplyFailure { failure, .. }] = &refused[..] else { panic!("{refused:?}") };
        assert_eq!(failure.kind, Kind::Exhausted);
        assert!(failure.message.contains("thaw it"), "{}", failure.message);
        machine.step(Event::Exec(0, exec::Event::Exited(Exit::Code(0))));
        let accepted = machine.step(Event::Request(RequestId::of_test(limit), request));
        assert_eq!(accepted, [Action::Enter { exec: limit, container: ids[0].clone() }]);
    }
}
