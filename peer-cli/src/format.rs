//! Numbers in units for a person, and text that a terminal cannot take for commands.

use std::{borrow::Cow, time::Duration};

use drizzle_proto::{ChunkSet, RateLimit, layout::MAX_CHUNKS, wire};

/// `1.50 MiB`; three significant digits, bytes as they are.
pub(crate) fn bytes(bytes: u64) -> String {
    scaled(bytes as f64)
}

/// `98.1 MiB/s`; `-` while unknown.
pub(crate) fn rate(per_second: Option<f64>) -> String {
    per_second.map_or_else(|| "-".to_owned(), |rate| format!("{}/s", scaled(rate)))
}

/// A limit as it is written: `20 MB/s`, `unlimited`.
pub(crate) fn limit(bytes_per_second: Option<u64>) -> String {
    let Some(rate) = bytes_per_second else { return RateLimit::UNLIMITED.to_string() };
    // A daemon that knows other bounds is shown as it is.
    RateLimit::new(rate).map_or_else(|_| format!("{rate} B/s"), |limit| limit.to_string())
}

fn scaled(value: f64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = value.max(0.0);
    let mut unit = 0;
    // From 1023.5 on, rounding would show "1024 KiB".
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// `0:09`, `12:30`, `3:00:00`; `-` when unknown or further off than is worth saying.
pub(crate) fn clock(left: Option<Duration>) -> String {
    match left.map(|left| left.as_secs()) {
        Some(seconds) if seconds < 3600 => format!("{}:{:02}", seconds / 60, seconds % 60),
        Some(seconds) if seconds < 100 * 3600 => {
            format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
        }
        _ => "-".to_owned(),
    }
}

/// Text from elsewhere on one line, without control characters and without those that turn the
/// direction of writing.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    let bad = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if text.contains(bad) { text.replace(bad, "\u{fffd}").into() } else { text.into() }
}

/// More ranges than this tell a person nothing.
const RANGES: usize = 20;

/// `chunk 3` or `chunks 0-9,15`, cut off with `...` when it gets long.
pub(crate) fn chunks(ranges: &wire::ChunkRanges) -> String {
    let one = |range: &wire::ChunkRange| match (range.first, range.last) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    let mut list: Vec<String> = ranges.ranges.iter().take(RANGES).map(one).collect();
    let noun = match ranges.ranges[..] {
        [range] if range.first == range.last => "chunk",
        _ => "chunks",
    };
    if ranges.ranges.len() > RANGES {
        list.push("...".to_owned());
    }
    format!("{noun} {}", list.join(","))
}

/// Every number in the ranges; at most as many as a file can have chunks.
pub(crate) fn numbers(ranges: &wire::ChunkRanges) -> Vec<u32> {
    ranges.ranges.iter().flat_map(|range| range.first..=range.last).take(MAX_CHUNKS as usize).collect()
}

/// `all`, `none` or `0-9,15`.
pub(crate) fn held(chunks: &ChunkSet) -> String {
    match chunks {
        _ if chunks.is_full() => "all".to_owned(),
        _ if chunks.is_empty() => "none".to_owned(),
        _ => chunks.ranges().to_string(),
    }
}

/// `1 chunk`, `2 chunks`.
pub(crate) fn count(number: impl Into<u64>, noun: &str) -> String {
    let number = number.into();
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (10 << 20, "10.0 MiB"),
            ((1 << 20) - 1, "1.00 MiB"), // not 1024 KiB
            (1 << 30, "1.00 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(size), text, "{size}");
        }
    }

    #[test]
    fn times() {
        for (seconds, text) in [(0, "0:00"), (9, "0:09"), (3599, "59:59"), (3600, "1:00:00"), (360_000, "-")] {
            assert_eq!(clock(Some(Duration::from_secs(seconds))), text);
        }
        assert_eq!(clock(None), "-");
        assert_eq!(clock(Some(Duration::MAX)), "-");
    }

    #[test]
    fn terminals_are_given_no_commands() {
        assert_eq!(clean("a\u{1b}[2Jb\nc\u{9b}d\u{202e}e"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d\u{fffd}e");
        assert_eq!(clean("ünï 漢"), "ünï 漢");
    }

    #[test]
    fn absurd_ranges_stay_small() {
        let all = wire::ChunkRanges { ranges: vec![wire::ChunkRange { first: 0, last: u32::MAX }] };
        assert_eq!(numbers(&all).len(), MAX_CHUNKS as usize);
        assert_eq!(chunks(&all), "chunks 0-4294967295");
        let many = wire::ChunkRanges { ranges: vec![wire::ChunkRange { first: 7, last: 7 }; 1000] };
        assert_eq!(chunks(&many), format!("chunks {}...", "7,".repeat(RANGES)));
        let one = wire::ChunkRanges { ranges: vec![wire::ChunkRange { first: 7, last: 7 }] };
        assert_eq!(chunks(&one), "chunk 7");
    }
}
