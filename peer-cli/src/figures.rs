//! How near a download came to its bound, and what limited it: the words for it.
//!
//! Pure: what the daemon told goes in, lines come out.

use console::{measure_text_width, truncate_str};
use drizzle_proto::wire::{self, LimitedBy};

/// What limits a download, for a sentence that begins with "limited by".
pub(crate) fn limited_by(cause: LimitedBy) -> Option<&'static str> {
    Some(match cause {
        LimitedBy::Unspecified => return None,
        LimitedBy::Tracker => "the tracker",
        LimitedBy::NoHolder => "chunks that no peer holds",
        LimitedBy::Source => "the source's uplink",
        LimitedBy::Peers => "the other peers' uplinks",
        LimitedBy::Downlink => "this machine's downlink",
        LimitedBy::Link => "the link to the only sender",
        LimitedBy::Disk => "this machine's disk",
        LimitedBy::Memory => "this machine's memory for chunks",
        LimitedBy::Shortage => "this machine's files, ports or threads",
        LimitedBy::OwnLimit => "the limit set on this machine",
    })
}

/// The same for a program.
pub(crate) fn cause(cause: LimitedBy) -> Option<&'static str> {
    Some(match cause {
        LimitedBy::Unspecified => return None,
        LimitedBy::Tracker => "tracker",
        LimitedBy::NoHolder => "no holder",
        LimitedBy::Source => "source",
        LimitedBy::Peers => "peers",
        LimitedBy::Downlink => "downlink",
        LimitedBy::Link => "link",
        LimitedBy::Disk => "disk",
        LimitedBy::Memory => "memory",
        LimitedBy::Shortage => "shortage",
        LimitedBy::OwnLimit => "own limit",
    })
}

/// Seconds of a time on the wire.
pub(crate) fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

/// The bound of a run, in milliseconds: the longest of its terms.
pub(crate) fn bound(bound: &wire::DownloadBound) -> Option<u64> {
    bound.downlink_millis.max(bound.source_millis).max(bound.swarm_millis)
}

/// How many times the bound a run took.
pub(crate) fn ratio(done: &wire::DownloadDone) -> Option<f64> {
    let bound = done.bound.as_ref().and_then(bound).filter(|bound| *bound > 0)?;
    // Both are whole milliseconds: more digits say nothing.
    Some((done.elapsed_millis as f64 / bound as f64 * 1000.0).round() / 1000.0)
}

/// What a person reads of it after a download; nothing if nothing was fetched. Within `width` columns, where there is a
/// width, it may take a second line.
pub(crate) fn lines(done: &wire::DownloadDone, width: Option<usize>) -> Vec<String> {
    let Some(cause) = limited_by(done.limited_by()).filter(|_| done.bytes > 0) else {
        // Over before anything could be measured; an older daemon tells nothing at all.
        let is_short = done.bytes > 0 && done.elapsed_millis < 50;
        return if is_short { vec![format!("  took {} ms", done.elapsed_millis)] } else { Vec::new() };
    };
    let mut took = format!("  took {}", time(done.elapsed_millis));
    if let (Some(bound), Some(ratio)) = (done.bound.as_ref().and_then(bound), ratio(done)) {
        took += &format!(", {ratio:.2} times the bound of {}", time(bound));
    }
    let percent = done.limited_percent;
    let limited = format!("limited by {cause} ({percent} % of the time)");
    // The last column stays free: a full line wraps on some terminals.
    let fits = |line: &str| width.is_none_or(|width| measure_text_width(line) < width);
    let whole = format!("{took}; {limited}");
    if fits(&whole) {
        return vec![whole];
    }
    let limited = Some(format!("  {limited}")).filter(|line| fits(line));
    let limited = limited.unwrap_or_else(|| format!("  limited by {cause} ({percent} %)"));
    let cut = |line: String| truncate_str(&line, width.unwrap_or(usize::MAX).saturating_sub(1), "…").into_owned();
    vec![cut(took), cut(limited)]
}

/// `0.43 s`, `93.1 s`, `1234 s`.
fn time(millis: u64) -> String {
    let seconds = seconds(millis);
    let digits = match seconds {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{seconds:.digits$} s")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn done(elapsed_millis: u64, source_millis: Option<u64>, by: LimitedBy) -> wire::DownloadDone {
        let bound = wire::DownloadBound { downlink_millis: Some(1), source_millis, swarm_millis: None };
        let (limited_by, limited_percent) = (by.into(), 83);
        wire::DownloadDone {
            bytes: 1 << 30,
            elapsed_millis,
            bound: Some(bound),
            limited_by,
            limited_percent,
            ..Default::default()
        }
    }

    #[test]
    fn one_line_or_two_where_one_does_not_fit() {
        let done = done(9310, Some(8620), LimitedBy::Source);
        let (took, by) = ("  took 9.31 s, 1.08 times the bound of 8.62 s", "limited by the source's uplink");
        assert_eq!(lines(&done, None), [format!("{took}; {by} (83 % of the time)")]);
        assert_eq!(lines(&done, Some(100)), lines(&done, None));
        assert_eq!(lines(&done, Some(60)), [took.to_owned(), format!("  {by} (83 % of the time)")]);
        assert_eq!(lines(&done, Some(48)), [took.to_owned(), format!("  {by} (83 %)")]);
        assert_eq!(lines(&done, Some(20)), ["  took 9.31 s, 1.0…", "  limited by the s…"]);
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let none = wire::DownloadDone::default();
        assert_eq!(lines(&none, None), [""; 0], "nothing was fetched");
        assert_eq!(lines(&wire::DownloadDone { bytes: 1, elapsed_millis: 31, ..none.clone() }, None), ["  took 31 ms"]);
        assert_eq!(
            lines(&wire::DownloadDone { bytes: 1, elapsed_millis: 3100, ..none }, None),
            [""; 0],
            "an old daemon"
        );
        let unbound = wire::DownloadDone { bound: None, ..done(1234, None, LimitedBy::Disk) };
        assert_eq!(lines(&unbound, None), ["  took 1.23 s; limited by this machine's disk (83 % of the time)"]);
        // From a daemon that knows more.
        let unknown = wire::DownloadDone { limited_by: 99, ..done(1234, None, LimitedBy::Disk) };
        assert_eq!(lines(&unknown, None), [""; 0]);
    }

    proptest! {
        #[test]
        fn nothing_wraps(width in 2usize..200, elapsed: u64, bound in proptest::option::of(any::<u64>()), by in 0..12) {
            let done = wire::DownloadDone { limited_by: by, ..done(elapsed, bound, LimitedBy::Source) };
            for line in lines(&done, Some(width)) {
                prop_assert!(measure_text_width(&line) < width, "{line}");
            }
        }

        #[test]
        fn every_cause_has_words(by in 0..12) {
            let cause_of = LimitedBy::try_from(by).unwrap_or_default();
            prop_assert_eq!(limited_by(cause_of).is_some(), (1..11).contains(&by));
            prop_assert_eq!(cause(cause_of).is_some(), (1..11).contains(&by));
        }
    }
}
