//! Whether this peer is ready: whether other peers can hear of it, which takes a lease.
//!
//! Apart from whether it serves: a peer whose tracker is away goes on serving and downloading, and to start it again
//! would not help.

use drizzle_proto::net::health::READY;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::register::Standing;

/// Tells until `stop`, and then ends every health watch, which would hold up the drain.
pub(crate) async fn tell(
    mut standing: watch::Receiver<Standing>,
    mut health: HealthReporter,
    services: &[&'static str],
    stop: CancellationToken,
) {
    loop {
        let status = match standing.borrow_and_update().lease {
            Some(_) => ServingStatus::Serving,
            None => ServingStatus::NotServing,
        };
        health.set_service_status(READY, status).await;
        tokio::select! {
            Ok(()) = standing.changed() => {}
            () = stop.cancelled() => break,
        }
    }
    for service in services.iter().copied().chain(["", READY]) {
        health.clear_service_status(service).await;
    }
}
