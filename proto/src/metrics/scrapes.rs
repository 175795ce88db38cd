//! Answers scrapes over HTTP.
//!
//! What holds (each line has a test):
//! - one connection is one scrape, and is closed after `IN_TIME` whatever it does;
//! - at most `MOST` are open, and more wait: whoever opens many, and says nothing, costs others some seconds at most.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    http::{
        StatusCode,
        header::{CONNECTION, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::get,
    serve::Listener,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tokio_util::sync::CancellationToken;

use super::Exposition;

/// A scrape may take this long.
const IN_TIME: Duration = Duration::from_secs(10);
/// So many at once.
const MOST: usize = 32;

/// Answers scrapes at `/metrics` until `stop`.
pub async fn serve(listener: TcpListener, exposition: Exposition, stop: CancellationToken) {
    let exposition = Arc::new(exposition);
    let scrape = async move || scraped(&exposition);
    let router = Router::new().route("/metrics", get(scrape));
    let places = Arc::new(Semaphore::new(MOST));
    let serving = axum::serve(Bounded { listener, places }, router);
    // It has no errors of its own: those of a connection end that one.
    let _ = serving.with_graceful_shutdown(stop.cancelled_owned()).await;
}

fn scraped(exposition: &Exposition) -> Response {
    match exposition.text() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, kind), (CONNECTION, "close")], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Takes a connection once there is a place for it.
struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Listener for Bounded {
    type Io = Scraper;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Scraper, SocketAddr) {
        loop {
            // It is never closed.
            let place = self.places.clone().acquire_owned().await.ok();
            // Waits by itself when the system has no more files.
            let (stream, address) = Listener::accept(&mut self.listener).await;
            if let Some(place) = place {
                return (Scraper { stream, deadline: Box::pin(sleep(IN_TIME)), _place: place }, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection.
struct Scraper {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Scraper {
    fn in_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Scraper {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.in_time(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Scraper {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.in_time(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn scrape(address: SocketAddr, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The other end is to close it, though it may stay open by this.
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    async fn serving() -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let task = tokio::spawn(serve(listener, Exposition::new("drizzle_test"), stop.clone()));
        (address, stop, task)
    }

    #[tokio::test]
    async fn a_scrape_is_answered_until_the_end() {
        let (address, stop, task) = serving().await;
        let (head, body) = scrape(address, "/metrics").await;
        assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("application/openmetrics-text"), "{head}");
        assert!(body.ends_with("# EOF\n"), "{body}");
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_say_nothing_are_closed_in_time_and_cost_others_no_more() {
        let (address, _stop, _task) = serving().await;
        let mut silent = Vec::new();
        for _ in 0..2 * MOST {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let begun = tokio::time::Instant::now();
        let (head, _) = scrape(address, "/metrics").await;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        let waited = begun.elapsed();
        assert!((IN_TIME..3 * IN_TIME).contains(&waited), "behind two rounds of them: {waited:?}");
    }
}
