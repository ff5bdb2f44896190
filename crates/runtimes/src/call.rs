//! One call of a runtime's program: its words, its streams, and what it says if it fails.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio as Std};
use std::time::Duration;

use nix::sched::CloneFlags;
use wharf_isolation::bundle::Bundle;
use wharf_isolation::{Error, Runtime, Stage as _, Stream, Streams};
use wharf_sys::clone::{Child, Clone, clone, end_with_parent};
use wharf_sys::process::{self, Ended, Reap};
use wharf_sys::{open_files, signals};
use wharf_types::ContainerId;
use wharf_types::program::DEFAULT_PATH;

use crate::console::{self, Console};
use crate::process::{Made, PID_FILE};
use crate::{PROCESS, json};

/// The file in which the runtime says why it failed.
const LOG: &str = "log";
/// How much of that is read, in bytes.
const LOG_LIMIT_BYTES: usize = 1 << 20;
/// The exit code of a call whose program could not be executed; none of a runtime's own.
const NOT_EXECUTED: i32 = 126;
/// How long a call may still take once nobody wants its result.
const PATIENCE: Duration = Duration::from_secs(5);
const STAGE: &str = "calling the runtime";

/// What the calls for one container have in common. Their files are in the bundle, which is the working directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) runtime: &'a Runtime,
    pub(crate) bundle: &'a Bundle,
    pub(crate) container: &'a ContainerId,
    /// Proof that this process may clone itself.
    pub(crate) alone: &'a Child,
}

/// The standard streams that a runtime gives a program.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stdio<'a> {
    None,
    Streams(&'a Streams),
    Terminal,
}

impl<'a> Stdio<'a> {
    pub(crate) fn of(streams: &'a Streams, console: Option<&Console>) -> Self {
        if console.is_some() { Self::Terminal } else { Self::Streams(streams) }
    }

    fn words(self) -> &'static [&'static str] {
        match self {
            Self::None | Self::Streams(_) => &[],
            Self::Terminal => &["--console-socket", console::SOCKET],
        }
    }

    /// The streams of the call itself, which the runtime hands on.
    fn all(self, bundle: &Bundle) -> std::io::Result<[Std; 3]> {
        let null = bundle.open_null().map_err(std::io::Error::other).map(Stream::Pipe)?;
        let given = match self {
            Self::None | Self::Terminal => [&null; 3],
            Self::Streams(Streams { stdin, stdout, stderr }) => [stdin, stdout, stderr],
        };
        let copy = |stream: &Stream| match (stream, &null) {
            (Stream::Pipe(fd), _) | (Stream::Null, Stream::Pipe(fd)) => fd.try_clone().map(Std::from),
            (Stream::Null, Stream::Null) => Ok(Std::null()),
        };
        let [stdin, stdout, stderr] = given.map(copy);
        Ok([stdin?, stdout?, stderr?])
    }
}

impl Call<'_> {
    /// Creates the container, whose first process then waits for its start.
    pub(crate) fn create(&self, stdio: Stdio<'_>) -> Result<(), Error> {
        let words = ["--bundle", ".", "--pid-file", PID_FILE];
        self.run("create", &[&words, stdio.words()].concat(), stdio)
    }

    /// Has the container's first process execute the program.
    pub(crate) fn start(&self) -> Result<(), Error> {
        self.run("start", &[], Stdio::None)
    }

    /// Executes a command, whose process it leaves behind. If that process is not wanted any more, as the line to the
    /// supervisor says, it is made all the same: only then is it known which one it is.
    pub(crate) fn execute(&self, stdio: Stdio<'_>, line: BorrowedFd<'_>) -> Result<(), Error> {
        let words = ["--process", PROCESS, "--pid-file", PID_FILE, "--detach"];
        let call = self.begin(&[&["exec"], &words[..], stdio.words()].concat(), stdio)?;
        if !process::await_end_or(call.as_fd(), line, PATIENCE).stage(STAGE)? {
            process::signal(call.as_fd(), 9).stage(STAGE)?;
            process::await_end(call.as_fd()).stage(STAGE)?;
            Made::find(self.bundle).iter().for_each(Made::kill);
        }
        self.end("exec", &call)
    }

    fn run(&self, name: &'static str, words: &[&str], stdio: Stdio<'_>) -> Result<(), Error> {
        let call = self.begin(&[&[name], words].concat(), stdio)?;
        process::await_end(call.as_fd()).stage(STAGE)?;
        self.end(name, &call)
    }

    /// Begins a call with these words, in a process that does not outlive this one.
    fn begin(&self, words: &[&str], stdio: Stdio<'_>) -> Result<OwnedFd, Error> {
        let this = std::process::id();
        match clone(self.alone.single_threaded(), CloneFlags::empty(), None).stage(STAGE)? {
            Clone::Parent { pidfd, .. } => Ok(pidfd),
            Clone::Child(child) => {
                // What it would leave behind, nobody would find.
                if matches!(end_with_parent(this), Ok(true)) {
                    self.replace(&child, words, stdio);
                }
                process::exit_now(NOT_EXECUTED)
            }
        }
    }

    /// How a call has ended.
    fn end(&self, name: &'static str, call: &OwnedFd) -> Result<(), Error> {
        match process::wait(call.as_fd(), Reap::Remove).stage(STAGE)? {
            Some(Ended::Code(0)) => Ok(()),
            ended => Err(self.failure(name, ended)),
        }
    }

    /// Becomes the runtime, if it can be executed.
    #[expect(clippy::disallowed_methods, reason = "the runtime makes the container in wharf's place")]
    fn replace(&self, child: &Child, words: &[&str], stdio: Stdio<'_>) {
        // A runtime hands on to programs what it has got; the supervisor's own mask and limit are not for them.
        if signals::unblock(child).is_err() || open_files::hand_on().is_err() {
            return;
        }
        let Runtime { program, options, state_directory, .. } = self.runtime;
        let Ok([stdin, stdout, stderr]) = stdio.all(self.bundle) else { return };
        let mut command = Command::new(program.as_path());
        command.env_clear().env("PATH", DEFAULT_PATH).stdin(stdin).stdout(stdout).stderr(stderr);
        command.args(options).arg("--root").arg(state_directory.as_path());
        command.args(["--log", LOG, "--log-format", "json"]).args(words).arg(self.container.as_str());
        let error = command.exec();
        // Where the runtime would have said it.
        let said = format!("{{\"msg\":{}}}", json::text(&error.to_string()));
        self.bundle.write(LOG, said.as_bytes()).unwrap_or_default();
    }

    fn failure(&self, command: &'static str, ended: Option<Ended>) -> Error {
        let log = self.bundle.read(LOG, LOG_LIMIT_BYTES);
        let message = json::last_message(&log).unwrap_or_else(|| match ended {
            Some(Ended::Signal(number)) => format!("it was ended by signal {number}"),
            _ => "it failed without a word".to_owned(),
        });
        Error::Runtime { runtime: self.runtime.program.to_string(), command, message }
    }
}
