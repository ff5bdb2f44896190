//! Pod and container ids: 64 lower-case hexadecimal characters, the form that cAdvisor and the kubelet expect.

use std::fmt;
use std::str::FromStr;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an id: it must be 64 lower-case hexadecimal characters")]
pub struct IdError {
    /// The text, shortened to 80 characters.
    pub text: String,
}

/// How many characters an id has.
const ID_LENGTH: usize = 64;

macro_rules! id {
    ($name:ident, $what:literal) => {
        #[doc = concat!("The id of a ", $what, ": 64 lower-case hexadecimal characters.")]
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// Makes an id from 32 random bytes.
            #[must_use]
            pub fn from_random(bytes: [u8; 32]) -> Self {
                Self(hex(&bytes).into())
            }

            /// The 64 characters.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Every word of a text that may be an id, such as in the path of a cgroup.
            pub fn all_in(text: &str) -> impl Iterator<Item = &str> {
                let words = text.split(|letter: char| !letter.is_ascii_hexdigit());
                words.filter(|word| word.len() == ID_LENGTH)
            }

            /// The first 13 characters, for people to read.
            #[must_use]
            pub fn short(&self) -> &str {
                &self.0[..13]
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let ok = text.len() == ID_LENGTH && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                if ok { Ok(Self(text.into())) } else { Err(IdError { text: text.chars().take(80).collect() }) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.short())
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

id!(PodId, "pod");
id!(ContainerId, "container");

/// Lower-case hexadecimal, two characters per byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_parse_back() {
        let id = PodId::from_random([0xa7; 32]);
        assert_eq!(id.as_str().parse::<PodId>().unwrap(), id);
        assert_eq!(id.short().len(), 13);
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "",
            "abc",
            &"A".repeat(64),
            &"0".repeat(63),
            &"0".repeat(65),
            &format!("{}g", "0".repeat(63)),
            "../x",
        ] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad}");
        }
    }
}
