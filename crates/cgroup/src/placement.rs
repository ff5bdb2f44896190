//! Where the cgroups of pods, containers and supervisors are, by who makes them. It does no I/O.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::path::{CgroupPath, PathError};
use crate::systemd::units::{SCOPE, SLICE, Scope, Slice};

/// Who makes the cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// wharf, in the cgroup file system.
    #[default]
    Cgroupfs,
    /// systemd: a container's cgroup is in a scope, and a pod's is a slice.
    Systemd,
}

impl fmt::Display for Driver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        })
    }
}

/// What the name of a container's scope begins with.
const OF_CONTAINER: &str = "wharf-";

/// Who makes the cgroups, and where those are that no request places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    driver: Driver,
    parent: CgroupPath,
}

impl Placement {
    /// The parent if the configuration names none.
    #[must_use]
    pub fn default_parent(driver: Driver) -> &'static str {
        match driver {
            Driver::Cgroupfs => "/wharf",
            Driver::Systemd => "/wharf.slice",
        }
    }

    /// With the parent of the cgroups of pods whose request names none.
    ///
    /// # Errors
    /// [`PathError`] for what is no cgroup, or no slice if systemd makes them.
    pub fn new(driver: Driver, parent: &str) -> Result<Self, PathError> {
        let parent = match driver {
            Driver::Cgroupfs => CgroupPath::new(parent)?,
            Driver::Systemd => Slice::at_end_of(parent)?.path()?,
        };
        Ok(Self { driver, parent })
    }

    /// Who makes the cgroups.
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// The parent of the cgroups of pods whose request names none.
    #[must_use]
    pub fn parent(&self) -> &CgroupPath {
        &self.parent
    }

    /// The cgroup that contains those of a pod's containers: the one that the request asks for, or one of the pod's
    /// own.
    ///
    /// # Errors
    /// [`PathError`] for what is no cgroup, or no slice if systemd makes them.
    pub fn pod(&self, id: &str, asked: Option<&str>) -> Result<CgroupPath, PathError> {
        match (self.driver, asked) {
            (Driver::Cgroupfs, Some(asked)) => CgroupPath::new(asked),
            (Driver::Cgroupfs, None) => self.parent.child(id),
            (Driver::Systemd, Some(asked)) => Slice::at_end_of(asked)?.path(),
            (Driver::Systemd, None) => self.parent.child(&format!("{}-{id}{SLICE}", self.stem())),
        }
    }

    /// The cgroup of a container of a pod with that cgroup.
    ///
    /// # Errors
    /// [`PathError`] if the id is no name.
    pub fn container(&self, pod: &CgroupPath, id: &str) -> Result<CgroupPath, PathError> {
        match self.driver {
            Driver::Cgroupfs => pod.child(id),
            Driver::Systemd => Scope::payload(pod, &format!("{OF_CONTAINER}{id}{SCOPE}")),
        }
    }

    /// The id of the container, if a name in such a path is its directory or scope, whoever has made it.
    #[must_use]
    pub fn id_in(name: &str) -> &str {
        name.strip_prefix(OF_CONTAINER).and_then(|name| name.strip_suffix(SCOPE)).unwrap_or(name)
    }

    /// The cgroup of all supervisors.
    ///
    /// # Errors
    /// [`PathError`] if the path becomes too long.
    pub fn supervisors(&self) -> Result<CgroupPath, PathError> {
        const NAME: &str = "supervisors";
        match self.driver {
            Driver::Cgroupfs => self.parent.child(NAME),
            Driver::Systemd => Scope::payload(&self.parent, &format!("{}-{NAME}{SCOPE}", self.stem())),
        }
    }

    /// What the names of units below the parent begin with.
    fn stem(&self) -> &str {
        self.parent.name().trim_end_matches(SLICE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: Result<CgroupPath, PathError>) -> String {
        path.map_or_else(|error| error.to_string(), |path| path.to_string())
    }

    #[test]
    fn wharf_makes_directories_below_its_parent_or_the_kubelets() {
        let placement = Placement::new(Driver::Cgroupfs, "wharf").unwrap();
        assert_eq!(text(placement.pod("p", None)), "/wharf/p");
        assert_eq!(text(placement.pod("p", Some("/kubepods/pod1"))), "/kubepods/pod1");
        let pod = placement.pod("p", Some("/x.slice")).unwrap();
        assert_eq!(text(placement.container(&pod, "c")), "/x.slice/c");
        assert_eq!(text(placement.supervisors()), "/wharf/supervisors");
        assert!(Placement::new(Driver::Cgroupfs, "/../up").is_err());
    }

    #[test]
    fn systemd_makes_scopes_in_slices() {
        let placement = Placement::new(Driver::Systemd, "/node-wharf.slice").unwrap();
        assert_eq!(placement.parent().as_str(), "/node.slice/node-wharf.slice");
        assert_eq!(text(placement.pod("p", None)), "/node.slice/node-wharf.slice/node-wharf-p.slice");
        let kubelets = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podu_1.slice";
        let pod = placement.pod("p", Some(kubelets)).unwrap();
        assert_eq!(pod.as_str(), kubelets);
        assert_eq!(text(placement.container(&pod, "c")), format!("{kubelets}/wharf-c.scope/payload"));
        assert_eq!((Placement::id_in("wharf-c.scope"), Placement::id_in("c")), ("c", "c"));
        assert_eq!(text(placement.pod("p", Some("test.slice"))), "/test.slice");
        let supervisors = "/node.slice/node-wharf.slice/node-wharf-supervisors.scope/payload";
        assert_eq!(text(placement.supervisors()), supervisors);
    }

    #[test]
    fn what_is_no_slice_is_refused_where_systemd_makes_the_cgroups() {
        let placement = Placement::new(Driver::Systemd, Placement::default_parent(Driver::Systemd)).unwrap();
        let refused = text(placement.pod("p", Some("/kubepods/pod1")));
        assert!(refused.contains("slice") && refused.contains("cgroup_driver"), "{refused}");
        for parent in ["/", "/-.slice", "/.slice", "/a--b.slice", "/a b.slice", "/../x.slice"] {
            assert!(placement.pod("p", Some(parent)).is_err(), "{parent}");
            assert!(Placement::new(Driver::Systemd, parent).is_err(), "{parent}");
        }
    }
}
