//! How fast chunks may be sent or received, as a person writes it: `20MB/s`, `100mbit`, `500KiB/s`, `unlimited`.
//!
//! The only place where such a text is read and written; the command line and the daemon both use it.
//!
//! What holds (tested): a limit is [`RateLimit::LEAST`] at least and [`RateLimit::MOST`] at most; what is written reads
//! back as the same limit; a text that could mean bits or bytes is refused.

use std::{fmt, num::NonZeroU64, str::FromStr};

/// A limit in bytes a second, or none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct RateLimit(Option<NonZeroU64>);

/// Why a text or a number is no limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// Neither a number with a unit nor the word for none.
    #[error("{0:?} is no rate: expected one such as 20MB/s, 500KiB/s, 100mbit or unlimited")]
    Form(String),
    /// A unit that is not known.
    #[error("unknown unit {0:?}: use kB/s, MB/s, GB/s, KiB/s, MiB/s, GiB/s, kbit, Mbit or Gbit")]
    Unit(String),
    /// Bits or bytes: nobody knows.
    #[error("{0:?} may mean bits or bytes: write {1} for bits, or {2} for bytes")]
    Ambiguous(String, &'static str, &'static str),
    /// Nothing at all would go.
    #[error("a rate of 0 would let nothing through: use unlimited for no limit, or at least 16KiB/s")]
    Zero,
    /// A chunk would take minutes to hours.
    #[error("{0} B/s is too slow for chunks to be of use: the least rate is 16KiB/s")]
    TooLow(u64),
    /// More than any machine has.
    #[error("that is more than 1000 GB/s: use unlimited for no limit")]
    TooHigh,
}

/// Units with the bytes that `per` of them have, as they are written out; the largest first.
const UNITS: [(&str, u64); 7] = [
    ("GiB/s", 1 << 30),
    ("GB/s", 1_000_000_000),
    ("MiB/s", 1 << 20),
    ("MB/s", 1_000_000),
    ("KiB/s", 1 << 10),
    ("kB/s", 1000),
    ("B/s", 1),
];

impl RateLimit {
    /// No limit.
    pub const UNLIMITED: Self = Self(None);
    /// The least limit, in bytes a second: the smallest chunk takes a second with it.
    pub const LEAST: u64 = 16 << 10;
    /// The highest limit, in bytes a second: more than any machine has.
    pub const MOST: u64 = 1_000_000_000_000;

    /// A limit of so many bytes a second.
    pub fn new(bytes_per_second: u64) -> Result<Self, RateError> {
        match NonZeroU64::new(bytes_per_second) {
            None => Err(RateError::Zero),
            Some(rate) if rate.get() < Self::LEAST => Err(RateError::TooLow(rate.get())),
            Some(rate) if rate.get() > Self::MOST => Err(RateError::TooHigh),
            rate => Ok(Self(rate)),
        }
    }

    /// Bytes a second; `None` if there is no limit.
    pub fn bytes_per_second(self) -> Option<u64> {
        self.0.map(NonZeroU64::get)
    }
}

impl FromStr for RateLimit {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("unlimited") {
            return Ok(Self::UNLIMITED);
        }
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..digits], text[digits..].trim_start());
        let (millionths, whole) = decimal(number).ok_or_else(|| RateError::Form(text.to_owned()))?;
        let (bytes, per) = bytes_of(unit)?;
        let exact = u128::from(whole) * 1_000_000 + u128::from(millionths);
        let rate = exact * u128::from(bytes) / u128::from(per) / 1_000_000;
        if rate == 0 && exact > 0 {
            return Err(RateError::TooLow(0));
        }
        Self::new(u64::try_from(rate).unwrap_or(u64::MAX))
    }
}

/// A number such as `20` or `1.5`: its millionths, and what stands before the point.
fn decimal(text: &str) -> Option<(u64, u64)> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    if part.is_empty() || part.len() > 6 || part.contains('.') {
        return None;
    }
    let millionths = format!("{part:0<6}").parse().ok()?;
    // A number that does not fit is too high, and not malformed.
    let is_number = !whole.is_empty() && whole.bytes().all(|c| c.is_ascii_digit());
    is_number.then(|| (millionths, whole.parse().unwrap_or(u64::MAX)))
}

/// What a unit is: so many bytes, divided by so many.
fn bytes_of(unit: &str) -> Result<(u64, u64), RateError> {
    let bare = unit.strip_suffix("/s").or_else(|| unit.strip_suffix("ps")).unwrap_or(unit);
    let found = match bare {
        "" | "B" => (1, 1),
        "kB" | "KB" => (1000, 1),
        "MB" => (1_000_000, 1),
        "GB" => (1_000_000_000, 1),
        // As in --chunk-size.
        "K" | "k" => (1 << 10, 1),
        "M" | "m" => (1 << 20, 1),
        "G" | "g" => (1 << 30, 1),
        _ => match bare.to_ascii_lowercase().as_str() {
            "kib" => (1 << 10, 1),
            "mib" => (1 << 20, 1),
            "gib" => (1 << 30, 1),
            "bit" => (1, 8),
            "kbit" => (1000, 8),
            "mbit" => (1_000_000, 8),
            "gbit" => (1_000_000_000, 8),
            // With "bps" nobody means bytes.
            "b" if unit.ends_with("bps") => (1, 8),
            "kb" if unit.ends_with("bps") => (1000, 8),
            "mb" if unit.ends_with("bps") => (1_000_000, 8),
            "gb" if unit.ends_with("bps") => (1_000_000_000, 8),
            "b" => return Err(RateError::Ambiguous(unit.to_owned(), "bit", "B/s")),
            "kb" => return Err(RateError::Ambiguous(unit.to_owned(), "kbit", "kB/s")),
            "mb" => return Err(RateError::Ambiguous(unit.to_owned(), "Mbit", "MB/s")),
            "gb" => return Err(RateError::Ambiguous(unit.to_owned(), "Gbit", "GB/s")),
            _ => return Err(RateError::Unit(unit.to_owned())),
        },
    };
    // A bare "/s" has no unit.
    if bare.is_empty() && !unit.is_empty() { Err(RateError::Unit(unit.to_owned())) } else { Ok(found) }
}

