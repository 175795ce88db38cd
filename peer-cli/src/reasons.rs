//! Why a download takes as long as it does: the words for it, and the report that can be attached to a question.
//!
//! Pure: what the daemon told goes in, text and values come out. No secrets are in them: names, addresses of peers, sizes
//! and times.

use std::fmt::Write;

use drizzle_proto::wire::{self, LimitedBy, explanation, holder_seen};
use serde::Serialize;

use crate::{
    exit::{blame_line, offence},
    figures::{cause, limited_by, seconds},
    format::{bytes, chunks, clean, count, rate},
};

/// Holders that are named in the text; a report has all that the daemon told.
const NAMED: usize = 10;

/// What a person can do about a cause, as far as the rest tells.
pub(crate) fn advice(by: LimitedBy, reasons: &wire::Explanation) -> Option<&'static str> {
    let is_empty = |ranges: &Option<wire::ChunkRanges>| ranges.as_ref().is_none_or(|ranges| ranges.ranges.is_empty());
    let any = |state| reasons.holders.iter().any(|holder| holder.state() == state);
    Some(match by {
        LimitedBy::Unspecified => return None,
        LimitedBy::Tracker => {
            "see that the tracker runs and can be reached from here; `peer-cli status` shows its address"
        }
        LimitedBy::NoHolder if !is_empty(&reasons.avoided) && is_empty(&reasons.unheld) => {
            "the peers that have the missing chunks did something wrong (below): have them share the true file again, or start another peer that has it"
        }
        LimitedBy::NoHolder => {
            "start a peer that has the missing chunks, or wait for one; `peer-cli locations NAME` shows which peer holds what"
        }
        LimitedBy::Source if any(holder_seen::State::Busy) => {
            "the peers that have all of it serve others: raise --upload-slots or `peer-cli limit --up` there if their links have room, or start one more that has all of it"
        }
        LimitedBy::Source => {
            "a faster uplink or a higher `peer-cli limit --up` at the peers that have all of it, or one more of them"
        }
        LimitedBy::Peers => {
            "nothing is wrong here: the other peers send what they can; a higher `peer-cli limit --up` there, or more of them, would help"
        }
        LimitedBy::Downlink => {
            "nothing is wrong: this machine takes in as much as it ever did; only a faster link would help"
        }
        LimitedBy::Link => {
            "one peer sends all of it, as fast as the link between the two allows: another peer that has the file may help"
        }
        LimitedBy::Disk => {
            "a faster disk for the daemon's folder, or fewer downloads at once; `peer-cli status` shows the folder"
        }
        LimitedBy::Memory => {
            "other downloads of this daemon have the memory for chunks: run fewer at once, or give this one --priority high"
        }
        LimitedBy::Shortage => {
            "raise the daemon's limits of open files and processes (ulimit -n and -u, LimitNOFILE and TasksMax of its unit)"
        }
        LimitedBy::OwnLimit => "that is the limit set for this daemon; `peer-cli limit --down unlimited` lifts it",
    })
}

fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { (u128::from(part) * 100 / u128::from(whole)).try_into().unwrap_or(100) }
}

fn whole_time(reasons: &wire::Explanation) -> u64 {
    reasons.shares.iter().map(|share| share.millis).sum()
}

/// What limits it now, or limited it for most of its time.
fn foremost(reasons: &wire::Explanation) -> Option<LimitedBy> {
    let now = Some(reasons.limited_by()).filter(|by| *by != LimitedBy::Unspecified);
    now.or_else(|| reasons.shares.first().map(wire::LimitShare::by)).filter(|by| *by != LimitedBy::Unspecified)
}

fn state(holder: &wire::HolderSeen) -> String {
    match holder.state() {
        holder_seen::State::Sending => {
            format!("sends {}, {} on the way", rate(Some(holder.rate as f64)), count(holder.in_flight, "chunk"))
        }
        holder_seen::State::Idle => "could be asked".to_owned(),
        holder_seen::State::Busy => "busy: others have its upload slots".to_owned(),
        holder_seen::State::Avoided => format!("avoided for {:.0} s more", seconds(holder.avoided_millis)),
        holder_seen::State::Gone => "gone, or has nothing of it any more".to_owned(),
        holder_seen::State::Unspecified => "unknown".to_owned(),
    }
}

