//! Why a container does not run, or a pod is not ready, and what to do next: from what is known of it alone.

use std::path::Path;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use wharf_cri_api::v1::{ContainerState, ContainerStatus, PodSandboxState};
use wharf_types::signal::{SHELL_BASE, SIGKILL, SIGRTMAX};

use super::Stage;
use super::kernel::{Kernel, OomKill};
use crate::error::of_program;
use crate::list::state_word;
use crate::{time, units};

/// That a container was asked to stop, as a verbose status has it.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stop {
    pub(super) asked_at_ns: i64,
    pub(super) grace_ms: u64,
}

/// What is known of calls to stop a container.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Asked {
    Never,
    Once(Stop),
    /// An earlier wharfd may have been asked.
    Unknown,
}

/// Who made a pod, and makes it anew.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Maker {
    /// `wharf run`.
    Person,
    /// The kubelet, or another client.
    Client,
}

/// What is known of a container.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    /// POD/NAME.
    pub(super) name: &'a str,
    pub(super) maker: Maker,
    pub(super) status: &'a ContainerStatus,
    pub(super) asked: Asked,
    /// The last stage of its making or start.
    pub(super) last_stage: Option<&'a Stage>,
    pub(super) kernel: &'a Kernel,
}

/// What has become of a pod or a container.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Verdict {
    pub(super) name: String,
    pub(super) state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exit_code: Option<i32>,
    /// The CRI's word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) reason: String,
    /// In one line.
    pub(super) what: String,
    pub(super) why: Vec<String>,
    /// What to do.
    pub(super) next: Vec<String>,
    /// The last lines of its log, or of its supervisor's.
    pub(super) log: Vec<String>,
}

impl Verdict {
    /// For people.
    pub(super) fn text(&self) -> String {
        // A line break in a name or a message would begin a line that looks like another verdict.
        let line = |indent: &str, line: &str| format!("{indent}{}\n", line.replace('\n', "\\n"));
        let mut text = line("", &format!("{} {}", self.name, self.what));
        text.extend(self.why.iter().chain(&self.next).map(|words| line("  ", words)));
        if !self.log.is_empty() {
            text.push_str("  the last lines of its log:\n");
            text.extend(self.log.iter().map(|words| line("    ", words)));
        }
        text
    }

    /// The log of a container cannot be read now.
    pub(super) fn without_log(self, directory: &Path) -> Self {
        self.because(format!("its log's disk does not respond ({})", directory.display()))
            .next("check that disk (wharf doctor), and ask again for the last lines of its log")
    }

    fn because(mut self, why: impl Into<String>) -> Self {
        self.why.push(why.into());
        self
    }

    fn next(mut self, next: impl Into<String>) -> Self {
        self.next.push(next.into());
        self
    }
}

/// The verdict on a container.
pub(super) fn of_container(facts: &Facts<'_>) -> Verdict {
    let status = facts.status;
    let verdict = |what: String| Verdict {
        name: facts.name.to_owned(),
        state: state_word(status.state()),
        what,
        ..Verdict::default()
    };
    match status.state() {
        ContainerState::ContainerRunning => verdict(format!("runs since {}", second(status.started_at))),
        ContainerState::ContainerCreated => {
            let waits = verdict("was created, and its program was not started".to_owned());
            match facts.maker {
                Maker::Person => waits.next(format!("start it: wharf start {}", facts.name)),
                Maker::Client => waits.next("whoever created it starts it: see the kubelet's log"),
            }
        }
        ContainerState::ContainerUnknown => verdict("is in a state that is not known".to_owned()),
        ContainerState::ContainerExited => {
            let ended = Verdict {
                exit_code: Some(status.exit_code),
                reason: status.reason.clone(),
                ..verdict(String::new())
            };
            of_end(facts, ended)
        }
    }
}

