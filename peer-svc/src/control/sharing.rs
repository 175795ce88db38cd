//! One share request: hashing in the background, progress meanwhile, then what the tracker said of each file.

use std::{sync::Arc, time::Duration};

use drizzle_proto::{FileInfo, wire};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use wire::share_result::Status;

use super::{
    backend::Backend,
    convert::{ShareOrder, skipped_events},
};
use crate::{
    holdings::Registration,
    register::Patience,
    share::{Hashed, Scanned, ShareError},
    store::{
        hash::{HashError, HashProgress},
        journal::JournalError,
    },
};

const PROGRESS: Duration = Duration::from_millis(100);
/// Events that may wait for a slow reader.
const BACKLOG: usize = 256;

/// Checks the paths, then shares in the background. The work goes on if the reader goes away.
pub(super) async fn share(
    backend: Arc<Backend>,
    order: ShareOrder,
) -> Result<ReceiverStream<wire::ShareEvent>, ShareError> {
    let sharer = backend.sharer.clone();
    let find = move || {
        let found = sharer.find(&order.paths, order.name.clone())?;
        if order.name.is_some() && order.paths.iter().any(|path| path.is_dir()) {
            let reason = "this is a folder: a name can be given to a single file only".to_owned();
            return Err(ShareError::Name { path: order.paths[0].clone(), reason });
        }
        Ok((found, order.wish))
    };
    let (Scanned { found, failed, skipped, .. }, wish) = backend.lanes.hashing.run(find).await.map_err(of_task)??;
    let (events, stream) = mpsc::channel(BACKLOG);
    let tasks = backend.tasks.clone();
    tasks.spawn(async move {
        for event in skipped_events(skipped) {
            // The caller may be gone; what it asked for is shared nevertheless.
            let _ = events.send(event).await;
        }
        for error in failed {
            tell(&events, outcome(None, Status::Failed, error.to_string())).await;
        }
        let progress = Arc::new(HashProgress::default());
        let hashing = {
            let (sharer, transfers, progress) = (backend.sharer.clone(), backend.transfers.clone(), progress.clone());
            backend
                .lanes
                .hashing
                .run(move || sharer.share_found(found, wish, &progress, &|name| transfers.is_running(name)))
        };
        let mut patience = None;
        for (name, result) in watch(hashing, &progress, &events).await {
            let patience = patience.get_or_insert_with(|| Patience::new(&backend.sharer.holdings, &backend.standing));
            let result = match result {
                Ok(file) => tokio::select! {
                    // No caller is left to be told.
                    () = backend.sharer.stop.cancelled() => return,
                    () = events.closed() => return,
                    result = registered(&backend, patience, file) => result,
                },
                Err(error) => wire::ShareResult {
                    file: Some(wire::FileInfo { name: name.to_string(), ..Default::default() }),
                    ..outcome(None, Status::Failed, error.to_string())
                },
            };
            tell(&events, result).await;
        }
    });
    Ok(ReceiverStream::new(stream))
}

/// Tells of progress until the hashing is done.
async fn watch(
    mut hashing: tokio::task::JoinHandle<Result<Hashed, JournalError>>,
    progress: &HashProgress,
    events: &mpsc::Sender<wire::ShareEvent>,
) -> Hashed {
    let mut ticks = tokio::time::interval(PROGRESS);
    loop {
        let done = tokio::select! {
            done = &mut hashing => done,
            _ = ticks.tick() => {
                let event = wire::share_event::Event::Progress(progress.read().into());
                // A reader that lags needs no old progress.
                let _ = events.try_send(wire::ShareEvent { event: Some(event) });
                continue;
            }
        };
        let error = match done {
            Ok(Ok(hashed)) => return hashed,
            Ok(Err(error)) => error.to_string(),
            Err(error) => of_task(error).to_string(),
        };
        tell(events, outcome(None, Status::Failed, error)).await;
        return Vec::new();
    }
}

async fn registered(backend: &Backend, patience: &mut Patience, file: FileInfo) -> wire::ShareResult {
    let untrusted = &backend.sharer.untrusted;
    if untrusted.has(&file.name) {
        let may_ask = backend.standing.borrow().lease.is_some();
        let is_offered = may_ask && backend.vouching.vouch(&file.name).await;
        if let Some(why) = untrusted.why(&file.name).filter(|_| !is_offered) {
            return outcome(Some(&file), Status::Untrusted, why);
        }
    }
    match patience.registration(&backend.sharer.holdings, &file.name).await {
        Registration::Registered => {
            // The tracker may know the content in other chunks, which this peer then adopted.
            let adopted = backend.sharer.holdings.get(&file.name).map(|held| held.manifest.describe(file.name.clone()));
            outcome(Some(&adopted.unwrap_or(file)), Status::Registered, String::new())
        }
        Registration::Refused(detail) => outcome(Some(&file), Status::Refused, detail),
        Registration::Pending => {
            let detail = "the tracker cannot be reached now: the file is registered as soon as it is back".to_owned();
            outcome(Some(&file), Status::Pending, detail)
        }
    }
}

fn outcome(file: Option<&FileInfo>, status: Status, detail: String) -> wire::ShareResult {
    wire::ShareResult { status: status.into(), file: file.map(Into::into), detail }
}

async fn tell(events: &mpsc::Sender<wire::ShareEvent>, result: wire::ShareResult) {
    // The caller may be gone; the sharing itself is done.
    let _ = events.send(wire::ShareEvent { event: Some(wire::share_event::Event::Result(result)) }).await;
}

fn of_task(error: tokio::task::JoinError) -> ShareError {
    if error.is_panic() { ShareError::Panicked } else { HashError::Stopped.into() }
}
