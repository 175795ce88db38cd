//! What the daemons' `healthcheck` subcommands do: ask a running daemon over gRPC, for container engines and
//! scripts that have no gRPC tool.

use std::time::Duration;

use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{control_at::ControlAt, innermost, tls::Meant, transport::Transport};
use crate::{Address, client::status_text};

/// Shorter than the usual time limit of container health checks, so that the reason is seen.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Why a daemon does not pass for healthy: one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {reason}")]
pub struct Unhealthy {
    at: ControlAt<Address>,
    reason: String,
}

/// The name under which the health service tells whether a daemon is ready: a peer that holds a lease, a tracker
/// whose catalogue answers. The empty name tells whether it serves at all, `drizzle.v1.Peer` also whether the disks of
/// its files answer: what is not ready, or hangs, may become so by itself; what does not serve must be started again.
pub const READY: &str = "ready";

/// Passes if the daemon there says that it serves.
pub async fn check(transport: &Transport, at: impl Into<ControlAt<Address>>, meant: Meant) -> Result<(), Unhealthy> {
    ask(transport, at.into(), meant, "").await
}

/// Passes if the daemon there says that it is [`READY`].
pub async fn check_ready(
    transport: &Transport,
    at: impl Into<ControlAt<Address>>,
    meant: Meant,
) -> Result<(), Unhealthy> {
    ask(transport, at.into(), meant, READY).await
}

async fn ask(transport: &Transport, at: ControlAt<Address>, meant: Meant, service: &str) -> Result<(), Unhealthy> {
    let unhealthy = |reason: String| Unhealthy { at: at.clone(), reason };
    let asked = tokio::time::timeout(TIMEOUT, async {
        let channel = at.connect(transport, meant).await;
        let channel = channel.map_err(|error| format!("not reached: {}", innermost(&error)))?;
        let mut health = HealthClient::new(channel);
        let request = HealthCheckRequest { service: service.to_owned() };
        match health.check(request).await {
            Ok(answer) => Ok(answer.into_inner().status()),
            Err(status) if status.code() == Code::NotFound && service == READY => {
                Err("does not say whether it is ready: it is stopping, or of an older version".to_owned())
            }
            Err(status) => Err(status_text(&status)),
        }
    });
    match asked.await {
        Ok(Ok(ServingStatus::Serving)) => Ok(()),
        Ok(Ok(ServingStatus::NotServing)) if service == READY => {
            Err(unhealthy("serves, but is not ready; its log says why".to_owned()))
        }
        Ok(Ok(status)) => Err(unhealthy(format!("answers {}", status.as_str_name()))),
        Ok(Err(reason)) => Err(unhealthy(reason)),
        Err(_) => Err(unhealthy(format!("no answer within {TIMEOUT:?}"))),
    }
}
