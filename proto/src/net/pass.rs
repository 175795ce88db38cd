//! The ticket that this program shows to holders.

use std::sync::{Arc, PoisonError, RwLock};

use http::{HeaderMap, HeaderName, HeaderValue};
use prost::{Message, bytes::Bytes};
use tonic::metadata::{Binary, MetadataMap, MetadataValue};

use crate::{ticket, wire};

/// The bytes of a ticket that was shown, as they stand in the request's header.
pub fn decoded(header: &HeaderValue) -> Option<Bytes> {
    let headers = HeaderMap::from_iter([(HeaderName::from_static(ticket::HEADER), header.clone())]);
    MetadataMap::from_headers(headers).get_bin(ticket::HEADER)?.to_bytes().ok()
}

/// The present ticket, if there is one. Clones show the same.
#[derive(Debug, Clone, Default)]
pub struct Pass(Arc<RwLock<Option<MetadataValue<Binary>>>>);

impl Pass {
    /// Shows this ticket from now on.
    pub fn show(&self, ticket: &wire::Ticket) {
        let shown = MetadataValue::from_bytes(&ticket.encode_to_vec());
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(shown);
    }

    pub(crate) fn metadata(&self) -> Option<MetadataValue<Binary>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(self.metadata()?.as_encoded_bytes()).ok()
    }
}
