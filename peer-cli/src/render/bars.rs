//! A download on a terminal: one overall bar and a line for each of the busiest sources that fit.
//!
//! What stands in the lines is decided by pure functions of the numbers and the terminal's size; indicatif
//! paints them, at most fifteen times a second. No line is as wide as the terminal: it would wrap, and
//! painting over it would leave rubbish.

use std::{io, time::Instant};

use console::{Alignment, Term, measure_text_width, pad_str, truncate_str};
use drizzle_proto::wire::{self, download_event::Event};
use indicatif::{ProgressBar, ProgressStyle};

use super::{Told, View, screen, summary};
use crate::{
    exit::Failure,
    format::{bytes, clean, clock, count, rate},
    output::Out,
    progress::{Progress, Source},
};

/// Paintings a second.
const HZ: u8 = 15;

/// A bar shorter than this says nothing.
const MIN_BAR: usize = 10;

/// Draws on stdout.
#[derive(Debug)]
pub(crate) struct Bars {
    out: Out,
    told: Told,
    bar: ProgressBar,
    with_bar: Option<bool>,
}

impl Bars {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), screen::target(HZ));
        Self { out: Out::default(), told: Told::default(), bar, with_bar: None }
    }

    fn draw(&mut self, progress: &Progress) {
        let (height, width) = Term::stdout().size();
        let frame = frame(progress, width.into(), height.into());
        if self.with_bar != Some(frame.bar) {
            self.with_bar = Some(frame.bar);
            self.bar.set_style(style(frame.bar));
        }
        self.bar.set_length(progress.total.max(1));
        self.bar.set_prefix(frame.head);
        self.bar.set_message(frame.lines.join("\n"));
        let done = progress.checking().map_or(progress.stored, |(checked, _)| checked);
        self.bar.set_position(if progress.total == 0 { 1 } else { done });
    }

    fn note(&self, line: &str) {
        let width = usize::from(Term::stdout().size().1);
        self.bar.println(truncate_str(line, width.saturating_sub(1), "…"));
    }
}

/// The look of every bar: what indicatif fills, then the text that was made to fit.
pub(crate) fn style(bar: bool) -> ProgressStyle {
    let template = if bar { "{wide_bar:.cyan/blue} {prefix}\n{msg}" } else { "{prefix}\n{msg}" };
    // The templates are constants of this function; a wrong one would fall back to a bare bar.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─")
}

/// What stands on the screen.
#[derive(Debug)]
struct Frame {
    /// Whether there is room for a bar before the head.
    bar: bool,
    head: String,
    lines: Vec<String>,
}

fn frame(progress: &Progress, width: usize, height: usize) -> Frame {
    // The last column stays free: a full line wraps on some terminals.
    let width = width.saturating_sub(1).max(1);
    let numbers = format!(
        "{:>3}% {:>10} {:>5}",
        progress.percent(),
        rate(progress.rate.per_second()),
        clock(progress.time_left()),
    );
    let name = clean(&progress.name);
    let left = width.saturating_sub(measure_text_width(&numbers) + 2);
    let bar = left >= 2 * MIN_BAR;
    let room = if bar { left / 2 } else { left + 1 };
    let head = format!("{numbers} {}", truncate_str(&name, room, "…"));

    let mut lines = Vec::new();
    if let Some(reason) = &progress.waiting {
        lines.push(format!("waiting: {}", clean(reason)));
    } else if let Some((checked, total)) = progress.checking() {
        lines.push(format!("all is here; checking it: {} of {}", bytes(checked), bytes(total)));
    } else if let Some(cause) = progress.limited_by.filter(|_| !progress.is_complete()) {
        lines.push(format!("limited by {cause}"));
    }
    // Besides the sources: the head, a line of why it is not faster, the line that counts the rest, the cursor's.
    let first = lines.len();
    let fit = height.saturating_sub(3 + first);
    let shown = busiest(&progress.sources, fit);
    let column = shown.iter().map(|source| measure_text_width(&source.peer)).max().unwrap_or(0);
    lines.extend(shown.iter().map(|source| source_line(source, column.min(width / 2), width)));
    let hidden = progress.sources.len().saturating_sub(fit);
    if hidden > 0 && height > 2 + first {
        lines.push(format!("  and {hidden} more"));
    }
    let cut = |line: String| truncate_str(&line, width, "…").into_owned();
    Frame { bar, head: cut(head), lines: lines.into_iter().map(cut).collect() }
}

/// Those that send most now, in a steady order so that lines do not jump.
fn busiest(sources: &[Source], fit: usize) -> Vec<&Source> {
    let mut shown: Vec<&Source> = sources.iter().collect();
    let speed = |source: &Source| source.rate.per_second().unwrap_or(0.0);
    shown.sort_by(|a, b| {
        speed(b).total_cmp(&speed(a)).then_with(|| (b.in_flight, b.bytes).cmp(&(a.in_flight, a.bytes)))
    });
    shown.truncate(fit);
    shown.sort_by(|a, b| a.peer.cmp(&b.peer));
    shown
}

