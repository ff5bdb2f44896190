//! Checks of what wharfd keeps up: what it cannot remove, and what somebody else has removed.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;
use wharf_cri_api::admin::InfoResponse;
use wharf_cri_api::v1::PodSandboxState;

use super::mend::Remedy;
use super::service::LOG;
use super::{Check, bounded, source};
use crate::daemon::Daemon;
use crate::units::short;

/// How long nothing has happened to a tree that cannot be removed. wharfd waits at most half as long before it tries
/// again, and the removal of any file changes its directory.
const STUCK_S: i64 = 600;

const LINKS: &str = "pods' links";

/// How many directories of a tree are looked at.
const LOOKED_AT: usize = 500;

const TRASH: &str = "trash";

/// What wharfd is to remove from the data root and cannot, such as a tree with an immutable file.
pub(super) fn trash(root: &Path) -> Check {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    source::check(TRASH, "/proc/self/mountinfo", |mounts| trash_at(root, now_s, mounts))
}

/// No command is offered: a container that can still write there decides which file of this machine a path leads to.
fn trash_at(root: &Path, now_s: i64, mounts: &str) -> Check {
    let mut stuck = Vec::new();
    for place in [root.join("trash"), root.join("snapshots/.trash")] {
        match source::names(&place) {
            Ok(names) => stuck.extend(names.into_iter().map(|name| place.join(name))),
            Err(error) => return Check::unknown(TRASH, &place, &error),
        }
    }
    let is_old = |tree: &PathBuf| fs::symlink_metadata(tree).is_ok_and(|it| now_s - it.ctime() > STUCK_S);
    stuck.retain(is_old);
    let [first, others @ ..] = stuck.as_slice() else { return Check::ok(TRASH, "nothing is stuck") };
    let more = if others.is_empty() { String::new() } else { format!(" (and {} more)", others.len()) };
    let found = format!("{}{more} is stuck", first.display());
    let tells = "wharfd cannot remove this, and its log says why; it tries again every five minutes";
    if stuck.iter().any(|tree| has_mount(tree, mounts)) {
        return Check::warn(TRASH, found, format!("{tells}: unmount what is mounted there (findmnt)"));
    }
    if stuck.iter().any(|tree| is_written(tree, now_s - STUCK_S, &mut LOOKED_AT.clone())) {
        let advice = "find the process that has a directory of it open (lsof), and stop its container";
        return Check::warn(
            TRASH,
            format!("{found}: somebody still writes there"),
            format!("{tells}: {advice}"),
        );
    }
    let advice = "look for immutable files (lsattr -R), and decide whether to clear the attribute; not while a container may \
                  have a descriptor of such a directory, with which it can put a link to another file of this machine in place";
    Check::warn(TRASH, found, format!("{tells}: {advice}"))
}

/// Whether a directory of a tree has changed since then. Only so many directories are looked at as `left` says. No link
/// is followed, also not one that somebody puts there meanwhile.
fn is_written(tree: &Path, since_s: i64, left: &mut usize) -> bool {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let Some(fewer) = left.checked_sub(1) else { return false };
    *left = fewer;
    let opened = fs::File::options().read(true).custom_flags(flags.bits()).open(tree);
    let Ok(directory) = opened else { return false };
    if directory.metadata().is_ok_and(|it| it.ctime() > since_s) {
        return true;
    }
    let entries = fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let mut entries = entries.into_iter().flatten().flatten();
    entries.any(|it| it.file_type().is_ok_and(|kind| kind.is_dir()) && is_written(&it.path(), since_s, left))
}

/// Whether something is mounted on a tree or in it, which may not be wharf's.
fn has_mount(tree: &Path, mountinfo: &str) -> bool {
    // Without symbolic links and with escapes, as in mountinfo.
    let Ok(tree) = fs::canonicalize(tree) else { return true };
    let tree = tree.to_string_lossy().replace('\\', r"\134").replace(' ', r"\040");
    let mut points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    points.any(|point| Path::new(point).starts_with(&tree))
}

/// Pods that are ready, but have lost their link to this machine.
pub(super) async fn links(daemon: &mut Daemon, info: &InfoResponse) -> Check {
    let listing = match daemon.listing().await {
        Ok(listing) => listing,
        Err(error) => return Check::fail(LINKS, error.to_string(), LOG),
    };
    let ready = listing.pods.iter().filter(|pod| pod.state() == PodSandboxState::SandboxReady);
    let ready: Vec<String> = ready.map(|pod| pod.id.clone()).collect();
    // Those of the network namespace that wharfd is in.
    let table = format!("/proc/{}/net/dev", info.pid);
    let links = match source::text(Path::new(&table)) {
        Ok(links) => links,
        Err(error) => return Check::unknown(LINKS, Path::new(&table), &error),
    };
    linked(ready, &Path::new(&info.state).join("leases"), links)
}

