//! Values that nothing could work with: each is refused with its key, at the start and not with the first pod.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use wharf_network::{Subnet, Subnets};

use super::listening::conflict;
use super::{Config, Network, Streaming};

/// The longest time, in seconds: a year. Longer ones are written by mistake, as milliseconds perhaps.
const TIME_MAX_S: u64 = 366 * 24 * 3600;
/// The longest window that Zstandard knows, in MiB.
const WINDOW_MAX_MIB: u64 = 2048;
/// The most paths in `extra_sockets`: each is for a client that looks for another runtime's socket, and there are few.
const EXTRA_SOCKETS_MAX: usize = 4;
/// The most downloads and sessions.
const COUNT_MAX: u64 = 1 << 16;
/// The largest layer that can be told in bytes, in GiB.
const LAYER_MAX_GIB: u64 = u64::MAX >> 30;
/// The kernel's longest name of a link, and of a socket's path, in bytes.
const LINK_NAME_LEN: usize = 15;
const SOCKET_PATH_LEN: usize = 107;
/// The least and the largest MTU of a link for IPv4, and the least one for IPv6.
const MTU: RangeInclusive<u32> = 68..=65_535;
const MTU_IPV6_MIN: u32 = 1280;

/// Finds the first value that cannot be.
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    numbers(config)?;
    paths(config)?;
    level(&config.log.level)?;
    network(&config.network)?;
    tls(&config.streaming)?;
    metrics(config)?;
    config.streaming().check().context("streaming")
}

fn numbers(config: &Config) -> anyhow::Result<()> {
    let Config { images, registry, network, streaming, .. } = config;
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let all = [
        ("images.layer_gib", images.layer_gib, 1..=LAYER_MAX_GIB),
        ("images.layer_entries", images.layer_entries, 1..=u64::MAX),
        ("images.zstd_window_mib", images.zstd_window_mib, 1..=WINDOW_MAX_MIB),
        ("registry.layers_per_pull", count(registry.layers_per_pull), 1..=COUNT_MAX),
        ("registry.layers_in_all", count(registry.layers_in_all), 1..=COUNT_MAX),
        ("registry.stall_timeout_s", registry.stall_timeout_s, 1..=TIME_MAX_S),
        ("network.cni_add_timeout_s", network.cni_add_timeout_s, 1..=TIME_MAX_S),
        ("network.cni_delete_timeout_s", network.cni_delete_timeout_s, 1..=TIME_MAX_S),
        ("streaming.idle_timeout_s", streaming.idle_timeout_s, 1..=TIME_MAX_S),
        ("streaming.write_timeout_s", streaming.write_timeout_s, 1..=TIME_MAX_S),
        ("streaming.sessions", count(streaming.sessions), 1..=COUNT_MAX),
        ("streaming.sessions_each", count(streaming.sessions_each), 1..=COUNT_MAX),
    ];
    all.into_iter().try_for_each(|(key, number, range)| {
        let (least, most) = (range.start(), range.end());
        ensure!(range.contains(&number), "{key}: {number} is not from {least} to {most}");
        Ok(())
    })
}

fn paths(config: &Config) -> anyhow::Result<()> {
    let Config { network, streaming, .. } = config;
    let given = |path: &Path| !path.as_os_str().is_empty();
    let optional = [
        ("supervisor", config.supervisor.as_path()),
        ("streaming.tls_certificate", &streaming.tls_certificate),
        ("streaming.tls_key", &streaming.tls_key),
        ("streaming.tls_client_authorities", &streaming.tls_client_authorities),
        ("registry.registries_conf", &config.registry.registries_conf),
    ];
    let lists = [
        ("network.cni_bin_dirs", &network.cni_bin_dirs),
        ("cdi.spec_dirs", &config.cdi.spec_dirs),
        ("registry.auth_files", &config.registry.auth_files),
        ("hooks.dirs", &config.hooks.dirs),
    ];
    let one = [
        ("root", config.root.as_path()),
        ("state", &config.state),
        ("network.cni_conf_dir", &network.cni_conf_dir),
    ];
    let all = one
        .into_iter()
        .chain(config.sockets())
        .chain(optional.into_iter().filter(|(_, path)| given(path)))
        .chain(lists.iter().flat_map(|(key, paths)| paths.iter().map(|path| (*key, path.as_path()))))
        .chain(config.certs_dirs().map(|path| ("registry.certs_dir", path)));
    for (key, path) in all {
        ensure!(path.is_absolute(), "{key}: {path:?} must begin with a slash");
    }
    for (key, path) in [("root", &config.root), ("state", &config.state)] {
        ensure!(
            path.parent().is_some(),
            "{key}: wharf closes this directory to all but root: give it one of its own"
        );
    }
    sockets(config)
}

