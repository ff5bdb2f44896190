//! One call of a runtime's program: its words, its streams, and what it says if it fails.

use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio as Std};
use std::time::Duration;

use wharf_isolation::bundle::Bundle;
use wharf_isolation::{CgroupPlan, Error, Runtime, Stage as _, Stream, Streams};
use wharf_sys::clone::Child;
use wharf_sys::process::Ended;
use wharf_sys::{open_files, signals};
use wharf_types::program::DEFAULT_PATH;

use crate::console::{self, Console};
use crate::guard::Guarded;
use crate::process::PID_FILE;
use crate::{PROCESS, cgroups, json};

/// The file in which the runtime says why it failed.
const LOG: &str = "log";
/// The file with how a container has ended, as the runtime says it.
pub(crate) const EXIT: &str = "exit";
/// The file with the number of a command's process in its sandbox.
pub(crate) const INNER_PID_FILE: &str = "inner-pid-file";
/// How much of that is read, in bytes.
const LOG_LIMIT_BYTES: usize = 1 << 20;
/// The file with what the runtime writes to its standard error, if that is not the container's.
const ERRORS: &str = "errors";
/// How much of that is told, in bytes.
const WORDS_LIMIT_BYTES: usize = 1000;
/// How long a call may take: a little less than the daemon waits, to which it is to be said.
const PATIENCE: Duration = Duration::from_secs(25);
/// The same for calls that end something: the daemon gives a killed container 10 s.
const END_PATIENCE: Duration = Duration::from_secs(4);
const STAGE: &str = "calling the runtime";

/// What the calls for one container have in common. Their files are in the bundle, which is the working directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) runtime: &'a Runtime,
    pub(crate) bundle: &'a Bundle,
    /// Its name, or that of the sandbox.
    pub(crate) container: &'a str,
    /// The cgroup in which containers are made, and all that this leaves behind; the supervisor's if there is none.
    pub(crate) cgroup: Option<&'a CgroupPlan>,
    /// Proof that this process may clone itself.
    pub(crate) alone: &'a Child,
}

/// The standard streams that a runtime gives a program.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stdio<'a> {
    None,
    /// What the runtime itself says is kept in a file.
    Answer,
    Streams(&'a Streams),
    Terminal,
}

impl<'a> Stdio<'a> {
    pub(crate) fn of(streams: &'a Streams, console: Option<&Console>) -> Self {
        if console.is_some() { Self::Terminal } else { Self::Streams(streams) }
    }

