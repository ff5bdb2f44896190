//! How a mount propagates: asked of the kernel since Linux 6.8, and read from the table of all mounts before, which
//! takes longer with each of them.

use std::path::Path;

use nix::errno::Errno;
use rustix::fs::{AtFlags, CWD, Statx, StatxFlags};

use super::Propagation;
use crate::error::{Error, Named, Result};

/// The propagation of the mount that contains `path`, in this process's mount namespace; follows links. A mount that is
/// both shared and a slave counts as shared.
///
/// # Errors
/// The kernel's error; ENOENT if the mount has disappeared in the meantime.
pub fn propagation_of(path: &Path) -> Result<Propagation> {
    match asked(path) {
        // Filters of container runtimes refuse what they do not know with either.
        Err(error) if matches!(error.errno, Errno::ENOSYS | Errno::EPERM) => read(path),
        answer => answer,
    }
}

fn mount_of(path: &Path, flags: StatxFlags) -> Result<Statx> {
    rustix::fs::statx(CWD, path, AtFlags::empty(), flags).named("statx", || path.display().to_string())
}

/// Asks statmount(2) for the one mount.
fn asked(path: &Path) -> Result<Propagation> {
    /// `STATX_MNT_ID_UNIQUE`: the number that statmount(2) knows a mount by.
    const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    const SYS_STATMOUNT: libc::c_long = 457;
    /// `STATMOUNT_MNT_BASIC`: attributes and propagation.
    const BASIC: u64 = 2;
    /// In which of the answer's first 64-bit words the propagation is.
    const PROPAGATION: usize = 9;
    /// `struct mnt_id_req` in its first version.
    #[repr(C)]
    struct Request {
        size: u32,
        spare: u32,
        mount: u64,
        wanted: u64,
    }
    const REQUEST_BYTES: u32 = 24;
    let failed = |errno| Error::new("statmount", path.display().to_string(), errno);
    let stat = mount_of(path, UNIQUE)?;
    if stat.stx_mask & UNIQUE.bits() == 0 {
        return Err(failed(Errno::ENOSYS));
    }
    let request = Request { size: REQUEST_BYTES, spare: 0, mount: stat.stx_mnt_id, wanted: BASIC };
    let mut answer = [0_u64; 64];
    // SAFETY: the request is a struct of the size that it names, the buffer is as long as is said, and both outlive the
    // call.
    let result = unsafe {
        libc::syscall(SYS_STATMOUNT, &raw const request, answer.as_mut_ptr(), size_of_val(&answer), 0)
    };
    Errno::result(result).map_err(failed)?;
    let has = |flag: u64| answer[PROPAGATION] & flag != 0;
    Ok(propagation(has(libc::MS_SHARED), has(libc::MS_SLAVE)))
}

/// Looks for the mount in the table of all.
fn read(path: &Path) -> Result<Propagation> {
    let stat = mount_of(path, StatxFlags::MNT_ID)?;
    let table = std::fs::read("/proc/thread-self/mountinfo").map_err(|error| {
        Error::new("read", "mountinfo", Errno::from_raw(error.raw_os_error().unwrap_or_default()))
    })?;
    let lines = String::from_utf8_lossy(&table);
    let mut mounts = lines.lines().filter_map(of_line);
    let found = mounts.find(|(id, _)| *id == stat.stx_mnt_id);
    let missing = || Error::new("mountinfo", path.display().to_string(), Errno::ENOENT);
    found.map(|(_, found)| found).ok_or_else(missing)
}

/// A mount's id and propagation, from a line as described in proc(5).
fn of_line(line: &str) -> Option<(u64, Propagation)> {
    let id = line.split(' ').next()?.parse().ok()?;
    let has = |name: &str| {
        line.split(' ').skip(6).take_while(|field| *field != "-").any(|field| field.starts_with(name))
    };
    Some((id, propagation(has("shared:"), has("master:"))))
}

#[expect(clippy::fn_params_excessive_bools, reason = "the kernel tells both")]
fn propagation(is_shared: bool, is_slave: bool) -> Propagation {
    match (is_shared, is_slave) {
        (true, _) => Propagation::Shared,
        (false, true) => Propagation::Slave,
        (false, false) => Propagation::Private,
    }
}

#[cfg(test)]
mod tests {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_line_of_the_table_is_read() {
        let of = |fields| {
            let line = format!("36 35 98:0 /m /n rw,noatime {fields}- ext4 /dev/x rw,shared:5");
            of_line(&line).unwrap()
        };
        assert_eq!(of(""), (36, Propagation::Private));
        assert_eq!(of("master:1 propagate_from:2 "), (36, Propagation::Slave));
        assert_eq!(of("shared:1 "), (36, Propagation::Shared));
        assert_eq!(of("shared:1 master:7 "), (36, Propagation::Shared));
        assert_eq!(of_line("no number"), None);
    }

    #[test]
    fn both_ways_tell_the_same() {
        let temp = tempfile::tempdir().unwrap();
        let (shared, copy) = (temp.path().join("shared"), temp.path().join("copy"));
        for path in [&shared, &copy] {
            std::fs::create_dir(path).unwrap();
        }
        let found = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            let change = |at: &Path, flags| mount(none, at, none, flags, none).unwrap();
            change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            mount(none, &shared, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            let look = |path: &Path| {
                let (asked, read) = (asked(path), read(path).unwrap());
                // Before Linux 6.8 there is one way.
                assert!(asked.as_ref().map_or_else(|error| error.errno == Errno::ENOSYS, |it| *it == read));
                read
            };
            let before = look(&shared);
            change(&shared, MsFlags::MS_SHARED);
            mount(Some(&shared), &copy, none, MsFlags::MS_BIND, none).unwrap();
            change(&copy, MsFlags::MS_SLAVE);
            let after = [look(&shared), look(&copy)];
            change(&copy, MsFlags::MS_SHARED);
            (before, after, look(&copy))
        });
        let (before, after, both) = found.join().unwrap();
        assert_eq!((before, both), (Propagation::Private, Propagation::Shared));
        assert_eq!(after, [Propagation::Shared, Propagation::Slave]);
    }

    #[test]
    fn a_missing_path_is_named() {
        for error in [propagation_of, read].map(|of| of(Path::new("/no/such")).unwrap_err()) {
            assert_eq!((error.errno, error.arguments.as_str()), (Errno::ENOENT, "/no/such"));
        }
    }
}
