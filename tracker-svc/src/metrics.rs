//! What a monitor reads of the tracker: what is counted as it happens, and what is looked up at a scrape. The README's
//! table says what each number means; a test keeps the two alike.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use drizzle_proto::metrics::{Counter, Exposition, Family, Histogram, Label, Sheet, exponential_buckets};
use http::{Request, Response};
use tonic::{Code, body::Body, server::NamedService};
use tower_service::Service;

use crate::{access::Access, census::Census, registry::Registry};

const PREFIX: &str = "drizzle_tracker";
/// The methods of the Tracker service, as their paths end. Other paths are counted together.
const METHODS: [&str; 9] = [
    "RegisterPeer",
    "RegisterChunk",
    "RegisterManifest",
    "RenewLease",
    "Leave",
    "WithdrawFile",
    "ListFiles",
    "FileLocations",
    "WatchFile",
];

/// A method, and the gRPC code of its answer.
type Refusal = [(&'static str, &'static str); 2];

/// From a quarter of a millisecond to four seconds, and beyond.
pub(crate) fn times() -> Histogram {
    Histogram::new(exponential_buckets(0.00025, 4.0, 8))
}

/// What is counted as it happens.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    calls: Family<Label, Histogram>,
    refused: Family<Refusal, Counter>,
    /// From when a watch heard of a change until its connection took the message.
    pub(crate) watch_lag: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let calls: Family<Label, Histogram> = Family::new_with_constructor(times);
        METHODS.iter().for_each(|method| drop(calls.get_or_create(&[("method", method)])));
        Self { calls, refused: Family::default(), watch_lag: times() }
    }
}

impl Metrics {
    fn register(&self, exposition: &mut Exposition) {
        let counted = exposition.counted();
        counted.register("call_seconds", "How long calls took until their answer began", self.calls.clone());
        let help = "Calls that were refused or failed, by the code of gRPC";
        counted.register("calls_refused", help, self.refused.clone());
        let help = "From when a watch heard of a change until its connection took the message";
        counted.register("watch_lag_seconds", help, self.watch_lag.clone());
    }

    fn answered<B>(&self, method: &'static str, begun: Instant, answer: &Response<B>) {
        self.calls.get_or_create(&[("method", method)]).observe(begun.elapsed().as_secs_f64());
        // A refusal has no message: its status stands in the headers.
        let code = answer.headers().get("grpc-status").map(|status| Code::from_bytes(status.as_bytes()));
        if let Some(code) = code.filter(|code| *code != Code::Ok) {
            self.refused.get_or_create(&[("method", method), ("code", name_of(code))]).inc();
        }
    }
}

/// As the gRPC specification writes it.
fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// A service whose calls are timed.
#[derive(Debug, Clone)]
pub(crate) struct Timed<S> {
    service: S,
    metrics: Metrics,
}

impl<S> Timed<S> {
    pub(crate) fn new(service: S, metrics: Metrics) -> Self {
        Self { service, metrics }
    }
}

impl<S: NamedService> NamedService for Timed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<Request<Body>> for Timed<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let method = METHODS.iter().copied().find(|known| *known == method).unwrap_or("other");
        let (begun, metrics) = (Instant::now(), self.metrics.clone());
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            metrics.answered(method, begun, &answer);
            Ok(answer)
        })
    }
}

/// What the numbers are taken of.
pub(crate) struct Sources {
    pub(crate) registry: Registry,
    pub(crate) access: Access,
    pub(crate) metrics: Metrics,
    /// How long writes of the catalogue took.
    pub(crate) writes: Histogram,
}

/// All numbers of a tracker.
pub(crate) fn exposition(sources: Sources, handshakes: drizzle_proto::net::handshakes::Handshakes) -> Exposition {
    let Sources { registry, access, metrics, writes } = sources;
    let mut exposition = Exposition::new(PREFIX);
    metrics.register(&mut exposition);
    exposition.counted().register("catalogue_write_seconds", "How long writes of the catalogue took", writes);
    exposition.looked_up(move |sheet| look(sheet, &registry.census(Instant::now()), &access));
    exposition.handshakes(handshakes);
    exposition
}