/// What a person reads.
pub(crate) fn text(reasons: &wire::Explanation) -> String {
    let mut text = String::new();
    // Writing into a string does not fail.
    let mut line = |line: String| _ = writeln!(text, "{line}");
    let (name, took) = (clean(&reasons.name), seconds(reasons.elapsed_millis));
    let done = percent(reasons.bytes_stored, reasons.bytes_wanted);
    let of = format!("{} of {}", bytes(reasons.bytes_stored), bytes(reasons.bytes_wanted));
    match reasons.state() {
        explanation::State::Done => line(format!("{name}: done after {took:.1} s, {of}")),
        explanation::State::Failed => {
            line(format!("{name}: failed after {took:.1} s, {of} ({done} %)"));
            line(format!("  {}", clean(&reasons.failure)));
        }
        _ => line(format!("{name}: {done} % after {took:.1} s, {of}, {}", rate(Some(reasons.rate as f64)))),
    }
    if let Some(by) = foremost(reasons) {
        let is_over = reasons.state() != explanation::State::Running;
        let limits = limited_by(by).unwrap_or("something that this version does not know");
        line(format!("  {}: {limits}", if is_over { "limited most of the time by" } else { "limited now by" }));
        if let Some(advice) = advice(by, reasons) {
            let lead = if is_over { "what would help" } else { "what can be done" };
            line(format!("  {lead}: {}", advice.replace("NAME", &name)));
        }
    }
    let whole = whole_time(reasons);
    if whole > 0 {
        line("  where the time went:".to_owned());
        for share in &reasons.shares {
            let what = limited_by(share.by()).unwrap_or("something else");
            line(format!("    {:>3} % {:>8.1} s  {what}", percent(share.millis, whole), seconds(share.millis)));
        }
    }
    for (ranges, what) in
        [(&reasons.unheld, "no peer holds"), (&reasons.avoided, "held only by peers that are avoided")]
    {
        if let Some(ranges) = ranges.as_ref().filter(|ranges| !ranges.ranges.is_empty()) {
            line(format!("  {what}: {}", chunks(ranges)));
        }
    }
    if reasons.holders_known > 0 {
        line(format!("  {}:", count(reasons.holders_known, "known holder")));
    }
    for holder in reasons.holders.iter().take(NAMED) {
        let holds = if holder.full { "all of it".to_owned() } else { count(holder.chunks, "chunk") };
        let far = if holder.far { ", far" } else { "" };
        line(format!(
            "    {:<22} {holds}{far}; {}; {} so far",
            clean(&holder.peer),
            state(holder),
            bytes(holder.bytes)
        ));
    }
    let more = (reasons.holders_known as usize).saturating_sub(reasons.holders.len().min(NAMED));
    if more > 0 {
        line(format!("    and {more} more"));
    }
    if !reasons.blamed.is_empty() {
        line("  what holders did wrong:".to_owned());
        reasons.blamed.iter().for_each(|blame| line(format!("    {}", blame_line(blame))));
    }
    text
}

/// The same for a program, and for a report.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    name: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    failure: &'a str,
    seconds: f64,
    bytes: u64,
    total: u64,
    /// Bytes a second that the machine takes in.
    rate: u64,
    /// What limits it now, or limited it for most of its time.
    limited_by: Option<&'static str>,
    advice: Option<&'static str>,
    /// Where the time went, the longest first.
    shares: Vec<Share>,
    unheld: String,
    avoided: String,
    holders_known: u32,
    holders: Vec<Holder<'a>>,
    blamed: Vec<Blame<'a>>,
    /// As a person reads it.
    text: String,
    version: &'static str,
}

#[derive(Debug, Serialize)]
struct Share {
    by: Option<&'static str>,
    seconds: f64,
    percent: u64,
}

#[derive(Debug, Serialize)]
struct Holder<'a> {
    peer: &'a str,
    state: &'static str,
    full: bool,
    chunks: u32,
    in_flight: u32,
    bytes: u64,
    rate: u64,
    avoided_seconds: f64,
    far: bool,
}

#[derive(Debug, Serialize)]
struct Blame<'a> {
    peer: &'a str,
    offence: &'static str,
    chunks: String,
}

fn listed(ranges: &Option<wire::ChunkRanges>) -> String {
    ranges.as_ref().filter(|ranges| !ranges.ranges.is_empty()).map(chunks).unwrap_or_default()
}

