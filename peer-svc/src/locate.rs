//! Which peer holds which chunk of one file, kept fresh while a download runs.
//!
//! The tracker pushes changes; this task keeps the watch alive and turns it into changes that a download
//! can apply blindly. A tracker that is away or restarts is invisible there: what was known stays known
//! for a grace period, in which the peers re-register by themselves (invariant 5).

use std::time::Instant;

pub(crate) use drizzle_engine::holder_view::Located;
use drizzle_engine::{
    holder_view::{HolderView, Withdrawal},
    retry::{self, Backoff},
};
use drizzle_proto::{
    FileId, FileName, PeerId,
    client::{ClientError, TrackerClient},
    holder::HolderChanges,
    wire,
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tonic::Code;

/// Watches a file until the receiver is gone or the file is withdrawn. `own` is left out; when it changes, the peer
/// that it was is a holder like any other.
pub(crate) async fn watch(
    mut tracker: TrackerClient,
    name: FileName,
    id: FileId,
    mut own: watch::Receiver<PeerId>,
    seed: u64,
    out: mpsc::Sender<Located>,
) {
    let (mut backoff, mut rng) = (Backoff::new(retry::TRACKER), StdRng::seed_from_u64(seed));
    let mut view = HolderView::new(*own.borrow_and_update());
    loop {
        match follow(&mut tracker, &name, id, &mut own, &mut view, &mut backoff, &out).await {
            Ended::ReceiverGone => return,
            Ended::Withdrawn(withdrawal) => {
                let _ = out.send(Located::Withdrawn(withdrawal)).await;
                return;
            }
            Ended::Renamed => {
                let now = *own.borrow_and_update();
                if let Some(change) = view.renamed(now)
                    && out.send(Located::Change(change)).await.is_err()
                {
                    return;
                }
                continue;
            }
            Ended::Lost(error) => {
                // Each outage is told once.
                if backoff.is_fresh() {
                    tracing::info!(%name, %error, "the tracker's news of this file stopped; going on with the known holders, retrying");
                }
            }
        }
        let pause = backoff.failed(&mut rng);
        tracing::trace!(target: "drizzle::decisions", %name, ?pause, "watch again");
        tokio::select! {
            () = out.closed() => return,
            () = tokio::time::sleep(pause) => {}
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
    Withdrawn(Withdrawal),
    Lost(ClientError),
    /// This peer has another id now: the watch begins anew, because it left out another holder so far.
    Renamed,
}

async fn follow(
    tracker: &mut TrackerClient,
    name: &FileName,
    id: FileId,
    own: &mut watch::Receiver<PeerId>,
    view: &mut HolderView,
    backoff: &mut Backoff,
    out: &mpsc::Sender<Located>,
) -> Ended {
    // A name may have been released and taken by other content in the meantime.
    let request = wire::FileLocationsRequest {
        name: name.to_string(),
        omit_hashes: true,
        omit_holders: true,
        ..Default::default()
    };
    match tracker.file_locations_wire(request).await {
        Ok(answer) if answer.file.as_ref().is_some_and(|file| file.file_id != id.to_string()) => {
            return Ended::Withdrawn(Withdrawal::Replaced);
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
            Ok(()) = own.changed() => return Ended::Renamed,
            () = tokio::time::sleep_until(view.next_expiry(Instant::now()).into()) => {
                HolderChanges { changes: Vec::new(), reset: false, synced: false }
            }
            message = stream.next() => match message {
                Some(Ok(message)) => message,
                Some(Err(error)) if error.code() == Code::NotFound => return Ended::Withdrawn(Withdrawal::Released),
                Some(Err(error)) => return Ended::Lost(error),
                None => return Ended::Lost(tonic::Status::unavailable("the tracker ended the stream").into()),
            },
        };
        backoff.succeeded();
        for located in view.apply(message, Instant::now()) {
            if out.send(located).await.is_err() {
                return Ended::ReceiverGone;
            }
        }
    }
}
