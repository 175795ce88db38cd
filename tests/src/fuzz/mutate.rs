//! Changed copies of an input: the same ones at each run, so that a failing test fails again.

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

/// Numbers at which something ends.
const EDGES: [u64; 10] = [0, 1, 0x7f, 0x80, 0xff, 0xffff, 1 << 18, u32::MAX as u64, i64::MAX as u64, u64::MAX];

/// Makes copies.
#[derive(Debug)]
pub struct Mutations(StdRng);

impl Mutations {
    /// The same copies for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// A copy with one to four changes, no longer than `longest`; `other` is where some bytes come from.
    pub fn copy(&mut self, input: &[u8], other: &[u8], longest: usize) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..self.0.random_range(1..=4) {
            self.change(&mut bytes, other);
        }
        bytes.truncate(longest.max(input.len()));
        bytes
    }

    fn at(&mut self, len: usize) -> usize {
        if len == 0 { 0 } else { self.0.random_range(0..len) }
    }

    fn change(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.at(bytes.len() + 1);
        let here = at.min(bytes.len().saturating_sub(1));
        match self.0.random_range(0..8) {
            0 if !bytes.is_empty() => bytes[here] ^= 1 << self.0.random_range(0..8),
            1 if !bytes.is_empty() => bytes[here] = self.0.next_u32().to_le_bytes()[0],
            2 => bytes.truncate(at),
            3 => {
                let end = (at + self.0.random_range(1..=16)).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
            4 => {
                let end = (at + self.0.random_range(1..=64)).min(bytes.len());
                let again = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, again);
            }
            5 => {
                let edge = EDGES[self.at(EDGES.len())].to_be_bytes();
                let len = [1, 2, 4, 8][self.at(4)];
                for (old, new) in bytes.iter_mut().skip(at).zip(&edge[8 - len..]) {
                    *old = *new;
                }
            }
            6 => {
                let from = self.at(other.len() + 1);
                let end = (from + self.0.random_range(1..=64)).min(other.len());
                bytes.splice(at..at, other[from..end].iter().copied());
            }
            _ => {
                let mut edge = EDGES[self.at(EDGES.len())];
                let mut varint = Vec::new();
                while edge >= 0x80 {
                    varint.push(edge.to_le_bytes()[0] | 0x80);
                    edge >>= 7;
                }
                varint.push(edge.to_le_bytes()[0]);
                bytes.splice(at..at, varint);
            }
        }
    }
}
