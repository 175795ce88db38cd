//! The operator's service for rights, on the socket in the data folder: unwrap, call [`Access`], wrap.

use std::{sync::Arc, time::Duration};

use drizzle_proto::{
    PeerId, Scope, WireError,
    rights::{Grant, Grants},
    wire::{self, rights_server},
};
use tonic::{Request, Response, Status};

use crate::{
    access::{
        Access, ChangeError,
        audit::By,
        authority::Ours,
        state::{ANYBODY, Identity},
    },
    error::Error,
    limits::MAX_PAGE,
};

/// What every identity is called where one can be named.
const ANY: &str = "any";

/// Serves the operator's methods.
pub(crate) struct Service {
    access: Access,
    ours: Option<Arc<Ours>>,
}

impl Service {
    pub(crate) fn new(access: Access, ours: Option<Arc<Ours>>) -> Self {
        Self { access, ours }
    }
}

type Answer<T> = Result<Response<T>, Status>;

impl From<ChangeError> for Status {
    fn from(error: ChangeError) -> Self {
        let text = error.to_string();
        match error {
            ChangeError::Store(_) => Status::unavailable(text),
            ChangeError::NotEnrolled(_) => Status::permission_denied(text),
            ChangeError::TooManyGrants(_) | ChangeError::Full => Status::resource_exhausted(text),
            ChangeError::NoSuchIdentity(_) | ChangeError::NotStopped(_) | ChangeError::NoSuchToken(_) => {
                Status::not_found(text)
            }
        }
    }
}

#[tonic::async_trait]
impl rights_server::Rights for Service {
    async fn create_token(&self, request: Request<wire::CreateTokenRequest>) -> Answer<wire::CreateTokenResponse> {
        let by = By::of(request.extensions());
        let wire::CreateTokenRequest { life_seconds, uses, grants } = request.into_inner();
        let ours = self.ours.as_ref().ok_or_else(|| {
            Status::failed_precondition(
                "this tracker certifies nobody; start it with --tls auto to have peers join with tokens",
            )
        })?;
        let grants = Grants::new(read(&grants)?).map_err(ChangeError::from)?;
        let life = Duration::from_secs(life_seconds);
        let authority = ours.authority.fingerprint();
        let said = grants.to_string();
        let token = self.access.create_token(authority, life, uses, grants).await?;
        self.access.audit().done("token create", by, &format!("{} for {uses}: {said}", token.id));
        Ok(Response::new(wire::CreateTokenResponse { token: token.to_string() }))
    }

    async fn list_tokens(&self, _: Request<wire::ListTokensRequest>) -> Answer<wire::ListTokensResponse> {
        let tokens = self.access.look(|state| {
            let tokens = state.tokens().map(|(id, token)| wire::TokenInfo {
                id: id.to_string(),
                expires: token.expires,
                uses_left: token.uses_left,
                grants: write(&token.grants),
            });
            tokens.collect()
        });
        Ok(Response::new(wire::ListTokensResponse { tokens }))
    }

    async fn delete_token(&self, request: Request<wire::DeleteTokenRequest>) -> Answer<wire::DeleteTokenResponse> {
        let by = By::of(request.extensions());
        let id = request.get_ref().id.parse().map_err(|_| Error::from(WireError::Bounds("id")))?;
        self.access.delete_token(id).await?;
        self.access.audit().done("token delete", by, &id.to_string());
        Ok(Response::new(wire::DeleteTokenResponse {}))
    }

    async fn grant(&self, request: Request<wire::GrantRequest>) -> Answer<wire::GrantResponse> {
        let by = By::of(request.extensions());
        let wire::GrantRequest { identity, grants, only } = request.into_inner();
        let of = if identity == ANY { None } else { Some(peer(&identity)?) };
        let grants = self.access.grant(of, read(&grants)?, only).await?;
        self.access.audit().done("grant", by, &format!("{identity}: {grants}"));
        Ok(Response::new(wire::GrantResponse { grants: write(&grants) }))
    }

