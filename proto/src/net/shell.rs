//! What every daemon does alike around its work: the runtime, the log, the ready line, signals, the end.
//!
//! A daemon's main parses its options and hands the rest to [`run`] and [`serve`]. What holds: an error ends
//! the program with exit code 1 and is printed once, as one line on stderr, whatever RUST_BACKTRACE says; the
//! log and the ready line are best effort and end nothing; the first signal drains and the second one ends at once.
//!
//! What panics is noticed. A task that lives as long as its daemon takes the daemon with it ([`watch_over`],
//! [`guard`]): what it kept up to date would go stale while health says serving, and a supervisor's restart is
//! cheap, since a crash loses nothing. A task that works for one caller fails that caller alone. Either way the log
//! has the panic's text. Likewise a daemon whose listener fails ends instead of living on deaf.

use std::{
    error::Error,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use clap::ValueEnum;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::{innermost, open_files, stderr::Stderr};
use crate::panics;

/// After the work, for threads that hang in the kernel: a dead disk must not keep the program.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// What ends a program: its text is for a person.
pub type Failure = Box<dyn Error + Send + Sync>;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// How a shutdown went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Everything in progress was finished.
    Fully,
    /// The drain's deadline came first, and what was left was cut off.
    CutOff,
}

/// A daemon that serves.
pub trait Daemon: Sized {
    /// What the ready line says after the word `ready`: `KEY=VALUE` pairs.
    fn ready(&self) -> String;

    /// Returns only if something ended by itself that must not.
    fn failed(&mut self) -> impl Future<Output = Failure> + Send;

    /// Ends it within the time that its options allow.
    fn shutdown(self) -> impl Future<Output = Drained> + Send;
}

/// Something that must run as long as its daemon ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The server gave up, for instance because its listener failed.
    #[error("the {part} failed: {}", innermost(.source))]
    Serve {
        /// The server in words, such as "peer service".
        part: &'static str,
        /// What the transport said.
        source: tonic::transport::Error,
    },
    /// Its listener is of no use any more, so nothing could connect.
    #[error("the {part} cannot accept connections any more: {source}; start this daemon again")]
    Listen {
        /// The server in words, such as "peer service".
        part: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It returned without being asked to.
    #[error("internal error: the {0} ended by itself")]
    Ended(&'static str),
    /// It panicked; the log has the panic's text.
    #[error("internal error: the {0} panicked")]
    Panicked(&'static str),
}

/// Runs a server, which ends only when `stop` is cancelled; anything else is reported as a fault.
pub async fn watch_over<F>(part: &'static str, server: F, stop: CancellationToken, faults: mpsc::Sender<Fault>)
where
    F: Future<Output = Result<(), tonic::transport::Error>> + Send + 'static,
{
    let ended = tokio::spawn(server).await;
    let fault = match ended {
        Ok(Err(source)) => Fault::Serve { part, source },
        Err(error) if error.is_panic() => Fault::Panicked(part),
        _ if stop.is_cancelled() => return,
        _ => Fault::Ended(part),
    };
    // With the channel full or closed the daemon is ending anyway.
    let _ = faults.try_send(fault);
}

/// Runs a task that the daemon cannot do without, but which may end: a panic in it is reported as a fault.
pub async fn guard(part: &'static str, task: impl Future<Output = ()> + Send + 'static, faults: mpsc::Sender<Fault>) {
    if tokio::spawn(task).await.is_err_and(|error| error.is_panic()) {
        let _ = faults.try_send(Fault::Panicked(part));
    }
}

/// Reports a listener that broke; `broken` is of [`Incoming::broken`](super::accept::Incoming::broken). Its server
/// lives on with the connections it has, so it says nothing itself.
pub async fn watch_listener(
    part: &'static str,
    broken: impl Future<Output = Option<io::Error>>,
    faults: mpsc::Sender<Fault>,
) {
    if let Some(source) = broken.await {
        let _ = faults.try_send(Fault::Listen { part, source });
    }
}

/// Runs a program to its end. `name` stands in front of its error; `blocking_threads` bounds the threads for
/// blocking work: few enough for a container's limit on processes, where a thread that cannot start would be
/// a panic.
pub fn run(name: &str, blocking_threads: usize, work: impl Future<Output = Result<(), Failure>>) -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(blocking_threads).build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(work);
            runtime.shutdown_timeout(LAST_WAIT);
            result
        }
        Err(error) => Err(format!("cannot start threads: {error}").into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(Stderr, "{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts a daemon, says that it is ready, and drains it at the first signal.
pub async fn serve<D: Daemon, E: Into<Failure>>(
    format: LogFormat,
    start: impl Future<Output = Result<D, E>>,
) -> Result<(), Failure> {
    start_logging(format);
    open_files::raise_limit();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut daemon = start.await.map_err(Into::into)?;
    let (ready, mut stdout) = (daemon.ready(), io::stdout());
    // A reader that left, or a full disk behind a redirection, is no reason not to serve.
    if let Err(error) = writeln!(stdout, "ready {ready}").and_then(|()| stdout.flush()) {
        tracing::warn!(%error, "cannot print the ready line to stdout; serving all the same: {ready}");
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        failure = daemon.failed() => return Err(failure),
    }
    tracing::info!("shutting down; a second signal ends it at once");
    tokio::select! {
        drained = daemon.shutdown() => if drained == Drained::CutOff {
            tracing::warn!("what did not finish within the drain time was cut off");
        },
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .log_internal_errors(false)
        .with_writer(|| Stderr);
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
    panics::log();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults() -> (mpsc::Sender<Fault>, mpsc::Receiver<Fault>) {
        mpsc::channel(1)
    }

    #[tokio::test]
    async fn a_server_that_ends_unasked_or_panics_is_a_fault() {
        let (sender, mut faults) = faults();
        watch_over("test service", async { Ok(()) }, CancellationToken::new(), sender.clone()).await;
        assert!(matches!(faults.try_recv(), Ok(Fault::Ended("test service"))));
        watch_over("test service", async { panic!("on purpose") }, CancellationToken::new(), sender).await;
        assert!(matches!(faults.try_recv(), Ok(Fault::Panicked("test service"))));
    }

    #[tokio::test]
    async fn a_guarded_task_may_end_but_not_panic() {
        let (sender, mut faults) = faults();
        guard("test task", async {}, sender.clone()).await;
        assert!(faults.try_recv().is_err());
        guard("test task", async { panic!("on purpose") }, sender).await;
        assert!(matches!(faults.try_recv(), Ok(Fault::Panicked("test task"))));
    }

    #[tokio::test]
    async fn a_server_that_ends_when_it_is_stopped_is_no_fault() {
        let (sender, mut faults) = faults();
        let stop = CancellationToken::new();
        stop.cancel();
        watch_over("test service", async { Ok(()) }, stop, sender).await;
        assert!(faults.try_recv().is_err());
    }
}
