//! How a download is shown: [`bars`] to a person at a terminal, [`plain`] lines to a log, [`json`] to a
//! program. All three are told the same things; none decides anything. The bars are painted on a [`screen`].

pub(crate) mod bars;
pub(crate) mod json;
pub(crate) mod plain;
mod screen;

use std::{
    io::{self, IsTerminal},
    time::Instant,
};

use drizzle_proto::wire::{self, chunk_event::Step, download_event::Event};

use crate::{
    exit::{Failure, blame_line},
    figures,
    format::{bytes, clean, count, rate},
    output::Out,
    progress::Progress,
};

/// Shows a download while it runs, and how it ended.
pub(crate) trait View {
    /// Whether it tells every step of every chunk.
    fn wants_steps(&self) -> bool {
        false
    }
    /// An event that is not the last; `progress` has it already.
    fn event(&mut self, progress: &Progress, event: &Event) -> io::Result<()>;
    /// Called about ten times a second.
    fn tick(&mut self, progress: &Progress, now: Instant) -> io::Result<()>;
    /// The person asked it to stop; it ends soon.
    fn cancelling(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// It succeeded.
    fn done(&mut self, progress: &Progress, done: &wire::DownloadDone) -> io::Result<()>;
    /// It failed; hands back what is still to be told to a person on stderr.
    fn failed(&mut self, progress: &Progress, failure: Failure) -> io::Result<Option<Failure>>;
}

/// JSON if asked for, else bars on a terminal, else plain lines.
pub(crate) fn view(json: bool) -> Box<dyn View> {
    match json {
        true => Box::new(json::Json::default()),
        false if is_terminal() => Box::new(bars::Bars::new()),
        false => Box::new(plain::Plain::default()),
    }
}

/// Whether stdout is a terminal that can move its cursor.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// What a person reads at the end, in bars and in plain mode; on a terminal of so many columns, if it is one.
fn summary(out: &mut Out, name: &str, done: &wire::DownloadDone, width: Option<usize>) -> io::Result<()> {
    let seconds = done.elapsed_millis as f64 / 1000.0;
    let speed = (seconds > 0.0 && done.bytes > 0).then(|| done.bytes as f64 / seconds);
    let speed = speed.map_or_else(String::new, |speed| format!(" ({})", rate(Some(speed))));
    let place = match done.path.as_str() {
        "" => "chunks held for others, no file put in place".to_owned(),
        path => clean(path).into_owned(),
    };
    out.line(&format!("done: {}: {} fetched in {seconds:.1} s{speed}: {place}", clean(name), bytes(done.bytes)))?;
    for line in figures::lines(done, width) {
        out.line(&line)?;
    }
    for source in &done.sources {
        let (received, chunks) = (bytes(source.bytes), count(source.chunks, "chunk"));
        let far = if source.far { ", far" } else { "" };
        out.line(&format!("  from {}: {received}, {chunks}{far}", clean(&source.peer)))?;
    }
    let of = |is_far: bool| done.sources.iter().filter(|source| source.far == is_far).map(|source| source.bytes).sum();
    if done.sources.iter().any(|source| source.far) {
        out.line(&format!("  near {}, far {}", bytes(of(false)), bytes(of(true))))?;
    }
    for blame in &done.blamed {
        out.line(&format!("  misbehaved: {}", blame_line(blame)))?;
    }
    Ok(())
}

/// Remembers which offences of which peer were told, so that a peer that fails a thousand chunks in the
/// same way takes one line.
#[derive(Debug, Default)]
struct Told(std::collections::HashSet<(String, String)>);

impl Told {
    /// Peers are bounded by nothing but the swarm; a person reads no more than this.
    const MOST: usize = 50;

    /// The line for a failed chunk, the first time.
    fn offence(&mut self, chunk: &wire::ChunkEvent) -> Option<String> {
        let new = chunk.step() == Step::Failed
            && self.0.len() < Self::MOST
            && self.0.insert((chunk.peer.clone(), chunk.reason.clone()));
        new.then(|| format!("{}: {} (chunk {})", clean(&chunk.peer), clean(&chunk.reason), chunk.chunk))
    }
}
