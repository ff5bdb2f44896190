//! The name of an AppArmor profile.

use std::fmt;

use crate::{ErrorKind, Failure};

/// The longest name, in bytes. The kernel would cut off what does not fit in a page.
const LIMIT_BYTES: usize = 1024;

/// The kernel's word for no profile.
const UNCONFINED: &str = "unconfined";

/// wharf's own profile, for containers that ask for no other.
pub const DEFAULT_PROFILE: &str = "wharf-default";

/// The name of one AppArmor profile in the kernel's root policy namespace. It is never `unconfined`, nor what the
/// kernel reads as that, and no combination of profiles: whoever may name a profile must not be able to name the
/// lack of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileName(String);

/// Why a text names no profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileNameError {
    /// It is empty.
    #[error("it names no profile")]
    Empty,
    /// It is too long.
    #[error("the name is {bytes} bytes long; the maximum is {LIMIT_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The kernel would read something else than one name.
    #[error("{name:?} is not the name of a single profile")]
    Malformed {
        /// The text.
        name: String,
    },
    /// To the kernel it means no profile.
    #[error(
        "{name:?} cannot name a profile, because the kernel reads it as \"unconfined\": ask for the type Unconfined"
    )]
    Unconfined {
        /// The text.
        name: String,
    },
}

impl Failure for ProfileNameError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

impl ProfileName {
    /// Takes the name of a profile, which need not be loaded.
    ///
    /// # Errors
    /// [`ProfileNameError`] for everything that the kernel would read as something other than this one name: it skips
    /// spaces around a name, a colon begins the name of a policy namespace, `//&` stacks profiles, and a beginning of
    /// `unconfined` is that whole word unless a profile has just this name (`aa_lookupn_profile`).
    pub fn new(name: &str) -> Result<Self, ProfileNameError> {
        let is_malformed = name.trim() != name
            || name.starts_with([':', '&'])
            || name.contains("//&")
            || name.contains(char::is_control);
        match name {
            "" => Err(ProfileNameError::Empty),
            name if UNCONFINED.starts_with(name) => {
                Err(ProfileNameError::Unconfined { name: name.to_owned() })
            }
            long if long.len() > LIMIT_BYTES => Err(ProfileNameError::TooLong { bytes: long.len() }),
            name if is_malformed => Err(ProfileNameError::Malformed { name: name.to_owned() }),
            name => Ok(Self(name.to_owned())),
        }
    }

    /// wharf's own profile.
    #[must_use]
    pub fn default_profile() -> Self {
        Self(DEFAULT_PROFILE.to_owned())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_as_it_is() {
        let long = "n".repeat(LIMIT_BYTES);
        for name in ["mine", "/usr/bin/server", "server//worker", "my profile", "größer", "a:b", "a&b", &long]
        {
            assert_eq!(ProfileName::new(name).unwrap().as_str(), name);
        }
        assert_eq!(ProfileName::new(DEFAULT_PROFILE), Ok(ProfileName::default_profile()));
    }

    #[test]
    fn what_the_kernel_reads_otherwise_is_no_name() {
        for name in [
            " unconfined",
            "unconfined\n",
            "\tmine",
            "a\nb",
            "a\0b",
            "\u{1b}[31m",
            ":other:mine",
            ":root://unconfined",
            "mine//&unconfined",
            "&mine",
            "//&mine",
        ] {
            assert_eq!(ProfileName::new(name), Err(ProfileNameError::Malformed { name: name.to_owned() }));
        }
        assert_eq!(ProfileName::new(""), Err(ProfileNameError::Empty));
        let bytes = LIMIT_BYTES + 1;
        assert_eq!(ProfileName::new(&"n".repeat(bytes)), Err(ProfileNameError::TooLong { bytes }));
    }
    #[test]
    fn no_beginning_of_unconfined_is_a_name() {
        for length in 1..=UNCONFINED.len() {
            let name = UNCONFINED[..length].to_owned();
            assert_eq!(ProfileName::new(&name), Err(ProfileNameError::Unconfined { name }));
        }
        for name in ["U", "uncle", "unconfined2", "unconfined//mine", "confined"] {
            assert_eq!(ProfileName::new(name).unwrap().as_str(), name);
        }
    }
}
