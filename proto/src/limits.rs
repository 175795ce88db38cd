//! The bounds of the protocol: what one message may carry.

/// Bytes of chunk data in one message, which travels in one HTTP/2 DATA frame: with smaller frames (the
/// default is 16 KiB) the sender makes eight times as many system calls; larger ones gain nothing.
pub const MESSAGE_SIZE: usize = 256 << 10;

/// Most alternatives of one `FetchChunk` request.
pub const MAX_ALTERNATIVES: usize = 1024;

/// Most chunk hashes in one message: 66 bytes each keeps it near half a MiB.
pub const MAX_HASHES: usize = 8192;
/// Most entries of one `RegisterChunk` call.
pub const MAX_BATCH: usize = 4096;

/// Most holders of one file, on all pages together: a tracker takes no more peers.
pub const MOST_HOLDERS: usize = 100_000;

/// Most chunks of all holders of one message of a tracker together, for the same reason: 16 MiB in memory.
pub const MAX_TOLD_CHUNKS: u64 = 1 << 27;

/// Most chunks of all entries of one `RegisterChunk` call together: a set takes a bit per chunk in memory
/// however few bytes it had on the wire.
pub const MAX_BATCH_CHUNKS: u64 = 1 << 25;
