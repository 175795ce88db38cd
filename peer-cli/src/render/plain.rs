//! A download as lines for a log: one at the start, one about every second and for each tenth of the
//! bytes, one that tells all of them, the summary.

use std::{
    io,
    time::{Duration, Instant},
};

use drizzle_proto::wire::{self, download_event::Event};

use super::{Told, View, summary};
use crate::{
    exit::Failure,
    format::{bytes, clean, clock, count, rate},
    output::Out,
    progress::Progress,
};

const EVERY: Duration = Duration::from_secs(1);
const PERCENT: u8 = 10;

/// Writes lines to stdout.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    out: Out,
    told: Told,
    last: Option<(Instant, u8)>,
    /// Whether a line has told every byte.
    told_all: bool,
}

impl Plain {
    fn line(&mut self, progress: &Progress) -> io::Result<()> {
        if let Some((checked, total)) = progress.checking() {
            let (name, checked, total) = (clean(&progress.name), bytes(checked), bytes(total));
            return self.out.line(&format!("{name}: all is here; checking it: {checked} of {total}"));
        }
        self.told_all = progress.is_complete();
        let (name, percent) = (clean(&progress.name), progress.percent());
        let mut line = format!("{name}: {percent} %, {} of {}", bytes(progress.stored), bytes(progress.total));
        if let Some(now) = progress.rate.per_second() {
            line += &format!(", {}", rate(Some(now)));
        }
        if !self.told_all {
            if let Some(left) = progress.time_left() {
                line += &format!(", {} left", clock(Some(left)));
            }
            let sources = progress.sources.iter().filter(|source| source.in_flight > 0).count() as u64;
            line += &format!(", {} active", count(sources, "source"));
            if let Some(cause) = progress.limited_by {
                line += &format!("; limited by {cause}");
            }
        }
        self.out.line(&line)
    }
}

impl View for Plain {
    fn event(&mut self, progress: &Progress, event: &Event) -> io::Result<()> {
        match event {
            Event::Started(started) => {
                self.last = Some((Instant::now(), progress.percent()));
                let chunks = started.file.as_ref().map_or(0, |file| file.chunk_count);
                let wanted = bytes(started.bytes_wanted);
                self.told_all = started.bytes_resumed >= started.bytes_wanted;
                let begins = match started.bytes_resumed {
                    0 => format!("fetching {wanted}"),
                    _ if self.told_all => format!("all {wanted} are here already"),
                    resumed => format!("fetching {wanted}, {} of them here already", bytes(resumed)),
                };
                let file = count(chunks, "chunk");
                self.out.line(&format!("{}: {begins}; the file has {file}", clean(&progress.name)))
            }
            // Many progress events arrive between two ticks when it is fast: tenths are looked for here.
            Event::Progress(_) => {
                let told = self.last.map_or(0, |(_, percent)| percent);
                if progress.percent() >= told.saturating_add(PERCENT) {
                    self.last = Some((Instant::now(), progress.percent()));
                    self.line(progress)?;
                }
                Ok(())
            }
            Event::Chunk(chunk) => match self.told.offence(chunk) {
                Some(line) => self.out.line(&format!("{}: {line}", clean(&progress.name))),
                None => Ok(()),
            },
            Event::Waiting(waiting) => {
                self.out.line(&format!("{}: waiting: {}", clean(&progress.name), clean(&waiting.reason)))
            }
            Event::Done(_) | Event::Failed(_) => Ok(()),
        }
    }

    fn tick(&mut self, progress: &Progress, now: Instant) -> io::Result<()> {
        match self.last {
            // While it waits, the reason stands; repeating it says nothing.
            Some((at, _)) if now.duration_since(at) >= EVERY && progress.waiting.is_none() => {
                self.last = Some((now, progress.percent()));
                self.line(progress)
            }
            _ => Ok(()),
        }
    }

    fn done(&mut self, progress: &Progress, done: &wire::DownloadDone) -> io::Result<()> {
        // The last bytes are seldom a tenth, and the end does not wait for the next second.
        if self.last.is_some() && progress.is_complete() && !self.told_all {
            self.line(progress)?;
        }
        summary(&mut self.out, &progress.name, done, None)
    }

    fn failed(&mut self, _: &Progress, failure: Failure) -> io::Result<Option<Failure>> {
        Ok(Some(failure))
    }
}
