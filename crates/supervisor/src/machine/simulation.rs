//! Histories of a whole pod: requests, processes, logs, time, a disk that fills up, and clients and daemons that come
//! and go, in any order. After each action the [`world`] checks every promise. At the end everything comes to rest and
//! is removed or ended, and nothing may be left.
//!
//! A history is determined by its seed. One that fails is printed with all its events and can be played alone:
//! `WHARF_HISTORY=seed`.

mod random;
mod world;

use std::collections::{BTreeSet, VecDeque};

use wharf_types::ContainerId;
use wharf_types::signal::SIGTERM;

use super::container::Missing;
use super::{Event, Machine, Request, Signal, client, container, exec};
use crate::link::RequestId;
use random::Random;
use world::{At, Claim, Disk, Dying, Kept, Order, Pod, World, exit, must, no};

/// How many histories are played.
const HISTORIES: u64 = 100_000;
/// How many events a history has before it comes to rest.
const LENGTH: u64 = 40;
/// How many rounds of progress may pass before everything must be at rest.
const ROUNDS: usize = 12;
const SECOND_NS: u64 = 1_000_000_000;

/// The containers of a history: few, so that the same one is used again and again.
fn ids() -> [ContainerId; 3] {
    [1, 2, 3].map(|number| ContainerId::from_random([number; 32]))
}

/// One of them has no log.
fn has_log(id: &ContainerId) -> bool {
    *id != ids()[2]
}

struct History {
    machine: Machine,
    world: World,
    ids: [ContainerId; 3],
    requests: u64,
    /// The events, if they are to be printed.
    events: Option<Vec<Event>>,
}

impl History {
    fn new(seed: u64, events: Option<Vec<Event>>) -> Self {
        let world = World::new(Random::new(seed));
        Self { machine: Machine::default(), world, ids: ids(), requests: 0, events }
    }

