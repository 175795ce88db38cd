//! Which names something is about: one, all below a prefix, or all.
//!
//! What holds (each line has a test):
//! - `models/` is every name that starts so, `models/a` that one name, `*` every name;
//! - a prefix ends in a slash, so that `models/` says nothing of `models-old/a`;
//! - what it is written as reads as the same scope.

use std::{fmt, str::FromStr, sync::Arc};

use crate::FileName;

/// Some names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Every name.
    All,
    /// Every name that starts with this, which ends in a slash.
    Below(Arc<str>),
    /// This name.
    Name(FileName),
}

/// The text is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a file's name, nor a prefix that ends in '/', nor '*' for all names")]
pub struct ScopeError(String);

impl Scope {
    /// Whether a name is among them.
    pub fn covers(&self, name: &FileName) -> bool {
        match self {
            Self::All => true,
            Self::Below(prefix) => name.as_str().starts_with(&**prefix),
            Self::Name(one) => one == name,
        }
    }

    /// Whether some name that starts with `prefix` can be among them.
    pub fn meets(&self, prefix: &str) -> bool {
        match self {
            Self::All => true,
            Self::Below(own) => own.starts_with(prefix) || prefix.starts_with(&**own),
            Self::Name(one) => one.as_str().starts_with(prefix),
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let error = |_| ScopeError(text.chars().take(300).collect());
        match text.strip_suffix('/') {
            _ if text == "*" => Ok(Self::All),
            Some(folder) => FileName::new(folder).map(|_| Self::Below(text.into())).map_err(error),
            None => FileName::new(text).map(Self::Name).map_err(error),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.pad("*"),
            Self::Below(prefix) => f.pad(prefix),
            Self::Name(name) => f.pad(name.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_covers_what_it_says() {
        let covers = |scope: &str, name: &str| scope.parse::<Scope>().unwrap().covers(&FileName::new(name).unwrap());
        assert!(covers("*", "a") && covers("models/", "models/x/y") && covers("models/a", "models/a"));
        assert!(!covers("models/", "models") && !covers("models/", "models-old/a"));
        assert!(!covers("models/a", "models/ab") && !covers("models/a", "models/a/b"));
        for text in ["*", "models/", "a/b/", "models/a"] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        for text in ["", "/", "../", "a//", "/a", "a/../b", "a\u{0}"] {
            assert!(text.parse::<Scope>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_scope_meets_the_prefixes_under_which_it_has_names() {
        let meets = |scope: &str, prefix: &str| scope.parse::<Scope>().unwrap().meets(prefix);
        assert!(meets("models/", "") && meets("models/", "mod") && meets("models/", "models/x"));
        assert!(meets("models/a", "models/") && !meets("models/a", "models/b") && !meets("models/", "x"));
    }
}
