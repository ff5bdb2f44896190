//! Whole layers of failed pulls, kept for a retry: `kept/<boot>/<diff id>/`.
//!
//! They are verified but not synced, so they are valid only under the kernel that wrote them; the commit that uses one
//! syncs it like any other new layer. They are removed after some hours, and when the disk runs short.
//!
//! A failing pull moves its whole layers here. If its process was killed, the next start does that: as soon as a layer
//! is whole, it gets a name in the staging directory that says so and has the content's digest and the boot id.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, renameat};
use nix::sys::stat::fstatat;
use wharf_snapshots::{Trash, list_names};
use wharf_sys::error::Named;
use wharf_sys::fs::rename_new;
use wharf_types::Digest;

use super::{Shared, Store};
use crate::layer::UnpackedLayer;
use crate::manifest::ENTRIES_LIMIT;
use crate::records::load_usage;
use crate::unpack::LayerSource;

/// How long a layer is kept for a retry.
const KEEP_LIMIT: Duration = Duration::from_hours(6);
/// The most layers that are kept: as many as one image can have.
const COUNT_LIMIT: usize = ENTRIES_LIMIT;

/// The kernel's id of this boot.
pub(super) fn boot_id() -> wharf_sys::Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).named("read", || path.into())?;
    Ok(text.trim().to_owned())
}

/// Opens the directory of this boot and removes those of earlier ones; `make` makes a directory in another.
pub(super) fn open(
    root: &OwnedFd,
    boot: &str,
    trash: &Trash,
    make: impl Fn(&OwnedFd, &str) -> wharf_sys::Result<OwnedFd>,
) -> wharf_sys::Result<OwnedFd> {
    let all = make(root, "kept")?;
    for name in list_names(all.as_fd())?.iter().filter(|name| *name != boot) {
        trash.discard_remains(all.as_fd(), name);
    }
    make(&all, boot)
}

/// The name of a whole layer in the staging directory: `<serial>.<boot>.<diff id>`.
fn whole_name(staged: &str, boot: &str, diff_id: &Digest) -> String {
    format!("{staged}.{boot}.{}", diff_id.hex())
}

/// The digest in such a name; `None` for any other name, and for one from another boot.
fn whole_content(name: &OsStr, boot: &str) -> Option<Digest> {
    let [_staged, of_boot, hex] = name.to_str()?.split('.').collect::<Vec<_>>()[..] else { return None };
    if of_boot != boot {
        return None;
    }
    format!("sha256:{hex}").parse().ok()
}

impl Store {
    /// A layer that an earlier pull unpacked without committing it; `None` if there is none. Blocks for the disk.
    #[must_use]
    pub fn kept_layer(&self, source: &LayerSource) -> Option<UnpackedLayer> {
        let shared = &self.shared;
        let staged = whole_name(&shared.next_serial().to_string(), &shared.boot, &source.diff_id);
        let name = source.diff_id.hex();
        match rename_new(&shared.kept, name, &shared.staging, &staged) {
            Ok(()) => {}
            Err(Errno::ENOENT) => return None,
            Err(error) => {
                tracing::warn!(%error, "cannot use a layer that was kept for a retry");
                return None;
            }
        }
        match load_usage(&shared.staged_path(&staged)) {
            Ok(usage) => {
                let (shared, source) = (Arc::clone(shared), source.clone());
                Some(UnpackedLayer { shared, staged, source, usage, lease: OnceLock::new() })
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
    /// Renames a whole layer to a name that says so, and returns the name.
    pub(super) fn name_whole(&self, staged: &str, diff_id: &Digest) -> wharf_sys::Result<String> {
        let whole = whole_name(staged, &self.boot, diff_id);
        renameat(&self.staging, staged, &self.staging, whole.as_str()).named("rename", || whole.clone())?;
        Ok(whole)
    }

    /// Empties the staging directory of an earlier process, and keeps the whole layers in it.
    pub(super) fn clear_staging(&self) -> wharf_sys::Result<()> {
        for name in list_names(self.staging.as_fd())? {
            match (name.to_str(), whole_content(&name, &self.boot)) {
                (Some(staged), Some(diff_id)) => self.keep(staged, &diff_id),
                _ => self.trash.discard_remains(self.staging.as_fd(), &name),
            }
        }
        self.expire_kept();
        Ok(())
    }

    /// Moves a whole layer of a failed pull to where a retry finds it.
    pub(crate) fn keep(&self, staged: &str, diff_id: &Digest) {
        let wanted = !self.read().has_layer(diff_id.hex())
            && list_names(self.kept.as_fd()).is_ok_and(|names| names.len() < COUNT_LIMIT);
        let kept = wanted && rename_new(&self.staging, staged, &self.kept, diff_id.hex()).is_ok();
        if !kept {
            self.discard_staged(staged);
        }
    }

    /// Removes the layers that have been kept too long.
    pub(super) fn expire_kept(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.remove_kept(|name| {
            let stat = fstatat(&self.kept, name, AtFlags::AT_SYMLINK_NOFOLLOW);
            let since = stat.ok().and_then(|stat| u64::try_from(stat.st_mtime).ok()).unwrap_or(0);
            // A time in the future counts as too long ago.
            now.checked_sub(Duration::from_secs(since)).is_none_or(|age| age > KEEP_LIMIT)
        });
    }

    /// Removes all of them, because the disk is short of space.
    pub(crate) fn give_up_kept(&self) {
        self.remove_kept(|_name| true);
    }

    fn remove_kept(&self, goes: impl Fn(&OsStr) -> bool) {
        let names = list_names(self.kept.as_fd())
            .inspect_err(|error| tracing::warn!(%error, "cannot list the layers that are kept for retries"));
        for name in names.iter().flatten().filter(|name| goes(name)) {
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
