//! The client's end: a TCP connection, and TLS over it with the identity that is meant.

use std::{
    error::Error,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::Uri;
use tower_service::Service;

use super::{
    handshakes::{End, Handshakes, Went},
    tls::{Mode, Tls},
};

/// Bytes that are read of a secured connection at once: by itself rustls reads 4 KiB, a quarter of a record.
const READ: usize = 128 << 10;

/// Makes connections.
#[derive(Debug, Clone)]
pub(super) struct Dialler {
    tcp: HttpConnector,
    /// With which, and the name that is dialled; absent: without TLS.
    secured: Option<(Arc<Tls>, ServerName<'static>)>,
    handshakes: Handshakes,
}

/// A connection that was made.
#[derive(Debug)]
pub(super) enum Dialled {
    Plain(TcpStream),
    Secure(Box<TlsStream<BufReader<TcpStream>>>),
}

/// Why a secured connection was not made: said for a person.
#[derive(Debug, thiserror::Error)]
enum Insecure {
    #[error("it does not speak TLS; start it with --tls, or this one with --tls off or --tls prefer")]
    NotSpoken,
    #[error(
        "its certificate is not of an authority that is trusted here; have both join the same tracker, or give both the same --tls-ca"
    )]
    NotTrusted,
    #[error(
        "its certificate has run out; it renews it by itself once it reaches the tracker, unless it was given files: then renew those"
    )]
    RanOut,
    #[error("its certificate is not valid yet: the clocks of the two machines differ")]
    TooEarly,
    #[error("its certificate is not for that name, and does not say that it is a tracker's")]
    NotForName,
    #[error("{0}")]
    Other(rustls::Error),
}

impl Dialler {
    pub(super) fn new(
        tcp: HttpConnector,
        secured: Option<(Arc<Tls>, ServerName<'static>)>,
        handshakes: Handshakes,
    ) -> Self {
        Self { tcp, secured, handshakes }
    }
}

type Failure = Box<dyn Error + Send + Sync>;

impl Service<Uri> for Dialler {
    type Response = TokioIo<Dialled>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, mut again, secured) = (self.tcp.call(uri.clone()), self.tcp.clone(), self.secured.clone());
        let handshakes = self.handshakes.clone();
        Box::pin(async move {
            let tcp = connecting.await?.into_inner();
            let Some((tls, name)) = secured else { return Ok(TokioIo::new(Dialled::Plain(tcp))) };
            let dialled = TlsConnector::from(tls.configs().client.clone())
                .connect(name, BufReader::with_capacity(READ, tcp))
                .await;
            let went = match &dialled {
                Ok(stream) => Went::of(stream.get_ref().1.handshake_kind()),
                Err(_) => Went::Failed,
            };
            handshakes.count(End::Made, went);
            let dialled = match dialled.map_err(insecure) {
                Ok(stream) => Dialled::Secure(Box::new(stream)),
                Err(error) if tls.mode() == Mode::Preferred && is_not_spoken(&error) => {
                    Dialled::Plain(again.call(uri).await?.into_inner())
                }
                Err(error) => return Err(error),
            };
            Ok(TokioIo::new(dialled))
        })
    }
}

fn is_not_spoken(error: &Failure) -> bool {
    matches!(error.downcast_ref(), Some(Insecure::NotSpoken))
}

fn insecure(error: io::Error) -> Failure {
    use rustls::{CertificateError as Bad, Error as Tls};
    let ended = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
    Box::new(match inner {
        // What speaks HTTP/2 without it answers in that, or hangs up.
        Some(Tls::InvalidMessage(_)) => Insecure::NotSpoken,
        None if ended => Insecure::NotSpoken,
        Some(Tls::InvalidCertificate(bad)) => match bad {
            Bad::UnknownIssuer | Bad::BadSignature => Insecure::NotTrusted,
            Bad::Expired | Bad::ExpiredContext { .. } => Insecure::RanOut,
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => Insecure::TooEarly,
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => Insecure::NotForName,
            Bad::Other(other) => return other.0.to_string().into(),
            _ => Insecure::Other(Tls::InvalidCertificate(bad.clone())),
        },
        Some(other) => Insecure::Other(other.clone()),
        None => return Box::new(error),
    })
}

impl AsyncRead for Dialled {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Secure(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Secure(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Secure(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Secure(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
