//! Checks of what wharfd keeps up: what it cannot remove, and what somebody else has removed.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use wharf_cri_api::admin::InfoResponse;
use wharf_cri_api::v1::PodSandboxState;

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
    trash_at(root, i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

fn trash_at(root: &Path, now_s: i64) -> Check {
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
            let advice = "wharfd cannot remove this, and its log says why: look for immutable files (lsattr -R) and mounts; it \
                          tries again every five minutes";
            Check::warn(WHAT, format!("{first}{more} is stuck"), advice)
        }
    }
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
        Check::warn(LINKS, format!("missing for {}", lost.join(", ")), advice)
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
        let told = trash_at(root.path(), later);
        assert_eq!(told.verdict, Verdict::Warn);
        assert!(told.found.ends_with("trash/7 (and 1 more) is stuck"), "{told:?}");
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
