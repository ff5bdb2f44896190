//! Checks of what wharfd keeps up: what it cannot remove, and what somebody else has removed.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use wharf_cri_api::admin::InfoResponse;
use wharf_cri_api::v1::PodSandboxState;

use super::mend::{CommandLine, Remedy};
use super::service::LOG;
use super::{Check, bounded};
use crate::daemon::Daemon;
use crate::units::short;

/// How long nothing has happened to a tree that cannot be removed. wharfd waits at most half as long before it tries
/// again, and the removal of any file changes its directory.
const STUCK_S: i64 = 600;

const LINKS: &str = "pods' links";

/// What wharfd is to remove from the data root and cannot, such as a tree with an immutable file.
pub(super) fn trash(root: &Path) -> Check {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    trash_at(root, i64::try_from(now.as_secs()).unwrap_or(i64::MAX), &mounts)
}

fn trash_at(root: &Path, now_s: i64, mounts: &str) -> Check {
    const WHAT: &str = "trash";
    let places = [root.join("trash"), root.join("snapshots/.trash")];
    let entries = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    let is_stuck = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|it| now_s - it.ctime() > STUCK_S);
    let stuck: Vec<String> =
        entries.filter(is_stuck).map(|entry| entry.path().display().to_string()).collect();
    match stuck.as_slice() {
        [] => Check::ok(WHAT, "nothing is stuck"),
        [first, others @ ..] => {
            let more =
                if others.is_empty() { String::new() } else { format!(" (and {} more)", others.len()) };
            let found = format!("{first}{more} is stuck");
            let advice = "wharfd cannot remove this, and its log says why; it tries again every five minutes";
            if stuck.iter().any(|tree| has_mount(Path::new(tree), mounts)) {
                let advice = format!("{advice}: unmount what is mounted there (findmnt)");
                return Check::warn(WHAT, found, advice);
            }
            let find = stuck.iter().fold(CommandLine::new("find"), |line, tree| line.and(tree));
            // Other kinds of files have no such attributes.
            let clear = "-xdev -type f,d -exec chattr -ia {} +".split(' ').fold(find, CommandLine::and);
            let advice =
                format!("{advice}: look for immutable files (lsattr -R), or make all of them mutable");
            Check::warn(WHAT, found, advice).mended_by(vec![clear])
        }
    }
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
    let links = match fs::read_to_string(format!("/proc/{}/net/dev", info.pid)) {
        Ok(links) => links,
        Err(error) => return Check::warn(LINKS, error.to_string(), "use sudo to see wharfd's network"),
    };
    linked(ready, &Path::new(&info.state).join("leases"), links)
}

fn linked(pods: Vec<String>, leases: &Path, links: String) -> Check {
    bounded::check(LINKS, leases, move |leases| {
        let lost = unlinked(&pods, leases, &links);
        if lost.is_empty() {
            return Check::ok(LINKS, "all present");
        }
        let advice = "something deleted the link, so the pod cannot be reached: replace the pod (wharf rm, or kubectl delete pod)";
        Check::warn(LINKS, format!("missing for {}", lost.join(", ")), advice).left_as(Remedy::Removal)
    })
}

/// Which of these pods have an address in the built-in network, and no link: each is named after its pod.
fn unlinked(pods: &[String], leases: &Path, links: &str) -> Vec<String> {
    let has_link = |pod: &str| {
        let names = links.lines().filter_map(|line| line.split_once(':')).map(|(name, _counts)| name);
        names.into_iter().any(|name| name.ends_with(short(pod)))
    };
    let lost = pods.iter().filter(|pod| leases.join(pod).exists() && !has_link(pod));
    lost.map(|pod| short(pod).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
    fn immutable_files_in_the_trash_are_made_mutable() {
        let run = |line: CommandLine| line.execute(Duration::from_secs(60)).unwrap();
        let root = tempfile::Builder::new().prefix("a b").tempdir().unwrap();
        let (tree, outside) = (root.path().join("trash/7"), root.path().join("outside"));
        fs::create_dir_all(tree.join("d")).unwrap();
        [&tree.join("d/f"), &outside].iter().for_each(|file| fs::write(file, "").unwrap());
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        let changed = fs::metadata(&tree).unwrap().ctime();
        for (flag, file) in [("+i", &tree.join("d/f")), ("+a", &tree.join("d")), ("+i", &outside)] {
            run(CommandLine::new("chattr").and(flag).and(file.display().to_string()));
        }
        let told = trash_at(root.path(), changed + STUCK_S + 60, "");
        let Remedy::Commands(commands) = told.remedy else { panic!("{told:?}") };
        let mended = commands[0].execute(Duration::from_secs(60));
        let removed = fs::remove_dir_all(&tree);
        let kept = fs::remove_file(&outside);
        run(CommandLine::new("chattr -i").and(outside.display().to_string()));
        assert_eq!(mended, Ok(String::new()));
        removed.unwrap();
        assert!(kept.is_err(), "what is not in the trash stays as it is");
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
        let lost = |links: &str| unlinked(&pods, leases.path(), links);
        assert_eq!(lost(&links), [short(cut)]);
        assert_eq!(lost(&format!("{links}  wh{}: 0\n", short(cut))), [""; 0]);
    }

    #[test]
    fn leases_that_do_not_respond_are_not_waited_for() {
        of_silent(|leases| linked(vec!["0123456789abcdef".to_owned()], leases, String::new()));
    }
}
