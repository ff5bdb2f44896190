//! Which layers are mounted, according to the kernel.
//!
//! Records can be lost, and containers outlive daemons. So before a sweep removes a layer of which no record knows,
//! the kernel has the last word. Its tables are long, and partly the work of containers, which mount what they want in
//! namespaces of their own: they are read in pieces, and none of a line is kept but what may name a layer. What cannot
//! be read to its end has everything mounted, and so has an overlay that says nothing about its layers.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::hash::BuildHasher as _;
use std::io::{Error, ErrorKind, Read, Result};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wharf_sys::fs::kernel_text;
use wharf_sys::overlay::marks::{Mark, mark};

use super::tenants::{self, Tenants};
use scan::Scanner;

mod scan;

/// How much is read of a mount namespace. The most mounts that the kernel allows, 100,000, usually take 20 MB, and are
/// read twice.
const TABLE_LIMIT_BYTES: u64 = 128 << 20;
/// How long all of them may take. A thousand pods take a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// What has no marks was not mounted by this release.
const UNTOLD: &str = "an overlay has numbers for its layers, as an earlier release of wharf mounted them on Linux \
                      before 6.8: any layer may be among them until that container is removed";

/// Where the layers are, in the words of proc_pid_mountinfo(5).
#[derive(Debug, Default, PartialEq, Eq)]
struct Place {
    /// The device of their file system.
    device: Vec<u8>,
    /// Their directory in it, with a slash at its end.
    directory: Vec<u8>,
}

/// Leaves those of these layers that are mounted nowhere. A layer is mounted where an overlay names it, or has its
/// mark, or where its directory or something in it is the root of a mount, since an image of one layer may be a bind of
/// it. One too many may count as mounted, never one too few: the kernel shows of an overlay only how its layers were
/// named, two may have the same mark, and a container may name in an overlay what it likes.
///
/// # Errors
/// Some table cannot be read, or is too long, or has, before Linux 6.8, an overlay whose layers are numbers without
/// marks: any layer may be mounted.
pub(super) fn leave_unmounted(
    layers: BorrowedFd<'_>,
    tenants: &Tenants,
    names: &mut HashSet<String>,
) -> Result<()> {
    let place = Place::of(layers)?;
    let mut look = Look::new(&place, tenants, names);
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        let is_process = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if process.file_name().is_some_and(is_process) && !look.candidates.left.is_empty() {
            look.ask(&process)?;
        }
    }
    Ok(())
}

/// The layers that may be mounted nowhere.
struct Candidates<'a> {
    left: &'a mut HashSet<String>,
    by_mark: HashMap<Mark, Vec<String>>,
}

impl<'a> Candidates<'a> {
    fn new(left: &'a mut HashSet<String>) -> Self {
        let mut by_mark: HashMap<_, Vec<_>> = HashMap::new();
        for name in left.iter() {
            by_mark.entry(mark(name.as_ref())).or_default().push(name.clone());
        }
        Self { left, by_mark }
    }

    fn longest(&self) -> usize {
        self.left.iter().map(String::len).max().unwrap_or_default()
    }

    fn named(&mut self, name: &str) {
        self.left.remove(name);
    }

    fn marked(&mut self, mark: Mark) {
        for name in self.by_mark.remove(&mark).unwrap_or_default() {
            self.left.remove(&name);
        }
    }
}

/// A look at the tables of all mount namespaces.
struct Look<'a> {
    place: &'a Place,
    tenants: &'a Tenants,
    candidates: Candidates<'a>,
    namespaces: HashMap<PathBuf, Namespace>,
    hashes: RandomState,
    until: Instant,
    /// Whether an overlay whose layers are numbers may be an earlier release's. Where it cannot, it is somebody else's.
    may_be_unnamed: bool,
    whole: fn(&Path) -> Result<Option<File>>,
    is_users: fn(&Path) -> bool,
    is_roots: fn(&str, &Path) -> bool,
}

/// What has been read of a mount namespace.
#[derive(Default)]
struct Namespace {
    bytes: u64,
    /// Whether it was read from its own root.
    is_whole: bool,
    /// The roots of processes from which it was read, as hashes: a container decides how many there are.
    roots: HashSet<u64>,
}

impl<'a> Look<'a> {
    fn new(place: &'a Place, tenants: &'a Tenants, names: &'a mut HashSet<String>) -> Self {
        let (candidates, until) = (Candidates::new(names), Instant::now() + PATIENCE);
        let (namespaces, hashes) = (HashMap::new(), RandomState::new());
        let may_be_unnamed = !wharf_sys::overlay::names_layers();
        let is_roots = tenants::is_roots;
        Self {
            place,
            tenants,
            candidates,
            namespaces,
            hashes,
            until,
            may_be_unnamed,
            whole,
            is_users,
            is_roots,
        }
    }

    /// Reads what a process sees, unless it is in a container whose layers are leased. If its main thread has ended,
    /// the kernel answers for the others.
    fn ask(&mut self, process: &Path) -> Result<()> {
        self.ask_threads(process).map_err(|error| {
            Error::new(error.kind(), format!("the mounts of the process {}: {error}", process.display()))
        })
    }

