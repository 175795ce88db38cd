//! The `healthcheck` subcommand: asks a running tracker over gRPC, as containers and scripts do.

use std::time::Duration;

use drizzle_proto::transport;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// Shorter than the usual time limit of container health checks, so that the reason is seen.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Fails with one line unless the tracker at this URL says that it serves.
pub async fn check(url: &str) -> anyhow::Result<()> {
    let asked = tokio::time::timeout(TIMEOUT, async {
        let channel = transport::endpoint(url.to_owned())?.connect().await?;
        anyhow::Ok(HealthClient::new(channel).check(HealthCheckRequest::default()).await?.into_inner().status())
    });
    match asked.await {
        Ok(Ok(ServingStatus::Serving)) => Ok(()),
        Ok(Ok(status)) => anyhow::bail!("{url} answers {}", status.as_str_name()),
        Ok(Err(error)) => anyhow::bail!("{url}: {error:#}"),
        Err(_) => anyhow::bail!("{url}: no answer within {TIMEOUT:?}"),
    }
}