    /// Wakes the supervisor's loop: the time comes first.
    fn wake(&mut self, event: Option<Event>) -> Kept {
        let time = Event::Time { now_ns: self.world.now_ns };
        let mut events: VecDeque<Event> = [time].into_iter().chain(event).collect();
        while let Some(event) = events.pop_front() {
            if let Some(happened) = &mut self.events {
                happened.push(event.clone());
            }
            for action in self.machine.step(event) {
                events.extend(self.world.act(action)?);
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Kept {
        self.wake(Some(event))
    }

    fn handle_container(&mut self, id: &ContainerId, event: container::Event) -> Kept {
        self.handle(Event::Container(id.clone(), event))
    }

    /// The connected daemon sends a request, with or without a deadline; one that waited in the socket may be too late.
    fn send(&mut self, request: Request) -> Kept {
        let now_ns = self.world.now_ns;
        let deadline_ns = match self.world.random.below(8) {
            0..3 => 0,
            3 => now_ns,
            4 => now_ns + SECOND_NS,
            _ => now_ns + 30 * SECOND_NS,
        };
        self.send_until(deadline_ns, request)
    }

    fn send_until(&mut self, deadline_ns: u64, request: Request) -> Kept {
        let Some(open) = &mut self.world.daemon else { return Ok(()) };
        self.requests += 1;
        open.insert(self.requests);
        let id = RequestId::of_test(self.requests).until(deadline_ns);
        if let Request::Remove { container } = &request
            && !id.is_late(self.world.now_ns)
            && let Some(process) = self.world.processes.get_mut(container)
        {
            process.claim = Claim::Unwanted;
        }
        self.handle(Event::Request(id, request))
    }

    fn any_request(&mut self) -> Request {
        let random = &mut self.world.random;
        let container = random.pick(self.ids.iter()).unwrap_or_else(|| self.ids[0].clone());
        let exec = random.below(3);
        match random.below(16) {
            0..3 => {
                let target = random.one_in(4).then(|| self.ids[0].clone());
                let missing = if has_log(&container) { Missing::Both } else { Missing::Process };
                Request::Create { container, missing, target }
            }
            3..6 => Request::Start { container },
            6 => Request::Signal { container, signal: Signal::First(SIGTERM.into()) },
            7 => Request::Signal { container, signal: Signal::KillAll },
            8..10 => Request::Exec { container, exec },
            10 => Request::KillExec { exec },
            11 => Request::Remove { container },
            12 | 13 => self.attach(container),
            14 => Request::ReopenLog { container },
            _ => self.any_request_of_the_pod(),
        }
    }

    fn attach(&mut self, container: ContainerId) -> Request {
        let random = &mut self.world.random;
        let watches = if random.one_in(4) { client::Watches::Nothing } else { client::Watches::Output };
        Request::Attach { container, client: random.below(3), watches }
    }

    fn any_request_of_the_pod(&mut self) -> Request {
        let random = &mut self.world.random;
        match random.below(12) {
            0 => Request::Shutdown,
            1..4 => Request::Malformed(no()),
            4..6 => Request::Lend { held: wharf_wire::v1::Held::Network },
            _ => Request::State,
        }
    }

    /// Plays one event.
    fn happen(&mut self) -> Kept {
        match self.world.random.below(15) {
            0..5 => {
                let request = self.any_request();
                self.send(request)
            }
            5..8 => {
                let id = self.world.random.pick(self.ids.iter());
                id.map_or(Ok(()), |id| self.a_process_goes_on(&id))
            }
            8 => {
                let number = self.world.random.below(3);
                self.a_command_goes_on(number)
            }
            9 => self.the_log_writer_replies(),
            10 => {
                let passes = [SECOND_NS / 3, SECOND_NS, 31 * SECOND_NS];
                self.world.now_ns += self.world.random.pick(passes.iter()).unwrap_or(SECOND_NS);
                self.wake(None)
            }
            11 => self.a_daemon_comes_or_goes(),
            12 => {
                self.world.disk = if self.world.random.one_in(2) { Disk::Full } else { Disk::Takes };
                Ok(())
            }
            13 if self.world.random.one_in(16) => self.handle(Event::MachineEnds),
            _ => self.a_client_goes(),
        }
    }

    /// A first process reports, executes its program or exits.
    fn a_process_goes_on(&mut self, id: &ContainerId) -> Kept {
        let World { processes, random, .. } = &mut self.world;
        let Some(process) = processes.get_mut(id) else { return Ok(()) };
        let chance = random.below(8);
        match process.at {
            At::SettingUp | At::Waits | At::Started | At::Runs if process.dying == Dying::Soon => {
                self.end(id)
            }
            At::SettingUp | At::Started if chance == 0 => {
                process.dying = Dying::Soon;
                self.handle_container(id, container::Event::Failed(no()))
            }
            // It exits without a report: killed, or so short a program that its line was still open.
            At::SettingUp | At::Started | At::Waits if chance == 1 => self.end(id),
            At::SettingUp => {
                process.at = At::Waits;
                self.handle_container(id, container::Event::Ready)
            }
            At::Started => {
                process.at = At::Runs;
                self.handle_container(id, container::Event::Executed { now_ns: 5 })
            }
            At::Runs if chance < 4 => self.end(id),
            At::Waits | At::Runs | At::Zombie | At::Reaped => Ok(()),
        }
    }

    fn end(&mut self, id: &ContainerId) -> Kept {
        let World { processes, random, .. } = &mut self.world;
        let Some(process) = processes.get_mut(id) else { return Ok(()) };
        process.at = At::Zombie;
        let exit = exit(random);
        self.handle_container(id, container::Event::Exited { exit, now_ns: 6 })
    }

    fn a_command_goes_on(&mut self, number: u64) -> Kept {
        let World { commands, random, .. } = &mut self.world;
        let Some(command) = commands.get_mut(&number) else { return Ok(()) };
        let event = match (command.at, command.dying, random.below(4)) {
            (At::Started, Dying::No, 0) => {
                command.dying = Dying::Soon;
                exec::Event::Failed(no())
            }
            (At::Started, Dying::No, 1 | 2) => {
                command.at = At::Runs;
                exec::Event::Executed
            }
            _ => {
                command.at = At::Reaped;
                exec::Event::Exited(exit(random))
            }
        };
        self.handle(Event::Exec(number, event))
    }

    fn the_log_writer_replies(&mut self) -> Kept {
        let Some(order) = self.world.logs.pop_front() else { return Ok(()) };
        let fails = self.world.random.one_in(8);
        match order {
            Order::Open(id) if fails => self.handle_container(&id, container::Event::LogFailed(no())),
            Order::Open(id) => self.handle_container(&id, container::Event::LogOpened),
            Order::Flush(id) => self.handle_container(&id, container::Event::Flushed),
            Order::Reopen(request) => {
                let outcome = if fails { Err(no()) } else { Ok(()) };
                self.handle(Event::Settled { request, outcome })
            }
        }
    }

    /// One disconnects, or one connects, in place of another or not.
    fn a_daemon_comes_or_goes(&mut self) -> Kept {
        let is_there = self.world.daemon.is_some();
        self.world.disconnect();
        if is_there && self.world.random.one_in(2) {
            return self.handle(Event::Disconnected);
        }
        self.world.daemon = Some(BTreeSet::new());
        self.handle(Event::Connected)
    }

    fn a_client_goes(&mut self) -> Kept {
        let World { clients, random, .. } = &mut self.world;
        let Some(client) = random.pick(clients.iter()) else { return Ok(()) };
        let is_lost = random.one_in(2);
        if is_lost {
            self.world.lose(client);
        }
        let event = if is_lost { client::Event::FellBehind } else { client::Event::Left };
        self.handle(Event::Client(client, event))
    }

    /// Everything that can progress does.
    fn go_on(&mut self) -> Kept {
        for id in self.ids.clone() {
            let waits = self.world.processes.get(&id).is_some_and(|process| {
                process.dying == Dying::Soon || matches!(process.at, At::SettingUp | At::Started)
            });
            if waits {
                self.a_process_goes_on(&id)?;
            }
        }
        for number in 0..3 {
            self.a_command_goes_on(number)?;
        }
        while !self.world.logs.is_empty() {
            self.the_log_writer_replies()?;
        }
        self.world.now_ns += SECOND_NS;
        self.wake(None)
    }

    /// Everything comes to rest, and then to its end.
    fn conclude(&mut self) -> Kept {
        self.world.disk = if self.world.random.one_in(4) { Disk::Full } else { Disk::Takes };
        if self.world.daemon.is_none() {
            self.world.daemon = Some(BTreeSet::new());
            self.handle(Event::Connected)?;
        }
        self.rest()?;
        let open = self.world.daemon.clone().unwrap_or_default();
        must!(open.is_empty(), "requests {open:?} are never answered");
        if !self.machine.is_over() {
            self.request_the_end()?;
        }
        self.rest()?;
        let open = self.world.daemon.clone().unwrap_or_default();
        must!(open.is_empty(), "requests {open:?} for the end are never answered");
        let ends = self.world.pod == Pod::Ends;
        must!(self.machine.is_over() == ends, "the supervisor ends without its pod, or outlives it");
        self.check_nothing_is_left(ends.then_some(self.world.disk))
    }

    /// Requests the end of the pod, or of each of its containers.
    fn request_the_end(&mut self) -> Kept {
        if self.world.random.one_in(2) {
            return self.send_until(0, Request::Shutdown);
        }
        self.ids
            .clone()
            .into_iter()
            .try_for_each(|container| self.send_until(0, Request::Remove { container }))
    }

    fn rest(&mut self) -> Kept {
        (0..ROUNDS).try_for_each(|_| if self.machine.is_over() { Ok(()) } else { self.go_on() })
    }

    /// After all containers have been removed, nothing is left but exit records, which the daemon removes. After the
    /// pod's end there are exit records, or zombies in place of those that the disk refused.
    fn check_nothing_is_left(&self, ended_with: Option<Disk>) -> Kept {
        let World { processes, commands, clients, records, .. } = &self.world;
        must!(commands.is_empty() && self.machine.execs.is_empty(), "commands are left: {commands:?}");
        must!(clients.is_empty() && self.machine.clients.is_empty(), "clients are left: {clients:?}");
        let Some(disk) = ended_with else {
            must!(processes.is_empty(), "{processes:?} are left");
            must!(self.machine.containers.is_empty(), "{:?} are left", self.machine.containers);
            return Ok(());
        };
        for (id, process) in processes {
            let is_told = records.contains(id) || disk == Disk::Full;
            must!(process.at == At::Reaped || process.at == At::Zombie, "{id} lives on: {process:?}");
            must!(is_told, "the exit of {id} is nowhere");
        }
        Ok(())
    }

    fn play(&mut self) -> Kept {
        // Hardly any daemon disconnects before it has asked for the state.
        if !self.world.random.one_in(16) {
            self.send(Request::State)?;
        }
        for _ in 0..LENGTH {
            if self.machine.is_over() {
                return Ok(());
            }
            self.happen()?;
        }
        if self.machine.is_over() { Ok(()) } else { self.conclude() }
    }
}

/// Plays a history, and plays it again with its events printed if it breaks a promise.
fn check(seed: u64) {
    if History::new(seed, None).play().is_ok() {
        return;
    }
    let mut history = History::new(seed, Some(Vec::new()));
    if let Err(broken) = history.play() {
        let events: Vec<String> =
            history.events.unwrap_or_default().iter().map(|event| format!("{event:?}")).collect();
        panic!("history {seed}: {broken}\n{}", events.join("\n"));
    }
}

#[test]
fn every_history_keeps_the_promises() {
    match std::env::var("WHARF_HISTORY").map(|seed| seed.parse()) {
        Ok(seed) => check(seed.expect("a number")),
        Err(_all) => std::thread::scope(|scope| {
            for start in 0..2 {
                scope.spawn(move || (start..HISTORIES).step_by(2).for_each(check));
            }
        }),
    }
}