fn linked(pods: Vec<String>, leases: &Path, links: String) -> Check {
    bounded::check(LINKS, leases, move |leases| {
        let lost = match unlinked(&pods, leases, &links) {
            Ok(lost) => lost,
            Err(error) => return Check::unknown(LINKS, leases, &error),
        };
        if lost.is_empty() {
            return Check::ok(LINKS, "all present");
        }
        let advice = "something deleted the link, so the pod cannot be reached: replace the pod (wharf rm, or kubectl delete pod)";
        Check::warn(LINKS, format!("missing for {}", lost.join(", ")), advice).left_as(Remedy::Removal)
    })
}

/// Which of these pods have an address in the built-in network, and no link: each is named after its pod.
fn unlinked(pods: &[String], leases: &Path, links: &str) -> io::Result<Vec<String>> {
    let has_link = |pod: &str| {
        let names = links.lines().filter_map(|line| line.split_once(':')).map(|(name, _counts)| name);
        names.into_iter().any(|name| name.ends_with(short(pod)))
    };
    let mut lost = Vec::new();
    for pod in pods {
        if leases.join(pod).try_exists()? && !has_link(pod) {
            lost.push(short(pod).to_owned());
        }
    }
    Ok(lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;
    use crate::doctor::bounded::tests::of_silent;

    #[test]
    fn what_stays_in_the_trash_is_reported() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(trash(root.path()).verdict, Verdict::Ok, "none");
        for place in ["trash/7", "snapshots/.trash/8"] {
            fs::create_dir_all(root.path().join(place)).unwrap();
        }
        assert_eq!(trash(root.path()).verdict, Verdict::Ok, "it may be removed yet");
        let later = fs::metadata(root.path()).unwrap().ctime() + STUCK_S + 60;
        let told = trash_at(root.path(), later, "");
        assert_eq!(told.verdict, Verdict::Warn);
        assert!(told.found.ends_with("trash/7 (and 1 more) is stuck"), "{told:?}");
        let point = root.path().join("trash/7/a").display().to_string();
        let told = trash_at(root.path(), later, &format!("1 2 0:3 / {point} rw - tmpfs tmpfs rw\n"));
        assert_eq!((told.verdict, told.remedy), (Verdict::Warn, Remedy::Judgement), "a mount is there");
    }

    #[test]
    fn immutable_files_in_the_trash_are_left_to_the_operator() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("trash/7");
        fs::create_dir_all(tree.join("d")).unwrap();
        let later = fs::metadata(tree.join("d")).unwrap().ctime() + STUCK_S + 60;
        let told = trash_at(root.path(), later, "");
        assert_eq!((told.verdict, &told.remedy), (Verdict::Warn, &Remedy::Judgement));
        assert!(told.advice.contains("lsattr") && !told.advice.contains("chattr"), "{told:?}");
    }

    #[test]
    fn who_still_writes_to_the_trash_is_told_from_what_cannot_be_removed() {
        let root = tempfile::tempdir().unwrap();
        let (tree, outside) = (root.path().join("trash/7"), root.path().join("outside"));
        [&tree.join("a/b"), &outside].iter().for_each(|place| fs::create_dir_all(place).unwrap());
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        let changed = |place: &Path| fs::metadata(place).unwrap().ctime();
        let looks = |since_s, mut left| is_written(&tree, since_s, &mut left);
        let since_s = changed(&tree.join("a"));
        assert!(looks(since_s - 1, LOOKED_AT) && !looks(since_s, LOOKED_AT));
        assert!(!looks(since_s - 1, 0), "no more than so many are looked at");
        assert!(
            !is_written(&tree.join("a/link"), since_s - 1, &mut LOOKED_AT.clone()),
            "a link is not followed"
        );
    }

    #[test]
    fn a_mount_in_a_tree_is_seen() {
        let dir = tempfile::Builder::new().prefix("a b").tempdir().unwrap();
        let shown = dir.path().display().to_string().replace(' ', r"\040");
        let at = |point: String| has_mount(dir.path(), &format!("1 2 0:3 / {point} rw - tmpfs tmpfs rw\n"));
        assert!(at(shown.clone()) && at(format!("{shown}/c")));
        assert!(!at(format!("{shown}c")) && !at("/".to_owned()));
        assert!(has_mount(Path::new("/no/such"), ""), "it cannot be looked for");
    }

    #[test]
    fn ready_pods_without_their_link_are_reported() {
        let pods = ["0123456789abcdef", "123456789abcdef0", "23456789abcdef01"].map(str::to_owned);
        let [whole, cut, _of_cni] = &pods;
        let leases = tempfile::tempdir().unwrap();
        [whole, cut].iter().for_each(|pod| fs::write(leases.path().join(pod), "").unwrap());
        let links = format!("Inter-|\n face |bytes\n    lo: 7 0\n  wh{}: 0 0\n", short(whole));
        let lost = |links: &str| unlinked(&pods, leases.path(), links).unwrap();
        assert_eq!(lost(&links), [short(cut)]);
        assert_eq!(lost(&format!("{links}  wh{}: 0\n", short(cut))), [""; 0]);
        assert!(unlinked(&pods, &leases.path().join(whole), &links).is_err(), "leases that cannot be seen");
    }

    #[test]
    fn leases_that_do_not_respond_are_not_waited_for() {
        of_silent(|leases| linked(vec!["0123456789abcdef".to_owned()], leases, String::new()));
    }
}
