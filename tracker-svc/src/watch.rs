//! The stream that keeps a watcher informed.
//!
//! One task per watch, with room for a single message ahead: a watcher that reads slowly makes its task
//! wait, and what it missed is merged, or replaced by a snapshot, when it reads again. A watch with
//! nothing to tell sends nothing; whether the watcher is still there is the connection's keep-alive's business.

use std::time::Duration;

use drizzle_proto::{holder::HolderChanges, metrics::Histogram};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{error::Error, registry::Watcher};

/// A change is told at once, but this long after the last that was told: meanwhile changes are gathered. Learning of new
/// holders later than about a chunk's time slows a swarm down; telling each change at once would cost a message per chunk
/// and watcher.
const BATCH: Duration = Duration::from_millis(50);

/// The messages of a watch, from a task that ends with the stream, with the name, with `ends`, or when the tracker stops.
pub(crate) fn stream(
    watcher: Watcher,
    tasks: &TaskTracker,
    ends: impl Future<Output = Error> + Send + 'static,
    stop: CancellationToken,
    lag: Histogram,
) -> ReceiverStream<Result<HolderChanges, Error>> {
    let (sender, receiver) = mpsc::channel(1);
    tasks.spawn(async move {
        let end = tokio::select! {
            end = push(watcher, &sender, &lag) => end,
            error = ends => Some(error),
            () = stop.cancelled() => Some(Error::Stopping),
            () = sender.closed() => None,
        };
        if let Some(error) = end {
            // The stream may be gone.
            let _ = sender.send(Err(error)).await;
        }
    });
    ReceiverStream::new(receiver)
}

/// Sends until the name is released; `None` if the stream is gone.
async fn push(
    mut watcher: Watcher,
    sender: &mpsc::Sender<Result<HolderChanges, Error>>,
    lag: &Histogram,
) -> Option<Error> {
    let mut quiet_until = Instant::now();
    let mut heard = quiet_until;
    loop {
        match watcher.next_message() {
            Ok(Some(changes)) => {
                quiet_until = Instant::now() + BATCH;
                sender.send(Ok(changes)).await.ok()?;
                lag.observe(heard.elapsed().as_secs_f64());
                // What changed meanwhile was not told for as long as that took, at most.
                heard = Instant::now();
            }
            Ok(None) => {
                watcher.changed().await;
                heard = Instant::now();
                sleep_until(quiet_until).await;
            }
            Err(error) => return Some(error),
        }
    }
}