fn sockets(config: &Config) -> anyhow::Result<()> {
    let count = config.extra_sockets.len();
    ensure!(
        count <= EXTRA_SOCKETS_MAX,
        "extra_sockets: {count} are too many: {EXTRA_SOCKETS_MAX} is the most"
    );
    let mut seen = BTreeMap::new();
    for (key, path) in config.sockets().chain([("nri.socket", config.nri.socket.as_path())]) {
        let len = path.as_os_str().len();
        ensure!(
            len <= SOCKET_PATH_LEN,
            "{key}: a path of {len} bytes is too long: {SOCKET_PATH_LEN} is the most"
        );
        if let Some(other) = seen.insert(path, key) {
            bail!("{key}: {} is also in `{other}`", path.display());
        }
    }
    Ok(())
}

/// A word alone is a level. The filter's own grammar takes any other word for the name of a module, of which everything
/// is to be logged, and nothing of all others.
fn level(filter: &str) -> anyhow::Result<()> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for word in filter.split(',').map(str::trim).filter(|word| !word.contains(['=', '['])) {
        ensure!(
            LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word)),
            "log.level: {word:?} is none of {}; what is logged of a module is written \"info,wharf_network=debug\"",
            LEVELS.join(", ")
        );
    }
    Ok(())
}

fn network(network: &Network) -> anyhow::Result<()> {
    let subnets: Subnets = network.subnets.parse().context("network.subnets")?;
    network.cluster_subnets()?;
    let name = &network.bridge;
    let is_name = (1..=LINK_NAME_LEN).contains(&name.len()) && !name.contains(['/', ':']);
    ensure!(
        is_name && !name.contains(char::is_whitespace) && name != "." && name != "..",
        "network.bridge: {name:?} cannot be the name of a link: give it 1 to {LINK_NAME_LEN} bytes without \"/\", \":\" \
         and spaces; to do without the built-in network, set network.builtin to \"off\""
    );
    let has_ipv6 = subnets.as_slice().iter().any(Subnet::is_ipv6);
    let least = if has_ipv6 { MTU_IPV6_MIN } else { *MTU.start() };
    let (mtu, most) = (network.mtu, *MTU.end());
    ensure!(
        mtu == 0 || (least..=most).contains(&mtu),
        "network.mtu: {mtu} is neither 0 nor from {least} to {most}"
    );
    Ok(())
}

fn metrics(config: &Config) -> anyhow::Result<()> {
    let Some(address) = config.metrics.address()? else { return Ok(()) };
    ensure!(
        address.port() != 0,
        "metrics.address: port 0 would give a different port at every start: choose one, such as {}",
        super::Metrics::USUAL_PORT
    );
    ensure!(
        !conflict(address, config.streaming.address),
        "metrics.address: the port of {address} is also in `streaming.address`"
    );
    Ok(())
}

