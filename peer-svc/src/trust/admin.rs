//! Who may command this daemon over a network: identities that the tracker calls admins. Programs of this machine are
//! judged by who may open the socket, or reach the loopback address.

use std::sync::Arc;

use drizzle_proto::{access::Access, net::caller::Caller};
use tokio::sync::watch;
use tonic::{Request, Status, service::Interceptor};

/// Lets admins pass, where that is demanded.
#[derive(Debug, Clone)]
pub(crate) struct AdminsOnly {
    /// Absent: everybody who reaches the control address.
    access: Option<watch::Receiver<Arc<Access>>>,
}

impl AdminsOnly {
    /// Everybody passes.
    pub(crate) fn nobody_else_comes() -> Self {
        Self { access: None }
    }

    /// Admins by what the tracker says.
    pub(crate) fn by(access: watch::Receiver<Arc<Access>>) -> Self {
        Self { access: Some(access) }
    }
}

impl Interceptor for AdminsOnly {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(access) = &self.access else { return Ok(request) };
        let caller = Caller::of(request.extensions());
        if caller == Caller::Local {
            return Ok(request);
        }
        let peer = caller.peer().ok_or_else(|| {
            Status::unauthenticated("this daemon takes commands over the network from admins: give --tls-cert, --tls-key and --tls-ca, as `peer-cli join` writes them")
        })?;
        if access.borrow().admins.contains(&peer) {
            return Ok(request);
        }
        Err(Status::permission_denied(format!(
            "{peer} is no admin, or this daemon has not heard of it yet; an operator can let it: tracker-svc grant {peer} --role admin"
        )))
    }
}
