//! Values from an image: each is hostile until a checking function has let it through.
//!
//! The type keeps code from using such a value by accident. It checks nothing itself: what is allowed depends on where
//! the value goes.

/// A value that came from an image. Only a function that checks and bounds what it returns may look at it.
#[derive(Clone, PartialEq, Eq)]
pub struct Untrusted<T>(T);

impl<T> Untrusted<T> {
    /// Marks a value as hostile.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// Passes the value to a function that must check and bound what it returns.
    pub fn admit<R>(&self, check: impl FnOnce(&T) -> R) -> R {
        check(&self.0)
    }
}

impl<T> std::fmt::Debug for Untrusted<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Untrusted(..)")
    }
}

/// A text that is safe as one field of a line-based file: without newline, carriage return, NUL and colon.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Field(Box<str>);

impl Field {
    /// Takes the text; `None` if it has one of those characters or more than 4096 bytes.
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