fn look(sheet: &mut Sheet<'_>, census: &Census, access: &Access) -> fmt::Result {
    let Census { live, counts, uptime, hash_bytes } = census;
    sheet.gauge("uptime_seconds", "Since the start", uptime.as_secs_f64())?;
    sheet.gauge("peers", "Peers with a lease", live.peers as u64)?;
    sheet.gauge("files", "Files that live peers hold or watch", live.swarms as u64)?;
    sheet.gauge("holders", "Peers that hold a file or a part of it, over all files", live.holders as u64)?;
    sheet.gauge("watches", "Watches of files", live.watches as u64)?;
    let announced = [("registered", counts.registered), ("refused", counts.refused), ("invalid", counts.invalid)];
    let help = "What peers announced, by what became of it: registered, refused because the name stands for other content, invalid";
    sheet.counters("announcements", help, "result", announced)?;
    let memory = [("hashes", *hash_bytes), ("staged", live.staged_bytes as u64)];
    let help = "Bytes in memory: hashes that were asked for lately, manifests that arrive in parts";
    sheet.gauges("memory_bytes", help, "part", memory)?;
    let (identities, revoked, tokens, stops) = access.look(|state| state.counts());
    let help = "Identities that may do something, and those that were revoked";
    sheet.gauges("identities", help, "state", [("granted", identities), ("revoked", revoked)])?;
    sheet.gauge("tokens", "Join tokens that are kept", tokens)?;
    sheet.gauge("stops", "Names and prefixes that an operator stopped", stops)?;
    let help = "Callers that were refused for who they are, by reason";
    sheet.counters("denied", help, "reason", access.denials())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_are_timed_and_refusals_counted_under_names_that_do_not_grow() {
        let metrics = Metrics::default();
        let answers = |path: &str| {
            let refuses = path.ends_with("Leave") || path.ends_with("Nonsense");
            let mut answer = Response::new(());
            if refuses {
                answer.headers_mut().insert("grpc-status", "7".parse().unwrap());
            }
            std::future::ready(Ok::<_, Infallible>(answer))
        };
        let mut service =
            Timed::new(tower_service_fn(move |request: Request<Body>| answers(request.uri().path())), metrics.clone());
        for path in ["/drizzle.v1.Tracker/Leave", "/drizzle.v1.Tracker/ListFiles", "/x/Nonsense", "/x/More"] {
            service.call(Request::get(format!("http://x{path}")).body(Body::empty()).unwrap()).await.unwrap();
        }
        let mut exposition = Exposition::new(PREFIX);
        metrics.register(&mut exposition);
        let text = exposition.text().unwrap();
        for line in [
            "drizzle_tracker_call_seconds_count{method=\"Leave\"} 1",
            "drizzle_tracker_call_seconds_count{method=\"ListFiles\"} 1",
            "drizzle_tracker_call_seconds_count{method=\"other\"} 2",
            "drizzle_tracker_calls_refused_total{method=\"Leave\",code=\"PERMISSION_DENIED\"} 1",
            "drizzle_tracker_calls_refused_total{method=\"other\",code=\"PERMISSION_DENIED\"} 1",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n in\n{text}");
        }
        assert!(!text.contains("Nonsense"));
    }

    /// A service of one function.
    #[derive(Clone)]
    struct Of<F>(F);

    fn tower_service_fn<F>(function: F) -> Of<F> {
        Of(function)
    }

    impl<F, R> Service<Request<Body>> for Of<F>
    where
        F: FnMut(Request<Body>) -> R,
        R: Future<Output = Result<Response<()>, Infallible>>,
    {
        type Response = Response<()>;
        type Error = Infallible;
        type Future = R;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> R {
            (self.0)(request)
        }
    }
}
