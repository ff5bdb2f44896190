//! Whether this machine can make pods with user namespaces: it is tried, because it depends on the kernel, on a limit
//! and on the file system of the layers.

use std::fs::{DirBuilder, remove_dir_all};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use wharf_cri_api::v1::PodSandboxConfig;
use wharf_planner::{namespaces_of, user_namespace as user_namespace_of};
use wharf_sys::error::Named as _;
use wharf_sys::overlay::Overlay;
use wharf_sys::user_namespace;
use wharf_types::{ErrorKind, Failure, IdMaps, IdRange, Stage as _, StageError};

use crate::error::Error;

const STAGE: &str = "trying a root file system in a user namespace";

/// The outcome.
#[derive(Debug)]
pub struct UserNamespaces(Result<(), StageError>);

impl UserNamespaces {
    /// Makes what a container with a user namespace needs, in a new directory beside the layers, and removes it.
    #[must_use]
    pub fn try_out(root: &Path) -> Self {
        Self(try_in(&root.join("probe")))
    }

    /// Whether pods can have them.
    ///
    /// # Errors
    /// The step that failed.
    pub fn outcome(&self) -> Result<(), &StageError> {
        self.0.as_ref().copied()
    }

    /// Checks that a pod can have the user namespace that it asks for, if it does.
    ///
    /// # Errors
    /// Unimplemented, with the step that failed.
    pub fn check(&self, config: &PodSandboxConfig) -> Result<(), Error> {
        match (user_namespace_of(&namespaces_of(config))?, &self.0) {
            (Some(_asked), Err(problem)) => {
                let problem = wharf_types::chain(problem);
                Err(StageError::at("userns_options", Incapable { problem }).into())
            }
            _ => Ok(()),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("this machine cannot give pods user namespaces: {problem}")]
struct Incapable {
    problem: String,
}

impl Failure for Incapable {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unimplemented
    }
}

fn try_in(place: &Path) -> Result<(), StageError> {
    let clear = || match remove_dir_all(place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).stage(STAGE),
        _ => Ok(()),
    };
    // A daemon may have died at it.
    clear()?;
    // In a thread of its own, which may change its directory, and before Linux 6.15 its mounts.
    let tried = std::thread::scope(|scope| scope.spawn(|| try_it(place)).join());
    let tried = tried.unwrap_or_else(|_panic| Err(std::io::Error::other("the thread panicked")).stage(STAGE));
    clear()?;
    tried
}

fn try_it(place: &Path) -> Result<(), StageError> {
    let [layer, upper, work] = ["layer", "upper", "work"].map(|name| place.join(name));
    for directory in [&layer, &upper, &work] {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).stage(STAGE)?;
    }
    let range = IdRange::new(1 << 16, 1 << 16).stage(STAGE)?;
    let namespace = user_namespace::make(IdMaps { users: range, groups: range }).stage(STAGE)?;
    let network = || unshare(CloneFlags::CLONE_NEWNET).named("unshare", || "CLONE_NEWNET".into());
    user_namespace::inside(namespace.as_fd(), network).stage(STAGE)?;
    unshare(CloneFlags::CLONE_FS).stage(STAGE)?;
    let user_namespace = Some(namespace.as_fd());
    let overlay = Overlay { lowers: &[&layer], upper: &upper, work: &work, user_namespace };
    overlay.detached(&upper).map(drop).stage(STAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_done_is_said_and_nothing_stays() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("probe/of/another")).unwrap();
        UserNamespaces::try_out(temp.path()).outcome().unwrap();
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
        let file = temp.path().join("file");
        std::fs::write(&file, "").unwrap();
        let cannot = UserNamespaces::try_out(&file);
        assert!(cannot.outcome().is_err());
        cannot.check(&PodSandboxConfig::default()).unwrap();
    }
}