fn of_end(facts: &Facts<'_>, mut ended: Verdict) -> Verdict {
    let ContainerStatus { reason, exit_code, started_at, finished_at, message, .. } = facts.status;
    let after = match started_at {
        0 => String::new(),
        start if finished_at - start < 1_000_000_000 => ", within a second of its start".to_owned(),
        start => format!(", {} after its start", units::age(*start, *finished_at)),
    };
    let when = format!("at {}{after}", second(*finished_at));
    let code = u8::try_from(*exit_code).unwrap_or(u8::MAX);
    ended.what = match (reason.as_str(), signal_of(code)) {
        ("StartError", _) => format!("could not be started at {}", second(*finished_at)),
        ("OOMKilled", _) => format!("was killed for lack of memory {when}, with exit code {code}"),
        ("Unknown", _) => {
            format!("ended unseen {when}, or before, with exit code {code}, which stands for that")
        }
        (_, Some(signal)) => format!("ended {when}, with exit code {code}, which stands for {signal}"),
        _ => format!("ended {when}, with exit code {code}"),
    };
    if !message.is_empty() {
        ended = ended.because(message);
    }
    match (reason.as_str(), code) {
        ("StartError", _) => of_start(facts, ended),
        ("OOMKilled", _) => of_memory(facts, ended),
        ("Unknown", _) => of_lost(facts.maker, ended),
        _ => {
            let ended = match facts.kernel.oom_kill_in(&facts.status.id) {
                Some(kill) => ended.because(format!("before that, {}", told_kill(kill, facts.status))),
                None => ended,
            };
            let ended = of_asked(facts, ended, code);
            of_code(facts, ended, code)
        }
    }
}

/// A program that could not be executed: what its message says is how the kernel's error is put for people.
fn of_start(facts: &Facts<'_>, ended: Verdict) -> Verdict {
    let message = &facts.status.message;
    let ended = match facts.last_stage {
        Some(Stage { stage, took_us, .. }) => {
            ended.because(format!("the stage that failed: {stage} ({})", super::milliseconds(*took_us)))
        }
        None => ended,
    };
    let unknown = "if this says nothing to you, see wharfd's log: journalctl -u wharfd";
    ended.next(of_program(message).unwrap_or(unknown))
}

fn of_memory(facts: &Facts<'_>, ended: Verdict) -> Verdict {
    let kill = facts.kernel.oom_kill_in(&facts.status.id);
    let ended = match kill {
        Some(kill) => ended.because(told_kill(kill, facts.status)),
        None => ended.because(format!(
            "its memory limit ({}), or one above it, was reached; the kernel's log does not say which, or no longer does",
            limit(facts.status)
        )),
    };
    match kill {
        Some(OomKill { limited: None, .. }) => ended.next(
            "see what takes the machine's memory: wharf stats; give containers memory limits, and fewer to this machine",
        ),
        _ => ended.next(
            "raise the limit (--memory of wharf run, resources.limits.memory of the pod), or find out what needs so much",
        ),
    }
}

/// Which limit was reached, and who was killed.
fn told_kill(
    OomKill { victim, pid, limited, anonymous_bytes, .. }: &OomKill,
    status: &ContainerStatus,
) -> String {
    let had = anonymous_bytes.map(|bytes| format!(", which had {}", units::size(bytes))).unwrap_or_default();
    let killed = format!("so the kernel killed {victim} (pid {pid}){had}");
    match limited {
        None => format!("the machine's memory ran out, {killed}"),
        Some(cgroup) if cgroup.contains(&status.id) => {
            format!("its memory limit ({}) was reached, {killed}", limit(status))
        }
        Some(cgroup) => {
            format!(
                "the memory limit of a cgroup above it, such as the pod's ({cgroup}), was reached, {killed}"
            )
        }
    }
}

fn limit(status: &ContainerStatus) -> String {
    let linux = status.resources.as_ref().and_then(|resources| resources.linux.as_ref());
    match linux.and_then(|linux| u64::try_from(linux.memory_limit_in_bytes).ok()) {
        None | Some(0) => "none of its own".to_owned(),
        Some(bytes) => units::size(bytes),
    }
}

