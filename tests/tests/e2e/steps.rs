//! A pod's life with a fault at each of its steps in turn: the daemon is killed right before a system call that changes
//! something, or the call fails. A call that was cut off can be repeated, and nothing is left.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Status;

use crate::client::Client;
use crate::place;
use crate::world::{World, run};

/// The calls that leave something behind or remove it, and the error with which each fails. A write also wakes threads,
/// so it does not fail.
const CHANGES: [(&str, Option<&str>); 18] = [
    ("mkdir", Some("ENOSPC")),
    ("mkdirat", Some("ENOSPC")),
    ("rename", Some("ENOSPC")),
    ("renameat2", Some("ENOSPC")),
    ("unlink", Some("EIO")),
    ("unlinkat", Some("EIO")),
    ("rmdir", Some("EIO")),
    ("mount", Some("ENOMEM")),
    ("umount2", Some("ENOMEM")),
    ("move_mount", Some("ENOSPC")),
    ("unshare", Some("ENOSPC")),
    ("setns", Some("EPERM")),
    ("clone3", Some("EAGAIN")),
    ("sendto", Some("ENOBUFS")),
    ("sendmsg", Some("ENOBUFS")),
    ("write", None),
    ("memfd_create", Some("EMFILE")),
    ("pidfd_send_signal", Some("EPERM")),
];

/// What happens at a step.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    Kill,
    Error(&'static str),
}

#[test]
fn what_a_kill_cut_off_at_any_step_can_be_repeated() {
    run(async |world| {
        let mut steps = Vec::new();
        for (change, _) in CHANGES {
            steps.push((change, faults(world, change, Fault::Kill).await));
        }
        assert!(steps.iter().map(|(_, count)| count).sum::<usize>() > 50, "too few were met: {steps:?}");
    });
}

#[test]
fn what_failed_at_any_step_can_be_repeated() {
    run(async |world| {
        let daemon = world.daemon.pid();
        let mut steps = Vec::new();
        for (change, error) in CHANGES {
            let Some(error) = error else { continue };
            steps.push((change, faults(world, change, Fault::Error(error)).await));
        }
        assert_eq!(world.daemon.pid(), daemon, "it never ended");
        assert!(steps.iter().map(|(_, count)| count).sum::<usize>() > 50, "too few were met: {steps:?}");
    });
}

/// Injects a fault into the first change of a kind, the second, and so on; returns how many there are.
async fn faults(world: &mut World, change: &str, fault: Fault) -> usize {
    let mut nth = 1;
    loop {
        let tracer = Tracer::attach(world, change, fault, nth);
        let met = Box::pin(Life { world, fault, tracer }.live(&format!("{change}-{nth}"))).await;
        world.is_clean().await;
        if !met {
            return nth - 1;
        }
        nth += 1;
    }
}

/// A pod's life, with faults until a call has failed.
struct Life<'a> {
    world: &'a mut World,
    fault: Fault,
    tracer: Tracer,
}

impl Life<'_> {
    /// Takes it from beginning to end; returns whether a fault occurred.
    async fn live(mut self, name: &str) -> bool {
        let config = self.world.client.pod(name);
        let main = self.world.client.container("main", "echo begun; sleep 1000");
        let pod = self.call(async |client| client.run(&config).await).await;
        let container = self.call(async |client| client.create(&pod, &main).await).await;
        self.call(async |client| client.start(&container).await).await;
        let output = self.call(async |client| client.exec(&container, "echo fine", 20).await).await;
        assert_eq!(output.stdout, b"fine\n");
        self.call(async |client| client.stop_container(&container, 0).await).await;
        self.call(async |client| client.remove_container(&container).await).await;
        self.call(async |client| client.stop(&pod).await).await;
        self.call(async |client| client.remove(&pod).await).await;
        self.tracer.end(self.fault);
        self.tracer.has_met()
    }

    /// Makes a call, and repeats it if there is no response: to the next daemon, if this one was killed.
    async fn call<T>(&mut self, call: impl AsyncFn(Client) -> Result<T, Status>) -> T {
        let first = match call(self.world.client.clone()).await {
            Ok(answer) => return answer,
            Err(first) => first,
        };
        self.tracer.end(self.fault);
        if matches!(self.fault, Fault::Kill) {
            self.world.daemon.was_killed(&first).await;
            self.world.start_again().await;
        }
        let second = call(self.world.client.clone()).await;
        second.unwrap_or_else(|second| panic!("first {first}\nthen {second}"))
    }
}

