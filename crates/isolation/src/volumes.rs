//! An image's volumes: directories of the container beside its root file system, which begin with what the image has
//! there. That content is up to the image, so it is reached through descriptors and never through a link.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, utimensat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, Whence, fchownat, lseek};
use wharf_sys::error::Named as _;
use wharf_sys::fs::{Listing, Resolve, open_below, open_below_mode};
use wharf_sys::{Error, Result, xattr};
use wharf_types::{Disk, Reserve};

use crate::root::kind;

/// Into how many of a container's volumes each directory, and each file with several names, is copied at most. Volumes
/// may lie in one another, links may lead several of them to the same place, and a file may have a name in each: an
/// image must not have its content copied once for each.
const COPIES_LIMIT: u8 = 8;

/// What is copied into all of a container's volumes.
#[derive(Debug)]
pub(crate) struct Copies {
    /// How often each directory of the image, and each file with several names, has been copied.
    counted: HashMap<(u64, u64), u8>,
    reserve: Reserve,
}

impl Copies {
    /// None so far. The disk of the volumes keeps its reserve.
    pub(crate) fn within(reserve: Reserve) -> Self {
        Self { counted: HashMap::new(), reserve }
    }

    /// Checks that the disk of a volume has room for so many bytes more, or for a file of any kind.
    fn check_disk(&self, volume: BorrowedFd<'_>, more_bytes: u64) -> Result<()> {
        let disk = fstatvfs(volume).named("fstatvfs", || "a volume".into())?;
        let disk = Disk {
            bytes: disk.blocks().saturating_mul(disk.fragment_size()),
            free_bytes: disk.blocks_available().saturating_mul(disk.fragment_size()),
            inodes: disk.files(),
            free_inodes: disk.files_available(),
        };
        let checked = self.reserve.check(disk, more_bytes);
        // What the kernel would say a little later.
        checked.map_err(|error| Error::new("copying", error.to_string(), Errno::ENOSPC))
    }

    fn count(&mut self, copied: &FileStat) -> Result<()> {
        let copies = self.counted.entry((copied.st_dev, copied.st_ino)).or_default();
        if *copies == COPIES_LIMIT {
            let what = format!(
                "a directory or a file with several names that is in more than {COPIES_LIMIT} volumes"
            );
            return Err(Error::new("copying", what, Errno::EINVAL));
        }
        *copies += 1;
        Ok(())
    }
}

/// Copies the content of one directory into another, empty one: files, owners, modes, times, attributes and hard links.
/// The number of descriptors does not grow with the tree, and a path longer than the kernel's 4095 bytes is an error.
pub(crate) fn fill(volume: BorrowedFd<'_>, image: BorrowedFd<'_>, copies: &mut Copies) -> Result<()> {
    let mut copy = Copy { from: image, to: volume, copies, linked: HashMap::new(), directories: Vec::new() };
    copy.waiting(Entry { parent: 0, name: Box::default() })?;
    let mut at = 0;
    while at < copy.directories.len() {
        copy.content(at)?;
        at += 1;
    }
    // Last, and deepest first: making something in a directory changes its times.
    (0..at).rev().try_for_each(|at| copy.times(at))
}

struct Copy<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    copies: &'a mut Copies,
    /// The first name of each file with several.
    linked: HashMap<(u64, u64), Entry>,
    /// All directories, each after its parent. The first is the top.
    directories: Vec<Entry>,
}

/// A name in a directory. Whole paths would take far more memory than what an image needs to have them.
#[derive(Debug, Clone)]
struct Entry {
    /// Where its directory is in the list.
    parent: usize,
    name: Box<OsStr>,
}

/// The same directory on both sides.
struct Sides {
    from: OwnedFd,
    to: OwnedFd,
}

