//! AppArmor on this machine: whether containers can be confined, and wharf's own profile in the kernel.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use wharf_tasks::Single;
use wharf_types::program::DEFAULT_PATH;
use wharf_types::{DEFAULT_PROFILE, ErrorKind, Failure, ProfileName, Stage as _, StageError};

use crate::program;

const PROFILE: &str = include_str!("apparmor/wharf-default");
/// The rules that the profile is written for. A parser that has this file takes it at its word, and does not refuse a
/// container what only a later kernel can refuse; one that lacks it is older than such kernels.
const ABI: &str = "/etc/apparmor.d/abi/3.0";
/// The kernel's list of profiles: a line for each, with its name and its mode.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
/// To compile the profile takes a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(30);
const STAGE: &str = "loading wharf's own AppArmor profile";

/// Whether the profile is in the kernel as this process has loaded it, as far as anybody has looked. At first the
/// kernel has at most that of an earlier release.
static IS_LOADED: AtomicBool = AtomicBool::new(false);

/// Loads it, for all containers that wait for it: a parser that hangs holds up nobody else.
static LOADING: LazyLock<Arc<Single>> = LazyLock::new(|| Single::new("profile"));

/// Why the profile could not be loaded.
#[derive(Debug, thiserror::Error)]
#[error("apparmor_parser {problem}")]
struct ParserError {
    problem: String,
}

impl Failure for ParserError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::FailedPrecondition
    }
}

/// Whether containers can be confined: the kernel has AppArmor on and lets this process see its profiles, and there
/// is a program to load them. `wharf doctor` looks at the same.
pub(crate) fn is_usable() -> bool {
    let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled");
    enabled.is_ok_and(|value| value.starts_with(b"Y")) && Path::new(LOADED).exists() && parser().is_some()
}

/// Notes it if the kernel does not have wharf's own profile any more, which is to confine a container: somebody may
/// have unloaded it.
///
/// # Errors
/// The kernel's list of profiles cannot be read.
pub(crate) fn note_if_unloaded(profile: Option<&str>) -> Result<(), StageError> {
    if profile == Some(DEFAULT_PROFILE) && !is_listed(&wharf_sys::fs::kernel_text(LOADED).stage(STAGE)?) {
        IS_LOADED.store(false, Ordering::Relaxed);
    }
    Ok(())
}

/// Loads wharf's own profile, if that is to confine a container that has been described, and the kernel does not
/// have it. The caller waits as long as the parser takes, and blocks no thread.
///
/// # Errors
/// What the parser says, or has just said.
pub async fn ensure_profile(profile: Option<&ProfileName>) -> Result<(), StageError> {
    let is_own = profile.is_some_and(|profile| profile.as_str() == DEFAULT_PROFILE);
    if !is_own || IS_LOADED.load(Ordering::Relaxed) {
        return Ok(());
    }
    let load = || {
        load().map_err(|problem| StageError::at(STAGE, ParserError { problem }))?;
        IS_LOADED.store(true, Ordering::Relaxed);
        Ok(())
    };
    LOADING.run("loading an AppArmor profile", load).await
}

fn is_listed(profiles: &str) -> bool {
    profiles.lines().any(|line| line.strip_prefix(DEFAULT_PROFILE).is_some_and(|rest| rest.starts_with(" (")))
}

fn load() -> Result<(), String> {
    let parser = parser().ok_or("is missing: install the package apparmor")?;
    #[expect(clippy::disallowed_methods, reason = "the one place that starts the parser")]
    let mut command = Command::new(parser);
    // A cache would be a file that others may have changed.
    command.args(["--replace", "--skip-cache"]).env_clear().env("PATH", DEFAULT_PATH).current_dir("/");
    let abi = if Path::new(ABI).exists() { "abi <abi/3.0>,\n" } else { "" };
    program::run(&mut command, format!("{abi}{PROFILE}").as_bytes(), PATIENCE)
}

fn parser() -> Option<PathBuf> {
    let places = DEFAULT_PATH.split(':').map(|directory| Path::new(directory).join("apparmor_parser"));
    places.into_iter().find(|place| place.is_file())
}
