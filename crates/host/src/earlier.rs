//! What earlier releases kept in a pod's directory: the pod's namespaces, pinned as files, and the mount of its file
//! system. Such pods live on, each with a supervisor of that release.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use wharf_state::Layout;
use wharf_types::{PodId, StageError};

/// The directory of the files that a pod's containers share: the mount of the pod's file system or, in still earlier
/// releases, the pod's directory itself.
pub fn files(layout: &Layout, pod: &PodId) -> PathBuf {
    let memory = layout.pod_memory(pod);
    if memory.exists() { memory } else { layout.pod(pod) }
}

/// Releases everything. The kernel drops a namespace when its last process ends.
///
/// # Errors
/// The kernel's error. It is not an error if something is missing.
pub fn release(layout: &Layout, pod: &PodId) -> Result<(), StageError> {
    let pins = ["net", "ipc", "uts"].map(|kind| layout.namespace(pod, kind));
    let mounts = [layout.older_pod_memory(pod), layout.pod_memory(pod)];
    pins.iter().chain(&mounts).try_for_each(|path| unmount(path))
}

fn unmount(path: &Path) -> Result<(), StageError> {
    const STAGE: &str = "releasing what an earlier release mounted in the pod's directory";
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
        Err(errno) => return Err(StageError::at(STAGE, errno)),
    }
    match fs::remove_file(path) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => {
            Err(StageError::at(STAGE, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn what_is_pinned_and_mounted_is_released() {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::new(temp.path().join("state"), temp.path().join("root"));
        let pod = PodId::from_random([1; 32]);
        assert_eq!(files(&layout, &pod), layout.pod(&pod));
        let (pin, memory) = (layout.namespace(&pod, "ipc"), layout.pod_memory(&pod));
        fs::create_dir_all(pin.parent().unwrap()).unwrap();
        fs::create_dir(&memory).unwrap();
        fs::write(&pin, "").unwrap();
        assert_eq!(files(&layout, &pod), memory);
        let mounted = || {
            let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            table.matches(pod.as_str()).count()
        };
        let released_twice = || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("/proc/self/ns/ipc"), &pin, none, MsFlags::MS_BIND, none).unwrap();
            mount(none, &memory, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            assert_eq!(mounted(), 2);
            release(&layout, &pod).unwrap();
            assert_eq!(mounted(), 0);
            release(&layout, &pod).unwrap();
        };
        std::thread::scope(|scope| scope.spawn(released_twice).join()).unwrap();
        assert!(!pin.exists() && memory.exists());
    }
}
