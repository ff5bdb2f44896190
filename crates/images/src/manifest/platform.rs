//! Platforms, and the choice of the index entry for this machine.
//!
//! An entry names its platform in free text. The best match wins, and an image for another machine is an error that
//! lists what there is, never a guess.

use serde::Deserialize;

use super::json::null_is_empty;
use super::{Descriptor, IndexEntry, ManifestError};

/// An operating system and an architecture, named as in Go, which is how images name them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `linux` for everything that can run here.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub os: String,
    /// `amd64`, `arm64`, …
    #[serde(default, deserialize_with = "null_is_empty")]
    pub architecture: String,
    /// `v7`, `v8`, …; may be absent.
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
            // Later versions of the architecture extend the first, and images for the first run everywhere.
            "aarch64" => ("arm64", Some("v8".to_owned())),
            "arm" => ("arm", Some(arm_variant(&machine()))),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "powerpc64" => ("ppc64", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant }
    }

    /// How well an image for `self` runs on `host`: 0 is best, `None` is not at all.
    fn distance(&self, host: &Self) -> Option<u32> {
        if self.os != host.os {
            return None;
        }
        if self.architecture == host.architecture {
            return self.distance_of_variant(host);
        }
        let (_, other) = SECOND_CHOICES.iter().find(|(own, _)| *own == host.architecture)?;
        let second = Self { architecture: (*other).to_owned(), ..host.clone() };
        let distance = (self.architecture == *other).then(|| self.distance_of_variant(&second))??;
        Some(SECOND_DISTANCE + distance)
    }

    /// The same for images of the same architecture.
    fn distance_of_variant(&self, host: &Self) -> Option<u32> {
        let limit = host.variant.as_deref().and_then(level);
        match (self.variant.as_deref().unwrap_or_default(), limit) {
            // The plain image is for every machine; on arm64 that is also v8.
            ("", _) => Some(0),
            ("v1", None) if self.architecture == "amd64" => Some(0),
            (variant, Some(limit)) => level(variant).and_then(|own| limit.checked_sub(own)),
            (_, None) => None,
        }
    }
}

/// Which other architecture a machine also runs, in its 32-bit mode and with the same variants. A processor may lack
/// that mode; the only cost is a less clear error, because such an image is chosen only if there is no other.
const SECOND_CHOICES: [(&str, &str); 1] = [("arm64", "arm")];
/// Farther than any variant of the machine's own architecture.
const SECOND_DISTANCE: u32 = 100_000;

/// The kernel's name for the machine: `armv6l`, `aarch64`.
fn machine() -> String {
    let name = nix::sys::utsname::uname().map(|name| name.machine().to_owned());
    name.unwrap_or_default().to_string_lossy().into_owned()
}

/// A 32-bit program cannot learn the processor from itself: it may have been built for an older one.
fn arm_variant(machine: &str) -> String {
    let digit = machine.strip_prefix("armv").and_then(|rest| rest.chars().next());
    match digit {
        Some(level @ '5'..='8') => format!("v{level}"),
        _ if machine == "aarch64" => "v8".to_owned(),
        _ => "v7".to_owned(),
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.32}/{:.32}", self.os, self.architecture)?;
        self.variant.iter().filter(|v| !v.is_empty()).try_for_each(|variant| write!(f, "/{variant:.32}"))
    }
}

/// `v8` → 800, `v9.2` → 902; anything else → `None`.
fn level(variant: &str) -> Option<u32> {
    let text = variant.strip_prefix('v')?;
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    let number = |text: &str| text.parse::<u8>().ok().filter(|_| text.len() <= 2);
    Some(u32::from(number(major)?) * 100 + u32::from(number(minor)?))
}

/// Chooses the entry for `host`: the best match among its variants, the first among equals. If no entry names a
/// platform of this machine, it is the first that names no platform. The entry may be another index.
///
/// # Errors
/// [`ManifestError::NoPlatform`] if no entry fits.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_levels() {
        for (variant, want) in [
            ("v8", Some(800)),
            ("v8.2", Some(802)),
            ("v9.0", Some(900)),
            ("v", None),
            ("8", None),
            ("v8.x", None),
        ] {
            assert_eq!(level(variant), want, "{variant}");
        }
        for (machine, want) in [
            ("armv6l", "v6"),
            ("armv7l", "v7"),
            ("armv5tejl", "v5"),
            ("aarch64", "v8"),
            ("", "v7"),
            ("armv9", "v7"),
        ] {
            assert_eq!(arm_variant(machine), want, "{machine}");
        }
    }
}