    async fn revoke(&self, request: Request<wire::RevokeRequest>) -> Answer<wire::RevokeResponse> {
        let by = By::of(request.extensions());
        let id = peer(&request.get_ref().identity)?;
        self.access.revoke(id).await?;
        self.access.audit().done("revoke", by, &id.to_string());
        Ok(Response::new(wire::RevokeResponse {}))
    }

    async fn forget(&self, request: Request<wire::ForgetRequest>) -> Answer<wire::ForgetResponse> {
        let by = By::of(request.extensions());
        let id = peer(&request.get_ref().identity)?;
        self.access.forget(id).await?;
        self.access.audit().done("forget", by, &id.to_string());
        Ok(Response::new(wire::ForgetResponse {}))
    }

    async fn list_identities(
        &self,
        request: Request<wire::ListIdentitiesRequest>,
    ) -> Answer<wire::ListIdentitiesResponse> {
        let after = &request.get_ref().after;
        let after = if after.is_empty() { None } else { Some(peer(after)?) };
        let (identities, more) = self.access.look(|state| {
            let anybody = Identity { grants: state.anybody().clone(), ..Identity::default() };
            let anybody = (ANYBODY, &anybody);
            let all = state.identities();
            let first = after.is_none() && !anybody.1.grants.is_empty();
            let rest = all.iter().filter(|(id, _)| after.is_none_or(|after| *id > after));
            let mut listed = first.then_some(&anybody).into_iter().chain(rest);
            let page: Vec<_> = listed.by_ref().take(MAX_PAGE as usize).map(|(id, known)| shown(*id, known)).collect();
            (page, listed.next().is_some())
        });
        Ok(Response::new(wire::ListIdentitiesResponse { identities, more }))
    }

    async fn stop(&self, request: Request<wire::StopRequest>) -> Answer<wire::StopResponse> {
        let by = By::of(request.extensions());
        let scope = scope(&request.get_ref().scope)?;
        self.access.stop(scope.clone()).await?;
        self.access.audit().done("stop", by, &scope.to_string());
        Ok(Response::new(wire::StopResponse {}))
    }

    async fn resume(&self, request: Request<wire::ResumeRequest>) -> Answer<wire::ResumeResponse> {
        let by = By::of(request.extensions());
        let scope = scope(&request.get_ref().scope)?;
        self.access.resume(scope.clone()).await?;
        self.access.audit().done("resume", by, &scope.to_string());
        Ok(Response::new(wire::ResumeResponse {}))
    }

    async fn list_stops(&self, _: Request<wire::ListStopsRequest>) -> Answer<wire::ListStopsResponse> {
        let stops = self.access.look(|state| {
            state.stops().map(|(scope, since)| wire::StopInfo { scope: scope.to_string(), since }).collect()
        });
        Ok(Response::new(wire::ListStopsResponse { stops }))
    }
}

fn shown(id: PeerId, identity: &Identity) -> wire::IdentityInfo {
    wire::IdentityInfo {
        identity: if id == ANYBODY { ANY.to_owned() } else { id.to_string() },
        grants: write(&identity.grants),
        revoked: identity.revoked.unwrap_or(0),
        certified: identity.certified,
    }
}

fn peer(text: &str) -> Result<PeerId, Error> {
    match text.parse() {
        Ok(ANYBODY) | Err(_) => Err(WireError::Bounds("identity").into()),
        Ok(id) => Ok(id),
    }
}

fn scope(text: &str) -> Result<Scope, Error> {
    Ok(text.parse::<Scope>().map_err(WireError::from)?)
}

fn read(grants: &[wire::RightsGrant]) -> Result<Vec<Grant>, Error> {
    Ok(grants.iter().map(Grant::try_from).collect::<Result<_, _>>()?)
}

fn write(grants: &Grants) -> Vec<wire::RightsGrant> {
    grants.iter().map(Into::into).collect()
}
