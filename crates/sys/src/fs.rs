//! Files through descriptors: opening below a directory, writing whole values, and reading directories.
//!
//! A path is resolved below a descriptor, and the kernel refuses what would lead out of it. Functions that take a whole
//! path are for wharf's own files and the kernel's.

use std::ffi::{CString, OsStr};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{FileStat, Mode, fstat};

use crate::error::{Error, Named, Result};

/// How a path below a directory is resolved. Neither way follows a magic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolve {
    /// As if the directory were `/`: absolute links and `..` stay inside.
    InRoot,
    /// Leaving the directory is an error, and so is any symbolic link.
    BeneathNoLinks,
    /// Leaving the directory or its mount is an error, and so is any symbolic link.
    OneMount,
}

/// Reads a text that the kernel makes, such as a file of procfs. In it are names that processes, containers and users
/// have chosen, which need not be UTF-8: what is not is replaced.
///
/// # Errors
/// The kernel's error.
pub fn kernel_text(path: impl AsRef<Path>) -> std::io::Result<String> {
    std::fs::read(path).map(|text| String::from_utf8_lossy(&text).into_owned())
}

/// Whether a file can be executed by somebody.
///
/// # Errors
/// There is no such file, or the way to it cannot be searched.
pub fn is_program(path: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::PermissionsExt as _;
    let file = std::fs::metadata(path)?;
    Ok(file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Renames an entry of a directory to one of another that does not exist. Here and not in `nix`, which has it for glibc
/// alone.
///
/// # Errors
/// The kernel's error: EEXIST if there is one of the new name.
pub fn rename_new(
    from: impl AsFd,
    name: impl AsRef<Path>,
    to: impl AsFd,
    new_name: impl AsRef<Path>,
) -> nix::Result<()> {
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    rustix::fs::renameat_with(from, name.as_ref(), to, new_name.as_ref(), flags)
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

/// Opens `path` below `dir` (close-on-exec).
///
/// # Errors
/// The kernel's error: ENOENT, ELOOP for a refused link, EXDEV for an escape.
pub fn open_below(
    dir: BorrowedFd<'_>,
    path: impl AsRef<Path>,
    flags: OFlag,
    resolve: Resolve,
) -> Result<OwnedFd> {
    open_below_mode(dir, path, flags, 0, resolve)
}

/// Like [`open_below`], with the mode for a file that is created.
///
/// # Errors
/// The kernel's error.
pub fn open_below_mode(
    dir: BorrowedFd<'_>,
    path: impl AsRef<Path>,
    flags: OFlag,
    mode: u32,
    resolve: Resolve,
) -> Result<OwnedFd> {
    let resolve = match resolve {
        Resolve::InRoot => ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        Resolve::BeneathNoLinks => ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS,
        Resolve::OneMount => {
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV
        }
    };
    let path = path.as_ref();
    let name = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how =
        OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(Mode::from_bits_truncate(mode)).resolve(resolve);
    retried(|| nix::fcntl::openat2(dir, name, how)).named("openat2", || name.display().to_string())
}

/// How often a path is retried while someone renames its parts, which may never stop.
const TRIES: usize = 128;

/// EAGAIN: a rename elsewhere raced with `..`; openat2(2) advises a retry.
fn retried<T>(mut open: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    let mut tries = 0..TRIES;
    loop {
        match open() {
            Err(Errno::EAGAIN | Errno::EINTR) if tries.next().is_some() => {}
            other => return other,
        }
    }
}

/// Opens a path of the host (close-on-exec).
///
/// # Errors
/// The kernel's error.
pub fn open(path: impl AsRef<Path>, flags: OFlag) -> Result<OwnedFd> {
    let path = path.as_ref();
    // Not open(2), for which musl makes a second call that marks the descriptor as close-on-exec.
    nix::fcntl::openat(nix::fcntl::AT_FDCWD, path, flags | OFlag::O_CLOEXEC, Mode::empty())
        .named("open", || path.display().to_string())
}

/// This process's own descriptors in a procfs, through which it opens files again that it has found.
#[derive(Debug)]
pub struct Descriptors(OwnedFd);

impl Descriptors {
    /// Those that the procfs of this mount namespace shows. They stay this process's, wherever it goes.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn own() -> Result<Self> {
        open("/proc/self/fd", OFlag::O_PATH | OFlag::O_DIRECTORY).map(Self)
    }

    /// Opens a path below a directory for reading, if it leads to a regular file. Nothing else is ever opened: for some
    /// devices that is an order, and whoever waits at a FIFO would go on.
    ///
    /// # Errors
    /// EINVAL for another type of file, or the kernel's error.
    pub fn open_regular(
        &self,
        dir: BorrowedFd<'_>,
        path: impl AsRef<Path>,
        resolve: Resolve,
    ) -> Result<OwnedFd> {
        let found = open_below(dir, path, OFlag::O_PATH, resolve)?;
        check_regular(&found)?;
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let again = nix::fcntl::openat(&self.0, found.as_raw_fd().to_string().as_str(), flags, Mode::empty());
        again.named("open", || numbered(&found))
    }
}

fn check_regular(fd: &OwnedFd) -> Result<FileStat> {
    let stat = fstat(fd).named("fstat", || numbered(fd))?;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => Ok(stat),
        _ => Err(Error::new("read", "not a regular file", Errno::EINVAL)),
    }
}

/// The content of a directory, entry by entry. The position can be stored, and the listing continued later through
/// another descriptor.
#[derive(Debug)]
pub struct Listing {
    directory: OwnedFd,
    entries: rustix::fs::Dir,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name; `.` and `..` are included.
    pub name: CString,
    /// The position of the listing after it.
    pub position: i64,
}

impl Listing {
    /// Lists an open directory from a position: 0, or that of an entry read before in the same directory.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn new(directory: OwnedFd, position: i64) -> Result<Self> {
        let named = || "a directory".to_owned();
        let mut entries = rustix::fs::Dir::read_from(&directory).named("openat", named)?;
        if position != 0 {
            entries.seek(position).named("lseek", named)?;
        }
        Ok(Self { directory, entries })
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The next entry; `None` at the end.
    pub fn read(&mut self) -> Option<Result<Entry>> {
        let entry = self.entries.read()?.named("getdents64", || "a directory".into());
        Some(entry.map(|entry| Entry { name: entry.file_name().to_owned(), position: entry.offset() }))
    }
}

/// Writes a kernel file such as `cgroup.procs` with one write.
///
/// # Errors
/// The kernel's error, from the open or the write.
pub fn write_value(path: impl AsRef<Path>, value: &str) -> Result<()> {
    let path = path.as_ref();
    let fd = open(path, OFlag::O_WRONLY)?;
    write_fd(fd.as_fd(), value)
        .map_err(|error| Error { arguments: format!("{}, {value:?}", path.display()), ..error })
}

/// Writes `value` to an open kernel file with one write.
///
/// # Errors
/// The kernel's error; EINVAL for a short write, because the kernel then makes nothing of the rest.
pub fn write_fd(fd: BorrowedFd<'_>, value: &str) -> Result<()> {
    match nix::unistd::write(fd, value.as_bytes()) {
        Ok(written) if written == value.len() => Ok(()),
        Ok(_short) => Err(Error::new(
            "write",
            format!("{value:?}, of which the kernel took only a part"),
            Errno::EINVAL,
        )),
        Err(errno) => Err(Error::new("write", format!("{value:?}"), errno)),
    }
}

fn numbered(fd: &OwnedFd) -> String {
    format!("descriptor {}", fd.as_raw_fd())
}

/// Allocations of this size are separate mappings in glibc and musl, and are unmapped when freed.
const MAPPED_BYTES: usize = 256 * 1024;
/// How much is read of a file without a size, such as one in procfs; it is also the most for which the heap has room
/// without growing.
const SMALL_BYTES: usize = 4095;

/// Reads at most `limit` bytes of a regular file; a longer file, or one that is not regular, is an error.
///
/// # Errors
/// EFBIG beyond the limit, EINVAL for another type of file, or the kernel's error.
pub fn read_bounded(fd: &OwnedFd, limit: usize) -> Result<Vec<u8>> {
    let stat = check_regular(fd)?;
    let told = match usize::try_from(stat.st_size).unwrap_or(0) {
        0 => SMALL_BYTES,
        told if told > SMALL_BYTES => told.max(MAPPED_BYTES),
        told => told,
    };
    // A large buffer is memory that returns to the kernel afterwards, because there are many supervisors. One more byte
    // makes room for the end of the file.
    let mut content = vec![0; told.min(limit) + 1];
    let mut length = 0;
    loop {
        let count = nix::unistd::read(fd, &mut content[length..]).named("read", || numbered(fd))?;
        length += count;
        if length > limit {
            return Err(Error::new("read", format!("more than {limit} bytes"), Errno::EFBIG));
        }
        if count == 0 {
            content.truncate(length);
            return Ok(content);
        }
        if length == content.len() {
            content.resize((2 * length).min(limit + 1), 0);
        }
    }
}

/// Reads at most `limit_bytes` of the regular file to which a path leads. Somebody else may have made it: no other kind
/// of file is waited for.
///
/// # Errors
/// What is wrong with the file, in words for people; or the kernel's error.
pub fn read_regular(path: &Path, limit_bytes: usize) -> std::io::Result<Vec<u8>> {
    use std::io::{Error, ErrorKind};
    let without_waiting = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let read = open(path, without_waiting).and_then(|file| read_bounded(&file, limit_bytes));
    read.map_err(|error| match error.errno {
        // A socket cannot even be opened.
        Errno::EINVAL | Errno::ENXIO => Error::new(ErrorKind::InvalidInput, "it is not a regular file"),
        Errno::EFBIG => {
            Error::new(ErrorKind::FileTooLarge, format!("it is longer than {} KiB", limit_bytes >> 10))
        }
        errno => errno.into(),
    })
}

/// The `/proc/self/fd` path of an open descriptor, for calls that accept only a path.
#[must_use]
pub fn proc_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// A memory file that nobody can change or execute, readable from its start.
///
/// # Errors
/// The kernel's error.
pub fn sealed_memfd(name: &str, content: &[u8]) -> Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    /// `MFD_NOEXEC_SEAL`, without which a strict `vm.memfd_noexec` allows no memory file; unknown before Linux 6.3.
    const NO_EXEC: MFdFlags = MFdFlags::from_bits_retain(8);
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = match memfd_create(name, flags | NO_EXEC) {
        Err(Errno::EINVAL) => memfd_create(name, flags),
        other => other,
    };
    let mut file = std::fs::File::from(fd.named("memfd_create", || name.into())?);
    file.write_all(content).named("write", || name.into())?;
    let seals =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).named("fcntl(F_ADD_SEALS)", || name.into())?;
    Ok(file.into())
}

