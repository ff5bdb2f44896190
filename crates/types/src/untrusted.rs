//! What an image says of itself is hostile until an allow-list function has let it through.

/// A value that came from an image. It can be looked at only by a function that checks and bounds what it returns.
#[derive(Clone, PartialEq, Eq)]
pub struct Untrusted<T>(T);

impl<T> Untrusted<T> {
    /// Marks a value as hostile.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// Looks at the value with a function that must check and bound what it lets through.
    pub fn admit<R>(&self, check: impl FnOnce(&T) -> R) -> R {
        check(&self.0)
    }
}

impl<T> std::fmt::Debug for Untrusted<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Untrusted(..)")
    }
}

/// A text that is safe in one field of a line-based file: no newline, carriage return, NUL or colon.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Field(Box<str>);

impl Field {
    /// Takes the text, or `None` if it has a separator or more than 4096 bytes.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let ok = text.len() <= 4096 && !text.contains(['\n', '\r', '\0', ':']);
        ok.then(|| Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_holds_no_separator() {
        assert!(Field::new("name").is_some());
        for bad in ["a\nb", "a:b", "a\r", "a\0", &"x".repeat(4097)] {
            assert!(Field::new(bad).is_none());
        }
    }

    #[test]
    fn an_untrusted_value_does_not_show() {
        assert_eq!(format!("{:?}", Untrusted::new("secret")), "Untrusted(..)");
        assert_eq!(Untrusted::new(3).admit(|n| n + 1), 4);
    }
}