fn of_lost(maker: Maker, ended: Verdict) -> Verdict {
    let ended = ended.next(
        "see why its pod's supervisor (wharf-shim) ended or was silent: whether the kernel killed it for lack of memory \
         (dmesg), what wharfd says (journalctl -u wharfd), and whether others are silent (wharf doctor)",
    );
    of_maker(maker, ended)
}

/// Who makes a pod anew.
fn of_maker(maker: Maker, verdict: Verdict) -> Verdict {
    match maker {
        Maker::Person => {
            let name = verdict.name.clone();
            verdict.next(format!("start it again: wharf start {name}"))
        }
        Maker::Client => verdict.next(
            "the kubelet makes it anew if it is to run; what it has done and why: kubectl describe pod",
        ),
    }
}

/// Who asked for the end, as far as wharfd was told.
fn of_asked(facts: &Facts<'_>, ended: Verdict, code: u8) -> Verdict {
    match facts.asked {
        Asked::Once(Stop { asked_at_ns, grace_ms }) => {
            let who = match facts.maker {
                Maker::Person => "a client, such as wharf stop,",
                Maker::Client => "a client, such as the kubelet,",
            };
            let grace_s = grace_ms / 1000;
            let ended = ended.because(format!(
                "{who} asked wharfd at {} to stop it, with {grace_s} s to end by itself",
                second(asked_at_ns)
            ));
            let ended = match facts.maker {
                Maker::Person => ended,
                Maker::Client => ended.next(
                    "kubectl describe pod says why: a failed probe, a deadline, an eviction, or that it was deleted",
                ),
            };
            if code != SHELL_BASE + SIGKILL || grace_ms == 0 {
                return ended;
            }
            let signal = facts.status.stop_signal();
            ended
                .because(format!("it did not end on {}, and was killed after that time", stop_signal(signal)))
                .next(
                    "handle that signal in its program: as the first process it is not ended by one that it does not \
                     handle, and a shell passes none on (use exec in its script)",
                )
        }
        Asked::Never if signal_of(code).is_some() => ended.because(
            "nobody asked wharfd to stop it: if the signal came from elsewhere, a process in the container or on this \
             machine sent it",
        ),
        Asked::Unknown if signal_of(code).is_some() => {
            ended.because(
                "wharfd has been restarted since, or is too old, and does not know whether it was asked to stop it",
            )
        }
        Asked::Never | Asked::Unknown => ended,
    }
}

fn stop_signal(signal: wharf_cri_api::v1::Signal) -> &'static str {
    match signal {
        wharf_cri_api::v1::Signal::RuntimeDefault => "SIGTERM",
        other => other.as_str_name().trim_start_matches("SIGNAL_"),
    }
}

/// What an exit code means by itself.
fn of_code(facts: &Facts<'_>, ended: Verdict, code: u8) -> Verdict {
    let is_asked = matches!(facts.asked, Asked::Once(_));
    match (code, signal_of(code).and_then(|name| name.parse::<Signal>().ok())) {
        (0, _) if is_asked => ended,
        (0, _) => ended.because("its program ended by itself, and says that it did what it had to").next(
            "if it is to go on, its program must stay in the foreground, and a shell needs an input (-i)",
        ),
        (126, _) => ended
            .because("126 is what a shell says if it has found a command and cannot execute it")
            .next("make that file executable (chmod +x); its output may name it"),
        (127, _) => ended
            .because(
                "127 is what a shell says if it has not found a command, and a program if it lacks a library",
            )
            .next("add it to the image, or correct its name or PATH; its output may name it"),
        (_, Some(Signal::SIGSYS)) => of_refusal(facts, ended),
        (_, Some(signal)) => match of_signal(signal) {
            Some((why, next)) => ended.because(why).next(next),
            None if is_asked => ended,
            None => ended.next(
                "find out who sent it: its output may say so, or what watches over this machine's memory, such as \
                 systemd-oomd (journalctl)",
            ),
        },
        (_, None) => ended
            .because("its program ended by itself; what this code means is for its program to say")
            .next(format!("see its output: wharf logs {}", facts.name)),
    }
}