impl Copy<'_> {
    /// The path of a directory from the top.
    fn path(&self, mut at: usize) -> PathBuf {
        let mut names = Vec::new();
        while let Some(directory) = self.directories.get(at).filter(|_| at > 0) {
            names.push(&*directory.name);
            at = directory.parent;
        }
        names.into_iter().rev().collect()
    }

    fn open(&self, at: usize, flags: OFlag) -> Result<Sides> {
        let (path, flags) = (self.path(at), flags | OFlag::O_DIRECTORY);
        let open = |top| open_below(top, &path, flags, Resolve::BeneathNoLinks);
        Ok(Sides { from: open(self.from)?, to: open(self.to)? })
    }

    /// Copies what is in a directory. Directories in it are made, and wait for their content.
    fn content(&mut self, at: usize) -> Result<()> {
        let sides = self.open(at, OFlag::O_PATH)?;
        let listed = open_below(sides.from.as_fd(), "", OFlag::O_RDONLY, Resolve::BeneathNoLinks)?;
        let mut listing = Listing::new(listed, 0)?;
        while let Some(entry) = listing.read() {
            let name = OsString::from_vec(entry?.name.into_bytes());
            if name != "." && name != ".." {
                self.entry(&sides, Entry { parent: at, name: name.into_boxed_os_str() })?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, Sides { from, to }: &Sides, entry: Entry) -> Result<()> {
        let name = Path::new(&*entry.name);
        let named = || name.display().to_string();
        let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW).named("fstatat", named)?;
        if stat.st_nlink > 1 && kind(&stat) != SFlag::S_IFDIR {
            if let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
                return self.link(first, to, name);
            }
            self.copies.count(&stat)?;
            self.linked.insert((stat.st_dev, stat.st_ino), entry.clone());
        }
        // What a file takes, and not its size: it may have holes.
        self.copies.check_disk(self.to, stat.st_blocks.unsigned_abs().saturating_mul(512))?;
        match kind(&stat) {
            SFlag::S_IFDIR => {
                nix::sys::stat::mkdirat(to, name, Mode::S_IRWXU).named("mkdirat", named)?;
                return self.waiting(entry);
            }
            SFlag::S_IFREG => copy_file(from.as_fd(), to.as_fd(), name, stat.st_size)?,
            SFlag::S_IFLNK => {
                let target = nix::fcntl::readlinkat(from, name).named("readlinkat", named)?;
                nix::unistd::symlinkat(target.as_os_str(), to, name).named("symlinkat", named)?;
            }
            special => nix::sys::stat::mknodat(to, name, special, Mode::S_IRWXU, stat.st_rdev)
                .named("mknodat", named)?,
        }
        set_owner(to.as_fd(), name, &stat)?;
        if kind(&stat) == SFlag::S_IFREG {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW;
            copy_attributes(
                open_below(from.as_fd(), name, flags, Resolve::BeneathNoLinks)?.as_fd(),
                open_below(to.as_fd(), name, flags, Resolve::BeneathNoLinks)?.as_fd(),
            )?;
        }
        set_times(to.as_fd(), name, &stat)
    }

    /// Gives a file that was copied under another name this one, too.
    fn link(&self, first: &Entry, to: &OwnedFd, name: &Path) -> Result<()> {
        let parent = self.open(first.parent, OFlag::O_PATH)?.to;
        nix::unistd::linkat(&parent, &*first.name, to, name, LinkatFlags::empty())
            .named("linkat", || name.display().to_string())
    }

    /// Notes a new directory for later, and gives it the attributes that it has in the image.
    fn waiting(&mut self, directory: Entry) -> Result<()> {
        self.directories.push(directory);
        let Sides { from, to } = self.open(self.directories.len() - 1, OFlag::O_RDONLY)?;
        let stat = stat_of(&from)?;
        self.copies.count(&stat)?;
        set_owner(to.as_fd(), Path::new("."), &stat)?;
        copy_attributes(from.as_fd(), to.as_fd())
    }

    fn times(&self, at: usize) -> Result<()> {
        let Sides { from, to } = self.open(at, OFlag::O_PATH)?;
        set_times(to.as_fd(), Path::new("."), &stat_of(&from)?)
    }
}

fn stat_of(fd: &OwnedFd) -> Result<FileStat> {
    fstatat(fd, "", AtFlags::AT_EMPTY_PATH).named("fstatat", || format!("descriptor {}", fd.as_raw_fd()))
}

/// Copies what a file holds, and leaves its holes out: an image may have files of any size that take no space.
fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &Path, size: i64) -> Result<()> {
    let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW;
    let write = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    let named = || name.display().to_string();
    let mut source = File::from(open_below(from, name, read, Resolve::BeneathNoLinks)?);
    let mut copy = File::from(open_below_mode(to, name, write, 0o600, Resolve::BeneathNoLinks)?);
    let mut end = 0;
    while end < size {
        let start = match lseek(&source, end, Whence::SeekData) {
            // Only a hole follows.
            Err(Errno::ENXIO) => break,
            other => other.named("lseek", named)?,
        };
        end = lseek(&source, start, Whence::SeekHole).named("lseek", named)?;
        lseek(&source, start, Whence::SeekSet).named("lseek", named)?;
        lseek(&copy, start, Whence::SeekSet).named("lseek", named)?;
        let length = (end - start).unsigned_abs();
        std::io::copy(&mut (&mut source).take(length), &mut copy).named("copy_file_range", named)?;
    }
    copy.set_len(size.unsigned_abs()).named("ftruncate", named)
}

/// The owner first: a change of owner clears the set-user-ID bits.
fn set_owner(parent: BorrowedFd<'_>, name: &Path, stat: &FileStat) -> Result<()> {
    let named = || name.display().to_string();
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    fchownat(parent, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW).named("fchownat", named)?;
    if kind(stat) == SFlag::S_IFLNK {
        return Ok(());
    }
    let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
    fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink).named("fchmodat", named)
}

