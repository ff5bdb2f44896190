//! Which layers are mounted, according to the kernel.
//!
//! Records can be lost, and containers outlive daemons. So before a sweep removes a layer of which no record knows,
//! the kernel has the last word.

use std::collections::HashSet;
use std::io::{Error, ErrorKind, Result};
use std::path::Path;

/// The names of all layers that may be mounted in any mount namespace: every word of the options of each overlay, whose
/// lower directories they may be, and of what each mount shows of its file system, since an image of one layer is a
/// bind of it. A name too many keeps a layer that could be removed; no name is ever missing.
pub(super) fn names() -> Result<HashSet<String>> {
    let mut names = HashSet::new();
    let mut seen = HashSet::new();
    for entry in std::fs::read_dir("/proc")? {
        let process = entry?.path();
        if !process.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit)) {
            continue;
        }
        let Some(namespace) = of_living(std::fs::read_link(process.join("ns/mnt")))? else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        if let Some(table) = of_living(read(&process.join("mountinfo")))? {
            names.extend(words(&table).map(str::to_owned));
            seen.insert(namespace);
        }
    }
    Ok(names)
}

fn read(path: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
}

/// What the kernel says about a process; `None` for a process that has ended, and so has nothing mounted, and for one
/// with more rights than this one, which no container has.
fn of_living<T>(answer: Result<T>) -> Result<Option<T>> {
    const ESRCH: i32 = nix::errno::Errno::ESRCH as i32;
    match answer {
        Ok(answer) => Ok(Some(answer)),
        // A zombie has no namespaces: reading its mountinfo fails with EINVAL.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => Ok(None),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(None),
        Err(error) if error.raw_os_error() == Some(ESRCH) => Ok(None),
        Err(error) => Err(Error::new(error.kind(), format!("the mounts of a process: {error}"))),
    }
}

/// The words in a table of proc_pid_mountinfo(5) that may name layers: letters, digits and dashes.
fn words(table: &str) -> impl Iterator<Item = &str> {
    /// The place of the mount's root in its line.
    const ROOT: usize = 3;
    let overlays = table.lines().filter_map(|line| Some(line.split_once(" - overlay ")?.1));
    let roots = table.lines().filter_map(|line| line.split(' ').nth(ROOT));
    let is_end = |c: char| !c.is_ascii_alphanumeric() && c != '-';
    overlays.chain(roots).flat_map(move |text| text.split(is_end)).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_found_in_each_spelling() {
        let table = "22 1 0:20 / /proc rw - proc proc rw\n\
            30 1 0:31 / / rw - overlay overlay rw,lowerdir=/l/attrs-0f/fs:/l/12ab/fs,upperdir=/s/1/fs\n\
            31 1 0:32 / /x ro - overlay overlay ro,lowerdir+=/l/moved-77-0/fs,lowerdir+=/l/cd/fs,xino=off\n\
            32 1 0:33 / /y rw - tmpfs 99 rw,size=1k\n\
            33 1 8:1 /lib\\040x/layers/ef01/fs/etc /z ro shared:98 - ext4 /dev/vda1 rw\n";
        let words: HashSet<_> = words(table).collect();
        for name in ["attrs-0f", "12ab", "moved-77-0", "cd", "ef01"] {
            assert!(words.contains(name), "{name} is not in {words:?}");
        }
        assert!(!words.contains("99") && !words.contains("98"));
    }

    #[test]
    fn a_process_that_ended_is_passed_over_and_a_failure_is_not() {
        assert_eq!(of_living::<()>(Err(ErrorKind::NotFound.into())).unwrap(), None);
        assert!(of_living::<()>(Err(ErrorKind::OutOfMemory.into())).is_err());
        names().unwrap();
    }
}
