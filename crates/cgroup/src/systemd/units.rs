//! The names of systemd's units, and the paths of their cgroups.

use cgroups_rs::systemd::utils::expand_slice;

use crate::path::{CgroupPath, PathError};

/// What the names of slices and scopes end with.
pub(crate) const SLICE: &str = ".slice";
pub(crate) const SCOPE: &str = ".scope";

/// The two cgroups in a scope, as systemd-nspawn divides one: what it is for, and the process that keeps it.
pub(crate) const PAYLOAD: &str = "payload";
const HOLDER: &str = "holder";

/// A slice, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slice(String);

impl Slice {
    /// The slice in the last component of a path, as a kubelet names the parent of a pod's cgroups.
    pub(crate) fn at_end_of(path: &str) -> Result<Self, PathError> {
        let path = CgroupPath::new(path)?;
        match path.name() {
            name if is_unit(name, SLICE) && expand_slice(name).is_ok_and(|path| !path.is_empty()) => {
                Ok(Self(name.to_owned()))
            }
            _ => Err(PathError::NoSlice { path: path.to_string() }),
        }
    }

    /// Where it is: its name says which slices it is in.
    pub(crate) fn path(&self) -> Result<CgroupPath, PathError> {
        let path =
            expand_slice(&self.0).map_err(|_one_reason| PathError::NoSlice { path: self.0.clone() })?;
        CgroupPath::new(&path)
    }

    /// The slice whose cgroup has this path.
    pub(crate) fn of(path: &CgroupPath) -> Option<Self> {
        Self::at_end_of(path.as_str()).ok()
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }
}

/// A scope of wharf's, which has two cgroups below its own: systemd sets what is in a scope's own cgroup, and leaves
/// alone what is below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    path: CgroupPath,
}

impl Scope {
    /// The cgroup for what a scope is for, by the slice and the name of that scope.
    pub(crate) fn payload(slice: &CgroupPath, name: &str) -> Result<CgroupPath, PathError> {
        slice.child(name)?.child(PAYLOAD)
    }

    /// The scope of which this is the payload.
    pub(crate) fn around(payload: &CgroupPath) -> Option<Self> {
        let path = payload.parent()?;
        (payload.name() == PAYLOAD && is_unit(path.name(), SCOPE)).then_some(Self { path })
    }

    pub(crate) fn path(&self) -> &CgroupPath {
        &self.path
    }

    pub(crate) fn name(&self) -> &str {
        self.path.name()
    }

    /// The name of the slice that it is in.
    pub(crate) fn slice(&self) -> String {
        self.path.parent().map_or_else(|| "-.slice".to_owned(), |slice| slice.name().to_owned())
    }

    /// The cgroup of the process that keeps it.
    pub(crate) fn holder(&self) -> Result<CgroupPath, PathError> {
        self.path.child(HOLDER)
    }
}

/// Whether a name is one of a unit of this kind. Its length is limited as that of a directory is.
fn is_unit(name: &str, ending: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\".contains(&byte);
    let stem = name.strip_suffix(ending).unwrap_or_default();
    !stem.is_empty() && !stem.ends_with(ending) && stem.bytes().all(is_good)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> CgroupPath {
        CgroupPath::new(text).unwrap()
    }

    #[test]
    fn a_scope_is_known_by_its_payload() {
        let payload = Scope::payload(&path("/a.slice/a-b.slice"), "wharf-1.scope").unwrap();
        let scope = Scope::around(&payload).unwrap();
        assert_eq!((scope.name(), scope.slice().as_str()), ("wharf-1.scope", "a-b.slice"));
        assert_eq!(scope.path().as_str(), "/a.slice/a-b.slice/wharf-1.scope");
        assert_eq!(scope.holder().unwrap().as_str(), "/a.slice/a-b.slice/wharf-1.scope/holder");
        for other in [
            "/wharf/p/c",
            "/payload",
            "/a.slice/payload",
            "/a.scope",
            "/.scope/payload",
            "/a.scope/payload/c",
        ] {
            assert_eq!(Scope::around(&path(other)), None, "{other}");
        }
    }

    #[test]
    fn a_slice_is_known_by_its_name() {
        assert_eq!(Slice::of(&path("/a.slice/a-b.slice")).unwrap().name(), "a-b.slice");
        for other in ["/wharf", "/a.slice/c", "/a.slice.slice", "/a+b.slice"] {
            assert_eq!(Slice::of(&path(other)), None, "{other}");
        }
    }
}
