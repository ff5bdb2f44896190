//! The daemon, and what it stands on.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use wharf_cri_api::admin::InfoResponse;
use wharf_cri_api::v1::StatusRequest;

use super::{Check, Told};
use crate::daemon::Daemon;
use crate::info;
use crate::units::size;

/// The number of the capability by which limits may be raised.
const CAP_SYS_RESOURCE: u32 = 24;

/// All checks of the daemon; the first alone if there is none.
pub(super) async fn checks(told: Told) -> Vec<Check> {
    let (mut daemon, info) = match told {
        Ok(told) => told,
        Err(error) => {
            let text = wharf_types::chain(&error);
            let (found, advice) = text.split_once("\n  ").unwrap_or((&text, "look into its log"));
            return vec![
                Check::fail("wharfd", found, advice.replace("\n  ", "; ")),
                supervisor(&beside_this_program()),
            ];
        }
    };
    let mut checks = vec![
        version(&info),
        supervisor(Path::new(&info.supervisor)),
        limits(info.bounding_capabilities),
        disk(Path::new(&info.root)),
        Check::ok("network", info::bridge(&info)),
    ];
    checks.extend(conditions(&mut daemon).await);
    checks
}

fn version(info: &InfoResponse) -> Check {
    let own = env!("CARGO_PKG_VERSION");
    if info.version == own {
        return Check::ok("wharfd", format!("{own}, pid {}", info.pid));
    }
    let found = format!("{}, but wharf is {own}", info.version);
    Check::warn("wharfd", found, "restart it after an upgrade: containers go on meanwhile")
}

/// Where the supervisor is if nothing else was configured.
fn beside_this_program() -> std::path::PathBuf {
    std::env::current_exe().unwrap_or_default().with_file_name("wharf-shim")
}

fn supervisor(path: &Path) -> Check {
    let found = path.display().to_string();
    match std::fs::metadata(path) {
        Ok(file) if file.permissions().mode() & 0o111 != 0 => Check::ok("supervisor", found),
        Ok(_) => Check::fail("supervisor", found, "it is not executable: chmod +x"),
        Err(error) => {
            let advice = "install wharf-shim beside wharfd, or set `shim` in /etc/wharf/config.toml";
            Check::fail("supervisor", format!("{found}: {error}"), advice)
        }
    }
}

fn limits(bounding: u64) -> Check {
    const WHAT: &str = "CAP_SYS_RESOURCE";
    if bounding & (1 << CAP_SYS_RESOURCE) != 0 {
        return Check::ok(WHAT, "yes");
    }
    let advice = "containers cannot be given a lower oom_score_adj or higher limits: run wharfd with it";
    Check::warn(WHAT, "wharfd lacks it", advice)
}

fn disk(root: &Path) -> Check {
    const WHAT: &str = "disk";
    let place = root.display();
    match nix::sys::statvfs::statvfs(root) {
        Ok(stat) => {
            room(place, stat.blocks_available() * stat.fragment_size(), stat.blocks() * stat.fragment_size())
        }
        Err(error) => Check::fail(WHAT, format!("{place}: {error}"), "look whether it is there and mounted"),
    }
}

fn room(place: impl std::fmt::Display, free: u64, all: u64) -> Check {
    const WHAT: &str = "disk";
    let found = format!("{} of {} free at {place}", size(free), size(all));
    let advice = "remove images (wharf rmi) or containers (wharf rm), or set `root` to a larger disk";
    match free.saturating_mul(100).checked_div(all).unwrap_or(0) {
        0..5 => Check::fail(WHAT, found, advice),
        5..15 => Check::warn(WHAT, found, advice),
        _ => Check::ok(WHAT, found),
    }
}

/// What the daemon itself says of its state.
async fn conditions(daemon: &mut Daemon) -> Vec<Check> {
    let Ok(answer) = daemon.runtime.status(StatusRequest { verbose: false }).await else { return Vec::new() };
    let conditions = answer.into_inner().status.map(|status| status.conditions).unwrap_or_default();
    conditions.into_iter().map(condition).collect()
}

/// A condition that is true may have remarks all the same.
fn condition(told: wharf_cri_api::v1::RuntimeCondition) -> Check {
    let name = if told.r#type == "NetworkReady" { "pods' network" } else { "runtime" };
    match (told.status, told.message.as_str()) {
        (true, "") => Check::ok(name, "ready"),
        (true, remark) => Check::warn(name, "ready, but look at this", remark),
        (false, problem) => Check::fail(name, "not ready", problem),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_full_disk_is_told() {
        let verdict = |free| room("/x", free, 1000).verdict;
        assert_eq!([verdict(10), verdict(100), verdict(500)], [Verdict::Fail, Verdict::Warn, Verdict::Ok]);
        assert_eq!(room("/x", 0, 0).verdict, Verdict::Fail);
        assert_eq!(disk(Path::new("/no/such")).verdict, Verdict::Fail);
    }

    #[test]
    fn remarks_of_a_network_that_is_ready_are_told() {
        let told = |status, message: &str| {
            let (r#type, message) = ("NetworkReady".to_owned(), message.to_owned());
            condition(wharf_cri_api::v1::RuntimeCondition { r#type, status, message, ..Default::default() })
        };
        assert_eq!(told(true, "").verdict, Verdict::Ok);
        let remark = told(true, "3 pods are left");
        assert_eq!((remark.verdict, remark.advice.as_str()), (Verdict::Warn, "3 pods are left"));
        assert_eq!(told(false, "no configuration").verdict, Verdict::Fail);
    }

    #[test]
    fn the_supervisor_must_be_a_program() {
        assert_eq!(supervisor(Path::new("/bin/sh")).verdict, Verdict::Ok);
        assert_eq!(supervisor(Path::new("/etc/passwd")).verdict, Verdict::Fail);
        assert_eq!(supervisor(Path::new("/no/such")).verdict, Verdict::Fail);
        assert_eq!((limits(0).verdict, limits(1 << 24).verdict), (Verdict::Warn, Verdict::Ok));
    }
}
