//! The checks of a configuration with which wharfd starts, but no pod would. They change nothing.

use std::path::Path;

use anyhow::{Context as _, ensure};
use wharf_network::Builtin;
use wharf_planner::defaults;

use super::Config;

/// Where the kernel shows its sysctls.
const SYSCTLS: &str = "/proc/sys";

/// Checks the directory of CNI configurations, that ranges of a cluster have an effect, and that this kernel has the
/// sysctls of all pods.
#[expect(clippy::disallowed_methods, reason = "a command that nobody else waits for")]
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    let directory = &config.network.cni_conf_dir;
    // It need not exist yet.
    let is_other = std::fs::metadata(directory).is_ok_and(|found| !found.is_dir());
    ensure!(!is_other, "network.cni_conf_dir: {} is not a directory", directory.display());
    let is_of_cluster = !config.network.cluster_subnets.is_empty();
    ensure!(
        !is_of_cluster || config.network.builtin == Builtin::On,
        "network.cluster_subnets: on a cluster's node it has no effect without network.builtin = \"on\""
    );
    for text in &config.containers.default_sysctls {
        let (key, _value) = defaults::sysctl(text).context("containers.default_sysctls")?;
        let file = Path::new(SYSCTLS).join(key.replace('.', "/"));
        ensure!(
            is_of_an_interface(&key) || file.exists(),
            "containers.default_sysctls: this kernel has no {key}, so that no pod could be made"
        );
    }
    Ok(())
}

/// The machine need not have the interfaces of a pod.
fn is_of_an_interface(key: &str) -> bool {
    [".conf.", ".neigh."].iter().any(|of| key.contains(of))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_keep_every_pod_from_starting_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.network.cni_conf_dir = dir.path().join("none");
        config.containers.default_sysctls =
            ["net.core.somaxconn=9", "net.ipv4.conf.eth7.rp_filter=1"].map(str::to_owned).into();
        check(&config).unwrap();
        config.containers.default_sysctls.push("net.foo.bar=1".to_owned());
        let refused = check(&config).unwrap_err().to_string();
        assert!(refused.contains("default_sysctls: this kernel has no net.foo.bar"), "{refused}");
        config.network.cni_conf_dir = dir.path().join("file");
        std::fs::write(&config.network.cni_conf_dir, "").unwrap();
        let refused = check(&config).unwrap_err().to_string();
        assert!(
            refused.starts_with("network.cni_conf_dir: ") && refused.ends_with("is not a directory"),
            "{refused}"
        );
    }
}
