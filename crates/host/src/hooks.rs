//! Executing a container's hooks. They are programs of the host, with the host's rights, and are given the container's
//! state as JSON. No program of the container is running yet when one of them can see the container from inside.

mod inside;
mod turns;

use std::collections::BTreeSet;
use std::io::ErrorKind::NotFound;
use std::path::{Path, PathBuf};
use std::process::Command;

use wharf_planner::hooks::{Hook, Kept, Point, State};
use wharf_planner::saved_hooks;
use wharf_state::record;
use wharf_sys::launch::end_with_thread;
use wharf_types::program::DEFAULT_PATH;
use wharf_types::{ContainerId, ErrorKind, Failure, Stage as _, StageError, chain};

pub use turns::HooksOf;

use crate::directories::remove_all;
use crate::program;

const STAGE: &str = "executing the container's hooks";

/// A container with its hooks.
#[derive(Debug, Clone)]
pub struct Hooked {
    /// What was kept of its hooks; empty if it has none.
    pub hooks: String,
    /// Its id.
    pub id: ContainerId,
    /// Its first process; 0 if it has none.
    pub pid: i32,
    /// The directory of its bundle.
    pub bundle: PathBuf,
}

/// What was kept of a container's hooks, for one whose record cannot be used, and why: its saved runtime spec says it,
/// too. Empty if that is missing, as of a container that was refused. If it is damaged as well, the hooks are lost, and
/// the log says so.
///
/// # Errors
/// It cannot be read for now.
pub fn hooks_of_saved(spec: &Path, why: &StageError) -> Result<String, StageError> {
    const STAGE: &str = "reading the container's hooks";
    let (shown, why) = (spec.display(), chain(why));
    let read = match record::read_file(spec) {
        Err(error) if error.may_pass() => return Err(StageError::at(STAGE, error)),
        Err(error) if error.is_missing() => {
            tracing::debug!(spec = %shown, why, "a container without a usable record or a spec has no hooks");
            return Ok(String::new());
        }
        read => read.stage(STAGE).and_then(|text| saved_hooks(&text).stage(STAGE)),
    };
    match &read {
        Ok(_) => tracing::warn!(spec = %shown, why, "a container is removed with the hooks of its spec"),
        Err(error) => {
            let error = chain(error);
            tracing::warn!(
                spec = %shown,
                why,
                error,
                "any hooks for the end of a container with a damaged record are not executed"
            );
        }
    }
    Ok(read.unwrap_or_default())
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
#[error("the hook {program} at {point} {problem}")]
struct HookError {
    program: String,
    point: &'static str,
    problem: String,
}

impl Failure for HookError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::FailedPrecondition
    }
}

impl Hooked {
    /// Whether it has any.
    #[must_use]
    pub fn has_hooks(&self) -> bool {
        !self.hooks.is_empty()
    }

    /// The files of its hooks, for people.
    #[must_use]
    pub fn programs(&self) -> String {
        let kept = Kept::read(&self.hooks).ok().flatten();
        let at = |point| kept.as_ref().and_then(|kept| kept.at(point).ok()).unwrap_or_default();
        let programs: BTreeSet<String> =
            Point::ALL.into_iter().flat_map(at).map(|hook| hook.program.to_string()).collect();
        Vec::from_iter(programs).join(", ")
    }

    /// Makes the bundle, if there are hooks to see it: a directory with the runtime spec, and one for the root file
    /// system, in which hooks at `createContainer` find it.
    ///
    /// # Errors
    /// The disk's.
    pub fn make_bundle(&self, spec: &[u8]) -> Result<(), StageError> {
        use std::os::unix::fs::DirBuilderExt as _;
        const STAGE: &str = "making the container's bundle";
        if !self.has_hooks() {
            return Ok(());
        }
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(self.root()).stage(STAGE)?;
        std::fs::write(self.bundle.join("config.json"), spec).stage(STAGE)
    }

    /// Removes the bundle; one that is not there is fine. What is mounted in it stays.
    ///
    /// # Errors
    /// The disk's, or something is mounted in it.
    pub fn remove_bundle(&self) -> Result<(), StageError> {
        const STAGE: &str = "removing the container's bundle (if it is busy, unmount what is mounted there)";
        // Nearly no pod has any.
        if !self.bundle.parent().is_some_and(|bundles| bundles.try_exists().unwrap_or(true)) {
            return Ok(());
        }
        // The notes last: what is tried again executes no hook.
        let [ending, ended] = &self.notes();
        [&self.bundle, ending, ended].into_iter().try_for_each(|place| remove_all(place).stage(STAGE))
    }

