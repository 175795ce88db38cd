//! A download as newline-delimited JSON events. Fields come in the documented order; text is passed on
//! as it is, since JSON escapes what a terminal must not see raw.

use std::{io, time::Instant};

use drizzle_proto::wire::{self, chunk_event::Step, download_event};
use serde::Serialize;

use super::View;
use crate::{
    exit::{Failure, offence},
    figures::{self, seconds},
    format::numbers,
    output::Out,
    progress::Progress,
};

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Event<'a> {
    Started {
        name: &'a str,
        file_id: &'a str,
        bytes: u64,
        resumed: u64,
    },
    Progress {
        bytes: u64,
        total: u64,
        /// Bytes of an earlier run that are still to be checked.
        #[serde(skip_serializing_if = "Option::is_none")]
        unchecked: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        limited_by: Option<&'static str>,
        sources: Vec<LiveSource<'a>>,
    },
    Chunk {
        step: &'static str,
        chunk: u32,
        peer: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        reason: &'a str,
    },
    Waiting {
        reason: &'a str,
    },
    Done {
        name: &'a str,
        path: Option<&'a str>,
        bytes: u64,
        seconds: f64,
        #[serde(flatten)]
        figures: Figures,
        sources: Vec<Source<'a>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        blamed: Vec<Blame<'a>>,
    },
    Failed {
        name: &'a str,
        reason: &'a str,
        chunks: Vec<u32>,
        blamed: Vec<Blame<'a>>,
    },
}

/// How near it came to its bound; what is not known is left out.
#[derive(Serialize)]
struct Figures {
    /// Seconds, as are its terms.
    #[serde(skip_serializing_if = "Option::is_none")]
    bound: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bounds: Option<Bounds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limited_by: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limited_percent: Option<u32>,
}

#[derive(Serialize)]
struct Bounds {
    #[serde(skip_serializing_if = "Option::is_none")]
    downlink: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swarm: Option<f64>,
}

impl From<&wire::DownloadDone> for Figures {
    fn from(done: &wire::DownloadDone) -> Self {
        let limited_by = figures::cause(done.limited_by());
        Self {
            bound: done.bound.as_ref().and_then(figures::bound).map(seconds),
            bounds: done.bound.as_ref().map(|bound| Bounds {
                downlink: bound.downlink_millis.map(seconds),
                source: bound.source_millis.map(seconds),
                swarm: bound.swarm_millis.map(seconds),
            }),
            ratio: figures::ratio(done),
            limited_by,
            limited_percent: limited_by.map(|_| done.limited_percent),
        }
    }
}

#[derive(Serialize)]
struct Source<'a> {
    peer: &'a str,
    bytes: u64,
    chunks: u32,
    /// In another zone or rack; left out if not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    far: bool,
}

#[derive(Serialize)]
struct LiveSource<'a> {
    peer: &'a str,
    bytes: u64,
    chunks: u32,
    in_flight: u32,
    /// In another zone or rack; left out if not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    far: bool,
}

#[derive(Serialize)]
struct Blame<'a> {
    peer: &'a str,
    offence: &'a str,
    chunks: Vec<u32>,
}

fn blamed(blamed: &[wire::Blame]) -> Vec<Blame<'_>> {
    let one = |blame: &wire::Blame| blame.chunks.as_ref().map(numbers).unwrap_or_default();
    blamed.iter().map(|blame| Blame { peer: &blame.peer, offence: offence(blame), chunks: one(blame) }).collect()
}

/// Writes events to stdout.
#[derive(Debug, Default)]
pub(crate) struct Json {
    out: Out,
}

impl View for Json {
    fn wants_steps(&self) -> bool {
        true
    }

    fn event(&mut self, progress: &Progress, event: &download_event::Event) -> io::Result<()> {
        use download_event::Event as Told;
        let event = match event {
            Told::Started(started) => Event::Started {
                name: &progress.name,
                file_id: started.file.as_ref().map_or("", |file| &file.file_id),
                bytes: started.bytes_wanted,
                resumed: started.bytes_resumed,
            },
            Told::Progress(now) => Event::Progress {
                bytes: now.bytes_stored,
                total: progress.total,
                unchecked: now.bytes_unchecked,
                limited_by: figures::cause(now.limited_by()),
                sources: now.sources.iter().map(live).collect(),
            },
            Told::Chunk(chunk) => match step(chunk.step()) {
                Some(step) => Event::Chunk { step, chunk: chunk.chunk, peer: &chunk.peer, reason: &chunk.reason },
                None => return Ok(()),
            },
            Told::Waiting(waiting) => Event::Waiting { reason: &waiting.reason },
            Told::Done(_) | Told::Failed(_) => return Ok(()),
        };
        self.out.json(&event)
    }

    fn tick(&mut self, _: &Progress, _: Instant) -> io::Result<()> {
        Ok(())
    }

    fn done(&mut self, progress: &Progress, done: &wire::DownloadDone) -> io::Result<()> {
        self.out.json(&Event::Done {
            name: &progress.name,
            path: Some(done.path.as_str()).filter(|path| !path.is_empty()),
            bytes: done.bytes,
            seconds: seconds(done.elapsed_millis),
            figures: done.into(),
            sources: done.sources.iter().map(fetched).collect(),
            blamed: blamed(&done.blamed),
        })
    }

    fn failed(&mut self, progress: &Progress, failure: Failure) -> io::Result<Option<Failure>> {
        self.out.json(&Event::Failed {
            name: &progress.name,
            reason: &failure.reason,
            chunks: numbers(&failure.chunks),
            blamed: blamed(&failure.blamed),
        })?;
        Ok(None)
    }
}

fn fetched(source: &wire::SourceProgress) -> Source<'_> {
    Source { peer: &source.peer, bytes: source.bytes, chunks: source.chunks, far: source.far }
}

fn live(source: &wire::SourceProgress) -> LiveSource<'_> {
    LiveSource {
        peer: &source.peer,
        bytes: source.bytes,
        chunks: source.chunks,
        in_flight: source.in_flight,
        far: source.far,
    }
}

fn step(step: Step) -> Option<&'static str> {
    match step {
        Step::Requested => Some("requested"),
        Step::Stored => Some("stored"),
        Step::Failed => Some("failed"),
        Step::Unspecified => None,
    }
}
