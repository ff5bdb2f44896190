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
        network(&info),
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

fn network(info: &InfoResponse) -> Check {
    let entries = std::fs::read_dir(&info.cni_conf_dir).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let first =
        files.filter(|name| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end))).min();
    match first {
        Some(file) => Check::ok("network", format!("CNI, by {}/{file}", info.cni_conf_dir)),
        None if info.bridge.is_empty() => {
            let advice = "install a CNI plugin, or set `network.bridge` in /etc/wharf/config.toml";
            Check::fail("network", info::bridge(info), advice)
        }
        None => Check::ok("network", format!("the built-in bridge {} {}", info.bridge, info.subnets)),
    }
}

/// What the daemon itself says of its state.
async fn conditions(daemon: &mut Daemon) -> Vec<Check> {
    let Ok(answer) = daemon.runtime.status(StatusRequest { verbose: false }).await else { return Vec::new() };
    let conditions = answer.into_inner().status.map(|status| status.conditions).unwrap_or_default();
    let name = |kind: &str| if kind == "NetworkReady" { "pods' network" } else { "runtime" };
    let check = |condition: wharf_cri_api::v1::RuntimeCondition| match condition.status {
        true => Check::ok(name(&condition.r#type), "ready"),
        false => Check::fail(name(&condition.r#type), "not ready", condition.message),
    };
    conditions.into_iter().map(check).collect()
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
    fn a_cni_configuration_goes_before_the_bridge() {
        let dir = tempfile::tempdir().unwrap();
        let mut info = InfoResponse {
            cni_conf_dir: dir.path().to_string_lossy().into_owned(),
            bridge: "wharf0".into(),
            ..InfoResponse::default()
        };
        assert!(network(&info).found.contains("wharf0"));
        info.bridge.clear();
        assert_eq!(network(&info).verdict, Verdict::Fail);
        std::fs::write(dir.path().join("10-x.conflist"), "").unwrap();
        assert!(network(&info).found.ends_with("10-x.conflist"));
    }

    #[test]
    fn the_supervisor_must_be_a_program() {
        assert_eq!(supervisor(Path::new("/bin/sh")).verdict, Verdict::Ok);
        assert_eq!(supervisor(Path::new("/etc/passwd")).verdict, Verdict::Fail);
        assert_eq!(supervisor(Path::new("/no/such")).verdict, Verdict::Fail);
        assert_eq!((limits(0).verdict, limits(1 << 24).verdict), (Verdict::Warn, Verdict::Ok));
    }
}
