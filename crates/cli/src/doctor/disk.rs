//! Checks of the file systems that wharfd writes to: their kind, whether they take writes, and how much is free.

use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::statfs::{ECRYPTFS_SUPER_MAGIC, FsType, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, statfs};

use super::mend::Remedy;
use super::{Check, Verdict};
use crate::units::size;

/// Whether overlayfs takes a writable layer in the directory of images and snapshots.
pub(super) fn layers(root: &Path) -> Check {
    const WHAT: &str = "layers";
    let place = root.display();
    match statfs(root).map(|disk| unfit(disk.filesystem_type())) {
        Ok(None) => match make_file(root) {
            Err(error) if is_failed(error) => takes_no_writes(WHAT, root, error),
            _ => Check::ok(WHAT, format!("can be written at {place}")),
        },
        Ok(Some(kind)) => Check::fail(
            WHAT,
            format!("{place} is on {kind}, on which overlayfs cannot have writable layers"),
            "set `root` to a directory of ext4, XFS, Btrfs or tmpfs",
        ),
        Err(error) => Check::fail(WHAT, format!("{place}: {error}"), "check that it exists and is mounted"),
    }
}

/// The name of a kind of file system on which overlayfs cannot have writable layers.
fn unfit(kind: FsType) -> Option<&'static str> {
    match kind {
        OVERLAYFS_SUPER_MAGIC => Some("overlayfs"),
        NFS_SUPER_MAGIC => Some("NFS"),
        ECRYPTFS_SUPER_MAGIC => Some("eCryptfs"),
        _ => None,
    }
}

/// Where a kubelet and `wharf run` have the logs of pods. The first pod makes those directories.
pub(super) fn of_logs() -> &'static Path {
    let usual = ["/var/log/pods", wharf_types::POD_LOGS].map(Path::new);
    usual.into_iter().find(|path| path.is_dir()).unwrap_or(Path::new("/var/log"))
}

pub(super) fn disk(what: &'static str, directory: &Path, advice: &str) -> Check {
    let place = directory.display();
    match nix::sys::statvfs::statvfs(directory) {
        Ok(stat) if stat.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY) => {
            Check::fail(what, format!("{place} is read-only"), "mount it writable")
        }
        Ok(stat) => {
            if let Err(error) = make_file(directory)
                && is_failed(error)
            {
                return takes_no_writes(what, directory, error);
            }
            let (free, all) =
                (stat.blocks_available() * stat.fragment_size(), stat.blocks() * stat.fragment_size());
            let verdict = room(free, all, LEAST_BYTES);
            let bytes = (verdict, format!("{} of {} free at {place}", size(free), size(all)));
            let (free, all) = (stat.files_available(), stat.files());
            let inodes = (inodes(free, all), format!("{free} of {all} inodes free at {place}"));
            let (verdict, found) = scarcer(bytes, inodes);
            match verdict {
                Verdict::Ok => Check::ok(what, found),
                Verdict::Warn => Check::warn(what, found, advice).left_as(Remedy::Removal),
                Verdict::Fail => Check::fail(what, found, advice).left_as(Remedy::Removal),
            }
        }
        Err(error) => Check::fail(what, format!("{place}: {error}"), "check that it exists and is mounted"),
    }
}

/// Makes a file without a name, which ends with this call: on a disk without writes, it fails or does not return.
fn make_file(directory: &Path) -> nix::Result<()> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    nix::fcntl::open(directory, flags, Mode::S_IRUSR | Mode::S_IWUSR).map(drop)
}

/// Whether a disk that makes no file cannot be written to at all. The mount of one that has failed may still be called
/// writable. Some kinds of file systems make no file without a name, and a full one is reported otherwise.
fn is_failed(error: Errno) -> bool {
    matches!(
        error,
        Errno::EROFS | Errno::EIO | Errno::ESTALE | Errno::ESHUTDOWN | Errno::ENODEV | Errno::EUCLEAN
    )
}