fn of_refusal(facts: &Facts<'_>, ended: Verdict) -> Verdict {
    let ended = ended.because("its seccomp profile kills a program for a call that it made");
    let ended = match facts.kernel.refusal_at(facts.status.finished_at) {
        Some(refusal) => ended.because(format!(
            "at that time the kernel's log has {} killed for system call {} (ausyscall {1} says its name)",
            refusal.program, refusal.call
        )),
        None => ended.because("the kernel's log does not say which call it was"),
    };
    ended.next("allow the call in the container's seccomp profile, or use RuntimeDefault")
}

/// What a signal means if nobody else sent it, and what to do.
fn of_signal(signal: Signal) -> Option<(&'static str, &'static str)> {
    const DEBUG: &str = "it is a fault in the program: see its output, and debug it with a core dump \
                         (/proc/sys/kernel/core_pattern)";
    Some(match signal {
        Signal::SIGSEGV => ("its program used memory that it does not have", DEBUG),
        Signal::SIGBUS => (
            "its program used memory behind which there is nothing, such as of a mapped file that was cut",
            "if it uses much shared memory, /dev/shm may be full; otherwise debug it with a core dump",
        ),
        Signal::SIGILL => (
            "its program has an instruction that this processor does not know, or went astray",
            "use an image built for this processor, such as for x86-64-v2 instead of v3; otherwise debug it",
        ),
        Signal::SIGABRT => ("its program gave up by itself (abort), as after a failed assertion", DEBUG),
        Signal::SIGFPE => ("its program divided by zero, or the like", DEBUG),
        Signal::SIGXCPU | Signal::SIGXFSZ => {
            ("its program reached one of its resource limits (getrlimit)", "raise that limit (ulimit)")
        }
        _ => return None,
    })
}

/// The name of the signal for which an exit code stands.
fn signal_of(code: u8) -> Option<String> {
    let number = code.checked_sub(SHELL_BASE).filter(|number| (1..=SIGRTMAX).contains(number))?;
    let name = Signal::try_from(i32::from(number)).map(Signal::as_str);
    Some(name.map_or_else(|_real_time| format!("signal {number}"), str::to_owned))
}

/// The verdict on a pod, from those on its containers.
pub(super) fn of_pod(name: &str, maker: Maker, state: PodSandboxState, containers: &[Facts<'_>]) -> Verdict {
    let verdict = |state, what: &str| Verdict {
        name: name.to_owned(),
        state,
        what: what.to_owned(),
        ..Verdict::default()
    };
    if state == PodSandboxState::SandboxReady {
        let ready = verdict("ready", "is ready");
        return match (containers, maker) {
            ([], Maker::Person) => ready
                .because("it has no container")
                .next(format!("start one in it: wharf run --pod {name} IMAGE")),
            _ => ready,
        };
    }
    let was_asked = |facts: &Facts<'_>| matches!(facts.asked, Asked::Once(_));
    // A supervisor that is silent sees no end, either, but then a stop was asked for.
    let is_lost = containers.iter().any(|facts| facts.status.reason == "Unknown" && !was_asked(facts));
    let is_asked = containers.iter().any(was_asked);
    let stopped = verdict("stopped", "is not ready");
    match (is_lost, is_asked) {
        (true, _) => {
            of_lost(maker, stopped.because("its supervisor is gone, and its containers went with it"))
        }
        (false, true) => of_maker(maker, stopped.because("a client asked wharfd to stop it")),
        (false, false) => of_maker(
            maker,
            stopped.because(
                "it was stopped, or its supervisor is gone: wharfd's log says which (journalctl -u wharfd)",
            ),
        ),
    }
}

/// A point in time, to the second.
fn second(ns: i64) -> String {
    time::text(ns - ns.rem_euclid(1_000_000_000))
}

#[cfg(test)]
mod tests;
