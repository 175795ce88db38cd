//! Having a key certified.

use tonic::Request;

use super::{ClientError, call};
use crate::{
    Address, PeerId,
    net::{
        tls::{
            Meant,
            enrol::{Chain, Key, KeyError},
        },
        transport::{CALL_TIMEOUT, Transport},
        wary::Wary,
    },
    token::Token,
    wire::{self, enrolment_client::EnrolmentClient},
};

/// Has a key certified for an identity: with a token the first time, afterwards without.
pub async fn enrol(
    transport: &Transport,
    tracker: &Address,
    peer: PeerId,
    key: &Key,
    token: Option<&Token>,
) -> Result<Chain, ClientError> {
    let unusable = |error: KeyError| tonic::Status::internal(error.to_string());
    let mut request = Request::new(wire::EnrolRequest {
        peer_id: peer.to_string(),
        request: key.request().map_err(unusable)?.into(),
        token: token.map(ToString::to_string).unwrap_or_default(),
    });
    request.set_timeout(CALL_TIMEOUT);
    // A connection for this one call: the next one shows what came of it.
    let channel = transport.connect(tracker, Meant::Tracker).await;
    let channel = channel.map_err(|error| tonic::Status::from_error(Box::new(error)))?;
    let answer = call(EnrolmentClient::new(Wary::new(channel)).enrol(request)).await?;
    Ok(Chain(answer.chain.into_iter().map(|der| der.to_vec()).collect()))
}
