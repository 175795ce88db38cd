//! What the daemons' `healthcheck` subcommands do: ask a running daemon over gRPC, for container engines and
//! scripts that have no gRPC tool.

use std::time::Duration;

use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::transport::Transport;
use crate::Address;

/// Shorter than the usual time limit of container health checks, so that the reason is seen.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Why a daemon does not pass for healthy: one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address}: {reason}")]
pub struct Unhealthy {
    address: Address,
    reason: String,
}

/// Passes if the daemon at this address says that it serves.
pub async fn check(transport: &Transport, address: &Address) -> Result<(), Unhealthy> {
    let unhealthy = |reason: String| Unhealthy { address: address.clone(), reason };
    let asked = tokio::time::timeout(TIMEOUT, async {
        let channel = transport.connect(address).await.map_err(|error| format!("not reached: {error}"))?;
        let mut health = HealthClient::new(channel);
        let answer = health.check(HealthCheckRequest::default()).await;
        Ok(answer.map_err(|status| status.message().to_owned())?.into_inner().status())
    });
    match asked.await {
        Ok(Ok(ServingStatus::Serving)) => Ok(()),
        Ok(Ok(status)) => Err(unhealthy(format!("answers {}", status.as_str_name()))),
        Ok(Err(reason)) => Err(unhealthy(reason)),
        Err(_) => Err(unhealthy(format!("no answer within {TIMEOUT:?}"))),
    }
}
