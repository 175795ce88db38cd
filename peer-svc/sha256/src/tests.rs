//! Compared with `sha2`: on every way that this processor has, whatever the lengths and wherever the cuts.

use proptest::prelude::*;
use sha2::Digest as _;

use super::*;

/// One after the other, and together if this processor can.
fn ways() -> impl Iterator<Item = Option<Pair>> {
    [None].into_iter().chain(Pair::detect().map(Some))
}

/// So many bytes that do not repeat.
fn content(seed: u8, length: usize) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

fn expected(bytes: &[u8]) -> [u8; 32] {
    sha2::Sha256::digest(bytes).into()
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(bytes);
    hash.finish()
}

fn hex(digest: [u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn known_messages_have_their_known_digests() {
    let million = vec![b'a'; 1_000_000];
    let known: [(&[u8], &str); 4] = [
        (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        ),
        (&million, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
    ];
    assert_eq!(hex(Sha256::default().finish()), known[0].1);
    for (message, text) in known {
        assert_eq!(hex(digest(message)), text);
        for (other, other_text) in known {
            assert_eq!(digest_both(message, other).map(hex), [text, other_text]);
        }
    }
}

/// The padding needs a block of its own from 56 bytes after the last whole block on.
#[test]
fn every_length_around_the_ends_of_blocks() {
    const MOST: usize = 260;
    let (a, b) = (content(1, MOST), content(2, MOST));
    for length in 0..=MOST {
        let (a, b) = (&a[..length], &b[..MOST - length]);
        assert_eq!(digest(a), expected(a), "{length} bytes");
        assert_eq!(digest_both(a, b), [expected(a), expected(b)], "{length} bytes beside the rest of {MOST}");
    }
}

/// What happens to two hashes, in bytes.
#[derive(Debug, Clone)]
enum Step {
    First(usize),
    Second(usize),
    Both(usize, usize),
    /// The hashes are copied; the copies are compared, and left.
    Look,
    /// The lanes change places.
    Swap,
}

fn length() -> impl Strategy<Value = usize> {
    // Often small, often whole blocks: a mistake would show at the end of a block, and with a hash that holds nothing
    // or nearly all of one.
    prop_oneof![0..130usize, 0..5000usize, (0..40usize).prop_map(|blocks| blocks * BLOCK)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => length().prop_map(Step::First),
        2 => length().prop_map(Step::Second),
        6 => (length(), length()).prop_map(|(a, b)| Step::Both(a, b)),
        1 => Just(Step::Look),
        1 => Just(Step::Swap),
    ]
}

/// A message that grows, and its hash.
struct Message {
    all: Vec<u8>,
    sent: usize,
    hash: Sha256,
}

impl Message {
    fn new(all: Vec<u8>) -> Self {
        Self { all, sent: 0, hash: Sha256::new() }
    }

    fn next(&mut self, length: usize) -> (&mut Sha256, &[u8]) {
        let bytes = &self.all[self.sent..self.sent + length];
        self.sent += length;
        (&mut self.hash, bytes)
    }

    fn is_right(&self) -> bool {
        self.hash.clone().finish() == expected(&self.all[..self.sent])
    }
}

proptest! {
    #[test]
    fn two_whole_messages_have_the_digests_that_each_has_alone(
        seed: u8, a in length(), b in length(), a_offset in 0..64usize, b_offset in 0..64usize,
    ) {
        // Any address in memory, too.
        let (a, b) = (content(seed, a_offset + a), content(!seed, b_offset + b));
        let (a, b) = (&a[a_offset..], &b[b_offset..]);
        prop_assert_eq!(digest_both(a, b), [expected(a), expected(b)]);
    }

    #[test]
    fn bytes_count_and_not_how_they_came(seed: u8, steps in proptest::collection::vec(step(), 0..24)) {
        // As much as either could need, swapped or not.
        let lengths = steps.iter().map(|step| match *step {
            Step::First(length) | Step::Second(length) => length,
            Step::Both(a, b) => a.max(b),
            Step::Look | Step::Swap => 0,
        });
        let longest = lengths.sum();
        let contents = [content(seed, longest), content(!seed, longest)];
        for way in ways() {
            let [mut a, mut b] = contents.clone().map(Message::new);
            for step in &steps {
                match *step {
                    Step::First(length) => {
                        let (hash, bytes) = a.next(length);
                        hash.update(bytes);
                    }
                    Step::Second(length) => {
                        let (hash, bytes) = b.next(length);
                        hash.update(bytes);
                    }
                    Step::Both(a_length, b_length) => {
                        let ((a, a_bytes), (b, b_bytes)) = (a.next(a_length), b.next(b_length));
                        update_both_by(way, a, a_bytes, b, b_bytes);
                    }
                    Step::Look => prop_assert!(a.is_right() && b.is_right(), "{way:?}"),
                    Step::Swap => std::mem::swap(&mut a, &mut b),
                }
            }
            prop_assert!(a.is_right() && b.is_right(), "{way:?}");
        }
    }
}
