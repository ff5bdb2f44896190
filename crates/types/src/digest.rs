//! Content digests: SHA-256 only, the one algorithm that every registry serves. A digest of another algorithm is
//! refused with that algorithm's name: the content may be whole, but wharf cannot verify it.

use std::fmt;
use std::str::FromStr;

/// Why a text is not a digest that wharf accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// It is not a digest.
    #[error("{text:?} is not a digest: expected sha256: and 64 lower-case hexadecimal characters")]
    Malformed {
        /// The text, shortened to 100 characters.
        text: String,
    },
    /// It is a digest of an algorithm that wharf does not support.
    #[error("{algorithm} digests cannot be verified, only sha256 ones; push the image with sha256 digests")]
    Algorithm {
        /// The algorithm's name, as OCI registers it.
        algorithm: &'static str,
    },
}

/// The other algorithms that OCI registers, and SHA-384, which only Go's digest library has.
const OTHERS: [&str; 3] = ["sha512", "sha384", "blake3"];

/// A SHA-256 digest, displayed as `sha256:<64 hex>`. [`Digest::hex`] is safe as a file name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Box<str>);

impl Digest {
    const PREFIX: &'static str = "sha256:";

    /// Makes a digest of the 32 bytes that SHA-256 returned.
    #[must_use]
    pub fn from_sha256(bytes: [u8; 32]) -> Self {
        Self(format!("{}{}", Self::PREFIX, crate::id::hex(&bytes)).into())
    }

    /// The whole text, `sha256:` included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hexadecimal characters alone.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0[Self::PREFIX.len()..]
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let hex = text.strip_prefix(Self::PREFIX);
        let ok = hex.is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        });
        if ok {
            return Ok(Self(text.into()));
        }
        let algorithm = text.split_once(':').map(|(algorithm, _hex)| algorithm);
        match OTHERS.into_iter().find(|other| Some(*other) == algorithm) {
            Some(algorithm) => Err(DigestError::Algorithm { algorithm }),
            None => Err(DigestError::Malformed { text: text.chars().take(100).collect() }),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0[..Self::PREFIX.len() + 12])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_shows_what_it_was_made_of() {
        let digest = Digest::from_sha256([1; 32]);
        assert_eq!(digest.as_str(), format!("sha256:{}", "01".repeat(32)));
        assert_eq!(digest.as_str().parse(), Ok(digest));
    }

    #[test]
    fn names_that_could_become_paths_are_refused() {
        for bad in ["sha256:../../etc/passwd", "sha256:", &format!("sha256:{}", "A".repeat(64)), "md5:x"] {
            assert!(matches!(bad.parse::<Digest>(), Err(DigestError::Malformed { .. })), "{bad}");
        }
    }

    #[test]
    fn another_algorithm_is_refused_by_its_name() {
        let error = format!("sha512:{}", "a".repeat(128)).parse::<Digest>().unwrap_err();
        assert_eq!(error, DigestError::Algorithm { algorithm: "sha512" });
    }
}