fn takes_no_writes(what: &'static str, directory: &Path, error: Errno) -> Check {
    let found = format!("{} cannot be written to: {}", directory.display(), error.desc());
    Check::fail(
        what,
        found,
        "see the kernel's log (dmesg): the disk may have failed, or is mounted read-only",
    )
}

/// What wharfd leaves free for others unless it is configured otherwise; without that much no image can be pulled. Of a
/// small file system it is a twentieth.
const LEAST_BYTES: u64 = 512 << 20;
const LEAST_INODES: u64 = 10_000;

/// A file system that allocates inodes dynamically reports a total of 0.
fn inodes(free: u64, all: u64) -> Verdict {
    if all == 0 { Verdict::Ok } else { room(free, all, LEAST_INODES) }
}

/// The worse of two findings.
fn scarcer(bytes: (Verdict, String), inodes: (Verdict, String)) -> (Verdict, String) {
    match (&bytes.0, &inodes.0) {
        (Verdict::Fail, _) | (_, Verdict::Ok) | (Verdict::Warn, Verdict::Warn) => bytes,
        _ => inodes,
    }
}

/// The kubelet removes images and pods where less than 15 % are free.
fn room(free: u64, all: u64, least: u64) -> Verdict {
    match free.saturating_mul(100).checked_div(all).unwrap_or(0) {
        0..15 if free <= least.min(all / 20) => Verdict::Fail,
        0..15 => Verdict::Warn,
        _ => Verdict::Ok,
    }
}

#[cfg(test)]
mod tests {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_full_disk_is_reported() {
        let verdict = |free| room(free, 1000, 900);
        assert_eq!([verdict(10), verdict(100), verdict(500)], [Verdict::Fail, Verdict::Warn, Verdict::Ok]);
        assert_eq!(room(0, 0, 1), Verdict::Fail);
        // Of 2 TiB, 80 GiB are enough for many images.
        assert_eq!(room(80 << 30, 2 << 40, LEAST_BYTES), Verdict::Warn);
        assert_eq!(room(511 << 20, 2 << 40, LEAST_BYTES), Verdict::Fail);
        assert_eq!(disk("disk", Path::new("/no/such"), "").verdict, Verdict::Fail);
    }

    #[test]
    fn the_scarcer_of_bytes_and_inodes_is_reported() {
        let told = |bytes: u64, free: u64, all: u64| {
            scarcer((room(bytes, 100, 100), "bytes".to_owned()), (inodes(free, all), "inodes".to_owned())).1
        };
        assert_eq!(
            (&*told(50, 0, 100), &*told(10, 0, 100), &*told(50, 10, 100)),
            ("inodes", "inodes", "inodes")
        );
        assert_eq!((&*told(50, 50, 100), &*told(0, 0, 100), &*told(50, 0, 0)), ("bytes", "bytes", "bytes"));
    }

    #[test]
    fn a_root_without_writable_layers_is_reported() {
        assert_eq!(unfit(OVERLAYFS_SUPER_MAGIC), Some("overlayfs"));
        assert_eq!(unfit(nix::sys::statfs::TMPFS_MAGIC), None);
        assert_eq!(layers(Path::new("/no/such")).verdict, Verdict::Fail);
    }

    #[test]
    fn a_disk_that_takes_no_writes_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("ro"), dir.path(), Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>).unwrap();
        assert_eq!(make_file(dir.path()), Err(Errno::EROFS));
        let told = layers(dir.path());
        let words = format!("{} cannot be written to: ", dir.path().display());
        assert!(told.verdict == Verdict::Fail && told.found.starts_with(&words), "{told:?}");
        assert_eq!(disk("disk", dir.path(), "").verdict, Verdict::Fail);
        umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
        assert_eq!(layers(dir.path()).verdict, Verdict::Ok);
        let told =
            [Errno::EIO, Errno::ESTALE, Errno::ESHUTDOWN, Errno::EOPNOTSUPP, Errno::EISDIR, Errno::ENOSPC]
                .map(is_failed);
        assert_eq!(told, [true, true, true, false, false, false]);
    }
}
