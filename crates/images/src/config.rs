//! The config of an image: what its author says about running it. All of it is hostile.

use std::collections::BTreeMap;

use serde::Deserialize;
use wharf_types::{Digest, Field};

use crate::manifest::{CONFIG_LIMIT_BYTES, ManifestError, Platform, check_json};

/// What an image says about running it. Only its form and its total size, 4 MiB, have been checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `user[:group]`, names or numbers; may be empty.
    pub user: String,
    /// The program, with its first arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// May be empty.
    pub working_dir: String,
    /// A name or number; may be empty.
    pub stop_signal: String,
    /// Free text by name.
    pub labels: BTreeMap<String, String>,
    /// Paths that are to be volumes.
    pub volumes: Vec<String>,
    /// `port[/protocol]`.
    pub exposed_ports: Vec<String>,
    /// When the image was built, in RFC 3339; may be empty.
    pub created: String,
    /// The platform that the image is for.
    pub platform: Option<Platform>,
}

/// The user that an image names, without the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// A uid. It is never 4294967295, which the kernel reads as "no user".
    Id(u32),
    /// A name to look up in the image's passwd file; it is never read as a number.
    Name(Field),
}

impl ImageConfig {
    /// The user without the group; `None` if the image names none.
    ///
    /// # Errors
    /// [`UserError`] for a number out of range, which must not become root (CVE-2024-40635), or for a name with a blank
    /// or a separator.
    pub fn user(&self) -> Result<Option<ImageUser>, UserError> {
        let user = self.user.split(':').next().unwrap_or_default();
        let error = || UserError { user: user.chars().take(80).collect() };
        if user.is_empty() {
            return Ok(None);
        }
        if user.bytes().all(|byte| byte.is_ascii_digit()) {
            let id = user.parse().ok().filter(|id| *id != u32::MAX).ok_or_else(error)?;
            return Ok(Some(ImageUser::Id(id)));
        }
        let printable = !user.contains(|c: char| c.is_control() || c.is_whitespace());
        let field = Field::new(user).filter(|_| printable).ok_or_else(error)?;
        Ok(Some(ImageUser::Name(field)))
    }
}

/// The user of an image is neither a valid number nor a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the image's user {user:?} is neither a number below 4294967295 nor a name")]
pub struct UserError {
    /// The user, shortened to 80 characters.
    pub user: String,
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

/// Parses a config, and returns it with the digests of its uncompressed layers, bottom first.
///
/// # Errors
/// [`ManifestError`] if it is too large, malformed or ambiguous, or is not the config of an image with layers.
pub fn parse_config(bytes: &[u8]) -> Result<(ImageConfig, Vec<Digest>), ManifestError> {
    if bytes.len() > CONFIG_LIMIT_BYTES {
        return Err(ManifestError::TooLarge { size_bytes: bytes.len(), limit_bytes: CONFIG_LIMIT_BYTES });
    }
    let malformed = |source| ManifestError::Malformed { source };
    check_json(bytes).map_err(malformed)?;
    let raw: RawDocument = serde_json::from_slice(bytes).map_err(malformed)?;
    if raw.rootfs.kind != "layers" {
        return Err(ManifestError::NotAnImage {
            reason: "its root file system is not made of layers".into(),
        });
    }
    let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
    let diff_ids = diff_ids.iter().map(|text| text.parse()).collect::<Result<_, _>>();
    let diff_ids = diff_ids.map_err(|source| ManifestError::Digest { source })?;
    let config = raw.config.unwrap_or_default();
    let config = ImageConfig {
        user: config.user.unwrap_or_default(),
        entrypoint: config.entrypoint.unwrap_or_default(),
        cmd: config.cmd.unwrap_or_default(),
        env: config.env.unwrap_or_default(),
        working_dir: config.working_dir.unwrap_or_default(),
        stop_signal: config.stop_signal.unwrap_or_default(),
        labels: config.labels.into_iter().flatten().map(|(k, v)| (k, v.unwrap_or_default())).collect(),
        volumes: config.volumes.unwrap_or_default().into_keys().collect(),
        exposed_ports: config.exposed_ports.unwrap_or_default().into_keys().collect(),
        created: raw.created.unwrap_or_default(),
        platform: Some(raw.platform).filter(|platform| !platform.os.is_empty()),
    };
    Ok((config, diff_ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_or_names_and_nothing_between() {
        let user = |text: &str| ImageConfig { user: text.into(), ..ImageConfig::default() }.user();
        assert_eq!(user(""), Ok(None));
        assert_eq!(user(":5"), Ok(None));
        assert_eq!(user("1003:1004"), Ok(Some(ImageUser::Id(1003))));
        let name = Field::new("www-data").unwrap();
        assert_eq!(user("www-data:1004"), Ok(Some(ImageUser::Name(name))));
        for odd in ["1000x", ".app", "+1", "-1", "0x0", "1e3", "größe", "٣"] {
            assert_eq!(user(odd), Ok(Some(ImageUser::Name(Field::new(odd).unwrap()))), "never a number");
        }
        for bad in ["4294967295", "4294967296", "99999999999999999999", " 1", "a\nb", "a b", "a\tb"] {
            assert!(user(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_config_of_go_has_nulls() {
        let text = br#"{"architecture":null,"os":null,"config":{"User":null,"Cmd":["sh"],"Labels":{"x":null},
            "Volumes":{"/data":{}},"Healthcheck":{"Test":["x"]}},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let (config, layers) = parse_config(text).unwrap();
        assert_eq!((config.cmd, config.volumes), (vec!["sh".to_owned()], vec!["/data".to_owned()]));
        assert!(layers.is_empty() && config.labels["x"].is_empty() && config.platform.is_none());
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
}
