//! What each holder gave to a download, as its callers are told.

use std::collections::BTreeMap;

use drizzle_proto::{Address, PeerId, PeerInfo};

use super::events::Contribution;

/// What one holder has given.
#[derive(Debug)]
struct Account {
    address: Address,
    is_far: bool,
    verified: u64,
    received: u64,
    chunks: u32,
    in_flight: u32,
}

impl Account {
    fn came(&self) -> u64 {
        self.received.max(self.verified)
    }
}

/// Every holder that was asked.
#[derive(Debug, Default)]
pub(super) struct Sources(BTreeMap<PeerId, Account>);

impl Sources {
    /// A holder is asked for a chunk.
    pub(super) fn asked(&mut self, holder: &PeerInfo, is_far: bool) {
        let address = holder.address().clone();
        let new = Account { address: address.clone(), is_far, verified: 0, received: 0, chunks: 0, in_flight: 0 };
        let account = self.0.entry(holder.id()).or_insert(new);
        account.in_flight += 1;
        (account.address, account.is_far) = (address, is_far);
    }

    /// A fetch from a holder is no longer on its way.
    pub(super) fn landed(&mut self, holder: PeerId) {
        if let Some(account) = self.0.get_mut(&holder) {
            account.in_flight -= 1;
        }
    }

    /// A chunk of so many bytes came from a holder, and is stored.
    pub(super) fn stored(&mut self, holder: PeerId, len: u64) {
        if let Some(account) = self.0.get_mut(&holder) {
            account.verified += len;
            account.chunks += 1;
        }
    }

    /// So many bytes came from each holder so far: what is thrown away or comes twice counts here, too.
    pub(super) fn received(&mut self, received: &BTreeMap<PeerId, u64>) {
        for (holder, account) in &mut self.0 {
            account.received = received.get(holder).copied().unwrap_or(0).max(account.received);
        }
    }

    /// Holders that were asked, and their verified bytes.
    pub(super) fn verified(&self) -> impl Iterator<Item = (PeerId, u64)> {
        self.0.iter().map(|(holder, account)| (*holder, account.verified))
    }

    /// Where a holder that was asked is reached.
    pub(super) fn address(&self, holder: PeerId) -> Option<&Address> {
        self.0.get(&holder).map(|account| &account.address)
    }

    /// Bytes that came from a holder so far.
    pub(super) fn came_from(&self, holder: PeerId) -> u64 {
        self.0.get(&holder).map_or(0, Account::came)
    }

    /// Every holder that was asked, and what came from it. What is verified came, whenever it was counted last.
    pub(super) fn asked_so_far(&self) -> Vec<Contribution> {
        let told = self.0.values().map(|account| Contribution {
            peer: account.address.clone(),
            is_far: account.is_far,
            bytes: account.came(),
            chunks: account.chunks,
            in_flight: account.in_flight,
        });
        told.collect()
    }

    /// Holders that gave chunks, and their verified bytes.
    pub(super) fn contributions(&self) -> Vec<Contribution> {
        let gave = self.0.values().filter(|account| account.chunks > 0);
        gave.map(|account| Contribution {
            peer: account.address.clone(),
            is_far: account.is_far,
            bytes: account.verified,
            chunks: account.chunks,
            in_flight: 0,
        })
        .collect()
    }
}
