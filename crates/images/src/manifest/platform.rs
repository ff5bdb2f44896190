//! Platforms, and the choice of an index's entry for this machine.

use serde::Deserialize;

use super::{Descriptor, IndexEntry, ManifestError};

/// An operating system and a processor, in Go's words as images use them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `linux` for all that can run here.
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, …
    #[serde(default)]
    pub architecture: String,
    /// `v7`, `v8`, … or nothing.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform of this machine.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.map(str::to_owned) }
    }

    /// How well an image for `self` runs on `host`: 0 is best, `None` not at all.
    fn distance(&self, host: &Self) -> Option<u32> {
        if self.os != host.os || self.architecture != host.architecture {
            return None;
        }
        let own = level(self.variant.as_deref());
        let limit = level(host.variant.as_deref());
        match (own, limit, self.architecture.as_str()) {
            // The plain image is the one for every machine; on arm64 that is v8 as well.
            (None, ..) | (Some(1), None, "amd64") => Some(0),
            (Some(own), Some(limit), _) if own <= limit => Some(limit - own),
            _ => None,
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.32}/{:.32}", self.os, self.architecture)?;
        self.variant.iter().filter(|v| !v.is_empty()).try_for_each(|variant| write!(f, "/{variant:.32}"))
    }
}

/// `v8` → 8; nothing or something else → nothing.
fn level(variant: Option<&str>) -> Option<u32> {
    variant?.strip_prefix('v')?.parse().ok()
}

/// Chooses the entry for `host`: the best match of its variants, the first among equals; if no entry names a
/// platform of this machine, the first that names none. It may be another index.
///
/// # Errors
/// [`ManifestError::NoPlatform`] if nothing fits.
pub fn select_platform<'a>(
    entries: &'a [IndexEntry],
    host: &Platform,
) -> Result<&'a Descriptor, ManifestError> {
    let fits = |entry: &&IndexEntry| entry.platform.as_ref().and_then(|p| p.distance(host));
    let best = entries.iter().filter(|entry| fits(entry).is_some()).min_by_key(fits);
    let silent = || entries.iter().find(|entry| entry.platform.is_none());
    best.or_else(silent).map(|entry| &entry.descriptor).ok_or_else(|| {
        let offered: Vec<_> =
            entries.iter().filter_map(|e| e.platform.as_ref()).take(20).map(Platform::to_string).collect();
        ManifestError::NoPlatform { wanted: host.to_string(), offered: offered.join(", ") }
    })
}
