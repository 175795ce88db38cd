//! What becomes of a fetch: its chunk is stored, or why not; and what it tells meanwhile.

use std::time::Instant;

use drizzle_engine::schedule::{Bound, Fetch, FetchId, Offence, Outcome};

use super::{
    super::{
        effects::Effect,
        events::{DownloadEvent, Step},
        failure::Failure,
    },
    Transfer,
};
use crate::{
    fetch::{FetchFailure, News, error::FetchError},
    store::write::StoredChunk,
};

impl Transfer {
    pub(super) fn fetched(
        &mut self,
        id: FetchId,
        result: Result<StoredChunk, FetchFailure>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Failure> {
        // After the last one there is no tick.
        if self.running.len() <= 2 {
            self.look(now);
        }
        let Some(fetch) = self.running.remove(&id) else { return Ok(()) };
        self.without_memory.remove(&id);
        // Not what it was asked for at first: its holder may have chosen.
        let chunk = self.scheduler.chunk(id).unwrap_or(fetch.chunk);
        let outcome = match result {
            Ok(stored) => {
                if stored.chunk() != chunk || stored.file() != self.job.manifest.id() {
                    let text = format!("chunk {} was written where chunk {chunk} was fetched", stored.chunk());
                    return Err(Failure::Internal(text));
                }
                self.stored_from(&fetch, stored, now, effects);
                Outcome::Stored
            }
            Err(FetchFailure::Holder(FetchError::Busy)) => Outcome::Busy,
            Err(FetchFailure::Holder(FetchError::Unclear)) => {
                self.waiting.chunk_spoiled(chunk);
                Outcome::Cancelled
            }
            Err(FetchFailure::Holder(FetchError::Short(shortage))) => {
                self.shortage = Some(shortage);
                Outcome::Unasked
            }
            Err(FetchFailure::Holder(FetchError::Offence(offence, detail))) => {
                let peer = fetch.holder.address().clone();
                if offence == Offence::WrongBytes {
                    self.waiting.chunk_spoiled(chunk);
                }
                let step = Step::Failed { offence, detail };
                // The other end gave up a peer that did not answer while it was stopped: that is no offence.
                let is_excused = matches!(offence, Offence::Stalled | Offence::BrokeOff | Offence::Unreachable);
                if is_excused && self.slept_through.contains(&id) {
                    Outcome::Cancelled
                } else {
                    effects.push(Effect::Tell(DownloadEvent::Chunk { step, chunk, peer }));
                    Outcome::Failed(offence)
                }
            }
            Err(FetchFailure::Overtaken) => Outcome::Cancelled,
            Err(FetchFailure::Storage(error)) => return Err(Failure::Storage(error)),
            Err(FetchFailure::Internal(text)) => return Err(Failure::Internal(text)),
            Err(FetchFailure::Stopping) => return Err(Failure::Shutdown),
        };
        self.slept_through.remove(&id);
        self.sources.landed(fetch.holder.id());
        for loser in self.scheduler.finished(id, outcome, now, &mut self.rng) {
            self.give_up(loser, now, effects);
        }
        Ok(())
    }

    /// Ends a fetch that is not needed any more.
    pub(super) fn give_up(&mut self, id: FetchId, now: Instant, effects: &mut Vec<Effect>) {
        if let Some(fetch) = self.running.remove(&id) {
            self.without_memory.remove(&id);
            self.slept_through.remove(&id);
            self.sources.landed(fetch.holder.id());
            effects.push(Effect::Abort(id));
        }
        self.scheduler.finished(id, Outcome::Cancelled, now, &mut self.rng);
    }

    pub(super) fn news(&mut self, id: FetchId, news: News, now: Instant, effects: &mut Vec<Effect>) {
        let Some(fetch) = self.running.get(&id) else { return };
        match news {
            // Its holder is not slow, and cannot be: it was not asked yet.
            News::AwaitsRoom => {
                self.without_memory.insert(id);
                self.scheduler.held_back(id);
            }
            News::HasRoom => {
                if self.fetches().wait_for_memory() {
                    self.waiting.waits_for_itself(now);
                }
                self.without_memory.remove(&id);
                self.scheduler.asked(id, now);
            }
            News::Bound(chunk) => {
                let asked = self.scheduler.chunk(id);
                if self.scheduler.bound(id, chunk) == Bound::NotWanted {
                    self.give_up(id, now, effects);
                } else if asked != Some(chunk) {
                    let peer = fetch.holder.address().clone();
                    effects.push(Effect::Tell(DownloadEvent::Chunk { step: Step::Requested, chunk, peer }));
                }
            }
        }
    }

    fn stored_from(&mut self, fetch: &Fetch, stored: StoredChunk, now: Instant, effects: &mut Vec<Effect>) {
        let len = u64::from(self.job.manifest.layout().chunk_len(stored.chunk()));
        self.sources.stored(fetch.holder.id(), len);
        if self.stored.insert(stored.chunk()) {
            self.stored_bytes += len;
        }
        self.waiting.chunk_stored(now);
        self.shortage = None;
        let peer = fetch.holder.address().clone();
        let (is_scarce, is_far) = (self.scheduler.is_scarce(stored.chunk()), self.is_far(fetch));
        effects.push(Effect::Offer { stored, is_scarce, is_far });
        effects.push(Effect::Tell(DownloadEvent::Chunk { step: Step::Stored, chunk: stored.chunk(), peer }));
    }
}
