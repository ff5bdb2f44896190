//! Whether this machine can make pods with user namespaces: it is tried, because it depends on the kernel, on a limit
//! and on the file system of the layers.

use std::fs::{DirBuilder, remove_dir_all};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use wharf_cri_api::v1::PodSandboxConfig;
use wharf_planner::{namespaces_of, user_namespace as user_namespace_of};
use wharf_sys::error::Named as _;
use wharf_sys::overlay::Overlay;
use wharf_sys::user_namespace;
use wharf_types::lock::lock;
use wharf_types::{ErrorKind, Failure, IdMaps, IdRange, Stage as _, StageError, chain};

use crate::error::Error;

const STAGE: &str = "trying a root file system in a user namespace";

/// The outcome, and where it was tried.
#[derive(Debug)]
pub struct UserNamespaces {
    place: PathBuf,
    /// Held during a trial, and taken before `last`.
    trial: Mutex<()>,
    last: Mutex<Result<(), Arc<Obstacle>>>,
}

/// What kept the trial from its end.
#[derive(Debug, thiserror::Error)]
pub enum Obstacle {
    /// This machine cannot do it.
    #[error("this machine cannot give pods user namespaces")]
    Machine(#[source] StageError),
    /// The machine is short of something, or a disk fails: nobody knows yet whether it can.
    #[error("whether this machine can give pods user namespaces cannot be tested now")]
    Unknown(#[source] StageError),
}

impl Obstacle {
    fn is_passing(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

impl Failure for Obstacle {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Machine(_) => ErrorKind::Unimplemented,
            Self::Unknown(error) => error.kind(),
        }
    }
}

impl UserNamespaces {
    /// Makes what a container with a user namespace needs, in a new directory beside the layers, and removes it.
    #[must_use]
    pub fn try_out(root: &Path) -> Self {
        let place = root.join("probe");
        let last = try_in(&place);
        if let Err(obstacle) = &last
            && obstacle.is_passing()
        {
            let error = chain(&**obstacle);
            tracing::warn!(
                error,
                "the first pod that asks for a user namespace tries whether it can have one"
            );
        }
        Self { place, trial: Mutex::new(()), last: Mutex::new(last) }
    }

    /// Whether pods can have them, or nobody knows that they cannot: somebody who is told that they cannot would not
    /// ask for them.
    ///
    /// # Errors
    /// The step that failed.
    pub fn outcome(&self) -> Result<(), Arc<Obstacle>> {
        lock(&self.last)
            .clone()
            .or_else(|obstacle| if obstacle.is_passing() { Ok(()) } else { Err(obstacle) })
    }

    /// Checks that a pod can have the user namespace that it asks for, if it does. If that is not known, it is tried
    /// again.
    ///
    /// # Errors
    /// Unimplemented, or the class of what still keeps it from being tried; with the step that failed.
    pub fn check(&self, config: &PodSandboxConfig) -> Result<(), Error> {
        if user_namespace_of(&namespaces_of(config))?.is_none() {
            return Ok(());
        }
        let _one_at_a_time = lock(&self.trial);
        let mut last = lock(&self.last).clone();
        if last.as_ref().is_err_and(|obstacle| obstacle.is_passing()) {
            last = try_in(&self.place);
            lock(&self.last).clone_from(&last);
        }
        Ok(last.map_err(Shared).stage("userns_options")?)
    }
}

/// The same obstacle, for one pod of several.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Shared(Arc<Obstacle>);

impl Failure for Shared {
    fn kind(&self) -> ErrorKind {
        self.0.kind()
    }
}

fn try_in(place: &Path) -> Result<(), Arc<Obstacle>> {
    let clear = || match remove_dir_all(place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).stage(STAGE),
        _ => Ok(()),
    };
    // A daemon may have died at it.
    clear().map_err(Obstacle::Unknown)?;
    // In a thread of its own, which may change its directory, and before Linux 6.15 its mounts.
    let tried = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || try_it(place))?;
        thread.join().map_err(|_panic| std::io::Error::other("the thread panicked"))
    });
    clear().map_err(Obstacle::Unknown)?;
    Ok(tried.stage(STAGE).map_err(Obstacle::Unknown)??)
}

