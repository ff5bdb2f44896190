//! AppArmor on this machine: whether containers can be confined, and wharf's own profile in the kernel.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use wharf_types::lock::lock;
use wharf_types::program::DEFAULT_PATH;
use wharf_types::{DEFAULT_PROFILE, ErrorKind, Failure, Stage as _, StageError};

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

/// Loads wharf's own profile, if that is to confine a container. The first call replaces what an earlier release has
/// loaded, and others load it again if somebody has unloaded it.
///
/// # Errors
/// What the parser says.
pub(crate) fn ensure_loaded(profile: Option<&str>) -> Result<(), StageError> {
    /// Whether this process has loaded it.
    static DONE: Mutex<bool> = Mutex::new(false);
    if profile != Some(DEFAULT_PROFILE) {
        return Ok(());
    }
    let mut done = lock(&DONE);
    if !*done || !is_listed(&std::fs::read_to_string(LOADED).stage(STAGE)?) {
        load().map_err(|problem| StageError::at(STAGE, ParserError { problem }))?;
        *done = true;
    }
    Ok(())
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