/// A program in a separate file system that is mounted nowhere and is read-only. A process that reaches the running
/// program through `/proc/PID/exe` can change neither its bytes nor its mode or owner. The seals of a memory file would
/// not protect the latter two.
///
/// # Errors
/// The kernel's error.
pub fn detached_program(name: &str, content: &[u8]) -> Result<OwnedFd> {
    use crate::mount::{self, Attributes, Depth};
    let attributes = Attributes::NO_SUID.and(Attributes::NO_DEV);
    let tree = mount::new_filesystem("tmpfs", &[("mode", "700"), ("nr_inodes", "2")], attributes)?;
    let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
    let file = open_below_mode(tree.as_fd(), name, create, 0o500, Resolve::BeneathNoLinks)?;
    let mut file = std::fs::File::from(file);
    file.write_all(content).named("write", || name.into())?;
    // A file that is open for writing can be neither executed nor made read-only.
    drop(file);
    mount::forbid(tree.as_fd(), Attributes::READ_ONLY, Depth::One)?;
    open_below(tree.as_fd(), name, OFlag::O_RDONLY, Resolve::BeneathNoLinks)
}

/// Splits a relative path into its last component and the part before it.
#[must_use]
pub fn split_last(path: &str) -> (&str, &OsStr) {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    (parent, OsStr::from_bytes(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn dir() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = open(dir.path(), OFlag::O_PATH | OFlag::O_DIRECTORY).unwrap();
        (dir, fd)
    }

    #[test]
    fn a_link_cannot_leave_the_root() {
        let (dir, fd) = dir();
        symlink("/etc", dir.path().join("out")).unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "inside").unwrap();
        let file = open_below(fd.as_fd(), "out/passwd", OFlag::O_RDONLY, Resolve::InRoot).unwrap();
        assert_eq!(read_bounded(&file, 100).unwrap(), b"inside");
        let error =
            open_below(fd.as_fd(), "out/passwd", OFlag::O_RDONLY, Resolve::BeneathNoLinks).unwrap_err();
        assert_eq!(error.errno, Errno::ELOOP);
    }

    #[test]
    fn renames_without_end_are_not_waited_for() {
        let mut tries = 0;
        let mut racing = |wins_after: usize| {
            tries = 0;
            retried(|| {
                tries += 1;
                if tries > wins_after { Ok(()) } else { Err(Errno::EAGAIN) }
            })
        };
        assert_eq!(racing(TRIES), Ok(()));
        assert_eq!(racing(10 * TRIES), Err(Errno::EAGAIN));
        assert_eq!(tries, TRIES + 1);
    }

    #[test]
    fn long_files_and_fifos_are_refused() {
        let (dir, fd) = dir();
        std::fs::write(dir.path().join("long"), [0; 200]).unwrap();
        let long = open_below(fd.as_fd(), "long", OFlag::O_RDONLY, Resolve::InRoot).unwrap();
        assert_eq!(read_bounded(&long, 199).unwrap_err().errno, Errno::EFBIG);
        let long = open_below(fd.as_fd(), "long", OFlag::O_RDONLY, Resolve::InRoot).unwrap();
        assert_eq!(read_bounded(&long, 200).unwrap(), [0; 200]);
        // A file without a size.
        let status = open(std::path::Path::new("/proc/self/status"), OFlag::O_RDONLY).unwrap();
        assert!(read_bounded(&status, 1 << 20).unwrap().len() > 100);
        let status = open(std::path::Path::new("/proc/self/status"), OFlag::O_RDONLY).unwrap();
        assert_eq!(read_bounded(&status, 100).unwrap_err().errno, Errno::EFBIG);
        nix::unistd::mkfifo(&dir.path().join("fifo"), Mode::S_IRWXU).unwrap();
        let fifo =
            open_below(fd.as_fd(), "fifo", OFlag::O_RDONLY | OFlag::O_NONBLOCK, Resolve::InRoot).unwrap();
        assert_eq!(read_bounded(&fifo, 100).unwrap_err().errno, Errno::EINVAL);
    }

    /// Somebody waits until a FIFO is opened for reading, and goes on as soon as it is.
    #[test]
    fn only_regular_files_are_opened_for_reading() {
        let (dir, fd) = dir();
        std::fs::write(dir.path().join("file"), "content").unwrap();
        symlink("/file", dir.path().join("link")).unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let null = nix::sys::stat::makedev(1, 3);
        let device = dir.path().join("device");
        nix::sys::stat::mknod(&device, nix::sys::stat::SFlag::S_IFCHR, Mode::S_IRWXU, null).unwrap();
        let own = Descriptors::own().unwrap();
        let writer = {
            let fifo = fifo.clone();
            std::thread::spawn(move || std::fs::OpenOptions::new().write(true).open(fifo).map(drop))
        };
        for name in ["fifo", "device", "."] {
            let error = own.open_regular(fd.as_fd(), name, Resolve::InRoot).unwrap_err();
            assert!(error.to_string().contains("not a regular file"), "{name}: {error}");
        }
        assert!(!writer.is_finished(), "the FIFO was opened");
        drop(open(&fifo, OFlag::O_RDONLY).unwrap());
        writer.join().unwrap().unwrap();
        let file = own.open_regular(fd.as_fd(), "link", Resolve::InRoot).unwrap();
        assert_eq!(read_bounded(&file, 100).unwrap(), b"content");
        let error = own.open_regular(fd.as_fd(), "missing", Resolve::InRoot).unwrap_err();
        assert_eq!(error.errno, Errno::ENOENT);
    }

    fn problem(path: &Path) -> String {
        read_regular(path, 1 << 20).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, link) = (dir.path().join("fifo"), dir.path().join("link"));
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        symlink("fifo", &link).unwrap();
        for path in [&fifo, &link, Path::new("/dev/zero"), dir.path()] {
            assert!(problem(path).contains("not a regular file"), "{}: {}", path.display(), problem(path));
        }
    }

    #[test]
    fn a_file_that_is_longer_than_its_size_says_is_cut_off() {
        // Its size is reported as 0.
        assert!(problem(Path::new("/proc/kallsyms")).contains("longer than 1024 KiB"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![b' '; 1 << 20]).unwrap();
        assert_eq!(read_regular(&path, 1 << 20).unwrap().len(), 1 << 20);
        std::fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
        assert!(problem(&path).contains("longer than 1024 KiB"));
    }

    #[test]
    fn a_sealed_file_cannot_be_written() {
        let fd = sealed_memfd("x", b"code").unwrap();
        assert_eq!(nix::unistd::write(&fd, b"y").unwrap_err(), Errno::EPERM);
    }

    /// A strict `vm.memfd_noexec` allows no other.
    #[test]
    fn a_sealed_file_can_never_be_executed() {
        use std::os::unix::fs::PermissionsExt;
        let release = nix::sys::utsname::uname().unwrap().release().to_str().unwrap().to_owned();
        let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
        let knows_the_seal = (numbers.next(), numbers.next()) >= (Some(6), Some(3));
        let file = std::fs::File::from(sealed_memfd("x", b"code").unwrap());
        let is_executable = file.metadata().unwrap().permissions().mode() & 0o111 != 0;
        let can_be_made = file.set_permissions(std::fs::Permissions::from_mode(0o755)).is_ok();
        assert_eq!((is_executable, can_be_made), (!knows_the_seal, !knows_the_seal));
    }

    #[test]
    fn a_detached_program_can_be_executed_and_nothing_else() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
        let program = detached_program("true", &std::fs::read("/bin/true").unwrap()).unwrap();
        let path = proc_path(program.as_fd());
        let read_only = Some(Errno::EROFS as i32);
        let mode = std::fs::Permissions::from_mode(0o0);
        assert_eq!(std::fs::set_permissions(&path, mode).unwrap_err().raw_os_error(), read_only);
        assert_eq!(chown(&path, Some(1), None).unwrap_err().raw_os_error(), read_only);
        let write = std::fs::OpenOptions::new().write(true).open(&path);
        assert_eq!(write.unwrap_err().raw_os_error(), read_only);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o500);
        let null = open("/dev/null", OFlag::O_RDWR).unwrap();
        let launcher = crate::launch::Launcher::new(program).unwrap();
        let process = launcher.start(&[c"true".to_owned()], [null.as_fd(); 3], None).unwrap();
        crate::process::await_end(process.as_fd()).unwrap();
        let ended = crate::process::wait(process.as_fd(), crate::process::Reap::Remove).unwrap();
        assert_eq!(ended, Some(crate::process::Ended::Code(0)));
    }
}
