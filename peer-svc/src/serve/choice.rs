//! Which chunk is sent where the requester leaves the choice, and whether it was sent.
//!
//! Decided by [`drizzle_engine::binding`]; here a stream that breaks off is taken back from what it counts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drizzle_engine::binding::Sent;
use drizzle_proto::{ChunkCount, ChunkIndex, FileId};

use super::{ChunkRequest, ServeError};
use crate::holdings::ReadError;

/// What was sent of each file.
#[derive(Debug, Clone, Default)]
pub(super) struct Choices(Arc<Mutex<Sent>>);

/// A chunk that was chosen. Dropped before it is [kept](Choice::keep), it does not count as sent.
#[derive(Debug)]
pub(super) struct Choice {
    choices: Choices,
    file: FileId,
    chunk: ChunkIndex,
    is_kept: bool,
}

impl Choices {
    /// Chooses among the chunks of a request for a file that is here as a whole.
    pub(super) fn choose(&self, request: &ChunkRequest, count: ChunkCount) -> Result<Choice, ServeError> {
        let index = |chunk| count.index(chunk).ok_or(ReadError::NoSuchChunk { chunk, count: count.get() });
        let asked = index(request.chunk)?;
        // The rest of a chunk is no other chunk.
        let others = if request.offset == 0 { &request.alternatives[..] } else { &[] };
        let others = others.iter().map(|chunk| index(*chunk)).collect::<Result<Vec<_>, _>>()?;
        let chunk = self.lock().choose(request.file, count, asked, &others, &mut rand::rng());
        Ok(Choice { choices: self.clone(), file: request.file, chunk, is_kept: false })
    }

    fn lock(&self) -> MutexGuard<'_, Sent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Choice {
    pub(super) fn chunk(&self) -> u32 {
        self.chunk.get()
    }

    /// The transport has all of it.
    pub(super) fn keep(&mut self) {
        self.is_kept = true;
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        if !self.is_kept {
            self.choices.lock().broke_off(self.file, self.chunk);
        }
    }
}
