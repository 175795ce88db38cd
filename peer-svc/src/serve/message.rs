//! One message of a chunk as it goes over the wire, made where its bytes are read.
//!
//! tonic would encode each message into a buffer of its own: the bytes of every chunk would be copied once more, which
//! costs a third of a source's time. Here the few bytes around them (the header of gRPC and that of the one field of
//! `FetchChunkResponse`) are put in front of the place that the file is read to. The transport takes the buffer as it
//! is, and gives it back (drops it) once the socket has accepted it, or when the stream is reset: what hangs on a
//! message then knows when its bytes have left.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use drizzle_proto::{limits::MESSAGE_SIZE, net::chunk_message::front};

/// Where in a page of memory the bytes of a chunk begin. Copying is slow on some processors (on Zen 3 a tenth of its speed) when the
/// destination is 1 to 32 bytes beyond the source, in terms of a page; files and socket buffers begin at pages.
const PLACE: usize = 64;
const PAGE: usize = 4096;

/// Buffers that are kept for the next messages: as many as some streams have on their way. One that was just used is
/// still in the cache.
const KEPT: usize = 16;

/// Buffers for messages, used again and again.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Box<[u8]>>>>);

impl Buffers {
    /// Begins the message of `len` bytes of a chunk; it may name the chunk.
    ///
    /// # Panics
    /// If there are no bytes, or more than a message may have.
    pub(super) fn draft(&self, named: Option<u32>, len: usize) -> Draft {
        assert!((1..=MESSAGE_SIZE).contains(&len), "a message of {len} bytes");
        let kept = self.lock().pop();
        let mut buffer = kept.unwrap_or_else(|| vec![0; PAGE + PLACE + MESSAGE_SIZE].into_boxed_slice());
        let front = front(named, len);
        // What stands in front fits before the place, and the place is below the second page.
        let place = (PLACE + PAGE - buffer.as_ptr().addr() % PAGE) % PAGE;
        let data_at = if place < front.len() { place + PAGE } else { place };
        let from = data_at - front.len();
        buffer[from..data_at].copy_from_slice(&front);
        Draft { buffer: Owned { buffer, home: self.clone() }, from, data_at, filled: data_at, end: data_at + len }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Box<[u8]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that goes back when dropped.
#[derive(Debug)]
struct Owned {
    buffer: Box<[u8]>,
    home: Buffers,
}

impl Drop for Owned {
    fn drop(&mut self) {
        let mut kept = self.home.lock();
        if kept.len() < KEPT {
            kept.push(std::mem::take(&mut self.buffer));
        }
    }
}

/// A message whose bytes are being read.
#[derive(Debug)]
pub(super) struct Draft {
    buffer: Owned,
    from: usize,
    data_at: usize,
    filled: usize,
    end: usize,
}

impl Draft {
    /// Where bytes are missing; none are when it is empty.
    pub(super) fn missing(&mut self) -> &mut [u8] {
        &mut self.buffer.buffer[self.filled..self.end]
    }

    /// The first of them are there now.
    pub(super) fn filled(&mut self, bytes: usize) {
        self.filled = self.end.min(self.filled.saturating_add(bytes));
    }

    /// Bytes of the chunk that it has so far.
    pub(super) fn has(&self) -> usize {
        self.filled - self.data_at
    }

    /// The message, all of whose bytes are there. `kept` lives as long as it.
    pub(super) fn seal<T: Send + Sync + 'static>(self, kept: &Arc<T>) -> Framed {
        let data = self.end - self.data_at;
        let kept = Kept { buffer: self.buffer, from: self.from, end: self.end, _kept: kept.clone() };
        Framed { bytes: Bytes::from_owner(kept), data: data as u64 }
    }
}

/// A buffer with what it keeps until it is dropped.
struct Kept<T> {
    buffer: Owned,
    from: usize,
    end: usize,
    _kept: Arc<T>,
}

impl<T> AsRef<[u8]> for Kept<T> {
    fn as_ref(&self) -> &[u8] {
        &self.buffer.buffer[self.from..self.end]
    }
}

/// A message, ready for the socket.
#[derive(Debug)]
pub(crate) struct Framed {
    /// With its headers.
    pub(crate) bytes: Bytes,
    /// Bytes of the chunk in it.
    pub(crate) data: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(buffers: &Buffers, named: Option<u32>, data: &[u8], kept: &Arc<()>) -> Bytes {
        let mut draft = buffers.draft(named, data.len());
        for part in data.chunks(1 << 16) {
            draft.missing()[..part.len()].copy_from_slice(part);
            draft.filled(part.len());
        }
        assert!(draft.missing().is_empty() && draft.has() == data.len());
        draft.seal(kept).bytes
    }

    #[test]
    fn a_message_is_its_front_and_its_data_where_that_can_be_copied_fast() {
        let buffers = Buffers::default();
        // Each buffer is used again, longer and shorter.
        for len in [1, 100, 5000, MESSAGE_SIZE, 3] {
            for named in [None, Some(7), Some(u32::MAX)] {
                let data: Vec<u8> = (0..len).map(|at| at.to_le_bytes()[0]).collect();
                let message = made(&buffers, named, &data, &Arc::new(()));
                assert!(message == [front(named, len), data].concat(), "{len} bytes");
                let data = &message[message.len() - len..];
                assert_eq!(data.as_ptr().addr() % PAGE, PLACE, "{len} bytes");
            }
        }
    }

    #[test]
    fn a_message_may_be_filled_at_once() {
        let mut draft = Buffers::default().draft(None, 3);
        draft.missing().copy_from_slice(b"abc");
        draft.filled(usize::MAX);
        assert!(draft.missing().is_empty());
        assert!(draft.seal(&Arc::new(())).bytes.ends_with(b"abc"));
    }

    #[test]
    fn what_is_kept_is_let_go_of_with_the_last_part_of_the_message_and_its_buffer_is_used_again() {
        let (buffers, kept) = (Buffers::default(), Arc::new(()));
        let mut message = made(&buffers, None, b"abc", &kept);
        let sent = message.split_to(5);
        drop(sent);
        assert_eq!((Arc::strong_count(&kept), buffers.lock().len()), (2, 0));
        drop(message);
        assert_eq!((Arc::strong_count(&kept), buffers.lock().len()), (1, 1));
        let many: Vec<Bytes> = (0..2 * KEPT).map(|_| made(&buffers, None, b"abc", &kept)).collect();
        assert_eq!(buffers.lock().len(), 0);
        drop(many);
        assert_eq!(buffers.lock().len(), KEPT);
    }
}
