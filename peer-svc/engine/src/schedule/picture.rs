//! What is known of the senders and of what waits for them: for those that ask what limits a download.
//!
//! It costs a look at each holder and each fetch, and none at the chunks.

use std::time::Instant;

use drizzle_proto::PeerId;

use super::{Scheduler, holders::Held};

/// The holders of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Side {
    /// That have anything and are not avoided for an offence.
    pub able: usize,
    /// Of these, those whose upload slots were taken when they were asked last.
    pub refusing: usize,
    /// Of these, those that give nothing at all now: others have their slots.
    pub shut: usize,
    /// That carry fetches.
    pub sending: usize,
    /// Fetches that they carry.
    pub fetches: usize,
}

/// The state of the supply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Picture {
    /// Holders of the whole file.
    pub full: Side,
    /// Holders of a part of it: most of them download it, too.
    pub partial: Side,
    /// Chunks that are not asked for and that no holder of a part has.
    pub only_full: usize,
    /// Whether chunks are not asked for that a holder of a part has.
    pub also_partial: bool,
}

impl Scheduler {
    /// Whether this peer is known to hold the whole file now.
    pub fn is_full_holder(&self, peer: PeerId) -> bool {
        self.holders.find(peer).is_some_and(|key| matches!(self.holders.get(key).held, Held::All))
    }

    /// The state of the supply now.
    pub fn picture(&self, now: Instant) -> Picture {
        let (mut full, mut partial) = (Side::default(), Side::default());
        for holder in self.holders.iter() {
            let side = match &holder.held {
                Held::Nothing if holder.load == 0 => continue,
                Held::All => &mut full,
                Held::Nothing | Held::Part(_) => &mut partial,
            };
            side.sending += usize::from(holder.load > 0);
            side.fetches += holder.load;
            if holder.held.is_empty() || holder.conduct.is_avoided(now) {
                continue;
            }
            let refuses = holder.conduct.refuses(holder.most);
            side.able += 1;
            side.refusing += usize::from(refuses);
            side.shut += usize::from(refuses && holder.load == 0);
        }
        // Fetches that have to wait for memory carry nothing yet.
        for flight in self.flights.values().filter(|flight| flight.held_back) {
            let is_full = matches!(self.holders.get(flight.holder).held, Held::All);
            let side = if is_full { &mut full } else { &mut partial };
            side.fetches -= 1;
        }
        let only_full = self.order.waiting_at(0);
        Picture { full, partial, only_full, also_partial: self.order.rarest_from(1).is_some() }
    }
}
