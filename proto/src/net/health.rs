//! What the daemons' `healthcheck` subcommands do: ask a running daemon over gRPC, for container engines and
//! scripts that have no gRPC tool.

use std::time::Duration;

use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::transport;

/// Shorter than the usual time limit of container health checks, so that the reason is seen.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Why a daemon does not pass for healthy: one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url}: {reason}")]
pub struct Unhealthy {
    url: String,
    reason: String,
}

/// Passes if the daemon at this URL (`http://HOST:PORT`) says that it serves.
pub async fn check(url: &str) -> Result<(), Unhealthy> {
    let unhealthy = |reason: String| Unhealthy { url: url.to_owned(), reason };
    let asked = tokio::time::timeout(TIMEOUT, async {
        let endpoint = transport::endpoint(url.to_owned()).map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|error| format!("not reached: {error}"))?;
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
