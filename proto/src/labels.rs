//! What a peer says of where it is: `zone=a,rack=7`.
//!
//! Invariant: at most [`MAX_LABELS`] labels, each key and value within its bounds, so that no peer can make
//! the tracker or another peer keep more than about 5 KiB of them.

use std::{collections::BTreeMap, fmt, str::FromStr};

/// Most labels of one peer.
pub const MAX_LABELS: usize = 16;
/// Longest key, in bytes.
pub const MAX_KEY: usize = 63;
/// Longest value, in bytes.
pub const MAX_VALUE: usize = 255;

/// Labels of one peer: at most [`MAX_LABELS`], ordered by key.
///
/// A key has 1 to [`MAX_KEY`] characters from a-z, 0-9, `.`, `_` and `-`. A value has 1 to [`MAX_VALUE`] bytes of
/// printable UTF-8 without `,` and `=`, and neither begins nor ends with a space. The written form is
/// `rack=7,zone=a`; it reads back as the same labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Labels(BTreeMap<String, String>);

/// Why a text or a map makes no labels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Not `KEY=VALUE`.
    #[error("{0:?} is not KEY=VALUE, such as zone=a")]
    Form(String),
    /// The key is empty, too long, or has other characters.
    #[error("label key {0:?} must have 1 to {MAX_KEY} characters from a-z, 0-9, '.', '_' and '-'")]
    Key(String),
    /// The value is empty, too long, or has characters that it must not have.
    #[error(
        "the value of label {0:?} must have 1 to {MAX_VALUE} bytes of printable text, without ',' and '=', and without a space at either end"
    )]
    Value(String),
    /// The same key twice.
    #[error("label {0:?} is given twice")]
    Twice(String),
    /// More than [`MAX_LABELS`].
    #[error("more than {MAX_LABELS} labels")]
    TooMany,
}

impl Labels {
    /// Checks keys and values.
    pub fn new<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Result<Self, LabelError> {
        let mut labels = BTreeMap::new();
        for (key, value) in pairs {
            let (key, value) = (key.into(), value.into());
            let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-');
            if key.is_empty() || key.len() > MAX_KEY || !key.bytes().all(fits) {
                return Err(LabelError::Key(key.chars().take(MAX_KEY).collect()));
            }
            let trimmed = value.trim().len() == value.len();
            if value.is_empty() || value.len() > MAX_VALUE || !trimmed || !value.chars().all(is_printable) {
                return Err(LabelError::Value(key));
            }
            if labels.contains_key(&key) {
                return Err(LabelError::Twice(key));
            }
            if labels.len() == MAX_LABELS {
                return Err(LabelError::TooMany);
            }
            labels.insert(key, value);
        }
        Ok(Self(labels))
    }

    /// The labels of several lists together; a key may be in one of them only.
    pub fn merged<'a>(lists: impl IntoIterator<Item = &'a Self>) -> Result<Self, LabelError> {
        Self::new(lists.into_iter().flat_map(Self::iter))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Whether peers with these labels and those are far from each other: in another zone; or in another rack, if neither
    /// names a zone. Links within a place are taken to be wide, and links between places thin. Peers that do not say where
    /// they are are far from none.
    pub fn is_far_from(&self, other: &Self) -> bool {
        for key in ["zone", "rack"] {
            match (self.get(key), other.get(key)) {
                (Some(here), Some(there)) => return here != there,
                (None, None) => {}
                _ => return false,
            }
        }
        false
    }

    /// Keys and values, by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Bytes of all keys and values.
    pub fn weight(&self) -> usize {
        self.iter().map(|(key, value)| key.len() + value.len()).sum()
    }
}

/// Whether a character may stand in a value. Invisible ones could make two different values look the same, or
/// turn the text after them around in a terminal.
fn is_printable(c: char) -> bool {
    let is_invisible = matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !c.is_control() && !is_invisible && !matches!(c, ',' | '=')
}

impl FromStr for Labels {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let parts = text.split(',').map(|part| part.trim_matches(' ')).filter(|part| !part.is_empty());
        let pairs = parts.map(|part| part.split_once('=').ok_or_else(|| LabelError::Form(part.to_owned())));
        Self::new(pairs.collect::<Result<Vec<_>, _>>()?)
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (key, value)) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn far_is_another_zone_or_another_rack_where_no_zone_is_told() {
        let labels = |text: &str| text.parse::<Labels>().unwrap();
        for (one, other, far) in [
            ("zone=a,rack=1", "zone=a,rack=2", false),
            ("zone=a,rack=1", "zone=b,rack=1", true),
            ("rack=1", "rack=2", true),
            ("rack=1", "rack=1,row=2", false),
            ("", "zone=a", false),
            ("row=1", "row=2", false),
            ("zone=a", "rack=1", false),
        ] {
            assert_eq!(labels(one).is_far_from(&labels(other)), far, "{one} {other}");
            assert_eq!(labels(other).is_far_from(&labels(one)), far, "{other} {one}");
        }
    }

    #[test]
    fn texts_are_checked() {
        let labels: Labels = "zone=a, rack=7".parse().unwrap();
        assert_eq!((labels.get("zone"), labels.get("rack"), labels.get("row")), (Some("a"), Some("7"), None));
        assert_eq!(labels.to_string(), "rack=7,zone=a");
        assert!("".parse::<Labels>().unwrap().is_empty());
        let long = "x".repeat(MAX_VALUE + 1);
        let many: Vec<String> = (0..=MAX_LABELS).map(|n| format!("k{n}=v")).collect();
        for bad in [
            "zone",
            "=a",
            "zone=",
            "Zone=a",
            "zone=a=b",
            "a=1,a=2",
            "a b=1",
            "a=\u{7}",
            "a=x\u{202e}y",
            "a=\u{a0}",
            &format!("a={long}"),
            &many.join(","),
        ] {
            assert!(bad.parse::<Labels>().is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_are_merged_and_no_key_is_given_twice() {
        let lists = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Labels>>();
        assert_eq!(Labels::merged(&lists(&["zone=a", "", "rack=7"])).unwrap().to_string(), "rack=7,zone=a");
        assert_eq!(Labels::merged(&lists(&["zone=a", "zone=b"])), Err(LabelError::Twice("zone".into())));
    }

    proptest! {
        #[test]
        fn the_written_form_comes_back(pairs in proptest::collection::btree_map("[a-z0-9._-]{1,63}", ".{1,60}", 0..=MAX_LABELS)) {
            let valid = pairs.into_iter().filter(|(key, value)| Labels::new([(key.as_str(), value.as_str())]).is_ok());
            let labels = Labels::new(valid).unwrap();
            prop_assert_eq!(labels.to_string().parse(), Ok(labels));
        }

        #[test]
        fn no_text_makes_labels_beyond_their_bounds(text in "([a-z]{0,3}=?[a-z \u{a0}\u{7}]{0,3},?){0,20}") {
            if let Ok(labels) = text.parse::<Labels>() {
                prop_assert!(labels.iter().len() <= MAX_LABELS);
                prop_assert_eq!(Labels::new(labels.iter()), Ok(labels.clone()));
                prop_assert_eq!(labels.to_string().parse(), Ok(labels));
            }
        }
    }
}
