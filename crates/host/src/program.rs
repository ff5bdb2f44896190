//! Programs of this machine that are run for a container: what they are given, and what is said of one that failed.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use wharf_programs::{ExecError, Output};

/// How much of a program's output an error message has, in bytes.
const OUTPUT_SHOWN_LEN: usize = 500;
/// How long a supervisor may take to say its name.
const SUPERVISOR_PATIENCE: Duration = Duration::from_secs(5);

/// What is wrong with a program, to be read after its name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// It ended, and not with success.
    #[error("{0}")]
    Failed(String),
    /// It could not be run to its end.
    #[error("{0}")]
    Unfinished(String),
}

/// Checks that a program is a supervisor, by the name that it gives itself.
///
/// # Errors
/// What is wrong, to be read after the program's name.
pub fn check_supervisor(program: &Path) -> Result<(), String> {
    #[expect(clippy::disallowed_methods, reason = "the one place where it is asked for its name")]
    let mut command = Command::new(program);
    let said = output(command.env_clear().arg("--version"), SUPERVISOR_PATIENCE);
    let said = said.map_err(|problem| problem.to_string())?;
    if said.starts_with(b"wharf-shim ") { Ok(()) } else { Err("is not a wharf-shim".to_owned()) }
}

/// Runs a program with an input, and fails unless it succeeds in time.
///
/// # Errors
/// What is wrong, to be read after the program's name.
pub(crate) fn run(command: &mut Command, input: &[u8], patience: Duration) -> Result<(), String> {
    output_for(command, input, patience).map(drop).map_err(|problem| problem.to_string())
}

/// Runs a program without an input, and returns what it prints.
///
/// # Errors
/// [`Problem`].
pub(crate) fn output(command: &mut Command, patience: Duration) -> Result<Vec<u8>, Problem> {
    output_for(command, &[], patience)
}

fn output_for(command: &mut Command, input: &[u8], patience: Duration) -> Result<Vec<u8>, Problem> {
    let unfinished = |problem: String| Err(Problem::Unfinished(problem));
    let input = match wharf_programs::input(input) {
        Ok(input) => input,
        Err(error) => return unfinished(format!("cannot be given its input: {error}")),
    };
    match wharf_programs::run(command, input, Instant::now() + patience) {
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => Err(Problem::Failed(failed(&output))),
        Err(ExecError::Io(error)) => unfinished(format!("cannot be executed: {error}")),
        Err(ExecError::Deadline) => unfinished(format!("did not end within {} s", patience.as_secs())),
        Err(ExecError::TooLong) => unfinished("wrote too much".to_owned()),
    }
}

fn failed(output: &Output) -> String {
    let said = [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    let said: String = said.iter().find(|text| !text.is_empty()).cloned().unwrap_or_default();
    let said: String = said.chars().take(OUTPUT_SHOWN_LEN).collect();
    match said.is_empty() {
        true => format!("failed: {}", output.status),
        false => format!("failed: {}: {said}", output.status),
    }
}
