//! `download`: starts a transfer, or attaches to it, and follows it to its end.
//!
//! Whatever happens, the view is told exactly one end. The transfer belongs to the daemon: only a signal
//! cancels it, and a reader of stdout that leaves does not.

use std::{
    fs::File,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use drizzle_proto::{
    FileName,
    wire::{self, download_event::Event},
};
use tokio::time::MissedTickBehavior;
use tonic::{Status, Streaming};

use crate::{
    args,
    connect::{Daemon, Place},
    exit::{Exit, Failure},
    format::bytes,
    paths,
    progress::Progress,
    reasons::Report,
    render::{self, View},
    signals::Interrupts,
};

/// How often the screen and the rates are brought up to date.
const TICK: Duration = Duration::from_millis(100);

/// How long a cancelled transfer may take to end; the daemon drains what is in flight.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) async fn run(
    peer: &Place,
    download: args::Download,
    json: bool,
    interrupts: Interrupts,
) -> Result<Exit, Failure> {
    // That it cannot be written is told before anything is fetched.
    let report = download.report.as_deref().map(ReportFile::create).transpose()?;
    let mut view = render::view(json);
    let mut progress = Progress::new(download.name.to_string());
    let ended = follow(peer, &download, view.as_mut(), &mut progress, interrupts).await;
    if let Some(report) = report {
        report.write(peer, &download.name, ended.as_ref().err()).await?;
    }
    match ended {
        Ok(done) => {
            view.done(&progress, &done)?;
            Ok(Exit::Done)
        }
        Err(failure) => {
            let exit = failure.exit;
            view.failed(&progress, failure)?.map_or(Ok(exit), Err)
        }
    }
}

/// Where the reasons of a download are written at its end.
struct ReportFile<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> ReportFile<'a> {
    fn create(path: &'a Path) -> Result<Self, Failure> {
        let failed = |error| Failure::new(Exit::Other, format!("cannot write the report {}: {error}", path.display()));
        Ok(Self { path, file: File::create(path).map_err(failed)? })
    }

    /// Asks the daemon for them once more: it knows them also when the download failed.
    async fn write(mut self, peer: &Place, name: &FileName, failure: Option<&Failure>) -> Result<(), Failure> {
        let unknown = || wire::Explanation {
            name: name.to_string(),
            state: wire::explanation::State::Failed.into(),
            failure: failure.map_or_else(String::new, |failure| failure.reason.clone()),
            ..Default::default()
        };
        let told = async {
            let daemon = Daemon::connect(peer).await.ok()?;
            let request = wire::ExplainRequest { name: name.to_string() };
            let answer = daemon.control.clone().explain(request).await.ok()?;
            answer.into_inner().explanations.into_iter().next()
        };
        // Of one that never began to fetch the daemon knows nothing.
        let reasons = told.await.unwrap_or_else(unknown);
        let report = Report::new(&reasons);
        let is_page = self.path.extension().is_some_and(|extension| extension == "html");
        let text = if is_page { report.html() } else { format!("{:#}\n", serde_json::json!(report)) };
        let failed =
            |error| Failure::new(Exit::Other, format!("cannot write the report {}: {error}", self.path.display()));
        self.file.write_all(text.as_bytes()).map_err(failed)
    }
}

/// What this process calls itself among the callers of a download.
fn caller() -> String {
    use std::hash::{BuildHasher, Hasher};
    // Seeded by the operating system.
    let random = std::hash::RandomState::new().build_hasher().finish();
    format!("{}-{random:016x}", std::process::id())
}

fn request(download: &args::Download, caller: &str, steps: bool) -> Result<wire::DownloadRequest, Failure> {
    let output = download.output.as_ref().map(|output| paths::destination(output, &download.name));
    // 0 would mean the default on the wire.
    let millis = |timeout: Duration| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
    Ok(wire::DownloadRequest {
        name: download.name.to_string(),
        output: output.transpose()?.unwrap_or_default(),
        chunks: download.chunks.as_ref().map(Into::into),
        timeout_millis: download.timeout.map_or(0, millis),
        caller: caller.to_owned(),
        steps,
        priority: wire::Priority::from(download.priority).into(),
    })
}

