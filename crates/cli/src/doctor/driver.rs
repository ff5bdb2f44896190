//! Checks that wharfd, systemd and the kubelet agree on who makes the cgroups.

use std::io;
use std::path::Path;

use wharf_cri_api::v1::{CgroupDriver, RuntimeConfigRequest};

use super::service::LOG;
use super::{Check, bounded, source};
use crate::daemon::Daemon;

/// Where kubelets have their configuration; wharfd takes the machine for a cluster's node if one is there.
pub(crate) const KUBELETS: [&str; 2] =
    ["/var/lib/kubelet/config.yaml", "/etc/kubernetes/kubelet/config.json"];
/// What shows that systemd is the machine's init: sd_booted(3).
const BOOTED: &str = "/run/systemd/system";

const WHAT: &str = "cgroup driver";

/// Asks wharfd, and compares.
pub(super) async fn check(daemon: &mut Daemon) -> Check {
    let told = match daemon.runtime.runtime_config(RuntimeConfigRequest {}).await {
        Ok(told) => told.into_inner().linux.unwrap_or_default().cgroup_driver(),
        Err(status) => return Check::fail(WHAT, status.message(), LOG),
    };
    let kubelets = match bounded::attempt(WHAT, Path::new(KUBELETS[0]), |_file| configured(&KUBELETS)) {
        Ok(Ok(kubelets)) => kubelets,
        Ok(Err((file, error))) => return Check::unknown(WHAT, Path::new(&file), &error),
        Err(unread) => return unread,
    };
    if told == CgroupDriver::Systemd && !Path::new(BOOTED).is_dir() {
        let advice = "systemd is not this machine's init, so it makes no cgroups: set cgroup_driver = \"cgroupfs\" in \
                      /etc/wharf/config.toml and restart wharfd";
        return Check::fail(WHAT, "systemd", advice);
    }
    compare(told, kubelets.as_ref().map(|(file, driver)| (file.as_str(), driver.as_str())))
}

/// The first of these files that names a driver, or the one that cannot be read.
fn configured(files: &[&str]) -> Result<Option<(String, String)>, (String, io::Error)> {
    for file in files {
        let configuration = source::if_any(source::text(Path::new(file)));
        let configuration = configuration.map_err(|error| ((*file).to_owned(), error))?;
        if let Some(driver) = driver_in(&configuration) {
            return Ok(Some(((*file).to_owned(), driver)));
        }
    }
    Ok(None)
}

/// `kubelets` is the file of a kubelet's configuration, and the driver that it names.
fn compare(told: CgroupDriver, kubelets: Option<(&str, &str)>) -> Check {
    let own = match told {
        CgroupDriver::Systemd => "systemd",
        CgroupDriver::Cgroupfs => "cgroupfs",
    };
    match kubelets {
        Some((file, theirs)) if theirs != own => {
            let found = format!("{own}, but {file} says {theirs}");
            let advice = format!(
                "a kubelet that does not ask wharfd (before Kubernetes 1.31, unless KubeletCgroupDriverFromCRI is on) \
                 places pods wrongly: set cgroupDriver there to {own}, or, while there is no pod, cgroup_driver in \
                 /etc/wharf/config.toml to {theirs}"
            );
            Check::warn(WHAT, found, advice)
        }
        Some((file, _same)) => Check::ok(WHAT, format!("{own}, as {file} says")),
        None => Check::ok(WHAT, own),
    }
}

/// The driver that a kubelet's configuration names, in YAML or JSON.
fn driver_in(configuration: &str) -> Option<String> {
    let value = configuration.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim_matches([' ', '"', '{']) == "cgroupDriver").then_some(value)
    })?;
    let value = value.split('#').next().unwrap_or_default();
    Some(value.trim_matches([' ', '"', '\'', ',', '}']).to_owned()).filter(|driver| !driver.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn who_disagrees_is_reported() {
        let file = "/k/config.yaml";
        let verdict = |told, theirs: Option<&str>| compare(told, theirs.map(|theirs| (file, theirs))).verdict;
        use CgroupDriver::{Cgroupfs, Systemd};
        for (told, same, other) in [(Cgroupfs, "cgroupfs", "systemd"), (Systemd, "systemd", "cgroupfs")] {
            assert_eq!(verdict(told, None), Verdict::Ok);
            assert_eq!(verdict(told, Some(same)), Verdict::Ok);
            assert_eq!(verdict(told, Some(other)), Verdict::Warn);
        }
        let told = compare(Cgroupfs, Some((file, "systemd")));
        assert!(told.found.contains(file) && told.advice.contains("cgroup_driver"), "{told:?}");
    }

    #[test]
    fn a_configuration_that_cannot_be_read_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let [none, file] = ["none", "file"].map(|name| dir.path().join(name).display().to_string());
        std::fs::write(&file, b"cgroupDriver: systemd # \xff\n").unwrap();
        let found = configured(&[&none, &file]).unwrap();
        assert_eq!(found, Some((file.clone(), "systemd".to_owned())));
        assert_eq!(configured(&[&none]).unwrap(), None);
        let directory = dir.path().display().to_string();
        assert_eq!(configured(&[&directory, &file]).unwrap_err().0, directory);
    }

    #[test]
    fn a_kubelets_configuration_names_its_driver() {
        for (text, expected) in [
            ("kind: KubeletConfiguration\ncgroupDriver: systemd\n", Some("systemd")),
            ("cgroupDriver: \"cgroupfs\" # as ever\n", Some("cgroupfs")),
            ("{\n  \"cgroupDriver\": \"systemd\",\n  \"x\": 1\n}", Some("systemd")),
            ("{\"cgroupDriver\": \"systemd\"}", Some("systemd")),
            ("# cgroupDriver: systemd\ncgroupRoot: /\n", None),
            ("cgroupDriver: \n", None),
            ("", None),
        ] {
            assert_eq!(driver_in(text).as_deref(), expected, "{text}");
        }
    }
}