    fn words(self) -> &'static [&'static str] {
        match self {
            Self::None | Self::Answer | Self::Streams(_) => &[],
            Self::Terminal => &["--console-socket", console::SOCKET],
        }
    }

    /// The streams of the call itself, which the runtime hands on.
    fn all(self, bundle: &Bundle) -> std::io::Result<[Std; 3]> {
        let pipe = |opened: wharf_sys::Result<_>| opened.map_err(std::io::Error::other).map(Stream::Pipe);
        let (null, errors) = (pipe(bundle.open_null())?, pipe(bundle.open_empty(ERRORS))?);
        let answer = matches!(self, Self::Answer).then(|| pipe(bundle.open_empty(EXIT))).transpose()?;
        let given = match self {
            Self::None | Self::Answer | Self::Terminal => [&null, answer.as_ref().unwrap_or(&null), &errors],
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
    pub(crate) fn create(&self, stdio: Stdio<'_>, line: BorrowedFd<'_>) -> Result<(), Error> {
        let words = ["--bundle", self.runtime.bundle_directory.as_str(), "--pid-file", PID_FILE];
        self.run("create", &[&words, stdio.words()].concat(), stdio, line)
    }

    /// Has the container's first process execute the program. Its streams are those of this call in a sandbox, and
    /// otherwise those of its creation.
    pub(crate) fn start(&self, stdio: Stdio<'_>, line: BorrowedFd<'_>) -> Result<(), Error> {
        self.run("start", &[], stdio, line)
    }

    /// Executes a command, whose process it leaves behind. If that process is not wanted any more, as the line to the
    /// supervisor says, it may still be made: only then is it known which one it is.
    pub(crate) fn execute(&self, stdio: Stdio<'_>, line: BorrowedFd<'_>) -> Result<(), Error> {
        let words = ["--process", PROCESS, "--pid-file", PID_FILE, "--detach"];
        self.run("exec", &[&words, stdio.words()].concat(), stdio, line)
    }

    /// The same in a sandbox, where the number of the process is another one, which the runtime tells.
    pub(crate) fn execute_inside(&self, stdio: Stdio<'_>, line: BorrowedFd<'_>) -> Result<(), Error> {
        let words = ["--process", PROCESS, "--pid-file", PID_FILE, "--internal-pid-file", INNER_PID_FILE];
        self.run("exec", &[&words[..], &["--detach"], stdio.words()].concat(), stdio, line)
    }

    /// Sends a signal to the container's first process, or with `whom` to others in it.
    pub(crate) fn signal(&self, whom: &[&str], number: u8, line: BorrowedFd<'_>) -> Result<(), Error> {
        let number = number.to_string();
        self.end("kill", (whom, &[&number]), line)
    }

    /// Deletes the container, whatever its state, and all that the runtime has kept of it.
    pub(crate) fn delete(&self, line: BorrowedFd<'_>) -> Result<(), Error> {
        self.end("delete", (&["--force"], &[]), line)
    }

    /// Begins to wait for the container's end. The runtime writes how it ended to [`EXIT`].
    pub(crate) fn wait(&self) -> Result<Guarded, Error> {
        self.begin(&["wait", self.container], Stdio::Answer)
    }

    fn run(
        &self,
        name: &'static str,
        words: &[&str],
        stdio: Stdio<'_>,
        line: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let words = [&[name], words, &[self.container]].concat();
        let ended = self.begin(&words, stdio)?.await_end(line, PATIENCE).stage(STAGE)?;
        self.judge(name, ended, PATIENCE)
    }

    /// Runs a command that ends something, with words before and after the container's name.
    fn end(
        &self,
        name: &'static str,
        (before, after): (&[&str], &[&str]),
        line: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let words = [&[name], before, &[self.container], after].concat();
        let ended = self.begin(&words, Stdio::None)?.await_end(line, END_PATIENCE).stage(STAGE)?;
        self.judge(name, ended, END_PATIENCE)
    }

    fn judge(&self, name: &'static str, ended: Option<Ended>, patience: Duration) -> Result<(), Error> {
        match ended {
            Some(Ended::Code(0)) => Ok(()),
            ended => Err(self.failure(name, ended, patience)),
        }
    }

    fn begin(&self, words: &[&str], stdio: Stdio<'_>) -> Result<Guarded, Error> {
        Guarded::begin(self.alone, |child| self.replace(child, words, stdio)).stage(STAGE)
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
        // What is left of the others ends with them, and a pod at its limits must not hold up its own end.
        let makes = words.first().is_some_and(|word| ["create", "start"].contains(word));
        if self.cgroup.filter(|_| makes).is_some_and(|cgroup| cgroups::enter_self(cgroup).is_err()) {
            return;
        }
        let mut command = Command::new(program.as_path());
        command.env_clear().env("PATH", DEFAULT_PATH).stdin(stdin).stdout(stdout).stderr(stderr);
        command.args(options).arg("--root").arg(state_directory.as_path());
        command.args(["--log", LOG, "--log-format", "json"]).args(words);
        let error = command.exec();
        // Where the runtime would have said it. If that fails, the exit code has to do.
        let said = format!("{{\"msg\":{}}}", json::text(&error.to_string()));
        let _said = self.bundle.write(LOG, said.as_bytes());
    }

    fn failure(&self, command: &'static str, ended: Option<Ended>, patience: Duration) -> Error {
        let said = json::last_message(&self.bundle.read(LOG, LOG_LIMIT_BYTES));
        let said = said.or_else(|| words(&self.bundle.read(ERRORS, LOG_LIMIT_BYTES)));
        let how = match ended {
            None => Some(format!("it was killed, as it did not end (it has {} s)", patience.as_secs())),
            Some(Ended::Signal(number)) => Some(format!("it was ended by signal {number}")),
            Some(Ended::Code(_)) => None,
        };
        let message = match (how, said) {
            (Some(how), Some(said)) => format!("{how}: {said}"),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => "it failed without a word".to_owned(),
        };
        Error::Runtime { runtime: self.runtime.program.to_string(), command, message }
    }
}

/// A text on one line, from its end if it is long; `None` if there is none.
fn words(text: &str) -> Option<String> {
    let text = wharf_types::one_line(text);
    let start = text.ceil_char_boundary(text.len().saturating_sub(WORDS_LIMIT_BYTES));
    Some(text[start..].to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_one_line_with_its_end() {
        assert_eq!(words("one\n\n  two \n").as_deref(), Some("one; two"));
        assert_eq!(words(" \n"), None);
        let long = format!("{}\nlast", "é".repeat(WORDS_LIMIT_BYTES));
        let said = words(&long).unwrap();
        assert!(said.ends_with("é; last") && said.len() <= WORDS_LIMIT_BYTES, "{said}");
    }
}
