//! The blocks of two messages, taken in together.
//!
//! The instruction `sha256rnds2` makes two rounds of SHA-256. The next two wait some 4 cycles for its result, though
//! the processor could begin another every 2 cycles: one message uses half of it. So the rounds of two messages
//! alternate here, and the processor, which executes out of order, puts those of one where the other waits.
//!
//! What holds:
//! - a [`Pair`] exists only where the processor has the instructions, so [`Pair::compress`] is safe;
//! - bytes are read and written as slices and arrays: the one unsafe part is the call of code for such a processor.
//!
//! How fast it is depends on what the compiler makes of it. Look at the code again (`cargo rustc --release -p
//! drizzle-sha256 -- --emit asm`) after a change: the loop has 64 `sha256rnds2` and no loop inside, nothing but the
//! four registers of [`Before`] goes to the stack, and no 256-bit register is used, because these instructions are
//! slow on some processors while the upper half of one is in use.

use std::{
    arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi8, _mm_set_epi32, _mm_set_epi64x,
        _mm_setzero_si128, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8,
        _mm_shuffle_epi32,
    },
    hint::black_box,
};

/// The first 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
const ROUND_CONSTANTS: [[u32; 4]; 16] = [
    [0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5],
    [0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5],
    [0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3],
    [0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174],
    [0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc],
    [0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da],
    [0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7],
    [0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967],
    [0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13],
    [0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85],
    [0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3],
    [0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070],
    [0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5],
    [0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3],
    [0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208],
    [0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2],
];

/// Proof that this processor has the instructions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair(());

impl Pair {
    /// The proof, if there is one. Later calls cost next to nothing: the standard library remembers the answers.
    ///
    /// AVX is asked for its three-operand forms of older instructions: without them the loop has a fifth more
    /// instructions and takes 3 % longer.
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1")
            && is_x86_feature_detected!("avx");
        found.then_some(Self(()))
    }

    /// Takes into both states as many blocks as both messages have.
    pub(crate) fn compress(self, states: [&mut [u32; 8]; 2], blocks: [&[[u8; 64]]; 2]) {
        // SAFETY: the function needs the features that it names and nothing else, and `detect`, which alone makes a
        // `Pair`, found each of them.
        unsafe { compress(states, blocks) }
    }
}

/// One message, as the instructions want it.
struct Lane {
    /// The state's A, B, E and F, the first of them highest.
    abef: __m128i,
    /// C, D, G and H likewise.
    cdgh: __m128i,
    /// The last 16 words of the message schedule, four to a register, the first of them lowest.
    schedule: [__m128i; 4],
}

/// The states of both lanes before a block, which are added to those after it.
struct Before {
    abef: [__m128i; 2],
    cdgh: [__m128i; 2],
}

impl Lane {
    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1,avx")]
    fn new(state: &[u32; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = *state;
        Self { abef: register([f, e, b, a]), cdgh: register([h, g, d, c]), schedule: [_mm_setzero_si128(); 4] }
    }

    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1,avx")]
    fn state(&self) -> [u32; 8] {
        let ([f, e, b, a], [h, g, d, c]) = (words(self.abef), words(self.cdgh));
        [a, b, c, d, e, f, g, h]
    }

    /// Begins a block: its words, which have the highest byte first, begin the schedule.
    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1,avx")]
    fn load(&mut self, block: &[u8; 64]) {
        let highest_first = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
        let (halves, _) = block.as_chunks::<8>();
        for (four, register) in self.schedule.iter_mut().enumerate() {
            let [low, high] = [halves[2 * four], halves[2 * four + 1]].map(i64::from_le_bytes);
            *register = _mm_shuffle_epi8(_mm_set_epi64x(high, low), highest_first);
        }
    }

    /// Four rounds, with these words of the schedule.
    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1,avx")]
    fn rounds(&mut self, four: usize, constants: __m128i) {
        let words = _mm_add_epi32(self.schedule[four], constants);
        self.cdgh = _mm_sha256rnds2_epu32(self.cdgh, self.abef, words);
        self.abef = _mm_sha256rnds2_epu32(self.abef, self.cdgh, _mm_shuffle_epi32::<0b11_10>(words));
    }

    /// The next four words of the schedule, in place of these, which are its oldest.
    #[inline]
    #[target_feature(enable = "sha,ssse3,sse4.1,avx")]
    fn extend(&mut self, four: usize) {
        let [w0, w4, w8, w12] = [0, 1, 2, 3].map(|next| self.schedule[(four + next) % 4]);
        let w9 = _mm_alignr_epi8::<4>(w12, w8);
        self.schedule[four] = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(w0, w4), w9), w12);
    }
}

/// Four words, the first of them lowest.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1,avx")]
fn register(words: [u32; 4]) -> __m128i {
    let [w0, w1, w2, w3] = words.map(u32::cast_signed);
    _mm_set_epi32(w3, w2, w1, w0)
}

/// [`register`] undone.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1,avx")]
fn words(register: __m128i) -> [u32; 4] {
    [
        _mm_extract_epi32::<0>(register),
        _mm_extract_epi32::<1>(register),
        _mm_extract_epi32::<2>(register),
        _mm_extract_epi32::<3>(register),
    ]
    .map(i32::cast_unsigned)
}

/// Sixteen rounds of both lanes, the `nth` of four times.
///
/// The rounds come before the words for later ones: nothing waits for those yet, and of two instructions that are ready
/// the processor begins the older, which so is a round.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1,avx")]
fn sixteen_rounds(a: &mut Lane, b: &mut Lane, nth: usize) {
    for four in 0..4 {
        let constants = register(ROUND_CONSTANTS[4 * nth + four]);
        a.rounds(four, constants);
        b.rounds(four, constants);
        a.extend(four);
        b.extend(four);
    }
}

#[target_feature(enable = "sha,ssse3,sse4.1,avx")]
fn compress([a_state, b_state]: [&mut [u32; 8]; 2], [a_blocks, b_blocks]: [&[[u8; 64]]; 2]) {
    let (mut a, mut b) = (Lane::new(a_state), Lane::new(b_state));
    for (a_block, b_block) in a_blocks.iter().zip(b_blocks) {
        let mut before = Before { abef: [a.abef, b.abef], cdgh: [a.cdgh, b.cdgh] };
        // No registers are left for these. By itself the compiler writes the states to the stack and at once reads
        // them back for the first rounds, which wait for that: 1.69 times the speed of one lane instead of 1.87. If
        // something else may have changed what is on the stack, it keeps the states in their registers as well.
        black_box(&mut before);
        a.load(a_block);
        b.load(b_block);
        // Written out: the compiler does not unroll a loop here, and then the schedule is not in registers (1.29). The
        // words that the last sixteen rounds make are never used, so it leaves them out.
        sixteen_rounds(&mut a, &mut b, 0);
        sixteen_rounds(&mut a, &mut b, 1);
        sixteen_rounds(&mut a, &mut b, 2);
        sixteen_rounds(&mut a, &mut b, 3);
        a.abef = _mm_add_epi32(a.abef, before.abef[0]);
        a.cdgh = _mm_add_epi32(a.cdgh, before.cdgh[0]);
        b.abef = _mm_add_epi32(b.abef, before.abef[1]);
        b.cdgh = _mm_add_epi32(b.cdgh, before.cdgh[1]);
    }
    *a_state = a.state();
    *b_state = b.state();
}
