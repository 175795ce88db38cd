//! The connections of a bound listener, and what becomes of a failed accept.
//!
//! tonic skips every error of its listener and asks again at once: a daemon that is out of descriptors would spin,
//! and one whose listener is gone would live on deaf. So errors end here. What holds:
//! - a connection that failed before it was accepted costs nothing but itself;
//! - a shortage of this machine (descriptors, memory) is waited out with a pause, and said once; what connects
//!   meanwhile waits in the kernel's queue;
//! - any other error is the listener's own: nothing is asked of it again, and [`Incoming::broken`] tells.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::io::Errno;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::oneshot,
    time::{Instant, Sleep, sleep},
};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

use super::{cut::Connection, guard::Guarded};

/// Between attempts in a shortage, and after many failed connections in a row.
const PAUSE: Duration = Duration::from_millis(100);
/// A shortage that lasts is said again this often.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// Failed connections in a row that are skipped without a pause.
const SKIPPED: u32 = 64;

/// What an error of accept means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// One connection failed before it was accepted.
    Connection,
    /// This machine or this process has too little of something, for now.
    Shortage,
    /// The listener is of no use any more.
    Broken,
}

impl Meaning {
    /// By accept(2): Linux passes errors that wait on the new socket, and those of the firewall.
    fn of(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            // The last one is the limit of watched descriptors.
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::NOSPC) => Self::Shortage,
            Some(
                Errno::AGAIN
                | Errno::INTR
                | Errno::CONNABORTED
                | Errno::CONNRESET
                | Errno::PERM
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::TIMEDOUT
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH,
            ) => Self::Connection,
            #[cfg(target_os = "linux")]
            Some(Errno::NONET) => Self::Connection,
            _ => Self::Broken,
        }
    }
}

/// Where connections come from; tests put errors in its place.
pub trait Listen: Unpin {
    /// A connection.
    type Stream;

    /// As [`TcpListener::poll_accept`].
    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Self::Stream>>;
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        UnixListener::poll_accept(self, context).map_ok(|(stream, _)| stream)
    }
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
        TcpListener::poll_accept(self, context).map_ok(|(stream, _)| stream)
    }
}

/// What becomes of a connection that was accepted; none if it is closed at once.
type Take<S, G> = Box<dyn FnMut(S) -> Option<G> + Send>;

/// A bound listener's connections. It never ends: a listener that broke has no more of them.
pub struct Incoming<L: Listen = TcpListener, G = Guarded> {
    listener: L,
    cut: CancellationToken,
    take: Take<L::Stream, G>,
    pause: Option<Pin<Box<Sleep>>>,
    failed_in_a_row: u32,
    shortage_said: Option<Instant>,
    /// Taken once it has been told.
    breaks: Option<oneshot::Sender<io::Error>>,
    broken: Option<oneshot::Receiver<io::Error>>,
}

impl<L: Listen, G> Incoming<L, G> {
    /// Each connection passes `take` first. Cancelling `cut` closes them all, whatever they are doing.
    pub fn new(listener: L, cut: CancellationToken, take: impl FnMut(L::Stream) -> Option<G> + Send + 'static) -> Self {
        let (breaks, broken) = oneshot::channel();
        Self {
            listener,
            cut,
            take: Box::new(take),
            pause: None,
            failed_in_a_row: 0,
            shortage_said: None,
            breaks: Some(breaks),
            broken: Some(broken),
        }
    }

    /// Ends with the error once the listener broke, or with `None` once this stream was dropped. The first call
    /// has the answer, further ones `None`.
    pub fn broken(&mut self) -> impl Future<Output = Option<io::Error>> + Send + use<L, G> {
        let broken = self.broken.take();
        async { broken?.await.ok() }
    }

