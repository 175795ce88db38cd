//! Server connections that can be cut.
//!
//! A graceful shutdown asks every client to hang up and waits; a client that does not answer, or holds a
//! stream open, would make it wait for ever. tonic serves each connection in a task of its own that
//! nothing else can end, so the end comes from below: once cut, reading and writing fail.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::{
    ahead::{Ahead, WriteAhead},
    guard::Guarded,
};

/// A connection that fails once its token is cancelled.
pub struct Connection<S = Guarded> {
    stream: S,
    ahead: Ahead,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Connection<S> {
    /// Wraps an accepted connection.
    pub fn new(stream: S, cut: CancellationToken) -> Self {
        Self { stream, ahead: Ahead::new(Instant::now()), cut: Box::pin(cut.cancelled_owned()) }
    }

    #[cfg(test)]
    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server stopped")),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: WriteAhead> Connection<S> {
    fn wrote(&mut self, bytes: usize) {
        if let Some(ahead) = self.ahead.wrote(bytes, Instant::now()) {
            self.stream.write_ahead(ahead);
        }
    }
}

impl<S: Connected> Connected for Connection<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Reading alone registers for the cut: a connection's task always wants to read.
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + WriteAhead + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let bytes = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.wrote(bytes);
        Poll::Ready(Ok(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let bytes = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.wrote(bytes);
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
