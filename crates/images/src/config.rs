//! The config of an image: what its author says about running it. All of it is hostile.
//!
//! Only its form and its size are checked here. Its words are not trusted by that: they stay in `Untrusted` until the
//! planner decides what each means.

use std::collections::BTreeMap;

use oci_spec::image::{Config, ImageConfiguration, RootFs};
use serde::{Deserialize, Serialize};
use wharf_types::Digest;

use crate::manifest::{CONFIG_LIMIT_BYTES, ManifestError, Platform, check_json_within};
use crate::records::ConfigFacts;

/// The most entries of a config: labels, variables, arguments, layers, history and all else together. Images have
/// hundreds. Each entry takes some 80 bytes of memory and a microsecond whenever a container is made of the image.
const ENTRIES_LIMIT: usize = 50_000;
/// The longest user with its group; of the names that Linux knows, the longest has 256 bytes. It is kept in memory.
const USER_LIMIT_BYTES: usize = 1024;

/// The user that an image names, without the group, as it says it. Whether there can be such a user is found when the
/// image runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageUser {
    /// A number, if it has at most 63 bits.
    Id(i64),
    /// Anything else.
    Name(String),
}

impl ImageUser {
    /// The user in a config; `None` if it names none.
    #[must_use]
    pub fn of(config: &ImageConfiguration) -> Option<Self> {
        Self::parse(config.config().as_ref().and_then(|config| config.user().as_deref()))
    }

    fn parse(user: Option<&str>) -> Option<Self> {
        let user = user.unwrap_or_default();
        let user = user.split(':').next().filter(|user| !user.is_empty())?;
        let is_number = user.bytes().all(|byte| byte.is_ascii_digit());
        Some(match user.parse() {
            Ok(id) if is_number => Self::Id(id),
            _ => Self::Name(user.to_owned()),
        })
    }
}

#[derive(Deserialize)]
struct RawDocument {
    #[serde(flatten)]
    platform: Platform,
    created: Option<String>,
    config: Option<RawConfig>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    user: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

/// Parses a config, and returns it with the digests of its uncompressed layers, bottom first. Only the form of the
/// config and its size have been checked. What it says about running the image is kept, and nothing of how the image
/// was built. It always has a `config`, and absent fields stay absent; an absent platform has empty names.
///
/// # Errors
/// [`ManifestError`] if it is too large, malformed or ambiguous, or is not the config of an image with layers.
pub fn parse_config(bytes: &[u8]) -> Result<(ImageConfiguration, Vec<Digest>), ManifestError> {
    if bytes.len() > CONFIG_LIMIT_BYTES {
        return Err(ManifestError::TooLarge { size_bytes: bytes.len(), limit_bytes: CONFIG_LIMIT_BYTES });
    }
    let malformed = |source| ManifestError::Malformed { source };
    check_json_within(bytes, ENTRIES_LIMIT)?;
    let raw: RawDocument = serde_json::from_slice(bytes).map_err(malformed)?;
    let user = raw.config.as_ref().and_then(|config| config.user.as_ref());
    if let Some(user) = user.filter(|user| user.len() > USER_LIMIT_BYTES) {
        return Err(ManifestError::LongUser { size_bytes: user.len(), limit_bytes: USER_LIMIT_BYTES });
    }
    if raw.rootfs.kind != "layers" {
        return Err(ManifestError::NotAnImage {
            reason: "its root file system is not made of layers".into(),
        });
    }
    let layers = raw.rootfs.diff_ids.unwrap_or_default();
    let diff_ids = layers.iter().map(|text| text.parse()).collect::<Result<_, _>>();
    let diff_ids = diff_ids.map_err(|source| ManifestError::Digest { source })?;
    let mut rootfs = RootFs::default();
    rootfs.set_diff_ids(layers);
    let mut document = ImageConfiguration::default();
    document
        .set_created(raw.created)
        .set_os(raw.platform.os.as_str().into())
        .set_architecture(raw.platform.architecture.as_str().into())
        .set_variant(raw.platform.variant)
        .set_config(Some(raw.config.unwrap_or_default().into()))
        .set_rootfs(rootfs);
    Ok((document, diff_ids))
}

/// What is recorded of a config that has been parsed.
pub(crate) fn facts(bytes: &[u8], config: &ImageConfiguration) -> ConfigFacts {
    ConfigFacts { size_bytes: bytes.len() as u64, user: ImageUser::of(config) }
}

/// The same of a config that an earlier release has stored, which had fewer bounds. Nothing else of it is looked at, so
/// that it costs neither time nor memory.
///
/// # Errors
/// The parser's.
pub(crate) fn facts_of_stored(bytes: &[u8]) -> Result<ConfigFacts, serde_json::Error> {
    #[derive(Deserialize)]
    struct Stored {
        config: Option<StoredConfig>,
    }
    #[derive(Deserialize)]
    struct StoredConfig {
        #[serde(rename = "User")]
        user: Option<String>,
    }
    let stored: Stored = serde_json::from_slice(bytes)?;
    let user = stored.config.and_then(|config| config.user);
    // What is left of a name that is too long stays one that nobody has.
    let user = user.map(|user| user[..user.floor_char_boundary(USER_LIMIT_BYTES)].to_owned());
    Ok(ConfigFacts { size_bytes: bytes.len() as u64, user: ImageUser::parse(user.as_deref()) })
}

impl From<RawConfig> for Config {
    fn from(raw: RawConfig) -> Self {
        let names = |set: BTreeMap<String, serde::de::IgnoredAny>| set.into_keys().collect();
        let labels = |all: BTreeMap<_, Option<String>>| {
            all.into_iter().map(|(k, v)| (k, v.unwrap_or_default())).collect()
        };
        let mut config = Self::default();
        config
            .set_user(raw.user)
            .set_exposed_ports(raw.exposed_ports.map(names))
            .set_env(raw.env)
            .set_entrypoint(raw.entrypoint)
            .set_cmd(raw.cmd)
            .set_volumes(raw.volumes.map(names))
            .set_working_dir(raw.working_dir)
            .set_labels(raw.labels.map(labels))
            .set_stop_signal(raw.stop_signal);
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name() {
        let user = |text: &str| {
            let mut config = Config::default();
            config.set_user(Some(text.to_owned()));
            let mut document = ImageConfiguration::default();
            document.set_config(Some(config));
            ImageUser::of(&document)
        };
        assert_eq!(ImageUser::of(&ImageConfiguration::default()), None);
        assert_eq!(user(""), None);
        assert_eq!(user(":5"), None);
        assert_eq!(user("1003:1004"), Some(ImageUser::Id(1003)));
        assert_eq!(user("4294967296"), Some(ImageUser::Id(1 << 32)));
        for name in ["www-data", "1000x", "+1", "-1", "0x0", "1e3", "٣", " 1", "a\nb", "99999999999999999999"]
        {
            assert_eq!(user(&format!("{name}:7")), Some(ImageUser::Name(name.to_owned())), "{name:?}");
        }
    }

    #[test]
    fn a_config_of_go_has_nulls() {
        let text = br#"{"architecture":null,"os":null,"config":{"User":null,"Cmd":["sh"],"Labels":{"x":null},
            "Volumes":{"/data":{}},"Healthcheck":{"Test":["x"]}},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let (document, layers) = parse_config(text).unwrap();
        let config = document.config().clone().unwrap();
        let (cmd, volumes) = (vec!["sh".to_owned()], vec!["/data".to_owned()]);
        assert_eq!((config.cmd(), config.volumes()), (&Some(cmd), &Some(volumes)));
        assert_eq!((config.user(), config.env()), (&None, &None));
        assert!(layers.is_empty() && config.labels().clone().unwrap()["x"].is_empty());
        assert_eq!(
            (document.os().to_string(), document.architecture().to_string()),
            (String::new(), String::new())
        );
    }

