//! What this machine adds to containers: the devices that they ask for by the Container Device Interface, and the hooks
//! that its administrator has configured. Each is a step on a container's description.

use std::path::{Path, PathBuf};

use wharf_cri_api::v1::{CdiDevice, ContainerConfig};
use wharf_planner::hooks::configured::Configured;
use wharf_planner::{self as planner, Description, Places, Refusal, Request, Switch, cdi};
use wharf_types::ErrorKind;

use crate::apparmor;
use crate::cdi::Cdi;
use crate::error::Error;
use crate::facts::{Machine, facts};
use crate::read::{Files, Kind};

/// The longest file of a hook, in bytes.
const HOOK_LIMIT_BYTES: usize = 64 << 10;

/// Where the files are.
#[derive(Debug, Clone)]
pub struct AdditionsConfig {
    /// Whether containers can have devices by the Container Device Interface.
    pub cdi: Switch,
    /// The directories of its files; a device in a later one overrides one in an earlier.
    pub cdi_directories: Vec<PathBuf>,
    /// The directories of hooks; of two files with one name, the one in a later directory counts.
    pub hook_directories: Vec<PathBuf>,
}

/// The files, which are checked for changes whenever a container is made.
#[derive(Debug)]
pub struct Additions {
    cdi: Cdi,
    hooks: Files<Configured>,
}

impl Additions {
    /// Additions from these directories. Nothing is read yet.
    #[must_use]
    pub fn new(config: AdditionsConfig) -> Self {
        let parse = |_: &Path, content: Vec<u8>| Configured::parse(&content);
        let hooks = Kind { extensions: &["json"], limit_bytes: HOOK_LIMIT_BYTES, parse };
        Self {
            cdi: Cdi::new(config.cdi, config.cdi_directories),
            hooks: Files::new(hooks, config.hook_directories),
        }
    }

    /// Adds to a container's description what its request asks for and what the node gives to it.
    ///
    /// # Errors
    /// [`Refusal`] for a device that is unknown or cannot be given, and for a hook file that cannot be used: it may
    /// have been meant for this container.
    pub fn apply(&self, description: &mut Description, request: &Request<'_>) -> Result<(), Refusal> {
        let devices = cdi::asked(request.container)?;
        cdi::apply(description, &self.cdi.additions(&devices)?)?;
        if self.hooks.directories.is_empty() {
            return Ok(());
        }
        let look = self.hooks.look()?;
        if let Some(damaged) = look.damaged().first() {
            let problem = format!("{damaged}: mend the file, or remove it");
            let (kind, what) = (ErrorKind::FailedPrecondition, "the node's hooks".to_owned());
            return Err(Refusal::Addition { kind, what, problem });
        }
        let mut files: Vec<_> = look.directories.iter().rev().flatten().collect();
        // A stable order, in which the file of a later directory is the first of those with its name.
        files.sort_by_key(|(path, _)| path.file_name().map(ToOwned::to_owned));
        files.dedup_by(|(later, _), (first, _)| later.file_name() == first.file_name());
        for (_, hook) in files {
            hook.iter().for_each(|hook| hook.apply(&mut description.spec, request));
        }
        Ok(())
    }

    /// Adds devices of the Container Device Interface to a container's description, by their names.
    ///
    /// # Errors
    /// [`Refusal`] for a device that is not known or cannot be given.
    pub fn devices(&self, description: &mut Description, names: &[String]) -> Result<(), Refusal> {
        let device = |name: &String| CdiDevice { name: name.clone() };
        let cdi_devices: Vec<_> = names.iter().map(device).collect();
        let devices = cdi::asked(&ContainerConfig { cdi_devices, ..ContainerConfig::default() })?;
        cdi::apply(description, &self.cdi.additions(&devices)?)
    }

    /// Problems in the files, as text: each damaged one, and why. A directory of hooks that is missing may be
    /// misspelt; those of devices come with a vendor's driver.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.cdi.problems();
        problems.extend(self.hooks.problems());
        let missing = self.hooks.directories.iter().filter(|directory| !directory.exists());
        problems.extend(
            missing.map(|directory| format!("{}: there is no such directory of hooks", directory.display())),
        );
        problems
    }
}

/// Describes a container for this machine. If wharf's own AppArmor profile is to confine it, and is not loaded any
/// more, that is noted for [`crate::ensure_profile`].
///
/// # Errors
/// The request cannot be fulfilled with what is on the host, or that cannot be read.
pub fn describe(
    request: &Request<'_>,
    machine: &Machine,
    places: &Places,
    additions: &Additions,
) -> Result<Description, Error> {
    let mut description = planner::describe(request, &facts(request, machine)?, places)?;
    additions.apply(&mut description, request)?;
    let process = description.spec.process().as_ref();
    apparmor::note_if_unloaded(process.and_then(|process| process.apparmor_profile().as_deref()))?;
    Ok(description)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_hooks_that_is_missing_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("hoks.d");
        let config = AdditionsConfig {
            cdi: Switch::On,
            cdi_directories: vec![dir.path().join("cdi")],
            hook_directories: vec![dir.path().to_owned(), missing.clone()],
        };
        let problems = Additions::new(config).problems();
        assert_eq!(problems, [format!("{}: there is no such directory of hooks", missing.display())]);
    }
}