fn try_it(place: &Path) -> Result<(), Obstacle> {
    // Where a store has them: before Linux 6.15, the directory with the layers is covered, and what is written must not
    // be in it.
    let [layer, upper, work] = ["layers/1/fs", "upper", "work"].map(|name| place.join(name));
    for directory in [&layer, &upper, &work] {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.stage(STAGE).map_err(Obstacle::Unknown)?;
    }
    let range = IdRange::new(1 << 16, 1 << 16).stage(STAGE).map_err(Obstacle::Machine)?;
    let namespace = user_namespace::make(IdMaps { users: range, groups: range }).map_err(of_namespaces)?;
    let network = || unshare(CloneFlags::CLONE_NEWNET).named("unshare", || "CLONE_NEWNET".into());
    user_namespace::inside(namespace.as_fd(), network).map_err(of_namespaces)?;
    unshare(CloneFlags::CLONE_FS).named("unshare", || "CLONE_FS".into()).map_err(of_namespaces)?;
    let user_namespace = Some(namespace.as_fd());
    let overlay = Overlay { lowers: &[&layer], upper: &upper, work: &work, user_namespace, label: None };
    overlay.detached(&upper).map(drop).map_err(of_disks)
}

fn of_namespaces(error: wharf_sys::Error) -> Obstacle {
    // This is their limit, which may be 0.
    if error.errno == Errno::ENOSPC {
        Obstacle::Machine(StageError::at(STAGE, error))
    } else {
        of_disks(error)
    }
}

fn of_disks(error: wharf_sys::Error) -> Obstacle {
    let is_passing = error.errno == Errno::EIO || error.kind() == ErrorKind::ResourceExhausted;
    let error = StageError::at(STAGE, error);
    if is_passing { Obstacle::Unknown(error) } else { Obstacle::Machine(error) }
}

#[cfg(test)]
mod tests {
    use nix::mount::{MsFlags, mount};
    use wharf_cri_api::v1;

    use super::*;

    #[test]
    fn what_cannot_be_done_is_said_and_nothing_stays() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("probe/of/another")).unwrap();
        UserNamespaces::try_out(temp.path()).outcome().unwrap();
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_keeps_the_trial_from_its_end_is_no_verdict() {
        let temp = tempfile::tempdir().unwrap();
        let full = temp.path().join("full");
        std::fs::create_dir(&full).unwrap();
        let options = Some("nr_inodes=2");
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("full"), &full, Some("tmpfs"), MsFlags::empty(), options).unwrap();
        let namespaces = UserNamespaces::try_out(&full);
        namespaces.outcome().unwrap();
        namespaces.check(&PodSandboxConfig::default()).unwrap();
        let refused = namespaces.check(&with_user_namespace()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ResourceExhausted, "{refused}");
        mount(None::<&str>, &full, None::<&str>, MsFlags::MS_REMOUNT, Some("nr_inodes=0")).unwrap();
        namespaces.check(&with_user_namespace()).unwrap();
        namespaces.outcome().unwrap();
    }

    #[test]
    fn a_limit_on_namespaces_is_the_machines_and_a_full_disk_is_not() {
        let error = |errno| wharf_sys::Error { call: "mount", arguments: String::new(), errno };
        for errno in [Errno::EMFILE, Errno::ENOMEM, Errno::EAGAIN, Errno::EIO] {
            assert!(matches!(of_namespaces(error(errno)), Obstacle::Unknown(_)), "{errno}");
            assert!(matches!(of_disks(error(errno)), Obstacle::Unknown(_)), "{errno}");
        }
        assert!(matches!(of_namespaces(error(Errno::ENOSPC)), Obstacle::Machine(_)));
        assert!(matches!(of_disks(error(Errno::ENOSPC)), Obstacle::Unknown(_)));
        assert!(matches!(of_disks(error(Errno::EINVAL)), Obstacle::Machine(_)));
    }

    fn with_user_namespace() -> PodSandboxConfig {
        let range = v1::IdMapping { host_id: 1 << 16, container_id: 0, length: 1 << 16 };
        let options = v1::UserNamespace { mode: 0, uids: vec![range], gids: vec![range] };
        let namespaces = v1::NamespaceOption { userns_options: Some(options), ..Default::default() };
        let context =
            v1::LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
        let linux = v1::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
        PodSandboxConfig { linux: Some(linux), ..Default::default() }
    }
}
