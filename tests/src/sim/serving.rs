//! The serving end: slots, and the bytes that flow. Mirrors the daemon's `serve`.
//!
//! A slot is held until no more than `--unsent` bytes of its chunk are left: the socket has taken the rest.

use drizzle_engine::slots::{Answer, Request};

use super::{
    clock::Nanos,
    event::{Event, Refusal},
    options::millis,
    peer::{Part, Transfer, TransferId},
    scenario::Leaves,
    world::World,
};

/// Bytes of a request, or of an answer that is not a chunk.
const REQUEST_BYTES: u64 = 120;

impl World {
    /// A request is at its holder.
    pub(super) fn requested(&mut self, id: TransferId) {
        let Some(transfer) = self.transfers.get_mut(id) else { return };
        let (from, to, file) = (transfer.from, transfer.to, transfer.file);
        self.tally.requests.add(1, REQUEST_BYTES);
        let now = self.clock.instant();
        let requester = self.peers[to as usize].info.id();
        let is_far = self.peers[from as usize].plan.zone != self.peers[to as usize].plan.zone;
        let request = Request { requester: Some(requester), receiving: Some(transfer.receiving), is_far };
        let peer = &mut self.peers[from as usize];
        if !peer.alive {
            return self.refuse(id, from, Refusal::Unreachable);
        }
        let answer = peer.slots.ask(request, now);
        let taken = peer.slots.taken();
        match answer {
            Answer::Busy => {
                self.tally.busy += 1;
                self.log.line(self.clock.now(), || format!("p{from} busy for p{to}, {taken} taken"));
                self.refuse(id, from, Refusal::Busy);
            }
            Answer::Granted(grant) => {
                self.tally.granted += 1;
                let held = &peer.shares[file].held;
                if held.is_full() {
                    let (id, others) = (self.files[file].manifest.id(), &transfer.alternatives);
                    // The rest of a chunk is no other chunk.
                    let others = if transfer.part.is_none() { &others[..] } else { &[] };
                    transfer.chunk = peer.choices.choose(id, held.count(), transfer.chunk, others, &mut peer.rng);
                    transfer.is_counted = true;
                }
                let chunk = transfer.chunk;
                if !peer.shares[file].held.contains(chunk) {
                    peer.slots.release(grant);
                    return self.refuse(id, from, Refusal::NotHeld);
                }
                transfer.grant = Some(grant);
                let len = self.files[file].manifest.layout().chunk_len(chunk);
                peer.slots.begins(len.into());
                let at = peer.disk.done_at(len, self.clock.now());
                self.log.line(self.clock.now(), || format!("p{from} serves {file}:{chunk} to p{to}, {taken} taken"));
                if at > self.clock.now() {
                    self.clock.plan(at, Event::Read(id));
                } else {
                    self.send(id);
                }
            }
        }
    }

    fn refuse(&mut self, id: TransferId, from: u32, refusal: Refusal) {
        self.tally.requests.add(1, REQUEST_BYTES);
        let at = self.clock.now() + self.delay(from);
        self.clock.plan(at, Event::Refused(id, refusal));
    }

    /// The chunk begins to flow.
    pub(super) fn send(&mut self, id: TransferId) {
        let Some(Transfer { from, to, file, chunk, part, .. }) = self.transfers.get(id) else { return };
        if !self.peers[*from as usize].alive {
            let from = *from;
            return self.refuse(id, from, Refusal::BrokeOff);
        }
        let len = self.files[*file].manifest.layout().chunk_len(*chunk);
        let missing = len - part.map_or(0, |part| part.got);
        let (path, links) = self.path(*from, *to);
        let (bytes, unsent) = (f64::from(missing) * self.options.overhead, self.options.unsent * 1024.0);
        if bytes <= unsent {
            // The socket takes it all at once.
            self.free_slot(id);
        }
        let flow = self.links.start(&path[..links], bytes, unsent, id.pack(), self.clock.now());
        if let Some(transfer) = self.transfers.get_mut(id) {
            transfer.flow = Some(flow);
            if !transfer.alternatives.is_empty() {
                self.clock.plan(self.clock.now() + millis(self.options.latency), Event::Bound(id));
            }
        }
    }

    /// When the flows of a peer are to be looked at.
    pub(super) fn plan_uplink(&mut self, index: u32) {
        // The links of zones are no peer's.
        let Some(peer) = self.peers.get_mut(index as usize) else { return };
        let Some(at) = self.links.next_stop(peer.up).filter(|at| *at < Nanos::MAX) else { return };
        if peer.timer.is_none_or(|planned| at < planned) {
            peer.timer = Some(at);
            self.clock.plan(at, Event::Uplink(index));
        }
    }

