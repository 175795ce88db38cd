//! How many fetches may run, whole and at each holder.

use drizzle_proto::PeerId;

use super::Scheduler;

impl Scheduler {
    /// So many fetches may run from now on, within the limits; second copies do not count, and over a slow link they come
    /// late. Those that run go on.
    pub fn allow(&mut self, fetches: usize, is_link_slow: bool) {
        self.is_link_slow = is_link_slow;
        self.room = fetches.clamp(1, self.most());
    }

    /// So many fetches more than the limits say may run from now on, for holders are far: see [`crate::reach`].
    pub fn reach(&mut self, beyond: usize) {
        self.beyond = beyond;
        self.room = self.room.min(self.most());
    }

    /// And so many more at this holder.
    pub fn reach_at(&mut self, holder: PeerId, beyond: usize) {
        let most = self.limits.per_holder + beyond;
        if let Some(key) = self.holders.find(holder)
            && self.holders.get(key).most != most
        {
            self.holders.update(key, |holder| {
                holder.conduct.reach(holder.most, most);
                holder.most = most;
            });
        }
    }

    /// Fetches that may run at once.
    pub(super) fn most(&self) -> usize {
        self.limits.in_flight + self.beyond
    }
}