/// As many of address, bytes, rate and chunks as fit.
fn source_line(source: &Source, column: usize, width: usize) -> String {
    let peer = clean(&source.peer);
    let mut line = format!("  {}", pad_str(&peer, column, Alignment::Left, Some("…")));
    for field in [
        format!(" {:>8}", bytes(source.bytes)),
        format!(" {:>10}", rate(source.rate.per_second())),
        format!("  {}", count(source.chunks, "chunk")),
    ] {
        if measure_text_width(&line) + field.len() > width {
            break;
        }
        line.push_str(&field);
    }
    line
}

impl View for Bars {
    fn event(&mut self, _: &Progress, event: &Event) -> io::Result<()> {
        if let Event::Chunk(chunk) = event
            && let Some(line) = self.told.offence(chunk)
        {
            self.note(&line);
        }
        Ok(())
    }

    fn tick(&mut self, progress: &Progress, _: Instant) -> io::Result<()> {
        self.draw(progress);
        Ok(())
    }

    fn cancelling(&mut self) -> io::Result<()> {
        self.bar.finish_and_clear();
        self.out.line("cancelling; Ctrl-C again leaves at once")
    }

    fn done(&mut self, progress: &Progress, done: &wire::DownloadDone) -> io::Result<()> {
        self.bar.finish_and_clear();
        let width = usize::from(Term::stdout().size().1);
        summary(&mut self.out, &progress.name, done, Some(width))
    }

    fn failed(&mut self, _: &Progress, failure: Failure) -> io::Result<Option<Failure>> {
        self.bar.finish_and_clear();
        Ok(Some(failure))
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::wire::SourceProgress;
    use proptest::prelude::*;

    use super::*;

    fn progress(name: &str, sources: usize) -> Progress {
        let mut progress = Progress::new(name.into());
        progress.apply(&Event::Started(wire::DownloadStarted { bytes_wanted: 1 << 30, ..Default::default() }));
        let source = |at: usize| SourceProgress {
            peer: format!("10.0.0.{at}:7401"),
            bytes: at as u64,
            chunks: 5,
            in_flight: 1,
            far: false,
        };
        progress.apply(&Event::Progress(wire::DownloadProgress {
            bytes_stored: 1 << 29,
            sources: (0..sources).map(source).collect(),
            ..Default::default()
        }));
        progress
    }

    #[test]
    fn a_wide_terminal_shows_everything() {
        let frame = frame(&progress("model.bin", 2), 100, 24);
        assert!(frame.bar);
        assert!(frame.head.starts_with(" 50% ") && frame.head.ends_with(" model.bin"), "{}", frame.head);
        assert_eq!(frame.lines.len(), 2);
        assert!(frame.lines[1].contains("10.0.0.1:7401") && frame.lines[1].contains("5 chunks"), "{:?}", frame.lines);
    }

    #[test]
    fn what_is_all_here_and_not_checked_yet_is_said_to_be_checked() {
        let mut progress = progress("model.bin", 0);
        progress.apply(&Event::Progress(wire::DownloadProgress {
            bytes_stored: 1 << 30,
            bytes_unchecked: Some(1 << 28),
            ..Default::default()
        }));
        assert_eq!(frame(&progress, 100, 24).lines, ["all is here; checking it: 768 MiB of 1.00 GiB"]);
        progress.apply(&Event::Progress(wire::DownloadProgress { bytes_stored: 1 << 30, ..Default::default() }));
        assert_eq!(frame(&progress, 100, 24).lines, [""; 0], "it is checked");
    }

    #[test]
    fn what_limits_it_stands_below_the_bar_unless_it_waits() {
        let mut progress = progress("model.bin", 1);
        let source = wire::LimitedBy::Source.into();
        progress.apply(&Event::Progress(wire::DownloadProgress { limited_by: source, ..Default::default() }));
        assert_eq!(frame(&progress, 100, 24).lines, ["limited by the source's uplink"]);
        progress.waiting = Some("every holder is busy".into());
        assert_eq!(frame(&progress, 100, 24).lines, ["waiting: every holder is busy"]);
    }

    #[test]
    fn a_small_terminal_shows_the_busiest() {
        let frame = frame(&progress("model.bin", 40), 100, 10);
        assert_eq!(frame.lines.len(), 8);
        assert!(frame.lines[0].contains("10.0.0.33:7401"), "{:?}", frame.lines);
        assert_eq!(frame.lines[7], "  and 33 more");
    }

    proptest! {
        #[test]
        fn nothing_wraps(width in 2usize..200, height in 0usize..60, sources in 0usize..80, name in "[a漢é]{1,80}", waiting: bool, checking: bool, limited: bool) {
            let mut progress = progress(&name, sources);
            progress.waiting = waiting.then(|| "no peer holds chunk 17 and that is a long story".into());
            progress.limited_by = limited.then_some("the other peers' uplinks");
            if checking {
                (progress.stored, progress.unchecked) = (progress.total, 1 << 20);
            }
            let frame = frame(&progress, width, height);
            let bar = if frame.bar { MIN_BAR } else { 0 };
            prop_assert!(measure_text_width(&frame.head) + bar <= width.saturating_sub(1), "{}", frame.head);
            for line in &frame.lines {
                prop_assert!(measure_text_width(line) <= width.saturating_sub(1), "{line}");
            }
            prop_assert!(frame.lines.len() < height.max(2), "{} lines", frame.lines.len());
        }
    }
}
