//! Whole layers of pulls that came to nothing, for a retry: `kept/<boot>/<diff id>/`.
//!
//! They were verified and are not synced, so only the kernel that they were written under may give them back; the commit
//! that takes one syncs it as any that was just unpacked. They go when nobody came back for them, and when the disk gets
//! short.
//!
//! A pull that fails brings its whole layers here. For one whose process is killed the next start does so: from the moment
//! that a layer is whole, its name in the staging directory says that it is, of what content, and under which kernel.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{AtFlags, RenameFlags, renameat, renameat2};
use nix::sys::stat::fstatat;
use wharf_snapshots::{Trash, list_names};
use wharf_sys::error::Named;
use wharf_types::Digest;

use super::{Shared, Store};
use crate::layer::UnpackedLayer;
use crate::manifest::ENTRIES_LIMIT;
use crate::records::load_usage;
use crate::unpack::LayerSource;

/// How long a layer waits for a retry.
const LEASE: Duration = Duration::from_hours(6);
/// The most layers that wait: those of one image of the most layers.
const COUNT_LIMIT: usize = ENTRIES_LIMIT;

/// What the kernel calls its own uptime.
pub(super) fn boot_id() -> wharf_sys::Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).named("read", || path.into())?;
    Ok(text.trim().to_owned())
}

/// Opens the directory of this boot, and removes those of earlier ones; `make` makes a directory in one.
pub(super) fn open(
    root: &OwnedFd,
    boot: &str,
    trash: &Trash,
    make: impl Fn(&OwnedFd, &str) -> wharf_sys::Result<OwnedFd>,
) -> wharf_sys::Result<OwnedFd> {
    let all = make(root, "kept")?;
    for name in list_names(all.as_fd())?.iter().filter(|name| *name != boot) {
        trash.discard(all.as_fd(), name)?;
    }
    make(&all, boot)
}

/// The name of a whole layer in the staging directory: `<serial>.<boot>.<diff id>`.
fn whole_name(staged: &str, boot: &str, diff_id: &Digest) -> String {
    format!("{staged}.{boot}.{}", diff_id.hex())
}

/// The content of what has such a name; `None` for another name, and for what another kernel wrote.
fn whole_content(name: &OsStr, boot: &str) -> Option<Digest> {
    let [_staged, of_boot, hex] = name.to_str()?.split('.').collect::<Vec<_>>()[..] else { return None };
    if of_boot != boot {
        return None;
    }
    format!("sha256:{hex}").parse().ok()
}

impl Store {
    /// A layer that an earlier pull unpacked, without a commit; `None` if there is none. Blocks for the disk.
    #[must_use]
    pub fn kept_layer(&self, source: &LayerSource) -> Option<UnpackedLayer> {
        let shared = &self.shared;
        let staged = whole_name(&shared.next_serial().to_string(), &shared.boot, &source.diff_id);
        let name = source.diff_id.hex();
        let flags = RenameFlags::RENAME_NOREPLACE;
        renameat2(&shared.kept, name, &shared.staging, staged.as_str(), flags).ok()?;
        match load_usage(&shared.staged_path(&staged)) {
            Ok(usage) => {
                let (shared, source) = (Arc::clone(shared), source.clone());
                Some(UnpackedLayer { shared, staged, source, usage, hold: OnceLock::new() })
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot use a layer that was kept for a retry");
                shared.discard_staged(&staged);
                None
            }
        }
    }
}

impl Shared {
    /// Gives a layer that is whole the name that says so; returns it.
    pub(super) fn name_whole(&self, staged: &str, diff_id: &Digest) -> wharf_sys::Result<String> {
        let whole = whole_name(staged, &self.boot, diff_id);
        renameat(&self.staging, staged, &self.staging, whole.as_str()).named("rename", || whole.clone())?;
        Ok(whole)
    }

    /// Empties the staging directory of an earlier process, and keeps the whole layers that it left there.
    pub(super) fn clear_staging(&self) -> wharf_sys::Result<()> {
        for name in list_names(self.staging.as_fd())? {
            match (name.to_str(), whole_content(&name, &self.boot)) {
                (Some(staged), Some(diff_id)) => self.keep(staged, &diff_id),
                _ => self.trash.discard(self.staging.as_fd(), &name)?,
            }
        }
        self.expire_kept();
        Ok(())
    }

    /// Puts a whole layer that no image came of where a retry finds it.
    pub(crate) fn keep(&self, staged: &str, diff_id: &Digest) {
        let wanted = !self.read().has_layer(diff_id.hex())
            && list_names(self.kept.as_fd()).is_ok_and(|names| names.len() < COUNT_LIMIT);
        let flags = RenameFlags::RENAME_NOREPLACE;
        let kept = wanted && renameat2(&self.staging, staged, &self.kept, diff_id.hex(), flags).is_ok();
        if !kept {
            self.discard_staged(staged);
        }
    }

    /// Removes the layers that nobody came back for.
    pub(super) fn expire_kept(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.remove_kept(|name| {
            let stat = fstatat(&self.kept, name, AtFlags::AT_SYMLINK_NOFOLLOW);
            let since = stat.ok().and_then(|stat| u64::try_from(stat.st_mtime).ok()).unwrap_or(0);
            // One from the future is as old as one from the past that is too far away.
            now.checked_sub(Duration::from_secs(since)).is_none_or(|age| age > LEASE)
        });
    }

    /// Removes all of them, for the disk is short.
    pub(super) fn give_up_kept(&self) {
        self.remove_kept(|_name| true);
    }

    fn remove_kept(&self, goes: impl Fn(&OsStr) -> bool) {
        let names = list_names(self.kept.as_fd()).unwrap_or_default();
        for name in names.iter().filter(|name| goes(name)) {
            if let Err(error) = self.trash.discard(self.kept.as_fd(), name) {
                tracing::warn!(name = %name.display(), %error, "cannot remove a layer that was kept for a retry");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_layer_is_known_by_its_name() {
        let diff_id = Digest::from_sha256([7; 32]);
        let name = whole_name("12", "b-1", &diff_id);
        assert_eq!(whole_content(OsStr::new(&name), "b-1"), Some(diff_id));
        assert_eq!(whole_content(OsStr::new(&name), "b-2"), None, "another kernel wrote it");
        for other in ["12", "12.b-1", "12.b-1.", "12.b-1.abc", &format!("{name}.x")] {
            assert_eq!(whole_content(OsStr::new(other), "b-1"), None, "{other}");
        }
    }
}