    #[test]
    fn a_config_is_shown_as_it_is_written() {
        let text = serde_json::json!({
            "created": "2020-01-01T00:00:00Z", "os": "linux", "architecture": "arm64", "variant": "v8",
            "config": {
                "User": "1:2", "Env": ["A=b"], "Entrypoint": ["/x"], "Cmd": ["y"], "WorkingDir": "/w",
                "Labels": { "a": "b" }, "Volumes": { "/v": {} }, "ExposedPorts": { "80/tcp": {} },
                "StopSignal": "SIGTERM",
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", "a".repeat(64))] },
        });
        let (document, _layers) = parse_config(text.to_string().as_bytes()).unwrap();
        assert_eq!(serde_json::to_value(document).unwrap(), text);
    }

    #[test]
    fn hostile_configs_are_refused() {
        for bad in [
            r#"{"rootfs":{"type":"layers","diff_ids":["sha256:../../x"]}}"#,
            r#"{"rootfs":{"type":"foreign","diff_ids":[]}}"#,
            r#"{"config":{"Env":"A=b"},"rootfs":{"type":"layers","diff_ids":[]}}"#,
            r#"{"rootfs":{"type":"layers","diff_ids":[],"diff_ids":[]}}"#,
            "{}",
            "\u{feff}{}",
        ] {
            assert!(parse_config(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse_config(&vec![b' '; CONFIG_LIMIT_BYTES + 1]).is_err());
    }

    /// A config with so many labels and variables each, and a history as long.
    fn config_of(count: usize, user: &str) -> Vec<u8> {
        let all = || 0..count;
        let labels: BTreeMap<_, _> = all().map(|n| (n.to_string(), "")).collect();
        let (env, history): (Vec<_>, Vec<_>) = all().map(|n| (format!("{n}="), n)).unzip();
        let config = serde_json::json!({ "User": user, "Labels": labels, "Env": env });
        let rootfs = serde_json::json!({ "type": "layers", "diff_ids": [] });
        serde_json::json!({ "config": config, "history": history, "rootfs": rootfs }).to_string().into_bytes()
    }

    #[test]
    fn a_config_has_so_many_entries_and_a_user_of_such_a_length() {
        parse_config(&config_of(ENTRIES_LIMIT / 3 - 9, "1:2")).unwrap();
        let error = parse_config(&config_of(ENTRIES_LIMIT / 3 + 1, "1:2")).unwrap_err();
        assert!(matches!(error, ManifestError::TooMany { .. }), "{error}");
        assert!(error.to_string().contains("more than 50000 entries"), "{error}");
        let error = parse_config(&config_of(1, &"u".repeat(USER_LIMIT_BYTES + 1))).unwrap_err();
        assert!(error.to_string().ends_with("has 1025 bytes; at most 1024 are allowed"), "{error}");
    }

    #[test]
    fn of_a_stored_config_only_the_user_and_the_size_are_looked_at() {
        for (user, shown) in [
            ("7:8".to_owned(), Some(ImageUser::Id(7))),
            ("é".repeat(999), Some(ImageUser::Name("é".repeat(512)))),
        ] {
            let text = config_of(ENTRIES_LIMIT, &user);
            let facts = facts_of_stored(&text).unwrap();
            assert_eq!(facts, ConfigFacts { size_bytes: text.len() as u64, user: shown });
        }
        assert_eq!(facts_of_stored(b"{}").unwrap().user, None);
        facts_of_stored(b"{").unwrap_err();
    }
}
