//! What every container gets unless the request says otherwise: mounts and devices.

use wharf_isolation::{DeviceNode, MountPlan, Source};
use wharf_sys::mount::{Attributes, Propagation};
use wharf_types::{ContainerPath, HostPath, PathError};

/// Whether a container may change what the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// `/sys` and the cgroups are read-only.
    Ordinary,
    /// They are writable.
    Privileged,
}

/// For what holds no programs and no devices.
pub const SAFE: Attributes = Attributes::NO_SUID.and(Attributes::NO_EXEC).and(Attributes::NO_DEV);

/// The kernel's file systems and `/dev`, in mounting order.
///
/// # Errors
/// Never for these constants; paths are checked all the same.
pub fn mounts(privilege: Privilege) -> Result<Vec<MountPlan>, PathError> {
    let seen = match privilege {
        Privilege::Ordinary => SAFE.and(Attributes::READ_ONLY),
        Privilege::Privileged => SAFE,
    };
    Ok(vec![
        filesystem("/proc", "proc", &[], SAFE)?,
        filesystem("/dev", "tmpfs", &[("mode", "755"), ("size", "65536k")], Attributes::NO_SUID)?,
        filesystem(
            "/dev/pts",
            "devpts",
            &[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")],
            Attributes::NO_SUID.and(Attributes::NO_EXEC),
        )?,
        filesystem("/dev/mqueue", "mqueue", &[], SAFE)?,
        filesystem("/sys", "sysfs", &[], seen)?,
    ])
}

/// The cgroup file systems below `/sys/fs/cgroup`: on v1 a directory of one bind a hierarchy, by the name of its mount; else
/// the unified one, which the host has mounted at `unified`.
///
/// # Errors
/// A path that is malformed.
pub fn cgroup_mounts(
    privilege: Privilege,
    v1: &[(String, HostPath)],
    unified: Option<HostPath>,
) -> Result<Vec<MountPlan>, PathError> {
    let attributes = match privilege {
        Privilege::Ordinary => SAFE.and(Attributes::READ_ONLY),
        Privilege::Privileged => SAFE,
    };
    if v1.is_empty() {
        // Outside of a cgroup namespace, where the privileged are, the options of a new mount become those of the host's.
        return match (privilege, unified) {
            (Privilege::Privileged, Some(unified)) => {
                bind("/sys/fs/cgroup", unified, attributes).map(|mount| vec![mount])
            }
            _ => filesystem("/sys/fs/cgroup", "cgroup2", &[], attributes).map(|mount| vec![mount]),
        };
    }
    let options = [("mode", "755"), ("size", "64k")];
    let mut mounts = vec![filesystem("/sys/fs/cgroup", "tmpfs", &options, attributes)?];
    for (name, directory) in v1 {
        mounts.push(bind(&format!("/sys/fs/cgroup/{name}"), directory.clone(), attributes)?);
    }
    Ok(mounts)
}

/// A private bind of one file or directory.
///
/// # Errors
/// A malformed target.
pub fn bind(target: &str, source: HostPath, attributes: Attributes) -> Result<MountPlan, PathError> {
    Ok(MountPlan {
        target: ContainerPath::new(target)?,
        source: Source::Single(source),
        attributes,
        recursive_read_only: false,
        propagation: Propagation::Private,
    })
}

fn filesystem(
    target: &str,
    kind: &str,
    options: &[(&str, &str)],
    attributes: Attributes,
) -> Result<MountPlan, PathError> {
    let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Ok(MountPlan {
        target: ContainerPath::new(target)?,
        source: Source::Filesystem { kind: kind.to_owned(), options },
        attributes,
        recursive_read_only: false,
        propagation: Propagation::Private,
    })
}

/// The six nodes every program may count on.
///
/// # Errors
/// Never for these constants.
pub fn devices() -> Result<Vec<DeviceNode>, PathError> {
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)]
        .into_iter()
        .map(|(name, major, minor)| {
            let path = ContainerPath::new(&format!("/dev/{name}"))?;
            Ok(DeviceNode { path, kind: S_IFCHR, major, minor, mode: 0o666, uid: 0, gid: 0 })
        })
        .collect()
}

/// The kernel's type bits of a character device.
pub const S_IFCHR: u32 = 0o020_000;
/// The kernel's type bits of a block device.
pub const S_IFBLK: u32 = 0o060_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_come_after_what_they_are_mounted_on() {
        let directory = HostPath::new("/cpu").unwrap();
        let mut plans = mounts(Privilege::Ordinary).unwrap();
        plans.extend(cgroup_mounts(Privilege::Ordinary, &[("cpu".into(), directory)], None).unwrap());
        for (at, plan) in plans.iter().enumerate() {
            let below = format!("{}/", plan.target);
            assert!(
                plans[..at].iter().all(|before| !before.target.as_str().starts_with(&below)),
                "{}",
                plan.target
            );
        }
    }

    #[test]
    fn only_the_privileged_may_write_sys() {
        for (privilege, read_only) in [(Privilege::Ordinary, true), (Privilege::Privileged, false)] {
            let plans = mounts(privilege).unwrap();
            let sys = plans.iter().find(|plan| plan.target.as_str() == "/sys").unwrap();
            assert_eq!(sys.attributes.has(Attributes::READ_ONLY), read_only);
        }
    }

    #[test]
    fn the_hosts_cgroup2_is_never_mounted_anew() {
        let unified = HostPath::new("/sys/fs/cgroup").unwrap();
        let mounts = |privilege| cgroup_mounts(privilege, &[], Some(unified.clone())).unwrap();
        assert_eq!(mounts(Privilege::Privileged)[0].source, Source::Single(unified.clone()));
        assert!(
            matches!(&mounts(Privilege::Ordinary)[0].source, Source::Filesystem { kind, .. } if kind == "cgroup2")
        );
    }

    #[test]
    fn the_directory_of_v1_hierarchies_is_read_only_for_ordinary_containers() {
        let cpu = [("cpu".to_owned(), HostPath::new("/cpu").unwrap())];
        for (privilege, read_only) in [(Privilege::Ordinary, true), (Privilege::Privileged, false)] {
            let mounts = cgroup_mounts(privilege, &cpu, None).unwrap();
            assert!(mounts.iter().all(|mount| mount.attributes.has(Attributes::READ_ONLY) == read_only));
        }
    }
}
