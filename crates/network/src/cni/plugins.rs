//! The programs of plugins: where they are, and how one is called.
//!
//! A plugin runs as root on the host and is trusted, but not to end: each call has a deadline, and a bound on what is
//! read of its output.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use wharf_programs::{self as programs, ExecError};
use wharf_types::program::DEFAULT_PATH;

use super::input::Input;
use super::{Action, CniError, result};
use crate::store::StoreError;

/// How much of a plugin's stderr an error message has, in bytes.
const STDERR_LEN: usize = 1000;

/// The directories of the node's plugins and of their inputs.
#[derive(Debug)]
pub(super) struct Plugins {
    dirs: Vec<PathBuf>,
    /// The last input of the plugins for each subject.
    inputs: PathBuf,
}

/// One call of one plugin.
pub(super) struct Execution<'a> {
    /// The plugin's type.
    pub(super) plugin: &'a str,
    pub(super) action: Action,
    /// What the call is about, as a file name. There is only one call at a time for a subject.
    pub(super) subject: &'a str,
    pub(super) input: Value,
    /// Its environment besides the command and the plugin path.
    pub(super) environment: [(&'static str, String); 4],
    pub(super) deadline: Instant,
}

impl Plugins {
    pub(super) fn open(dirs: Vec<PathBuf>, inputs: PathBuf) -> Result<Self, StoreError> {
        if let Err(source) = std::fs::create_dir_all(&inputs) {
            return Err(StoreError::Input { operation: "create", path: inputs, source });
        }
        Ok(Self { dirs, inputs })
    }

    /// Finds a plugin's program: the first that is executable.
    pub(super) fn program(&self, plugin: &str) -> Result<PathBuf, CniError> {
        let mut paths = self.dirs.iter().map(|dir| dir.join(plugin));
        let found = paths.find(|path| matches!(wharf_sys::fs::is_program(path), Ok(true)));
        found.ok_or_else(|| CniError::Missing { plugin: plugin.to_owned(), dirs: self.dirs.clone() })
    }

    /// Runs a plugin and returns its output.
    pub(super) fn run(&self, execution: &Execution<'_>) -> Result<Vec<u8>, CniError> {
        let (owned, command) = (|| execution.plugin.to_owned(), execution.action.name());
        let program = self.program(execution.plugin)?;
        let (path, input) = (self.inputs.join(execution.subject), execution.input.to_string());
        let ran = Input::write(&path, input.as_bytes(), execution.deadline)
            .and_then(|input| Ok((input.stream()?, input)))
            .map_err(ExecError::Io)
            .and_then(|(stream, _until_its_end)| {
                programs::run(&mut self.command(&program, execution), stream, execution.deadline)
            });
        let output = ran.map_err(|error| match error {
            ExecError::Io(source) => CniError::Run { plugin: owned(), command, source },
            ExecError::Deadline => CniError::Deadline { plugin: owned(), command },
            ExecError::TooLong => CniError::TooLong { plugin: owned(), command },
        })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(failure(owned(), command, &output))
    }

    /// Removes the last input of a subject.
    pub(super) fn forget(&self, subject: &str) -> Result<(), StoreError> {
        let path = self.inputs.join(subject);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::Input { operation: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    /// The plugin's environment is its own added to that of this process, which may name a proxy or an API server.
    fn command(&self, program: &Path, execution: &Execution<'_>) -> Command {
        #[expect(clippy::disallowed_methods, reason = "the one place that starts CNI plugins")]
        let mut command = Command::new(program);
        if std::env::var_os("PATH").is_none() {
            // A plugin may need other programs.
            command.env("PATH", DEFAULT_PATH);
        }
        let dirs: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
        command
            .env("CNI_COMMAND", execution.action.name())
            .env("CNI_PATH", dirs.join(":"))
            .envs(execution.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/");
        command
    }
}

/// A failing plugin should print an error as JSON; if it does not, its stderr must do.
fn failure(plugin: String, command: &'static str, output: &programs::Output) -> CniError {
    if let Ok(failure) = serde_json::from_slice::<result::Failure>(&output.stdout) {
        let details =
            if failure.details.is_empty() { String::new() } else { format!(": {}", failure.details) };
        return CniError::Plugin { plugin, command, code: failure.code, message: failure.msg, details };
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().chars().take(STDERR_LEN).collect();
    CniError::Exit { plugin, command, status: output.status, stderr }
}
