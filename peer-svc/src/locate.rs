//! Who holds which chunk of one file, kept fresh while a download runs.
//!
//! The tracker pushes changes; this task keeps the watch alive and turns it into changes that a download
//! can apply blindly. A tracker that is away or restarts is invisible there: what was known stays known
//! for a grace period, in which the peers re-register by themselves (invariant 5).

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use drizzle_proto::{
    FileId, FileName, PeerId,
    client::{ClientError, TrackerClient},
    convert::{HolderChange, HolderChanges},
    wire,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::Code;

/// A holder that a new snapshot does not name is believed this long: peers renew every 5 s by default.
const GRACE: Duration = Duration::from_secs(20);
/// Between attempts to reach the tracker.
const RETRY: Duration = Duration::from_millis(500);

/// What a download hears.
#[derive(Debug, PartialEq, Eq)]
pub enum Located {
    /// Apply this.
    Change(HolderChange),
    /// The first snapshot is complete.
    Synced,
    /// The name was released, or stands for other content now: this download cannot go on.
    Withdrawn(String),
}

/// Watches a file until the receiver is gone or the file is withdrawn. `own` is left out.
pub async fn watch(mut tracker: TrackerClient, name: FileName, id: FileId, own: PeerId, out: mpsc::Sender<Located>) {
    let mut view = View::new(own);
    let mut told_away = false;
    loop {
        match follow(&mut tracker, &name, id, &mut view, &out).await {
            Ended::ReceiverGone => return,
            Ended::Withdrawn(why) => {
                let _ = out.send(Located::Withdrawn(why)).await;
                return;
            }
            Ended::Lost(error) => {
                if !std::mem::replace(&mut told_away, true) {
                    tracing::info!(%name, %error, "lost the tracker's news of this file; going on with known holders");
                }
            }
        }
        tokio::select! {
            () = out.closed() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
        for change in view.expire(Instant::now()) {
            if out.send(Located::Change(change)).await.is_err() {
                return;
            }
        }
    }
}

enum Ended {
    ReceiverGone,
    Withdrawn(String),
    Lost(ClientError),
}

async fn follow(
    tracker: &mut TrackerClient,
    name: &FileName,
    id: FileId,
    view: &mut View,
    out: &mpsc::Sender<Located>,
) -> Ended {
    // A name may have been released and taken by other content while nobody looked.
    let request = wire::FileLocationsRequest {
        name: name.to_string(),
        omit_hashes: true,
        omit_holders: true,
        ..Default::default()
    };
    match tracker.file_locations_wire(request).await {
        Ok(answer) if answer.file.as_ref().is_some_and(|file| file.file_id != id.to_string()) => {
            return Ended::Withdrawn(format!("{name} was registered anew with other content"));
        }
        Ok(_) => {}
        // A tracker that lost its catalogue hears of the file again from its holders, us among them.
        Err(error) => return Ended::Lost(error),
    }
    let mut stream = match tracker.watch_file(name).await {
        Ok(stream) => stream,
        Err(error) => return Ended::Lost(error),
    };
    loop {
        let message = tokio::select! {
            () = out.closed() => return Ended::ReceiverGone,
            () = tokio::time::sleep_until(view.next_expiry()) => {
                HolderChanges { changes: Vec::new(), reset: false, synced: false }
            }
            message = stream.next() => match message {
                Some(Ok(message)) => message,
                Some(Err(error)) if error.code() == Code::NotFound => return Ended::Withdrawn(format!("{name} was withdrawn by its owner")),
                Some(Err(error)) => return Ended::Lost(error),
                None => return Ended::Lost(tonic::Status::unavailable("the tracker ended the stream").into()),
            },
        };
        for located in view.apply(message, Instant::now()) {
            if out.send(located).await.is_err() {
                return Ended::ReceiverGone;
            }
        }
    }
}

/// The holders that were told on, and which of them a snapshot has yet to confirm. Pure.
#[derive(Debug)]
struct View {
    own: PeerId,
    /// With the moment at which an unconfirmed holder is given up.
    known: HashMap<PeerId, Option<Instant>>,
    synced: bool,
}

impl View {
    fn new(own: PeerId) -> Self {
        Self { own, known: HashMap::new(), synced: false }
    }

    fn apply(&mut self, message: HolderChanges, now: Instant) -> Vec<Located> {
        if message.reset {
            for doubt in self.known.values_mut() {
                doubt.get_or_insert(now + GRACE);
            }
        }
        let mut located = Vec::new();
        for change in message.changes {
            match &change {
                HolderChange::Is(holder) if holder.peer != self.own => {
                    self.known.insert(holder.peer, None);
                }
                // Chunks of a holder that was never described cannot be asked for: no address.
                HolderChange::Added(peer, _) if self.known.contains_key(peer) => {}
                HolderChange::Gone(peer) if self.known.remove(peer).is_some() => {}
                _ => continue,
            }
            located.push(Located::Change(change));
        }
        located.extend(self.expire(now).into_iter().map(Located::Change));
        if message.synced && !std::mem::replace(&mut self.synced, true) {
            located.push(Located::Synced);
        }
        located
    }

    fn expire(&mut self, now: Instant) -> Vec<HolderChange> {
        let over: Vec<PeerId> = self
            .known
            .iter()
            .filter(|(_, doubt)| doubt.is_some_and(|until| until <= now))
            .map(|(peer, _)| *peer)
            .collect();
        over.into_iter()
            .map(|peer| {
                self.known.remove(&peer);
                HolderChange::Gone(peer)
            })
            .collect()
    }

    fn next_expiry(&self) -> tokio::time::Instant {
        let earliest = self.known.values().flatten().min().copied();
        earliest.unwrap_or_else(|| Instant::now() + GRACE).into()
    }
}

#[cfg(test)]
mod tests {
    use drizzle_proto::{Address, ChunkCount, ChunkSet, convert::Holder};

    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n; 16])
    }

    fn is(n: u8) -> HolderChange {
        let chunks = ChunkSet::empty(ChunkCount::new(3).unwrap());
        HolderChange::Is(Holder { peer: peer(n), address: Address::new("h:1").unwrap(), chunks })
    }

    fn snapshot(peers: &[u8]) -> HolderChanges {
        HolderChanges { reset: true, changes: peers.iter().map(|&n| is(n)).collect(), synced: true }
    }

    #[test]
    fn a_snapshot_after_an_outage_forgets_nobody_at_once() {
        let (mut view, start) = (View::new(peer(0)), Instant::now());
        assert_eq!(
            view.apply(snapshot(&[0, 1, 2]), start),
            [Located::Change(is(1)), Located::Change(is(2)), Located::Synced]
        );
        assert_eq!(view.apply(snapshot(&[2]), start), [Located::Change(is(2))], "1 may just not be back yet");
        assert_eq!(view.expire(start + GRACE / 2), []);
        assert_eq!(view.expire(start + GRACE), [HolderChange::Gone(peer(1))]);
        assert_eq!(view.expire(start + GRACE * 9), [], "2 was confirmed");
    }

    #[test]
    fn a_holder_that_comes_back_in_time_stays() {
        let (mut view, start) = (View::new(peer(0)), Instant::now());
        view.apply(snapshot(&[1]), start);
        view.apply(snapshot(&[]), start);
        let back = HolderChanges { changes: vec![is(1)], ..Default::default() };
        view.apply(back, start + GRACE / 2);
        assert_eq!(view.expire(start + GRACE * 2), []);
    }

    #[test]
    fn changes_of_unknown_holders_are_dropped() {
        let mut view = View::new(peer(0));
        let chunks = ChunkSet::empty(ChunkCount::new(3).unwrap());
        let changes = vec![HolderChange::Added(peer(1), chunks), HolderChange::Gone(peer(2)), is(0)];
        assert_eq!(view.apply(HolderChanges { changes, ..Default::default() }, Instant::now()), []);
    }
}
