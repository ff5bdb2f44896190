//! Which key may have been meant by one that does not exist.

use super::Config;

/// Keys of containerd and CRI-O that have another name here.
const OF_PEERS: [(&str, &str); 47] = [
    ("SystemdCgroup", "cgroup_driver"),
    ("bin_dirs", "network.cni_bin_dirs"),
    ("cdi_spec_dirs", "cdi.spec_dirs"),
    ("cgroup_manager", "cgroup_driver"),
    ("conf_dir", "network.cni_conf_dir"),
    ("config_path", "registry.certs_dir"),
    ("disable_connections", "nri.external_connections"),
    ("enable_cdi", "cdi.enabled"),
    ("enable_metrics", "metrics.address"),
    ("enable_nri", "nri.enabled"),
    ("enable_selinux", "containers.selinux"),
    ("enable_tracing", "tracing.endpoint"),
    ("global_auth_file", "registry.auth_files"),
    ("hooks_dir", "hooks.dirs"),
    ("ignore_image_defined_volumes", "containers.image_volumes"),
    ("image_pull_progress_timeout", "registry.stall_timeout_s"),
    ("listen", "socket"),
    ("log_filter", "log.level"),
    ("log_size_max", "containers.log_size_max_mib"),
    ("max_concurrent_downloads", "registry.layers_in_all"),
    ("max_container_log_line_size", "containers.log_line_bytes"),
    ("metrics_host", "metrics.address"),
    ("metrics_port", "metrics.address"),
    ("nri_disable_connections", "nri.external_connections"),
    ("nri_listen", "nri.socket"),
    ("nri_plugin_config_dir", "nri.plugin_config_dir"),
    ("nri_plugin_dir", "nri.plugin_dir"),
    ("nri_plugin_registration_timeout", "nri.registration_timeout_s"),
    ("nri_plugin_request_timeout", "nri.request_timeout_s"),
    ("pinned_images", "images.pinned"),
    ("plugin_config_path", "nri.plugin_config_dir"),
    ("plugin_dirs", "network.cni_bin_dirs"),
    ("plugin_path", "nri.plugin_dir"),
    ("plugin_registration_timeout", "nri.registration_timeout_s"),
    ("plugin_request_timeout", "nri.request_timeout_s"),
    ("privileged_without_host_devices", "containers.privileged_devices"),
    ("pull_progress_timeout", "registry.stall_timeout_s"),
    ("registries_conf_path", "registry.registries_conf"),
    ("runroot", "state"),
    ("seccomp_profile", "containers.default_seccomp"),
    ("socket_path", "nri.socket"),
    ("stream_idle_timeout", "streaming.idle_timeout_s"),
    ("stream_port", "streaming.address"),
    ("stream_server_port", "streaming.address"),
    ("tracing_endpoint", "tracing.endpoint"),
    ("tracing_sampling_rate_per_million", "tracing.sampling_rate_per_million"),
    ("unset_seccomp_profile", "containers.default_seccomp"),
];

/// The key that is closest to an unknown one, from the parser's message: "unknown field `a`, expected one of `b`, `c`".
/// First comes a key of the same table, then one of another table, then what another runtime calls so.
pub(super) fn meant(complaint: &str) -> Option<String> {
    let (unknown, expected) = complaint.strip_prefix("unknown field `")?.split_once('`')?;
    let here = expected.split('`').skip(1).step_by(2).map(|key| (key, key.to_owned()));
    let peers = OF_PEERS.iter().find(|(theirs, _)| *theirs == unknown).map(|(_, ours)| (*ours).to_owned());
    let all = all();
    let elsewhere = all.iter().map(|key| (key.rsplit('.').next().unwrap_or(key), key.clone()));
    nearest(unknown, here).or(peers).or_else(|| nearest(unknown, elsewhere))
}

fn nearest<'a>(unknown: &str, keys: impl Iterator<Item = (&'a str, String)>) -> Option<String> {
    let distance = |(name, key): (&str, String)| (strsim::damerau_levenshtein(unknown, name), key);
    let (distance, key) = keys.map(distance).min()?;
    // If more than a third of it is wrong, it may have been meant as anything.
    (distance * 3 <= unknown.len().max(3)).then_some(key)
}

/// Every key, with its tables.
fn all() -> Vec<String> {
    let table = toml::Table::try_from(Config::default()).unwrap_or_default();
    let keys = table.iter().flat_map(|(name, value)| match value {
        toml::Value::Table(inner) => inner.keys().map(|key| format!("{name}.{key}")).collect(),
        _ => vec![name.clone()],
    });
    keys.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(key: &str) -> String {
        format!("unknown field `{key}`, expected one of `root`, `state`, `cgroup_parent`")
    }

    #[test]
    fn only_a_near_key_is_guessed() {
        for (key, near) in [
            ("cgroup-parent", Some("cgroup_parent")),
            ("rot", Some("root")),
            ("pids_limits", Some("containers.pids_limit")),
            ("certs_dir", Some("registry.certs_dir")),
            ("max_concurrent_downloads", Some("registry.layers_in_all")),
            ("colour", None),
        ] {
            assert_eq!(meant(&complaint(key)).as_deref(), near, "{key}");
        }
        assert_eq!(meant("invalid type: integer"), None);
    }

    #[test]
    fn what_others_call_differently_is_a_key_here() {
        let all = all();
        for (theirs, ours) in OF_PEERS {
            assert!(all.iter().any(|key| key == ours), "{theirs}: {ours}");
        }
    }
}
