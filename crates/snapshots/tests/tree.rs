//! Removal and measurement of trees, on a real file system and with real mounts.
#![allow(missing_docs, reason = "a test crate has no readers")]

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::{self, File};
    use std::os::fd::{AsFd, OwnedFd};
    use std::path::Path;
    use std::time::Duration;

    use nix::fcntl::OFlag;
    use nix::mount::{MsFlags, mount};
    use nix::sched::CloneFlags;
    use nix::sys::stat::{Mode, mkdirat};
    use wharf_snapshots::tree::{Progress, Usage, Walk, remove_tree, remove_tree_while};

    fn directory(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    /// Makes a chain of directories deeper than any path.
    fn deep(top: &Path, depth: usize) {
        let mut fd = directory(top);
        for _ in 0..depth {
            mkdirat(&fd, "d", Mode::S_IRWXU).unwrap();
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            fd = nix::fcntl::openat(&fd, "d", flags, Mode::empty()).unwrap();
        }
        nix::fcntl::openat(&fd, "leaf", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRWXU).unwrap();
    }

    fn measure(top: OwnedFd) -> Usage {
        let progress = Walk::new(vec![top]).go_on(Duration::from_secs(3600)).unwrap();
        let Progress::Whole(usage) = progress else { panic!("{progress:?}") };
        usage
    }

    /// Measures a tree to its end; `meanwhile` is called after each step.
    fn measure_in_steps(top: OwnedFd, mut meanwhile: impl FnMut(usize)) -> Usage {
        let mut walk = Walk::new(vec![top]);
        for step in 0..1_000_000 {
            match walk.go_on(Duration::ZERO).unwrap() {
                Progress::Whole(usage) => return usage,
                Progress::Part(_) => meanwhile(step),
                Progress::GivenUp(_) => break,
            }
        }
        panic!("the walk comes to no end");
    }

    /// Runs `run` on a thread with a mount namespace of its own.
    fn in_own_mounts(run: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
            run();
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_removal_that_does_not_go_on_leaves_the_rest() {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().join("x");
        fs::create_dir(&top).unwrap();
        (0..20).for_each(|number| fs::write(top.join(number.to_string()), "").unwrap());
        let (parent, asked) = (directory(temp.path()), std::cell::Cell::new(0));
        let goes_on = || asked.replace(asked.get() + 1) < 9;
        let error = remove_tree_while(parent.as_fd(), OsStr::new("x"), &goes_on).unwrap_err();
        assert_eq!(error.errno, nix::errno::Errno::ECANCELED);
        let left = fs::read_dir(&top).unwrap().count();
        assert!((11..20).contains(&left), "{left}");
        remove_tree(parent.as_fd(), OsStr::new("x")).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn ten_thousand_levels_are_removed() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("x")).unwrap();
        deep(&temp.path().join("x"), 10_000);
        let parent = directory(temp.path());
        assert_eq!(measure(directory(temp.path())).inodes, 10_003, "each of them, and what is at the end");
        remove_tree(parent.as_fd(), OsStr::new("x")).unwrap();
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[test]
    fn wide_and_bushy_trees_are_removed_and_measured() {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().join("x");
        for a in 0..20 {
            for b in 0..5 {
                let dir = top.join(format!("{a}/{b}"));
                fs::create_dir_all(&dir).unwrap();
                for c in 0..5 {
                    fs::write(dir.join(format!("{c}")), [1; 5000]).unwrap();
                }
            }
            deep(&top.join(format!("{a}")), 100);
        }
        fs::hard_link(top.join("0/0/0"), top.join("0/0/again")).unwrap();
        let usage = measure(directory(&top));
        assert!(usage.bytes >= 20 * 5 * 5 * 8192, "{usage:?}");
        assert_eq!(usage.inodes, 1 + 20 + 100 + 500 + 20 * 101);
        remove_tree(directory(temp.path()).as_fd(), OsStr::new("x")).unwrap();
        assert!(!top.exists());
    }

    /// A directory that is always ahead of the walk would be walked through for ever.
    #[test]
    fn what_is_moved_ahead_of_the_walk_is_counted_once() {
        let temp = tempfile::tempdir().unwrap();
        let mut at = temp.path().to_owned();
        fs::create_dir_all(at.join("x")).unwrap();
        fs::create_dir(at.join("n")).unwrap();
        fs::write(at.join("x/0"), [1; 5000]).unwrap();
        (1..50).for_each(|number| fs::hard_link(at.join("x/0"), at.join(format!("x/{number}"))).unwrap());
        let mut levels = 1;
        let usage = measure_in_steps(directory(temp.path()), |step| {
            assert!(step < 1000, "it is walked through again and again");
            if step % 40 == 39 {
                let next = at.join("n");
                fs::create_dir(next.join("n")).unwrap();
                fs::rename(at.join("x"), next.join("x")).unwrap();
                (at, levels) = (next, levels + 1);
            }
        });
        assert!((3..=levels + 3).contains(&usage.inodes), "{usage:?} with {levels} levels");
    }

    /// The way back from a depth is found by descriptor, and somebody may move what is on it.
    #[test]
    fn what_is_moved_hides_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path();
        fs::create_dir_all(top.join("a/x")).unwrap();
        fs::create_dir(top.join("b")).unwrap();
        (0..60).for_each(|number| fs::write(top.join(format!("a/{number}")), [1; 5000]).unwrap());
        deep(&top.join("a/x"), 200);
        let usage = measure_in_steps(directory(top), |step| {
            // It is on its way down from `x`.
            if step == 150 {
                fs::rename(top.join("a/x"), top.join("b/x")).unwrap();
            }
        });
        assert_eq!(usage.inodes, 3 + 1 + 60 + 201, "the top, a and b, x, and what is in them");
        assert!(usage.bytes >= 60 * 5000, "{usage:?}");
    }

    #[test]
    fn links_are_removed_and_never_followed() {
        let temp = tempfile::tempdir().unwrap();
        let canary = temp.path().join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("file"), "alive").unwrap();
        fs::create_dir(temp.path().join("x")).unwrap();
        std::os::unix::fs::symlink(&canary, temp.path().join("x/link")).unwrap();
        std::os::unix::fs::symlink(&canary, temp.path().join("top")).unwrap();
        let parent = directory(temp.path());
        for name in ["x", "top", "never was"] {
            remove_tree(parent.as_fd(), OsStr::new(name)).unwrap();
        }
        assert_eq!(fs::read_to_string(canary.join("file")).unwrap(), "alive");
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_mounted_inside_keeps_its_content() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().to_owned();
        in_own_mounts(move || {
            let canary = path.join("canary");
            fs::create_dir_all(path.join("x/a/mount")).unwrap();
            fs::create_dir_all(path.join("x/b/c")).unwrap();
            fs::create_dir(&canary).unwrap();
            fs::write(canary.join("file"), "alive").unwrap();
            let bind = MsFlags::MS_BIND;
            mount(Some(&canary), &path.join("x/a/mount"), None::<&str>, bind, None::<&str>).unwrap();
            let parent = directory(&path);
            let error = remove_tree(parent.as_fd(), OsStr::new("x")).unwrap_err();
            assert_eq!(error.errno, nix::errno::Errno::EBUSY);
            assert_eq!(fs::read_to_string(canary.join("file")).unwrap(), "alive");
            assert!(!path.join("x/b").exists());
            nix::mount::umount(&path.join("x/a/mount")).unwrap();
            remove_tree(parent.as_fd(), OsStr::new("x")).unwrap();
        });
        assert!(temp.path().join("canary/file").exists());
    }
}
