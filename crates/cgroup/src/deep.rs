//! A walk over a tree of cgroups of any depth, as [`wharf_sys::deep`] does it.
//!
//! A container that makes cgroups of its own decides how deep they go, so a path may become longer than the kernel
//! takes. The paths that are handed out here go through a descriptor in procfs. They are short, and valid for the call
//! only.

use std::path::{Path, PathBuf};

use nix::unistd::{UnlinkatFlags, unlinkat};
use wharf_sys::deep::walk;
use wharf_sys::fs::proc_path;

use crate::error::Error;
use crate::tree::is_gone;

/// Calls `found` with each directory from `top` downwards. What vanishes in the meantime is left out.
///
/// # Errors
/// What `found` returns; [`Error::Io`].
pub(crate) fn each(top: &Path, mut found: impl FnMut(&Path) -> Result<(), Error>) -> Result<(), Error> {
    walk(top, &mut |at| found(&proc_path(at)), &mut |_, _| Ok(()))
}

/// Calls `found` with each directory below `top` after those below it.
///
/// # Errors
/// What `found` returns; [`Error::Io`].
pub(crate) fn each_after_those_below(
    top: &Path,
    mut found: impl FnMut(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    walk(top, &mut |_| Ok(()), &mut |parent, name| found(&proc_path(parent).join(name)))
}

/// Removes what is below `top`, children first, as long as `go_on` has no error. Adds to `removed` how many there were.
///
/// # Errors
/// What `go_on` returns; [`Error::Io`].
pub(crate) fn clear(
    top: &Path,
    mut go_on: impl FnMut() -> Result<(), Error>,
    removed: &mut usize,
) -> Result<(), Error> {
    walk(top, &mut |_| go_on(), &mut |parent, name| match unlinkat(parent, name, UnlinkatFlags::RemoveDir)
        .map_err(std::io::Error::from)
    {
        Err(source) if !is_gone(&source) => {
            Err(Error::Io { action: "remove", path: PathBuf::from(name), source })
        }
        _ => {
            *removed += 1;
            Ok(())
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;

    use nix::sys::stat::Mode;
    use wharf_sys::deep::open;

    use super::*;

    /// Nests directories until no path can name the innermost.
    fn nest(top: &Path) -> usize {
        let name = "d".repeat(250);
        let mut at = open(None, top).unwrap().unwrap();
        for _ in 0..40 {
            nix::sys::stat::mkdirat(&at, name.as_str(), Mode::S_IRWXU).unwrap();
            nix::sys::stat::mkdirat(&at, "beside", Mode::S_IRWXU).unwrap();
            at = open(Some(at.as_fd()), Path::new(&name)).unwrap().unwrap();
        }
        1 + 2 * 40
    }

    #[test]
    fn what_no_path_names_is_found_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let count = nest(directory.path());
        let mut found = 0;
        each(directory.path(), |path| {
            found += usize::from(path.is_dir());
            Ok(())
        })
        .unwrap();
        assert_eq!(found, count);
        let stop = || {
            Err(Error::Io {
                action: "stop",
                path: PathBuf::new(),
                source: std::io::ErrorKind::TimedOut.into(),
            })
        };
        let mut removed = 0;
        assert!(clear(directory.path(), stop, &mut removed).is_err());
        assert_eq!(removed, 0);
        clear(directory.path(), || Ok(()), &mut removed).unwrap();
        assert_eq!(removed, count - 1);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        clear(&directory.path().join("gone"), || Ok(()), &mut removed).unwrap();
    }

    #[test]
    fn what_is_below_comes_before_what_has_it() {
        let directory = tempfile::tempdir().unwrap();
        nest(directory.path());
        // Only an empty directory can be removed.
        each_after_those_below(directory.path(), |path| {
            fs::remove_dir(path).map_err(Error::io("remove", path))
        })
        .unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
