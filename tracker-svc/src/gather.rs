//! How much of requests is gathered at once: a caller may begin a thousand of four MiB over each of its connections, and
//! never end them.
//!
//! What holds (each line has a test):
//! - one connection has at most [`MOST_OF_ONE`] under way, all together [`MOST`]; what a call sent counts until it is
//!   answered, and is given back then, however it ends;
//! - the first [`FREE`] of each call are always taken, so that renewals and questions pass whoever fills the rest;
//! - a request that comes too slowly is given up.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use drizzle_proto::net::{caller::Accepted, transport::CALL_TIMEOUT};
use http::{Request, Response};
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep};
use tonic::{Status, body::Body, server::NamedService};
use tower_service::Service;

/// Bytes of requests under way over all connections.
const MOST: usize = 96 << 20;
/// And over one: several manifests of the largest kind.
const MOST_OF_ONE: usize = 32 << 20;
/// Bytes of each call that do not count: more than what has no hashes and no sets in it.
const FREE: usize = 4 << 10;
/// So many bytes a second have to come, from the first call's timeout on.
const SLOWEST: usize = 16 << 10;

#[derive(Debug, Default)]
struct Gathered {
    all: usize,
    of: HashMap<Option<SocketAddr>, usize>,
}

/// What is gathered at present. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gathering(Arc<Mutex<Gathered>>);

impl Gathering {
    fn with<T>(&self, change: impl FnOnce(&mut Gathered) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What one call has sent so far.
#[derive(Debug)]
struct Account {
    gathering: Gathering,
    from: Option<SocketAddr>,
    came: usize,
    counted: usize,
}

impl Account {
    /// Takes some bytes, or says that there is no room for them.
    fn take(&mut self, bytes: usize) -> Result<(), Status> {
        self.came += bytes;
        let more = self.came.saturating_sub(FREE) - self.counted;
        if more == 0 {
            return Ok(());
        }
        let from = self.from;
        let fits = self.gathering.with(|gathered| {
            let own = gathered.of.entry(from).or_default();
            let fits = *own + more <= MOST_OF_ONE && gathered.all + more <= MOST;
            if fits {
                *own += more;
                gathered.all += more;
            }
            fits
        });
        if !fits {
            return Err(Status::resource_exhausted("too much of other requests is under way; try again later"));
        }
        self.counted += more;
        Ok(())
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let (from, counted) = (self.from, self.counted);
        self.gathering.with(|gathered| {
            gathered.all -= counted;
            let left = gathered.of.get_mut(&from).map(|own| {
                *own -= counted;
                *own
            });
            if left == Some(0) {
                gathered.of.remove(&from);
            }
        });
    }
}

/// A service whose requests count.
#[derive(Debug, Clone)]
pub(crate) struct Counted<S> {
    service: S,
    gathering: Gathering,
}

impl<S> Counted<S> {
    /// Counts the requests of a service.
    pub(crate) fn new(service: S, gathering: Gathering) -> Self {
        Self { service, gathering }
    }
}

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let from = request.extensions().get::<Accepted>().and_then(Accepted::remote);
        let account = Account { gathering: self.gathering.clone(), from, came: 0, counted: 0 };
        // Held by the call and its body: a handler may drop the body long before it is done with what came.
        let account = Arc::new(Mutex::new(account));
        let counts = account.clone();
        let begun = Instant::now();
        let body = |inner| Counting { inner, account: counts, begun, late: Box::pin(sleep(CALL_TIMEOUT)), came: 0 };
        let answer = self.service.call(request.map(|inner| Body::new(body(inner))));
        Box::pin(async move {
            let answered = answer.await;
            drop(account);
            answered
        })
    }
}

/// A request's bytes as they come.
struct Counting {
    inner: Body,
    account: Arc<Mutex<Account>>,
    begun: Instant,
    late: Pin<Box<Sleep>>,
    came: usize,
}

impl Counting {
    /// When so much has to be there.
    fn due(&self) -> Instant {
        let seconds = u64::try_from(self.came / SLOWEST).unwrap_or(u64::MAX);
        self.begun + CALL_TIMEOUT + Duration::from_secs(seconds)
    }
}

impl http_body::Body for Counting {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        while self.late.as_mut().poll(context).is_ready() {
            let due = self.due();
            if due <= Instant::now() {
                return Poll::Ready(Some(Err(Status::deadline_exceeded("the request came too slowly"))));
            }
            self.late.as_mut().reset(due);
        }
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        let bytes = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        self.came += bytes;
        let taken = self.account.lock().unwrap_or_else(PoisonError::into_inner).take(bytes);
        Poll::Ready(match taken {
            Ok(()) => frame,
            Err(refused) => Some(Err(refused)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;

    fn account(gathering: &Gathering, port: u16) -> Account {
        let from = Some(SocketAddr::from(([10, 0, 0, 1], port)));
        Account { gathering: gathering.clone(), from, came: 0, counted: 0 }
    }

    #[test]
    fn a_connection_has_its_share_and_all_have_theirs_and_it_is_given_back() {
        let gathering = Gathering::default();
        let mut accounts: Vec<Account> = (0..4).map(|port| account(&gathering, port)).collect();
        for account in &mut accounts[..3] {
            account.take(MOST_OF_ONE + FREE).unwrap();
            account.take(1).unwrap_err();
        }
        let [.., other] = &mut accounts[..] else { panic!("there are four") };
        other.take(FREE).expect("what is small always passes");
        other.take(1).unwrap_err();
        drop(accounts);
        assert_eq!(gathering.with(|gathered| (gathered.all, gathered.of.len())), (0, 0));
        account(&gathering, 0).take(1 << 20).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_drips_is_given_up_and_one_that_is_only_slow_is_not() {
        /// A byte, or as much as is asked for, each second.
        struct Drips(usize, Pin<Box<Sleep>>);
        impl http_body::Body for Drips {
            type Data = Bytes;
            type Error = Status;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
                ready!(self.1.as_mut().poll(context));
                self.1.as_mut().reset(Instant::now() + Duration::from_secs(1));
                Poll::Ready(Some(Ok(Frame::data(vec![0; self.0].into()))))
            }
        }
        for (each, passes) in [(1, false), (2 * SLOWEST, true)] {
            let mut counting = Counting {
                inner: Body::new(Drips(each, Box::pin(sleep(Duration::ZERO)))),
                account: Arc::new(Mutex::new(account(&Gathering::default(), 1))),
                begun: Instant::now(),
                late: Box::pin(sleep(CALL_TIMEOUT)),
                came: 0,
            };
            let mut all_passed = true;
            for _ in 0..60 {
                let frame = std::future::poll_fn(|context| Pin::new(&mut counting).poll_frame(context)).await;
                all_passed &= frame.unwrap().is_ok();
            }
            assert_eq!(all_passed, passes, "{each} bytes a second");
        }
    }
}
