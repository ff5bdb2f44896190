//! Making, finding, measuring and removing snapshots.
#![allow(missing_docs, reason = "a test crate has no readers")]

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::Path;
    use std::time::{Duration, Instant};

    use wharf_snapshots::tree::Usage;
    use wharf_snapshots::{Activity, Snapshots};
    use wharf_types::{ContainerId, ErrorKind, Failure, IdMaps, IdRange};

    const HOUR: Duration = Duration::from_secs(3600);

    fn id(byte: u8) -> ContainerId {
        ContainerId::from_random([byte; 32])
    }

    /// Waits until what was thrown away is gone.
    fn await_empty(trash: &Path) {
        let begin = Instant::now();
        while fs::read_dir(trash).unwrap().next().is_some() {
            assert!(begin.elapsed() < Duration::from_secs(20), "{}", trash.display());
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_snapshot_takes_the_attributes_of_the_top_layer() {
        let temp = tempfile::tempdir().unwrap();
        let layer = temp.path().join("layer");
        fs::create_dir(&layer).unwrap();
        fs::set_permissions(&layer, fs::Permissions::from_mode(0o1777)).unwrap();
        std::os::unix::fs::chown(&layer, Some(5), Some(6)).unwrap();
        let snapshots = Snapshots::open(&temp.path().join("snapshots")).unwrap();
        let snapshot = snapshots.prepare(&id(1), &layer, None).unwrap();
        let upper = fs::metadata(&snapshot.upper).unwrap();
        assert_eq!((upper.mode() & 0o7777, upper.uid(), upper.gid()), (0o1777, 5, 6));
        assert!(snapshot.work.is_dir());
        fs::write(snapshot.upper.join("kept"), "x").unwrap();
        assert_eq!(snapshots.prepare(&id(1), &layer, None).unwrap(), snapshot, "a retry gets the same");
        assert!(snapshot.upper.join("kept").exists());
        assert_eq!(snapshots.list().unwrap(), [id(1)]);
    }

    #[test]
    fn in_a_user_namespace_its_owner_is_what_that_is_on_the_host() {
        let temp = tempfile::tempdir().unwrap();
        let layer = temp.path().join("layer");
        fs::create_dir(&layer).unwrap();
        std::os::unix::fs::chown(&layer, Some(5), Some(6)).unwrap();
        let snapshots = Snapshots::open(&temp.path().join("snapshots")).unwrap();
        let range = |first, count| IdRange::new(first, count).unwrap();
        let ids = |groups| Some(IdMaps { users: range(100_000, 6), groups: range(200_000, groups) });
        let snapshot = snapshots.prepare(&id(1), &layer, ids(7)).unwrap();
        let upper = fs::metadata(&snapshot.upper).unwrap();
        assert_eq!((upper.uid(), upper.gid()), (100_005, 200_006));
        let error = snapshots.prepare(&id(2), &layer, ids(6)).unwrap_err();
        assert_eq!(error.source.errno, nix::errno::Errno::EOVERFLOW);
        assert_eq!(snapshots.list().unwrap(), [id(1)]);
    }

    #[test]
    fn what_fails_is_named_with_its_directory() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("s");
        let snapshots = Snapshots::open(&path).unwrap();
        let own = path.join(id(1).as_str());
        let error = snapshots.prepare(&id(1), Path::new("/no/such"), None).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot make the snapshot {}", own.display()));
        let error = snapshots.volume(&id(1), 0).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot add to the snapshot {}", own.display()));
    }

    #[test]
    fn removal_is_idempotent_and_at_once() {
        let temp = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(&temp.path().join("s")).unwrap();
        let snapshot = snapshots.prepare(&id(1), temp.path(), None).unwrap();
        for _ in 0..3 {
            snapshots.remove(&id(1)).unwrap();
            assert!(!snapshot.upper.exists());
            assert!(snapshots.list().unwrap().is_empty());
        }
        await_empty(&temp.path().join("s/.trash"));
    }

    #[test]
    fn what_a_crash_left_is_swept() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("s");
        drop(Snapshots::open(&root).unwrap());
        fs::create_dir_all(root.join(format!(".{}/fs", id(2)))).unwrap();
        fs::create_dir_all(root.join(".trash/0/deep")).unwrap();
        let _again = Snapshots::open(&root).unwrap();
        await_empty(&root.join(".trash"));
        assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
    }

    #[test]
    fn usage_is_measured_again_only_if_something_may_have_been_written() {
        let until = |cpu_ns| Activity::Until { cpu_ns };
        let temp = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(&temp.path().join("s")).unwrap();
        let error = snapshots.usage(&id(3), Activity::Over, HOUR, HOUR).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let snapshot = snapshots.prepare(&id(3), temp.path(), None).unwrap();
        assert_eq!(snapshots.known_usage(&id(9)), None);
        let empty = snapshots.known_usage(&id(3)).unwrap();
        assert_eq!(snapshots.usage(&id(3), Activity::Unknown, HOUR, HOUR).unwrap(), empty);
        let mut known = snapshots.usage(&id(3), until(5), HOUR, HOUR).unwrap();
        let write = |name: &str| fs::write(snapshot.upper.join(name), [1; 100_000]).unwrap();
        let table = [
            ("nothing has run", until(5), HOUR, false),
            ("that was long ago", until(5), Duration::ZERO, true),
            ("something has run", until(6), HOUR, true),
            ("nobody can say", Activity::Unknown, HOUR, true),
            ("nobody can still say", Activity::Unknown, HOUR, true),
            ("it has ended", Activity::Over, HOUR, true),
            ("it had ended", Activity::Over, Duration::ZERO, false),
        ];
        for (name, activity, max_age, is_measured) in table {
            write(name);
            let now = snapshots.usage(&id(3), activity, max_age, HOUR).unwrap();
            assert_eq!(now != known, is_measured, "{name}");
            assert_eq!(snapshots.known_usage(&id(3)), Some(now));
            known = now;
        }
        assert!(known.bytes >= empty.bytes + 600_000);
        assert_eq!(known.inodes, empty.inodes + 6, "the last file has not been seen");
    }

    /// A container may fill its layer so that no walk comes to an end in one stretch.
    #[test]
    fn a_large_layer_is_measured_bit_by_bit() {
        let temp = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(&temp.path().join("s")).unwrap();
        let snapshot = snapshots.prepare(&id(3), temp.path(), None).unwrap();
        let volume = snapshots.volume(&id(3), 0).unwrap();
        let write = |directory: &Path, number: u32| fs::write(directory.join(number.to_string()), [1; 5000]);
        (0..30).for_each(|number| write(&snapshot.upper, number).unwrap());
        (0..30).for_each(|number| write(&volume, number).unwrap());
        let step = || snapshots.usage(&id(3), Activity::Over, HOUR, Duration::ZERO).unwrap();
        let is_less = |one: Usage, other: Usage| one.bytes < other.bytes || one.inodes < other.inodes;
        let mut known = snapshots.known_usage(&id(3)).unwrap();
        for _ in 0..40 {
            let now = step();
            assert!(!is_less(now, known), "{now:?} after {known:?}");
            assert_eq!(snapshots.known_usage(&id(3)), Some(now));
            known = now;
        }
        let whole = (0..40).map(|_| step()).fold(known, |_, usage| usage);
        assert_eq!(whole.inodes, 1 + 2 + 60, "the layer, the volumes and what is in them");
        assert!(whole.bytes >= 60 * 5000);
        assert!(is_less(known, whole), "it was not measured bit by bit");
        assert_eq!(step(), whole);
        // Most of it is gone, which only a walk that comes to its end can say.
        (0..30).for_each(|number| fs::remove_file(volume.join(number.to_string())).unwrap());
        let again = || snapshots.usage(&id(3), Activity::Unknown, HOUR, Duration::ZERO).unwrap();
        assert_eq!(again(), whole);
        assert_eq!((0..60).map(|_| again()).find(|usage| *usage != whole).unwrap().inodes, 33);
    }

    #[test]
    fn a_missing_layer_is_an_error_that_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(&temp.path().join("s")).unwrap();
        let error = snapshots.prepare(&id(4), &temp.path().join("none"), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(snapshots.list().unwrap().is_empty());
    }
}
