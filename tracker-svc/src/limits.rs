//! The bounds of what one tracker takes on.

/// Most names. A name costs some 200 bytes on disk plus 32 for each chunk, and nothing in memory.
pub const MAX_NAMES: u64 = 10_000_000;

/// Most withdrawals that are remembered; the oldest are forgotten first.
pub const MAX_WITHDRAWN: u64 = 100_000;

/// Most live peers. A lease costs about 500 bytes plus 32 for each file that it holds.
pub const MAX_PEERS: usize = 100_000;
/// Announcements in a second that the peers together are asked to keep to: a quarter of what a core carries.
pub const ANNOUNCEMENTS: u64 = 2000;

/// Most processes that are remembered for one peer id, and of those that claim it: more than two are rare.
pub const MAX_SESSIONS: usize = 8;
/// Most released files kept for a peer that has yet to be told; older ones are forgotten: the catalogue
/// refuses them should the peer announce them again.
pub const MAX_RELEASED: usize = 4096;

/// Most watches at once. An idle one costs a few KiB.
pub const MAX_WATCHERS: usize = 100_000;

/// What a receiver refuses; requests are far smaller when they keep to the bounds of their fields.
pub const MAX_REQUEST: usize = 4 << 20;

/// `page_size` 0 means this.
pub const DEFAULT_PAGE: u32 = 500;

/// A larger `page_size` means this.
pub const MAX_PAGE: u32 = 1000;

/// Bytes of explanations in one answer; beyond it they are left out, the status stays.
pub const DETAILS_BUDGET: usize = 512 << 10;

/// Large answers that are made at once: each takes a few MiB until it is encoded.
pub const MAX_ANSWERING: usize = 64;

/// Bytes of holders in one answer, about; the hashes beside them are half a MiB at most.
pub const HOLDERS_BUDGET: usize = 384 << 10;

/// Bytes of names in one answer, about.
pub const NAMES_BUDGET: usize = 768 << 10;

/// Calls that write to the catalogue under way at once. It has one writer, each call may hold a few MiB, and
/// threads must be left for reading.
pub const MAX_WRITING: usize = 32;

/// Names that are looked at in one step when the tracker looks for those that no peer attends to.
pub const SWEEP_PAGE: usize = 1000;

/// Bytes of hashes that one lease may have staged: two of the largest manifests.
pub const MAX_STAGED_BY_LEASE: usize = 16 << 20;

/// Bytes of hashes that all leases together may have staged.
pub const MAX_STAGED: usize = 128 << 20;

/// Changes kept for watchers. At [`MAX_LOGGED_RANGES`] an entry is some 3 KiB, mostly it is 60 bytes.
pub const LOG_LIMIT: usize = 4096;

/// More ranges than this are not logged one by one: the holder's whole set is told instead.
pub const MAX_LOGGED_RANGES: usize = 256;

/// Bytes of a message, about: far below the limits of any receiver.
pub const MESSAGE_BUDGET: usize = 256 << 10;

/// Bytes of chunk hashes that are kept in memory because they were asked for.
pub const CACHED_HASHES: u64 = 64 << 20;
