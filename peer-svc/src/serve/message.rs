//! One message of a chunk as it goes over the wire, made where its bytes are read.
//!
//! tonic would encode each message into a buffer of its own: the bytes of every chunk would be copied once more, which
//! costs a third of a source's time. Here the few bytes around them (the header of gRPC and that of the one field of
//! `FetchChunkResponse`) are put in front of the place that the file is read to. The transport takes the buffer as it
//! is, and gives it back (drops it) once the socket has accepted it, or when the stream is reset: what hangs on a
//! message then knows when its bytes have left.

use std::{io, sync::Arc};

use bytes::Bytes;
use drizzle_proto::{limits::MESSAGE_SIZE, net::chunk_message::front};

/// Where in a page of memory the bytes of a chunk begin. Copying is slow on some processors (on Zen 3 a tenth of its speed) when the
/// destination is 1 to 32 bytes beyond the source, in terms of a page; files and socket buffers begin at pages.
const PLACE: usize = 64;
const PAGE: usize = 4096;

/// A buffer with what it keeps until it is dropped.
struct Kept<T> {
    buffer: Vec<u8>,
    from: usize,
    _kept: Arc<T>,
}

impl<T> AsRef<[u8]> for Kept<T> {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.from..]
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

/// Makes the message of `len` bytes that `read` appends to a buffer; it may name the chunk. `kept` lives as long as the
/// message.
///
/// # Panics
/// If there are no bytes, or more than a message may have.
pub(super) fn message<T: Send + Sync + 'static>(
    named: Option<u32>,
    len: usize,
    kept: &Arc<T>,
    read: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
) -> io::Result<Framed> {
    assert!((1..=MESSAGE_SIZE).contains(&len), "a message of {len} bytes");
    let front = front(named, len);
    let used = front.len();
    let mut buffer: Vec<u8> = Vec::with_capacity(len + PAGE + PLACE);
    let base = buffer.as_ptr().addr() % PAGE;
    let data_at = (PLACE + PAGE - base) % PAGE;
    let data_at = if data_at < used { data_at + PAGE } else { data_at };
    buffer.resize(data_at - used, 0);
    buffer.extend_from_slice(&front);
    read(&mut buffer)?;
    // The allocator may have given more room than was asked for, and a reader fills what there is.
    buffer.truncate(data_at + len);
    if buffer.len() < data_at + len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let bytes = Bytes::from_owner(Kept { buffer, from: data_at - used, _kept: kept.clone() });
    Ok(Framed { bytes, data: len as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(data: &[u8]) -> Bytes {
        let read = |buffer: &mut Vec<u8>| {
            buffer.extend_from_slice(data);
            buffer.extend_from_slice(b"more than was asked for");
            Ok(())
        };
        message(None, data.len(), &Arc::new(()), read).unwrap().bytes
    }

    #[test]
    fn the_data_begins_where_it_can_be_copied_fast() {
        for len in [1, 100, 5000, MESSAGE_SIZE] {
            let message = made(&vec![1; len]);
            let data = &message[message.len() - len..];
            assert_eq!(data.as_ptr().addr() % PAGE, PLACE, "{len} bytes");
        }
    }

    #[test]
    fn what_is_kept_is_let_go_of_with_the_last_part_of_the_message() {
        let kept = Arc::new(());
        let message = message(None, 3, &kept, |buffer| {
            buffer.extend_from_slice(b"abc");
            Ok(())
        });
        let mut message = message.unwrap().bytes;
        let sent = message.split_to(5);
        drop(sent);
        assert_eq!(Arc::strong_count(&kept), 2);
        drop(message);
        assert_eq!(Arc::strong_count(&kept), 1);
    }

    #[test]
    fn a_file_that_is_too_short_makes_no_message() {
        let short = message(None, 3, &Arc::new(()), |buffer| {
            buffer.push(1);
            Ok(())
        });
        assert_eq!(short.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
