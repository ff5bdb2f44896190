//! The path of a cgroup, relative to the root of every hierarchy.

use std::fmt;
use std::path::{Path, PathBuf};

use wharf_types::{ErrorKind, Failure};

/// Why a text is not a cgroup's path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It is the root itself, which is never the cgroup of a pod or container.
    #[error("cgroup path {path:?} is the root")]
    Root {
        /// The path as given.
        path: String,
    },
    /// A component could leave the hierarchy, or the kernel does not accept it.
    #[error("cgroup path {path:?} has the invalid component {component:?}")]
    Component {
        /// The path, shortened to 200 characters.
        path: String,
        /// The component, shortened to 200 characters.
        component: String,
    },
    /// It does not end with a slice, where systemd makes the cgroups.
    #[error(
        "cgroup path {path:?} does not end with a slice such as wharf.slice: systemd makes the cgroups here \
         (cgroup_driver), and the kubelet must be told the same (cgroupDriver)"
    )]
    NoSlice {
        /// The path.
        path: String,
    },
    /// It has more than 4000 bytes.
    #[error("cgroup path {path:?} is longer than 4000 bytes")]
    Long {
        /// The path, shortened to 200 characters.
        path: String,
    },
}

impl Failure for PathError {
    /// The request can never work.
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// The name of the cgroup for the processes of an enclosed one.
pub(crate) const INSIDE: &str = "container";

/// An absolute, normal path below the root of the hierarchies, such as `/kubepods/burstable/pod1/0123`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupPath(String);

impl CgroupPath {
    /// Takes a path with or without its leading slash; empty components and `.` are dropped.
    ///
    /// # Errors
    /// [`PathError`] for the root, `..`, NUL, a line feed, a component of more than 255 bytes or one that looks like a
    /// kernel file (`cgroup.`), and a path of more than 4000 bytes.
    pub fn new(text: &str) -> Result<Self, PathError> {
        if text.len() > 4000 {
            return Err(PathError::Long { path: shorten(text) });
        }
        let mut path = String::with_capacity(text.len() + 1);
        for component in text.split('/').filter(|component| !component.is_empty() && *component != ".") {
            if !is_component(component) {
                return Err(PathError::Component { path: shorten(text), component: shorten(component) });
            }
            path.push('/');
            path.push_str(component);
        }
        if path.is_empty() { Err(PathError::Root { path: text.to_owned() }) } else { Ok(Self(path)) }
    }

    /// The child cgroup called `name`.
    ///
    /// # Errors
    /// [`PathError`] if `name` is not one valid component.
    pub fn child(&self, name: &str) -> Result<Self, PathError> {
        if name.contains('/') || name == "." || name.is_empty() {
            return Err(PathError::Component { path: self.0.clone(), component: shorten(name) });
        }
        Self::new(&format!("{}/{name}", self.0))
    }

    /// The cgroup above it; `None` for one at the root.
    pub(crate) fn parent(&self) -> Option<Self> {
        let (parent, _name) = self.0.rsplit_once('/')?;
        (!parent.is_empty()).then(|| Self(parent.to_owned()))
    }

    /// Its last component.
    pub(crate) fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_parent, name)| name)
    }

    /// The child for the processes of an enclosed cgroup.
    pub(crate) fn inside(&self) -> Self {
        Self(format!("{}/{INSIDE}", self.0))
    }

    /// The path as text, with its leading slash and without a trailing one.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path from the root of a hierarchy.
    pub(crate) fn relative(&self) -> &str {
        self.0.trim_start_matches('/')
    }

    /// The path below a mount point.
    pub(crate) fn under(&self, mount: &Path) -> PathBuf {
        mount.join(self.relative())
    }

    /// The paths below a mount point for each ancestor from the top down, ending with the whole path.
    pub(crate) fn steps(&self, mount: &Path) -> Vec<PathBuf> {
        let mut at = mount.to_path_buf();
        self.0
            .split('/')
            .filter(|component| !component.is_empty())
            .map(|component| {
                at.push(component);
                at.clone()
            })
            .collect()
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for CgroupPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "CgroupPath({})", self.0)
    }
}

fn is_component(component: &str) -> bool {
    component != ".."
        && component.len() <= 255
        && !component.starts_with("cgroup.")
        && !component.contains(['\0', '\n'])
}

fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_paths_are_normal() {
        for (text, path) in [
            ("/kubepods/burstable/pod1/0a", "/kubepods/burstable/pod1/0a"),
            ("kubepods//besteffort/", "/kubepods/besteffort"),
            ("/./test.slice", "/test.slice"),
            ("/a..b/...", "/a..b/..."),
        ] {
            assert_eq!(CgroupPath::new(text).unwrap().as_str(), path);
        }
    }

    #[test]
    fn bad_paths_are_refused() {
        let long = "a/".repeat(2001);
        let wide = "a".repeat(256);
        for text in ["", "/", "/.", "..", "/a/../b", "/a\0", "/a\nb", "/a/cgroup.procs", &long, &wide] {
            assert!(CgroupPath::new(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_child_is_one_component() {
        let path = CgroupPath::new("/a").unwrap();
        assert_eq!(path.child("b").unwrap().as_str(), "/a/b");
        for name in ["", ".", "..", "b/c", "/b", "b\0"] {
            assert!(path.child(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_parent_is_above() {
        let path = CgroupPath::new("/a/b").unwrap();
        let parent = path.parent().unwrap();
        assert_eq!((parent.as_str(), path.name(), parent.name()), ("/a", "b", "a"));
        assert_eq!(parent.parent(), None);
    }

    #[test]
    fn steps_go_from_the_root_down() {
        let path = CgroupPath::new("/a/b").unwrap();
        assert_eq!(path.steps(Path::new("/m")), [PathBuf::from("/m/a"), PathBuf::from("/m/a/b")]);
        assert_eq!(path.under(Path::new("/m")), PathBuf::from("/m/a/b"));
    }
}