    /// Looks at the flows of a peer.
    pub(super) fn uplink(&mut self, index: u32) {
        let now = self.clock.now();
        let peer = &mut self.peers[index as usize];
        if peer.timer != Some(now) {
            // It was planned anew, for an earlier time.
            return;
        }
        peer.timer = None;
        let up = peer.up;
        for stop in self.links.stopped(up, now) {
            let id = TransferId::unpack(stop.tag);
            self.free_slot(id);
            if !stop.ended {
                self.links.run_out(stop.flow);
                continue;
            }
            self.links.end(stop.flow, now);
            if let Some(transfer) = self.transfers.get_mut(id) {
                transfer.flow = None;
            }
            self.clock.plan(now + millis(self.options.latency), Event::Arrived(id));
        }
        self.count_sent(index);
        self.plan_uplink(index);
        if let Leaves::AfterCopies(copies) = self.peers[index as usize].plan.leaves
            && self.links.carried(up) >= copies * self.options.file_bytes() * self.options.overhead
        {
            if let Some(lease) = self.peers[index as usize].lease.id() {
                self.tracker.leave(lease);
                self.ring(None);
            }
            self.depart(index);
        }
    }

    /// Tells the slots what was sent.
    pub(super) fn count_sent(&mut self, index: u32) {
        let peer = &mut self.peers[index as usize];
        let carried = self.links.carried(peer.up);
        // Whole bytes of a positive number.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bytes = (carried - peer.sent) as u64;
        if bytes > 0 {
            peer.sent += bytes as f64;
            peer.slots.sent(bytes, self.clock.instant());
        }
    }

    /// A chunk does not reach its requester: it was not sent.
    fn uncount(&mut self, id: TransferId) {
        let Some(transfer) = self.transfers.get_mut(id) else { return };
        if transfer.flow.is_some() && std::mem::take(&mut transfer.is_counted) {
            let file = self.files[transfer.file].manifest.id();
            self.peers[transfer.from as usize].choices.broke_off(file, transfer.chunk);
        }
    }

    fn free_slot(&mut self, id: TransferId) {
        let Some(transfer) = self.transfers.get_mut(id) else { return };
        if let Some(grant) = transfer.grant.take() {
            let (from, file) = (transfer.from, transfer.file);
            self.peers[from as usize].slots.release(grant);
            self.plan_telling(from, file);
        }
    }

    /// The holder hears that the requester wants it no longer.
    pub(super) fn cancel_heard(&mut self, id: TransferId) {
        self.free_slot(id);
        self.uncount(id);
        if let Some(Transfer { flow: Some(flow), .. }) = self.transfers.remove(id) {
            self.links.end(flow, self.clock.now());
        }
    }

    /// One end of a transfer is gone.
    pub(super) fn break_off(&mut self, id: TransferId, gone: u32) {
        self.free_slot(id);
        self.uncount(id);
        let now = self.clock.now();
        let Some(transfer) = self.transfers.get(id) else { return };
        let (from, to, is_sent) = (transfer.from, transfer.to, transfer.flow.is_some());
        if to == gone {
            if let Some(Transfer { flow: Some(flow), .. }) = self.transfers.remove(id) {
                self.links.end(flow, now);
            }
        } else if is_sent {
            let part = self.so_far(id);
            let Some(transfer) = self.transfers.get_mut(id) else { return };
            transfer.part = part;
            if let Some(flow) = transfer.flow.take() {
                self.links.end(flow, now);
            }
            self.refuse(id, from, Refusal::BrokeOff);
        }
        // A request that is on its way finds nobody.
    }

    /// What the requester has of a chunk by now.
    pub(super) fn so_far(&mut self, id: TransferId) -> Option<Part> {
        let transfer = self.transfers.get(id)?;
        let flow = transfer.flow?;
        let left = self.links.left(flow, self.clock.now()) / self.options.overhead;
        let len = self.files[transfer.file].manifest.layout().chunk_len(transfer.chunk);
        // Between 0 and the length.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let got = (f64::from(len) - left).max(0.0) as u32;
        Some(joined(transfer, self.peers[transfer.from as usize].plan.lies, got))
    }
}

/// What there was of a chunk, and what this transfer added to it.
pub(super) fn joined(transfer: &Transfer, lies: bool, got: u32) -> Part {
    match transfer.part {
        Some(part) if part.got >= got => part,
        Some(part) => {
            Part { got, from: part.from, mixed: part.mixed || part.from != transfer.from, wrong: part.wrong || lies }
        }
        None => Part { got, from: transfer.from, mixed: false, wrong: lies },
    }
}