    fn ask_threads(&mut self, process: &Path) -> Result<()> {
        if self.tenants.have(process) || self.read(process)?.is_some() {
            return Ok(());
        }
        let Some(tasks) = of_living(fs::read_dir(process.join("task")))? else { return Ok(()) };
        for task in tasks {
            let Some(task) = of_living(task)? else { continue };
            if self.tenants.have(&task.path()) || self.read(&task.path())?.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Reads what a task sees, unless it is known; `None` if the task has ended or exits.
    ///
    /// What a user of the host has mounted in namespaces of its own is not read: it can be as much as a container has.
    /// Such a user cannot have mounted a layer, because nobody but root can enter the store's directory
    /// (`make_private`). A user in a container can, because its root has the layers. So a process in any container is
    /// asked, and so is one whose user namespace was made by root.
    ///
    /// A task whose root is a directory of its own sees only what is mounted below that, so each namespace is read from
    /// its root, too. That is not all, either: something may be mounted over it.
    fn read(&mut self, task: &Path) -> Result<Option<()>> {
        let Some(name) = of_living(fs::read_link(task.join("ns/mnt")))? else { return Ok(None) };
        let root = match fs::read_link(task.join("root")) {
            // It is longer than a path can be.
            Err(error) if error.kind() == ErrorKind::InvalidFilename => Some(task.to_owned()),
            root => of_living(root)?,
        };
        let Some(root) = root else { return Ok(None) };
        let root = self.hashes.hash_one(root);
        let known = self.namespaces.entry(name.clone()).or_default();
        let (is_whole, is_seen) = (known.is_whole, known.roots.contains(&root));
        if is_whole && is_seen {
            return Ok(Some(()));
        }
        let cgroups = tenants::cgroups(task);
        // After that: what exits is in no container's cgroup any more.
        let is_exiting = wharf_sys::process::is_exiting(task).map_err(|error| error.errno.into());
        if of_living(is_exiting)?.is_none_or(|exits| exits) {
            return Ok(None);
        }
        if (self.is_users)(&task.join("ns/mnt"))
            && cgroups.is_some_and(|cgroups| tenants::is_in_none(&cgroups, self.is_roots))
        {
            return Ok(Some(()));
        }
        if !is_whole {
            let Some(table) = (self.whole)(&task.join("ns/mnt"))? else { return Ok(None) };
            self.scan(&name, table)?;
        }
        if !is_seen {
            let Some(table) = of_living(File::open(task.join("mountinfo")))? else { return Ok(None) };
            self.scan(&name, table)?;
        }
        let known = self.namespaces.entry(name).or_default();
        known.is_whole = true;
        known.roots.insert(root);
        Ok(Some(()))
    }

    fn scan(&mut self, namespace: &Path, mut table: impl Read) -> Result<()> {
        let mut scanner = Scanner::new(self.place, &mut self.candidates);
        let mut piece = vec![0; 64 << 10];
        let known = self.namespaces.entry(namespace.to_owned()).or_default();
        loop {
            let length = match table.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            scanner.feed(piece.get(..length).unwrap_or_default());
            if scanner.is_unnamed() && self.may_be_unnamed {
                return Err(Error::new(ErrorKind::ResourceBusy, UNTOLD));
            }
            known.bytes += length as u64;
            if known.bytes > TABLE_LIMIT_BYTES || Instant::now() > self.until {
                let why = "it has more mounts than can be looked through: any layer may be among them";
                return Err(Error::new(ErrorKind::QuotaExceeded, why));
            }
        }
    }
}

/// The table of a namespace from its root; `None` if its task has ended.
fn whole(namespace: &Path) -> Result<Option<File>> {
    let Some(opened) = of_living(File::open(namespace))? else { return Ok(None) };
    let table = wharf_sys::mount::table_of(opened.as_fd());
    table.map(|table| Some(File::from(table))).map_err(|error| error.errno.into())
}

/// Whether a mount namespace belongs to a user namespace that somebody other than root has made.
fn is_users(namespace: &Path) -> bool {
    let maker = |opened: File| wharf_sys::user_namespace::maker_of(opened.as_fd()).ok().flatten();
    File::open(namespace).ok().and_then(maker).is_some_and(|maker| maker != 0)
}

/// What the kernel says about a task; `None` for one that has ended, and so has nothing mounted, and for one with more
/// rights than this one, which no container has.
fn of_living<T>(answer: Result<T>) -> Result<Option<T>> {
    const ESRCH: i32 = nix::errno::Errno::ESRCH as i32;
    match answer {
        Ok(answer) => Ok(Some(answer)),
        // A zombie has no namespaces: reading its mountinfo fails with EINVAL.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => Ok(None),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(None),
        Err(error) if error.raw_os_error() == Some(ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Place {
    fn of(layers: BorrowedFd<'_>) -> Result<Self> {
        use std::os::fd::AsRawFd as _;
        let number = layers.as_raw_fd();
        let about = kernel_text(format!("/proc/self/fdinfo/{number}"))?;
        let mount = about.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap_or_default().trim();
        let path = fs::read_link(format!("/proc/self/fd/{number}"))?;
        let table = fs::read("/proc/self/mountinfo")?;
        Self::found(&table, mount, path.as_os_str().as_bytes())
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "the mount of the layers' directory"))
    }

    /// Where a path in a mount of this table is.
    fn found(table: &[u8], mount: &str, path: &[u8]) -> Option<Self> {
        let lines = table.split(|byte| *byte == b'\n');
        let mut lines = lines.map(|line| line.split(|byte| *byte == b' ').take(5).collect::<Vec<_>>());
        let is_it = |line: &Vec<&[u8]>| line.first() == Some(&mount.as_bytes());
        let [_, _, device, root, point] = lines.find(is_it)?[..] else { return None };
        let slash = |text: &[u8]| if text == b"/" { Vec::new() } else { text.to_vec() };
        let path = escaped(path);
        let below = path.strip_prefix(slash(point).as_slice())?;
        let directory = [slash(root).as_slice(), below, b"/"].concat();
        Some(Self { device: device.to_vec(), directory })
    }
}

/// A path as the table shows it.
fn escaped(path: &[u8]) -> Vec<u8> {
    let mut shown = Vec::new();
    for byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => shown.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
            _ => shown.push(*byte),
        }
    }
    shown
}

#[cfg(test)]
mod tests;
