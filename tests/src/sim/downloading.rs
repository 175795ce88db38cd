//! The fetching end: one download, driven as the daemon's `download` and `fetch` drive it.

use drizzle_engine::{
    holder_view::Located,
    schedule::{Bound, Fetch, Offence, Outcome, Scheduler},
};
use drizzle_proto::{ChunkSet, Digest, holder::HolderChange};

use super::{
    clock::{Nanos, SECOND},
    event::{Event, Refusal, nth},
    options::millis,
    peer::{Download, File, Part, Transfer, TransferId, seed_for},
    serving::joined,
    world::World,
};

/// The hash of what a peer sends as a chunk: the right one, or a liar's.
fn digest(file: &File, chunk: drizzle_proto::ChunkIndex, wrong: bool) -> Digest {
    let right = file.manifest.hash(chunk);
    if wrong { Digest::from_bytes(right.as_bytes().map(|byte| !byte)) } else { right }
}

fn tell(scheduler: &mut Scheduler, told: Vec<HolderChange>) {
    for change in told {
        match change {
            HolderChange::Is(holder) => scheduler.holder_is(holder.peer, holder.chunks),
            HolderChange::Added(holder, chunks) => scheduler.holder_added(holder, &chunks),
            HolderChange::Gone(holder) | HolderChange::Parted(holder) => scheduler.holder_gone(holder),
        }
    }
}

impl World {
    /// The user of a peer asks for every file.
    pub(super) fn begin_downloads(&mut self, index: u32) {
        let now = self.clock.instant();
        if !self.peers[index as usize].alive {
            return;
        }
        for (nth, file) in self.files.iter().enumerate() {
            let seed = seed_for(self.options.seed, index, 16 + nth as u64);
            let peer = &mut self.peers[index as usize];
            let mut download = Box::new(Download::new(file, &peer.info, seed, now));
            download.streams.limit(self.options.down_limit.unwrap_or_default());
            peer.shares[nth].download = Some(download);
        }
        // It asks what the name stands for and then for its holders, one after the other.
        let there = self.clock.now() + 3 * millis(self.options.latency) + self.repeated();
        self.tally.to_tracker.add(2, 64);
        self.clock.plan(there, Event::Watch(index));
    }

    pub(super) fn download(&mut self, peer: u32, file: usize) -> Option<&mut Download> {
        self.peers[peer as usize].shares[file].download.as_deref_mut()
    }

    /// Something is known of the holders.
    pub(super) fn located(&mut self, peer: u32, file: usize, located: Located) {
        let Some(download) = self.download(peer, file) else { return };
        let change = match located {
            Located::Change(change) => change,
            Located::Synced => return download.located = true,
            Located::Withdrawn(_) => return,
        };
        let told = download.locality.apply(change);
        tell(&mut download.scheduler, told);
    }

    /// Asks for as much as the scheduler lets run.
    pub(super) fn pump(&mut self, peer: u32, file: usize) {
        let now = self.clock.instant();
        loop {
            let Some(download) = self.download(peer, file).filter(|download| download.located) else { return };
            if download.ended.is_some() {
                return;
            }
            download.scheduler.allow(download.streams.room(), download.streams.is_slow());
            match download.scheduler.next(now, &mut download.rng) {
                Some(fetch) => self.fetch(peer, file, fetch),
                None => break,
            }
        }
        let Some(download) = self.peers[peer as usize].shares[file].download.as_mut() else { return };
        if let Some(at) = download.scheduler.wake_at(now) {
            // At the latest with the next tick.
            let at = self.clock.moment(at);
            if download.wake.is_none_or(|planned| at < planned) {
                download.wake = Some(at);
                self.clock.plan(at, Event::Wake { peer, file: nth(file) });
            }
        }
    }

    fn fetch(&mut self, peer: u32, file: usize, fetch: Fetch) {
        self.tally.fetches += 1;
        let from = super::peer::index_of(fetch.holder.id());
        let (id, chunk) = (fetch.id, fetch.chunk);
        self.log.line(self.clock.now(), || format!("p{peer} asks p{from} for {file}:{chunk}"));
        let part = self.part(peer, file, chunk);
        let receiving = self.links.flows_on(self.peers[peer as usize].down).len();
        let transfer = Transfer {
            file,
            from,
            to: peer,
            fetch: id,
            chunk,
            alternatives: fetch.alternatives,
            receiving: u32::try_from(receiving).unwrap_or(u32::MAX),
            is_counted: false,
            part,
            grant: None,
            flow: None,
            cancelled: false,
        };
        let transfer = self.transfers.insert(transfer);
        if let Some(download) = self.download(peer, file) {
            download.running.push((id, transfer));
        }
        let at = self.clock.now() + self.delay(peer);
        self.clock.plan(at, Event::Request(transfer));
    }

