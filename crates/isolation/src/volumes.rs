//! An image's volumes: directories of the container beside its root file system, which begin with what the image has
//! there. That content is up to the image, so it is reached through descriptors and never through a link.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, utimensat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, Whence, fchownat, lseek};
use wharf_sys::error::Named;
use wharf_sys::fs::{Resolve, open_below, open_below_mode};
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
    copy.waiting(Path::new(""))?;
    let mut at = 0;
    while let Some(directory) = copy.directories.get(at).cloned() {
        for name in names(copy.open(image, &directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?)? {
            copy.entry(&below(&directory, &name))?;
        }
        at += 1;
    }
    // Last, and deepest first: making something in a directory changes its times.
    copy.directories.iter().rev().try_for_each(|directory| copy.times(directory))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a path that is resolved by descriptor, below a top of either side"
)]
fn below(directory: &Path, name: &Path) -> PathBuf {
    directory.join(name)
}

struct Copy<'a> {
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    copies: &'a mut Copies,
    /// The first name of each file with several.
    linked: HashMap<(u64, u64), PathBuf>,
    /// All directories, by their paths from the top, each after its parent.
    directories: Vec<PathBuf>,
}

impl Copy<'_> {
    fn open(&self, top: BorrowedFd<'_>, path: &Path, flags: OFlag) -> Result<OwnedFd> {
        open_below(top, path, flags, Resolve::BeneathNoLinks)
    }

    /// The parent directory of a path on both sides, and the path's last component.
    fn parents<'p>(&self, path: &'p Path) -> Result<(OwnedFd, OwnedFd, &'p Path)> {
        let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY;
        Ok((
            self.open(self.from, parent, directory)?,
            self.open(self.to, parent, directory)?,
            Path::new(name),
        ))
    }

    fn entry(&mut self, path: &Path) -> Result<()> {
        let (from, to, name) = self.parents(path)?;
        let named = || path.display().to_string();
        let stat = fstatat(&from, name, AtFlags::AT_SYMLINK_NOFOLLOW).named("fstatat", named)?;
        if stat.st_nlink > 1 && kind(&stat) != SFlag::S_IFDIR {
            if let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
                return nix::unistd::linkat(self.to, first, &to, name, LinkatFlags::empty())
                    .named("linkat", named);
            }
            self.copies.count(&stat)?;
            self.linked.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        // What a file takes, and not its size: it may have holes.
        self.copies.check_disk(self.to, stat.st_blocks.unsigned_abs().saturating_mul(512))?;
        match kind(&stat) {
            SFlag::S_IFDIR => {
                nix::sys::stat::mkdirat(&to, name, Mode::S_IRWXU).named("mkdirat", named)?;
                return self.waiting(path);
            }
            SFlag::S_IFREG => copy_file(from.as_fd(), to.as_fd(), name, stat.st_size)?,
            SFlag::S_IFLNK => {
                let target = nix::fcntl::readlinkat(&from, name).named("readlinkat", named)?;
                nix::unistd::symlinkat(target.as_os_str(), &to, name).named("symlinkat", named)?;
            }
            special => nix::sys::stat::mknodat(&to, name, special, Mode::S_IRWXU, stat.st_rdev)
                .named("mknodat", named)?,
        }
        set_owner(to.as_fd(), name, &stat)?;
        if kind(&stat) == SFlag::S_IFREG {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW;
            copy_attributes(
                self.open(self.from, path, flags)?.as_fd(),
                self.open(self.to, path, flags)?.as_fd(),
            )?;
        }
        set_times(to.as_fd(), name, &stat)
    }

    /// Notes a new directory for later, and gives it the attributes that it has in the image.
    fn waiting(&mut self, path: &Path) -> Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let (from, to) = (self.open(self.from, path, flags)?, self.open(self.to, path, flags)?);
        let stat = stat_of(&from)?;
        self.copies.count(&stat)?;
        set_owner(to.as_fd(), Path::new("."), &stat)?;
        copy_attributes(from.as_fd(), to.as_fd())?;
        self.directories.push(path.to_owned());
        Ok(())
    }

    fn times(&self, path: &Path) -> Result<()> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let (from, to) = (self.open(self.from, path, flags)?, self.open(self.to, path, flags)?);
        set_times(to.as_fd(), Path::new("."), &stat_of(&from)?)
    }
}

fn stat_of(fd: &OwnedFd) -> Result<FileStat> {
    fstatat(fd, "", AtFlags::AT_EMPTY_PATH).named("fstatat", || format!("descriptor {}", fd.as_raw_fd()))
}

fn names(directory: OwnedFd) -> Result<Vec<PathBuf>> {
    let mut entries = Dir::from_fd(directory).named("fdopendir", || "a directory of a volume".into())?;
    let names = entries.iter().map(|entry| {
        let entry = entry.named("readdir", || "a directory of a volume".into())?;
        Ok(PathBuf::from(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes())))
    });
    names
        .filter(|name| !matches!(name, Ok(name) if name == Path::new(".") || name == Path::new("..")))
        .collect()
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
