//! The gate in front of the Tracker service: no method of it is reached by a caller that the tracker does not know.

use drizzle_proto::{PeerId, net::caller::Caller};
use tonic::{Extensions, Request, Status, service::Interceptor};

use super::{Access, audit::By, denied::Denied};

/// Lets those pass that the tracker knows, and marks each request with the peer it is from.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Access);

impl Gate {
    pub(crate) fn new(access: Access) -> Self {
        Self(access)
    }
}

/// The mark: the peer that a caller proved to be; none where callers are not told apart.
#[derive(Debug, Clone, Copy)]
struct Passed(Option<PeerId>);

impl Interceptor for Gate {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let extensions = request.extensions();
        let peer = self.0.knows(Caller::of(extensions)).inspect_err(|denied| {
            self.0.audit().denied(By::of(extensions), "call", denied);
        })?;
        request.extensions_mut().insert(Passed(peer));
        Ok(request)
    }
}

/// The peer that a request is from, as the gate found it. What did not come through the gate is refused.
pub(crate) fn peer_of(extensions: &Extensions) -> Result<Option<PeerId>, Denied> {
    extensions.get::<Passed>().map(|passed| passed.0).ok_or(Denied::NoIdentity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_come_through_the_gate_is_refused() {
        let mut extensions = Extensions::default();
        assert_eq!(peer_of(&extensions), Err(Denied::NoIdentity));
        extensions.insert(Passed(None));
        assert_eq!(peer_of(&extensions), Ok(None));
    }
}
