//! The bounds of what one tracker takes on.

/// Most names. A name costs some 200 bytes on disk plus 32 for each chunk, and nothing in memory.
pub const MAX_NAMES: u64 = 10_000_000;

/// Most withdrawals that are remembered; the oldest are forgotten first.
pub const MAX_WITHDRAWN: u64 = 100_000;

/// Most live peers. A lease costs about 500 bytes plus 32 for each file that it holds.
pub const MAX_PEERS: usize = 100_000;
/// Most released files kept for a peer that has yet to be told; older ones are forgotten: the catalogue
/// refuses them should the peer announce them again.
pub const MAX_RELEASED: usize = 4096;

/// Most watches at once. An idle one costs a few KiB.
pub const MAX_WATCHERS: usize = 100_000;