/// Injects a fault into a system call of the daemon; into several, if threads make the call at the same time, because
/// strace counts the calls of each thread separately.
pub(crate) struct Tracer {
    strace: Child,
    calls: PathBuf,
}

impl Tracer {
    fn attach(world: &World, change: &str, fault: Fault, nth: usize) -> Self {
        Self::attach_to(world, world.daemon.pid().cast_signed(), change, fault, nth)
    }

    /// Injects a fault into the nth call of a process, and of each process that it creates.
    pub(crate) fn attach_to(world: &World, process: i32, change: &str, fault: Fault, nth: usize) -> Self {
        let effect = match fault {
            Fault::Kill => "signal=SIGKILL".to_owned(),
            Fault::Error(error) => format!("error={error}"),
        };
        let inject = format!("--inject={change}:{effect}:when={nth}");
        Self::with_process(world, process, &[&format!("--trace={change}"), &inject])
    }

    /// Records calls and changes none; the record is the file `calls` in the test's directory.
    pub(crate) fn attach_all(world: &World, traced: &str) -> Self {
        Self::with(world, &[traced])
    }

    /// Makes a call of a process, and of the processes that it creates, fail each time until they execute another
    /// program.
    pub(crate) fn attach_failing(world: &World, process: i32, call: &str, error: &str) -> Self {
        let options = [&*format!("--trace={call}"), &*format!("--inject={call}:error={error}")];
        Self::with_process(world, process, &options)
    }

    /// Records or changes calls of the daemon with these options of strace. What the daemon executes is not traced.
    pub(crate) fn with(world: &World, options: &[&str]) -> Self {
        Self::with_process(world, world.daemon.pid().cast_signed(), options)
    }

    /// Counts the calls of a process, and of the processes that it creates until they execute another program.
    pub(crate) fn counting(world: &World, process: i32, traced: &str) -> Self {
        Self::writing_to(world.dir.join(format!("calls-{process}")), process, &[traced])
    }

    fn with_process(world: &World, process: i32, options: &[&str]) -> Self {
        Self::writing_to(world.dir.join("calls"), process, options)
    }

    fn writing_to(calls: PathBuf, process: i32, options: &[&str]) -> Self {
        let mut strace = place::command(Path::new("strace"))
            .args(["--follow-forks", "--detach-on=execve", "--output"])
            .arg(&calls)
            .args(options)
            .arg(format!("--attach={process}"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace is installed");
        let mut said = String::new();
        BufReader::new(strace.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("attached"), "{said}");
        Self { strace, calls }
    }

    /// Traces a process and the processes that it creates.
    pub(crate) fn attach_seeing(world: &World, process: i32, calls: &str) -> Self {
        Self::with_process(world, process, &[&format!("--trace={calls}")])
    }

    /// Stops recording.
    pub(crate) fn end_all(&mut self) {
        self.end(Fault::Error(""));
    }

    /// Stops the faults.
    pub(crate) fn end(&mut self, fault: Fault) {
        let signal = match fault {
            // It may wait forever for a thread of a process that was killed.
            Fault::Kill => Signal::SIGKILL,
            Fault::Error(_) => Signal::SIGTERM,
        };
        if self.strace.try_wait().unwrap().is_none() {
            kill(Pid::from_raw(self.strace.id().cast_signed()), signal).unwrap();
            self.strace.wait().unwrap();
        }
    }

    /// The number of calls seen. A call that is interrupted by one of another process takes two lines.
    pub(crate) fn count(&self) -> usize {
        let calls = std::fs::read_to_string(&self.calls).unwrap();
        let begun = |line: &&str| line.contains('(') && !line.contains("resumed>");
        calls.lines().filter(begun).count()
    }

    /// The calls that were traced: one line per call, which starts with the caller's process id.
    pub(crate) fn seen(&self) -> Vec<String> {
        std::fs::read_to_string(&self.calls).unwrap().lines().map(str::to_owned).collect()
    }

    /// Whether the record contains these words.
    pub(crate) fn has_seen(&self, words: &str) -> bool {
        std::fs::read_to_string(&self.calls).unwrap().contains(words)
    }

    pub(crate) fn has_met(&self) -> bool {
        let calls = std::fs::read_to_string(&self.calls).unwrap();
        calls.contains("(INJECTED)") || calls.contains("killed by SIGKILL")
    }
}