async fn follow(
    peer: &Place,
    download: &args::Download,
    view: &mut dyn View,
    progress: &mut Progress,
    mut interrupts: Interrupts,
) -> Result<wire::DownloadDone, Failure> {
    let caller = caller();
    let request = request(download, &caller, view.wants_steps())?;
    let daemon = tokio::select! {
        daemon = Daemon::connect(peer) => daemon?,
        exit = interrupts.next() => return Err(Failure::new(exit, "interrupted")),
    };
    let mut control = daemon.control.clone();
    let stream = tokio::select! {
        stream = control.download(request) => stream,
        // The request may have arrived.
        exit = interrupts.next() => {
            view.cancelling()?;
            return leave(&daemon, None, progress, &caller, exit).await;
        }
    };
    let mut stream = stream.map_err(|status| not_started(&daemon, &status))?.into_inner();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            exit = interrupts.next() => {
                view.cancelling()?;
                return leave(&daemon, Some(stream), progress, &caller, exit).await;
            }
            now = ticks.tick() => {
                progress.observe(now.into_std());
                view.tick(progress, Instant::now())?;
            }
            received = stream.message() => match message(&daemon, &progress.name, received) {
                Message::Event(event) => {
                    progress.apply(&event);
                    view.event(progress, &event)?;
                }
                Message::Unknown => {}
                Message::End(end) => return end,
            }
        }
    }
}

fn not_started(daemon: &Daemon, status: &Status) -> Failure {
    daemon.failure(status).hint_if(Exit::NoSuchFile, "`peer-cli files` lists registered files.")
}

/// A message of the stream.
enum Message {
    /// An event on the way.
    Event(Event),
    /// One that this version does not know.
    Unknown,
    /// The end.
    End(Result<wire::DownloadDone, Failure>),
}

fn message(daemon: &Daemon, name: &str, message: Result<Option<wire::DownloadEvent>, Status>) -> Message {
    match message {
        Ok(Some(wire::DownloadEvent { event: Some(Event::Done(done)) })) => Message::End(Ok(done)),
        Ok(Some(wire::DownloadEvent { event: Some(Event::Failed(failed)) })) => {
            Message::End(Err(Failure::from_download(name, failed)))
        }
        Ok(Some(other)) => other.event.map_or(Message::Unknown, Message::Event),
        Ok(None) => Message::End(Err(daemon.gone("it ended the answer too early"))),
        Err(status) => Message::End(Err(not_started(daemon, &status))),
    }
}

/// The transfer goes on for other callers.
struct GoesOn;

/// Leaves the transfer, which the daemon then cancels unless another caller follows it, and reads on meanwhile: the
/// last event tells what is missing, or that it was done already.
async fn leave(
    daemon: &Daemon,
    stream: Option<Streaming<wire::DownloadEvent>>,
    progress: &mut Progress,
    caller: &str,
    exit: Exit,
) -> Result<wire::DownloadDone, Failure> {
    let mut control = daemon.control.clone();
    let request = wire::CancelTransferRequest { name: progress.name.clone(), caller: caller.to_owned() };
    let leaving = async {
        let answer = control.cancel_transfer(request).await;
        // A transfer that goes on has no last event to wait for.
        if answer.as_ref().is_ok_and(|answer| answer.get_ref().goes_on) { Err(GoesOn) } else { Ok(answer) }
    };
    let both = async { tokio::try_join!(leaving, async { Ok(last(daemon, stream, progress).await) }) };
    let answer = match tokio::time::timeout(CANCEL_TIMEOUT, both).await {
        Ok(Err(GoesOn)) => {
            let reason = format!("left the download of {}; it goes on for its other callers", progress.name);
            let hint = format!("`peer-cli cancel {}` ends it for all of them.", progress.name);
            return Err(Failure::new(exit, reason).hint(hint));
        }
        Ok(Ok(both)) => Ok(both),
        Err(late) => Err(late),
    };
    let name = &progress.name;
    let (answer, end) = match answer {
        Ok((answer, end)) => (answer.map(|_| ()), end),
        Err(_) => (Err(Status::deadline_exceeded("no answer in time")), None),
    };
    match (answer, end) {
        (_, Some(Ok(done))) => Ok(done),
        (Err(status), _) if status.code() != tonic::Code::NotFound => {
            let reason =
                format!("interrupted, but the daemon did not cancel the transfer: {}", daemon.failure(&status).reason);
            Err(Failure::new(exit, reason).hint(format!("`peer-cli cancel {name}` ends it if it still runs.")))
        }
        (_, end) => {
            let kept = match progress.total {
                0 => String::new(),
                total => format!(" ({} of {})", bytes(progress.stored), bytes(total)),
            };
            let reason = format!("cancelled {name}; its verified chunks are kept{kept}");
            let failure = Failure::new(exit, reason).hint("Run the same command to go on from there.");
            match end {
                Some(Err(ended)) => Err(Failure { chunks: ended.chunks, blamed: ended.blamed, ..failure }),
                _ => Err(failure),
            }
        }
    }
}

/// How the stream ends, if there is one.
async fn last(
    daemon: &Daemon,
    stream: Option<Streaming<wire::DownloadEvent>>,
    progress: &mut Progress,
) -> Option<Result<wire::DownloadDone, Failure>> {
    let mut stream = stream?;
    loop {
        match message(daemon, &progress.name, stream.message().await) {
            Message::Event(event) => progress.apply(&event),
            Message::Unknown => {}
            Message::End(end) => return Some(end),
        }
    }
}