/// As short as it is exact: `20 MB/s`, `500 KiB/s`, `12.5 MB/s`, `unlimited`.
impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(rate) = self.bytes_per_second() else { return f.pad("unlimited") };
        let texts = UNITS.iter().filter_map(|(unit, bytes)| {
            let thousandths = u128::from(rate) * 1000;
            let (bytes, is_exact) = (u128::from(*bytes), thousandths.is_multiple_of(u128::from(*bytes)));
            let (whole, part) = (thousandths / bytes / 1000, thousandths / bytes % 1000);
            let part = format!("{part:03}");
            let number = format!("{whole}.{part}").trim_end_matches('0').trim_end_matches('.').to_owned();
            (is_exact && whole > 0).then(|| (number.len(), format!("{number} {unit}")))
        });
        // Bytes are always exact; of two that are as short the larger unit.
        let text = texts.min_by_key(|(len, _)| *len).map(|(_, text)| text);
        f.pad(&text.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(text: &str) -> Option<u64> {
        text.parse::<RateLimit>().unwrap_or_else(|error| panic!("{text}: {error}")).bytes_per_second()
    }

    #[test]
    fn rates_are_read_in_bytes_and_in_bits() {
        for (text, bytes) in [
            ("20MB/s", 20_000_000),
            ("20 MB/s", 20_000_000),
            ("100mbit", 12_500_000),
            ("100Mbit/s", 12_500_000),
            ("1.5Gbps", 187_500_000),
            ("500KiB/s", 512_000),
            ("500kib", 512_000),
            ("1.5MiB/s", 1_572_864),
            ("1gbit", 125_000_000),
            ("200kbit", 25_000),
            ("64K", 65_536),
            ("1M", 1 << 20),
            ("16384", 16_384),
            ("20000B/s", 20_000),
            ("40KB/s", 40_000),
        ] {
            assert_eq!(rate(text), Some(bytes), "{text}");
        }
        assert_eq!(rate("unlimited"), None);
        assert_eq!(rate(" Unlimited "), None);
    }

    #[test]
    fn what_is_no_rate_is_told_what_one_looks_like() {
        for (text, part) in [
            ("", "such as 20MB/s"),
            ("fast", "such as 20MB/s"),
            ("-1MB/s", "such as 20MB/s"),
            ("1.2.3MB/s", "such as 20MB/s"),
            ("1.MB/s", "such as 20MB/s"),
            ("1,5MB/s", "unknown unit"),
            ("20 parsecs", "unknown unit \"parsecs\""),
            ("20/s", "unknown unit"),
            ("20MB/h", "unknown unit \"MB/h\""),
            ("20mb", "write Mbit for bits, or MB/s for bytes"),
            ("20Mb/s", "write Mbit for bits, or MB/s for bytes"),
            ("20kb/s", "write kbit for bits, or kB/s for bytes"),
            ("0", "use unlimited"),
            ("0MB/s", "use unlimited"),
            ("0.000001B/s", "the least rate is 16KiB/s"),
            ("20", "20 B/s is too slow"),
            ("16383", "the least rate is 16KiB/s"),
            ("10kB/s", "the least rate is 16KiB/s"),
            ("2000GB/s", "use unlimited"),
            ("99999999999999999999999999999MB/s", "use unlimited"),
        ] {
            let error = text.parse::<RateLimit>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_limit_is_written_short() {
        for text in ["20 MB/s", "500 KiB/s", "12.5 MB/s", "unlimited", "1.5 MiB/s", "16 KiB/s", "2 GiB/s", "54321 B/s"]
        {
            let limit: RateLimit = text.parse().unwrap();
            assert_eq!(limit.to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(rate in RateLimit::LEAST..=RateLimit::MOST, shift in 0u32..30) {
            let limit = RateLimit::new((rate >> shift).max(RateLimit::LEAST)).unwrap();
            prop_assert_eq!(limit.to_string().parse::<RateLimit>(), Ok(limit));
        }

        #[test]
        fn no_text_makes_a_limit_out_of_bounds(text in "[0-9]{0,24}(\\.[0-9]{0,8})? ?[a-zA-Z/]{0,6}") {
            if let Ok(limit) = text.parse::<RateLimit>() {
                let fits = |rate| (RateLimit::LEAST..=RateLimit::MOST).contains(&rate);
                prop_assert!(limit.bytes_per_second().is_none_or(fits));
            }
        }
    }
}