    /// The most that is here of a chunk: what was kept, or what another copy has.
    fn part(&mut self, peer: u32, file: usize, chunk: drizzle_proto::ChunkIndex) -> Option<Part> {
        let download = self.peers[peer as usize].shares[file].download.as_deref()?;
        if download.whole_only.contains(&chunk) {
            return None;
        }
        let kept = download.parts.get(&chunk).copied();
        let same = |id: &TransferId| self.transfers.get(*id).is_some_and(|transfer| transfer.chunk == chunk);
        let copies: Vec<TransferId> = download.running.iter().map(|(_, id)| *id).filter(same).collect();
        let copies = copies.into_iter().filter_map(|id| self.so_far(id));
        copies.chain(kept).max_by_key(|part| part.got).filter(|part| part.got > 0)
    }

    /// A holder that could choose names the chunk that it sends.
    pub(super) fn bound(&mut self, id: TransferId) {
        let Some(transfer) = self.transfers.get(id).filter(|transfer| !transfer.cancelled) else { return };
        let (peer, file, fetch, chunk) = (transfer.to, transfer.file, transfer.fetch, transfer.chunk);
        let now = self.clock.instant();
        let Some(download) = self.download(peer, file) else { return };
        if download.scheduler.bound(fetch, chunk) == Bound::NotWanted {
            download.ran(fetch);
            download.scheduler.finished(fetch, Outcome::Cancelled, now, &mut download.rng);
            self.cancel(id);
        }
        self.pump(peer, file);
    }

    /// The answer to a request is no.
    pub(super) fn refused(&mut self, id: TransferId, refusal: Refusal) {
        if self.transfers.get(id).is_none_or(|transfer| transfer.cancelled) {
            return;
        }
        let Some(transfer) = self.transfers.remove(id) else { return };
        self.tally.failed += u64::from(refusal != Refusal::Busy);
        self.keep(&transfer, transfer.part);
        self.finish(&transfer, refusal.outcome());
    }

    /// Keeps what came of a chunk that did not become whole.
    fn keep(&mut self, transfer: &Transfer, part: Option<Part>) {
        let (Some(part), Some(download)) = (part, self.download(transfer.to, transfer.file)) else { return };
        let longest = download.parts.get(&transfer.chunk).map_or(0, |kept| kept.got);
        if part.got > longest && !download.whole_only.contains(&transfer.chunk) {
            download.parts.insert(transfer.chunk, part);
        }
    }

    /// The last byte of a chunk is here.
    pub(super) fn arrived(&mut self, id: TransferId) {
        let Some(transfer) = self.transfers.get(id).filter(|transfer| !transfer.cancelled) else { return };
        let (to, lies) = (transfer.to, self.peers[transfer.from as usize].plan.lies);
        let file = &self.files[transfer.file];
        let len = file.manifest.layout().chunk_len(transfer.chunk);
        let part = joined(transfer, lies, len);
        if digest(file, transfer.chunk, part.wrong) != file.manifest.hash(transfer.chunk) {
            return self.spoiled(id, part);
        }
        self.tally.believed += u64::from(part.wrong);
        let at = self.peers[to as usize].disk.done_at(len, self.clock.now());
        if at > self.clock.now() {
            self.clock.plan(at, Event::Written(id));
        } else {
            self.written(id);
        }
    }

    /// It is not what the manifest says.
    fn spoiled(&mut self, id: TransferId, part: Part) {
        let Some(transfer) = self.transfers.remove(id) else { return };
        self.tally.caught += 1;
        let (chunk, from, to) = (transfer.chunk, transfer.from, transfer.to);
        self.log.line(self.clock.now(), || format!("p{to} got a wrong {}:{chunk} from p{from}", transfer.file));
        if let Some(download) = self.download(to, transfer.file) {
            download.parts.remove(&chunk);
            if part.mixed {
                download.whole_only.push(chunk);
            }
        }
        let outcome = if part.mixed { Outcome::Cancelled } else { Outcome::Failed(Offence::WrongBytes) };
        self.finish(&transfer, outcome);
    }

