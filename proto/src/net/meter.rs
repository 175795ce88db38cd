//! Client connections whose bytes are counted as they come.
//!
//! A gRPC message is seen only when it is whole: a quarter of a MiB, which takes a slow link many seconds. What
//! the kernel hands over is seen at once, and so a slow stream can be told from one that has stalled.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use tokio_util::io::InspectReader;
use tonic::transport::Uri;
use tower_service::Service;

use super::dial::{Dialled, Dialler};

/// Bytes that came over the connections of one channel, whatever they were for. Never falls.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<AtomicU64>);

impl Meter {
    /// So far.
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sees what a connection reads.
type Count = Box<dyn FnMut(&[u8]) + Send>;

/// Makes connections that count into a meter.
#[derive(Debug, Clone)]
pub(super) struct MeteredConnector {
    dialler: Dialler,
    meter: Meter,
}

impl MeteredConnector {
    pub(super) fn new(dialler: Dialler, meter: Meter) -> Self {
        Self { dialler, meter }
    }
}

impl Service<Uri> for MeteredConnector {
    type Response = TokioIo<InspectReader<Dialled, Count>>;
    type Error = <Dialler as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.dialler.poll_ready(context)
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let (connecting, meter) = (self.dialler.call(address), self.meter.clone());
        let count: Count = Box::new(move |bytes| {
            meter.0.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        });
        Box::pin(async move { Ok(TokioIo::new(InspectReader::new(connecting.await?.into_inner(), count))) })
    }
}
