//! `peer-svc healthcheck`: asks a running daemon, for container engines that have no gRPC tool.

use std::process::ExitCode;

use anyhow::Context;
use drizzle_proto::{Address, transport};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

/// Success if the daemon at the address says that it serves.
pub async fn check(address: &Address) -> anyhow::Result<ExitCode> {
    let channel = transport::endpoint(address.to_url())?
        .connect()
        .await
        .with_context(|| format!("no daemon answers at {address}"))?;
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.set_timeout(transport::CALL_TIMEOUT);
    let answer = HealthClient::new(channel).check(request).await?;
    anyhow::ensure!(answer.get_ref().status() == ServingStatus::Serving, "the daemon at {address} does not serve");
    Ok(ExitCode::SUCCESS)
}