    /// A chunk is verified and on disk.
    pub(super) fn written(&mut self, id: TransferId) {
        if self.transfers.get(id).is_none_or(|transfer| transfer.cancelled) {
            return;
        }
        let Some(transfer) = self.transfers.remove(id) else { return };
        let (peer, file, chunk) = (transfer.to, transfer.file, transfer.chunk);
        self.log.line(self.clock.now(), || format!("p{peer} stored {file}:{chunk} from p{}", transfer.from));
        self.stored_at = self.clock.now();
        let share = &mut self.peers[peer as usize].shares[file];
        share.held.insert(chunk);
        share.unsaid.insert(chunk);
        if let Some(download) = &mut share.download {
            download.parts.remove(&chunk);
            share.is_scarce |= download.scheduler.is_scarce(chunk);
        }
        self.offer(peer, file, chunk);
        self.finish(&transfer, Outcome::Stored);
    }

    /// A transfer has ended at its requester.
    fn finish(&mut self, transfer: &Transfer, outcome: Outcome) {
        let (peer, file, now) = (transfer.to, transfer.file, self.clock.instant());
        let len = self.files[file].manifest.layout().chunk_len(transfer.chunk);
        let had = transfer.part.map_or(0, |part| part.got);
        let Some(download) = self.download(peer, file) else { return };
        download.ran(transfer.fetch);
        if outcome == Outcome::Stored {
            download.received += f64::from(len - had.min(len));
        }
        let losers = download.scheduler.finished(transfer.fetch, outcome, now, &mut download.rng);
        for loser in losers {
            let Some(download) = self.download(peer, file) else { return };
            let running = download.ran(loser);
            download.scheduler.finished(loser, Outcome::Cancelled, now, &mut download.rng);
            if let Some(id) = running {
                self.cancel(id);
            }
        }
        let end = self.clock.now();
        let Some(download) = self.download(peer, file) else { return };
        if download.scheduler.is_complete() && download.ended.is_none() {
            download.ended = Some(end);
            self.active -= 1;
            self.tracker.unwatch(peer, file);
            self.listen_no_more(peer, file);
            self.log.line(end, || format!("p{peer} has file {file}"));
        }
        self.pump(peer, file);
    }

    /// The requester wants it no longer; the holder hears that later.
    fn cancel(&mut self, id: TransferId) {
        let Some(transfer) = self.transfers.get_mut(id) else { return };
        transfer.cancelled = true;
        let peer = transfer.to;
        self.tally.cancelled += 1;
        let at = self.clock.now() + self.delay(peer);
        self.clock.plan(at, Event::Cancelled(id));
    }

    /// What the scheduler waited for may be over.
    pub(super) fn wake(&mut self, peer: u32, file: usize) {
        let now: Nanos = self.clock.now();
        let Some(download) = self.download(peer, file) else { return };
        if download.wake == Some(now) {
            download.wake = None;
            // Whether fetches that seem overdue have moved is to be known first.
            self.count(peer, file);
        }
    }

    /// Counts progress, and goes on.
    pub(super) fn count(&mut self, peer: u32, file: usize) {
        let now = self.clock.instant();
        let Some(download) = self.download(peer, file).filter(|download| download.ended.is_none()) else { return };
        // Nothing begins or ends meanwhile.
        let running = std::mem::take(&mut download.running);
        let (mut wire, under_way) = (download.received, running.len());
        for &(fetch, id) in &running {
            let Some(part) = self.so_far(id) else { continue };
            let Some(transfer) = self.transfers.get(id) else { continue };
            let len = self.files[file].manifest.layout().chunk_len(transfer.chunk);
            wire += f64::from(part.got.saturating_sub(transfer.part.map_or(0, |part| part.got)));
            if let Some(download) = self.download(peer, file) {
                download.scheduler.moved(fetch, part.got, len, now);
            }
        }
        let Some(download) = self.download(peer, file) else { return };
        download.running = running;
        // Whole bytes of a positive number.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        download.streams.counted(wire as u64, under_way, now);
        if under_way == 0 && download.located {
            let told = download.locality.stands_still(download.scheduler.missing(), now, &mut download.rng);
            tell(&mut download.scheduler, told);
        } else {
            download.locality.goes_on();
        }
        self.pump(peer, file);
    }

    /// When each download ended, in seconds from the begin of its peer's; `None` for one that did not.
    pub fn ends(&self, index: usize) -> Vec<Option<f64>> {
        let peer = &self.peers[index];
        let ended = |end: Nanos| (end - peer.plan.begins) as f64 / SECOND as f64;
        peer.shares.iter().map(|share| share.download.as_ref().and_then(|download| download.ended).map(ended)).collect()
    }

    /// The chunks of a file that a peer holds.
    pub fn held(&self, index: usize, file: usize) -> &ChunkSet {
        &self.peers[index].shares[file].held
    }
}
