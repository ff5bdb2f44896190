//! The request's mounts: checked, resolved on the host, and put among the container's own.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use wharf_cri_api::v1::{Mount, MountPropagation};
use wharf_isolation::{MountPlan, Source};
use wharf_sys::mount::{Attributes, Propagation, propagation_of};
use wharf_types::{ContainerPath, HostPath};

use crate::error::Error;
use crate::refuse;

/// One mount of a request as a plan.
pub(crate) fn plan(mount: &Mount) -> Result<MountPlan, Error> {
    let fail = |problem: String| Error::invalid("mounts", format!("{}: {problem}", mount.container_path));
    if mount.image.is_some() {
        // The word is what the kubelet looks for, at the beginning; by the code others tell what is not there from what failed.
        return Err(Error::Unsupported { reason: "ImageVolumeMountFailed", what: "images as volumes" });
    }
    if !(mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty()) {
        return Err(fail("uidMappings and gidMappings are not supported yet: leave them out".to_owned()));
    }
    let target = ContainerPath::new(&mount.container_path).map_err(|error| fail(error.to_string()))?;
    if target.depth() == 0 {
        return Err(fail("nothing can be mounted over the container's root".to_owned()));
    }
    let source = source(&mount.host_path)
        .map_err(|error| fail(format!("host path {:?}: {error}", mount.host_path)))?;
    let propagation = propagation(mount, &source).map_err(fail)?;
    if mount.recursive_read_only && (!mount.readonly || propagation != Propagation::Private) {
        return Err(fail("recursive_read_only needs readonly and private propagation".to_owned()));
    }
    let source = source.to_str().ok_or_else(|| fail("the host path is not UTF-8".to_owned()))?;
    Ok(MountPlan {
        target,
        source: Source::Tree(HostPath::new(source).map_err(|error| fail(error.to_string()))?),
        attributes: attributes(mount).map_err(fail)?,
        recursive_read_only: mount.recursive_read_only,
        propagation,
    })
}

/// What is mounted. Links are followed once, here: it is what the path leads to now. A directory that is missing is made,
/// as the other runtimes do and workloads count on.
fn source(path: &str) -> std::io::Result<PathBuf> {
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && path.starts_with('/') => {
            DirBuilder::new().recursive(true).mode(0o755).create(path)?;
            std::fs::canonicalize(path)
        }
        other => other,
    }
}

fn attributes(mount: &Mount) -> Result<Attributes, String> {
    let read_only = if mount.readonly { Attributes::READ_ONLY } else { Attributes::NONE };
    mount.mount_options.iter().try_fold(read_only, |attributes, option| {
        Ok(attributes.and(match option.as_str() {
            "noexec" => Attributes::NO_EXEC,
            "nodev" => Attributes::NO_DEV,
            "nosuid" => Attributes::NO_SUID,
            _ => return Err(format!("mount_options: {option:?} is none of noexec, nodev and nosuid")),
        }))
    })
}

/// How mounts made later propagate. One that cannot, since the source's own mount does not, is refused: it would silently
/// be private.
fn propagation(mount: &Mount, source: &std::path::Path) -> Result<Propagation, String> {
    let wanted = refuse::propagation(mount.propagation).map_err(|error| error.to_string())?;
    if wanted == MountPropagation::PropagationPrivate {
        return Ok(Propagation::Private);
    }
    let sources = propagation_of(source).map_err(|error| error.to_string())?;
    match (wanted, sources) {
        (MountPropagation::PropagationBidirectional, Propagation::Shared) => Ok(Propagation::Shared),
        (MountPropagation::PropagationBidirectional, _) => {
            Err(format!("{} is on a mount that is not shared: mount --make-rshared", source.display()))
        }
        (_, Propagation::Shared | Propagation::Slave) => Ok(Propagation::Slave),
        (_, Propagation::Private) => {
            Err(format!("{} is on a mount that is neither shared nor slave", source.display()))
        }
    }
}

/// All mounts in their order. The usual ones come first, without those that a request names or that lie below one it
/// names: they are the request's business then. The pod's come among the request's by depth, so that none hides another.
pub(crate) fn merge(
    usual: Vec<MountPlan>,
    pods: Vec<MountPlan>,
    mut asked: Vec<MountPlan>,
) -> Vec<MountPlan> {
    let below = |mount: &MountPlan| asked.iter().any(|asked| mount.target.is_below(&asked.target));
    let named = |mount: &MountPlan| asked.iter().any(|asked| mount.target == asked.target);
    let mut all: Vec<MountPlan> = usual.into_iter().filter(|mount| !named(mount) && !below(mount)).collect();
    let mut rest: Vec<MountPlan> = pods.into_iter().filter(|mount| !named(mount)).collect();
    rest.append(&mut asked);
    rest.sort_by_key(|mount| mount.target.depth());
    all.append(&mut rest);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_planner::defaults::bind;

    fn targets(usual: &[&str], pods: &[&str], asked: &[&str]) -> Vec<String> {
        let mounts = |targets: &[&str]| {
            let mount = |target: &&str| bind(target, HostPath::new("/x").unwrap(), Attributes::NONE).unwrap();
            targets.iter().map(mount).collect()
        };
        merge(mounts(usual), mounts(pods), mounts(asked))
            .iter()
            .map(|mount| mount.target.to_string())
            .collect()
    }

    #[test]
    fn none_hides_another() {
        let usual = ["/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup"];
        let pods = ["/dev/shm", "/etc/hosts"];
        let all = targets(&usual, &pods, &["/deep/er", "/etc", "/data"]);
        let want = [
            "/proc",
            "/dev",
            "/dev/pts",
            "/sys",
            "/sys/fs/cgroup",
            "/etc",
            "/data",
            "/dev/shm",
            "/etc/hosts",
            "/deep/er",
        ];
        assert_eq!(all, want);
        let all = targets(&usual, &pods, &["/dev", "/sys", "/etc/hosts"]);
        assert_eq!(all, ["/proc", "/dev", "/sys", "/dev/shm", "/etc/hosts"]);
        assert_eq!(targets(&["/dev"], &[], &["/devices"]), ["/dev", "/devices"]);
    }

    #[test]
    fn a_missing_directory_is_made_and_a_bad_path_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("a/b");
        assert_eq!(source(missing.to_str().unwrap()).unwrap(), missing.canonicalize().unwrap());
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        for bad in ["file/below", "link", "link/below"] {
            assert!(source(dir.path().join(bad).to_str().unwrap()).is_err(), "{bad}");
        }
        assert!(!dir.path().join("nowhere").exists());
        assert!(source("relative").is_err());
        assert!(source("").is_err());
    }
}
