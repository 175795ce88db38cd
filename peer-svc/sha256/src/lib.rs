//! SHA-256 of two messages at a time on one core: with the SHA instructions of x86-64 one message waits half of the
//! time for its own last result, and a second one fits into the gaps.
//!
//! What holds (each line has a test):
//! - the digests are those of `sha2`, byte for byte;
//! - only a message's bytes count, not their pieces, the message beside it or the processor.
//!
//! A single message, and any message on a processor without these instructions, is hashed by `sha2`. Nothing here
//! starts a thread, allocates or fails.
//!
//! This is the only crate of ours with unsafe code, and the code is one call: see `pair.rs`. It is a crate of its own
//! so that all others forbid it.

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the one call of code that only some processors can run")]
mod pair;

/// On other processors nothing is known to be gained: there is no `Pair`.
#[cfg(not(target_arch = "x86_64"))]
mod pair {
    #[derive(Debug, Clone, Copy)]
    pub(crate) enum Pair {}

    impl Pair {
        pub(crate) fn detect() -> Option<Self> {
            None
        }

        pub(crate) fn compress(self, _states: [&mut [u32; 8]; 2], _blocks: [&[[u8; 64]]; 2]) {
            match self {}
        }
    }
}

#[cfg(test)]
mod tests;

use pair::Pair;
use sha2::block_api::compress256;

/// Bytes of a block.
const BLOCK: usize = 64;

/// The state before the first block: the first 32 bits of the fractional parts of the square roots of the first eight
/// primes (FIPS 180-4, 5.3.3).
const START: [u32; 8] =
    [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];

/// SHA-256 of one message, whose bytes come in pieces of any size.
#[derive(Clone, Debug)]
pub struct Sha256 {
    state: [u32; 8],
    /// Begins with the bytes after the last whole block.
    partial: [u8; BLOCK],
    /// Of all bytes so far.
    length: u64,
}

impl Sha256 {
    /// The hash of a message that has no byte yet.
    pub fn new() -> Self {
        Self { state: START, partial: [0; BLOCK], length: 0 }
    }

    /// Continues the message.
    pub fn update(&mut self, bytes: &[u8]) {
        let (blocks, tail) = self.begin(bytes);
        compress256(&mut self.state, blocks);
        self.keep(tail);
    }

    /// The digest of the message.
    pub fn finish(mut self) -> [u8; 32] {
        // A one bit, zeros up to the end of a block, and in its last 8 bytes the message's length in bits.
        let held = self.held();
        self.partial[held] = 0x80;
        self.partial[held + 1..].fill(0);
        if held >= BLOCK - 8 {
            compress256(&mut self.state, &[self.partial]);
            self.partial.fill(0);
        }
        self.partial[BLOCK - 8..].copy_from_slice(&(self.length * 8).to_be_bytes());
        compress256(&mut self.state, &[self.partial]);

        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        digest
    }

    /// How many bytes of a block wait for the rest of it.
    #[expect(clippy::cast_possible_truncation, reason = "fewer than 64")]
    fn held(&self) -> usize {
        (self.length % BLOCK as u64) as usize
    }

    /// Counts the bytes and completes a block that was begun. What is left are whole blocks and a tail, which follow in
    /// this order; if there are any, no block is begun.
    fn begin<'a>(&mut self, mut bytes: &'a [u8]) -> (&'a [[u8; BLOCK]], &'a [u8]) {
        let held = self.held();
        self.length += bytes.len() as u64;
        if held > 0 {
            let missing;
            (missing, bytes) = bytes.split_at(bytes.len().min(BLOCK - held));
            self.partial[held..held + missing.len()].copy_from_slice(missing);
            if held + missing.len() == BLOCK {
                compress256(&mut self.state, &[self.partial]);
            }
        }
        bytes.as_chunks()
    }

    /// Begins a block with these bytes, if there are any.
    fn keep(&mut self, tail: &[u8]) {
        self.partial[..tail.len()].copy_from_slice(tail);
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

/// Continues two messages: as `a.update(a_bytes)` and `b.update(b_bytes)`, but nearly twice as fast where the processor
/// can ([`is_paired`]).
///
/// Whole blocks that both have are hashed together, and what one has more alone. Each call has its cost: pieces of
/// 4 KiB gain nearly all that there is to gain, pieces of 256 bytes half of it.
pub fn update_both(a: &mut Sha256, a_bytes: &[u8], b: &mut Sha256, b_bytes: &[u8]) {
    update_both_by(Pair::detect(), a, a_bytes, b, b_bytes);
}

/// As [`update_both`], on the way that is given.
fn update_both_by(pair: Option<Pair>, a: &mut Sha256, a_bytes: &[u8], b: &mut Sha256, b_bytes: &[u8]) {
    let Some(pair) = pair else {
        a.update(a_bytes);
        b.update(b_bytes);
        return;
    };
    let ((a_blocks, a_tail), (b_blocks, b_tail)) = (a.begin(a_bytes), b.begin(b_bytes));
    let both = a_blocks.len().min(b_blocks.len());
    let ((a_both, a_rest), (b_both, b_rest)) = (a_blocks.split_at(both), b_blocks.split_at(both));
    pair.compress([&mut a.state, &mut b.state], [a_both, b_both]);
    compress256(&mut a.state, a_rest);
    compress256(&mut b.state, b_rest);
    a.keep(a_tail);
    b.keep(b_tail);
}

/// The digests of two messages whose bytes are all there.
pub fn digest_both(a: &[u8], b: &[u8]) -> [[u8; 32]; 2] {
    let (mut a_hash, mut b_hash) = (Sha256::new(), Sha256::new());
    update_both(&mut a_hash, a, &mut b_hash, b);
    [a_hash.finish(), b_hash.finish()]
}

/// Whether this processor hashes two messages together faster than one after the other.
pub fn is_paired() -> bool {
    Pair::detect().is_some()
}
