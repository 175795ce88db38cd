//! The service that certifies keys: see `access.proto`.

use std::{sync::Arc, time::SystemTime};

use drizzle_proto::{
    PeerId, WireError,
    net::tls::{Certified, authority::Request as Certification},
    token::Token,
    wire::{self, enrolment_server},
};
use tonic::{Request, Response, Status};

use crate::{
    access::{
        Access, ChangeError,
        audit::By,
        authority::Ours,
        denied::Denied,
        state::{ANYBODY, NotEnrolled},
    },
    error::Error,
};

/// Serves enrolment; without an authority it says so.
pub(crate) struct Service {
    access: Access,
    ours: Option<Arc<Ours>>,
}

impl Service {
    pub(crate) fn new(access: Access, ours: Option<Arc<Ours>>) -> Self {
        Self { access, ours }
    }
}

#[tonic::async_trait]
impl enrolment_server::Enrolment for Service {
    async fn enrol(&self, request: Request<wire::EnrolRequest>) -> Result<Response<wire::EnrolResponse>, Status> {
        let by = By::of(request.extensions());
        let wire::EnrolRequest { peer_id, request, token } = request.into_inner();
        let ours = self.ours.as_ref().ok_or_else(|| {
            Status::unimplemented("this tracker certifies nobody: it is not started with --tls auto; its peers need certificates of their own (--tls-cert, --tls-key, --tls-ca)")
        })?;
        let peer: PeerId = peer_id.parse().map_err(WireError::from).map_err(Error::from)?;
        if peer == ANYBODY {
            return Err(Status::invalid_argument("peer_id: no peer has this one"));
        }
        let asked = Certification::read(&request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let refused = |status: Status| {
            self.access.audit().refused(by, &format!("enrol {peer}"), Denied::ENROLMENT, status.message());
            status
        };
        let token = if token.is_empty() { None } else { Some(token.parse::<Token>()) };
        let token = token.transpose().map_err(|error| refused(Status::unauthenticated(error.to_string())))?;
        let used = token.as_ref().map(|token| token.id);
        let life = ours.life;
        match self.access.enrol(peer, asked.key(), token).await {
            Ok(()) => {}
            Err(ChangeError::NotEnrolled(error)) => {
                let text = error.to_string();
                return Err(refused(match error {
                    NotEnrolled::Revoked | NotEnrolled::OtherKey => Status::permission_denied(text),
                    NotEnrolled::Full => Status::resource_exhausted(text),
                    _ => Status::unauthenticated(text),
                }));
            }
            Err(error) => return Err(Status::unavailable(error.to_string())),
        }
        let chain = ours.authority.certify(&asked, Certified::Peer(peer), &[], SystemTime::now(), life);
        let chain = chain.map_err(|error| Status::internal(error.to_string()))?;
        if let Some(token) = used {
            self.access.audit().done("enrol", by, &format!("{peer} with token {token}"));
        }
        Ok(Response::new(wire::EnrolResponse { chain: chain.0.into_iter().map(Into::into).collect() }))
    }
}