    /// What is noted of the hooks for the end beside the bundle: that they are being executed, and that they have been.
    fn notes(&self) -> [PathBuf; 2] {
        ["ending", "ended"].map(|note| self.bundle.with_extension(note))
    }

    fn root(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    /// Executes the hooks of a container whose first process waits for its start.
    ///
    /// # Errors
    /// FailedPrecondition, with what the first hook that failed has written; later ones are not executed.
    pub fn create(&self) -> Result<(), StageError> {
        let Some(kept) = Kept::read(&self.hooks).stage(STAGE)? else { return Ok(()) };
        for point in [Point::Prestart, Point::CreateRuntime] {
            self.run_all(&kept, point)?;
        }
        if kept.at(Point::CreateContainer).stage(STAGE)?.is_empty() {
            return Ok(());
        }
        let work = || self.run_all(&kept, Point::CreateContainer);
        inside::with_container(&self.id, self.pid, &self.root(), work).stage(STAGE)?
    }

    /// Executes the hooks for the end, unless they have been executed, which is noted beside the bundle. The note is
    /// begun before: on a full disk there is none, and they are executed again if the rest cannot be removed.
    ///
    /// # Errors
    /// The disk's: they will be executed again. As to those of hooks, see [`Hooked::notify`].
    pub fn end(&self) -> Result<(), StageError> {
        const STAGE: &str = "noting that the hooks have been executed";
        let [ending, ended] = self.notes();
        if !self.bundle.try_exists().stage(STAGE)? || ended.try_exists().stage(STAGE)? {
            return Ok(());
        }
        let is_begun = std::fs::create_dir(&ending).is_ok() || ending.is_dir();
        self.notify(Point::Poststop)?;
        match std::fs::rename(&ending, &ended) {
            // A hook may have removed it, with the bundle.
            Err(error) if is_begun && error.kind() != NotFound => Err(error).stage(STAGE),
            _ => Ok(()),
        }
    }

    /// Executes the hooks at a point at which nothing can be undone any more: each of them, whatever becomes of the
    /// others. A failure is logged.
    ///
    /// # Errors
    /// Never; it can be used where others fail.
    pub fn notify(&self, point: Point) -> Result<(), StageError> {
        let hooks = Kept::read(&self.hooks).and_then(|kept| {
            let Some(kept) = kept else { return Ok(Vec::new()) };
            let hooks = kept.at(point)?;
            Ok(hooks.into_iter().map(|hook| self.run(&kept, point, &hook)).collect())
        });
        let failed = match hooks {
            Ok(results) => results.into_iter().filter_map(Result::err).collect(),
            Err(refusal) => vec![StageError::at(STAGE, refusal)],
        };
        for error in failed {
            tracing::warn!(container = self.id.short(), error = chain(&error), "a hook failed");
        }
        Ok(())
    }

    fn run_all(&self, kept: &Kept, point: Point) -> Result<(), StageError> {
        kept.at(point).stage(STAGE)?.iter().try_for_each(|hook| self.run(kept, point, hook))
    }

    fn run(&self, kept: &Kept, point: Point, hook: &Hook) -> Result<(), StageError> {
        let bundle = self.bundle.to_string_lossy();
        let state = kept.state(point, &State { id: &self.id, pid: self.pid, bundle: &bundle });
        let mut command = self.command(hook);
        // The next daemon undoes what was not made yet, and repeats an end. Nobody repeats what follows a start.
        if point != Point::Poststart {
            end_with_thread(&mut command);
        }
        let ran = program::run(&mut command, &state, hook.patience);
        ran.map_err(|problem| {
            let program = hook.program.to_string();
            StageError::at(STAGE, HookError { program, point: point.name(), problem })
        })
    }

    /// A hook without an environment of its own gets a search path: scripts rely on it.
    fn command(&self, hook: &Hook) -> Command {
        use std::os::unix::process::CommandExt as _;
        #[expect(clippy::disallowed_methods, reason = "the one place that starts hooks")]
        let mut command = Command::new(hook.program.as_path());
        let (name, arguments) =
            hook.arguments.split_first().map_or(("", &[][..]), |(name, rest)| (name, rest));
        command.arg0(name).args(arguments).env_clear().envs(hook.environment.iter().cloned());
        if hook.environment.is_empty() {
            command.env("PATH", DEFAULT_PATH);
        }
        command.current_dir(if self.bundle.is_dir() { &self.bundle } else { Path::new("/") });
        command
    }
}

#[cfg(test)]
mod tests;