impl<'a> Report<'a> {
    /// Of what the daemon told.
    pub(crate) fn new(reasons: &'a wire::Explanation) -> Self {
        let whole = whole_time(reasons);
        let by = foremost(reasons);
        let shares = reasons.shares.iter().map(|share| Share {
            by: cause(share.by()),
            seconds: seconds(share.millis),
            percent: percent(share.millis, whole),
        });
        let holders = reasons.holders.iter().map(|holder| Holder {
            peer: &holder.peer,
            state: match holder.state() {
                holder_seen::State::Sending => "sending",
                holder_seen::State::Idle => "idle",
                holder_seen::State::Busy => "busy",
                holder_seen::State::Avoided => "avoided",
                holder_seen::State::Gone => "gone",
                holder_seen::State::Unspecified => "unknown",
            },
            full: holder.full,
            chunks: holder.chunks,
            in_flight: holder.in_flight,
            bytes: holder.bytes,
            rate: holder.rate,
            avoided_seconds: seconds(holder.avoided_millis),
            far: holder.far,
        });
        let blamed = reasons.blamed.iter().map(|blame| Blame {
            peer: &blame.peer,
            offence: offence(blame),
            chunks: listed(&blame.chunks),
        });
        Self {
            name: &reasons.name,
            state: match reasons.state() {
                explanation::State::Running => "running",
                explanation::State::Done => "done",
                explanation::State::Failed => "failed",
                explanation::State::Unspecified => "unknown",
            },
            failure: &reasons.failure,
            seconds: seconds(reasons.elapsed_millis),
            bytes: reasons.bytes_stored,
            total: reasons.bytes_wanted,
            rate: reasons.rate,
            limited_by: by.and_then(cause),
            advice: by.and_then(|by| advice(by, reasons)),
            shares: shares.collect(),
            unheld: listed(&reasons.unheld),
            avoided: listed(&reasons.avoided),
            holders_known: reasons.holders_known,
            holders: holders.collect(),
            blamed: blamed.collect(),
            text: text(reasons),
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// A page that stands alone, for people.
    pub(crate) fn html(&self) -> String {
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n<title>{0} - Drizzle</title>\n{STYLE}\n<h1>{0}</h1>\n",
            escaped(self.name)
        );
        let mut put = |text: String| page.push_str(&text);
        put(format!(
            "<p>{} after {:.1} s, {} of {}.</p>\n",
            escaped(self.state),
            self.seconds,
            escaped(&bytes(self.bytes)),
            escaped(&bytes(self.total))
        ));
        if !self.failure.is_empty() {
            put(format!("<p>{}</p>\n", escaped(self.failure)));
        }
        let table = |title: &str, head: &str, rows: Vec<String>| {
            let rows: String = rows.iter().map(|row| format!("<tr>{row}\n")).collect();
            if rows.is_empty() { rows } else { format!("<h2>{title}</h2>\n<table>\n{head}{rows}</table>\n") }
        };
        let shares = self.shares.iter().map(|share| {
            let bar = format!(
                "<svg width=\"200\" height=\"12\" role=\"img\" aria-label=\"{} %\"><rect width=\"{}\" height=\"12\"/></svg>",
                share.percent,
                2 * share.percent.min(100)
            );
            let by = escaped(share.by.unwrap_or("something else"));
            format!("<td>{by}<td class=\"n\">{:.1} s<td class=\"n\">{} %<td>{bar}", share.seconds, share.percent)
        });
        put(table("Where the time went", "", shares.collect()));
        let holders = self.holders.iter().map(|holder| {
            let has = if holder.full { "all of it".to_owned() } else { count(holder.chunks, "chunk") };
            let (peer, came, rate) = (escaped(holder.peer), bytes(holder.bytes), rate(Some(holder.rate as f64)));
            format!("<td>{peer}<td>{has}<td>{}<td class=\"n\">{came}<td class=\"n\">{rate}", holder.state)
        });
        put(table("Holders", "<tr><th>peer<th>has<th>state<th>came<th>rate\n", holders.collect()));
        put(format!("<h2>In words</h2>\n<pre>{}</pre>\n", escaped(&self.text)));
        page
    }
}

const STYLE: &str = "<style>:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}td,th{text-align:left;padding:.1rem .8rem .1rem 0}.n{text-align:right;font-variant-numeric:tabular-nums}rect{fill:#2a78d6}pre{overflow:auto}</style>";

/// Text of others as text in a page.
fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut safe, c| {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            c if c.is_control() && c != '\n' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
        safe
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(text: &str) -> Option<wire::ChunkRanges> {
        Some((&text.parse::<drizzle_proto::ChunkRanges>().unwrap()).into())
    }

    fn share(by: LimitedBy, millis: u64) -> wire::LimitShare {
        wire::LimitShare { by: by.into(), millis }
    }

    fn running() -> wire::Explanation {
        let sends = wire::HolderSeen {
            peer: "10.0.0.1:7401".into(),
            state: holder_seen::State::Sending.into(),
            full: true,
            in_flight: 4,
            bytes: 30 << 20,
            rate: 5 << 20,
            ..Default::default()
        };
        let avoided = wire::HolderSeen {
            peer: "10.0.0.2:7401".into(),
            state: holder_seen::State::Avoided.into(),
            chunks: 12,
            avoided_millis: 28_000,
            ..Default::default()
        };
        wire::Explanation {
            name: "models/a".into(),
            state: explanation::State::Running.into(),
            elapsed_millis: 12_300,
            bytes_wanted: 100 << 20,
            bytes_stored: 30 << 20,
            rate: 5 << 20,
            limited_by: LimitedBy::Source.into(),
            shares: vec![share(LimitedBy::Source, 9_000), share(LimitedBy::Tracker, 3_300)],
            holders: vec![sends, avoided],
            holders_known: 2,
            blamed: vec![wire::Blame {
                peer: "10.0.0.2:7401".into(),
                offence: wire::Offence::WrongBytes.into(),
                chunks: ranges("3,7"),
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_person_reads_the_cause_what_to_do_and_the_holders() {
        let text = text(&running());
        for line in [
            "models/a: 30 % after 12.3 s, 30.0 MiB of 100 MiB, 5.00 MiB/s",
            "  limited now by: the source's uplink",
            "  where the time went:",
            "     73 %      9.0 s  the source's uplink",
            "     26 %      3.3 s  the tracker",
            "  2 known holders:",
            "    10.0.0.1:7401          all of it; sends 5.00 MiB/s, 4 chunks on the way; 30.0 MiB so far",
            "    10.0.0.2:7401          12 chunks; avoided for 28 s more; 0 B so far",
            "  what holders did wrong:",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n in\n{text}");
        }
        assert!(text.contains("what can be done: a faster uplink"), "{text}");
    }

    #[test]
    fn what_can_be_done_depends_on_what_is_known() {
        let by = LimitedBy::NoHolder;
        let nobody = wire::Explanation { unheld: ranges("4"), ..running() };
        assert!(advice(by, &nobody).unwrap().starts_with("start a peer"));
        let liars = wire::Explanation { avoided: ranges("4"), ..running() };
        assert!(advice(by, &liars).unwrap().contains("did something wrong"));
        let mut busy = running();
        assert!(!advice(LimitedBy::Source, &busy).unwrap().contains("serve others"));
        busy.holders[0].state = holder_seen::State::Busy.into();
        assert!(advice(LimitedBy::Source, &busy).unwrap().contains("serve others"));
    }

    #[test]
    fn of_one_that_is_over_most_of_its_time_is_told() {
        let over = wire::Explanation {
            state: explanation::State::Failed.into(),
            failure: "no peer holds chunk 4".into(),
            limited_by: 0,
            ..running()
        };
        let text = text(&over);
        assert!(
            text.starts_with("models/a: failed after 12.3 s, 30.0 MiB of 100 MiB (30 %)\n  no peer holds chunk 4\n")
        );
        assert!(text.contains("  limited most of the time by: the source's uplink\n"), "{text}");
        // Nothing is known yet, or by a daemon that knows more.
        let begun =
            wire::Explanation { limited_by: 99, shares: vec![share(LimitedBy::Source, 0)], ..Default::default() };
        assert!(super::text(&begun).contains("0 % after 0.0 s"));
    }

    #[test]
    fn a_page_shows_names_with_markup_as_text() {
        let hostile = wire::Explanation { name: "<script>alert('&')</script>".into(), ..running() };
        let page = Report::new(&hostile).html();
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(&#39;&amp;&#39;)"), "{page}");
        assert!(page.contains("<td>source<td class=\"n\">9.0 s<td class=\"n\">73 %"), "{page}");
    }

    #[test]
    fn a_report_is_one_value() {
        let value = serde_json::to_value(Report::new(&running())).unwrap();
        assert_eq!(value["limited_by"], "source");
        assert_eq!(value["shares"][1]["by"], "tracker");
        assert_eq!(value["holders"][1]["state"], "avoided");
        assert_eq!(value["blamed"][0]["offence"], "wrong bytes");
    }
}