    fn failed(&mut self, error: io::Error) {
        match Meaning::of(&error) {
            Meaning::Connection => {
                tracing::debug!(%error, "a connection failed before it was accepted");
                self.failed_in_a_row += 1;
                if self.failed_in_a_row.is_multiple_of(SKIPPED) {
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
            Meaning::Shortage => {
                let now = Instant::now();
                if self.shortage_said.is_none_or(|said| now >= said + SAY_AGAIN) {
                    self.shortage_said = Some(now);
                    tracing::warn!(
                        %error,
                        "cannot accept connections for now, new ones wait; if this lasts, raise the limit of open files or free memory"
                    );
                }
                self.pause = Some(Box::pin(sleep(PAUSE)));
            }
            Meaning::Broken => {
                // Without a receiver only this stream is left to stop.
                let _ = self.breaks.take().map(|breaks| breaks.send(error));
            }
        }
    }
}

impl<L: Listen, G> Stream for Incoming<L, G> {
    type Item = io::Result<Connection<G>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.breaks.is_none() {
                return Poll::Pending;
            }
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(context)) {
                Ok(stream) => {
                    self.failed_in_a_row = 0;
                    if let Some(stream) = (self.take)(stream) {
                        return Poll::Ready(Some(Ok(Connection::new(stream, self.cut.clone()))));
                    }
                }
                Err(error) => self.failed(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio_stream::StreamExt;

    use super::*;

    /// A real listener whose accept fails in this way first, and counts how often it was asked.
    struct Failing {
        listener: TcpListener,
        errors: VecDeque<Errno>,
        asked: u32,
    }

    impl Listen for Failing {
        type Stream = TcpStream;

        fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<TcpStream>> {
            self.asked += 1;
            match self.errors.pop_front() {
                Some(error) => Poll::Ready(Err(error.into())),
                None => Listen::poll_accept(&mut self.listener, context),
            }
        }
    }

    async fn failing(errors: impl IntoIterator<Item = Errno>) -> Incoming<Failing, TcpStream> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Incoming::new(
            Failing { listener, errors: errors.into_iter().collect(), asked: 0 },
            CancellationToken::new(),
            Some,
        )
    }

    /// Connects, and is accepted.
    async fn accepts(incoming: &mut Incoming<Failing, TcpStream>) {
        let address = incoming.listener.listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), incoming.next());
        client.unwrap();
        accepted.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_shortage_is_waited_out_and_not_spun_on() {
        for error in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::NOSPC] {
            let mut incoming = failing([error; 20]).await;
            let begun = Instant::now();
            accepts(&mut incoming).await;
            assert_eq!(begun.elapsed().as_millis() / PAUSE.as_millis(), 20, "{error}: a pause after each");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_shortage_is_said_once_and_again_only_if_it_lasts() {
        let mut incoming = failing([Errno::MFILE; 20]).await;
        accepts(&mut incoming).await;
        let first = incoming.shortage_said.expect("it was said");
        incoming.listener.errors.extend([Errno::MFILE; 20]);
        accepts(&mut incoming).await;
        assert_eq!(incoming.shortage_said, Some(first), "the second shortage within a minute is the same news");
        tokio::time::advance(SAY_AGAIN).await;
        incoming.listener.errors.extend([Errno::MFILE; 20]);
        accepts(&mut incoming).await;
        assert!(incoming.shortage_said > Some(first));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_fails_early_costs_only_itself() {
        let errors = [
            Errno::CONNABORTED,
            Errno::CONNRESET,
            Errno::INTR,
            Errno::AGAIN,
            Errno::PERM,
            Errno::PROTO,
            Errno::NETDOWN,
            Errno::NETUNREACH,
            Errno::HOSTUNREACH,
            Errno::TIMEDOUT,
        ];
        let mut incoming = failing(errors).await;
        let begun = Instant::now();
        accepts(&mut incoming).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "those that follow do not wait for it");
        assert_eq!(incoming.shortage_said, None);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_fail_without_end_are_not_spun_on() {
        let mut incoming = failing(std::iter::repeat_n(Errno::CONNABORTED, 10 * SKIPPED as usize)).await;
        let begun = Instant::now();
        accepts(&mut incoming).await;
        assert_eq!(begun.elapsed().as_millis() / PAUSE.as_millis(), 10);
    }

    #[tokio::test]
    async fn a_listener_that_is_broken_is_told_and_left_alone() {
        for error in [Errno::BADF, Errno::INVAL, Errno::NOTSOCK, Errno::OPNOTSUPP, Errno::NOSYS] {
            let mut incoming = failing([error; 9]).await;
            let broken = incoming.broken();
            tokio::select! {
                told = broken => assert_eq!(told.unwrap().raw_os_error(), Some(error.raw_os_error())),
                next = incoming.next() => panic!("a stream that ended would wait for its connections: {:?}", next.is_some()),
            }
            assert_eq!(incoming.listener.asked, 1, "{error}");
        }
    }

    #[tokio::test]
    async fn a_listener_that_the_kernel_shut_is_broken() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let kernel_side = listener.try_clone().unwrap();
        let mut incoming = Incoming::new(TcpListener::from_std(listener).unwrap(), CancellationToken::new(), Some);
        let broken = incoming.broken();
        let serving = tokio::spawn(async move { incoming.next().await.is_some() });
        rustix::net::shutdown(&kernel_side, rustix::net::Shutdown::Both).unwrap();
        assert!(broken.await.is_some());
        serving.abort();
    }

    #[tokio::test]
    async fn a_stream_that_was_dropped_is_not_broken() {
        let mut incoming = failing([]).await;
        let broken = incoming.broken();
        drop(incoming);
        assert!(broken.await.is_none());
    }
}