fn tls(streaming: &Streaming) -> anyhow::Result<()> {
    let files = [&streaming.tls_certificate, &streaming.tls_key, &streaming.tls_client_authorities];
    let given = files.iter().filter(|file| !file.as_os_str().is_empty()).count();
    ensure!(
        given == 0 || given == files.len(),
        "streaming: tls_certificate, tls_key and tls_client_authorities belong together: set all three, or none"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_could_work_with_is_refused_with_its_key() {
        let long = format!("socket = \"/{}\"", "x".repeat(SOCKET_PATH_LEN));
        let rows = [
            ("images.layer_gib = 0", "images.layer_gib: 0 is not from 1"),
            ("images.zstd_window_mib = 4096", "images.zstd_window_mib: 4096"),
            ("registry.layers_per_pull = 0", "registry.layers_per_pull"),
            ("registry.layers_in_all = 9223372036854775807", "registry.layers_in_all"),
            ("registry.stall_timeout_s = 0", "registry.stall_timeout_s"),
            ("registry.registries_conf = \"x.conf\"", "registry.registries_conf: \"x.conf\""),
            ("registry.auth_files = [\"/a\", \"b\"]", "registry.auth_files: \"b\""),
            ("registry.certs_dir = \"/a:b\"", "registry.certs_dir: \"b\""),
            ("network.cni_add_timeout_s = 9223372036854775807", "network.cni_add_timeout_s"),
            ("network.cni_conf_dir = \"net.d\"", "network.cni_conf_dir"),
            ("network.cni_bin_dirs = [\"\"]", "network.cni_bin_dirs"),
            ("network.bridge = \"a-name-that-is-long\"", "network.bridge"),
            ("network.bridge = \"a/b\"", "network.bridge"),
            ("network.bridge = \"\"", "network.builtin to \"off\""),
            ("network.mtu = 67", "network.mtu: 67 is neither 0 nor from 1280"),
            ("network.mtu = 65536", "network.mtu"),
            ("network.cluster_subnets = [\"10.0.0.0\"]", "network.cluster_subnets"),
            ("network.mtu = 67\nnetwork.subnets = \"10.0.0.0/16\"", "from 68 to 65535"),
            ("streaming.sessions = 0", "streaming.sessions"),
            ("streaming.tls_key = \"/k\"", "belong together"),
            ("streaming.address = \"192.0.2.1:1\"", "needs TLS"),
            ("streaming.address = \"0.0.0.0:1\"", "streaming"),
            (
                "metrics.address = \"localhost:9\"",
                "metrics.address: \"localhost:9\" is not an address with a port",
            ),
            ("metrics.address = \"127.0.0.1\"", "metrics.address"),
            ("metrics.address = \"127.0.0.1:0\"", "metrics.address: port 0"),
            (
                "metrics.address = \"127.0.0.1:9\"\nstreaming.address = \"127.0.0.1:9\"",
                "metrics.address: the port of 127.0.0.1:9 is also in `streaming.address`",
            ),
            (
                "metrics.address = \"0.0.0.0:9\"\nstreaming.address = \"127.0.0.1:9\"",
                "metrics.address: the port of 0.0.0.0:9 is also in",
            ),
            ("root = \"/\"", "root: wharf closes this directory"),
            (
                "nri.socket = \"/run/wharf/wharf.sock\"",
                "nri.socket: /run/wharf/wharf.sock is also in `socket`",
            ),
            ("extra_sockets = [\"wharf.sock\"]", "extra_sockets: \"wharf.sock\" must begin with a slash"),
            (
                "extra_sockets = [\"/run/wharf/wharf.sock\"]",
                "extra_sockets: /run/wharf/wharf.sock is also in",
            ),
            ("extra_sockets = [\"/a\", \"/a\"]", "is also in `extra_sockets`"),
            ("extra_sockets = [\"/a\", \"/b\", \"/c\", \"/d\", \"/e\"]", "extra_sockets: 5 are too many"),
            (long.as_str(), "socket: a path of 108 bytes"),
        ];
        for (text, words) in rows {
            let config: Config = toml::from_str(text).unwrap();
            let refused = format!("{:#}", check(&config).unwrap_err());
            assert!(refused.contains(words), "{text}: {refused}");
        }
    }

    #[test]
    fn a_word_that_is_no_level_would_silence_the_log() {
        for level_is in [
            "info",
            "WARN",
            "off",
            "info,wharf_network=debug",
            "wharf_cri[call]=trace,error",
            "debug, h2=off",
        ] {
            assert!(level(level_is).is_ok(), "{level_is}");
        }
        for level_is in ["warning", "inof", "", "info,", "info,wharf_network", "4"] {
            let refused = level(level_is).unwrap_err().to_string();
            assert!(refused.contains("log.level") && refused.contains("error, warn, info"), "{refused}");
        }
    }

    #[test]
    fn the_defaults_can_be_and_so_can_metrics_for_everybody() {
        check(&Config::default()).unwrap();
        for address in ["127.0.0.1:10213", "0.0.0.0:10213", "[::]:10213", "[::1]:10213"] {
            let config: Config = toml::from_str(&format!("metrics.address = \"{address}\"")).unwrap();
            check(&config).unwrap();
        }
    }
}
