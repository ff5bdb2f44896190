//! Paths of the host and paths in a container. They are two types, so that one can never be used as the other.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::{ErrorKind, Failure};

/// The directory for the logs of the pods that `wharf run` creates; each pod has its own directory in it.
pub const POD_LOGS: &str = "/var/log/wharf";

/// Why a text is not a usable path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The path does not begin with a slash.
    #[error("path {path:?} is not absolute")]
    Relative {
        /// The path as given.
        path: String,
    },
    /// The path has a NUL byte, or is longer than the kernel's 4096 bytes.
    #[error("path {path:?} has a NUL byte or more than 4095 bytes")]
    Malformed {
        /// The path, shortened to 200 characters.
        path: String,
    },
}

impl Failure for PathError {
    /// The class for a path that wharf itself made. Code that reads a path from a request names the field and refuses
    /// it as an invalid argument.
    fn kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }
}

fn check(text: &str) -> Result<(), PathError> {
    if text.len() > 4095 || text.contains('\0') {
        return Err(PathError::Malformed { path: text.chars().take(200).collect() });
    }
    if !text.starts_with('/') {
        return Err(PathError::Relative { path: text.to_owned() });
    }
    Ok(())
}

/// An absolute path in the host's mount namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPath(PathBuf);

impl HostPath {
    /// Takes an absolute path without NUL bytes.
    ///
    /// # Errors
    /// [`PathError`] if it is relative or malformed.
    pub fn new(text: &str) -> Result<Self, PathError> {
        check(text)?;
        Ok(Self(PathBuf::from(text)))
    }

    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// The path as text; it was made from text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// An absolute path as a process inside a container sees it. It has no meaning until it is resolved through file
/// descriptors below the container's root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerPath(Box<str>);

impl ContainerPath {
    /// Takes an absolute path. Repeated slashes and `.` components are dropped, and `..` is dropped together with the
    /// component before it. Like Kubernetes, this works on the text alone and does not look at links.
    ///
    /// # Errors
    /// [`PathError`] if it is relative or malformed.
    pub fn new(text: &str) -> Result<Self, PathError> {
        check(text)?;
        let mut clean = String::with_capacity(text.len());
        for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
            if part == ".." {
                clean.truncate(clean.rfind('/').unwrap_or(0));
            } else {
                clean.push('/');
                clean.push_str(part);
            }
        }
        if clean.is_empty() {
            clean.push('/');
        }
        Ok(Self(clean.into()))
    }

    /// The path with its leading slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path without its leading slash; empty for the root.
    #[must_use]
    pub fn relative(&self) -> &str {
        &self.0[1..]
    }

    /// Whether it is below another path.
    #[must_use]
    pub fn is_below(&self, other: &Self) -> bool {
        let rest = self.0.strip_prefix(if other.depth() == 0 { "" } else { other.as_str() });
        rest.is_some_and(|rest| rest.len() > 1 && rest.starts_with('/'))
    }

    /// The number of components; 0 for the root.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.relative().split('/').filter(|part| !part.is_empty()).count()
    }
}

macro_rules! show {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.as_str())
            }
        }
    };
}

show!(HostPath);
show!(ContainerPath);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_paths_are_cleaned() {
        assert_eq!(ContainerPath::new("//a/./b/").unwrap().as_str(), "/a/b");
        for (text, clean) in [
            ("/a/../b/", "/b"),
            ("/a/b/../../c", "/c"),
            ("/a/..", "/"),
            ("/..", "/"),
            ("/../../a/./..b", "/a/..b"),
        ] {
            assert_eq!(ContainerPath::new(text).unwrap().as_str(), clean, "{text}");
        }
        assert_eq!(ContainerPath::new("/").unwrap().depth(), 0);
        assert_eq!(ContainerPath::new("/a/b").unwrap().relative(), "a/b");
    }

    #[test]
    fn a_path_is_below_whole_components() {
        let below = |one: &str, other: &str| {
            ContainerPath::new(one).unwrap().is_below(&ContainerPath::new(other).unwrap())
        };
        assert!(below("/a/b", "/a") && below("/a", "/") && below("/a/b/c", "/a"));
        assert!(!below("/a", "/a") && !below("/ab", "/a") && !below("/a", "/a/b") && !below("/", "/"));
    }

    #[test]
    fn bad_paths_are_refused() {
        assert!(ContainerPath::new("a").is_err());
        assert!(ContainerPath::new("../a").is_err());
        assert!(ContainerPath::new("/a\0b").is_err());
        assert!(HostPath::new("/a\0b").is_err());
        assert!(HostPath::new(&"/a".repeat(3000)).is_err());
    }
}
