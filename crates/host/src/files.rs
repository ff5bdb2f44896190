//! The pod's tmpfs: its shared memory, and the files that the runtime provides to its containers, which may write to
//! them. It is bounded, because it uses the machine's memory, and is removed with the pod.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat};
use nix::unistd::{Gid, Uid, fchownat};
use wharf_planner::{ETC_FILES, FilesPlan, SHM, Shm};
use wharf_sys::fs::{Resolve, open_below_mode};
use wharf_sys::mount::{self, Attributes};
use wharf_types::{Stage as _, StageError};

const STAGE: &str = "making the pod's files";

/// The size of a page on most machines.
const PAGE_BYTES: u64 = 4096;
/// How many files and directories there are at least room for.
const LEAST_FILES: u64 = 16;

/// The limits of the tmpfs. When it is full of pages it has as many files as pages; further files would be empty.
fn limits(shm: Shm) -> (u64, u64) {
    match shm {
        Shm::Own { bytes } => (bytes, bytes.div_ceil(PAGE_BYTES).max(LEAST_FILES)),
        Shm::Hosts => (1 << 20, LEAST_FILES),
    }
}

/// Makes the file system with all its files, as a detached mount.
///
/// # Errors
/// The kernel refuses a step.
pub fn make(plan: &FilesPlan) -> Result<OwnedFd, StageError> {
    let forbidden = Attributes::NO_SUID.and(Attributes::NO_EXEC).and(Attributes::NO_DEV);
    let (bytes, files) = limits(plan.shm);
    let (size, files) = (bytes.to_string(), files.to_string());
    let options = [("source", SHM), ("mode", "0700"), ("size", &*size), ("nr_inodes", &*files)];
    let label = plan.label.as_ref().map(|label| (mount::LABEL, label.as_str()));
    let options: Vec<_> = options.into_iter().chain(label).collect();
    let root = mount::new_filesystem("tmpfs", &options, forbidden).stage(STAGE)?;
    if plan.shm != Shm::Hosts {
        mkdirat(&root, SHM, Mode::S_IRWXU).stage(STAGE)?;
        // Not when it is created, because the umask would change the mode.
        let mode = Mode::from_bits_truncate(0o1777);
        fchmodat(&root, SHM, mode, FchmodatFlags::FollowSymlink).stage(STAGE)?;
    }
    let [hostname, hosts, resolv_conf] = ETC_FILES;
    write(&root, hostname, &format!("{}\n", plan.hostname))?;
    write(&root, hosts, &hosts_file(&plan.hostname))?;
    write(&root, resolv_conf, &plan.resolv_conf)?;
    if let Some(owner) = plan.owner {
        give(&root, owner).stage(STAGE)?;
    }
    Ok(root)
}

fn give(root: &OwnedFd, (user, group): (u32, u32)) -> nix::Result<()> {
    let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
    for name in ETC_FILES.into_iter().chain([SHM, "."]) {
        match fchownat(root, name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW) {
            // The host's shared memory is not here.
            Err(Errno::ENOENT) if name == SHM => {}
            given => given?,
        }
    }
    Ok(())
}

fn write(root: &OwnedFd, name: &str, content: &str) -> Result<(), StageError> {
    let new = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
    let file = open_below_mode(root.as_fd(), name, new, 0o644, Resolve::BeneathNoLinks).stage(STAGE)?;
    let mut file = fs::File::from(file);
    file.write_all(content.as_bytes()).stage(STAGE)?;
    file.set_permissions(fs::Permissions::from_mode(0o644)).stage(STAGE)
}

fn hosts_file(hostname: &str) -> String {
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n")
}