fn set_times(parent: BorrowedFd<'_>, name: &Path, stat: &FileStat) -> Result<()> {
    let accessed = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
    let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    utimensat(parent, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)
        .named("utimensat", || name.display().to_string())
}

fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    for name in xattr::names(from)? {
        if let Some(value) = xattr::value(from, &name)? {
            xattr::set(to, &name, &value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the directories are the test's own")]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

    use wharf_sys::mount::{Attributes, new_filesystem};

    use super::*;

    fn fill(volume: BorrowedFd<'_>, image: BorrowedFd<'_>) -> Result<()> {
        super::fill(volume, image, &mut Copies::within(Reserve::default()))
    }

    fn open_directory(path: &Path) -> OwnedFd {
        wharf_sys::fs::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).unwrap()
    }

    #[test]
    fn a_volume_begins_as_the_image_has_it() {
        let temp = tempfile::tempdir().unwrap();
        let (image, volume) = (temp.path().join("image"), temp.path().join("volume"));
        fs::create_dir_all(image.join("deep/er")).unwrap();
        fs::create_dir(&volume).unwrap();
        fs::write(image.join("deep/er/file"), "content").unwrap();
        fs::hard_link(image.join("deep/er/file"), image.join("same")).unwrap();
        symlink("/etc/passwd", image.join("link")).unwrap();
        nix::unistd::mkfifo(&image.join("fifo"), Mode::S_IRWXU).unwrap();
        std::os::unix::fs::lchown(image.join("deep"), Some(1000), Some(2000)).unwrap();
        fs::set_permissions(image.join("deep/er/file"), fs::Permissions::from_mode(0o4750)).unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o1777)).unwrap();
        xattr::set(open_directory(&image.join("deep")).as_fd(), "user.word", b"value").unwrap();
        fill(open_directory(&volume).as_fd(), open_directory(&image).as_fd()).unwrap();
        assert_eq!(fs::read_to_string(volume.join("deep/er/file")).unwrap(), "content");
        assert_eq!(fs::read_link(volume.join("link")).unwrap(), Path::new("/etc/passwd"));
        for name in ["", "deep", "deep/er", "deep/er/file", "same", "link", "fifo"] {
            let [was, is] = [&image, &volume].map(|top| fs::symlink_metadata(top.join(name)).unwrap());
            assert_eq!(
                (is.mode(), is.uid(), is.gid(), is.mtime(), is.mtime_nsec()),
                (was.mode(), was.uid(), was.gid(), was.mtime(), was.mtime_nsec()),
                "{name}"
            );
        }
        let ino = |name: &str| fs::metadata(volume.join(name)).unwrap().ino();
        assert_eq!(ino("same"), ino("deep/er/file"));
        let word = xattr::value(open_directory(&volume.join("deep")).as_fd(), "user.word").unwrap();
        assert_eq!(word.unwrap(), b"value");
    }

    /// The most memory that this process has had, in KiB.
    fn peak_kib() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// 6,000 directories, each with a path of 3.6 KB.
    #[test]
    fn long_paths_take_the_memory_of_their_names() {
        let options = [("size", "200m"), ("nr_inodes", "20000")];
        let [image, volume] = [(); 2].map(|()| {
            let made = new_filesystem("tmpfs", &options, Attributes::NONE).unwrap();
            open_below(made.as_fd(), ".", OFlag::O_RDONLY, Resolve::BeneathNoLinks).unwrap()
        });
        let make = |parent: &OwnedFd, name: &str| {
            nix::sys::stat::mkdirat(parent, name, Mode::S_IRWXU).unwrap();
            open_below(parent.as_fd(), name, OFlag::O_PATH, Resolve::BeneathNoLinks).unwrap()
        };
        let mut at = image.try_clone().unwrap();
        (0..18).for_each(|_| at = make(&at, &"d".repeat(200)));
        let deep = "d".repeat(200);
        (0..6000).for_each(|number| drop(make(&at, &number.to_string())));
        let before = peak_kib();
        fill(volume.as_fd(), image.as_fd()).unwrap();
        let grown = peak_kib() - before;
        assert!(grown < 8 << 10, "copying took {grown} KiB");
        let path = std::iter::repeat_n(deep, 18).chain(["5999".to_owned()]).collect::<PathBuf>();
        drop(open_below(volume.as_fd(), path, OFlag::O_PATH, Resolve::BeneathNoLinks).unwrap());
    }

    #[test]
    fn holes_stay_holes() {
        let temp = tempfile::tempdir().unwrap();
        let (image, volume) = (temp.path().join("image"), temp.path().join("volume"));
        [&image, &volume].iter().for_each(|directory| fs::create_dir(directory).unwrap());
        let parts: [(&str, u64, &[u64]); 4] = [
            ("empty", 0, &[]),
            ("hole", 1 << 40, &[]),
            ("islands", 1 << 40, &[0, 5 << 20, (1 << 40) - 4]),
            ("whole", 4, &[0]),
        ];
        for (name, size, places) in parts {
            let file = File::create(image.join(name)).unwrap();
            file.set_len(size).unwrap();
            places.iter().for_each(|place| file.write_all_at(b"data", *place).unwrap());
        }
        fill(open_directory(&volume).as_fd(), open_directory(&image).as_fd()).unwrap();
        for (name, size, places) in parts {
            let copy = File::open(volume.join(name)).unwrap();
            let stat = copy.metadata().unwrap();
            assert_eq!(stat.len(), size, "{name}");
            assert!(stat.blocks() <= 3 * 4096 / 512 * 4, "{name} takes {} blocks", stat.blocks());
            for place in places {
                let mut read = [0; 4];
                copy.read_exact_at(&mut read, *place).unwrap();
                assert_eq!(&read, b"data", "{name} at {place}");
            }
        }
    }

    #[test]
    fn a_directory_is_copied_into_a_few_volumes_alone() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("image/outer/inner")).unwrap();
        fs::write(temp.path().join("image/outer/inner/file"), "content").unwrap();
        let mut copies = Copies::within(Reserve::default());
        let mut copy = |n: u8, part: &str| {
            let volume = temp.path().join(n.to_string());
            fs::create_dir(&volume).unwrap();
            let (volume, part) = (open_directory(&volume), open_directory(&temp.path().join(part)));
            super::fill(volume.as_fd(), part.as_fd(), &mut copies)
        };
        for (n, part) in ["image", "image/outer", "image/outer/inner"].iter().cycle().take(8).enumerate() {
            copy(n.try_into().unwrap(), part).unwrap();
        }
        let error = copy(8, "image/outer/inner").unwrap_err();
        assert_eq!(error.errno, Errno::EINVAL);
        assert!(error.to_string().contains("in more than 8 volumes"), "{error}");
    }

    #[test]
    fn a_file_with_many_names_is_copied_into_a_few_volumes_alone() {
        let temp = tempfile::tempdir().unwrap();
        let mut copies = Copies::within(Reserve::default());
        fs::write(temp.path().join("file"), "content").unwrap();
        let mut copy = |n: u8| {
            let [image, volume] = ["image", "volume"].map(|side| temp.path().join(format!("{side}-{n}")));
            [&image, &volume].iter().for_each(|directory| fs::create_dir(directory).unwrap());
            for name in ["one", "two"] {
                fs::hard_link(temp.path().join("file"), image.join(name)).unwrap();
            }
            super::fill(open_directory(&volume).as_fd(), open_directory(&image).as_fd(), &mut copies)
        };
        (0..8).for_each(|n| copy(n).unwrap());
        let error = copy(8).unwrap_err();
        assert!(error.errno == Errno::EINVAL && error.to_string().contains("several names"), "{error}");
    }

    #[test]
    fn the_disk_keeps_its_reserve() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("deep")).unwrap();
        fs::write(temp.path().join("deep/file"), vec![1; 64 << 10]).unwrap();
        let image = open_directory(temp.path());
        let copied = |size: &str, reserve| {
            let options = [("size", size), ("nr_inodes", "200")];
            let disk = new_filesystem("tmpfs", &options, Attributes::NONE).unwrap();
            let volume = open_below(disk.as_fd(), ".", OFlag::O_RDONLY, Resolve::BeneathNoLinks).unwrap();
            super::fill(volume.as_fd(), image.as_fd(), &mut Copies::within(reserve))
        };
        let all = Reserve { bytes: u64::MAX, inodes: u64::MAX };
        copied("80k", Reserve::default()).unwrap();
        copied("1m", all).unwrap();
        let error = copied("64k", all).unwrap_err();
        let words = "fewer than 3276 bytes free; remove images or enlarge the disk";
        assert!(error.errno == Errno::ENOSPC && error.to_string().contains(words), "{error}");
    }

    #[test]
    fn what_is_there_already_is_not_written_over() {
        let temp = tempfile::tempdir().unwrap();
        let (image, volume) = (temp.path().join("image"), temp.path().join("volume"));
        for directory in [&image, &volume] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("file"), directory.to_str().unwrap()).unwrap();
        }
        let error = fill(open_directory(&volume).as_fd(), open_directory(&image).as_fd()).unwrap_err();
        assert_eq!(error.errno, Errno::EEXIST);
        assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), volume.to_str().unwrap());
    }
}
